"""Exact limits: at every step no more than rate x w + burst, whatever happens but a partition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from peers.core.config import MS, SECOND
from peers.core.exact import ExactLimit
from peers.sim import Client, ideal
from peers.simnet import Network, SimNode, Simulation

Watch = Callable[[Simulation], Simulation]
# As the gateway holds a request whose lease is on its way.
WAIT_MS = 100


class ExactClient(Client):
    """Requests at one node under an exact limit."""

    row: Any
    limit: Any
    on_partition = "share"

    def begin(self, rate: int, burst: int) -> None:
        node = self.sim.up
        now_ns = self.bench.now_ns
        self.limit = node.exact_limit(
            "sim:limit",
            name="limit",
            rate_count=rate,
            rate_period_ns=SECOND,
            burst=burst,
            on_partition=self.on_partition,
            now_ns=now_ns,
        )
        self.row = self.limit.entry(b"", now_ns)
        self._queue.clear()
        self._next(node)


class LedgersAreSound:
    """What an owner has reserved is what its accounts hold, and with what is spent it fits."""

    def __call__(self, bench: Simulation, sim: SimNode) -> None:
        if sim.node is None:
            return
        for limit in sim.node._desk.limits():
            for ledger in limit.ledgers.values():
                held = [account.held for account in ledger.accounts.values()]
                assert all(count >= 0 for count in held), f"seed {bench.seed}"
                assert ledger.reserved == sum(held), f"seed {bench.seed}"
                committed = ledger.committed(bench.now_ns)
                assert committed <= limit.burst + 1e-3, f"seed {bench.seed}: {committed}"


def meshed(bench: Simulation) -> Simulation:
    bench.start()
    bench.run_until(bench.meshed, 60 * SECOND)
    bench.run_for(5 * SECOND)
    return bench


def loaded(
    bench: Simulation, rate: int, burst: int, load: float, wait_ms: int = WAIT_MS
) -> tuple[list[ExactClient], list[int]]:
    stamps: list[int] = []
    part = rate * load / len(bench.nodes)
    clients = [ExactClient(bench, sim, part, wait_ms * MS, stamps) for sim in bench.nodes]
    for client in clients:
        client.begin(rate, burst)
    return clients, stamps


def used(clients: list[ExactClient], stamps: list[int], rate: int, burst: int) -> float:
    """The share of what one bucket would have admitted of the same arrivals."""
    arrivals = [stamp for client in clients for stamp in client.arrivals]
    bench = clients[0].bench
    return len(stamps) / ideal(arrivals, rate, burst, WAIT_MS * MS, bench.now_ns)


def overload(rate: int, burst: int, seed: int, watched: Watch, bound: Any, seconds: int) -> None:
    """Of a burst of 1 a token that is granted, or lost on its way, keeps all others from draining:
    a round trip for each is .05 of 20/s, and with a fifth lost .13 to .34 for 2 to 8 members."""
    nodes = 2 + seed % 7
    loss = (0.0, 0.05, 0.2)[seed % 3]
    bench = meshed(watched(Simulation(nodes, seed, Network(loss=loss, duplicate=0.2))))
    clients, stamps = loaded(bench, rate, burst, 2.0)
    bench.checkers += [bound(stamps, rate, burst, 1e-6), LedgersAreSound()]
    bench.run_for(seconds * SECOND)
    assert used(clients, stamps, rate, burst) >= (0.95 if burst > 1 else 0.6), f"seed {seed}"
    fair = len(stamps) / nodes
    for client in clients:
        assert 0.35 * fair <= client.admitted <= 1.65 * fair, f"seed {seed}"


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("rate", "burst"), [(100, 100), (100, 4)])
def test_never_over_and_well_used(
    rate: int, burst: int, seed: int, watched: Watch, bound: Any
) -> None:
    overload(rate, burst, seed, watched, bound, 2)


def test_who_was_thought_dead_for_a_moment_owes_nothing(watched: Watch, bound: Any) -> None:
    """With a fifth lost one of two is declared dead for 2 ms after six seconds."""
    overload(100, 4, 140, watched, bound, 7)


def test_one_token_for_eight_members_is_used(watched: Watch, bound: Any) -> None:
    """It is asked for requests that wait, and no purse keeps it (.27 when purses did)."""
    bench = meshed(watched(Simulation(8, 1)))
    clients, stamps = loaded(bench, 20, 1, 2.0)
    bench.checkers += [bound(stamps, 20, 1, 1e-6), LedgersAreSound()]
    bench.run_for(3 * SECOND)
    assert used(clients, stamps, 20, 1) >= 0.9
    for client in clients:
        client.rate = 0.0
    bench.run_for(SECOND)
    assert all(client.row.purse == 0 for client in clients)
    owner = clients[owner_of(bench, clients)].row
    assert owner.ledger.reserved == 0
    assert owner.level(bench.now_ns) == 0.0


def test_owners_that_leave_and_come_cost_no_burst(watched: Watch, bound: Any) -> None:
    """Their heirs know what was spent, and they know it when they are back."""
    rate, burst = 10, 100
    bench = meshed(watched(Simulation(4, 3)))
    clients, stamps = loaded(bench, rate, burst, 0.5)
    bench.checkers.append(bound(stamps, rate, burst, 1e-6))
    bench.run_for(13 * SECOND)  # after a change of membership new keys start full
    left = clients[owner_of_key(bench, clients)]
    for _ in range(30):
        assert left.row.ask(1, bench.now_ns) == 0
        left.row.take(1, bench.now_ns)
        stamps.append(bench.now_ns)
    for _ in range(2):  # as the driver does
        left.sim.up.leave(bench.now_ns)
        bench.after_step(left.sim)
    bench.kill(left.sim.number)
    bench.run_for(500 * MS)
    heir = clients[owner_of_key(bench, clients)]
    assert 20 <= heir.row.level(bench.now_ns) <= 40
    bench.start(left.sim.number)
    left.begin(rate, burst)
    bench.run_until(bench.meshed, 20 * SECOND)
    bench.run_for(SECOND)
    assert owner_of_key(bench, clients) == left.sim.number
    assert left.row.level(bench.now_ns) <= 35


def test_what_an_owner_that_crashed_had_is_presumed_spent(watched: Watch) -> None:
    bench = meshed(watched(Simulation(4, 3)))
    clients, _ = loaded(bench, 10, 100, 0.5)
    bench.run_for(13 * SECOND)
    crashed = clients[owner_of_key(bench, clients)]
    assert crashed.row.level(bench.now_ns) < 20
    bench.kill(crashed.sim.number)
    others = [client for client in clients if client is not crashed]
    bench.run_until(lambda: all(c.sim.up.live_count() == 3 for c in others), 10 * SECOND)
    bench.run_for(SECOND)
    heir = clients[owner_of_key(bench, clients)]
    assert 85 <= heir.row.level(bench.now_ns) <= 100


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 160))
@pytest.mark.parametrize(("rate", "burst"), [(1000, 100), (100, 4), (20, 1)])
def test_never_over_with_many_seeds(
    rate: int, burst: int, seed: int, watched: Watch, bound: Any
) -> None:
    overload(rate, burst, seed, watched, bound, 10)


def owner_of(bench: Simulation, clients: list[ExactClient]) -> int:
    """The node that has the ledger."""
    (number,) = (
        client.sim.number
        for client in clients
        if client.sim.node is not None
        and client.row.ledger is not None
        and client.row.version == client.limit.version
    )
    return int(number)


# 1028: an owner leaves whose good-bye is lost, and its heirs agree just as burst / rate is over.
@pytest.mark.parametrize("seed", [0, 1, 1028])
def test_owners_that_crash_come_back_and_leave(seed: int, watched: Watch, bound: Any) -> None:
    owners_come_and_go(seed, watched, bound)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 200))
def test_many_owners_come_and_go(seed: int, watched: Watch, bound: Any) -> None:
    owners_come_and_go(seed, watched, bound)


def owners_come_and_go(seed: int, watched: Watch, bound: Any) -> None:
    rate, burst = 100, 20
    loss = (0.0, 0.05, 0.2)[seed % 3]
    bench = meshed(watched(Simulation(3 + seed % 4, seed, Network(loss=loss))))
    clients, stamps = loaded(bench, rate, burst, 2.0)
    bench.checkers.append(bound(stamps, rate, burst, 1e-6))
    bench.run_for(2 * SECOND)

    def restart(number: int, after_ns: int) -> None:
        bench.run_for(after_ns)
        bench.start(number)
        clients[number].begin(rate, burst)
        bench.run_until(bench.meshed, 20 * SECOND)
        bench.run_for(3 * SECOND)

    owner = owner_of(bench, clients)
    bench.kill(owner)
    restart(owner, 100 * MS)  # before anybody noticed
    owner = owner_of(bench, clients)
    bench.kill(owner)
    restart(owner, 4 * SECOND)
    owner = owner_of(bench, clients)
    bench.nodes[owner].up.leave(bench.now_ns)
    bench.after_step(bench.nodes[owner])
    bench.kill(owner)
    restart(owner, 2 * SECOND)
    before = len(stamps)
    bench.run_for(3 * SECOND)
    assert len(stamps) - before >= 0.9 * 3 * rate, f"seed {seed}"


@pytest.mark.parametrize("seed", range(3))
def test_a_crashed_owner_costs_two_seconds_at_most(seed: int, watched: Watch) -> None:
    bench = meshed(watched(Simulation(4, seed)))
    clients, stamps = loaded(bench, 100, 20, 2.0)
    bench.run_for(2 * SECOND)
    bench.kill(owner_of(bench, clients))
    before = len(stamps)
    bench.run_for(4 * SECOND)
    # What was leased is spent; from the owner's death on (1.7 s) everything.
    assert len(stamps) - before >= 0.4 * 400, f"seed {seed}"


@pytest.mark.parametrize(
    "policy",
    [
        "share",
        pytest.param("open", marks=pytest.mark.slow),
        pytest.param("closed", marks=pytest.mark.slow),
    ],
)
def test_a_partition_is_decided_by_on_partition(policy: str, watched: Watch) -> None:
    bench = meshed(watched(Simulation(3, 7)))
    addresses = [sim.address for sim in bench.nodes]
    stamps: list[list[int]] = [[], [], []]
    clients = [
        ExactClient(bench, sim, 200.0, WAIT_MS * MS, stamps[sim.number]) for sim in bench.nodes
    ]
    for client in clients:
        client.on_partition = policy
        client.begin(100, 10)
    bench.network.partition(addresses[:1], addresses[1:])
    bench.run_until(lambda: [sim.up.live_count() for sim in bench.nodes] == [1, 2, 2], 9 * SECOND)
    bench.run_for(3 * SECOND)
    before = [len(part) for part in stamps]
    bench.run_for(10 * SECOND)
    alone, *two = [len(part) - count for part, count in zip(stamps, before, strict=True)]
    expected = {"share": 333, "open": 1000, "closed": 0}[policy]
    assert abs(alone - expected) <= 0.05 * 1000
    assert abs(sum(two) - 1000) <= 0.05 * 1000
    bench.network.heal()
    bench.run_until(bench.meshed, 10 * SECOND)
    bench.run_for(3 * SECOND)
    count = sum(map(len, stamps))
    bench.run_for(5 * SECOND)
    assert 0.9 * 500 <= sum(map(len, stamps)) - count <= 500 + 10


def test_many_keys_and_large_costs(watched: Watch) -> None:
    """Each of forty keys is kept for itself. Costs up to the burst get their turn, though one of
    all of it waits until one node has all tokens (14 s at the most, where 6 s would do)."""
    bench = meshed(watched(Simulation(3, 5)))
    taken: dict[int, int] = {}
    refused = 0

    def request(sim: SimNode, limit: ExactLimit, number: int, cost: int, until_ns: int) -> None:
        nonlocal refused
        now_ns = bench.now_ns
        row = limit.entry(number.to_bytes(2, "big"), now_ns)
        row.arrive(cost, now_ns)
        wait_ns = row.ask(cost, now_ns)
        if wait_ns == 0:
            row.take(cost, now_ns)
            taken[number] = taken.get(number, 0) + cost
        elif now_ns + wait_ns < until_ns:
            bench.at(min(wait_ns, 100 * MS), request, sim, limit, number, cost, until_ns)
        else:
            refused += 1
        bench.after_step(sim)

    start_ns = bench.now_ns
    for sim in bench.nodes:
        limit = sim.up.exact_limit(
            "keys", name="k", rate_count=10, rate_period_ns=SECOND, burst=10, now_ns=start_ns
        )
        for number in range(40):
            for turn, cost in enumerate((1, 7, 2, 10)):
                at_ns = bench.chance.randint(0, SECOND // 2) + turn * 10 * MS
                bench.at(at_ns, request, sim, limit, number, cost, start_ns + 14 * SECOND)
    bench.run_for(14 * SECOND)
    # Three times 20 tokens of each key were asked for; 10 and 10 a second are there.
    assert len(taken) == 40
    assert all(count <= 60 for count in taken.values())
    assert sum(taken.values()) >= 40 * 60
    assert refused == 0
    bench.run_for(30 * SECOND)
    for sim in bench.nodes:
        (limit,) = sim.up._desk.limits()
        assert limit.stats()["active_rows"] == 0
        assert all(ledger.reserved == 0 for ledger in limit.ledgers.values())
    bench.run_for(60 * SECOND)
    for sim in bench.nodes:
        (limit,) = sim.up._desk.limits()
        assert len(limit) == 0
        assert not limit.ledgers


def test_a_seed_decides_everything() -> None:
    def admitted(seed: int) -> list[int]:
        bench = meshed(Simulation(4, seed, Network(loss=0.2)))
        _, stamps = loaded(bench, 100, 20, 2.0)
        bench.run_for(2 * SECOND)
        return stamps

    assert admitted(3) == admitted(3)
    assert admitted(3) != admitted(4)


def test_unused_tokens_go_back_after_a_second(watched: Watch) -> None:
    """One member collects a purse and falls silent; another then has the whole bucket."""
    bench = meshed(watched(Simulation(3, 2)))
    clients, stamps = loaded(bench, 1, 9, 0.0)
    bench.run_for(9 * SECOND)  # after a change of membership new keys start full
    owner = owner_of_key(bench, clients)
    first, second = (client for client in clients if client.sim.number != owner)
    row = first.row
    for _ in range(3):
        row.arrive(3, bench.now_ns)
        row.ask(3, bench.now_ns)
        bench.after_step(first.sim)
        bench.run_for(30 * MS)
    assert row.purse == 3
    bench.run_for(1500 * MS)
    assert row.purse == 0
    assert clients[owner].row.ledger.reserved == 0
    for _ in range(9):
        second.row.ask(1, bench.now_ns)
        bench.after_step(second.sim)
        bench.run_for(10 * MS)
        assert second.row.ask(1, bench.now_ns) == 0
        second.row.take(1, bench.now_ns)
    assert not stamps


def owner_of_key(bench: Simulation, clients: list[ExactClient]) -> int:
    for client in clients:
        if client.sim.node is not None:
            client.row.ask(1, bench.now_ns)  # finds the owner; nobody takes anything
    return owner_of(bench, clients)


def test_what_an_upstream_tells_a_member_reaches_the_owner(watched: Watch) -> None:
    bench = meshed(watched(Simulation(3, 2)))
    clients, _ = loaded(bench, 1, 9, 0.0)
    bench.run_for(9 * SECOND)
    owner = clients[owner_of_key(bench, clients)]
    other = next(client for client in clients if client is not owner)
    bench.after_step(other.sim)
    bench.run_for(10 * MS)  # it has been told how full the bucket is
    assert not other.row.learn(9, bench.now_ns, bench.now_ns)
    assert other.row.learn(2, bench.now_ns, bench.now_ns)
    bench.after_step(other.sim)
    bench.run_for(10 * MS)
    assert 6.9 <= owner.row.level(bench.now_ns) <= 7.1
    assert not owner.row.learn(2, bench.now_ns, bench.now_ns)
    assert owner.row.learn(1, bench.now_ns, bench.now_ns)
    owner.row.clear(bench.now_ns)
    assert owner.row.level(bench.now_ns) < 2


def test_an_answer_on_its_way_is_not_foreseen_but_a_full_bucket_is(watched: Watch) -> None:
    bench = meshed(watched(Simulation(3, 2)))
    clients, _ = loaded(bench, 1, 9, 0.0)
    bench.run_for(9 * SECOND)
    owner = clients[owner_of_key(bench, clients)].row
    other = next(client for client in clients if client.row is not owner)
    assert other.row.ask(1, bench.now_ns) > 0
    assert not other.row.foresees(1, bench.now_ns)
    bench.after_step(other.sim)
    bench.run_for(10 * MS)
    assert other.row.ask(1, bench.now_ns) == 0  # long before another round trip was over
    while owner.ask(1, bench.now_ns) == 0:
        owner.take(1, bench.now_ns)
    assert owner.ask(1, bench.now_ns) > 100 * MS
    assert owner.foresees(1, bench.now_ns)
    owner.limit.closed = True
    assert not owner.foresees(1, bench.now_ns)
