"""One exchange on an HTTP/2 connection: the face of an UpstreamProtocol, with a task behind it.

httpcore's calls wait, and the data path never does. So each exchange on this road has a task that
does the waiting: for the client's octets, for the stream's events, and for a client that cannot
take more. The connection below is a `Carrying`; nothing here knows httpcore.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, NamedTuple, Protocol

from gateway.connectors import h2_heads
from gateway.errors import ErrorKind, GatewayError, Phase
from gateway.h1.codec import BadMessage, HeadLimits
from gateway.h1.message import Fields, Framing, ResponseHead
from gateway.proxy.flow import WRITE_HIGH

if TYPE_CHECKING:
    from gateway.proxy.deadlines import Watched
    from gateway.proxy.exchange import Exchange
    from gateway.proxy.graph import Worker

__all__ = ["Carrying", "H2Plan", "HttpcoreExchange", "Response", "Unwanted"]

# Below this the client may send on: half of what stopped it, so that it is not asked per piece.
BODY_LOW = WRITE_HIGH // 2
# Interim responses of one exchange: 103 comes once or twice, 102 once in a while.
INTERIM_MAX = 32


class H2Plan(NamedTuple):
    """What an upstream's lanes are made from. `authority` stands in where a request has no Host.

    `settings_timeout_ns` is how long the peer may take for its first frame.
    """

    scheme: str
    host: str
    port: int
    authority: bytes
    settings_timeout_ns: int
    idle_timeout_ns: int
    head_limits: HeadLimits


class Unwanted(Exception):
    """The response is complete, or the stream was reset: the request's rest has no reader."""


class Response(Protocol):
    """A response whose head came by `response_received`; `aclose` gives the stream back."""

    async def aclose(self) -> None: ...


class Carrying(Protocol):
    """The connection that carries an exchange."""

    worker: Worker
    plan: H2Plan
    rested: bool
    failure: GatewayError | None  # set once no more can come

    async def open(self, carried: HttpcoreExchange) -> Response:
        """Sends the request, whose body it gets by iteration, and waits for the response."""
        ...

    async def next_piece(self, carried: HttpcoreExchange) -> tuple[bytes, int]:
        """A piece of the body and the window that it took; (b"", 0) at the end."""
        ...

    def taken(self, carried: HttpcoreExchange, window: int) -> None:
        """The client has a piece: the upstream may send as much again."""
        ...

    def released(self, carried: HttpcoreExchange) -> None:
        """The exchange is through with its place."""
        ...

    def explain(self, error: Exception) -> GatewayError:
        """What went wrong, in the gateway's terms; INTERNAL where it is a fault of ours."""
        ...


class HttpcoreExchange:
    """What an exchange has for a connection: one stream, and the task that carries it."""

    __slots__ = (
        "_blocked",
        "_body",
        "_body_bytes",
        "_complete",
        "_fields",
        "_interims",
        "_paused",
        "_spoke",
        "_task",
        "_trailers",
        "_wake",
        "answer_over",
        "deadline_ns",
        "exchange",
        "fresh",
        "head",
        "lane",
        "method",
        "response_begun",
        "sent_whole",
        "stream_id",
        "target",
        "trailers",
        "watching",
    )

    _task: asyncio.Task[None]

    def __init__(self, lane: Carrying) -> None:
        self.lane = lane
        self.exchange: Exchange | None = None
        self.fresh = not lane.rested
        self.response_begun = False
        self.deadline_ns = 0
        self.watching = False
        self.stream_id = 0
        self.head: Fields = []
        self.sent_whole = False
        self.answer_over = False
        self.method = b""
        self.target = b""
        self.trailers: Fields = []  # the request's, as they go out
        self._body: deque[bytes] = deque()
        self._body_bytes = 0
        self._complete = False
        self._blocked = False
        self._paused = 0
        self._interims = 0
        self._fields: Fields = []
        self._trailers: Fields = []
        self._wake = asyncio.Event()
        self._spoke: set[Watched] = lane.worker.wheel.add(self)

    # The exchange's side.

    def begin(
        self, exchange: Exchange, method: bytes, target: bytes, fields: Fields, framing: Framing
    ) -> None:
        """Takes an exchange on: its request goes out as soon as the lane lets it."""
        self.exchange = exchange
        plan = self.lane.plan
        self.method = method
        self.target = target
        self.head = h2_heads.request(method, plan.scheme, plan.authority, target, fields)
        self.sent_whole = framing is Framing.NONE
        self._task = asyncio.get_running_loop().create_task(self._run())
        # Not a `finally`: a task that is cancelled before its first step never enters its body.
        self._task.add_done_callback(self._finished)

    def send_body(self, data: bytes) -> None:
        """A piece of the request's body."""
        self._body.append(data)
        self._body_bytes += len(data)
        self._wake.set()

    def send_end(self, trailers: Fields) -> None:
        """The request is complete; `trailers` are those that may go on."""
        self.trailers = h2_heads.lowered(trailers)
        self._complete = True
        self._wake.set()

    def flush(self) -> None:
        """The task writes; what is more than WRITE_HIGH by now makes the client wait for it."""
        if self._body_bytes > WRITE_HIGH and not self._blocked and self.exchange is not None:
            self._blocked = True
            self.exchange.upstream_writable(False)

    def end(self) -> None:
        """The exchange is over and its response complete."""
        self.exchange = None
        self.deadline_ns = 0

    def discard(self) -> None:
        """The exchange sends its request again elsewhere; a stream is cheaply reset."""
        self.drop()

    def drop(self) -> None:
        """The exchange was broken off: the stream is reset."""
        self.exchange = None
        self.deadline_ns = 0
        if asyncio.current_task() is not self._task:
            self._task.cancel()

    def pause_reading(self, reason: int) -> None:
        self._paused |= reason

    def resume_reading(self, reason: int) -> None:
        self._paused &= ~reason
        self._wake.set()

    @property
    def reading_paused(self) -> bool:
        return self._paused != 0

    # The wheel's side.

    def expired(self, now_ns: int) -> None:
        if self.exchange is not None:
            self.exchange.upstream_silent(now_ns)

    def turned(self, now_ns: int) -> None:
        """Never asked for: the lane sees its peer leave."""

    # The lane's side.

    def wake(self) -> None:
        """Something happened to the lane."""
        self._wake.set()

    def fail(self, error: GatewayError) -> None:
        """The stream will not be answered."""
        if self.exchange is not None:
            self.exchange.upstream_failed(error)

    def interim_received(self, fields: Fields) -> None:
        """An interim response came. Its order before the final one is the wire's."""
        try:
            self._interim(h2_heads.response(fields, b"", self._limits))
        except BadMessage as bad:
            self.fail(self.lane.explain(bad))

    def response_received(self, fields: Fields) -> None:
        """The final response's head came, as it was sent."""
        self._fields = fields

    def trailers_received(self, fields: Fields) -> None:
        """The body's trailers came; they are passed on with its end."""
        try:
            self._trailers = h2_heads.trailers(fields, self._limits)
        except BadMessage as bad:
            self.fail(self.lane.explain(bad))

    def stream_ended(self) -> None:
        """The upstream will send no more on this stream, or has reset it."""
        self.answer_over = True
        self._wake.set()

    def _interim(self, head: ResponseHead) -> None:
        self._interims += 1
        if self._interims > INTERIM_MAX:
            raise BadMessage(ErrorKind.BAD_RESPONSE, "too many interim responses")
        if self.exchange is not None:
            self.response_begun = True
            self.exchange.response_head(head)
        if self.exchange is not None:
            self.exchange.downstream.flush()

    @property
    def _limits(self) -> HeadLimits:
        return self.lane.plan.head_limits

    # The request's body, for the lane to iterate over.

    def __aiter__(self) -> HttpcoreExchange:
        return self

    async def __anext__(self) -> bytes:
        while not self._body:
            if self.answer_over:
                raise Unwanted
            if self._complete:
                raise StopAsyncIteration
            failure = self.lane.failure
            if failure is not None:
                raise GatewayError(failure.kind, failure.detail, phase=Phase.HEAD)
            self._wake.clear()
            await self._wake.wait()
        data = self._body.popleft()
        self._body_bytes -= len(data)
        if self._blocked and self._body_bytes <= BODY_LOW and self.exchange is not None:
            self._blocked = False
            self.exchange.upstream_writable(True)
        return data

    # The task.

    async def _run(self) -> None:
        lane = self.lane
        try:
            response = await lane.open(self)
            try:
                await self._pass_on()
            finally:
                await response.aclose()
        except Exception as error:
            failure = lane.explain(error)
            self.fail(failure)
            if failure.kind is ErrorKind.INTERNAL:
                raise

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._spoke.discard(self)
        self.lane.released(self)

    async def _pass_on(self) -> None:
        """The response, piece by piece, as fast as the client takes it."""
        head = h2_heads.response(self._fields, self.method, self._limits)
        if head.status < 200:
            raise BadMessage(ErrorKind.BAD_RESPONSE, "no final response")
        lane = self.lane
        lane.rested = True
        self.response_begun = True
        count = h2_heads.BodyCount(head)
        if self.exchange is not None:
            self.exchange.response_head(head)
        while self.exchange is not None:
            self.exchange.downstream.flush()
            data, window = await lane.next_piece(self)
            if self.exchange is None:
                return
            if not window:
                count.end()
                downstream = self.exchange.downstream
                self.exchange.response_end(self._trailers)
                downstream.flush()
                return
            if data:
                count.add(data)
                self.exchange.response_body(data)
                self.exchange.downstream.flush()
            while self._paused and self.exchange is not None:
                self._wake.clear()
                await self._wake.wait()
            lane.taken(self, window)
