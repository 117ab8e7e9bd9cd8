"""The climb after a throttle."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.breaker.ramp import Ramp

S = 1_000_000_000
T0 = 10**15


def test_at_rest_it_is_one() -> None:
    ramp = Ramp(100.0, 10 * S)
    assert ramp.factor(T0) == 1.0
    assert not ramp.climbing
    assert ramp.learned_per_s is None


def test_a_measured_rate_starts_at_seven_tenths_and_grows_two_percent_a_second() -> None:
    ramp = Ramp(100.0, 10 * S)
    ramp.throttled(60.0, T0)
    assert ramp.factor(T0) == 1.0
    assert ramp.learned_per_s == pytest.approx(42.0)
    ramp.closed(T0)
    assert ramp.factor(T0) == pytest.approx(0.42)
    assert ramp.factor(T0 + S) == pytest.approx(0.42 * 1.02)
    assert ramp.factor(T0 + 18 * S) == pytest.approx(0.6, rel=0.01)
    assert ramp.climbing
    assert ramp.factor(T0 + 44 * S) == 1.0
    assert ramp.climbing  # a look does not end it: the limits have not been told yet
    assert ramp.climb(T0 + 44 * S) == 1.0
    assert not ramp.climbing


def test_a_second_throttle_goes_on_from_the_rate_in_force() -> None:
    ramp = Ramp(100.0, 10 * S)
    ramp.throttled(60.0, T0)
    ramp.closed(T0)
    ramp.throttled(90.0, T0 + S)
    ramp.closed(T0 + S)
    assert ramp.factor(T0 + S) == pytest.approx(0.7 * 0.42 * 1.02)


def test_without_a_measure_it_climbs_in_a_line() -> None:
    ramp = Ramp(100.0, 10 * S)
    ramp.throttled(None, T0)
    ramp.closed(T0)
    assert 0 < ramp.factor(T0) <= 0.1
    assert ramp.factor(T0 + 5 * S) == pytest.approx(0.5)
    assert ramp.factor(T0 + 10 * S) == 1.0
    assert ramp.learned_per_s is None


def test_an_upstream_without_a_smooth_limit_learns_nothing() -> None:
    ramp = Ramp(0.0, 10 * S)
    ramp.throttled(60.0, T0)
    ramp.adopt(5.0, T0)
    ramp.closed(T0)
    assert ramp.factor(T0 + 5 * S) == pytest.approx(0.5)


def test_little_demand_is_not_mistaken_for_a_little_limit_for_ever() -> None:
    ramp = Ramp(100.0, 10 * S)
    ramp.throttled(0.01, T0)
    ramp.closed(T0)
    assert ramp.factor(T0) == pytest.approx(0.02)
    assert ramp.factor(T0 + 200 * S) == 1.0


def test_the_smaller_rate_of_all_nodes_is_used() -> None:
    ramp = Ramp(100.0, 10 * S)
    ramp.throttled(60.0, T0)
    ramp.adopt(50.0, T0)
    ramp.adopt(30.0, T0)
    ramp.closed(T0)
    assert ramp.factor(T0) == pytest.approx(0.3)


@given(st.one_of(st.floats(), st.integers(-(10**30), 10**30)))
def test_whatever_a_peer_says_the_factor_is_one(reff: float) -> None:
    ramp = Ramp(100.0, 10 * S)
    ramp.adopt(reff, T0)
    ramp.closed(T0)
    for seconds in (0, 1, 100, 10**9):
        assert 0.0 < ramp.factor(T0 + seconds * S) <= 1.0


def test_a_line_of_no_length() -> None:
    ramp = Ramp(100.0, 0)
    ramp.closed(T0)
    assert ramp.factor(T0) == 1.0


def test_a_new_full_rate_keeps_the_learned_rate() -> None:
    ramp = Ramp(100.0, 10 * S)
    ramp.throttled(60.0, T0)
    ramp.closed(T0)
    ramp.configure(200.0, 10 * S)
    assert ramp.factor(T0) == pytest.approx(0.21)
    assert ramp.learned_per_s == pytest.approx(42.0)
    ramp.configure(30.0, 10 * S)  # now the operator's own rate is below what was learned
    assert ramp.factor(T0) == 1.0
