"""A connection to an upstream: it carries one exchange at a time and idles in its pool between."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.clock import SECOND, monotonic_ns
from gateway.errors import ErrorKind, GatewayError, Phase
from gateway.h1 import encode
from gateway.h1.codec import BadMessage
from gateway.h1.message import Fields, Framing, RequestHead, ResponseHead
from gateway.proxy.flow import PAUSE_PEER
from gateway.proxy.relay import Relay

if TYPE_CHECKING:
    from gateway.proxy.exchange import Exchange
    from gateway.proxy.graph import Worker
    from gateway.proxy.pool import UpstreamPool

__all__ = ["UpstreamProtocol"]

# A new connection costs a round trip, and two more with TLS: about as much as 64 KiB at 10 Mbit/s.
DISCARD_BYTES_MAX = 64 * 1024
DISCARD_TIMEOUT_NS = SECOND
# A request that meets the upstream's own end of an idle connection half-way is lost, and a POST is
# not sent twice. So a connection is let go this much before the time that the upstream has told:
# a round trip round the world is a third of it, a turn of the wheel a fifth.
IDLE_MARGIN_NS = SECOND


class UpstreamProtocol(Relay):
    """Writes requests, decodes responses, and tells the exchange.

    `fresh` is true until the first response or rest: a connection that was idle and closes before
    answering is the stale-connection race, not the upstream's failure (RFC 9110 section 9.2.2).
    """

    __slots__ = (
        "_chunked",
        "_decoder",
        "_discarded_bytes",
        "_discarding",
        "_done",
        "_request_head",
        "_response_begun",
        "exchange",
        "fresh",
        "idle_ns_max",
        "pool",
    )

    def __init__(self, worker: Worker, pool: UpstreamPool) -> None:
        super().__init__(worker)
        self.pool = pool
        self.exchange: Exchange | None = None
        self.fresh = True
        self.idle_ns_max = pool.idle_timeout_ns
        self._response_begun = False
        self._request_head = b""
        self._done = False
        self._discarding = False
        self._discarded_bytes = 0
        self._chunked = False
        self._decoder = worker.codec.response_decoder(self, pool.head_limits)

    # The exchange's side.

    def begin(
        self, exchange: Exchange, method: bytes, target: bytes, fields: Fields, framing: Framing
    ) -> None:
        """Takes an exchange on: its request's head goes out with the next `flush`."""
        self.exchange = exchange
        self._response_begun = False
        self._chunked = framing is Framing.CHUNKED
        self._decoder.expect(method)
        self._request_head = encode.request(method, target, fields, framing)
        self.out.append(self._request_head)

    def send_body(self, data: bytes) -> None:
        """A piece of the request's body, not yet framed."""
        if self._chunked:
            self.out += encode.chunk(data)
        else:
            self.out.append(data)

    def send_end(self, trailers: Fields) -> None:
        """The request is complete; `trailers` are those that may go on."""
        if self._chunked:
            self.out.append(encode.last_chunk(trailers))

    def end(self) -> None:
        """The exchange is over and its response complete.

        Said from inside the decoder, so what follows (idling, or the next exchange's request) waits
        until the decoder has returned.
        """
        self.exchange = None
        self.deadline_ns = 0
        self._request_head = b""
        self._done = True

    def discard(self) -> None:
        """The exchange sends its request again elsewhere; this response is read to its end, so
        that the connection can be used again, unless that costs more than a new one."""
        self.exchange = None
        self._discarding = True
        self._discarded_bytes = 0
        self.deadline_ns = monotonic_ns() + DISCARD_TIMEOUT_NS
        self.resume_reading(PAUSE_PEER)

    def drop(self) -> None:
        """The exchange was broken off: what comes now belongs to nobody."""
        self.exchange = None
        self.deadline_ns = 0
        self.abort()

    @property
    def response_begun(self) -> bool:
        """Whether any octet of a response to the current request has come."""
        return self._response_begun

    # The decoder's side.

    def head_received(self, head: RequestHead | ResponseHead) -> None:
        assert isinstance(head, ResponseHead)
        if head.idle_s >= 0:
            told_ns = max(0, head.idle_s * SECOND - IDLE_MARGIN_NS)
            self.idle_ns_max = min(self.pool.idle_timeout_ns, told_ns)
        if self.exchange is not None:
            self.exchange.response_head(head)

    def body_received(self, data: bytes) -> None:
        if self.exchange is not None:
            self.exchange.response_body(data)
        elif self._discarding:
            self._discarded_bytes += len(data)

    def message_complete(self, trailers: Fields) -> None:
        if self.exchange is not None:
            self.exchange.response_end(trailers)
        if self._discarding:  # perhaps only now: a response can be judged by its whole body
            self._discarding = False
            self.deadline_ns = 0
            self._done = True

    # The relay's side.

    def received(self, data: bytes) -> None:
        exchange = self.exchange
        if exchange is None and self._discarding:
            self._discard(data)
            return
        if exchange is None:
            # Octets on an idle connection answer nothing that was asked (RFC 9112 section 9.2).
            self.worker.count("upstream_unsolicited")
            self.abort()
            return
        if self._flush_due and not self.fresh and self.out[0] is self._request_head:
            # The request has not gone out yet, so what came answers another (section 9.2), or
            # nothing: to take it for the response would hand one client what is not its own.
            self.worker.count("upstream_unsolicited")
            self._closed("it spoke before the request was sent")
            return
        self._response_begun = True
        try:
            self._decoder.feed(data)
        except BadMessage as bad:
            self._bad(bad)
            return
        exchange.downstream.flush()
        if exchange.switching and self.exchange is exchange:
            self.exchange = None
            exchange.switch(self, self._decoder.take_rest())
        elif self._done:
            self._rest()

    def _discard(self, data: bytes) -> None:
        try:
            self._decoder.feed(data)
        except BadMessage:
            self.abort()
            return
        if self._discarded_bytes > DISCARD_BYTES_MAX:
            self.abort()
        elif self._done:
            self._rest()

    def ended(self) -> None:
        exchange = self.exchange
        if exchange is None:
            return  # an idle connection closed by the upstream: eof_received closes it
        try:
            self._decoder.eof()
        except BadMessage as bad:
            self._bad(bad)
            return
        if self.exchange is not None:
            self._closed("closed without a response")
        exchange.downstream.flush()
        self._done = False  # the transport closes by itself after this

    def forget(self) -> None:
        self.pool.forget(self)

    def lost(self) -> None:
        if self.exchange is not None:
            self._closed("connection reset")

    def writable(self, yes: bool) -> None:
        if self.exchange is not None:
            self.exchange.upstream_writable(yes)

    def timed_out(self, now_ns: int) -> None:
        if self.exchange is not None:
            self.exchange.upstream_silent(now_ns)
        else:
            self.close()

    def peer_left(self) -> None:
        # What the upstream sent before its FIN is still to be read; the client's pace decides when.
        self.watching = False

    def _rest(self) -> None:
        self._done = False
        self.fresh = False
        self.resume_reading(PAUSE_PEER)
        if (
            self._decoder.reusable
            and not self.write_blocked  # an answer before the request was read: it may never be
            and not self.lost_already
            and not self.transport.is_closing()
        ):
            self.pool.give(self)
        else:
            self.close()

    def _bad(self, bad: BadMessage) -> None:
        exchange = self.exchange
        if exchange is not None:
            exchange.upstream_failed(GatewayError(bad.kind, str(bad), phase=Phase.HEAD))
        else:
            self.abort()

    def _closed(self, detail: str) -> None:
        exchange = self.exchange
        if exchange is not None:
            exchange.upstream_failed(
                GatewayError(ErrorKind.UPSTREAM_CLOSED, detail, phase=Phase.HEAD)
            )
