"""Pauses: how fast they spread, that all agree in the end, and one trial for each."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from peers.core.config import MS, SECOND
from peers.core.events import BreakerClosed, BreakerOpened, Event, TrialClaimed, TripMajority
from peers.simnet import Network, SimNode, Simulation

Watch = Callable[[Simulation], Simulation]
SCOPE = b"scope-01"
SEEDS = range(20)


def meshed(bench: Simulation) -> Simulation:
    bench.start()
    bench.run_until(bench.meshed, 60 * SECOND)
    bench.run_for(2 * SECOND)
    for sim in bench.nodes:
        sim.events.clear()
    return bench


def events(sim: SimNode, kind: type[Event]) -> list[tuple[int, Event]]:
    return [(when, event) for when, event in sim.events if isinstance(event, kind)]


def open_at(bench: Simulation, number: int, epoch: int = 1, for_ns: int = 5 * SECOND) -> None:
    now_ns = bench.now_ns
    sim = bench.nodes[number]
    sim.up.open_breaker(SCOPE, epoch, now_ns + for_ns, 429, now_ns, reff=42.5)
    bench.after_step(sim)


def all_open(bench: Simulation, epoch: int = 1) -> bool:
    states = [sim.up.breaker_state(SCOPE) for sim in bench.nodes]
    return all(state is not None and state[:2] == (epoch, True) for state in states)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_pause_reaches_all_once(seed: int, watched: Watch) -> None:
    nodes = 2 + seed % 7
    bench = meshed(watched(Simulation(nodes, seed)))
    start_ns = bench.now_ns
    open_at(bench, 0)
    bench.run_until(lambda: all_open(bench), 5 * MS)
    bench.run_for(3 * SECOND)
    for sim in bench.nodes[1:]:
        (told,) = events(sim, BreakerOpened)
        event = told[1]
        assert isinstance(event, BreakerOpened)
        assert event[:2] == (SCOPE, 1)
        assert event.cause == 429
        assert event.reff == 42.5
        assert event.origin == "node-0"
        # Never early; late by the way here and a millisecond of rounding.
        assert 0 <= event.until_ns - start_ns - 5 * SECOND <= 6 * MS, f"seed {seed}"
    assert not events(bench.nodes[0], BreakerOpened)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_pause_reaches_all_through_loss(seed: int, watched: Watch) -> None:
    bench = meshed(watched(Simulation(8, seed, Network(loss=0.2, duplicate=0.2))))
    open_at(bench, seed % 8)
    took_ns = bench.run_until(lambda: all_open(bench), 2 * SECOND)
    assert took_ns <= 100 * MS, f"seed {seed}"  # 30 ms at the 95th percentile in the model
    bench.run_for(SECOND)
    ends = [state[2] for sim in bench.nodes if (state := sim.up.breaker_state(SCOPE))]
    assert max(ends) - min(ends) <= 200 * MS, f"seed {seed}"


@pytest.mark.parametrize("seed", range(8))
def test_echoes_do_not_prolong_a_pause(seed: int, watched: Watch) -> None:
    """Two nodes pause at once, every copy comes three times and late: the end stays put."""
    network = Network(delay_min_ns=1 * MS, delay_max_ns=50 * MS, duplicate=0.9)
    bench = meshed(watched(Simulation(6, seed, network)))
    start_ns = bench.now_ns
    open_at(bench, 0)
    open_at(bench, 1)
    bench.run_for(4 * SECOND)
    for sim in bench.nodes:
        state = sim.up.breaker_state(SCOPE)
        assert state is not None
        assert 0 <= state[2] - start_ns - 5 * SECOND <= 200 * MS, f"seed {seed}"


@pytest.mark.parametrize("seed", range(8))
def test_states_converge_after_a_partition(seed: int, watched: Watch) -> None:
    """Both sides open and close on their own; the larger (epoch, state) wins everywhere."""
    bench = meshed(watched(Simulation(6, seed)))
    addresses = [sim.address for sim in bench.nodes]
    bench.network.partition(addresses[:3], addresses[3:])
    bench.run_for(5 * SECOND)
    open_at(bench, 0, epoch=1)
    open_at(bench, 5, epoch=1, for_ns=60 * SECOND)
    bench.run_for(SECOND)
    bench.nodes[1].up.close_breaker(SCOPE, 2, bench.now_ns)
    bench.after_step(bench.nodes[1])
    bench.run_for(SECOND)
    bench.network.heal()
    bench.run_until(bench.meshed, 10 * SECOND)
    bench.run_for(2 * SECOND)
    for sim in bench.nodes:
        state = sim.up.breaker_state(SCOPE)
        assert state is not None
        assert state[:2] == (2, False), f"seed {seed}"
    assert events(bench.nodes[4], BreakerClosed)
    assert not events(bench.nodes[2], BreakerOpened)[1:]


@pytest.mark.parametrize("seed", range(8))
def test_a_joiner_learns_of_a_pause(seed: int, watched: Watch) -> None:
    bench = meshed(watched(Simulation(4, seed)))
    bench.kill(3)
    bench.run_for(3 * SECOND)
    open_at(bench, 0, for_ns=60 * SECOND)
    bench.run_for(2 * SECOND)
    bench.start(3)
    bench.run_until(lambda: all_open(bench), SECOND)


@pytest.mark.parametrize("after_s", [20, 299, 301, 330])
def test_a_joiner_learns_of_a_long_pause_before_it_serves(after_s: int, watched: Watch) -> None:
    """The pause is older than what counts as lately; the joiner knows it when joining is over."""
    bench = meshed(watched(Simulation(3, after_s, heartbeat_interval_ns=SECOND)))
    bench.kill(2)
    bench.run_for(3 * SECOND)
    open_at(bench, 0, for_ns=3600 * SECOND)
    end_ns = bench.now_ns + 3600 * SECOND
    bench.run_for(after_s * SECOND)
    bench.start(2)
    bench.run_until(lambda: not bench.nodes[2].up.joining, 5 * SECOND)
    state = bench.nodes[2].up.breaker_state(SCOPE)
    assert state is not None
    assert state[:2] == (1, True)
    assert 0 <= state[2] - end_ns <= 20 * MS


def test_a_long_pause_is_known_after_a_partition_of_six_minutes(watched: Watch) -> None:
    bench = meshed(watched(Simulation(3, 1, heartbeat_interval_ns=SECOND)))
    addresses = [sim.address for sim in bench.nodes]
    bench.network.partition(addresses[:2], addresses[2:])
    open_at(bench, 0, for_ns=3600 * SECOND)
    bench.run_for(360 * SECOND)
    assert bench.nodes[2].up.breaker_state(SCOPE) is None
    bench.network.heal()
    bench.run_until(lambda: all_open(bench), 10 * SECOND)
    assert events(bench.nodes[2], BreakerOpened)


def test_a_thousand_old_pauses_are_pulled_after_a_partition(watched: Watch) -> None:
    """One answer has forty of them: each goes on where the last one ended."""
    bench = meshed(Simulation(2, 1))
    addresses = [sim.address for sim in bench.nodes]
    bench.network.partition(addresses[:1], addresses[1:])
    node = bench.nodes[0].up
    for number in range(1000):
        scope = b"%024d" % number
        node.open_breaker(scope, 1, bench.now_ns + 3600 * SECOND, 0, bench.now_ns)
    bench.after_step(bench.nodes[0])
    bench.run_for(310 * SECOND)
    bench.network.heal()
    other = bench.nodes[1].up
    bench.run_until(
        lambda: all(other.breaker_state(b"%024d" % number) for number in range(1000)), 20 * SECOND
    )


def test_a_pause_that_ended_long_ago_is_asked_for_no_more() -> None:
    """Members forget at slightly different times and do not teach each other again."""
    bench = meshed(Simulation(2, 1, heartbeat_interval_ns=SECOND))
    open_at(bench, 0, for_ns=400 * SECOND)
    bench.run_for((400 + 600 + 2) * SECOND)
    assert [sim.up.breaker_state(SCOPE) for sim in bench.nodes] == [None, None]
    assert len(events(bench.nodes[1], BreakerOpened)) == 1


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("loss", [0.0, 0.2])
def test_one_trial_per_pause(seed: int, loss: float, watched: Watch) -> None:
    """Every member has a request and takes its turn unless it heard of a claim."""
    bench = meshed(watched(Simulation(8, seed, Network(loss=loss))))
    trials: list[int] = []
    until_ns = bench.now_ns + SECOND

    def turn(sim: SimNode) -> None:
        node = sim.up
        at_ns = node.trial_at_ns(SCOPE, 1, until_ns, bench.now_ns)
        if at_ns > bench.now_ns:
            bench.at(at_ns - bench.now_ns, turn, sim)
        elif not trials or not events(sim, TrialClaimed):
            trials.append(sim.number)
            node.claim_trial(SCOPE, 1, bench.now_ns + 10 * SECOND, bench.now_ns)
            bench.after_step(sim)

    open_at(bench, 0, for_ns=SECOND)
    for sim in bench.nodes:
        bench.at(SECOND, turn, sim)
    bench.run_for(2 * SECOND)
    assert len(trials) == 1 if loss == 0.0 else 1 <= len(trials) <= 3, f"seed {seed}"


def wants(bench: Simulation, *numbers: int) -> None:
    """These nodes have requests for the scope from now on."""

    def note(sim: SimNode) -> None:
        if sim.node is not None:
            sim.node.note_demand(SCOPE, bench.now_ns)
        bench.at(SECOND // 2, note, sim)

    for number in numbers:
        note(bench.nodes[number])


@pytest.mark.parametrize("seed", range(6))
def test_the_trial_is_for_members_that_have_requests(seed: int, watched: Watch) -> None:
    bench = meshed(watched(Simulation(6, seed)))
    wants(bench, 1, 4)
    bench.run_for(3 * SECOND)
    until_ns = bench.now_ns
    turns = [
        sim.up.trial_at_ns(SCOPE, seed, until_ns, bench.now_ns) - until_ns for sim in bench.nodes
    ]
    assert sorted(turns)[0] == 0
    assert turns.index(0) in (1, 4)
    assert {turns[1], turns[4]} == set(sorted(turns)[:2])
    assert len(set(turns)) == 6


@pytest.mark.parametrize("how", ["given back", "killed"])
def test_a_claimed_trial_always_comes_back(how: str, watched: Watch) -> None:
    """Its sender gives it up, or is gone: another may send one, long before the claim would end."""
    bench = meshed(watched(Simulation(4, 3)))
    claimer, other = bench.nodes[1], bench.nodes[2]
    claim_ns = bench.now_ns
    claimer.up.claim_trial(SCOPE, 1, claim_ns + 60 * SECOND, claim_ns)
    bench.after_step(claimer)
    bench.run_for(SECOND)
    assert other.up.trial_at_ns(SCOPE, 1, claim_ns, bench.now_ns) > claim_ns + 60 * SECOND
    begin_ns = bench.now_ns
    if how == "killed":
        bench.kill(1)
    else:
        claimer.up.release_trial(SCOPE, 1, begin_ns)
        bench.after_step(claimer)
    within_ns = 3 * SECOND if how == "killed" else 20 * MS
    bench.run_until(lambda: len(events(other, TrialClaimed)) == 2, within_ns)
    told = events(other, TrialClaimed)[-1][1]
    assert isinstance(told, TrialClaimed)
    assert told.until_ns <= bench.now_ns
    assert other.up.trial_at_ns(SCOPE, 1, claim_ns, bench.now_ns) < bench.now_ns + SECOND


def majorities(sim: SimNode) -> list[Event]:
    return [event for _, event in events(sim, TripMajority)]


@pytest.mark.parametrize("loss", [0.0, 0.2])
@pytest.mark.parametrize("seed", range(4))
def test_a_breaker_opens_for_all_when_most_that_use_it_have_tripped(
    seed: int, loss: float, watched: Watch
) -> None:
    """Five of seven use it: two that trip are a bad network, three are a bad upstream."""
    bench = meshed(watched(Simulation(7, seed, Network(loss=loss))))
    wants(bench, 0, 1, 2, 3, 4)
    bench.run_for(4 * SECOND)

    def trip(number: int, tripped: bool) -> None:
        bench.nodes[number].up.trip(SCOPE, tripped, bench.now_ns)
        bench.after_step(bench.nodes[number])

    trip(0, True)
    trip(1, True)
    bench.run_for(4 * SECOND)
    assert not any(majorities(sim) for sim in bench.nodes), f"seed {seed}"
    trip(1, False)
    bench.run_for(2 * SECOND)
    trip(2, True)
    bench.run_for(3 * SECOND)
    assert not any(majorities(sim) for sim in bench.nodes), f"seed {seed}"
    trip(3, True)
    within_ns = 10 * MS if loss == 0.0 else 4 * SECOND
    bench.run_until(lambda: any(majorities(sim) for sim in bench.nodes), within_ns)
    told = next(event for sim in bench.nodes for event in majorities(sim))
    assert told == TripMajority(SCOPE, 3, 5)
    assert not majorities(bench.nodes[6])


def test_alone_or_the_only_user_is_a_majority(watched: Watch) -> None:
    bench = meshed(watched(Simulation(3, 1)))
    node = bench.nodes[0].up
    node.note_demand(SCOPE, bench.now_ns)
    node.trip(SCOPE, True, bench.now_ns)
    bench.after_step(bench.nodes[0])
    assert majorities(bench.nodes[0]) == [TripMajority(SCOPE, 1, 1)]


def test_the_vote_of_a_member_that_died_is_void(watched: Watch) -> None:
    bench = meshed(watched(Simulation(4, 2)))
    wants(bench, 0, 1, 2)
    bench.run_for(2 * SECOND)
    bench.nodes[0].up.trip(SCOPE, True, bench.now_ns)
    bench.after_step(bench.nodes[0])
    bench.kill(0)
    bench.run_for(4 * SECOND)
    bench.nodes[1].up.trip(SCOPE, True, bench.now_ns)
    bench.after_step(bench.nodes[1])
    bench.run_for(SECOND)
    assert not majorities(bench.nodes[1])
    bench.kill(2)  # then one of one that is left has tripped
    bench.run_until(lambda: bool(majorities(bench.nodes[1])), 6 * SECOND)


def test_ranks_are_the_same_everywhere_and_differ_by_epoch() -> None:
    bench = meshed(Simulation(5, 1))
    first = []
    for epoch in range(20):
        turns = [
            sim.up.trial_at_ns(SCOPE, epoch, SECOND, bench.now_ns) - SECOND for sim in bench.nodes
        ]
        step_ns = 10 * MS
        assert sorted(turn // step_ns > 0 for turn in turns) == [False, True, True, True, True]
        assert len(set(turns)) == 5
        first.append(turns.index(0))
    assert len(set(first)) > 1


def test_alone_the_trial_is_at_once() -> None:
    bench = Simulation(1, 1)
    bench.start()
    assert bench.nodes[0].up.trial_at_ns(SCOPE, 1, 5 * SECOND, 0) == 5 * SECOND
