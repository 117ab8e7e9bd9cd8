"""A second driver, of thirty lines, over trio's virtual clock: the core needs no asyncio."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any

import trio
import trio.testing

from peers.core.config import MS, SECOND, Config
from peers.core.events import Address, BreakerOpened, Event, MemberLeft, RowChanged
from peers.core.node import Node
from peers.core.rows import ROOM

ADDRESSES = [("127.0.0.1", 7000 + number) for number in range(3)]
DELAY_S = 0.001


def now_ns() -> int:
    return int(trio.current_time() * SECOND)


class TrioDriver:
    """One node; datagrams go through memory channels and take a millisecond."""

    def __init__(self, number: int, network: dict[Address, Any], nursery: trio.Nursery) -> None:
        address = ADDRESSES[number]
        config = Config(
            name=f"t-{number}",
            cluster="c",
            bind=address,
            advertise=address,
            join=tuple(ADDRESSES),
        )
        self.node = Node(config, random.Random(number), now_ns(), 1 + number)
        self.events: list[Event] = []
        self.scope = trio.CancelScope()
        self._network = network
        self._nursery = nursery
        self._inbox_in, self._inbox = trio.open_memory_channel[tuple[bytes, Address]](1000)
        network[address] = self._inbox_in

    async def run(self) -> None:
        with self.scope:
            while True:
                self.flush()
                wait_s = max(0, self.node.next_wake_ns() - now_ns()) / SECOND
                with trio.move_on_after(wait_s):
                    data, source = await self._inbox.receive()
                    self.node.receive_datagram(data, source, now_ns())
                    continue
                self.node.tick(now_ns())
        self._network.pop(self.node.config.advertise)

    def flush(self) -> None:
        for data, address in self.node.datagrams_to_send(now_ns()):
            self._nursery.start_soon(self._carry, data, address)
        self.events += self.node.events_received()

    async def _carry(self, data: bytes, address: Address) -> None:
        await trio.sleep(DELAY_S)
        inbox = self._network.get(address)
        if inbox is not None:
            await inbox.send((data, self.node.config.advertise))


def simulate(scenario: Callable[[list[TrioDriver]], Awaitable[None]]) -> None:
    async def main() -> None:
        # Virtual time begins late, so that "long ago" is not negative.
        await trio.sleep(1000)
        async with trio.open_nursery() as nursery:
            network: dict[Address, Any] = {}
            drivers = [TrioDriver(number, network, nursery) for number in range(3)]
            for driver in drivers:
                nursery.start_soon(driver.run)
            await trio.sleep(3)
            assert [driver.node.live_count() for driver in drivers] == [3, 3, 3]
            await scenario(drivers)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_shared_counter() -> None:
    async def scenario(drivers: list[TrioDriver]) -> None:
        rows = [
            driver.node.limit(
                "x", name="x", rate_count=100, rate_period_ns=SECOND, burst=100
            ).entry(b"", now_ns())
            for driver in drivers
        ]
        rows[2].waiting = object()
        admitted = 0
        start_ns = now_ns()
        while now_ns() - start_ns < 5 * SECOND:
            for driver, row in zip(drivers, rows, strict=True):
                row.arrive(1, now_ns())
                if row.ask(1, now_ns()) == ROOM:
                    row.take(1, now_ns())
                    admitted += 1
                driver.flush()
            await trio.sleep(0.01)
        assert 0.97 * 600 <= admitted <= 600 + 3
        assert RowChanged(rows[2]) in drivers[2].events

    simulate(scenario)


def test_an_exact_limit() -> None:
    """As the asyncio driver's in test_driver: never over, used, and waiting rows are told."""

    async def scenario(drivers: list[TrioDriver]) -> None:
        await trio.sleep(1.1)  # after a change of membership new keys start full
        rows = [
            driver.node.exact_limit(
                "x", name="x", rate_count=100, rate_period_ns=SECOND, burst=100, now_ns=now_ns()
            ).entry(b"", now_ns())
            for driver in drivers
        ]
        for row in rows:
            row.waiting = object()
        admitted = 0
        start_ns = now_ns()
        while now_ns() - start_ns < 5 * SECOND:
            for driver, row in zip(drivers, rows, strict=True):
                row.arrive(1, now_ns())
                if row.ask(1, now_ns()) == ROOM:
                    row.take(1, now_ns())
                    admitted += 1
                driver.flush()
            await trio.sleep(0.01)
        assert 0.97 * 600 <= admitted <= 600
        assert sum(RowChanged(r) in d.events for r, d in zip(rows, drivers, strict=True)) >= 2
        assert sum(row.ledger is not None for row in rows) == 1

    simulate(scenario)


def test_a_pause_and_a_death() -> None:
    async def scenario(drivers: list[TrioDriver]) -> None:
        start_ns = now_ns()
        drivers[0].node.open_breaker(b"s", 1, start_ns + SECOND, 429, start_ns)
        drivers[0].flush()
        await trio.sleep(2 * DELAY_S)
        for driver in drivers[1:]:
            (opened,) = [event for event in driver.events if isinstance(event, BreakerOpened)]
            assert 0 <= opened.until_ns - start_ns - SECOND <= 2 * MS
        drivers[2].scope.cancel()
        await trio.sleep(3)
        for driver in drivers[:2]:
            (left,) = [event for event in driver.events if isinstance(event, MemberLeft)]
            assert left == MemberLeft("t-2", ADDRESSES[2], True)

    simulate(scenario)
