"""All or none, what counts as demand, dry runs, and what clients are told."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.limits.gcra import Gcra
from gateway.limits.inflight import Inflight
from gateway.limits.policy import (
    COST_OVER_BURST,
    FULL,
    OTHERS_WAIT,
    LimitSet,
    Refusal,
    Rule,
)
from gateway.limits.verdict import NEVER, ROOM, Entry, Limit, Reject
from gateway.limits.window import Window

S = 1_000_000_000


class FakeRow:
    """An Entry that answers what it is told to, and writes down what is done to it."""

    def __init__(self, limit: FakeLimit) -> None:
        self.limit = limit
        self.waiting: Any = None
        self.wait_ns = ROOM
        self.asked = 0
        self.taken = 0
        self.arrived = 0
        self.held = 0
        self.given = 0

    def ask(self, cost: int, now_ns: int) -> int:
        self.asked += 1
        return self.wait_ns

    def take(self, cost: int, now_ns: int) -> None:
        self.taken += cost

    def arrive(self, cost: int, now_ns: int) -> None:
        self.arrived += cost

    def hold(self, cost: int) -> None:
        self.held += cost

    def learn(self, remaining: int, sent_ns: int, now_ns: int) -> bool:
        return False

    def give_back(self, cost: int, now_ns: int) -> None:
        self.given += cost


class FakeLimit:
    def __init__(self, name: str) -> None:
        self.name = name
        self.dry_run = False
        self.row = FakeRow(self)

    def entry(self, key: bytes, now_ns: int) -> FakeRow:
        return self.row

    def remaining(self, entry: Any, now_ns: int) -> tuple[int, int]:
        return 3, 1500 * 10**6


def made(count: int, in_flight: int | None = None) -> tuple[LimitSet, list[FakeRow]]:
    limits = [FakeLimit("abc"[i]) for i in range(count)]
    rules = [Rule(limit, 10, S, in_flight=i == in_flight) for i, limit in enumerate(limits)]
    return LimitSet(rules), [limit.row for limit in limits]


def admit(
    limits: LimitSet, costs: tuple[int, ...], waited: Refusal | None = None
) -> Refusal | None:
    return limits.admit(limits.rows([b""] * len(costs), 0), costs, 0, waited)


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_all_agree_all_are_taken_from(count: int) -> None:
    limits, rows = made(count)
    costs = (1, 2, 3)[:count]
    assert admit(limits, costs) is None
    assert [row.taken for row in rows] == list(costs)
    assert [row.arrived for row in rows] == list(costs)
    assert [row.asked for row in rows] == [1] * count
    assert limits.admitted == 1


@pytest.mark.parametrize("refusing", [0, 1, 2])
def test_one_refuses_none_is_taken_from(refusing: int) -> None:
    limits, rows = made(3)
    rows[refusing].wait_ns = 7
    refusal = admit(limits, (1, 1, 1))
    assert refusal is not None
    assert (refusal.index, refusal.retry_after_ns, refusal.sole) == (refusing, 7, True)
    assert refusal.entry is rows[refusing]
    assert refusal.reject() == Reject("abc"[refusing], FULL, 7)
    assert [row.taken for row in rows] == [0, 0, 0]
    assert [row.asked for row in rows] == [1, 1, 1]  # never twice: a row may answer by chance
    assert limits.refused == [int(i == refusing) for i in range(3)]


def test_demand_counts_only_where_all_siblings_have_room() -> None:
    limits, rows = made(3)
    rows[1].wait_ns = 7
    refusal = admit(limits, (1, 1, 1))
    assert refusal is not None
    limits.wait_at(refusal, 1)
    assert [row.arrived for row in rows] == [0, 1, 0]
    assert [row.held for row in rows] == [0, 1, 0]

    limits, rows = made(3)
    rows[1].wait_ns = 7
    rows[2].wait_ns = 9
    refusal = admit(limits, (1, 1, 1))
    assert refusal is not None
    assert (refusal.index, refusal.sole, refusal.retry_after_ns) == (2, False, 9)
    limits.wait_at(refusal, 1)
    assert [row.arrived for row in rows] == [0, 0, 0]
    assert [row.held for row in rows] == [0, 0, 0]


def test_an_arrival_counts_once_however_often_it_is_tried() -> None:
    limits, rows = made(2)
    rows[0].wait_ns = 5
    refusal = admit(limits, (2, 2))
    assert refusal is not None
    limits.wait_at(refusal, 2)
    for _ in range(5):
        assert admit(limits, (2, 2), refusal) is refusal
        limits.wait_at(refusal, 2)
    assert [row.arrived for row in rows] == [2, 0]
    assert [row.held for row in rows] == [2, 0]
    rows[0].wait_ns = ROOM
    assert admit(limits, (2, 2), refusal) is None
    assert [row.arrived for row in rows] == [2, 2]
    assert [row.held for row in rows] == [0, 0]
    assert [row.taken for row in rows] == [2, 2]
    assert limits.refused == [1, 0]


def test_a_request_that_moves_to_another_row_waits_only_there() -> None:
    limits, rows = made(2)
    rows[0].wait_ns = 5
    refusal = admit(limits, (1, 1))
    assert refusal is not None
    limits.wait_at(refusal, 1)
    rows[0].wait_ns, rows[1].wait_ns = ROOM, 6
    assert admit(limits, (1, 1), refusal) is refusal
    assert refusal.entry is rows[1]
    limits.wait_at(refusal, 1)
    assert [row.held for row in rows] == [0, 1]
    assert [row.arrived for row in rows] == [1, 1]
    limits.leave(refusal)
    limits.leave(refusal)
    assert [row.held for row in rows] == [0, 0]


def test_a_request_whose_other_limit_fills_up_is_no_demand_any_more() -> None:
    limits, rows = made(2)
    rows[0].wait_ns = 50
    refusal = admit(limits, (1, 1))
    assert refusal is not None
    limits.wait_at(refusal, 1)
    rows[1].wait_ns = 6
    assert admit(limits, (1, 1), refusal) is refusal
    limits.wait_at(refusal, 1)
    assert [row.held for row in rows] == [0, 0]


def test_never_beats_every_wait() -> None:
    for order in ((NEVER, 10**18), (10**18, NEVER)):
        limits, rows = made(2)
        rows[0].wait_ns, rows[1].wait_ns = order
        refusal = admit(limits, (1, 1))
        assert refusal is not None
        assert refusal.never
        assert refusal.reason == COST_OVER_BURST
        assert refusal.entry is rows[order.index(NEVER)]


def test_what_can_never_be_is_no_demand() -> None:
    limits, rows = made(1)
    rows[0].wait_ns = NEVER
    assert admit(limits, (1,)) is not None
    assert rows[0].arrived == 0


def test_a_newcomer_stands_behind_those_who_wait() -> None:
    limits, rows = made(2)
    rows[1].waiting = object()
    refusal = admit(limits, (1, 1))
    assert refusal is not None
    assert (refusal.entry, refusal.reason) == (rows[1], OTHERS_WAIT)
    assert refusal.retry_after_ns == 1
    assert [row.taken for row in rows] == [0, 0]
    rows[1].wait_ns = 5
    newcomer = admit(limits, (1, 1))
    assert newcomer is not None
    assert newcomer.retry_after_ns == 5
    # The head of the queue is no newcomer.
    rows[1].wait_ns = ROOM
    assert admit(limits, (1, 1), refusal) is None


def test_a_dry_run_counts_and_never_refuses() -> None:
    for count in (1, 2):
        limits, rows = made(count)
        limits.limits[0].dry_run = True
        rows[0].wait_ns = 5
        rows[0].waiting = object()
        assert admit(limits, (1, 1)[:count]) is None
        assert limits.would_refuse == [1, 0][:count]
        assert rows[0].taken == 0  # as a real limit: the refused do not take
        assert [row.taken for row in rows[1:]] == [1] * (count - 1)
        rows[0].wait_ns = NEVER
        assert admit(limits, (1, 1)[:count]) is None
        rows[0].wait_ns = ROOM
        assert admit(limits, (1, 1)[:count]) is None
        assert limits.would_refuse[0] == 2
        assert rows[0].taken == 1


def test_a_dry_run_is_counted_once_for_a_request_that_waits_elsewhere() -> None:
    limits, rows = made(2)
    limits.limits[0].dry_run = True
    rows[0].wait_ns = rows[1].wait_ns = 5
    refusal = admit(limits, (1, 1))
    assert refusal is not None
    assert refusal.entry is rows[1]
    assert refusal.sole
    rows[1].wait_ns = ROOM
    assert admit(limits, (1, 1), refusal) is None
    assert limits.would_refuse == [1, 0]


def test_slots_taken_in_a_dry_run_are_those_given_back() -> None:
    slots = Inflight("open", 1, dry_run=True)
    limits = LimitSet([Rule(slots, 1, 0, in_flight=True)])
    rows = limits.rows([b""], 0)
    for _ in range(3):
        assert limits.admit(rows, (1,), 0) is None
    for _ in range(3):
        limits.release(rows, (1,), 0)
    assert (slots.entry(b"", 0).used, slots.underflows) == (0, 0)


def test_release_gives_back_slots_only() -> None:
    limits, rows = made(3, in_flight=1)
    limits.release(limits.rows([b""] * 3, 0), (1, 1, 1), 0)
    assert [row.given for row in rows] == [0, 1, 0]


def test_real_limits_together() -> None:
    rate = Gcra("rate", 10, S, 5)
    quota = Window("quota", 7, 60 * S)
    slots = Inflight("open", 100)
    limits = LimitSet(
        [Rule(rate, 10, S), Rule(quota, 7, 60 * S), Rule(slots, 100, 0, in_flight=True)]
    )

    def send(now_ns: int) -> Refusal | None:
        return limits.admit(limits.rows([b"", b"k", b""], now_ns), (1, 1, 1), now_ns)

    assert [send(0) for _ in range(5)] == [None] * 5
    refusal = send(0)
    assert refusal is not None
    assert refusal.entry.limit is rate
    assert [send(S) for _ in range(2)] == [None] * 2
    refusal = send(S)
    assert refusal is not None
    assert refusal.entry.limit is quota
    assert refusal.retry_after_ns == 59 * S
    assert slots.entry(b"", 0).used == 7


def test_fields() -> None:
    rate = Gcra("rate", 10, S, 1)
    slots = Inflight("open", 5)
    quiet = Gcra("quiet", 10, S, 1, dry_run=True)
    limits = LimitSet([Rule(rate, 10, S), Rule(slots, 5, 0, in_flight=True), Rule(quiet, 10, S)])
    rows = limits.rows([b""] * 3, 0)
    assert limits.admit(rows, (1, 1, 1), 0) is None
    assert limits.fields(rows, 0) == [
        (b"RateLimit-Policy", b'"rate";q=10;w=1, "open";q=5;qu="concurrent-requests"'),
        (b"RateLimit", b'"rate";r=0;t=1, "open";r=4;t=1'),
    ]
    assert LimitSet([Rule(quiet, 10, S)]).fields(rows[2:], 0) == []


@pytest.mark.parametrize(
    ("quota", "window_ns", "item"),
    [
        (600, 60 * S, b'"a";q=600;w=60'),
        (5, S // 10, b'"a";q=50;w=1'),
        (15, 3 * S // 2, b'"a";q=15;w=2'),
    ],
)
def test_policies_promise_no_more_than_is_true(quota: int, window_ns: int, item: bytes) -> None:
    limits = LimitSet([Rule(FakeLimit("a"), quota, window_ns)])
    assert limits.fields(limits.rows([b""], 0), 0) == [
        (b"RateLimit-Policy", item),
        (b"RateLimit", b'"a";r=3;t=2'),
    ]


def test_all_kinds_are_limits() -> None:
    kinds: list[Limit] = [Gcra("a", 1, S, 1), Window("b", 1, S), Inflight("c", 1)]
    for limit in kinds:
        row: Entry = limit.entry(b"", 0)
        assert row.limit is limit
        assert row.waiting is None
        assert row.ask(1, 0) == ROOM
        row.take(1, 0)
        assert row.ask(1, 0) > 0
        assert row.ask(2, 0) == NEVER


def test_who_waited_elsewhere_comes_back_as_a_newcomer_and_counts_once() -> None:
    """At a breaker it lost its place at the row; its arrival has been counted."""
    limits, rows = made(2)
    rows[0].wait_ns = 5
    refusal = admit(limits, (1, 1))
    assert refusal is not None
    limits.wait_at(refusal, 1)
    limits.leave(refusal)
    rows[0].wait_ns = ROOM
    rows[0].waiting = object()  # others have come meanwhile
    assert admit(limits, (1, 1), refusal) is refusal
    assert (refusal.reason, refusal.in_line) == (OTHERS_WAIT, True)
    assert [row.taken for row in rows] == [0, 0]
    assert admit(limits, (1, 1), refusal) is None  # it stood at the head when it was tried
    assert [row.arrived for row in rows] == [1, 1]
    assert limits.refused == [1, 0]


def test_arrivals_are_carried_into_another_set() -> None:
    """A reload may put the same limits in another order, leave some out and add others."""
    limits, rows = made(3)
    rows[2].wait_ns = 5
    refusal = admit(limits, (1, 1, 1))
    assert refusal is not None
    limits.leave(refusal)
    assert refusal.arrived == 0b100
    fresh = FakeLimit("new")
    rules = [Rule(limit, 10, S) for limit in (rows[2].limit, fresh, rows[0].limit)]
    after = LimitSet(rules)
    after.carry(refusal, limits)
    assert refusal.arrived == 0b001
    assert admit(after, (1, 1, 1), refusal) is refusal
    rows[2].wait_ns = ROOM
    assert admit(after, (1, 1, 1), refusal) is None
    assert [rows[2].arrived, fresh.row.arrived, rows[0].arrived] == [1, 1, 1]
