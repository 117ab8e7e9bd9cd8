"""HTTP/2 heads: what is sent, and what is refused of what comes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.connectors import h2_heads
from gateway.errors import ErrorKind
from gateway.h1.codec import BadMessage, HeadLimits
from gateway.h1.message import Framing

LIMITS = HeadLimits(head_bytes_max=1000, fields_max=10)


def test_a_request_has_its_pseudo_fields_first_and_lower_case_names() -> None:
    fields = [
        (b"X-A", b"1"),
        (b"Host", b"api.test"),
        (b"Connection", b"TE"),
        (b"TE", b"trailers"),
        (b"Upgrade", b"websocket"),
        (b"Keep-Alive", b"1"),
        (b"Proxy-Connection", b"x"),
        (b"Transfer-Encoding", b"chunked"),
        (b"x-a", b"2"),
    ]
    assert h2_heads.request(b"GET", "https", b"origin", b"/%2e?", fields) == [
        (b":method", b"GET"),
        (b":scheme", b"https"),
        (b":authority", b"api.test"),
        (b":path", b"/%2e?"),
        (b"x-a", b"1"),
        (b"te", b"trailers"),
        (b"x-a", b"2"),
    ]


@pytest.mark.parametrize("fields", [[], [(b"Host", b"")]])
def test_the_origin_stands_in_for_a_host_that_is_not_there(fields: list) -> None:
    assert (b":authority", b"origin") in h2_heads.request(b"GET", "https", b"origin", b"/", fields)


@pytest.mark.parametrize(
    ("status", "fields", "method", "framing"),
    [
        (b"200", [], b"GET", Framing.CHUNKED),
        (b"200", [(b"content-length", b"5")], b"GET", Framing.LENGTH),
        (b"200", [(b"content-length", b"5")], b"HEAD", Framing.NONE),
        (b"204", [], b"GET", Framing.NONE),
        (b"304", [(b"content-length", b"5")], b"GET", Framing.NONE),
    ],
)
def test_a_bodys_end_is_found(status: bytes, fields: list, method: bytes, framing: Framing) -> None:
    head = h2_heads.response([(b":status", status), *fields], method, LIMITS)
    assert head.framing is framing
    assert head.status == int(status)


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ([], ErrorKind.BAD_RESPONSE),
        ([(b":status", b"200"), (b":status", b"200")], ErrorKind.BAD_RESPONSE),
        ([(b":status", b"200"), (b":path", b"/")], ErrorKind.BAD_RESPONSE),
        ([(b":status", b"2000")], ErrorKind.BAD_RESPONSE),
        ([(b":status", b"099")], ErrorKind.BAD_RESPONSE),
        ([(b":status", "²00".encode())], ErrorKind.BAD_RESPONSE),
        ([(b":status", b"200"), (b"keep-alive", b"1")], ErrorKind.BAD_RESPONSE),
        ([(b":status", b"200"), (b"a", b"b\r\nc: d")], ErrorKind.BAD_RESPONSE),
        ([(b":status", b"200"), (b"a\r\nb", b"c")], ErrorKind.BAD_RESPONSE),
        ([(b":status", b"200"), (b"a", b"b" * 1000)], ErrorKind.RESPONSE_HEAD_TOO_LARGE),
        ([(b":status", b"200")] + [(b"a", b"b")] * 11, ErrorKind.RESPONSE_HEAD_TOO_LARGE),
    ],
)
def test_what_is_no_response(fields: list, kind: ErrorKind) -> None:
    with pytest.raises(BadMessage) as caught:
        h2_heads.response(fields, b"GET", LIMITS)
    assert caught.value.kind is kind


pieces = st.one_of(
    st.binary(max_size=12),
    st.sampled_from([b"a", b"content-length", b"5", b"te", b"\r\n", b"x\ny"]),
)


@given(st.lists(st.tuples(pieces, pieces), max_size=6))
def test_what_passes_has_as_many_lines_as_fields(fields: list[tuple[bytes, bytes]]) -> None:
    try:
        head = h2_heads.response([(b":status", b"200"), *fields], b"GET", LIMITS)
    except BadMessage:
        return
    block = b"".join(b"%b: %b\r\n" % field for field in head.fields)
    assert block.count(b"\n") == block.count(b"\r") == len(head.fields)
    assert all(b":" not in name and name for name, _ in head.fields)


def test_a_body_is_held_to_its_head() -> None:
    def count(*fields: tuple[bytes, bytes]) -> h2_heads.BodyCount:
        head = h2_heads.response([(b":status", b"200"), *fields], b"GET", LIMITS)
        return h2_heads.BodyCount(head)

    exact = count((b"content-length", b"3"))
    exact.add(b"ab")
    with pytest.raises(BadMessage) as short:
        exact.end()
    assert short.value.kind is ErrorKind.RESPONSE_INCOMPLETE
    exact.add(b"c")
    exact.end()
    with pytest.raises(BadMessage, match="too long"):
        exact.add(b"d")
    unknown = count()
    unknown.add(b"any")
    unknown.end()


def test_trailers_are_judged_as_fields_are() -> None:
    assert h2_heads.trailers([(b"x-sum", b"1")], LIMITS) == [(b"x-sum", b"1")]
    for bad in ([(b":status", b"200")], [(b"a", b"\x00")], [(b"a", b"b")] * 11):
        with pytest.raises(BadMessage):
            h2_heads.trailers(bad, LIMITS)
