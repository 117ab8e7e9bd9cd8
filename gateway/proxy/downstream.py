"""One client's connection: requests come in order, each is an Exchange, answers leave in order.

The states of a connection, and what ends each:

    IDLE      no octet of a request yet         first octet · idle timeout · close
    HEAD      part of a head has come           whole head · head timeout (408) · malformed (400)
    BUSY      an exchange is under way          both messages complete · client gone
    LINGER    the last answer is out, octets    client's FIN · time or octets used up
              may still come (RFC 9112 9.6)
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from gateway.clock import SECOND, monotonic_ns
from gateway.errors import ErrorKind, GatewayError
from gateway.h1.codec import BadMessage
from gateway.h1.message import Fields, Framing, RequestHead, ResponseHead
from gateway.proxy.answers import error_answer
from gateway.proxy.clients import NO_NAMES, certificate_names
from gateway.proxy.exchange import Exchange
from gateway.proxy.flow import PAUSE_HELD, PAUSE_PEER, PAUSE_PIPELINE
from gateway.proxy.relay import CLOSE_TIMEOUT_NS, Relay

if TYPE_CHECKING:
    import asyncio

    from gateway.proxy.graph import Listener, Worker

__all__ = ["DownstreamProtocol"]

# A client that got its last answer may need a moment to read it before a reset would destroy it.
LINGER_TIMEOUT_NS = 2 * SECOND
LINGER_BYTES_MAX = 1024 * 1024


class State(enum.Enum):
    IDLE = 0
    HEAD = 1
    BUSY = 2
    LINGER = 3


class DownstreamProtocol(Relay):
    """Decodes requests and hands each to an Exchange; writes what the exchange puts into `out`.

    `source` is the client's address: the peer's, or the one that a believed PROXY header told.
    """

    __slots__ = (
        "_advance_due",
        "_decoder",
        "_head_ns",
        "_lingered_bytes",
        "_state",
        "certificate_names",
        "decoding",
        "exchange",
        "listener",
        "requests",
        "source",
    )

    def __init__(self, worker: Worker, listener: Listener, source: str = "") -> None:
        super().__init__(worker)
        self.listener = listener
        self.exchange: Exchange | None = None
        self.source = source
        self.certificate_names = NO_NAMES
        self.requests = 0
        self._state = State.IDLE
        self._decoder = worker.codec.request_decoder(self, listener.head_limits)
        self.decoding = False
        self._advance_due = False
        self._lingered_bytes = 0
        self._head_ns = 0  # since when a head has been coming that did not come whole

    # The relay's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if not self.source:
            peer = transport.get_extra_info("peername")
            self.source = str(peer[0]) if isinstance(peer, tuple) and peer else "unix"
        self.certificate_names = certificate_names(transport.get_extra_info("peercert"))
        if not self.listener.admit(self):
            self.worker.count("connections_refused")
            self.abort()
            return
        self.set_timeout(self.worker.runtime.head_timeout_ns)

    def received(self, data: bytes) -> None:
        state = self._state
        if state is State.IDLE:
            self._state = State.HEAD
        elif state is State.LINGER:
            self._lingered_bytes += len(data)
            if self._lingered_bytes > LINGER_BYTES_MAX:
                self.abort()
            return
        self.decoding = True
        try:
            self._decoder.feed(data)
        except BadMessage as bad:
            self._bad_request(bad)
            return
        finally:
            self.decoding = False
        if state is State.IDLE and self._state is State.HEAD:
            # Most heads come whole: only for one that did not does a time begin.
            self._head_ns = monotonic_ns()
            self.set_timeout(self.worker.runtime.head_timeout_ns)
        self._after_decoding()

    def ended(self) -> None:
        if self.exchange is not None:
            # As nginx and Envoy do: a client that closes its sending side while it waits is gone.
            self.peer_left()
        elif self._state is not State.LINGER:
            try:
                self._decoder.eof()
            except BadMessage:
                self.worker.count("requests_cut_off")

    def forget(self) -> None:
        self.listener.leave(self)

    def lost(self) -> None:
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.client_lost()

    def writable(self, yes: bool) -> None:
        if self.exchange is not None:
            self.exchange.client_writable(yes)
        elif yes and self._advance_due:
            self._after_decoding()

    def peer_left(self) -> None:
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.client_lost()
        self.abort()

    def timed_out(self, now_ns: int) -> None:
        if self._state is State.BUSY and self.exchange is not None:
            self.exchange.client_silent(now_ns)
        elif self._state is State.HEAD:
            self.refuse(GatewayError(ErrorKind.HEAD_TIMEOUT))
        elif self._state is not State.LINGER:
            self.close()
        elif self.took_more():
            self._linger_on()
        elif self._unsent_bytes:
            self.reset()  # only a reset tells a close-delimited body's end from its truncation
        else:
            self.abort()

    # The decoder's side.

    def head_received(self, head: RequestHead | ResponseHead) -> None:
        assert isinstance(head, RequestHead)
        self._state = State.BUSY
        self.requests += 1
        self.exchange = exchange = Exchange(self.worker, self, head)
        now_ns = monotonic_ns()
        if self._head_ns:
            exchange.request_ns = now_ns - self._head_ns
            self._head_ns = 0
        exchange.start(now_ns)

    def body_received(self, data: bytes) -> None:
        if self.exchange is not None:
            self.exchange.request_body(data)

    def message_complete(self, trailers: Fields) -> None:
        if self.exchange is not None:
            self.exchange.request_end(trailers)

    # The exchange's side.

    def exchange_done(self, *, keep: bool) -> None:
        """Both messages are complete (`keep`), or no more can follow on this connection."""
        self.exchange = None
        if not keep or self.lost_already:
            self.flush()
            self._linger()
            return
        self._advance_due = True
        if not self.decoding:
            self._after_decoding()

    def cut(self, framing: Framing) -> None:
        """The answer broke off: the client must see that (RFC 9112 section 8), never an end."""
        self.exchange = None
        if framing is Framing.CLOSE:
            self.out.clear()
            self.reset()  # only a reset tells a close-delimited body's end from its truncation
        else:
            self.flush()
            self.close()

    def flush_unless_decoding(self) -> None:
        """Writes now, unless the end of this turn's decoding will."""
        if not self.decoding:
            self.flush()

    def refuse(self, error: GatewayError, *, head_only: bool = False) -> None:
        """Answers a request that never became an exchange, and closes."""
        worker = self.worker
        request_ns = monotonic_ns() - self._head_ns if self._head_ns else 0
        request_id = worker.refused(error, self.source, self.listener.name, request_ns)
        self.out.append(
            error_answer(error, worker, close=True, head_only=head_only, request_id=request_id)
        )
        self.flush()
        self._linger()

    def take_rest(self) -> bytes:
        """The octets behind the request that switched protocols."""
        return self._decoder.take_rest()

    def drain(self) -> None:
        """The worker stops: idle connections close now, busy ones after their answer."""
        if self._state is State.IDLE:
            self.close()

    # Inside.

    def _after_decoding(self) -> None:
        """Starts the next message while one is due, flat: a pipeline must not nest calls."""
        while self._advance_due and not self.lost_already:
            self.flush()
            if self.write_blocked:
                # A client that reads no answers gets no new ones: `writable` goes on.
                self.set_timeout(self.worker.runtime.idle_timeout_ns)
                break
            self._advance_due = False
            self.resume_reading(PAUSE_HELD | PAUSE_PEER)
            self._state = State.HEAD if self._decoder.buffered else State.IDLE
            runtime = self.worker.runtime
            if self.worker.draining and self._state is State.IDLE:
                self.close()
                return
            self.set_timeout(
                runtime.head_timeout_ns if self._decoder.buffered else runtime.idle_timeout_ns
            )
            self.decoding = True
            try:
                self._decoder.next_message()
            except BadMessage as bad:
                self._bad_request(bad)
                return
            finally:
                self.decoding = False
            if self._state is State.HEAD:
                self._head_ns = monotonic_ns()
        self.flush()
        exchange = self.exchange
        if exchange is not None:
            exchange.flush_request()
        if (exchange is not None or self._advance_due) and self._decoder.buffered:
            self.pause_reading(PAUSE_PIPELINE)
        else:
            self.resume_reading(PAUSE_PIPELINE)

    def _bad_request(self, bad: BadMessage) -> None:
        error = GatewayError(bad.kind, str(bad))
        exchange = self.exchange
        if exchange is not None:
            exchange.request_broken(error)
            self.exchange = None
        elif self._state is not State.LINGER:  # there the last answer has gone out
            self.refuse(error, head_only=bad.to_head)

    def _linger(self) -> None:
        if self.lost_already or self.transport.is_closing():
            return
        if not self.transport.can_write_eof():
            self.close()
            return
        self._state = State.LINGER
        self.flush_now()
        self.took_more()
        self.transport.write_eof()
        self.resume_reading(-1)
        self._linger_on()

    def _linger_on(self) -> None:
        """The client first gets the time to take its answer, and then that to see its end."""
        self.set_timeout(CLOSE_TIMEOUT_NS if self._unsent_bytes else LINGER_TIMEOUT_NS)
