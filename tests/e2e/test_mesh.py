"""Real nodes as one mesh, judged by the origin: one limit, one pause, whatever a node meets."""

from __future__ import annotations

import random
import signal
import socket
import time
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
import trio
from fakes.load import Load, peak
from fakes.nodes import NodeProcess, free_ports, until
from fakes.origin import Connection, Origin, Received, answer

from peers.core.keyring import SALT_BYTES, Keyring

pytestmark = pytest.mark.e2e

SECOND = 1_000_000_000
RATE = 45
BURST = 5
# R * 1 s + B = 50, and one more where two nodes take the last token within one round trip.
PEAK_MAX = RATE + BURST + 1
# B < 4 N, so a window may see up to about N more while no node knows the others' demand.
COLD_START_MAX = RATE + BURST + 3
LIMIT = """
[[upstream.api.limit]]
name = "account"
rate = "45/s"
burst = 5
[upstream.api.wait]
max = "{wait}"
[upstream.api.breaker]
scope = "upstream"
"""
UPSTREAM = LIMIT.format(wait="200ms")
SHARES = (70, 20, 10)

MakeMesh = Callable[..., list[NodeProcess]]
MakeNode = Callable[..., NodeProcess]
MakeOrigin = Callable[..., Origin]


def addresses(nodes: list[NodeProcess]) -> list[tuple[str, int]]:
    return [process.address for process in nodes]


def arrivals(origin: Origin) -> list[int]:
    return [request.at_ns for request in list(origin.requests)]


def total(nodes: list[NodeProcess], count: str) -> int:
    """A counter of the upstream, summed over nodes."""
    return sum(process.upstream()[count] for process in nodes)


def test_three_nodes_keep_one_limit_and_use_it(mesh: MakeMesh, origin: Origin) -> None:
    nodes = mesh(3, origin, UPSTREAM)
    with Load(addresses(nodes), 100, SHARES) as load:
        load.go_on(5.6)
    stamps = arrivals(origin)
    assert peak(stamps) <= PEAK_MAX
    # The first half second finds demand that nobody has announced yet.
    begin = stamps[0] + SECOND // 2
    span_ns = 5 * SECOND
    steady = sum(begin <= at < begin + span_ns for at in stamps)
    assert steady >= 0.9 * RATE * span_ns / SECOND
    assert not load.failures
    assert set(load.statuses()) == {200, 429}
    assert load.statuses()[200] == len(stamps)
    refused = next(sent for sent in load.sent if sent.status == 429)
    assert int(refused.fields["retry-after"]) >= 1
    assert "error=http_request_denied" in refused.fields["proxy-status"]
    # Each saw by itself how full the windows were, but for news that came in lumps: those of two
    # peers are up to a horizon old, 45/s * 0.1 s.
    for process in nodes:
        seen = process.upstream()["limits"][0]["windows"]["1s"]
        assert seen["peak"] >= 0.7
        assert seen["over"] <= 5.0
    # Every node has counted everybody.
    until(
        lambda: {p.upstream()["limits"][0]["admitted_mesh"] for p in nodes} == {len(stamps)},
        2.0,
        "all counters agree with the origin",
    )


@pytest.mark.slow
def test_wait_max_decides_between_holding_and_refusing(mesh: MakeMesh, origin: Origin) -> None:
    nodes = mesh(2, origin, LIMIT.format(wait="5s"))
    with Load(addresses(nodes), 60) as load:
        load.go_on(1.5)
    # 90 came in 1.5 s, the bucket gave 72: the others waited, at the most for 18/45 s.
    assert set(load.statuses()) == {200}
    waits_ns = [sent.done_ns - sent.at_ns for sent in load.sent]
    assert 0.2 * SECOND < max(waits_ns) < 2.5 * SECOND
    assert total(nodes, "refused") == 0
    waited = total(nodes, "waited")
    assert waited > 10

    for process in nodes:
        process.reload(process.path.read_text().replace('max = "5s"', 'max = "0s"'))
    with Load(addresses(nodes), 90) as load:
        load.go_on(1.0)
    assert load.statuses()[429] > 10
    refused = [sent for sent in load.sent if sent.status == 429]
    assert max(sent.done_ns - sent.at_ns for sent in refused) < SECOND // 4
    assert total(nodes, "waited") == waited


class Throttling:
    """An origin's script: one 429 when armed, then slow answers, so that a trial stands alone."""

    def __init__(self, retry_after: Callable[[], bytes]) -> None:
        self.retry_after = retry_after
        self.armed = False
        self.answered_ns = 0
        self.answer_seconds = 0.0

    async def __call__(self, connection: Connection, request: Received) -> bool | None:
        if not self.armed:
            await trio.sleep(self.answer_seconds)
            return await answer()(connection, request)
        self.armed = False
        self.answer_seconds = 0.15
        fields = b"Retry-After: %s\r\n" % self.retry_after()
        self.answered_ns = time.monotonic_ns()
        return await answer(b"429 Too Many Requests", b"", fields)(connection, request)


def in_seconds() -> bytes:
    return b"1"


def as_a_date() -> bytes:
    return formatdate(time.time() + 2, usegmt=True).encode()


@pytest.mark.parametrize("retry_after", [in_seconds, as_a_date])
def test_one_429_stops_all_nodes_and_one_trial_goes_first(
    mesh: MakeMesh, make_origin: MakeOrigin, retry_after: Callable[[], bytes]
) -> None:
    script = Throttling(retry_after)
    origin = make_origin(script)
    nodes = mesh(3, origin, UPSTREAM)
    with Load(addresses(nodes), 90) as load:
        load.go_on(0.6)
        wall_ahead_ns = time.time_ns() - time.monotonic_ns()
        script.armed = True
        until(lambda: script.answered_ns, 2.0, "the origin has said 429")
        paused_ns = script.answered_ns

        def states() -> list[dict[str, Any]]:
            return [process.upstream()["breaker"] for process in nodes]

        until(lambda: all(s["state"] == "open" for s in states()), 0.8, "all have stopped")
        # CLOCK_MONOTONIC is one clock for all processes of a host.
        assert max(state["opened_ns"] for state in states()) - paused_ns < SECOND // 10
        load.go_on(3.0)
    pause_ns = SECOND
    if retry_after is as_a_date:
        until_s = (paused_ns + wall_ahead_ns) // SECOND + 2
        pause_ns = until_s * SECOND - wall_ahead_ns - paused_ns
    stamps = arrivals(origin)
    # Those that were on their way may still come, for a round trip.
    late = [at for at in stamps if paused_ns + SECOND // 10 < at < paused_ns + pause_ns]
    assert late == []
    after = sorted(at for at in stamps if at >= paused_ns + pause_ns)
    trial, following = after[0], after[1:]
    assert trial < paused_ns + pause_ns + 1.2 * SECOND
    # The trial is answered after 150 ms, and nobody else goes before.
    assert following[0] - trial >= 0.15 * SECOND
    assert len(following) >= 10
    assert peak(stamps) <= PEAK_MAX
    assert total(nodes, "trials") == 1
    assert total(nodes, "throttled") == 1
    told = [
        sent
        for sent in load.sent
        if sent.status == 429 and paused_ns + SECOND // 5 < sent.at_ns < paused_ns + SECOND * 2 // 3
    ]
    assert {sent.node for sent in told} == {0, 1, 2}
    for sent in told:
        ends_ns = sent.done_ns + int(sent.fields["retry-after"]) * SECOND
        assert ends_ns >= paused_ns + pause_ns


def test_a_killed_node_comes_back_without_a_fresh_burst(mesh: MakeMesh, origin: Origin) -> None:
    nodes = mesh(3, origin, UPSTREAM)
    with Load(addresses(nodes), 100, SHARES) as load:
        load.go_on(1.0)
        nodes[0].kill()
        killed_ns = time.monotonic_ns()
        load.go_on(0.7)
        nodes[0].start()
        nodes[0].wait_ready()
        back_ns = time.monotonic_ns()
        until(lambda: len(nodes[0].live_members()) == 3, 5.0, "the node is a member again")
        load.go_on(2.2)
        end_ns = time.monotonic_ns()
    stamps = arrivals(origin)
    # MESH.md 6: no fresh burst. What the dead node had admitted and not yet told is at the most
    # what it admits within the 250 ms until an entry is sent again; its cadence is 25 ms.
    unseen = -(-RATE * 25 // 1000)
    assert peak(stamps) <= PEAK_MAX + unseen
    # The node's own admissions reached the origin through it again.
    assert nodes[0].upstream()["admitted"] > 0
    # Once its news is heard the suspicion is trued up, and all of the rate is used again.
    recovered = sum(end_ns - SECOND * 3 // 2 <= at < end_ns for at in stamps)
    assert recovered >= 0.9 * RATE * 1.5
    assert back_ns > killed_ns
    # Only what was under way in the killed node is lost; the rest went to the next node.
    assert all(
        killed_ns - SECOND // 2 < sent.at_ns < killed_ns + SECOND // 2 for sent in load.failures
    )


@pytest.mark.slow
def test_a_node_that_leaves_gives_its_share_to_the_others(mesh: MakeMesh, origin: Origin) -> None:
    nodes = mesh(3, origin, UPSTREAM)
    with Load(addresses(nodes), 100, SHARES) as load:
        load.go_on(1.0)
        assert nodes[0].terminate() == 0
        left_ns = time.monotonic_ns()
        load.go_on(2.2)
    stamps = arrivals(origin)
    assert peak(stamps) <= PEAK_MAX
    begin = left_ns + SECOND // 2
    taken = sum(begin <= at < begin + SECOND * 3 // 2 for at in stamps)
    assert taken >= 0.9 * RATE * 1.5
    assert not load.failures


@pytest.mark.slow
def test_the_survivors_take_over_the_share_of_a_killed_node(mesh: MakeMesh, origin: Origin) -> None:
    """MESH.md 2: it is charged at its old rate for 30 s, then forgotten."""
    nodes = mesh(3, origin, UPSTREAM)
    with Load(addresses(nodes), 100, SHARES) as load:
        load.go_on(2.0)
        nodes[0].kill()
        killed_ns = time.monotonic_ns()
        load.go_on(34.0)
        end_ns = time.monotonic_ns()
    stamps = arrivals(origin)
    assert peak([at for at in stamps if at > killed_ns]) <= PEAK_MAX
    assert sum(end_ns - 2 * SECOND <= at < end_ns for at in stamps) >= 0.9 * RATE * 2


def key_file(folder: Path, name: str) -> Path:
    path = folder / name
    path.write_text(random.Random(name).randbytes(32).hex())
    path.chmod(0o600)
    return path


def test_sealed_nodes_share_and_strangers_do_not(
    mesh: MakeMesh, node: MakeNode, make_origin: MakeOrigin, tmp_path: Path
) -> None:
    origin = make_origin()
    right, wrong = key_file(tmp_path, "right.key"), key_file(tmp_path, "wrong.key")
    nodes = mesh(3, origin, UPSTREAM, keys=[right])
    known = [process.ports.mesh for process in nodes]
    strangers = []
    for name, cluster, key in (("wrong-key", "e2e", wrong), ("alien", "other", right)):
        ports = free_ports(1)[0]
        table = (
            f'[mesh]\ncluster = "{cluster}"\nbind = "127.0.0.1:{ports.mesh}"\n'
            f"join = {[f'127.0.0.1:{port}' for port in known]}\n"
            f'keys = [{{ file = "{key}" }}]\n'
        )
        strangers.append(node(make_origin(), UPSTREAM, name=name, mesh=table, ports=ports))
    with Load([*addresses(nodes), *addresses(strangers)], 150) as load:
        load.go_on(1.6)
    # Nothing was told to anybody before this load began at once: a cold start (MESH.md section 6).
    assert peak(arrivals(origin)) <= COLD_START_MAX
    assert not load.failures
    for process in nodes:
        drops = process.drops()
        assert drops.get("alien_cluster", 0) > 0, drops
        assert drops.get("unknown_key", 0) + drops.get("forged", 0) > 0, drops
        assert process.live_members() == sorted(other.name for other in nodes)
    for process in strangers:
        assert process.live_members() == [process.name]
        limit = process.upstream()["limits"][0]
        assert limit["admitted_own"] == limit["admitted_mesh"] > 0


def test_a_mesh_port_takes_garbage_and_replays(
    mesh: MakeMesh, origin: Origin, tmp_path: Path
) -> None:
    """A stranger that may send to the port, and one that can also record what nodes send."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.settimeout(5.0)
        key = key_file(tmp_path, "mesh.key")
        nodes = mesh(2, origin, UPSTREAM, keys=[key], join_also=(stranger.getsockname()[1],))
        victim = nodes[0]
        target = ("127.0.0.1", victim.ports.mesh)
        recorded: dict[int, list[bytes]] = {process.ports.mesh: [] for process in nodes}
        while not all(recorded.values()):
            data, source = stranger.recvfrom(2048)
            recorded[source[1]].append(data)
        chance = random.Random(7)
        clear = Keyring((), bytes(SALT_BYTES)).seal(b"\x90", 1)
        from_peer = recorded[nodes[1].ports.mesh][0]
        bent = bytearray(from_peer)
        bent[20] ^= 1  # a sequence number that was never used, under the seal of another
        with Load(addresses(nodes), 60) as load:
            load.go_on(0.5)
            before = victim.drops()
            for _ in range(50):
                stranger.sendto(chance.randbytes(chance.randrange(1, 1200)), target)
                stranger.sendto(b"", target)
                stranger.sendto(bytes(9000), target)
                stranger.sendto(clear, target)
                stranger.sendto(bytes(bent), target)
                stranger.sendto(from_peer, target)
                stranger.sendto(recorded[victim.ports.mesh][0], target)
            load.go_on(1.5)
            after = victim.drops()
        grown = {reason: after[reason] - before.get(reason, 0) for reason in after}
        assert grown["garbage"] >= 50, grown
        assert grown["oversized"] >= 50, grown
        assert grown["unsealed"] >= 50, grown
        assert grown["forged"] >= 50, grown
        assert grown["own"] >= 50, grown
        assert grown["replayed"] >= 49, grown  # the first may be one that was lost
        # Nothing came of it.
        assert not load.failures
        assert peak(arrivals(origin)) <= PEAK_MAX
        assert victim.live_members() == ["gw-1", "gw-2"]
        members = {m["name"]: m["address"] for m in victim.document()["members"]}
        assert members["gw-2"] == f"127.0.0.1:{nodes[1].ports.mesh}"


def test_a_mesh_port_takes_hostile_tcp(mesh: MakeMesh, origin: Origin) -> None:
    """Snapshots are asked for by TCP: half a length, a huge one, garbage, and silence."""
    nodes = mesh(2, origin, UPSTREAM)
    target = ("127.0.0.1", nodes[0].ports.mesh)
    chance = random.Random(8)
    silent = [socket.create_connection(target, timeout=5) for _ in range(8)]
    try:
        for data in (b"\x00", b"\xff" * 8, b"\x00\x00\x00\x20" + chance.randbytes(32), b""):
            with socket.create_connection(target, timeout=8) as sock:
                try:
                    sock.sendall(data)
                    sock.shutdown(socket.SHUT_WR)
                    while sock.recv(4096):
                        pass
                except OSError as error:
                    # Whoever comes while all places are taken is reset; nobody is left hanging.
                    assert not isinstance(error, TimeoutError), data
        with Load(addresses(nodes), 60) as load:
            load.go_on(1.0)
        assert not load.failures
        assert nodes[0].live_members() == ["gw-1", "gw-2"]
    finally:
        for sock in silent:
            sock.close()


def test_two_nodes_of_one_name_refuse_each_other(
    mesh: MakeMesh, node: MakeNode, origin: Origin
) -> None:
    nodes = mesh(2, origin, UPSTREAM)
    ports = free_ports(1)[0]
    table = (
        f'[mesh]\ncluster = "e2e"\nbind = "127.0.0.1:{ports.mesh}"\n'
        f'join = ["127.0.0.1:{nodes[0].ports.mesh}"]\n'
    )
    second = node(
        origin,
        UPSTREAM,
        name="gw-x",
        mesh=table,
        ports=ports,
        settings=("node.name=gw-1",),
        wait=False,
    )
    second.expected_status = 1
    # Outside the mesh it would keep a limit of its own beside the others': it ends instead.
    assert second.wait(8.0) == 1
    assert second.log_text().count("refused by the mesh") == 1
    assert '"serving"' not in second.log_text()
    assert second.log_text().splitlines()[-1].startswith("egressd: mesh: the name gw-1 is taken")
    assert nodes[1].live_members() == ["gw-1", "gw-2"]
    members = {m["name"]: m["address"] for m in nodes[1].document()["members"]}
    assert members["gw-1"] == f"127.0.0.1:{nodes[0].ports.mesh}"


@pytest.mark.slow
def test_a_node_that_stood_still_comes_back(mesh: MakeMesh, origin: Origin) -> None:
    """SIGSTOP for 2 s under load: the others go on, nobody opens a fresh burst afterwards."""
    nodes = mesh(3, origin, UPSTREAM)
    with Load(addresses(nodes), 90) as load:
        load.go_on(0.8)
        nodes[2].signal(signal.SIGSTOP)
        stopped_ns = time.monotonic_ns()
        try:
            load.go_on(2.2)
        finally:
            nodes[2].signal(signal.SIGCONT)
        continued_ns = time.monotonic_ns()
        until(lambda: all(len(p.live_members()) == 3 for p in nodes), 5.0, "all are alive again")
        load.go_on(1.0)
    stamps = arrivals(origin)
    while_away = [at for at in stamps if stopped_ns <= at < continued_ns]
    # The two that go on keep at least their own part, and no more than the whole.
    assert len(while_away) >= 0.55 * RATE * (continued_ns - stopped_ns) / SECOND
    # What the sleeper finds in its sockets it admits from its own picture of a bucket that it
    # believes has drained: a burst at the most, before it hears of the others.
    assert peak(stamps) <= PEAK_MAX + BURST
    assert not load.failures
