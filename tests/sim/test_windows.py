"""Window limits over the mesh: one quota a window for all, whoever began it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from peers.core.config import MS, SECOND
from peers.core.node import Node
from peers.sim import Client
from peers.simnet import Network, Simulation

Watch = Callable[[Simulation], Simulation]
QUOTA = 200
PERIOD_NS = 4 * SECOND
SEEDS = range(12)  # all sizes and losses; 400 more under slow


class WindowClient(Client):
    """Requests at one node under a window limit."""

    wall_offset_ns: int | None = None
    period_ns = PERIOD_NS
    on_partition = "share"

    def make_limit(self, node: Node, rate: int, burst: int, period_ns: int = SECOND) -> Any:
        return node.window_limit(
            "sim:limit",
            name="limit",
            count=burst,
            period_ns=self.period_ns,
            wall_offset_ns=self.wall_offset_ns,
            on_partition=self.on_partition,
        )


def begun(
    bench: Simulation,
    per_second: float,
    quota: int = QUOTA,
    wait_ns: int = 0,
    shares: Any = None,
    **facts: Any,
) -> tuple[list[WindowClient], list[int]]:
    """A meshed simulation whose nodes ask for so much a second together."""
    bench.start()
    bench.run_until(bench.meshed, 60 * SECOND)
    bench.run_for(5 * SECOND)
    stamps: list[int] = []
    weights = shares or [1.0] * len(bench.nodes)
    clients = [
        WindowClient(bench, sim, per_second * weight / sum(weights), wait_ns, stamps)
        for sim, weight in zip(bench.nodes, weights, strict=True)
    ]
    for client in clients:
        for name, value in facts.items():
            setattr(client, name, value)
        client.begin(0, quota)
    return clients, stamps


def uses(stamps: list[int], period_ns: int = PERIOD_NS) -> list[int]:
    """What an upstream counts whose window begins with the first request after the last."""
    counts: list[int] = []
    end_ns = 0
    for stamp_ns in sorted(stamps):
        if stamp_ns >= end_ns:
            counts.append(0)
            end_ns = stamp_ns + period_ns
        counts[-1] += 1
    return counts


@pytest.mark.parametrize("seed", SEEDS)
def test_the_quota_is_used_and_kept(seed: int, watched: Watch) -> None:
    """Three times the quota asked of 2 to 8 nodes with loss: every window whole, none over."""
    nodes = 2 + seed % 7
    network = Network(loss=(0.0, 0.05, 0.2)[seed % 3], duplicate=0.2)
    bench = watched(Simulation(nodes, seed, network))
    clients, stamps = begun(bench, 3 * QUOTA / 4)
    bench.run_for(3 * PERIOD_NS + SECOND)
    limit = clients[0].limit
    assert limit is not None
    allowed = QUOTA + limit.excess_bound() + 0.02 * QUOTA  # the last where a fifth is lost
    assert max(uses(stamps)) <= allowed, f"seed {seed}: {uses(stamps)}"
    least = 0.98 if network.loss < 0.2 else 0.97
    assert sum(uses(stamps)[:3]) >= least * 3 * QUOTA, f"seed {seed}: {uses(stamps)}"
    fair = len(stamps) / nodes
    for client in clients:
        assert 0.7 * fair <= client.admitted <= 1.4 * fair, f"seed {seed}"


@pytest.mark.parametrize("seed", range(3))
def test_windows_by_the_wall_clock_begin_with_the_first_clock(seed: int, watched: Watch) -> None:
    """Clocks that differ by up to 0.4 s: the quota holds by the clock that is ahead."""
    bench = watched(Simulation(5, seed))
    ahead_ns = 7 * SECOND
    clients, stamps = begun(bench, 0)
    for client in clients:
        client.wall_offset_ns = ahead_ns - bench.chance.randrange(400 * MS)
    clients[0].wall_offset_ns = ahead_ns
    bench.run_for(PERIOD_NS // 2 - (bench.now_ns + ahead_ns) % PERIOD_NS + PERIOD_NS)
    for client in clients:
        client.sim.up.forget_limit("sim:limit")
        client.begin(0, QUOTA)
        client.rate = 40.0
    bench.run_for(5 * PERIOD_NS)
    counts = [0] * 7
    start_ns = stamps[0] + ahead_ns
    for stamp_ns in stamps:
        counts[(stamp_ns + ahead_ns) // PERIOD_NS - start_ns // PERIOD_NS] += 1
    assert max(counts) <= QUOTA * 1.03 + 5, f"seed {seed}: {counts}"
    assert min(counts[1:4]) >= QUOTA * 0.95, f"seed {seed}: {counts}"


@pytest.mark.parametrize("seed", range(3))
def test_whoever_waits_gets_the_next_window_by_demand(seed: int, watched: Watch) -> None:
    bench = watched(Simulation(3, seed))
    shares = [7.0, 2.0, 1.0]
    clients, stamps = begun(bench, 1.5 * QUOTA / 4, wait_ns=PERIOD_NS, shares=shares)
    bench.run_for(6 * PERIOD_NS)
    assert max(uses(stamps)) <= QUOTA + 3 + 0.08 * QUOTA, f"seed {seed}: {uses(stamps)}"
    assert len(stamps) >= 0.98 * 5 * QUOTA, f"seed {seed}"
    for client, share in zip(clients, shares, strict=True):
        assert abs(client.admitted / len(stamps) - share / 10) <= 0.06, f"seed {seed}"


@pytest.mark.parametrize("seed", range(3))
def test_a_small_quota_is_tight_and_still_used(seed: int, watched: Watch) -> None:
    bench = watched(Simulation(8, seed))
    clients, stamps = begun(bench, 30, quota=10)
    bench.run_for(4 * PERIOD_NS)
    assert clients[0].limit is not None
    assert clients[0].limit.tight
    assert max(uses(stamps)) <= 10 + 8, f"seed {seed}: {uses(stamps)}"
    assert len(stamps) >= 38, f"seed {seed}: {uses(stamps)}"


@pytest.mark.parametrize("seed", range(3))
def test_a_restart_in_a_long_window_brings_no_fresh_quota(seed: int, watched: Watch) -> None:
    bench = watched(Simulation(4, seed))
    clients, stamps = begun(bench, 80.0, period_ns=60 * SECOND)
    bench.run_for(2 * SECOND)
    for pause_ns in (200 * MS, 4 * SECOND):
        bench.kill(0)
        bench.run_for(pause_ns)
        bench.start(0)
        clients[0].begin(0, QUOTA)
        bench.run_until(bench.meshed, 5 * SECOND)
        bench.run_for(3 * SECOND)
    assert 0.95 * QUOTA <= len(stamps) <= QUOTA + 4 + 0.08 * QUOTA, f"seed {seed}"
    levels = [client.row.level(bench.now_ns) for client in clients if client.row is not None]
    assert max(levels) - min(levels) <= 3, f"seed {seed}: {levels}"


def test_a_key_that_nobody_used_is_free_for_a_joiner() -> None:
    bench = Simulation(3, 1)
    clients, stamps = begun(bench, 0.0, period_ns=600 * SECOND)
    bench.kill(0)
    bench.run_for(4 * SECOND)
    bench.start(0)
    clients[0].begin(0, QUOTA)
    clients[0].rate = 40.0
    bench.run_for(15 * SECOND)
    assert len(stamps) >= 0.95 * QUOTA


@pytest.mark.parametrize(
    "on_partition", ["share", "closed", pytest.param("open", marks=pytest.mark.slow)]
)
def test_a_partition_in_halves(on_partition: str, watched: Watch) -> None:
    """Each side: its half of the quota, all of it, or nothing but what old news lets through."""
    bench = watched(Simulation(6, 3))
    _, stamps = begun(bench, 3 * QUOTA / 4, on_partition=on_partition)
    bench.run_for(2 * PERIOD_NS)
    addresses = [sim.address for sim in bench.nodes]
    bench.network.partition(addresses[:3], addresses[3:])
    bench.run_for(2 * PERIOD_NS)  # until the members beyond are dead
    before = len(stamps)
    bench.run_for(4 * PERIOD_NS)
    quotas = (len(stamps) - before) / QUOTA
    most, least = {"share": (4.4, 3.7), "open": (8.4, 7.5), "closed": (0.0, 0.0)}[on_partition]
    assert least <= quotas <= most
    bench.network.heal()
    bench.run_until(bench.meshed, 5 * SECOND)
    bench.run_for(PERIOD_NS)
    before = len(stamps)
    bench.run_for(3 * PERIOD_NS)
    assert 2.7 <= (len(stamps) - before) / QUOTA <= 3.3


def test_what_an_upstream_says_is_left_of_a_window_is_taken_over_by_all(watched: Watch) -> None:
    """One member hears it and the others are told. The first that they hear of it has no date, so
    what it used before may count once more: the safe side."""
    bench = watched(Simulation(3, 1, Network()))
    consumers, _ = begun(bench, 0.0, 100)
    bench.run_for(SECOND)
    row = consumers[0].row
    for _ in range(10):
        row.take(1, bench.now_ns)
    assert row.learn(30, bench.now_ns, bench.now_ns)
    assert not row.learn(80, bench.now_ns, bench.now_ns), "a higher figure is older"
    bench.run_for(SECOND)
    levels = [round(consumer.row.level(bench.now_ns)) for consumer in consumers]
    assert levels[0] == 70 and all(70 <= level <= 80 for level in levels), levels
    before_ns = row.end_ns - consumers[0].limit.period_ns - 1
    assert not row.learn(0, before_ns, bench.now_ns), "it was sent in the window before"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 1400))
def test_many_seeds(seed: int, watched: Watch) -> None:
    test_the_quota_is_used_and_kept(seed, watched)
