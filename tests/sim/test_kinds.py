"""What a limit may be: costs, many keys, configurations that differ, sides of a partition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from peers.core.config import MS, SECOND
from peers.core.rows import ROOM
from peers.sim import Client, excess
from peers.simnet import Network, Simulation

Watch = Callable[[Simulation], Simulation]


def meshed(bench: Simulation) -> Simulation:
    bench.start()
    bench.run_until(bench.meshed, 60 * SECOND)
    bench.run_for(5 * SECOND)
    return bench


class Spender:
    """Requests at one node for keys and at costs drawn anew each time; takes or goes away."""

    def __init__(
        self, bench: Simulation, number: int, per_second: float, keys: int, costs: tuple[int, ...]
    ) -> None:
        self.bench = bench
        self.sim = bench.nodes[number]
        self.per_second = per_second
        self.keys = [b"key-%d" % key for key in range(keys)]
        self.costs = costs
        self.taken: list[tuple[int, bytes]] = []  # when, for which key; a token each
        self.limit: Any = None

    def begin(self, rate: int, burst: int) -> None:
        self.limit = self.sim.up.limit(
            "kinds", name="l", rate_count=rate, rate_period_ns=SECOND, burst=burst
        )
        self.next()

    def next(self) -> None:
        chance = self.bench.chance
        self.bench.at(int(chance.expovariate(self.per_second) * SECOND), self.arrive)

    def arrive(self) -> None:
        self.next()
        now_ns = self.bench.now_ns
        key = self.bench.chance.choice(self.keys)
        cost = self.bench.chance.choice(self.costs)
        row = self.limit.entry(key, now_ns)
        row.arrive(cost, now_ns)
        if row.ask(cost, now_ns) == ROOM:
            row.take(cost, now_ns)
            self.taken += [(now_ns, key)] * cost
        self.bench.after_step(self.sim)


@pytest.mark.parametrize("seed", range(6))
def test_requests_that_cost_more_than_one(seed: int, watched: Watch) -> None:
    """Costs of 1, 3 and 8: the sum holds, in tokens, but for the largest cost a member."""
    nodes = 2 + seed
    network = Network(loss=(0.0, 0.1)[seed % 2], duplicate=0.1)
    bench = meshed(watched(Simulation(nodes, seed, network)))
    spenders = [Spender(bench, i, 200 / 4 / nodes, 1, (1, 3, 8)) for i in range(nodes)]
    for spender in spenders:
        spender.begin(100, 100)
    bench.run_for(10 * SECOND)
    stamps = [stamp for spender in spenders for stamp, _ in spender.taken]
    bound = spenders[0].limit.excess_bound() + 7 * nodes
    assert excess(stamps, 100, 100) <= bound, f"seed {seed}"
    assert len(stamps) >= 0.93 * 1100, f"seed {seed}"


@pytest.mark.slow
def test_two_thousand_keys_each_hold(watched: Watch) -> None:
    """All of them over their rate: none over its bound, none starved, and memory is given back."""
    bench = meshed(Simulation(4, 1))
    spenders = [Spender(bench, number, 2500.0, 2000, (1,)) for number in range(4)]
    for spender in spenders:
        spender.begin(2, 10)
    bench.run_for(4 * SECOND)
    by_key: dict[bytes, list[int]] = {}
    for spender in spenders:
        for stamp, key in spender.taken:
            by_key.setdefault(key, []).append(stamp)
    assert len(by_key) == 2000
    # 20 came for each key, 10 + 2 x 4 were there.
    assert max(excess(stamps, 2, 10) for stamps in by_key.values()) <= 4 + 0.8
    assert sum(map(len, by_key.values())) >= 0.85 * 2000 * 18
    for spender in spenders:
        spender.per_second = 1e-6
    bench.run_for(75 * SECOND)
    assert [len(spender.limit) for spender in spenders] == [0] * 4


@pytest.mark.parametrize("seed", range(4))
def test_while_configurations_differ_the_smaller_rules(seed: int, watched: Watch) -> None:
    """A rolling reload from 200/s, burst 50 to 50/s, burst 100: 50/s and 50 as soon as one has it;
    when the last one follows, the burst grows."""
    bench = meshed(watched(Simulation(3, seed)))
    stamps: list[int] = []
    clients = [Client(bench, sim, 100.0, 0, stamps) for sim in bench.nodes]
    for client, (rate, burst) in zip(clients, ((200, 50), (50, 100), (200, 50)), strict=True):
        client.begin(rate, burst)
    bench.run_for(3 * SECOND)  # announced every two
    before = len(stamps)
    bench.run_for(10 * SECOND)
    assert 0.95 * 500 <= len(stamps) - before <= 1.05 * 500, f"seed {seed}"
    for client in clients:
        limit: Any = client.limit
        assert limit.stats()["differs"]
        assert (limit.effective.rate_count, limit.effective.burst) == (50, 50)
        client.make_limit(client.sim.up, 50, 100, SECOND)
    bench.run_for(3 * SECOND)
    for client in clients:
        limit = client.limit
        assert not limit.stats()["differs"]
        assert limit.effective.burst == 100


@pytest.mark.parametrize(
    "on_partition",
    [
        "share",
        pytest.param("open", marks=pytest.mark.slow),
        pytest.param("closed", marks=pytest.mark.slow),
    ],
)
def test_what_a_side_of_two_of_six_may_take(on_partition: str, watched: Watch) -> None:
    """The majority has the rate in any case; the minority its third, all of it, or nothing."""
    bench = meshed(watched(Simulation(6, 5)))
    stamps: list[int] = []
    clients = [Client(bench, sim, 40.0, 0, stamps) for sim in bench.nodes]
    for client in clients:
        client.begin(100, 100)
        client.limit = client.sim.up.limit(
            "sim:limit", name="l", rate_count=100, rate_period_ns=SECOND, burst=100,
            on_partition=on_partition,
        )  # fmt: skip
    bench.run_for(10 * SECOND)
    addresses = [sim.address for sim in bench.nodes]
    bench.network.partition(addresses[:2], addresses[2:])
    bench.run_for(35 * SECOND)  # beyond silence_max: nobody is charged for the other side
    before = [client.admitted for client in clients]
    bench.run_for(10 * SECOND)
    rates = [(c.admitted - b) / 10 for c, b in zip(clients, before, strict=True)]
    assert 92 <= sum(rates[2:]) <= 108
    least, most = {"share": (30, 36), "open": (74, 84), "closed": (0, 0)}[on_partition]
    assert least <= sum(rates[:2]) <= most  # 80 a second come in at the two
    bench.network.heal()
    bench.run_until(bench.meshed, 5 * SECOND)
    bench.run_for(3 * SECOND)
    healed = len(stamps)
    bench.run_for(5 * SECOND)
    assert 450 <= len(stamps) - healed <= 560


def test_a_key_made_again_counts_from_nothing(watched: Watch) -> None:
    """Expired everywhere or on one node only: a new `gen` is a new count, not a shrinking one."""
    bench = meshed(watched(Simulation(2, 4)))
    one, two = (Spender(bench, number, 1e-6, 1, (1,)) for number in range(2))
    for spender in (one, two):
        spender.begin(10, 10)
        spender.limit.entry(b"key-0", bench.now_ns).take(3, bench.now_ns)
        bench.after_step(spender.sim)
    bench.run_for(SECOND)
    assert two.limit.entry(b"key-0", bench.now_ns).mesh_count == 6
    for _ in range(20):  # kept in use at the second only
        bench.run_for(5 * SECOND)
        two.limit.entry(b"key-0", bench.now_ns).take(1, bench.now_ns)
        bench.after_step(two.sim)
    first = one.limit.entry(b"key-0", bench.now_ns)
    one.sim.up.forget_limit("kinds")
    one.begin(10, 10)
    again = one.limit.entry(b"key-0", bench.now_ns)
    assert again.gen != first.gen
    again.take(2, bench.now_ns)
    bench.after_step(one.sim)
    bench.run_for(300 * MS)
    row = two.limit.entry(b"key-0", bench.now_ns)
    share = next(iter(row.peers.values()))
    assert (share.gen, share.count) == (again.gen, 2)
