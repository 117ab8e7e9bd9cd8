"""A record of the requests topic, read as a request: what may stand in it, and nothing else.

The value is a JSON object (`conf/egressd.kafka.schema.json`). Whoever may write to the topic may
make the gateway send, so a record is judged as a client's request is: by the same guard, within the
same bounds. What is no request raises EnvelopeError with one word that does not change between
versions, and the record becomes a dead letter; nothing that a record says is quoted in an error.

A key that is not known is refused, not skipped: a misspelt `expires_at` would have the request sent
too late, a misspelt `idempotency_key` twice. What a producer wants to carry along goes into the
record's own headers, which results and dead letters repeat.
"""

from __future__ import annotations

import binascii
import enum
import hashlib
import re
from collections.abc import Sequence
from math import isfinite
from typing import Any, Final, NamedTuple

from gateway.errors import ErrorKind
from gateway.h1 import names
from gateway.h1.codec import BadMessage, HeadLimits
from gateway.h1.guard import judge_octets, judge_request
from gateway.h1.message import Fields, RequestHead
from gateway.h1.target import AbsoluteTarget, split_absolute
from gateway.spool.bounded_json import Bounds, OutOfBounds, parse
from gateway.spool.record import BODY_BYTES_MAX

__all__ = [
    "KEYS",
    "BodyFrom",
    "Envelope",
    "EnvelopeError",
    "Flaw",
    "RecordHeaders",
    "RecordLimits",
    "idempotency_key_for",
    "judge_body",
    "read_envelope",
]

# A header's value may be null.
RecordHeaders = Sequence[tuple[str, bytes | None]]

_BODY_KEYS: Final = ("body", "body_base64", "body_from")
KEYS: Final = frozenset(
    ("method", "url", "headers", *_BODY_KEYS, "expires_at", "idempotency_key", "id")
)
_BODY_FROM_KEYS: Final = frozenset(("upstream", "path", "sha256", "bytes"))


class Flaw(enum.StrEnum):
    """Why a record is no request: the word in dead letters and metrics, never changed."""

    NO_VALUE = "no_value"
    RECORD_TOO_LARGE = "record_too_large"
    RECORD_KEY = "bad_record_key"
    RECORD_HEADERS = "bad_record_headers"
    JSON = "bad_json"
    SHAPE = "bad_shape"
    UNKNOWN_KEY = "unknown_key"
    MISSING_KEY = "missing_key"
    METHOD = "bad_method"
    URL = "bad_url"
    HEADERS = "bad_headers"
    HEAD_TOO_LARGE = "head_too_large"
    BODY = "bad_body"
    BODY_TOO_LARGE = "body_too_large"
    BODY_FROM = "bad_body_from"
    BODY_DIFFERS = "body_differs"
    EXPIRES_AT = "bad_expires_at"
    IDEMPOTENCY_KEY = "bad_idempotency_key"
    ID = "bad_id"


class EnvelopeError(Exception):
    """The record is no request. `detail` is for people and quotes nothing of the record."""

    def __init__(self, flaw: Flaw, detail: str) -> None:
        super().__init__(f"{flaw}: {detail}")
        self.flaw = flaw
        self.detail = detail


class RecordLimits(NamedTuple):
    """What a record may cost."""

    # The longest body as base64 (four octets for three), and a head whose every octet is escaped.
    record_bytes_max: int = -(-BODY_BYTES_MAX // 3) * 4 + 6 * 32 * 1024
    key_bytes_max: int = 1024  # a credential's hash, a customer's name: far below
    # As many and as long as results can repeat beside a body (see `letters.LETTER_BYTES_MAX`).
    record_headers_max: int = 32
    record_headers_bytes_max: int = 8 * 1024
    head: HeadLimits = HeadLimits()
    body_bytes_max: int = BODY_BYTES_MAX


class BodyFrom(NamedTuple):
    """Where a body is fetched: of a configured upstream, so that no record names an address."""

    upstream: str
    path: bytes
    sha256: bytes  # the digest's 32 octets
    body_bytes: int


class Envelope(NamedTuple):
    """A request as a record has it.

    `fields` has neither Host nor Idempotency-Key: the first is made of `target`, the second of
    `idempotency_key` or, where that is b"", of `idempotency_key_for`.
    """

    method: bytes
    target: AbsoluteTarget
    host: bytes  # as a Host field has it
    fields: Fields
    body: bytes
    body_from: BodyFrom | None
    expires_ms: int  # wall time; 0: the record does not say
    idempotency_key: bytes
    id: str


# The object, `headers` or `body_from` in it, and the list of a field's values.
_DEPTH_MAX: Final = 3
# A field has a colon, a comma and, as a list, two brackets; a further value of a list has a comma.
# Name and value have two quotes each. All else of an envelope (9 keys, of which one has 4, three
# pairs of brackets; 13 names and 11 texts) has no more than these.
_MARKS_OF_A_FIELD: Final = 4
_MARKS_OF_THE_REST: Final = 40
_QUOTES_OF_A_FIELD: Final = 4
_QUOTES_OF_THE_REST: Final = 48

# CONNECT opens a tunnel, and TRACE has the upstream repeat the injected secrets in its response.
_METHODS_REFUSED: Final = frozenset((b"CONNECT", b"TRACE"))
# What concerns one connection, or is made of another key of the envelope.
_KINDS_REFUSED: Final = frozenset(
    (
        names.HOST,
        names.CONTENT_LENGTH,
        names.TRANSFER_ENCODING,
        names.CONNECTION,
        names.EXPECT,
        names.TE,
        names.UPGRADE,
        names.HOP,
        names.PROXY_AUTHORIZATION,
        names.PROXY_AUTHENTICATE,
        names.TRAILER,
    )
)
_FIELDS_REFUSED: Final = frozenset((b"idempotency-key", b"x-expires-at"))

_DEFAULT_PORTS: Final = {b"http": 80, b"https": 443}
_EXPIRES_S_MAX: Final = 10**11  # the year 5138; milliseconds by mistake are beyond it
_is_id: Final = re.compile(r"[!-~]{1,128}").fullmatch
# As many octets as `Idempotency-Key` may have in `accept`, without white space at either end.
_is_key: Final = re.compile(r"[!-~](?:[ -~]{0,253}[!-~])?").fullmatch
_is_upstream: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}").fullmatch
_is_path: Final = re.compile(r"/[!\"$-~]*").fullmatch
_is_sha256: Final = re.compile(r"[0-9a-f]{64}").fullmatch


def read_envelope(
    value: bytes | None,
    key: bytes | None = None,
    headers: RecordHeaders = (),
    limits: RecordLimits = RecordLimits(),  # noqa: B008 - it is a value
) -> Envelope:
    """The request of a record, from its value, key and headers. Raises EnvelopeError only."""
    data = _judge_record(value, key, headers, limits)
    document = _parsed(data, limits.head.fields_max)
    if not document.keys() <= KEYS:
        raise EnvelopeError(Flaw.UNKNOWN_KEY, "there are keys that an envelope has not")
    method = _method(document)
    url = _text(document, "url", Flaw.URL)
    target, host = _target(url, method, limits.head)
    fields = _fields(document)
    _judge_head(method, url, host, fields, limits.head)
    if sum(name in document for name in _BODY_KEYS) > 1:
        raise EnvelopeError(Flaw.BODY, "more than one of body, body_base64 and body_from")
    return Envelope(
        method=method,
        target=target,
        host=host,
        fields=fields,
        body=_body(document, limits.body_bytes_max),
        body_from=_body_from(document, limits),
        expires_ms=_expires_ms(document),
        idempotency_key=_matching(document, "idempotency_key", _is_key, Flaw.IDEMPOTENCY_KEY),
        id=_matching(document, "id", _is_id, Flaw.ID).decode(),
    )


def judge_body(wanted: BodyFrom, body: bytes) -> None:
    """Whether what was fetched is what the record meant. Raises EnvelopeError."""
    if len(body) != wanted.body_bytes or hashlib.sha256(body).digest() != wanted.sha256:
        raise EnvelopeError(Flaw.BODY_DIFFERS, "the fetched body is not the one that was meant")


def idempotency_key_for(topic: str, partition: int, offset: int, timestamp_ms: int) -> bytes:
    """The key of a record that has none: the same whenever and by whomever it is read.

    The timestamp is part of it since offsets begin anew in a topic that is made anew.
    """
    place = f"{topic}/{partition}/{offset}/{timestamp_ms}".encode()
    return b'"%b"' % hashlib.blake2b(place, digest_size=16).hexdigest().encode()


def _judge_record(
    value: bytes | None, key: bytes | None, headers: RecordHeaders, limits: RecordLimits
) -> bytes:
    if not value:
        raise EnvelopeError(Flaw.NO_VALUE, "the record has no value")
    if len(value) > limits.record_bytes_max:
        raise EnvelopeError(
            Flaw.RECORD_TOO_LARGE, f"the value has more than {limits.record_bytes_max} octets"
        )
    if key is not None and len(key) > limits.key_bytes_max:
        raise EnvelopeError(Flaw.RECORD_KEY, f"more than {limits.key_bytes_max} octets")
    if len(headers) > limits.record_headers_max:
        raise EnvelopeError(Flaw.RECORD_HEADERS, f"more than {limits.record_headers_max}")
    size = sum(len(name.encode("utf-8", "replace")) + len(data or b"") for name, data in headers)
    if size > limits.record_headers_bytes_max:
        raise EnvelopeError(
            Flaw.RECORD_HEADERS, f"more than {limits.record_headers_bytes_max} octets"
        )
    return value


# JSON.


def _parsed(value: bytes, fields_max: int) -> dict[str, Any]:
    most = Bounds(
        marks=_MARKS_OF_A_FIELD * fields_max + _MARKS_OF_THE_REST,
        quotes=_QUOTES_OF_A_FIELD * fields_max + _QUOTES_OF_THE_REST,
        depth=_DEPTH_MAX,
    )
    try:
        document = parse(value, most)
    except OutOfBounds as error:
        raise EnvelopeError(Flaw.SHAPE, str(error)) from None
    except ValueError:  # `from None`: the causes quote the record
        raise EnvelopeError(Flaw.JSON, "the value is no JSON text in UTF-8") from None
    if not isinstance(document, dict):
        raise EnvelopeError(Flaw.SHAPE, "the value is no JSON object")
    return document


def _text(document: dict[str, Any], key: str, flaw: Flaw) -> bytes:
    """A text that has to be there, as octets."""
    if key not in document:
        raise EnvelopeError(Flaw.MISSING_KEY, f"there is no {key}")
    return _octets(document[key], flaw, key)


def _octets(value: Any, flaw: Flaw, what: str) -> bytes:
    if not isinstance(value, str):
        raise EnvelopeError(flaw, f"{what} is no text")
    try:
        return value.encode()
    except UnicodeEncodeError:  # "\ud800" is half a character, and JSON lets it pass
        raise EnvelopeError(flaw, f"{what} has a lone surrogate") from None


def _matching(document: dict[str, Any], key: str, matches: Any, flaw: Flaw) -> bytes:
    """A text that may be there, of printable ASCII; b"": it is not."""
    if key not in document:
        return b""
    value = _octets(document[key], flaw, key)
    if matches(document[key]) is None:
        raise EnvelopeError(flaw, f"{key} is empty, too long or has an octet that it may not have")
    return value


# The head.


def _method(document: dict[str, Any]) -> bytes:
    method = _text(document, "method", Flaw.METHOD)
    if names.is_token(method) is None:
        raise EnvelopeError(Flaw.METHOD, "method is no token")
    if method in _METHODS_REFUSED:
        raise EnvelopeError(Flaw.METHOD, "CONNECT and TRACE cannot be asked for")
    return method


def _target(url: bytes, method: bytes, limits: HeadLimits) -> tuple[AbsoluteTarget, bytes]:
    """What the URL says, and the Host that belongs to it."""
    if len(url) > limits.target_bytes_max:
        raise EnvelopeError(Flaw.URL, f"url has more than {limits.target_bytes_max} octets")
    try:
        target = split_absolute(url, method)
    except BadMessage as error:
        raise EnvelopeError(Flaw.URL, error.detail) from None
    if target.port == _DEFAULT_PORTS[target.scheme]:
        return target, target.host
    return target, b"%b:%d" % (target.host, target.port)


def _fields(document: dict[str, Any]) -> Fields:
    found = document.get("headers", {})
    if not isinstance(found, dict):
        raise EnvelopeError(Flaw.HEADERS, "headers is no object")
    fields: Fields = []
    for key, value in found.items():
        name = _octets(key, Flaw.HEADERS, "a name")
        kind = names.KIND[name]
        if kind == names.INVALID:
            raise EnvelopeError(Flaw.HEADERS, "a name is no token")
        if kind in _KINDS_REFUSED or names.LOWER[name] in _FIELDS_REFUSED:
            raise EnvelopeError(
                Flaw.HEADERS, "a field that the gateway makes, or that concerns one connection"
            )
        values = value if isinstance(value, list) else [value]
        if not values:
            raise EnvelopeError(Flaw.HEADERS, "a list without values")
        for each in values:
            fields.append((name, _octets(each, Flaw.HEADERS, "a value").strip(b" \t")))
    return fields


def _judge_head(method: bytes, url: bytes, host: bytes, fields: Fields, limits: HeadLimits) -> None:
    """The guard's judgement, and the size that the head would have on the wire."""
    block = b"".join([b"%b: %b\r\n" % field for field in fields])
    if len(fields) > limits.fields_max or len(block) + len(url) > limits.head_bytes_max:
        raise EnvelopeError(
            Flaw.HEAD_TOO_LARGE,
            f"more than {limits.fields_max} fields or {limits.head_bytes_max} octets",
        )
    head = RequestHead(method, url, 1, [(b"Host", host), *fields])
    try:
        # The block has one line end a field, unless a value brought some along.
        if judge_octets(block, ErrorKind.BAD_REQUEST) != len(fields):
            raise EnvelopeError(Flaw.HEADERS, "a line end in a value")
    except BadMessage as error:
        raise EnvelopeError(Flaw.HEADERS, error.detail) from None
    try:
        judge_request(head)
    except BadMessage as error:
        # The fields are judged already; what is left is the method's length, and the target.
        is_method = error.kind is ErrorKind.NOT_IMPLEMENTED
        raise EnvelopeError(Flaw.METHOD if is_method else Flaw.URL, error.detail) from None


# The rest.


def _body(document: dict[str, Any], bytes_max: int) -> bytes:
    if "body_base64" in document:
        coded = _octets(document["body_base64"], Flaw.BODY, "body_base64")
        if len(coded) > -(-bytes_max // 3) * 4:
            raise _too_large(bytes_max)
        try:
            body = binascii.a2b_base64(coded, strict_mode=True)
        except ValueError:
            raise EnvelopeError(Flaw.BODY, "body_base64 is no base64") from None
    else:
        body = _octets(document.get("body", ""), Flaw.BODY, "body")
    if len(body) > bytes_max:
        raise _too_large(bytes_max)
    return body


def _too_large(bytes_max: int) -> EnvelopeError:
    return EnvelopeError(Flaw.BODY_TOO_LARGE, f"a body has at most {bytes_max} octets")


def _body_from(document: dict[str, Any], limits: RecordLimits) -> BodyFrom | None:
    if "body_from" not in document:
        return None
    found = document["body_from"]
    if not isinstance(found, dict) or found.keys() != _BODY_FROM_KEYS:
        raise EnvelopeError(Flaw.BODY_FROM, "body_from has upstream, path, sha256 and bytes")
    upstream = _matching(found, "upstream", _is_upstream, Flaw.BODY_FROM)
    path = _matching(found, "path", _is_path, Flaw.BODY_FROM)
    sha256 = _matching(found, "sha256", _is_sha256, Flaw.BODY_FROM)
    size = found["bytes"]
    if not _is_number(size) or size != int(size) or size < 0:
        raise EnvelopeError(Flaw.BODY_FROM, "bytes is no count")
    if len(path) > limits.head.target_bytes_max:
        raise EnvelopeError(Flaw.BODY_FROM, "path is too long")
    if size > limits.body_bytes_max:
        raise _too_large(limits.body_bytes_max)
    return BodyFrom(upstream.decode(), path, bytes.fromhex(sha256.decode()), int(size))


def _expires_ms(document: dict[str, Any]) -> int:
    if "expires_at" not in document:
        return 0
    seconds = document["expires_at"]
    if not _is_number(seconds) or not 0 < seconds <= _EXPIRES_S_MAX:
        raise EnvelopeError(Flaw.EXPIRES_AT, "expires_at is no number of epoch seconds")
    return max(1, int(seconds * 1000))


def _is_number(value: Any) -> bool:
    """A finite number; True and False are ints in Python only, and 1e999 is read as infinity."""
    return not isinstance(value, bool) and isinstance(value, int | float) and isfinite(value)
