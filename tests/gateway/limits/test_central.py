"""A row in front of the store: what it asks, what it takes from its purse, what it tells."""

from __future__ import annotations

import pytest

from gateway.limits.central import GRANT_LIFE_NS, CentralLimit, CentralRow, NoStore
from gateway.limits.central_script import arguments
from gateway.limits.gcra import Gcra
from gateway.limits.policy import LimitSet, Rule
from gateway.limits.settled import Settled, central_of, unwrapped
from gateway.limits.verdict import NEVER, ROOM
from gateway.limits.window import Window

SECOND = 1_000_000_000
MS = 1_000_000


class Store:
    """Notes what it is charged with."""

    def __init__(self) -> None:
        self.up = True
        self.epoch = 1
        self.charged: list[tuple[bytes, int]] = []

    def charge(self, row: CentralRow, cost: int, now_ns: int) -> None:
        self.charged.append((row.key, cost))


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def limit(store: Store) -> CentralLimit:
    limit = CentralLimit(Gcra("l", 10, SECOND, 5), store, b"prefix", 3)
    limit.configure(10, SECOND, 5, window=False, aligned=False)
    return limit


def test_without_the_store_the_row_behind_decides(limit: CentralLimit, store: Store) -> None:
    store.up = False
    row = limit.entry(b"", 0)
    for _ in range(5):
        assert row.ask(1, 0) == ROOM
        row.take(1, 0)
    assert row.ask(1, 0) == pytest.approx(100 * MS, abs=10)
    assert store.charged == []


def test_with_it_the_row_behind_only_counts(limit: CentralLimit, store: Store) -> None:
    row = limit.entry(b"", 0)
    row.inner.take(5, 0)
    assert row.ask(1, 0) == ROOM and row.wants(1, 0)
    row.granted(1, 0)
    assert not row.wants(1, 0)
    row.take(1, 0)
    assert row.level(0) == pytest.approx(6.0)
    assert store.charged == []


def test_a_purse_does_not_last(limit: CentralLimit, store: Store) -> None:
    row = limit.entry(b"", 0)
    row.granted(3, 0)
    row.take(1, GRANT_LIFE_NS - 1)
    assert row.purse == 2
    assert row.wants(1, GRANT_LIFE_NS)
    row.granted(1, GRANT_LIFE_NS)
    assert row.purse == 1, "what is stale is not added to"


def test_what_was_not_granted_is_charged(limit: CentralLimit, store: Store) -> None:
    row = limit.entry(b"k", 0)
    row.granted(2, 0)
    row.take(5, 0)
    assert store.charged == [(b"k", 3)]
    assert row.purse == 0


def test_closed_for_that_cost_and_greater_ones(limit: CentralLimit) -> None:
    row = limit.entry(b"", 0)
    row.refused(3, 200 * MS, 0)
    assert row.ask(3, 50 * MS) == row.ask(4, 50 * MS) == 150 * MS
    assert row.ask(2, 50 * MS) == ROOM and row.wants(2, 50 * MS)
    row.refused(2, 10 * MS, 50 * MS)
    assert row.ask(2, 50 * MS) == 10 * MS
    assert row.ask(3, 60 * MS) == ROOM, "the store may be asked"


def test_a_cost_over_the_burst_is_never_asked_for(limit: CentralLimit) -> None:
    assert limit.entry(b"", 0).ask(6, 0) == NEVER


def test_names_are_hashed_and_the_clusters_own(store: Store) -> None:
    def name(prefix: bytes, key: bytes) -> bytes:
        return CentralLimit(Gcra("l", 1, 1, 1), store, prefix, 1).entry(key, 0).name

    names = {name(prefix, key) for prefix in (b"a", b"b") for key in (b"secret", b"other")}
    assert len(names) == 4
    assert all(found.startswith(b"egressd:") and b"secret" not in found for found in names)
    assert name(b"a", b"secret") in names


def test_the_table_is_bounded_and_who_waits_stays(limit: CentralLimit) -> None:
    limit.entry(b"0", 0).waiting = object()
    for number in range(1, 20):
        limit.entry(b"%d" % number, 0)
    assert len(limit) == 3
    assert limit.peek(b"0") is not None


def told(row: CentralRow, now_ns: int = 0) -> tuple[float, int]:
    """(what the next question says is used, its flags)."""
    *_, level, flags = arguments((row,), (1,), 1, now_ns)
    assert isinstance(level, float) and isinstance(flags, int)
    return level, flags


def test_what_a_question_tells(limit: CentralLimit, store: Store) -> None:
    row = limit.entry(b"", 0)
    row.inner.take(3, 0)
    assert told(row) == (pytest.approx(3.0), 1)
    assert told(row)[1] == 0, "once is enough"
    store.epoch += 1  # it was gone and came back
    assert told(row)[1] == 1
    limit.dry_run = True
    assert told(row)[1] == 2
    row.was_cleared()
    assert told(row)[1] == 6
    assert told(row)[1] == 2


def test_a_pauses_end_and_the_upstreams_word_are_told(limit: CentralLimit) -> None:
    row = limit.entry(b"", 0)
    told(row)
    row.granted(2, 0)
    row.fill(0)
    assert row.purse == 0
    assert told(row) == (pytest.approx(5.0), 1)
    other = limit.entry(b"o", 0)
    told(other)
    assert not other.learn(9, 0, 0)
    assert told(other)[1] == 0
    assert other.learn(2, 0, 0)
    assert told(other) == (pytest.approx(3.0), 1)


def test_a_scaled_rate_scales_the_waits_and_not_what_is_used(limit: CentralLimit) -> None:
    row = limit.entry(b"", 0)
    assert isinstance(limit.inner, Gcra)
    row.inner.take(4, 0)
    row.refused(1, 100 * MS, 0)
    limit.inner.scale(0.1, 0)
    limit.scale(0.1, 0)
    assert row.ask(1, 0) == pytest.approx(SECOND)
    assert told(row)[0] == pytest.approx(4.0)
    limit.scale(0.5, SECOND // 2)
    assert row.ask(1, SECOND // 2) == pytest.approx(100 * MS)


def test_the_arguments_of_smooth_limits_and_windows(store: Store) -> None:
    smooth = CentralLimit(Gcra("s", 100, SECOND, 7), store, b"s", 1)
    smooth.configure(100, SECOND, 7, window=False, aligned=False)
    smooth.factor = 0.5
    aligned = CentralLimit(Window("w", 60, 60 * SECOND), store, b"w", 1)
    aligned.configure(60, 60 * SECOND, 1, window=True, aligned=True)
    rows = (smooth.entry(b"", 0), aligned.entry(b"", 0))
    rows[1].inner.take(9, 0)
    count, *rest = arguments(rows, (2, 3), 4, 0)
    assert count == 2
    assert rest[:2] == [row.name for row in rows]
    assert rest[2] == 4
    assert rest[3:9] == [2, 7, pytest.approx(100 * 0.5 / 1e6), 0, 0.0, 1]
    assert rest[9:] == [3, 60, pytest.approx(1 / 1e6), -60_000_000, 9.0, 1]


def test_what_is_behind(limit: CentralLimit) -> None:
    settled = Settled(limit, 5, 100, 10)
    assert central_of(settled) is limit is central_of(limit)
    assert unwrapped(settled) is limit.inner
    assert central_of(limit.inner) is None
    assert limit.remaining(limit.entry(b"", 0), 0)[0] == 5
    limit.name = "other"
    assert limit.inner.name == "other"


def test_a_request_is_clear_if_nothing_holds_it_up(limit: CentralLimit) -> None:
    local = Gcra("own", 1, SECOND, 1)
    limits = LimitSet([Rule(limit, 10, SECOND), Rule(local, 1, SECOND)])
    rows = limits.rows((b"", b""), 0)
    assert limits.is_clear(rows, (1, 1), 0, in_line=False)
    rows[0].waiting = object()
    assert not limits.is_clear(rows, (1, 1), 0, in_line=False)
    assert limits.is_clear(rows, (1, 1), 0, in_line=True)
    local.entry(b"", 0).take(1, 0)
    assert not limits.is_clear(rows, (1, 1), 0, in_line=True)
    local.dry_run = True
    assert limits.is_clear(rows, (1, 1), 0, in_line=True)


def test_no_store_is_never_up(limit: CentralLimit) -> None:
    nobody = NoStore()
    assert not nobody.up and not nobody.ask(object(), 0) and nobody.document() is None


def test_it_foresees_what_the_store_told_and_no_answer(limit: CentralLimit, store: Store) -> None:
    row = limit.entry(b"", 0)
    assert not row.foresees(1, 0)  # nobody has asked yet
    row.refused(3, SECOND, 0)
    assert row.ask(3, 0) == SECOND
    assert row.foresees(3, 0)
    assert not row.foresees(1, 0)  # a smaller cost may have room
    store.up = False
    row.inner.take(5, 0)
    assert row.ask(1, 0) > 0
    assert row.foresees(1, 0)
