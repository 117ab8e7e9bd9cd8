"""What is a request in a record of the requests topic, and by which word everything else goes."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from gateway.h1.codec import HeadLimits
from gateway.spool.envelope import (
    BodyFrom,
    EnvelopeError,
    Flaw,
    RecordLimits,
    idempotency_key_for,
    judge_body,
    read_envelope,
)

BASE = {"method": "POST", "url": "https://api.test/v1/charges?x=1"}
REFUSED = ["Host", "content-length", "Transfer-Encoding", "connection", "Keep-Alive", "TE",
           "Upgrade", "proxy-connection", "Expect", "Trailer", "Proxy-Authorization",
           "Idempotency-Key", "X-Expires-At"]  # fmt: skip
SMALL = RecordLimits(
    record_bytes_max=4096,
    key_bytes_max=16,
    record_headers_max=2,
    record_headers_bytes_max=32,
    head=HeadLimits(head_bytes_max=256, fields_max=4, target_bytes_max=64),
    body_bytes_max=12,
)
DIGEST = "ab" * 32
FROM = {"upstream": "store", "path": "/bodies/1?v=2", "sha256": DIGEST, "bytes": 7}


def _value(**keys: Any) -> bytes:
    return json.dumps({**BASE, **keys}).encode()


def test_the_least() -> None:
    envelope = read_envelope(_value())
    assert envelope.method == b"POST"
    assert envelope.target == (b"https", b"api.test", 443, b"/v1/charges?x=1")
    assert envelope.host == b"api.test"
    assert (envelope.fields, envelope.body, envelope.body_from) == ([], b"", None)
    assert (envelope.expires_ms, envelope.idempotency_key, envelope.id) == (0, b"", "")


def test_everything() -> None:
    envelope = read_envelope(
        _value(
            headers={"Content-Type": " text/plain ", "accept": ["a", "b\u00e9"]},
            body_base64="AAH/",
            expires_at=1700000000.25,
            idempotency_key='"k 1"',
            id="job-1",
        ),
        b"key",
        [("trace", b"1"), ("none", None)],
    )
    assert envelope.fields == [
        (b"Content-Type", b"text/plain"),
        (b"accept", b"a"),
        (b"accept", "b\u00e9".encode()),
    ]
    assert envelope.body == b"\x00\x01\xff"
    assert envelope.expires_ms == 1700000000250
    assert (envelope.idempotency_key, envelope.id) == (b'"k 1"', "job-1")


@pytest.mark.parametrize(
    ("method", "url", "host", "path"),
    [
        ("GET", "http://API.test:80", b"api.test", b"/"),
        ("GET", "https://api.test:8443?a", b"api.test:8443", b"/?a"),
        ("OPTIONS", "http://[::1]:1", b"[::1]:1", b"*"),
        ("GET", "http://a/%2e%2e//b|c", b"a", b"/%2e%2e//b|c"),
    ],
)
def test_targets(method: str, url: str, host: bytes, path: bytes) -> None:
    envelope = read_envelope(_value(method=method, url=url))
    assert (envelope.host, envelope.target.path) == (host, path)


def test_a_body_by_reference() -> None:
    body = b"content"
    digest = hashlib.sha256(body)
    envelope = read_envelope(_value(body_from=FROM | {"sha256": digest.hexdigest()}))
    wanted = BodyFrom("store", b"/bodies/1?v=2", digest.digest(), 7)
    assert envelope.body_from == wanted
    judge_body(wanted, body)
    for other in (b"contend", b"conten", b""):
        with pytest.raises(EnvelopeError) as caught:
            judge_body(wanted, other)
        assert caught.value.flaw is Flaw.BODY_DIFFERS


def test_a_text_is_sent_as_utf_8() -> None:
    assert read_envelope(_value(body='{"a": "\u20ac", [')).body == '{"a": "\u20ac", ['.encode()


def _without(key: str) -> bytes:
    return json.dumps({name: value for name, value in BASE.items() if name != key}).encode()


MALFORMED: list[tuple[bytes | None, Flaw]] = [
    (None, Flaw.NO_VALUE),
    (b"", Flaw.NO_VALUE),
    (b" " * 4097, Flaw.RECORD_TOO_LARGE),
    (b"{", Flaw.JSON),
    (b"\xff", Flaw.JSON),
    (_value().decode().encode("utf-16"), Flaw.JSON),
    (b"\xef\xbb\xbf" + _value(), Flaw.JSON),
    (b'{"method": NaN}', Flaw.JSON),
    (b'{"expires_at": ' + b"1" * 4000 + b".", Flaw.JSON),
    (_value() + b"{}", Flaw.JSON),
    (b"1", Flaw.SHAPE),
    (b"[]", Flaw.SHAPE),
    (b"[" * 4000, Flaw.SHAPE),
    (b'{"a":' * 4 + b"1" + b"}" * 4, Flaw.SHAPE),
    (b"[" + b"0," * 100 + b"0]", Flaw.SHAPE),
    (b'{"method": "GET", "method": "PUT", "url": "http://a"}', Flaw.SHAPE),
    (_value(headers={"a": "1"}).replace(b'"a": "1"', b'"a": "1", "a": "2"'), Flaw.SHAPE),
    (_value(expire_at=1), Flaw.UNKNOWN_KEY),
    (_without("method"), Flaw.MISSING_KEY),
    (_without("url"), Flaw.MISSING_KEY),
    (_value(method=1), Flaw.METHOD),
    (_value(method=""), Flaw.METHOD),
    (_value(method="GE T"), Flaw.METHOD),
    (_value(method="G\u00c4T"), Flaw.METHOD),
    (_value(method="A" * 65), Flaw.METHOD),
    (_value(method="CONNECT"), Flaw.METHOD),
    (_value(method="TRACE"), Flaw.METHOD),
    (_value(url=None), Flaw.URL),
    (_value(url="/path"), Flaw.URL),
    (_value(url="ftp://a/"), Flaw.URL),
    (_value(url="http://u:p@a/"), Flaw.URL),
    (_value(url="http:///a"), Flaw.URL),
    (_value(url="http://a:0/"), Flaw.URL),
    (_value(url="http://a:65536/"), Flaw.URL),
    (_value(url="http://a b/"), Flaw.URL),
    (_value(url="http://a/ b"), Flaw.URL),
    (_value(url="http://a/\r\nHost: b"), Flaw.URL),
    (_value(url="http://a/#f"), Flaw.URL),
    (_value(url="http://a/\u00e4"), Flaw.URL),
    (_value(url="http://[::g]/"), Flaw.URL),
    (_value(url="http://a/" + "a" * 60), Flaw.URL),
    (b'{"method": "GET", "url": "http://a/\\ud800"}', Flaw.URL),
    (_value(headers=[["a", "b"]]), Flaw.HEADERS),
    (_value(headers={"": "b"}), Flaw.HEADERS),
    (_value(headers={"a b": "b"}), Flaw.HEADERS),
    (_value(headers={"a:": "b"}), Flaw.HEADERS),
    (_value(headers={"a": 1}), Flaw.HEADERS),
    (_value(headers={"a": []}), Flaw.HEADERS),
    (_value(headers={"a": [1]}), Flaw.HEADERS),
    (_value(headers={"a": "b\r\nc: d"}), Flaw.HEADERS),
    (_value(headers={"a": "b\nc"}), Flaw.HEADERS),
    (_value(headers={"a": "b\0"}), Flaw.HEADERS),
    (_value(headers={"a": "\x7f"}), Flaw.HEADERS),
    (_value(headers={"a": ["b", "c\r\nd"]}), Flaw.HEADERS),
    (_value(headers={str(number): "b" for number in range(5)}), Flaw.HEAD_TOO_LARGE),
    (_value(headers={"a": ["b"] * 5}), Flaw.HEAD_TOO_LARGE),
    (_value(headers={"a": "b" * 256}), Flaw.HEAD_TOO_LARGE),
    (_value(body=1), Flaw.BODY),
    (_value(body=None), Flaw.BODY),
    (_value(body="", body_base64=""), Flaw.BODY),
    (_value(body_base64="", body_from=FROM), Flaw.BODY),
    (_value(body_base64="AA"), Flaw.BODY),
    (_value(body_base64="A\nAA"), Flaw.BODY),
    (_value(body_base64="AA==AAAA"), Flaw.BODY),
    (_value(body_base64="AAA-"), Flaw.BODY),
    (_value(body_base64="\u00e4AA="), Flaw.BODY),
    (b'{"method": "GET", "url": "http://a", "body": "\\udfff"}', Flaw.BODY),
    (_value(body="a" * 13), Flaw.BODY_TOO_LARGE),
    (_value(body="\u20ac" * 5), Flaw.BODY_TOO_LARGE),
    (_value(body_base64="A" * 20), Flaw.BODY_TOO_LARGE),
    (_value(body_from={}), Flaw.BODY_FROM),
    (_value(body_from=FROM | {"url": "http://b/"}), Flaw.BODY_FROM),
    (_value(body_from=FROM | {"upstream": "10.0.0.1:80"}), Flaw.BODY_FROM),
    (_value(body_from=FROM | {"upstream": ""}), Flaw.BODY_FROM),
    (_value(body_from=FROM | {"path": "http://b/"}), Flaw.BODY_FROM),
    (_value(body_from=FROM | {"path": "/a\r\n"}), Flaw.BODY_FROM),
    (_value(body_from=FROM | {"path": "/a#b"}), Flaw.BODY_FROM),
    (_value(body_from=FROM | {"path": "/" + "a" * 64}), Flaw.BODY_FROM),
    (_value(body_from=FROM | {"sha256": DIGEST.upper()}), Flaw.BODY_FROM),
    (_value(body_from=FROM | {"sha256": DIGEST + "\n"}), Flaw.BODY_FROM),
    (_value(body_from=FROM | {"bytes": -1}), Flaw.BODY_FROM),
    (_value(body_from=FROM | {"bytes": 1.5}), Flaw.BODY_FROM),
    (_value(body_from=FROM | {"bytes": True}), Flaw.BODY_FROM),
    (_value(body_from=FROM | {"bytes": "1"}), Flaw.BODY_FROM),
    (_value(body_from=FROM | {"bytes": 13}), Flaw.BODY_TOO_LARGE),
    (_value(expires_at="1"), Flaw.EXPIRES_AT),
    (_value(expires_at=True), Flaw.EXPIRES_AT),
    (_value(expires_at=0), Flaw.EXPIRES_AT),
    (_value(expires_at=-1), Flaw.EXPIRES_AT),
    (_value(expires_at=1700000000000), Flaw.EXPIRES_AT),
    (_value(expires_at=1).replace(b": 1}", b": 1e999}"), Flaw.EXPIRES_AT),
    (_value(idempotency_key=""), Flaw.IDEMPOTENCY_KEY),
    (_value(idempotency_key=" a"), Flaw.IDEMPOTENCY_KEY),
    (_value(idempotency_key="a\r\nb"), Flaw.IDEMPOTENCY_KEY),
    (_value(idempotency_key="a" * 256), Flaw.IDEMPOTENCY_KEY),
    (_value(id=1), Flaw.ID),
    (_value(id="a b"), Flaw.ID),
    (_value(id="a" * 129), Flaw.ID),
]


@pytest.mark.parametrize(("value", "flaw"), MALFORMED)
def test_malformed(value: bytes | None, flaw: Flaw) -> None:
    with pytest.raises(EnvelopeError) as caught:
        read_envelope(value, limits=SMALL)
    assert caught.value.flaw is flaw, caught.value


def test_each_word_has_a_case() -> None:
    elsewhere = {Flaw.RECORD_KEY, Flaw.RECORD_HEADERS, Flaw.BODY_DIFFERS}
    assert {flaw for _, flaw in MALFORMED} == set(Flaw) - elsewhere


@pytest.mark.parametrize("name", REFUSED)
def test_fields_that_the_gateway_makes(name: str) -> None:
    with pytest.raises(EnvelopeError) as caught:
        read_envelope(_value(headers={name: "1"}))
    assert caught.value.flaw is Flaw.HEADERS


@pytest.mark.parametrize(
    ("key", "headers", "flaw"),
    [
        (b"k" * 17, [], Flaw.RECORD_KEY),
        (None, [("a", b"")] * 3, Flaw.RECORD_HEADERS),
        (None, [("a", b"b" * 32)], Flaw.RECORD_HEADERS),
        (None, [("a" * 33, None)], Flaw.RECORD_HEADERS),
        (None, [("\ud800" * 33, None)], Flaw.RECORD_HEADERS),
    ],
)
def test_what_stands_beside_the_value_is_bounded(
    key: bytes | None, headers: list[tuple[str, bytes | None]], flaw: Flaw
) -> None:
    read_envelope(_value(), b"k" * 16, [("a", b"b"), ("c", None)], SMALL)
    with pytest.raises(EnvelopeError) as caught:
        read_envelope(_value(), key, headers, SMALL)
    assert caught.value.flaw is flaw


def test_the_greatest_of_each_fits() -> None:
    limits = RecordLimits()
    text = "\x01" * (limits.head.head_bytes_max // 2)
    envelope = read_envelope(
        _value(
            headers={f"x-{number}": ["\u00e9"] for number in range(limits.head.fields_max)},
            body_base64="AAAA" * (limits.body_bytes_max // 3) + "AA==",
        )
    )
    assert len(envelope.body) == limits.body_bytes_max
    assert len(envelope.fields) == limits.head.fields_max
    assert read_envelope(_value(body=text)).body == text.encode()
    one_list = _value(headers={"a": ["b"] * limits.head.fields_max}, body_from=FROM, expires_at=1,
                      idempotency_key="k", id="i")  # fmt: skip
    assert len(read_envelope(one_list).fields) == limits.head.fields_max


def test_the_key_of_a_record_without_one() -> None:
    key = idempotency_key_for("egress", 1, 23, 1700000000000)
    assert key == idempotency_key_for("egress", 1, 23, 1700000000000)
    assert len(key) == 34
    others = {
        idempotency_key_for("egress", 12, 3, 1700000000000),
        idempotency_key_for("egress", 1, 24, 1700000000000),
        idempotency_key_for("egress2", 1, 23, 1700000000000),
        idempotency_key_for("egress", 1, 23, 1700000000001),
        key,
    }
    assert len(others) == 5
