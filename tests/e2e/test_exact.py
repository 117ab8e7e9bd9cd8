"""Real nodes under `sync = "exact"`: never over, whoever owns the key, and no refusal in haste."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from fakes.load import Load, peak
from fakes.nodes import NodeProcess, until
from fakes.origin import Origin

pytestmark = pytest.mark.e2e

SECOND = 1_000_000_000
RATE = 45
BURST = 5
# R * 1 s + B; and what the way to the origin may push together on a busy machine.
PEAK_MAX = RATE + BURST + 1
UPSTREAM = """
[[upstream.api.limit]]
name = "account"
rate = "45/s"
burst = 5
sync = "exact"
[upstream.api.wait]
max = "{wait}"
"""

MakeMesh = Callable[..., list[NodeProcess]]


def addresses(nodes: list[NodeProcess]) -> list[tuple[str, int]]:
    return [process.address for process in nodes]


def arrivals(origin: Origin) -> list[int]:
    return [request.at_ns for request in list(origin.requests)]


def owner(nodes: list[NodeProcess]) -> NodeProcess:
    """The node that keeps the bucket of the only key."""
    (found,) = [
        process
        for process in nodes
        if sum(limit["owned"] for limit in process.document()["mesh"]["limits"].values())
    ]
    return found


def test_no_node_refuses_while_its_token_is_on_the_way(mesh: MakeMesh, origin: Origin) -> None:
    """With no wait at all each node's first request goes through, and an overload is kept."""
    nodes = mesh(3, origin, UPSTREAM.format(wait="0s"))
    # A new owner grants nothing until all have said that they see the same members.
    until(
        lambda: not any(process.document()["mesh"]["leases_held_back"] for process in nodes),
        5.0,
        "all agree on the owner",
    )
    for number in range(3):
        with Load(addresses(nodes)[number : number + 1], 4) as load:
            load.go_on(0.5)
        assert set(load.statuses()) == {200}
    with Load(addresses(nodes), 100) as load:
        load.go_on(2.5)
    stamps = arrivals(origin)
    assert peak(stamps) <= PEAK_MAX
    begin = stamps[-1] - 2 * SECOND
    assert sum(at >= begin for at in stamps) >= 0.9 * RATE * 2
    assert not load.failures
    refused = [sent for sent in load.sent if sent.status == 429]
    assert len(refused) > 50
    assert all(int(sent.fields["retry-after"]) >= 1 for sent in refused)


@pytest.mark.slow
def test_an_owner_may_be_killed_and_come_back(mesh: MakeMesh, origin: Origin) -> None:
    nodes = mesh(3, origin, UPSTREAM.format(wait="200ms"))
    with Load(addresses(nodes), 100) as load:
        load.go_on(1.5)
        killed = owner(nodes)
        killed.kill()
        killed_ns = time.monotonic_ns()
        load.go_on(4.0)
        killed.start()
        killed.wait_ready()
        until(lambda: len(killed.live_members()) == 3, 5.0, "it is a member again")
        load.go_on(4.0)
        end_ns = time.monotonic_ns()
    stamps = arrivals(origin)
    assert peak(stamps) <= PEAK_MAX
    # Members work alone after a second, and have another owner within two and a half.
    over = killed_ns + 5 * SECOND // 2
    assert sum(over <= at < over + SECOND for at in stamps) >= 0.85 * RATE
    assert sum(end_ns - 2 * SECOND <= at < end_ns for at in stamps) >= 0.9 * RATE * 2


@pytest.mark.slow
def test_a_limit_becomes_exact_by_a_reload(mesh: MakeMesh, origin: Origin) -> None:
    exact = UPSTREAM.format(wait="200ms")
    nodes = mesh(2, origin, exact.replace('sync = "exact"', 'sync = "mesh"'))
    with Load(addresses(nodes), 90) as load:
        load.go_on(1.0)
        for process in nodes:
            text = process.path.read_text()
            process.reload(text.replace('sync = "mesh"', 'sync = "exact"'))
        changed_ns = time.monotonic_ns()
        load.go_on(3.0)
    assert not load.failures
    stamps = [at for at in arrivals(origin) if at >= changed_ns]
    assert peak(stamps) <= PEAK_MAX + BURST  # both kinds gave their burst in the first second
    late = [at for at in stamps if at >= changed_ns + SECOND]
    assert peak(late) <= PEAK_MAX
    assert len(late) >= 0.9 * RATE * 1.9
