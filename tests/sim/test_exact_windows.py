"""Exact windows: an upstream that counts its own never sees more than the quota."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from peers.core.config import MS, SECOND
from peers.core.quotas import QuotaLedger
from peers.sim import Client
from peers.simnet import Network, SimNode, Simulation

Watch = Callable[[Simulation], Simulation]
# As the gateway holds a request whose lease is on its way.
WAIT_NS = 100 * MS


class QuotaClient(Client):
    """Requests at one node under an exact window."""

    row: Any
    limit: Any
    period_ns = SECOND
    on_partition = "share"
    wall_offset_ns: int | None = None

    def begin(self, rate: int, burst: int, period_ns: int = SECOND) -> None:
        node = self.sim.up
        now_ns = self.bench.now_ns
        self.limit = node.exact_window_limit(
            "sim:quota",
            name="quota",
            count=burst,
            period_ns=self.period_ns,
            wall_offset_ns=self.wall_offset_ns,
            on_partition=self.on_partition,
            now_ns=now_ns,
        )
        self.row = self.limit.entry(b"", now_ns)
        self._queue.clear()
        self._next(node)


class Upstream:
    """Counts as upstreams do: a window begins with the first request after the last one, or at
    multiples of the period by the clock, which is `wall_offset_ns` ahead."""

    def __init__(
        self, stamps: list[int], quota: int, period_ns: int, wall_offset_ns: int | None = None
    ) -> None:
        self.counts: list[int] = []
        self._stamps = stamps
        self._quota = quota
        self._period_ns = period_ns
        self._wall_offset_ns = wall_offset_ns
        self._read = 0
        self._end_ns = 0

    def __call__(self, bench: Simulation, sim: SimNode) -> None:
        while self._read < len(self._stamps):
            now_ns = self._stamps[self._read]
            self._read += 1
            if now_ns >= self._end_ns:
                self.counts.append(0)
                self._end_ns = now_ns + self._period_ns
                if self._wall_offset_ns is not None:
                    self._end_ns -= (now_ns + self._wall_offset_ns) % self._period_ns
            self.counts[-1] += 1
            assert self.counts[-1] <= self._quota, f"seed {bench.seed}: {self.counts}"


class QuotasAreSound:
    """What an owner has reserved is what its accounts hold, and with what is used it fits."""

    def __call__(self, bench: Simulation, sim: SimNode) -> None:
        for limit in sim.node._desk.limits() if sim.node is not None else ():
            for ledger in limit.ledgers.values():
                assert isinstance(ledger, QuotaLedger)
                held = [account.held for account in ledger.accounts.values()]
                assert all(count >= 0 for count in held), f"seed {bench.seed}"
                assert ledger.reserved == sum(held), f"seed {bench.seed}"
                assert ledger.committed(bench.now_ns) <= limit.burst, f"seed {bench.seed}"


def begun(
    bench: Simulation, quota: int, per_s: float, wait_ns: int = WAIT_NS, **facts: Any
) -> tuple[list[QuotaClient], Upstream]:
    """A meshed simulation whose nodes ask for so much a second together, and its upstream."""
    bench.start()
    bench.run_until(bench.meshed, 60 * SECOND)
    bench.run_for(5 * SECOND)
    stamps: list[int] = []
    part = per_s / len(bench.nodes)
    clients = [QuotaClient(bench, sim, part, wait_ns, stamps) for sim in bench.nodes]
    for client in clients:
        for name, value in facts.items():
            setattr(client, name, value)
        client.begin(0, quota)
    upstream = Upstream(stamps, quota, clients[0].period_ns, clients[0].wall_offset_ns)
    bench.checkers += [upstream, QuotasAreSound()]
    return clients, upstream


def overload(seed: int, quota: int, watched: Watch) -> None:
    """Three times the quota asked of 2 to 8 nodes with loss: whole windows, none over."""
    nodes = 2 + seed % 7
    network = Network(loss=(0.0, 0.05, 0.2)[seed % 3], duplicate=0.2)
    bench = watched(Simulation(nodes, seed, network))
    clients, upstream = begun(bench, quota, 1.5 * quota)
    bench.run_for(5 * clients[0].period_ns)
    assert len(upstream.counts) >= 4, f"seed {seed}: {upstream.counts}"
    # The first begins when the load does; each gap between two takes a round trip, more with loss.
    assert sum(upstream.counts[:4]) >= 0.97 * 4 * quota, f"seed {seed}: {upstream.counts}"
    fair = sum(upstream.counts) / nodes
    for client in clients:
        assert 0.5 * fair <= client.admitted <= 1.6 * fair, f"seed {seed}"


@pytest.mark.parametrize("seed", range(3))
def test_the_quota_is_used_and_never_exceeded(seed: int, watched: Watch) -> None:
    overload(seed, 50, watched)


def test_a_quota_smaller_than_the_members_is_used(watched: Watch) -> None:
    bench = watched(Simulation(8, 2))
    _, upstream = begun(bench, 4, 30.0)
    bench.run_for(4 * SECOND)
    assert upstream.counts[:3] == [4, 4, 4]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 180))
@pytest.mark.parametrize("quota", [40, 300])
def test_the_quota_with_many_seeds(seed: int, quota: int, watched: Watch) -> None:
    overload(seed, quota, watched)


def test_a_first_use_opens_the_window_and_an_unused_lease_does_not(watched: Watch) -> None:
    """A window begins with its first use, however long before that a lease lay somewhere."""
    bench = watched(Simulation(3, 3))
    clients, upstream = begun(bench, 10, 0.0)
    bench.run_for(3 * SECOND)
    owner = owner_of(clients)
    first = next(client for client in clients if client is not owner)
    first.row.arrive(1, bench.now_ns)
    assert first.row.ask(1, bench.now_ns) > 0
    bench.after_step(first.sim)
    bench.run_for(20 * MS)
    assert first.row.purse >= 1
    bench.run_for(3 * SECOND)  # given back after one
    assert first.row.purse == 0
    assert owner.limit.remaining(owner.row, bench.now_ns) == (10, 0)
    assert owner.row.ask(1, bench.now_ns) == 0
    owner.row.take(1, bench.now_ns)
    assert owner.limit.remaining(owner.row, bench.now_ns) == (9, owner.period_ns)
    assert upstream.counts == []


def test_clocks_that_are_hours_apart_do_not_matter(watched: Watch) -> None:
    """By the wall clock the owner's decides; the others' say nothing."""
    bench = watched(Simulation(3, 4))
    clients, _ = begun(bench, 20, 0.0)
    period_ns = clients[0].period_ns
    stamps: list[int] = []
    for number, client in enumerate(clients):
        client.wall_offset_ns = number * 3600 * SECOND + number * 700 * MS
        client._stamps = stamps
        client.begin(0, 20)
        client.rate = 30.0
    bench.run_for(period_ns)
    owner = owner_of(clients)
    upstream = Upstream(stamps, 20, period_ns, owner.wall_offset_ns)
    bench.checkers.append(upstream)
    bench.run_for(5 * period_ns)
    assert sum(upstream.counts[1:5]) >= 4 * 20 * 0.98, upstream.counts


def owner_of(clients: list[QuotaClient]) -> QuotaClient:
    for client in clients:
        if client.sim.node is not None:
            client.row.ask(1, client.bench.now_ns)  # looks its owner up
    (owner,) = (
        client
        for client in clients
        if client.sim.node is not None and client.row.ledger is not None
    )
    return owner


def owners_come_and_go(seed: int, period_ns: int, aligned: bool, watched: Watch) -> None:
    """Crashed and back before anybody noticed, crashed for long, left and back."""
    quota = 60
    network = Network(loss=(0.0, 0.05, 0.2)[seed % 3])
    bench = watched(Simulation(3 + seed % 4, seed, network))
    facts = {"period_ns": period_ns, "wall_offset_ns": 123_456_789 if aligned else None}
    clients, upstream = begun(bench, quota, 1.5 * quota * SECOND / period_ns, **facts)
    bench.run_for(2 * SECOND)

    def restart(owner: QuotaClient, after_ns: int) -> None:
        bench.kill(owner.sim.number)
        bench.run_for(after_ns)
        bench.start(owner.sim.number)
        owner.begin(0, quota)
        bench.run_until(bench.meshed, 20 * SECOND)
        bench.run_for(3 * SECOND)

    restart(owner_of(clients), 100 * MS)
    restart(owner_of(clients), 4 * SECOND)
    owner = owner_of(clients)
    for _ in range(2):  # as the driver does
        owner.sim.up.leave(bench.now_ns)
        bench.after_step(owner.sim)
    restart(owner, 2 * SECOND)
    count = len(upstream.counts)
    bench.run_for(4 * period_ns)
    assert sum(upstream.counts[count:]) >= 2 * quota, f"seed {seed}: {upstream.counts}"


@pytest.mark.parametrize(("seed", "aligned"), [(0, False), (2, True)])
def test_owners_that_crash_come_back_and_leave(seed: int, aligned: bool, watched: Watch) -> None:
    owners_come_and_go(seed, 2 * SECOND, aligned, watched)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 130))
@pytest.mark.parametrize("aligned", [False, True], ids=["first", "clock"])
@pytest.mark.parametrize("period_ns", [SECOND // 2, 5 * SECOND], ids=["short", "long"])
def test_many_owners_come_and_go(seed: int, period_ns: int, aligned: bool, watched: Watch) -> None:
    owners_come_and_go(seed, period_ns, aligned, watched)


def test_after_a_partition_has_healed_no_window_is_over(watched: Watch) -> None:
    """Each side has an owner of its own meanwhile; then one counts for all again."""
    bench = watched(Simulation(3, 7))
    clients, apart = begun(bench, 30, 60.0)
    bench.run_for(2 * SECOND)
    bench.checkers.remove(apart)  # what sides may take is `on_partition`'s to say
    addresses = [sim.address for sim in bench.nodes]
    bench.network.partition(addresses[:1], addresses[1:])
    bench.run_for(4 * SECOND)
    bench.network.heal()
    bench.run_until(bench.meshed, 10 * SECOND)
    bench.run_for(3 * SECOND)
    owner = owner_of(clients).row
    # From a window that is used up on, so that both count the same ones.
    bench.run_until(lambda: owner.level(bench.now_ns) >= 30, 2 * SECOND)
    together = Upstream([], 30, clients[0].period_ns)
    for client in clients:
        client._stamps = together._stamps
    bench.checkers.append(together)
    bench.run_for(5 * SECOND)
    assert sum(together.counts[:3]) >= 0.95 * 90, together.counts
