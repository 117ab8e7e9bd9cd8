"""The pool of connections, with a dialler that the test answers for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.clock import SECOND, monotonic_ns
from gateway.errors import ErrorKind, GatewayError, Phase
from gateway.h1.codec import HeadLimits
from gateway.proxy.pool import UpstreamPool


class Connection:
    """What the pool sees of an UpstreamProtocol."""

    def __init__(self, pool: UpstreamPool, *, idle_ns_max: int) -> None:
        self.pool = pool
        self.idle_ns_max = idle_ns_max
        self.fresh = True
        self.lost_already = False
        self.deadline_ns = 0
        self.ended = ""
        self.transport = SimpleNamespace(is_closing=lambda: bool(self.ended))
        self.news = False

    def something_came(self) -> bool:
        return self.news

    def close(self) -> None:
        self.ended = self.ended or "closed"

    def abort(self) -> None:
        self.ended = "aborted"


class Exchange:
    """Notes what the pool gives it."""

    def __init__(self, *, wants_fresh: bool = False, must_arrive: bool = False) -> None:
        self.wants_fresh = wants_fresh
        self.must_arrive = lambda: must_arrive
        self.got: list[Any] = []

    def connected(self, connection: Connection) -> None:
        self.got.append(connection)

    def upstream_failed(self, error: GatewayError) -> None:
        self.got.append(error.kind)


class Harness:
    """A pool whose dials end when the test says so, in order."""

    def __init__(self, *, idle_ns_max: int = 50 * SECOND) -> None:
        self.pending: list[asyncio.Future[str]] = []

        async def dial(make: Callable[[], Any]) -> Any:
            ends: asyncio.Future[str] = asyncio.get_running_loop().create_future()
            self.pending.append(ends)
            how = await ends
            if how == "refused":
                raise GatewayError(ErrorKind.CONNECTION_REFUSED, phase=Phase.CONNECT)
            if how == "broken":
                raise ValueError("a fault of ours")
            connection = make()
            connection.lost_already = how == "lost"
            return connection

        self.pool: Any = UpstreamPool(
            dial,  # type: ignore[arg-type]
            lambda pool: Connection(pool, idle_ns_max=idle_ns_max),  # type: ignore[arg-type,return-value]
            idle_timeout_ns=50 * SECOND,
            head_limits=HeadLimits(),
        )

    def take(self, **facts: bool) -> Exchange:
        exchange = Exchange(**facts)
        self.pool.take(exchange)
        return exchange

    async def dialled(self, how: str = "ok", which: int = 0) -> None:
        """A dial ends, the oldest or another."""
        while len(self.pending) <= which:
            await asyncio.sleep(0)
        self.pending.pop(which).set_result(how)
        before = self.pool.dialling_count
        while self.pool.dialling_count == before:
            await asyncio.sleep(0)


def run(test: Callable[[Harness], Awaitable[None]], **facts: int) -> None:
    async def inside() -> None:
        await test(Harness(**facts))

    asyncio.run(inside())


def test_a_dial_serves_who_waits_first_and_idle_ones_are_reused() -> None:
    async def test(it: Harness) -> None:
        first, second = it.take(), it.take()
        await it.dialled()
        assert len(first.got) == 1
        assert second.got == []
        connection = first.got[0]
        connection.fresh = False
        it.pool.give(connection)  # faster than the second dial
        assert second.got == [connection]
        await it.dialled()
        assert (it.pool.open_count, it.pool.idle_count) == (2, 1)
        third = it.take()
        assert third.got[0] is not connection
        assert it.pool.reuses == 1
        assert it.pool.dials == 2

    run(test)


def test_the_last_that_idled_is_taken_first_and_has_a_deadline() -> None:
    async def test(it: Harness) -> None:
        exchanges = [it.take(), it.take()]
        await it.dialled()
        await it.dialled()
        one, two = (exchange.got[0] for exchange in exchanges)
        begun_ns = monotonic_ns()
        it.pool.give(one)
        it.pool.give(two)
        assert two.deadline_ns >= begun_ns + 50 * SECOND
        assert it.take().got == [two]
        assert two.deadline_ns == 0
        assert it.take().got == [one]

    run(test)


def test_what_must_arrive_is_not_given_a_connection_with_news() -> None:
    async def test(it: Harness) -> None:
        exchanges = [it.take() for _ in range(3)]
        for _ in exchanges:
            await it.dialled()
        one, two, three = (exchange.got[0] for exchange in exchanges)
        for connection in (one, two, three):
            it.pool.give(connection)
        two.news = three.news = True
        assert it.take(must_arrive=True).got == [one]
        waiting = it.take(must_arrive=True)
        assert waiting.got == []
        assert it.pool.dialling_count == 1
        assert it.take().got == [three]  # the others' order is as it was
        assert it.take().got == [two]
        await it.dialled()
        assert len(waiting.got) == 1

    run(test)


def test_what_has_idled_counts_as_stale_although_it_never_answered() -> None:
    async def test(it: Harness) -> None:
        leaver = it.take()
        it.pool.leave(leaver)
        await it.dialled()
        assert leaver.got == []
        assert it.pool.idle_count == 1
        assert not it.take().got[0].fresh

    run(test)


def test_a_dying_connection_is_not_given() -> None:
    async def test(it: Harness) -> None:
        first = it.take()
        await it.dialled()
        it.pool.give(first.got[0])
        first.got[0].close()
        second = it.take()
        assert second.got == []
        await it.dialled()
        assert second.got[0] is not first.got[0]

    run(test)


def test_who_wants_a_fresh_one_gets_no_other() -> None:
    async def test(it: Harness) -> None:
        first = it.take()
        await it.dialled()
        used = first.got[0]
        used.fresh = False
        again = it.take(wants_fresh=True)
        it.pool.give(used)
        assert again.got == []
        assert it.pool.idle_count == 1
        await it.dialled()
        assert again.got[0].fresh

    run(test)


@pytest.mark.parametrize(
    ("how", "kind"),
    [("refused", ErrorKind.CONNECTION_REFUSED), ("lost", ErrorKind.UPSTREAM_CLOSED)],
)
def test_a_dial_that_fails_is_told_to_one(how: str, kind: ErrorKind) -> None:
    async def test(it: Harness) -> None:
        first, second = it.take(), it.take()
        await it.dialled(how)
        assert first.got == [kind]
        assert second.got == []
        await it.dialled()
        assert isinstance(second.got[0], Connection)
        it.pool.leave(first)  # it has left already: no fault

    run(test)


def test_a_failure_is_told_to_the_one_whose_dial_it_was() -> None:
    async def test(it: Harness) -> None:
        used = it.take()
        await it.dialled()
        used.got[0].fresh = False
        picky, plain = it.take(wants_fresh=True), it.take()
        it.pool.give(used.got[0])
        assert plain.got == used.got
        await it.dialled("refused", which=1)  # that was for `plain`, which no longer needs it
        assert picky.got == []
        await it.dialled()
        assert picky.got[0].fresh
        assert it.pool.dialling_count == 0

    run(test)


def test_whoever_is_served_by_anothers_dial_leaves_its_own_to_that_one() -> None:
    async def test(it: Harness) -> None:
        first, second, third = it.take(), it.take(), it.take()
        await it.dialled(which=1)  # the second's, which serves the first
        assert (len(first.got), second.got, third.got) == (1, [], [])
        await it.dialled("refused")  # the first's until then, now the second's
        assert (second.got, third.got) == ([ErrorKind.CONNECTION_REFUSED], [])
        await it.dialled()
        assert len(third.got) == 1

    run(test)


def test_a_fault_of_ours_strands_nobody() -> None:
    async def test(it: Harness) -> None:
        unhandled: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, what: unhandled.append(what))
        exchange = it.take()
        await it.dialled("broken")
        assert exchange.got == [ErrorKind.INTERNAL]

    run(test)


def test_a_closed_pool_keeps_nothing() -> None:
    async def test(it: Harness) -> None:
        busy, idle = it.take(), it.take()
        await it.dialled()
        await it.dialled()
        it.pool.give(idle.got[0])
        late = it.take(wants_fresh=True)
        it.pool.close()
        assert idle.got[0].ended == "closed"
        await it.dialled()
        assert isinstance(late.got[0], Connection)  # it was promised one
        assert it.pool.idle_count == 0
        it.pool.give(busy.got[0])
        assert it.pool.idle_count == 0
        assert busy.got[0].ended == "closed"

    run(test)


def test_what_may_not_idle_is_closed() -> None:
    async def test(it: Harness) -> None:
        leaver = it.take()
        it.pool.leave(leaver)
        await it.dialled()
        assert it.pool.idle_count == 0
        (connection,) = it.pool._all
        assert connection.ended == "closed"

    run(test, idle_ns_max=0)


def test_a_lost_connection_is_forgotten() -> None:
    async def test(it: Harness) -> None:
        exchange = it.take()
        await it.dialled()
        it.pool.give(exchange.got[0])
        it.pool.forget(exchange.got[0])
        it.pool.forget(exchange.got[0])
        assert (it.pool.open_count, it.pool.idle_count) == (0, 0)

    run(test)


def test_an_abort_ends_dials_and_connections() -> None:
    async def test(it: Harness) -> None:
        exchange = it.take()
        await it.dialled()
        waiting = it.take()
        await asyncio.sleep(0)
        await it.pool.abort()
        it.pool.leave(waiting)
        assert exchange.got[0].ended == "aborted"
        assert it.pool.dialling_count == 0
        assert waiting.got == []

    run(test)
