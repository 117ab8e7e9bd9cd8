"""Accepted requests on real processes: kill -9 under load, a full disk, several workers."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fakes.nodes import NodeProcess, free_ports, until
from fakes.origin import Connection, Origin, Received

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

CONF = """
[node]
name = "gw-1"
workers = {workers}
drain = "3s"
[[listen]]
bind = "127.0.0.1:{listen}"
[admin]
bind = "127.0.0.1:{admin}"
[log]
access = "off"
[spool]
path = "{path}"
[upstream.api]
origin = "{origin}"
[upstream.api.spool]
attempts = 1000
[[upstream.api.limit]]
name = "l"
rate = "300/s"
[[route]]
upstream = "api"
"""
Make = Callable[..., tuple[NodeProcess, Origin]]


async def _answers(connection: Connection, request: Received) -> bool:
    await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    return True


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """A node with a spool, started; its origin answers at once."""
    with Origin(_answers) as origin:
        nodes = []

        def build(
            path: Path = tmp_path / "spool.db", workers: int = 1, expected_status: int = 0
        ) -> tuple[NodeProcess, Origin]:
            (ports,) = free_ports(1)
            text = CONF.format(
                listen=ports.listen, admin=ports.admin, origin=origin.url, path=path,
                workers=workers,
            )  # fmt: skip
            node = NodeProcess("gw-1", tmp_path, ports, text)
            nodes.append(node)
            node.expected_status = expected_status
            node.start()
            node.wait_ready()
            return node, origin

        yield build
        for node in nodes:
            node.close()


class Load:
    """Clients that store requests until they are told to end; a lost connection is no answer."""

    def __init__(self, address: tuple[str, int], clients: int) -> None:
        self.accepted: dict[bytes, bytes] = {}  # body: location
        self.refused: Counter[int] = Counter()
        self._address = address
        self._end = threading.Event()
        self._numbers = iter(range(10**9))
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while not self._end.is_set():
            try:
                with socket.create_connection(self._address, timeout=5) as sock:
                    while not self._end.is_set():
                        self._store(sock)
            except OSError:
                time.sleep(0.02)  # the node is being started again

    def _store(self, sock: socket.socket) -> None:
        with self._lock:
            body = b"%d" % next(self._numbers)
        sock.sendall(
            b"POST / HTTP/1.1\r\nHost: a\r\nPrefer: respond-async\r\nContent-Length: %d\r\n\r\n%b"
            % (len(body), body)
        )
        data = b""
        while b"}\n" not in data:
            more = sock.recv(65536)
            if not more:
                raise ConnectionResetError
            data += more
        status = int(data.split(b" ", 2)[1])
        if status == 202:
            location = data.split(b"Location: ")[1].split(b"\r\n")[0]
            with self._lock:
                self.accepted[body] = location
        else:
            self.refused[status] += 1


def _state(address: tuple[str, int], location: bytes) -> bytes:
    with socket.create_connection(address, timeout=5) as sock:
        sock.sendall(b"GET %b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" % location)
        data = b""
        while more := sock.recv(65536):
            data += more
    return data.split(b'"state": "')[1].split(b'"')[0] if b'"state"' in data else data


@pytest.mark.parametrize("workers", [1, 2])
def test_kills_under_load_lose_nothing(make: Make, workers: int) -> None:
    seed = int(os.environ.get("EGRESSD_SEED", "7"))
    print("EGRESSD_SEED", seed)
    chance = random.Random(seed)
    node, origin = make(workers=workers)
    load = Load(node.address, 8)
    for _ in range(5):
        before = len(load.accepted)
        until(lambda before=before: len(load.accepted) > before + 50, 20, "more is accepted")
        time.sleep(chance.random() * 0.3)  # any moment is as good as another
        os.killpg(node.pid, signal.SIGKILL)  # its workers as well
        node.kill()
        node.start()
        node.wait_ready()
    until(lambda: len(load.accepted) > 400, 20, "more is accepted")
    load.stop()
    assert not load.refused
    wanted = set(load.accepted)
    until(lambda: wanted <= {r.body for r in list(origin.requests)}, 90, "all were sent")
    keys: dict[bytes, set[bytes]] = {}
    for request in origin.requests:
        keys.setdefault(request.body, set()).add(request.values(b"idempotency-key")[0])
    assert all(len(each) == 1 for each in keys.values()), "a second send has the first one's key"
    twice = len(origin.requests) - len(keys)
    print(f"{len(wanted)} accepted, {twice} sent twice")
    # Only what was under way at a kill may come twice: at most half of the connections a worker.
    assert twice <= 5 * 100 * workers
    for location in chance.sample(sorted(load.accepted.values()), 20):
        until(lambda location=location: _state(node.address, location) == b"done", 20, "it is done")


def test_a_stop_finishes_what_is_under_way(
    make: Make,
) -> None:
    node, origin = make()
    load = Load(node.address, 4)
    until(lambda: len(load.accepted) > 200, 20, "some are accepted")
    node.terminate()
    load.stop()
    node.start()
    node.wait_ready()
    wanted = set(load.accepted)
    until(lambda: wanted <= {r.body for r in list(origin.requests)}, 60, "all were sent")
    bodies = Counter(request.body for request in origin.requests)
    assert max(bodies.values()) == 1, "a stop in good order sends nothing twice"


def test_a_full_disk_refuses_and_goes_on_when_there_is_room(make: Make, tmp_path: Path) -> None:
    if os.geteuid() or shutil.which("mount") is None:
        pytest.skip("mounting a small disk takes root")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], check=False
    )
    if mounted.returncode:
        pytest.skip("this root may not mount")
    node, origin = make(disk / "spool.db")
    load = Load(node.address, 4)
    try:
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(4_000_000))
        until(lambda: load.refused[507] > 5, 60, "the disk is full")
        assert set(load.refused) == {507}
        ballast.unlink()
        before = len(load.accepted)
        until(lambda: len(load.accepted) > before + 200, 30, "there is room again")
        load.stop()
        wanted = set(load.accepted)
        until(lambda: wanted <= {r.body for r in list(origin.requests)}, 60, "all were sent")
    finally:
        load.stop()
        node.close()
        subprocess.run(["umount", str(disk)], check=True)


def test_a_damaged_file_stops_the_start(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    path.write_bytes(b"not a database " * 400)
    content = path.read_bytes()
    with pytest.raises(AssertionError):
        make(path, expected_status=1)
    assert path.read_bytes() == content
    assert f"spool.path {path}" in (tmp_path / "gw-1.log").read_text()
