"""One breaker: the table, pauses, trips, trials, and what peers say."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.breaker.breaker import Breaker
from gateway.breaker.outcome import Outcome
from gateway.breaker.states import (
    GO,
    TRANSITIONS,
    TRIAL,
    Action,
    BreakerPolicy,
    BreakerState,
    Cause,
    Change,
    Input,
)

MS = 1_000_000
S = 1_000 * MS
T0 = 10**15
POLICY = BreakerPolicy()
CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN


def made(policy: BreakerPolicy = POLICY) -> Breaker:
    return Breaker(policy, T0, b"scope")


def paused(pause_ns: int | None = 10 * S) -> Breaker:
    breaker = made()
    assert breaker.throttled(0, pause_ns, T0, 0.0) is not None
    return breaker


def on_trial() -> tuple[Breaker, int, int]:
    """(breaker, the trial's epoch, now)"""
    breaker = paused()
    now_ns = T0 + 10 * S
    assert breaker.ask(now_ns) == TRIAL
    return breaker, breaker.begin_trial(now_ns, S), now_ns


def test_the_table_is_complete_and_every_state_can_be_left() -> None:
    assert set(TRANSITIONS) == set(itertools.product(BreakerState, Input))
    for state in BreakerState:
        assert {after for (before, _), (after, _) in TRANSITIONS.items() if before is state} != {
            state
        }


def test_only_these_inputs_let_requests_through_again() -> None:
    closing = {key for key, (after, _) in TRANSITIONS.items() if after is CLOSED}
    assert {key for key in closing if key[0] is not CLOSED} == {
        (HALF_OPEN, Input.TRIAL_OK),
        (HALF_OPEN, Input.PEER_CLOSED),
        (OPEN, Input.PEER_CLOSED),
        (HALF_OPEN, Input.RESUME),
        (OPEN, Input.RESUME),
    }


def test_an_epoch_ends_exactly_at_a_close_and_a_reopening() -> None:
    ending = {
        key for key, (_, does) in TRANSITIONS.items() if does in (Action.CLOSE, Action.REOPEN)
    }
    assert ending == {
        (HALF_OPEN, Input.TRIAL_OK),
        (HALF_OPEN, Input.TRIAL_FAILED),
        (HALF_OPEN, Input.TRIAL_THROTTLED),
        (HALF_OPEN, Input.RESUME),
        (OPEN, Input.RESUME),
    }


def test_closed_lets_go() -> None:
    assert made().ask(T0) == GO


def test_a_pause_has_the_length_that_was_told() -> None:
    breaker = made()
    change = breaker.throttled(0, 10 * S, T0, 0.0)
    assert change == Change(b"scope", 0, OPEN, Cause.THROTTLE, T0 + 10 * S)
    assert breaker.ask(T0) == 10 * S
    assert breaker.ask(T0 + 10 * S - 1) == 1
    assert breaker.ask(T0 + 10 * S) == TRIAL


@given(pause_ns=st.integers(0, 2 * 3600 * S), chance=st.floats(0, 1, exclude_max=True))
def test_jitter_is_never_earlier_and_at_most_a_tenth_or_a_second(
    pause_ns: int, chance: float
) -> None:
    breaker = made()
    breaker.throttled(0, pause_ns, T0, chance)
    told_ns = min(pause_ns, POLICY.pause_max_ns)
    assert 0 <= breaker.until_ns - T0 - told_ns <= min(told_ns // 10, S)


def test_a_pause_of_nothing_still_asks_for_one_trial() -> None:
    assert paused(0).ask(T0) == TRIAL


def test_a_pause_is_never_shortened() -> None:
    breaker = paused(10 * S)
    assert breaker.throttled(0, 2 * S, T0, 0.0) is None
    assert breaker.throttled(0, None, T0 + 9 * S, 0.0) is None
    assert breaker.until_ns == T0 + 10 * S


def test_a_longer_pause_counts_and_small_growth_is_not_told() -> None:
    breaker = paused(10 * S)
    change = breaker.throttled(0, 10 * S, T0 + S, 0.0)
    assert change is not None
    assert change.until_ns == breaker.until_ns == T0 + 11 * S
    assert breaker.throttled(0, 10 * S, T0 + S + 4 * MS, 0.0) is None
    assert breaker.until_ns == T0 + 11 * S + 4 * MS
    change = breaker.throttled(0, 10 * S, T0 + S + 10 * MS, 0.0)
    assert change is not None
    assert change.until_ns == T0 + 11 * S + 10 * MS


def test_without_a_time_each_failed_trial_doubles_up_to_the_maximum() -> None:
    breaker = made()
    breaker.throttled(0, None, T0, 0.0)
    now_ns = T0
    lengths = []
    for _ in range(60):
        lengths.append((breaker.until_ns - now_ns) // S)
        now_ns = breaker.until_ns
        epoch = breaker.begin_trial(now_ns, S)
        assert breaker.end_trial(epoch, Outcome.THROTTLE, now_ns) is not None
    assert lengths[:7] == [5, 10, 20, 40, 80, 160, 300]
    assert set(lengths[7:]) == {300}
    epoch = breaker.begin_trial(breaker.until_ns, S)
    breaker.end_trial(epoch, Outcome.SUCCESS, breaker.until_ns)
    breaker.throttled(breaker.epoch, None, T0, 0.0)
    assert breaker.until_ns == T0 + 5 * S


def test_a_throttle_from_before_the_last_close_is_old_news() -> None:
    breaker, epoch, now_ns = on_trial()
    breaker.end_trial(epoch, Outcome.SUCCESS, now_ns)
    assert breaker.throttled(epoch, 60 * S, now_ns, 0.0) is None
    assert breaker.failed(epoch, now_ns) is None
    breaker.succeeded(epoch, now_ns)
    assert (breaker.state, breaker.meter.bad, breaker.meter.ok) == (CLOSED, 0, 0)
    assert breaker.throttled(epoch + 1, 60 * S, now_ns, 0.0) is not None


def test_one_trial_at_a_time() -> None:
    breaker, _, now_ns = on_trial()
    assert breaker.state is HALF_OPEN
    assert breaker.ask(now_ns) == S
    assert breaker.ask(now_ns + S) == TRIAL  # no head so far: one more may go
    breaker.begin_trial(now_ns + S, S)
    assert breaker.ask(now_ns + S) == S


def test_a_good_trial_closes() -> None:
    breaker, epoch, now_ns = on_trial()
    assert breaker.end_trial(epoch, Outcome.SUCCESS, now_ns) == Change(
        b"scope", epoch + 1, CLOSED, Cause.THROTTLE, 0
    )
    assert breaker.ask(now_ns) == GO
    assert breaker.closed_ns == now_ns


def test_a_failed_trial_opens_for_longer() -> None:
    breaker, epoch, now_ns = on_trial()
    change = breaker.end_trial(epoch, Outcome.FAILURE, now_ns)
    assert change == Change(b"scope", epoch + 1, OPEN, Cause.FAILURE, now_ns + 10 * S)
    assert breaker.opened_ns == T0  # still the same episode


def test_a_throttled_trial_is_a_pause_of_the_told_length() -> None:
    breaker, epoch, now_ns = on_trial()
    change = breaker.end_trial(epoch, Outcome.THROTTLE, now_ns, 30 * S, 0.0)
    assert change == Change(b"scope", epoch + 1, OPEN, Cause.THROTTLE, now_ns + 30 * S)


def test_an_abandoned_trial_gives_its_slot_back() -> None:
    breaker, epoch, now_ns = on_trial()
    breaker.abandon_trial(epoch, now_ns + 5)
    assert (breaker.state, breaker.epoch) == (OPEN, epoch)
    assert breaker.ask(now_ns + 5) == TRIAL


def test_late_results_of_trials_change_nothing() -> None:
    breaker, epoch, now_ns = on_trial()
    second = breaker.begin_trial(now_ns + S, S)
    breaker.end_trial(second, Outcome.SUCCESS, now_ns + S)
    for outcome in Outcome:
        assert breaker.end_trial(epoch, outcome, now_ns + 2 * S, 60 * S) is None
    breaker.abandon_trial(epoch, now_ns)
    assert breaker.state is CLOSED


def test_a_throttle_of_another_request_ends_the_trial() -> None:
    breaker, epoch, now_ns = on_trial()
    assert breaker.throttled(epoch, 20 * S, now_ns, 0.0) is not None
    assert breaker.state is OPEN
    assert breaker.end_trial(epoch, Outcome.SUCCESS, now_ns) is None
    assert breaker.end_trial(epoch, Outcome.THROTTLE, now_ns, 40 * S) is not None
    assert breaker.ask(now_ns) == 40 * S


def test_failures_trip_at_the_ratio_and_not_below_the_minimum() -> None:
    breaker = made()
    for _ in range(19):
        assert breaker.failed(0, T0) is None
    change = breaker.failed(0, T0)
    assert change == Change(b"scope", 0, OPEN, Cause.FAILURE, T0 + 5 * S)
    assert breaker.failed(0, T0) is None


def test_successes_keep_it_closed() -> None:
    breaker = made()
    for i in range(1000):
        breaker.succeeded(0, T0 + i)
        if i % 3:
            breaker.succeeded(0, T0 + i)
        assert breaker.failed(0, T0 + i) is None


def test_failures_that_left_the_window_count_no_more() -> None:
    breaker = made()
    for i in range(100):
        assert breaker.failed(0, T0 + i * S) is None  # at most 11 in any 10 s


def test_throttles_are_no_failures() -> None:
    breaker = made()
    for i in range(100):
        breaker.throttled(breaker.epoch, S, T0 + i, 0.0)
    assert breaker.meter.bad == 0
    assert breaker.cause is Cause.THROTTLE


def test_a_claim_of_another_node_takes_the_trial() -> None:
    breaker = paused()
    now_ns = T0 + 10 * S
    breaker.claimed(breaker.epoch + 1, now_ns + 60 * S)
    assert breaker.ask(now_ns) == TRIAL
    breaker.claimed(breaker.epoch, now_ns + 60 * S)
    assert breaker.ask(now_ns) == 60 * S
    assert breaker.ask(now_ns + 60 * S) == TRIAL


def test_a_claim_without_end_is_cut() -> None:
    breaker = paused()
    breaker.claimed(breaker.epoch, 10**30)
    assert breaker.ask(breaker.until_ns) <= POLICY.pause_max_ns


def test_the_mesh_gives_this_node_its_turn() -> None:
    breaker = paused()
    breaker.trial_at_ns += 50 * MS
    assert breaker.ask(T0 + 10 * S) == 50 * MS


def test_a_peers_pause_is_ours() -> None:
    breaker = made()
    change = breaker.merge(0, OPEN, Cause.THROTTLE, T0 + 3 * S, T0)
    assert change == Change(b"scope", 0, OPEN, Cause.THROTTLE, T0 + 3 * S)
    assert breaker.ask(T0) == 3 * S
    assert breaker.opened_ns == T0
    assert breaker.merge(0, OPEN, Cause.THROTTLE, T0 + 3 * S, T0) is None
    assert breaker.merge(0, OPEN, Cause.THROTTLE, T0 + 2 * S, T0) is None
    assert breaker.merge(0, CLOSED, Cause.THROTTLE, 0, T0) is None
    assert breaker.merge(1, CLOSED, Cause.THROTTLE, 0, T0) is not None
    assert breaker.ask(T0) == GO
    assert breaker.throttled(0, S, T0, 0.0) is None  # sent before that close


def test_a_peers_reopening_doubles_here_too() -> None:
    breaker = paused(None)
    breaker.merge(1, OPEN, Cause.THROTTLE, T0 + 20 * S, T0)
    now_ns = T0 + 20 * S
    epoch = breaker.begin_trial(now_ns, S)
    breaker.end_trial(epoch, Outcome.THROTTLE, now_ns)
    assert breaker.until_ns == now_ns + 20 * S


def test_a_peers_pause_without_end_is_cut() -> None:
    breaker = made()
    breaker.merge(0, OPEN, Cause.THROTTLE, 10**30, T0)
    assert breaker.until_ns <= T0 + POLICY.pause_max_ns + S


PEER_STATES = st.tuples(
    st.integers(0, 5),
    st.sampled_from([OPEN, CLOSED]),
    st.sampled_from(list(Cause)),
    st.integers(1, 60).map(lambda s: T0 + s * S),
)


@given(states=st.lists(PEER_STATES, min_size=1, max_size=12), data=st.data())
def test_merging_is_a_join_in_any_order_and_number(
    states: list[tuple[int, BreakerState, Cause, int]], data: st.DataObject
) -> None:
    one, two = made(), made()
    for state in states:
        one.merge(*state, T0)
    for state in data.draw(st.permutations(states + states)):
        two.merge(*state, T0)
    assert (one.epoch, one.state, one.until_ns) == (two.epoch, two.state, two.until_ns)


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                *("throttled", "failed", "succeeded", "trial", "claimed"),
                *("ok", "bad", "told", "gone", "peer", "resume"),
            ]
        ),
        st.integers(0, 3),
        st.one_of(st.none(), st.integers(0, 20 * S)),
    ),
    max_size=80,
)


@given(events=EVENTS)
def test_whatever_happens_the_epoch_only_grows_and_the_wait_is_bounded(
    events: list[tuple[str, int, int | None]],
) -> None:
    breaker = made(BreakerPolicy(failure_min=3))
    now_ns = T0
    for name, number, pause_ns in events:
        now_ns += number * S
        before = (breaker.epoch, breaker.state is not CLOSED, breaker.until_ns)
        epoch = max(0, breaker.epoch - number % 2)
        if name == "throttled":
            breaker.throttled(epoch, pause_ns, now_ns, 0.5)
        elif name == "failed":
            breaker.failed(epoch, now_ns, 0.5)
        elif name == "succeeded":
            breaker.succeeded(epoch, now_ns)
        elif name == "trial":
            if breaker.ask(now_ns) == TRIAL:
                breaker.begin_trial(now_ns, S)
        elif name == "claimed":
            breaker.claimed(epoch, now_ns + (pause_ns or 0))
        elif name == "gone":
            breaker.abandon_trial(epoch, now_ns)
        elif name == "resume":
            breaker.resume(now_ns)
        elif name == "peer":
            breaker.merge(epoch + number, OPEN, Cause.FAILURE, now_ns + (pause_ns or 0), now_ns)
        else:
            outcome = {"ok": Outcome.SUCCESS, "bad": Outcome.FAILURE}.get(name, Outcome.THROTTLE)
            breaker.end_trial(epoch, outcome, now_ns, pause_ns, 0.5)
        after = (breaker.epoch, breaker.state is not CLOSED, breaker.until_ns)
        assert after >= before  # what it says to peers only ever grows
        wait_ns = breaker.ask(now_ns)
        assert wait_ns in (GO, TRIAL) or 0 < wait_ns <= POLICY.pause_max_ns + S


def test_new_figures_after_a_reload() -> None:
    breaker = paused()
    breaker.failed(0, T0)
    breaker.configure(POLICY._replace(window_ns=S, open_ns=S), T0)
    assert breaker.ask(T0) == 10 * S
    epoch = breaker.begin_trial(T0 + 10 * S, S)
    breaker.end_trial(epoch, Outcome.FAILURE, T0 + 10 * S)
    assert breaker.ask(T0 + 10 * S) == 2 * S


@pytest.mark.parametrize("outcome", list(Outcome))
def test_a_trial_of_a_closed_breaker_is_a_plain_request(outcome: Outcome) -> None:
    breaker = made()
    epoch = breaker.begin_trial(T0, S)
    assert breaker.end_trial(epoch, outcome, T0, 5 * S) is None
    assert breaker.ask(T0) == GO


def test_the_operator_ends_a_pause() -> None:
    breaker = paused()
    epoch = breaker.epoch
    change = breaker.resume(T0 + S)
    assert change is not None
    assert (change.state, change.epoch, breaker.ask(T0 + S)) == (CLOSED, epoch + 1, GO)
    assert breaker.throttled(epoch, 9 * S, T0 + S, 0.0) is None  # sent before the close
    assert breaker.resume(T0 + S) is None  # there is no pause to end


@pytest.mark.parametrize("make", [made, paused])
def test_the_operators_word_stands_above_the_machine(make: Callable[[], Breaker]) -> None:
    breaker = make()
    plain = breaker.ask(T0)
    breaker.forced = CLOSED
    assert breaker.ask(T0) == GO
    breaker.forced = OPEN
    assert breaker.ask(T0 + 3600 * S) == POLICY.open_ns
    breaker.forced = None
    assert breaker.ask(T0) == plain


def test_the_end_of_a_pause_is_foreseen_and_that_of_a_trial_is_not() -> None:
    assert paused().foresees
    breaker, epoch, now_ns = on_trial()
    assert breaker.ask(now_ns) == S
    assert not breaker.foresees
    breaker.abandon_trial(epoch, now_ns)
    assert breaker.ask(now_ns) == TRIAL
