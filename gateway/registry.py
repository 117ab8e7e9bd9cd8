"""What outlives a reload: limits with their rows, breakers, pools and counts, by identity.

A limit's identity is upstream, name, key parts and algorithm (and the period of a window): a new
rate for the same identity is a new slope for the same counters. What the new conf no longer names
is let go, so that its rows do not stay for ever.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol

from gateway.clock import SECOND, monotonic_ns, wall_ns
from gateway.conf.schema_upstream import LimitConf
from gateway.limits.central import CentralLimit, NoStore, Store
from gateway.limits.gcra import Gcra
from gateway.limits.inflight import Inflight
from gateway.limits.lessons import Lesson
from gateway.limits.settled import Settled, central_of, unwrapped
from gateway.limits.stick_table import StickTable
from gateway.limits.window import STEP_NS, Window
from gateway.limits.wrapped import WrappedLimit
from peers.core.counters import MeshLimit
from peers.core.exact import ExactLimit
from peers.core.quotas import ExactWindow
from peers.core.windows import WindowLimit

if TYPE_CHECKING:
    from gateway.limits.pacer import Pacer
    from gateway.limits.policy import LimitSet
    from gateway.limits.verdict import Limit
    from gateway.proxy.counts import UpstreamCounts
    from gateway.proxy.pool import Pool

__all__ = ["MeshLimits", "Registry", "limit_identity"]

TOLD_SECONDS_MAX = 3600  # the largest cost believed of a response: an hour of the rate


class MeshLimits(Protocol):
    """Where mesh-wide limits come from; None of them where the node stands alone."""

    alone: bool
    hash_key: bytes

    def limit(self, identity: str, conf: LimitConf) -> Limit: ...

    def forget(self, identity: str) -> None: ...

    def share(self) -> tuple[int, int]:
        """(live members, this node's rank among them), for limits that are split evenly."""
        ...


def limit_identity(upstream: str, conf: LimitConf) -> str:
    """The name under which a limit's counters live on, here and on the other nodes."""
    kind = "in_flight" if conf.in_flight is not None else conf.algorithm
    parts = [upstream, conf.name, ",".join(str(part) for part in conf.key), kind]
    if kind == "window" and conf.rate is not None:
        parts.append(str(conf.rate.period_ns))
    return "\0".join(parts)


Fill = Callable[[int], None]
Scale = Callable[[float, int], None]


def levers(limit: Limit) -> tuple[Fill | None, Scale | None]:
    """How a pause's end acts on a limit: takes its burst away, scales its rate; None: it has none.

    Windows and slots have neither: their quota is not a rate that could climb.
    """
    central = central_of(limit)
    if central is not None:
        return _central_levers(central)
    limit = unwrapped(limit)
    if isinstance(limit, Gcra):
        return limit.fill, limit.scale
    if isinstance(limit, MeshLimit) and limit.drains:
        mesh_limit = limit

        def fill(now_ns: int) -> None:
            for row in mesh_limit.rows():
                row.fill(now_ns)

        def scale(factor: float, now_ns: int) -> None:
            mesh_limit.set_rate_factor(factor)

        return fill, scale
    if isinstance(limit, ExactLimit) and limit.drains:
        return limit.fill, limit.set_rate_factor
    return None, None


def _drop_rows(limit: Limit) -> None:
    """Those of a node's own limit and of what stands in front of one; the mesh has dropped its."""
    while isinstance(limit, WrappedLimit):
        limit.drop_all()
        limit = limit.inner
    if isinstance(limit, StickTable):
        limit.drop_all()


def _central_levers(central: CentralLimit) -> tuple[Fill | None, Scale | None]:
    """Those of the limit behind; the store hears of what they did with the next question."""
    fill_behind, scale_behind = levers(central.inner)
    if fill_behind is None or scale_behind is None:
        return None, None

    def fill(now_ns: int) -> None:
        fill_behind(now_ns)
        central.filled()

    def scale(factor: float, now_ns: int) -> None:
        scale_behind(factor, now_ns)
        central.scale(factor, now_ns)

    return fill, scale


class Registry:
    """All of a worker's lasting objects."""

    def __init__(self, mesh: MeshLimits, store: Store | None = None) -> None:
        self._mesh = mesh
        self._store: Store = NoStore() if store is None else store
        self._central: dict[str, CentralLimit] = {}
        self.alone = mesh.alone
        self._limits: dict[str, Limit] = {}
        self._lessons: dict[str, Lesson] = {}
        self._sets: dict[str, tuple[LimitSet, int]] = {}  # where each limit stands now
        self._split: dict[str, Gcra | Window | Inflight] = {}
        self.connections: dict[str, Inflight] = {}
        self.breakers: dict[str, Any] = {}
        self.pacers: dict[str, Pacer] = {}
        self.counts: dict[str, UpstreamCounts] = {}
        self.pools: dict[tuple[Any, ...], Pool] = {}
        self._retired: list[Pool] = []

    def limit(self, upstream: str, conf: LimitConf) -> Limit:
        """The limit of that identity with the conf's figures, made if there is none."""
        identity = limit_identity(upstream, conf)
        if conf.sync != "local" and not self._mesh.alone:
            self._split.pop(identity, None)
            limit = self._mesh.limit(identity, conf)
        else:
            if identity in self._limits and identity not in self._split:
                self._mesh.forget(identity)  # it was mesh-wide until now
            limit = self._local(identity, conf)
        if conf.sync == "redis":
            limit = self._in_store(identity, limit, conf)
        else:
            self._central.pop(identity, None)
        if conf.cost.kind == "response_header" and conf.rate is not None:
            limit = self._settled(identity, limit, conf)
        limit.dry_run = conf.dry_run
        self._limits[identity] = limit
        return limit

    def lesson(self, upstream: str, conf: LimitConf, limit: Limit) -> Lesson:
        """What was told about the limit of that identity."""
        identity = limit_identity(upstream, conf)
        lesson = self._lessons.get(identity)
        if lesson is None:
            lesson = self._lessons[identity] = Lesson(limit, adopts=False)
        lesson.limit = limit
        lesson.adopts = conf.learn == "adopt"
        return lesson

    def carry_decisions(self, identity: str, limit_set: LimitSet, index: int) -> None:
        """A limit has a place in a new set: what was decided by it so far is counted there on."""
        known = self._sets.get(identity)
        if known is not None:
            limit_set.follow(index, *known)
        self._sets[identity] = (limit_set, index)

    def slots(self, upstream: str, count: int) -> Inflight:
        """The in-flight limit that stands for an upstream's connections."""
        limit = self.connections.get(upstream)
        if limit is None:
            limit = self.connections[upstream] = Inflight("connections", count)
        limit.configure(count)
        return limit

    def resplit(self) -> None:
        """The membership changed: limits that are split evenly take their new part."""
        for limit in self._split.values():
            self._split_one(limit)

    def look_at_clock(self, wall_offset_ns: int, now_ns: int) -> None:
        """Wall time is so far from monotonic time now: somebody may have set the clock."""
        for limit in self._split.values():
            if isinstance(limit, Window):
                limit.align(limit.aligned, wall_offset_ns, now_ns)
        for shared in map(unwrapped, self._limits.values()):
            if not isinstance(shared, WindowLimit | ExactWindow) or not shared.aligned:
                continue
            # A window under way in the mesh ends when its members agreed that it does.
            if abs(wall_offset_ns - shared.wall_offset_ns) >= STEP_NS:
                shared.align(wall_offset_ns)

    def keep_only(self, identities: Iterable[str], upstreams: Iterable[str]) -> None:
        """Lets go of what no conf names any more."""
        kept = set(identities)
        for identity in [name for name in self._limits if name not in kept]:
            _drop_rows(self._limits.pop(identity))
            self._split.pop(identity, None)
            self._lessons.pop(identity, None)
            self._sets.pop(identity, None)
            self._central.pop(identity, None)
            self._mesh.forget(identity)
        named = set(upstreams)
        for name in self.connections.keys() - named:
            self.connections[name].drop_all()
        for book in (self.connections, self.breakers, self.pacers, self.counts):
            for name in [name for name in book if name not in named]:
                del book[name]

    def pool(self, way_out: tuple[Any, ...], make: Callable[[], Pool]) -> Pool:
        """The pool for that way out (address, TLS, timeouts), kept over reloads."""
        pool = self.pools.get(way_out)
        if pool is None:
            pool = self.pools[way_out] = make()
        return pool

    def close_pools_but(self, kept: set[tuple[Any, ...]]) -> None:
        """Pools that no upstream uses any more close when their exchanges are over."""
        for way_out in [way for way in self.pools if way not in kept]:
            self.retire(self.pools.pop(way_out))

    def retire(self, pool: Pool) -> None:
        """Closes a pool that nobody new uses; while it is busy it is still ours to abort."""
        pool.close()
        self._retired = [old for old in self._retired if old.open_count or old.dialling_count]
        self._retired.append(pool)

    def all_pools(self) -> list[Pool]:
        """Those in use and those that were retired while they were busy."""
        return [*self.pools.values(), *self._retired]

    def _local(self, identity: str, conf: LimitConf) -> Gcra | Window | Inflight:
        limit = self._split.get(identity)
        now_ns = monotonic_ns()
        if conf.in_flight is not None:
            if not isinstance(limit, Inflight):
                limit = Inflight(conf.name, conf.in_flight, keys_max=conf.keys_max)
            limit.configure(conf.in_flight)
        elif conf.algorithm == "window":
            assert conf.rate is not None
            if not isinstance(limit, Window):
                limit = Window(
                    conf.name, conf.rate.count, conf.rate.period_ns, keys_max=conf.keys_max
                )
            limit.configure(conf.rate.count)
            limit.align(conf.align == "clock", wall_ns() - now_ns, now_ns)
        else:
            assert conf.rate is not None
            count, period_ns = conf.rate
            if not isinstance(limit, Gcra):
                limit = Gcra(
                    conf.name, count, period_ns, conf.burst, keys_max=conf.keys_max, now_ns=now_ns
                )
            limit.configure(count, period_ns, conf.burst, now_ns)
        limit.keys_max = conf.keys_max
        limit.shrink(now_ns)
        self._split[identity] = limit
        self._split_one(limit)
        return limit

    def _split_one(self, limit: Gcra | Window | Inflight) -> None:
        members, rank = self._mesh.share()
        if isinstance(limit, Gcra):
            limit.split(members, rank, monotonic_ns())
        else:
            limit.split(members, rank)

    def _in_store(self, identity: str, inner: Limit, conf: LimitConf) -> CentralLimit:
        """The central limit of that identity, with `inner` behind it."""
        assert conf.rate is not None
        central = self._central.get(identity)
        if central is None:
            digest = hashlib.blake2b(identity.encode(), key=self._mesh.hash_key, digest_size=32)
            central = CentralLimit(inner, self._store, digest.digest(), conf.keys_max)
            self._central[identity] = central
        central.inner = inner
        central.keys_max = conf.keys_max
        window = conf.algorithm == "window"
        aligned = window and conf.align == "clock"
        count, period_ns = conf.rate
        central.configure(count, period_ns, conf.burst, window=window, aligned=aligned)
        central.shrink(monotonic_ns())
        return central

    def _settled(self, identity: str, inner: Limit, conf: LimitConf) -> Settled:
        assert conf.rate is not None
        most = conf.burst if conf.algorithm == "smooth" else conf.rate.count
        told_max = max(1, conf.rate.count * TOLD_SECONDS_MAX * SECOND // conf.rate.period_ns)
        known = self._limits.get(identity)
        if not isinstance(known, Settled):
            return Settled(inner, most, told_max, conf.keys_max)
        known.inner = inner
        known.reserve_max = most
        known.told_max = told_max
        known.keys_max = conf.keys_max
        known.shrink(monotonic_ns())
        return known
