"""Whether an exchange that is blocked may wait: its place among those who wait, and its time.

What an exchange is told that may not, or that has waited in vain, is said here too; where it
stands meanwhile is the waitroom's business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.clock import SECOND
from gateway.errors import ErrorKind, GatewayError, Phase

if TYPE_CHECKING:
    from gateway.proxy.admission import Admittee, Blocked

__all__ = [
    "ends_in_time",
    "honest_wait_ns",
    "may_wait",
    "refusal_after_wait",
    "started_waiting",
    "stopped_waiting",
]


def ends_in_time(exchange: Admittee, blocked: Blocked, now_ns: int) -> bool:
    """Whether the wait can end before the exchange's deadline."""
    left_ns = exchange.wait_until_ns - now_ns
    if blocked.foreseen:
        left_ns -= blocked.wait_ns
    if left_ns <= 0:
        return False
    queue = blocked.blocker.waiting
    if queue is None or queue.cost * blocked.ns_per_token < left_ns:
        return True  # even behind all of them
    return _ahead_ns_slow(exchange, blocked) < left_ns


def may_wait(exchange: Admittee, blocked: Blocked, now_ns: int) -> GatewayError | None:
    """None, or the refusal, which is counted, where the wait cannot end in time."""
    if ends_in_time(exchange, blocked, now_ns):
        return None
    return _refusal(exchange, blocked, honest_wait_ns(exchange, blocked))


def honest_wait_ns(exchange: Admittee, blocked: Blocked) -> int:
    """After how long a request like this one would have its turn: what Retry-After says."""
    return blocked.wait_ns + _ahead_ns_slow(exchange, blocked)


def started_waiting(exchange: Admittee) -> None:
    """It stands in the row's queue: its demand counts there (see LimitSet)."""
    refusal = exchange.refusal
    if refusal is not None and exchange.blocker is refusal.entry:
        exchange.upstream.limit_set.wait_at(refusal, exchange.costs[refusal.index])


def stopped_waiting(exchange: Admittee, now_ns: int) -> None:
    """It left the queues without having been admitted: what it waited there counts all the same."""
    _count_wait(exchange, now_ns)
    exchange.asked_ns = now_ns  # over a reload it goes on waiting
    if exchange.refusal is not None:
        exchange.upstream.limit_set.leave(exchange.refusal)


def refusal_after_wait(exchange: Admittee) -> GatewayError:
    """What an exchange is told whose deadline came before its turn, and which waits no more."""
    blocked = exchange.last_blocked
    assert blocked is not None
    return _refusal(exchange, blocked, honest_wait_ns(exchange, blocked))


def _count_wait(exchange: Admittee, now_ns: int) -> None:
    waited_ns = now_ns - exchange.asked_ns
    if waited_ns > 0:
        exchange.waited_ns += waited_ns
        exchange.upstream.counts.wait.observe(waited_ns)


def _ahead_ns_slow(exchange: Admittee, blocked: Blocked) -> int:
    """How long those who go before this exchange, by fair turns and priority, keep the row busy."""
    queue = blocked.blocker.waiting
    if queue is None or not blocked.ns_per_token:
        return 0
    client = exchange.client
    ahead: int = queue.ahead(
        exchange.fair_flow(), client.weight, client.priority, exchange.arrival_ns
    )
    return ahead * blocked.ns_per_token


def _refusal(exchange: Admittee, blocked: Blocked, wait_ns: int) -> GatewayError:
    name = exchange.upstream_name
    counts = exchange.upstream.counts
    if blocked.kind in (ErrorKind.PAUSED, ErrorKind.BREAKER_OPEN):
        counts.paused += 1
        detail = f"upstream {name} is paused for {wait_ns / SECOND:.3f} s more"
    else:
        counts.refused += 1
        counts.refused_by[blocked.limit] += 1
        detail = f"limit {blocked.limit} of upstream {name} has no room"
    return GatewayError(
        blocked.kind, detail, phase=Phase.QUEUE, retry_after_ns=wait_ns, limit=blocked.limit
    )
