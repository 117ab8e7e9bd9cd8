"""Joins the data path to the mesh: limits to counters, breakers to their replicas, news to queues.

`peers` knows neither upstreams nor exchanges. A breaker's name on the wire is 8 octets keyed by the
cluster for the upstream, and for a credential its 16-octet keyed hash behind them: a node can act
on a pause for a credential that it has not met yet.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from gateway.breaker.states import LOCAL, BreakerState, Cause, Change
from gateway.clock import SECOND, monotonic_ns, wall_ns
from gateway.limits.peaks import ROWS_MAX, LimitPeaks
from gateway.limits.settled import unwrapped
from gateway.proxy import pauses
from peers.core.config import Config
from peers.core.events import (
    BreakerClosed,
    BreakerOpened,
    Event,
    MemberHeard,
    MemberJoined,
    MemberLeft,
    MemberRefused,
    MemberSuspected,
    MemberUnheard,
    MemberUnreached,
    MeshFull,
    NameConflict,
    RowChanged,
    TrialClaimed,
    TripMajority,
    Unreached,
)
from peers.core.exact import ExactLimit
from peers.core.table import SharedTable

if TYPE_CHECKING:
    from gateway.conf.schema import Conf
    from gateway.conf.schema_upstream import LimitConf
    from gateway.limits.verdict import Limit
    from gateway.proxy.graph import Upstream, Worker
    from peers.core.node import Node

__all__ = [
    "WARNINGS",
    "MeshAdapter",
    "NoMesh",
    "Place",
    "join_addresses",
    "node_config",
    "sealing_keys",
]

LOOPBACK = "127.0.0.1"

HASH_KEY_BYTES = 32
SCOPE_BYTES = 8  # what `Node.scope_key` gives; behind it the credential's hash, if any

# What the log should have as warnings.
WARNINGS = frozenset({"member unreached", "members do not reach this node"})

_CAUSES = (Cause.THROTTLE, Cause.FAILURE)  # their positions are the numbers on the wire


class Place(NamedTuple):
    """Which of a node's several workers a process is.

    `ports` are those of all workers' mesh sockets. `cluster` and `key` are for the workers of a
    node without [mesh], which then keep their limits among themselves, on loopback: made at random
    by the supervisor, so that no other process of the host can be one of them.
    """

    number: int
    ports: tuple[int, ...]
    cluster: str = ""
    key: bytes = b""


def worker_name(conf: Conf, place: Place) -> str:
    """What one of a node's several workers is called."""
    return f"{conf.node.name}/{place.number}"


def node_config(conf: Conf, place: Place | None = None) -> Config:
    """What the mesh's node is told. Raises ConfigError, which `check` has ruled out."""
    mesh = conf.mesh
    if place is None:
        if mesh is None:
            raise ValueError("the conf has no [mesh]")
        bind = (mesh.bind.host, mesh.bind.port)
        advertise = (mesh.advertise.host, mesh.advertise.port) if mesh.advertise else bind
        return Config(
            conf.node.name, mesh.cluster, bind, advertise, join_addresses(conf), sealing_keys(conf)
        )
    own_host = LOOPBACK
    first_port = place.ports[0]
    if mesh is not None:
        own_host = mesh.advertise.host if mesh.advertise else mesh.bind.host
        first_port = mesh.advertise.port if mesh.advertise else mesh.bind.port
    # Where [mesh] is, ports follow each other; others may see another first one (a NAT's).
    told = [(own_host, port - place.ports[0] + first_port) for port in place.ports]
    return Config(
        name=worker_name(conf, place),
        cluster=mesh.cluster if mesh is not None else place.cluster,
        bind=(mesh.bind.host if mesh is not None else LOOPBACK, place.ports[place.number]),
        advertise=told[place.number],
        join=(*join_addresses(conf), *(at for at in told if at != told[place.number])),
        keys=sealing_keys(conf) if mesh is not None else (place.key,),
        kin=tuple(told),
    )


def sealing_keys(conf: Conf) -> tuple[bytes, ...]:
    """The mesh's keys, the one that seals first."""
    return tuple(key.reveal_bytes() for key in conf.mesh.keys) if conf.mesh else ()


def join_addresses(conf: Conf) -> tuple[tuple[str, int], ...]:
    """Where members may be found, as the driver wants them: "dns:NAME" is a group."""
    join = conf.mesh.join if conf.mesh else ()
    return tuple((("dns:" if at.dns else "") + at.host, at.port) for at in join)


class NoMesh:
    """The mesh of a node that stands alone: nobody is told, everything is its own."""

    alone = True

    def __init__(self, hash_key: bytes) -> None:
        self.hash_key = hash_key
        self.on_members: Callable[[], None] = _nothing

    def limit(self, identity: str, conf: LimitConf) -> Limit:
        raise ValueError("a node that stands alone has local limits only")

    def forget(self, identity: str) -> None:
        """No mesh-wide limit is there to forget."""

    def share(self) -> tuple[int, int]:
        return 1, 0

    def tick(self, now_ns: int) -> None:
        """Limits of one node only need no watching."""

    def peaks(self, limit: object) -> LimitPeaks | None:
        return None

    def names(self) -> dict[bytes, str]:
        return {}

    def breaker_changed(self, upstream: Upstream, change: Change, now_ns: int) -> None:
        """Nobody else needs to know."""

    def trial_begun(
        self, upstream: Upstream, scope: bytes, epoch: int, until_ns: int, now_ns: int
    ) -> None:
        """Nobody else could send it."""

    def trial_returned(self, upstream: Upstream, scope: bytes, epoch: int, now_ns: int) -> None:
        """Nobody else waits for it."""

    def tripped(self, upstream: Upstream, tripped: bool, now_ns: int) -> None:
        """A node alone has no votes to count: its breakers open at once."""

    def others_per_s(self, upstream: Upstream) -> float:
        return 0.0

    def trial_at_ns(self, upstream: Upstream, change: Change, now_ns: int) -> int:
        return change.until_ns


class MeshAdapter:
    """The mesh as the data path and the registry see it."""

    alone = False

    def __init__(self, node: Node, worker: Worker, log: Callable[..., None]) -> None:
        self.node = node
        self.hash_key = hashlib.blake2b(
            node.scope_key(b"credentials"), digest_size=HASH_KEY_BYTES
        ).digest()
        self.on_members: Callable[[], None] = _nothing
        self.on_refused: Callable[[str], None] = _ignored
        self._worker = worker
        self._log = log
        self._scopes: dict[str, bytes] = {}
        self._requests: dict[str, int] = {}  # by upstream, as of the last look
        self._peaks: dict[str, LimitPeaks] = {}
        self._tight: set[str] = set()  # limits that the log called so

    # The registry's side.

    def limit(self, identity: str, conf: LimitConf) -> Limit:
        """The mesh-wide limit of that identity, made or given the conf's figures."""
        rate = conf.rate
        facts: dict[str, Any] = {
            "name": conf.name,
            "on_partition": conf.on_partition,
            "keys_max": conf.keys_max,
            "dry_run": conf.dry_run,
        }
        if rate is None:
            if conf.in_flight is None:
                raise ValueError("a limit has a rate or slots")
            return self.node.held_limit(identity, slots=conf.in_flight, **facts)
        if conf.algorithm == "window":
            facts |= {
                "count": rate.count,
                "period_ns": rate.period_ns,
                "wall_offset_ns": wall_ns() - monotonic_ns() if conf.align == "clock" else None,
            }
            if conf.sync == "exact":
                now_ns = self._worker.now_ns()
                return self.node.exact_window_limit(identity, **facts, now_ns=now_ns)
            return self.node.window_limit(identity, **facts)
        facts |= {
            "rate_count": rate.count,
            "rate_period_ns": rate.period_ns,
            "burst": conf.burst,
        }
        if conf.sync == "exact":
            return self.node.exact_limit(identity, **facts, now_ns=self._worker.now_ns())
        return self.node.limit(identity, **facts)

    def forget(self, identity: str) -> None:
        """The conf no longer names this limit."""
        self.node.forget_limit(identity)
        self._peaks.pop(identity, None)
        self._tight.discard(identity)

    def share(self) -> tuple[int, int]:
        """(live members, this node's rank among them by name)."""
        names = sorted(member.name for member in self.node.members() if member.live)
        own = self.node.config.name
        if own not in names:
            return max(1, len(names) + 1), 0
        return len(names), names.index(own)

    # The composition root's and the admin interface's side.

    def tick(self, now_ns: int) -> None:
        """A few times a second: watches how full the windows of the shared limits are, and whether
        a burst is too small for so many members to keep it without speaking at once."""
        self._look_at_upstreams(now_ns)
        for limit in self.node.limits():
            if limit.tight != (limit.identity in self._tight):
                self._tight ^= {limit.identity}
                event = "limit tight" if limit.tight else "limit no longer tight"
                self._log(event, limit=limit.name, members=limit.members)
            if not limit.drains:
                continue  # rate * w + burst is not what a window or slots promise
            peaks = self._peaks.get(limit.identity)
            if peaks is None:
                peaks = self._peaks[limit.identity] = LimitPeaks()
            rule = limit.effective
            peaks.sample(limit.recent_rows(ROWS_MAX), rule.rate, float(rule.burst), now_ns)

    def names(self) -> dict[bytes, str]:
        """The members' names by their identity, for what rows know of peers."""
        return {member.node: member.name for member in self.node.members()}

    def peaks(self, limit: object) -> LimitPeaks | None:
        """The fullest windows of a mesh-wide limit; None before the first look at it."""
        return self._peaks.get(limit.identity) if isinstance(limit, SharedTable) else None

    # The data path's side.

    def breaker_changed(self, upstream: Upstream, change: Change, now_ns: int) -> None:
        """A breaker of this node opened or closed: all others hear it at once."""
        scope = self._scope(upstream.name) + change.scope
        reff = change.reff_per_s or 0.0
        if change.state is BreakerState.CLOSED:
            self.node.close_breaker(scope, change.epoch, now_ns, reff)
        else:
            cause = _CAUSES.index(change.cause)
            self.node.open_breaker(scope, change.epoch, change.until_ns, cause, now_ns, reff)

    def trial_begun(
        self, upstream: Upstream, scope: bytes, epoch: int, until_ns: int, now_ns: int
    ) -> None:
        """This node sends the one trial; the others wait for what comes of it."""
        self.node.claim_trial(self._scope(upstream.name) + scope, epoch, until_ns, now_ns)

    def trial_returned(self, upstream: Upstream, scope: bytes, epoch: int, now_ns: int) -> None:
        """The trial said nothing: another node may send one at once."""
        self.node.release_trial(self._scope(upstream.name) + scope, epoch, now_ns)

    def tripped(self, upstream: Upstream, tripped: bool, now_ns: int) -> None:
        """What this node finds; the mesh decides by majority whether all should stop."""
        self.node.trip(self._scope(upstream.name), tripped, now_ns)

    def others_per_s(self, upstream: Upstream) -> float:
        """What peers tell of their admissions; the fullest limit is the one that sees them all."""
        limits = [unwrapped(use.limit) for use in upstream.limit_uses]
        sums = [
            sum(row.peers_rate for row in limit.rows())
            for limit in limits
            if isinstance(limit, SharedTable)
        ]
        now_ns = self._worker.now_ns()
        sums += [
            sum(row.others_rate(now_ns) for row in limit.rows())
            for limit in limits
            if isinstance(limit, ExactLimit)
        ]
        return max(sums, default=0.0) * SECOND

    def trial_at_ns(self, upstream: Upstream, change: Change, now_ns: int) -> int:
        """When it is this node's turn to send the trial."""
        scope = self._scope(upstream.name) + change.scope
        return self.node.trial_at_ns(scope, change.epoch, change.until_ns, now_ns)

    # The node's side.

    def events(self, events: Iterable[Event]) -> None:
        """What peers told and what became of members (called by the driver)."""
        now_ns = self._worker.now_ns()
        for event in events:
            if isinstance(event, RowChanged):
                self._worker.waitroom.poke(event.row)
            elif isinstance(event, BreakerOpened):
                cause = _CAUSES[event.cause] if event.cause < len(_CAUSES) else Cause.THROTTLE
                self._adopt(
                    event.scope, BreakerState.OPEN, event.epoch, cause, event.until_ns,
                    event.reff, now_ns,
                )  # fmt: skip
            elif isinstance(event, BreakerClosed):
                self._adopt(
                    event.scope, BreakerState.CLOSED, event.epoch, Cause.THROTTLE, 0,
                    event.reff, now_ns,
                )  # fmt: skip
            elif isinstance(event, TrialClaimed):
                self._claimed(event, now_ns)
            elif isinstance(event, TripMajority):
                upstream = self._upstream(event.scope)
                if upstream is not None:
                    changes = upstream.breakers.spread(now_ns)
                    pauses.report(self._worker, upstream, changes, now_ns)
            else:
                self._member_event(event)

    def _adopt(
        self,
        scope: bytes,
        state: BreakerState,
        epoch: int,
        cause: Cause,
        until_ns: int,
        reff: float,
        now_ns: int,
    ) -> None:
        upstream = self._upstream(scope)
        if upstream is not None:
            change = Change(scope[SCOPE_BYTES:], epoch, state, cause, until_ns, reff or None)
            pauses.adopt(self._worker, upstream, change, now_ns)

    def _claimed(self, event: TrialClaimed, now_ns: int) -> None:
        """Another node sends the trial, or gave it back: this node's turn is behind it."""
        upstream = self._upstream(event.scope)
        breaker = upstream.breakers.get(event.scope[SCOPE_BYTES:]) if upstream else None
        if breaker is not None:
            turn_ns = self.node.trial_at_ns(event.scope, event.epoch, event.until_ns, now_ns)
            breaker.claimed(event.epoch, turn_ns)
            self._worker.waitroom.poke(breaker)

    def _look_at_upstreams(self, now_ns: int) -> None:
        """Tells who is in use here. Where a pause ends soon the turn for its trial is found anew:
        it goes by who has requests then, not by who had when it began."""
        for name, upstream in self._worker.runtime.upstreams.items():
            requests = upstream.counts.requests
            if requests != self._requests.get(name, 0):
                self._requests[name] = requests
                self.node.note_demand(self._scope(name), now_ns)
            if not upstream.breakers.active:
                continue
            for breaker in upstream.breakers.open_ones():
                ends_ns = breaker.until_ns - now_ns
                if breaker.scope == LOCAL or breaker.state is not BreakerState.OPEN:
                    continue
                if 0 < ends_ns < SECOND:
                    scope = self._scope(name) + breaker.scope
                    turn_ns = self.node.trial_at_ns(scope, breaker.epoch, breaker.until_ns, now_ns)
                    if turn_ns != breaker.trial_at_ns:
                        breaker.trial_at_ns = turn_ns
                        self._worker.waitroom.poke(breaker)

    def _member_event(self, event: Event) -> None:
        if isinstance(event, MemberJoined):
            self._log("member joined", member=event.name, address=_shown(event.address))
        elif isinstance(event, MemberSuspected):
            self._log("member suspected", member=event.name, address=_shown(event.address))
        elif isinstance(event, MemberUnheard):
            self._log(
                "member not heard here though others hear it",
                member=event.name,
                address=_shown(event.address),
            )
        elif isinstance(event, MemberHeard):
            self._log("member heard again", member=event.name)
        elif isinstance(event, MemberLeft):
            self._log("member gone" if event.crashed else "member left", member=event.name)
        elif isinstance(event, MemberRefused):
            self._log(
                "member refused: the mesh is full",
                member=event.name,
                address=_shown(event.address),
                members_max=self.node.config.members_max,
            )
        elif isinstance(event, MemberUnreached):
            self._log(
                "member unreached",
                member=event.name,
                heard_from=_shown(event.source),
                advertises=_shown(event.address),
                why="it does not answer where it advertises to be, and hears nothing of the mesh",
            )
        elif isinstance(event, MeshFull):
            self.on_refused(
                f"{_shown(event.address)} has no room for one more than"
                f" {self.node.config.members_max} members; a node beside them would keep its limits"
                " on top of theirs"
            )
        elif isinstance(event, Unreached):
            self._unreached(event)
        elif isinstance(event, NameConflict):
            self._log("name taken", member=event.name, address=_shown(event.address))
            if event.refused:
                # Outside the mesh this node would keep limits of its own beside everybody else's.
                self.on_refused(
                    f"the name {event.name} is taken by {_shown(event.address)}; two members of one"
                    " name cannot share limits"
                )
        self.on_members()

    def _unreached(self, event: Unreached) -> None:
        advertise = _shown(self.node.config.advertise)
        if not event.members:
            self._log("reached again", advertise=advertise)
            return
        self._log(
            "members do not reach this node",
            advertise=advertise,
            heard_from=_shown(event.source),
            members=event.members,
            why="mesh.advertise is wrong, or what is between lets nothing through to it",
        )

    def _scope(self, upstream: str) -> bytes:
        scope = self._scopes.get(upstream)
        if scope is None:
            scope = self._scopes[upstream] = self.node.scope_key(b"upstream", upstream.encode())
        return scope

    def _upstream(self, scope: bytes) -> Upstream | None:
        """The upstream that a scope belongs to; peers may have others than this node."""
        for upstream in self._worker.runtime.upstreams.values():
            if scope[:SCOPE_BYTES] == self._scope(upstream.name):
                return upstream
        return None


def _shown(address: tuple[str, int]) -> str:
    return f"{address[0]}:{address[1]}"


def _ignored(reason: str) -> None:
    """Until the composition root says what to do."""


def _nothing() -> None:
    """Until the composition root says what to do."""
