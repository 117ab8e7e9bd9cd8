"""The corpus of messages: every codec gives every case its verdict, in whatever pieces it comes."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from gateway.h1.codec import BadMessage, Codec, HeadLimits, load_codec
from gateway.h1.message import Fields, RequestHead, ResponseHead

HERE = Path(__file__).parent
REQUESTS = tomllib.loads((HERE / "requests.toml").read_text(encoding="utf-8"))["case"]
RESPONSES = tomllib.loads((HERE / "responses.toml").read_text(encoding="utf-8"))["case"]


class Transcript:
    """A sink that writes in the words of the corpus."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.last_head: Any = None
        self.complete = False
        self.inside = False  # a message has begun and not ended

    def head_received(self, head: RequestHead | ResponseHead) -> None:
        self.last_head = head
        if isinstance(head, RequestHead):
            start = f"{head.method.decode('latin-1')} {head.target.decode('latin-1')}"
        else:
            start = str(head.status)
        self.lines.append(f"{start} {head.framing.name}")
        self._body_begun = False
        self.inside = isinstance(head, RequestHead) or head.status == 101 or head.status >= 200

    def body_received(self, data: bytes) -> None:
        self.lines[-1] += ("" if self._body_begun else " ") + data.decode("latin-1")
        self._body_begun = True

    def message_complete(self, trailers: Fields) -> None:
        self.complete = True
        self.inside = False
        for name, value in trailers:
            self.lines.append(f"trailer {name.decode('latin-1')}: {value.decode('latin-1')}")


def read_requests(codec: Codec, pieces: Iterable[bytes]) -> list[str]:
    sink = Transcript()
    decoder = codec.request_decoder(sink, HeadLimits())
    over = False
    try:
        for piece in pieces:
            decoder.feed(piece)
            while sink.complete and not over:
                head = sink.last_head
                over = not head.keep_alive or head.method == b"CONNECT" or bool(head.upgrade)
                if not over:
                    sink.complete = False
                    decoder.next_message()
        decoder.eof()
    except BadMessage as error:
        return settled(sink, error)
    rest = decoder.take_rest() if over else b""
    if rest:
        sink.lines.append("rest " + rest.decode("latin-1"))
    return sink.lines


def read_responses(codec: Codec, method: bytes, pieces: Iterable[bytes]) -> tuple[list[str], bool]:
    sink = Transcript()
    decoder = codec.response_decoder(sink, HeadLimits())
    decoder.expect(method)
    try:
        for piece in pieces:
            decoder.feed(piece)
        reusable = decoder.reusable
        decoder.eof()
    except BadMessage as error:
        assert not decoder.reusable
        return settled(sink, error), False
    rest = decoder.take_rest()
    if rest:
        sink.lines.append("rest " + rest.decode("latin-1"))
    return sink.lines, reusable


def settled(sink: Transcript, error: BadMessage) -> list[str]:
    """A message that was refused in its body counts as refused: its head is no line of its own.

    How much of the body was told before the error depends on the pieces, so it is left out.
    """
    lines = sink.lines[:-1] if sink.inside else sink.lines
    return [*lines, "!" + error.kind.name]


def splits(octets: bytes) -> Iterable[list[bytes]]:
    """Whole, byte by byte, and cut once at every place."""
    yield [octets]
    yield [octets[i : i + 1] for i in range(len(octets))]
    for at in range(1, len(octets)):
        yield [octets[:at], octets[at:]]


@pytest.fixture(params=["httptools", "h11"])
def codec(request: pytest.FixtureRequest) -> Codec:
    return load_codec(request.param)


@pytest.mark.parametrize(
    ("octets", "expected"), [pytest.param(*case[1:], id=case[0]) for case in REQUESTS]
)
def test_requests(codec: Codec, octets: str, expected: list[str]) -> None:
    raw = octets.encode("latin-1")
    for pieces in splits(raw):
        assert read_requests(codec, pieces) == expected, pieces


@pytest.mark.parametrize(
    ("method", "octets", "expected", "reusable"),
    [pytest.param(*case[1:], id=case[0]) for case in RESPONSES],
)
def test_responses(
    codec: Codec, method: str, octets: str, expected: list[str], reusable: bool
) -> None:
    raw = octets.encode("latin-1")
    for pieces in splits(raw):
        found = read_responses(codec, method.encode("ascii"), pieces)
        assert found == (expected, reusable), pieces


@pytest.mark.parametrize("cases", [REQUESTS, RESPONSES], ids=["requests", "responses"])
def test_cases_have_names_of_their_own(cases: list[list[Any]]) -> None:
    names = [case[0] for case in cases]
    assert len(set(names)) == len(names)
