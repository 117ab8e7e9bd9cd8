"""Rows by pages: each once, in whatever order they are used meanwhile, and never many at a time."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.admin import tables
from gateway.admin.tables import Sought, Table, clear_row, clear_steps, page_steps
from gateway.admin.views import told_at_once
from gateway.clock import SECOND, monotonic_ns
from gateway.limits.gcra import Gcra
from gateway.limits.inflight import Inflight
from gateway.limits.window import Window
from gateway.proxy.keys import compile_key, key_of_parts, parts_of_key
from peers.simnet import Simulation

MakeServed = Callable[..., Any]
SERVED: Any = SimpleNamespace(
    name="gw-7",
    worker=SimpleNamespace(waitroom=SimpleNamespace(poke=lambda row: None)),
)


def table(*parts: str, limit: Any = None) -> Table:
    conf: Any = SimpleNamespace(key=parts)
    if limit is None:
        limit = Gcra("g", 10, SECOND, 5, keys_max=200_000, now_ns=monotonic_ns())
    return Table(conf, limit, parts)


def all_pages(found: Table, sought: Sought = tables.ALL, count: int = 7) -> list[dict[str, Any]]:
    """Every page to the last; the table is used in between, which changes its order."""
    rows: list[dict[str, Any]] = []
    after: bytes | None = None
    for _ in range(1000):
        page = told_at_once(page_steps(SERVED, found, sought, after, count))
        assert len(page["rows"]) <= count
        rows += page["rows"]
        if page["next"] is None:
            return rows
        after = bytes.fromhex(page["next"])
        for key in found.limit.keys()[::3]:
            found.limit.entry(key, monotonic_ns())
    raise AssertionError("no end")


@given(
    keys=st.sets(
        st.binary(max_size=6) | st.binary(min_size=250, max_size=300) | st.just(b"x" * 300),
        max_size=60,
    )
)
def test_each_row_is_shown_once(keys: set[bytes]) -> None:
    found = table("path")
    for key in keys:
        found.limit.entry(b"=" + key, monotonic_ns())
    shown = [row["key"]["path"].encode("latin-1") for row in all_pages(found)]
    assert sorted(shown) == sorted(keys)


def test_long_keys_that_begin_alike_are_told_apart() -> None:
    found = table("path")
    for number in range(20):
        found.limit.entry(b"=" + b"y" * 1000 + b"%d" % number, monotonic_ns())
    assert len(all_pages(found, count=3)) == 20


def test_a_page_of_very_long_keys_is_a_short_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "KEY_BYTES_A_PAGE_MAX", 2500)
    found = table("path")
    for number in range(9):
        found.limit.entry(b"=" + b"%d" % number * 1000, monotonic_ns())
    page = told_at_once(page_steps(SERVED, found, tables.ALL, None, 9))
    assert (len(page["rows"]), page["total"], page["next"] is None) == (2, 9, False)
    assert len(all_pages(found)) == 9


def test_a_limit_without_a_key_has_one_row() -> None:
    found = table()
    found.limit.entry(b"", monotonic_ns()).take(3, monotonic_ns())
    (row,) = all_pages(found)
    assert (row["key"], row["admitted_own"], row["node"]) == ({}, 3, "gw-7")
    assert 0.0 < row["level"] <= 3.0
    assert row["free"] >= 2


def key_of(parts: list[str], **values: Any) -> bytes:
    make = compile_key(parts)
    assert make is not None
    exchange: Any = SimpleNamespace(
        client=SimpleNamespace(name=values.get("client", "")),
        credential=lambda: values.get("credential", b""),
        fields=[(b"X-Tenant", values["tenant"])] if "tenant" in values else [],
    )
    return make(exchange)


@given(client=st.text("ab:=-1", max_size=5), credential=st.binary(max_size=16), tenant=st.binary())
def test_a_key_is_read_as_it_was_made(client: str, credential: bytes, tenant: bytes) -> None:
    parts = ["client", "credential", "header:x-tenant"]
    key = key_of(parts, client=client, credential=credential, tenant=tenant)
    assert parts_of_key(parts, key) == {
        "client": client,
        "credential": credential.hex() or None,
        "header:x-tenant": tenant.decode("latin-1"),
    }
    assert key_of_parts(parts, parts_of_key(parts, key)) == key
    single = key_of(["client"], client=client)
    assert parts_of_key(["client"], single) == {"client": client}
    if client.isascii():
        assert key_of_parts(["client"], {"client": client}) == single


def test_an_absent_part_is_null() -> None:
    parts = ["credential", "header:x-tenant"]
    absent = {"credential": None, "header:x-tenant": None}
    assert parts_of_key(parts, key_of(parts)) == absent
    assert key_of_parts(parts, absent) == key_of(parts)
    assert key_of_parts(["credential"], absent) == key_of(["credential"])
    assert parts_of_key(["header:x-tenant"], key_of(["header:x-tenant"])) == {
        "header:x-tenant": None
    }


def test_rows_are_sought_by_the_beginning_of_a_part() -> None:
    parts = ["client", "header:x-tenant"]
    found = table(*parts)
    for client in ("billing", "backup", "shop"):
        for tenant in (b"bx", b"sx"):
            key = key_of(parts, client=client, tenant=tenant)
            found.limit.entry(key, monotonic_ns())
    assert len(all_pages(found)) == 6
    assert len(all_pages(found, Sought("", "b"))) == 5
    assert len(all_pages(found, Sought("client", "b"))) == 4
    assert len(all_pages(found, Sought("client", "billing"))) == 2
    assert len(all_pages(found, Sought("header:x-tenant", "sx"))) == 3
    assert all_pages(found, Sought("client", "nobody")) == []


@pytest.mark.parametrize(
    ("limit", "level", "free"),
    [(Window("w", 10, 60 * SECOND), 3.0, 7), (Inflight("i", 10), 3.0, 7)],
)
def test_other_kinds_of_rows(limit: Any, level: float, free: int) -> None:
    now_ns = monotonic_ns()
    limit.entry(b"=a", now_ns).take(3, now_ns)
    (row,) = all_pages(table("client", limit=limit))
    assert (row["level"], row["free"], row["admitted_own"]) == (level, free, 3)


def test_clearing_one_row_and_all() -> None:
    found = table("client")
    for client in (b"a", b"b", b"c"):
        found.limit.entry(b"=" + client, monotonic_ns()).take(50, monotonic_ns())
    assert clear_row(SERVED, found, {"client": "b"}, monotonic_ns())
    for nobody in ("nobody", "\u20ac"):
        assert not clear_row(SERVED, found, {"client": nobody}, monotonic_ns())
    levels = [row["level"] for row in all_pages(found)]
    assert [level > 40.0 for level in levels] == [True, False, True]
    assert told_at_once(clear_steps(SERVED, found)) == 3
    assert [row["level"] for row in all_pages(found)] == [0.0, 0.0, 0.0]


def test_rows_of_an_exact_limit_are_shown_everywhere_and_cleared_by_their_keeper(
    bench: Simulation,
) -> None:
    """Half of the buckets are this node's; of the others it has rows, which count nothing."""
    tables_of = []
    for sim in bench.nodes:
        now_ns = bench.now_ns
        rate: dict[str, Any] = {"rate_count": 10, "rate_period_ns": SECOND, "burst": 5}
        made = sim.up.exact_limit("x", name="account", now_ns=now_ns, **rate)
        tables_of.append(table("client", limit=made))
    bench.run_for(5 * SECOND)  # all agree on the owners
    for number in range(8):
        for found in tables_of:
            found.limit.entry(b"=%d" % number, bench.now_ns).ask(1, bench.now_ns)
    for sim in bench.nodes:
        bench.after_step(sim)
    bench.run_for(5 * SECOND)  # what was leased and not spent has gone back
    kept = [
        {n for n in range(8) if found.limit.bucket(b"=%d" % n) is not None} for found in tables_of
    ]
    assert kept[0] | kept[1] == set(range(8))
    assert not kept[0] & kept[1]
    first = tables_of[0]
    assert [row["key"]["client"] for row in all_pages(first)] == [str(n) for n in range(8)]
    for name in first.limit.buckets():
        first.limit.ledgers[name].fill(bench.now_ns)
    mine, other = min(kept[0]), min(kept[1])
    row = first.limit.entry(b"=%d" % mine, bench.now_ns)
    assert row.level(bench.now_ns) == 5
    assert clear_row(SERVED, first, {"client": str(mine)}, bench.now_ns)
    assert row.level(bench.now_ns) == 0
    assert not clear_row(SERVED, first, {"client": "nobody"}, bench.now_ns)
    with pytest.raises(PermissionError):
        clear_row(SERVED, first, {"client": str(other)}, bench.now_ns)
    assert told_at_once(clear_steps(SERVED, first)) == len(kept[0])


def test_100_000_rows_are_never_looked_at_many_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    found = table("client")
    now_ns = monotonic_ns()
    for number in range(100_000):
        found.limit.entry(b"=client-%d" % number, now_ns)
    looked = 0

    def counted(*given: Any) -> Any:
        nonlocal looked
        looked += 1
        return parts_of_key(*given)

    monkeypatch.setattr(tables, "parts_of_key", counted)
    steps = 0
    for work in (
        page_steps(SERVED, found, Sought("client", "client-9"), None, 100),
        clear_steps(SERVED, found),
    ):
        for _ in work:
            # Some 4 us each: a step is at most about a millisecond.
            assert looked <= 200
            looked = 0
            steps += 1
    assert steps >= 2 * 100_000 // 200
