"""All the breakers of an upstream: whose pause it is, trials of two at once, bounds."""

from __future__ import annotations

from gateway.breaker.states import GO, TRIAL, BreakerPolicy, BreakerState, Cause, Change
from gateway.breaker.table import BreakerTable

S = 1_000_000_000
T0 = 10**15
ALICE, BOB = b"alice", b"bob"
CLOSED, OPEN = BreakerState.CLOSED, BreakerState.OPEN


def made(**policy: object) -> BreakerTable:
    return BreakerTable(BreakerPolicy()._replace(**policy), T0, full_per_s=100.0)


def throttle(
    table: BreakerTable, credential: bytes | None, pause_ns: int | None, now_ns: int = T0
) -> tuple[Change, ...]:
    return tuple(table.throttled(credential, table.epochs(credential), pause_ns, now_ns, 0.0))


def fail(table: BreakerTable, now_ns: int = T0) -> list[Change]:
    return [change for _ in range(20) for change in table.failed(table.epochs(None), now_ns, 0.0)]


def test_a_throttle_pauses_its_credential_only() -> None:
    table = made()
    assert table.ask(ALICE, T0) == GO
    (change,) = throttle(table, ALICE, 10 * S)
    assert (change.scope, change.state, change.until_ns) == (ALICE, OPEN, T0 + 10 * S)
    assert table.ask(ALICE, T0) == 10 * S
    assert table.ask(BOB, T0) == GO
    assert table.ask(None, T0) == GO
    assert table.knows_credentials


def test_without_a_credential_or_by_policy_it_pauses_the_upstream() -> None:
    for table, credential in ((made(), None), (made(), b""), (made(by_credential=False), ALICE)):
        (change,) = throttle(table, credential, 10 * S)
        assert change.scope == b""
        assert table.ask(BOB, T0) == 10 * S
        assert not table.knows_credentials


def test_failures_open_the_upstream_for_all() -> None:
    table = made()
    (change,) = fail(table)
    assert (change.scope, change.cause) == (b"", Cause.FAILURE)
    assert table.ask(ALICE, T0) == table.ask(None, T0) == 5 * S


def test_the_longer_of_both_waits_counts() -> None:
    table = made()
    throttle(table, ALICE, 2 * S)
    fail(table)
    assert table.ask(ALICE, T0) == 5 * S
    assert table.blocking(ALICE, T0) is table.own
    throttle(table, ALICE, 8 * S)
    assert table.ask(ALICE, T0) == 8 * S
    assert table.blocking(ALICE, T0) is table.get(ALICE)
    assert table.ask(ALICE, T0 + 5 * S) == 3 * S  # the upstream wants a trial, alice may not
    assert table.ask(BOB, T0 + 5 * S) == TRIAL
    assert table.blocking(BOB, T0 + 5 * S) is None


def test_one_request_may_be_the_trial_of_both() -> None:
    table = made()
    throttle(table, ALICE, 2 * S)
    fail(table)
    now_ns = T0 + 6 * S
    epochs = table.epochs(ALICE)
    trials = table.begin_trials(ALICE, now_ns, S)
    assert [breaker.scope for breaker, _ in trials] == [b"", ALICE]
    assert table.ask(BOB, now_ns) == S
    changes = table.succeeded(epochs, now_ns, trials)
    assert [(c.scope, c.state) for c in changes] == [(b"", CLOSED), (ALICE, CLOSED)]
    assert table.active == 0
    assert table.ask(ALICE, now_ns) == GO


def test_a_throttle_in_the_upstreams_trial_gives_the_slot_back() -> None:
    table = made()
    fail(table)
    now_ns = T0 + 5 * S
    trials = table.begin_trials(ALICE, now_ns, S)
    epochs = table.epochs(ALICE)
    (change,) = table.throttled(ALICE, epochs, 30 * S, now_ns, 0.0, trials)
    assert change.scope == ALICE
    assert table.own.state is OPEN
    assert table.ask(BOB, now_ns) == TRIAL
    assert table.ask(ALICE, now_ns) == 30 * S


def test_a_throttled_trial_is_a_longer_pause() -> None:
    table = made()
    throttle(table, ALICE, None)
    now_ns = T0 + 5 * S
    trials = table.begin_trials(ALICE, now_ns, S)
    (change,) = table.throttled(ALICE, table.epochs(ALICE), None, now_ns, 0.0, trials)
    assert (change.epoch, change.until_ns) == (1, now_ns + 10 * S)


def test_a_failed_trial_opens_again() -> None:
    table = made()
    fail(table)
    now_ns = T0 + 5 * S
    trials = table.begin_trials(None, now_ns, S)
    (change,) = table.failed(table.epochs(None), now_ns, 0.0, trials)
    assert (change.epoch, change.state, change.until_ns) == (1, OPEN, now_ns + 10 * S)


def test_an_abandoned_trial_may_go_again() -> None:
    table = made()
    throttle(table, ALICE, S)
    trials = table.begin_trials(ALICE, T0 + S, S)
    assert table.ask(ALICE, T0 + S) == S
    table.abandon_trials(trials, T0 + S)
    assert table.ask(ALICE, T0 + S) == TRIAL


def test_stragglers_of_the_first_pause_are_old_news_after_the_close() -> None:
    table = made()
    sent = table.epochs(ALICE)  # before anything happened
    throttle(table, ALICE, S)
    trials = table.begin_trials(ALICE, T0 + S, S)
    table.succeeded(table.epochs(ALICE), T0 + S, trials)
    assert not table.throttled(ALICE, sent, 60 * S, T0 + S, 0.0)
    assert table.throttled(ALICE, table.epochs(ALICE), 60 * S, T0 + S, 0.0)


def test_closed_credentials_are_forgotten_and_their_epochs_are_not() -> None:
    table = made()
    throttle(table, ALICE, S)
    trials = table.begin_trials(ALICE, T0 + S, S)
    table.succeeded(table.epochs(ALICE), T0 + S, trials)
    table.expire(T0 + 60 * S)
    assert table.get(ALICE) is not None
    table.expire(T0 + 61 * S)
    assert table.get(ALICE) is None
    (change,) = throttle(table, ALICE, S, T0 + 70 * S)
    assert change.epoch == 1  # above what the peers remember as closed


def test_open_or_waited_at_credentials_are_kept() -> None:
    table = made()
    throttle(table, ALICE, S)
    table.expire(T0 + 3600 * S)
    breaker = table.get(ALICE)
    assert breaker is not None
    trials = table.begin_trials(ALICE, T0 + 3600 * S, S)
    table.succeeded(table.epochs(ALICE), T0 + 3600 * S, trials)
    breaker.waiting = object()
    table.expire(T0 + 9000 * S)
    assert table.get(ALICE) is breaker


def test_the_number_of_breakers_is_bounded() -> None:
    table = made()
    table.credentials_max = 100
    for i in range(1000):
        throttle(table, b"%d" % i, (i % 50 + 1) * S)
    assert len(list(table.credentials())) == 100
    assert table.active == 100
    assert table.ask(b"0", T0) == GO


def test_peers_pauses_come_in_for_unknown_credentials() -> None:
    table = made()
    change = table.merge(Change(BOB, 7, OPEN, Cause.THROTTLE, T0 + 9 * S), T0)
    assert change is not None
    assert table.ask(BOB, T0) == 9 * S
    assert table.ask(ALICE, T0) == GO
    assert table.merge(Change(b"carol", 7, CLOSED, Cause.THROTTLE, 0), T0) is None
    assert table.get(b"carol") is None
    assert table.merge(Change(BOB, 8, CLOSED, Cause.THROTTLE, 0), T0) is not None
    assert (table.ask(BOB, T0), table.active) == (GO, 0)


def test_a_peers_pause_counts_although_higher_epochs_were_forgotten() -> None:
    table = made()
    table.merge(Change(ALICE, 50, OPEN, Cause.THROTTLE, T0 + S), T0)
    table.merge(Change(ALICE, 51, CLOSED, Cause.THROTTLE, 0), T0)
    table.expire(T0 + 100 * S)
    assert table.merge(Change(BOB, 3, OPEN, Cause.THROTTLE, T0 + 101 * S), T0 + 100 * S)


def test_a_claim_of_another_node() -> None:
    table = made()
    throttle(table, ALICE, S)
    table.claimed(ALICE, 0, T0 + 60 * S)
    table.claimed(b"nobody", 0, T0 + 60 * S)
    assert table.ask(ALICE, T0 + S) == 59 * S


def test_a_throttle_teaches_the_rate_and_the_close_starts_the_climb() -> None:
    table = made()
    for i in range(100):  # 50 a second for two seconds
        table.succeeded(table.epochs(ALICE), T0 + i * S // 50)
    (change,) = throttle(table, ALICE, S, T0 + 2 * S)
    assert change.reff_per_s is not None
    assert 34 <= change.reff_per_s <= 36  # 0.7 x 50
    assert table.ramp.factor(T0 + 2 * S) == 1.0
    trials = table.begin_trials(ALICE, T0 + 3 * S, S)
    table.succeeded(table.epochs(ALICE), T0 + 3 * S, trials)
    assert 0.34 <= table.ramp.factor(T0 + 3 * S) <= 0.36


def test_short_capacity_teaches_nothing() -> None:
    table = made()
    for i in range(100):
        table.succeeded(table.epochs(None), T0 + i * S // 50)
    (change,) = table.throttled(None, table.epochs(None), S, T0 + 2 * S, 0.0, learn=False)
    assert change.reff_per_s is None


def test_one_throttle_of_many_teaches() -> None:
    table = made()
    for i in range(100):
        table.succeeded(table.epochs(None), T0 + i * S // 50)
    for i in range(50):
        throttle(table, None, S, T0 + 2 * S + i)
    assert table.ramp.learned_per_s is not None
    assert table.ramp.learned_per_s >= 34


def test_a_peers_rate_is_taken_over() -> None:
    table = made()
    table.merge(Change(b"", 0, OPEN, Cause.THROTTLE, T0 + S, 42.0), T0)
    table.merge(Change(b"", 1, CLOSED, Cause.THROTTLE, 0, 42.0), T0 + S)
    assert table.ramp.factor(T0 + S) == 0.42


def test_new_figures_after_a_reload() -> None:
    table = made()
    throttle(table, ALICE, 10 * S)
    table.configure(table.policy._replace(by_credential=False), 50.0, T0)
    assert table.ask(ALICE, T0) == 10 * S
    assert throttle(table, BOB, S)[0].scope == b""
    assert all(breaker.policy is table.policy for breaker in table)


def test_ask_costs_nothing_while_all_is_well() -> None:
    table = made()
    assert table.active == 0
    assert table.epochs(ALICE) is table.epochs(BOB)
    assert table.succeeded(table.epochs(ALICE), T0) == ()


def test_a_forced_breaker_is_looked_at_and_kept() -> None:
    table = made()
    table.force(ALICE, OPEN, T0)
    assert (table.active, table.ask(ALICE, T0), table.ask(BOB, T0)) == (1, 5 * S, GO)
    blocking = table.blocking(ALICE, T0)
    assert blocking is not None and blocking.cause is Cause.FAILURE
    assert table.blocking(BOB, T0) is None
    table.expire(T0 + 3600 * S)
    assert table.ask(ALICE, T0 + 3600 * S) == 5 * S
    table.force(ALICE, None, T0 + 3600 * S)
    assert (table.active, table.ask(ALICE, T0 + 3600 * S)) == (0, GO)
    table.expire(T0 + 7200 * S)
    assert not table.knows_credentials


def test_a_full_table_keeps_what_is_forced() -> None:
    table = BreakerTable(BreakerPolicy(), T0, credentials_max=2)
    table.force(ALICE, OPEN, T0)
    for credential in (BOB, b"carol", b"dave"):
        throttle(table, credential, 10 * S)
    assert table.get(ALICE) is not None
    assert len([*table.credentials()]) == 2


def test_forced_closed_lets_all_go_and_the_machine_goes_on_beneath() -> None:
    table = made()
    throttle(table, None, 10 * S)
    table.force(b"", CLOSED, T0)
    assert table.ask(None, T0) == GO
    assert table.begin_trials(None, T0 + 11 * S, S) == ()
    table.force(b"", None, T0)
    assert table.ask(None, T0) == 10 * S


def test_pause_and_resume_are_told_to_the_mesh_and_learn_nothing() -> None:
    table = made()
    for _ in range(100):
        table.succeeded(table.epochs(None), T0)
    (change,) = table.pause(30 * S, T0)
    assert (change.scope, change.state, change.cause) == (b"", OPEN, Cause.THROTTLE)
    assert (change.until_ns, change.reff_per_s) == (T0 + 30 * S, None)
    assert table.pause(20 * S, T0) == ()  # a pause is never shortened
    (change,) = table.resume(b"", T0 + S)
    assert (change.state, table.ask(None, T0 + S)) == (CLOSED, GO)
    assert table.resume(b"", T0 + S) == ()
    assert table.resume(ALICE, T0 + S) == ()  # a credential that has no breaker
