"""HTTP/2 heads to and from what the data path has: RFC 9113 section 8, without the wire.

HTTP/2 carries field values as octets of any kind. What would be a line end or a framing field in
HTTP/1.1 would split or smuggle messages behind this gateway, so everything that comes is judged by
the same guard as an HTTP/1.1 head before anyone sees it (RFC 9113 sections 8.2.1 and 10.3).
"""

from __future__ import annotations

from collections.abc import Iterable

from gateway.errors import ErrorKind
from gateway.h1 import names
from gateway.h1.codec import BadMessage, HeadLimits
from gateway.h1.guard import judge_octets, judge_response
from gateway.h1.message import HTTP_2, Fields, Framing, ResponseHead

__all__ = ["BodyCount", "lowered", "request", "response", "trailers"]

# RFC 9113 section 8.2.2: what is about one HTTP/1.1 connection does not exist here.
_CONNECTION_KINDS = frozenset(
    (names.CONNECTION, names.TRANSFER_ENCODING, names.UPGRADE, names.HOP, names.HOST)
)
_BAD = ErrorKind.BAD_RESPONSE
_TOO_LARGE = ErrorKind.RESPONSE_HEAD_TOO_LARGE


def request(method: bytes, scheme: str, authority: bytes, target: bytes, fields: Fields) -> Fields:
    """A request's pseudo-fields and fields (RFC 9113 section 8.3.1), names in lower case.

    Host becomes :authority; `authority` stands in where Host is empty or absent. The target goes
    on octet for octet.
    """
    kept: Fields = []
    for name, value in fields:
        kind = names.KIND[name]
        if kind == names.HOST:
            authority = value or authority
        elif kind not in _CONNECTION_KINDS:
            kept.append((names.LOWER[name], value))
    return [
        (b":method", method),
        (b":scheme", scheme.encode()),
        (b":authority", authority),
        (b":path", target),
        *kept,
    ]


def lowered(fields: Fields) -> Fields:
    """Fields with their names in lower case (RFC 9113 section 8.2)."""
    return [(names.LOWER[name], value) for name, value in fields]


def response(
    fields: Iterable[tuple[bytes, bytes]], method: bytes, limits: HeadLimits
) -> ResponseHead:
    """A response's head from :status and fields, judged; a body without length is CHUNKED.

    Raises BadMessage with BAD_RESPONSE or RESPONSE_HEAD_TOO_LARGE.
    """
    status = b""
    kept: Fields = []
    for name, value in fields:
        if name == b":status" and not status:
            status = value
        elif name.startswith(b":"):
            raise BadMessage(_BAD, "unknown pseudo-field", "RFC 9113 section 8.3")
        else:
            kept.append((name, value))
    if len(status) != 3 or not status.isdigit() or status < b"100":
        raise BadMessage(_BAD, "no valid status", "RFC 9113 section 8.3.2")
    _judge_fields(kept, limits)
    head = ResponseHead(int(status), b"", 1, kept)
    judge_response(head, method)
    head.minor = HTTP_2  # judged as what it will be sent on as, it is still what it came as
    if head.framing is Framing.CLOSE:
        # The stream's end is told apart from its reset, so the client's side may be, too.
        head.framing = Framing.CHUNKED
    return head


def trailers(fields: Iterable[tuple[bytes, bytes]], limits: HeadLimits) -> Fields:
    """The fields of a trailer section, judged. Raises BadMessage as `response` does."""
    kept = list(fields)
    _judge_fields(kept, limits)
    return kept


def _judge_fields(fields: Fields, limits: HeadLimits) -> None:
    if len(fields) > limits.fields_max:
        raise BadMessage(_TOO_LARGE, "too many fields")
    block = b"".join([b"%b: %b\r\n" % field for field in fields])
    if len(block) > limits.head_bytes_max:
        raise BadMessage(_TOO_LARGE, "fields are too large")
    if judge_octets(block, _BAD) != len(fields):
        raise BadMessage(_BAD, "line end in a field", "RFC 9113 section 8.2.1")
    for name, _ in fields:
        kind = names.KIND[name]
        if kind == names.INVALID:
            raise BadMessage(_BAD, "field name is not a token", "RFC 9113 section 8.2.1")
        if kind in _CONNECTION_KINDS and kind != names.HOST:
            raise BadMessage(_BAD, "connection-specific field", "RFC 9113 section 8.2.2")


class BodyCount:
    """Holds a body to what its head said: the client's side is framed by that alone.

    h2 compares a length with DATA frames only, so that a head with a length and the stream's end
    in one frame passes it.
    """

    __slots__ = ("_left",)

    def __init__(self, head: ResponseHead) -> None:
        framing = head.framing
        self._left = -1 if framing is Framing.CHUNKED else 0
        if framing is Framing.LENGTH:
            self._left = head.content_length

    def add(self, data: bytes) -> None:
        """A piece. Raises BadMessage where it is more than was said."""
        if self._left >= 0:
            self._left -= len(data)
            if self._left < 0:
                raise BadMessage(_BAD, "body is too long", "RFC 9113 section 8.1.1")

    def end(self) -> None:
        """The end. Raises BadMessage where more was said."""
        if self._left > 0:
            raise BadMessage(
                ErrorKind.RESPONSE_INCOMPLETE, "body is too short", "RFC 9113 section 8.1.1"
            )
