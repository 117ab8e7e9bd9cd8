"""Several workers as one node: the load spreads, limits are sums, and no end refuses anybody."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes.load import Load, peak
from fakes.nodes import NodeProcess, free_port, free_ports, until
from fakes.origin import Origin

pytestmark = pytest.mark.e2e

MakeNode = Callable[..., NodeProcess]
MakeConf = Callable[..., str]

LIMIT = """
[[upstream.api.limit]]
name = "account"
rate = "{rate}/s"
burst = {burst}
"""
OPEN = LIMIT.format(rate=10_000, burst=1000)
WORKERS = "node.workers=2"
BACK_SECONDS = 15.0


def workers(process: NodeProcess) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = process.document()["workers"]
    return found


def all_ready(process: NodeProcess, restarts: int) -> bool:
    found = workers(process)
    return sum(one["restarts"] for one in found) == restarts and all(one["ready"] for one in found)


def rate_in_force(process: NodeProcess) -> float:
    found: float = process.upstream()["limits"][0]["rate_in_force"]
    return found


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].startswith("Z")


def fresh_request(address: tuple[str, int]) -> bytes:
    """The answer to a request on a connection of its own."""
    with socket.create_connection(address, timeout=10) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: api.test\r\nConnection: close\r\n\r\n")
        answer = b""
        while data := sock.recv(65536):
            answer += data
        return answer


def test_connections_spread_and_the_limit_is_the_sum(node: MakeNode, origin: Origin) -> None:
    limit = LIMIT.format(rate=40, burst=10) + '[upstream.api.wait]\nmax = "0s"\n'
    process = node(origin, limit, settings=(WORKERS,))
    assert process.live_members() == ["solo/0", "solo/1"]
    for _ in range(100):
        assert fresh_request(process.address)[:12] in (b"HTTP/1.1 200", b"HTTP/1.1 429")
    spread = [one["requests"] for one in workers(process)]
    assert sum(spread) == 100
    assert min(spread) >= 20, spread  # the kernel's hash: fewer than 20 of 100 once in 10^9
    before = len(origin.requests)
    with Load([process.address], 160) as load:
        load.go_on(2.0)
    assert not load.failures
    assert set(load.statuses()) == {200, 429}
    stamps = [request.at_ns for request in origin.requests[before:]]
    # 40 in a second and a burst of 10, with one token a member (peers/PROTOCOL.md, section 6).
    assert peak(stamps) <= 40 + 10 + 2
    assert process.upstream()["requests"] == 100 + len(load.sent)
    assert process.terminate() == 0


def test_a_killed_worker_comes_back_and_nobody_is_refused(
    node: MakeNode, make_conf: MakeConf, origin: Origin
) -> None:
    process = node(origin, OPEN, settings=(WORKERS,))
    before = workers(process)
    process.reload(make_conf("solo", process.ports, origin.url, LIMIT.format(rate=9000, burst=900)))
    good = process.path.read_text()
    process.path.write_text("not toml")  # what is in force is no longer in the file
    with Load([process.address], 100) as load:
        load.go_on(0.3)
        os.kill(before[0]["pid"], signal.SIGKILL)
        # Its connections are gone with it. Whoever comes anew is served, by its sibling or by it.
        for _ in range(30):
            assert fresh_request(process.address).startswith(b"HTTP/1.1 200 ")
        until(lambda: all_ready(process, 1), BACK_SECONDS, "the worker is back")
        for _ in range(30):
            assert fresh_request(process.address).startswith(b"HTTP/1.1 200 ")
    assert len(load.failures) <= 2, load.failures  # those it was answering
    assert not any("Refused" in sent.failure for sent in load.failures)
    after = workers(process)
    assert after[0]["pid"] != before[0]["pid"]
    assert after[1]["pid"] == before[1]["pid"]
    until(lambda: rate_in_force(process) == 9000, 5.0, "the new worker's rule is in force")
    ended = process.log("worker ended")
    assert [(line["worker"], line["status"]) for line in ended] == [(0, -signal.SIGKILL)]
    process.path.write_text(good)
    process.reload()
    assert b"egressd_worker_restarts_total 1.0" in process.ask("/metrics")[1]


def test_a_reload_is_all_workers_or_none(
    node: MakeNode, make_conf: MakeConf, origin: Origin, tmp_path: Path
) -> None:
    process = node(origin, OPEN, settings=(WORKERS,))
    extra = free_ports(1)[0].listen
    more = f'[[listen]]\nbind = "127.0.0.1:{extra}"\n'
    with Load([process.address], 200) as load:
        for number in range(1, 7):
            limit = LIMIT.format(rate=10_000 + number, burst=1000)
            if number % 3:
                text = make_conf("solo", process.ports, origin.url, limit, more=more)
                more = "" if more else f'[[listen]]\nbind = "127.0.0.1:{extra}"\n'
            elif number == 3:
                text = make_conf("solo", process.ports, origin.url, limit, more="[nonsense]")
            else:  # what only a worker finds out: nobody can write there
                text = make_conf("solo", process.ports, origin.url, limit)
                text = text.replace('access = "off"', f'access = "{tmp_path}/none/log"')
            process.reload(text, accepted=bool(number % 3))
            if number == 4:
                assert fresh_request(("127.0.0.1", extra)).startswith(b"HTTP/1.1 200 ")
            load.go_on(0.1)
    assert not load.failures
    assert set(load.statuses()) == {200}
    # The smallest rule of all workers is in force until each has heard the others' new one.
    until(lambda: rate_in_force(process) == 10_005, 5.0, "the workers agree")
    document = process.document()
    assert (document["node"]["reloads"], document["node"]["generation"]) == (4, 5)
    assert document["node"]["reload_success"] is False
    assert document["node"]["reload_failures"] == 2
    assert document["upstreams"]["api"]["requests"] == len(load.sent) + 1
    faults = [line["fault"] for line in process.log("reload refused")]
    assert len(faults) == 2
    assert "nonsense" in faults[0]
    assert faults[1] == f"log.access: {tmp_path}/none/log: No such file or directory"
    changes = process.log("configuration changed")
    assert len(changes) == 4
    assert changes[0]["changes"][-1].endswith("limit.account.rate: 10000/s -> 10001/s")


def test_workers_are_replaced_one_by_one_under_load(node: MakeNode, origin: Origin) -> None:
    process = node(origin, OPEN, settings=(WORKERS,))
    before = {one["pid"] for one in workers(process)}
    with Load([process.address], 150) as load:
        load.go_on(0.2)
        process.signal(signal.SIGUSR2)
        until(lambda: process.log("workers replaced"), BACK_SECONDS, "all are new")
        load.go_on(0.2)
    assert not load.failures
    assert set(load.statuses()) == {200}
    assert len(origin.requests) == len(load.sent)
    assert not before & {one["pid"] for one in workers(process)}
    assert not process.log("worker ended")
    # What they had counted is still in the sum.
    text = process.ask("/metrics")[1].decode()
    assert "egressd_worker_restarts_total 2.0" in text


@pytest.mark.slow
def test_replacing_again_and_again_refuses_nobody_who_stays_connected(
    node: MakeNode, origin: Origin
) -> None:
    """Kept connections are closed between two answers, never within one, and each time all come
    back: what the origin got is what was asked for, once each."""
    process = node(origin, OPEN, settings=(WORKERS,))
    seen = {one["pid"] for one in workers(process)}
    with Load([process.address], 400) as load:
        for number in range(1, 6):
            load.go_on(0.3)
            process.signal(signal.SIGUSR2)
            until(
                lambda number=number: len(process.log("workers replaced")) == number,
                2 * BACK_SECONDS,
                f"all are new, time {number}",
            )
            now = {one["pid"] for one in workers(process)}
            assert len(now) == 2
            assert not now & seen
            seen |= now
        load.go_on(0.3)
    assert not load.failures
    assert not load.unreached
    assert set(load.statuses()) == {200}
    assert len(origin.requests) == len(load.sent)
    assert not process.log("worker ended")


@pytest.mark.slow
def test_a_worker_that_is_told_to_end_hands_over_at_once(
    node: MakeNode, make_origin: Callable[..., Origin]
) -> None:
    origin = make_origin()
    process = node(origin, settings=(WORKERS,))
    with socket.create_connection(process.address, timeout=10) as busy:
        busy.sendall(b"GET /slow HTTP/1.1\r\nHost: api.test\r\nContent-Length: 1\r\n\r\n")
        until(lambda: process.upstream()["requests"] == 1, 5.0, "a request is under way")
        (pid,) = (one["pid"] for one in workers(process) if one["requests"] == 1)
        os.kill(pid, signal.SIGTERM)
        until(lambda: process.ask("/ready")[0] == 503, 5.0, "the node is not whole")
        # The old worker still has its exchange; new connections do not wait for it.
        for _ in range(20):
            assert fresh_request(process.address).startswith(b"HTTP/1.1 200 ")
        assert not gone(pid)
        busy.sendall(b"x")
        assert busy.recv(65536).startswith(b"HTTP/1.1 200 ")
    until(lambda: all_ready(process, 1), BACK_SECONDS, "another has taken its place")


def test_readiness_falls_first_and_all_end(node: MakeNode, origin: Origin) -> None:
    process = node(origin, settings=(WORKERS,))
    pids = [one["pid"] for one in workers(process)]
    with socket.create_connection(process.address, timeout=10) as busy:
        busy.sendall(b"POST /slow HTTP/1.1\r\nHost: api.test\r\nContent-Length: 1\r\n\r\n")
        until(lambda: process.upstream()["requests"] == 1, 5.0, "a request is under way")
        process.ask_to_end()
        until(lambda: process.ask("/ready")[0] == 503, 5.0, "readiness has fallen")
        assert json.loads(process.ask("/ready")[1])["why"] == "draining"
        busy.sendall(b"x")
        assert busy.recv(65536).startswith(b"HTTP/1.1 200 ")
    assert process.wait() == 0
    assert all(map(gone, pids))


@pytest.mark.slow
def test_a_second_signal_does_not_wait(node: MakeNode, origin: Origin) -> None:
    process = node(origin, settings=(WORKERS, "node.drain=1h"))
    with socket.create_connection(process.address, timeout=10) as busy:
        busy.sendall(b"POST /slow HTTP/1.1\r\nHost: api.test\r\nContent-Length: 1\r\n\r\n")
        until(lambda: process.upstream()["requests"] == 1, 5.0, "a request is under way")
        process.ask_to_end()
        until(lambda: process.log("draining"), 5.0, "it drains")
        process.signal(signal.SIGTERM)
        assert process.wait() == 0


@pytest.mark.slow
def test_workers_do_not_outlive_their_supervisor(node: MakeNode, origin: Origin) -> None:
    process = node(origin, settings=(WORKERS,))
    pids = [one["pid"] for one in workers(process)]
    process.kill()
    until(lambda: all(map(gone, pids)), 5.0, "they have ended too")


@pytest.mark.slow
def test_a_worker_that_cannot_start_is_one_clear_line(node: MakeNode, origin: Origin) -> None:
    ports = free_ports(1)[0]
    ports.mesh, _ = free_port(), free_port()  # the second worker's is the one behind it
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
        holder.bind(("127.0.0.1", ports.mesh))
        table = f'[mesh]\nbind = "127.0.0.1:{ports.mesh}"\n'
        process = node(origin, mesh=table, ports=ports, settings=(WORKERS,), wait=False)
        assert process.wait(15) == 1
        process.killed = True  # its status has been judged
    lines = [line for line in process.log_text().splitlines() if not line.startswith("{")]
    assert lines == [f"egressd: mesh.bind 127.0.0.1:{ports.mesh}: Address already in use"]


@pytest.mark.slow
def test_two_nodes_of_two_workers_are_four_members(node: MakeNode, origin: Origin) -> None:
    pairs = free_ports(2)
    keys = [7000 + (os.getpid() * 7) % 2000, 9000 + (os.getpid() * 7) % 900]
    nodes = []
    for index, (ports, first) in enumerate(zip(pairs, keys, strict=True)):
        table = f'[mesh]\nbind = "127.0.0.1:{first}"\njoin = ["127.0.0.1:{keys[0]}"]\n'
        limit = LIMIT.format(rate=40, burst=10) + '[upstream.api.wait]\nmax = "0s"\n'
        nodes.append(
            node(origin, limit, mesh=table, ports=ports, name=f"gw-{index}", settings=(WORKERS,))
        )
    names = ["gw-0/0", "gw-0/1", "gw-1/0", "gw-1/1"]
    until(lambda: all(one.live_members() == names for one in nodes), 10.0, "all are members")
    with Load([one.address for one in nodes], 160) as load:
        load.go_on(3.0)
    assert not load.failures
    assert peak([request.at_ns for request in origin.requests]) <= 40 + 10 + 4


@pytest.mark.slow
def test_a_worker_that_does_not_turn_is_replaced(node: MakeNode, origin: Origin) -> None:
    process = node(origin, settings=(WORKERS,))
    os.kill(workers(process)[0]["pid"], signal.SIGSTOP)
    until(lambda: process.log("worker does not turn"), 20.0, "it is missed")
    until(lambda: all_ready(process, 1), BACK_SECONDS, "another has taken its place")
    assert b"egressd_worker_stalls_total 1.0" in process.ask("/metrics")[1]


@pytest.mark.slow
def test_workers_share_one_access_log(node: MakeNode, origin: Origin, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    process = node(origin, settings=(WORKERS, f'log.access="{log}"'))
    for number in range(40):
        fresh_request(process.address)
        if number == 20:
            log.rename(tmp_path / "old.log")
            process.signal(signal.SIGUSR1)
            until(log.exists, 5.0, "the log is opened again")
    assert process.terminate() == 0
    lines = (tmp_path / "old.log").read_text().splitlines() + log.read_text().splitlines()
    assert len(lines) == 40
    assert {json.loads(line)["status"] for line in lines} == {200}


@pytest.mark.slow
def test_a_restart_of_all_workers_behind_an_inherited_socket(
    node: MakeNode, make_conf: MakeConf, origin: Origin
) -> None:
    ports = free_ports(1)[0]
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as web:
        ports.listen = web.getsockname()[1]
        text = make_conf("solo", ports, origin.url, OPEN).replace(f"127.0.0.1:{ports.listen}",
                                                            "systemd:web")  # fmt: skip
        process = node(origin, text=text, ports=ports, sockets=[("web", web)], settings=(WORKERS,))
        with Load([process.address], 40) as load:
            load.go_on(0.3)
            assert process.terminate() == 0
            process.start()
            process.wait_ready()
            load.go_on(0.3)
    assert not load.failures
    assert set(load.statuses()) == {200}


@pytest.mark.slow
def test_a_second_node_on_the_address_is_refused(
    node: MakeNode, make_conf: MakeConf, origin: Origin, tmp_path: Path
) -> None:
    """SO_REUSEPORT would let it take half of the connections."""
    process = node(origin, settings=(WORKERS,))
    other = tmp_path / "other.toml"
    ports = free_ports(1)[0]
    ports.listen = process.ports.listen
    other.write_text(make_conf("other", ports, origin.url))
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "run", "-c", str(other), "--set", WORKERS],
        check=False,
        capture_output=True,
        text=True,
        timeout=15,
    )
    assert done.returncode == 1
    assert done.stderr == f"egressd: listen 127.0.0.1:{ports.listen}: Address already in use\n"
