"""The Date field: the RFC's example, and a new value each second only."""

from __future__ import annotations

from gateway.clock import MS, SECOND
from gateway.h1.dates import HttpDate


def test_the_example_of_the_rfc() -> None:
    date = HttpDate()
    assert date.of(784_111_777 * SECOND + 999 * MS) == b"Sun, 06 Nov 1994 08:49:37 GMT"


def test_a_value_lasts_for_its_second_and_time_may_go_back() -> None:
    date = HttpDate()
    first = date.of(784_111_777 * SECOND)
    assert date.of(784_111_777 * SECOND + 999 * MS) is first
    assert date.of(784_111_778 * SECOND) == b"Sun, 06 Nov 1994 08:49:38 GMT"
    assert date.of(784_111_777 * SECOND) == first
