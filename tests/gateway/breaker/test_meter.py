"""Counts over a moving window."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.breaker.meter import Meter

S = 1_000_000_000
T0 = 10**15


@given(
    events=st.lists(st.tuples(st.integers(0, 3 * S), st.booleans()), max_size=100),
)
def test_sums_are_of_the_last_nine_or_ten_tenths(events: list[tuple[int, bool]]) -> None:
    meter = Meter(10 * S, T0)
    now_ns = T0
    seen: list[tuple[int, bool]] = []
    for step, good in events:
        now_ns += step
        seen.append((now_ns, good))
        (meter.count_ok if good else meter.count_bad)(now_ns)
        for kind, total in ((True, meter.ok), (False, meter.bad)):
            inside = sum(good is kind and at > now_ns - 9 * S for at, good in seen)
            around = sum(good is kind and at > now_ns - 10 * S for at, good in seen)
            assert inside <= total <= around


def test_a_rate_is_over_the_time_that_was_seen() -> None:
    meter = Meter(10 * S, T0)
    for i in range(100):
        meter.count_ok(T0 + i * S // 50)
    assert meter.ok_per_s(T0 + 2 * S) == pytest.approx(50, rel=0.01)
    for i in range(100, 2000):
        meter.count_ok(T0 + i * S // 50)
    assert meter.ok_per_s(T0 + 40 * S) == pytest.approx(50, rel=0.12)


def test_too_little_is_no_rate() -> None:
    meter = Meter(10 * S, T0)
    assert meter.ok_per_s(T0 + S) is None
    meter.clear(T0)
    meter.count_ok(T0)
    assert meter.ok_per_s(T0 + S // 10) is None
    assert meter.ok_per_s(T0 + S) == pytest.approx(1)


def test_time_before_the_traffic_is_not_divided_by() -> None:
    meter = Meter(10 * S, T0)
    begun_ns = T0 + 30 * S
    for i in range(130):
        meter.count_ok(begun_ns + i * S // 100)
    assert meter.ok_per_s(begun_ns + 13 * S // 10) == pytest.approx(100, rel=0.01)


def test_a_health_check_does_not_begin_the_traffic() -> None:
    meter = Meter(10 * S, T0)
    for second in (0, 3, 6):
        meter.count_ok(T0 + second * S)
    begun_ns = T0 + 8 * S
    for i in range(130):
        meter.count_ok(begun_ns + i * S // 100)
    assert meter.ok_per_s(begun_ns + 13 * S // 10) == pytest.approx(100, rel=0.01)


def test_one_success_in_three_seconds_is_that_and_not_one_a_second() -> None:
    meter = Meter(10 * S, T0)
    for i in range(10):
        meter.count_ok(T0 + 3 * i * S)
    assert meter.ok_per_s(T0 + 28 * S) == pytest.approx(1 / 3, rel=0.3)


def test_a_burst_in_less_than_a_second_is_a_second_s_worth() -> None:
    meter = Meter(10 * S, T0)
    for i in range(100):
        meter.count_ok(T0 + 30 * S + i * S // 1000)
    assert meter.ok_per_s(T0 + 30 * S + 3 * S // 10) == pytest.approx(100)


def test_after_a_long_silence_nothing_is_left() -> None:
    meter = Meter(10 * S, T0)
    meter.count_ok(T0)
    meter.count_bad(T0)
    meter.count_ok(T0 + 10**6 * S)
    assert (meter.ok, meter.bad) == (1, 0)
