"""What came of a record, as records: results and dead letters, and what never stands in them.

Their value is a JSON object (`conf/egressd.kafka.schema.json`), their key is the original's, and
their headers are the original's and ours (`egressd-topic`, `-partition`, `-offset`, `-outcome`,
`-reason` or `-status`; `-accepted` where a gateway wrote the original), so that they can be sorted
without being parsed.

Whoever reads these topics need not be who may use the credentials. So:

1. Nothing of the request goes into a letter but method, URL without its query (where some APIs take
   keys) and what identifies it. Neither its fields nor its body do; of a record that cannot be read
   nothing does: the original stands in its topic, at the place that the letter names.
2. Response fields that give or show a credential (`Set-Cookie` and the like) are left out, and so
   are headers of the original that are named as one.
3. What the upstream repeats is searched for the secrets that were sent to it (`Secrets`): they are
   struck out of the response and the URL, octet by octet; a header or field that has one is left
   out, and so is a key, which the result then has not.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from gateway.h1.message import Fields
from gateway.proxy.keys import CREDENTIAL_FIELDS
from gateway.spool.envelope import Envelope, RecordHeaders, RecordLimits
from gateway.spool.record import WALL_MS_MAX, Result, wall_time

__all__ = [
    "ACCEPTED",
    "LETTER_BYTES_MAX",
    "Course",
    "Letter",
    "Origin",
    "Secrets",
    "dead_letter",
    "is_secret_name",
    "mark_in",
    "result",
]

# What brokers and clients take unless told otherwise is 1 MiB with the batch's overhead (some 100
# octets), here for value, key and headers together.
LETTER_BYTES_MAX: Final = 1024 * 1024 - 4096
# Fields of a response; the gateway takes heads of as much.
FIELDS_BYTES_MAX: Final = 32 * 1024
URL_BYTES_MAX: Final = 2048
_OURS: Final = "egressd-"
# Who accepted a request finds its outcome by this one: it goes on as it is (see `outcomes`).
ACCEPTED: Final = "egressd-accepted"
MARK_BYTES_MAX: Final = 64

# Fewer octets are found in anything, and are no secret: NIST SP 800-63B section 5.1.1.1 asks for
# eight characters of what a user chooses.
SECRET_BYTES_MIN: Final = 8
_SECRET_FIELDS: Final = CREDENTIAL_FIELDS | {
    b"authentication-info",
    b"cookie",
    b"proxy-authentication-info",
    b"proxy-authorization",
    b"set-cookie",
}
# A field is a credential if one of its words is: X-Auth-Token, X-Amz-Security-Token, X-Api-Key-2.
# X-RateLimit-Remaining-Tokens and WWW-Authenticate are not.
_SECRET_WORDS: Final = frozenset(
    b"""apikey auth authorization cookie credential credentials passwd password secret session
    signature token""".split()
)


class Origin(NamedTuple):
    """Where the original stands, and what it has beside its value."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    headers: RecordHeaders


class Course(NamedTuple):
    """How its sending went."""

    upstream: str  # "": none was found
    attempts: int
    first_ms: int  # of its first send; 0: it was not sent
    last_ms: int
    finished_ms: int


class Letter(NamedTuple):
    """A record to be written."""

    key: bytes | None
    value: bytes
    headers: list[tuple[str, bytes]]


class Secrets:
    """The values that no letter may have: of a request's credentials, and those set by us."""

    __slots__ = ("_values",)

    def __init__(self, fields: Fields, injected: Iterable[bytes] = ()) -> None:
        """`fields` are the record's; `injected` are values that the configuration keeps secret."""
        found = set(injected)
        for name, value in fields:
            if is_secret_name(name):
                found |= _spellings(name.lower(), value)
        found |= {spelt for value in found for spelt in _escaped(value)}
        # The longest first: "Bearer x" is struck out whole, not only its end.
        kept = {value for value in found if len(value) >= SECRET_BYTES_MIN}
        self._values = sorted(kept, key=len, reverse=True)

    def mask(self, data: bytes) -> bytes:
        """`data` with `*` for each octet of a secret; as long as before."""
        for value in self._values:
            data = data.replace(value, b"*" * len(value))
        return data

    def are_in(self, data: bytes) -> bool:
        """Whether there is a secret in it."""
        return any(value in data for value in self._values)


def mark_in(headers: RecordHeaders) -> bytes:
    """The mark that a gateway gave a record that it wrote; b"": it has none."""
    for name, value in headers:
        if name == ACCEPTED and value is not None and len(value) <= MARK_BYTES_MAX:
            return value
    return b""


def is_secret_name(name: bytes) -> bool:
    """Whether a field or header is a credential, going by its name."""
    low = name.lower()
    if low in _SECRET_FIELDS:
        return True
    words = low.replace(b"_", b"-").split(b"-")
    return not _SECRET_WORDS.isdisjoint(words) or b"api-key" in b"-".join(words)


def _spellings(name: bytes, value: bytes) -> set[bytes]:
    """A credential's value as it may be repeated: whole, without its scheme, decoded, in parts."""
    found = {value}
    scheme, _, rest = value.partition(b" ")
    if rest:
        found.add(rest.strip())
    if scheme.lower() == b"basic":  # RFC 7617 section 2: user, colon, password, as base64
        try:
            pair = binascii.a2b_base64(rest.strip(), strict_mode=True)
        except ValueError:
            pair = b""
        found |= {pair, pair.partition(b":")[2]}
    if name == b"cookie":  # RFC 6265 section 4.2.1
        found |= {part.partition(b"=")[2].strip() for part in value.split(b";")}
    return found


def _escaped(value: bytes) -> tuple[bytes, bytes]:
    """A value as JSON texts and URLs have it."""
    text = json.dumps(value.decode("latin-1"), ensure_ascii=False)[1:-1]
    return text.encode("latin-1"), quote(value, safe="").encode()


def result(
    origin: Origin,
    envelope: Envelope,
    course: Course,
    response: Result,
    secrets: Secrets,
    bytes_max: int = LETTER_BYTES_MAX,
) -> Letter:
    """A request was answered. Of a body that is too long the beginning is kept, and that is said.

    `response` has its body whole (`parts` is 0); `bytes_max` is for value, key and headers.
    """
    extra = [("outcome", "result"), ("status", str(response.status))]
    return _letter(
        origin, envelope, course, {"outcome": "result"}, extra, response, secrets, bytes_max
    )


def dead_letter(
    origin: Origin,
    envelope: Envelope | None,
    course: Course,
    reason: str,
    secrets: Secrets,
    detail: str = "",
    response: Result | None = None,
    bytes_max: int = LETTER_BYTES_MAX,
) -> Letter:
    """A request was given up; `envelope` is None where the record could not be read.

    `response` is the last one that came, if any; `detail` is the gateway's own words.
    """
    value: dict[str, Any] = {"outcome": "dead", "reason": reason}
    if detail:
        value["detail"] = detail
    extra = [("outcome", "dead"), ("reason", reason)]
    return _letter(origin, envelope, course, value, extra, response, secrets, bytes_max)


def _letter(
    origin: Origin,
    envelope: Envelope | None,
    course: Course,
    value: dict[str, Any],
    extra: list[tuple[str, str]],
    response: Result | None,
    secrets: Secrets,
    bytes_max: int,
) -> Letter:
    key = origin.key
    if key is not None and (len(key) > RecordLimits().key_bytes_max or secrets.are_in(key)):
        key = None
    headers = _headers(origin, extra, secrets)
    value["record"] = {
        "topic": origin.topic,
        "partition": origin.partition,
        "offset": origin.offset,
    }
    if 0 < origin.timestamp_ms <= WALL_MS_MAX:  # a producer can write anything; -1: none
        value["record"]["timestamp"] = wall_time(origin.timestamp_ms)
    if envelope is not None:
        value |= _request(envelope, secrets)
    value |= _course(course)
    used = len(key or b"") + sum(len(name) + len(data) for name, data in headers)
    if response is not None:
        value |= _response(response, secrets)
        room = bytes_max - used - len(_json(value))
        value |= _body(secrets.mask(response.body), response, room)
    return Letter(key, _json(value), headers)


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _headers(
    origin: Origin, extra: list[tuple[str, str]], secrets: Secrets
) -> list[tuple[str, bytes]]:
    """The original's, as far as they are no secrets and within bounds, and ours."""
    limits = RecordLimits()
    kept: list[tuple[str, bytes]] = []
    left = limits.record_headers_bytes_max
    for name, data in origin.headers[: limits.record_headers_max]:
        octets = name.encode("utf-8", "replace")
        value = data or b""
        left -= len(octets) + len(value)
        if left < 0:
            break
        # A letter that is sent anew does not gather ours, and nobody else can claim them;
        # but for the mark, which is worth nothing without the id that it was made of.
        ours = name.lower().startswith(_OURS) and name != ACCEPTED
        if not (ours or is_secret_name(octets) or secrets.are_in(value) or secrets.are_in(octets)):
            kept.append((octets.decode(), value))
    place = [("topic", origin.topic), ("partition", origin.partition), ("offset", origin.offset)]
    return kept + [(_OURS + name, str(text).encode()) for name, text in (*place, *extra)]


def _request(envelope: Envelope, secrets: Secrets) -> dict[str, Any]:
    target = envelope.target
    path = target.path.partition(b"?")[0]
    url = b"%b://%b%b" % (target.scheme, envelope.host, path if path != b"*" else b"")
    found: dict[str, Any] = {
        "method": envelope.method.decode(),
        "url": secrets.mask(url)[:URL_BYTES_MAX].decode(),
    }
    if envelope.id:
        found["id"] = secrets.mask(envelope.id.encode()).decode()
    if envelope.idempotency_key:
        found["idempotency_key"] = secrets.mask(envelope.idempotency_key).decode()
    return found


def _course(course: Course) -> dict[str, Any]:
    found: dict[str, Any] = {"attempts": course.attempts, "finished": wall_time(course.finished_ms)}
    if course.upstream:
        found["upstream"] = course.upstream
    if course.first_ms:
        found["first_sent"] = wall_time(course.first_ms)
        found["last_sent"] = wall_time(course.last_ms)
    return found


def _response(response: Result, secrets: Secrets) -> dict[str, Any]:
    """Status and fields; a field's octets are told as ISO 8859-1 has them, so that none is lost."""
    fields: list[list[str]] = []
    left = FIELDS_BYTES_MAX
    is_whole = True
    for name, value in response.fields:
        left -= len(name) + len(value)
        if name.lower() in _SECRET_FIELDS or secrets.are_in(value) or left < 0:
            is_whole = False
        else:
            fields.append([name.decode("latin-1"), value.decode("latin-1")])
    found: dict[str, Any] = {"status": response.status, "headers": fields}
    if not is_whole:
        found["headers_cut"] = True
    return found


# What the keys of a body cost beside it: names, quotes, and a count of up to 20 digits.
_BODY_KEYS_BYTES: Final = 128


def _body(body: bytes, response: Result, room: int) -> dict[str, Any]:
    """The body's beginning, as text where it is text, within `room` octets of JSON."""
    room = max(0, room - _BODY_KEYS_BYTES)
    found: dict[str, Any] = {"body_bytes": response.body_bytes}
    text = _text(body[:room], is_cut=len(body) > room)
    if text is not None and len(_json(text)) <= room + len('""'):
        found["body"] = text
        kept = len(text.encode())
    else:
        kept = min(len(body), room // 4 * 3)
        found["body_base64"] = base64.b64encode(body[:kept]).decode()
    if response.is_cut or kept < len(body):
        found["body_cut"] = True
    if body != response.body:
        found["body_masked"] = True
    return found


def _text(data: bytes, *, is_cut: bool) -> str | None:
    """As text, without half a character at its end if it was cut; None: it is no UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        # The first octet that is wrong is one of the last three: what is missing was cut off.
        if is_cut and len(data) - error.start <= 3 and error.reason == "unexpected end of data":
            return data[: error.start].decode()
        return None
