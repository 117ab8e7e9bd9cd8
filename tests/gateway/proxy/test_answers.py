"""The gateway's own answers, to the field."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.clock import MS, SECOND
from gateway.errors import ErrorKind, GatewayError
from gateway.h1.dates import HttpDate
from gateway.proxy.answers import error_answer, problem

WORKER: Any = SimpleNamespace(
    wall_ns=lambda: 784_111_777 * SECOND + 999 * MS, pseudonym=b"egressd-gw-1", date=HttpDate()
)


def split(answer: bytes) -> tuple[bytes, dict[bytes, bytes], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    line, *fields = head.split(b"\r\n")
    pairs = [tuple(field.split(b": ", 1)) for field in fields]
    assert len({name.lower() for name, _ in pairs}) == len(pairs)
    return line, dict(pairs), body


def test_an_answer_whole() -> None:
    error = GatewayError(ErrorKind.LIMITED, "no room", retry_after_ns=1_500 * MS + 1, limit="l")
    answer = error_answer(
        error,
        WORKER,
        close=True,
        head_only=False,
        request_id=b"id-1",
        upstream="api",
        waited_ns=2 * SECOND,
        attempts=1,
    )
    line, fields, body = split(answer)
    assert line == b"HTTP/1.1 429 Too Many Requests"
    assert fields == {
        b"Date": b"Sun, 06 Nov 1994 08:49:37 GMT",  # the example of RFC 9110 section 5.6.7
        b"Content-Type": b"application/problem+json",
        b"Content-Length": b"%d" % len(body),
        b"Cache-Control": b"no-store",
        b"X-Request-Id": b"id-1",
        b"Proxy-Status": b"egressd-gw-1; error=http_request_denied",
        b"Retry-After": b"2",
        b"retry-after-ms": b"1501",
        b"Connection": b"close",
    }
    assert json.loads(body) == {
        "type": "https://iana.org/assignments/http-problem-types#quota-exceeded",
        "title": "Rate limit reached",
        "status": 429,
        "detail": "no room",
        "said_by": "gateway",
        "reason": "limited",
        "violated-policies": ["l"],
        "upstream": "api",
        "limit": "l",
        "retry_after_ms": 1501,
        "waited_ms": 2000,
        "attempts": 1,
    }


@pytest.mark.parametrize(
    ("wait_ns", "seconds", "ms"),
    [(0, b"0", b"0"), (1, b"1", b"1"), (SECOND, b"1", b"1000"), (SECOND + 1, b"2", b"1001")],
)
def test_waits_are_rounded_up(wait_ns: int, seconds: bytes, ms: bytes) -> None:
    error = GatewayError(ErrorKind.PAUSED, retry_after_ns=wait_ns)
    _, fields, _ = split(
        error_answer(error, WORKER, close=False, head_only=False, request_id=b"id-1")
    )
    assert (fields[b"Retry-After"], fields[b"retry-after-ms"]) == (seconds, ms)
    assert b"Connection" not in fields


@pytest.mark.parametrize("kind", ErrorKind, ids=lambda kind: kind.name)
def test_every_kind_makes_an_answer_without_line_ends_of_others(kind: ErrorKind) -> None:
    """Neither details nor names can end a field or the head: they are in the body, quoted."""
    evil = 'a"\r\nSet-Cookie: x=1\r\n\r\n<script>\x00\u2028'
    error = GatewayError(kind, evil, limit=evil)
    answer = error_answer(
        error, WORKER, close=False, head_only=False, request_id=b"id-1", upstream=evil
    )
    line, fields, body = split(answer)
    assert line.startswith(b"HTTP/1.1 %d " % kind.status)
    assert b"Set-Cookie" not in fields
    assert int(fields[b"Content-Length"]) == len(body)
    assert body.isascii()
    document = json.loads(body)
    assert document["detail"] == document["limit"] == document["upstream"] == evil
    assert document["reason"] == kind.name.lower()
    assert (b"Proxy-Authenticate" in fields) is (kind is ErrorKind.CLIENT_UNKNOWN)
    assert b"Retry-After" not in fields


def test_a_head_says_the_same_without_the_body() -> None:
    error = GatewayError(ErrorKind.NO_ROUTE)
    whole = error_answer(error, WORKER, close=False, head_only=False, request_id=b"id-1")
    head = error_answer(error, WORKER, close=False, head_only=True, request_id=b"id-1")
    assert whole.startswith(head)
    assert head.endswith(b"\r\n\r\n")
    assert len(whole) > len(head)


def test_more_fields_come_along() -> None:
    more = [(b"RateLimit", b'"l";r=0;t=1')]
    error = GatewayError(ErrorKind.LIMITED, limit="l")
    _, fields, _ = split(
        error_answer(error, WORKER, close=False, head_only=True, request_id=b"id-1", more=more)
    )
    assert fields[b"RateLimit"] == b'"l";r=0;t=1'


def test_a_problem_says_only_what_is_known() -> None:
    assert problem(GatewayError(ErrorKind.NO_ROUTE), "", 0, 0) == {
        "type": "about:blank",
        "title": "No route for this request",
        "status": 404,
        "detail": "No route for this request",
        "said_by": "gateway",
        "reason": "no_route",
    }
