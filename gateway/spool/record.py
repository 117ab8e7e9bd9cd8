"""What the spool keeps of a request, as values; no database and no loop in here.

Times with `_ms` are wall time, in milliseconds since the epoch: they outlive the process.
"""

from __future__ import annotations

import enum
from datetime import UTC, datetime
from typing import NamedTuple

from gateway.h1.message import Fields

__all__ = [
    "BODY_BYTES_MAX",
    "PART_BYTES",
    "TOKEN_BYTES",
    "WALL_MS_MAX",
    "Answer",
    "Entry",
    "Kept",
    "NewRequest",
    "Result",
    "State",
    "Stored",
    "Told",
    "pack_fields",
    "unpack_fields",
    "wall_time",
]

TOKEN_BYTES = 16  # 128 bits: an id cannot be guessed
BODY_BYTES_MAX = 10 * 1024 * 1024  # of a request, and of the response that is kept
# A body is kept in pieces of this size: as much as a live request may hold while it waits.
PART_BYTES = 64 * 1024
WALL_MS_MAX = 253_402_300_799_999  # the end of the year 9999, RFC 3339's last


class State(enum.IntEnum):
    """How far a stored request has come; its name in lower case is what clients are told."""

    QUEUED = 0
    SENDING = 1
    DONE = 2
    DEAD = 3


class NewRequest(NamedTuple):
    """A request to be kept: as the client sent it, before any secret of ours is set.

    `body` is whole where `parts` is 0; otherwise so many pieces were stored before under `token`.
    """

    token: bytes
    owner: int  # the worker that sends it
    upstream: str
    client: str
    source: str
    idempotency_key: bytes
    fingerprint: bytes  # of all that makes it the same request
    lane: bytes
    method: bytes
    host: bytes
    target: bytes  # as it goes to the upstream
    fields: Fields
    body: bytes
    parts: int
    body_bytes: int
    accepted_ms: int
    expires_ms: int


class Kept(NamedTuple):
    """What became of an acceptance: a record, or the older one of the same Idempotency-Key."""

    number: int
    token: bytes
    is_new: bool
    is_same: bool  # False: the key was used for another request


class Entry:
    """A stored request that is still to be sent, as the worker that sends it knows it."""

    __slots__ = (
        "accepted_ms",
        "attempts",
        "body_bytes",
        "expires_ms",
        "failures",
        "first_ms",
        "in_hand",
        "is_out",
        "lane",
        "number",
        "upstream",
    )

    def __init__(
        self,
        number: int,
        upstream: str,
        lane: bytes,
        accepted_ms: int,
        expires_ms: int,
        body_bytes: int,
    ) -> None:
        self.number = number
        self.upstream = upstream
        self.lane = lane
        self.accepted_ms = accepted_ms
        self.expires_ms = expires_ms
        self.body_bytes = body_bytes
        self.attempts = 0  # sends that reached the upstream and failed
        self.failures = 0  # of any kind since the start: what the back-off grows with
        self.first_ms = 0
        self.in_hand = False  # these two are kept by `Lanes`
        self.is_out = False


class Stored(NamedTuple):
    """What is needed to send a stored request."""

    number: int
    token: bytes
    client: str
    source: str
    idempotency_key: bytes
    method: bytes
    host: bytes
    target: bytes
    fields: Fields
    body: bytes
    parts: int
    body_bytes: int


class Result(NamedTuple):
    """The response of a request that is done."""

    status: int
    fields: Fields
    body: bytes
    parts: int
    body_bytes: int
    is_cut: bool  # it was longer than BODY_BYTES_MAX


class Told(NamedTuple):
    """What is told of a stored request, to its client and to the operator."""

    number: int
    token: bytes
    upstream: str
    client: str
    state: State
    method: bytes
    target: bytes
    body_bytes: int
    accepted_ms: int
    expires_ms: int
    attempts: int
    first_ms: int  # of its first send; 0: not sent yet
    last_ms: int
    last_status: int  # 0: no response has come
    reason: str  # why it is dead
    finished_ms: int
    result_bytes: int
    result_is_cut: bool
    owner: int


class Answer(NamedTuple):
    """A stored response, to be given to the client that asks for it."""

    client: str
    state: State
    status: int
    fields: Fields
    body: bytes  # whole where `parts` is 0
    parts: int
    body_bytes: int
    finished_ms: int


def pack_fields(fields: Fields) -> bytes:
    """Fields as one value; neither a name nor a value has a line's end in it (the guard's word)."""
    return b"\n".join([b"%b:%b" % field for field in fields])


def unpack_fields(data: bytes) -> Fields:
    """What `pack_fields` has packed."""
    fields: Fields = []
    for line in data.split(b"\n") if data else ():
        name, _, value = line.partition(b":")
        fields.append((name, value))
    return fields


def wall_time(ms: int) -> str:
    """A time as clients and operators are told it (RFC 3339, UTC)."""
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds")
