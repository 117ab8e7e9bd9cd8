"""The smooth limit of the mesh: the numbers that all its rows read.

`MeshLimit` holds what `MeshRow.ask` needs, recomputed only when membership, the measured delay or
the configuration changes.
"""

from __future__ import annotations

from math import exp
from typing import Any

from peers.core.config import SECOND, Config
from peers.core.rows import MeshRow
from peers.core.table import Host, Rule, SharedTable, Surroundings
from peers.core.wire import Kind

__all__ = ["MeshLimit", "Rule", "Surroundings"]

_DEMAND_TAU_NS = 0.3 * SECOND
_DEMAND_TAU_SLOW_NS = 5.0 * SECOND  # below one token a second
# One arrival is 1/tau at first; four time constants later, at e^-4 of that, the row is idle. To the
# hundredth that can be told it took two more (0.3 s), each with signs of life to all members.
_DEMAND_TAIL = exp(-4)


class MeshLimit(SharedTable[MeshRow]):
    """A rate that the whole mesh keeps together. Satisfies `gateway.limits.verdict.Limit`.

    `rate` (tokens per nanosecond) and `effective_burst` are what is in force now: the smaller of
    what members announce, times the learned factor, times this side's share of a partition.
    """

    kind = Kind.COUNTERS
    drains = True

    def __init__(
        self,
        host: Host,
        config: Config,
        identity: str,
        rule: Rule,
        surroundings: Surroundings,
        **facts: Any,
    ) -> None:
        self.refresh_ns = config.refresh_ns
        self.sign_of_life_ns = config.silence_min_ns * 3 // 4
        self.silence_min_ns = config.silence_min_ns
        self.silence_max_ns = config.silence_max_ns
        self.lowered = 0  # levels raised by what an upstream told a peer
        self._factor = 1.0
        super().__init__(host, config, identity, rule, surroundings, **facts)

    # -- the caller's side: gateway.limits.verdict.Limit

    def remaining(self, row: MeshRow, now_ns: int) -> tuple[int, int]:
        """(whole tokens free now, nanoseconds until full again), for RateLimit fields."""
        level = row.level(now_ns)
        free = max(0, int(min(float(self.effective.burst), self.effective_burst) - level))
        return free, int(level / self.rate) if self.rate > 0.0 else _CLOSED_FULL_NS

    def set_rate_factor(self, factor: float) -> None:
        """Scales the rate by what was learned of the upstream (above 0, at most 1)."""
        self._factor = min(1.0, max(1e-6, factor))
        self.retune(self._surroundings)

    def advertise(self, row: MeshRow, left: float, now_ns: int) -> None:
        """The upstream said that `left` tokens are left to all, fewer than we thought."""
        self._host.advertise(row, left, now_ns)

    # -- what is in force

    def retune(self, surroundings: Surroundings) -> None:
        """Recomputes what rows read. MESH names in brackets."""
        self._surroundings = surroundings
        config = self._config
        members, known, delay_ns, dead, self.unheard, _ = surroundings
        effective = self.effective = self._smallest_rule()
        whole_rate = effective.rate * self._factor
        minority = members * 2 <= known
        self.closed = self.on_partition == "closed" and minority
        share = members / known if self.on_partition == "share" and minority else 1.0
        self.share = share  # of this side of a partition
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
        self.flush_ns = 2 * delay_ns + self.flush_spacing_ns + 1_000_000
        self.ripe_ns = self.flush_ns if self.tight else self.horizon_ns
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
        self.demand_min = _DEMAND_TAIL * SECOND / self.demand_tau_ns

    def excess_bound(self) -> float:
        """The most tokens over rate x w + burst in any window w: what B' adds to B, one token a
        member, and what a cold start showed. A live member that nothing is heard of may have
        spent the rate, of which nobody here can say what was charged for it already."""
        burst = float(self.effective.burst)
        if self.members == 1:
            return 0.0
        unknown = self.effective.rate * self._factor * self._surroundings.unheard_ns
        return max(0.0, self.effective_burst - burst) + self.members + 0.08 * burst + unknown

    def stats(self) -> dict[str, Any]:
        """Figures for metrics; the rate in tokens a second, durations in nanoseconds."""
        return super().stats() | {
            "rate": self.rate * SECOND,
            "effective_burst": self.effective_burst,
            "horizon_ns": self.horizon_ns,
            "tight": self.tight,
            "closed": self.closed,
            "lowered": self.lowered,
        }

    def new_row(self, key: bytes, name: int, gen: int, now_ns: int) -> MeshRow:
        return MeshRow(self, key, name, gen, 0.0, now_ns)


_NOBODY: frozenset[bytes] = frozenset()
# What `remaining` says of a closed limit: it is not known when it opens.
_CLOSED_FULL_NS = 60 * SECOND
