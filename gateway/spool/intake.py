"""A record of the requests topic on its way to be sent: what it asks for, of whom, and until when.

The URL is the API's own (an upstream's origin) or one that a route has by its host's name, as in
the proxy form and in the gateway form of live traffic. Only upstreams with a spool are sent to: a
record says how often and how long it may be tried nowhere else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from gateway.clock import MS
from gateway.routes import strip_path
from gateway.spool.envelope import Envelope, idempotency_key_for, read_envelope
from gateway.spool.letters import Course, Origin, Secrets, mark_in
from gateway.spool.record import Entry, Stored
from gateway.spool.sending import lane_of_stored

if TYPE_CHECKING:
    from gateway.connectors.kafka_link import Received
    from gateway.proxy.graph import Upstream, Worker
    from gateway.proxy.spooling import SpoolRule

__all__ = ["CLIENT", "NotSendable", "TopicEntry", "admit", "body_came", "unreadable"]

# Who asks, in keys, turns, logs and `upstreams` of a [[client]] of that name.
CLIENT: Final = "kafka"
_NO_TOKEN: Final = b""


class NotSendable(Exception):
    """The record is a request, and is not sent: `reason` is the dead letter's."""

    def __init__(self, reason: str, detail: str, envelope: Envelope) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.envelope = envelope


class Way(NamedTuple):
    """Where a request goes, and as what."""

    upstream: Upstream
    rule: SpoolRule
    path: bytes


class TopicEntry(Entry):
    """A record in hand, until its outcome is written and its offset may be committed."""

    __slots__ = (
        "envelope",
        "fetches_body",
        "idempotency_key",
        "is_lost",
        "last_ms",
        "octets",
        "origin",
        "secrets",
        "stored",
    )

    envelope: Envelope | None  # None: the record could not be read
    stored: Stored | None  # what is sent now

    def __init__(
        self, number: int, way: Way | None, lane: bytes, times_ms: tuple[int, int], body_bytes: int
    ) -> None:
        """`times_ms` are those of acceptance and expiry."""
        name = way.upstream.name if way is not None else ""
        super().__init__(number, name, lane, *times_ms, body_bytes)
        self.envelope = None
        self.stored = None
        self.origin = Origin("", 0, 0, 0, None, ())
        self.secrets = Secrets([])
        self.idempotency_key = b""
        self.fetches_body = False  # what is sent is a GET for the body; the request follows
        self.is_lost = False  # its partition is another's: nothing is committed for it here
        self.last_ms = 0
        self.octets = 0

    @property
    def mark(self) -> bytes:
        """By which its outcome is found, if a gateway wrote it; b"": none did."""
        return mark_in(self.origin.headers)

    @property
    def place(self) -> tuple[int, int]:
        """Partition and offset."""
        return self.origin.partition, self.origin.offset

    def course(self, finished_ms: int) -> Course:
        """How its sending went, for its letter."""
        return Course(self.upstream, self.attempts, self.first_ms, self.last_ms, finished_ms)


def unreadable(number: int, topic: str, record: Received, now_ms: int) -> TopicEntry:
    """The entry of a record that is none of ours to send; its letter is all that comes of it."""
    return _placed(TopicEntry(number, None, b"", (now_ms, now_ms), 0), topic, record)


def admit(
    worker: Worker,
    number: int,
    topic: str,
    record: Received,
    injected: dict[str, tuple[bytes, ...]],
) -> TopicEntry:
    """The entry of a record that is to be sent. Raises EnvelopeError and NotSendable.

    `injected` has, by upstream, the values that the configuration keeps secret.
    """
    envelope = read_envelope(record.value, record.key, record.headers)
    way = _way(worker, envelope)
    key = envelope.idempotency_key or idempotency_key_for(
        topic, record.partition, record.offset, record.timestamp_ms
    )
    body_from = envelope.body_from
    spoken_to = {way.upstream.name}
    times_ms = _times_ms(worker, way.rule, record, envelope)
    if body_from is not None:
        source = _spooled(worker, body_from.upstream, envelope, "no_body_upstream")
        way = Way(source.upstream, source.rule, body_from.path)
        spoken_to.add(way.upstream.name)
        stored = _fetch(worker, number, way)
        body_bytes = body_from.body_bytes
    else:
        stored = _request(number, way.path, envelope, key, envelope.body)
        body_bytes = len(envelope.body)
    lane = lane_of_stored(worker, way.upstream, way.rule, stored)
    entry = _placed(TopicEntry(number, way, lane, times_ms, body_bytes), topic, record)
    entry.envelope = envelope
    entry.stored = stored
    entry.idempotency_key = key
    entry.fetches_body = body_from is not None
    entry.octets += body_bytes
    kept_secret = {value for name in spoken_to for value in injected.get(name, ())}
    entry.secrets = Secrets(envelope.fields, kept_secret)
    return entry


def body_came(worker: Worker, number: int, entry: TopicEntry, body: bytes) -> TopicEntry:
    """The entry that sends what `entry` has fetched the body for. Raises NotSendable."""
    envelope = entry.envelope
    assert envelope is not None
    way = _way(worker, envelope)
    stored = _request(number, way.path, envelope, entry.idempotency_key, body)
    lane = lane_of_stored(worker, way.upstream, way.rule, stored)
    times_ms = (entry.accepted_ms, entry.expires_ms)
    after = TopicEntry(number, way, lane, times_ms, len(body))
    after.envelope = envelope
    after.stored = stored
    after.origin = entry.origin
    after.secrets = entry.secrets
    after.idempotency_key = entry.idempotency_key
    after.is_lost = entry.is_lost
    after.octets = entry.octets
    return after


def _placed(entry: TopicEntry, topic: str, record: Received) -> TopicEntry:
    entry.origin = Origin(
        topic, record.partition, record.offset, record.timestamp_ms, record.key, record.headers
    )
    entry.octets = len(record.value or b"")
    return entry


def _way(worker: Worker, envelope: Envelope) -> Way:
    scheme, host, port, path = envelope.target
    runtime = worker.runtime
    upstream = runtime.by_origin.get((scheme, host, port))
    if upstream is None:
        route = runtime.routes.find(envelope.method, envelope.host, path)
        # A route for any host would send it to whoever is behind it, with its credential.
        if route is None or not route.host:
            detail = "the URL is no upstream's origin, and no route has its host"
            raise NotSendable("no_upstream", detail, envelope)
        upstream, path = route.target, strip_path(path, route.strip)
    return _spooled(worker, upstream.name, envelope, "no_upstream")._replace(path=path)


def _spooled(worker: Worker, name: str, envelope: Envelope, reason: str) -> Way:
    """An upstream that is sent to from here."""
    upstream = worker.runtime.upstreams.get(name)
    if upstream is None:
        raise NotSendable(reason, "there is no upstream of that name", envelope)
    if upstream.spool is None:
        raise NotSendable("no_spool", "the upstream has no spool table", envelope)
    client = worker.runtime.clients.named(CLIENT)
    if client is not None and client.upstreams and name not in client.upstreams:
        raise NotSendable("client_denied", f"client {CLIENT} may not use the upstream", envelope)
    return Way(upstream, upstream.spool, b"/")


def _times_ms(
    worker: Worker, rule: SpoolRule, record: Received, envelope: Envelope
) -> tuple[int, int]:
    """When it was accepted, and when it is too old. A time to come is not believed."""
    now_ms = worker.wall_ns() // MS
    accepted_ms = record.timestamp_ms if 0 < record.timestamp_ms < now_ms else now_ms
    expires_ms = accepted_ms + rule.ttl_ns // MS
    if envelope.expires_ms:
        expires_ms = min(expires_ms, envelope.expires_ms)
    return accepted_ms, expires_ms


def _request(number: int, path: bytes, envelope: Envelope, key: bytes, body: bytes) -> Stored:
    fields = [*envelope.fields, (b"Idempotency-Key", key)]
    return _stored(number, envelope.method, envelope.host, path, fields, body, key)


def _fetch(worker: Worker, number: int, way: Way) -> Stored:
    """A GET for the body. With none of the record's fields: they are another API's."""
    origins = worker.runtime.by_origin.items()
    host = next((key[1] for key, upstream in origins if upstream is way.upstream), b"")
    return _stored(number, b"GET", host, way.path, [], b"", b"")


def _stored(
    number: int,
    method: bytes,
    host: bytes,
    path: bytes,
    fields: list[tuple[bytes, bytes]],
    body: bytes,
    key: bytes,
) -> Stored:
    return Stored(
        number=number,
        token=_NO_TOKEN,
        client=CLIENT,
        source=CLIENT,
        idempotency_key=key,
        method=method,
        host=host,
        target=path,
        fields=fields,
        body=body,
        parts=0,
        body_bytes=len(body),
    )
