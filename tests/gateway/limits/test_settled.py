"""Costs told afterwards: what is reserved, debt, credit, and lies."""

from __future__ import annotations

import pytest

from gateway.limits.gcra import Gcra
from gateway.limits.inflight import Inflight
from gateway.limits.policy import LimitSet, Rule
from gateway.limits.settled import Settled
from gateway.limits.verdict import ROOM
from gateway.limits.window import Window

S = 1_000_000_000


def made(burst: int = 100) -> tuple[Settled, Gcra]:
    inner = Gcra("tokens", 10, S, burst)
    return Settled(inner, reserve_max=burst, told_max=36_000, keys_max=10), inner


def test_the_first_request_reserves_one_and_then_the_mean() -> None:
    limit, _ = made()
    row = limit.entry(b"", 0)
    assert row.reserve() == 1
    row.settle(1, 30, 0)
    assert row.reserve() == 30
    row.settle(30, 10, 0)
    assert row.reserve() == 20


def test_the_mean_follows() -> None:
    limit, _ = made()
    row = limit.entry(b"", 0)
    for _ in range(100):
        row.settle(1, 10, 0)
    for _ in range(100):
        row.settle(1, 50, 0)
    assert 45 <= row.reserve() <= 50


def test_an_excess_is_debt() -> None:
    limit, inner = made(burst=10)
    row = limit.entry(b"", 0)
    row.take(1, 0)
    row.settle(1, 40, 0)
    assert inner.entry(b"", 0).level(0) == pytest.approx(40)
    assert row.ask(1, 0) == pytest.approx(3.1 * S, rel=1e-6)


def test_a_surplus_is_credit_and_spent_first() -> None:
    limit, inner = made(burst=10)
    row = limit.entry(b"", 0)
    row.take(10, 0)
    row.settle(10, 4, 0)
    assert row.credit == 6
    assert row.ask(6, 0) == ROOM  # although the bucket is full
    assert row.ask(7, 0) > 0
    row.take(6, 0)
    assert (row.credit, inner.entry(b"", 0).taken) == (0, 10)


def test_an_excess_takes_the_credit_first() -> None:
    limit, inner = made()
    row = limit.entry(b"", 0)
    row.take(10, 0)
    row.settle(10, 5, 0)
    row.settle(1, 4, 0)
    assert (row.credit, inner.entry(b"", 0).taken) == (2, 10)


@pytest.mark.parametrize("told", [-(10**30), 10**30])
def test_what_is_told_is_bounded(told: int) -> None:
    limit, inner = made()
    row = limit.entry(b"", 0)
    row.settle(1, told, 0)
    assert 0 <= inner.entry(b"", 0).level(0) <= 36_000
    assert 0 <= row.credit <= 1
    assert 1 <= row.reserve() <= 100


def test_it_stands_in_a_set_like_any_limit() -> None:
    limit, _ = made(burst=5)
    limits = LimitSet([Rule(limit, 10, S)])
    rows = limits.rows([b"key"], 0)
    assert limits.admit(rows, (5,), 0) is None
    refusal = limits.admit(rows, (1,), 0)
    assert refusal is not None
    limits.wait_at(refusal, 1)
    refusal.entry.waiting = "queue"
    assert limit.inner.entry(b"key", 0).waiting == "queue"
    limits.leave(refusal)
    assert limits.fields(rows, 0)[1] == (b"RateLimit", b'"tokens";r=0;t=1')


def test_it_goes_with_the_row_that_the_inner_table_has_now() -> None:
    inner = Window("w", 10, S, keys_max=1)
    limit = Settled(inner, 10, 100, 10)
    limit.entry(b"a", 0).take(10, 0)
    inner.entry(b"b", 0)
    row = limit.entry(b"a", 1)
    assert row.inner is inner.peek(b"a")


def test_name_and_dry_run_are_the_inner_limits() -> None:
    limit, inner = made()
    limit.dry_run = True
    limit.name = "other"
    assert (inner.dry_run, inner.name, limit.dry_run, limit.name) == (True, "other", True, "other")


def test_its_rows_are_bounded() -> None:
    limit, _ = made()
    for i in range(50):
        limit.entry(bytes([i]), 0)
    assert len(limit) == 10
    assert limit.started_full == 0


def test_clearing_a_row_leaves_its_credit() -> None:
    limit, inner = made()
    row = limit.entry(b"", 0)
    row.take(50, 0)
    row.settle(50, 20, 0)
    row.clear(0)
    assert (inner.entry(b"", 0).level(0), row.credit) == (0.0, 30)


def test_learning_counts_the_credit_as_left() -> None:
    limit, inner = made(burst=10)
    row = limit.entry(b"", 0)
    row.take(10, 0)
    row.settle(10, 4, 0)
    assert not row.learn(6, 0, 0)  # nothing in the bucket, six of credit
    assert row.learn(2, 0, 0)
    assert limit.remaining(row, 0) == (2, inner.remaining(inner.entry(b"", 0), 0)[1])
    row.settle(10, 4, 0)
    assert row.learn(0, 0, 0)
    assert limit.remaining(row, 0)[0] == 0


def test_a_lower_figure_than_the_buckets_ends_the_credit() -> None:
    limit, _ = made(burst=10)
    row = limit.entry(b"", 0)
    row.take(4, 0)
    row.settle(4, 1, 0)
    assert limit.remaining(row, 0)[0] == 9
    assert row.learn(5, 0, 0)
    assert limit.remaining(row, 0)[0] == 5


@pytest.mark.parametrize(
    ("inner", "foreseen"), [(Gcra("l", 1, S, 1), True), (Inflight("l", 1), False)]
)
def test_it_foresees_what_the_wrapped_limit_does(inner: Gcra | Inflight, foreseen: bool) -> None:
    row = Settled(inner, reserve_max=1, told_max=10, keys_max=10).entry(b"", 0)
    row.take(1, 0)
    assert row.ask(1, 0) == S
    assert row.foresees(1, 0) == foreseen
