"""The seal: only who has a key can speak, and every byte of what was said is covered."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peers.core.errors import Drop, DropError
from peers.core.keyring import ENVELOPE, SALT_BYTES, TAG_BYTES, Keyring, key_id
from peers.core.wire import ENVELOPE_BYTES

OLD, NEW = b"o" * 32, b"n" * 32
SALT, OTHER_SALT = b"a" * SALT_BYTES, b"b" * SALT_BYTES


def refusal(keyring: Keyring, data: bytes, from_loopback: bool = True) -> Drop:
    with pytest.raises(DropError) as caught:
        keyring.open(data, from_loopback)
    return caught.value.reason


def test_what_one_seals_another_opens() -> None:
    data = Keyring([NEW], SALT).seal(b"payload", 7)
    assert Keyring([NEW], OTHER_SALT).open(data, False) == (b"payload", 7)
    assert len(data) == len(b"payload") + ENVELOPE_BYTES
    assert ENVELOPE.size + TAG_BYTES == ENVELOPE_BYTES


def test_rotation_needs_no_pause() -> None:
    """Old only, then both with the old one sealing, then both with the new one, then new only."""
    steps = [[OLD], [OLD, NEW], [NEW, OLD], [NEW]]
    for one, other in itertools.pairwise(steps):
        for sender, receiver in ((one, other), (other, one)):
            data = Keyring(sender, SALT).seal(b"x", 1)
            assert Keyring(receiver, OTHER_SALT).open(data, False).payload == b"x"


def test_a_key_that_is_not_configured_is_named_as_such() -> None:
    assert refusal(Keyring([NEW], SALT), Keyring([OLD], SALT).seal(b"x", 1)) == Drop.UNKNOWN_KEY
    assert refusal(Keyring([], SALT), Keyring([OLD], SALT).seal(b"x", 1)) == Drop.UNKNOWN_KEY


def test_every_bit_is_covered() -> None:
    keyring = Keyring([NEW], SALT)
    data = Keyring([NEW], OTHER_SALT).seal(b"payload", 7)
    for index in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[index] ^= 1 << bit
            reason = refusal(keyring, bytes(changed))
            assert reason in (Drop.FORGED, Drop.GARBAGE, Drop.VERSION, Drop.UNKNOWN_KEY,
                              Drop.UNSEALED)  # fmt: skip


def test_no_part_of_a_datagram_is_a_datagram() -> None:
    """Also once its sender's key is derived and kept."""
    keyring = Keyring([NEW], SALT)
    data = Keyring([NEW], OTHER_SALT).seal(b"payload", 7)
    for _ in range(2):
        for length in range(len(data)):
            reason = refusal(keyring, data[:length])
            assert reason == (Drop.GARBAGE if length < ENVELOPE.size else Drop.FORGED)
        assert keyring.open(data, False) == (b"payload", 7)


def test_in_clear_only_from_loopback_and_only_without_keys() -> None:
    clear = Keyring([], SALT).seal(b"x", 3)
    assert Keyring([], OTHER_SALT).open(clear, True) == (b"x", 3)
    assert refusal(Keyring([], OTHER_SALT), clear, from_loopback=False) == Drop.UNSEALED
    assert refusal(Keyring([NEW], OTHER_SALT), clear) == Drop.UNSEALED


def test_another_version_is_named_as_such() -> None:
    data = bytearray(Keyring([NEW], SALT).seal(b"x", 1))
    data[2] = 2
    assert refusal(Keyring([NEW], SALT), bytes(data)) == Drop.VERSION


def test_two_lives_share_no_key_stream() -> None:
    """The same key, payload and sequence number under two salts: no byte in common by design."""
    one = Keyring([NEW], SALT).seal(bytes(64), 1)[ENVELOPE.size :]
    other = Keyring([NEW], OTHER_SALT).seal(bytes(64), 1)[ENVELOPE.size :]
    assert one != other
    assert one != Keyring([NEW], SALT).seal(bytes(64), 2)[ENVELOPE.size :]


def test_a_key_id_tells_nothing_of_the_key() -> None:
    assert len(key_id(NEW)) == 4
    assert key_id(NEW) not in NEW
    assert key_id(NEW) != key_id(OLD)


def test_forged_salts_push_no_derived_key_out() -> None:
    keyring = Keyring([NEW], SALT)
    good = Keyring([NEW], OTHER_SALT).seal(b"x", 1)
    keyring.open(good, False)
    kept = len(keyring._ciphers)
    for number in range(300):
        forged = bytearray(good)
        forged[8:12] = number.to_bytes(4, "big")
        assert refusal(keyring, bytes(forged)) == Drop.FORGED
    assert len(keyring._ciphers) == kept


def test_derived_keys_are_bounded() -> None:
    keyring = Keyring([NEW], SALT)
    for number in range(300):
        sender = Keyring([NEW], number.to_bytes(SALT_BYTES, "big"))
        assert keyring.open(sender.seal(b"x", 1), False).payload == b"x"
    assert len(keyring._ciphers) == 128


@given(st.binary(max_size=100))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    refusal(Keyring([NEW], SALT), data)


@given(st.binary(max_size=100))
def test_no_envelope_raises_anything_else(rest: bytes) -> None:
    refusal(Keyring([NEW], SALT), b"eg\x01\x01" + key_id(NEW) + rest)
