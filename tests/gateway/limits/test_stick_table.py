"""The table of rows: bound, order of eviction, pins, size."""

from __future__ import annotations

import gc
import tracemalloc

import pytest

from gateway.limits.gcra import Gcra
from gateway.limits.inflight import Inflight
from gateway.limits.share import even_share
from gateway.limits.window import Window

S = 1_000_000_000


def test_the_least_recently_used_goes_first() -> None:
    limit = Gcra("k", 10, S, 5, keys_max=3)
    for key in (b"a", b"b", b"c"):
        limit.entry(key, 0)
    limit.entry(b"a", 0)
    limit.entry(b"d", 0)
    assert [row.key for row in limit] == [b"c", b"a", b"d"]
    assert limit.evicted == 1


def test_peeking_is_no_use() -> None:
    limit = Gcra("k", 10, S, 5, keys_max=2)
    limit.entry(b"a", 0)
    limit.entry(b"b", 0)
    assert limit.peek(b"a") is not None
    limit.entry(b"c", 0)
    assert limit.peek(b"a") is None


def test_a_row_is_the_same_until_it_goes() -> None:
    limit = Gcra("k", 10, S, 5, keys_max=1)
    row = limit.entry(b"a", 0)
    assert limit.entry(b"a", 1) is row
    limit.entry(b"b", 1)
    assert limit.entry(b"a", 1) is not row


def test_rows_in_use_stay_and_the_table_comes_back_to_its_size() -> None:
    limit = Gcra("k", 10, S, 5, keys_max=10)
    waiting = [limit.entry(bytes([i]), 0) for i in range(10)]
    for row in waiting:
        row.waiting = object()
    for i in range(50):
        limit.entry(b"new" + bytes([i]), 0)
    assert all(limit.peek(row.key) is row for row in waiting)
    assert len(limit) <= 10 + 10
    assert limit.overflows > 0
    for row in waiting:
        row.waiting = None
    for i in range(50, 70):
        limit.entry(b"new" + bytes([i]), 0)
    assert len(limit) == 10


def test_a_look_up_turns_few_rows_however_many_are_in_use() -> None:
    limit = Gcra("k", 10, S, 5, keys_max=100)
    for i in range(100):
        limit.entry(bytes([i]), 0).waiting = object()
    limit.entry(b"new", 0)
    turned = [row.key for row in limit].index(bytes([99]))
    assert 100 - 1 - turned <= 16


def test_shrinking_after_a_reload() -> None:
    limit = Gcra("k", 10, S, 5, keys_max=10)
    rows = [limit.entry(bytes([i]), 0) for i in range(10)]
    rows[0].waiting = object()
    limit.keys_max = 3
    assert limit.shrink(0) == 7
    assert limit.peek(rows[0].key) is rows[0]
    assert limit.shrink(0) == 0


def test_fullness_ends_when_the_memory_has_faded() -> None:
    limit = Gcra("k", 10, S, 5, keys_max=1)  # memory: 2 x 5 / 10 per second = 1 s
    limit.entry(b"a", 0).take(1, 0)
    limit.entry(b"b", 0)
    assert limit.starts_full(S - 1)
    assert not limit.starts_full(S)


def test_no_table_is_endless_or_empty() -> None:
    with pytest.raises(ValueError):
        Gcra("k", 10, S, 5, keys_max=0)


@pytest.mark.parametrize(
    "limit",
    [
        Gcra("k", 100, S, 10, keys_max=50_000),
        Window("k", 100, S, keys_max=50_000),
        Inflight("k", 9, keys_max=50_000),
    ],
    ids=lambda limit: type(limit).__name__,
)
def test_a_row_costs_at_most_400_octets(limit: Gcra | Window | Inflight) -> None:
    gc.collect()
    tracemalloc.start()
    for i in range(20_000):
        limit.entry(i.to_bytes(16, "big"), 10**12 + i).take(1, 10**12 + i)
    octets = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert octets / 20_000 <= 400


def test_even_shares_sum_to_the_whole() -> None:
    for whole in range(30):
        for members in range(1, 9):
            parts = [even_share(whole, members, rank) for rank in range(members)]
            assert sum(parts) == whole
            assert max(parts) - min(parts) <= 1


@pytest.mark.parametrize(("members", "rank"), [(0, 0), (2, 2), (2, -1)])
def test_no_share_for_strangers(members: int, rank: int) -> None:
    with pytest.raises(ValueError):
        even_share(10, members, rank)


def test_keys_are_a_copy_in_the_order_of_making() -> None:
    limit = Gcra("g", 10, 1_000_000_000, 5, keys_max=3)
    for key in (b"a", b"b", b"c", b"a"):
        limit.entry(key, 0)
    keys = limit.keys()
    limit.entry(b"d", 0)
    assert keys == [b"a", b"b", b"c"]
    assert sorted(limit.keys()) == [b"a", b"c", b"d"]


def test_forgiving_the_table_ends_its_fullness() -> None:
    limit = Gcra("g", 10, 1_000_000_000, 5, keys_max=1)
    limit.entry(b"a", 0).take(5, 0)
    limit.entry(b"b", 0)
    assert limit.starts_full(0)
    limit.forgive()
    assert not limit.starts_full(0)
