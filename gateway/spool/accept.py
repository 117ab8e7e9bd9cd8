"""A request on its way into the spool: for its exchange it is what carries it upstream.

The body goes to the store in pieces as it comes, with the back-pressure of any upstream; the
answer, 202 and where to ask, is given when the commit that has the record is on disk. A client that
leaves earlier may have a stored request that it does not know of: its Idempotency-Key finds it.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from gateway.clock import MS, SECOND
from gateway.errors import ErrorKind, GatewayError, Phase
from gateway.h1.forward import forward_request
from gateway.h1.message import Fields, Framing
from gateway.proxy.spooling import without_async
from gateway.spool import tables
from gateway.spool.record import BODY_BYTES_MAX, PART_BYTES, TOKEN_BYTES, Kept, NewRequest
from gateway.spool.sending import lane_of
from gateway.spool.store import Store, StoreFullError

if TYPE_CHECKING:
    from gateway.h1.message import RequestHead
    from gateway.proxy.exchange import Exchange
    from gateway.proxy.graph import Worker
    from gateway.proxy.spooling import SpoolRule

__all__ = ["Acceptor", "Gatherer", "too_large"]

KEY_BYTES_MAX: Final = 255
PARTS_UNDER_WAY_MAX: Final = 2  # one is written while the next one gathers
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
# Fields that concern the way to us, or that we make anew when the request is sent. What comes first
# of `forward_request` is Host, which the record has beside its fields.
_NOT_KEPT: Final = frozenset(
    (b"host", b"connection", b"te", b"content-length", b"expect", b"trailer", b"x-expires-at")
)


class Gatherer:
    """Gathers one request for a store. Satisfies `proxy.response.Carrier`.

    What a store does with pieces and with the whole is its own: `send_end` and `drop` are.
    """

    def __init__(
        self, exchange: Exchange, rule: SpoolRule, owner: int, body_bytes_max: int = BODY_BYTES_MAX
    ) -> None:
        """Raises GatewayError."""
        self.exchange = exchange
        self.deadline_ns = 0
        self.fresh = True
        self._worker: Worker = exchange.worker
        self._is_over = False
        self._pieces: list[bytes] = []
        self._body_bytes = 0
        self._body_bytes_max = body_bytes_max
        self._hash = hashlib.sha256()
        head = exchange.head
        if head.content_length > body_bytes_max:
            raise too_large(body_bytes_max)
        key = _idempotency_key(head)
        self.has_own_key = bool(key)
        key = key or b'"%b"' % secrets.token_hex(TOKEN_BYTES).encode()
        now_ms = self._worker.wall_ns() // MS
        self.new = NewRequest(
            token=secrets.token_bytes(TOKEN_BYTES),
            owner=owner,
            upstream=exchange.upstream_name,
            client=exchange.client.name,
            source=exchange.source,
            idempotency_key=key,
            fingerprint=b"",
            lane=lane_of(exchange, rule),
            method=head.method,
            host=head.host,
            target=exchange.path,
            fields=_kept_fields(head, key),
            body=b"",
            parts=0,
            body_bytes=0,
            accepted_ms=now_ms,
            expires_ms=_expires_ms(head, now_ms, rule.ttl_ns // MS),
        )

    # What the exchange wants of who carries it.

    @property
    def response_begun(self) -> bool:
        return False

    @property
    def reading_paused(self) -> bool:
        return False

    def begin(
        self, exchange: Exchange, method: bytes, target: bytes, fields: Fields, framing: Framing
    ) -> None:
        """The head is known; a client that waits for it is told to go on."""
        for part in (method, self.new.host, target, exchange.credential()):
            self._hash.update(b"%d:%b" % (len(part), part))
        if exchange.head.expect_continue and exchange.head.minor:
            exchange.downstream.out.append(CONTINUE)

    def send_body(self, data: bytes) -> None:
        """A piece of the body came."""
        if self._is_over:
            return
        self._body_bytes += len(data)
        if self._body_bytes > self._body_bytes_max:
            self.refuse_soon(too_large(self._body_bytes_max))
            return
        self._hash.update(data)
        self._pieces.append(data)
        self._gathered(len(data))

    def _gathered(self, count: int) -> None:
        """So many octets more are among the pieces."""

    def send_end(self, trailers: Fields) -> None:
        """The request is whole; trailers are not kept."""
        raise NotImplementedError

    def _whole(self, parts: int) -> NewRequest:
        """The request with its body, of which so many parts are stored already."""
        self.new = self.new._replace(
            fingerprint=self._hash.digest(),
            body=b"".join(self._pieces),
            parts=parts,
            body_bytes=self._body_bytes,
        )
        self._pieces.clear()
        return self.new

    def flush(self) -> None:
        """Nothing is held back."""

    def end(self) -> None:
        """The exchange is answered."""

    def discard(self) -> None:
        """The exchange is answered."""

    def drop(self) -> None:
        """The exchange was broken off: what is not a record yet goes."""
        self._is_over = True
        self._pieces.clear()

    def pause_reading(self, reason: int) -> None:
        """There is nothing to read here."""

    def resume_reading(self, reason: int) -> None:
        """There is nothing to read here."""

    @property
    def is_waited_for(self) -> bool:
        """Whether there is still a client to be answered."""
        return not self._is_over and self.exchange.connection is self

    def refuse_soon(self, error: GatewayError) -> None:
        """From inside the exchange's own call: it is told when that has returned."""
        self._is_over = True
        self._worker.loop.call_soon(self._refuse_now, error)

    def refuse(self, error: GatewayError) -> None:
        """Answers the client, if there still is one."""
        if self.is_waited_for:
            self._refuse_now(error)

    def _refuse_now(self, error: GatewayError) -> None:
        self._worker.count("spool_refused_" + error.kind.name.lower())
        if self.exchange.connection is self:
            self.exchange.fail(error)


class Acceptor(Gatherer):
    """Has a request stored in the file."""

    def __init__(
        self,
        exchange: Exchange,
        rule: SpoolRule,
        store: Store,
        told: Callable[[Acceptor, Kept], None],
    ) -> None:
        """`told` hears of the record once it is on disk. Raises GatewayError."""
        super().__init__(exchange, rule, store.owner)
        self._store = store
        self._told = told
        self._is_handed_in = False
        self._gathered_bytes = 0
        self._parts = 0
        self._under_way = 0

    def _gathered(self, count: int) -> None:
        self._gathered_bytes += count
        if self._gathered_bytes >= PART_BYTES:
            self._put_part()

    def send_end(self, trailers: Fields) -> None:
        """The request is whole; trailers are not kept."""
        if self._is_over:
            return
        if self._parts and self._pieces:
            self._put_part()
        new = self._whole(self._parts)
        self._is_handed_in = True
        self._store.submit(lambda db: tables.insert(db, new), self._kept)

    def drop(self) -> None:
        """The exchange was broken off: what is not a record yet goes."""
        super().drop()
        if self._parts and not self._is_handed_in:
            token = self.new.token
            self._store.submit(lambda db: tables.forget_parts(db, token, tables.REQUEST))

    # The store's side.

    def _put_part(self) -> None:
        data = b"".join(self._pieces)
        self._pieces.clear()
        self._gathered_bytes = 0
        token, number, owner = self.new.token, self._parts, self.new.owner
        self._parts += 1
        self._under_way += 1
        if self._under_way >= PARTS_UNDER_WAY_MAX:
            self.exchange.upstream_writable(False)
        self._store.submit(
            lambda db: tables.put_part(db, token, tables.REQUEST, number, owner, data),
            self._part_kept,
        )

    def _part_kept(self, outcome: object) -> None:
        self._under_way -= 1
        if self._is_over:
            return
        if isinstance(outcome, Exception):
            self.refuse(_not_kept(outcome))
        elif self._under_way < PARTS_UNDER_WAY_MAX:
            self.exchange.upstream_writable(True)

    def _kept(self, outcome: Kept | Exception) -> None:
        if isinstance(outcome, Exception):
            self.refuse(_not_kept(outcome))
        elif not outcome.is_same:
            self.refuse(GatewayError(ErrorKind.KEY_REUSED, phase=Phase.DATA))
        else:
            self._told(self, outcome)


def too_large(bytes_max: int) -> GatewayError:
    """The answer to a body that the store does not take."""
    return GatewayError(ErrorKind.BODY_TOO_LARGE, f"the spool keeps {bytes_max} octets")


def _not_kept(outcome: Exception) -> GatewayError:
    if isinstance(outcome, StoreFullError):
        detail = "the spool's disk is full"
        return GatewayError(
            ErrorKind.SPOOL_FULL, detail, phase=Phase.DATA, retry_after_ns=10 * SECOND
        )
    return GatewayError(ErrorKind.SPOOL_FAILED, phase=Phase.DATA, retry_after_ns=SECOND)


def _value(head: RequestHead, wanted: bytes) -> bytes | None:
    for name, value in head.fields:
        if len(name) == len(wanted) and name.lower() == wanted:
            return value
    return None


def _idempotency_key(head: RequestHead) -> bytes:
    """The client's own, b"" where it has none. Raises GatewayError where there are two."""
    keys = [value for name, value in head.fields if name.lower() == b"idempotency-key"]
    if len(keys) > 1 or any(not key or len(key) > KEY_BYTES_MAX for key in keys):
        raise GatewayError(
            ErrorKind.BAD_REQUEST, f"Idempotency-Key is one value of 1 to {KEY_BYTES_MAX} octets"
        )
    return keys[0] if keys else b""


def _expires_ms(head: RequestHead, now_ms: int, ttl_ms: int) -> int:
    """When it is too old: X-Expires-At (epoch seconds) may ask for less than the upstream's."""
    value = _value(head, b"x-expires-at")
    latest_ms = now_ms + ttl_ms
    if value is None:
        return latest_ms
    if not value.isdigit() or len(value) > 12:
        raise GatewayError(ErrorKind.BAD_REQUEST, "X-Expires-At is no number of epoch seconds")
    expires_ms = int(value) * 1000
    if expires_ms <= now_ms:
        raise GatewayError(ErrorKind.BAD_REQUEST, "X-Expires-At has passed")
    return min(latest_ms, expires_ms)


def _kept_fields(head: RequestHead, key: bytes) -> Fields:
    """What is sent later: no hop-by-hop field, nothing that the operator's rules would set."""
    via = b"-"
    fields: Fields = []
    for name, value in forward_request(head, b"", via):
        low = name.lower()
        if value is via or low in _NOT_KEPT or low == b"idempotency-key":
            continue
        rest = without_async(value) if low == b"prefer" else value
        if rest or low != b"prefer":
            fields.append((name, rest))
    fields.append((b"Idempotency-Key", key))
    return fields
