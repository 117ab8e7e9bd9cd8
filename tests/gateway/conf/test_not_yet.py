"""A key that cannot be obeyed is a fault that says so, at its line."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gateway.conf.not_yet import NOT_YET, Row, unavailable
from gateway.conf.schema import Conf

Judged = Callable[..., list[str]]
Loaded = Callable[..., Conf]

A = '[upstream.a]\norigin = "https://a"\n'
LIMIT = A + '[[upstream.a.limit]]\nname = "l"\n'
RATE = LIMIT + 'rate = "1/s"\n'
CLIENT = '[[client]]\nname = "c"\n'

# For each row, by its key and what of it is unavailable: a text, and the place of its one fault.
# A row that goes from the table takes its case with it.
CASES: dict[tuple[str, str], tuple[str, str]] = {}


def _message(row: Row) -> str:
    what = f"{row.what} is" if row.what else "is"
    return f"{what} not available in this version; {row.instead}"


def _row(pattern: str, what: str) -> Row:
    (row,) = (row for row in NOT_YET if (row.pattern, row.what) == (pattern, what))
    return row


def test_every_row_has_its_case_and_every_case_its_row() -> None:
    rows = {(row.pattern, row.what) for row in NOT_YET}
    assert len(rows) == len(NOT_YET)
    assert rows - CASES.keys() == set(), "these rows need a case"
    assert CASES.keys() - rows == set(), "take these cases out"


@pytest.mark.parametrize(("pattern", "what"), CASES)
def test_what_this_version_has_not_got(pattern: str, what: str, judged: Judged) -> None:
    text, place = CASES[pattern, what]
    assert judged(text, TOKEN="t") == [f"{place}: {_message(_row(pattern, what))}"]


def test_a_value_that_is_wrong_by_itself_hides_no_other(
    judged: Judged, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = Row("redis", lambda value, _: value is not None, "", "leave it out")
    monkeypatch.setattr("gateway.conf.load.NOT_YET", (row,))
    found = judged(A + 'connections = 0\n[redis]\nurl = "redis://r"\n')
    assert [fault.partition(": ")[0] for fault in found] == ["3", "4"]
    assert found[1] == f"4: redis: {_message(row)}"


def test_what_it_has_is_no_fault(judged: Judged) -> None:
    text = (
        'listen = [{ bind = "127.0.0.1:1", proxy_protocol = [] }, { bind = "unix:/s" }]\n'
        'node.workers = 1\nadmin.bind = "unix:/a"\nforward.allow = []\n'
        '[upstream.a]\norigin = "https://a"\nprotocol = "http/1.1"\ntunnel = false\n'
        "wait.prefer = false\nretry.on = []\nlimit = [\n"
        '  { name = "a", rate = "1/s", sync = "mesh", learn = "adopt", cost = 1 },\n'
        '  { name = "b", rate = "1/s", sync = "local", cost = { header = "X-Cost" } },\n'
        '  { name = "c", rate = "1/s", algorithm = "window", learn = "off" },\n'
        '  { name = "f", rate = "1/s", sync = "exact" },\n'
        '  { name = "g", rate = "1/s", sync = "exact", algorithm = "window" },\n'
        '  { name = "d", in_flight = 1 },\n  { name = "e", in_flight = 1, sync = "mesh" },\n'
        "]\n" + CLIENT + 'source = ["::1"]\n'
    )
    assert judged(text) == []


@pytest.mark.usefixtures("all_available")
@pytest.mark.parametrize("row", NOT_YET, ids=lambda row: f"{row.pattern} {row.what}")
def test_every_row_of_the_table_names_a_key(row: Row, loaded: Loaded) -> None:
    seen = []

    def look(value: object, table: object) -> bool:
        seen.append(value)
        return True

    conf = loaded(RATE + CLIENT + 'source = ["::1"]\n[admin]\n[spool]\n')
    assert unavailable(conf, [row._replace(is_unavailable=look)])
    assert seen
