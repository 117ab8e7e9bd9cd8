"""Heads and chunks as octets: one join per head, so that a message goes out in one write.

Nothing is judged here. What comes from a codec has been through the guard, and what the gateway
adds itself it makes from tokens.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from gateway.h1.message import Fields, Framing

__all__ = ["LAST_CHUNK", "chunk", "last_chunk", "reason_phrase", "request", "response"]

LAST_CHUNK: Final = b"0\r\n\r\n"

_CRLF: Final = b"\r\n"
_CHUNKED_LINE: Final = b"Transfer-Encoding: chunked"
_CLOSE_LINE: Final = b"Connection: close"

_REASONS = {status.value: status.phrase.encode("ascii") for status in HTTPStatus}
# The status-lines that nearly all responses begin with, made once.
_STATUS_LINES: Final = {
    (status, reason): b"HTTP/1.1 %d %b" % (status, reason) for status, reason in _REASONS.items()
}

_CHUNKED: Final = Framing.CHUNKED
_line: Final = b": ".join


def reason_phrase(status: int) -> bytes:
    """The usual reason-phrase of a status, empty for one that nobody has registered."""
    return _REASONS.get(status, b"")


def request(method: bytes, target: bytes, fields: Fields, framing: Framing) -> bytes:
    """A request's head (RFC 9112 section 3). With CHUNKED it says so; a length is in `fields`."""
    lines = [b"%b %b HTTP/1.1" % (method, target)]
    lines += map(_line, fields)
    if framing is _CHUNKED:
        lines.append(_CHUNKED_LINE)
    lines += (b"", b"")
    return _CRLF.join(lines)


def response(status: int, reason: bytes, fields: Fields, framing: Framing, close: bool) -> bytes:
    """A response's head (RFC 9112 section 4), always HTTP/1.1 (RFC 9110 section 6.2).

    With CHUNKED it says so; with `close` it says that the connection ends after this message.
    """
    line = _STATUS_LINES.get((status, reason))
    lines = [line if line is not None else b"HTTP/1.1 %d %b" % (status, reason)]
    lines += map(_line, fields)
    if framing is _CHUNKED:
        lines.append(_CHUNKED_LINE)
    if close:
        lines.append(_CLOSE_LINE)
    lines += (b"", b"")
    return _CRLF.join(lines)


def chunk(data: bytes) -> tuple[bytes, bytes, bytes]:
    """The three parts of a chunk, for `writelines`: large data is not copied to be framed.

    `data` is not empty: an empty chunk would end the body (RFC 9112 section 7.1).
    """
    return b"%x\r\n" % len(data), data, _CRLF


def last_chunk(trailers: Fields) -> bytes:
    """What ends a chunked body, with its trailers (RFC 9112 section 7.1.2)."""
    if not trailers:
        return LAST_CHUNK
    return _CRLF.join([b"0", *map(_line, trailers), b"", b""])
