"""Heads and chunks as octets, and that our own decoders read them as they were meant."""

from __future__ import annotations

from typing import Any

from gateway.h1.encode import LAST_CHUNK, chunk, last_chunk, reason_phrase, request, response
from gateway.h1.message import Framing

FIELDS = [(b"Host", b"x"), (b"A", b"\xe9"), (b"A", b"")]


def test_request_head() -> None:
    assert request(b"GET", b"/a", FIELDS, Framing.NONE) == (
        b"GET /a HTTP/1.1\r\nHost: x\r\nA: \xe9\r\nA: \r\n\r\n"
    )
    assert request(b"PUT", b"*", [], Framing.CHUNKED) == (
        b"PUT * HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    )


def test_response_head() -> None:
    assert response(200, b"OK", [], Framing.LENGTH, False) == b"HTTP/1.1 200 OK\r\n\r\n"
    assert response(200, b"Fine", [], Framing.NONE, False) == b"HTTP/1.1 200 Fine\r\n\r\n"
    assert response(999, b"", [(b"A", b"b")], Framing.CHUNKED, True) == (
        b"HTTP/1.1 999 \r\nA: b\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    )


def test_reason_phrases() -> None:
    assert reason_phrase(429) == b"Too Many Requests"
    assert reason_phrase(299) == b""


def test_chunks() -> None:
    assert chunk(b"a" * 26) == (b"1a\r\n", b"a" * 26, b"\r\n")
    assert last_chunk([]) is LAST_CHUNK
    assert last_chunk([(b"A", b"b"), (b"C", b"d")]) == b"0\r\nA: b\r\nC: d\r\n\r\n"


def test_what_is_encoded_is_decoded_alike(requests: Any, sink: Any) -> None:
    requests.feed(
        request(b"POST", b"/", FIELDS, Framing.CHUNKED)
        + b"".join(chunk(b"hello") + chunk(b"!"))
        + last_chunk([(b"Sum", b"6")])
    )
    assert sink.heads[0].fields[:-1] == FIELDS
    assert sink.body == b"hello!"
    assert sink.ends == [[(b"Sum", b"6")]]


def test_responses_that_are_encoded_are_decoded_alike(responses: Any, sink: Any) -> None:
    responses.expect(b"GET")
    responses.feed(response(404, b"Not Found", [(b"Content-Length", b"2")], Framing.LENGTH, True))
    responses.feed(b"no")
    assert (sink.heads[0].status, sink.heads[0].reason) == (404, b"Not Found")
    assert sink.body == b"no"
    assert not responses.reusable
