"""The open-loop load: its schedule without a clock, its counting with answers made up."""

import asyncio
import itertools
from collections.abc import Iterator

import pytest

from gateway.clock import MS, SECOND
from gateway.demo import load as module
from gateway.demo.client import Answer, ClientError
from gateway.demo.load import Load, TargetCounts, main, schedule


def test_the_rate_and_the_shares_are_exact() -> None:
    plan = list(itertools.islice(schedule(100, [70, 20, 10], seed=7), 1000))
    targets = [target for _, target in plan]
    for start in range(0, 1000, 100):
        part = targets[start : start + 100]
        assert [part.count(target) for target in range(3)] == [70, 20, 10]
    for number, (offset_ns, _) in enumerate(plan):
        assert number * 10 * MS <= offset_ns < (number + 1) * 10 * MS


def test_the_times_are_jittered_and_reproducible() -> None:
    first = list(itertools.islice(schedule(100, [1], seed=1), 50))
    assert first == list(itertools.islice(schedule(100, [1], seed=1), 50))
    assert first != list(itertools.islice(schedule(100, [1], seed=2), 50))
    gaps = {later - earlier for (earlier, _), (later, _) in itertools.pairwise(first)}
    assert len(gaps) > 40


def test_the_load_can_rise_to_its_rate() -> None:
    plan = [offset_ns for offset_ns, _ in itertools.islice(schedule(100, [1], 3, 2.0), 400)]
    assert plan == sorted(plan)
    # Half a second's worth less than all at once: 25 in the first second, 75 in the second one.
    counts = [sum(at * SECOND <= due < (at + 1) * SECOND for due in plan) for at in range(4)]
    assert counts[0] in (25, 26)
    assert counts[1] in (74, 75)
    assert counts[2] in (99, 100, 101)
    assert counts[3] in (99, 100, 101)


@pytest.mark.parametrize("ramp_s", [-1.0, float("nan"), float("inf"), 1e9])
def test_a_rise_that_makes_no_sense_is_refused(ramp_s: float) -> None:
    with pytest.raises(ValueError, match="ramp"):
        next(schedule(100, [1], 1, ramp_s))


def test_a_share_of_nothing_gets_nothing() -> None:
    assert {target for _, target in itertools.islice(schedule(10, [0, 1], seed=1), 100)} == {1}


@pytest.mark.parametrize(
    ("rate", "shares"), [(0, [1]), (10_001, [1]), (1, []), (1, [0, 0]), (1, [2, -1])]
)
def test_a_plan_that_makes_no_sense_is_refused(rate: int, shares: list[int]) -> None:
    with pytest.raises(ValueError, match=r"is 1 to|shares"):
        next(schedule(rate, shares, seed=1))


def test_answers_are_told_apart() -> None:
    counts = TargetCounts()
    counts.answered(Answer(200, False, b""), 3 * MS)
    counts.answered(Answer(200, False, b""), 5 * MS)
    counts.answered(Answer(429, True, b""), MS)  # the gateway's own
    counts.answered(Answer(429, False, b""), MS)  # the origin's, passed on
    counts.answered(Answer(503, True, b""), MS)
    counts.answered(Answer(404, False, b""), MS)
    report = counts.report()
    assert [report[name] for name in ("ok", "refused", "throttled", "other")] == [2, 2, 1, 1]
    assert (report["p50_ms"], report["p99_ms"]) == (3.0, 3.0)
    assert TargetCounts().report()["p50_ms"] is None


class FakeClient:
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.fails = False
        self.seen = 0
        self.closed = False

    async def request(self, method: bytes, target: bytes) -> Answer:
        self.seen += 1
        await self.gate.wait()
        if self.fails:
            raise ClientError("no answer")
        return Answer(200, False, b"")

    def close(self) -> None:
        self.closed = True


def plan(*items: tuple[int, int]) -> Iterator[tuple[int, int]]:
    return iter(items)


def test_it_sends_on_although_nothing_is_answered() -> None:
    async def scenario() -> None:
        clients = [FakeClient(), FakeClient()]
        load = Load(clients, b"/")  # type: ignore[arg-type]
        await load.run(plan((0, 0), (0, 1), (0, 0)))
        await asyncio.sleep(0)
        assert [client.seen for client in clients] == [2, 1]
        assert load.report()["outstanding"] == 3
        clients[0].fails = True
        for client in clients:
            client.gate.set()
        await load.settle()
        assert [counts.ok for counts in load.counts] == [0, 1]
        assert [counts.errors for counts in load.counts] == [2, 0]
        assert load.report()["outstanding"] == 0

    asyncio.run(scenario())


def test_what_is_on_its_way_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OUTSTANDING_MAX", 5)

    async def scenario() -> None:
        client = FakeClient()
        load = Load([client], b"/")  # type: ignore[list-item]
        await load.run(plan(*[(0, 0)] * 8))
        assert (load.counts[0].sent, load.counts[0].skipped) == (5, 3)
        await load.stop()
        assert client.closed
        assert load.report()["outstanding"] == 0

    asyncio.run(scenario())


def test_it_waits_for_each_time_and_says_how_late_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    now_ns = 50 * SECOND
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        nonlocal now_ns
        slept.append(seconds)
        now_ns += round(seconds * SECOND) + 2 * MS  # a timer that is always late

    monkeypatch.setattr(module, "monotonic_ns", lambda: now_ns)
    monkeypatch.setattr("gateway.demo.load.asyncio.sleep", sleep)

    async def scenario() -> Load:
        client = FakeClient()
        load = Load([client], b"/")  # type: ignore[list-item]
        await load.run(plan((10 * MS, 0), (11 * MS, 0), (30 * MS, 0)))
        await load.stop()
        return load

    load = asyncio.run(scenario())
    # The second is due before the first has left, so it goes at once; nothing is made up for.
    assert slept == [0.010, 0.018]
    assert load.late_ns_max == 2 * MS
    assert load.counts[0].sent == 3


@pytest.mark.parametrize(
    "argv", [["127.0.0.1:1", "--shares=1,2"], ["127.0.0.1:x", "--shares=1"], ["h:1"] * 65]
)
def test_a_command_line_that_makes_no_sense_is_refused(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    assert "error" in capsys.readouterr().err
