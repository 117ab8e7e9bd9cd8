"""Two connections as one pipe: after CONNECT or a protocol upgrade the octets are no longer ours.

Octets, half-closes and back-pressure pass both ways; a silence of `idle_ns` in both directions ends
the tunnel. Limits cannot see inside, which is why a tunnel must be allowed by name (CONF.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from gateway.clock import monotonic_ns
from gateway.errors import Source
from gateway.proxy.flow import PAUSE_HELD, PAUSE_PEER
from gateway.proxy.relay import Relay

if TYPE_CHECKING:
    from gateway.proxy.graph import Worker
    from gateway.proxy.pool import UpstreamPool

__all__ = ["Tunnel", "TunnelEnd"]


class Tunnel:
    """Joins two relays; `on_end` is called once, when both are gone: who ended it, octets
    from the client, octets to the client."""

    __slots__ = (
        "_downstream",
        "_ended",
        "_idle_ns",
        "_on_end",
        "_source",
        "_upstream",
        "bytes_in",
        "bytes_out",
    )

    def __init__(
        self,
        downstream: Relay,
        upstream: Relay,
        idle_ns: int,
        on_end: Callable[[Source, int, int], None],
    ) -> None:
        self._downstream = downstream
        self._upstream = upstream
        self._idle_ns = idle_ns
        self._on_end: Callable[[Source, int, int], None] | None = on_end
        self._ended: set[Relay] = set()
        self._source = Source.NONE
        self.bytes_in = 0  # from the client
        self.bytes_out = 0  # to the client

    def begin(self, early_in: bytes, early_out: bytes) -> None:
        """Takes both connections over; the octets came behind the heads of either side."""
        downstream, upstream = self._downstream, self._upstream
        downstream.tunnel = upstream.tunnel = self
        downstream.flush_now()
        upstream.flush_now()
        for end in (downstream, upstream):
            end.resume_reading(-1)
        if early_in:
            self.received(downstream, early_in)
        if early_out:
            self.received(upstream, early_out)
        for end in (downstream, upstream):
            if end.write_blocked:
                self.writable(end, False)
        self._touch()

    def received(self, end: Relay, data: bytes) -> None:
        """Octets from one side go to the other."""
        if end is self._downstream:
            self.bytes_in += len(data)
            other = self._upstream
        else:
            self.bytes_out += len(data)
            other = self._downstream
        if not other.lost_already:
            other.transport.write(data)
        self._touch()

    def ended(self, end: Relay) -> bool:
        """One side sends no more (RFC 9110 section 9.3.6: what it sent still goes out).

        Says whether the other direction goes on.
        """
        self._ended.add(end)
        other = self._other(end)
        if len(self._ended) == 2 or other.lost_already:
            other.close()
            end.close()
            return False
        if other.transport.can_write_eof():
            other.transport.write_eof()
            return True
        other.close()  # TLS knows no half-close
        return False

    def lost(self, end: Relay) -> None:
        """One side is gone; so is the tunnel, after what is unsent has gone out."""
        other = self._other(end)
        if self._source is Source.NONE and end not in self._ended:
            self._source = Source.CLIENT if end is self._downstream else Source.SERVER
        if other.lost_already:
            on_end, self._on_end = self._on_end, None
            if on_end is not None:
                on_end(self._source, self.bytes_in, self.bytes_out)
        else:
            other.close()

    def writable(self, end: Relay, yes: bool) -> None:
        """One side takes no more, or takes more again: the other side's reading follows."""
        other = self._other(end)
        if yes:
            other.resume_reading(PAUSE_PEER)
        else:
            other.pause_reading(PAUSE_PEER)

    def expired(self, end: Relay) -> None:
        """Silence for too long."""
        self._source = Source.CLIENT_TIMEOUT if end is self._downstream else Source.SERVER_TIMEOUT
        end.worker.count("tunnels_idle")
        self._upstream.abort()
        self._downstream.abort()

    def peer_left(self, end: Relay) -> None:
        """A side closed while its reading was paused: what it sent is still read, at the pace of
        the other. Nothing else will be reported, so the look is not repeated."""
        end.watching = False

    def _other(self, end: Relay) -> Relay:
        return self._upstream if end is self._downstream else self._downstream

    def _touch(self) -> None:
        deadline_ns = monotonic_ns() + self._idle_ns
        self._downstream.deadline_ns = deadline_ns
        self._upstream.deadline_ns = 0


class TunnelEnd(Relay):
    """The upstream's end of a CONNECT tunnel: it has no life outside one.

    A server may speak before the tunnel has begun: one read is kept, and no more read meanwhile.
    One whose client has gone by then is not kept for another.
    """

    idle_ns_max = 0

    __slots__ = ("_early", "fresh", "pool")

    def __init__(self, worker: Worker, pool: UpstreamPool) -> None:
        super().__init__(worker)
        self.pool = pool
        self.fresh = True
        self._early = b""

    def take_rest(self) -> bytes:
        """What the server said before the tunnel began."""
        early, self._early = self._early, b""
        return early

    def received(self, data: bytes) -> None:
        self._early += data
        self.pause_reading(PAUSE_HELD)  # the tunnel's beginning ends it

    def ended(self) -> None:
        """What it said is still passed on; the transport closes by itself."""

    def lost(self) -> None:
        """Before a tunnel began there is nobody to tell."""

    def forget(self) -> None:
        self.pool.forget(self)

    def writable(self, yes: bool) -> None:
        """Nothing is written before the tunnel."""

    def timed_out(self, now_ns: int) -> None:
        self.abort()
