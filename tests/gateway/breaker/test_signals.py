"""The vectors gathered from real APIs, what they leave open, and garbage."""

from __future__ import annotations

import gzip
import json
import zlib
from datetime import timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.breaker.providers import PROVIDERS, recognised
from gateway.breaker.signals import (
    PASS,
    Decision,
    Profile,
    Signal,
    profile,
    read_signal,
)

S = 1_000_000_000
NOW_S = 1_795_500_000  # 2026-11-24 06:00:00 UTC, as in the vectors
CAP_S = 3 * 3600  # above the longest wait in the vectors, 5,400 s
# The gathered vectors, and in the same form those that hold each rule and provider to the table.
VECTORS: list[dict[str, Any]] = [
    vector
    for name in ("ratelimit_signals.json", "more_signals.json")
    for vector in json.loads(Path(__file__).with_name(name).read_text())
]


def profile_of(name: str) -> Profile:
    key, _, unit = name.partition("=")
    if key == "retry_after_unit":
        return profile("generic", retry_after_unit=unit, pause_max_ns=CAP_S * S)
    if key == "reset_unit":
        return profile("generic", reset_unit=unit, pause_max_ns=CAP_S * S)
    return profile(name, pause_max_ns=CAP_S * S)


def read(
    status: int,
    fields: dict[str, str] | list[tuple[str, str]],
    name: str = "generic",
    body: str | bytes | None = None,
    now_s: int = NOW_S,
) -> Signal:
    pairs = fields.items() if isinstance(fields, dict) else fields
    raw = [(k.encode("latin-1"), v.encode("utf-8")) for k, v in pairs]
    octets = body.encode() if isinstance(body, str) else body
    return read_signal(status, raw, profile_of(name), now_s * S, octets)


@pytest.mark.parametrize("vector", VECTORS, ids=[v["id"] for v in VECTORS])
def test_vector(vector: dict[str, Any]) -> None:
    signal = read(
        vector["status"],
        [tuple(pair) for pair in vector["headers"]],
        vector["profile"],
        vector["body"],
        vector["now"],
    )
    assert signal.decision.value == vector["decision"]
    assert signal.scope == vector["scope"]
    told = vector["wait_s"]
    if vector["decision"] in ("pass", "state"):
        assert signal.wait_ns is None  # the vectors say 0 or nothing for "no pause"
        assert told in (None, 0)
    elif told is None:
        assert signal.wait_ns is None
    elif told == "CAP" or told == "UNTIL_MIDNIGHT_ACCOUNT_TZ":
        assert signal.wait_ns == CAP_S * S  # 06:00: midnight is beyond the cap in any time zone
    else:
        assert signal.wait_ns == round(told * S)


def wait_s(signal: Signal) -> float | None:
    return None if signal.wait_ns is None else signal.wait_ns / S


def test_what_is_learned() -> None:
    assert read(429, {"Retry-After": "1"}).learns
    assert read(503, {}, "aws", "<Code>SlowDown</Code>").learns
    assert not read(503, {"Retry-After": "1"}).learns  # asks for time, not for less
    assert not read(529, {"Retry-After": "1"}).learns
    assert not read(429, {"X-RateLimit-Scope": "shared"}, "discord").learns


def test_what_pauses() -> None:
    assert read(429, {}).pauses
    assert read(529, {}).pauses
    assert read(429, {"x-should-retry": "false", "Retry-After": "3"}).pauses
    assert not read(429, {}, "openai", '{"code": "insufficient_quota"}').pauses
    spent = [(b"x-ratelimit-remaining", b"0"), (b"x-ratelimit-reset", b"5")]
    assert not read_signal(200, spent, profile("generic"), NOW_S * S).pauses
    assert read_signal(200, spent, profile("generic", preempt=True), NOW_S * S).pauses


def test_the_upstreams_word_on_retrying() -> None:
    assert read(429, {"Stripe-Should-Retry": "true"}, "stripe").may_retry is True
    assert read(500, {"x-should-retry": "FALSE"}).may_retry is False
    assert read(409, {"x-should-retry": "false"}).decision is Decision.NO_RETRY
    assert read(404, {"x-should-retry": "false"}) == Signal(Decision.PASS, may_retry=False)
    assert read(429, {"x-should-retry": "maybe"}).may_retry is None


def test_concurrency() -> None:
    assert read(429, {"Stripe-Rate-Limited-Reason": "global-concurrency"}, "stripe").concurrency
    assert not read(429, {"Stripe-Rate-Limited-Reason": "global-rate"}, "stripe").concurrency
    assert read(429, {"Twilio-Concurrent-Requests": "9"}, "twilio").concurrency
    body = "Too many concurrent requests; secondary rate limit"
    assert read(403, {}, "github", body).concurrency


@pytest.mark.parametrize(
    ("fields", "advertised"),
    [
        ({"RateLimit": '"a";r=7;t=5', "RateLimit-Policy": '"a";q=10;w=5'}, (10, 7, 5 * S)),
        ({"RateLimit": "limit=10, remaining=3, reset=4"}, (10, 3, 4 * S)),
        ({"x-ratelimit-limit": "1, 1;w=60", "x-ratelimit-remaining": "1"}, (1, 1, None)),
        ({"X-Shopify-Shop-Api-Call-Limit": "32/40"}, (40, 8, None)),
        ({"X-HubSpot-RateLimit-Max": "100", "X-HubSpot-RateLimit-Remaining": "9"}, (100, 9, None)),
        ({"x-ratelimit-remaining-requests": "4", "x-ratelimit-reset-requests": "1s"}, (None, 4, S)),
        ({"X-Shopify-Shop-Api-Call-Limit": "x/40", "rate": ""}, None),
    ],
)
def test_advertised(fields: dict[str, str], advertised: tuple[int | None, ...] | None) -> None:
    for status in (200, 404):
        assert read(status, fields).advertised == advertised


def test_midnight_is_the_accounts() -> None:
    fields = [(b"X-HubSpot-RateLimit-Daily-Remaining", b"0")]
    for hours, left_h in ((-7, 1), (-6.5, 0.5), (0, 18), (5, 13)):  # it is 06:00 in UTC
        zone = timezone(timedelta(hours=hours))
        of = profile("hubspot", time_zone=zone, pause_max_ns=24 * 3600 * S)
        assert read_signal(429, fields, of, NOW_S * S).wait_ns == left_h * 3600 * S


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_compressed_body_is_read(coding: str) -> None:
    plain = b'{"retry_after": 0.25}'
    body = gzip.compress(plain) if coding == "gzip" else zlib.compress(plain)
    signal = read(429, {"Retry-After": "1", "Content-Encoding": coding}, "discord", body)
    assert wait_s(signal) == 0.25
    assert wait_s(read(429, {"Content-Encoding": coding}, "discord", body[:-9])) in (0.25, None)


def test_a_bomb_stays_small() -> None:
    body = gzip.compress(b"x" * 50_000_000)[:16384]
    assert read(429, {"Content-Encoding": "gzip"}, "discord", body).decision is Decision.THROTTLE


def test_a_body_cut_off_is_still_read() -> None:
    body = '{"error":{"code":403,"errors":[{"reason":"rateLimitExceeded"},{"dom'
    assert read(403, {}, "google", body).decision is Decision.THROTTLE


def test_operators_statuses() -> None:
    of = profile("generic", throttle_statuses=frozenset((599,)))
    assert read_signal(599, [], of, NOW_S * S).decision is Decision.THROTTLE


@pytest.mark.parametrize(
    ("field", "name"),
    [
        ("X-GitHub-Request-Id", "github"),
        ("openai-processing-ms", "openai"),
        ("Anthropic-RateLimit-Requests-Limit", "anthropic"),
        ("Stripe-Version", "stripe"),
        ("X-Shopify-Shop-Api-Call-Limit", "shopify"),
        ("X-HubSpot-RateLimit-Max", "hubspot"),
        ("X-RateLimit-NearLimit", "atlassian"),
        ("X-RateLimit-Bucket", "discord"),
        ("x-amzn-RequestId", "aws"),
        ("x-ms-ratelimit-remaining-subscription-reads", "azure"),
        ("zendesk-ratelimit-tickets-index", "zendesk"),
        ("X-Okta-Request-Id", "okta"),
        ("Twilio-Concurrent-Requests", "twilio"),
        ("X-RateLimit-Remaining", None),
        ("My-Stripe-Version", None),
        ("Retry-After", None),
    ],
)
def test_auto_goes_by_the_names_of_fields(field: str, name: str | None) -> None:
    assert recognised([(b"Date", b""), (field.encode(), b"1")]) == name


def test_auto_reads_the_dialect_that_it_recognises() -> None:
    """A GitHub at a host of one's own; a name that the operator gave is not doubted."""
    fields = [(b"X-GitHub-Request-Id", b"1"), (b"X-RateLimit-Remaining", b"0")]
    at = profile("auto", "github.example")
    assert (at.name, at.recognises) == ("generic", True)
    assert read_signal(403, fields, at, NOW_S * S).decision is Decision.THROTTLE
    assert read_signal(403, fields, profile("generic"), NOW_S * S).decision is Decision.PASS
    assert not profile("auto", "api.github.com").recognises
    assert at.spoken_by("github") == profile("github")


def test_auto_goes_by_host() -> None:
    assert profile("auto", "api.openai.com").name == "openai"
    assert profile("auto", "Shop.MyShopify.com.").name == "shopify"
    assert profile("auto", "evilslack.com").name == "generic"
    assert profile("auto", "sqs.eu-west-1.amazonaws.com").name == "aws"


@pytest.mark.parametrize("wrong", [{"name": "nobody"}, {"name": "x", "reset_unit": "min"}])
def test_unknown_words_are_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError):
        profile(**wrong)


def test_when_the_body_is_wanted() -> None:
    assert 429 in PROVIDERS["discord"].body_statuses
    assert 200 not in PROVIDERS["discord"].body_statuses
    assert 200 in PROVIDERS["shopify"].body_statuses
    assert 429 not in PROVIDERS["generic"].body_statuses


def test_a_plain_success_is_the_one_constant() -> None:
    assert read(200, {"Content-Type": "text/plain", "Date": "x"}) is PASS
    assert read(301, {"Retry-After": "10"}) is PASS


NAMES = st.sampled_from(
    [
        b"Retry-After", b"retry-after-ms", b"RateLimit", b"RateLimit-Policy", b"RateLimit-Reset",
        b"x-ratelimit-remaining", b"x-ratelimit-reset", b"x-ratelimit-limit", b"Date", b"Age",
        b"x-ratelimit-remaining-tokens", b"x-ratelimit-reset-tokens", b"Content-Encoding",
        b"anthropic-ratelimit-unified-reset", b"RateLimit-ResetTime", b"X-RateLimit-Reset-After",
        b"zendesk-ratelimit-a", b"X-Shopify-Shop-Api-Call-Limit", b"x-amzn-errortype",
        b"X-HubSpot-RateLimit-Daily-Remaining", b"RateLimit-Reason", b"x-should-retry",
        b"x-ms-ratelimit-remaining-\xff", b"Stripe-Rate-Limited-Reason", b"X-RateLimit-Scope",
        b"x-hubspot-ratelimit-remaining", b"x-hubspot-ratelimit-interval-milliseconds",
    ]
)  # fmt: skip
NUMBERS = st.one_of(
    st.integers(-(10**30), 10**30).map(lambda n: str(n).encode()),
    st.floats().map(lambda x: repr(x).encode()),
)
VALUES = st.one_of(
    st.binary(max_size=40),
    NUMBERS,
    st.text(alphabet='0123456789.,;:=-+TZGMTr t"hms\u00b5', max_size=40).map(str.encode),
    st.tuples(NUMBERS, NUMBERS).map(lambda p: b'"a";r=%b;t=%b' % p),
    st.sampled_from([b"0", b"gzip", b"deflate", b'"a";r=@999999999999999', b"9" * 5000]),
    st.datetimes().map(lambda d: d.isoformat().encode()),
    st.datetimes().map(lambda d: d.strftime("%a, %d %b %Y %H:%M:%S GMT").encode()),
)


@given(
    status=st.one_of(st.sampled_from([200, 400, 403, 429, 503, 529]), st.integers(-1, 1000)),
    fields=st.lists(st.tuples(NAMES, VALUES), max_size=12),
    name=st.sampled_from(["auto", *sorted(PROVIDERS)]),
    body=st.one_of(st.none(), st.binary(max_size=60), VALUES.map(lambda v: b'{"retry_after":' + v)),
    now_s=st.sampled_from([0, NOW_S, 10**11]),
)
def test_garbage_never_raises(
    status: int,
    fields: list[tuple[bytes, bytes]],
    name: str,
    body: bytes | None,
    now_s: int,
) -> None:
    of = profile(name, pause_max_ns=3600 * S)
    signal = read_signal(status, fields, of, now_s * S, body)
    assert signal.wait_ns is None or 0 <= signal.wait_ns <= 3600 * S
    assert type(signal.wait_ns) in (int, type(None))
    if signal.advertised is not None:
        assert all(figure is None or figure >= 0 for figure in signal.advertised)
