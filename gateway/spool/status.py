"""What became of an accepted request: the resource that a 202 points to.

`/.egressd/requests/ID` tells the state, `…/ID/response` gives the stored response. An id is the
name of the node that keeps the record, a dot, and 128 bits of chance. Only the client that stored a
request is told anything of it; to others there is no such id.
"""

from __future__ import annotations

import json
from email.utils import formatdate
from typing import TYPE_CHECKING, Any, Final

from gateway.clock import SECOND
from gateway.errors import ErrorKind, GatewayError, Phase
from gateway.h1.message import Framing
from gateway.h1.target import split_absolute
from gateway.proxy.clients import ANONYMOUS, Client
from gateway.proxy.spooling import STATUS_PATH
from gateway.spool import tables, vouch
from gateway.spool.record import TOKEN_BYTES, Answer, State, Told, wall_time

if TYPE_CHECKING:
    from gateway.h1.message import Fields
    from gateway.proxy.exchange import Exchange
    from gateway.spool.worker import Spool

__all__ = [
    "RESPONSE",
    "accepted",
    "as_json",
    "asked_for",
    "document",
    "fields_of_json",
    "id_of",
    "is_waiting",
    "received_at",
    "show",
    "token_of",
]

RESPONSE: Final = "/response"
# Long responses that are being given out. Of each there is a piece on its way and twice as much
# unsent at most (`flow.WRITE_HIGH`): 48 MiB.
READERS_MAX: Final = 256


def id_of(node: str, token: bytes) -> str:
    """How clients and operators name a record."""
    return f"{node}.{token.hex()}"


def accepted(exchange: Exchange, name: str) -> None:
    """The request is kept under that id: 202 (RFC 9110 section 15.3.3), and where to ask."""
    path = STATUS_PATH.decode() + name
    fields = fields_of_json(exchange)
    fields += [(b"Location", path.encode()), (b"Preference-Applied", b"respond-async")]
    body = {"id": name, "state": "queued", "status": path, "response": path + RESPONSE}
    exchange.answer(202, fields, as_json(body))


def asked_for(exchange: Exchange) -> bytes | None:
    """The path of the accepted request that the exchange asks for; None: it asks for none.

    Raises GatewayError.
    """
    head = exchange.head
    path = head.target
    if not path.startswith(b"/") and head.method != b"CONNECT":
        path = split_absolute(path, head.method)[3]
    if not path.startswith(STATUS_PATH):
        return None
    if head.method not in (b"GET", b"HEAD"):
        raise GatewayError(ErrorKind.METHOD_NOT_ALLOWED, "a stored request is asked for with GET")
    if head.framing is not Framing.NONE:
        # RFC 9110 section 9.3.1: content of a GET means nothing. It has nowhere to go here.
        raise GatewayError(ErrorKind.BAD_REQUEST, "a stored request is asked for without content")
    return path


def show(spool: Spool, exchange: Exchange, now_ns: int) -> bool:
    """Whether the exchange asks for an accepted request and is answered here."""
    path = asked_for(exchange)
    if path is None:
        return False
    head = exchange.head
    name = path.removeprefix(STATUS_PATH).decode("latin-1")
    wants_response = name.endswith(RESPONSE)
    node, _, digits = name.removesuffix(RESPONSE).rpartition(".")
    token = token_of(digits)
    runtime = exchange.worker.runtime
    vouched = vouch.client_of(head.fields, path, spool.keys, spool.worker.wall_ns() // SECOND)
    client = runtime.clients.identify(exchange.source, head, exchange.certificate_names)
    if vouched:
        client = ANONYMOUS._replace(name=vouched)
    if client is None:
        raise GatewayError(ErrorKind.CLIENT_UNKNOWN)
    exchange.client = client
    exchange.downstream.deadline_ns = now_ns + 10 * SECOND
    if token is None or (node != spool.node and vouched):
        raise GatewayError(ErrorKind.NOT_STORED)
    if node != spool.node:
        _ask_other(spool, exchange, node, path, now_ns)
        return True
    asking = _Asking(spool, exchange, client, token)
    if wants_response:
        spool.store.read(lambda db: tables.answer(db, token), asking.with_response)
    else:
        spool.store.read(lambda db: tables.told(db, token), asking.with_state)
    return True


def _ask_other(spool: Spool, exchange: Exchange, node: str, path: bytes, now_ns: int) -> None:
    """Passes the question on to the node that keeps the record. Raises GatewayError."""
    way = exchange.worker.runtime.spool_nodes.get(node)
    upstream = way() if way is not None else None
    if upstream is None or not spool.keys:
        raise GatewayError(ErrorKind.NOT_STORED)
    now_s = spool.worker.wall_ns() // SECOND
    field = vouch.field_for(exchange.client.name, path, spool.keys[0], now_s)
    exchange.go_to(upstream, path, [field], now_ns)


class _Asking:
    """An exchange that waits for the store."""

    def __init__(self, spool: Spool, exchange: Exchange, client: Client, token: bytes) -> None:
        self._spool = spool
        self._token = token
        self._exchange = exchange
        self._client = client

    def with_state(self, told: Told | Exception | None) -> None:
        if self._may_see(told):
            assert isinstance(told, Told)
            fields = fields_of_json(self._exchange)
            self._exchange.answer(200, fields, as_json(document(self._spool.node, told)))

    def with_response(self, answer: Answer | Exception | None) -> None:
        if not self._may_see(answer):
            return
        assert isinstance(answer, Answer)
        if answer.state is not State.DONE:
            self._fail(GatewayError(ErrorKind.NOT_STORED, "it has no response"))
            return
        worker = self._spool.worker
        fields = received_at(answer.fields, answer.finished_ms, worker.via)
        if not answer.parts:
            self._exchange.answer(answer.status, fields, answer.body)
        elif self._spool.readers >= READERS_MAX:
            worker.count("spool_readers_refused")
            detail = f"{READERS_MAX} stored responses are being read"
            self._fail(GatewayError(ErrorKind.SPOOL_FAILED, detail, retry_after_ns=SECOND))
        else:
            _Giver(self._spool, self._exchange, self._token, answer).begin_answer(fields)

    def _may_see(self, found: Told | Answer | Exception | None) -> bool:
        if isinstance(found, Exception):
            self._fail(GatewayError(ErrorKind.SPOOL_FAILED, "the spool cannot be read"))
        elif found is None or found.client != self._client.name:
            self._fail(GatewayError(ErrorKind.NOT_STORED))
        else:
            return self._is_there()
        return False

    def _fail(self, error: GatewayError) -> None:
        if self._is_there():
            error.phase = Phase.DATA
            self._exchange.fail(error)

    def _is_there(self) -> bool:
        return is_waiting(self._exchange)


class _Giver:
    """A stored response on its way to its client. Satisfies `proxy.response.Carrier`."""

    def __init__(self, spool: Spool, exchange: Exchange, token: bytes, answer: Answer) -> None:
        self.deadline_ns = 0
        self.fresh = True
        self._spool = spool
        self._exchange = exchange
        self._token = token
        self._answer = answer
        self._next = 0
        self._paused = 0
        self._is_reading = False
        self._is_over = False

    def begin_answer(self, fields: Fields) -> None:
        """Sends the head, and asks for the first piece."""
        self._spool.readers += 1
        answer = self._answer
        self._exchange.answer_begin_slow(self, answer.status, fields, answer.body_bytes)
        if self._exchange.head.method == b"HEAD":
            self._exchange.response_end([])
        else:
            self._read_on()

    def _read_on(self) -> None:
        if self._is_over or self._is_reading or self._paused:
            return
        if self._next == self._answer.parts:
            self._exchange.response_end([])
            return
        token, number = self._token, self._next
        self._next += 1
        self._is_reading = True
        self._spool.store.read(
            lambda db: tables.part(db, token, tables.RESPONSE, number), self._came
        )

    def _came(self, data: bytes | Exception | None) -> None:
        self._is_reading = False
        if self._is_over:
            return
        if isinstance(data, bytes):
            self._exchange.answer_piece_slow(data)
            self._read_on()
        else:  # its time was up meanwhile, or the file cannot be read
            self._leave()
            self._spool.worker.count("spool_responses_broken")
            self._exchange.answer_broken_slow()

    def _leave(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._spool.readers -= 1

    # What the exchange wants of who carries it.

    @property
    def response_begun(self) -> bool:
        return True

    @property
    def reading_paused(self) -> bool:
        return self._paused != 0

    def begin(
        self, exchange: Exchange, method: bytes, target: bytes, fields: Fields, framing: Framing
    ) -> None:
        """There is no request to pass on."""

    def send_body(self, data: bytes) -> None:
        """There is no request to pass on."""

    def send_end(self, trailers: Fields) -> None:
        """There is no request to pass on."""

    def flush(self) -> None:
        """Nothing is held back."""

    def end(self) -> None:
        """The exchange is answered."""
        self._leave()

    def discard(self) -> None:
        """The exchange is answered."""
        self._leave()

    def drop(self) -> None:
        """The client has left, or takes nothing."""
        self._leave()

    def pause_reading(self, reason: int) -> None:
        """The client is slow: the next piece waits."""
        self._paused |= reason

    def resume_reading(self, reason: int) -> None:
        """The client has taken what there was."""
        self._paused &= ~reason
        self._read_on()


def document(node: str, told: Told) -> dict[str, Any]:
    """What is told of a record, as JSON's values; absent: it is not so far."""
    path = STATUS_PATH.decode() + id_of(node, told.token)
    found: dict[str, Any] = {
        "id": id_of(node, told.token),
        "state": told.state.name.lower(),
        "upstream": told.upstream,
        "method": told.method.decode("latin-1"),
        "target": told.target.decode("latin-1"),
        "accepted": wall_time(told.accepted_ms),
        "expires": wall_time(told.expires_ms),
        "attempts": told.attempts,
    }
    if told.first_ms:
        found["first_sent"] = wall_time(told.first_ms)
        found["last_sent"] = wall_time(told.last_ms)
    if told.last_status:
        found["last_status"] = told.last_status
    if told.finished_ms:
        found["finished"] = wall_time(told.finished_ms)
    if told.state is State.DEAD:
        found["reason"] = told.reason
    if told.state is State.DONE:
        found["response"] = path + RESPONSE
        found["response_bytes"] = told.result_bytes
        found["response_cut"] = told.result_is_cut
    return found


def token_of(digits: str) -> bytes | None:
    """The octets of an id; None: these are none."""
    if len(digits) != 2 * TOKEN_BYTES:
        return None
    try:
        return bytes.fromhex(digits)
    except ValueError:
        return None


def is_waiting(exchange: Exchange) -> bool:
    """Whether the client still waits: it may have left, or its time may have been up."""
    return exchange.downstream.exchange is exchange


def received_at(fields: Fields, finished_ms: int, via: bytes) -> Fields:
    """A stored response's fields, as they are given out: with Date and Via."""
    given = list(fields)
    if all(name.lower() != b"date" for name, _ in fields):
        # RFC 9110 section 6.6.1: dated when it was received.
        given.append((b"Date", _date(finished_ms / 1000)))
    given.append((b"Via", via))
    return given


def fields_of_json(exchange: Exchange) -> Fields:
    """The fields of an answer that is a JSON document of ours."""
    return [
        (b"Date", _date(exchange.worker.wall_ns() / SECOND)),
        (b"Content-Type", b"application/json"),
        (b"Cache-Control", b"no-store"),
    ]


def _date(epoch_s: float) -> bytes:
    return formatdate(epoch_s, usegmt=True).encode()


def as_json(value: object) -> bytes:
    """A document as it is answered."""
    return json.dumps(value).encode() + b"\n"
