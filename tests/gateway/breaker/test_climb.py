"""What the climb is for: an upstream whose true limit is below the configured one."""

from __future__ import annotations

from gateway.breaker.states import GO, TRIAL, BreakerPolicy, BreakerState
from gateway.breaker.table import BreakerTable
from gateway.limits.gcra import Gcra
from gateway.limits.verdict import ROOM

S = 1_000_000_000
SECONDS = 300
STEP_NS = S // 200  # twice as many requests as even the configured rate allows
TICK_NS = S // 10
RTT_NS = S // 50


def throttles_met(learn: bool) -> tuple[int, float]:
    """(429s in 300 s, the share of the true limit that was used) of one node that always sends."""
    origin = Gcra("true", 60, S, 60)
    ours = Gcra("configured", 100, S, 10)
    table = BreakerTable(BreakerPolicy(), 0, full_per_s=100.0)
    row, theirs = ours.entry(b"", 0), origin.entry(b"", 0)
    answers: list[tuple[int, bool, tuple[int, int], tuple]] = []
    throttled = served = 0
    for now_ns in range(0, SECONDS * S, STEP_NS):
        while answers and answers[0][0] <= now_ns:
            _, good, epochs, trials = answers.pop(0)
            if good:
                changes = table.succeeded(epochs, now_ns, trials)
            else:
                throttled += 1
                changes = table.throttled(None, epochs, S, now_ns, 0.0, trials, learn)
            if any(change.state is BreakerState.CLOSED for change in changes):
                ours.fill(now_ns)
        if now_ns % TICK_NS == 0:
            ours.scale(table.ramp.factor(now_ns), now_ns)
        verdict = table.ask(None, now_ns)
        if verdict not in (GO, TRIAL) or row.ask(1, now_ns) != ROOM:
            continue
        row.take(1, now_ns)
        epochs = table.epochs(None)
        trials = table.begin_trials(None, now_ns, S) if verdict == TRIAL else ()
        good = theirs.ask(1, now_ns) == ROOM
        if good:
            theirs.take(1, now_ns)
            served += 1
        answers.append((now_ns + RTT_NS, good, epochs, trials))
    return throttled, served / (60 * SECONDS)


def test_a_learned_rate_meets_few_throttles_and_uses_most_of_the_limit() -> None:
    throttled, share = throttles_met(learn=True)
    assert throttled <= 18
    assert share >= 0.9


def test_the_linear_climb_meets_more_and_uses_less() -> None:
    learned, learned_share = throttles_met(learn=True)
    linear, linear_share = throttles_met(learn=False)
    assert linear >= 1.5 * learned
    assert linear_share < learned_share
