"""The messages that codecs make, the guard completes, and the rest of the gateway reads.

Heads are mutable until the guard has judged them and are treated as frozen afterwards. Names and
values of fields are the received octets (RFC 9110 section 5.5: opaque), in order, never joined.
"""

from __future__ import annotations

import enum
from typing import Protocol

__all__ = ["HTTP_2", "Fields", "Framing", "MessageSink", "RequestHead", "ResponseHead"]

Fields = list[tuple[bytes, bytes]]


class Framing(enum.Enum):
    """How a body's end is found (RFC 9112 section 6.3)."""

    NONE = 0
    LENGTH = 1
    CHUNKED = 2
    CLOSE = 3


class RequestHead:
    """A request's head: first as tokenized, then with what `guard.judge_request` found out.

    A codec sets method, target, minor and fields. `minor` is the y of HTTP/1.y. The guard sets the
    rest; `connection` holds the lower-case options of all Connection fields.
    """

    __slots__ = (
        "connection",
        "content_length",
        "expect_continue",
        "fields",
        "framing",
        "host",
        "keep_alive",
        "method",
        "minor",
        "request_id",
        "target",
        "te_trailers",
        "traceparent",
        "upgrade",
    )

    def __init__(self, method: bytes, target: bytes, minor: int, fields: Fields) -> None:
        self.method = method
        self.target = target
        self.minor = minor
        self.fields = fields
        self.framing = Framing.NONE
        self.content_length = 0  # octets; meaningful with Framing.LENGTH
        self.host = b""  # the Host field's value; b"" where a 1.0 request has none
        self.keep_alive = False
        self.connection: frozenset[bytes] = frozenset()
        self.expect_continue = False
        self.te_trailers = False
        self.request_id = b""  # X-Request-Id and traceparent as they came; of several, joined
        self.traceparent = b""
        self.upgrade = b""  # the Upgrade field's value, if Connection names it


# Stands where the minor version of HTTP/1 does in a head that came by HTTP/2.
HTTP_2 = 20


class ResponseHead:
    """A response's head; `request_method` decides its framing (RFC 9112 section 6.3)."""

    __slots__ = (
        "connection",
        "content_length",
        "dated",
        "fields",
        "framing",
        "idle_s",
        "keep_alive",
        "minor",
        "reason",
        "status",
        "upgrade",
    )

    def __init__(self, status: int, reason: bytes, minor: int, fields: Fields) -> None:
        self.status = status
        self.reason = reason
        self.minor = minor
        self.fields = fields
        self.framing = Framing.NONE
        self.content_length = 0  # octets; meaningful with Framing.LENGTH
        self.dated = False  # whether it has a Date
        self.keep_alive = False
        self.connection: frozenset[bytes] = frozenset()
        self.idle_s = -1  # for how long the sender keeps an idle connection; -1: it did not say
        self.upgrade = b""


class MessageSink(Protocol):
    """Who is told, in order: head, body pieces, end. For an interim response only the head.

    A sink may not call back into the decoder from inside these methods, save `resume`-like calls
    that the decoder documents. `trailers` is empty save after a chunked body that had some.
    """

    def head_received(self, head: RequestHead | ResponseHead) -> None: ...

    def body_received(self, data: bytes) -> None: ...

    def message_complete(self, trailers: Fields) -> None: ...
