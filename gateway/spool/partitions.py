"""Which partitions are read now, and which wait: bounds on what is in hand, and pauses. Pure.

A partition is held while one of its records waits for the end of a pause (its key is the
credential, so the records behind it would wait as well), and while as much of it is in hand as may
be. Polling goes on for the others, and so does the membership.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from gateway.spool.marks import Marks

__all__ = ["Partition", "Partitions"]

# Of one partition in hand: what 1,000 requests a second have under way in a quarter of a second.
# It is also what the next owner may send twice where a broker keeps no metadata.
RECORDS_MAX: Final = 256
# Offsets between the mark and the newest: a note of so many has room in a commit's metadata.
SPREAD_MAX: Final = 1024
# Of all partitions: a worker with sixteen busy ones. Requests of 16 KiB make it the octets' bound.
RECORDS_ALL_MAX: Final = 4096
BYTES_ALL_MAX: Final = 64 * 1024 * 1024


class Partition:
    """One that this worker has: its marks, and what holds it."""

    __slots__ = ("holds", "is_full", "marks", "number")

    def __init__(self, number: int, mark: int, note: str) -> None:
        self.number = number
        self.marks = Marks(mark, note)
        # By what is waited for, which is opaque here: until when. No more than records in hand.
        self.holds: dict[object, int] = {}
        self.is_full = False

    def held_until_ns(self, now_ns: int) -> int:
        """When it may be read again; 0: it is not held."""
        if self.holds:
            self.holds = {what: until for what, until in self.holds.items() if until > now_ns}
        return max(self.holds.values(), default=0)

    def look(self) -> None:
        """Full at the bound, and until half of it is done: not full and empty in turns."""
        if len(self.marks) >= RECORDS_MAX or self.marks.spread >= SPREAD_MAX:
            self.is_full = True
        elif len(self.marks) <= RECORDS_MAX // 2 and self.marks.spread <= SPREAD_MAX // 2:
            self.is_full = False


class Partitions:
    """All that this worker has, and what of them is in hand."""

    def __init__(self) -> None:
        self._by_number: dict[int, Partition] = {}
        self.records = 0  # in hand: come, without an outcome
        self.octets = 0
        self._is_full = False

    def __iter__(self) -> Iterator[Partition]:
        return iter(self._by_number.values())

    def __len__(self) -> int:
        return len(self._by_number)

    def find(self, number: int) -> Partition | None:
        """The partition of that number, if it is this worker's."""
        return self._by_number.get(number)

    def assign(self, committed: dict[int, tuple[int, str]]) -> dict[int, list[int]]:
        """These are this worker's from now on, with what is committed of each: mark and note.

        Those that were its own before keep what is in hand. Returns, by partition, the offsets in
        hand that are not to be sent any more: another has them, or has finished them.
        """
        gone: dict[int, list[int]] = {}
        mine: dict[int, Partition] = {}
        for number, (mark, note) in committed.items():
            partition = self._by_number.pop(number, None)
            if partition is None:
                partition = Partition(number, mark, note)
            else:
                gone[number] = partition.marks.absorb(mark, note)
            mine[number] = partition
        for number, lost in self._by_number.items():
            gone[number] = lost.marks.under_way()
        self._by_number = mine
        return gone

    def restart(self, number: int, mark: int, note: str) -> tuple[Partition, list[int]]:
        """It begins anew, below what was committed before.

        Returns it, and the offsets of the old one that were in hand.
        """
        old = self._by_number.get(number)
        partition = self._by_number[number] = Partition(number, mark, note)
        return partition, old.marks.under_way() if old is not None else []

    def hold(self, number: int, pause: object, until_ns: int) -> None:
        """One of its records waits for a pause to end, which names itself."""
        partition = self._by_number.get(number)
        if partition is not None:
            partition.holds[pause] = max(partition.holds.get(pause, 0), until_ns)

    def release(self, is_over: Callable[[object], bool]) -> None:
        """Pauses may have ended before their time: what was held by such is read again."""
        for partition in self._by_number.values():
            for pause in [pause for pause in partition.holds if is_over(pause)]:
                del partition.holds[pause]

    def to_pause(self, now_ns: int) -> set[int]:
        """Those that are not to be read now."""
        if self.records >= RECORDS_ALL_MAX or self.octets >= BYTES_ALL_MAX:
            self._is_full = True
        elif self.records <= RECORDS_ALL_MAX // 2 and self.octets <= BYTES_ALL_MAX // 2:
            self._is_full = False
        paused = set()
        for partition in self._by_number.values():
            partition.look()
            if self._is_full or partition.is_full or partition.held_until_ns(now_ns):
                paused.add(partition.number)
        return paused

    def next_release_ns(self, now_ns: int) -> int | None:
        """When the first of those that are held may be read again."""
        times = [partition.held_until_ns(now_ns) for partition in self._by_number.values()]
        return min([until_ns for until_ns in times if until_ns], default=None)

    def marks(self) -> dict[int, tuple[int, str]]:
        """What can be committed now."""
        return {
            partition.number: (partition.marks.mark, partition.marks.note())
            for partition in self._by_number.values()
        }
