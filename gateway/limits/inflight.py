"""The in-flight limit: at most so many requests under way at a time (APIs that count concurrency).

A gauge, never a counter: what is taken is given back, so nothing drains, and a node's figure is
never added to another's (HAProxy's synced `conn_cur` went negative and grew for ever).
"""

from __future__ import annotations

from typing import Any, Final

from gateway.limits.share import even_share
from gateway.limits.stick_table import StickTable
from gateway.limits.verdict import NEVER, ROOM

__all__ = ["Inflight", "InflightRow"]

# Nobody knows when a slot comes back. One second is the least that Retry-After can say, and who
# waits here is woken by `give_back`: this figure ends no wait (see `foresees`).
_AGAIN_NS: Final = 1_000_000_000

# After the upstream found too many requests at a time, one slot comes back in so long: as often a
# client of its own would try one more (AIMD: Chiu, Jain, "Analysis of the increase and decrease
# algorithms for congestion avoidance", 1989), and the default pause of a breaker twice over.
_SLOT_BACK_NS = 10_000_000_000


class InflightRow:
    """The slots held for one key. Satisfies `verdict.SlotEntry`."""

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
        if limit.eased and limit.recover(now_ns):
            return self.ask(cost, now_ns)
        if cost > limit.slots_part and limit.slots_part:
            return NEVER
        return _AGAIN_NS

    def foresees(self, cost: int, now_ns: int) -> bool:
        """Never: a request that ends frees its slot when it ends."""
        return False

    def take(self, cost: int, now_ns: int) -> None:
        self.used += cost
        self.taken += cost

    def arrive(self, cost: int, now_ns: int) -> None:
        self.limit.arrived += cost

    def hold(self, cost: int) -> None:
        self.held += cost

    def learn(self, remaining: int, sent_ns: int, now_ns: int) -> bool:
        """Nothing: what is left of a rate says nothing about slots."""
        return False

    def ease(self, now_ns: int) -> None:
        """The upstream found what is under way here too many."""
        self.limit.ease(self.used, now_ns)

    def give_back(self, cost: int, now_ns: int) -> None:
        """Frees slots. More than are held is the caller's fault: counted, and none are invented."""
        self.used -= cost
        if self.used < 0:
            self.used = 0
            self.limit.underflows += 1


class Inflight(StickTable[InflightRow]):
    """A named limit of `slots` at a time for each key. Satisfies `Limit`."""

    __slots__ = (
        "_eased_ns",
        "_slots_whole",
        "arrived",
        "dry_run",
        "eased",
        "name",
        "slots",
        "slots_part",
        "underflows",
    )

    slots: int  # what may be used now
    slots_part: int  # and what this node may have when the upstream is content

    def __init__(
        self, name: str, slots: int, *, keys_max: int = 20_000, dry_run: bool = False
    ) -> None:
        super().__init__(keys_max)
        self.name = name
        self.dry_run = dry_run
        self.arrived = 0  # slots asked for, each request once
        self.underflows = 0
        self.eased = 0  # slots that are not used for now
        self._eased_ns = 0  # when the last of them was taken away or came back
        self.configure(slots)

    def configure(self, slots: int) -> None:
        """Changes the number of slots; with more held than that, none is free until enough are
        given back. Raises ValueError below 1.
        """
        if slots < 1:
            raise ValueError("an in-flight limit has at least 1 slot")
        self._slots_whole = slots
        self._set_part(slots)

    def split(self, members: int, rank: int) -> None:
        """Takes this node's even part of the slots (`sync = "local"`); it may be 0."""
        self._set_part(even_share(self._slots_whole, members, rank))

    def ease(self, used: int, now_ns: int) -> None:
        """The upstream found `used` at a time too many: one less from now on, at least one.

        A slot comes back every ten seconds.
        """
        slots = max(1, min(self.slots, used - 1))
        if slots < self.slots_part:
            self.slots = slots
            self.eased = self.slots_part - slots
            self._eased_ns = now_ns

    def recover(self, now_ns: int) -> bool:
        """Gives back the slots whose time has come; says whether there were any."""
        due = min(self.eased, (now_ns - self._eased_ns) // _SLOT_BACK_NS)
        if due <= 0:
            return False
        self.eased -= due
        self.slots += due
        self._eased_ns += due * _SLOT_BACK_NS
        return True

    def _set_part(self, slots: int) -> None:
        """`slots` are this node's; what is eased stays so, as far as at least one is left."""
        self.slots_part = slots
        self.eased = max(0, min(self.eased, slots - 1))
        self.slots = slots - self.eased

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
