"""Where requests wait: a clock and a loop by hand, rows and exchanges that only note."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.clock import SECOND
from gateway.errors import ErrorKind, GatewayError
from gateway.proxy.admission import Blocked
from gateway.proxy.waitroom import WaitRoom
from gateway.waiting.fair_queue import Budget


class Row:
    """What blocks: `room` requests may go, others are told to come back after `wait_ns`."""

    def __init__(self, room: int = 0, wait_ns: int = SECOND, foreseen: bool = True) -> None:
        self.waiting: Any = None
        self.foreseen = foreseen
        self.room = room
        self.wait_ns = wait_ns
        self.asked = 0
        self.held = 0

    def blocked(self) -> Blocked:
        return Blocked(self, self.wait_ns, ErrorKind.LIMITED, "l", 0, self.foreseen)


class Front:
    """A row in front of another, as that of settled costs: it has no queue of its own."""

    def __init__(self, inner: Row) -> None:
        self.inner = inner

    @property
    def waiting(self) -> Any:
        return self.inner.waiting

    @waiting.setter
    def waiting(self, queue: Any) -> None:
        self.inner.waiting = queue


class LimitSet:
    """Counts who holds demand."""

    def wait_at(self, refusal: Any, cost: int) -> None:
        refusal.entry.held += cost

    def leave(self, refusal: Any) -> None:
        refusal.entry.held -= 1


class Exchange:
    """Waits at a row; `ends` notes how it went on."""

    def __init__(self, room: WaitRoom, row: Any, until_ns: int, budget: Budget, name: str) -> None:
        self.room = room
        self.row = row
        self.wait_until_ns = until_ns
        self.arrival_ns = 0
        self.asked_ns = 0
        self.waited_ns = 0
        self.name = name
        self.blocker: Any = None
        self.refusal: Any = None
        self.costs = (1,)
        self.cost_weight = 1
        self.client = SimpleNamespace(weight=1, priority=0)
        self.waits: list[int] = []  # as the upstream's histogram would have them
        counts = SimpleNamespace(wait=SimpleNamespace(observe=self.waits.append))
        self.upstream = SimpleNamespace(queue_budget=budget, limit_set=LimitSet(), counts=counts)
        self.ends: list[str] = []
        self.then: Callable[[], None] = _nothing
        self.error: GatewayError | None = None

    def fair_flow(self) -> str:
        return "client"

    def hold(self, now_ns: int) -> bool:
        self.refusal = SimpleNamespace(entry=self.row, index=0)
        return self.room.join(self, self.blocked(), now_ns)  # type: ignore[arg-type]

    def blocked(self) -> Blocked:
        row = self.row.inner if isinstance(self.row, Front) else self.row
        return Blocked(self.row, row.wait_ns, ErrorKind.LIMITED, "l", 0, row.foreseen)

    def try_again(self, now_ns: int) -> Blocked | None:
        if self.error is not None:
            raise self.error
        row = self.row.inner if isinstance(self.row, Front) else self.row
        row.asked += 1
        if not row.room:
            return self.blocked()
        row.room -= 1
        if self.refusal is not None:
            self.upstream.limit_set.leave(self.refusal)
            self.refusal = None
        return None

    def dispatch(self, now_ns: int) -> None:
        self._over("gone on")

    def wait_over(self, now_ns: int) -> None:
        self._over("time is up")

    def queue_full(self, now_ns: int) -> None:
        self._over("queue full")

    def fail(self, error: GatewayError) -> None:
        self._over(error.kind.name)

    def _over(self, how: str) -> None:
        self.ends.append(how)
        self.then()


def _nothing() -> None:
    """Most tests start no further request."""


class Handle:
    cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Harness:
    """A waitroom with the loop that it asks for timers."""

    def __init__(self, waiters_max: int = 10) -> None:
        self.now_ns = 0
        self.soon: list[Callable[[], None]] = []
        self.timers: list[tuple[int, Handle, Callable[[], None]]] = []
        loop = SimpleNamespace(call_soon=self.soon.append, call_later=self._call_later)
        worker: Any = SimpleNamespace(loop=loop, now_ns=lambda: self.now_ns)
        self.room = WaitRoom(worker)
        self.budget = Budget(waiters_max)

    def _call_later(self, delay: float, call: Callable[[], None]) -> Handle:
        handle = Handle()
        self.timers.append((self.now_ns + round(delay * SECOND), handle, call))
        return handle

    def exchange(self, row: Any, until_ns: int = 60 * SECOND, name: str = "") -> Exchange:
        exchange = Exchange(self.room, row, until_ns, self.budget, name)
        exchange.arrival_ns = exchange.asked_ns = self.now_ns
        return exchange

    def held(self, row: Any, until_ns: int = 60 * SECOND, name: str = "") -> Exchange:
        exchange = self.exchange(row, until_ns, name)
        assert exchange.hold(self.now_ns)
        return exchange

    def turn(self) -> None:
        """One turn of the loop: what was asked for soon."""
        soon, self.soon[:] = list(self.soon), []
        for call in soon:
            call()

    def pass_time(self, until_ns: int) -> None:
        """Rings every timer in order."""
        while True:
            armed = [timer for timer in self.timers if not timer[1].cancelled]
            assert len(armed) <= 1, "one timer serves all"
            self.timers = armed
            if not armed or armed[0][0] > until_ns:
                break
            self.timers = []
            self.now_ns = max(self.now_ns, armed[0][0])
            armed[0][2]()
            self.turn()
        self.now_ns = until_ns

    def at_rest(self) -> None:
        """Nobody waits and nothing of those who did is left."""
        assert self.room.waiting_count == 0
        assert self.budget.used == 0
        assert self.room.exchanges() == []
        assert self.room._when == {}


@pytest.fixture
def it() -> Harness:
    return Harness()


def test_the_head_goes_when_the_row_said_and_the_rest_waits(it: Harness) -> None:
    row = Row()
    first, second = it.held(row), it.held(row)
    assert row.held == 2
    row.room = 1
    it.pass_time(SECOND - 1)
    assert (first.ends, second.ends) == ([], [])
    it.pass_time(SECOND)
    assert (first.ends, second.ends) == (["gone on"], [])
    assert row.held == 1
    assert it.room.waiting_count == 1
    row.room = 1
    it.pass_time(2 * SECOND)
    assert second.ends == ["gone on"]
    assert row.waiting is None
    assert row.held == 0
    it.at_rest()


def test_only_the_head_is_asked(it: Harness) -> None:
    row = Row()
    for _ in range(8):
        it.held(row)
    it.pass_time(SECOND)
    assert row.asked == 1


def test_a_deadline_ends_a_wait_exactly(it: Harness) -> None:
    row = Row(wait_ns=10 * SECOND)
    exchange = it.held(row, until_ns=3 * SECOND)
    it.pass_time(3 * SECOND - 1)
    assert exchange.ends == []
    it.pass_time(3 * SECOND)
    assert exchange.ends == ["time is up"]
    assert row.held == 0
    it.at_rest()


def test_one_that_cannot_go_in_time_any_more_does_not_block_the_next(it: Harness) -> None:
    row = Row()
    hopeless, patient = it.held(row, until_ns=2 * SECOND), it.held(row)
    row.wait_ns = 5 * SECOND
    it.pass_time(SECOND)
    assert hopeless.ends == ["time is up"]
    assert patient.ends == []
    it.room.leave(patient)  # type: ignore[arg-type]
    it.at_rest()


def test_who_waits_for_what_nobody_foresees_waits_to_its_own_deadline(it: Harness) -> None:
    """A row says only when to look again: that is after the deadline, and ends nothing."""
    row = Row(foreseen=False)
    late, patient = it.held(row, until_ns=SECOND // 2), it.held(row)
    it.room.poke(row)
    it.turn()
    assert (late.ends, patient.ends) == ([], [])
    it.pass_time(SECOND // 4)
    row.room = 1
    it.room.poke(row)
    it.turn()
    assert late.ends == ["gone on"]
    next_one = it.held(row, until_ns=SECOND // 2)
    it.pass_time(SECOND // 2 - 1)
    assert next_one.ends == []
    it.pass_time(SECOND // 2)
    assert (next_one.ends, patient.ends) == (["time is up"], [])
    it.room.leave(patient)  # type: ignore[arg-type]
    it.at_rest()


def test_what_was_waited_counts_however_it_ended(it: Harness) -> None:
    row = Row(wait_ns=10 * SECOND)
    leaver, late = it.held(row), it.held(row, until_ns=3 * SECOND)
    it.pass_time(2 * SECOND)
    it.room.leave(leaver)  # type: ignore[arg-type]
    it.room.leave(leaver)  # type: ignore[arg-type]
    it.pass_time(3 * SECOND)
    assert (leaver.waited_ns, leaver.waits) == (2 * SECOND, [2 * SECOND])
    assert (late.waited_ns, late.waits) == (3 * SECOND, [3 * SECOND])


def test_a_wait_that_a_reload_cuts_in_two_counts_once(it: Harness) -> None:
    row = Row(wait_ns=10 * SECOND)
    exchange = it.held(row, until_ns=5 * SECOND)
    it.pass_time(2 * SECOND)
    it.room.leave(exchange)  # type: ignore[arg-type]
    assert exchange.hold(it.now_ns)
    it.pass_time(5 * SECOND)
    assert exchange.ends == ["time is up"]
    assert exchange.waited_ns == 5 * SECOND


def test_who_leaves_leaves_nothing_and_the_next_is_tried(it: Harness) -> None:
    row = Row()
    leaver, next_one = it.held(row), it.held(row)
    row.room = 1
    it.room.leave(leaver)  # type: ignore[arg-type]
    it.room.leave(leaver)  # type: ignore[arg-type]
    assert row.held == 1
    it.turn()
    assert (leaver.ends, next_one.ends) == ([], ["gone on"])
    it.at_rest()


def test_many_pokes_are_one_look(it: Harness) -> None:
    row, empty = Row(), Row()
    it.held(row)
    for _ in range(5):
        it.room.poke(row)
        it.room.poke(empty)
    assert len(it.soon) == 1
    it.turn()
    assert (row.asked, empty.asked) == (1, 0)


def test_another_row_may_refuse_then(it: Harness) -> None:
    first, second = Row(), Row()
    exchange = it.held(first)
    exchange.row = second
    exchange.refusal.entry = second
    first.held, second.held = 0, 0
    it.pass_time(SECOND)
    assert first.waiting is None
    assert list(second.waiting) == [exchange]
    assert (it.room.waiting_count, it.budget.used) == (1, 1)
    second.room = 1
    it.pass_time(2 * SECOND)
    assert exchange.ends == ["gone on"]
    it.at_rest()


def test_a_full_queue_refuses_and_stays_as_it_was() -> None:
    it = Harness(waiters_max=1)
    row, other = Row(), Row()
    it.held(row)
    late = it.exchange(other)
    assert not late.hold(0)
    assert other.waiting is None
    assert late.blocker is None
    assert (it.room.waiting_count, it.budget.used) == (1, 1)


def test_news_for_a_row_behind_another_finds_its_queue(it: Harness) -> None:
    """The mesh pokes the inner row, the exchange waits at the one in front of it."""
    inner = Row()
    exchange = it.exchange(Front(inner))
    exchange.refusal = None
    assert it.room.join(exchange, exchange.blocked(), 0)  # type: ignore[arg-type]
    it.room.poke(inner)
    it.turn()
    assert inner.asked == 1
    inner.room = 1
    it.room.poke(inner)
    it.turn()
    assert exchange.ends == ["gone on"]
    assert inner.waiting is None


def test_an_error_ends_one_and_the_next_goes_on(it: Harness) -> None:
    row = Row()
    broken, next_one = it.held(row), it.held(row)
    broken.error = GatewayError(ErrorKind.COST_OVER_BURST)
    row.room = 1
    it.pass_time(SECOND)
    assert broken.ends == ["COST_OVER_BURST"]
    assert next_one.ends == ["gone on"]
    assert row.held == 0
    it.at_rest()


def test_one_that_comes_back_is_listed_once_and_ends_once(it: Harness) -> None:
    """A reload, or another send: it stands in the heap of deadlines twice."""
    row = Row(wait_ns=10 * SECOND)
    exchange, other = it.held(row, until_ns=5 * SECOND), it.held(row, until_ns=4 * SECOND)
    for _ in range(3):
        it.room.leave(exchange)  # type: ignore[arg-type]
        assert exchange.hold(it.now_ns)
    assert it.room.exchanges() == [other, exchange]
    it.pass_time(9 * SECOND)
    assert exchange.ends == ["time is up"]
    assert row.held == 0
    it.at_rest()


def test_an_answer_may_start_the_next_request_at_once(it: Harness) -> None:
    """A pipelined request comes from inside the one before, and waits at the same row."""
    row = Row(wait_ns=10 * SECOND)
    exchange = it.held(row, until_ns=SECOND)
    started: list[Exchange] = []
    exchange.then = lambda: started.append(it.held(row, until_ns=2 * SECOND))
    it.pass_time(SECOND)
    assert exchange.ends == ["time is up"]
    assert it.room.waiting_count == 1
    it.pass_time(2 * SECOND)
    assert started[0].ends == ["time is up"]
    it.at_rest()
