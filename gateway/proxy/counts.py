"""What the data path counts of an upstream: plain integers, formatted by admin.

The counts outlive a reload (`registry`). What is counted by name is rare, and its names come from
the configuration or from a table in the source, never from a message, unless there is a bound.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Final

from gateway.proxy.histogram import Histogram

__all__ = ["RETRY_CREDIT_MAX", "UpstreamCounts"]

# Retries are at most `budget` x requests + this many: a quiet upstream's first failure may be
# tried again, and an outage is not multiplied.
RETRY_CREDIT_MAX: Final = 10.0

SCOPES_MAX = 32  # names of scopes that are told apart, each a label of a metric


class UpstreamCounts:
    """All the counts of one upstream on one worker."""

    __slots__ = (
        "aborted",
        "admitted",
        "answers",
        "duration",
        "failed",
        "head_time",
        "paused",
        "paused_ns",
        "pauses",
        "preempted",
        "refused",
        "refused_by",
        "requests",
        "responses",
        "retried",
        "retries",
        "retry_credit",
        "scopes",
        "slow_head_ns",
        "throttled",
        "throttles",
        "transitions",
        "trials",
        "wait",
        "waited",
        "waited_at",
    )

    def __init__(self) -> None:
        self.requests = 0
        self.admitted = 0
        self.waited = 0
        self.refused = 0
        self.paused = 0  # requests refused because of a pause or an open breaker
        self.pauses = 0  # pauses and openings themselves
        self.failed = 0
        self.aborted = 0
        self.slow_head_ns = 0
        self.retried = 0
        self.retry_credit = RETRY_CREDIT_MAX
        self.throttled = 0
        self.preempted = 0  # pauses before a refusal, because a success said that nothing is left
        self.scopes: dict[str, int] = {}  # what throttles said that they concern
        self.trials = 0
        self.responses = [0] * 6  # the upstream's, by the first digit of the status
        self.answers = [0] * 6  # what clients got in the end; 0: nothing
        self.duration = Histogram()  # of whole exchanges, tunnels left out
        self.head_time = Histogram()  # from the request's sending to the response's head
        self.wait = Histogram()  # of those that were held, whatever came of it
        self.waited_at: dict[str, int] = defaultdict(int)  # by limit, those let through at last
        self.refused_by: dict[str, int] = defaultdict(int)  # by limit
        self.retries: dict[str, int] = defaultdict(int)  # by what went before
        self.throttles: dict[str, int] = defaultdict(int)  # by what told of them
        self.transitions: dict[tuple[str, str], int] = defaultdict(int)  # (scope, what happened)
        self.paused_ns: dict[str, int] = defaultdict(int)  # by scope, of pauses that are over

    def count_scope(self, scope: str) -> None:
        """Counts what a throttle concerns. The upstream chooses the name, so there is a bound."""
        scopes = self.scopes
        if scope not in scopes and len(scopes) >= SCOPES_MAX:
            scope = "other"
        scopes[scope] = scopes.get(scope, 0) + 1
