"""One request and its response: from the head's arrival to the last octet, or to what ended it.

`stage` has the table of states. Nothing here awaits: each method is called by one of the two
connections, the pool or the waitroom, and leaves the exchange in a state that the next call can
meet. `Admittee` is the part that waits, `Respondent` the part that comes back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gateway.breaker.signals import Decision
from gateway.clock import SECOND
from gateway.errors import ErrorKind, GatewayError, Phase, Source, Termination
from gateway.h1.forward import (
    came_through,
    forward_request,
    forward_trailers,
    max_forwards,
    upgrade_fields,
)
from gateway.h1.message import Fields, Framing, RequestHead
from gateway.proxy import admission, central, turns
from gateway.proxy.answers import error_answer
from gateway.proxy.flow import HELD_BYTES_MAX, PAUSE_HELD, PAUSE_PEER
from gateway.proxy.record import access_record
from gateway.proxy.response import Carrier, Respondent
from gateway.proxy.spooling import STATUS_PATH, prefers_async
from gateway.proxy.stage import Stage
from gateway.proxy.targets import FORWARD, find_absolute, find_tunnel, is_other_host
from gateway.proxy.tunnel import TunnelEnd
from gateway.routes import strip_path

if TYPE_CHECKING:
    from gateway.breaker.signals import Signal
    from gateway.proxy.downstream import DownstreamProtocol
    from gateway.proxy.graph import RetryRule, Upstream, Worker
    from gateway.proxy.spooling import SpoolDoor

__all__ = ["Exchange"]

# RFC 9110 section 9.3.6: a 2xx to CONNECT has neither Content-Length nor Transfer-Encoding.
TUNNEL_OPEN = b"HTTP/1.1 200 Connection Established\r\n\r\n"

# RFC 9110 section 9.2.2.
IDEMPOTENT: Final = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"))


class Exchange(Respondent):
    """The state of one exchange, and the request's half of its work."""

    __slots__ = (
        "_body",
        "_body_bytes",
        "attempts",
        "dispatched_ns",
        "is_connect",
        "number",
        "request_ns",
        "trailers",
        "wants_fresh",
    )

    def __init__(self, worker: Worker, downstream: DownstreamProtocol, head: RequestHead) -> None:
        super().__init__(worker, downstream, head)
        self.attempts = 0
        self.wants_fresh = False
        self.is_connect = False
        self.trailers: Fields = []
        self._body: list[bytes] = []
        self._body_bytes = 0
        self.dispatched_ns = 0
        self.request_ns = 0  # from the head's first octet to its last
        worker.requests = self.number = worker.requests + 1

    # Arrival and admission.

    def start(self, now_ns: int) -> None:
        """Routes and asks; leaves the exchange dispatched, held or answered."""
        self.arrival_ns = now_ns
        try:
            if max_forwards(self.head) == 0:
                self.answer_self_slow()
                return
            spool = self.worker.spool
            if spool is None:
                self._route()
            elif self._goes_to_spool_slow(spool, now_ns):
                return
            blocked = admission.first_ask(self, now_ns)
        except GatewayError as error:
            if error.kind is ErrorKind.NO_ROUTE and self.head.target == b"*":
                self.answer_for_all_slow()
            else:
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
        upstream = self.upstream
        (upstream.tunnels if self.is_connect else upstream.pool).take(self)

    def wait_over(self, now_ns: int) -> None:
        """The deadline came before a turn did (called by the waitroom)."""
        self.fail(turns.refusal_after_wait(self))

    def queue_full(self, now_ns: int) -> None:
        """The row that refused has no place left (called by the waitroom)."""
        self.fail(GatewayError(ErrorKind.QUEUE_FULL, phase=Phase.QUEUE, retry_after_ns=SECOND))

    def rejoin(self, now_ns: int) -> None:
        """A reload came while this exchange was held: it goes on under the new Runtime."""
        before = self.upstream
        try:
            self._address(self._upstream_anew())
            blocked = admission.ask_anew(self, before, now_ns)
        except GatewayError as error:
            self.fail(error)
            return
        if blocked is None:
            self.dispatch(now_ns)
        else:
            self._hold(blocked, now_ns)

    def asked_centrally(self, now_ns: int) -> None:
        """The central store has answered, or is gone: asks for everything once more."""
        try:
            blocked = self.try_again(now_ns)
        except GatewayError as error:
            self.fail(error)
            return
        if blocked is None:
            self.dispatch(now_ns)
        else:
            self._hold(blocked, now_ns)

    def _goes_to_spool_slow(self, spool: SpoolDoor, now_ns: int) -> bool:
        """Routes; says whether the spool has the exchange now. Raises GatewayError."""
        head = self.head
        if STATUS_PATH in head.target and spool.show(self, now_ns):
            return True
        if not self.upstream_name:
            self._route()
        if self.upstream.spool is None or self.is_connect or head.upgrade:
            return False
        if not prefers_async(head.fields):
            return False
        spool.accept(self, now_ns)
        return True

    def go_to(self, upstream: Upstream, path: bytes, more: Fields, now_ns: int) -> None:
        """Sends the exchange there at once, with these fields as well. Raises GatewayError."""
        self.path = path
        self._address(upstream)
        self.fields += more
        if admission.arrive(self, now_ns, now_ns) is not None:
            raise GatewayError(ErrorKind.BREAKER_OPEN, retry_after_ns=SECOND)
        self.dispatch(now_ns)

    def _route(self) -> None:
        head = self.head
        worker = self.worker
        runtime = worker.runtime
        target = head.target
        if head.method == b"CONNECT":
            self.is_connect = True
            upstream, head.host = find_tunnel(runtime, target)
            self.path = b""
            self._address(upstream)
            return
        if target.startswith(b"/") or target == b"*":
            route = runtime.routes.find(head.method, head.host, target)
            if route is None:
                raise GatewayError(ErrorKind.NO_ROUTE, "no route matches this host and path")
            upstream = route.target
            self.path = strip_path(target, route.strip)
        else:
            upstream, self.path, authority = find_absolute(runtime, target, head.method)
            if is_other_host(head.host, authority, target):
                worker.count("hosts_overruled")
            head.host = authority
        self._address(upstream)
        if came_through(head.fields, worker.pseudonym):
            raise GatewayError(ErrorKind.LOOP, "Via names this gateway")

    def _upstream_anew(self) -> Upstream:
        """What its upstream is in the Runtime of now. Raises GatewayError."""
        runtime = self.worker.runtime
        if self.upstream_name == FORWARD:
            target = self.head.target
            if self.is_connect:
                upstream, _ = find_tunnel(runtime, target)
            else:
                upstream, _, _ = find_absolute(runtime, target, self.head.method)
            admission.check_access(self.client, upstream)
            return upstream
        if self.upstream_name not in runtime.upstreams:
            raise GatewayError(ErrorKind.UPSTREAM_GONE, phase=Phase.QUEUE)
        return runtime.upstreams[self.upstream_name]

    def _address(self, upstream: Upstream) -> None:
        """The request as it goes to that upstream."""
        head = self.head
        self.upstream = upstream
        self.upstream_name = upstream.name
        self.fields = []
        if self.is_connect:
            return
        worker = self.worker
        via = worker.via if head.minor else worker.via_slow(0)
        self.fields = forward_request(head, upstream.host_header or head.host, via, upstream.rules)
        if head.upgrade:
            self.fields += upgrade_fields(head.upgrade)
        self._credential = None  # the upstream's rules may have set another

    def _hold(self, blocked: admission.Blocked, now_ns: int) -> None:
        if self.question is not None:
            self.stage = Stage.HELD  # in no queue: its answer calls
            return
        error = turns.may_wait(self, blocked, now_ns)
        if error is None:
            self.stage = Stage.HELD
            if self.head.expect_continue and not self._body_bytes:
                # The client waits for 100, and that for us.
                self.downstream.deadline_ns = self.arrival_ns + self.upstream.timeouts.total_ns
            if self.worker.waitroom.join(self, blocked, now_ns):
                return
            error = GatewayError(
                ErrorKind.QUEUE_FULL,
                "the upstream's queue is full",
                phase=Phase.QUEUE,
                retry_after_ns=turns.honest_wait_ns(self, blocked),
                limit=blocked.limit,
            )
        self.fail(error)

    # The request's way out.

    def connected(self, connection: Carrier | TunnelEnd) -> None:
        """The pool's answer: the request goes out."""
        now_ns = self.connected_ns = self.worker.now_ns()
        self.wants_fresh = False
        if isinstance(connection, TunnelEnd):
            self.status = 200
            admission.tunnelled(self, now_ns)
            self.downstream.out.append(TUNNEL_OPEN)
            self.switch(connection, connection.take_rest())
            return
        self.stage = Stage.SENT
        self.connection = connection
        head = self.head
        connection.begin(self, head.method, self.path, self.fields, head.framing)
        if self._body:
            for data in self._body:
                connection.send_body(data)
            if not self._keeps_body():
                self._body.clear()
        downstream = self.downstream
        if self.request_done:
            self._send_end(now_ns)
        else:
            downstream.deadline_ns = now_ns + self.upstream.timeouts.body_idle_ns
        # PAUSE_PEER was for a connection that this one replaces.
        downstream.resume_reading(PAUSE_HELD | PAUSE_PEER)
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
            self.downstream.deadline_ns = self.arrival_ns + self.upstream.timeouts.total_ns
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
        if trailers:
            self.trailers = forward_trailers(trailers, self.head.connection)
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
        """Whether all of the body so far is kept, to be sent once more if need be."""
        return self._body_bytes <= self.upstream.retry.body_bytes_max and self._repeatable()

    def must_arrive(self) -> bool:
        """Whether it would be lost with a stale connection: it cannot be sent once more."""
        head = self.head
        return (
            head.framing is Framing.CHUNKED
            or head.content_length > self.upstream.retry.body_bytes_max
            or not self._repeatable()
        )

    def _repeatable(self) -> bool:
        """Whether sending the request twice is safe (RFC 9110 section 9.2.2)."""
        if self.head.method in IDEMPOTENT:
            return True
        return self.upstream.retry.all_methods and any(
            name.lower() == b"idempotency-key" for name, _ in self.fields
        )

    def upstream_writable(self, yes: bool) -> None:
        """Back-pressure from the upstream: the client's reading follows it."""
        connection = self.connection
        if connection is None or self.stage is Stage.OVER:
            return
        now_ns = self.worker.now_ns()
        timeouts = self.upstream.timeouts
        downstream = self.downstream
        if yes:
            if not self.request_done:
                downstream.deadline_ns = now_ns + timeouts.body_idle_ns
                connection.deadline_ns = 0
            elif not self.response_started:
                connection.deadline_ns = now_ns + timeouts.response_ns
            downstream.resume_reading(PAUSE_PEER)
        else:
            # From here on it is the upstream that is slow.
            downstream.deadline_ns = self.arrival_ns + timeouts.total_ns
            connection.deadline_ns = now_ns + timeouts.body_idle_ns
            downstream.pause_reading(PAUSE_PEER)

    # Once more.

    def goes_again(self, status: int, signal: Signal, now_ns: int) -> bool:
        """Whether this response is dropped and the request sent again, now or after a wait.

        A throttle is a 429 whatever status it came with (GitHub's 403, Shopify's 200). It costs no
        credit: the budget is there so that an outage is not multiplied, and after a throttle the
        pause, one trial and the limits see to that, however many were under way when it came.
        """
        retry = self.upstream.retry
        listed = retry.on.statuses
        if signal.may_retry is False or not listed:
            return False
        throttled = signal.decision is Decision.THROTTLE and 429 in listed
        if not (throttled or status in listed):
            return False
        credit = 0.0 if signal.decision is Decision.THROTTLE and signal.pauses else 1.0
        reason = "throttle" if throttled else str(status)
        return self._may_repeat(retry, credit) and self._again(credit, reason, now_ns)

    def _may_repeat(self, retry: RetryRule, credit: float) -> bool:
        return (
            self.attempts < retry.attempts
            and self.request_done
            and self._keeps_body()
            and self.upstream.counts.retry_credit >= credit
        )

    def _again(self, credit: float, reason: str, now_ns: int) -> bool:
        """Asks for another send, which takes tokens as the first did; False: no room in time."""
        admission.give_back(self, now_ns)
        try:
            blocked = admission.ask_once_more(self, now_ns)
        except GatewayError:
            return False
        if (
            blocked is not None
            and self.question is None
            and not turns.ends_in_time(self, blocked, now_ns)
        ):
            return False
        counts = self.upstream.counts
        counts.retried += 1
        counts.retries[reason] += 1
        counts.retry_credit -= credit
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.discard()
        if blocked is None:
            self.dispatch(now_ns)
        else:
            self._hold(blocked, now_ns)
        return True

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
                and self._keeps_body()
            )
            connection.drop()
            if stale:
                self.upstream.counts.retries["stale_connection"] += 1
                self.stage = Stage.DIAL
                self.wants_fresh = True
                self.upstream.pool.take(self)
                return
        held = self._held
        if held is not None and not self._judge_slow(held):
            return
        now_ns = self.worker.now_ns()
        admission.failed(self, error, now_ns)
        if self.response_started:
            self.over(Termination(error.kind.source, Phase.DATA), error)
            self.downstream.cut(self._framing_out)
            return
        retry = self.upstream.retry
        listed = error.kind in retry.on.kinds
        reason = error.kind.name.lower()
        if listed and self._may_repeat(retry, 1.0) and self._again(1.0, reason, now_ns):
            return
        self.fail(error)

    def upstream_silent(self, now_ns: int) -> None:
        """The upstream's deadline passed: no head, or no more of the body."""
        held = self._held
        if held is not None:
            self.worker.count("signal_bodies_slow")
            self._judge_slow(held)
            self.downstream.flush()
            return
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
            takes_nothing = self.downstream.write_blocked or not self.request_done
            source = Source.CLIENT_TIMEOUT if takes_nothing else Source.SERVER_TIMEOUT
            self._release()
            self.over(Termination(source, Phase.DATA))
            self.downstream.cut(self._framing_out)
        else:
            self.fail(error)

    def client_lost(self) -> None:
        """The client is gone: whatever was asked for it is called off."""
        if self.stage is not Stage.OVER:
            phase = self.stage.value
            if self.upstream_name:
                self.upstream.counts.aborted += 1
            else:  # it waits for an answer of ours
                self.worker.count("own_answers_aborted")
            self._release()
            self.over(Termination(Source.CLIENT, phase))

    def request_broken(self, error: GatewayError) -> None:
        """The client's octets stopped being a message, inside the body."""
        if self.stage is Stage.OVER:
            self.downstream.exchange_done(keep=False)
        elif self.response_started:
            self._release()
            self.over(error.termination)
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
        # What was meant for a tunnel must never be read as a request.
        close = close or not head.keep_alive or not rest_is_small or head.method == b"CONNECT"
        close = close or self.worker.draining
        self.downstream.out.append(
            error_answer(
                error,
                self.worker,
                close=close,
                head_only=head.method == b"HEAD",
                request_id=self.worker.request_id_slow(self.number, head.request_id),
                upstream=self.upstream_name,
                waited_ns=self.waited_ns,
                attempts=self.attempts,
                more=admission.refusal_fields(self, error),
            )
        )
        self.response_started = True
        self.over(error.termination, error)
        self._body_bytes = 0
        self.downstream.resume_reading(PAUSE_HELD | PAUSE_PEER)  # the rest is read, and dropped
        self.downstream.flush_unless_decoding()
        if close:
            self.downstream.exchange_done(keep=False)
        elif self.request_done:
            self.downstream.exchange_done(keep=True)
        else:
            self.downstream.set_timeout(self.worker.runtime.head_timeout_ns)

    def _release(self) -> None:
        """Lets go of the waitroom's, the pool's and the connection's part in this exchange."""
        self.worker.waitroom.leave(self)
        if self.question is not None:
            central.drop(self)
        held = self._held
        if held is not None:
            self._heed_slow(held, self.worker.now_ns())
        if self.stage is Stage.DIAL:
            upstream = self.upstream
            (upstream.tunnels if self.is_connect else upstream.pool).leave(self)
        connection = self.connection
        self.connection = None
        if connection is not None:
            connection.drop()

    def over(self, termination: Termination, error: GatewayError | None = None) -> None:
        """Gives back what the exchange held, and records it; once."""
        if self.stage is Stage.OVER:
            return
        self.stage = Stage.OVER
        now_ns = self.worker.now_ns()
        admission.give_back(self, now_ns)
        self._body.clear()
        if self.upstream_name:
            counts = self.upstream.counts
            counts.answers[min(self.status // 100, 5)] += 1
            if not (self.is_connect or self.switching):
                counts.duration.observe(now_ns - self.arrival_ns + self.request_ns)
        runtime = self.worker.runtime
        if runtime.access_log and (
            runtime.access_sample >= 1.0 or self._is_logged(termination, error)
        ):
            self.worker.record(access_record(self, now_ns, termination, error))

    def _is_logged(self, termination: Termination, error: GatewayError | None) -> bool:
        """Whether a log that has only a sample of what went well has this exchange."""
        failed = error is not None or self.status >= 400 or termination.source is not Source.NONE
        return failed or self.worker.chance() < self.worker.runtime.access_sample
