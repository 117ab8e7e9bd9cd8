"""PROTOCOL.md is true: its examples decode to what it says, its tables are the code's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from peers.core import wire
from peers.core.errors import Drop
from peers.core.gossip import key64
from peers.core.handshake import cluster_label, node_id
from peers.core.keyring import Keyring
from peers.core.members import MemberState
from peers.core.snapshot import RECORDS_MAX
from peers.core.wire import Head, Kind

TEXT = (Path(__file__).parents[2] / "peers" / "PROTOCOL.md").read_text()
KEY = bytes(range(32))
SALT = (1_700_000_000_000).to_bytes(6, "big") + b"\x01\x02\x03\x04\x05\x06"


def example(name: str) -> bytes:
    match = re.search(rf"```hex {name}\n(.*?)```", TEXT, re.DOTALL)
    assert match is not None
    return bytes.fromhex(match[1])


def test_the_payload_says_what_the_text_says() -> None:
    head, frames = wire.unpack(example("payload"))
    node = node_id("prod-eu", "gw-1")
    assert head == Head(cluster_label("prod-eu"), node, 1_700_000_000_000)
    key = key64("prod-eu", "stripe:account", b"")
    entry = (key, 1, 1500, 12, 9950, 3, 1592)
    assert frames == [(Kind.HEARTBEAT, 0), (Kind.COUNTERS, entry)]
    packed = [
        wire.pack((Kind.HEARTBEAT, 0)),
        wire.join_items(Kind.COUNTERS, [wire.pack(entry)]),
    ]
    assert wire.join(wire.pack_head(head), packed) == example("payload")


@pytest.mark.parametrize(("name", "keys"), [("unsealed", ()), ("sealed", (KEY,))])
def test_the_envelopes_open_and_come_out_the_same(name: str, keys: tuple[bytes, ...]) -> None:
    data = example(name)
    assert Keyring(keys, b"other salt..").open(data, True) == (example("payload"), 7)
    assert Keyring(keys, SALT).seal(example("payload"), 7) == data


def test_the_table_of_kinds_is_the_codes() -> None:
    rows = re.findall(r"^\| (\d+) \| ([A-Z_]+) \|", TEXT, re.MULTILINE)
    assert {name: int(number) for number, name in rows} == {kind.name: kind for kind in Kind}


def fields_of(row: str) -> tuple[list[str], list[str] | None]:
    """(fields that come once, those of the items that follow) of a row of the table of kinds."""
    once, bracket, items = row.partition("`[")
    names = [re.sub(r"\(.*?\)", "", name).strip() for name in once.split(",")]
    once_names = [name for name in names if name and name != "then"]
    return once_names, re.split(
        r", ", re.sub(r" \(.*?\)", "", items[: items.index("]")])
    ) if bracket else None


def test_the_fields_of_each_kind_are_the_codes() -> None:
    """Names in the table of kinds, lengths in the table of bits, bounds in the code."""
    bits = {
        name: int(number)
        for number, names in re.findall(r"^\| (\d+) \| ([a-z].*) \|$", TEXT, re.MULTILINE)
        for name in names.split(", ")
    }
    at_least_one = {"port", "rate count", "rate period ns", "burst"}
    other = {
        "cookie": (bytes, 8, 8), "nonce": (bytes, 8, 8), "node": (bytes, 8, 8),
        "target node": (bytes, 8, 8), "origin": (bytes, 8, 8), "scope": (bytes, 1, 32),
        "name": (str, 1, 64), "host": (str, 1, 255),
    }  # fmt: skip
    special = {
        (Kind.HELLO, "cookie"): (bytes, 0, 8),
        (Kind.MEMBERS, "want"): (int, 0, (1 << bits["want of MEMBERS"]) - 1),
        (Kind.MEMBERS, "state"): (int, 1, 4),
        (Kind.BREAKERS, "state"): (int, 0, 1),
        (Kind.LEDGER_STATE, "sight"): (int, 0, 3),
        (Kind.LEDGER_LEGACY, "total"): (int, 0, (1 << 32) - 1),
    }

    def shape(kind: Kind, name: str) -> tuple[type, int, int]:
        known = special.get((kind, name)) or other.get(name)
        return known or (int, int(name in at_least_one), (1 << bits[name]) - 1)

    rows = dict(re.findall(r"^\| \d+ \| ([A-Z_]+) \|(.*)\|$", TEXT, re.MULTILINE))
    for kind in Kind:
        once, items = fields_of(rows[kind.name])
        told = (
            tuple(shape(kind, name) for name in once),
            None if items is None else tuple(shape(kind, name) for name in items),
        )
        if kind == Kind.RELAYED:
            assert told == (wire._RELAYED, None)
        elif kind != Kind.COUNTERS:  # written out in the code; its bounds are tried in test_wire
            assert told == wire._SHAPES[kind], kind.name
        else:
            assert [bits[name] for name in items or ()] == [64, 32, 63, 63, 32, 32, 63]


def test_numbers_are_never_used_again() -> None:
    """Written down once more, so that a change of the enum and the text alike is noticed."""
    assert [kind.name for kind in Kind] == [
        "CHALLENGE", "HELLO", "PING", "ACK", "PING_REQUEST", "NACK", "MEMBERS", "HEARTBEAT",
        "COUNTERS", "LIMITS", "BREAKERS", "BREAKER_PULL", "CLAIM", "SNAPSHOT_REQUEST",
        "SNAPSHOT_PART", "WINDOWS", "HELD", "LEASE_ASK", "LEASE_GRANT", "LEASE_VIEW", "ADVERTISED",
        "DEMANDS", "QUOTA_ASK", "QUOTA_GRANT", "LEDGER_ASK", "LEDGER_STATE", "LEDGER_LEGACY",
        "UNREACHED", "FULL", "RELAY_ASK", "RELAYED",
    ]  # fmt: skip
    assert list(Kind) == list(range(1, 32))


def test_states_reasons_and_limits_are_the_codes() -> None:
    for state in MemberState:
        assert f"{state.value} {state.name}" in TEXT
    (reasons,) = re.findall(r"counted by reason: (.*?)\.\n", TEXT, re.DOTALL)
    assert re.split(r",\s+", reasons) == [reason.value for reason in Drop]
    limits = dict(re.findall(r"^\| ([a-z ]+) \| (\d+)[ |]", TEXT, re.MULTILINE))
    assert int(limits["datagram"]) == wire.DATAGRAM_BYTES_MAX
    assert int(limits["record of a snapshot"]) == wire.RECORD_BYTES_MAX
    assert int(limits["records of a snapshot"]) == RECORDS_MAX
    assert int(limits["frames in a payload"]) == wire.FRAMES_MAX
    assert int(limits["items in an array"]) == wire.ENTRIES_MAX
    assert int(limits["scope"]) == wire.SCOPE_BYTES_MAX
