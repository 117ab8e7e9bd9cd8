"""What is counted before it is parsed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.spool.bounded_json import Bounds, OutOfBounds, parse

NONE = Bounds(0, 0, 0)
AMPLE = Bounds(10_000, 10_000, 100)
_VALUES = st.recursive(
    st.one_of(st.integers(), st.text(), st.text('\\"{}[],:', max_size=6)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def _bounds(value: Any) -> Bounds:
    """What a value takes, counted from the value."""
    if isinstance(value, str):
        return Bounds(0, 2, 0)
    if isinstance(value, list):
        parts, own = [_bounds(each) for each in value], 0
    elif isinstance(value, dict):
        parts, own = [_bounds(each) for pair in value.items() for each in pair], len(value)
    else:
        return NONE
    return Bounds(
        2 + own + max(0, len(value) - 1) + sum(each.marks for each in parts),
        sum(each.quotes for each in parts),
        1 + max((each.depth for each in parts), default=0),
    )


@given(_VALUES, st.booleans())
def test_the_count_is_exact(value: Any, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only).encode()
    most = _bounds(value)
    assert parse(text, most) == value
    for name, count in most._asdict().items():
        if count:
            with pytest.raises(OutOfBounds):
                parse(text, most._replace(**{name: count - 1}))


@given(st.one_of(st.binary(), st.text('\\"{}[],: 0n').map(str.encode)))
def test_any_octets(value: bytes) -> None:
    try:
        found = parse(value, AMPLE)
    except ValueError:
        return
    assert found == json.loads(value)


@pytest.mark.parametrize("value", [b"NaN", b"[-Infinity]", b"\xff", b"", b"1 1", b'"\\x"'])
def test_no_json(value: bytes) -> None:
    with pytest.raises(ValueError) as caught:
        parse(value, AMPLE)
    assert not isinstance(caught.value, OutOfBounds)


def test_one_key_twice() -> None:
    with pytest.raises(OutOfBounds):
        parse(b'{"a": {"b": 1, "\\u0062": 2}}', AMPLE)
