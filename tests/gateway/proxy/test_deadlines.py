"""The wheel, turned by hand."""

from __future__ import annotations

import asyncio

import pytest

from gateway.clock import MS, SECOND
from gateway.proxy import deadlines
from gateway.proxy.deadlines import SPOKES, Wheel


class Connection:
    """Notes what the wheel tells it."""

    def __init__(self, deadline_ns: int = 0, *, watching: bool = False) -> None:
        self.deadline_ns = deadline_ns
        self.watching = watching
        self.told: list[tuple[str, int]] = []

    def expired(self, now_ns: int) -> None:
        self.told.append(("expired", now_ns))

    def turned(self, now_ns: int) -> None:
        self.told.append(("turned", now_ns))


@pytest.fixture
def wheel():
    loop = asyncio.new_event_loop()
    yield Wheel(loop)
    loop.close()


def turn(wheel: Wheel, now_ns: int) -> None:
    for _ in range(SPOKES):
        wheel.turn(now_ns)


def test_a_deadline_is_met_once_within_one_turn(wheel) -> None:
    connections = [Connection(100) for _ in range(10)]
    for connection in connections:
        wheel.add(connection)
    turn(wheel, 99)
    assert all(connection.told == [] for connection in connections)
    for _ in range(3):
        turn(wheel, 100)
    assert all(connection.told == [("expired", 100)] for connection in connections)
    assert all(connection.deadline_ns == 0 for connection in connections)


def test_0_is_no_deadline(wheel) -> None:
    connection = Connection()
    wheel.add(connection)
    turn(wheel, 10**18)
    assert connection.told == []


def test_who_watches_is_asked_every_turn_until_it_expires(wheel) -> None:
    connection = Connection(150, watching=True)
    wheel.add(connection)
    turn(wheel, 50)
    turn(wheel, 100)
    turn(wheel, 150)
    assert connection.told == [("turned", 50), ("turned", 100), ("expired", 150)]


def test_spokes_are_filled_evenly_and_left(wheel) -> None:
    connections = [Connection(1) for _ in range(9)]
    spokes = [wheel.add(connection) for connection in connections]
    assert len(wheel) == 9
    assert max(map(len, spokes)) == 3
    for connection, spoke in zip(connections, spokes, strict=True):
        spoke.discard(connection)
    assert len(wheel) == 0
    turn(wheel, 10)
    assert all(connection.told == [] for connection in connections)


def test_one_that_another_put_off_is_left_alone(wheel) -> None:
    """The upstream's end answers the client, and gives that one a new deadline."""
    others: list[Connection] = []

    class PutsOff(Connection):
        def expired(self, now_ns: int) -> None:
            super().expired(now_ns)
            for other in others:
                other.deadline_ns = 500

    pair = [PutsOff(100), PutsOff(100)]
    others += pair
    for connection in (pair[0], *[Connection() for _ in range(SPOKES - 1)], pair[1]):
        wheel.add(connection)
    turn(wheel, 100)
    # The second is neither expired any more nor taken for one that watches.
    assert sorted(connection.told for connection in pair) == [[], [("expired", 100)]]
    assert [connection.deadline_ns for connection in pair] == [500, 500]


def test_one_may_leave_or_come_while_the_wheel_looks(wheel) -> None:
    new = Connection(1)

    class Leaves(Connection):
        def expired(self, now_ns: int) -> None:
            super().expired(now_ns)
            spoke.discard(self)
            wheel.add(new)

    leaver = Leaves(1)
    spoke = wheel.add(leaver)
    turn(wheel, 1)
    turn(wheel, 1)
    assert leaver.told == [("expired", 1)]
    assert new.told == [("expired", 1)]


def test_it_turns_by_itself_until_it_is_stopped(monkeypatch) -> None:
    monkeypatch.setattr(deadlines, "STEP_NS", MS)

    async def run() -> None:
        wheel = Wheel(asyncio.get_running_loop())
        connection = Connection(1)
        wheel.add(connection)
        wheel.start()
        async with asyncio.timeout(10):
            while not connection.told:
                await asyncio.sleep(0)
        wheel.stop()
        wheel.stop()
        connection.deadline_ns = 1
        assert wheel._handle is None

    asyncio.run(run())


def test_a_turn_is_as_long_as_the_module_says() -> None:
    assert SPOKES * deadlines.STEP_NS == SECOND // 5
