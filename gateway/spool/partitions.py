"""Which partitions are read now, and which wait: bounds on what is in hand, and pauses. Pure.

A partition is held while one of its records waits for the end of a pause (its key is the
credential, so the records behind it would wait as well), and while as much of it is in hand as may
be. Polling goes on for the others, and so does the membership.
"""

from __future__ import annotations

from collections.abc import Iterator
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

    __slots__ = ("held_until_ns", "is_full", "marks", "number")

    def __init__(self, number: int, mark: int, note: str) -> None:
        self.number = number
        self.marks = Marks(mark, note)
        self.held_until_ns = 0
        self.is_full = False

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

    def restart(self, number: int, offset: int) -> list[int]:
        """The log begins anew below what was committed (the topic was made again).

        Returns the offsets of the old one that were in hand.
        """
        old = self._by_number[number]
        self._by_number[number] = Partition(number, offset, "")
        return old.marks.under_way()

    def hold(self, number: int, until_ns: int) -> None:
        """One of its records waits for a pause to end."""
        partition = self._by_number.get(number)
        if partition is not None:
            partition.held_until_ns = max(partition.held_until_ns, until_ns)

    def release_all(self) -> None:
        """A pause ended before its time: whoever still has to wait will say so again."""
        for partition in self._by_number.values():
            partition.held_until_ns = 0

    def to_pause(self, now_ns: int) -> set[int]:
        """Those that are not to be read now."""
        if self.records >= RECORDS_ALL_MAX or self.octets >= BYTES_ALL_MAX:
            self._is_full = True
        elif self.records <= RECORDS_ALL_MAX // 2 and self.octets <= BYTES_ALL_MAX // 2:
            self._is_full = False
        paused = set()
        for partition in self._by_number.values():
            partition.look()
            if self._is_full or partition.is_full or partition.held_until_ns > now_ns:
                paused.add(partition.number)
        return paused

    def next_release_ns(self, now_ns: int) -> int | None:
        """When the first of those that are held may be read again."""
        held = [
            partition.held_until_ns
            for partition in self._by_number.values()
            if partition.held_until_ns > now_ns
        ]
        return min(held, default=None)

    def marks(self) -> dict[int, tuple[int, str]]:
        """What can be committed now."""
        return {
            partition.number: (partition.marks.mark, partition.marks.note())
            for partition in self._by_number.values()
        }
