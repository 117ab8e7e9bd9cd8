"""The half of an exchange that comes back: the response, on its way to the client.

It decides what the client sees of it: framing for the client's version of HTTP, whether the
connection can go on, and whether this response is passed on at all or the request sent again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from gateway.clock import SECOND
from gateway.errors import NORMAL_END, ErrorKind, GatewayError, Phase, Source, Termination
from gateway.h1 import encode
from gateway.h1.forward import forward_response, forward_trailers, upgrade_fields
from gateway.h1.message import Fields, Framing, RequestHead, ResponseHead
from gateway.proxy import admission
from gateway.proxy.flow import PAUSE_PEER
from gateway.proxy.graph import Timeouts
from gateway.proxy.held import BODY_WAIT_NS, HeldResponse, unreadable
from gateway.proxy.stage import Stage
from gateway.proxy.tunnel import Tunnel

if TYPE_CHECKING:
    from gateway.breaker.signals import Signal
    from gateway.proxy.downstream import DownstreamProtocol
    from gateway.proxy.exchange import Exchange
    from gateway.proxy.graph import Worker
    from gateway.proxy.relay import Relay

__all__ = ["Carrier", "Respondent"]


# Of an answer of the gateway's own that is longer than a connection takes at once; an upstream has
# the same `total`. Half the `body_idle`: one who takes nothing holds a place that others wait for.
OWN_TIMEOUTS: Final = Timeouts(0, 30 * SECOND, 600 * SECOND, 0)


class Carrier(Protocol):
    """What carries an exchange upstream: a connection, or one stream of an HTTP/2 connection.

    What each method does, `UpstreamProtocol` tells.
    """

    deadline_ns: int
    fresh: bool

    @property
    def response_begun(self) -> bool: ...

    @property
    def reading_paused(self) -> bool: ...

    def begin(
        self, exchange: Exchange, method: bytes, target: bytes, fields: Fields, framing: Framing
    ) -> None: ...

    def send_body(self, data: bytes) -> None: ...

    def send_end(self, trailers: Fields) -> None: ...

    def flush(self) -> None: ...

    def end(self) -> None: ...

    def discard(self) -> None: ...

    def drop(self) -> None: ...

    def pause_reading(self, reason: int) -> None: ...

    def resume_reading(self, reason: int) -> None: ...


class Respondent(admission.Admittee):
    """What an exchange knows of its response. `Exchange` has the request's half."""

    __slots__ = (
        "_framing_out",
        "_held",
        "_keep",
        "_named",
        "bytes_in",
        "bytes_out",
        "connection",
        "downstream",
        "request_done",
        "response_ns",
        "response_started",
        "stage",
        "status",
        "switching",
    )

    def __init__(self, worker: Worker, downstream: DownstreamProtocol, head: RequestHead) -> None:
        super().__init__(worker, head, downstream.source, downstream.certificate_names)
        self.downstream = downstream
        self.connection: Carrier | None = None
        self.stage = Stage.ADMIT
        self.status = 0
        self.request_done = head.framing is Framing.NONE
        self.response_started = False
        self.switching = False
        self._keep = False
        self._held: HeldResponse | None = None
        self._framing_out = Framing.NONE
        self._named: frozenset[bytes] = frozenset()  # by the response's Connection
        self.bytes_in = 0
        self.bytes_out = 0
        self.response_ns = 0

    # What the other half gives.

    def upstream_failed(self, error: GatewayError) -> None:
        raise NotImplementedError

    def over(self, termination: Termination, error: GatewayError | None = None) -> None:
        raise NotImplementedError

    def goes_again(self, status: int, signal: Signal, now_ns: int) -> bool:
        raise NotImplementedError

    # The connection's side.

    def response_head(self, head: ResponseHead) -> None:
        """A response head came: interim ones pass, the final one decides the rest."""
        status = head.status
        if status < 200:
            self._interim_slow(head)
            return
        now_ns = self.response_ns = self.worker.now_ns()
        if status in self.upstream.body_statuses and self._hold_response_slow(head, now_ns):
            return
        signal = admission.answered(self, head, now_ns - self.connected_ns, now_ns)
        if status >= 400 and self.goes_again(status, signal, now_ns):
            return
        self._pass_on(head, now_ns)

    def _pass_on(self, head: ResponseHead, now_ns: int) -> None:
        """Nothing keeps the response back: its head goes to the client."""
        downstream = self.downstream
        worker = self.worker
        self.stage = Stage.ANSWER
        self.status = status = head.status
        framing = head.framing
        if framing is Framing.CHUNKED or framing is Framing.CLOSE:
            framing = Framing.CHUNKED if self.head.minor else Framing.CLOSE
        self._framing_out = framing
        self._named = head.connection
        self.response_started = True
        self._keep = keep = (
            self.head.keep_alive
            and self.request_done
            and framing is not Framing.CLOSE
            and not worker.draining
        )
        via = worker.via if head.minor == 1 else worker.via_slow(head.minor)
        fields = forward_response(head, via, self.head.te_trailers)
        if not head.dated:
            # RFC 9110 section 6.6.1: a recipient with a clock that forwards it must date it.
            fields.append((b"Date", worker.date.of(worker.wall_ns())))
        downstream.out.append(encode.response(status, head.reason, fields, framing, not keep))
        connection = self.connection
        if connection is not None:
            connection.deadline_ns = now_ns + self.upstream.timeouts.body_idle_ns

    def response_body(self, data: bytes) -> None:
        """A piece of the response's body came from the upstream."""
        held = self._held
        if held is not None:
            if held.add(data):
                self.worker.count("signal_bodies_long")
                self._judge_slow(held)
            return
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
        if self.switching:
            return  # a 101 has no body, and its exchange goes on as a tunnel
        held = self._held
        if held is not None and not self._judge_slow(held):
            return
        if self._framing_out is Framing.CHUNKED:
            if trailers:
                wanted = self.head.te_trailers
                trailers = forward_trailers(trailers, self._named) if wanted else []
            self.downstream.out.append(encode.last_chunk(trailers))
        connection = self.connection
        self.connection = None
        if connection is not None:
            if self.request_done:
                connection.end()
            else:
                # The upstream answered early; what is left of the request has no reader.
                connection.drop()
        self.over(NORMAL_END)
        self.downstream.exchange_done(keep=self._keep)

    def answer(self, status: int, fields: Fields, body: bytes) -> None:
        """Answers in the gateway's own name, and not with an error."""
        self.connection = None
        self.status = status
        self.response_started = True
        self.bytes_out = len(body)
        close = not self.head.keep_alive or not self.request_done or self.worker.draining
        framing = Framing.NONE
        if status not in (204, 304):
            framing = Framing.LENGTH
            fields = [*fields, (b"Content-Length", b"%d" % len(body))]
        out = self.downstream.out
        reason = encode.reason_phrase(status)
        out.append(encode.response(status, reason, fields, framing, close))
        if body and self.head.method != b"HEAD":
            out.append(body)
        self.over(NORMAL_END)
        self.downstream.exchange_done(keep=not close)

    def answer_begin_slow(
        self, source: Carrier, status: int, fields: Fields, body_bytes: int
    ) -> None:
        """Answers in the gateway's own name with a body that `source` gives in pieces, each with
        `answer_piece_slow`, and then `response_end`."""
        downstream = self.downstream
        self.connection = source
        self.stage = Stage.ANSWER
        self.status = status
        self.response_started = True
        self._framing_out = Framing.LENGTH
        self._keep = self.head.keep_alive and self.request_done and not self.worker.draining
        downstream.deadline_ns = self.worker.now_ns() + OWN_TIMEOUTS.total_ns
        fields = [*fields, (b"Content-Length", b"%d" % body_bytes)]
        reason = encode.reason_phrase(status)
        downstream.out.append(
            encode.response(status, reason, fields, Framing.LENGTH, not self._keep)
        )

    def answer_piece_slow(self, data: bytes) -> None:
        """A piece of the body; the client's back-pressure pauses the source meanwhile."""
        self.bytes_out += len(data)
        self.downstream.out.append(data)
        self.downstream.flush()

    def answer_broken_slow(self) -> None:
        """The rest of the body cannot be read: the client sees that it is cut off."""
        self.connection = None
        self.over(Termination(Source.INTERNAL, Phase.DATA))
        self.downstream.cut(self._framing_out)

    def answer_self_slow(self) -> None:
        """Max-Forwards says that the request goes no further (RFC 9110 section 7.6.2)."""
        if self.head.method == b"TRACE":
            # Reflecting a request would show a script the credentials that were added on the way.
            raise GatewayError(ErrorKind.NOT_IMPLEMENTED, "TRACE is not answered here")
        worker = self.worker
        date = worker.date.of(worker.wall_ns())
        self.answer(204, [(b"Date", date), (b"Via", worker.via)], b"")

    def answer_for_all_slow(self) -> None:
        """OPTIONS * that no route takes is about this server itself (RFC 9110 section 9.3.7)."""
        worker = self.worker
        self.answer(200, [(b"Date", worker.date.of(worker.wall_ns()))], b"")

    def switch(self, connection: Relay, early_out: bytes) -> None:
        """Both sides speak another protocol from here on; `early_out` came behind the head."""
        downstream = self.downstream
        self.stage = Stage.ANSWER
        self.response_started = True
        self.connection = None
        downstream.exchange = None
        tunnel = Tunnel(downstream, connection, self.upstream.timeouts.tunnel_ns, self._tunnel_over)
        tunnel.begin(downstream.take_rest(), early_out)

    # A response that is judged by its body.

    def _hold_response_slow(self, head: ResponseHead, now_ns: int) -> bool:
        """Keeps the response back until its body says what it means; False: no use in it."""
        upstream = self.upstream
        if upstream.profile.recognises:
            admission.recognise(upstream, head.fields)
        if head.status not in upstream.profile.provider.body_statuses:
            return False
        connection = self.connection
        why = unreadable(head)
        if why is None and connection is not None and self.request_done:
            self._held = HeldResponse(head, now_ns - self.connected_ns)
            connection.deadline_ns = now_ns + BODY_WAIT_NS
            return True
        if why:
            self.worker.count(why)
        return False

    def _judge_slow(self, held: HeldResponse) -> bool:
        """Decides about the response that was kept back, and lets it go; False: it goes again."""
        now_ns = self.worker.now_ns()
        signal = self._heed_slow(held, now_ns)
        if self.goes_again(held.head.status, signal, now_ns):
            return False
        self._pass_on(held.head, now_ns)
        for data in held.pieces:
            self.response_body(data)
        return True

    def _heed_slow(self, held: HeldResponse, now_ns: int) -> Signal:
        """What the kept response says counts, whether or not anybody will read it."""
        self._held = None
        return admission.answered(self, held.head, held.head_time_ns, now_ns, held.beginning())

    # The client's side.

    def client_writable(self, yes: bool) -> None:
        """Back-pressure from the client: the upstream's reading follows it."""
        if self.stage is Stage.OVER:
            return
        connection = self.connection
        now_ns = self.worker.now_ns()
        timeouts = self.upstream.timeouts if self.upstream_name else OWN_TIMEOUTS
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

    # Inside.

    def _interim_slow(self, head: ResponseHead) -> None:
        worker = self.worker
        via = worker.via if head.minor == 1 else worker.via_slow(head.minor)
        fields = forward_response(head, via, self.head.te_trailers)
        if head.status == 101:
            asked = self.head.upgrade and upgrade_fields(self.head.upgrade)
            if not asked or not self.request_done or head.upgrade.lower() != b"websocket":
                # RFC 9110 section 7.8: the request is completed before the protocol changes, and it
                # changes to none but what the request named.
                unasked = GatewayError(ErrorKind.BAD_RESPONSE, "101 was not asked for")
                self.upstream_failed(unasked)
                return
            self.switching = True
            self.status = 101
            now_ns = self.response_ns = worker.now_ns()
            admission.answered(self, head, now_ns - self.connected_ns, now_ns)
            fields += upgrade_fields(head.upgrade)
        elif not self.head.minor:
            return  # RFC 9110 section 15.2: never to an HTTP/1.0 client
        answer = encode.response(head.status, head.reason, fields, Framing.NONE, False)
        self.downstream.out.append(answer)

    def _tunnel_over(self, source: Source, bytes_in: int, bytes_out: int) -> None:
        self.bytes_in += bytes_in
        self.bytes_out += bytes_out
        phase = Phase.NONE if source is Source.NONE else Phase.DATA
        self.over(Termination(source, phase))
