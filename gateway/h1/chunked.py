"""The chunked coding, read strictly (RFC 9112 section 7.1), once for both codecs.

The tokenizers cannot do it for us: llhttp does not say where a chunked body ends when the next
message stands in the same octets and drops extensions uncounted, h11 lets spaces and bare CRs pass.
A difference here is the classic way to smuggle a request, so there is one reader with one verdict.
Extensions are dropped (section 7.1.1); their total is bounded, and so are trailers.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from gateway.errors import ErrorKind
from gateway.h1.codec import BadMessage, HeadLimits
from gateway.h1.guard import judge_octets, judge_trailers
from gateway.h1.message import Fields

__all__ = ["ChunkedReader", "scan_partial"]

# RFC 9112 section 7.1.1: chunk-ext, with the spaces that a recipient MUST see through (RFC 9110
# section 5.6.3). Extensions are held to their grammar although they are dropped: a sender that
# breaks it has perhaps another idea of where the line ends. Each part is possessive, so that no
# line is read twice.
_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_QUOTED = rb'"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*+"'
_EXTENSION = rb"[ \t]*+;[ \t]*+%b(?:[ \t]*+=[ \t]*+(?:%b|%b))?+" % (_TOKEN, _TOKEN, _QUOTED)
# 16 hexadecimal digits are 64 bits, more than any length that is allowed.
_SIZE_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,16})((?:%b)++)?\r\n" % _EXTENSION).match
# What a line that has not ended may look like, so that most bad ones are refused before they end.
_SIZE_LINE_BEGUN = re.compile(
    rb"(?:[0-9A-Fa-f]{1,16}([ \t]*(?:;[\t -~\x80-\xff]*)?)\r?)?"
).fullmatch
_CHUNK_BYTES_MAX: Final = 2**63 - 1

# Per message. No extension is in general use; a sender that signs its chunks needs 85 octets for
# each, so this leaves room for 190 of them. Node.js allows as much.
_EXTENSION_BYTES_MAX = 16 * 1024

_SIZE: Final = 0
_DATA: Final = 1
_DATA_END: Final = 2
_TRAILERS: Final = 3


def scan_partial(held: bytes | bytearray, scanned: int, end: int, kind: ErrorKind) -> int:
    """Judges the octets from `scanned` to `end` of a section that is not complete.

    Returns up to where they are judged: a CR that comes last waits for its LF. Raises BadMessage.
    """
    if end > scanned and held[end - 1] == 0x0D:
        end -= 1
    judge_octets(bytes(held[scanned:end]), kind)
    return end


class ChunkedReader:
    """Reads one chunked body. `trailers` is complete when `feed` has returned octets.

    `body_received` is called with each piece of data as it comes. `bad` and `too_large` are the
    kinds of error of the direction it reads.
    """

    __slots__ = (
        "_bad",
        "_body_received",
        "_extension_bytes",
        "_held",
        "_limits",
        "_remaining",
        "_scanned",
        "_state",
        "_too_large",
        "trailers",
    )

    def __init__(
        self,
        body_received: Callable[[bytes], None],
        limits: HeadLimits,
        bad: ErrorKind,
        too_large: ErrorKind,
    ) -> None:
        self._body_received = body_received
        self._limits = limits
        self._bad = bad
        self._too_large = too_large
        self._state = _SIZE
        self._remaining = 0
        self._held = b""
        self._scanned = 0
        self._extension_bytes = 0
        self.trailers: Fields = []

    def feed(self, data: bytes) -> bytes | None:
        """Reads on; None until the body has ended, then the octets that follow it.

        Raises BadMessage.
        """
        if self._held:
            data = self._held + data
            self._held = b""
        position = 0
        size = len(data)
        while position < size:
            state = self._state
            if state == _DATA:
                end = position + self._remaining
                if end > size:
                    self._remaining = end - size
                    self._body_received(data[position:])
                    return None
                self._state = _DATA_END
                self._body_received(data[position:end])
                position = end
            elif state == _SIZE:
                match = _SIZE_LINE(data, position)
                if match is None:
                    self._hold_size_slow(data[position:])
                    return None
                self._begin_chunk(match)
                position = match.end()
            elif state == _DATA_END:
                if data.startswith(b"\r\n", position):
                    position += 2
                    self._state = _SIZE
                elif data[position:] == b"\r":
                    self._held = b"\r"
                    return None
                else:
                    raise BadMessage(
                        self._bad, "chunk is longer than its size", "RFC 9112 section 7.1"
                    )
            elif data.startswith(b"\r\n", position):
                return data[position + 2 :]
            else:
                return self._trailers_slow(data[position:])
        return None

    def _begin_chunk(self, match: re.Match[bytes]) -> None:
        if match[2]:
            self._extension_bytes += len(match[2])
            self._check_extensions(self._extension_bytes)
        chunk_bytes = int(match[1], 16)
        if chunk_bytes > _CHUNK_BYTES_MAX:
            raise BadMessage(self._bad, "chunk is too large", "RFC 9112 section 7.1")
        self._remaining = chunk_bytes
        self._state = _DATA if chunk_bytes else _TRAILERS

    def _check_extensions(self, extension_bytes: int) -> None:
        if extension_bytes > _EXTENSION_BYTES_MAX:
            raise BadMessage(self._bad, "chunk extensions are too long", "RFC 9112 section 7.1.1")

    def _hold_size_slow(self, begun: bytes) -> None:
        """Keeps a chunk-size line that has only begun, or refuses what cannot become one."""
        match = _SIZE_LINE_BEGUN(begun)
        if match is None:
            raise BadMessage(self._bad, "chunk-size line is not valid", "RFC 9112 section 7.1")
        if match[1]:
            self._check_extensions(self._extension_bytes + len(match[1]))
        self._held = begun

    def _trailers_slow(self, section: bytes) -> bytes | None:
        """Reads a trailer section that is not empty, once it is complete."""
        limits = self._limits
        end = section.find(b"\r\n\r\n") + 4
        if end == 3 or end > limits.head_bytes_max:
            judged = min(len(section), limits.head_bytes_max)
            self._scanned = scan_partial(section, self._scanned, judged, self._bad)
            if len(section) > limits.head_bytes_max:
                raise BadMessage(self._too_large, "trailers are too long", "RFC 6585 section 5")
            self._held = section
            return None
        trailers = judge_trailers(section[:end], self._bad)
        if len(trailers) > limits.fields_max:
            raise BadMessage(self._too_large, "too many trailers", "RFC 6585 section 5")
        self.trailers = trailers
        return section[end:]
