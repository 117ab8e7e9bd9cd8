"""A stored request that is sent: an exchange like any other, with the store at the client's end.

It asks the same breakers and limits, waits in the same queues and uses the same pool as live
traffic, at its own priority. What differs is here: nobody reads along, so it is not sent again by
itself; a longer wait is spent in its lane, not in a queue; and it asks whether it is still wanted
before it takes a token.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final, Protocol

from gateway.breaker.outcome import Outcome
from gateway.breaker.signals import PASS, Decision, Signal
from gateway.clock import MS
from gateway.errors import ErrorKind, GatewayError, Phase, Source, Termination
from gateway.h1.forward import forward_request, forward_response
from gateway.h1.message import Fields, Framing, RequestHead, ResponseHead
from gateway.proxy import admission, central, turns
from gateway.proxy.clients import ANONYMOUS, NO_NAMES
from gateway.proxy.downstream import DownstreamProtocol
from gateway.proxy.exchange import Exchange
from gateway.proxy.stage import Stage
from gateway.spool.record import Entry, Result, Stored

if TYPE_CHECKING:
    from gateway.proxy.graph import Listener, Upstream, Worker
    from gateway.proxy.spooling import SpoolRule

__all__ = ["Owner", "Sending", "lane_of", "lane_of_stored"]

# What ends sooner is waited for in the row's own queue, where turns are fair to the millisecond.
HELD_NS_MAX: Final = 100 * MS
PARTS_UNDER_WAY_MAX: Final = 4
# A result is given out later, framed anew and without its trailers.
_OF_THE_TRANSFER: Final = frozenset((b"content-length",))


class Owner(Protocol):
    """Who sends: `gateway.spool.sender`, over a store."""

    @property
    def part_bytes(self) -> int:
        """Of how many octets a piece of a response is made; more are never gathered."""
        ...

    def result_bytes_max(self, entry: Entry) -> int:
        """Of how long a response its beginning is kept."""
        ...

    def went_out(self, sending: Sending) -> None: ...

    def must_wait(self, sending: Sending, wait_ns: int) -> None:
        """Not now; no attempt was made."""
        ...

    def answered(self, sending: Sending, result: Result) -> None:
        """The upstream did its work."""
        ...

    def refused(self, sending: Sending, status: int, signal: Signal) -> None:
        """The upstream answered, and it was a failure or a throttle."""
        ...

    def failed(self, sending: Sending, error: GatewayError) -> None: ...

    def load_body(self, sending: Sending) -> None:
        """Gets a body that has parts, for `body_loaded`."""
        ...

    def put_part(self, sending: Sending, number: int, data: bytes) -> None:
        """Keeps a piece of the response, and calls `part_kept`."""
        ...

    def forget_parts(self, sending: Sending) -> None:
        """The response broke off: its pieces are no result."""
        ...


class StoreEnd(DownstreamProtocol):
    """The client's end of an exchange that has no client: what is written goes nowhere."""

    __slots__ = ("_sending",)

    def __init__(self, worker: Worker, listener: Listener, source: str) -> None:
        super().__init__(worker, listener, source)
        self._sending: Sending | None = None

    def carries(self, sending: Sending) -> None:
        """From now on the wheel looks at the exchange's deadline."""
        self._sending = sending
        self._spoke = self.worker.wheel.add(self)

    def over(self) -> None:
        """The wheel no longer has to look."""
        self.deadline_ns = 0
        if self._spoke is not None:
            self._spoke.discard(self)
            self._spoke = None

    def expired(self, now_ns: int) -> None:
        if self._sending is not None:
            self._sending.client_silent(now_ns)

    def flush(self) -> None:
        self.out.clear()

    def flush_now(self) -> None:
        self.out.clear()

    def flush_unless_decoding(self) -> None:
        self.out.clear()

    def pause_reading(self, reason: int) -> None:
        """The request is whole already."""

    def resume_reading(self, reason: int) -> None:
        """The request is whole already."""

    def abort(self) -> None:
        """There is no connection."""

    def exchange_done(self, *, keep: bool) -> None:
        if self._sending is not None:
            self._sending.response_whole()

    def cut(self, framing: Framing) -> None:
        if self._sending is not None:
            self._sending.response_broken()


class Sending(Exchange):
    """One send of a stored request."""

    __slots__ = (
        "_gathered_bytes",
        "_is_kept",
        "_pieces",
        "_result_bytes_max",
        "_result_fields",
        "_under_way",
        "entry",
        "error",
        "is_out",
        "owner",
        "parts",
        "result_bytes",
        "signal",
        "store_end",
        "stored",
    )

    def __init__(
        self, owner: Owner, worker: Worker, listener: Listener, entry: Entry, stored: Stored
    ) -> None:
        end = StoreEnd(worker, listener, stored.source)
        super().__init__(worker, end, _head(stored))
        self.store_end = end
        self.owner = owner
        self.entry = entry
        self.stored = stored
        self.request_done = True
        self.is_out = False
        self.signal: Signal = PASS
        self.error: GatewayError | None = None
        self.parts = 0
        self.result_bytes = 0
        self._result_bytes_max = owner.result_bytes_max(entry)
        self._is_kept = False  # whether the response is a result
        self._result_fields: Fields = []
        self._pieces: list[bytes] = []
        self._gathered_bytes = 0
        self._under_way = 0

    def begin(self, upstream: Upstream, rule: SpoolRule, now_ns: int) -> None:
        """Asks whether it may go; it is sent, stands in a queue, or its owner is told."""
        self.arrival_ns = now_ns
        self.path = self.stored.target
        client = self.worker.runtime.clients.named(self.stored.client) or ANONYMOUS
        self.client = client._replace(name=self.stored.client, priority=rule.priority)
        left_ns = self.entry.expires_ms * MS - self.worker.wall_ns()
        try:
            self._address(upstream)
            self._still_wanted()
            blocked = admission.arrive(self, now_ns + left_ns, now_ns)
        except GatewayError as error:
            self.fail(error)
            return
        if blocked is None:
            self.dispatch(now_ns)
        else:
            self._hold(blocked, now_ns)

    def body_loaded(self, pieces: list[bytes] | Exception) -> None:
        """What was too long to be loaded with the head is there."""
        if self.stage is not Stage.DIAL:
            return
        if isinstance(pieces, Exception) or sum(map(len, pieces)) != self.stored.body_bytes:
            self.fail(GatewayError(ErrorKind.INTERNAL, "the stored body cannot be read"))
            return
        self._body = pieces
        self.upstream.pool.take(self)

    # What an exchange does otherwise.

    def try_again(self, now_ns: int) -> admission.Blocked | None:
        self._still_wanted()
        return super().try_again(now_ns)

    def dispatch(self, now_ns: int) -> None:
        self.stage = Stage.DIAL
        self.attempts += 1
        self.dispatched_ns = now_ns
        admission.granted(self, now_ns)
        self.is_out = True
        self.store_end.deadline_ns = now_ns + self.upstream.timeouts.total_ns
        self.store_end.carries(self)
        self.owner.went_out(self)
        stored = self.stored
        if stored.parts:
            self.owner.load_body(self)
            return
        if stored.body:
            self._body = [stored.body]
        self.upstream.pool.take(self)

    def rejoin(self, now_ns: int) -> None:
        """A reload came: it is asked for anew, under the new Runtime."""
        self._wait(0)

    def queue_full(self, now_ns: int) -> None:
        self._wait(HELD_NS_MAX)

    def _hold(self, blocked: admission.Blocked, now_ns: int) -> None:
        if self.question is not None:
            self.stage = Stage.HELD  # in no queue: the central store's answer calls
            return
        if blocked.wait_ns <= HELD_NS_MAX and turns.ends_in_time(self, blocked, now_ns):
            self.stage = Stage.HELD
            if self.worker.waitroom.join(self, blocked, now_ns):
                return
        turns.stopped_waiting(self, now_ns)
        self._wait(max(blocked.wait_ns, MS))

    def _wait(self, wait_ns: int) -> None:
        self.over(Termination(Source.NONE, Phase.QUEUE))
        self.owner.must_wait(self, wait_ns)

    def _still_wanted(self) -> None:
        """No token is spent on what is too old. Raises GatewayError."""
        if self.worker.wall_ns() >= self.entry.expires_ms * MS:
            raise GatewayError(ErrorKind.LIMITED, "it expired", phase=Phase.QUEUE)

    def _keeps_body(self) -> bool:
        return True

    def goes_again(self, status: int, signal: Signal, now_ns: int) -> bool:
        """Never by itself: the record counts its attempts."""
        self.signal = signal
        return False

    def _may_repeat(self, retry: object, credit: float) -> bool:
        return False

    def fail(self, error: GatewayError, *, close: bool = False) -> None:
        self._release()
        self.over(error.termination, error)
        self.owner.failed(self, error)

    def over(self, termination: Termination, error: GatewayError | None = None) -> None:
        if self.stage is Stage.OVER:
            return
        if error is not None:
            self.error = error
        if self.is_out:
            super().over(termination, error)
            self.store_end.over()
        else:
            central.drop(self)
            self.stage = Stage.OVER  # nothing was taken, and nothing happened that a log tells

    # The response.

    def _pass_on(self, head: ResponseHead, now_ns: int) -> None:
        self.stage = Stage.ANSWER
        self.status = head.status
        self.response_started = True
        failed = self.upstream.failure.of_status(head.status) is Outcome.FAILURE
        throttled = self.signal.decision in (Decision.THROTTLE, Decision.OVERLOAD)
        self._is_kept = not (failed or throttled)
        if self._is_kept:
            self._result_fields = [
                field
                for field in forward_response(head, b"", False)[:-1]  # our Via stands last
                if field[0].lower() not in _OF_THE_TRANSFER
            ]
        connection = self.connection
        if connection is not None:
            connection.deadline_ns = now_ns + self.upstream.timeouts.body_idle_ns

    def response_body(self, data: bytes) -> None:
        if self._held is not None:
            super().response_body(data)
            return
        self.bytes_out += len(data)
        connection = self.connection
        if connection is not None and not connection.reading_paused:
            connection.deadline_ns = self.worker.now_ns() + self.upstream.timeouts.body_idle_ns
        room = self._result_bytes_max - self.result_bytes
        if not self._is_kept or not room:
            return
        data = data[:room]
        self.result_bytes += len(data)
        self._pieces.append(data)
        self._gathered_bytes += len(data)
        if self._gathered_bytes >= self.owner.part_bytes:
            self._put_part()

    def response_whole(self) -> None:
        """The response has ended, as it should."""
        if not self._is_kept:
            self.owner.refused(self, self.status, self.signal)
            return
        if self.parts and self._pieces:
            self._put_part()
        result = Result(
            self.status,
            self._result_fields,
            b"".join(self._pieces),
            self.parts,
            self.result_bytes,
            is_cut=self.bytes_out > self.result_bytes,
        )
        self.owner.answered(self, result)

    def response_broken(self) -> None:
        """The response ended in its middle: what is stored of it is no result."""
        self._forget_parts()
        broken = GatewayError(ErrorKind.RESPONSE_INCOMPLETE, phase=Phase.DATA)
        self.owner.failed(self, self.error or broken)

    def _put_part(self) -> None:
        data = b"".join(self._pieces)
        self._pieces.clear()
        self._gathered_bytes = 0
        number = self.parts
        self.parts += 1
        self._under_way += 1
        if self._under_way >= PARTS_UNDER_WAY_MAX:
            self.client_writable(False)
        self.owner.put_part(self, number, data)

    def part_kept(self, _: object) -> None:
        """A piece of the response is where it belongs."""
        self._under_way -= 1
        if self._under_way == PARTS_UNDER_WAY_MAX - 1:
            self.client_writable(True)

    def _forget_parts(self) -> None:
        if self.parts:
            self.owner.forget_parts(self)


def lane_of(exchange: admission.Admittee, rule: SpoolRule) -> bytes:
    """What shares it has to wait for the same (see `Lanes`), as 16 octets."""
    if rule.order_by is not None:
        parts = [rule.order_by(exchange)]
    else:
        uses = exchange.upstream.limit_uses
        parts = [exchange.credential(), *(use.key(exchange) for use in uses if use.key is not None)]
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(b"%d:%b" % (len(part), part))
    return digest.digest()


def lane_of_stored(worker: Worker, upstream: Upstream, rule: SpoolRule, stored: Stored) -> bytes:
    """The lane of a request that did not come as an exchange."""
    head = _head(stored)
    asking = admission.Admittee(worker, head, stored.source, NO_NAMES)
    asking.client = ANONYMOUS._replace(name=stored.client)
    asking.upstream = upstream
    asking.upstream_name = upstream.name
    asking.path = stored.target
    asking.fields = forward_request(
        head, upstream.host_header or head.host, worker.via, upstream.rules
    )
    return lane_of(asking, rule)


def _head(stored: Stored) -> RequestHead:
    """The stored request as if it had just come, whole."""
    fields = list(stored.fields)
    head = RequestHead(stored.method, stored.target, 1, fields)
    head.host = stored.host
    head.keep_alive = True
    if stored.body_bytes:
        head.framing = Framing.LENGTH
        head.content_length = stored.body_bytes
        fields.append((b"Content-Length", b"%d" % stored.body_bytes))
    elif stored.method in (b"POST", b"PUT", b"PATCH"):
        fields.append((b"Content-Length", b"0"))  # RFC 9110 section 8.6
    return head
