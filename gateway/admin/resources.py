"""What `/api/v1/` shows, one function for each resource, and the shape of each.

A resource is a list of items that each name their node, so that the lists of several workers, or
of several nodes, are merged by joining them. Reading goes in steps (see `views`): between two of
them the loop may turn, so nothing that can change is iterated across a `yield` but copies.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from gateway.admin.items import (
    BREAKER_ITEM,
    CLIENT_ITEM,
    CONF_ITEM,
    COUNTS,
    LIMIT_ITEM,
    MEMBER_ITEM,
    NODE_ITEM,
    POOL_ITEM,
    RECENT_ITEM,
    UPSTREAM_ITEM,
    WAIT_ITEM,
)
from gateway.admin.shapes import Shape
from gateway.admin.views import (
    CREDENTIALS_SHOWN_MAX,
    Served,
    Steps,
    breaker_figures,
    limit_figures,
    member_figures,
    mesh_stats,
    node_figures,
    peer_figures,
    pool_figures,
)
from gateway.breaker.breaker import Breaker
from gateway.clock import MS, SECOND, monotonic_ns
from gateway.conf.show import digest_steps, shown_steps
from gateway.proxy.clients import ANONYMOUS
from gateway.proxy.histogram import BOUNDS_NS
from gateway.proxy.keys import parts_of_key

if TYPE_CHECKING:
    from gateway.conf.schema import Conf
    from gateway.conf.schema_upstream import LimitConf
    from gateway.proxy.graph import Upstream

__all__ = ["RESOURCES", "Resource", "key_of_row", "latency"]

FORWARD = "[forward]"  # targets without an upstream of their own
WAITS_SHOWN_MAX = 1000  # rows with a queue; above it an operator looks at the sums
CONNECTIONS_A_STEP = 1000  # at some 0.2 us each

Items = Steps[list[dict[str, Any]]]


class Resource(NamedTuple):
    """`read` gives the items, `item` is the shape of one.

    `by_upstream`: only those of the upstreams that are named are read.
    """

    read: Callable[[Served, Sequence[str]], Items]
    item: Shape
    about: str
    by_upstream: bool = True


def latency(heads: Sequence[int]) -> dict[str, float | None]:
    """Quantiles of the time to a response's head, from counts by BOUNDS_NS, in ms.

    Inside a class times are taken as spread evenly, as Prometheus's histogram_quantile does; above
    the last bound it is what is told. null where there was no response yet.
    """
    return {f"p{share}": _quantile(heads, share / 100) for share in (50, 90, 99)}


def _quantile(heads: Sequence[int], share: float) -> float | None:
    rank = share * sum(heads)
    if not rank:
        return None
    low_ns = seen = 0
    for bound_ns, count in zip(BOUNDS_NS, heads, strict=False):
        if count and seen + count >= rank:
            return round((low_ns + (bound_ns - low_ns) * (rank - seen) / count) / MS, 3)
        low_ns = bound_ns
        seen += count
    return round(low_ns / MS, 3)


def key_of_row(limit: LimitConf, key: bytes) -> dict[str, str | None]:
    """A row's key as its parts and their values; empty for a limit without a key."""
    parts = [str(part) for part in limit.key]
    return parts_of_key(parts, key) if parts else {}


# The configuration that was hashed last: a snapshot shows its hash each second, and that of a
# large one takes as long.
_hashed: list[tuple[Conf, str]] = []


def _config_hash(conf: Conf) -> Steps[str]:
    if not _hashed or _hashed[0][0] is not conf:
        told = yield from digest_steps(conf)
        _hashed[:] = [(conf, told)]
    return _hashed[0][1]


def _named(served: Served, names: Sequence[str]) -> list[tuple[str, Upstream]]:
    upstreams = served.worker.runtime.upstreams
    return [(name, upstreams[name]) for name in names if name in upstreams]


def _nodes(served: Served, names: Sequence[str]) -> Items:
    conf = served.conf
    told = yield from _config_hash(conf)
    now_ns = monotonic_ns()
    stats = mesh_stats(served, now_ns)
    return [
        {
            "node": served.name,
            **node_figures(served, now_ns),
            "config_hash": told,
            "cluster": conf.mesh.cluster if conf.mesh is not None else None,
            "members_live": stats.get("live", 1),
            "members_known": stats.get("known", 1),
            "upstreams": len(conf.upstream),
            "waiting": served.worker.waitroom.waiting_count,
        }
    ]


def _members(served: Served, names: Sequence[str]) -> Items:
    yield
    stats = mesh_stats(served, monotonic_ns())
    node = served.name
    return [{"node": node, **member_figures(member)} for member in stats["members"]]


def _upstreams(served: Served, names: Sequence[str]) -> Items:
    conf = served.conf
    items = []
    for name, upstream in _named(served, names):
        counts, breakers = upstream.counts, upstream.breakers
        filed = conf.upstream[name]
        now_ns = monotonic_ns()
        items.append(
            {
                "node": served.name,
                "name": name,
                "origin": str(filed.origin),
                "addresses": [str(address) for address in filed.addresses],
                "protocol": filed.protocol,
                "provider": upstream.profile.name,
                **{key: getattr(counts, key) for key in COUNTS},
                "wait_s": round(counts.wait.sum_ns / SECOND, 6),
                "responses": {f"{digit}xx": counts.responses[digit] for digit in range(1, 6)},
                "throttle_scopes": dict(counts.scopes),
                "latency_ms": latency(counts.head_time.counts),
                "heads": list(counts.head_time.counts),
                "waiting": upstream.queue_budget.used,
                "breaker": breakers.shown.state.name.lower(),
                "breakers_active": breakers.active,
                "rate_factor": round(breakers.ramp.factor(now_ns), 4),
            }
        )
        yield
    return items


def _limits(served: Served, names: Sequence[str]) -> Items:
    conf = served.conf
    overridden = served.operator.overridden
    items = []
    for name, upstream in _named(served, names):
        limits = conf.upstream[name].limit
        peers = peer_figures(upstream, served.mesh)
        yield
        now_ns = monotonic_ns()
        for figures in limit_figures(upstream, list(limits), served.mesh, now_ns):
            filed = overridden.get((name, figures["name"]))
            items.append(
                {
                    "node": served.name,
                    "upstream": name,
                    **figures,
                    "admitted_peers": peers.get(figures["name"], {}),
                    "overridden": filed is not None,
                    "rate_in_file": str(filed.rate) if filed is not None else figures["rate"],
                }
            )
        yield
    return items


def _breakers(served: Served, names: Sequence[str]) -> Items:
    node = served.name
    items = []
    for name, upstream in _named(served, names):
        breakers = upstream.breakers
        now_ns = monotonic_ns()
        shown = [(b"", breakers.shown), *islice(breakers.credentials(), CREDENTIALS_SHOWN_MAX)]
        for scope, breaker in shown:
            items.append(
                {
                    "node": node,
                    "upstream": name,
                    "credential": scope.hex() or None,
                    **breaker_figures(breaker, now_ns),
                }
            )
        yield
    return items


def _waits(served: Served, names: Sequence[str]) -> Items:
    wanted = {*names, FORWARD}
    blockers = served.worker.waitroom.blockers()
    items = []
    for blocker in blockers:
        queue = blocker.waiting
        if queue is None:  # served since the list was made
            continue
        first = queue.head()
        now_ns = monotonic_ns()
        name = first.upstream_name
        if name not in wanted:
            continue
        at, limit, key = _place(served, name, blocker)
        items.append(
            {
                "node": served.name,
                "upstream": name,
                "at": at,
                "limit": limit,
                "key": key,
                "waiting": len(queue),
                "tokens": queue.cost,
                "first_client": first.client.name,
                "first_waited_ms": max(0, now_ns - first.arrival_ns) // MS,
                "first_until_ms": max(0, first.wait_until_ns - now_ns) // MS,
            }
        )
        if len(items) >= WAITS_SHOWN_MAX:
            break
        yield
    return items


def _place(
    served: Served, upstream: str, blocker: Any
) -> tuple[str, str | None, dict[str, str | None]]:
    """What a queue stands at: ("limit" | "breaker" | "connections", limit, key)."""
    if isinstance(blocker, Breaker):
        return "breaker", None, {"credential": blocker.scope.hex()} if blocker.scope else {}
    name = blocker.limit.name
    if not name:  # the pacer's, after a pause
        return "breaker", None, {"credential": blocker.key.hex()} if blocker.key else {}
    filed = served.conf.upstream.get(upstream)
    for limit in filed.limit if filed is not None else ():
        if limit.name == name:
            return "limit", name, key_of_row(limit, blocker.key)
    return "connections", None, {}


def _pools(served: Served, names: Sequence[str]) -> Items:
    """Each pool once: upstreams with the same way out have one together."""
    conf = served.conf
    upstreams = served.worker.runtime.upstreams
    sharing: dict[int, list[str]] = {}
    for name, upstream in upstreams.items():
        sharing.setdefault(id(upstream.pool), []).append(name)
    items = []
    for name, upstream in _named(served, names):
        together = sharing.pop(id(upstream.pool), None)
        if together is None:
            continue  # shown with the first of them that was asked for
        items.append(
            {
                "node": served.name,
                "upstream": name,
                "shared_with": [other for other in together if other != name],
                **pool_figures(upstream),
                "in_use": sum(upstreams[one].slots.used for one in together),
                "max": sum(conf.upstream[one].connections for one in together),
                "dials": upstream.pool.dials,
                "reuses": upstream.pool.reuses,
                "tunnels": upstream.tunnels.open_count,
            }
        )
        yield
    return items


def _clients(served: Served, names: Sequence[str]) -> Items:
    conf = served.conf
    under_way: dict[str, int] = defaultdict(int)
    held: dict[str, int] = defaultdict(int)
    connections = list(served.connections())
    for begin in range(0, len(connections), CONNECTIONS_A_STEP):
        for connection in connections[begin : begin + CONNECTIONS_A_STEP]:
            exchange = connection.exchange
            if exchange is not None:
                under_way[exchange.client.name] += 1
                held[exchange.client.name] += exchange.blocker is not None
        yield
    items: list[dict[str, Any]] = []
    for client in conf.client:
        known_by = (("token", client.token), ("certificate", client.certificate))
        items.append(
            {
                "node": served.name,
                "name": client.name,
                "weight": client.weight,
                "priority": client.priority,
                "source": [str(network) for network in client.source],
                "known_by": [word for word, value in known_by if value is not None],
                "upstreams": list(client.upstreams),
                "allowed": True,
            }
        )
        yield
    items.append(
        {
            "node": served.name,
            "name": ANONYMOUS.name,
            "weight": ANONYMOUS.weight,
            "priority": ANONYMOUS.priority,
            "source": [],
            "known_by": [],
            "upstreams": [],
            "allowed": conf.access.anonymous,
        }
    )
    for item in items:
        item["under_way"] = under_way[item["name"]]
        item["waiting"] = held[item["name"]]
    return items


def _recent(served: Served, names: Sequence[str]) -> Items:
    yield
    node = served.name
    return [{"node": node, **told} for told in served.recent]


def _conf(served: Served, names: Sequence[str]) -> Items:
    conf = served.conf
    shown = yield from shown_steps(conf)
    told = yield from _config_hash(conf)
    return [{"node": served.name, "hash": told, "conf": shown}]


RESOURCES: dict[str, Resource] = {
    "nodes": Resource(
        _nodes, NODE_ITEM, "This node: version, uptime, configuration, readiness.", False
    ),
    "members": Resource(_members, MEMBER_ITEM, "The mesh as this node knows it.", False),
    "upstreams": Resource(_upstreams, UPSTREAM_ITEM, "External APIs: counts and latencies."),
    "limits": Resource(_limits, LIMIT_ITEM, "Limits: figures in force, sums over their rows."),
    "breakers": Resource(_breakers, BREAKER_ITEM, "Breakers of upstreams and credentials."),
    "waits": Resource(_waits, WAIT_ITEM, "Queues of held requests, a row or breaker each."),
    "pools": Resource(_pools, POOL_ITEM, "Connections to upstreams."),
    "clients": Resource(_clients, CLIENT_ITEM, "Who may ask, and what they have under way.", False),
    "conf": Resource(
        _conf, CONF_ITEM, "The configuration in force; secrets only by source.", False
    ),
    "recent": Resource(_recent, RECENT_ITEM, "What the node logged last, the newest last.", False),
}
