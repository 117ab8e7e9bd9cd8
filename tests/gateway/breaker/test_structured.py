"""RateLimit fields in all their drafts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.breaker.structured import Allowance, quota_of, read_rate_limit


@pytest.mark.parametrize(
    ("value", "items"),
    [
        (b'"default";r=50;t=30', [Allowance("default", None, 50, 30)]),
        (b'"a";r=0, "b";r=1;t=2', [Allowance("a", None, 0, None), Allowance("b", None, 1, 2)]),
        (b"quota;t=1", [Allowance("quota", None, None, 1)]),
        (b'"a";r=5;t=6;pk=:aGk=:', [Allowance("a", None, 5, 6)]),
        (b"limit=10, remaining=3, reset=4", [Allowance("", 10, 3, 4)]),
        (b"limit=10,reset=4", [Allowance("", 10, None, 4)]),
        (b"", []),
        (b"limit=10", []),
        (b'"a";r', []),
        (b'"a";r=1.5', []),
        (b'"a";r=-1', []),
        (b'"a";r="1"', []),
        (b'"a";r=1;t', []),
        (b'"a";r=1 "b";r=2', []),
        (b'("a");r=1', []),
        (b"5;r=1", []),
        (b'"a";r=9999999999999999', []),
        (b'"a";r=1;t=@99999999999999', []),
        (b"\xff\xfe", []),
        (b'"a";r=1,' * 10_000, []),
    ],
)
def test_rate_limit(value: bytes, items: list[Allowance]) -> None:
    assert read_rate_limit(value) == items


def test_no_more_than_thirty_two_items() -> None:
    assert len(read_rate_limit(b", ".join([b'"a";r=1'] * 100))) == 32


@pytest.mark.parametrize(
    ("value", "quotas"),
    [
        (b'"burst";q=100;w=60, "daily";q=1000;w=86400', {"burst": 100, "daily": 1000}),
        (b"100;w=60", {"": 100}),
        (b'"a";w=60', {}),
        (b'"a";q="x"', {}),
        (b"((", {}),
        (b"x" * 5000, {}),
    ],
)
def test_policies(value: bytes, quotas: dict[str, int]) -> None:
    assert quota_of(value) == quotas


@given(st.one_of(st.binary(), st.text(alphabet='abrtq"=;:, ()@?0123456789.-*%').map(str.encode)))
def test_garbage_never_raises(value: bytes) -> None:
    for item in read_rate_limit(value):
        assert item.remaining is None or item.remaining >= 0
        assert item.reset_s is None or item.reset_s >= 0
    assert all(quota >= 0 for quota in quota_of(value).values())
