"""Trace Context's own rules, and what may be said back to a client."""

from __future__ import annotations

import pytest

from gateway.h1.trace import is_request_id, trace_id

TRACE = b"4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = b"00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (b"00-%s-%s-01" % (TRACE, PARENT), True),
        (b"00-%s-%s-00" % (TRACE, PARENT), True),
        (b"01-%s-%s-01" % (TRACE, PARENT), True),
        (b"cc-%s-%s-01-what-comes-later" % (TRACE, PARENT), True),
        (b"00-%s-%s-01-more" % (TRACE, PARENT), False),  # version 00 has no more
        (b"cc-%s-%s-01.more" % (TRACE, PARENT), False),
        (b"ff-%s-%s-01" % (TRACE, PARENT), False),
        (b"00-%s-%s-01" % (TRACE.upper(), PARENT), False),
        (b"00-%s-%s-01" % (b"0" * 32, PARENT), False),
        (b"00-%s-%s-01" % (TRACE, b"0" * 16), False),
        (b"00-%s-%s" % (TRACE, PARENT), False),
        (b"00-%s-%s-01,00-%s-%s-01" % (TRACE, PARENT, TRACE, PARENT), False),
        (b" 00-%s-%s-01" % (TRACE, PARENT), False),
        (b"00-%s-%s-01\n" % (TRACE, PARENT), False),
        (b"", False),
    ],
)
def test_the_trace_id(value: bytes, found: bool) -> None:
    assert trace_id(value) == (TRACE.decode() if found else "")


@pytest.mark.parametrize(
    ("value", "usable"),
    [
        (b"x", True),
        (b"7f9c2ba4-e88f-11ee/a:b=~!", True),
        (b"x" * 128, True),
        (b"x" * 129, False),
        (b"", False),
        (b"a b", False),
        (b"\xe9", False),
        (b"a\x00", False),
    ],
)
def test_what_can_be_said_back(value: bytes, usable: bool) -> None:
    assert is_request_id(value) is usable
