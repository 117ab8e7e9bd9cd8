"""What both sides' connections have in common: the buffered read, the joined write, the gates.

All connections of a worker read into one buffer: a loop fills it and calls `buffer_updated` in one
step, so no octet outlives the call. It saves 64 KiB per connection (1,000 slow readers held 145 MiB
where `data_received` held 333).
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from gateway.clock import SECOND, monotonic_ns
from gateway.proxy.flow import FLUSH_BYTES, WRITE_HIGH, news_of, peer_has_left
from gateway.proxy.gone import GONE

if TYPE_CHECKING:
    from gateway.proxy.deadlines import Watched
    from gateway.proxy.graph import Worker
    from gateway.proxy.tunnel import Tunnel

__all__ = ["Relay"]

# Who takes nothing of what is unsent for so long will not take the rest: three times the longest
# that a lost segment is usually repeated after (RFC 6298: 1 s, doubled twice).
CLOSE_TIMEOUT_NS = 12 * SECOND


class Relay(asyncio.BufferedProtocol):
    """One connection of either side.

    A subclass gives `received(data)`, `ended()` (the peer sends no more), `lost()` (the connection
    is gone), `writable(bool)`, `timed_out(now_ns)` and `forget()` (leave whatever lists it). While
    `tunnel` is set, it hears of everything but `forget` instead. `out` gathers what one event
    produces, `flush` writes it at once.
    """

    __slots__ = (
        "_ask_news",
        "_flush_due",
        "_paused",
        "_spoke",
        "_unsent_bytes",
        "deadline_ns",
        "lost_already",
        "out",
        "transport",
        "tunnel",
        "watching",
        "worker",
        "write_blocked",
    )

    transport: asyncio.Transport

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.out: list[bytes] = []
        self.deadline_ns = 0
        self.watching = False
        self.write_blocked = False
        self.lost_already = False
        self._paused = 0
        self._flush_due = False
        self._unsent_bytes = 0  # at the last look
        self._spoke: set[Watched] | None = None
        self._ask_news: Callable[[int], list[tuple[int, int]]] | None = None
        self.tunnel: Tunnel | None = None

    # What a subclass does with what happens.

    def received(self, data: bytes) -> None:
        raise NotImplementedError

    def ended(self) -> None:
        raise NotImplementedError

    def lost(self) -> None:
        raise NotImplementedError

    def writable(self, yes: bool) -> None:
        raise NotImplementedError

    def timed_out(self, now_ns: int) -> None:
        raise NotImplementedError

    def forget(self) -> None:
        raise NotImplementedError

    # asyncio's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=WRITE_HIGH)
        self._spoke = self.worker.wheel.add(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.worker.read_buffer

    def buffer_updated(self, nbytes: int) -> None:
        data = bytes(self.worker.read_buffer[:nbytes])
        if self.tunnel is None:
            self.received(data)
        else:
            self.tunnel.received(self, data)

    def eof_received(self) -> bool:
        """Says whether writing goes on after the peer's FIN: in a tunnel only."""
        if self.tunnel is not None:
            return self.tunnel.ended(self)
        self.ended()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost_already = True
        self.deadline_ns = 0
        self.watching = False
        if self._spoke is not None:
            self._spoke.discard(self)
            self._spoke = None
        self.forget()
        if self.tunnel is None:
            self.lost()
        else:
            self.tunnel.lost(self)
        self.transport = GONE

    def pause_writing(self) -> None:
        self.write_blocked = True
        self._tell_writable(False)

    def resume_writing(self) -> None:
        self.write_blocked = False
        self._tell_writable(True)

    def _tell_writable(self, yes: bool) -> None:
        if self.tunnel is None:
            self.writable(yes)
        else:
            self.tunnel.writable(self, yes)

    # The wheel's side.

    def expired(self, now_ns: int) -> None:
        if self.transport.is_closing():
            if self.took_more():
                self.set_timeout(CLOSE_TIMEOUT_NS)
            else:
                self.reset()
        elif self.tunnel is None:
            self.timed_out(now_ns)
        else:
            self.tunnel.expired(self)

    # For both sides.

    def flush(self) -> None:
        """What has gathered goes out at the end of this turn of the loop, or now if it is much.

        Under load a turn serves some thirty connections; writing to all of them after the last
        read wakes the peers' processes while ours has nothing else to do (5 us less of kernel time
        per request than writing between the reads). A loop may read one socket many times in a
        turn, so a stream is written as it comes: only then does its back-pressure hold.
        """
        out = self.out
        if not out:
            return
        gathered_bytes = 0
        for data in out:
            gathered_bytes += len(data)
        if gathered_bytes >= FLUSH_BYTES:
            self.flush_now()
        elif not self._flush_due:
            self._flush_due = True
            self.worker.flush_later(self)

    def flush_now(self) -> None:
        """Writes what has gathered, joined, in one call."""
        self._flush_due = False
        out = self.out
        if out and not self.lost_already:
            data = out[0] if len(out) == 1 else b"".join(out)
            out.clear()
            self.transport.write(data)

    def pause_reading(self, reason: int) -> None:
        if not self._paused and not self.lost_already:
            self.transport.pause_reading()
            self.watching = True
        self._paused |= reason

    def resume_reading(self, reason: int) -> None:
        if self._paused & reason:
            self._paused &= ~reason
            if not self._paused and not self.lost_already:
                self.watching = False
                self.transport.resume_reading()

    @property
    def reading_paused(self) -> bool:
        return self._paused != 0

    def turned(self, now_ns: int) -> None:
        """Reading is paused: ask the kernel whether the peer is still there."""
        sock = self.transport.get_extra_info("socket")
        if sock is not None and sock.fileno() >= 0 and peer_has_left(sock.fileno()):
            if self.tunnel is None:
                self.peer_left()
            else:
                self.tunnel.peer_left(self)

    def something_came(self) -> bool:
        """Whether the kernel has news of the peer that the loop has not told yet."""
        ask = self._ask_news
        if ask is None:
            sock = self.transport.get_extra_info("socket")
            if sock is None or sock.fileno() < 0:
                return False
            ask = self._ask_news = news_of(sock.fileno())  # asked again at 0.4 of the cost
        return bool(ask(0))

    def peer_left(self) -> None:
        """The peer closed while its reading was paused. A FIN may follow data still unread, and
        half-closing is its right, so by default only a reset (reported by the loop) ends things."""

    def set_timeout(self, timeout_ns: int) -> None:
        self.deadline_ns = monotonic_ns() + timeout_ns if timeout_ns else 0

    def abort(self) -> None:
        """Drops the connection at once: what is unsent is lost."""
        if not self.lost_already:
            self.transport.abort()

    def reset(self) -> None:
        """Drops the connection so that the peer cannot take it for an end: RST, never FIN."""
        if not self.lost_already:
            sock = self.transport.get_extra_info("socket")
            if sock is not None and sock.fileno() >= 0:
                # l_onoff = 1, l_linger = 0 (socket(7)): close sends RST.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()

    def close(self) -> None:
        """Closes after what is unsent has gone out, or when the peer takes no more of it."""
        if not self.lost_already:
            self.flush_now()
            self.took_more()
            self.transport.close()
            self.set_timeout(CLOSE_TIMEOUT_NS)

    def took_more(self) -> bool:
        """Whether the peer has taken some of what was unsent at the last look."""
        before, self._unsent_bytes = self._unsent_bytes, self.transport.get_write_buffer_size()
        return self._unsent_bytes < before
