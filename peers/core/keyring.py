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
        cipher = self._ciphers.get(data[_SLOT])
        if cipher is None or data[:4] != _SEALED or len(data) < ENVELOPE.size:
            return self._open_slow(data, from_loopback)
        try:
            payload = cipher.decrypt(_NONCE_HEAD + data[SEQ_AT], data[_BODY], data[_HEAD])
        except InvalidTag:
            raise DropError(Drop.FORGED) from None
        self._ciphers.move_to_end(data[_SLOT])
        return Opened(payload, int.from_bytes(data[SEQ_AT], "big"))

    def _open_slow(self, data: bytes, from_loopback: bool) -> Opened:
        """What is not sealed by a sender that is known here."""
        if len(data) < ENVELOPE.size or data[:2] != MAGIC:
            raise DropError(Drop.GARBAGE)
        _, version, seal, name, salt, seq = ENVELOPE.unpack_from(data)
        if version != VERSION:
            raise DropError(Drop.VERSION)
        if seal == SEAL_NONE:
            if self._keys or not from_loopback:
                raise DropError(Drop.UNSEALED)
            return Opened(data[_BODY], seq)
        if seal != SEAL_CHACHA20_POLY1305:
            raise DropError(Drop.VERSION)
        if name not in self._keys:
            raise DropError(Drop.UNKNOWN_KEY)
        cipher = self._cipher(name, salt)
        try:
            payload = cipher.decrypt(_nonce(seq), data[_BODY], data[_HEAD])
        except InvalidTag:
            raise DropError(Drop.FORGED) from None
        # Only salts whose seal held are kept, so that forgeries push nobody out.
        self._ciphers[name + salt] = cipher
        if len(self._ciphers) > _CIPHERS_MAX:
            self._ciphers.popitem(last=False)
        return Opened(payload, seq)

    def _cipher(self, name: bytes, salt: bytes) -> ChaCha20Poly1305:
        derived = hashlib.blake2b(
            salt, key=self._keys[name], digest_size=32, person=b"egressd mesh 1"
        )
        return ChaCha20Poly1305(derived.digest())


def _nonce(seq: int) -> bytes:
    return _NONCE_HEAD + seq.to_bytes(8, "big")
