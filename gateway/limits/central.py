"""A limit whose counter is kept in a central store, in front of one that the nodes keep themselves.

The store decides while it answers. The wrapped limit (the mesh's, or this node's own) is told of
everything that the store granted: so it knows the level when the store is gone, decides from that
moment on without a second burst, and can tell a store that lost its memory what was there.

A row holds no count of the store's. `purse` are tokens that the store granted and nobody has taken
yet, good for GRANT_LIFE_NS; `closed_until_ns` is when the store said that asking again can help.
The question itself is a request's, for all its limits at once (`gateway.proxy.central`).
"""

from __future__ import annotations

import hashlib
from typing import Any, Final, Protocol

from gateway.limits.verdict import NEVER, ROOM, Entry, Limit
from gateway.limits.wrapped import WrappedLimit, WrappedRow

__all__ = ["GRANT_LIFE_NS", "CentralLimit", "CentralRow", "NoStore", "Store"]

# A granted token that another limit of its request keeps back goes to the next one of the row. One
# used so late would make a window fuller than the store knows, by rate * this at the worst.
GRANT_LIFE_NS: Final = 100_000_000

NAME_BYTES: Final = 16  # 128 bits: no two rows of a cluster meet by chance
_NEVER_TOLD: Final = -1  # no epoch of the store


class Store(Protocol):
    """The store as limits see it. `epoch` counts how often it came (back)."""

    up: bool
    epoch: int

    def charge(self, row: CentralRow, cost: int, now_ns: int) -> None:
        """Takes tokens without asking: they were used already."""
        ...


class NoStore:
    """No store is configured, or none has answered yet: nodes decide among themselves."""

    up = False
    epoch = 0

    def ask(self, question: object, now_ns: int) -> bool:
        return False

    def charge(self, row: CentralRow, cost: int, now_ns: int) -> None:
        """Nobody to tell."""

    def document(self) -> None:
        """Nothing to show."""


class CentralRow(WrappedRow):
    """One key's view of the store, in front of the wrapped limit's row. Satisfies `Entry`."""

    __slots__ = (
        "closed_cost",
        "closed_until_ns",
        "forgiven",
        "limit",
        "name",
        "purse",
        "purse_until_ns",
        "told_epoch",
    )

    def __init__(self, limit: CentralLimit, key: bytes, name: bytes, inner: Entry) -> None:
        super().__init__(key, inner)
        self.limit = limit
        self.name = name  # in the store
        self.purse = 0
        self.purse_until_ns = 0
        self.closed_until_ns = 0  # for costs from `closed_cost` on
        self.closed_cost = 0
        self.told_epoch = _NEVER_TOLD  # of the store that has been told the wrapped row's level
        self.forgiven = False  # the operator cleared the row, which the store has yet to hear

    def ask(self, cost: int, now_ns: int) -> int:
        """As the wrapped row while the store is gone; otherwise what the store said last.

        ROOM is "not that I knew": whoever asks has to see first whether the row `wants` tokens.
        """
        limit = self.limit
        if not limit.store.up:
            return self.inner.ask(cost, now_ns)
        if cost > limit.most:
            return NEVER
        if self._closed(cost, now_ns) and not self._has(cost, now_ns):
            return self.closed_until_ns - now_ns
        return ROOM

    def foresees(self, cost: int, now_ns: int) -> bool:
        """Whether no room comes before the time that `ask` has just said: where the store told it,
        or the wrapped row foresees it."""
        if not self.limit.store.up:
            return self.inner.foresees(cost, now_ns)
        return self._closed(cost, now_ns)

    def wants(self, cost: int, now_ns: int) -> bool:
        """Whether the store has to be asked before `cost` tokens can be taken."""
        if self._has(cost, now_ns):
            return False
        # A dry run goes on although the store has said no, and need not hear it again.
        return not self.limit.dry_run or not self._closed(cost, now_ns)

    def take(self, cost: int, now_ns: int) -> None:
        """Takes from the purse; what was not in it (a cost told afterwards) the store is told."""
        inner = self.inner
        inner.ask(cost, now_ns)  # a mesh row's level drains when it is asked
        inner.take(cost, now_ns)
        limit = self.limit
        if limit.store.up:
            purse = self.purse if now_ns < self.purse_until_ns else 0
            paid = min(purse, cost)
            self.purse = purse - paid
            if cost > paid:
                limit.store.charge(self, cost - paid, now_ns)

    def granted(self, tokens: int, now_ns: int) -> None:
        """The store took so many tokens for this row."""
        self.purse = tokens + (self.purse if now_ns < self.purse_until_ns else 0)
        self.purse_until_ns = now_ns + GRANT_LIFE_NS

    def refused(self, cost: int, wait_ns: int, now_ns: int) -> None:
        """The store has no room for `cost`, and will have some after `wait_ns`."""
        if not self._closed(cost, now_ns):  # a smaller cost has room sooner: its time stands
            self.closed_cost = cost
            self.closed_until_ns = now_ns + wait_ns

    def give_back(self, cost: int, now_ns: int) -> None:
        """Nothing: tokens of a rate are never given back."""

    def fill(self, now_ns: int) -> None:
        """Takes away what is left of the burst, here and, with the next question, in the store."""
        inner: Any = self.inner
        inner.fill(now_ns)  # a smooth row has it; windows are never asked
        self.purse = 0
        self.tell_anew()

    def was_cleared(self) -> None:
        """The operator cleared the wrapped row: the store takes its level over, though it is less,
        with the next question."""
        self.forgiven = True
        self.closed_until_ns = 0
        self.tell_anew()

    def tell_anew(self) -> None:
        """The wrapped row knows of more than the store: the next question says so."""
        self.told_epoch = _NEVER_TOLD

    def learn(self, remaining: int, sent_ns: int, now_ns: int) -> bool:
        """Takes over what the upstream says is left; the store hears it with the next question."""
        if not self.inner.learn(remaining, sent_ns, now_ns):
            return False
        self.tell_anew()
        return True

    def level(self, now_ns: int) -> float:
        """The wrapped row's level in tokens, debt included; for a window what is used of it."""
        limit = self.limit
        if limit.window:
            free, full_ns = limit.inner.remaining(self.inner, now_ns)
            return max(0.0, float(limit.most - free)) if full_ns > 0 else 0.0
        inner: Any = self.inner  # a smooth row, the node's own or the mesh's, has a level
        return float(inner.level(now_ns))

    def _closed(self, cost: int, now_ns: int) -> bool:
        return now_ns < self.closed_until_ns and cost >= self.closed_cost

    def _has(self, cost: int, now_ns: int) -> bool:
        return self.purse >= cost and now_ns < self.purse_until_ns


class CentralLimit(WrappedLimit[CentralRow]):
    """A rate that the store keeps, in front of the limit that stands in for it. Satisfies `Limit`.

    `most` is the burst, or a window's quota; `factor` the share of the rate in force (the ramp
    after a throttle).
    """

    __slots__ = (
        "_prefix",
        "aligned",
        "factor",
        "most",
        "period_ns",
        "store",
        "tokens_per_ns",
        "window",
    )

    def __init__(self, inner: Limit, store: Store, prefix: bytes, keys_max: int) -> None:
        """`prefix` begins the hashed names of rows: the limit's identity, keyed by the cluster."""
        super().__init__(inner, keys_max)
        self.store = store
        self.factor = 1.0
        self._prefix = prefix
        self.configure(1, 1, 1, window=False, aligned=False)

    def configure(
        self, count: int, period_ns: int, burst: int, *, window: bool, aligned: bool
    ) -> None:
        """Changes the figures; every row keeps its count, here and in the store."""
        self.window = window
        self.aligned = aligned
        self.period_ns = period_ns
        self.tokens_per_ns = count / period_ns
        self.most = count if window else burst

    def remaining(self, entry: CentralRow, now_ns: int) -> tuple[int, int]:
        """As the wrapped limit says, which sees what the store grants to the nodes of the mesh."""
        return self.inner.remaining(entry.inner, now_ns)

    def scale(self, factor: float, now_ns: int) -> None:
        """The rate drains at that share of itself; waits that were told become so much shorter."""
        for row in self:
            if now_ns < row.closed_until_ns:
                left_ns = row.closed_until_ns - now_ns
                row.closed_until_ns = now_ns + int(left_ns * self.factor / factor)
        self.factor = factor

    def filled(self) -> None:
        """All rows of the wrapped limit lost their burst, as the store's have to."""
        for row in self:
            row.purse = 0
            row.tell_anew()

    def _new_row(self, key: bytes, now_ns: int, full: bool) -> CentralRow:
        name = hashlib.blake2b(key, key=self._prefix, digest_size=NAME_BYTES).hexdigest()
        return CentralRow(self, key, b"egressd:" + name.encode(), self.inner.entry(key, now_ns))
