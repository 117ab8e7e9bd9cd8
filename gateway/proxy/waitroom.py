"""Where held requests stand: each at the row or breaker that refused it, none polls.

A row's queue is tried at its head only: when the bucket will have drained, when a peer's entry
comes, when a slot is given back or a breaker closes. One timer serves all queues and all deadlines
of a worker; it is exact (the wheel's 200 ms would waste a fifth of a 1 s wait).
"""

from __future__ import annotations

import asyncio
import heapq
from typing import TYPE_CHECKING, Any

from gateway.clock import SECOND
from gateway.errors import GatewayError
from gateway.proxy import turns
from gateway.waiting.fair_queue import FairQueue

if TYPE_CHECKING:
    from gateway.proxy.admission import Blocked
    from gateway.proxy.exchange import Exchange
    from gateway.proxy.graph import Worker

__all__ = ["WaitRoom"]


class WaitRoom:
    """All waiting exchanges of a worker. A blocker is an Entry or a Breaker: it has `waiting`."""

    __slots__ = (
        "_deadlines",
        "_handle",
        "_poked",
        "_sequence",
        "_timer_ns",
        "_wakes",
        "_when",
        "_worker",
        "waiting_count",
    )

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._wakes: list[tuple[int, int, Any]] = []
        self._when: dict[Any, int] = {}  # the wake in force for each blocker
        self._deadlines: list[tuple[int, int, Exchange]] = []
        self._sequence = 0
        self._handle: asyncio.TimerHandle | None = None
        self._timer_ns = 0
        self._poked: dict[Any, None] = {}
        self.waiting_count = 0

    def join(self, exchange: Exchange, blocked: Blocked, now_ns: int) -> bool:
        """Puts the exchange into the blocker's queue; False where the upstream's budget is full.

        It keeps its arrival, so one that moves here from another row takes its place by age.
        """
        blocker = blocked.blocker
        queue: FairQueue[Exchange] | None = blocker.waiting
        if queue is None:
            queue = blocker.waiting = FairQueue(exchange.upstream.queue_budget)
        client = exchange.client
        if not queue.push(
            exchange,
            exchange.fair_flow(),
            client.weight,
            client.priority,
            exchange.cost_weight,
            exchange.arrival_ns,
        ):
            if not queue:
                blocker.waiting = None
            return False
        self.waiting_count += 1
        if exchange.blocker is None:
            self._sequence += 1
            heapq.heappush(self._deadlines, (exchange.wait_until_ns, self._sequence, exchange))
        exchange.blocker = blocker
        turns.started_waiting(exchange)
        self._wake_at(blocker, now_ns + blocked.wait_ns)
        self._arm(now_ns)
        return True

    def leave(self, exchange: Exchange) -> None:
        """The exchange no longer waits (its client left, its time is up)."""
        blocker = exchange.blocker
        if blocker is not None:
            exchange.blocker = None
            blocker.waiting.remove(exchange)
            self._left(blocker)
            turns.stopped_waiting(exchange, self._worker.now_ns())
            if blocker.waiting is not None:
                self.poke(blocker)  # the next in line may fit where this one did not

    def poke(self, blocker: Any) -> None:
        """Something changed for this blocker: its head is tried before the loop goes idle."""
        if blocker.waiting is not None:
            if not self._poked:
                self._worker.loop.call_soon(self._serve_poked)
            self._poked[blocker] = None

    def exchanges(self) -> list[Exchange]:
        """All that wait, each once, oldest deadline first.

        One that left and came back (a reload, a retry) has its deadline in the heap twice.
        """
        held = [entry[2] for entry in sorted(self._deadlines) if entry[2].blocker is not None]
        return list(dict.fromkeys(held))

    def blockers(self) -> list[Any]:
        """The rows and breakers that somebody waits at."""
        return [blocker for blocker in self._when if blocker.waiting is not None]

    def run(self, now_ns: int) -> None:
        """Serves every wake and deadline that is due (split from the timer for the tests)."""
        wakes = self._wakes
        while wakes and wakes[0][0] <= now_ns:
            when, _, blocker = heapq.heappop(wakes)
            if self._when.get(blocker) == when:
                del self._when[blocker]
                self._serve(blocker, now_ns)
        deadlines = self._deadlines
        while deadlines and (deadlines[0][2].blocker is None or deadlines[0][0] <= now_ns):
            exchange = heapq.heappop(deadlines)[2]
            if exchange.blocker is not None:
                self.leave(exchange)
                exchange.wait_over(now_ns)
        self._arm(now_ns)

    # Inside.

    def _left(self, blocker: Any) -> None:
        self.waiting_count -= 1
        if not blocker.waiting:
            blocker.waiting = None
            self._when.pop(blocker, None)

    def _serve(self, blocker: Any, now_ns: int) -> None:
        while blocker.waiting is not None:
            exchange: Exchange = blocker.waiting.head()
            try:
                blocked = exchange.try_again(now_ns)
            except GatewayError as error:
                # It fitted when it came; since then a burst shrank below its cost.
                self.leave(exchange)
                exchange.fail(error)
                continue
            if blocked is None:
                blocker.waiting.pop()
                self._left(blocker)
                exchange.blocker = None
                exchange.dispatch(now_ns)
            elif blocked.blocker is None:
                # It has asked the central store, and so may those behind it: none waits for the
                # answer to another, as they would for a round trip each after a pause.
                blocker.waiting.pop()
                self._left(blocker)
                exchange.blocker = None
            elif blocked.foreseen and now_ns + blocked.wait_ns >= exchange.wait_until_ns:
                self.leave(exchange)
                exchange.wait_over(now_ns)
            elif blocked.blocker.waiting is blocker.waiting:
                # The queue and not the row is compared: a row in front of another shares its queue,
                # and news may name either.
                self._wake_at(blocked.blocker, now_ns + blocked.wait_ns)
                return
            else:
                blocker.waiting.remove(exchange)
                self._left(blocker)
                if not self.join(exchange, blocked, now_ns):
                    exchange.blocker = None
                    turns.stopped_waiting(exchange, now_ns)
                    exchange.queue_full(now_ns)

    def _serve_poked(self) -> None:
        poked = list(self._poked)
        self._poked.clear()
        now_ns = self._worker.now_ns()
        for blocker in poked:
            self._serve(blocker, now_ns)
        self._arm(now_ns)

    def _wake_at(self, blocker: Any, when_ns: int) -> None:
        known = self._when.get(blocker)
        if known is None or when_ns < known:
            self._when[blocker] = when_ns
            self._sequence += 1
            heapq.heappush(self._wakes, (when_ns, self._sequence, blocker))

    def _arm(self, now_ns: int) -> None:
        next_ns = min(
            self._wakes[0][0] if self._wakes else 0x7FFF_FFFF_FFFF_FFFF,
            self._deadlines[0][0] if self._deadlines else 0x7FFF_FFFF_FFFF_FFFF,
        )
        if self._handle is not None:
            if self._timer_ns == next_ns:
                return
            self._handle.cancel()
            self._handle = None
        if self._wakes or self._deadlines:
            self._timer_ns = next_ns
            delay = max(0, next_ns - now_ns) / SECOND
            self._handle = self._worker.loop.call_later(delay, self._ring)

    def _ring(self) -> None:
        self._handle = None
        self.run(self._worker.now_ns())
