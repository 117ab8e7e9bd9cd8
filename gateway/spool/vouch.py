"""A node's word for a client: whose question it is that one node passes on to another.

The field has the client's name, the second, and a keyed hash of both and of the path. Only who has
a key of the mesh can make it, it is good for one path, and for a minute on either side of its time.
Pure.
"""

from __future__ import annotations

import hashlib
import hmac

from gateway.h1.message import Fields

__all__ = ["FIELD", "client_of", "field_for"]

FIELD = b"Egressd-Client"
AGE_S_MAX = 60  # nodes' clocks are not that far apart
VALUE_BYTES_MAX = 256


def field_for(client: str, path: bytes, key: bytes, now_s: int) -> tuple[bytes, bytes]:
    """The field that says that this client asks for this path."""
    said = b"%b;%d" % (client.encode(), now_s)
    return FIELD, b"%b;%b" % (said, _hash(said, path, key))


def client_of(fields: Fields, path: bytes, keys: tuple[bytes, ...], now_s: int) -> str:
    """The client that a node of this mesh vouches for; "" where none does."""
    wanted = FIELD.lower()
    for name, value in fields:
        if len(name) == len(wanted) and name.lower() == wanted and len(value) <= VALUE_BYTES_MAX:
            said, _, told = value.rpartition(b";")
            client, _, second = said.rpartition(b";")
            if not second.isdigit() or len(second) > 12 or abs(int(second) - now_s) > AGE_S_MAX:
                continue
            if any(hmac.compare_digest(told, _hash(said, path, key)) for key in keys):
                return client.decode("latin-1")
    return ""


def _hash(said: bytes, path: bytes, key: bytes) -> bytes:
    digest = hashlib.blake2b(key=key, digest_size=16, person=b"egressd spool")
    digest.update(b"%d:%b%b" % (len(said), said, path))
    return digest.hexdigest().encode()
