"""The seam: everything about a connection exists once, only the tokenizer below it is exchangeable.

A codec turns octets into messages. It has been through the guard before a sink sees a head, so a
sink may rely on `framing`, `content_length` and `keep_alive`. Both codecs pass the same suite
(tests/gateway/h1/test_codec.py) and give the same verdict on any input (tests/fuzz).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from gateway.errors import ErrorKind
from gateway.h1.message import MessageSink

__all__ = ["BadMessage", "Codec", "HeadLimits", "RequestDecoder", "ResponseDecoder", "load_codec"]


class HeadLimits(NamedTuple):
    """What a head (and a trailer section) may cost: octets, fields, octets of the target."""

    head_bytes_max: int = 32 * 1024
    fields_max: int = 100
    target_bytes_max: int = 16 * 1024


class BadMessage(Exception):
    """The octets are not an acceptable message. After it the decoder is dead: close the connection.

    `clause` names the rule, e.g. "RFC 9112 section 6.3". For a response the kind is BAD_RESPONSE
    or RESPONSE_HEAD_TOO_LARGE, and at the connection's end UPSTREAM_CLOSED (not an octet of a
    response had come) or RESPONSE_INCOMPLETE. `to_head`: it began as a HEAD request, whose answer
    has no content (RFC 9110 section 9.3.2).
    """

    def __init__(self, kind: ErrorKind, detail: str, clause: str = "") -> None:
        super().__init__(f"{detail} ({clause})" if clause else detail)
        self.kind = kind
        self.detail = detail
        self.clause = clause
        self.to_head = False


class RequestDecoder(Protocol):
    """Decodes the requests of one downstream connection, one message at a time.

    The first message needs no call of `next_message`; it raises RuntimeError inside a message.
    `feed` pushes at most one message into the sink: octets after its end stay inside and count in
    `buffered`. `next_message` starts the next one and pushes what is buffered (possibly the whole
    message). Raises BadMessage.
    """

    buffered: int  # octets held that belong to later messages

    def feed(self, data: bytes) -> None: ...

    def next_message(self) -> None: ...

    def eof(self) -> None:
        """The peer will send no more. Raises BadMessage if a message was cut off inside."""
        ...

    def take_rest(self) -> bytes:
        """After a CONNECT or an Upgrade: the octets behind the head, no longer HTTP."""
        ...


class ResponseDecoder(Protocol):
    """Decodes the responses of one upstream connection.

    `expect` must be called before each request is sent. Interim (1xx, not 101) heads are pushed as
    heads without `message_complete`; the final response follows. After a 101 or a 2xx to CONNECT,
    which end with their head, every further octet is kept for `take_rest`. `reusable` is true when
    the last response ended cleanly, nothing followed it, and its framing allows another. Octets
    that no request asked for are dropped and make it false.
    """

    reusable: bool

    def expect(self, method: bytes) -> None: ...

    def feed(self, data: bytes) -> None: ...

    def eof(self) -> None:
        """Ends a close-delimited body; raises BadMessage if a message was cut off inside."""
        ...

    def take_rest(self) -> bytes:
        """After 101 or a 2xx to CONNECT: the octets behind the head, no longer HTTP."""
        ...


class Codec(NamedTuple):
    """A pair of decoder factories under one name."""

    name: str
    request_decoder: Callable[[MessageSink, HeadLimits], RequestDecoder]
    response_decoder: Callable[[MessageSink, HeadLimits], ResponseDecoder]


def load_codec(name: str) -> Codec:
    """The codec of that name: "httptools", "h11", or "auto" (the first that is installed).

    Raises ImportError where a named codec is not installed, ValueError for an unknown name.
    """
    if name in ("auto", "httptools"):
        try:
            from gateway.h1.codec_httptools import CODEC as fast
        except ImportError:
            if name == "httptools":
                raise
        else:
            return fast
    elif name != "h11":
        raise ValueError(name)
    from gateway.h1.codec_h11 import CODEC as reference

    return reference
