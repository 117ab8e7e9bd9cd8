"""The filter finds a graceful GOAWAY wherever reads cut it, and frames that are too long."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.connectors.frames import FrameFilter
from gateway.h1.codec import BadMessage


def frame(kind: int, payload: bytes, stream: int = 1) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, 0)) + stream.to_bytes(4, "big") + payload


def goaway(last: int, code: int = 0, debug: bytes = b"") -> bytes:
    return frame(7, last.to_bytes(4, "big") + code.to_bytes(4, "big") + debug, 0)


def passed(data: bytes, size: int) -> tuple[bytes, list[int]]:
    told: list[int] = []
    frames = FrameFilter(told.append)
    return b"".join(frames.feed(data[at : at + size]) for at in range(0, len(data), size)), told


@pytest.mark.parametrize("size", [1, 2, 8, 9, 10, 17, 100, 100_000])
def test_a_graceful_goaway_is_told_and_left_out(size: int) -> None:
    data, settings = frame(0, b"x" * 300), frame(4, b"", 0)
    octets = settings + data + goaway(2**31 - 1, debug=b"bye") + data + goaway(7) + data
    assert passed(octets, size) == (settings + data * 3, [2**31 - 1, 7])


@pytest.mark.parametrize("size", [1, 9, 100_000])
def test_an_error_goes_on_and_so_does_a_malformed_one(size: int) -> None:
    for octets in (goaway(5, 2), frame(7, b"short", 0)):
        assert passed(octets + frame(6, b"12345678", 0), size) == (
            octets + frame(6, b"12345678", 0),
            [],
        )


@pytest.mark.parametrize("kind", [0, 1, 7, 200])
def test_a_frame_that_is_too_long_is_refused_by_its_head(kind: int) -> None:
    whole = frame(kind, b"x" * 16_384)
    assert passed(whole, 1000)[0] == whole or kind == 7
    with pytest.raises(BadMessage, match="too long"):
        passed(frame(kind, b"x" * 16_385)[:9], 9)


def test_the_reserved_bit_is_no_part_of_the_stream() -> None:
    assert passed(goaway(2**31 | 9), 100)[1] == [9]


some_frames = st.one_of(
    st.builds(frame, st.integers(0, 255).filter(lambda kind: kind != 7), st.binary(max_size=40)),
    st.builds(goaway, st.integers(0, 2**31 - 1), st.integers(0, 3), st.binary(max_size=10)),
)


@given(st.lists(some_frames, max_size=8), st.integers(1, 30))
def test_any_cut_gives_the_same(sequence: list[bytes], size: int) -> None:
    kept = [
        octets for octets in sequence if octets[3] != 7 or int.from_bytes(octets[13:17], "big") != 0
    ]
    told = [
        int.from_bytes(octets[9:13], "big")
        for octets in sequence
        if octets[3] == 7 and int.from_bytes(octets[13:17], "big") == 0
    ]
    assert passed(b"".join(sequence), size) == (b"".join(kept), told)


@given(st.binary(max_size=200), st.integers(1, 20))
def test_garbage_is_nothing_to_it(data: bytes, size: int) -> None:
    try:
        out, _ = passed(data, size)
    except BadMessage:
        assert any(data[at] or data[at + 1] >= 0x40 for at in range(len(data) - 1))
    else:
        assert len(out) <= len(data)
