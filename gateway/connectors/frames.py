"""Looks at an HTTP/2 connection's frames before h2 does, for two things that it gets wrong.

A server that wants a connection to end says GOAWAY with NO_ERROR and the last stream that it will
still answer (RFC 9113 section 6.8); nginx does so after every 1,000 requests. The h2 library is
through with a connection at any GOAWAY: what comes later, answers under way included, is an error
to it (4.4.1). So the frame is read here, told to whoever keeps the connection, and left out.

And h2 looks at a frame's length when all of it is there: a peer could make it keep 16 MiB (RFC 9113
section 4.2). Here a frame that is too long is refused by its head.
"""

from __future__ import annotations

from collections.abc import Callable

from gateway.errors import ErrorKind
from gateway.h1.codec import BadMessage

__all__ = ["FrameFilter"]

# RFC 9113 section 4.1: length (24 bits), type (8), flags (8), stream (1 + 31).
HEAD_BYTES = 9
GOAWAY = 7
NO_ERROR = 0
# Last stream and error code; what debug data follows is of no use.
GOAWAY_BYTES_MIN = 8
# SETTINGS_MAX_FRAME_SIZE, which we leave at its initial value. A GOAWAY is kept until it is whole.
FRAME_BYTES_MAX = 16_384


class FrameFilter:
    """Follows the frames of one direction, however they are cut into reads."""

    __slots__ = ("_held", "_skip", "_told")

    def __init__(self, told: Callable[[int], None]) -> None:
        """`told(last_stream_id)` is called for each graceful GOAWAY."""
        self._told = told
        self._held = b""  # a frame's head, or a GOAWAY, not yet whole
        self._skip = 0  # octets of a frame's payload still to pass unread

    def feed(self, data: bytes) -> bytes:
        """The octets without graceful GOAWAYs; the start of a frame may come with a later read.

        Raises BadMessage for a frame that is too long.
        """
        if len(data) <= self._skip:
            self._skip -= len(data)
            return data
        passed = []
        if self._skip:
            passed.append(data[: self._skip])
            data = data[self._skip :]
            self._skip = 0
        data = self._held + data
        position = 0
        while len(data) - position >= HEAD_BYTES:
            size = int.from_bytes(data[position : position + 3], "big")
            if size > FRAME_BYTES_MAX:
                raise BadMessage(
                    ErrorKind.BAD_RESPONSE, "frame is too long", "RFC 9113 section 4.2"
                )
            end = position + HEAD_BYTES + size
            if data[position + 3] == GOAWAY and size >= GOAWAY_BYTES_MIN:
                if len(data) < end:
                    break
                payload = position + HEAD_BYTES
                if int.from_bytes(data[payload + 4 : payload + 8], "big") == NO_ERROR:
                    # The first bit is reserved (RFC 9113 section 6.8).
                    last = int.from_bytes(data[payload : payload + 4], "big") & 0x7FFF_FFFF
                    self._told(last)
                    position = end
                    continue
            passed.append(data[position:end])
            if len(data) < end:
                self._skip = end - len(data)
                position = len(data)
                break
            position = end
        self._held = data[position:]
        return b"".join(passed)
