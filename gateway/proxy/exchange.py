"""One request and its response: from the head's arrival to the last octet, or to what ended it.

    ADMIT   routed, named, asked of breaker and limits      admitted . held . refused
    HELD    stands in the queue of the row that refused     granted . deadline . client gone
    DIAL    admitted, waits for a connection                connected . dial failed . client gone
    SENT    the request goes out, no response head yet      head . upstream gone or silent
    ANSWER  the response streams                            end . broken on either side
    OVER    answered; the request's rest may still come     end of the request (bounded)

Nothing here awaits: each method is called by one of the two connections, the pool or the waitroom,
and leaves the exchange in a state that the next call can meet.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from gateway.clock import SECOND
from gateway.errors import ErrorKind, GatewayError, Phase, Source, Termination
from gateway.h1 import encode
from gateway.h1.forward import came_through, forward_request, forward_response, forward_trailers
from gateway.h1.guard import split_absolute
from gateway.h1.message import Fields, Framing, RequestHead, ResponseHead
from gateway.proxy import admission
from gateway.proxy.answers import error_answer
from gateway.proxy.flow import HELD_BYTES_MAX, PAUSE_HELD, PAUSE_PEER
from gateway.proxy.graph import AccessRecord
from gateway.routes import strip_path

if TYPE_CHECKING:
    from gateway.proxy.downstream import DownstreamProtocol
    from gateway.proxy.graph import Upstream, Worker
    from gateway.proxy.upstream import UpstreamProtocol

__all__ = ["Exchange", "Stage"]

# RFC 9110 section 9.2.2.
IDEMPOTENT = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"))


class Stage(enum.Enum):
    ADMIT = Phase.REQUEST
    HELD = Phase.QUEUE
    DIAL = Phase.CONNECT
    SENT = Phase.HEAD
    ANSWER = Phase.DATA
    OVER = Phase.NONE


class Exchange(admission.Admittee):
    """The state of one exchange; see the table above."""

    __slots__ = (
        "_body",
        "_body_bytes",
        "_framing_out",
        "_keep",
        "attempts",
        "bytes_in",
        "bytes_out",
        "connected_ns",
        "connection",
        "dispatched_ns",
        "downstream",
        "request_done",
        "response_ns",
        "response_started",
        "stage",
        "status",
        "trailers",
        "wants_fresh",
    )

    def __init__(self, worker: Worker, downstream: DownstreamProtocol, head: RequestHead) -> None:
        super().__init__(worker, head, downstream.source)
        self.downstream = downstream
        self.connection: UpstreamProtocol | None = None
        self.stage = Stage.ADMIT
        self.status = 0
        self.attempts = 0
        self.wants_fresh = False
        self.request_done = head.framing is Framing.NONE
        self.response_started = False
        self._keep = False
        self.trailers: Fields = []
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._framing_out = Framing.NONE
        self.bytes_in = 0
        self.bytes_out = 0
        self.dispatched_ns = 0
        self.connected_ns = 0
        self.response_ns = 0

    # Arrival and admission.

    def start(self, now_ns: int) -> None:
        """Routes and asks; leaves the exchange dispatched, held or answered."""
        self.arrival_ns = now_ns
        try:
            self._route()
            blocked = admission.first_ask(self, now_ns)
        except GatewayError as error:
            self.fail(error)
            return
        timeouts = self.upstream.timeouts
        self.downstream.deadline_ns = now_ns + (
            timeouts.total_ns if self.request_done else timeouts.body_idle_ns
        )
        if blocked is None:
            self.dispatch(now_ns)
        else:
            self._hold(blocked, now_ns)

    def dispatch(self, now_ns: int) -> None:
        """Admitted: asks the pool for a connection."""
        self.stage = Stage.DIAL
        self.attempts += 1
        self.dispatched_ns = now_ns
        admission.granted(self, now_ns)
        self.upstream.pool.take(self)

    def wait_over(self, now_ns: int) -> None:
        """The deadline came before a turn did (called by the waitroom)."""
        self.fail(admission.refusal_after_wait(self, now_ns))

    def queue_full(self, now_ns: int) -> None:
        """The row that refused has no place left (called by the waitroom)."""
        self.fail(GatewayError(ErrorKind.QUEUE_FULL, phase=Phase.QUEUE, retry_after_ns=SECOND))

    def rejoin(self, upstream: Upstream | None, now_ns: int) -> None:
        """A reload came while this exchange was held: it goes on under the new Runtime."""
        if upstream is None:
            self.fail(GatewayError(ErrorKind.UPSTREAM_GONE, phase=Phase.QUEUE))
            return
        self.upstream = upstream
        try:
            blocked = admission.ask_anew(self, now_ns)
        except GatewayError as error:
            self.fail(error)
            return
        if blocked is None:
            self.dispatch(now_ns)
        else:
            self._hold(blocked, now_ns)

    def _route(self) -> None:
        head = self.head
        runtime = self.worker.runtime
        target = head.target
        if head.method == b"CONNECT":
            raise GatewayError(ErrorKind.NOT_IMPLEMENTED, "CONNECT is not offered")
        if target.startswith(b"/") or target == b"*":
            route = runtime.routes.find(head.method, head.host, target)
            if route is None:
                raise GatewayError(ErrorKind.NO_ROUTE, "no route matches this host and path")
            self.upstream = route.target
            self.path = strip_path(target, route.strip)
        else:
            absolute = split_absolute(target)
            found = runtime.by_origin.get((absolute.scheme, absolute.host, absolute.port))
            if found is None:
                raise GatewayError(ErrorKind.TARGET_DENIED, "no upstream has this origin")
            self.upstream = found
            self.path = absolute.path
        worker = self.worker
        upstream = self.upstream
        self.upstream_name = upstream.name
        if came_through(head.fields, worker.pseudonym):
            raise GatewayError(ErrorKind.LOOP, "Via names this gateway")
        self.fields = forward_request(
            head, upstream.host_header or head.host, worker.via, upstream.rules
        )

    def _hold(self, blocked: admission.Blocked, now_ns: int) -> None:
        error = admission.may_wait(self, blocked, now_ns)
        if error is None:
            self.stage = Stage.HELD
            if self.worker.waitroom.join(self, blocked, now_ns):
                return
            error = GatewayError(
                ErrorKind.QUEUE_FULL,
                "the upstream's queue is full",
                phase=Phase.QUEUE,
                retry_after_ns=blocked.wait_ns,
                limit=blocked.limit,
            )
        self.fail(error)

    # The request's way out.

    def connected(self, connection: UpstreamProtocol) -> None:
        """The pool's answer: the request goes out."""
        self.stage = Stage.SENT
        self.connection = connection
        self.wants_fresh = False
        now_ns = self.connected_ns = self.worker.now_ns()
        head = self.head
        connection.begin(self, head.method, self.path, self.fields, head.framing)
        if self._body:
            for data in self._body:
                connection.send_body(data)
            if not self._keeps_body():
                self._body.clear()
        if self.request_done:
            self._send_end(now_ns)
        downstream = self.downstream
        downstream.resume_reading(PAUSE_HELD)
        if not downstream.decoding:
            connection.flush()

    def flush_request(self) -> None:
        """Writes what this turn's decoding produced."""
        connection = self.connection
        if connection is not None:
            connection.flush()

    def request_body(self, data: bytes) -> None:
        """A piece of the request's body came from the client."""
        size = len(data)
        self.bytes_in += size
        if self.stage is Stage.OVER:
            # Answered already: the rest is read so that the connection can go on, within a bound.
            self._body_bytes += size
            if self._body_bytes > HELD_BYTES_MAX:
                self.downstream.exchange_done(keep=False)
            return
        self._body_bytes += size
        connection = self.connection
        if connection is not None:
            connection.send_body(data)
            self.downstream.deadline_ns = self.worker.now_ns() + self.upstream.timeouts.body_idle_ns
        if connection is None or self._keeps_body():
            self._body.append(data)
        elif self._body:
            self._body.clear()
        if connection is None and self._body_bytes > HELD_BYTES_MAX:
            self.downstream.pause_reading(PAUSE_HELD)

    def request_end(self, trailers: Fields) -> None:
        """The request is complete."""
        if self.stage is Stage.OVER:
            self.request_done = True
            self.downstream.exchange_done(keep=True)
            return
        if self.head.framing is Framing.NONE:
            return  # known from the head, and acted upon then
        self.request_done = True
        self.trailers = trailers
        now_ns = self.worker.now_ns()
        self.downstream.deadline_ns = self.arrival_ns + self.upstream.timeouts.total_ns
        if self.connection is not None:
            self._send_end(now_ns)

    def _send_end(self, now_ns: int) -> None:
        connection = self.connection
        assert connection is not None
        connection.send_end(self.trailers)
        connection.deadline_ns = now_ns + self.upstream.timeouts.response_ns

    def _keeps_body(self) -> bool:
        """Whether the body is kept for the one stale-connection retry."""
        return self._body_bytes <= HELD_BYTES_MAX and self.head.method in IDEMPOTENT

    def upstream_writable(self, yes: bool) -> None:
        """Back-pressure from the upstream: the client's reading follows it."""
        if yes:
            self.downstream.resume_reading(PAUSE_PEER)
        else:
            self.downstream.pause_reading(PAUSE_PEER)

    # The response's way back.

    def response_head(self, head: ResponseHead) -> None:
        """A response head came: interim ones pass, the final one decides the rest."""
        downstream = self.downstream
        worker = self.worker
        status = head.status
        if status < 200:
            if status == 101:
                unasked = GatewayError(ErrorKind.BAD_RESPONSE, "101 was not asked for")
                self.upstream_failed(unasked)
            elif self.head.minor:
                fields = forward_response(head, worker.via)
                downstream.out.append(
                    encode.response(status, head.reason, fields, Framing.NONE, False)
                )
            return
        self.stage = Stage.ANSWER
        self.status = status
        now_ns = self.response_ns = worker.now_ns()
        admission.answered(self, head, now_ns - self.connected_ns, now_ns)
        framing = head.framing
        if framing is Framing.CHUNKED or framing is Framing.CLOSE:
            framing = Framing.CHUNKED if self.head.minor else Framing.CLOSE
        self._framing_out = framing
        self.response_started = True
        self._keep = keep = (
            self.head.keep_alive
            and self.request_done
            and framing is not Framing.CLOSE
            and not worker.draining
        )
        fields = forward_response(head, worker.via)
        downstream.out.append(encode.response(status, head.reason, fields, framing, not keep))
        connection = self.connection
        if connection is not None:
            connection.deadline_ns = now_ns + self.upstream.timeouts.body_idle_ns

    def response_body(self, data: bytes) -> None:
        """A piece of the response's body came from the upstream."""
        self.bytes_out += len(data)
        out = self.downstream.out
        if self._framing_out is Framing.CHUNKED:
            out += encode.chunk(data)
        else:
            out.append(data)
        connection = self.connection
        if connection is not None and not connection.reading_paused:
            connection.deadline_ns = self.worker.now_ns() + self.upstream.timeouts.body_idle_ns

    def response_end(self, trailers: Fields) -> None:
        """The response is complete."""
        if self._framing_out is Framing.CHUNKED:
            self.downstream.out.append(
                encode.last_chunk(forward_trailers(trailers) if self.head.te_trailers else [])
            )
        connection = self.connection
        self.connection = None
        if connection is not None:
            if self.request_done:
                connection.end()
            else:
                # The upstream answered early; what is left of the request has no reader.
                connection.drop()
        self._over(Termination(Source.NONE, Phase.NONE))
        self.downstream.exchange_done(keep=self._keep)

    def client_writable(self, yes: bool) -> None:
        """Back-pressure from the client: the upstream's reading follows it."""
        if self.stage is Stage.OVER:
            return
        connection = self.connection
        now_ns = self.worker.now_ns()
        timeouts = self.upstream.timeouts
        if yes:
            self.downstream.deadline_ns = self.arrival_ns + timeouts.total_ns
            if connection is not None:
                connection.deadline_ns = now_ns + timeouts.body_idle_ns
                connection.resume_reading(PAUSE_PEER)
        else:
            self.downstream.deadline_ns = now_ns + timeouts.body_idle_ns
            if connection is not None:
                connection.deadline_ns = 0  # the silence is ours
                connection.pause_reading(PAUSE_PEER)

    # What goes wrong.

    def upstream_failed(self, error: GatewayError) -> None:
        """No connection, or the connection or its response broke."""
        connection = self.connection
        self.connection = None
        if connection is not None:
            stale = (
                error.kind is ErrorKind.UPSTREAM_CLOSED
                and not connection.fresh
                and not connection.response_begun
                and self.head.method in IDEMPOTENT
                and self._body_bytes <= HELD_BYTES_MAX
            )
            connection.drop()
            if stale:
                self.worker.count("stale_connection_retries")
                self.stage = Stage.DIAL
                self.wants_fresh = True
                self.upstream.pool.take(self)
                return
        now_ns = self.worker.now_ns()
        admission.failed(self, error, now_ns)
        if self.response_started:
            kind = ErrorKind.RESPONSE_INCOMPLETE
            self._over(Termination(kind.source, Phase.DATA))
            self.downstream.cut(self._framing_out)
        else:
            self.fail(error)

    def upstream_silent(self, now_ns: int) -> None:
        """The upstream's deadline passed: no head, or no more of the body."""
        self.upstream_failed(GatewayError(ErrorKind.RESPONSE_TIMEOUT, phase=self.stage.value))

    def client_silent(self, now_ns: int) -> None:
        """The client's deadline passed: it sends or takes nothing, or all took too long."""
        if not self.request_done:
            error = GatewayError(ErrorKind.BODY_TIMEOUT, phase=Phase.DATA)
        else:
            error = GatewayError(ErrorKind.RESPONSE_TIMEOUT, "the exchange took too long")
        if self.stage is Stage.OVER:
            self.downstream.abort()
        elif self.response_started:
            self._release()
            self._over(error.termination)
            self.downstream.cut(self._framing_out)
        else:
            self.fail(error)

    def client_lost(self) -> None:
        """The client is gone: whatever was asked for it is called off."""
        if self.stage is not Stage.OVER:
            phase = self.stage.value
            self.upstream.counts.aborted += 1
            self._release()
            self._over(Termination(Source.CLIENT, phase))

    def request_broken(self, error: GatewayError) -> None:
        """The client's octets stopped being a message, inside the body."""
        if self.stage is Stage.OVER:
            self.downstream.exchange_done(keep=False)
        elif self.response_started:
            self._release()
            self._over(error.termination)
            self.downstream.cut(self._framing_out)
        else:
            self.request_done = False
            self.fail(error, close=True)

    def fail(self, error: GatewayError, *, close: bool = False) -> None:
        """Answers with an error of the gateway's own."""
        self._release()
        kind = error.kind
        self.status = kind.status
        head = self.head
        rest_is_small = head.framing is Framing.NONE or (
            not head.expect_continue
            and head.content_length <= HELD_BYTES_MAX
            and kind.source not in (Source.CLIENT, Source.CLIENT_TIMEOUT)
        )
        close = close or not head.keep_alive or self.worker.draining or not rest_is_small
        self.downstream.out.append(
            error_answer(
                error,
                self.worker,
                close=close,
                head_only=head.method == b"HEAD",
                upstream=self.upstream_name,
                waited_ns=self.waited_ns,
                attempts=self.attempts,
                more=admission.refusal_fields(self, error),
            )
        )
        self.response_started = True
        self._over(error.termination, error)
        self._body_bytes = 0
        self.downstream.flush_unless_decoding()
        if close:
            self.downstream.exchange_done(keep=False)
        elif self.request_done:
            self.downstream.exchange_done(keep=True)

    def _release(self) -> None:
        """Lets go of the waitroom's, the pool's and the connection's part in this exchange."""
        self.worker.waitroom.leave(self)
        if self.stage is Stage.DIAL:
            self.upstream.pool.leave(self)
        connection = self.connection
        self.connection = None
        if connection is not None:
            connection.drop()

    def _over(self, termination: Termination, error: GatewayError | None = None) -> None:
        """Gives back what the exchange held, and records it; once."""
        if self.stage is Stage.OVER:
            return
        self.stage = Stage.OVER
        now_ns = self.worker.now_ns()
        admission.give_back(self, now_ns)
        self._body.clear()
        if self.worker.runtime.access_log:
            self.worker.record(self._access_record(now_ns, termination, error))

    def _access_record(
        self, now_ns: int, termination: Termination, error: GatewayError | None
    ) -> AccessRecord:
        arrival_ns = self.arrival_ns
        return AccessRecord(
            self.worker.wall_ns(),
            self.downstream.source,
            self.client.name,
            self.downstream.listener.name,
            self.upstream_name,
            self.head.method,
            self.head.host,
            self.head.target,
            self.status,
            self.bytes_in,
            self.bytes_out,
            self.waited_ns,
            max(0, self.connected_ns - self.dispatched_ns),
            max(0, self.response_ns - self.connected_ns),
            now_ns - arrival_ns,
            self.attempts,
            termination,
            error,
        )
