"""A connection's octets for a library that reads and writes by waiting, as httpcore does.

It is the part of httpcore's network stream that an HTTP/2 connection uses, on a transport that one
of our dialers has opened.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol, cast

from gateway.connectors.frames import FrameFilter
from gateway.connectors.lanes import STREAMS_MAX
from gateway.h1.codec import BadMessage
from gateway.proxy.flow import READ_BYTES, WRITE_HIGH

if TYPE_CHECKING:
    from gateway.proxy.graph import Worker

__all__ = ["Wire"]

# A peer that makes us answer (PING, SETTINGS) and does not read is cut off here: all streams at
# once may each have a frame of 16 KiB in the transport, beyond its high-water mark.
UNSENT_BYTES_MAX = 2 * STREAMS_MAX * 16 * 1024


class Listening(Protocol):
    """Who hears of what happens to the connection."""

    def lost(self) -> None: ...

    def retire(self, last_stream_id: int) -> None:
        """A graceful GOAWAY came: streams after this one will not be answered."""
        ...


class Wire(asyncio.BufferedProtocol):
    """The octets of one connection, either way.

    Reading stops at READ_BYTES that nobody has fetched.
    """

    transport: asyncio.Transport

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._filter = FrameFilter(self._goaway)
        self._unread = bytearray()
        self._arrived = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._reading_paused = False
        self._ended = False
        self._fault: BadMessage | None = None
        self.lost_already = False
        self.lane: Listening | None = None
        self._goaways: list[int] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=WRITE_HIGH)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._worker.read_buffer

    def buffer_updated(self, nbytes: int) -> None:
        data = bytes(self._worker.read_buffer[:nbytes])
        try:
            self._unread += self._filter.feed(data)
        except BadMessage as bad:
            self._fault = bad
            self._arrived.set()
            self.transport.pause_reading()
            return
        if self._unread:
            self._arrived.set()
            if len(self._unread) > READ_BYTES and not self._reading_paused:
                self._reading_paused = True
                self.transport.pause_reading()

    def eof_received(self) -> None:
        self._ended = True
        self._arrived.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = self.lost_already = True
        self._arrived.set()
        self._writable.set()
        if self.lane is not None:
            self.lane.lost()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def belongs_to(self, lane: Listening) -> None:
        """The lane hears of what happens, and of what has happened before it was there."""
        self.lane = lane
        for last_stream_id in self._goaways:
            lane.retire(last_stream_id)
        if self.lost_already:
            lane.lost()

    def send(self, data: bytes) -> None:
        """Writes without waiting, so that the order of writes is the order of calls."""
        if data and not self.lost_already:
            self.transport.write(data)
            if self.transport.get_write_buffer_size() > UNSENT_BYTES_MAX:
                self.transport.abort()

    async def drain(self) -> None:
        """Waits until the peer has taken what was sent, but for WRITE_HIGH."""
        await self._writable.wait()

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        """Octets, or b"" at the end. Deadlines are the exchanges', so `timeout` is not used.

        Raises BadMessage where what came is not even framed.
        """
        while not self._unread:
            if self._fault is not None:
                raise self._fault
            if self._ended:
                return b""
            self._arrived.clear()
            await self._arrived.wait()
        data = bytes(self._unread[:max_bytes])
        del self._unread[:max_bytes]
        if self._reading_paused and len(self._unread) <= READ_BYTES:
            self._reading_paused = False
            if not self.lost_already:
                self.transport.resume_reading()
        return data

    async def aclose(self) -> None:
        self.transport.close()

    def _goaway(self, last_stream_id: int) -> None:
        if self.lane is not None:
            self.lane.retire(last_stream_id)
        else:
            self._goaways.append(last_stream_id)
