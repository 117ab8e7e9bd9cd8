"""What the access log is told of an exchange: one tuple of what it already has, and no text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.proxy.graph import AccessRecord

if TYPE_CHECKING:
    from gateway.errors import GatewayError, Termination
    from gateway.proxy.exchange import Exchange

__all__ = ["access_record"]


def access_record(
    exchange: Exchange, now_ns: int, termination: Termination, error: GatewayError | None
) -> AccessRecord:
    """The record of an exchange that is over now."""
    head = exchange.head
    arrival_ns = exchange.arrival_ns
    connected_ns = exchange.connected_ns  # of an earlier send, if before the last was dispatched
    blocked = exchange.last_blocked
    target = head.target  # of the proxy form only the path: Host has the rest
    return AccessRecord(
        exchange.worker.wall_ns(),
        exchange.downstream.source,
        exchange.client.name,
        exchange.downstream.listener.name,
        exchange.upstream_name,
        head.method,
        head.host,
        target if target.startswith((b"/", b"*")) else exchange.path,
        exchange.status,
        exchange.bytes_in,
        exchange.bytes_out,
        exchange.request_ns,
        exchange.waited_ns,
        connected_ns - exchange.dispatched_ns if connected_ns >= exchange.dispatched_ns > 0 else -1,
        exchange.response_ns - connected_ns if exchange.response_ns >= connected_ns > 0 else -1,
        now_ns - arrival_ns + exchange.request_ns,
        exchange.attempts,
        blocked.limit if blocked is not None else "",
        exchange.number,
        head.request_id,
        head.traceparent,
        termination,
        error,
    )
