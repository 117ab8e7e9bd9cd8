"""The guard, clause by clause; 9110 and 9112 in a test's name are RFC numbers."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.errors import ErrorKind
from gateway.h1.codec import BadMessage
from gateway.h1.guard import judge_octets, judge_request, judge_response, judge_trailers
from gateway.h1.message import Fields, Framing, RequestHead, ResponseHead

HOST = (b"Host", b"x")


def judged(
    *fields: tuple[bytes, bytes], method: bytes = b"GET", target: bytes = b"/", minor: int = 1
) -> RequestHead:
    head = RequestHead(method, target, minor, list(fields))
    judge_request(head)
    return head


def answered(
    *fields: tuple[bytes, bytes], status: int = 200, method: bytes = b"GET", minor: int = 1
) -> ResponseHead:
    head = ResponseHead(status, b"", minor, list(fields))
    judge_response(head, method)
    return head


def kind_of(function: Any, *arguments: Any, **named: Any) -> ErrorKind:
    with pytest.raises(BadMessage) as caught:
        function(*arguments, **named)
    assert caught.value.clause
    return caught.value.kind


# --- Octets


@pytest.mark.parametrize("octet", [*range(9), 0x0A, 0x0B, 0x0C, 0x0D, *range(0x0E, 0x20), 0x7F])
def test_9110_5_5_control_characters_are_refused(octet: int) -> None:
    block = b"GET / HTTP/1.1\r\nA: b" + bytes([octet]) + b"c\r\n\r\n"
    assert kind_of(judge_octets, block, ErrorKind.BAD_RESPONSE) is ErrorKind.BAD_RESPONSE


def test_9112_2_2_a_cr_and_an_lf_apart_are_refused() -> None:
    # As many CRs as LFs, so that counting alone would not find it.
    block = b"GET / HTTP/1.1\r\nA: \rb\nc\r\n\r\n"
    assert kind_of(judge_octets, block, ErrorKind.BAD_REQUEST) is ErrorKind.BAD_REQUEST


def test_9110_5_5_obs_text_and_tabs_are_text() -> None:
    assert judge_octets(b"A: \x80\xff\t~\r\n\r\n", ErrorKind.BAD_REQUEST) == 2


@pytest.mark.parametrize(
    "name", [b"", b"A ", b" A", b"A\x80", b"A(b)", b"A,b", b'A"', b"A/b", b"\t"]
)
def test_9110_5_1_names_are_tokens(name: bytes) -> None:
    assert kind_of(judged, HOST, (name, b"")) is ErrorKind.BAD_REQUEST
    assert kind_of(answered, (name, b"")) is ErrorKind.BAD_RESPONSE
    assert kind_of(judge_trailers, name + b": b\r\n\r\n", ErrorKind.BAD_REQUEST)


# --- Request targets and Host


@pytest.mark.parametrize(
    ("method", "target"),
    [
        (b"GET", b"/"),
        (b"GET", b'//a/../b?c={d}|"e"^`<f>[g]\\'),
        (b"GET", b"http://a.example"),
        (b"GET", b"HTTPS://a.example:8443/b?c"),
        (b"GET", b"http://[::1]:80/"),
        (b"OPTIONS", b"*"),
        (b"OPTIONS", b"/"),
        (b"OPTIONS", b"http://a.example"),
        (b"CONNECT", b"a.example:443"),
        (b"CONNECT", b"[2001:db8::1]:443"),
        (b"BREW", b"/"),
    ],
)
def test_9112_3_2_targets_that_are_valid(method: bytes, target: bytes) -> None:
    assert judged(HOST, method=method, target=target).host == b"x"


@pytest.mark.parametrize(
    ("method", "target"),
    [
        (b"GET", b""),
        (b"GET", b"a"),
        (b"GET", b"*"),
        (b"GET", b"/#a"),
        (b"GET", b"http://a.example/#a"),
        (b"GET", b"/\x80"),
        (b"GET", b"/\xc3\xa9"),
        (b"GET", b"/\t"),
        (b"GET", b"/\x7f"),
        (b"GET", b"?a"),
        (b"GET", b"a.example:443"),
        (b"GET", b"http://"),
        (b"GET", b"http:///a"),
        (b"GET", b"http://?a"),
        (b"GET", b"http://u@a.example/"),
        (b"GET", b"http://u:p@a.example/"),
        (b"GET", b"http://a.example:0/"),
        (b"GET", b"http://a.example:65536/"),
        (b"GET", b"http://a.example:8a/"),
        (b"GET", b"http://a,b/"),
        (b"GET", b"http://a%2eb/"),
        (b"GET", b"http:/a.example/"),
        (b"GET", b"ftp://a.example/"),
        (b"GET", b"://a.example/"),
        (b"OPTIONS", b"**"),
        (b"CONNECT", b"a.example"),
        (b"CONNECT", b"a.example:"),
        (b"CONNECT", b":443"),
        (b"CONNECT", b"a.example:0"),
        (b"CONNECT", b"a.example:99999"),
        (b"CONNECT", b"a.example:443/"),
        (b"CONNECT", b"http://a.example:443"),
        (b"CONNECT", b"u@a.example:443"),
        (b"CONNECT", b"/"),
        (b"CONNECT", b"*"),
        (b"CONNECT", b"[::1]"),
        (b"CONNECT", b"::1:443"),
    ],
)
def test_9112_3_2_targets_that_are_not(method: bytes, target: bytes) -> None:
    assert kind_of(judged, HOST, method=method, target=target) is ErrorKind.BAD_REQUEST


def test_9112_3_a_method_longer_than_any_is_not_implemented() -> None:
    assert judged(HOST, method=b"M" * 64).method
    assert kind_of(judged, HOST, method=b"M" * 65) is ErrorKind.NOT_IMPLEMENTED


def test_9112_3_2_host() -> None:
    assert kind_of(judged) is ErrorKind.BAD_REQUEST
    assert kind_of(judged, HOST, HOST) is ErrorKind.BAD_REQUEST
    assert kind_of(judged, HOST, (b"hOST", b"y"), minor=0) is ErrorKind.BAD_REQUEST
    assert judged(minor=0).host == b""
    assert judged(method=b"CONNECT", target=b"a:1", minor=0).host == b""


@pytest.mark.parametrize(
    "value",
    [b"", b" ", b":80", b"a b", b"a,b", b"a/b", b"u@a", b"a:b", b"a:80:80", b"a:65536", b"\xe9",
     b"[::1", b"::1", b"[::g]", b"[1.2.3.4]", b"[fe80::1%25eth0]", b"a" * 300, b"a%00"],
)  # fmt: skip
def test_9112_3_2_an_invalid_host(value: bytes) -> None:
    assert kind_of(judged, (b"Host", value)) is ErrorKind.BAD_REQUEST


# --- Request framing


@pytest.mark.parametrize(
    ("value", "length"),
    [
        (b"0", 0),
        (b"5", 5),
        (b"0005", 5),
        (b"9223372036854775807", 2**63 - 1),
        (b"0" * 50 + b"7", 7),
    ],
)
def test_9110_8_6_content_length(value: bytes, length: int) -> None:
    head = judged(HOST, (b"content-LENGTH", value))
    assert (head.framing, head.content_length) == (Framing.LENGTH, length)
    answer = answered((b"Content-Length", value))
    assert (answer.framing, answer.content_length) == (Framing.LENGTH, length)


@pytest.mark.parametrize(
    "value",
    [b"", b"+5", b"-5", b"0x5", b"5_0", b"5.0", b"5 0", b"5;5", b"\xb2", b"\xd9\xa3", b"five"],
)
def test_9110_8_6_a_length_that_is_no_number(value: bytes) -> None:
    assert kind_of(judged, HOST, (b"Content-Length", value)) is ErrorKind.BAD_REQUEST
    assert kind_of(answered, (b"Content-Length", value)) is ErrorKind.BAD_RESPONSE
    # The length of a response to HEAD frames nothing, but is forwarded.
    assert kind_of(answered, (b"Content-Length", value), method=b"HEAD") is ErrorKind.BAD_RESPONSE


@pytest.mark.parametrize("value", [b"9223372036854775808", b"9" * 20, b"9" * 5000])
def test_9110_8_6_a_length_too_large(value: bytes) -> None:
    assert kind_of(judged, HOST, (b"Content-Length", value)) is ErrorKind.BODY_TOO_LARGE
    assert kind_of(answered, (b"Content-Length", value)) is ErrorKind.BAD_RESPONSE


@pytest.mark.parametrize("values", [(b"5", b"5"), (b"5", b"6"), (b"5,5",), (b"5, 6",)])
def test_9110_8_6_several_lengths_in_a_request(values: tuple[bytes, ...]) -> None:
    fields = [(b"Content-Length", value) for value in values]
    assert kind_of(judged, HOST, *fields) is ErrorKind.BAD_REQUEST


def test_9112_6_3_no_length_is_no_body() -> None:
    assert judged(HOST, method=b"POST").framing is Framing.NONE


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ((b"chunked",), None),
        ((b"Chunked",), None),
        ((b"chunked", b"chunked"), ErrorKind.BAD_REQUEST),
        ((b"chunked, chunked",), ErrorKind.BAD_REQUEST),
        ((b"gzip",), ErrorKind.BAD_REQUEST),
        ((b"identity",), ErrorKind.BAD_REQUEST),
        ((b"",), ErrorKind.BAD_REQUEST),
        ((b"chunked,",), ErrorKind.BAD_REQUEST),
        ((b",chunked",), ErrorKind.BAD_REQUEST),
        ((b"chunked;q=1",), ErrorKind.BAD_REQUEST),
        ((b"xchunked",), ErrorKind.BAD_REQUEST),
        ((b"chunked, gzip",), ErrorKind.BAD_REQUEST),
        ((b"chunked\x0b",), ErrorKind.BAD_REQUEST),
        ((b"gzip, chunked",), ErrorKind.NOT_IMPLEMENTED),
        ((b"gzip", b"chunked"), ErrorKind.NOT_IMPLEMENTED),
        ((b"identity, chunked",), ErrorKind.NOT_IMPLEMENTED),
    ],
)
def test_9112_6_1_transfer_encoding(values: tuple[bytes, ...], kind: ErrorKind | None) -> None:
    fields = [HOST, *((b"Transfer-Encoding", value) for value in values)]
    if kind is None:
        assert judged(*fields).framing is Framing.CHUNKED
        assert answered(*fields).framing is Framing.CHUNKED
    else:
        assert kind_of(judged, *fields) is kind
        assert kind_of(answered, *fields) is ErrorKind.BAD_RESPONSE


def test_9112_6_1_length_beside_transfer_encoding() -> None:
    fields: Fields = [(b"Transfer-Encoding", b"chunked"), (b"Content-Length", b"5")]
    assert kind_of(judged, HOST, *fields) is ErrorKind.BAD_REQUEST
    assert kind_of(judged, HOST, *reversed(fields)) is ErrorKind.BAD_REQUEST
    assert kind_of(answered, *fields) is ErrorKind.BAD_RESPONSE


def test_9112_6_1_transfer_encoding_in_1_0() -> None:
    field = (b"Transfer-Encoding", b"chunked")
    assert kind_of(judged, HOST, field, minor=0) is ErrorKind.BAD_REQUEST
    assert kind_of(answered, field, minor=0) is ErrorKind.BAD_RESPONSE


def test_9110_9_3_6_connect_has_no_content() -> None:
    connect = {"method": b"CONNECT", "target": b"a:1"}
    assert judged(HOST, (b"Content-Length", b"0"), **connect).framing is Framing.NONE
    assert kind_of(judged, HOST, (b"Content-Length", b"1"), **connect) is ErrorKind.BAD_REQUEST
    field = (b"Transfer-Encoding", b"chunked")
    assert kind_of(judged, HOST, field, **connect) is ErrorKind.BAD_REQUEST


# --- Persistence and offers


@pytest.mark.parametrize(
    ("fields", "minor", "keep_alive"),
    [
        ([], 1, True),
        ([(b"Connection", b"close")], 1, False),
        ([(b"Connection", b"Keep-Alive, CLOSE")], 1, False),
        ([(b"Connection", b"x"), (b"connection", b"close")], 1, False),
        ([(b"Connection", b"closed")], 1, True),
        ([(b"Connection", b"keep-alive")], 0, False),
        ([], 0, False),
    ],
)
def test_9112_9_3_requests_keep_alive(fields: Fields, minor: int, keep_alive: bool) -> None:
    assert judged(HOST, *fields, minor=minor).keep_alive is keep_alive


def test_9110_7_6_1_connection_options() -> None:
    head = judged(HOST, (b"Connection", b" A ,,b;c=d"), (b"CONNECTION", b"C" * 200))
    assert head.connection == {b"a", b"b", b"c" * 200}


def test_9110_10_1_1_expect() -> None:
    assert judged(HOST, (b"Expect", b"100-Continue")).expect_continue
    assert not judged(HOST).expect_continue
    assert kind_of(judged, HOST, (b"Expect", b"tea")) is ErrorKind.EXPECTATION_FAILED
    assert judged(HOST, (b"Expect", b"100-continue,"), (b"E", b"f")).expect_continue
    assert judged(HOST, (b"Expect", b"100-continue"), (b"expect", b"100-continue")).expect_continue
    assert not judged(HOST, (b"Expect", b"")).expect_continue
    for more in (b"100-continue, tea", b"100-continue;a=b", b'"100-continue"'):
        assert kind_of(judged, HOST, (b"Expect", more)) is ErrorKind.EXPECTATION_FAILED
    assert not judged(HOST, (b"Expect", b"100-continue"), minor=0).expect_continue
    assert not judged(HOST, (b"Expect", b"tea"), minor=0).expect_continue


@pytest.mark.parametrize(
    ("value", "trailers"),
    [(b"trailers", True), (b"Trailers", True), (b"gzip;q=0.5, trailers", True), (b"gzip", False)],
)
def test_9110_10_1_4_te(value: bytes, trailers: bool) -> None:
    assert judged(HOST, (b"TE", value)).te_trailers is trailers
    assert not judged(HOST, (b"TE", value), minor=0).te_trailers


def test_9110_7_8_upgrade_counts_if_connection_names_it() -> None:
    upgrade = (b"Upgrade", b"websocket")
    named = (b"Connection", b"keep-alive, Upgrade")
    assert judged(HOST, upgrade).upgrade == b""
    assert judged(HOST, upgrade, named, minor=0).upgrade == b""
    assert judged(HOST, upgrade, named, (b"upgrade", b"h2c")).upgrade == b"websocket, h2c"
    assert answered(upgrade, named, status=426).upgrade == b"websocket"


# --- Responses


@pytest.mark.parametrize(
    ("status", "method", "framing"),
    [
        (100, b"GET", Framing.NONE),
        (103, b"GET", Framing.NONE),
        (204, b"GET", Framing.NONE),
        (205, b"GET", Framing.NONE),
        (304, b"GET", Framing.NONE),
        (200, b"HEAD", Framing.NONE),
        (404, b"HEAD", Framing.NONE),
        (200, b"CONNECT", Framing.NONE),
        (299, b"CONNECT", Framing.NONE),
        (300, b"CONNECT", Framing.LENGTH),
        (407, b"CONNECT", Framing.LENGTH),
        (200, b"GET", Framing.LENGTH),
        (999, b"GET", Framing.LENGTH),
    ],
)
def test_9112_6_3_which_responses_have_a_body(status: int, method: bytes, framing: Framing) -> None:
    head = answered((b"Content-Length", b"5"), status=status, method=method)
    assert head.framing is framing
    assert head.content_length == 5


def test_9110_8_6_a_length_with_zeros_before_it_goes_on_as_a_plain_number() -> None:
    for value, plain in ((b"010", b"10"), (b"00", b"0"), (b"0" * 5000 + b"7", b"7"), (b"0", b"0")):
        lines = [(b"A", b"b"), (b"content-length", value), (b"C", b"d")]
        expected = [(b"A", b"b"), (b"content-length", plain), (b"C", b"d")]
        assert judged(HOST, *lines).fields == [HOST, *expected]
        answer = answered(*lines)
        assert answer.fields == expected
        assert answer.keep_alive
    assert answered((b"Content-Length", b"05, 05")).fields == [(b"Content-Length", b"5")]


def test_9112_6_3_without_length_a_body_ends_with_the_connection() -> None:
    head = answered()
    assert head.framing is Framing.CLOSE
    assert not head.keep_alive


def test_9110_8_6_equal_lengths_in_a_response_are_collapsed() -> None:
    lines = [(b"Content-Length", b"5, 5"), (b"A", b"b"), (b"content-length", b"5")]
    head = answered(*lines)
    assert head.fields == [(b"Content-Length", b"5"), (b"A", b"b")]
    assert (head.framing, head.content_length) == (Framing.LENGTH, 5)
    assert not head.keep_alive
    assert kind_of(answered, *lines, (b"Content-Length", b"6")) is ErrorKind.BAD_RESPONSE
    assert kind_of(answered, (b"Content-Length", b"5,")) is ErrorKind.BAD_RESPONSE


def test_9110_15_2_2_a_101_names_its_protocol() -> None:
    assert kind_of(answered, status=101) is ErrorKind.BAD_RESPONSE
    fields = [(b"Upgrade", b"websocket"), (b"Connection", b"upgrade")]
    assert answered(*fields, status=101).upgrade == b"websocket"


@pytest.mark.parametrize(
    ("connection", "minor", "keep_alive"),
    [(None, 1, True), (b"close", 1, False), (None, 0, False), (b"Keep-Alive", 0, True),
     (b"keep-alive, close", 0, False), (b"keep-alive", 1, True)],
)  # fmt: skip
def test_9112_9_3_responses_keep_alive(
    connection: bytes | None, minor: int, keep_alive: bool
) -> None:
    fields: Fields = [(b"Content-Length", b"0")]
    if connection is not None:
        fields.append((b"Connection", connection))
    assert answered(*fields, minor=minor).keep_alive is keep_alive


# --- Trailers


def test_9112_7_1_2_trailers() -> None:
    section = b"A: b\r\nC:\r\nA:\td \r\n\r\n"
    assert judge_trailers(section, ErrorKind.BAD_REQUEST) == [
        (b"A", b"b"),
        (b"C", b""),
        (b"A", b"d"),
    ]


@pytest.mark.parametrize(
    "section",
    [b"A\r\n\r\n", b": b\r\n\r\n", b"A : b\r\n\r\n", b"A: b\r\n c\r\n\r\n", b"A: \x00\r\n\r\n"],
)
def test_9112_5_trailers_are_fields(section: bytes) -> None:
    for kind in (ErrorKind.BAD_REQUEST, ErrorKind.BAD_RESPONSE):
        assert kind_of(judge_trailers, section, kind) is kind


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"timeout=5", 5),
        (b"max=100, Timeout=5", 5),
        (b'timeout="0"', 0),
        (b"timeout = 7", 7),
        (b"timeout=-1", -1),
        (b"timeout=9999999999", -1),
        (b"timeout=\xb2", -1),
        (b"300", -1),
        (b"", -1),
    ],
)
def test_9112_9_3_for_how_long_an_upstream_keeps_an_idle_connection(
    value: bytes, seconds: int
) -> None:
    head = ResponseHead(
        200, b"OK", 1, [(b"Proxy-Connection", b"timeout=1"), (b"keep-ALIVE", value)]
    )
    judge_response(head, b"GET")
    assert head.idle_s == seconds
