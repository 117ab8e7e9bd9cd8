"""Two members that do not hear each other while the others hear both: SWIM keeps them alive, and
what one counts comes to the other by way of a third."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from peers.core.config import SECOND
from peers.core.events import MemberHeard, MemberUnheard
from peers.core.node import Node
from peers.sim import Client, excess
from peers.simnet import Network, Simulation

SEEDS = range(20)
RATE = 100
QUOTA = 200
PERIOD_NS = 4 * SECOND
Watch = Callable[[Simulation], Simulation]


class WindowClient(Client):
    """Requests at one node under a window limit."""

    def make_limit(self, node: Node, rate: int, burst: int, period_ns: int = SECOND) -> Any:
        return node.window_limit("sim:limit", name="limit", count=QUOTA, period_ns=PERIOD_NS)


def loaded(
    bench: Simulation, load: float, made: type[Client] = Client
) -> tuple[list[Client], list[int]]:
    """A meshed simulation in which so many times the rate has been asked for four seconds."""
    bench.start()
    bench.run_until(bench.meshed, 60 * SECOND)
    bench.run_for(5 * SECOND)
    stamps: list[int] = []
    part = RATE * load / len(bench.nodes)
    clients = [made(bench, sim, part, 0, stamps) for sim in bench.nodes]
    for client in clients:
        client.begin(RATE, RATE)
    bench.run_for(4 * SECOND)
    return clients, stamps


def cut(bench: Simulation, one_way: bool = False) -> None:
    """The first two nodes do not hear each other, or the second not the first."""
    one, two = (sim.address for sim in bench.nodes[:2])
    bench.network.cut(one, two, one_way=one_way)


def told(bench: Simulation, number: int) -> list[tuple[type[Any], str]]:
    events = [event for _, event in bench.nodes[number].events]
    kinds = (MemberUnheard, MemberHeard)
    return [(type(event), event.name) for event in events if isinstance(event, kinds)]


def state(bench: Simulation, number: int, name: str) -> str:
    members = bench.nodes[number].up.stats(bench.now_ns)["members"]
    return next(str(one["state"]) for one in members if one["name"] == name)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_cut_between_two_costs_next_to_nothing(seed: int, watched: Watch) -> None:
    """Without relays 400 to 500 tokens of 100/s in 45 s; and with them the rate is still used."""
    nodes = 3 + seed % 4
    bench = watched(Simulation(nodes, seed, Network(loss=(0.0, 0.1)[seed % 2])))
    clients, stamps = loaded(bench, 2.0)
    cut(bench, one_way=seed % 3 == 2)
    before = len(stamps)
    bench.run_for(12 * SECOND)
    assert bench.meshed(), f"seed {seed}"
    assert len(stamps) - before >= 0.97 * 12 * RATE, f"seed {seed}"
    bench.network.heal()
    bench.run_for(3 * SECOND)
    assert clients[0].limit is not None
    assert excess(stamps, RATE, RATE) <= clients[0].limit.excess_bound(), f"seed {seed}"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_load_that_begins_during_the_cut_is_counted(seed: int, watched: Watch) -> None:
    """Nobody was charged for anything before: without relays both had the whole rate, 2,470 tokens
    over in 45 s."""
    bench = watched(Simulation(3, seed))
    clients, stamps = loaded(bench, 0.0)
    clients[2].rate = 2.0 * RATE
    bench.run_for(2 * SECOND)
    cut(bench)
    clients[0].rate = clients[1].rate = RATE
    clients[2].rate = 0.0
    bench.run_for(10 * SECOND)
    # 0.6 s until relays are asked for, and a third of a rate meanwhile.
    assert excess(stamps, RATE, RATE) <= 0.6 * RATE, f"seed {seed}"


@pytest.mark.parametrize("seed", SEEDS)
def test_windows_are_kept_through_a_cut(seed: int, watched: Watch) -> None:
    """230 to 290 of a quota of 200 in each window without relays."""
    bench = watched(Simulation(3 + seed % 3, seed, Network(loss=(0.0, 0.1)[seed % 2])))
    clients, stamps = loaded(bench, 2.0, WindowClient)
    cut(bench)
    bench.run_for(3 * PERIOD_NS)
    assert clients[0].limit is not None
    counts: list[int] = []
    end_ns = 0
    for stamp_ns in sorted(stamps):
        if stamp_ns >= end_ns:
            counts.append(0)
            end_ns = stamp_ns + PERIOD_NS
        counts[-1] += 1
    assert max(counts) <= QUOTA + clients[0].limit.excess_bound(), f"seed {seed}: {counts}"
    assert min(counts[:-1]) >= 0.95 * QUOTA, f"seed {seed}: {counts}"


def test_a_long_cut_ends_as_it_began(watched: Watch) -> None:
    """Beyond the 30 s after which a silent peer is forgotten; then 463 tokens over."""
    bench = watched(Simulation(3, 1))
    _, stamps = loaded(bench, 2.0)
    cut(bench)
    bench.run_for(50 * SECOND)
    bench.network.heal()
    bench.run_for(5 * SECOND)
    assert excess(stamps, RATE, RATE) <= 12


def test_the_operator_sees_it_once(watched: Watch) -> None:
    bench = watched(Simulation(4, 3))
    loaded(bench, 1.0)
    cut(bench)
    bench.run_for(20 * SECOND)
    assert told(bench, 0) == [(MemberUnheard, "node-1")]
    assert told(bench, 1) == [(MemberUnheard, "node-0")]
    assert told(bench, 2) == []
    assert [state(bench, number, "node-1") for number in range(4)] == [
        "unheard", "alive", "alive", "alive",
    ]  # fmt: skip
    bench.network.heal()
    bench.run_for(SECOND)
    assert told(bench, 0) == [(MemberUnheard, "node-1"), (MemberHeard, "node-1")]
    assert state(bench, 0, "node-1") == "alive"
    relayed = [sim.up.stats(bench.now_ns)["frames_relayed"] for sim in bench.nodes]
    assert relayed[:2] == [0, 0]
    assert sum(relayed) > 0
    bench.run_for(SECOND)  # nobody asks any more
    assert relayed == [sim.up.stats(bench.now_ns)["frames_relayed"] for sim in bench.nodes]


def test_who_is_killed_is_dead_and_not_merely_unheard(watched: Watch) -> None:
    bench = watched(Simulation(4, 4))
    loaded(bench, 1.0)
    bench.kill(1)
    bench.run_for(10 * SECOND)
    assert told(bench, 0) == []
    assert state(bench, 0, "node-1") == "dead"


def test_where_nobody_can_relay_the_bound_says_so(watched: Watch) -> None:
    """The third hears both and does not answer for them, as a member of an earlier version."""
    bench = watched(Simulation(3, 5))
    clients, stamps = loaded(bench, 2.0)
    bench.nodes[2].up._relays.asked = lambda *_: None  # type: ignore[method-assign]
    cut(bench)
    bench.run_for(45 * SECOND)
    for client in clients[:2]:
        assert client.limit is not None
        over = client.limit.excess_bound()
        assert 40 * RATE <= over <= 50 * RATE
        assert excess(stamps, RATE, RATE) <= over
    # Charged for as long as it lasts; 464 where it was forgotten after 30 s, and growing.
    assert excess(stamps, RATE, RATE) <= 350
    bench.network.heal()
    bench.run_for(3 * SECOND)
    assert clients[0].limit is not None
    assert clients[0].limit.excess_bound() <= 12
