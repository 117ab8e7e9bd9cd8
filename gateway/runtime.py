"""Conf -> Runtime: builds the graph that the data path obeys, and carries state over a reload.

A reload has two steps. `prepare` makes everything that can fail (certificates are read, contexts
built) and touches nothing in use. `commit` cannot fail: limits take their new figures and keep
their rows, pools whose way out is unchanged keep their connections, and the caller swaps one
reference.
"""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from gateway.breaker.outcome import FailureRule
from gateway.breaker.providers import MAYBE_BODY_STATUSES, Profile, profile
from gateway.breaker.states import BreakerPolicy
from gateway.breaker.table import BreakerTable
from gateway.clock import SECOND
from gateway.conf.schema import Client as ClientConf
from gateway.conf.schema import Conf
from gateway.conf.schema import Route as RouteConf
from gateway.conf.schema_upstream import Headers, LimitConf
from gateway.conf.schema_upstream import Upstream as UpstreamConf
from gateway.conf.secret import Secret
from gateway.conf.values import parse_host
from gateway.connectors.address import NOT_PUBLIC
from gateway.connectors.dial import DialPlan, TlsPlan, client_context
from gateway.connectors.roads import Proxy, Road, tunnel_pool, upstream_pool
from gateway.errors import ErrorKind, GatewayError
from gateway.h1.codec import HeadLimits
from gateway.h1.forward import FieldRules
from gateway.limits.inflight import Inflight
from gateway.limits.lessons import Lessons
from gateway.limits.pacer import Pacer
from gateway.limits.policy import LimitSet, Rule
from gateway.limits.settled import Settled, central_of, unwrapped
from gateway.limits.verdict import Limit
from gateway.proxy.clients import Client, ClientRule, ClientTable
from gateway.proxy.counts import UpstreamCounts
from gateway.proxy.graph import (
    CentralUse,
    LimitUse,
    RetryRule,
    Runtime,
    Timeouts,
    Upstream,
    Wait,
    Worker,
)
from gateway.proxy.keys import compile_cost, compile_key
from gateway.proxy.pool import Pool
from gateway.proxy.spooling import SpoolRule
from gateway.proxy.targets import FORWARD, ForwardTable, Pattern
from gateway.registry import MeshLimits, Registry, levers, limit_identity
from gateway.routes import Route, RouteTable
from gateway.waiting.fair_queue import Budget
from peers.core.exact import ExactLimit

__all__ = ["Assembly", "Plan"]

RESPONSE_LIMITS = HeadLimits(head_bytes_max=64 * 1024, fields_max=200)  # an API's, not a client's


class Plan(NamedTuple):
    """A conf with everything made that could have failed, or that takes long.

    The routes lead to upstreams that are still empty: `commit` fills them in.
    """

    conf: Conf
    ways_out: dict[str, tuple[tuple[Any, ...], DialPlan]]
    upstreams: dict[str, Upstream]
    routes: RouteTable[Upstream]
    base_urls: dict[str, str]


class Assembly:
    """Builds Runtimes for one worker."""

    def __init__(
        self,
        worker: Worker,
        mesh: MeshLimits,
        own_addresses: Callable[[], Iterable[tuple[str, int]]] = tuple,
    ) -> None:
        """`own_addresses`: where this worker listens; `[forward]` must not lead back to it."""
        self._worker = worker
        self._own_addresses = own_addresses
        self.registry = Registry(mesh, worker.store)
        self._generation = 0
        self._forward: ForwardTable | None = None
        self._deny_private = True
        self._nodes: ForwardTable | None = None

    def build(self, conf: Conf) -> Runtime:
        """The first Runtime. Raises OSError or ssl.SSLError as `prepare` does."""
        return self.commit(self.prepare(conf))

    def prepare(self, conf: Conf) -> Plan:
        """Reads and makes what can fail. Raises OSError (ssl.SSLError is one).

        It touches nothing in use and may run in a thread: 10,000 routes take 20 ms, in which
        `commit` would have the loop stand still.
        """
        ways_out = {}
        contexts: _Contexts = {}
        for name, upstream in conf.upstream.items():
            try:
                ways_out[name] = _way_out(upstream, contexts)
            except OSError as error:
                raise OSError(f"upstream.{name}.tls: {error}") from error
        upstreams = {name: Upstream() for name in conf.upstream}
        routes = RouteTable([_route(route, upstreams) for route in conf.route])
        return Plan(conf, ways_out, upstreams, routes, _base_urls(conf))

    def commit(self, plan: Plan) -> Runtime:
        """The Runtime of a plan; limits and pools have its figures from now on."""
        conf, upstreams = plan.conf, plan.upstreams
        for name, upstream in upstreams.items():
            self._fill(upstream, name, plan)
        self.registry.keep_only(
            [
                limit_identity(name, limit)
                for name, upstream in conf.upstream.items()
                for limit in upstream.limit
            ],
            [*conf.upstream, FORWARD],
        )
        kept = {way for way, _ in plan.ways_out.values()}
        self.registry.close_pools_but(kept | {(*way, "tunnel") for way in kept})
        self._forward = forward = self._forward_table(conf)
        self._generation += 1
        timeouts = [upstream.timeout for upstream in conf.upstream.values()]
        return Runtime(
            generation=self._generation,
            routes=plan.routes,
            by_origin={
                (
                    upstream.origin.scheme.encode(),
                    _bracketed(upstream.origin.host),
                    upstream.origin.port,
                ): upstreams[name]
                for name, upstream in reversed(conf.upstream.items())
            },
            forward=forward,
            spool_nodes=self._spool_nodes(conf),
            upstreams=upstreams,
            clients=ClientTable(
                [_client(client) for client in conf.client], anonymous=conf.access.anonymous
            ),
            # Before its head is whole a request has no upstream: the most patient one decides.
            head_timeout_ns=max((timeout.head for timeout in timeouts), default=10 * SECOND),
            idle_timeout_ns=max((timeout.idle for timeout in timeouts), default=55 * SECOND),
            access_log=conf.log.access != "off",
            access_sample=conf.log.access_sample,
        )

    def retune(self, conf: Conf, name: str) -> None:
        """One upstream's limits take the figures of `conf`; all else is as it was.

        The limits are the same ones in the same order: a request under way gives back by position.
        """
        upstream = self._worker.runtime.upstreams[name]
        self._set_limits(upstream, conf.upstream[name])
        self._breakers(conf.upstream[name], upstream.breakers, not self.registry.alone)
        self.rejoin_held()

    def rejoin_held(self) -> None:
        """Requests that wait go on under the worker's Runtime of now, deadlines unchanged."""
        worker = self._worker
        now_ns = worker.now_ns()
        held = worker.waitroom.exchanges()
        for exchange in held:
            worker.waitroom.leave(exchange)
        for exchange in held:
            exchange.rejoin(now_ns)

    async def abort(self) -> None:
        """Ends all upstream connections."""
        pools = self.registry.all_pools()
        for table in (self._forward, self._nodes):
            if table is not None:
                for upstream in table.upstreams():
                    pools += (upstream.pool, upstream.tunnels)
        for pool in pools:
            await pool.abort()

    def _fill(self, upstream: Upstream, name: str, plan: Plan) -> None:
        """Makes it the upstream of that name, with what outlives a reload."""
        conf = plan.conf.upstream[name]
        registry = self.registry
        way, dial_plan = plan.ways_out[name]
        self._compile(upstream, name, conf, registry.slots(name, conf.connections))
        upstream.pool = registry.pool(way, lambda: self._pool(conf, dial_plan))
        upstream.tunnels = registry.pool(
            (*way, "tunnel"), lambda: self._pool(conf, dial_plan, tunnel=True)
        )
        by_majority = not registry.alone
        upstream.breakers = self._breakers(conf, registry.breakers.get(name), by_majority)
        registry.breakers[name] = upstream.breakers
        upstream.pacer = registry.pacers.setdefault(name, Pacer())
        upstream.counts = registry.counts.setdefault(name, UpstreamCounts())
        if conf.limit and not conf.tunnel:
            upstream.tunnel_denied = (
                f"limits of upstream {name} cannot see inside a tunnel: "
                f"use {plan.base_urls[name]} as the base URL instead of the proxy"
            )

    def _forward_table(self, conf: Conf) -> ForwardTable:
        """`[forward]` of that conf, with what its predecessor made for targets that stay."""
        patterns = [
            Pattern(_bracketed(allowed.host), allowed.port, allowed.wildcard)
            for allowed in conf.forward.allow
        ]
        table = ForwardTable(
            patterns,
            frozenset(conf.forward.connect_ports),
            partial(self._forward_upstream, conf),
            self.registry.retire,
        )
        if self._forward is not None:
            same_way = conf.forward.deny_private == self._deny_private
            table.succeed(self._forward, same_way=same_way)
        self._deny_private = conf.forward.deny_private
        return table

    def _spool_nodes(self, conf: Conf) -> dict[str, Callable[[], Upstream | None]]:
        """The way to each of `spool.nodes`, made when it is first needed, kept over reloads."""
        nodes = conf.spool.nodes if conf.spool is not None else {}
        patterns = [
            Pattern(_bracketed(node.host), node.port, below=False) for node in nodes.values()
        ]
        # The operator has named them, so they may be private.
        make = partial(self._forward_upstream, conf, deny_private=False)
        table = ForwardTable(patterns, frozenset(), make, self.registry.retire)
        if self._nodes is not None:
            table.succeed(self._nodes, same_way=True)
        self._nodes = table
        return {
            name: partial(table.find, node.scheme.encode(), _bracketed(node.host), node.port)
            for name, node in nodes.items()
        }

    def _forward_upstream(
        self,
        conf: Conf,
        scheme: bytes,
        host: bytes,
        port: int,
        *,
        deny_private: bool | None = None,
    ) -> Upstream:
        """An upstream for a `[forward]` target: no limits, its own breaker and connections.

        Raises GatewayError (BAD_REQUEST) for a host that cannot be resolved.
        """
        if deny_private is None:
            deny_private = conf.forward.deny_private
        try:
            parse_host(host.decode())
        except ValueError as fault:
            # What has the form of a name and is none, such as `a..b` or `127.1`.
            raise GatewayError(ErrorKind.BAD_REQUEST, str(fault)) from None
        origin = f"{scheme.decode()}://{host.decode()}:{port}"
        target = UpstreamConf.model_validate({"origin": origin})
        upstream = Upstream()
        self._compile(upstream, FORWARD, target, Inflight("connections", target.connections))
        _, dial_plan = _way_out(target, {})
        dial_plan = dial_plan._replace(
            deny=NOT_PUBLIC if deny_private else frozenset(),
            own_addresses=self._own_addresses,
            count_denied=self._count_denied,
        )
        upstream.pool = self._pool(target, dial_plan)
        upstream.tunnels = self._pool(target, dial_plan, tunnel=True)
        upstream.breakers = self._breakers(target, None, by_majority=False)
        upstream.pacer = Pacer()
        upstream.counts = self.registry.counts.setdefault(FORWARD, UpstreamCounts())
        return upstream

    def _count_denied(self, reason: str) -> None:
        self._worker.count("addresses_denied_" + reason)

    def _compile(self, upstream: Upstream, name: str, conf: UpstreamConf, slots: Inflight) -> None:
        upstream.name = name
        upstream.host_header = _host_header(conf)
        upstream.slots = slots.entry(b"", 0)
        self._set_limits(upstream, conf)
        upstream.queue_budget = Budget(conf.wait.queue)
        fair_by = compile_key([str(conf.wait.fair_by)])
        assert fair_by is not None
        upstream.wait = Wait(conf.wait.max, fair_by, conf.wait.prefer)
        upstream.failure = FailureRule(conf.breaker.failure)
        upstream.profile = _profile(conf)
        upstream.body_statuses = (
            MAYBE_BODY_STATUSES
            if upstream.profile.recognises
            else upstream.profile.provider.body_statuses
        )
        upstream.rules = _field_rules(conf.headers)
        timeout = conf.timeout
        upstream.timeouts = Timeouts(
            timeout.response, timeout.body_idle, timeout.total, timeout.tunnel
        )
        retry = conf.retry
        upstream.retry = RetryRule(
            FailureRule(retry.on),
            retry.attempts,
            retry.budget,
            retry.body,
            retry.methods == "all",
        )
        upstream.tunnel_denied = ""
        upstream.spool = None
        if conf.spool is not None:
            upstream.spool = SpoolRule(
                conf.spool.ttl,
                conf.spool.attempts,
                compile_key([str(part) for part in conf.spool.order_by]),
                conf.spool.priority,
                conf.spool.keep,
            )

    def _set_limits(self, upstream: Upstream, conf: UpstreamConf) -> None:
        uses = [self._use(upstream.name, limit) for limit in conf.limit]
        upstream.limit_uses = tuple(uses)
        upstream.limit_set = LimitSet(
            [_rule(use.limit, limit) for use, limit in zip(uses, conf.limit, strict=True)]
        )
        for i, limit in enumerate(conf.limit):
            identity = limit_identity(upstream.name, limit)
            self.registry.carry_decisions(identity, upstream.limit_set, i)
        upstream.lessons = self._lessons(upstream.name, conf, uses)
        upstream.settled = tuple(i for i, use in enumerate(uses) if use.settled_by)
        upstream.central = tuple(
            CentralUse(i, isinstance(use.limit, Settled))
            for i, use in enumerate(uses)
            if central_of(use.limit) is not None
        )
        plain = not upstream.settled and all(use.key is None and use.cost is None for use in uses)
        upstream.fixed_keys = (b"",) * len(uses) if plain else None
        upstream.fixed_costs = (1,) * len(uses)

    def _use(self, upstream: str, conf: LimitConf) -> LimitUse:
        limit = self.registry.limit(upstream, conf)
        cost = compile_cost(conf.cost.kind, conf.cost.tokens, conf.cost.header)
        ns_per_token = conf.rate.period_ns // conf.rate.count if conf.rate else 0
        fill, scale = levers(limit)
        key = compile_key([str(part) for part in conf.key])
        by_credential = fill is not None and [str(part) for part in conf.key] == ["credential"]
        told_by = conf.cost.header.lower() if conf.cost.kind == "response_header" else ""
        leased = isinstance(unwrapped(limit), ExactLimit)
        return LimitUse(
            limit, key, cost, ns_per_token, by_credential, fill, scale, leased, told_by.encode()
        )

    def _lessons(self, name: str, conf: UpstreamConf, uses: Sequence[LimitUse]) -> Lessons:
        lessons = {
            i: self.registry.lesson(name, limit, uses[i].limit)
            for i, limit in enumerate(conf.limit)
            if limit.rate is not None and limit.learn != "off"
        }
        return Lessons(lessons, each=conf.provider.preempt, glances=_profile(conf).recognises)

    def _breakers(
        self, conf: UpstreamConf, table: BreakerTable | None, by_majority: bool
    ) -> BreakerTable:
        figures = conf.breaker
        policy = BreakerPolicy(
            open_ns=figures.open,
            open_max_ns=figures.open_max,
            pause_max_ns=figures.pause_max,
            failure_ratio=figures.failure_ratio,
            failure_min=figures.failure_min,
            window_ns=figures.window,
            ramp_ns=figures.ramp,
            by_credential=figures.scope == "credential",
        )
        rates = [
            limit.rate.count * SECOND / limit.rate.period_ns
            for limit in conf.limit
            if limit.rate is not None and limit.algorithm == "smooth" and not limit.dry_run
        ]
        full_per_s = max(rates, default=0.0)
        now_ns = self._worker.now_ns()
        if table is None:
            return BreakerTable(policy, now_ns, full_per_s, by_majority=by_majority)
        table.configure(policy, full_per_s, now_ns)
        return table

    def _pool(self, conf: UpstreamConf, plan: DialPlan, *, tunnel: bool = False) -> Pool:
        via = Proxy(*conf.via) if conf.via is not None else None
        authority = conf.origin.authority.encode()
        h2 = conf.protocol == "h2"
        road = Road(plan, authority, via, h2, conf.timeout.idle, RESPONSE_LIMITS)
        return tunnel_pool(self._worker, road) if tunnel else upstream_pool(self._worker, road)


# To read the system's authorities takes 16 ms, so upstreams of one reload that want the same share
# a context; by protocol as well, because that is settled in the handshake (ALPN).
_Contexts = dict[tuple[Any, ...], ssl.SSLContext]


def _way_out(conf: UpstreamConf, contexts: _Contexts) -> tuple[tuple[Any, ...], DialPlan]:
    """(what identifies the way, how to dial it); files count by content, so a renewed one does."""
    origin = conf.origin
    tls: TlsPlan | None = None
    if origin.scheme == "https":
        files = conf.tls
        wanted = (files.ca, files.cert, files.key, files.verify)
        context = contexts.get((*wanted, conf.protocol))
        if context is None:
            context = contexts[*wanted, conf.protocol] = client_context(*wanted)
        tls = TlsPlan(
            context,
            conf.host if conf.host not in ("origin", "client") else origin.host,
        )
    timeout = conf.timeout
    way = (
        origin,
        conf.addresses,
        conf.protocol,
        conf.via,
        conf.host if tls else "",
        conf.tls.verify,
        timeout.connect,
        timeout.tls,
        timeout.idle,
        *(_digest(path) for path in (conf.tls.ca, conf.tls.cert, conf.tls.key)),
    )
    addresses = tuple((address.host, address.port) for address in conf.addresses)
    plan = DialPlan(origin.host, origin.port, addresses, tls, timeout.connect, timeout.tls)
    return way, plan


def _host_header(conf: UpstreamConf) -> bytes | None:
    if conf.host == "client":
        return None
    return (conf.origin.authority if conf.host == "origin" else conf.host).encode()


def _bracketed(host: str) -> bytes:
    """A host as a request target spells it (RFC 3986 section 3.2.2)."""
    return f"[{host}]".encode() if ":" in host else host.encode()


def _digest(path: str | None) -> bytes:
    return hashlib.sha256(Path(path).read_bytes()).digest() if path else b""


def _profile(conf: UpstreamConf) -> Profile:
    provider = conf.provider
    return profile(
        provider.name,
        conf.origin.host,
        retry_after_unit=provider.retry_after_unit,
        reset_unit=provider.reset_unit,
        preempt=provider.preempt,
        time_zone=ZoneInfo(provider.time_zone),
        pause_max_ns=conf.breaker.pause_max,
        throttle_statuses=frozenset(conf.breaker.throttle),
    )


def _base_urls(conf: Conf) -> dict[str, str]:
    """Where a client finds each upstream without a proxy setting, for a refusal's text."""
    urls = {
        name: f"an absolute-form request to {upstream.origin}"
        for name, upstream in conf.upstream.items()
    }
    for route in reversed(conf.route):  # the first one of an upstream is the one that is named
        host = route.host or str(conf.listen[0].bind)
        urls[route.upstream] = f"http://{host}{route.path.rstrip('/')}"
    return urls


def _rule(limit: Limit, conf: LimitConf) -> Rule:
    if conf.rate is None:
        return Rule(limit, conf.in_flight or 0, 0, in_flight=True)
    return Rule(limit, conf.rate.count, conf.rate.period_ns)


def _route(conf: RouteConf, upstreams: dict[str, Upstream]) -> Route[Upstream]:
    return Route(
        (conf.host or "").encode(),
        conf.path.encode().rstrip(b"/"),
        frozenset(method.encode() for method in conf.methods),
        (conf.strip or "").encode().rstrip(b"/"),
        upstreams[conf.upstream],
    )


def _client(conf: ClientConf) -> ClientRule:
    return ClientRule(
        Client(conf.name, conf.weight, conf.priority, frozenset(conf.upstreams)),
        conf.source,
        conf.token.reveal().encode() if conf.token is not None else b"",
        conf.certificate or "",
    )


def _field_rules(conf: Headers) -> FieldRules | None:
    if not (conf.set or conf.add or conf.remove):
        return None

    def fields(table: dict[str, str | Secret]) -> tuple[tuple[bytes, bytes], ...]:
        return tuple(
            (
                name.encode("latin-1"),
                (value.reveal() if isinstance(value, Secret) else value).encode("latin-1"),
            )
            for name, value in table.items()
        )

    remove = frozenset(name.lower().encode("latin-1") for name in conf.remove)
    return FieldRules(fields(conf.set), fields(conf.add), remove)
