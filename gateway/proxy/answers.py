"""What the gateway says itself: refusals and errors, never to be mistaken for the upstream's.

Each carries Proxy-Status (RFC 9209), Cache-Control: no-store, Date, X-Request-Id, and an RFC 9457
problem body that names the upstream, the limit and the wait. Whole seconds are rounded up: a client
that obeys must not come too early.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from gateway.clock import MS, SECOND
from gateway.errors import ErrorKind, GatewayError
from gateway.h1 import encode
from gateway.h1.message import Framing

if TYPE_CHECKING:
    from gateway.h1.message import Fields
    from gateway.proxy.graph import Worker

__all__ = ["error_answer", "problem"]

# The one type that is registered for what we say (draft-ietf-httpapi-ratelimit-headers-10, 5).
QUOTA_EXCEEDED = "https://iana.org/assignments/http-problem-types#quota-exceeded"


def problem(error: GatewayError, upstream: str, waited_ns: int, attempts: int) -> dict[str, Any]:
    """The problem document (RFC 9457 section 3) of an error."""
    kind = error.kind
    limited = kind in (ErrorKind.LIMITED, ErrorKind.COST_OVER_BURST) and error.limit
    document: dict[str, Any] = {
        "type": QUOTA_EXCEEDED if limited else "about:blank",
        "title": kind.title,
        "status": kind.status,
        "detail": error.detail or kind.title,
        "said_by": "gateway",
        "reason": kind.name.lower(),
    }
    if limited:
        document["violated-policies"] = [error.limit]
    if upstream:
        document["upstream"] = upstream
    if error.limit:
        document["limit"] = error.limit
    if error.retry_after_ns is not None:
        document["retry_after_ms"] = -(-error.retry_after_ns // MS)
    if waited_ns:
        document["waited_ms"] = waited_ns // MS
    if attempts:
        document["attempts"] = attempts
    return document


def error_answer(
    error: GatewayError,
    worker: Worker,
    *,
    close: bool,
    head_only: bool,
    request_id: bytes,
    upstream: str = "",
    waited_ns: int = 0,
    attempts: int = 0,
    more: Fields | None = None,
) -> bytes:
    """The whole answer, head and body; only the head where the request's method was HEAD.

    `request_id` is what the log line of the request says too.
    `more` are fields that belong to this answer alone (RateLimit, Location).
    """
    kind = error.kind
    body = json.dumps(problem(error, upstream, waited_ns, attempts)).encode() + b"\n"
    fields: Fields = [
        (b"Date", worker.date.of(worker.wall_ns())),
        (b"Content-Type", b"application/problem+json"),
        (b"Content-Length", b"%d" % len(body)),
        (b"Cache-Control", b"no-store"),
        (b"X-Request-Id", request_id),
        (b"Proxy-Status", b"%s; error=%s" % (worker.pseudonym, kind.proxy_error.encode())),
    ]
    if error.retry_after_ns is not None:
        wait_ns = max(0, error.retry_after_ns)
        fields.append((b"Retry-After", b"%d" % -(-wait_ns // SECOND)))
        fields.append((b"retry-after-ms", b"%d" % -(-wait_ns // MS)))
    if kind is ErrorKind.CLIENT_UNKNOWN:
        fields.append((b"Proxy-Authenticate", b'Basic realm="egressd"'))
    if kind is ErrorKind.METHOD_NOT_ALLOWED:  # RFC 9110 section 15.5.6: says which are
        fields.append((b"Allow", b"GET, HEAD"))
    if more:
        fields += more
    reason = encode.reason_phrase(kind.status)
    head = encode.response(kind.status, reason, fields, Framing.LENGTH, close)
    return head if head_only else head + body
