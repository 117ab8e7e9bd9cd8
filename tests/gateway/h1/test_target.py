"""Targets and authorities: what is compared is normal, what is sent on is untouched."""

from __future__ import annotations

import pytest

from gateway.h1.codec import BadMessage
from gateway.h1.target import AbsoluteTarget, split_absolute, split_authority


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (b"http://A.Example", (b"http", b"a.example", 80, b"/")),
        (b"HTTP://a.example/", (b"http", b"a.example", 80, b"/")),
        (b"https://a.example/B/%7e/../c?D=/e", (b"https", b"a.example", 443, b"/B/%7e/../c?D=/e")),
        (b"https://a.example:8443//", (b"https", b"a.example", 8443, b"//")),
        (b"http://a.example?b=http://c/", (b"http", b"a.example", 80, b"/?b=http://c/")),
        (b"http://a.example:/b", (b"http", b"a.example", 80, b"/b")),
        (b"http://[2001:DB8::1]:81/b", (b"http", b"[2001:db8::1]", 81, b"/b")),
        (b"http://a.example/@b", (b"http", b"a.example", 80, b"/@b")),
        (b"http://a.example?@b", (b"http", b"a.example", 80, b"/?@b")),
    ],
)
def test_absolute_form(target: bytes, expected: tuple[bytes, bytes, int, bytes]) -> None:
    assert split_absolute(target) == AbsoluteTarget(*expected)


def test_9112_3_2_4_options_for_the_whole_server() -> None:
    assert split_absolute(b"http://a.example", b"OPTIONS").path == b"*"
    assert split_absolute(b"http://a.example/", b"OPTIONS").path == b"/"
    assert split_absolute(b"http://a.example?b", b"OPTIONS").path == b"/?b"


@pytest.mark.parametrize(
    "target", [b"", b"/", b"http", b"http:", b"http://", b"http:///", b"http://@a/", b"gopher://a/"]
)
def test_what_is_no_absolute_form(target: bytes) -> None:
    with pytest.raises(BadMessage):
        split_absolute(target)


def test_authority() -> None:
    assert split_authority(b"A.example", 80) == (b"a.example", 80)
    assert split_authority(b"a_b.example.:8080", 80) == (b"a_b.example.", 8080)
    assert split_authority(b"[::FFFF:1.2.3.4]:1", 80) == (b"[::ffff:102:304]", 1)
    assert split_authority(b"[2001:DB8:0::0001]", 80) == (b"[2001:db8::1]", 80)
    assert split_authority(b"a:443") == (b"a", 443)
    assert split_authority(b"a:00443") == (b"a", 443)
    with pytest.raises(BadMessage):
        split_authority(b"a")
    with pytest.raises(BadMessage):
        split_authority(b"a:" + b"0" * 300 + b"1", 80)


def test_refusals_are_not_remembered() -> None:
    before = split_authority.cache_info().currsize
    for number in range(5):
        with pytest.raises(BadMessage):
            split_authority(b"not valid %d" % number, 80)
    assert split_authority.cache_info().currsize == before
