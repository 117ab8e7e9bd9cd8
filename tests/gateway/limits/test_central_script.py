"""The script on a real Redis: what it grants, for how long it has one wait, what it forgets."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fakes.redis_server import RedisServer, redis_missing

from gateway.limits.central import CentralLimit, CentralRow
from gateway.limits.central_script import SCRIPT, SCRIPT_SHA, arguments, read_reply
from gateway.limits.gcra import Gcra
from gateway.limits.window import Window

pytestmark = pytest.mark.skipif(bool(redis_missing()), reason=redis_missing())

SECOND = 1_000_000_000
MS = 1_000_000


class Up:
    """A store that is there; what limits charge is sent by the test."""

    up = True
    epoch = 1

    def charge(self, row: CentralRow, cost: int, now_ns: int) -> None:
        """The tests charge by hand."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        assert server.run("SCRIPT", "LOAD", SCRIPT) == SCRIPT_SHA
        yield server


@pytest.fixture(autouse=True)
def _empty(server: RedisServer) -> None:
    server.run("FLUSHALL")


def smooth(count: int, period_ns: int, burst: int, name: str = "l") -> CentralLimit:
    inner = Gcra(name, count, period_ns, burst)
    limit = CentralLimit(inner, Up(), name.encode(), 100)
    limit.configure(count, period_ns, burst, window=False, aligned=False)
    return limit


def window(count: int, period_ns: int, *, aligned: bool = False) -> CentralLimit:
    limit = CentralLimit(Window("w", count, period_ns), Up(), b"w", 100)
    limit.configure(count, period_ns, 1, window=True, aligned=aligned)
    return limit


Ask = Callable[..., tuple[int, list[int]]]


@pytest.fixture
def ask(server: RedisServer) -> Ask:
    def run(*wanted: tuple[CentralRow, int], many: int = 1, now_ns: int = 0) -> Any:
        rows, costs = zip(*wanted, strict=True)
        reply = server.run("EVALSHA", SCRIPT_SHA, *arguments(rows, costs, many, now_ns))
        found = read_reply(reply, len(rows))
        assert found is not None, reply
        return found

    return run


def test_a_burst_and_then_a_wait(ask: Ask) -> None:
    row = smooth(1, SECOND, 3).entry(b"", 0)
    assert [ask((row, 1))[0] for _ in range(3)] == [1, 1, 1]
    granted, (wait_ns,) = ask((row, 1))
    assert granted == 0
    # A token comes each second, less what this test took.
    assert 0.5 * SECOND < wait_ns <= SECOND


def test_several_at_once_as_far_as_there_is_room(ask: Ask) -> None:
    row = smooth(1, SECOND, 10).entry(b"", 0)
    assert ask((row, 3), many=64)[0] == 3
    assert ask((row, 1), many=64)[0] == 1
    assert ask((row, 1), many=64)[0] == 0


def test_the_wait_is_long_enough_and_not_longer(ask: Ask) -> None:
    row = smooth(20, SECOND, 1).entry(b"", 0)
    assert ask((row, 1))[0] == 1
    _, (wait_ns,) = ask((row, 1))
    assert wait_ns <= 50 * MS
    time.sleep(wait_ns / SECOND)
    assert ask((row, 1))[0] == 1


def test_all_or_none(ask: Ask, server: RedisServer) -> None:
    wide, narrow = smooth(1, SECOND, 5, "a").entry(b"", 0), smooth(1, SECOND, 1, "b").entry(b"", 0)
    assert ask((wide, 1), (narrow, 1))[0] == 1
    for _ in range(10):
        granted, waits = ask((wide, 1), (narrow, 1))
        assert granted == 0 and waits[0] == 0 and waits[1] > 0
    assert ask((wide, 1), many=64)[0] == 4
    assert len(server.keys()) == 2


def test_a_dry_run_blocks_nobody_and_takes_nothing_without_room(ask: Ask) -> None:
    dry_limit = smooth(1, SECOND, 1, "dry")
    dry_limit.dry_run = True
    dry, wide = dry_limit.entry(b"", 0), smooth(1, SECOND, 5, "a").entry(b"", 0)
    assert ask((wide, 1), (dry, 1)) == (1, [0, 0])
    granted, waits = ask((wide, 1), (dry, 1))
    assert granted == 1 and 0 < waits[1] <= SECOND
    assert ask((wide, 1), (dry, 1))[1][1] <= waits[1], "it went on as if it had refused"


def test_a_charge_is_debt(ask: Ask) -> None:
    row = smooth(1, SECOND, 2).entry(b"", 0)
    ask((row, 5), many=0)
    granted, (wait_ns,) = ask((row, 1))
    assert granted == 0 and 3.5 * SECOND < wait_ns <= 4 * SECOND


def test_a_window_gives_its_quota_and_tells_its_end(ask: Ask) -> None:
    row = window(3, 60 * SECOND).entry(b"", 0)
    assert [ask((row, 1))[0] for _ in range(4)] == [1, 1, 1, 0]
    _, (wait_ns,) = ask((row, 1))
    assert 55 * SECOND < wait_ns <= 60 * SECOND


def test_a_window_comes_back_whole(ask: Ask) -> None:
    row = window(3, SECOND // 5).entry(b"", 0)
    assert ask((row, 1), many=9)[0] == 3
    _, (wait_ns,) = ask((row, 1))
    time.sleep(wait_ns / SECOND)
    assert ask((row, 1), many=9)[0] == 3


def test_debt_is_paid_by_the_next_windows(ask: Ask) -> None:
    row = window(2, 10 * SECOND).entry(b"", 0)
    ask((row, 5), many=0)
    _, (wait_ns,) = ask((row, 1))
    assert 15 * SECOND < wait_ns <= 20 * SECOND


def test_an_aligned_window_ends_by_the_servers_wall_clock(ask: Ask, server: RedisServer) -> None:
    row = window(1, 3600 * SECOND, aligned=True).entry(b"", 0)
    seconds, _ = server.run("TIME")
    ask((row, 1))
    _, (wait_ns,) = ask((row, 1))
    to_the_hour = (3600 - int(seconds) % 3600) * SECOND
    assert to_the_hour - 5 * SECOND < wait_ns <= to_the_hour


def test_rows_expire_when_they_remember_nothing(ask: Ask, server: RedisServer) -> None:
    quick, slow = smooth(10, SECOND, 10, "q").entry(b"", 0), smooth(1, SECOND, 9, "s").entry(b"", 0)
    ask((quick, 1))
    ask((slow, 9))
    assert 1000 <= server.run("PTTL", quick.name) <= 1100
    assert 9000 <= server.run("PTTL", slow.name) <= 10_000
    of_window = window(5, 4 * SECOND).entry(b"", 0)
    ask((of_window, 1))
    assert 4000 <= server.run("PTTL", of_window.name) <= 5000


def test_a_refusal_makes_no_row(ask: Ask, server: RedisServer) -> None:
    row = smooth(1, SECOND, 2).entry(b"", 0)
    assert ask((row, 3))[0] == 0
    assert server.keys() == []


def test_what_the_nodes_know_stands_in_for_a_lost_memory(ask: Ask, server: RedisServer) -> None:
    limit = smooth(1, SECOND, 10)
    row = limit.entry(b"", 0)
    row.inner.take(9, 0)
    assert ask((row, 1), many=64)[0] == 1, "the store was told of nine"
    server.run("FLUSHALL")
    assert ask((row, 1), many=64)[0] == 1


def test_what_the_nodes_know_is_told_once_and_the_greater_counts(ask: Ask) -> None:
    limit = smooth(1, SECOND, 10)
    row = limit.entry(b"", 0)
    assert ask((row, 1), many=4)[0] == 4
    row.inner.take(8, 0)
    assert ask((row, 1), many=64)[0] == 6, "told already, and not again"
    row.tell_anew()
    row.inner.take(2, 0)
    assert ask((row, 1), many=64)[0] == 0


def test_the_operator_forgives(ask: Ask) -> None:
    limit = smooth(1, SECOND, 10)
    row = limit.entry(b"", 0)
    assert ask((row, 1), many=64)[0] == 10
    row.was_cleared()
    assert ask((row, 1), many=64)[0] == 10


@pytest.mark.parametrize("value", [b"", b"garbage", b"nan 1", b"1 -5", b"1e300 5", b"5 99999999"])
def test_a_row_that_somebody_wrote_over(value: bytes, ask: Ask, server: RedisServer) -> None:
    for row in (smooth(10, SECOND, 5).entry(b"", 0), window(5, SECOND).entry(b"", 0)):
        server.run("SET", row.name, value)
        granted, waits = ask((row, 1))
        assert granted in (0, 1)
        assert (granted == 1) == (waits[0] == 0)


@pytest.mark.parametrize(
    "reply",
    [None, 1, b"x", [], [1], [1, 0, 0], [b"1", 0], [-1, 0], [1, -1], [65, 0], [1, 1 << 60],
     [True, 0], [1.0, 0], [[1], 0]],
)  # fmt: skip
def test_replies_that_are_none_of_the_scripts(reply: Any) -> None:
    assert read_reply(reply, 1) is None
