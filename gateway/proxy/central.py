"""A request's question to the central store, for all its limits that are kept there.

The question is asked when nothing else holds the request up; then it is held, without a queue,
until the answer calls. The store has taken from all its rows or from none, and what it took lies in
the rows' purses: the request is asked about everything once more, and takes it. Where the store had
no room it waits in the row's fair queue, whose head alone asks again at the time that the store
told; for a queue of requests that are alike it asks for all of them at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gateway.limits.central import CentralRow
from gateway.limits.central_script import MANY_MAX

if TYPE_CHECKING:
    from gateway.limits.verdict import Entry
    from gateway.proxy.admission import Admittee

__all__ = ["Question", "drop", "question"]


class Question:
    """What the store is asked for: `many` times `costs`. `exchange` is None once it is gone."""

    __slots__ = ("_worker", "costs", "exchange", "many", "rows")

    def __init__(
        self, exchange: Admittee, rows: Sequence[CentralRow], costs: Sequence[int], many: int
    ) -> None:
        self.exchange: Admittee | None = exchange
        self._worker = exchange.worker
        self.rows = rows
        self.costs = costs
        self.many = many

    def answered(self, granted: int, waits_ns: Sequence[int], now_ns: int) -> None:
        """The store took `granted` times the costs, or says how long to wait at each row."""
        for i, row in enumerate(self.rows):
            wait_ns = waits_ns[i]
            if wait_ns:
                row.refused(self.costs[i], wait_ns, now_ns)
            elif granted:
                row.granted(self.costs[i] * granted, now_ns)
        self._go_on(now_ns)

    def failed(self, now_ns: int) -> None:
        """The store is gone; the limits behind decide."""
        self._go_on(now_ns)

    def _go_on(self, now_ns: int) -> None:
        exchange = self.exchange
        if exchange is None:
            # Its client left, but what it was granted may serve the next in line.
            for row in self.rows:
                self._worker.waitroom.poke(row)
            return
        self.exchange = None
        exchange.question = None
        blocker = exchange.blocker
        if blocker is not None:
            self._worker.waitroom.poke(blocker)
        else:
            exchange.asked_centrally(now_ns)


def question(exchange: Admittee, entries: Sequence[Entry], now_ns: int) -> Question | None:
    """The question that is on its way, if need be a new one; None: the limits can decide now."""
    if exchange.question is not None:
        return exchange.question
    upstream = exchange.upstream
    rows: list[CentralRow] = []
    costs: list[int] = []
    for position, settled in upstream.central:
        entry: Any = entries[position]
        cost = exchange.costs[position]
        if settled:
            cost -= entry.credit
            entry = entry.inner
        row: CentralRow = entry
        if not row.limit.store.up:
            return None
        if cost > 0 and row.wants(cost, now_ns):
            rows.append(row)
            costs.append(cost)
    if not rows:
        return None
    refusal = exchange.refusal
    in_line = refusal is not None and refusal.in_line
    if not upstream.limit_set.is_clear(entries, exchange.costs, now_ns, in_line):
        return None
    asked = Question(exchange, rows, costs, _how_many(exchange, rows[0]))
    if not exchange.worker.store.ask(asked, now_ns):
        return None
    exchange.question = asked
    return asked


def drop(exchange: Admittee) -> None:
    """The exchange no longer waits for an answer."""
    asked = exchange.question
    if asked is not None:
        asked.exchange = None
        exchange.question = None


def _how_many(exchange: Admittee, row: CentralRow) -> int:
    """For how many of those behind it the head of a queue asks, itself among them.

    They share the row, and there is no other that they might not share.
    """
    blocker = exchange.blocker
    if blocker is None or row.waiting is None or blocker.waiting is not row.waiting:
        return 1
    if len(exchange.upstream.central) > 1 and exchange.upstream.fixed_keys is None:
        return 1
    return min(len(row.waiting), MANY_MAX)
