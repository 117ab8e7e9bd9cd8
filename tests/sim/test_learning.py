"""`learn = "adopt"` on a shared limit: consumers outside the mesh, news that counts once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from peers.core.config import MS, SECOND
from peers.core.counters import MeshLimit
from peers.core.rows import ROOM, MeshRow
from peers.simnet import Network, SimNode, Simulation

Watch = Callable[[Simulation], Simulation]


class Api:
    """An upstream with one bucket for all its consumers, which tells what is left."""

    def __init__(self, bench: Simulation, rate: int, burst: int) -> None:
        self.bench = bench
        self.rate = rate
        self.burst = burst
        self.level = 0.0
        self.at_ns = bench.now_ns
        self.served = 0
        self.refused = 0

    def take(self, count: int = 1) -> bool:
        if count > self.left():
            return False
        self.level += count
        return True

    def left(self) -> float:
        """Tokens that it would give now."""
        now_ns = self.bench.now_ns
        self.level = max(0.0, self.level - (now_ns - self.at_ns) * self.rate / SECOND)
        self.at_ns = now_ns
        return self.burst - self.level


class Consumer:
    """A member that sends to the API what its row admits; answers take `delay_ns` each way."""

    def __init__(self, api: Api, sim: SimNode, rate: float, delay_ns: int, adopts: bool) -> None:
        self.api = api
        self.bench = api.bench
        self.sim = sim
        self.rate = rate
        self.delay_ns = delay_ns
        self.adopts = adopts
        self.adopted = 0
        self.limit: MeshLimit = sim.up.limit(
            "api", name="l", rate_count=api.rate, rate_period_ns=SECOND, burst=api.burst
        )
        self.row: MeshRow = self.limit.entry(b"", self.bench.now_ns)
        self._next()

    def _next(self) -> None:
        if self.rate > 0.0:
            self.bench.at(int(self.bench.chance.expovariate(self.rate) * SECOND), self._arrive)
        else:
            self.bench.at(10 * MS, self._next)

    def _arrive(self) -> None:
        self._next()
        self.ask()

    def ask(self) -> None:
        """One request, sent where the row lets it."""
        now_ns = self.bench.now_ns
        self.row.arrive(1, now_ns)
        if self.row.ask(1, now_ns) == ROOM:
            self.row.take(1, now_ns)
            self.bench.at(self.delay_ns, self._at_api, now_ns)
        self.bench.after_step(self.sim)

    def _at_api(self, sent_ns: int) -> None:
        if self.api.take():
            self.api.served += 1
        else:
            self.api.refused += 1
        self.bench.at(self.delay_ns, self._told, int(self.api.left()), sent_ns)

    def _told(self, remaining: int, sent_ns: int) -> None:
        if self.adopts:
            self.adopted += self.row.learn(remaining, sent_ns, self.bench.now_ns)
            self.bench.after_step(self.sim)


def consuming(
    bench: Simulation, rate: int, burst: int, load: float, adopts: bool, delay_ms: int = 10
) -> tuple[Api, list[Consumer]]:
    bench.start()
    bench.run_until(bench.meshed, 60 * SECOND)
    bench.run_for(5 * SECOND)
    api = Api(bench, rate, burst)
    part = rate * load / len(bench.nodes)
    consumers = [Consumer(api, sim, part, delay_ms * MS, adopts) for sim in bench.nodes]
    return api, consumers


def outsider(bench: Simulation, api: Api, per_second: int) -> None:
    """Somebody else's cron job."""

    def call() -> None:
        api.take()
        bench.at(SECOND // per_second, call)

    call()


@pytest.mark.parametrize("seed", range(6))
def test_a_consumer_outside_the_mesh_is_accounted_for(seed: int, watched: Watch) -> None:
    """40 of 100/s go to somebody else: who listens is refused far less, and uses the rest."""
    figures = {}
    for adopts in (False, True):
        network = Network(loss=(0.0, 0.1)[seed % 2], duplicate=0.2)
        bench = watched(Simulation(2 + seed % 4, seed, network))
        api, _ = consuming(bench, 100, 100, 2.0, adopts)
        outsider(bench, api, 40)
        bench.run_for(20 * SECOND)
        figures[adopts] = (api.served, api.refused)
    served, refused = figures[True]
    assert refused <= figures[False][1] / 3, f"seed {seed}: {figures}"
    assert served >= 0.9 * (60 * 20), f"seed {seed}: {figures}"


@pytest.mark.parametrize("seed", range(6))
def test_what_several_members_hear_counts_once(seed: int, watched: Watch) -> None:
    """Sixty tokens of a hundred vanish at once; all members hear of it, from the API and from each
    other. What is left is used: a count instead of a level would have taken it away N times."""
    nodes = 3 + seed % 4
    bench = watched(Simulation(nodes, seed, Network(duplicate=0.3)))
    api, consumers = consuming(bench, 20, 100, 0.8, True)
    bench.run_for(5 * SECOND)
    assert api.take(60)
    bench.run_for(300 * MS)
    consumers[0].ask()
    bench.run_for(100 * MS)
    left = api.left()
    for consumer in consumers:
        own = 100 - consumer.row.level(bench.now_ns)
        assert abs(own - left) <= 6, f"seed {seed}: {own}, {left}"
        consumer.rate = 400.0 / nodes
    before = api.served
    bench.run_for(2 * SECOND)
    # Short of all by what is under way to peers: with shares of under a token some stay idle.
    assert api.served - before >= 0.86 * (left + 2 * 20), f"seed {seed}"
    assert api.refused <= 3, f"seed {seed}"


@pytest.mark.parametrize(("nodes", "burst"), [(3, 100), (8, 100), (4, 20)])
def test_without_others_listening_costs_nothing(nodes: int, burst: int, watched: Watch) -> None:
    """The API and the mesh count alike: what is told is hardly ever lower, and nothing is lost."""
    served = {}
    for adopts in (False, True):
        bench = watched(Simulation(nodes, 7))
        api, _ = consuming(bench, 100, burst, 2.0, adopts)
        bench.run_for(20 * SECOND)
        served[adopts] = api.served
    assert served[True] >= 0.97 * served[False]


def test_one_members_news_reaches_those_that_do_not_send(watched: Any) -> None:
    """A member that has not asked the API hears within milliseconds what another was told."""
    bench = watched(Simulation(3, 1))
    api, consumers = consuming(bench, 10, 50, 0.0, True)
    one, two, three = consumers
    for consumer in (two, three):
        consumer.row.take(1, bench.now_ns)
    assert one.row.learn(5, bench.now_ns, bench.now_ns)
    bench.after_step(one.sim)
    bench.run_for(5 * MS)
    for consumer in (two, three):
        assert 50 - consumer.row.level(bench.now_ns) <= 5.2
        assert consumer.limit.lowered == 1
    assert api.served == 0
