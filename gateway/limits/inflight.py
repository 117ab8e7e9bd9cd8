"""The in-flight limit: at most so many requests under way at a time (APIs that count concurrency).

A gauge, never a counter: what is taken is given back, so nothing drains, and a node's figure is
never added to another's (HAProxy's synced `conn_cur` went negative and grew for ever).
"""

from __future__ import annotations

from typing import Any

from gateway.limits.share import even_share
from gateway.limits.stick_table import StickTable
from gateway.limits.verdict import NEVER, ROOM

__all__ = ["Inflight", "InflightRow"]

# Nobody knows when a slot comes back. One second is the least that Retry-After can say, and who
# waits here is woken by `give_back`, not by this figure.
_AGAIN_NS = 1_000_000_000


class InflightRow:
    """The slots held for one key. Satisfies `verdict.Entry`."""

    __slots__ = ("held", "key", "limit", "taken", "used", "waiting")

    def __init__(self, limit: Inflight, key: bytes) -> None:
        self.limit = limit
        self.key = key
        self.used = 0  # slots held now
        self.taken = 0  # slots ever taken
        self.held = 0
        self.waiting: Any = None

    def ask(self, cost: int, now_ns: int) -> int:
        """ROOM, one second (a slot frees nobody knows when), or NEVER for a cost over all."""
        limit = self.limit
        if self.used + cost <= limit.slots:
            return ROOM
        if cost > limit.slots and limit.slots:
            return NEVER
        return _AGAIN_NS

    def take(self, cost: int, now_ns: int) -> None:
        self.used += cost
        self.taken += cost

    def arrive(self, cost: int, now_ns: int) -> None:
        self.limit.arrived += cost

    def hold(self, cost: int) -> None:
        self.held += cost

    def give_back(self, cost: int, now_ns: int) -> None:
        """Frees slots. More than are held is the caller's fault: counted, and none are invented."""
        self.used -= cost
        if self.used < 0:
            self.used = 0
            self.limit.underflows += 1


class Inflight(StickTable[InflightRow]):
    """A named limit of `slots` at a time for each key. Satisfies `Limit`."""

    __slots__ = ("_slots_whole", "arrived", "dry_run", "name", "slots", "underflows")

    def __init__(
        self, name: str, slots: int, *, keys_max: int = 20_000, dry_run: bool = False
    ) -> None:
        super().__init__(keys_max)
        self.name = name
        self.dry_run = dry_run
        self.arrived = 0  # slots asked for, each request once
        self.underflows = 0
        self.configure(slots)

    def configure(self, slots: int) -> None:
        """Changes the number of slots; with more held than that, none is free until enough are
        given back. Raises ValueError below 1.
        """
        if slots < 1:
            raise ValueError("an in-flight limit has at least 1 slot")
        self._slots_whole = slots
        self.slots = slots

    def split(self, members: int, rank: int) -> None:
        """Takes this node's even part of the slots (`sync = "local"`); it may be 0."""
        self.slots = even_share(self._slots_whole, members, rank)

    def remaining(self, entry: InflightRow, now_ns: int) -> tuple[int, int]:
        """(slots free now, one second where some are held: see above)."""
        return max(0, self.slots - entry.used), _AGAIN_NS if entry.used else 0

    def _pinned(self, row: InflightRow) -> bool:
        return row.used > 0 or row.waiting is not None

    def _new_row(self, key: bytes, now_ns: int, full: bool) -> InflightRow:
        return InflightRow(self, key)

    def _young(self, row: InflightRow, now_ns: int) -> bool:
        return False  # a row without slots held remembers nothing

    def _memory_ns(self) -> int:
        return 0
