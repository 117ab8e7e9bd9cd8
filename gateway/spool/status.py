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
from gateway.h1.target import split_absolute
from gateway.proxy.clients import ANONYMOUS, Client
from gateway.proxy.spooling import STATUS_PATH
from gateway.spool import tables, vouch
from gateway.spool.record import TOKEN_BYTES, Answer, State, Told, wall_time

if TYPE_CHECKING:
    from gateway.h1.message import Fields
    from gateway.proxy.exchange import Exchange
    from gateway.spool.worker import Spool

__all__ = ["accepted", "document", "id_of", "show"]

RESPONSE: Final = "/response"


def id_of(node: str, token: bytes) -> str:
    """How clients and operators name a record."""
    return f"{node}.{token.hex()}"


def accepted(spool: Spool, exchange: Exchange, token: bytes) -> None:
    """The request is on disk: 202 (RFC 9110 section 15.3.3), and where to ask."""
    name = id_of(spool.node, token)
    path = STATUS_PATH.decode() + name
    fields = _fields(spool)
    fields += [(b"Location", path.encode()), (b"Preference-Applied", b"respond-async")]
    body = {"id": name, "state": "queued", "status": path, "response": path + RESPONSE}
    exchange.answer(202, fields, _json(body))


def show(spool: Spool, exchange: Exchange, now_ns: int) -> bool:
    """Whether the exchange asks for an accepted request and is answered here."""
    head = exchange.head
    path = head.target
    if not path.startswith(b"/") and head.method != b"CONNECT":
        path = split_absolute(path, head.method)[3]
    if not path.startswith(STATUS_PATH):
        return False
    if head.method not in (b"GET", b"HEAD"):
        raise GatewayError(ErrorKind.NOT_IMPLEMENTED, "a stored request can be asked for with GET")
    name = path.removeprefix(STATUS_PATH).decode("latin-1")
    wants_response = name.endswith(RESPONSE)
    node, _, digits = name.removesuffix(RESPONSE).rpartition(".")
    token = _token(digits)
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
    asking = _Asking(spool, exchange, client)
    if wants_response:
        spool.store.submit(lambda db: tables.answer(db, token), asking.with_response)
    else:
        spool.store.submit(lambda db: tables.told(db, token), asking.with_state)
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

    def __init__(self, spool: Spool, exchange: Exchange, client: Client) -> None:
        self._spool = spool
        self._exchange = exchange
        self._client = client

    def with_state(self, told: Told | Exception | None) -> None:
        if self._may_see(told):
            assert isinstance(told, Told)
            fields = _fields(self._spool)
            self._exchange.answer(200, fields, _json(document(self._spool.node, told)))

    def with_response(self, answer: Answer | Exception | None) -> None:
        if not self._may_see(answer):
            return
        assert isinstance(answer, Answer)
        if answer.state is not State.DONE:
            self._fail(GatewayError(ErrorKind.NOT_STORED, "it has no response"))
            return
        self._exchange.answer(answer.status, answer.fields, answer.body)

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
        """Whether the client still waits: it may have left, or its time may have been up."""
        return self._exchange.downstream.exchange is self._exchange


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


def _token(digits: str) -> bytes | None:
    if len(digits) != 2 * TOKEN_BYTES:
        return None
    try:
        return bytes.fromhex(digits)
    except ValueError:
        return None


def _fields(spool: Spool) -> Fields:
    return [
        (b"Date", formatdate(spool.worker.wall_ns() / SECOND, usegmt=True).encode()),
        (b"Content-Type", b"application/json"),
        (b"Cache-Control", b"no-store"),
    ]


def _json(value: object) -> bytes:
    return json.dumps(value).encode() + b"\n"
