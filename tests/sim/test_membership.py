"""Who is in: joining, dying, coming back, leaving, and two of one name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from peers.core.config import MS, SECOND
from peers.core.events import (
    MemberJoined,
    MemberLeft,
    MemberSuspected,
    MemberUnreached,
    MeshFull,
    NameConflict,
    Unreached,
)
from peers.core.members import MemberState
from peers.core.node import Node
from peers.core.rows import ROOM
from peers.simnet import Network, Simulation

Watch = Callable[[Simulation], Simulation]
SEEDS = range(20)


def states(bench: Simulation, number: int) -> set[MemberState]:
    """What the others hold of a node."""
    name = f"node-{number}"
    return {
        member.state
        for sim in bench.nodes
        if sim.node is not None and sim.number != number
        for member in sim.node.members()
        if member.name == name
    }


@pytest.mark.parametrize("seed", SEEDS)
def test_all_find_each_other(seed: int, watched: Watch) -> None:
    nodes = 2 + seed % 7
    keys = (b"k" * 32,) if seed % 2 else ()
    bench = watched(Simulation(nodes, seed, Network(loss=0.2, duplicate=0.2), keys))
    bench.start()
    took_ns = bench.run_until(bench.meshed, 10 * SECOND)
    assert took_ns <= 4 * SECOND, f"seed {seed}"
    bench.run_for(10 * SECOND)
    assert bench.meshed(), f"seed {seed}: loss alone made a member look dead"


def test_thirty_two_members_mesh_and_stay_within_their_budget() -> None:
    bench = Simulation(32, 1)
    bench.start()
    bench.run_until(bench.meshed, 10 * SECOND)
    bench.run_for(6 * SECOND)  # the news of 32 joins has been told
    size = bench.bytes
    bench.run_for(2 * SECOND)
    assert bench.meshed()
    assert (bench.bytes - size) / 2 / 32 <= 30_000  # bytes a second and member, idle


@pytest.mark.parametrize("seed", SEEDS)
def test_a_killed_member_is_noticed_and_a_restarted_one_is_back(seed: int, watched: Watch) -> None:
    nodes = 2 + seed % 7
    bench = watched(Simulation(nodes, seed))
    bench.start()
    bench.run_until(bench.meshed, 10 * SECOND)
    bench.run_for(2 * SECOND)
    bench.kill(0)
    took_ns = bench.run_until(bench.meshed, 10 * SECOND)
    assert 1 * SECOND <= took_ns <= 4 * SECOND, f"seed {seed}"
    assert states(bench, 0) == {MemberState.DEAD}
    kinds = [type(event) for _, event in bench.nodes[1].events[-2:]]
    assert MemberSuspected in kinds or MemberLeft in kinds
    bench.start(0)
    assert bench.run_until(bench.meshed, 10 * SECOND) <= 1 * SECOND, f"seed {seed}"
    joined = bench.nodes[1].events[-1][1]
    assert joined == MemberJoined("node-0", bench.nodes[0].address)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_quick_restart_is_a_new_life_not_a_death(seed: int, watched: Watch) -> None:
    bench = watched(Simulation(3, seed))
    bench.start()
    bench.run_until(bench.meshed, 10 * SECOND)
    bench.run_for(2 * SECOND)
    boots = {member.boot for member in bench.nodes[1].up.members() if member.name == "node-0"}
    bench.kill(0)
    bench.run_for(50 * MS)
    bench.start(0)
    bench.run_for(2 * SECOND)
    assert bench.meshed()
    now = {member.boot for member in bench.nodes[1].up.members() if member.name == "node-0"}
    assert min(now) > max(boots)


@pytest.mark.parametrize("seed", range(8))
def test_a_partition_heals_by_itself(seed: int, watched: Watch) -> None:
    bench = watched(Simulation(5, seed))
    bench.start()
    bench.run_until(bench.meshed, 10 * SECOND)
    addresses = [sim.address for sim in bench.nodes]
    bench.network.partition(addresses[:2], addresses[2:])
    bench.run_for(30 * SECOND)
    assert [sim.up.live_count() for sim in bench.nodes] == [2, 2, 3, 3, 3]
    bench.network.heal()
    assert bench.run_until(bench.meshed, 10 * SECOND) <= 3 * SECOND, f"seed {seed}"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_minority_that_is_back_buries_nobody(seed: int, watched: Watch) -> None:
    """It takes all others for dead, and they hear each other: to no one of them is another gone."""
    bench = watched(Simulation(3 + seed % 3, seed))
    bench.start()
    bench.run_until(bench.meshed, 10 * SECOND)
    addresses = [sim.address for sim in bench.nodes]
    bench.network.partition(addresses[:1], addresses[1:])
    bench.run_for(10 * SECOND)
    healed_ns = bench.now_ns
    bench.network.heal()
    assert bench.run_until(bench.meshed, 10 * SECOND) <= 3 * SECOND, f"seed {seed}"
    bench.run_for(3 * SECOND)
    assert bench.meshed(), f"seed {seed}"
    for sim in bench.nodes[1:]:
        after = [event for at_ns, event in sim.events if at_ns >= healed_ns]
        assert not [event for event in after if isinstance(event, MemberLeft)], f"seed {seed}"


@pytest.mark.parametrize("seed", range(8))
def test_one_way_loss_at_a_single_node_kills_nobody_else(seed: int, watched: Watch) -> None:
    """A member that hears nothing suspects everybody; they say otherwise."""
    bench = watched(Simulation(6, seed))
    bench.start()
    bench.run_until(bench.meshed, 10 * SECOND)
    bench.run_for(2 * SECOND)
    deaf = bench.nodes[5]
    reaches = bench.network.reaches
    bench.network.reaches = lambda source, target: (  # type: ignore[method-assign]
        target != deaf.address and reaches(source, target)
    )
    bench.run_for(10 * SECOND)
    for sim in bench.nodes[:5]:
        live = {member.name for member in sim.up.members() if member.live}
        assert {f"node-{number}" for number in range(5)} <= live, f"seed {seed}"
    bench.network.reaches = reaches  # type: ignore[method-assign]
    bench.run_until(bench.meshed, 10 * SECOND)


@pytest.mark.parametrize("seed", range(8))
def test_who_leaves_is_gone_at_once_and_no_longer_counts(seed: int, watched: Watch) -> None:
    bench = watched(Simulation(4, seed))
    bench.start()
    bench.run_until(bench.meshed, 10 * SECOND)
    bench.nodes[0].up.leave(bench.now_ns)
    bench.after_step(bench.nodes[0])
    bench.kill(0)
    assert bench.run_until(bench.meshed, SECOND) <= 5 * MS
    bench.run_for(5 * SECOND)
    assert states(bench, 0) == {MemberState.LEFT}
    assert bench.nodes[1].events[-1][1] == MemberLeft("node-0", bench.nodes[0].address, False)
    assert bench.nodes[1].up.stats(bench.now_ns)["known"] == 3


def test_dead_members_are_known_until_they_are_forgotten() -> None:
    bench = Simulation(3, 1, forget_dead_ns=20 * SECOND)
    bench.start()
    bench.run_until(bench.meshed, 10 * SECOND)
    bench.kill(0)
    bench.kill(1)
    bench.run_for(10 * SECOND)
    node = bench.nodes[2].up
    assert node.stats(bench.now_ns)["known"] == 3
    assert node.forget_member("node-0")
    assert not node.forget_member("node-0")
    assert node.stats(bench.now_ns)["known"] == 2
    bench.run_for(20 * SECOND)
    assert [member.name for member in node.members()] == ["node-2"]


def renamed(bench: Simulation, number: int, name: str) -> Node:
    """Starts a node under another's name."""
    knobs = bench._knobs
    bench._knobs = {**knobs, "name": name}
    bench.start(number)
    bench._knobs = knobs
    return bench.nodes[number].up


@pytest.mark.parametrize("seed", range(8))
def test_a_second_node_of_one_name_is_refused_and_told(seed: int) -> None:
    bench = Simulation(3, seed)
    bench.start(0, 1)
    bench.run_until(bench.meshed, 10 * SECOND)
    bench.run_for(SECOND)
    renamed(bench, 2, "node-0")
    bench.run_for(5 * SECOND)
    conflicts = [event for _, event in bench.nodes[2].events if isinstance(event, NameConflict)]
    assert any(event.refused for event in conflicts)
    assert bench.nodes[2].up.stats(bench.now_ns)["refused"]
    for sim in bench.nodes[:2]:
        assert any(isinstance(event, NameConflict) and not event.refused for _, event in sim.events)
        assert sim.up.live_count() == 2
        (member,) = [member for member in sim.up.members() if member.name == "node-0"]
        assert member.address == bench.nodes[0].address


def misplaced(bench: Simulation, number: int) -> Node:
    """Starts a node that advertises an address where nobody is."""
    knobs = bench._knobs
    bench._knobs = {**knobs, "advertise": ("127.0.0.1", 9999)}
    bench.start(number)
    bench._knobs = knobs
    return bench.nodes[number].up


@pytest.mark.parametrize("seed", range(8))
def test_who_advertises_a_wrong_address_is_told_and_stays_dead(seed: int, watched: Watch) -> None:
    bench = watched(Simulation(3, seed))
    bench.start(0, 1)
    bench.run_until(bench.meshed, 10 * SECOND)
    wrong = misplaced(bench, 2)
    bench.run_until(lambda: wrong.cut_off, 15 * SECOND)
    bench.run_for(20 * SECOND)
    address = bench.nodes[2].address
    for sim in bench.nodes[:2]:
        kinds = [type(event) for _, event in sim.events]
        told = [event for _, event in sim.events if isinstance(event, MemberUnreached)]
        assert told == [MemberUnreached("node-2", ("127.0.0.1", 9999), address)], f"seed {seed}"
        # It may refute once before both have told it; it does not die and rise for ever.
        assert 1 <= kinds.count(MemberLeft) <= 3, f"seed {seed}"
        assert sim.up.live_count() == 2
    told_it = [event for _, event in bench.nodes[2].events if isinstance(event, Unreached)]
    assert [bool(event.members) for event in told_it] == [True], f"seed {seed}"
    assert told_it[0].source == address
    assert len(wrong._reach.unreached_by) == 2
    # What comes to it again is believed: an address that was not reached is, from now on.
    bench._by_address["127.0.0.1", 9999] = bench.nodes[2]
    bench.run_until(lambda: bench.meshed() and not wrong._reach.unreached_by, 10 * SECOND)
    assert [event for _, event in bench.nodes[2].events if isinstance(event, Unreached)][-1] == (
        0,
        address,
    )
    bench.run_for(10 * SECOND)
    assert bench.meshed()


def test_behind_a_wrong_address_a_limit_is_kept_as_beyond_a_partition() -> None:
    bench = Simulation(3, 1)
    bench.start(0, 1)
    wrong = misplaced(bench, 2)
    limits = [
        sim.up.limit(
            "x", name="x", rate_count=90, rate_period_ns=SECOND, burst=90, on_partition=conduct
        )
        for sim in bench.nodes
        for conduct in ["closed"]
    ]
    bench.run_for(20 * SECOND)
    assert wrong.cut_off
    assert [limit.closed for limit in limits] == [False, False, True]
    assert wrong.limit(
        "y", name="y", rate_count=90, rate_period_ns=SECOND, burst=90
    ).rate == pytest.approx(30 / SECOND)


def test_who_starts_cut_off_counts_whom_it_was_told_to_join() -> None:
    bench = Simulation(3, 1)
    bench.network.partition(*([sim.address] for sim in bench.nodes))
    bench.start()
    shared, closed = (
        bench.nodes[0].up.limit(
            conduct,
            name="x",
            rate_count=90,
            rate_period_ns=SECOND,
            burst=90,
            on_partition=conduct,
        )
        for conduct in ("share", "closed")
    )
    row = closed.entry(b"", bench.now_ns)
    for _ in range(100):
        bench.run_for(100 * MS)
        assert closed.closed
        assert row.ask(1, bench.now_ns) != ROOM
        assert shared.rate == pytest.approx(30 / SECOND)
    bench.network.heal()
    bench.run_until(bench.meshed, 10 * SECOND)
    assert not closed.closed
    assert shared.rate == pytest.approx(90 / SECOND)
    # Once it has met them, whom an operator forgets is forgotten.
    bench.kill(1)
    bench.kill(2)
    bench.run_for(5 * SECOND)
    assert closed.closed
    node = bench.nodes[0].up
    assert node.forget_member("node-1")
    assert node.forget_member("node-2")
    assert not closed.closed


def test_workers_of_one_host_do_not_show_that_others_are_reached() -> None:
    kin = tuple(("127.0.0.1", 7000 + number) for number in range(2))
    bench = Simulation(4, 1, kin=kin)
    bench.start(0, 1)
    bench.run_until(bench.meshed, 10 * SECOND)
    limit = bench.nodes[0].up.limit(
        "x", name="x", rate_count=80, rate_period_ns=SECOND, burst=80, on_partition="closed"
    )
    assert limit.closed  # two of four


def test_a_node_told_to_join_itself_only_is_whole() -> None:
    bench = Simulation(1, 1, join=(("127.0.0.1", 7000),))
    bench.start()
    limit = bench.nodes[0].up.limit(
        "x", name="x", rate_count=80, rate_period_ns=SECOND, burst=80, on_partition="closed"
    )
    assert not limit.closed
    # A name that has no address yet is somebody.
    bench.nodes[0].up.set_join_addresses([], bench.now_ns, 1)
    assert limit.closed
    bench.nodes[0].up.set_join_addresses([], bench.now_ns)
    assert not limit.closed


@pytest.mark.parametrize("seed", range(4))
def test_a_stall_behind_an_address_translation_is_no_wrong_address(seed: int) -> None:
    """It speaks from another address than it advertises, and is reached there: as many do."""
    bench = Simulation(3, seed)
    bench.start(0, 1)
    bench._by_address["127.0.0.1", 9999] = bench.nodes[2]
    misplaced(bench, 2)
    bench.run_until(bench.meshed, 10 * SECOND)
    bench.run_for(5 * SECOND)
    addresses = [sim.address for sim in bench.nodes]
    bench.network.partition(addresses[:2], [addresses[2], ("127.0.0.1", 9999)])
    bench.run_for(20 * SECOND)
    bench.network.heal()
    bench.run_until(bench.meshed, 10 * SECOND)
    bench.run_for(10 * SECOND)
    for sim in bench.nodes:
        assert not any(isinstance(event, MemberUnreached | Unreached) for _, event in sim.events)


def test_a_clock_that_went_back_over_a_restart_does_no_harm() -> None:
    bench = Simulation(2, 1)
    bench.start()
    bench.run_until(bench.meshed, 10 * SECOND)
    boot_ms = bench.nodes[0].up.members()[0].boot
    bench.kill(0)
    now_ns = bench.now_ns
    bench.now_ns = now_ns - 500 * SECOND  # boot times come from it
    bench.start(0)
    node = bench.nodes[0].up
    bench.now_ns = now_ns
    assert node.members()[0].boot < boot_ms
    bench.run_until(bench.meshed, 10 * SECOND)
    assert node.members()[0].boot > boot_ms


def test_a_full_cluster_takes_nobody_more() -> None:
    bench = Simulation(4, 1, members_max=3)
    bench.start(0, 1, 2)
    bench.run_until(bench.meshed, 10 * SECOND)
    bench.start(3)
    bench.run_for(5 * SECOND)
    assert [sim.up.live_count() for sim in bench.nodes[:3]] == [3, 3, 3]
    assert sum(sim.up.drops["members_full"] for sim in bench.nodes[:3]) > 0
    full = [event for _, event in bench.nodes[3].events if isinstance(event, MeshFull)]
    assert len(full) == 1
    assert full[0].address in [sim.address for sim in bench.nodes[:3]]
    assert bench.nodes[3].up.stats(bench.now_ns)["refused"]


def test_a_node_sleeps_between_its_timers() -> None:
    """Five heartbeats, five probes and a few other timers a second, and nothing between them."""
    bench = Simulation(3, 1)
    bench.start()
    bench.run_until(bench.meshed, 10 * SECOND)
    bench.run_for(10 * SECOND)
    ticks = 0
    wake = bench._wake

    def counted(*args: Any) -> None:
        nonlocal ticks
        ticks += 1
        wake(*args)

    bench._wake = counted  # type: ignore[method-assign]
    bench.run_for(10 * SECOND)
    assert ticks / 10 / 3 <= 30
    bench.kill(1)
    bench.kill(2)
    ticks = 0
    bench.run_for(20 * SECOND)  # suspicion, death and greetings must not spin either
    assert ticks / 20 <= 30


@pytest.mark.parametrize("loss", [0.0, 0.2])
def test_loss_and_traffic_are_known_by_member(loss: float, watched: Watch) -> None:
    """From unanswered probes: sequence numbers show nothing, since unicasts use them up too."""
    bench = watched(Simulation(4, 3, Network(loss=loss)))
    bench.start()
    bench.run_until(bench.meshed, 60 * SECOND)
    bench.run_for(120 * SECOND)
    stats = bench.nodes[0].up.stats(bench.now_ns)
    found = [member["loss"] for member in stats["members"] if not member["self"]]
    if loss:
        assert 0.1 <= sum(found) / 3 <= 0.3
    else:
        assert found == [0.0] * 3
    for member in stats["members"][1:]:
        sent, received = member["sent"], member["received"]
        assert received == pytest.approx(sent * (1 - loss), rel=0.25)
        assert member["sent_bytes"] >= 40 * sent
    others = sum(member["sent"] for member in stats["members"][1:])
    # The rest went to addresses that were no members yet.
    assert 0.95 * stats["datagrams_sent"] <= others <= stats["datagrams_sent"]


@pytest.mark.parametrize("nodes", [2, 4, 8])
def test_a_start_is_not_measured_as_delay(nodes: int) -> None:
    """Timers of joining are put off as members answer: that is no lag of the loop. (Taken for one
    it made D 100 ms for the first twenty seconds, and every horizon with it.)"""
    bench = Simulation(nodes, 1)
    bench.start()
    bench.run_until(bench.meshed, 60 * SECOND)
    bench.run_for(5 * SECOND)
    for sim in bench.nodes:
        assert sim.up.stats(bench.now_ns)["delay_ns"] <= bench.network.delay_max_ns


def test_a_late_timer_is_lag() -> None:
    bench = Simulation(2, 1)
    bench.start()
    bench.run_until(bench.meshed, 60 * SECOND)
    node = bench.nodes[0].up
    due_ns = node.next_wake_ns()
    node.tick(due_ns + 7 * MS)
    assert node.stats(due_ns)["lag_ns"] == 7 * MS
