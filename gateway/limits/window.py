"""The window limit: a quota that comes back whole at the window's end, as many APIs count.

It exists beside the smooth limit because an API that resets its counter at the full hour lets a
client spend the quota at once, and holding such a client to a smooth rate wastes what is allowed.
The price is the field's known one: across a window's end up to twice the quota may pass.
"""

from __future__ import annotations

from typing import Any

from gateway.limits.share import even_share
from gateway.limits.stick_table import StickTable
from gateway.limits.verdict import NEVER, ROOM

__all__ = ["Window", "WindowRow"]

# A difference of clocks below this is no step: both are read one after the other, with whatever
# the scheduler does between, and a boundary so little off is within a request's way anyway.
STEP_NS = 50_000_000


class WindowRow:
    """The use of one key in its current window. Satisfies `verdict.Entry`."""

    __slots__ = ("end_ns", "held", "key", "limit", "taken", "used", "waiting")

    def __init__(self, limit: Window, key: bytes, end_ns: int, used: int) -> None:
        self.limit = limit
        self.key = key
        self.end_ns = end_ns  # of the current window; in the past: the next use opens one
        self.used = used  # tokens in this window; over the quota is debt to the next ones
        self.taken = 0  # tokens, since the row was made
        self.held = 0
        self.waiting: Any = None

    def ask(self, cost: int, now_ns: int) -> int:
        """ROOM, the nanoseconds until the window that has room, or NEVER for a cost over it."""
        limit = self.limit
        used = self.used
        end_ns = self.end_ns
        if now_ns >= end_ns:
            used, end_ns = limit.next_window(used, end_ns, now_ns)
        over = used + cost - limit.quota
        if over <= 0:
            return ROOM
        if cost > limit.quota:
            # A node whose part is nothing may have one when the members change.
            return NEVER if limit.quota else end_ns - now_ns
        windows = (over - 1) // limit.quota
        return end_ns + windows * limit.period_ns - now_ns

    def foresees(self, cost: int, now_ns: int) -> bool:
        """Always: only time opens the next window."""
        return True

    def take(self, cost: int, now_ns: int) -> None:
        """Adds `cost` to the window's use, without asking: what is over the quota is debt."""
        if now_ns >= self.end_ns:
            self.used, self.end_ns = self.limit.next_window(self.used, self.end_ns, now_ns)
        self.used += cost
        self.taken += cost

    def arrive(self, cost: int, now_ns: int) -> None:
        self.limit.arrived += cost

    def hold(self, cost: int) -> None:
        self.held += cost

    def give_back(self, cost: int, now_ns: int) -> None:
        """Nothing: tokens of a quota are never given back."""

    def clear(self, now_ns: int) -> None:
        """The operator forgives: nothing was used, debt neither, and the window goes on."""
        self.used = 0

    def learn(self, remaining: int, sent_ns: int, now_ns: int) -> bool:
        """Takes over what the upstream says is left, if it is less than ours; says whether.

        What it says is as of `sent_ns`; about a window that is over it says nothing.
        """
        limit = self.limit
        used, end_ns = self.used, self.end_ns
        if now_ns >= end_ns:
            if sent_ns < end_ns:
                return False
            used, end_ns = limit.next_window(used, end_ns, now_ns)
        elif sent_ns < end_ns - limit.period_ns:
            return False
        told = limit.quota - even_share(max(0, remaining), limit.members, limit.rank)
        if told <= used:
            return False
        self.used, self.end_ns = told, end_ns
        return True


class Window(StickTable[WindowRow]):
    """A named limit of `count` tokens in each window of `period_ns`. Satisfies `Limit`.

    `aligned` windows begin at multiples of the period in wall time (UTC), for which
    `wall_offset_ns` is wall minus monotonic time; others begin with a key's first use.
    """

    __slots__ = (
        "_count",
        "aligned",
        "arrived",
        "dry_run",
        "members",
        "name",
        "period_ns",
        "quota",
        "rank",
        "wall_offset_ns",
    )

    def __init__(
        self,
        name: str,
        count: int,
        period_ns: int,
        *,
        aligned: bool = False,
        wall_offset_ns: int = 0,
        keys_max: int = 20_000,
        dry_run: bool = False,
    ) -> None:
        super().__init__(keys_max)
        if period_ns < 1:
            raise ValueError("a window has a length")
        self.name = name
        self.dry_run = dry_run
        self.aligned = aligned
        self.wall_offset_ns = wall_offset_ns
        self.period_ns = period_ns  # part of the limit's identity: a change makes a new limit
        self.arrived = 0  # tokens asked for, each request once
        self.members = 1  # among whom the quota is split; this node is number `rank` of them
        self.rank = 0
        self.configure(count)

    def configure(self, count: int) -> None:
        """Changes the quota, from the current windows on. Raises ValueError below 1."""
        if count < 1:
            raise ValueError("a quota is at least 1")
        self._count = count
        self.quota = count

    def split(self, members: int, rank: int) -> None:
        """Takes this node's even part of the quota (`sync = "local"`); it may be 0."""
        self.quota = even_share(self._count, members, rank)
        self.members = members
        self.rank = rank

    def align(self, aligned: bool, wall_offset_ns: int, now_ns: int) -> None:
        """Where windows begin from now on, and how far wall time is from monotonic time.

        Where the clock was set, or alignment is new, the windows under way end at the new
        boundary, with what was used in them: no window is ever given twice.
        """
        moved_ns = abs(wall_offset_ns - self.wall_offset_ns)
        begins = aligned and not self.aligned
        self.aligned = aligned
        if not begins and (not aligned or moved_ns < STEP_NS):
            return
        self.wall_offset_ns = wall_offset_ns
        end_ns = self._boundary_ns(now_ns)
        for row in self:
            if now_ns < row.end_ns:
                row.end_ns = end_ns

    def next_window(self, used: int, end_ns: int, now_ns: int) -> tuple[int, int]:
        """(tokens already used, end) of the window at `now_ns`, where the last ended at `end_ns`.

        Debt is paid by the windows in between and then by this one, and ties it to the last.
        """
        period_ns = self.period_ns
        passed = (now_ns - end_ns) // period_ns + 1
        used = max(0, used - self.quota * passed)
        if self.aligned:
            return used, self._boundary_ns(now_ns)
        if used:
            return used, end_ns + passed * period_ns
        return 0, now_ns + period_ns

    def _boundary_ns(self, now_ns: int) -> int:
        """When wall time is next a multiple of the period."""
        period_ns = self.period_ns
        return now_ns + period_ns - (now_ns + self.wall_offset_ns) % period_ns

    def remaining(self, entry: WindowRow, now_ns: int) -> tuple[int, int]:
        """(whole tokens free now, nanoseconds until the window's end; 0 for an unused one)."""
        used, end_ns = entry.used, entry.end_ns
        if now_ns >= end_ns:
            used, end_ns = self.next_window(used, end_ns, now_ns)
        return max(0, self.quota - used), end_ns - now_ns if used else 0

    def _new_row(self, key: bytes, now_ns: int, full: bool) -> WindowRow:
        _, end_ns = self.next_window(0, now_ns, now_ns)
        if full:
            return WindowRow(self, key, end_ns, self.quota)
        # A row made by a request that another limit refuses has not been used yet.
        return WindowRow(self, key, end_ns if self.aligned else now_ns, 0)

    def _young(self, row: WindowRow, now_ns: int) -> bool:
        return row.used > 0 and now_ns < row.end_ns + self.period_ns

    def _memory_ns(self) -> int:
        return 2 * self.period_ns
