"""The frames: what is written is read, and nothing else is."""

from __future__ import annotations

import contextlib

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peers.core import wire
from peers.core.errors import Drop, DropError
from peers.core.wire import Head, Kind

HEAD = Head(0x0123456789ABCDEF, b"12345678", 1_700_000_000_000)
MEMBER = (b"abcdefgh", "gw-1", "10.0.0.1", 7946, 1, 3, 1_700_000_000_000)
ENTRY = (0xFFFFFFFFFFFFFFFF, 1, 1000, 3, 12345, 2, 1600)
WINDOW = (0xFFFFFFFFFFFFFFFF, 1, 1000, 30, 12345, 2, 90, 250)
HELD = (1, 1, 3, 7, 40)
ASK = (0xFFFFFFFFFFFFFFFF, 7, 1, 1 << 62, 1000, 3, 40, 10)
EVENT = (b"scope-01", 4, 1, 429, 30_000, b"abcdefgh", 1 << 60, 42_500)

GOOD = [
    (Kind.CHALLENGE, b"cookie!!", 0, 0),
    (Kind.HELLO, b"", "gw-1", "10.0.0.1", 7946, 0),
    (Kind.HELLO, b"cookie!!", "gw-1", "::1", 1, 7),
    (Kind.PING, 1, b"abcdefgh"),
    (Kind.ACK, 0xFFFFFFFF),
    (Kind.PING_REQUEST, 1, b"abcdefgh"),
    (Kind.NACK, 1),
    (Kind.MEMBERS, 1),
    (Kind.MEMBERS, 0, MEMBER, MEMBER),
    (Kind.HEARTBEAT, 0),
    (Kind.COUNTERS,),
    (Kind.COUNTERS, ENTRY, ENTRY),
    (Kind.LIMITS, (1, 100, 1_000_000_000, 10)),
    (Kind.BREAKERS, EVENT),
    (Kind.BREAKER_PULL,),
    (Kind.CLAIM, b"s", 1, 5000, b"abcdefgh", 9),
    (Kind.SNAPSHOT_REQUEST, b"nonce..."),
    (Kind.SNAPSHOT_PART, b"nonce...", 1),
    (Kind.LEASE_ASK,),
    (Kind.LEASE_ASK, ASK, ASK),
    (Kind.LEASE_GRANT, (1, 2, 1 << 62, 1000, 160, 9950)),
    (Kind.LEASE_VIEW, 0xFFFFFFFFFFFFFFFF),
    (Kind.WINDOWS,),
    (Kind.WINDOWS, WINDOW, WINDOW),
    (Kind.HELD, HELD),
    (Kind.DEMANDS, (b"scope-01", 0), (b"scope-02", 1)),
    (Kind.ADVERTISED, (0xFFFFFFFFFFFFFFFF, 0), (1, 160)),
    (Kind.QUOTA_ASK, (*ASK, 1 << 40), (*ASK, 0)),
    (Kind.QUOTA_GRANT, (1, 2, 1 << 62, 1000, 160, 9950, 1 << 40, 60_000, 0)),
    (Kind.LEDGER_ASK, (0xFFFFFFFFFFFFFFFF, 7, 1 << 40)),
    (Kind.LEDGER_STATE, (0xFFFFFFFFFFFFFFFF, 7, 1 << 40, 3, 160, 3_000, 3_600_000)),
    (Kind.RELAY_ASK, (b"abcdefgh",)),
    (Kind.RELAYED, b"abcdefgh", 1 << 60, 1 << 40, Kind.HEARTBEAT),
    (Kind.RELAYED, b"abcdefgh", 1, 2, Kind.COUNTERS, ENTRY, ENTRY),
    (Kind.RELAYED, b"abcdefgh", 1, 2, Kind.WINDOWS, WINDOW),
    (Kind.RELAYED, b"abcdefgh", 1, 2, Kind.HELD, HELD),
    (Kind.LEDGER_LEGACY, (2, 0xFFFFFFFFFFFFFFFF, 7, 0, 160, 0, 3_600_000), (0,) * 7),
    (Kind.UNREACHED, "10.0.0.1", 7946),
    (Kind.FULL, 1_700_000_000_000),
]

ITEMS_ONLY = (
    Kind.COUNTERS, Kind.LIMITS, Kind.BREAKERS, Kind.MEMBERS, Kind.LEASE_ASK, Kind.LEASE_GRANT,
    Kind.ADVERTISED, Kind.WINDOWS, Kind.HELD, Kind.DEMANDS, Kind.QUOTA_ASK, Kind.QUOTA_GRANT,
    Kind.LEDGER_ASK, Kind.LEDGER_STATE, Kind.LEDGER_LEGACY, Kind.RELAY_ASK, Kind.RELAYED,
)  # fmt: skip


def payload(*frames: object) -> bytes:
    return wire.join(wire.pack_head(HEAD), [msgpack.packb(frame) for frame in frames])


def refusal(data: bytes) -> Drop:
    with pytest.raises(DropError) as caught:
        wire.unpack(data)
    return caught.value.reason


@pytest.mark.parametrize("frame", GOOD, ids=lambda frame: frame[0].name)
def test_a_frame_comes_back_as_it_was(frame: tuple[object, ...]) -> None:
    assert wire.unpack(payload(frame)) == (HEAD, [frame])


def test_all_kinds_are_tried_here() -> None:
    assert {frame[0] for frame in GOOD} == set(Kind)


@pytest.mark.parametrize("frame", [
    (Kind.RELAYED, b"abcdefgh", 1, 2),
    (Kind.RELAYED, b"abcdefgh", 1, 2, Kind.HEARTBEAT, ENTRY),
    (Kind.RELAYED, b"abcdefgh", 1, 2, Kind.COUNTERS, HELD),
    (Kind.RELAYED, b"abcdefgh", 1, 2, Kind.WINDOWS, ENTRY),
    (Kind.RELAYED, b"abcdefgh", 1, 2, Kind.HELD, ENTRY),
])  # fmt: skip
def test_what_is_relayed_is_checked_as_if_it_came_by_itself(frame: tuple[object, ...]) -> None:
    assert refusal(payload(frame)) == Drop.GARBAGE


@pytest.mark.parametrize("kind", [Kind.LIMITS, Kind.RELAYED, max(Kind) + 1])
def test_what_is_not_relayed_yet_is_skipped(kind: int) -> None:
    relayed = (Kind.RELAYED, b"abcdefgh", 1, 2, kind, "anything")
    assert wire.unpack(payload(relayed, (Kind.ACK, 5))).frames == [(Kind.ACK, 5)]


def test_several_frames_keep_their_order() -> None:
    assert wire.unpack(payload(*GOOD)).frames == GOOD


def test_a_frame_of_items_is_packed_as_one_would_expect() -> None:
    items = [wire.pack(ENTRY)] * 40
    frame = wire.join_items(Kind.COUNTERS, items)
    assert msgpack.unpackb(frame, use_list=False) == (Kind.COUNTERS, *([ENTRY] * 40))


def test_forty_entries_go_in_a_datagram() -> None:
    frame = wire.join_items(Kind.COUNTERS, [wire.pack(ENTRY)] * 40)
    assert len(frame) <= wire.FRAMES_BYTES_MAX
    head = wire.pack_head(Head((1 << 64) - 1, b"12345678", (1 << 63) - 1))
    assert len(wire.join(head, [])) <= wire.HEAD_BYTES_MAX


def test_an_unknown_kind_is_skipped_so_that_versions_can_mix() -> None:
    later = max(Kind) + 1
    frames = wire.unpack(payload((later, "anything", [1, 2]), (Kind.ACK, 5))).frames
    assert frames == [(Kind.ACK, 5)]


@pytest.mark.parametrize("frame", GOOD, ids=lambda frame: frame[0].name)
@pytest.mark.parametrize("bad", [None, True, -1, 1.5, "text" * 99, b"x" * 99, [], {}])
def test_each_field_of_another_type_or_range_is_refused(
    frame: tuple[object, ...], bad: object
) -> None:
    for index in range(1, len(frame)):
        changed = (*frame[:index], bad, *frame[index + 1 :])
        assert refusal(payload(changed)) == Drop.GARBAGE


@pytest.mark.parametrize("index", range(7))
@pytest.mark.parametrize("bad", [None, True, -1, 1.0, "1", b"1", [1]])
def test_each_field_of_an_entry_is_checked(index: int, bad: object) -> None:
    entry = (*ENTRY[:index], bad, *ENTRY[index + 1 :])
    assert refusal(payload((Kind.COUNTERS, ENTRY, entry))) == Drop.GARBAGE


@pytest.mark.parametrize(
    ("index", "bad"),
    [(1, 1 << 32), (2, 1 << 63), (3, 1001), (4, 1 << 32), (5, 1 << 32), (6, 1 << 63)],
)
def test_each_number_of_an_entry_has_its_bound(index: int, bad: int) -> None:
    entry = (*ENTRY[:index], bad, *ENTRY[index + 1 :])
    assert refusal(payload((Kind.COUNTERS, entry))) == Drop.GARBAGE


@pytest.mark.parametrize(
    ("kind", "entry", "high"),
    [
        (Kind.WINDOWS, WINDOW, (64, 32, 63, 63, 32, 32, 63, 63)),
        (Kind.HELD, HELD, (64, 32, 32, 32, 32)),
    ],
)
def test_each_number_of_the_other_entries_has_its_bound(
    kind: Kind, entry: tuple[int, ...], high: tuple[int, ...]
) -> None:
    for index, bits in enumerate(high):
        for bad in (-1, 1 << bits, b"", True):
            broken = (*entry[:index], bad, *entry[index + 1 :])
            with contextlib.suppress(OverflowError):  # 65 bits cannot even be packed
                assert refusal(payload((kind, broken))) == Drop.GARBAGE


@pytest.mark.parametrize("frame", [frame for frame in GOOD if len(frame) > 1], ids=str)
def test_a_frame_too_short_or_too_long_is_refused(frame: tuple[object, ...]) -> None:
    if frame[0] not in ITEMS_ONLY:
        assert refusal(payload(frame[:-1])) == Drop.GARBAGE
    assert refusal(payload((*frame, 1))) == Drop.GARBAGE


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",  # never used in msgpack
        msgpack.packb(1),
        msgpack.packb([]),
        msgpack.packb({}),
        msgpack.packb([[1, b"12345678", 1], {1: 2}]),
        msgpack.packb([[1, b"12345678", 1], msgpack.ExtType(1, b"x")]),
        msgpack.packb([[1, b"12345678", 1], msgpack.Timestamp(1)]),
        msgpack.packb([[1, b"1234567", 1]]),
        msgpack.packb([[1, b"12345678"]]),
        msgpack.packb([[1, b"12345678", 1], []]),
        msgpack.packb([[1, b"12345678", 1], ["1"]]),
        msgpack.packb([[1, b"12345678", 1], 5]),
        msgpack.packb([[1, b"12345678", 1]]) + b"\x00",
        b"\xdd\xff\xff\xff\xff",  # an array that says it has 2^32-1 items
        b"\xdb\xff\xff\xff\xff",  # a string of that length
        b"\x91" * 2000,  # nested 2,000 deep
        msgpack.packb([[1, b"12345678", 1], [2, b"", b"\xff".decode("latin1"), "h", 1, 0]])[:-1],
        b"\x92" + msgpack.packb([1, b"12345678", 1]) + b"\x96\x02\xc4\x00\xa1\xff\xa1h\x01\x00",
    ],
)
def test_garbage_is_refused(data: bytes) -> None:
    assert refusal(data) == Drop.GARBAGE


def test_what_is_longer_than_a_record_is_refused_unread() -> None:
    assert refusal(b"\x90" * (wire.RECORD_BYTES_MAX + 1)) == Drop.OVERSIZED


@pytest.mark.parametrize("host", ["localhost", "a.test", "1", "\x00", "127.0.0.1 ", "127.1"])
def test_a_host_is_a_numeric_address(host: str) -> None:
    """A name would have whoever sends to it wait for a resolver."""
    hello = (Kind.HELLO, b"", "gw-1", host, 7946, 0)
    member = (*MEMBER[:2], host, *MEMBER[3:])
    for frame in (hello, (Kind.MEMBERS, 0, MEMBER, member)):
        assert refusal(payload(frame)) == Drop.GARBAGE


def test_too_many_frames_are_refused() -> None:
    assert refusal(payload(*[(Kind.BREAKER_PULL,)] * 65)) == Drop.GARBAGE


@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    try:
        wire.unpack(data)
    except DropError as error:
        assert error.reason in (Drop.GARBAGE, Drop.OVERSIZED)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats()
    | st.text(max_size=9) | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=20,
)  # fmt: skip


@given(st.lists(ANYTHING, max_size=6))
def test_no_msgpack_raises_anything_else(frames: list[object]) -> None:
    try:
        read = wire.unpack(payload(*frames))
    except DropError as error:
        assert error.reason == Drop.GARBAGE
    else:
        assert all(frame[0] in set(Kind) for frame in read.frames)


@given(st.sampled_from(GOOD), st.integers(0, 200), st.integers(1, 255))
def test_no_flipped_byte_raises_anything_else(
    frame: tuple[object, ...], where: int, flip: int
) -> None:
    data = bytearray(payload(frame))
    data[where % len(data)] ^= flip
    try:
        wire.unpack(bytes(data))
    except DropError as error:
        assert error.reason == Drop.GARBAGE
