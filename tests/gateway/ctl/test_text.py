"""Values on a terminal: one line, printable, whatever they were."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.admin.items import (
    BREAKER_ITEM,
    CLIENT_ITEM,
    LIMIT_ITEM,
    MEMBER_ITEM,
    NODE_ITEM,
    POOL_ITEM,
    RECENT_ITEM,
    ROW_ITEM,
    UPSTREAM_ITEM,
    WAIT_ITEM,
)
from gateway.admin.spooled import RECORD_ITEM
from gateway.ctl.text import COLUMNS, Column, key_text, ms_text, plain_table, shown

ITEMS = {
    "nodes": NODE_ITEM, "members": MEMBER_ITEM, "upstreams": UPSTREAM_ITEM, "limits": LIMIT_ITEM,
    "breakers": BREAKER_ITEM, "waits": WAIT_ITEM, "pools": POOL_ITEM, "clients": CLIENT_ITEM,
    "recent": RECENT_ITEM, "rows": ROW_ITEM, "spool": RECORD_ITEM,
}  # fmt: skip


def test_every_column_is_of_a_key_that_the_interface_tells() -> None:
    assert set(COLUMNS) == set(ITEMS)
    for name, columns in COLUMNS.items():
        assert {column.key for column in columns} <= set(ITEMS[name]["properties"])


@given(value=st.text() | st.dictionaries(st.text(), st.text()) | st.lists(st.text()))
def test_nothing_but_printable_characters_is_written(value: Any) -> None:
    assert shown(value).isprintable()
    if isinstance(value, dict):
        assert key_text(value).isprintable()


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (True, "yes"), (False, "no"), (0.5, "0.5"), (3.0, "3"), (7, "7"), ([], "-"),
     (["a", "b"], "a,b"), ({"a": 1, "b": None}, "a=1 b=-"), ({}, "-"), ("a\x1b[0m", "a\\x1b[0m"),
     ("\u202egnp", "\\u202egnp")],
)  # fmt: skip
def test_values(value: Any, text: str) -> None:
    assert shown(value) == text


@pytest.mark.parametrize(
    ("ms", "text"),
    [(None, "-"), (0, "0ms"), (0.25, "0.25ms"), (999, "999ms"), (1500, "1.5s"), (59_000, "59s"),
     (60_000, "1m"), (90_000, "1m"), (7_200_000, "2h"), (86_400_000, "1d")],
)  # fmt: skip
def test_durations(ms: float | None, text: str) -> None:
    assert ms_text(ms) == text


def test_columns_stand_under_their_heads() -> None:
    columns = (Column("name", "name"), Column("count", "count", None, True), Column("last", "last"))
    items = [
        {"name": "a", "count": 1, "last": None},
        {"name": "long-one", "count": 10_000, "last": "x"},
    ]
    assert plain_table(columns, items) == (
        "# name    count  last\na             1  -\nlong-one  10000  x\n"
    )
