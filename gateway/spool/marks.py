"""How far a partition's records have come: which are under way, and what may be committed. Pure.

An offset that is committed says that all records below it have their final outcome, so it is the
lowest that is still under way, not the highest that is done: one customer's pause would otherwise
have to hold back the marks of all others, or lose what it holds. What is done above the mark is
told in the commit's metadata (`note`), so that who gets the partition next does not send it again.
"""

from __future__ import annotations

from typing import Final

__all__ = ["NOTE_BYTES_MAX", "Marks"]

# Brokers take 4,096 octets of metadata (`offset.metadata.max.bytes`); a range takes some ten, and
# there are as many as records are under way at most.
NOTE_BYTES_MAX: Final = 4000
_NOTE_BEGINS: Final = "done "


class Marks:
    """The offsets of one partition, from its mark on.

    Offsets that are missing in the log (a compacted topic's, a transaction's end) are as good as
    done once a later one has come.
    """

    __slots__ = ("_done_ahead", "_open", "next")

    def __init__(self, mark: int, note: str = "") -> None:
        """As committed by whoever had the partition before: all below `mark` is done, and what the
        `note` says. One that is not understood says nothing."""
        self.next = mark  # the first offset that has not come yet
        self._open: dict[int, None] = {}  # in the order of offsets, which is that of insertion
        self._done_ahead = _read_note(mark, note)

    def __len__(self) -> int:
        """Records under way."""
        return len(self._open)

    @property
    def mark(self) -> int:
        """The offset to commit: all records below it have their outcome."""
        return next(iter(self._open), self.next)

    @property
    def spread(self) -> int:
        """Offsets from the mark to the end of what has come."""
        return self.next - self.mark

    def take(self, offset: int) -> bool:
        """A record came: True if it is new, and under way from now on.

        False: it is under way already, or done.
        """
        if offset < self.next:
            return False
        self.next = offset + 1
        ahead = self._done_ahead
        while ahead and ahead[0][1] <= offset:
            ahead.pop(0)
        if ahead and ahead[0][0] <= offset:
            return False
        self._open[offset] = None
        return True

    def finish(self, offset: int) -> None:
        """A record has its final outcome, and that is kept elsewhere."""
        self._open.pop(offset, None)

    def is_under_way(self, offset: int) -> bool:
        """Whether a record has come and has no outcome yet."""
        return offset in self._open

    def under_way(self) -> list[int]:
        """The offsets without an outcome, in their order."""
        return list(self._open)

    def note(self) -> str:
        """What is done above the mark, for `Marks` of the next one: a commit's metadata.

        A note that would be too long leaves off its end; that is then sent twice.
        """
        mark = self.mark
        pieces: list[str] = []
        size = len(_NOTE_BEGINS)
        for first, end in self._done_ranges(mark):
            last = end - 1 - mark
            piece = f"{first - mark}-{last}" if last > first - mark else f"{last}"
            size += len(piece) + 1
            if size > NOTE_BYTES_MAX:
                break
            pieces.append(piece)
        return _NOTE_BEGINS + ",".join(pieces) if pieces else ""

    def absorb(self, mark: int, note: str) -> list[int]:
        """The partition went and came back: another node may have finished some meanwhile.

        Returns those of them that are under way here; they are not any more.
        """
        ranges = _read_note(mark, note)
        done = [
            offset
            for offset in self._open
            if offset < mark or any(first <= offset < end for first, end in ranges)
        ]
        for offset in done:
            del self._open[offset]
        self.next = max(self.next, mark)
        known = [*self._done_ahead, *ranges]
        self._done_ahead = _merged([(first, end) for first, end in known if end > self.next])
        return done

    def _done_ranges(self, mark: int) -> list[tuple[int, int]]:
        """Half-open ranges above the mark that are done, in their order."""
        ranges = []
        begin = mark
        for offset in self._open:
            if offset > begin:
                ranges.append((begin, offset))
            begin = offset + 1
        if self.next > begin:
            ranges.append((begin, self.next))
        return _merged([*ranges, *self._done_ahead])


def _merged(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for first, end in sorted(ranges):
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((first, end))
    return merged


def _read_note(mark: int, note: str) -> list[tuple[int, int]]:
    """The ranges of a note, absolute; none where it is not one of ours, which anybody can write."""
    if not note.startswith(_NOTE_BEGINS) or len(note) > NOTE_BYTES_MAX:
        return []
    ranges: list[tuple[int, int]] = []
    for piece in note.removeprefix(_NOTE_BEGINS).split(","):
        first, dash, last = piece.partition("-")
        last = last if dash else first
        if not (_is_number(first) and _is_number(last)):
            return []
        begin, end = mark + int(first), mark + int(last) + 1
        if begin >= end or (ranges and begin <= ranges[-1][1]):
            return []
        ranges.append((begin, end))
    return ranges


def _is_number(digits: str) -> bool:
    return digits.isascii() and digits.isdigit() and len(digits) <= 10
