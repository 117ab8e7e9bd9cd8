"""The window limit: when windows begin, what debt does, how parts are cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.limits.verdict import NEVER, ROOM
from gateway.limits.window import STEP_NS, Window, WindowRow

S = 1_000_000_000
T0 = 10**12


def take_all(row: WindowRow, now_ns: int) -> int:
    taken = 0
    while row.ask(1, now_ns) == ROOM:
        row.take(1, now_ns)
        taken += 1
    return taken


def test_the_first_use_opens_the_window() -> None:
    limit = Window("hourly", 3, 10 * S)
    row = limit.entry(b"", T0)
    later_ns = T0 + 7 * S
    assert take_all(row, later_ns) == 3
    assert row.ask(1, later_ns) == 10 * S
    assert take_all(row, later_ns + 10 * S - 1) == 0
    assert take_all(row, later_ns + 10 * S) == 3


def test_an_idle_window_does_not_run() -> None:
    row = Window("hourly", 3, 10 * S).entry(b"", T0)
    take_all(row, T0)
    assert take_all(row, T0 + 25 * S) == 3
    assert row.ask(1, T0 + 25 * S) == 10 * S


def test_clock_windows_begin_at_multiples_of_wall_time() -> None:
    wall_ns = 1_795_500_003 * S
    limit = Window("minute", 3, 60 * S, aligned=True, wall_offset_ns=wall_ns - T0)
    row = limit.entry(b"", T0)
    assert take_all(row, T0) == 3
    left_ns = 60 * S - wall_ns % (60 * S)
    assert row.ask(1, T0) == left_ns
    assert take_all(row, T0 + left_ns) == 3
    assert row.ask(1, T0 + left_ns + 5 * S) == 55 * S


@given(
    aligned=st.booleans(),
    steps=st.lists(st.integers(0, 3 * S), min_size=1, max_size=50),
    quota=st.integers(1, 20),
)
def test_a_window_gives_its_quota_and_two_in_a_row_no_more_than_two(
    aligned: bool, steps: list[int], quota: int
) -> None:
    limit = Window("w", quota, S, aligned=aligned)
    row = limit.entry(b"", T0)
    now_ns = T0
    sent = []
    for step in steps:
        now_ns += step
        sent.append((now_ns, take_all(row, now_ns)))
    for start_ns, _ in sent:
        seen = sum(n for at_ns, n in sent if start_ns <= at_ns < start_ns + S)
        assert seen <= 2 * quota


@given(
    used=st.integers(0, 60),
    cost=st.integers(1, 7),
    aligned=st.booleans(),
    later_ns=st.integers(0, 3 * S),
)
def test_the_wait_told_is_right(used: int, cost: int, aligned: bool, later_ns: int) -> None:
    row = Window("w", 7, S, aligned=aligned).entry(b"", T0)
    row.take(used, T0)
    now_ns = T0 + later_ns
    wait_ns = row.ask(cost, now_ns)
    if wait_ns != ROOM:
        assert row.ask(cost, now_ns + wait_ns) == ROOM
        assert wait_ns == 1 or row.ask(cost, now_ns + wait_ns - 1) == 1


def test_debt_is_paid_by_the_next_windows() -> None:
    row = Window("w", 10, S).entry(b"", T0)
    row.take(25, T0)
    assert row.ask(1, T0) == 2 * S
    assert take_all(row, T0 + S) == 0
    assert take_all(row, T0 + 2 * S) == 5


def test_a_cost_over_the_quota_is_never() -> None:
    row = Window("w", 10, S).entry(b"", T0)
    assert row.ask(11, T0) == NEVER


def test_the_parts_of_all_members_are_the_whole() -> None:
    limits = [Window("w", 10, S) for _ in range(4)]
    for rank, limit in enumerate(limits):
        limit.split(4, rank)
    assert [limit.quota for limit in limits] == [3, 3, 2, 2]


def test_a_part_of_nothing_waits_for_other_members() -> None:
    limit = Window("w", 1, S)
    limit.split(2, 1)
    assert limit.entry(b"", T0).ask(1, T0) == S
    limit.split(1, 0)
    assert limit.entry(b"", T0).ask(1, T0) == ROOM


def test_a_new_quota_keeps_what_is_used() -> None:
    limit = Window("w", 10, S)
    row = limit.entry(b"", T0)
    row.take(8, T0)
    limit.configure(5)
    assert row.ask(1, T0) == S
    limit.configure(20)
    assert take_all(row, T0) == 12


def test_learning_takes_a_lower_figure_only() -> None:
    row = Window("w", 10, S).entry(b"", T0)
    assert row.learn(4, T0, T0)
    assert not row.learn(6, T0, T0)
    assert take_all(row, T0) == 4


def test_a_window_learns_nothing_about_the_last_one() -> None:
    row = Window("w", 10, S).entry(b"", T0)
    row.take(1, T0)
    assert not row.learn(0, T0, T0 + S)  # its time is over, and nobody has opened the next one
    row.take(1, T0 + S)
    assert not row.learn(0, T0 + S // 2, T0 + S + S // 2)
    assert row.learn(3, T0 + S, T0 + S + S // 2)
    assert take_all(row, T0 + S + S // 2) == 3


def test_a_split_window_learns_its_part() -> None:
    limit = Window("w", 100, S)
    limit.split(4, 3)
    row = limit.entry(b"", T0)
    row.take(1, T0)
    assert row.learn(41, T0, T0)
    assert take_all(row, T0) == 10


def test_remaining() -> None:
    limit = Window("w", 10, S)
    row = limit.entry(b"", T0)
    assert limit.remaining(row, T0) == (10, 0)
    row.arrive(4, T0)
    row.take(4, T0)
    assert (row.taken, limit.arrived) == (4, 4)
    assert limit.remaining(row, T0 + S // 4) == (6, 3 * S // 4)
    row.take(20, T0)
    assert limit.remaining(row, T0)[0] == 0


def test_round_after_round_of_new_keys_wins_no_fresh_quota() -> None:
    limit = Window("w", 3, 100 * S, keys_max=2)
    taken = [take_all(limit.entry(bytes([i % 4]), T0 + i), T0 + i) for i in range(40)]
    assert sum(taken) <= 4 * 3
    assert limit.started_full > 0


@pytest.mark.parametrize("figures", [(0, S), (1, 0)])
def test_figures_below_one_are_refused(figures: tuple[int, int]) -> None:
    with pytest.raises(ValueError):
        Window("w", *figures)


def test_clearing_a_row_gives_its_quota_back() -> None:
    limit = Window("w", 10, S)
    row = limit.entry(b"", T0)
    row.take(25, T0)
    end_ns = row.end_ns
    row.clear(T0)
    assert (limit.remaining(row, T0), row.end_ns) == ((10, 0), end_ns)


def test_a_clock_that_is_set_moves_the_windows_under_way() -> None:
    """The quota stays used, and comes back when the clock, as it is now, says so."""
    limit = Window("minute", 10, 60 * S, aligned=True, wall_offset_ns=0)
    now_ns = 120 * S + 10 * S
    row = limit.entry(b"", now_ns)
    row.take(10, now_ns)
    assert row.ask(1, now_ns) == 50 * S
    limit.align(True, 45 * S, now_ns)  # it is 55 s past the minute, not 10
    assert row.ask(1, now_ns) == 5 * S
    limit.align(True, 20 * S, now_ns + S)  # and back again: 31 s past it
    assert row.ask(1, now_ns + S) == 29 * S
    assert row.ask(1, now_ns + 30 * S) == ROOM


def test_what_is_no_step_moves_nothing() -> None:
    limit = Window("minute", 10, 60 * S, aligned=True, wall_offset_ns=0)
    row = limit.entry(b"", S)
    row.take(10, S)
    limit.align(True, STEP_NS - 1, S)
    assert row.ask(1, S) == 59 * S


def test_small_drifts_add_up_to_a_step() -> None:
    limit = Window("minute", 10, 60 * S, aligned=True, wall_offset_ns=0)
    row = limit.entry(b"", S)
    row.take(10, S)
    for i in range(1, 11):
        limit.align(True, i * STEP_NS // 5, S)
    assert row.ask(1, S) == 59 * S - 2 * STEP_NS


def test_alignment_can_come_and_go() -> None:
    limit = Window("minute", 10, 60 * S)
    now_ns = 130 * S
    row = limit.entry(b"", now_ns)
    row.take(10, now_ns)
    assert row.ask(1, now_ns) == 60 * S
    limit.align(True, 0, now_ns)
    assert row.ask(1, now_ns) == 50 * S
    limit.align(False, 0, now_ns + 5 * S)
    assert row.ask(1, now_ns + 5 * S) == 45 * S
    row.take(10, now_ns + 65 * S)
    assert row.ask(1, now_ns + 65 * S) == 60 * S
