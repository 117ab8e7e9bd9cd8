"""Where messages begin and end: all of a codec that is not a tokenizer, written once.

A tokenizer only ever sees one complete head, whose start-line and octets have been judged, so that
what it believes about bodies, pipelining, HEAD, CONNECT or Upgrade does not matter: the guard says
how a body ends, and the framer counts. Body octets go on as they come; when a piece is all body it
is passed on uncopied.

    request:   HEAD -> (LENGTH | CHUNKED ->) DONE -next_message-> HEAD
    response:  IDLE -expect-> HEAD -> (1xx: HEAD | LENGTH | CHUNKED | CLOSE ->) IDLE
               101, 2xx to CONNECT -> TUNNEL;   octets that no one asked for -> SPOILT
    both:      anything that is refused -> DEAD
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import ClassVar, Final

from gateway.errors import ErrorKind
from gateway.h1.chunked import ChunkedReader, scan_partial
from gateway.h1.codec import BadMessage, HeadLimits
from gateway.h1.guard import judge_octets, judge_request, judge_response
from gateway.h1.message import Fields, Framing, MessageSink, RequestHead, ResponseHead

__all__ = ["RequestFramer", "ResponseFramer", "Tokenize"]

# From a complete head, its start-line included, to its fields. Raises BadMessage.
Tokenize = Callable[[bytes], Fields]

# Plain integers, because an enum's attribute costs 30 ns at every use.
_HEAD: Final = 0
_LENGTH: Final = 1
_CHUNKED: Final = 2
_CLOSE: Final = 3
_DONE: Final = 4
_IDLE: Final = 5
_TUNNEL: Final = 6
_SPOILT: Final = 7
_DEAD: Final = 8

_NONE: Final = Framing.NONE
_BY_LENGTH: Final = Framing.LENGTH
_BY_CHUNKS: Final = Framing.CHUNKED

# RFC 9112 section 2.3: the version is case-sensitive. 0.9 has no heads, 2 and 3 other octets.
_MINOR: Final = {b"HTTP/1.1": 1, b"HTTP/1.0": 0}
_VERSION: Final = re.compile(rb"HTTP/([0-9])\.[0-9]").fullmatch

# RFC 9112 section 5.1: a response's field may have space between its name and the colon, which a
# proxy removes. A start-line has no line before it, and a folded one does not begin with a token.
_SPACES_BEFORE_COLON: Final = re.compile(rb"(?<=\n)([!#$%&'*+\-.^_`|~0-9A-Za-z]+)[ \t]+(?=:)")

# A server may send 102 every 20 s (RFC 2518 section 10.1); with the default total timeout of 10 min
# that is 30, and twice as many are no longer progress.
_INTERIM_MAX = 64


class _Framer:
    """What requests and responses have in common."""

    __slots__ = ("_chunks", "_held", "_limits", "_remaining", "_scanned", "_sink", "_state")

    _bad: ClassVar[ErrorKind] = ErrorKind.BAD_REQUEST
    _too_large: ClassVar[ErrorKind] = ErrorKind.HEAD_TOO_LARGE
    _too_long: ClassVar[ErrorKind] = ErrorKind.TARGET_TOO_LONG
    _one_word: ClassVar[ErrorKind] = ErrorKind.NOT_IMPLEMENTED  # a method without end

    def __init__(self, sink: MessageSink, limits: HeadLimits, state: int) -> None:
        self._sink = sink
        self._limits = limits
        self._state = state
        self._remaining = 0  # octets that a body of known length still lacks
        self._chunks: ChunkedReader | None = None
        self._held = bytearray()  # a head that is not complete, or octets behind a message
        self._scanned = 0  # octets of an incomplete head that have been judged

    def _head_received(self, block: bytes, rest: bytes) -> None:
        raise NotImplementedError

    def _complete(self, trailers: Fields, rest: bytes) -> None:
        raise NotImplementedError

    def _begin(self, data: bytes) -> None:
        """Octets that start with a head's first."""
        end = data.find(b"\r\n\r\n") + 4
        if end == 3 or end > self._limits.head_bytes_max:
            self._hold_slow(data)
        elif end == len(data):
            self._head_received(data, b"")
        else:
            self._head_received(data[:end], data[end:])

    def _hold_slow(self, data: bytes) -> None:
        """Adds to a head that came in pieces, and goes on when it is complete.

        The octets are judged as they come, so that what can become no head (TLS on a plain port, a
        bare LF) is refused at once and not when the time for a head is over.
        """
        held = self._held
        searched = max(0, len(held) - 3)
        held += data
        end = held.find(b"\r\n\r\n", searched) + 4
        head_bytes_max = self._limits.head_bytes_max
        if end == 3 or end > head_bytes_max:
            judged = min(len(held), head_bytes_max)
            self._scanned = scan_partial(held, self._scanned, judged, self._bad)
            if len(held) > head_bytes_max:
                if held.find(b"\r\n", 0, head_bytes_max) < 0:
                    has_space = held.find(b" ", 0, head_bytes_max) >= 0
                    kind = self._too_long if has_space else self._one_word
                    raise BadMessage(kind, "start-line is too long", "RFC 9112 section 3")
                raise BadMessage(self._too_large, "head is too long", "RFC 6585 section 5")
            return
        block = bytes(held[:end])
        rest = bytes(held[end:])
        held.clear()
        self._scanned = 0
        self._head_received(block, rest)

    def _check_count(self, fields: int) -> None:
        if fields > self._limits.fields_max:
            raise BadMessage(self._too_large, "too many fields", "RFC 6585 section 5")

    def _begin_length(self, length: int, rest: bytes) -> None:
        self._state = _LENGTH
        self._remaining = length
        if rest:
            self._feed_length(rest)

    def _feed_length(self, data: bytes) -> None:
        remaining = self._remaining - len(data)
        if remaining > 0:
            self._remaining = remaining
            self._sink.body_received(data)
        elif remaining == 0:
            self._sink.body_received(data)
            self._complete([], b"")
        else:
            self._sink.body_received(data[:remaining])
            self._complete([], data[remaining:])

    def _begin_chunks(self, rest: bytes) -> None:
        self._state = _CHUNKED
        self._chunks = ChunkedReader(
            self._sink.body_received, self._limits, self._bad, self._too_large
        )
        if rest:
            self._feed_chunks(rest)

    def _feed_chunks(self, data: bytes) -> None:
        chunks = self._chunks
        assert chunks is not None
        rest = chunks.feed(data)
        if rest is not None:
            self._chunks = None
            self._complete(chunks.trailers, rest)

    def take_rest(self) -> bytes:
        """The octets behind the last message; they are no longer held here."""
        rest = bytes(self._held)
        self._held.clear()
        return rest


class RequestFramer(_Framer):
    """The requests of one downstream connection (`codec.RequestDecoder`)."""

    __slots__ = ("_eof", "_tokenize", "buffered")

    def __init__(self, sink: MessageSink, limits: HeadLimits, tokenize: Tokenize) -> None:
        super().__init__(sink, limits, _HEAD)
        self._tokenize = tokenize
        self._eof = False
        self.buffered = 0

    def feed(self, data: bytes) -> None:
        """Reads on, to the end of the message at most. Raises BadMessage."""
        if not data:
            return
        state = self._state
        begun = data
        try:
            if state == _HEAD:
                if self._held:
                    begun = bytes(self._held[:8]) + data[:8]
                    self._hold_slow(data)
                else:
                    self._begin(data)
            elif state == _LENGTH:
                self._feed_length(data)
            elif state == _CHUNKED:
                self._feed_chunks(data)
            elif state == _DONE:
                self._held += data
                self.buffered = len(self._held)
            else:
                raise BadMessage(self._bad, "octets after a malformed message")
        except BadMessage as bad:
            self._state = _DEAD
            bad.to_head = state == _HEAD and begun.lstrip(b"\r\n").startswith(b"HEAD ")
            raise
        except BaseException:
            self._state = _DEAD
            raise

    def next_message(self) -> None:
        """Starts on the next request. Raises BadMessage.

        Raises RuntimeError if the message before has not ended.
        """
        if self._state != _DONE:
            raise RuntimeError("the message before has not ended")
        self._state = _HEAD
        self.buffered = 0
        if self._held:
            self.feed(self.take_rest())
            if self._eof and self._state != _DONE:
                self.eof()

    def eof(self) -> None:
        """The client sends no more. Raises BadMessage inside a message (RFC 9112 section 8)."""
        self._eof = True
        state = self._state
        # An empty line before a request-line is no request (RFC 9112 section 2.2).
        if state in (_DONE, _DEAD) or (
            state == _HEAD and bytes(self._held) in (b"", b"\r", b"\r\n")
        ):
            return
        self._state = _DEAD
        raise BadMessage(self._bad, "request is cut off", "RFC 9112 section 8")

    def take_rest(self) -> bytes:
        """After a CONNECT or an Upgrade: the octets behind the head."""
        self.buffered = 0
        return super().take_rest()

    def _head_received(self, block: bytes, rest: bytes) -> None:
        lines = judge_octets(block, self._bad)
        parts = block[: block.find(b"\r\n")].split(b" ")
        if len(parts) != 3:
            self._bad_line_slow(block, rest)
            return
        method, target, version = parts
        minor = _MINOR.get(version)
        if minor is None:
            self._other_version_slow(method, target, version, block, rest)
            return
        limits = self._limits
        if len(target) > limits.target_bytes_max:
            raise BadMessage(self._too_long, "target is too long", "RFC 9112 section 3")
        if lines - 2 > limits.fields_max:
            self._check_count(lines - 2)
        fields = self._tokenize(block)
        if len(fields) != lines - 2:
            # A tokenizer that unfolds lines has fewer fields than there were lines.
            raise BadMessage(self._bad, "folded line", "RFC 9112 section 5.2")
        head = RequestHead(method, target, minor, fields)
        judge_request(head)
        self._sink.head_received(head)
        framing = head.framing
        if framing is _NONE or (framing is _BY_LENGTH and not head.content_length):
            self._complete([], rest)
        elif framing is _BY_LENGTH:
            self._begin_length(head.content_length, rest)
        else:
            self._begin_chunks(rest)

    def _other_version_slow(
        self, method: bytes, target: bytes, version: bytes, block: bytes, rest: bytes
    ) -> None:
        """A higher minor version is read as the highest that we know (RFC 9110 section 2.5)."""
        found = _VERSION(version)
        if found is None:
            raise BadMessage(self._bad, "version is not valid", "RFC 9112 section 2.3")
        if found[1] != b"1":
            raise BadMessage(
                ErrorKind.VERSION_NOT_SUPPORTED, "version is not HTTP/1.x", "RFC 9110 15.6.6"
            )
        line = b"%b %b HTTP/1.1" % (method, target)
        self._head_received(line + block[block.find(b"\r\n") :], rest)

    def _bad_line_slow(self, block: bytes, rest: bytes) -> None:
        """One empty line before a request-line is ignored (RFC 9112 section 2.2)."""
        if block.startswith(b"\r\n") and not block.startswith(b"\r\n\r\n"):
            self._head_received(block[2:], rest)
            return
        raise BadMessage(self._bad, "request-line is not valid", "RFC 9112 section 3")

    def _complete(self, trailers: Fields, rest: bytes) -> None:
        self._state = _DONE
        if rest:
            self._held += rest
            self.buffered = len(rest)
        self._sink.message_complete(trailers)


class ResponseFramer(_Framer):
    """The responses of one upstream connection (`codec.ResponseDecoder`)."""

    __slots__ = ("_interim", "_keep_alive", "_method", "_tokenize", "reusable")

    _bad: ClassVar[ErrorKind] = ErrorKind.BAD_RESPONSE
    _too_large: ClassVar[ErrorKind] = ErrorKind.RESPONSE_HEAD_TOO_LARGE
    _too_long: ClassVar[ErrorKind] = ErrorKind.RESPONSE_HEAD_TOO_LARGE
    _one_word: ClassVar[ErrorKind] = ErrorKind.RESPONSE_HEAD_TOO_LARGE

    def __init__(self, sink: MessageSink, limits: HeadLimits, tokenize: Tokenize) -> None:
        super().__init__(sink, limits, _IDLE)
        self._tokenize = tokenize
        self._method = b""
        self._interim = 0
        self._keep_alive = False
        self.reusable = True

    def expect(self, method: bytes) -> None:
        """A request of that method is about to be sent.

        Raises RuntimeError if the connection is not at rest, or was spoilt.
        """
        if self._state != _IDLE:
            raise RuntimeError("the connection is not ready for a request")
        self._state = _HEAD
        self._method = method
        self._interim = 0
        self.reusable = False

    def feed(self, data: bytes) -> None:
        """Reads on. Raises BadMessage."""
        if not data:
            return
        state = self._state
        try:
            if state == _HEAD:
                if self._held:
                    self._hold_slow(data)
                else:
                    self._begin(data)
            elif state == _LENGTH:
                self._feed_length(data)
            elif state == _CHUNKED:
                self._feed_chunks(data)
            elif state == _CLOSE:
                self._sink.body_received(data)
            elif state == _TUNNEL:
                self._held += data
            elif state != _DEAD:
                # RFC 9112 section 6.3: octets behind a response are no response.
                self._state = _SPOILT
                self.reusable = False
            else:
                raise BadMessage(self._bad, "octets after a malformed message")
        except BaseException:
            self._state = _DEAD
            self.reusable = False
            raise

    def eof(self) -> None:
        """The upstream sends no more: the end of a body without length, if there is one.

        Raises BadMessage with UPSTREAM_CLOSED before a response's first octet, with
        RESPONSE_INCOMPLETE inside one (RFC 9112 section 8).
        """
        state = self._state
        self.reusable = False
        if state == _CLOSE:
            self._state = _SPOILT
            self._sink.message_complete([])
        elif state == _IDLE:
            self._state = _SPOILT
        elif state in (_HEAD, _LENGTH, _CHUNKED):
            self._state = _DEAD
            if state == _HEAD and not self._held:
                raise BadMessage(
                    ErrorKind.UPSTREAM_CLOSED, "connection closed before a response", ""
                )
            raise BadMessage(
                ErrorKind.RESPONSE_INCOMPLETE, "response is cut off", "RFC 9112 section 8"
            )

    def _head_received(self, block: bytes, rest: bytes) -> None:
        lines = judge_octets(block, self._bad)
        parts = block[: block.find(b"\r\n")].split(b" ", 2)
        minor = _MINOR.get(parts[0])
        if minor is None:
            self._other_version_slow(parts[0], block, rest)
            return
        # Servers in use leave out the space before an empty reason-phrase.
        if len(parts) < 2:
            raise BadMessage(self._bad, "status-line is not valid", "RFC 9112 section 4")
        code = parts[1]
        if len(code) != 3 or not code.isdigit() or code < b"100":
            raise BadMessage(self._bad, "status is not valid", "RFC 9112 section 4")
        if lines - 2 > self._limits.fields_max:
            self._check_count(lines - 2)
        repaired = False
        try:
            fields = self._tokenize(block)
        except BadMessage:
            without = _SPACES_BEFORE_COLON.sub(rb"\1", block)
            if len(without) == len(block):
                raise
            fields = self._tokenize(without)
            repaired = True
        head = ResponseHead(int(code), parts[2] if len(parts) == 3 else b"", minor, fields)
        judge_response(head, self._method)
        if repaired or len(fields) != lines - 2:
            # Spaces were removed, or a folded line unfolded (RFC 9112 sections 5.1 and 5.2): not a
            # server to rely upon.
            head.keep_alive = False
        if head.status < 200 and head.status != 101:
            self._interim_received(head, rest)
            return
        self._keep_alive = head.keep_alive
        self._sink.head_received(head)
        framing = head.framing
        if framing is _NONE or (framing is _BY_LENGTH and not head.content_length):
            if head.status == 101 or (self._method == b"CONNECT" and head.status < 300):
                self._begin_tunnel(rest)
            else:
                self._complete([], rest)
        elif framing is _BY_LENGTH:
            self._begin_length(head.content_length, rest)
        elif framing is _BY_CHUNKS:
            self._begin_chunks(rest)
        else:
            self._state = _CLOSE
            if rest:
                self._sink.body_received(rest)

    def _other_version_slow(self, version: bytes, block: bytes, rest: bytes) -> None:
        """A higher minor version is read as the highest that we know (RFC 9110 section 2.5)."""
        found = _VERSION(version)
        if found is None or found[1] != b"1":
            raise BadMessage(self._bad, "status-line is not valid", "RFC 9112 section 4")
        self._head_received(b"HTTP/1.1" + block[len(version) :], rest)

    def _interim_received(self, head: ResponseHead, rest: bytes) -> None:
        self._interim += 1
        if self._interim > _INTERIM_MAX:
            raise BadMessage(self._bad, "too many interim responses", "RFC 9110 section 15.2")
        self._sink.head_received(head)
        if rest:
            self._begin(rest)

    def _begin_tunnel(self, rest: bytes) -> None:
        self._state = _TUNNEL
        self._held += rest
        self._sink.message_complete([])

    def _complete(self, trailers: Fields, rest: bytes) -> None:
        if rest:
            self._state = _SPOILT
        else:
            self._state = _IDLE
            self.reusable = self._keep_alive
        self._sink.message_complete(trailers)
