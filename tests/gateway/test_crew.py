"""How long a supervisor waits before it starts a worker again."""

from __future__ import annotations

from gateway.clock import MS, SECOND
from gateway.crew import Backoff


def test_the_pause_doubles_up_to_a_cap_and_is_forgotten() -> None:
    backoff = Backoff()
    pauses = [backoff.next_ns(0) for _ in range(40)]
    assert pauses[:4] == [100 * MS, 200 * MS, 400 * MS, 800 * MS]
    assert pauses[6:] == [6400 * MS] + [10 * SECOND] * 33
    assert backoff.next_ns(59 * SECOND) == 10 * SECOND
    assert backoff.next_ns(60 * SECOND) == 100 * MS
    assert backoff.next_ns(0) == 200 * MS
