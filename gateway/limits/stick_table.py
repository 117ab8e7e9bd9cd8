"""The rows of a limit: a bounded map from key to counter, the least recently used out first.

Whoever can choose keys (a path, a header) can make rows, so a table has a bound. A bound has a
hole: a row that is thrown out while it still remembers something comes back empty, and going
round more keys than the table holds would give every key a fresh burst each time. So a table that
has thrown out a young row starts new rows full until that row's memory would have faded anyway.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, Generic, Protocol, TypeVar

__all__ = ["StickTable"]

# A pinned row at the old end is turned to the new end. The look-up that makes a row pays for at
# most so many turns, so that its time is bounded however many rows are pinned.
_TURNS_MAX = 8


class _Row(Protocol):
    key: bytes
    waiting: Any


R = TypeVar("R", bound=_Row)


class StickTable(Generic[R]):
    """Base of the node's own limits: their rows, by key.

    Rows in use (with a queue of waiting requests, or with slots held) are never thrown out: such
    a table grows beyond `keys_max`, by at most the number of requests in progress, and shrinks
    again. `evicted`, `evicted_young`, `started_full` and `overflows` count for the metrics.
    """

    __slots__ = (
        "_full_until_ns",
        "_last",
        "_last_key",
        "_rows",
        "evicted",
        "evicted_young",
        "keys_max",
        "overflows",
        "started_full",
    )

    def __init__(self, keys_max: int) -> None:
        if keys_max < 1:
            raise ValueError("a table needs at least one row")
        self.keys_max = keys_max
        self.evicted = 0
        self.evicted_young = 0
        self.started_full = 0
        self.overflows = 0
        self._rows: OrderedDict[bytes, R] = OrderedDict()
        self._full_until_ns: int | None = None
        # The row that was used last, so that a limit without a key pays one comparison.
        self._last_key: bytes | None = None
        self._last: R

    def entry(self, key: bytes, now_ns: int) -> R:
        """The row for a key (b"" where the limit has no key), made if there is none."""
        if key == self._last_key:
            return self._last
        row = self._rows.get(key)
        if row is None:
            row = self._make_slow(key, now_ns)
        else:
            self._rows.move_to_end(key)
        self._last_key = key
        self._last = row
        return row

    def peek(self, key: bytes) -> R | None:
        """The row for a key if there is one; the order of use stays as it is."""
        return self._rows.get(key)

    def keys(self) -> list[bytes]:
        """A copy of all keys, in the order in which the rows were made.

        The plain dict's iterator leaves out the order of use: 100,000 keys take a millisecond.
        """
        return list(dict.__iter__(self._rows))

    def forgive(self) -> None:
        """The whole table is cleared: rows made from now on start empty again."""
        self._full_until_ns = None

    def drop_all(self) -> None:
        """Nothing names the limit any more: rows are freed with the last exchange that has one.

        Each row leads to its limit; where that led back to all of them, only the collector would
        find the table, which may have 20,000, and it seldom looks at what is old.
        """
        self._rows.clear()
        self._last_key = None

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[R]:
        """All rows, the least recently used first. The table may not change meanwhile."""
        return iter(self._rows.values())

    def starts_full(self, now_ns: int) -> bool:
        """Whether a row made now would start full because young rows were thrown out."""
        return self._full_until_ns is not None and now_ns < self._full_until_ns

    def shrink(self, now_ns: int) -> int:
        """Throws out what is above `keys_max` and not in use; says how many rows went."""
        before = len(self._rows)
        for _ in range(before):
            if len(self._rows) <= self.keys_max:
                break
            self._evict_one(now_ns)
        return before - len(self._rows)

    def _make_slow(self, key: bytes, now_ns: int) -> R:
        # Two per new row, so that a table which pinned rows made too large comes back to its size.
        for _ in range(2):
            if len(self._rows) >= self.keys_max:
                self._evict_one(now_ns)
        if len(self._rows) >= self.keys_max:
            self.overflows += 1
        full = self.starts_full(now_ns)
        if full:
            self.started_full += 1
        row = self._new_row(key, now_ns, full)
        self._rows[key] = row
        return row

    def _evict_one(self, now_ns: int) -> None:
        rows = self._rows
        for _ in range(min(_TURNS_MAX, len(rows))):
            key = next(iter(rows))
            row = rows[key]
            if self._pinned(row):
                rows.move_to_end(key)
                continue
            del rows[key]
            if key == self._last_key:
                self._last_key = None
            self.evicted += 1
            if self._young(row, now_ns):
                self.evicted_young += 1
                self._full_until_ns = now_ns + self._memory_ns()
            return

    def _pinned(self, row: R) -> bool:
        return row.waiting is not None

    def _new_row(self, key: bytes, now_ns: int, full: bool) -> R:
        raise NotImplementedError

    def _young(self, row: R, now_ns: int) -> bool:
        """Whether the row may still remember something that a new one would not."""
        raise NotImplementedError

    def _memory_ns(self) -> int:
        """After how long without use a row is as good as new."""
        raise NotImplementedError
