"""What changes on the way through, by RFC 9110 section 7.6, and what must not."""

from __future__ import annotations

import pytest

from gateway.h1.forward import (
    FieldRules,
    came_through,
    forward_request,
    forward_response,
    forward_trailers,
    max_forwards,
    upgrade_fields,
)
from gateway.h1.guard import judge_request, judge_response
from gateway.h1.message import Fields, RequestHead, ResponseHead

VIA = b"1.1 egressd"
HOST = (b"Host", b"client.internal")


def sent(
    *fields: tuple[bytes, bytes],
    rules: FieldRules | None = None,
    method: bytes = b"GET",
    minor: int = 1,
) -> Fields:
    head = RequestHead(method, b"/", minor, [HOST, *fields])
    judge_request(head)
    before = list(head.fields)
    forwarded = forward_request(head, b"api.example", VIA, rules)
    assert head.fields == before, "the head itself is not changed"
    assert forwarded[0] == (b"Host", b"api.example")
    return forwarded[1:]


def returned(*fields: tuple[bytes, bytes], status: int = 200) -> Fields:
    head = ResponseHead(status, b"", 1, list(fields))
    judge_response(head, b"GET")
    return forward_response(head, VIA, True)


def test_end_to_end_fields_go_on_in_order_as_they_came() -> None:
    fields = [
        (b"aCCept", b"*/*"),
        (b"Cookie", b"a=b"),
        (b"X-A", b"\xff"),
        (b"cookie", b"c=d"),
        (b"Content-Length", b"0"),
        (b"Authorization", b"Bearer x"),
        (b"Via", b"1.0 fred"),
    ]
    assert sent(*fields) == [*fields, (b"Via", VIA)]


def test_9110_7_6_1_hop_by_hop_fields_are_dropped() -> None:
    assert sent(
        (b"Connection", b"keep-alive"),
        (b"Keep-Alive", b"timeout=5"),
        (b"PROXY-connection", b"keep-alive"),
        (b"TE", b"gzip"),
        (b"Transfer-Encoding", b"chunked"),
        (b"Upgrade", b"h2c"),
        (b"Proxy-Authorization", b"Basic eDp5"),
        (b"Forwarded", b"for=10.0.0.1"),
        (b"X-Forwarded-For", b"10.0.0.1"),
        (b"x-forwarded-client-cert", b"..."),
    ) == [(b"Via", VIA)]
    assert returned(
        (b"Connection", b"close"),
        (b"Keep-Alive", b"timeout=5"),
        (b"Transfer-Encoding", b"chunked"),
        (b"Upgrade", b"h2c"),
        (b"Proxy-Authenticate", b"Basic"),
    ) == [(b"Via", VIA)]


def test_9110_7_6_1_fields_that_connection_names_are_dropped() -> None:
    named = (b"Connection", b"X-Own, close, X-OTHER")
    fields = [(b"x-own", b"1"), (b"X-Other", b"2"), (b"X-Kept", b"3"), named]
    assert sent(*fields) == [(b"X-Kept", b"3"), (b"Via", VIA)]
    assert returned(*fields) == [(b"X-Kept", b"3"), (b"Via", VIA)]


@pytest.mark.parametrize(
    "name",
    [
        b"Content-Length",
        b"Authorization",
        b"Cache-Control",
        b"Content-Type",
        b"Cookie",
        b"X-Api-Key",
    ],
)
def test_9110_7_6_1_connection_cannot_strip_what_is_for_all(name: bytes) -> None:
    field = (name, b"0")
    assert sent((b"Connection", name + b", host, via"), field) == [field, (b"Via", VIA)]


def test_9110_10_1_4_te_trailers_is_created_anew() -> None:
    fields = sent((b"TE", b"trailers, deflate;q=0.5"), (b"Connection", b"TE"))
    assert fields == [(b"Via", VIA), (b"TE", b"trailers"), (b"Connection", b"TE")]


def test_9110_10_1_1_expect_goes_on_but_not_from_1_0() -> None:
    field = (b"Expect", b"100-continue")
    assert field in sent(field)
    assert field not in sent(field, minor=0)


def test_9110_7_6_2_max_forwards() -> None:
    assert (b"Max-Forwards", b"4") in sent((b"Max-Forwards", b"5"), method=b"TRACE")
    assert (b"max-forwards", b"0") in sent((b"max-forwards", b"0"), method=b"OPTIONS")
    assert (b"Max-Forwards", b"5") in sent((b"Max-Forwards", b"5"), method=b"GET")
    assert (b"Max-Forwards", b"x") in sent((b"Max-Forwards", b"x"), method=b"TRACE")
    for method, fields, expected in (
        (b"TRACE", [(b"Max-Forwards", b"0")], 0),
        (b"OPTIONS", [(b"max-forwards", b"7")], 7),
        (b"OPTIONS", [], None),
        (b"OPTIONS", [(b"Max-Forwards", b"9" * 5000)], None),
        (b"GET", [(b"Max-Forwards", b"0")], None),
    ):
        assert max_forwards(RequestHead(method, b"*", 1, fields)) == expected


def test_9110_8_6_no_length_in_1xx_and_204() -> None:
    length = (b"Content-Length", b"0")
    assert returned(length, status=204) == [(b"Via", VIA)]
    assert returned(length, status=103) == [(b"Via", VIA)]
    assert returned(length, status=304) == [length, (b"Via", VIA)]


def test_9110_5_3_set_cookie_lines_are_not_joined() -> None:
    fields = [(b"Set-Cookie", b"a=b, c"), (b"set-cookie", b"d=e")]
    assert returned(*fields) == [*fields, (b"Via", VIA)]


# --- Rules


def test_rules() -> None:
    rules = FieldRules(
        set=((b"Authorization", b"Bearer ours"),),
        add=((b"X-Team", b"a"), (b"X-Team", b"b")),
        remove=(b"X-Internal",),
    )
    fields = sent(
        (b"AUTHORIZATION", b"theirs"), (b"x-internal", b"1"), (b"X-Team", b"0"), rules=rules
    )
    assert fields == [
        (b"X-Team", b"0"),
        (b"Via", VIA),
        (b"Authorization", b"Bearer ours"),
        (b"X-Team", b"a"),
        (b"X-Team", b"b"),
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        {"set": [(b"Host", b"a")]},
        {"set": [(b"Transfer-Encoding", b"chunked")]},
        {"add": [(b"Content-Length", b"0")]},
        {"remove": [b"Connection"]},
        {"remove": [b"not a token"]},
        {"set": [(b"A", b"b\r\nC: d")]},
        {"add": [(b"A", b"\x00")]},
        {"add": [(b"", b"")]},
    ],
)
def test_rules_that_would_break_a_message(arguments: dict[str, list[bytes]]) -> None:
    with pytest.raises(ValueError, match=r"field|value"):
        FieldRules(**arguments)  # type: ignore[arg-type]


# --- Trailers, Upgrade, Via


def test_9110_6_5_1_forbidden_trailers_are_dropped() -> None:
    trailers = [
        (b"Content-Length", b"5"),
        (b"transfer-encoding", b"chunked"),
        (b"HOST", b"a"),
        (b"Authorization", b"b"),
        (b"Set-Cookie", b"c"),
        (b"X-Forwarded-For", b"d"),
        (b"X-Own", b"e"),
        (b"Digest", b"f"),
    ]
    assert forward_trailers(trailers) == trailers[-2:]
    assert forward_trailers(trailers, frozenset((b"x-own",))) == trailers[-1:]
    assert forward_trailers([]) == []


@pytest.mark.parametrize(
    ("upgrade", "allowed"),
    [(b"websocket", True), (b"h2c, WebSocket", True), (b"h2c", False), (b"", False),
     (b"websocket2", False), (b"tls/1.2", False)],
)  # fmt: skip
def test_9110_7_8_only_websocket_is_upgraded(upgrade: bytes, allowed: bool) -> None:
    expected = [(b"Connection", b"upgrade"), (b"Upgrade", b"websocket")] if allowed else []
    assert upgrade_fields(upgrade) == expected


@pytest.mark.parametrize(
    ("value", "loop"),
    [
        (b"1.1 egressd", True),
        (b"1.0 fred, HTTP/1.1 egressd (comment)", True),
        (b"1.1 egressd2", False),
        (b"1.1 fred (egressd)", False),
        (b"egressd", False),
        (b"1.1 fred,,", False),
    ],
)
def test_9110_7_6_3_loops_are_seen(value: bytes, loop: bool) -> None:
    assert came_through([HOST, (b"A", b"1.1 egressd"), (b"vIA", value)], b"egressd") is loop
