"""Results and dead letters: what they tell, what fits into them, and what never stands in them."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from gateway.h1.message import Fields
from gateway.spool.envelope import Envelope, RecordLimits, read_envelope
from gateway.spool.letters import (
    LETTER_BYTES_MAX,
    Course,
    Letter,
    Origin,
    Secrets,
    dead_letter,
    is_secret_name,
    result,
)
from gateway.spool.record import Result

ORIGIN = Origin("egress", 3, 41, 1_700_000_000_000, b"key", [("trace", b"t1"), ("none", None)])
COURSE = Course("api", 2, 1_700_000_001_000, 1_700_000_002_000, 1_700_000_002_500)
NOTHING = Secrets([])


def _envelope(**keys: Any) -> Envelope:
    return read_envelope(
        json.dumps({"method": "POST", "url": "https://api.test:8443/v1?q=1", **keys}).encode()
    )


def _response(body: bytes = b"", fields: Fields | None = None, *, is_cut: bool = False) -> Result:
    return Result(200, fields or [], body, 0, len(body) + is_cut, is_cut)


def _told(letter: Letter) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(letter.value)
    return found


def _size(letter: Letter) -> int:
    beside = sum(len(name.encode()) + len(value) for name, value in letter.headers)
    return len(letter.value) + len(letter.key or b"") + beside


def test_a_result() -> None:
    envelope = _envelope(id="job-1", idempotency_key="k-1", body="secret body")
    letter = result(ORIGIN, envelope, COURSE, _response(b"done", [(b"A", b"\xe9")]), NOTHING)
    assert letter.key == b"key"
    assert letter.headers == [
        ("trace", b"t1"),
        ("none", b""),
        ("egressd-topic", b"egress"),
        ("egressd-partition", b"3"),
        ("egressd-offset", b"41"),
        ("egressd-outcome", b"result"),
        ("egressd-status", b"200"),
    ]
    assert _told(letter) == {
        "outcome": "result",
        "record": {
            "topic": "egress",
            "partition": 3,
            "offset": 41,
            "timestamp": "2023-11-14T22:13:20.000+00:00",
        },
        "method": "POST",
        "url": "https://api.test:8443/v1",
        "id": "job-1",
        "idempotency_key": "k-1",
        "upstream": "api",
        "attempts": 2,
        "first_sent": "2023-11-14T22:13:21.000+00:00",
        "last_sent": "2023-11-14T22:13:22.000+00:00",
        "finished": "2023-11-14T22:13:22.500+00:00",
        "status": 200,
        "headers": [["A", "\xe9"]],
        "body": "done",
        "body_bytes": 4,
    }


def test_a_dead_letter_of_what_could_not_be_read() -> None:
    course = Course("", 0, 0, 0, 1_700_000_002_500)
    letter = dead_letter(ORIGIN._replace(timestamp_ms=-1), None, course, "bad_json", NOTHING, "why")
    assert _told(letter) == {
        "outcome": "dead",
        "reason": "bad_json",
        "detail": "why",
        "record": {"topic": "egress", "partition": 3, "offset": 41},
        "attempts": 0,
        "finished": "2023-11-14T22:13:22.500+00:00",
    }
    assert ("egressd-reason", b"bad_json") in letter.headers


def test_a_dead_letter_with_the_last_response() -> None:
    letter = dead_letter(
        ORIGIN, _envelope(), COURSE, "attempts", NOTHING, response=_response(b"\xff\x00")
    )
    told = _told(letter)
    assert (told["status"], told["body_base64"], told["body_bytes"]) == (200, "/wA=", 2)
    assert "body_cut" not in told


@pytest.mark.parametrize("timestamp_ms", [-1, 0, 2**63 - 1, 253_402_300_800_000])
def test_a_timestamp_that_is_none(timestamp_ms: int) -> None:
    letter = dead_letter(
        ORIGIN._replace(timestamp_ms=timestamp_ms), None, COURSE, "expired", NOTHING
    )
    assert "timestamp" not in _told(letter)["record"]


# What fits.


@pytest.mark.parametrize(
    "body",
    [b"a" * 500_000, b'"' * 500_000, b"\x01" * 500_000, "\u20ac".encode() * 170_000,
     b"\xff" * 500_000, b"a" + "\U0001f600".encode() * 130_000],
    ids=["ascii", "quotes", "controls", "euros", "octets", "four"],
)  # fmt: skip
@pytest.mark.parametrize("bytes_max", [100_000, 100_001, 100_002, 100_003])
def test_the_beginning_of_a_long_body(body: bytes, bytes_max: int) -> None:
    letter = result(ORIGIN, _envelope(), COURSE, _response(body), NOTHING, bytes_max)
    told = _told(letter)
    kept = told["body"].encode() if "body" in told else base64.b64decode(told["body_base64"])
    assert _size(letter) <= bytes_max
    assert body.startswith(kept)
    assert told["body_cut"] is True
    assert told["body_bytes"] == len(body)
    assert len(kept) > 70_000  # base64's three quarters, without what else there is


def test_the_greatest_of_all_fits() -> None:
    limits = RecordLimits()
    fields = [(b"x-%d" % number, b'"' * 1000) for number in range(100)]
    headers = [(f"{number:02}", b"v" * 254) for number in range(limits.record_headers_max)]
    origin = ORIGIN._replace(key=b"k" * limits.key_bytes_max, headers=headers)
    envelope = _envelope(url="http://a/" + "p" * 16_000, id="i" * 128, idempotency_key="k" * 255)
    letter = result(origin, envelope, COURSE, _response(b"\x00" * 10_000_000, fields), NOTHING)
    told = _told(letter)
    assert LETTER_BYTES_MAX - 1000 < _size(letter) <= LETTER_BYTES_MAX
    assert letter.key == origin.key
    assert letter.headers[: len(headers)] == headers
    assert told["headers_cut"] is True
    assert len(told["url"]) == 2048
    assert 0 < len(told["headers"]) < 100


def test_a_response_that_was_cut_before() -> None:
    letter = result(ORIGIN, _envelope(), COURSE, _response(b"abc", is_cut=True), NOTHING)
    assert (_told(letter)["body_cut"], _told(letter)["body_bytes"]) == (True, 4)


def test_key_and_headers_beyond_bounds_are_left_out() -> None:
    headers = [("a", b"b")] * 40 + [("c", b"d")]
    origin = ORIGIN._replace(key=b"k" * 2000, headers=headers)
    letter = dead_letter(origin, None, COURSE, "bad_record_key", NOTHING)
    assert letter.key is None
    assert [name for name, _ in letter.headers].count("a") == RecordLimits().record_headers_max
    origin = ORIGIN._replace(headers=[("a", b"b"), ("long", b"v" * 10_000), ("c", b"d")])
    letter = dead_letter(origin, None, COURSE, "bad_record_headers", NOTHING)
    assert [name for name, _ in letter.headers if not name.startswith("egressd-")] == ["a"]


# What never stands in them.

BASIC = "Basic " + base64.b64encode(b"user:pass phrase").decode()
SPELLINGS = [
    ("Authorization", "Bearer tok-12345678", ["tok-12345678", "Bearer tok-12345678"]),
    (
        "authorization",
        BASIC,
        [BASIC, BASIC.removeprefix("Basic "), "user:pass phrase", "pass phrase"],
    ),
    ("X-Api-Key", "key-12345678", ["key-12345678"]),
    ("Api-Key", "key-12345678", ["key-12345678"]),
    ("X-Auth-Token", 'k"y/12345678', ['k"y/12345678', 'k\\"y/12345678', "k%22y%2F12345678"]),
    ("X-Auth-Token", "key-12345678", ["key-12345678"]),
    ("Cookie", "a=cookie-1234; b=cookie-5678", ["cookie-1234", "cookie-5678"]),
]


@pytest.mark.parametrize(("name", "value", "spellings"), SPELLINGS)
def test_what_the_upstream_repeats(name: str, value: str, spellings: list[str]) -> None:
    injected = "injected-1234"
    for secret in [*spellings, injected]:
        envelope = _envelope(
            headers={name: value}, url=f"http://a/{injected}/x?key={injected}", id=injected
        )
        secrets = Secrets(envelope.fields, [injected.encode()])
        response = _response(
            f"<echo>{secret}</echo>".encode(),
            [(b"X-Echo", b"<" + secret.encode() + b">"), (b"Kept", b"1"), (b"Set-Cookie", b"s=1")],
        )
        origin = ORIGIN._replace(
            key=b"key of " + secret.encode(),
            headers=[("h", secret.encode()), (name, b"x"), (secret, b"1"), ("kept", b"2")],
        )
        for letter in (
            result(origin, envelope, COURSE, response, secrets),
            dead_letter(origin, envelope, COURSE, "attempts", secrets, response=response),
        ):
            assert secret.encode() not in letter.value
            assert letter.key is None
            theirs = [each for each in letter.headers if not each[0].startswith("egressd-")]
            assert theirs == [("kept", b"2")]
            told = _told(letter)
            assert told["body"] == "<echo>" + "*" * len(secret) + "</echo>"
            assert told["body_masked"] is True
            assert told["headers"] == [["Kept", "1"]]
            assert told["headers_cut"] is True
            assert told["url"] == "http://a/" + "*" * len(injected) + "/x"


def test_a_secret_at_the_place_where_a_body_is_cut() -> None:
    secret = b"secret-" + b"x" * 1000
    for bytes_max in range(60_000, 61_500, 100):
        body = b"a" * 59_000 + secret + b"b" * 10_000
        letter = result(
            ORIGIN, _envelope(), COURSE, _response(body), Secrets([], [secret]), bytes_max
        )
        assert b"secret-" not in letter.value


def test_short_values_are_no_secrets() -> None:
    secrets = Secrets([(b"Authorization", b"none"), (b"Cookie", b"a=1; b")], [b"true", b""])
    letter = result(ORIGIN, _envelope(), COURSE, _response(b"none of it is true, 1"), secrets)
    assert _told(letter)["body"] == "none of it is true, 1"
    assert letter.key == b"key"


def test_ours_cannot_be_claimed() -> None:
    origin = ORIGIN._replace(headers=[("egressd-topic", b"other"), ("Egressd-Reason", b"x")])
    letter = dead_letter(origin, None, COURSE, "expired", NOTHING)
    assert dict(letter.headers)["egressd-topic"] == b"egress"
    assert len(letter.headers) == 5


def test_names_of_secrets() -> None:
    for name in (b"Authorization", b"X-Api-Key", b"apikey", b"x_auth_token",
                 b"X-Amz-Security-Token", b"X-Api-Key-2", b"Cookie", b"Client-Secret"):  # fmt: skip
        assert is_secret_name(name), name
    for name in (b"WWW-Authenticate", b"X-RateLimit-Remaining-Tokens", b"Idempotency-Key",
                 b"Author", b"Accept", b""):  # fmt: skip
        assert not is_secret_name(name), name
