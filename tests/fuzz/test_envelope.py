"""Any octets are an envelope or an EnvelopeError, and the published schema says the same.

What the reader takes the schema allows, so what the schema refuses the reader refuses; what is
generated after the schema's words both take. All letters are as the schema says.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.conf.fields import NAME_PATTERN
from gateway.errors import ErrorKind
from gateway.h1.guard import judge_octets, judge_request
from gateway.h1.message import RequestHead
from gateway.spool.envelope import (
    KEYS,
    Envelope,
    EnvelopeError,
    Flaw,
    RecordLimits,
    read_envelope,
)
from gateway.spool.letters import (
    FIELDS_BYTES_MAX,
    LETTER_BYTES_MAX,
    URL_BYTES_MAX,
    Course,
    Letter,
    Origin,
    Secrets,
    dead_letter,
    result,
)
from gateway.spool.record import BODY_BYTES_MAX, Result

SCHEMA = json.loads((Path(__file__).parents[2] / "conf" / "egressd.kafka.schema.json").read_text())
LIMITS = RecordLimits()


def _validator(name: str) -> Any:
    document = {"$schema": SCHEMA["$schema"], "$defs": SCHEMA["$defs"], "$ref": f"#/$defs/{name}"}
    return jsonschema_rs.validator_for(document, validate_formats=True)


ENVELOPE = _validator("envelope")
LETTERS = {"result": _validator("result"), "dead": _validator("dead")}

_TOKEN = st.text("!#$%&'*+-.^_`|~09AZaz", min_size=1, max_size=12)
_VALUE = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=20)
_REFUSED = ("host", "te", "connection", "content-length", "expect", "trailer", "upgrade")
_NAME = _TOKEN.filter(lambda name: name.lower() not in _REFUSED)
_BODY = st.one_of(
    st.just({}),
    st.builds(lambda text: {"body": text}, st.text(st.characters(codec="utf-8"))),
    st.builds(lambda data: {"body_base64": base64.b64encode(data).decode()}, st.binary()),
    st.fixed_dictionaries(
        {
            "body_from": st.fixed_dictionaries(
                {
                    "upstream": st.from_regex(NAME_PATTERN.replace("$", r"\Z")),
                    "path": st.from_regex(r"\A/[!\"$-~]{0,20}\Z"),
                    "sha256": st.from_regex(r"\A[0-9a-f]{64}\Z"),
                    "bytes": st.integers(0, BODY_BYTES_MAX),
                }
            )
        }
    ),
)
_HEAD = st.fixed_dictionaries(
    {
        "method": _TOKEN.filter(lambda method: method not in ("CONNECT", "TRACE")),
        "url": st.from_regex(
            r"\Ahttps?://([a-z0-9._~-]{1,20}|\[::1\])(:[1-9][0-9]{0,3})?([/?][!\"$-~]{0,20})?\Z"
        ),
    },
    optional={
        "headers": st.dictionaries(
            _NAME, st.one_of(_VALUE, st.lists(_VALUE, min_size=1, max_size=3)), max_size=8
        ),
        "expires_at": st.one_of(
            st.integers(1, 10**11), st.floats(0, 10**11, exclude_min=True, allow_subnormal=False)
        ),
        "idempotency_key": st.from_regex(r"\A[!-~]([ -~]{0,20}[!-~])?\Z"),
        "id": st.from_regex(r"\A[!-~]{1,128}\Z"),
    },
)
_ENVELOPES = st.builds(lambda head, body: head | body, _HEAD, _BODY)
_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)
    ),
    max_leaves=8,
)


def _read(value: bytes, **limits: Any) -> Envelope | None:
    """The envelope; None where there is none. Whatever is taken the schema has to allow."""
    try:
        envelope = read_envelope(value, **limits)
    except EnvelopeError as error:
        assert error.flaw in Flaw
        assert error.detail
        return None
    ENVELOPE.validate(json.loads(value))
    _is_sendable(envelope)
    return envelope


def _is_sendable(envelope: Envelope) -> None:
    """It is a head that the guard takes from any client, and that cannot be split in two."""
    fields = [(b"Host", envelope.host), *envelope.fields]
    head = RequestHead(envelope.method, envelope.target.path, 1, fields)
    judge_request(head)
    block = b"".join([b"%b:%b\r\n" % field for field in fields])
    assert judge_octets(block, ErrorKind.BAD_REQUEST) == len(fields)
    assert not any(octet in b" \r\n" for octet in envelope.method + envelope.target.path)
    assert not head.connection
    assert len(envelope.body) <= BODY_BYTES_MAX


@given(st.one_of(st.binary(), st.text().map(lambda text: text.encode(errors="surrogatepass"))))
def test_any_octets(value: bytes) -> None:
    _read(value)


@given(st.text('{}[]",:\\ \n0eE.-tnu', max_size=60))
def test_octets_of_json(text: str) -> None:
    _read(text.encode())


@given(_JSON)
def test_any_json(value: Any) -> None:
    _read(json.dumps(value).encode())


@given(_ENVELOPES)
def test_what_is_written_after_the_schema(document: dict[str, Any]) -> None:
    ENVELOPE.validate(document)
    for ascii_only in (True, False):
        assert _read(json.dumps(document, ensure_ascii=ascii_only).encode()) is not None


@given(_ENVELOPES, st.sampled_from(sorted(KEYS | {"header", ""})), _JSON)
def test_one_key_is_something_else(document: dict[str, Any], key: str, other: Any) -> None:
    _read(json.dumps({**document, key: other}).encode())


@given(_ENVELOPES, st.data())
def test_one_text_is_something_else(document: dict[str, Any], data: st.DataObject) -> None:
    key = data.draw(st.sampled_from([k for k, v in document.items() if isinstance(v, str)]))
    text = document[key]
    at = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(at, len(text)))
    _read(json.dumps({**document, key: text[:at] + data.draw(st.text()) + text[end:]}).encode())


@given(_ENVELOPES, st.data())
def test_damaged(document: dict[str, Any], data: st.DataObject) -> None:
    value = json.dumps(document, ensure_ascii=False).encode()
    at = data.draw(st.integers(0, len(value)))
    end = data.draw(st.integers(at, len(value)))
    _read(value[:at] + data.draw(st.binary(max_size=5)) + value[end:])


MOST = LIMITS.record_bytes_max
HEAD = b'{"method":"POST","url":"https://a/b","body":"'
GREAT = {
    "quotes": b'"' * MOST,
    "escaped quotes": b'"' + b'\\"' * (MOST // 2 - 1),
    "backslashes": b'"' + b"\\" * (MOST - 1),
    "lists": b"[" * MOST,
    "objects": b'{"a":' * (MOST // 5),
    "keys": b"{" + b",".join(b'"%d":1' % number for number in range(10**6)) + b"}",
    "numbers": b"[" + b"0," * (MOST // 2 - 1) + b"0",
    "digits": b'{"expires_at":' + b"1" * (MOST - 20) + b"}",
    "exponent": b'{"expires_at":1e' + b"1" * (MOST - 20) + b"}",
    "white space": b" " * MOST,
    "url": b'{"method":"GET","url":"http://' + b"a" * (MOST - 40) + b'"}',
    "surrogates": HEAD + b"\\ud800" * (MOST // 7) + b'"}',
    "text": HEAD + b"a" * (BODY_BYTES_MAX + 1) + b'"}',
    "one more": b" " * (MOST + 1),
}


@pytest.mark.parametrize("name", GREAT)
def test_the_greatest_records_take_one_pass(name: str) -> None:
    """Some 0.1 s each at most; with a second pass for each octet the end would not be seen."""
    assert _read(GREAT[name]) is None


# Letters.

_OCTETS = st.binary(max_size=40)
_FIELDS = st.lists(st.tuples(_NAME.map(str.encode), _OCTETS), max_size=6)
_MS = st.integers(0, 253_402_300_799_999)
_ORIGINS = st.builds(
    Origin,
    topic=st.from_regex(r"\A[a-zA-Z0-9._-]{1,40}\Z"),
    partition=st.integers(0, 2**31 - 1),
    offset=st.integers(0, 2**63 - 1),
    timestamp_ms=st.integers(-(2**63), 2**63 - 1),
    key=st.none() | st.binary(max_size=2000),
    headers=st.lists(
        st.tuples(st.text(max_size=20), st.none() | st.binary(max_size=400)), max_size=40
    ),
)
_RESPONSES = st.builds(
    lambda status, fields, body, more: Result(
        status, fields, body, 0, len(body) + more, is_cut=bool(more)
    ),
    st.integers(200, 599),
    _FIELDS,
    st.one_of(st.binary(), st.text().map(lambda text: text.encode(errors="replace"))),
    st.integers(0, 3),
)
_COURSES = st.builds(Course, st.just("api"), st.integers(0, 99), _MS.filter(bool), _MS, _MS)


def _judge(letter: Letter) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(letter.value)
    LETTERS[told["outcome"]].validate(told)
    jsonschema_rs.validator_for(SCHEMA).validate(told)
    return told


@given(_ORIGINS, _ENVELOPES, _COURSES, _RESPONSES, _OCTETS, st.sampled_from(Flaw))
def test_letters_are_as_the_schema_says(
    origin: Origin,
    document: dict[str, Any],
    course: Course,
    response: Result,
    injected: bytes,
    flaw: Flaw,
) -> None:
    envelope = read_envelope(json.dumps(document).encode())
    secrets = Secrets(envelope.fields, [injected])
    told = _judge(result(origin, envelope, course, response, secrets))
    assert told.get("body_cut", False) == response.is_cut
    _judge(dead_letter(origin, envelope, course, "attempts", secrets, "", response))
    never = course._replace(upstream="", first_ms=0, last_ms=0)
    letter = dead_letter(origin, None, never, flaw, secrets, "why")
    assert "method" not in _judge(letter)
    beside = sum(len(name.encode()) + len(data) for name, data in letter.headers)
    assert len(letter.value) + len(letter.key or b"") + beside <= LETTER_BYTES_MAX


def test_the_schema_says_what_the_code_says() -> None:
    jsonschema_rs.meta.validate(SCHEMA)
    named = SCHEMA["$defs"]
    properties = named["envelope"]["properties"]
    assert set(properties) == KEYS
    assert named["flaw"]["enum"] == list(Flaw)
    assert properties["headers"]["maxProperties"] == LIMITS.head.fields_max
    assert properties["url"]["maxLength"] == LIMITS.head.target_bytes_max
    assert LIMITS.head.head_bytes_max == 32 * 1024
    assert "at most 32 KiB" in properties["headers"]["description"]
    assert properties["body"]["maxLength"] == LIMITS.body_bytes_max
    reference = properties["body_from"]["properties"]
    assert reference["bytes"]["maximum"] == LIMITS.body_bytes_max
    assert reference["upstream"]["pattern"] == NAME_PATTERN
    assert properties["body_base64"]["maxLength"] == -(-LIMITS.body_bytes_max // 3) * 4
    letter = named["letter"]["properties"]
    assert letter["url"]["maxLength"] == URL_BYTES_MAX
    assert FIELDS_BYTES_MAX == 32 * 1024
    assert "32 KiB" in letter["headers_cut"]["description"]
