"""Costs that the upstream tells afterwards (`cost = { response_header = ... }`), over any limit.

A request must take something before it is sent, so it reserves what its row's requests have cost
on average. When the response tells the true cost, an excess is taken as debt and a surplus stays on
the row as this node's credit, spent before any token is taken: a token that went out into the mesh
is never called back. It wraps a limit instead of being part of one, so that it serves the
mesh-wide limits as well as the node's own.
"""

from __future__ import annotations

from typing import Any

from gateway.limits.central import CentralLimit
from gateway.limits.verdict import ROOM, Entry, Limit
from gateway.limits.wrapped import WrappedLimit, WrappedRow

__all__ = ["Settled", "SettledRow", "central_of", "unwrapped"]

# The mean follows the last 32 responses or so: enough to smooth single ones, few enough to follow
# a client that turns from small prompts to large ones.
_MEAN_OVER = 32


class SettledRow(WrappedRow):
    """One key's credit and mean cost in front of the wrapped limit's row. Satisfies `Entry`."""

    __slots__ = ("credit", "limit", "mean", "settled")

    def __init__(self, limit: Settled, key: bytes, inner: Entry) -> None:
        super().__init__(key, inner)
        self.limit = limit
        self.credit = 0  # tokens taken too many
        self.mean = 1.0  # tokens; the first request reserves 1
        self.settled = 0  # responses in the mean, up to _MEAN_OVER

    def reserve(self) -> int:
        """The cost to ask for now, in tokens: the mean, at most what the limit can give at once."""
        return max(1, min(round(self.mean), self.limit.reserve_max))

    def ask(self, cost: int, now_ns: int) -> int:
        """As the wrapped row, after the credit."""
        cost -= self.credit
        return self.inner.ask(cost, now_ns) if cost > 0 else ROOM

    def foresees(self, cost: int, now_ns: int) -> bool:
        """As the wrapped row, after the credit."""
        return self.inner.foresees(cost - self.credit, now_ns)

    def take(self, cost: int, now_ns: int) -> None:
        """Spends the credit first and takes the rest."""
        spent = min(cost, self.credit)
        self.credit -= spent
        if cost > spent:
            self.inner.take(cost - spent, now_ns)

    @property
    def fetching(self) -> bool:
        """Whether the wrapped row, one of an exact limit, has asked its owner for tokens."""
        return bool(getattr(self.inner, "fetching", False))

    def give_back(self, cost: int, now_ns: int) -> None:
        self.inner.give_back(cost, now_ns)

    def fill(self, now_ns: int) -> None:
        """Takes the burst away, and the credit, which would be one too."""
        self.credit = 0
        inner: Any = self.inner
        inner.fill(now_ns)  # a row of a rate has it; windows and slots are never asked

    def clear(self, now_ns: int) -> None:
        """The operator forgives the wrapped row; credit and mean cost are the client's own."""
        inner: Any = self.inner
        inner.clear(now_ns)

    def learn(self, remaining: int, sent_ns: int, now_ns: int) -> bool:
        """Takes over what the upstream says is left, if it is less than ours with the credit."""
        inner = self.inner
        free, _ = self.limit.inner.remaining(inner, now_ns)
        if inner.learn(remaining, sent_ns, now_ns):
            self.credit = 0
            return True
        if remaining >= free + self.credit:
            return False
        self.credit = max(0, remaining - free)
        return True

    def settle(self, reserved: int, told: int, now_ns: int) -> None:
        """The response told its true cost: the difference to `reserved` is debt or credit.

        `told` comes from outside: below 0 it counts as 0, above `told_max` as that.
        """
        told = max(0, min(told, self.limit.told_max))
        self.settled = min(self.settled + 1, _MEAN_OVER)
        self.mean += (told - self.mean) / self.settled
        excess = told - reserved
        if excess <= 0:
            self.credit -= excess
            return
        self.take(excess, now_ns)


class Settled(WrappedLimit[SettledRow]):
    """A limit whose costs are settled afterwards. Satisfies `Limit`.

    `reserve_max`: the wrapped limit's burst or quota, above which asking would get NEVER.
    `told_max`: the largest cost that is believed of one response, in tokens, because debt has to
    be worked off: an hour's worth of the rate is the same bound as `pause_max` sets on a pause.
    """

    __slots__ = ("reserve_max", "told_max")

    def __init__(self, inner: Limit, reserve_max: int, told_max: int, keys_max: int) -> None:
        super().__init__(inner, keys_max)
        self.reserve_max = reserve_max
        self.told_max = told_max

    def remaining(self, entry: SettledRow, now_ns: int) -> tuple[int, int]:
        """As the wrapped limit says; the credit is on top."""
        free, full_ns = self.inner.remaining(entry.inner, now_ns)
        return free + entry.credit, full_ns

    def _new_row(self, key: bytes, now_ns: int, full: bool) -> SettledRow:
        return SettledRow(self, key, self.inner.entry(key, now_ns))


def unwrapped(limit: Limit) -> Limit:
    """The limit that has the rate or the slots, whatever is around it."""
    while isinstance(limit, Settled | CentralLimit):
        limit = limit.inner
    return limit


def central_of(limit: Limit) -> CentralLimit | None:
    """The limit of the central store, if it is one, whatever is around it."""
    while isinstance(limit, Settled):
        limit = limit.inner
    return limit if isinstance(limit, CentralLimit) else None
