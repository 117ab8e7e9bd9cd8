"""The smooth limit: a level that drains, the generic cell rate algorithm (ITU-T I.371 annex A).

Any window w sees at most rate * w + burst. A row is one number, GCRA's theoretical arrival time,
but it stands on a clock that counts tokens instead of nanoseconds: the limit's clock advances by
`rate` per second, a row's `mark` is the clock's value at which the row will be empty, and its level
is mark - clock. Against the usual level and time stamp in every row this has two gains: a change of
rate (a reload, a member more, the ramp after a throttle) is one new slope of the clock, and no
row's count is touched; and a row needs one float. Debt simply puts the mark further ahead.

A float is enough: after a year at 1,000 tokens/s the clock stands at 3e10, where a double's step
is 4e-6 token.
"""

from __future__ import annotations

from typing import Any, Final

from gateway.limits.share import even_share
from gateway.limits.stick_table import StickTable
from gateway.limits.verdict import NEVER, ROOM

__all__ = ["Gcra", "GcraRow"]

# What rounding may add to a level; without it a request that comes exactly when it was told to
# would be told to wait one nanosecond more.
_SLACK: Final = 1e-5


class GcraRow:
    """The level of one key. Satisfies `verdict.Entry`."""

    __slots__ = ("held", "key", "limit", "mark", "taken", "waiting")

    def __init__(self, limit: Gcra, key: bytes, mark: float) -> None:
        self.limit = limit
        self.key = key
        self.mark = mark
        self.taken = 0  # tokens, since the row was made
        self.held = 0  # tokens that waiting requests want
        self.waiting: Any = None

    def ask(self, cost: int, now_ns: int) -> int:
        """ROOM, the nanoseconds until there is room, or NEVER for a cost over the burst."""
        limit = self.limit
        clock = limit.clock_base + (now_ns - limit.base_ns) * limit.tokens_per_ns
        mark = self.mark
        if mark < limit.floor:
            mark = limit.floor
        over = float(cost - limit.burst)
        if mark > clock:
            over += mark - clock
        if over <= _SLACK:
            return ROOM
        if cost > limit.burst:
            return NEVER
        return int(over / limit.tokens_per_ns) + 1

    def foresees(self, cost: int, now_ns: int) -> bool:
        """Always: only time drains the level."""
        return True

    def take(self, cost: int, now_ns: int) -> None:
        """Adds `cost` to the level, without asking: what is over the burst is debt."""
        limit = self.limit
        clock = limit.clock_base + (now_ns - limit.base_ns) * limit.tokens_per_ns
        mark = self.mark
        if mark < limit.floor:
            mark = limit.floor
        self.mark = (mark if mark > clock else clock) + cost
        self.taken += cost

    def arrive(self, cost: int, now_ns: int) -> None:
        self.limit.arrived += cost

    def hold(self, cost: int) -> None:
        self.held += cost

    def give_back(self, cost: int, now_ns: int) -> None:
        """Nothing: tokens of a rate are never given back."""

    def level(self, now_ns: int) -> float:
        """Tokens taken and not yet drained; over the burst is debt."""
        return max(0.0, max(self.mark, self.limit.floor) - self.limit.clock(now_ns))

    def fill(self, now_ns: int) -> None:
        """Takes away what is left of the burst (a pause of this row's key has just ended)."""
        self.mark = max(self.mark, self.limit.clock(now_ns) + self.limit.burst)

    def clear(self, now_ns: int) -> None:
        """The operator forgives: the level is 0, or what the end of a pause left of it."""
        self.mark = self.limit.clock(now_ns)

    def learn(self, remaining: int, sent_ns: int, now_ns: int) -> bool:
        """Takes over what the upstream says is left, if it is less than ours; says whether.

        What it says is as of `sent_ns`, and has drained since. It is a whole number, rounded down
        from what the upstream has: a part of a token is no difference.
        """
        limit = self.limit
        mark = limit.clock(sent_ns) + limit.burst - limit.part(remaining)
        if mark < max(self.mark, limit.floor, limit.clock(now_ns)) + 1.0 - _SLACK:
            return False
        self.mark = mark
        return True


class Gcra(StickTable[GcraRow]):
    """A named smooth limit: `count` tokens per `period_ns`, and a burst. Satisfies `Limit`."""

    __slots__ = (
        "_burst_whole",
        "_count",
        "_factor",
        "_members",
        "_period_ns",
        "_rank",
        "arrived",
        "base_ns",
        "burst",
        "clock_base",
        "dry_run",
        "floor",
        "name",
        "tokens_per_ns",
    )

    def __init__(
        self,
        name: str,
        count: int,
        period_ns: int,
        burst: int,
        *,
        keys_max: int = 20_000,
        dry_run: bool = False,
        now_ns: int = 0,
    ) -> None:
        super().__init__(keys_max)
        self.name = name
        self.dry_run = dry_run
        self.arrived = 0  # tokens asked for, each request once
        self.clock_base = 0.0  # the token clock's value at base_ns
        self.base_ns = now_ns
        self.floor = 0.0  # no row's mark counts as less; see fill
        self._factor = 1.0
        self._members = 1
        self._rank = 0
        self.tokens_per_ns = 0.0
        self.configure(count, period_ns, burst, now_ns)

    def configure(self, count: int, period_ns: int, burst: int, now_ns: int) -> None:
        """Changes rate and burst; every row keeps its level. Raises ValueError below 1."""
        if count < 1 or period_ns < 1 or burst < 1:
            raise ValueError("count, period and burst are at least 1")
        self._count = count
        self._period_ns = period_ns
        self._burst_whole = burst
        self._set_slope(now_ns)

    def scale(self, factor: float, now_ns: int) -> None:
        """Lets the level drain at `factor` (0 < factor <= 1) of the rate: the ramp's figure."""
        if not 0.0 < factor <= 1.0:
            raise ValueError(f"a rate is scaled by more than 0 and at most 1, not {factor}")
        if factor != self._factor:
            self._factor = factor
            self._set_slope(now_ns)

    def split(self, members: int, rank: int, now_ns: int) -> None:
        """Takes this node's even part of rate and burst (`sync = "local"`).

        A burst smaller than the number of members still leaves everyone 1, or some could never
        send: what a window may see then grows by up to `members - burst`.
        """
        even_share(self._burst_whole, members, rank)
        self._members = members
        self._rank = rank
        self._set_slope(now_ns)

    def fill(self, now_ns: int) -> None:
        """Leaves no row any burst, in one step however many rows there are.

        Called at the end of a pause: what was held back meanwhile must not come as one burst.
        """
        self.floor = max(self.floor, self.clock(now_ns) + self.burst)

    def forgive(self) -> None:
        """The whole table is cleared: nothing that happened before binds a row made from now on."""
        super().forgive()
        self.floor = 0.0

    def part(self, whole: int) -> int:
        """This node's even part of something that all members share."""
        return even_share(max(0, whole), self._members, self._rank)

    def clock(self, now_ns: int) -> float:
        """The token clock: all the tokens that a row could have drained by now."""
        return self.clock_base + (now_ns - self.base_ns) * self.tokens_per_ns

    def remaining(self, entry: GcraRow, now_ns: int) -> tuple[int, int]:
        """(whole tokens free now, nanoseconds until the level is 0)."""
        level = entry.level(now_ns)
        return max(0, int(self.burst - level + _SLACK)), int(level / self.tokens_per_ns)

    def _set_slope(self, now_ns: int) -> None:
        self.clock_base = self.clock(now_ns)
        self.base_ns = now_ns
        self.tokens_per_ns = self._count / self._period_ns * self._factor / self._members
        self.burst = max(1, even_share(self._burst_whole, self._members, self._rank))

    def _new_row(self, key: bytes, now_ns: int, full: bool) -> GcraRow:
        return GcraRow(self, key, self.clock(now_ns) + (self.burst if full else 0))

    def _young(self, row: GcraRow, now_ns: int) -> bool:
        # Empty for burst/rate, the row was last used up to 2 * burst/rate ago, debt apart.
        return max(row.mark, self.floor) > self.clock(now_ns) - self.burst

    def _memory_ns(self) -> int:
        return int(2 * self.burst / self.tokens_per_ns)
