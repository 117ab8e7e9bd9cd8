"""One suite for every codec: the contract of gateway/h1/codec.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gateway.errors import ErrorKind
from gateway.h1.codec import BadMessage, Codec, HeadLimits, load_codec
from gateway.h1.message import Framing

GET = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = (
    b"PUT /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5;note=1\r\nhello\r\n6\r\n world\r\n0\r\nSum: 11\r\n\r\n"
)
CHUNKED_OK = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nyo\r\n0\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


def pieces_of(octets: bytes) -> list[bytes]:
    return [octets[i : i + 1] for i in range(len(octets))]


# --- Requests


def test_a_head_is_told_as_received(requests: Any, sink: Any) -> None:
    requests.feed(b"GET /a?b=%20c HTTP/1.1\r\nHoSt: x:80\r\nX-B: \xe9 t\t\r\nX-B:\r\n\r\n")
    head = sink.heads[0]
    assert (head.method, head.target, head.minor) == (b"GET", b"/a?b=%20c", 1)
    assert head.fields == [(b"HoSt", b"x:80"), (b"X-B", b"\xe9 t"), (b"X-B", b"")]
    assert head.framing is Framing.NONE
    assert head.host == b"x:80"
    assert head.keep_alive
    assert sink.ends == [[]]


@pytest.mark.parametrize("split", [pieces_of, lambda octets: [octets]])
def test_bodies_are_framed(requests: Any, sink: Any, split: Any) -> None:
    for octets, body, trailers in (
        (POST, b"hello", []),
        (CHUNKED, b"hello world", [(b"Sum", b"11")]),
        (GET, b"", []),
    ):
        sink.pieces.clear()
        for piece in split(octets):
            requests.feed(piece)
        assert sink.body == body
        assert sink.ends[-1] == trailers
        requests.next_message()
    assert len(sink.ends) == 3


def test_a_piece_that_is_all_body_is_not_copied(requests: Any, sink: Any) -> None:
    requests.feed(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
    piece = bytes(b"abc" * 2)
    requests.feed(piece)
    assert sink.pieces[0] is piece


def test_pipelined_requests_wait_for_next_message(requests: Any, sink: Any) -> None:
    requests.feed(GET + POST + CHUNKED + GET[:10])
    assert [head.target for head in sink.heads] == [b"/a"]
    assert requests.buffered == len(POST + CHUNKED) + 10
    requests.feed(GET[10:])
    assert len(sink.heads) == 1
    requests.next_message()
    assert sink.body == b"hello"
    assert requests.buffered == len(CHUNKED + GET)
    requests.next_message()
    requests.next_message()
    assert requests.buffered == 0
    assert [head.target for head in sink.heads] == [b"/a", b"/b", b"/c", b"/a"]
    assert len(sink.ends) == 4


def test_next_message_inside_a_message_is_the_callers_fault(requests: Any) -> None:
    requests.feed(POST[:-1])
    with pytest.raises(RuntimeError):
        requests.next_message()


def test_rfc9112_2_2_one_empty_line_before_a_request_line(
    requests: Any, sink: Any, refused: Callable[..., BadMessage]
) -> None:
    requests.feed(b"\r\n" + GET)
    requests.next_message()
    requests.feed(b"\r")
    requests.feed(b"\n" + GET)
    assert len(sink.heads) == 2
    requests.next_message()
    assert refused(requests.feed, b"\r\n\r\n" + GET).kind is ErrorKind.BAD_REQUEST


def test_an_upgrade_with_a_body_has_its_body(requests: Any, sink: Any) -> None:
    requests.feed(
        b"POST / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Content-Length: 5\r\n\r\nhello\x81\x00"
    )
    assert sink.heads[0].upgrade == b"websocket"
    assert sink.body == b"hello"
    assert requests.take_rest() == b"\x81\x00"
    assert requests.buffered == 0
    assert requests.take_rest() == b""


def test_octets_behind_connect_belong_to_the_tunnel(requests: Any, sink: Any) -> None:
    requests.feed(b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n\x16\x03")
    requests.feed(b"\x01")
    assert sink.ends == [[]]
    assert requests.take_rest() == b"\x16\x03\x01"


def test_finding_2_connect_in_1_0_needs_no_host(requests: Any, sink: Any) -> None:
    requests.feed(b"CONNECT a.example:443 HTTP/1.0\r\n\r\n")
    assert sink.heads[0].target == b"a.example:443"
    assert not sink.heads[0].keep_alive


def test_a_refused_decoder_stays_refused(requests: Any, refused: Callable[..., BadMessage]) -> None:
    assert refused(requests.feed, b"GET / HTTP/1.1\r\n\r\n").kind is ErrorKind.BAD_REQUEST
    assert refused(requests.feed, GET).kind is ErrorKind.BAD_REQUEST
    requests.eof()


@pytest.mark.parametrize(
    "begun",
    [
        b"\x16\x03\x01\x02\x00",  # TLS on a plain port
        b"GET / HTTP/1.1\n",
        b"GET / HTTP/1.1\r\nHost: x\rA",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: \x00",
    ],
)
def test_what_can_become_no_head_is_refused_at_once(
    requests: Any, refused: Callable[..., BadMessage], begun: bytes
) -> None:
    for piece in pieces_of(begun)[:-1]:
        try:
            requests.feed(piece)
        except BadMessage as error:
            assert error.kind is ErrorKind.BAD_REQUEST
            return
    assert refused(requests.feed, begun[-1:]).kind is ErrorKind.BAD_REQUEST


@pytest.mark.parametrize(
    ("octets", "clean"),
    [(b"", True), (b"\r\n", True), (GET, True), (GET[:-1], False), (POST[:-1], False),
     (CHUNKED[:-1], False), (CHUNKED[:-20], False)],
)  # fmt: skip
def test_rfc9112_8_eof_inside_a_request(
    requests: Any, refused: Callable[..., BadMessage], octets: bytes, clean: bool
) -> None:
    requests.feed(octets)
    if clean:
        requests.eof()
    else:
        assert refused(requests.eof).clause == "RFC 9112 section 8"


def test_eof_is_remembered_for_a_pipelined_request(
    requests: Any, sink: Any, refused: Callable[..., BadMessage]
) -> None:
    requests.feed(GET + GET + POST[:-1])
    requests.eof()
    requests.next_message()
    assert len(sink.ends) == 2
    assert refused(requests.next_message).clause == "RFC 9112 section 8"


# --- Limits

LIMITS = HeadLimits(head_bytes_max=200, fields_max=4, target_bytes_max=40)


def head_of(octets: int, line: bytes = b"GET / HTTP/1.1\r\nHost: x\r\n") -> bytes:
    return line + b"A: " + b"a" * (octets - len(line) - 7) + b"\r\n\r\n"


@pytest.mark.parametrize("split", [pieces_of, lambda octets: [octets]])
@pytest.mark.parametrize(
    ("octets", "kind"),
    [
        (head_of(200), None),
        (head_of(201), ErrorKind.HEAD_TOO_LARGE),
        (head_of(5000), ErrorKind.HEAD_TOO_LARGE),
        (head_of(200) + GET, None),
        (b"GET /" + b"a" * 39 + b" HTTP/1.1\r\nHost: x\r\n\r\n", None),
        (b"GET /" + b"a" * 40 + b" HTTP/1.1\r\nHost: x\r\n\r\n", ErrorKind.TARGET_TOO_LONG),
        (b"GET /" + b"a" * 500, ErrorKind.TARGET_TOO_LONG),
        (b"M" * 500, ErrorKind.NOT_IMPLEMENTED),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 3 + b"\r\n", None),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 4 + b"\r\n", ErrorKind.HEAD_TOO_LARGE),
        (CHUNKED[:-2] + b"A: b\r\n" * 3 + b"\r\n", None),
        (CHUNKED[:-2] + b"A: b\r\n" * 4 + b"\r\n", ErrorKind.HEAD_TOO_LARGE),
        (CHUNKED[:-2] + b"A: " + b"b" * 200 + b"\r\n\r\n", ErrorKind.HEAD_TOO_LARGE),
        (CHUNKED[:-2] + b"A: " + b"b" * 2000, ErrorKind.HEAD_TOO_LARGE),
    ],
)  # fmt: skip
def test_rfc6585_5_heads_are_bounded(
    codec: Codec, sink: Any, octets: bytes, kind: ErrorKind | None, split: Any
) -> None:
    decoder = codec.request_decoder(sink, LIMITS)
    found = None
    try:
        for piece in split(octets):
            decoder.feed(piece)
    except BadMessage as error:
        found = error.kind
    assert found is kind
    assert bool(sink.ends) is (kind is None)


def test_an_endless_head_is_not_kept(codec: Codec, sink: Any) -> None:
    decoder = codec.request_decoder(sink, LIMITS)
    decoder.feed(b"GET / HTTP/1.1\r\n")
    with pytest.raises(BadMessage):
        for _ in range(100):
            decoder.feed(b"A: b\r\n")


@pytest.mark.parametrize("split", [pieces_of, lambda octets: [octets]])
def test_response_heads_are_bounded(codec: Codec, sink: Any, split: Any) -> None:
    for octets in (
        head_of(201, b"HTTP/1.1 200 OK\r\n"),
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 5 + b"\r\n",
        b"HTTP/1.1 200 " + b"a" * 400,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"A: b\r\n" * 50,
    ):
        decoder = codec.response_decoder(sink, LIMITS)
        decoder.expect(b"GET")
        with pytest.raises(BadMessage) as caught:
            for piece in split(octets):
                decoder.feed(piece)
        assert caught.value.kind is ErrorKind.RESPONSE_HEAD_TOO_LARGE
        assert not decoder.reusable


# --- Responses


@pytest.mark.parametrize("split", [pieces_of, lambda octets: [octets]])
@pytest.mark.parametrize(
    ("octets", "to_head"),
    [
        (b"HEAD / HTTP/1.1\r\n\r\n", True),
        (b"\r\nHEAD / HTTP/9.9\r\n\r\n", True),
        (b"GET /HEAD HTTP/1.1\r\n\r\n", False),
        (b"HEADER / HTTP/1.1\r\n\r\n", False),
    ],
)
def test_9110_9_3_2_a_refusal_tells_that_it_is_for_a_head(
    codec: Codec, sink: Any, octets: bytes, to_head: bool, split: Any
) -> None:
    decoder = codec.request_decoder(sink, LIMITS)
    with pytest.raises(BadMessage) as caught:
        for piece in split(octets):
            decoder.feed(piece)
    assert caught.value.to_head is to_head


@pytest.mark.parametrize("split", [pieces_of, lambda octets: [octets]])
def test_responses_on_one_connection(responses: Any, sink: Any, split: Any) -> None:
    for method, octets, body in (
        (b"GET", OK, b"hi"),
        (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n", b""),
        (b"GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 50\r\n\r\n", b""),
        (b"GET", CHUNKED_OK, b"yo"),
        (b"GET", b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"GET", b"HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\n\r\n", b""),
        (b"GET", OK, b"hi"),
    ):  # fmt: skip
        sink.pieces.clear()
        assert responses.reusable
        responses.expect(method)
        assert not responses.reusable
        for piece in split(octets):
            responses.feed(piece)
        assert sink.body == body
    assert responses.reusable
    assert len(sink.ends) == 7


def test_interim_responses_have_heads_only(responses: Any, sink: Any) -> None:
    responses.expect(b"POST")
    responses.feed(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n" + OK)
    assert [kind for kind, _ in sink.events] == ["head", "head", "head", "body", "end"]
    assert [head.status for head in sink.heads] == [100, 103, 200]
    assert responses.reusable


def test_endless_interim_responses_are_refused(
    responses: Any, refused: Callable[..., BadMessage]
) -> None:
    responses.expect(b"GET")
    for _ in range(64):
        responses.feed(b"HTTP/1.1 102 Processing\r\n\r\n")
    error = refused(responses.feed, b"HTTP/1.1 102 Processing\r\n\r\n")
    assert error.kind is ErrorKind.BAD_RESPONSE


@pytest.mark.parametrize("split", [pieces_of, lambda octets: [octets]])
@pytest.mark.parametrize(
    ("method", "head"),
    [
        (b"CONNECT", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
        (b"GET", b"HTTP/1.1 101 S\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"),
    ],
)
def test_a_tunnel_begins_behind_the_head(
    responses: Any, sink: Any, method: bytes, head: bytes, split: Any
) -> None:
    responses.expect(method)
    for piece in split(head + b"tunnel"):
        responses.feed(piece)
    assert sink.ends == [[]]
    assert not sink.pieces
    assert not responses.reusable
    assert responses.take_rest() == b"tunnel"
    responses.eof()


def test_a_refused_connect_has_a_body(responses: Any, sink: Any) -> None:
    responses.expect(b"CONNECT")
    responses.feed(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
    assert sink.body == b"no"
    assert responses.reusable


def test_rfc9112_6_3_a_body_without_length_ends_with_the_connection(
    responses: Any, sink: Any
) -> None:
    responses.expect(b"GET")
    responses.feed(b"HTTP/1.1 200 OK\r\n\r\nab")
    responses.feed(b"cd")
    assert sink.heads[0].framing is Framing.CLOSE
    assert not sink.ends
    responses.eof()
    assert sink.body == b"abcd"
    assert sink.ends == [[]]
    assert not responses.reusable


def test_rfc9112_6_3_octets_behind_a_response_are_no_response(responses: Any, sink: Any) -> None:
    responses.expect(b"GET")
    responses.feed(OK + OK)
    assert len(sink.heads) == 1
    assert not responses.reusable
    with pytest.raises(RuntimeError):
        responses.expect(b"GET")


def test_octets_while_at_rest_spoil_the_connection(responses: Any, sink: Any) -> None:
    responses.feed(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
    assert not sink.events
    assert not responses.reusable


@pytest.mark.parametrize(
    ("octets", "kind"),
    [
        (b"", ErrorKind.UPSTREAM_CLOSED),
        (b"HTTP/1.1 100 Continue\r\n\r\n", ErrorKind.UPSTREAM_CLOSED),
        (OK[:10], ErrorKind.RESPONSE_INCOMPLETE),
        (OK[:-1], ErrorKind.RESPONSE_INCOMPLETE),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n",
         ErrorKind.RESPONSE_INCOMPLETE),
    ],
)  # fmt: skip
def test_rfc9112_8_eof_inside_a_response(
    responses: Any, refused: Callable[..., BadMessage], octets: bytes, kind: ErrorKind
) -> None:
    responses.expect(b"GET")
    responses.feed(octets)
    assert refused(responses.eof).kind is kind
    assert not responses.reusable


def test_eof_at_rest_is_no_error(responses: Any) -> None:
    responses.expect(b"GET")
    responses.feed(OK)
    responses.eof()
    assert not responses.reusable


@pytest.mark.parametrize(
    ("head", "reusable"),
    [
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", False),
        (b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 0\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nA: b\r\n c\r\n\r\n", False),
        (b"HTTP/1.1 205 Reset\r\n\r\n", False),
        (b"HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n", True),
        (b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", True),
        (b"HTTP/1.1 999 Request Denied\r\nContent-Length: 0\r\n\r\n", True),
    ],
)
def test_rfc9112_9_3_which_connections_can_go_on(
    responses: Any, sink: Any, head: bytes, reusable: bool
) -> None:
    responses.expect(b"GET")
    responses.feed(head)
    assert sink.ends == [[]]
    assert responses.reusable is reusable


def test_rfc9112_5_2_a_folded_line_in_a_response_is_unfolded(responses: Any, sink: Any) -> None:
    responses.expect(b"GET")
    responses.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nA: b\r\n \t c\r\n\r\n")
    assert sink.heads[0].fields[1] == (b"A", b"b c")


def test_errors_of_the_sink_are_not_swallowed(codec: Codec, sink: Any) -> None:
    class Broken(type(sink)):  # type: ignore[misc]
        def head_received(self, head: Any) -> None:
            raise ZeroDivisionError

    decoder = codec.request_decoder(Broken(), HeadLimits())
    with pytest.raises(ZeroDivisionError):
        decoder.feed(GET)
    with pytest.raises(BadMessage):
        decoder.feed(GET)


# --- Loading


def test_auto_takes_the_fast_codec() -> None:
    assert load_codec("auto").name == "httptools"
    assert load_codec("h11").name == "h11"


def test_an_unknown_codec_is_refused() -> None:
    with pytest.raises(ValueError, match="llhttp"):
        load_codec("llhttp")


def test_auto_without_httptools_is_h11(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "gateway.h1.codec_httptools", None)
    assert load_codec("auto").name == "h11"
    with pytest.raises(ImportError):
        load_codec("httptools")
