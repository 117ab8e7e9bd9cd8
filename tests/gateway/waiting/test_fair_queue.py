"""Whose turn it is: order, shares, leaving, moving, bounds."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.waiting.fair_queue import Budget, FairQueue


def made(waiters_max: int = 10_000) -> FairQueue[str]:
    return FairQueue(Budget(waiters_max))


def push(
    queue: FairQueue[str],
    waiter: str,
    flow: str = "a",
    weight: int = 1,
    priority: int = 0,
    cost: int = 1,
    arrival_ns: int | None = None,
) -> bool:
    arrival_ns = int(waiter.rpartition("-")[2]) if arrival_ns is None else arrival_ns
    return queue.push(waiter, flow, weight, priority, cost, arrival_ns)


def drain(queue: FairQueue[str]) -> list[str]:
    order = []
    while (waiter := queue.pop()) is not None:
        order.append(waiter)
    return order


def test_an_empty_queue() -> None:
    queue = made()
    assert queue.head() is None
    assert queue.pop() is None
    assert not queue.remove("nobody-0")
    assert (len(queue), queue.cost) == (0, 0)


def test_one_flow_goes_in_order_of_arrival() -> None:
    queue = made()
    for i in (3, 1, 2):
        push(queue, f"a-{i}")
    assert drain(queue) == ["a-1", "a-2", "a-3"]


def test_arrivals_at_the_same_moment_go_in_order_of_pushing() -> None:
    queue = made()
    for name in ("x", "y", "z"):
        push(queue, name, arrival_ns=5)
    assert drain(queue) == ["x", "y", "z"]


def test_looking_at_the_head_changes_nothing() -> None:
    queue = made()
    for i in range(20):
        push(queue, f"{'ab'[i % 2]}-{i}", flow="ab"[i % 2])
    plain = made()
    for i in range(20):
        push(plain, f"{'ab'[i % 2]}-{i}", flow="ab"[i % 2])
    order = []
    while queue:
        assert queue.head() == queue.head()
        order.append(queue.pop())
    assert order == drain(plain)


def test_shares_follow_weights_over_ten_seconds() -> None:
    # 100 tokens a second for ten seconds, all three always with something to send.
    queue = made()
    weights = {"a": 3, "b": 2, "c": 1}
    number = 0
    for flow, weight in weights.items():
        for _ in range(50):
            number += 1
            push(queue, f"{flow}-{number}", flow, weight)
    served: Counter[str] = Counter()
    for _ in range(1000):
        waiter = queue.pop()
        assert waiter is not None
        flow = waiter.partition("-")[0]
        served[flow] += 1
        number += 1
        push(queue, f"{flow}-{number}", flow, weights[flow])
    for flow, weight in weights.items():
        assert served[flow] == pytest.approx(1000 * weight / 6, rel=0.02)


def test_shares_follow_weights_of_clients_with_one_request_at_a_time() -> None:
    queue = made()
    weights = {"a": 3, "b": 2, "c": 1}
    for i, flow in enumerate(weights):
        push(queue, f"{flow}-{i}", flow, weights[flow])
    served: Counter[str] = Counter()
    for number in range(10, 610):
        waiter = queue.pop()
        assert waiter is not None
        flow = waiter.partition("-")[0]
        served[flow] += 1
        push(queue, f"{flow}-{number}", flow, weights[flow])
    for flow, weight in weights.items():
        assert served[flow] == pytest.approx(600 * weight / 6, rel=0.02)


def test_shares_are_of_tokens_not_of_requests() -> None:
    queue = made()
    for i in range(400):
        push(queue, f"big-{i}", "big", cost=10)
        push(queue, f"small-{i}", "small", cost=1)
    spent: Counter[str] = Counter()
    for _ in range(330):
        waiter = queue.pop()
        assert waiter is not None
        flow = waiter.partition("-")[0]
        spent[flow] += 10 if flow == "big" else 1
    assert spent["big"] == pytest.approx(spent["small"], rel=0.05)


@pytest.mark.parametrize("noisy", [1, 10, 1000])
def test_a_quiet_client_is_not_delayed_by_noisy_ones(noisy: int) -> None:
    queue = made()
    for i in range(noisy):
        push(queue, f"noisy-{i}", "noisy")
    for _ in range(noisy // 2):
        queue.pop()
    push(queue, "quiet-2000", "quiet")
    first_two = [queue.pop(), queue.pop()]
    assert "quiet-2000" in first_two


def test_being_idle_saves_up_nothing() -> None:
    queue = made()
    for i in range(100):
        push(queue, f"busy-{i}", "busy")
    for _ in range(50):
        queue.pop()
    for i in range(100, 150):
        push(queue, f"idle-{i}", "idle")
    flows = Counter((queue.pop() or "").partition("-")[0] for _ in range(40))
    assert flows["busy"] == pytest.approx(20, abs=1)


def test_higher_priorities_go_first_and_share_among_themselves() -> None:
    queue = made()
    push(queue, "spool-1", "spool", priority=-1)
    push(queue, "a-2", "a")
    push(queue, "a-3", "a")
    push(queue, "b-4", "b")
    push(queue, "vip-5", "vip", priority=7)
    assert drain(queue) == ["vip-5", "a-2", "b-4", "a-3", "spool-1"]
    assert queue._levels == []  # made-up priorities do not pile up either


def test_whoever_leaves_costs_its_client_no_turn() -> None:
    queue = made()
    for i in range(10):
        push(queue, f"a-{i}", "a")
        push(queue, f"b-{i}", "b")
    for i in range(8):
        assert queue.remove(f"a-{i}")
    assert len(queue) == 12
    assert {queue.pop(), queue.pop()} == {"a-8", "b-0"}
    assert {queue.pop(), queue.pop()} == {"a-9", "b-1"}


def test_the_head_may_leave() -> None:
    queue = made()
    push(queue, "a-1", "a")
    push(queue, "b-2", "b")
    assert queue.head() == "a-1"
    assert queue.remove("a-1")
    assert queue.head() == "b-2"
    assert not queue.remove("a-1")


def test_a_request_that_moves_here_takes_its_old_place() -> None:
    here, there = made(), made()
    push(there, "a-1", "a")
    for i in (5, 6):
        push(here, f"a-{i}", "a")
    assert there.remove("a-1")
    push(here, "a-1", "a")
    assert drain(here) == ["a-1", "a-5", "a-6"]


def test_the_budget_is_shared_and_comes_back() -> None:
    budget = Budget(3)
    one: FairQueue[str] = FairQueue(budget)
    two: FairQueue[str] = FairQueue(budget)
    assert push(one, "a-1")
    assert push(two, "a-2")
    assert push(two, "a-3")
    assert not push(one, "a-4")
    assert budget.refused == 1
    two.remove("a-2")
    assert push(one, "a-4")
    assert not push(one, "a-5")
    one.pop()
    assert push(two, "a-5")
    assert budget.used == 3


def test_nobody_waits_twice() -> None:
    queue = made()
    push(queue, "a-1")
    with pytest.raises(ValueError):
        push(queue, "a-1")
    assert len(queue) == 1


def test_made_up_flows_do_not_pile_up() -> None:
    queue = made()
    push(queue, "stays-0", "stays", priority=-1)
    for i in range(1, 5000):
        push(queue, f"x-{i}", f"flow{i}")
        push(queue, f"y-{i}", f"flow{i}")
        queue.pop()
        queue.pop()
    for level in queue._levels:
        assert len(level.flows) <= 200


def test_an_endless_backlog_of_made_up_flows_does_not_pile_up() -> None:
    queue = made()
    for i in range(5000):
        push(queue, f"x-{i}", f"flow{i}")
        if i >= 10:
            queue.pop()
    assert len(queue) == 10
    assert sum(len(level.flows) for level in queue._levels) <= 200


def test_those_who_left_do_not_pile_up() -> None:
    queue = made()
    push(queue, "stays-0", "a")
    for i in range(1, 5000):
        push(queue, f"a-{i}", "a")
        queue.remove(f"a-{i}")
    held = sum(len(flow.items) for level in queue._levels for flow in level.flows.values())
    assert held <= 200
    assert drain(queue) == ["stays-0"]


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["push", "pop", "remove", "head"]),
        st.integers(0, 4),  # flow
        st.integers(-1, 1),  # priority
        st.integers(0, 60),  # arrival, or whom to remove
    ),
    max_size=300,
)


@given(steps=STEPS)
def test_nobody_is_lost_and_order_is_kept(steps: list[tuple[str, int, int, int]]) -> None:
    budget = Budget(40)
    queue: FairQueue[int] = FairQueue(budget)
    waiting: dict[int, tuple[int, int, int]] = {}  # number -> (priority, flow, arrival)
    for number, (step, flow, priority, arrival) in enumerate(steps):
        if step == "push":
            accepted = queue.push(number, str(flow), flow, priority, arrival, arrival)
            assert accepted == (len(waiting) < 40)
            if accepted:
                waiting[number] = (priority, flow, arrival)
        elif step == "remove":
            target = sorted(waiting)[arrival % len(waiting)] if waiting else -1
            assert queue.remove(target) == (waiting.pop(target, None) is not None)
        else:
            waiter = queue.head() if step == "head" else queue.pop()
            assert (waiter is None) == (not waiting)
            if waiter is not None:
                priority, flow, arrival = waiting[waiter]
                assert priority == max(p for p, _, _ in waiting.values())
                earliest = min(
                    (a, n) for n, (p, f, a) in waiting.items() if (p, f) == (priority, flow)
                )
                assert (arrival, waiter) == earliest
                if step == "pop":
                    del waiting[waiter]
        assert len(queue) == len(waiting) == budget.used
        assert set(queue) == set(waiting)
    assert queue.cost == sum(max(1, arrival) for _, _, arrival in waiting.values())


def test_a_long_mixed_run_is_fair() -> None:
    chance = random.Random(11)
    queue = made()
    weights = {f"c{i}": 1 + i % 3 for i in range(9)}
    number = 0
    served: Counter[str] = Counter()
    left: list[str] = []
    for _ in range(6000):
        for flow in weights:
            while sum(w.startswith(flow + "-") for w in left) < 2:
                number += 1
                waiter = f"{flow}-{number}"
                push(queue, waiter, flow, weights[flow])
                left.append(waiter)
        if chance.random() < 0.1:
            gone = left.pop(chance.randrange(len(left)))
            assert queue.remove(gone)
            continue
        waiter = queue.pop() or ""
        left.remove(waiter)
        served[waiter.partition("-")[0]] += 1
    total = sum(served.values())
    for flow, weight in weights.items():
        assert served[flow] == pytest.approx(total * weight / sum(weights.values()), rel=0.02)


def served_before(queue: FairQueue[str], waiter: str, costs: dict[str, int]) -> int:
    """What really goes before it, if nobody else comes."""
    spent = 0
    while (next_one := queue.pop()) != waiter:
        assert next_one is not None
        spent += costs[next_one]
    return spent


def test_nothing_goes_before_a_newcomer_to_an_empty_queue() -> None:
    assert made().ahead("a", 1, 0, 0) == 0


def test_a_quiet_client_stands_before_a_noisy_one() -> None:
    queue = made()
    for i in range(1000):
        push(queue, f"noisy-{i}", "noisy")
    assert queue.ahead("noisy", 1, 0, 2000) == 1000
    queue.pop()
    assert queue.ahead("quiet", 1, 0, 2000) == 0
    push(queue, "quiet-2000", "quiet")
    assert queue.ahead("quiet", 1, 0, 2001) == 2  # its own, and the noisy one's between
    assert queue.pop() == "quiet-2000"


def test_a_heavier_weight_is_sooner_among_equal_backlogs() -> None:
    queue = made()
    for i in range(30):
        push(queue, f"light-{i}", "light", weight=1)
        push(queue, f"heavy-{i}", "heavy", weight=3)
    assert queue.ahead("heavy", 3, 0, 100) == 30 + 10 + 1  # a tie counts
    assert queue.ahead("light", 1, 0, 100) == 30 + 30


def test_only_higher_priorities_are_ahead_of_a_priority_without_requests() -> None:
    queue = made()
    for i in range(5):
        push(queue, f"spool-{i}", "spool", priority=-1, cost=7)
        push(queue, f"live-{i}", "live", cost=3)
    assert queue.ahead("vip", 1, 9, 100) == 0
    assert queue.ahead("live", 1, 0, 100) == 15
    assert queue.ahead("slow", 1, -5, 100) == 15 + 35


def test_who_comes_from_another_row_is_before_the_younger_of_its_own_client() -> None:
    queue = made()
    for i in range(10, 20):
        push(queue, f"a-{i}", "a")
    assert queue.ahead("a", 1, 0, 5) == 0
    assert queue.ahead("a", 1, 0, 10) == 10  # those that may be younger count too


def test_who_left_is_not_ahead() -> None:
    queue = made()
    for i in range(10):
        push(queue, f"a-{i}", "a", cost=4)
        push(queue, f"b-{i}", "b", cost=4)
    for i in range(10):
        queue.remove(f"a-{i}")
    assert queue.ahead("b", 1, 0, 100) == 40
    assert queue.ahead("c", 1, 0, 100) == 4  # the tie with the first of b
    for i in range(10):
        queue.remove(f"b-{i}")
    assert queue.ahead("b", 1, 0, 100) == 0


@pytest.mark.parametrize("flows", [100, 2000])
def test_the_place_behind_very_many_clients_is_behind_all_of_their_requests(flows: int) -> None:
    queue = made()
    for i in range(2 * flows):
        push(queue, f"x-{i}", f"flow{i % flows}")
    assert queue.ahead("new", 1, 0, 10_000) == (flows if flows == 100 else 2 * flows)


WEIGHTS = {"0": 1, "1": 2, "2": 3, "3": 7, "4": 1}


@given(steps=STEPS, flow=st.integers(0, 5), priority=st.integers(-2, 2), same_cost=st.booleans())
def test_ahead_is_what_is_really_served_before(
    steps: list[tuple[str, int, int, int]], flow: int, priority: int, same_cost: bool
) -> None:
    """Never less, and more by at most one request of each other flow."""
    queue = made()
    costs: dict[str, int] = {}
    for number, (step, of, level, cost) in enumerate(steps):
        if step in ("push", "head"):
            name = f"{of}-{number}"
            costs[name] = 1 if same_cost else max(1, cost)
            push(queue, name, str(of), WEIGHTS[str(of)], level, costs[name])
        elif step == "pop":
            queue.pop()
        else:
            waiters = sorted(queue)
            if waiters:
                queue.remove(waiters[cost % len(waiters)])
    weight = WEIGHTS.get(str(flow), 5)
    others = {name.partition("-")[0] for name in queue} - {str(flow)}
    ahead = queue.ahead(str(flow), weight, priority, 1000)
    push(queue, "new-1000", str(flow), weight, priority)
    served = served_before(queue, "new-1000", costs)
    assert served <= ahead <= served + len(others) * max(costs.values(), default=0)
