"""A request's way through the pacer of its upstream, for the while after a pause that it is active.

Cold: asked only while requests return to an upstream that has no rate limit of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.limits.verdict import ROOM

if TYPE_CHECKING:
    from gateway.limits.gcra import GcraRow
    from gateway.proxy.admission import Admittee

__all__ = ["ask", "take"]


def ask(exchange: Admittee, now_ns: int) -> tuple[GcraRow, int, int] | None:
    """(where to wait, for how long at least, nanoseconds for each token queued there); None: the
    pace lets it go, and nobody waits for it already."""
    row = _row(exchange, now_ns)
    if row is None:
        return None
    wait_ns = row.ask(1, now_ns)
    queue = row.waiting
    if queue is None or exchange.blocker is row:
        if wait_ns == ROOM:
            return None
    else:
        wait_ns = max(1, wait_ns)
    if queue is None:
        return row, wait_ns, 0
    # The queue counts tokens of the limits; here each request is one, and the pace grows.
    drain_ns = exchange.upstream.pacer.drain_ns(len(queue), now_ns)
    return row, wait_ns, drain_ns // max(1, queue.cost)


def take(exchange: Admittee, now_ns: int) -> None:
    """The request goes: it counts in the pace."""
    row = _row(exchange, now_ns)
    if row is not None:
        row.take(1, now_ns)


def _row(exchange: Admittee, now_ns: int) -> GcraRow | None:
    pacer = exchange.upstream.pacer
    return pacer.row(exchange.credential() if pacer.by_credential else None, now_ns)
