"""The seal around every payload, and the only place that knows a cipher.

ChaCha20-Poly1305 (RFC 8439) demands that a key never meets a nonce twice. All members share the
configured keys, and 12 bytes of nonce cannot hold a sender and a counter that nobody repeats. So
each sender seals with a key of its own, derived from the configured one and a salt of its boot
time and 48 random bits, which travels in clear; the nonce is the sender's sequence number. Two
lives would have to draw the same salt in the same millisecond to meet.
"""

from __future__ import annotations

import hashlib
import struct
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from peers.core.errors import Drop, DropError

__all__ = [
    "ENVELOPE",
    "MAGIC",
    "SALT_AT",
    "SALT_BYTES",
    "SEQ_AT",
    "VERSION",
    "Keyring",
    "Opened",
    "key_id",
]

MAGIC = b"eg"
VERSION = 1
SEAL_NONE = 0
SEAL_CHACHA20_POLY1305 = 1
SALT_BYTES = 12
# magic, version, seal, key id, salt, sequence number; all of it is authenticated.
ENVELOPE = struct.Struct(">2sBB4s12sQ")
SALT_AT = slice(8, 20)
SEQ_AT = slice(20, 28)
TAG_BYTES = 16
_HEAD = slice(0, ENVELOPE.size)
_BODY = slice(ENVELOPE.size, None)
_KEY_ID = slice(4, 8)
_SLOT = slice(4, 20)  # key id and salt: what a sender's derived key goes by
_SEALED = MAGIC + bytes((VERSION, SEAL_CHACHA20_POLY1305))
_NONCE_HEAD = bytes(4)  # of the 12 bytes that RFC 8439 wants; the sequence number has eight
# Derived keys kept: twice 32 members in their present and previous lives; a miss costs 3 us.
_CIPHERS_MAX = 128


class Opened(NamedTuple):
    """A payload whose seal held, and the sequence number that the seal covers."""

    payload: bytes
    seq: int


def key_id(key: bytes) -> bytes:
    """Four bytes that name a key in clear and tell nothing about it."""
    return hashlib.blake2b(key, digest_size=4, person=b"egressd key id").digest()


class Keyring:
    """Seals with the first key, opens with any. Without keys it neither seals nor opens sealed.

    `salt` is this life's: 12 bytes, boot time and chance. A sequence number must not come twice.
    """

    def __init__(self, keys: Sequence[bytes], salt: bytes) -> None:
        self._ciphers: OrderedDict[bytes, ChaCha20Poly1305] = OrderedDict()
        self._salt = salt
        self._keys: dict[bytes, bytes]
        self._key_id: bytes
        self._seal: ChaCha20Poly1305 | None
        self.replace(keys)

    def replace(self, keys: Sequence[bytes]) -> None:
        """Other keys from now on: the first seals, all open. A rotation adds the new key last on
        all nodes, then puts it first, then takes the old one away; no datagram is lost on the way.
        """
        self._keys = {key_id(key): key for key in keys}
        self._ciphers.clear()
        self._key_id = key_id(keys[0]) if keys else bytes(4)
        self._seal = self._cipher(self._key_id, self._salt) if keys else None

    @property
    def sealed(self) -> bool:
        return self._seal is not None

    def seal(self, payload: bytes, seq: int) -> bytes:
        """A datagram or record: the envelope, then the payload sealed (or in clear)."""
        if self._seal is None:
            head = ENVELOPE.pack(MAGIC, VERSION, SEAL_NONE, self._key_id, self._salt, seq)
            return head + payload
        head = ENVELOPE.pack(MAGIC, VERSION, SEAL_CHACHA20_POLY1305, self._key_id, self._salt, seq)
        return head + self._seal.encrypt(_nonce(seq), payload, head)

    def open(self, data: bytes, from_loopback: bool) -> Opened:
        """The payload of a datagram. Raises DropError with what is wrong."""
        fault = self.fault(data, from_loopback)
        if fault is not None:
            raise DropError(fault)
        return self.unseal(data)

    def fault(self, data: bytes, from_loopback: bool) -> Drop | None:
        """What is wrong as far as the envelope tells. Three look-ups and no exception: a flood of
        garbage costs little more than reading it from the socket."""
        if data[:4] != _SEALED or len(data) < ENVELOPE.size:
            return self._fault_slow(data, from_loopback)
        return None if data[_KEY_ID] in self._keys else Drop.UNKNOWN_KEY

    def _fault_slow(self, data: bytes, from_loopback: bool) -> Drop | None:
        if len(data) < ENVELOPE.size or data[:2] != MAGIC:
            return Drop.GARBAGE
        if data[2] != VERSION or data[3] != SEAL_NONE:
            return Drop.VERSION
        return Drop.UNSEALED if self._keys or not from_loopback else None

    def unseal(self, data: bytes) -> Opened:
        """The payload of a datagram in which `fault` found none. Raises DropError (FORGED)."""
        seq = int.from_bytes(data[SEQ_AT], "big")
        if data[3] == SEAL_NONE:
            return Opened(data[_BODY], seq)
        slot = data[_SLOT]
        known = self._ciphers.get(slot)
        cipher = known or self._cipher(data[_KEY_ID], data[SALT_AT])
        try:
            payload = cipher.decrypt(_NONCE_HEAD + data[SEQ_AT], data[_BODY], data[_HEAD])
        except InvalidTag:
            raise DropError(Drop.FORGED) from None
        if known is None:  # kept only where the seal held, so that forgeries push nobody out
            self._ciphers[slot] = cipher
            if len(self._ciphers) > _CIPHERS_MAX:
                self._ciphers.popitem(last=False)
        else:
            self._ciphers.move_to_end(slot)
        return Opened(payload, seq)

    def _cipher(self, name: bytes, salt: bytes) -> ChaCha20Poly1305:
        derived = hashlib.blake2b(
            salt, key=self._keys[name], digest_size=32, person=b"egressd mesh 1"
        )
        return ChaCha20Poly1305(derived.digest())


def _nonce(seq: int) -> bytes:
    return _NONCE_HEAD + seq.to_bytes(8, "big")
