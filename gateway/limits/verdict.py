"""What a limit is, and what it says.

A limit is a table of rows; a row is one counter (for one key). The proxy asks every row of a
request, and takes from all of them only if all have room. `peers.core.counters` satisfies these
protocols structurally, so that mesh-wide and local limits stand in the same list.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple, Protocol

__all__ = ["NEVER", "ROOM", "Entry", "Limit", "Reject", "SlotEntry"]

ROOM: Final = 0
NEVER: Final = -1


class Entry(Protocol):
    """One row: the state of one limit for one key.

    `waiting` belongs to the caller (its FairQueue of requests that this row refused, or None).
    Costs are whole tokens, at least 1. A row with `waiting` set is never evicted.
    """

    waiting: Any

    @property
    def limit(self) -> Limit: ...

    def ask(self, cost: int, now_ns: int) -> int:
        """ROOM, or the nanoseconds (>= 1) after which asking again can help, or NEVER.

        NEVER means that the cost is over what the limit can ever give. Asking changes no count.
        """
        ...

    def foresees(self, cost: int, now_ns: int) -> bool:
        """Whether no room comes before the time that `ask` has just said.

        False where that is only when to look again, because a slot, a peer's token or an owner's
        answer may come at any moment: to wait for it is worth while up to any deadline.
        """
        ...

    def take(self, cost: int, now_ns: int) -> None:
        """Takes tokens that `ask` just said were there."""
        ...

    def arrive(self, cost: int, now_ns: int) -> None:
        """Counts a request's demand, once per request, at a limit whose siblings have room."""
        ...

    def hold(self, cost: int) -> None:
        """A request of this cost waits for this row (its siblings have room); -cost undoes it."""
        ...

    def learn(self, remaining: int, sent_ns: int, now_ns: int) -> bool:
        """Takes over what the upstream says is left, if that is less than what is left here.

        It was told in answer to a request sent at `sent_ns`. Says whether anything changed.
        """
        ...

    def give_back(self, cost: int, now_ns: int) -> None:
        """The request is over: frees an in-flight slot. Tokens of a rate are never given back."""
        ...


class SlotEntry(Entry, Protocol):
    """A row of an in-flight limit, whose slots come back."""

    def ease(self, now_ns: int) -> None:
        """The upstream found what is under way now too many: fewer slots for a while."""
        ...


class Limit(Protocol):
    """A named rule with its table of rows."""

    name: str
    dry_run: bool

    def entry(self, key: bytes, now_ns: int) -> Entry:
        """The row for a key (b"" where the limit has no key), made if there is none."""
        ...

    def remaining(self, entry: Any, now_ns: int) -> tuple[int, int]:
        """(whole tokens free now, nanoseconds until it is full again), for RateLimit fields."""
        ...


class Reject(NamedTuple):
    """A refusal, which names its rule. `retry_after_ns` is None where waiting cannot help."""

    limit: str
    reason: str
    retry_after_ns: int | None
