"""The judge of JSON values, held against what JSON Schema says of the same shapes."""

from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.admin.items import KEY
from gateway.admin.shapes import faults, integer, listed, maybe, record, text, truth

SHAPE = record(
    {
        "name": text(pattern="^[a-z]{1,5}$"),
        "state": text(enum=["open", "closed"]),
        "burst": integer(minimum=1, maximum=9),
        "rate": maybe(text(minLength=2, maxLength=4)),
        "on": truth(),
        "list": listed(integer()),
        "key": KEY,
    },
    optional=("burst", "rate", "list", "key"),
)
GOOD = {"name": "abc", "state": "open", "on": True}

LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 12), st.floats(0.1, 0.9),
    st.sampled_from(["", "a", "abc", "abcdef", "ab\n", "open", "xxxxx"]),
)  # fmt: skip
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner)
)


@given(
    value=st.dictionaries(st.sampled_from([*SHAPE["properties"], "other"]), VALUES)
    | st.fixed_dictionaries(
        {"name": LEAVES, "state": st.just("open"), "on": st.booleans()},
        optional={"burst": LEAVES, "rate": LEAVES, "key": VALUES, "list": VALUES},
    )
)
def test_it_says_what_json_schema_says(value: Any) -> None:
    assert (not faults(value, SHAPE)) == jsonschema_rs.validator_for(SHAPE).is_valid(value)


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"name": "ABC"}, "body.name must match ^[a-z]{1,5}$"),
        ({"name": "abc\n"}, "body.name must match ^[a-z]{1,5}$"),
        ({"state": "ajar"}, "body.state must be one of open, closed"),
        ({"burst": 0}, "body.burst must be at least 1"),
        ({"burst": 10}, "body.burst must be at most 9"),
        ({"burst": True}, "body.burst must be integer"),
        ({"rate": "x"}, "body.rate must have at least 2 characters"),
        ({"rate": "xxxxx"}, "body.rate must have at most 4 characters"),
        ({"rate": 7}, "body.rate must be string or null"),
        ({"on": 1}, "body.on must be boolean"),
        ({"list": [1, "2"]}, "body.list[1] must be integer"),
        ({"key": {"client": 1}}, "body.key.'client' must be string or null"),
    ],
)
def test_a_fault_says_where_and_what_is_allowed(changed: dict[str, Any], fault: str) -> None:
    assert faults({**GOOD, **changed}, SHAPE) == [fault]
    assert faults(GOOD, SHAPE) == []


def test_missing_and_unknown_keys_are_faults_and_there_is_an_end() -> None:
    assert faults({"name": "abc", "on": True}, SHAPE) == ["body.state is missing"]
    (unknown,) = faults({**GOOD, "x\u202e": 1}, SHAPE)
    assert unknown.startswith("body has no key 'x\\u202e'; it has name, state, ")
    assert len(faults({**GOOD, **{f"k{n}": n for n in range(100)}}, SHAPE)) == 20
    assert faults([], SHAPE) == ["body must be object"]
