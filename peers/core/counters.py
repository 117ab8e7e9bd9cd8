"""Named limits and their tables of rows: what all rows of a limit share, and which rows exist.

`MeshLimit` holds the numbers that `MeshRow.ask` reads, recomputed only when membership, the
measured delay or the configuration changes. Its table is bounded: the least recently used row goes
first, never one that requests wait for.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, NamedTuple, Protocol

from peers.core.chance import Chance
from peers.core.config import SECOND, Config
from peers.core.rows import MeshRow
from peers.core.share import Due

__all__ = ["MeshLimit", "Rule", "Surroundings"]

# Rows at work per turn: 250 ticks of 2 us keep the event loop for half a millisecond.
_TICKS_PER_TURN = 250
# Rows with waiting requests are passed over when room is made; so many, then the table grows by
# one (waiting requests are bounded by their owner).
_EVICTION_TRIES = 64

_DEMAND_TAU_NS = 0.3 * SECOND
_DEMAND_TAU_SLOW_NS = 5.0 * SECOND  # below one token a second


class Rule(NamedTuple):
    """A limit as configured: rate_count per rate_period_ns, and at most `burst` at once."""

    rate_count: int
    rate_period_ns: int
    burst: int

    @property
    def rate(self) -> float:
        """Tokens per nanosecond."""
        return self.rate_count / self.rate_period_ns


class Surroundings(NamedTuple):
    """What rows need to know of the mesh: n, members counted for a majority, D, and who is dead."""

    members: int
    known: int
    delay_ns: int
    dead: frozenset[bytes] = frozenset()


class Host(Protocol):
    """What a limit asks of the table of all counters."""

    chance: Chance
    joining: bool

    def make_row(self, limit: MeshLimit, key: bytes, now_ns: int) -> MeshRow: ...

    def row_gone(self, row: MeshRow) -> None: ...

    def advertise(self, row: MeshRow, left: float, now_ns: int) -> None: ...

    def wake(self) -> None: ...


class MeshLimit:
    """A rate that the whole mesh keeps together. Satisfies `gateway.limits.verdict.Limit`.

    `rate` (tokens per nanosecond) and `effective_burst` are what is in force now: the smaller of
    what members announce, times the learned factor, times this side's share of a partition.
    """

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
        self.identity = identity
        self.name = name
        self.dry_run = dry_run
        self.rule = rule
        self.on_partition = on_partition
        self.keys_max = keys_max
        self.draw: Callable[[], float] = host.chance.random
        self.refresh_ns = config.refresh_ns
        self.sign_of_life_ns = config.silence_min_ns * 3 // 4
        self.silence_min_ns = config.silence_min_ns
        self.silence_max_ns = config.silence_max_ns
        self.peer_rules: dict[bytes, Rule] = {}
        self.urgent: list[MeshRow] = []
        self.next_tick_ns = 0  # meaningful while rows are active
        self.evicted = 0
        self.started_full = 0
        self.lowered = 0  # levels raised by what an upstream told a peer
        self._host = host
        self._config = config
        self._rows: OrderedDict[bytes, MeshRow] = OrderedDict()
        self._active: dict[MeshRow, None] = {}
        self._turn: list[MeshRow] = []
        self._factor = 1.0
        self._crowded_until_ns = 0
        self._surroundings = surroundings
        self.retune(surroundings)

    # -- the caller's side: gateway.limits.verdict.Limit

    def entry(self, key: bytes, now_ns: int) -> MeshRow:
        """The row for a key, made if there is none."""
        row = self._rows.get(key)
        if row is None:
            return self._make_row_slow(key, now_ns)
        self._rows.move_to_end(key)
        return row

    def remaining(self, row: MeshRow, now_ns: int) -> tuple[int, int]:
        """(whole tokens free now, nanoseconds until full again), for RateLimit fields."""
        level = row.level(now_ns)
        free = max(0, int(min(float(self.effective.burst), self.effective_burst) - level))
        return free, int(level / self.rate) if self.rate > 0.0 else _CLOSED_FULL_NS

    def rows(self) -> Iterable[MeshRow]:
        """All rows, the least recently used first."""
        return self._rows.values()

    def recent_rows(self, count: int) -> list[MeshRow]:
        """At most so many rows, the most recently used first."""
        return list(islice(reversed(self._rows.values()), count))

    def keys(self) -> list[bytes]:
        """A copy of all keys, in the order in which the rows were made (a millisecond for 100,000:
        the plain dict's iterator leaves out the order of use)."""
        return list(dict.__iter__(self._rows))

    def peek(self, key: bytes) -> MeshRow | None:
        """The row for a key if there is one; the order of use stays as it is."""
        return self._rows.get(key)

    def forgive(self) -> None:
        """The whole table is cleared: rows made from now on start empty again."""
        self._crowded_until_ns = 0

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def active_count(self) -> int:
        return len(self._active)

    def set_rate_factor(self, factor: float) -> None:
        """Scales the rate by what was learned of the upstream (above 0, at most 1)."""
        self._factor = min(1.0, max(1e-6, factor))
        self.retune(self._surroundings)

    # -- what is in force

    def retune(self, surroundings: Surroundings) -> None:
        """Recomputes what rows read. MESH names in brackets."""
        self._surroundings = surroundings
        config = self._config
        members, known, delay_ns, dead = surroundings
        effective = self.effective = self._smallest_rule()
        whole_rate = effective.rate * self._factor
        minority = members * 2 <= known
        self.closed = self.on_partition == "closed" and minority
        share = members / known if self.on_partition == "share" and minority else 1.0
        self.rate = whole_rate * share  # [R]
        # In a minority dead members may be alive and spend their own share: see MeshRow.
        self.excused = dead if minority else _NOBODY
        self.excused_rate = whole_rate * (1.0 - share if share < 1.0 else 1.0)
        burst = float(effective.burst)  # [B]
        cadence_ns = int(burst / (8 * whole_rate))
        self.cadence_ns = max(config.cadence_min_ns, min(config.cadence_max_ns, cadence_ns))
        self.members = members  # [n]
        self.delay_ns = delay_ns  # [D]
        self.horizon_ns = self.cadence_ns * 11 // 10 + delay_ns  # [h]
        self.tight = effective.burst < 4 * members
        # When peers surely reserve for what we announced: a flush, its way, a millisecond to act.
        flush_ns = 2 * delay_ns + config.flush_spacing_ns + 1_000_000
        self.ripe_ns = flush_ns if self.tight else self.horizon_ns
        # Factors of MeshRow.hear: demand within a horizon for a hundredth of an arrival a second;
        # how much of a difference of levels news can explain; how fast the rest is made up.
        self.demand_per_lam = self.horizon_ns / (100 * SECOND)
        self.band = 1.0 + self.rate * self.horizon_ns / 2
        self.gain_per_ns = 1.0 / (SECOND * max(1, members - 1))
        self.flush_tokens = max(1.0, burst / (2 * members))
        grown = 1.0 + 2 * whole_rate * self.horizon_ns
        self.effective_burst = burst if members == 1 else max(burst, grown)  # [B']
        if self.closed:
            self.effective_burst = 0.0
        self.level_max = self.effective_burst + max(burst, 2 * whole_rate * SECOND)
        slow = whole_rate * SECOND < 1.0
        self.demand_tau_ns = _DEMAND_TAU_SLOW_NS if slow else _DEMAND_TAU_NS

    def excess_bound(self) -> float:
        """The most tokens over rate x w + burst in any window w while all members hear each
        other: what B' adds to B, one token a member, and what a cold start showed."""
        burst = float(self.effective.burst)
        if self.members == 1:
            return 0.0
        return max(0.0, self.effective_burst - burst) + self.members + 0.08 * burst

    def stats(self) -> dict[str, Any]:
        """Figures for metrics; the rate in tokens a second, durations in nanoseconds."""
        return {
            "name": self.name,
            "rate": self.rate * SECOND,
            "burst": self.effective.burst,
            "effective_burst": self.effective_burst,
            "excess_bound": self.excess_bound(),
            "horizon_ns": self.horizon_ns,
            "cadence_ns": self.cadence_ns,
            "tight": self.tight,
            "closed": self.closed,
            "differs": self.effective != self.rule,
            "rows": len(self._rows),
            "active_rows": len(self._active),
            "evicted": self.evicted,
            "started_full": self.started_full,
            "lowered": self.lowered,
        }

    def reconfigure(
        self, rule: Rule, *, name: str, on_partition: str, keys_max: int, dry_run: bool
    ) -> None:
        """New numbers in place; rows and counts stay."""
        self.rule = rule
        self.name = name
        self.on_partition = on_partition
        self.keys_max = keys_max
        self.dry_run = dry_run
        self.retune(self._surroundings)

    def set_peer_rule(self, node: bytes, rule: Rule | None) -> None:
        """What a member announces for this limit; None when it is gone."""
        if self.peer_rules.get(node) == rule:
            return
        if rule is None:
            del self.peer_rules[node]
        else:
            self.peer_rules[node] = rule
        self.retune(self._surroundings)

    def _smallest_rule(self) -> Rule:
        """While members differ (a rolling reload) the smallest rate and burst rule."""
        rules = [self.rule, *self.peer_rules.values()]
        slowest = min(rules, key=lambda rule: rule.rate)
        return slowest._replace(burst=min(rule.burst for rule in rules))

    # -- rows at work

    def activate(self, row: MeshRow, now_ns: int) -> None:
        """The row is used or heard of: it ticks with the others from now on."""
        row.active = True
        if not self._active:
            self.next_tick_ns = now_ns + self._cadence_jittered()
            self._host.wake()
        self._active[row] = None

    def urge(self, row: MeshRow) -> None:
        """The row's entry should leave before its next tick."""
        if not row.urgent:
            row.urgent = True
            self.urgent.append(row)
            self._host.wake()

    def advertise(self, row: MeshRow, left: float, now_ns: int) -> None:
        """The upstream said that `left` tokens are left to all, fewer than we thought."""
        self._host.advertise(row, left, now_ns)

    def tick(self, now_ns: int, calm: list[MeshRow], contended: list[MeshRow]) -> None:
        """Ticks the active rows, some at a time, and sorts those that have something to tell."""
        if not self._active:
            return
        if not self._turn:
            if now_ns < self.next_tick_ns:
                return
            self._turn = list(self._active)
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

    def due_urgent(self, now_ns: int, due: list[MeshRow]) -> None:
        """Moves urgent rows over whose last entry is long enough ago."""
        if not self.urgent:
            return
        early: list[MeshRow] = []
        spacing_ns = self._config.flush_spacing_ns
        for row in self.urgent:
            if now_ns - row.told_ns < spacing_ns:
                early.append(row)
                continue
            row.urgent = False
            if row.news:
                due.append(row)
        self.urgent = early

    def next_wake_ns(self, now_ns: int) -> int | None:
        """When a tick or a flush is due next; None while no row is at work."""
        wake_ns: int | None = None
        if self._turn:
            wake_ns = now_ns
        elif self._active:
            wake_ns = self.next_tick_ns
        for row in self.urgent:
            flush_ns = row.told_ns + self._config.flush_spacing_ns
            wake_ns = flush_ns if wake_ns is None else min(wake_ns, flush_ns)
        return wake_ns

    def expire(self, now_ns: int) -> None:
        """Forgets rows that are empty, at rest, and long unused."""
        idle_ns = max(self._config.row_idle_ns, int(2 * self.effective.burst / self.effective.rate))
        rows = self._rows
        while rows:
            row = next(iter(rows.values()))
            if now_ns - row.used_ns < idle_ns:
                return
            if row.active or row.waiting is not None or row.level(now_ns) > 0.0:
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

    def _make_row_slow(self, key: bytes, now_ns: int) -> MeshRow:
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
            if row.waiting is None:
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


_NOBODY: frozenset[bytes] = frozenset()
# What `remaining` says of a closed limit: it is not known when it opens.
_CLOSED_FULL_NS = 60 * SECOND
