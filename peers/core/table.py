"""The rows of one shared limit: which exist, which are at work, whose news is due.

Whatever a row counts, the table around it is the same. It is bounded: the least recently used row
goes first, never one that requests wait for. Rows tick together while they are in use or heard of,
and sleep otherwise.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from peers.core.chance import Chance
from peers.core.config import Config
from peers.core.share import Due, Row
from peers.core.wire import U32, U63, Kind

__all__ = [
    "Host",
    "RowTable",
    "Rule",
    "SharedTable",
    "Surroundings",
    "aligned_end",
    "checked_quota",
    "checked_rule",
    "limit_facts",
]

# Rows at work per turn: 250 ticks of 2 us keep the event loop for half a millisecond.
_TICKS_PER_TURN = 250
# Rows at work for each more flush_spacing between flushes, and how often that grows: 10 ms from
# 1,000 rows on are 100 datagrams a second to each member.
_ROWS_PER_FLUSH_STEP = 250
_FLUSH_STEPS_MAX = 4
# Rows with waiting requests are passed over when room is made; so many, then the table grows by
# one (waiting requests are bounded by their owner).
_EVICTION_TRIES = 64


class Rule(NamedTuple):
    """A limit as configured: rate_count per rate_period_ns, and at most `burst` at once."""

    rate_count: int
    rate_period_ns: int
    burst: int

    @property
    def rate(self) -> float:
        """Tokens per nanosecond."""
        return self.rate_count / self.rate_period_ns


def checked_rule(rate_count: int, rate_period_ns: int, burst: int) -> Rule:
    """Raises ValueError for what does not fit the wire, or never lets anything pass."""
    if not 1 <= rate_count <= U32 or not 1 <= burst <= U32 or not 1 <= rate_period_ns <= U63:
        raise ValueError("rate_count, rate_period_ns and burst: at least 1")
    return Rule(rate_count, rate_period_ns, burst)


def checked_quota(count: int, period_ns: int) -> Rule:
    """As `checked_rule`, of a quota in each window of the period."""
    if not 1 <= count <= U32 or not 1 <= period_ns <= U63 // 4:
        raise ValueError("count and period_ns: at least 1")
    return Rule(count, period_ns, count)


def limit_facts(given: dict[str, Any]) -> dict[str, Any]:
    """What every limit has: `name`, and these if they are not given. Raises ValueError for a
    conduct in a partition that does not exist."""
    facts: dict[str, Any] = {"on_partition": "share", "keys_max": 20_000, "dry_run": False}
    facts |= given
    if facts["on_partition"] not in ("share", "open", "closed"):
        raise ValueError('on_partition: "share", "open" or "closed"')
    return facts


class Surroundings(NamedTuple):
    """What rows need to know of the mesh: n, members counted for a majority, D, who is dead, which
    live members nothing is heard of by any way, and how long not, all together."""

    members: int
    known: int
    delay_ns: int
    dead: frozenset[bytes] = frozenset()
    unheard: frozenset[bytes] = frozenset()
    unheard_ns: int = 0


def aligned_end(near_ns: int, now_ns: int, period_ns: int, wall_offset_ns: int) -> int:
    """The end of a window, a multiple of the period by the wall clock, that is nearest to the one
    expected, and to come. Wall time is `wall_offset_ns` ahead of `now_ns`."""
    past_ns = (near_ns + wall_offset_ns) % period_ns
    end_ns = near_ns - past_ns
    if 2 * past_ns >= period_ns:
        end_ns += period_ns
    return end_ns if end_ns > now_ns else end_ns + period_ns


R = TypeVar("R", bound=Row)
T = TypeVar("T")


class Host(Protocol):
    """What a limit asks of the table of all counters."""

    chance: Chance
    joining: bool

    def alive(self, now_ns: int) -> None: ...

    def make_row(self, limit: SharedTable[R], key: bytes, now_ns: int) -> R: ...

    def row_gone(self, row: Row) -> None: ...

    def advertise(self, row: Row, left: float, now_ns: int) -> None: ...

    def announce(self, limit: SharedTable[Any]) -> None: ...

    def wake(self) -> None: ...


class RowTable(Generic[T]):
    """What every limit of the mesh has: its figures, what members announce, and rows by key."""

    def __init__(
        self,
        identity: str,
        rule: Rule,
        surroundings: Surroundings,
        *,
        name: str,
        on_partition: str,
        keys_max: int,
        dry_run: bool,
    ) -> None:
        self.identity = identity
        self.peer_rules: dict[bytes, Rule] = {}
        self.urgent: list[T] = []
        self.evicted = 0
        self.started_full = 0
        self.effective = rule
        self._rows: OrderedDict[bytes, T] = OrderedDict()
        self._active: dict[T, None] = {}
        self._turn: list[T] = []
        self._crowded_until_ns = 0
        self._surroundings = surroundings
        self._configure(rule, name, on_partition, keys_max, dry_run)

    # -- the caller's side: gateway.limits.verdict.Limit

    def entry(self, key: bytes, now_ns: int) -> T:
        """The row for a key, made if there is none."""
        row = self._rows.get(key)
        if row is None:
            return self._make_row_slow(key, now_ns)
        self._rows.move_to_end(key)
        return row

    def rows(self) -> Iterable[T]:
        """All rows, the least recently used first."""
        return self._rows.values()

    def keys(self) -> list[bytes]:
        """A copy of all keys, in the order in which the rows were made (a millisecond for 100,000:
        the plain dict's iterator leaves out the order of use)."""
        return list(dict.__iter__(self._rows))

    def peek(self, key: bytes) -> T | None:
        """The row for a key if there is one; the order of use stays as it is."""
        return self._rows.get(key)

    def forgive(self) -> None:
        """The whole table is cleared: buckets made from now on start empty again."""
        self._crowded_until_ns = 0

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def active_count(self) -> int:
        return len(self._active)

    def _make_row_slow(self, key: bytes, now_ns: int) -> T:
        raise NotImplementedError

    # -- the figures

    def _configure(
        self, rule: Rule, name: str, on_partition: str, keys_max: int, dry_run: bool
    ) -> None:
        """Notes new figures; rows and counts stay. What rows read has to be retuned."""
        self.rule = rule
        self.name = name
        self.on_partition = on_partition
        self.keys_max = keys_max
        self.dry_run = dry_run

    @property
    def announced(self) -> Rule:
        """What members are told of this limit's figures."""
        return self.rule

    def _note_peer_rule(self, node: bytes, rule: Rule | None) -> bool:
        """What a member announces for this limit, None when it is gone; says whether it is news."""
        if self.peer_rules.get(node) == rule:
            return False
        if rule is None:
            del self.peer_rules[node]
        else:
            self.peer_rules[node] = rule
        return True

    @property
    def differs(self) -> bool:
        """Whether a member has other figures than this node: both of them know, whoever's rule."""
        return any(rule != self.rule for rule in self.peer_rules.values())

    def _smallest_rule(self) -> Rule:
        """While members differ (a rolling reload) the smallest rate and burst rule."""
        rules = [self.announced, *self.peer_rules.values()]
        slowest = min(rules, key=lambda rule: rule.rate)
        return slowest._replace(burst=min(rule.burst for rule in rules))


class SharedTable(RowTable[R]):
    """Base of the limits that the whole mesh keeps together. `kind` is the frame that its entries
    travel in; `drains` says that tokens come back at a rate, which can be scaled; `tight` that the
    burst is under four tokens a member, so that admissions are told at once."""

    kind: Kind
    drains = False
    tight = False
    members = 1  # live, this one included

    def __init__(
        self,
        host: Host,
        config: Config,
        identity: str,
        rule: Rule,
        surroundings: Surroundings,
        *,
        name: str,
        on_partition: str,
        keys_max: int,
        dry_run: bool,
    ) -> None:
        super().__init__(
            identity,
            rule,
            surroundings,
            name=name,
            on_partition=on_partition,
            keys_max=keys_max,
            dry_run=dry_run,
        )
        self.draw: Callable[[], float] = host.chance.random
        self.next_tick_ns = 0  # meaningful while rows are active
        self.flush_spacing_ns = config.flush_spacing_ns
        self._flushed_ns = -config.flush_spacing_ns
        self._host = host
        self._config = config
        self.cadence_ns = config.cadence_min_ns
        self.retune(surroundings)

    def recent_rows(self, count: int) -> list[R]:
        """At most so many rows, the most recently used first."""
        return list(islice(reversed(self._rows.values()), count))

    # -- what a kind of limit is

    def retune(self, surroundings: Surroundings) -> None:
        """Recomputes what rows read: membership, the delay or the configuration changed."""
        raise NotImplementedError

    def new_row(self, key: bytes, name: int, gen: int, now_ns: int) -> R:
        """A row as unused; `name` is its key on the wire."""
        raise NotImplementedError

    def slept(self, now_ns: int) -> None:
        """The process stood still: what it was told last is old."""

    def excess_bound(self) -> float:
        """How far all nodes together may go over the limit while all members hear each other."""
        raise NotImplementedError

    def stats(self) -> dict[str, Any]:
        """Figures for metrics; the rate in tokens a second, durations in nanoseconds."""
        return {
            "name": self.name,
            "burst": self.effective.burst,
            "excess_bound": self.excess_bound(),
            "cadence_ns": self.cadence_ns,
            "differs": self.differs,
            "rows": len(self._rows),
            "active_rows": len(self._active),
            "evicted": self.evicted,
            "started_full": self.started_full,
        }

    def reconfigure(
        self, rule: Rule, *, name: str, on_partition: str, keys_max: int, dry_run: bool
    ) -> None:
        """New numbers in place; rows and counts stay."""
        self._configure(rule, name, on_partition, keys_max, dry_run)
        self.retune(self._surroundings)

    def set_peer_rule(self, node: bytes, rule: Rule | None) -> None:
        """What a member announces for this limit; None when it is gone."""
        if self._note_peer_rule(node, rule):
            self.retune(self._surroundings)

    # -- rows at work

    def activate(self, row: R, now_ns: int) -> None:
        """The row is used or heard of: it ticks with the others from now on."""
        row.active = True
        if not self._active:
            self.next_tick_ns = now_ns + self._cadence_jittered()
            self._host.wake()
        self._active[row] = None

    def urge(self, row: R) -> None:
        """The row's entry should leave before its next tick."""
        if not row.urgent:
            row.urgent = True
            if not self.urgent:  # the others leave with the first
                self._host.wake()
            self.urgent.append(row)

    def tick(self, now_ns: int, calm: list[R], contended: list[R]) -> None:
        """Ticks the active rows, some at a time, and sorts those that have something to tell."""
        if not self._active:
            return
        if not self._turn:
            if now_ns < self.next_tick_ns:
                return
            self._turn = list(self._active)
            self._space_flushes()
            self.next_tick_ns = now_ns + self._cadence_jittered()
        turn = self._turn[-_TICKS_PER_TURN:]
        del self._turn[-_TICKS_PER_TURN:]
        for row in turn:
            due = row.tick(now_ns)
            if due == Due.CONTENDED:
                contended.append(row)
            elif due == Due.CALM:
                calm.append(row)
            elif row.at_rest:
                self._active.pop(row, None)
                row.active = False

    def _space_flushes(self) -> None:
        """The more rows are at work, the more flush together: with one datagram for each, a
        thousand tight rows kept a fifth of a core busy. Longer by whole steps, so that what
        depends on it is seldom reckoned anew."""
        config = self._config
        step = min(len(self._active) // _ROWS_PER_FLUSH_STEP, _FLUSH_STEPS_MAX)
        spacing_ns = config.flush_spacing_ns * (1 + step)
        if spacing_ns != self.flush_spacing_ns:
            self.flush_spacing_ns = spacing_ns
            self.retune(self._surroundings)

    def due_urgent(self, now_ns: int, due: list[Row]) -> None:
        """Moves urgent rows over, all at once and not too often."""
        if not self.urgent or now_ns < self._flushed_ns + self.flush_spacing_ns:
            return
        self._flushed_ns = now_ns
        urgent, self.urgent = self.urgent, []
        for row in urgent:
            row.urgent = False
            if row.news:
                due.append(row)

    def next_wake_ns(self, now_ns: int) -> int | None:
        """When a tick or a flush is due next; None while no row is at work."""
        wake_ns: int | None = None
        if self._turn:
            wake_ns = now_ns
        elif self._active:
            wake_ns = self.next_tick_ns
        if self.urgent:
            flush_ns = self._flushed_ns + self.flush_spacing_ns
            wake_ns = flush_ns if wake_ns is None else min(wake_ns, flush_ns)
        return wake_ns

    def expire(self, now_ns: int) -> None:
        """Forgets rows that are empty, at rest, and long unused."""
        idle_ns = max(self._config.row_idle_ns, int(2 * self.effective.burst / self.effective.rate))
        rows = self._rows
        for _ in range(len(rows) - self.keys_max):  # a reload lowered it
            self._evict(now_ns)
        while rows:
            row = next(iter(rows.values()))
            if now_ns - row.used_ns < idle_ns:
                return
            if row.active or row.pinned or row.level(now_ns) > 0.0:
                # In use after all (by peers, or by waiting requests): looked at again later.
                row.used_ns = now_ns
                rows.move_to_end(row.key)
                continue
            del rows[row.key]
            self._host.row_gone(row)

    def drop_all(self) -> None:
        for row in self._rows.values():
            self._host.row_gone(row)
        self._rows.clear()
        self._active.clear()
        self._turn.clear()
        self.urgent.clear()

    def _make_row_slow(self, key: bytes, now_ns: int) -> R:
        if len(self._rows) >= self.keys_max:
            self._evict(now_ns)
        row = self._rows[key] = self._host.make_row(self, key, now_ns)
        if now_ns < self._crowded_until_ns or self._host.joining:
            row.fill(now_ns)
            self.started_full += 1
        return row

    def _evict(self, now_ns: int) -> None:
        """Room for one row. If what goes was in use within 2 burst/rate, its bucket may not be
        empty, and a key that comes back could have a fresh burst: so new rows start full."""
        for _ in range(_EVICTION_TRIES):
            row = next(iter(self._rows.values()))
            if not row.pinned:
                break
            self._rows.move_to_end(row.key)
        else:
            return
        del self._rows[row.key]
        self._active.pop(row, None)
        row.active = False
        self.evicted += 1
        young_ns = int(2 * self.effective.burst / self.effective.rate)
        if now_ns - row.used_ns < young_ns:
            self._crowded_until_ns = now_ns + young_ns
        self._host.row_gone(row)

    def _cadence_jittered(self) -> int:
        return int(self.cadence_ns * (0.9 + 0.2 * self.draw()))
