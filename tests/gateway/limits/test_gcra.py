"""The smooth limit: its bound, its waits, debt, changes of rate, learned figures."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.limits.gcra import Gcra, GcraRow
from gateway.limits.verdict import NEVER, ROOM

S = 1_000_000_000
T0 = 5 * 10**15  # two months of uptime: the arithmetic must not depend on starting near 0


def made(count: int = 10, burst: int = 5, **more: int) -> tuple[Gcra, GcraRow]:
    limit = Gcra("account", count, S, burst, now_ns=T0, **more)
    return limit, limit.entry(b"", T0)


def take_all(row: GcraRow, now_ns: int) -> int:
    taken = 0
    while row.ask(1, now_ns) == ROOM:
        row.take(1, now_ns)
        taken += 1
    return taken


@given(
    steps=st.lists(st.integers(0, 2 * S), min_size=1, max_size=60),
    count=st.integers(1, 1000),
    burst=st.integers(1, 50),
)
def test_no_window_sees_more_than_rate_and_burst(steps: list[int], count: int, burst: int) -> None:
    limit = Gcra("account", count, S, burst, now_ns=T0)
    row = limit.entry(b"", T0)
    now_ns = T0
    sent: list[tuple[int, int]] = []
    for step in steps:
        now_ns += step
        sent.append((now_ns, take_all(row, now_ns)))
    for i, (start_ns, _) in enumerate(sent):
        total = 0
        for at_ns, taken in sent[i:]:
            total += taken
            assert total <= count * (at_ns - start_ns) / S + burst + 1e-4


@given(cost=st.integers(1, 7), level=st.integers(0, 30), count=st.integers(1, 10**6))
def test_the_wait_told_is_enough_and_not_too_long(cost: int, level: int, count: int) -> None:
    limit = Gcra("account", count, S, 7, now_ns=T0)
    row = limit.entry(b"", T0)
    row.take(level, T0)
    wait_ns = row.ask(cost, T0)
    if wait_ns == ROOM:
        assert level + cost <= 7
        return
    assert wait_ns >= 1
    assert row.ask(cost, T0 + wait_ns) == ROOM
    early_ns = T0 + wait_ns - 2 - wait_ns // 1000
    assert early_ns < T0 or row.ask(cost, early_ns) != ROOM


def test_asking_changes_nothing() -> None:
    _, row = made()
    row.take(5, T0)
    mark = row.mark
    for i in range(10):
        row.ask(3, T0 + i)
    assert (row.mark, row.taken) == (mark, 5)


def test_a_cost_over_the_burst_is_never() -> None:
    _, row = made(burst=5)
    assert row.ask(6, T0) == NEVER
    assert row.ask(5, T0) == ROOM


def test_debt_adds_up_and_is_paid_at_the_rate() -> None:
    _, row = made(count=10, burst=5)
    row.take(5, T0)
    row.take(5, T0)
    row.take(5, T0)
    assert row.level(T0) == pytest.approx(15)
    assert row.ask(1, T0) == pytest.approx(1.1 * S, rel=1e-6)


def test_a_new_rate_keeps_the_level() -> None:
    limit, row = made(count=10, burst=10)
    row.take(10, T0)
    limit.configure(600, 60 * S, 10, T0 + S // 2)  # the same rate, written otherwise
    assert row.level(T0 + S // 2) == pytest.approx(5)
    limit.configure(100, S, 20, T0 + S // 2)
    assert row.level(T0 + S // 2) == pytest.approx(5)
    assert row.level(T0 + S // 2 + S // 100) == pytest.approx(4)
    assert take_all(row, T0 + S // 2) == 15


def test_scaling_slows_the_drain_and_keeps_the_burst() -> None:
    limit, row = made(count=100, burst=10)
    limit.scale(0.5, T0)
    assert take_all(row, T0) == 10
    assert take_all(row, T0 + S) == 10  # the burst bounds it
    assert row.ask(1, T0 + S) == pytest.approx(S / 50, rel=1e-3)
    limit.scale(1.0, T0 + S)
    assert row.ask(1, T0 + S) == pytest.approx(S / 100, rel=1e-3)


@pytest.mark.parametrize("factor", [0.0, -1.0, 1.5, float("nan")])
def test_a_factor_out_of_range_is_refused(factor: float) -> None:
    limit, _ = made()
    with pytest.raises(ValueError):
        limit.scale(factor, T0)


def test_the_parts_of_all_members_are_the_whole() -> None:
    limits = [Gcra("account", 100, S, 10, now_ns=T0) for _ in range(3)]
    for rank, limit in enumerate(limits):
        limit.split(3, rank, T0)
    assert sum(limit.burst for limit in limits) == 10
    assert sum(limit.tokens_per_ns for limit in limits) * S == pytest.approx(100)


def test_a_burst_smaller_than_the_members_leaves_each_one() -> None:
    limit = Gcra("account", 100, S, 2, now_ns=T0)
    limit.split(8, 7, T0)
    assert limit.burst == 1


def test_filling_takes_the_burst_of_every_row() -> None:
    limit, row = made(count=10, burst=5)
    other = limit.entry(b"other", T0)
    limit.fill(T0)
    assert [r.ask(1, T0) for r in (row, other)] == [pytest.approx(S / 10, rel=1e-3)] * 2
    assert limit.entry(b"later", T0).ask(1, T0) > 0
    assert take_all(row, T0 + S) == 5


def test_filling_one_row_leaves_the_others() -> None:
    limit, row = made()
    row.fill(T0)
    assert row.ask(1, T0) > 0
    assert limit.entry(b"other", T0).ask(1, T0) == ROOM


def test_learning_takes_a_lower_figure_only() -> None:
    _, row = made(count=10, burst=5)
    assert not row.learn(7, T0, T0)
    assert row.learn(2, T0, T0)
    assert not row.learn(3, T0, T0)
    assert take_all(row, T0) == 2


def test_what_is_learned_is_as_of_when_the_request_was_sent() -> None:
    """Half a second ago 1 of 5 was left; 2 tokens a second have come free since: 2 are left."""
    limit, row = made(count=2, burst=5)
    row.take(1, T0)
    assert row.learn(1, T0, T0 + S // 2)
    assert limit.remaining(row, T0 + S // 2)[0] == 2
    assert not row.learn(0, T0, T0 + 3 * S)  # all of it has drained


def test_what_is_in_flight_is_not_counted_twice() -> None:
    """Three were sent; the first one's answer knows of itself only, and says what we know."""
    limit, row = made(count=1, burst=10)
    for _ in range(3):
        row.take(1, T0)
    assert not row.learn(9, T0, T0)
    assert not row.learn(7, T0, T0)
    assert limit.remaining(row, T0)[0] == 7


def test_a_split_limit_learns_its_part() -> None:
    limit, row = made(count=100, burst=100)
    limit.split(4, 0, T0)
    assert row.learn(41, T0, T0)
    assert limit.remaining(row, T0)[0] == 11  # 41 = 11 + 10 + 10 + 10


def test_remaining() -> None:
    limit, row = made(count=10, burst=5)
    assert limit.remaining(row, T0) == (5, 0)
    row.take(3, T0)
    free, full_ns = limit.remaining(row, T0)
    assert (free, full_ns) == (2, pytest.approx(0.3 * S, rel=1e-6))
    row.take(9, T0)
    assert limit.remaining(row, T0)[0] == 0


def test_round_after_round_of_new_keys_wins_no_fresh_bursts() -> None:
    limit = Gcra("key", 1, S, 5, keys_max=10, now_ns=T0)
    taken = 0
    for i in range(1000):
        now_ns = T0 + i * S // 100
        row = limit.entry(str(i % 20).encode(), now_ns)
        taken += take_all(row, now_ns)
    # 20 keys over 10 s: 20 bursts and 10 tokens each are what an endless table would allow.
    assert taken <= 20 * 5 + 20 * 10
    assert limit.evicted_young > 0
    assert limit.started_full > 0


def test_old_rows_go_without_a_trace() -> None:
    limit = Gcra("key", 1000, S, 5, keys_max=2, now_ns=T0)
    for i in range(10):
        now_ns = T0 + i * S
        assert take_all(limit.entry(str(i).encode(), now_ns), now_ns) == 5
    assert (limit.evicted, limit.evicted_young, limit.started_full) == (8, 0, 0)


def test_a_long_run_keeps_the_rate() -> None:
    chance = random.Random(7)
    _, row = made(count=1000, burst=10)
    now_ns = T0
    taken = 0
    while now_ns < T0 + 20 * S:
        now_ns += chance.randrange(1, 2_000_000)
        taken += take_all(row, now_ns)
    assert taken == pytest.approx(20_000, rel=0.001)


@pytest.mark.parametrize("figures", [(0, S, 1), (1, 0, 1), (1, S, 0)])
def test_figures_below_one_are_refused(figures: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError):
        Gcra("account", *figures)


def test_demand_is_counted() -> None:
    limit, row = made()
    row.arrive(2, T0)
    row.hold(3)
    row.hold(-3)
    row.give_back(1, T0)
    assert (limit.arrived, row.held, row.level(T0)) == (2, 0, 0.0)


def test_clearing_a_row_forgives_it_and_no_other() -> None:
    limit, row = made(10, 5)
    other = limit.entry(b"other", T0)
    row.take(9, T0)
    other.take(3, T0)
    row.clear(T0)
    assert (row.level(T0), other.level(T0)) == (0.0, 3.0)
    limit.fill(T0)
    row.clear(T0)
    assert row.level(T0) == 5.0  # a pause's end binds all rows
    limit.forgive()
    assert row.level(T0) == 0.0
