"""A limit in front of another one: what is the wrapped limit's own, and passed on.

A request waits at the wrapped row, and the wrapped limit has the name and says whether it only
counts. Rows here only add something to a key; who is thrown out of the table is made anew in front
of the same row, so nothing has to be remembered of it.
"""

from __future__ import annotations

from typing import Any, TypeVar

from gateway.limits.stick_table import StickTable
from gateway.limits.verdict import Entry, Limit

__all__ = ["WrappedLimit", "WrappedRow"]


class WrappedRow:
    """One key's row in front of the wrapped limit's, `inner`: whoever waits stands there."""

    __slots__ = ("inner", "key")

    def __init__(self, key: bytes, inner: Entry) -> None:
        self.key = key
        self.inner = inner

    @property
    def waiting(self) -> Any:
        return self.inner.waiting

    @waiting.setter
    def waiting(self, queue: Any) -> None:
        self.inner.waiting = queue

    def arrive(self, cost: int, now_ns: int) -> None:
        self.inner.arrive(cost, now_ns)

    def hold(self, cost: int) -> None:
        self.inner.hold(cost)


R = TypeVar("R", bound=WrappedRow)


class WrappedLimit(StickTable[R]):
    """Base of the limits that stand in front of `inner`."""

    __slots__ = ("inner",)

    def __init__(self, inner: Limit, keys_max: int) -> None:
        super().__init__(keys_max)
        self.inner = inner

    @property
    def name(self) -> str:
        return self.inner.name

    @name.setter
    def name(self, value: str) -> None:
        self.inner.name = value

    @property
    def dry_run(self) -> bool:
        return self.inner.dry_run

    @dry_run.setter
    def dry_run(self, value: bool) -> None:
        self.inner.dry_run = value

    def entry(self, key: bytes, now_ns: int) -> R:
        """The row for a key, in front of the wrapped limit's current one."""
        row = super().entry(key, now_ns)
        row.inner = self.inner.entry(key, now_ns)
        return row

    def _young(self, row: R, now_ns: int) -> bool:
        return False  # what it added costs the client little, or the store remembers it

    def _memory_ns(self) -> int:
        return 0
