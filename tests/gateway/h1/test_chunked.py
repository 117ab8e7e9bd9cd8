"""The chunked coding: RFC 9112 section 7.1 to the letter, in whatever pieces it comes."""

from __future__ import annotations

import pytest

from gateway.errors import ErrorKind
from gateway.h1.chunked import ChunkedReader
from gateway.h1.codec import BadMessage, HeadLimits
from gateway.h1.message import Fields


def read(octets: bytes, piece_bytes: int) -> tuple[bytes, Fields, bytes | None]:
    """(body, trailers, what follows; None if the body has not ended)."""
    body: list[bytes] = []
    reader = ChunkedReader(
        body.append, HeadLimits(), ErrorKind.BAD_REQUEST, ErrorKind.HEAD_TOO_LARGE
    )
    for start in range(0, len(octets), piece_bytes):
        rest = reader.feed(octets[start : start + piece_bytes])
        if rest is not None:
            return b"".join(body), reader.trailers, rest + octets[start + piece_bytes :]
    return b"".join(body), reader.trailers, None


@pytest.fixture(params=[1, 2, 3, 7, 100_000])
def piece_bytes(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.mark.parametrize(
    ("octets", "body", "trailers", "rest"),
    [
        (b"0\r\n\r\n", b"", [], b""),
        (b"000\r\n\r\nGET", b"", [], b"GET"),
        (b"1\r\na\r\n0\r\n\r\n\r\n", b"a", [], b"\r\n"),
        (b"a\r\n0123456789\r\nA\r\n\r\n\r\n\r\n\r\n\r\n\r\n0\r\n\r\nx", b"0123456789" + b"\r\n" * 5,
         [], b"x"),
        (b"1;a;b=c; d = \"e\"\r\nx\r\n0;f\r\n\r\n", b"x", [], b""),
        (b"1 ;a\t;\tb\t=\tc\r\nx\r\n0 ; f\r\n\r\n", b"x", [], b""),
        (b"1;a=\"; \\\" \\\\ \xe9\";b=!#$%&'*+-.^_`|~\r\nx\r\n0\r\n\r\n", b"x", [], b""),
        (b"0\r\nA: b\r\nC: \xe9\r\n\r\nz", b"", [(b"A", b"b"), (b"C", b"\xe9")], b"z"),
        (b"2\r\nab\r\n", b"ab", [], None),
        (b"0\r\nA: b\r\n", b"", [], None),
    ],
)  # fmt: skip
def test_bodies(
    octets: bytes, body: bytes, trailers: Fields, rest: bytes | None, piece_bytes: int
) -> None:
    assert read(octets, piece_bytes) == (body, trailers, rest)


@pytest.mark.parametrize(
    "octets",
    [
        b"\r\n", b"\n", b";a\r\n", b"g\r\n", b"0x5\r\n", b"+5\r\n", b"-5\r\n", b" 5\r\n", b"5 \r\n",
        b"5\t\r\n", b"5_0\r\n", b"5\n", b"5\rh", b"5;a\rb\r\n", b"5;a\nb\r\n",
        b"5;\x00\r\n", b"5;\r\n", b"5; \r\n", b"5;a \r\n", b"5;;a\r\n", b"5;a=\r\n", b"5;=a\r\n",
        b"5;a[=b\r\n", b"5;a b\r\n", b"5;a=b c\r\n", b"5;a=\xe9\r\n", b'5;a="b\r\n',
        b'5;a="b"c\r\n', b'5;a="\\"\r\n', b'5;"a"\r\n', b"5 a\r\n", b"5 \r;a\r\n", b"5\r\r;a\r\n",
        b"\xb2\r\n", b"5,5\r\n", b"5\r\nhelloX", b"5\r\nhello\n", b"5\r\nhello\rX",
        b"00000000000000001\r\n", b"8000000000000000\r\n", b"ffffffffffffffff\r\n",
        b"0\r\n\n", b"0\r\nA\r\n\r\n", b"0\r\nA : b\r\n\r\n", b"0\r\nA: b\nC: d\r\n\r\n",
        b"0\r\nA: b\r\n c\r\n\r\n", b"0\r\n: b\r\n\r\n", b"0\r\nA: \x00", b"0\r\nA: b\rc",
    ],
)  # fmt: skip
def test_what_is_no_chunked_body(octets: bytes, piece_bytes: int) -> None:
    with pytest.raises(BadMessage) as caught:
        read(octets, piece_bytes)
    assert caught.value.kind is ErrorKind.BAD_REQUEST


def test_the_largest_chunk_that_can_begin() -> None:
    assert read(b"7fffffffffffffff\r\nabc", 100) == (b"abc", [], None)


def test_7_1_1_extensions_are_bounded_in_one_line(piece_bytes: int) -> None:
    fits = b"1;" + b"a" * (16 * 1024 - 1) + b"\r\nx\r\n0\r\n\r\n"
    assert read(fits, max(piece_bytes, 100))[0] == b"x"
    for octets in (b"1;a" + fits[2:], b"1;" + b"a" * 20_000, b"1" + b" " * 20_000):
        with pytest.raises(BadMessage) as caught:
            read(octets, max(piece_bytes, 100))
        assert caught.value.clause == "RFC 9112 section 7.1.1"


def test_7_1_1_extensions_are_bounded_in_sum() -> None:
    chunk = b"1;" + b"a" * 99 + b"\r\nx\r\n"
    assert read(chunk * 163, 1000)[0] == b"x" * 163
    with pytest.raises(BadMessage):
        read(chunk * 164, 1000)


def test_a_piece_inside_a_chunk_is_passed_on_as_it_comes() -> None:
    body: list[bytes] = []
    reader = ChunkedReader(
        body.append, HeadLimits(), ErrorKind.BAD_REQUEST, ErrorKind.HEAD_TOO_LARGE
    )
    for piece in (b"10\r\nab", b"cd", b"efgh"):
        assert reader.feed(piece) is None
    assert body == [b"ab", b"cd", b"efgh"]
