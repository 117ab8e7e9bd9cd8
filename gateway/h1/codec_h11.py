"""The reference codec: h11 tokenizes each head, framer and guard do the rest.

h11 (pure Python) is also the second opinion of `codec_httptools`: a head that llhttp refuses is
judged again here, so that whatever one codec accepts the other accepts too. This module is the only
door to h11.
"""

from __future__ import annotations

import re

import h11

from gateway.errors import ErrorKind
from gateway.h1.codec import BadMessage, Codec, HeadLimits
from gateway.h1.framer import RequestFramer, ResponseFramer
from gateway.h1.message import Fields, MessageSink

__all__ = ["CODEC", "request_fields", "response_fields"]

# h11 collapses equal Content-Lengths, puts Transfer-Encoding into lower case, and refuses codings
# with a status of its own choosing. The guard has to see what was received. So these two names are
# hidden from h11 behind a tilde (which a token may have), and uncovered afterwards. A name that
# already has the tilde gets one more, so that nobody can smuggle a field in under its cover.
_COVER = re.compile(rb"(?<=\n)(?=~*(?:content-length|transfer-encoding):)", re.IGNORECASE).sub
_COVERED = re.compile(rb"~+(?:content-length|transfer-encoding)", re.IGNORECASE).fullmatch

# h11 reads a response only after a request; this one allows every status, 101 included.
_ANY_REQUEST = h11.Request(
    method=b"GET", target=b"/", headers=[(b"Host", b"h"), (b"Upgrade", b"any")]
)
_END = h11.EndOfMessage()

# The framer bounds heads before h11 sees them; this must only not be smaller.
_UNBOUNDED = 1 << 30


def request_fields(block: bytes) -> Fields:
    """The fields of a complete request head, unfolded. Raises BadMessage with BAD_REQUEST."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_UNBOUNDED)
    return _fields(connection, block, ErrorKind.BAD_REQUEST)


def response_fields(block: bytes) -> Fields:
    """The fields of a complete response head, unfolded. Raises BadMessage with BAD_RESPONSE."""
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=_UNBOUNDED)
    connection.send(_ANY_REQUEST)
    connection.send(_END)
    return _fields(connection, block, ErrorKind.BAD_RESPONSE)


def _fields(connection: h11.Connection, block: bytes, kind: ErrorKind) -> Fields:
    try:
        connection.receive_data(_COVER(b"~", block))
        event = connection.next_event()
    except h11.RemoteProtocolError as error:
        raise BadMessage(
            kind, str(error).partition(": bytearray")[0], "RFC 9112 section 5"
        ) from None
    if not isinstance(event, (h11.Request, h11.Response, h11.InformationalResponse)):
        raise BadMessage(kind, "head is not complete", "RFC 9112 section 2.1")
    fields = event.headers.raw_items()
    return [(name[1:] if _COVERED(name) else name, value) for name, value in fields]


def _request_decoder(sink: MessageSink, limits: HeadLimits) -> RequestFramer:
    return RequestFramer(sink, limits, request_fields)


def _response_decoder(sink: MessageSink, limits: HeadLimits) -> ResponseFramer:
    return ResponseFramer(sink, limits, response_fields)


CODEC = Codec("h11", _request_decoder, _response_decoder)
