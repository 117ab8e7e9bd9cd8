"""`Prefer: respond-async` where topics are the store: requests in, and word of what became of them.

A request is a record of the requests topic like any other (`envelope`), and is answered 202 when
all replicas have it; any worker of the group may send it. Outcomes are read by every worker, of its
own and of others' requests (`outcomes`), so that any of them can be asked. While there is none, a
request is queued, or being sent where this worker is the one that sends it.
"""

from __future__ import annotations

import base64
import json
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from gateway.clock import MS, SECOND
from gateway.errors import ErrorKind, GatewayError, Phase
from gateway.proxy import admission
from gateway.proxy.spooling import STATUS_PATH
from gateway.spool import status
from gateway.spool.accept import Gatherer, too_large
from gateway.spool.envelope import EnvelopeError, read_envelope
from gateway.spool.letters import ACCEPTED, LETTER_BYTES_MAX, mark_in
from gateway.spool.outcomes import Known, KnownKeys, Outcomes, id_of, mark_of, read_id, read_outcome

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from gateway.connectors.kafka_link import Received
    from gateway.h1.message import Fields
    from gateway.proxy.exchange import Exchange
    from gateway.proxy.graph import Upstream
    from gateway.proxy.spooling import SpoolRule
    from gateway.spool.kafka import KafkaSpool
    from gateway.spool.record import NewRequest

__all__ = ["TopicDoor"]

# A cluster acknowledges in some milliseconds; one that elects a leader anew, in a few seconds.
ACCEPT_SECONDS: Final = 5.0
# Of requests that are on their way into the topic: 32 of the longest. More find no room.
GATHERED_BYTES_MAX: Final = 32 * 1024 * 1024
TIDY_SECONDS: Final = 5.0
QUESTION_NS: Final = 10 * SECOND  # it is answered at once; until then the client may be slow


class TopicAcceptor(Gatherer):
    """Has a request written to the topic; its body is in memory until then."""

    def __init__(self, exchange: Exchange, rule: SpoolRule, door: TopicDoor) -> None:
        """Raises GatewayError."""
        super().__init__(exchange, rule, 0, LETTER_BYTES_MAX)
        self.keep_ns = rule.keep_ns
        self.is_ordered = rule.order_by is not None
        self._door = door
        self._counted_bytes = 0

    def _gathered(self, count: int) -> None:
        self._counted_bytes += count
        self._door.gathered_bytes += count
        if self._door.gathered_bytes > GATHERED_BYTES_MAX:
            detail = f"{GATHERED_BYTES_MAX} octets are on their way to the cluster"
            self.refuse_soon(
                GatewayError(ErrorKind.SPOOL_FULL, detail, phase=Phase.DATA, retry_after_ns=SECOND)
            )

    def send_end(self, trailers: Fields) -> None:
        """The request is whole; trailers are not kept."""
        if not self._is_over:
            new = self._whole(0)
            # From inside the exchange's own call, which is to return before it is answered.
            self._worker.loop.call_soon(self._door.hand_in, self, new)

    def end(self) -> None:
        """The exchange is answered."""
        self._leave()

    def discard(self) -> None:
        """The exchange is answered."""
        self._leave()

    def drop(self) -> None:
        """The exchange was broken off. What is on its way to the cluster goes on."""
        super().drop()
        self._leave()

    def _leave(self) -> None:
        self._door.gathered_bytes -= self._counted_bytes
        self._counted_bytes = 0

    def _refuse_now(self, error: GatewayError) -> None:
        self._leave()
        super()._refuse_now(error)

    def heard(self, name: str, error: GatewayError | None) -> None:
        """The cluster has it under that id, or not."""
        self._leave()
        if error is not None:
            self.refuse(error)
        elif self.is_waited_for:
            status.accepted(self.exchange, name)


class TopicDoor:
    """One worker's."""

    def __init__(self, spool: KafkaSpool) -> None:
        self.gathered_bytes = 0
        self.outcomes = Outcomes()
        self._spool = spool
        self._worker = spool.worker
        self._known = KnownKeys()
        self._is_closed = False
        self._timer: asyncio.TimerHandle | None = None

    def open(self) -> None:
        """Takes requests on, and hears of outcomes from as long ago as they are kept."""
        self._worker.spool = self._spool
        since_ms = self._worker.wall_ns() // MS - self._keep_ms()
        self._spool.link.follow(since_ms, self.came)
        self._tidy()

    def close(self) -> None:
        """Takes nothing on any more."""
        self._is_closed = True
        if self._worker.spool is self._spool:
            self._worker.spool = None
        if self._timer is not None:
            self._timer.cancel()

    # Taking requests on.

    def accept(self, exchange: Exchange, now_ns: int) -> None:
        """Takes the exchange on. Raises GatewayError."""
        rule = exchange.upstream.spool
        assert rule is not None
        admission.identify(exchange)
        if self._spool.link.is_behind(now_ns):
            self._worker.count("spool_refused_spool_failed")
            raise _not_written("the cluster does not acknowledge")
        if _origin_of(exchange) is None:
            self._worker.count("spool_refused_origin")
            detail = "another upstream, or another Host, stands for its origin"
            raise GatewayError(ErrorKind.SPOOL_FAILED, detail)
        acceptor = TopicAcceptor(exchange, rule, self)
        exchange.downstream.deadline_ns = now_ns + exchange.upstream.timeouts.total_ns
        exchange.connected(acceptor)

    def hand_in(self, acceptor: TopicAcceptor, new: NewRequest) -> None:
        """The request is whole: it is written, unless it was before."""
        if not acceptor.is_waited_for:
            return
        key = (new.upstream, new.client, new.idempotency_key)
        known = self._known.find(key, new.accepted_ms) if acceptor.has_own_key else None
        if known is None:
            self._write(acceptor, new)
            return
        if known.fingerprint != new.fingerprint:
            acceptor.refuse(GatewayError(ErrorKind.KEY_REUSED, phase=Phase.DATA))
            return
        self._spool.counts["known"] += 1
        name = known.name
        if known.waiting is None:
            acceptor.heard(name, None)
        else:
            known.waiting.append(lambda error: acceptor.heard(name, error))

    def _write(self, acceptor: TopicAcceptor, new: NewRequest) -> None:
        origin = _origin_of(acceptor.exchange)
        if origin is None:  # a reload, while the body came
            acceptor.refuse(_not_written("the upstream is another now"))
            return
        credential = acceptor.exchange.credential()
        key = (new.lane if acceptor.is_ordered else credential).hex().encode() or None
        headers = [(ACCEPTED, mark_of(new.token, new.client))]
        try:
            value = _envelope(new, origin)
            if len(value) > LETTER_BYTES_MAX:
                raise too_large(LETTER_BYTES_MAX)
            read_envelope(value, key, headers)  # what would be a dead letter is refused now
        except GatewayError as error:
            acceptor.refuse(error)
            return
        except (EnvelopeError, UnicodeDecodeError):
            detail = "it has octets that no record of the topic can have"
            acceptor.refuse(GatewayError(ErrorKind.BAD_REQUEST, detail, phase=Phase.DATA))
            return
        until_ms = new.expires_ms + acceptor.keep_ns // MS
        name = id_of(new.token, new.client, until_ms // 1000 + 1)
        known = Known(name, new.fingerprint, until_ms)
        known.waiting = [lambda error: acceptor.heard(name, error)]
        place = (new.upstream, new.client, new.idempotency_key)
        if acceptor.has_own_key:
            self._known.put(place, known)
        self._offer(known, place, key, value, headers)

    def _offer(
        self,
        known: Known,
        place: tuple[str, str, bytes],
        key: bytes | None,
        value: bytes,
        headers: list[tuple[str, bytes]],
    ) -> None:
        def settle(error: GatewayError | None) -> None:
            timer.cancel()
            waiting, known.waiting = known.waiting or [], None
            if error is None:
                self._spool.counts["accepted"] += 1
            else:
                self._known.forget(place)
            for heard in waiting:
                heard(error)

        def too_late() -> None:
            withdraw()
            self._worker.count("kafka_accepts_late")
            settle(_not_written(f"the cluster did not acknowledge within {ACCEPT_SECONDS} s"))

        timer = self._worker.loop.call_later(ACCEPT_SECONDS, too_late)
        withdraw: Callable[[], None] = self._spool.link.offer(
            self._spool.conf.requests,
            key,
            value,
            headers,
            lambda is_written: settle(None if is_written else too_large(LETTER_BYTES_MAX)),
            lambda: settle(_not_written("the cluster does not take it")),
        )

    # What became of them.

    def came(self, topic: str, record: Received) -> None:
        """A letter, of any worker's."""
        mark = mark_in(record.headers)
        if not mark or not record.value:
            return
        if len(record.value) > LETTER_BYTES_MAX:
            self._worker.count("kafka_outcomes_too_large")
            return
        now_ms = self._worker.wall_ns() // MS
        at_ms = record.timestamp_ms if 0 < record.timestamp_ms < now_ms else now_ms
        went = self.outcomes.put(
            mark,
            record.value,
            at_ms,
            self._keep_ms(),
            is_result=topic == self._spool.conf.results,
        )
        if went:
            self._worker.count("kafka_outcomes_pushed_out")

    def show(self, exchange: Exchange, now_ns: int) -> bool:
        """Whether the exchange asks for an accepted request and is answered here.

        Raises GatewayError.
        """
        path = status.asked_for(exchange)
        if path is None:
            return False
        worker = exchange.worker
        client = worker.runtime.clients.identify(
            exchange.source, exchange.head, exchange.certificate_names
        )
        if client is None:
            raise GatewayError(ErrorKind.CLIENT_UNKNOWN)
        exchange.client = client
        exchange.downstream.deadline_ns = now_ns + QUESTION_NS
        worker.loop.call_soon(
            self._answer, exchange, path.removeprefix(STATUS_PATH).decode("latin-1")
        )
        return True

    def _answer(self, exchange: Exchange, path: str) -> None:
        if not status.is_waiting(exchange):
            return
        wants_response = path.endswith(status.RESPONSE)
        name = path.removesuffix(status.RESPONSE)
        try:
            answer = self._found(exchange, name, wants_response=wants_response)
        except GatewayError as error:
            error.phase = Phase.DATA
            exchange.fail(error)
        else:
            exchange.answer(*answer)

    def _found(
        self, exchange: Exchange, name: str, *, wants_response: bool
    ) -> tuple[int, Fields, bytes]:
        client = exchange.client.name
        asked = read_id(name, client)
        if asked is None or asked.until_s * 1000 <= self._worker.wall_ns() // MS:
            raise GatewayError(ErrorKind.NOT_STORED)
        mark = mark_of(asked.token, client)
        letter = self.outcomes.find(mark)
        found: dict[str, Any] = {"id": name, "state": self._state(mark)}
        if letter is not None:
            try:
                outcome = read_outcome(letter)
                if wants_response and outcome.status:
                    finished = datetime.fromisoformat(outcome.document["finished"])
                    finished_ms = int(finished.timestamp() * 1000)
                    fields = status.received_at(outcome.fields, finished_ms, self._worker.via)
                    return outcome.status, fields, outcome.body
                found |= _told(outcome.document)
            except (ValueError, KeyError, TypeError) as error:
                self._worker.count("kafka_outcomes_unreadable")
                raise GatewayError(ErrorKind.SPOOL_FAILED, "its outcome is unreadable") from error
            if outcome.status:
                found["response"] = STATUS_PATH.decode() + name + status.RESPONSE
        if wants_response:
            raise GatewayError(ErrorKind.NOT_STORED, "it has no response")
        return 200, status.fields_of_json(exchange), status.as_json(found)

    def _state(self, mark: bytes) -> str:
        entry = self._spool.entries.get(self._spool.accepted.get(mark, (-1, -1)))
        return "sending" if entry is not None and entry.is_out else "queued"

    def _keep_ms(self) -> int:
        upstreams = self._worker.runtime.upstreams.values()
        kept = [upstream.spool.keep_ns for upstream in upstreams if upstream.spool is not None]
        return max(kept, default=0) // MS

    def _tidy(self) -> None:
        self.outcomes.expire(self._worker.wall_ns() // MS - self._keep_ms())
        self._timer = self._worker.loop.call_later(TIDY_SECONDS, self._tidy)


# Of a letter's keys those that a client is told, and as what.
_TOLD: Final = {
    "upstream": "upstream",
    "method": "method",
    "attempts": "attempts",
    "first_sent": "first_sent",
    "last_sent": "last_sent",
    "finished": "finished",
    "reason": "reason",
    "status": "last_status",
    "body_bytes": "response_bytes",
}


def _told(document: dict[str, Any]) -> dict[str, Any]:
    found = {name: document[key] for key, name in _TOLD.items() if key in document}
    found["state"] = "dead" if document["outcome"] == "dead" else "done"
    if found["state"] == "done":
        found["response_cut"] = document.get("body_cut", False)
        found["response_masked"] = document.get("body_masked", False)
    return found


def _origin_of(exchange: Exchange) -> bytes | None:
    """The URL's beginning by which a record finds the exchange's upstream; None: there is none."""
    wanted: Upstream = exchange.upstream
    for (scheme, host, port), upstream in exchange.worker.runtime.by_origin.items():
        if upstream.name == wanted.name:
            # Where Host goes on as it came, a record would send the origin's.
            if upstream.host_header is None and exchange.head.host.lower() not in (
                host,
                b"%b:%d" % (host, port),
            ):
                return None
            return b"%b://%b:%d" % (scheme, host, port)
    return None


def _envelope(new: NewRequest, origin: bytes) -> bytes:
    """The record's value. Raises UnicodeDecodeError."""
    headers: dict[str, list[str]] = {}
    for name, value in new.fields:
        if name.lower() != b"idempotency-key":  # it has its own key
            headers.setdefault(name.decode(), []).append(value.decode())
    document: dict[str, Any] = {
        "method": new.method.decode(),
        "url": (origin + new.target).decode(),
        "headers": headers,
        "expires_at": new.expires_ms / 1000,
        "idempotency_key": new.idempotency_key.decode(),
    }
    coded = base64.b64encode(new.body).decode()
    try:
        text = new.body.decode()
    except UnicodeDecodeError:
        document["body_base64"] = coded
    else:
        # Escapes can make a text six times as long.
        is_short = len(_json(text)) <= len(coded) + len('_base64""')
        document["body" if is_short else "body_base64"] = text if is_short else coded
    return _json(document)


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _not_written(detail: str) -> GatewayError:
    return GatewayError(ErrorKind.SPOOL_FAILED, detail, phase=Phase.DATA, retry_after_ns=SECOND)
