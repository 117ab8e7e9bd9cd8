"""Frames as bytes: msgpack, and the only place that knows it. PROTOCOL.md is the reference.

A payload is one msgpack array: a head that says who speaks, then frames. Numbers of kinds are
append-only and a kind's fields never change: a new shape is a new kind, and an unknown kind is
skipped, so that a rolling upgrade talks. Decoding is strict: every type, length and range is
checked before a frame is seen by anything else, maps and extension types do not exist.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from itertools import chain
from typing import Any, Final, NamedTuple

import msgpack

from peers.core.config import is_numeric
from peers.core.errors import Drop, DropError

__all__ = [
    "DATAGRAM_BYTES_MAX",
    "ENTRIES_MAX",
    "ENTRY_KINDS",
    "ENVELOPE_BYTES",
    "FRAMES_BYTES_MAX",
    "HEAD_BYTES_MAX",
    "RECORD_BYTES_MAX",
    "REFF_1000_MAX",
    "SCOPE_BYTES_MAX",
    "U16",
    "U32",
    "U63",
    "U64",
    "Frame",
    "Head",
    "Kind",
    "Payload",
    "join",
    "join_items",
    "pack",
    "pack_head",
    "unpack",
]

U16 = (1 << 16) - 1
U32 = (1 << 32) - 1
U63 = (1 << 63) - 1
U64 = (1 << 64) - 1

# 1,280 bytes is the smallest MTU of IPv6 (RFC 8200 section 5), less 40 for its header and 8 for
# UDP's: 1,232; 1,200 leaves room for a tunnel's header.
DATAGRAM_BYTES_MAX = 1200
ENVELOPE_BYTES = 44  # 28 of header in clear and 16 of tag (keyring)
HEAD_BYTES_MAX = 33  # array16 of the payload 3, array 1, label 9, node 10, boot 9, and one spare
FRAMES_BYTES_MAX = DATAGRAM_BYTES_MAX - ENVELOPE_BYTES - HEAD_BYTES_MAX
# A snapshot's record over TCP: some 1,100 entries, packed in about a millisecond.
RECORD_BYTES_MAX = 32 * 1024
# An entry is at least 13 bytes, so a longer array cannot come from an honest sender.
ENTRIES_MAX = RECORD_BYTES_MAX // 13
FRAMES_MAX = 64
NODE_BYTES = 8
SCOPE_BYTES_MAX = 32
# A learned rate in thousandths; a float holds it and a thousand of it exactly.
REFF_1000_MAX = (1 << 43) - 1

Frame = tuple[Any, ...]


class Kind(enum.IntEnum):
    """What a frame is. Append only; a number is never used again."""

    CHALLENGE = 1  # [cookie, known_boot, refused]
    HELLO = 2  # [cookie, name, host, port, incarnation]
    PING = 3  # [probe, target]
    ACK = 4  # [probe]
    PING_REQUEST = 5  # [probe, target]
    NACK = 6  # [probe]
    MEMBERS = 7  # [want, (node, name, host, port, state, incarnation, boot)...]
    HEARTBEAT = 8  # [breakers_digest]
    COUNTERS = 9  # [(key, gen, count, delta, lam_100, waiting, level_16)...]
    LIMITS = 10  # [(limit, rate_count, rate_period_ns, burst)...]
    BREAKERS = 11  # [(scope, epoch, state, cause, remaining_ms, origin, number, reff_1000)...]
    BREAKER_PULL = 12  # []
    CLAIM = 13  # [scope, epoch, remaining_ms, origin, number]
    SNAPSHOT_REQUEST = 14  # [nonce]
    SNAPSHOT_PART = 15  # [nonce, last]
    WINDOWS = 16  # [(key, gen, count, used, lam_100, waiting, total, age_1)...]
    HELD = 17  # [(key, gen, held, wanted, served_16)...]
    LEASE_ASK = 18  # [(key, limit, gen, term, spent, returned, want, least)...]
    LEASE_GRANT = 19  # [(key, gen, term, granted, level_16, rate_100)...]
    LEASE_VIEW = 20  # [view]
    ADVERTISED = 21  # [(key, left_16)...]
    DEMANDS = 22  # [(scope, tripped)...]
    QUOTA_ASK = 23  # [(key, limit, gen, term, spent, returned, want, least, stamp)...]
    # [(key, gen, term, granted, level_16, rate_100, stamp, lease_ms, left_ms)...]
    QUOTA_GRANT = 24
    LEDGER_ASK = 25  # [(key, limit, stamp)...]
    LEDGER_STATE = 26  # [(key, limit, stamp, sight, level_16, lease_ms, left_ms)...]
    LEDGER_LEGACY = 27  # [(total, key, limit, stamp, level_16, lease_ms, left_ms)...]
    UNREACHED = 28  # [host, port]
    FULL = 29  # [boot]
    RELAY_ASK = 30  # [(node,)...]
    RELAYED = 31  # [node, boot, seq, kind, an item of that kind...]


# The kinds whose items are entries of counters.
ENTRY_KINDS = (Kind.COUNTERS, Kind.WINDOWS, Kind.HELD)


class Head(NamedTuple):
    """Who speaks: the cluster's label, the node's id (8 bytes), its boot (Unix ms at start)."""

    cluster: int
    node: bytes
    boot: int


class Payload(NamedTuple):
    head: Head
    frames: list[Frame]


# A field: its type, and the bounds of its value (int) or of its length (bytes, str).
_Field = tuple[type, int, int]
_NODE: _Field = (bytes, NODE_BYTES, NODE_BYTES)
_U16: _Field = (int, 0, U16)
_U32: _Field = (int, 0, U32)
_U63: _Field = (int, 0, U63)
_U64: _Field = (int, 0, U64)
_BOOL: _Field = (int, 0, 1)
_NAME: _Field = (str, 1, 64)
_HOST: _Field = (str, 1, 255)
_PORT: _Field = (int, 1, U16)
_SCOPE: _Field = (bytes, 1, SCOPE_BYTES_MAX)

_MEMBER: tuple[_Field, ...] = (_NODE, _NAME, _HOST, _PORT, (int, 1, 4), _U32, _U63)
_WINDOW: tuple[_Field, ...] = (_U64, _U32, _U63, _U63, _U32, _U32, _U63, _U63)
_HELD: tuple[_Field, ...] = (_U64, _U32, _U32, _U32, _U32)
_LIMIT: tuple[_Field, ...] = (_U64, (int, 1, U32), (int, 1, U63), (int, 1, U32))
_REFF: _Field = (int, 0, REFF_1000_MAX)
_ASK: tuple[_Field, ...] = (_U64, _U64, _U32, _U63, _U63, _U63, _U32, _U32)
_GRANT: tuple[_Field, ...] = (_U64, _U32, _U63, _U63, _U63, _U32)
_STATE: tuple[_Field, ...] = (_U64, _U64, _U63, (int, 0, 3), _U63, _U63, _U63)
_LEGACY: tuple[_Field, ...] = (_U32, _U64, _U64, _U63, _U63, _U63, _U63)
_BREAKER: tuple[_Field, ...] = (_SCOPE, _U32, _BOOL, _U16, _U32, _NODE, _U64, _REFF)

# kind: the fields that come once, then those of the items that follow, if any do.
_SHAPES: dict[int, tuple[tuple[_Field, ...], tuple[_Field, ...] | None]] = {
    Kind.CHALLENGE: (((bytes, 8, 8), _U63, _BOOL), None),
    Kind.HELLO: (((bytes, 0, 8), _NAME, _HOST, _PORT, _U32), None),
    Kind.PING: ((_U32, _NODE), None),
    Kind.ACK: ((_U32,), None),
    Kind.PING_REQUEST: ((_U32, _NODE), None),
    Kind.NACK: ((_U32,), None),
    Kind.MEMBERS: ((_BOOL,), _MEMBER),
    Kind.HEARTBEAT: ((_U64,), None),
    Kind.LIMITS: ((), _LIMIT),
    Kind.BREAKERS: ((), _BREAKER),
    Kind.BREAKER_PULL: ((), None),
    Kind.ADVERTISED: ((), (_U64, _U63)),
    Kind.CLAIM: ((_SCOPE, _U32, _U32, _NODE, _U64), None),
    Kind.SNAPSHOT_REQUEST: (((bytes, 8, 8),), None),
    Kind.SNAPSHOT_PART: (((bytes, 8, 8), _BOOL), None),
    Kind.WINDOWS: ((), _WINDOW),
    Kind.HELD: ((), _HELD),
    Kind.LEASE_ASK: ((), _ASK),
    Kind.LEASE_GRANT: ((), _GRANT),
    Kind.LEASE_VIEW: ((_U64,), None),
    Kind.DEMANDS: ((), (_SCOPE, _BOOL)),
    Kind.QUOTA_ASK: ((), (*_ASK, _U63)),
    Kind.QUOTA_GRANT: ((), (*_GRANT, _U63, _U63, _U63)),
    Kind.LEDGER_ASK: ((), (_U64, _U64, _U63)),
    Kind.LEDGER_STATE: ((), _STATE),
    Kind.LEDGER_LEGACY: ((), _LEGACY),
    Kind.UNREACHED: ((_HOST, _PORT), None),
    Kind.FULL: ((_U63,), None),
    Kind.RELAY_ASK: ((), (_NODE,)),
}
_RELAYED: tuple[_Field, ...] = (_NODE, _U63, _U64, (int, 0, 127))

_TUPLES: Final = {tuple}
_SEVEN: Final = {7}
_INTS: Final = {int}

_packer = msgpack.Packer(use_bin_type=True, autoreset=True)


def pack(frame: Sequence[Any]) -> bytes:
    """One frame, or one item of a frame, as msgpack."""
    return bytes(_packer.pack(frame))


def pack_head(head: Head) -> bytes:
    return pack(tuple(head))


def join(head: bytes, frames: Sequence[bytes]) -> bytes:
    """A payload of a packed head and packed frames: an array16 around them."""
    return b"\xdc" + (1 + len(frames)).to_bytes(2, "big") + head + b"".join(frames)


def join_items(kind: Kind, items: Sequence[bytes]) -> bytes:
    """A frame of `kind` that has only items, already packed."""
    return b"\xdc" + (1 + len(items)).to_bytes(2, "big") + pack_kind(kind) + b"".join(items)


def pack_kind(kind: Kind) -> bytes:
    return bytes((kind,))  # a positive fixint up to 127


def unpack(payload: bytes) -> Payload:
    """A payload's head and its frames of known kinds. Raises DropError(GARBAGE)."""
    if len(payload) > RECORD_BYTES_MAX:
        raise DropError(Drop.OVERSIZED)
    try:
        parts = msgpack.unpackb(
            payload,
            use_list=False,
            raw=False,
            strict_map_key=True,
            max_map_len=0,
            max_ext_len=0,
            max_array_len=ENTRIES_MAX,
        )
    except (ValueError, TypeError, msgpack.UnpackException):
        raise DropError(Drop.GARBAGE) from None
    if type(parts) is not tuple or not 1 <= len(parts) <= 1 + FRAMES_MAX:
        raise DropError(Drop.GARBAGE)
    head = _checked_head(parts[0])
    frames: list[Frame] = []
    for frame in parts[1:]:
        if type(frame) is not tuple or not frame or type(frame[0]) is not int:
            raise DropError(Drop.GARBAGE)
        if frame[0] == Kind.COUNTERS:
            _check_counters(frame)
        elif frame[0] == Kind.RELAYED:
            if not _is_relayed(frame):
                continue
        elif (shape := _SHAPES.get(frame[0])) is not None:
            _check_frame(frame, *shape)
            _check_hosts(frame)
        else:
            continue
        frames.append(frame)
    return Payload(head, frames)


def _checked_head(head: Any) -> Head:
    """Every payload has one: written out, it costs half of what `_check` would."""
    if type(head) is not tuple or len(head) != 3:
        raise DropError(Drop.GARBAGE)
    cluster, node, boot = head
    if (
        type(cluster) is not int
        or type(node) is not bytes
        or type(boot) is not int
        or cluster < 0  # msgpack has none above U64
        or len(node) != NODE_BYTES
        or not 0 <= boot <= U63
    ):
        raise DropError(Drop.GARBAGE)
    return Head(cluster, node, boot)


def _check(values: Any, fields: tuple[_Field, ...]) -> None:
    if type(values) is not tuple or len(values) != len(fields):
        raise DropError(Drop.GARBAGE)
    for value, (kind, low, high) in zip(values, fields, strict=True):
        actual = type(value)
        if actual is not kind:  # exactly: True is no number here
            raise DropError(Drop.GARBAGE)
        size = value if kind is int else len(value)
        if not low <= size <= high:
            raise DropError(Drop.GARBAGE)


def _check_frame(
    frame: Frame, fields: tuple[_Field, ...], items: tuple[_Field, ...] | None
) -> None:
    count = 1 + len(fields)
    if items is None:
        _check(frame[1:], fields)
        return
    _check(frame[1:count], fields)
    for item in frame[count:]:
        _check(item, items)


def _is_relayed(frame: Frame) -> bool:
    """Whether the kind within is one that may be relayed; it is checked as if it came by itself. A
    heartbeat has no items here."""
    _check(frame[1:5], _RELAYED)
    kind = frame[4]
    if kind == Kind.COUNTERS:
        _check_counters(frame[4:])
    elif kind in ENTRY_KINDS:
        _check_frame(frame[4:], *_SHAPES[kind])
    elif kind == Kind.HEARTBEAT:
        _check(frame[5:], ())
    else:
        return False
    return True


def _check_hosts(frame: Frame) -> None:
    """Addresses are numeric: a name would have the event loop wait for a resolver."""
    hosts: list[str] = []
    if frame[0] == Kind.HELLO:
        hosts = [frame[3]]
    elif frame[0] == Kind.MEMBERS:
        hosts = [item[2] for item in frame[2:]]
    if not all(map(is_numeric, hosts)):
        raise DropError(Drop.GARBAGE)


def _check_counters(frame: Frame) -> None:
    """The hot shape: 33,000 entries a second at 1,000 contended keys and 8 nodes. Types and lengths
    are looked at by columns, in C; a number out of its range shows in the bits above it, which a
    negative one has all."""
    entries = frame[1:]
    if not entries:
        return
    if set(map(type, entries)) != _TUPLES or set(map(len, entries)) != _SEVEN:
        raise DropError(Drop.GARBAGE)
    if set(map(type, chain.from_iterable(entries))) != _INTS:  # exactly: True is no number here
        raise DropError(Drop.GARBAGE)
    for key, gen, count, delta, lam_100, waiting, level_16 in entries:
        if (
            key < 0  # msgpack has none above U64
            or (gen | lam_100 | waiting) >> 32
            or (count | level_16) >> 63
            or not 0 <= delta <= count
        ):
            raise DropError(Drop.GARBAGE)
