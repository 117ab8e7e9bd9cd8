"""HTTP/2 upstreams, through httpcore: the cold road, with a task per exchange.

httpcore keeps the connection's and the streams' states; `H2Connection` corrects it where a gateway
needs more than a client does, each correction with its reason. An exchange sees none of this: it
talks to an `HttpcoreExchange` as it would to an UpstreamProtocol.

This is the one file that imports httpcore and h2, and it is imported only where a configuration
has an upstream with protocol = "h2".
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeGuard, cast

import h2.errors
import h2.events
import h2.exceptions
import h2.settings
import httpcore

from gateway.clock import SECOND, monotonic_ns
from gateway.connectors.h2_exchange import H2Plan, HttpcoreExchange, Unwanted
from gateway.connectors.lanes import STREAMS_MAX, LanePool
from gateway.connectors.wire import Wire
from gateway.errors import ErrorKind, GatewayError, Phase
from gateway.h1.codec import BadMessage

if TYPE_CHECKING:
    from gateway.proxy.deadlines import Watched
    from gateway.proxy.exchange import Exchange
    from gateway.proxy.graph import Worker
    from gateway.proxy.pool import Dialer
    from gateway.proxy.upstream import UpstreamProtocol

__all__ = ["H2Plan", "httpcore_pool"]

STREAM_WINDOW = 2**18  # see STREAMS_MAX
INITIAL_WINDOW = 65_535  # RFC 9113 section 6.9.2
# Stands where httpcore asks for whom it reads: the reader reads for all.
READER = httpcore.Request(b"", httpcore.URL())
# A connection's streams have odd numbers of 31 bits (RFC 9113 section 5.1.1): at 1,000 requests/s
# they last for twelve days.
REQUESTS_MAX = 2**30 - STREAMS_MAX
CLOSE_TIMEOUT_NS = 2 * SECOND  # for our last frames, should the peer not read


def httpcore_pool(worker: Worker, dialer: Dialer, plan: H2Plan) -> LanePool:
    """A pool of HTTP/2 connections that the dialer opens; its TLS context must offer `h2`."""

    async def dial(pool: LanePool) -> H2Connection:
        # A dialer only connects what `make` returns; it asks nothing of the protocol.
        make = cast("Callable[[], UpstreamProtocol]", lambda: Wire(worker))
        wire = cast(Wire, await dialer(make))
        tls = wire.transport.get_extra_info("ssl_object")
        chosen = None if tls is None else tls.selected_alpn_protocol()
        if chosen != "h2":
            wire.transport.abort()
            detail = f"{plan.host}: does not speak h2 (ALPN: {chosen or 'nothing chosen'})"
            raise GatewayError(ErrorKind.TLS_ERROR, detail, phase=Phase.CONNECT)
        connection = H2Connection(worker, pool, plan, wire)
        await connection.prepare()
        return connection

    return LanePool(dial)


class Unbounded:
    """Stands for httpcore's count of streams, whose slow set-up a cancelled request leaves half
    done; how many there may be is asked before (`has_room`)."""

    async def acquire(self) -> None:
        """At once."""

    async def release(self) -> None:
        """Nothing was taken."""


class H2Connection(httpcore.AsyncHTTP2Connection):
    """httpcore's connection as a lane, with these corrections.

    - One reader (`_pump`). In httpcore whichever stream waits reads for all, in turns: an answer
      that has come lies there until the one whose turn it is gets something too, and while all are
      sending nobody reads, so that no `100 Continue`, PING or end is seen.
    - Windows small enough that slow readers cannot stop a lane (see STREAMS_MAX), and given back
      when the client has taken what came, not before.
    - A stream that is left early is reset. httpcore forgets it, the server sends on, and the
      connection's window shrinks by what nobody acknowledges, until it stands still.
    - Interim responses and trailers, both ways, are passed on; a graceful GOAWAY lets exchanges
      finish.
    """

    def __init__(self, worker: Worker, pool: LanePool, plan: H2Plan, wire: Wire) -> None:
        origin = httpcore.Origin(plan.scheme.encode(), plan.host.encode(), plan.port)
        super().__init__(origin=origin, stream=cast(httpcore.AsyncNetworkStream, wire))
        self.worker = worker
        self.pool = pool
        self.plan = plan
        self.wire = wire
        self.rested = False
        self.streams = 0
        self.failure: GatewayError | None = None
        self._settled = asyncio.Event()
        self._max_streams = STREAMS_MAX  # RFC 9113 section 6.5.2: no limit until one is told
        self._max_streams_semaphore = cast(Any, Unbounded())
        self._retired = False
        self._closing = False
        self._gone = asyncio.Event()
        self._news = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None
        self._carried: set[HttpcoreExchange] = set()
        self._by_stream: dict[int, HttpcoreExchange] = {}
        self.deadline_ns = 0
        self.watching = False
        self._spoke: set[Watched] = worker.wheel.add(self)
        wire.belongs_to(self)

    async def prepare(self) -> None:
        """Exchanges the prefaces (RFC 9113 section 3.4), so that the peer's limits are known.

        Raises GatewayError.
        """
        error: GatewayError | None = None
        try:
            async with asyncio.timeout(self.plan.settings_timeout_ns / SECOND):
                await self._send_connection_init(READER)
                self._sent_connection_init = True
                self._reading = asyncio.get_running_loop().create_task(self._pump())
                await self._settled.wait()
            error = self.failure
        except TimeoutError:
            error = GatewayError(ErrorKind.CONNECT_TIMEOUT, "no SETTINGS in time")
        except BaseException:
            self.wire.transport.abort()
            raise
        if error is not None:
            self.wire.transport.abort()
            detail = f"{self.plan.host}: {error.detail}"
            raise GatewayError(error.kind, detail, phase=Phase.CONNECT)

    # The pool's side.

    @property
    def has_room(self) -> bool:
        return self.streams < min(STREAMS_MAX, self._max_streams) and not self._is_done

    @property
    def _is_done(self) -> bool:
        """Whether it ends after those who are on it."""
        return self._closing or self._retired or self._request_count >= REQUESTS_MAX

    def carry(self, exchange: Exchange) -> None:
        self.deadline_ns = 0
        carried = HttpcoreExchange(self)
        self._carried.add(carried)
        exchange.connected(carried)

    def idle(self) -> None:
        self.rested = True
        if self._closing:
            return
        if self._is_done or self.pool.closed:
            self.close()
        else:
            self.deadline_ns = monotonic_ns() + self.plan.idle_timeout_ns

    def close(self) -> None:
        self._stop()
        with contextlib.suppress(h2.exceptions.ProtocolError):
            self._h2_state.close_connection()
            self.wire.send(self._h2_state.data_to_send())
        self.wire.transport.close()
        self.deadline_ns = monotonic_ns() + CLOSE_TIMEOUT_NS

    async def abort(self, error: GatewayError) -> None:
        self._fail(error)
        self.wire.transport.abort()
        await self._gone.wait()

    # The wheel's and the wire's side.

    def expired(self, now_ns: int) -> None:
        """Idle for too long, or closing and the peer does not read."""
        if self._closing:
            self.wire.transport.abort()
        else:
            self.close()

    def turned(self, now_ns: int) -> None:
        """Never asked for: a lane always reads, and so sees its peer leave."""

    def lost(self) -> None:
        """The connection is gone."""
        self._spoke.discard(self)
        self.deadline_ns = 0
        self._gone.set()
        self.pool.gone(self)
        self._fail(GatewayError(ErrorKind.UPSTREAM_CLOSED, "connection lost", phase=Phase.HEAD))

    def retire(self, last_stream_id: int) -> None:
        """A graceful GOAWAY: what was taken is still answered, nothing else will be."""
        self._retired = True
        self.pool.forget(self)
        for stream_id, carried in list(self._by_stream.items()):
            if stream_id > last_stream_id:
                detail = "the connection ends and did not take the request"
                carried.fail(GatewayError(ErrorKind.UPSTREAM_CLOSED, detail, phase=Phase.HEAD))
        if not self.streams:
            self.close()

    # What httpcore calls, corrected.

    async def _send_request_headers(self, request: httpcore.Request, stream_id: int) -> None:
        carried: HttpcoreExchange = request.extensions["carried"]
        if self._retired:
            raise httpcore.ConnectionNotAvailable
        carried.stream_id = stream_id
        self._by_stream[stream_id] = carried
        self._h2_state.send_headers(stream_id, carried.head, end_stream=carried.sent_whole)
        self._h2_state.increment_flow_control_window(STREAM_WINDOW - INITIAL_WINDOW, stream_id)
        await self._write_outgoing_data(request)

    async def _send_request_body(self, request: httpcore.Request, stream_id: int) -> None:
        carried: HttpcoreExchange = request.extensions["carried"]
        if carried.sent_whole:
            return
        try:
            await super()._send_request_body(request, stream_id)
            carried.sent_whole = True
        except (Unwanted, h2.exceptions.StreamClosedError):
            if not carried.answer_over:
                raise

    async def _send_end_stream(self, request: httpcore.Request, stream_id: int) -> None:
        carried: HttpcoreExchange = request.extensions["carried"]
        if not carried.trailers:
            await super()._send_end_stream(request, stream_id)
            return
        # RFC 9113 section 8.1: the trailer section is a HEADERS frame that ends the stream.
        self._h2_state.send_headers(stream_id, carried.trailers, end_stream=True)
        await self._write_outgoing_data(request)

    async def _write_outgoing_data(self, request: httpcore.Request) -> None:
        self.wire.send(self._h2_state.data_to_send())
        if request is not READER:  # which must not wait for the peer to read
            await self.wire.drain()

    async def _receive_events(
        self, request: httpcore.Request, stream_id: int | None = None
    ) -> None:
        if self.failure is not None:
            raise GatewayError(self.failure.kind, self.failure.detail, phase=Phase.HEAD)
        if stream_id is None and request.extensions["carried"].answer_over:
            raise Unwanted
        await self._news.wait()

    async def _read_incoming_data(self, request: httpcore.Request) -> list[h2.events.Event]:
        events = []
        for event in await super()._read_incoming_data(request):
            carried = self._by_stream.get(getattr(event, "stream_id", None) or 0)
            if carried is not None:
                _tell_apart(carried, event)
            # DATA that carries nothing costs no window, so nothing else would bound how much of
            # it lies there for a slow reader (CVE-2019-9518).
            if not _is_data(event) or event.flow_controlled_length:
                events.append(event)
        return events

    async def _receive_remote_settings_change(self, event: h2.events.RemoteSettingsChanged) -> None:
        changed = event.changed_settings.get(h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS)
        if changed is not None:
            self._max_streams = changed.new_value
        self._settled.set()

    async def _response_closed(self, stream_id: int) -> None:
        carried = self._by_stream.pop(stream_id, None)
        unread = [event for event in self._events[stream_id] if _is_data(event)]
        self._acknowledge(sum(event.flow_controlled_length or 0 for event in unread), stream_id)
        if carried is not None and not (carried.sent_whole and carried.answer_over):
            # Refused where the peer was first, or the connection is over.
            with contextlib.suppress(h2.exceptions.ProtocolError):
                self._h2_state.reset_stream(stream_id, h2.errors.ErrorCodes.CANCEL)
            self.wire.send(self._h2_state.data_to_send())
        await super()._response_closed(stream_id)

    # The exchange's side.

    async def open(self, carried: HttpcoreExchange) -> httpcore.Response:
        plan = self.plan
        url = httpcore.URL(
            scheme=plan.scheme.encode(),
            host=plan.host.encode(),
            port=plan.port,
            target=carried.target,
        )
        # httpcore looks at the fields for one thing only: whether there is a body. What goes out
        # is `carried.head`.
        marks = [] if carried.sent_whole else [(b"transfer-encoding", b"chunked")]
        try:
            return await self.handle_async_request(
                httpcore.Request(
                    carried.method,
                    url,
                    headers=marks,
                    content=carried,
                    extensions={"carried": carried},
                )
            )
        except ValueError as error:
            raise BadMessage(
                ErrorKind.BAD_RESPONSE, f"no valid status: {error}", "RFC 9113 section 8.3.2"
            ) from None

    async def next_piece(self, carried: HttpcoreExchange) -> tuple[bytes, int]:
        event = await self._receive_stream_event(READER, carried.stream_id)
        while not isinstance(event, h2.events.DataReceived):
            if isinstance(event, h2.events.StreamEnded):
                return b"", 0
            event = await self._receive_stream_event(READER, carried.stream_id)
        return event.data or b"", event.flow_controlled_length or 0

    def taken(self, carried: HttpcoreExchange, window: int) -> None:
        self._acknowledge(window, carried.stream_id)

    def released(self, carried: HttpcoreExchange) -> None:
        self._carried.discard(carried)
        self.pool.left(self)

    def explain(self, error: Exception) -> GatewayError:
        if self.failure is not None and isinstance(error, _AFTERWARDS):
            return self.failure
        return failure_of(error)

    # Inside.

    def _acknowledge(self, window: int, stream_id: int) -> None:
        # With the connection over, h2 refuses, and nobody waits for it.
        if window:
            with contextlib.suppress(h2.exceptions.ProtocolError):
                self._h2_state.acknowledge_received_data(window, stream_id)
            self.wire.send(self._h2_state.data_to_send())

    async def _pump(self) -> None:
        """Reads for all streams until the connection ends."""
        try:
            while True:
                await super()._receive_events(READER)
                self._tell()
        except Exception as error:
            failure = failure_of(error)
            self._fail(failure)
            self.close()
            if failure.kind is ErrorKind.INTERNAL:
                raise

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    def _fail(self, error: GatewayError) -> None:
        """No more will come: what has come is still passed on, then exchanges fail."""
        if self.failure is None:
            self.failure = error
        self._stop()
        self._settled.set()
        self._tell()
        for carried in list(self._carried):
            carried.wake()

    def _stop(self) -> None:
        self._closing = True
        self.pool.forget(self)


def _is_data(event: h2.events.Event) -> TypeGuard[h2.events.DataReceived]:
    return isinstance(event, h2.events.DataReceived)


def _tell_apart(carried: HttpcoreExchange, event: h2.events.Event) -> None:
    """What httpcore drops or reads too kindly, and a stream's end, which a sender waits for too."""
    if isinstance(event, h2.events.InformationalResponseReceived):
        carried.interim_received(list(event.headers or ()))
    elif isinstance(event, h2.events.ResponseReceived):
        carried.response_received(list(event.headers or ()))
    elif isinstance(event, h2.events.TrailersReceived):
        carried.trailers_received(list(event.headers or ()))
    elif isinstance(event, h2.events.StreamEnded | h2.events.StreamReset):
        carried.stream_ended()


def failure_of(error: Exception) -> GatewayError:
    """What went wrong, in the gateway's terms; what no peer or network can cause is INTERNAL."""
    if isinstance(error, GatewayError):
        return error
    # httpcore wraps what it got: an event of the stream's or the connection's, or h2's exception.
    cause = error.args[0] if error.args else None
    detail = str(error) or type(error).__name__
    kind = ErrorKind.INTERNAL
    if isinstance(error, BadMessage):
        kind = error.kind
    elif isinstance(cause, h2.events.StreamReset):
        kind, detail = ErrorKind.UPSTREAM_CLOSED, f"stream reset ({_code(cause.error_code)})"
    elif isinstance(cause, h2.events.ConnectionTerminated):
        kind, detail = ErrorKind.UPSTREAM_CLOSED, f"GOAWAY ({_code(cause.error_code)})"
    elif isinstance(error, _TOO_LARGE) or isinstance(cause, _TOO_LARGE):
        kind = ErrorKind.RESPONSE_HEAD_TOO_LARGE
    elif isinstance(error, h2.exceptions.ProtocolError | httpcore.LocalProtocolError):
        kind = ErrorKind.BAD_RESPONSE
    elif isinstance(error, _GONE):
        kind = ErrorKind.UPSTREAM_CLOSED
    return GatewayError(kind, detail, phase=Phase.HEAD)


# hpack stops where a head outgrows SETTINGS_MAX_HEADER_LIST_SIZE (httpcore's: 64 KiB).
_TOO_LARGE = h2.exceptions.DenialOfServiceError
_GONE = (
    Unwanted,  # reset while the request was sent, before a response
    httpcore.RemoteProtocolError,
    httpcore.NetworkError,
    httpcore.ConnectionNotAvailable,
)


# What a stream runs into because its connection has failed.
_AFTERWARDS = (h2.exceptions.ProtocolError, httpcore.ProtocolError, *_GONE)


def _code(code: int | None) -> str:
    """An error code by its name (RFC 9113 section 7), or as a number."""
    return code.name if isinstance(code, h2.errors.ErrorCodes) else str(code)
