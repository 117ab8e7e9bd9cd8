"""Down at once, up after some good answers, and slower to trust what comes and goes."""

from __future__ import annotations

from gateway.limits.store_health import (
    GOOD_MIN,
    HOLD_MAX_NS,
    HOLD_MIN_NS,
    PROBE_NS,
    RETRY_MAX_NS,
    RETRY_MIN_NS,
    STEADY_NS,
    Health,
)


def until_up(health: Health, now_ns: int) -> int:
    """When it is up, with a good answer every PROBE_NS from `now_ns` on."""
    while not health.answered(now_ns):
        now_ns += PROBE_NS
    return now_ns


def test_the_first_answer_of_all_is_enough() -> None:
    health = Health(0)
    assert not health.up
    assert health.answered(1) and health.up


def test_one_failure_is_enough() -> None:
    health = Health(0)
    health.answered(0)
    assert health.failed(5) and not health.up
    assert not health.failed(6), "it was down already"


def test_it_comes_back_after_good_answers_in_a_row_and_some_time() -> None:
    health = Health(0)
    health.answered(0)
    health.failed(STEADY_NS)
    back_ns = until_up(health, STEADY_NS)
    assert HOLD_MIN_NS <= back_ns - STEADY_NS < HOLD_MIN_NS + PROBE_NS


def test_a_failure_begins_the_count_anew() -> None:
    health = Health(0)
    health.answered(0)
    health.failed(STEADY_NS)
    late_ns = STEADY_NS + 10 * HOLD_MIN_NS
    for _ in range(GOOD_MIN - 1):
        assert not health.answered(late_ns)
    health.failed(late_ns)
    assert [health.answered(late_ns) for _ in range(GOOD_MIN)] == [False] * (GOOD_MIN - 1) + [True]


def test_one_that_comes_and_goes_is_trusted_later_each_time() -> None:
    health = Health(0)
    health.answered(0)
    now_ns = STEADY_NS
    waits = []
    for _ in range(9):
        health.failed(now_ns)
        back_ns = until_up(health, now_ns)
        waits.append(back_ns - now_ns)
        now_ns = back_ns + 1
    assert waits == sorted(waits)
    assert waits[0] < 2 * HOLD_MIN_NS and HOLD_MAX_NS <= waits[-1] < HOLD_MAX_NS + 2 * PROBE_NS
    now_ns += STEADY_NS
    health.failed(now_ns)
    assert until_up(health, now_ns) - now_ns < 2 * HOLD_MIN_NS, "that is forgiven in time"


def test_tries_come_further_apart_and_never_at_once() -> None:
    health = Health(0)
    waits = [health.retry_ns(0.999) for _ in range(10)]
    assert waits == sorted(waits)
    assert waits[0] <= RETRY_MIN_NS and 0.99 * RETRY_MAX_NS < waits[-1] <= RETRY_MAX_NS
    assert health.retry_ns(0.0) == RETRY_MAX_NS // 2
    health.answered(0)
    assert health.retry_ns(0.0) == RETRY_MIN_NS // 2
