"""The tables of spellings: right for every spelling, and bounded."""

from __future__ import annotations

import pytest

from gateway.h1 import names


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (b"hOsT", names.HOST),
        (b"CONTENT-length", names.CONTENT_LENGTH),
        (b"Content_Length", names.PLAIN),
        (b"X-Forwarded-Anything", names.FORWARDED),
        (b"x-forwardedfor", names.PLAIN),
        (b"Proxy-Connection", names.HOP),
        (b"~!#$%&'*+-.^_`|", names.PLAIN),
        (b"", names.INVALID),
        (b"A\n", names.INVALID),
        (b"Host ", names.INVALID),
    ],
)
def test_kinds(name: bytes, kind: int) -> None:
    assert names.KIND[name] == kind
    assert names.KIND[name] == kind  # and again, when it is remembered
    assert names.LOWER[name] == name.lower()


def test_invented_names_cost_no_memory() -> None:
    for number in range(5000):
        assert names.KIND[b"x-invented-%d" % number] == names.PLAIN
        assert names.LOWER[b"X-Invented-%d" % number] == b"x-invented-%d" % number
    assert len(names.KIND) <= 1024
    assert len(names.LOWER) <= 1024
    assert names.KIND[b"Host"] == names.HOST


def test_long_and_invalid_names_are_not_remembered() -> None:
    for name in (b"a" * 65, b"in valid"):
        assert names.KIND[name] in (names.PLAIN, names.INVALID)
        assert name not in names.KIND
    assert names.LOWER[b"A" * 65] == b"a" * 65
    assert b"A" * 65 not in names.LOWER
