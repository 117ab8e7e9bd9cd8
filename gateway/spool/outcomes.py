"""What became of requests that gateways accepted, as every node reads it from the topics; pure.

An id has 128 bits of chance, and the record a hash of them and of the client's name, its mark,
which its outcome repeats. Only who has both finds the outcome, on whatever node; who reads the
topics has neither. The id says until when there may be an outcome, and has a check of all three:
what has no outcome yet is told from what never was without a word from another node.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from gateway.errors import GatewayError
from gateway.h1 import names
from gateway.h1.message import Fields
from gateway.spool.record import TOKEN_BYTES

__all__ = ["Asked", "Known", "KnownKeys", "Outcome", "Outcomes", "id_of", "mark_of", "read_id",
           "read_outcome"]  # fmt: skip

MARK_BYTES: Final = 16
CHECK_BYTES: Final = 8
# Results of 1 KiB for half an hour at 36 a second; of the longest, 64.
OUTCOMES_MAX: Final = 65_536
OUTCOMES_BYTES_MAX: Final = 64 * 1024 * 1024
KEYS_MAX: Final = 20_000  # at some 500 octets each, 10 MB
_is_value: Final = re.compile(rb"[^\r\n\0]*").fullmatch
_is_id: Final = re.compile(
    rf"([0-9a-f]{{{2 * TOKEN_BYTES}}})-([0-9a-f]{{1,12}})-([0-9a-f]{{{2 * CHECK_BYTES}}})"
).fullmatch
# What is made anew when a response is given out.
_KINDS_OF_THE_TRANSFER: Final = frozenset(
    (
        names.CONTENT_LENGTH,
        names.TRANSFER_ENCODING,
        names.CONNECTION,
        names.UPGRADE,
        names.HOP,
        names.TRAILER,
        names.INVALID,
    )
)


class Asked(NamedTuple):
    """What an id says."""

    token: bytes
    until_s: int  # wall time; what has no outcome by then has none


def mark_of(token: bytes, client: str) -> bytes:
    """What a record and its outcome have of the id and of the client."""
    return _hash(b"mark", token, client, 0, MARK_BYTES)


def id_of(token: bytes, client: str, until_s: int) -> str:
    """How the client names what it had accepted."""
    check = _hash(b"check", token, client, until_s, CHECK_BYTES).decode()
    return f"{token.hex()}-{until_s:x}-{check}"


def read_id(name: str, client: str) -> Asked | None:
    """What the id says, if it is this client's."""
    found = _is_id(name)
    if found is None:
        return None
    asked = Asked(bytes.fromhex(found[1]), int(found[2], 16))
    return asked if id_of(asked.token, client, asked.until_s) == name else None


def _hash(purpose: bytes, token: bytes, client: str, number: int, size: int) -> bytes:
    digest = hashlib.blake2b(token, digest_size=size, person=purpose)
    digest.update(b"%d;%b" % (number, client.encode()))
    return digest.hexdigest().encode()


class Outcome(NamedTuple):
    """A letter, read: its document and, of a result, the response."""

    document: dict[str, Any]
    status: int  # 0: it is a dead letter
    fields: Fields
    body: bytes


def read_outcome(value: bytes) -> Outcome:
    """What a letter says. Others may write to its topic: raises ValueError if it is none."""
    try:
        document = json.loads(value)
        if document["outcome"] == "dead":
            return Outcome(document, 0, [], b"")
        status = document["status"]
        fields = [
            (name.encode("latin-1"), text.encode("latin-1")) for name, text in document["headers"]
        ]
        if "body" in document:
            body = document["body"].encode()
        else:
            body = base64.b64decode(document["body_base64"], validate=True)
    except (AttributeError, KeyError, RecursionError, TypeError) as error:
        raise ValueError("no letter of a gateway") from error
    if type(status) is not int or not 200 <= status <= 599 or document["outcome"] != "result":
        raise ValueError("no outcome")
    if not all(names.is_token(name) and _is_value(text) for name, text in fields):
        raise ValueError("fields that no response can have")
    kept = [field for field in fields if names.KIND[field[0]] not in _KINDS_OF_THE_TRANSFER]
    return Outcome(document, status, kept, body)


class Outcomes:
    """Letters by their marks: so many, of so many octets, and each for so long."""

    def __init__(self, count_max: int = OUTCOMES_MAX, bytes_max: int = OUTCOMES_BYTES_MAX) -> None:
        self._letters: OrderedDict[bytes, tuple[int, bytes, bool]] = OrderedDict()
        self._count_max = count_max
        self._bytes_max = bytes_max
        self.octets = 0

    def __len__(self) -> int:
        return len(self._letters)

    def put(self, mark: bytes, value: bytes, at_ms: int, keep_ms: int, *, is_result: bool) -> int:
        """Keeps a letter of that time. Returns how many went for want of room, not of age.

        There may be several: the first result stays, a dead letter may have been sent anew.
        """
        before = self._letters.get(mark)
        if before is not None:
            if before[2]:
                return 0
            del self._letters[mark]
            self.octets -= len(before[1])
        self._letters[mark] = (at_ms, value, is_result)
        self.octets += len(value)
        self.expire(at_ms - keep_ms)
        went = 0
        while len(self._letters) > self._count_max or self.octets > self._bytes_max:
            self._forget_first()
            went += 1
        return went

    def expire(self, before_ms: int) -> None:
        """Forgets what is older, as far as it came in the order of its times."""
        while self._letters and next(iter(self._letters.values()))[0] < before_ms:
            self._forget_first()

    def find(self, mark: bytes) -> bytes | None:
        """The letter of that mark."""
        found = self._letters.get(mark)
        return found[1] if found is not None else None

    def _forget_first(self) -> None:
        _, (_, value, _) = self._letters.popitem(last=False)
        self.octets -= len(value)


class Known:
    """An acceptance with an Idempotency-Key of the client's own."""

    __slots__ = ("fingerprint", "name", "until_ms", "waiting")

    def __init__(self, name: str, fingerprint: bytes, until_ms: int) -> None:
        self.name = name
        self.fingerprint = fingerprint
        self.until_ms = until_ms
        # Who hears that the cluster has it (None), or why not; None: it has it.
        self.waiting: list[Callable[[GatewayError | None], None]] | None = []


class KnownKeys:
    """What one worker accepted lately, by upstream, client and key."""

    def __init__(self, count_max: int = KEYS_MAX) -> None:
        self._known: OrderedDict[tuple[str, str, bytes], Known] = OrderedDict()
        self._count_max = count_max

    def __len__(self) -> int:
        return len(self._known)

    def find(self, key: tuple[str, str, bytes], now_ms: int) -> Known | None:
        """The acceptance with that key, while it counts."""
        known = self._known.get(key)
        if known is not None and known.until_ms <= now_ms:
            del self._known[key]
            return None
        return known

    def put(self, key: tuple[str, str, bytes], known: Known) -> None:
        """The newest; the oldest goes if there are too many."""
        self._known[key] = known
        if len(self._known) > self._count_max:
            self._known.popitem(last=False)

    def forget(self, key: tuple[str, str, bytes]) -> None:
        """It was not accepted."""
        self._known.pop(key, None)
