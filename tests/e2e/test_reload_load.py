"""Reload after reload under load: nothing fails, nothing is forgotten, nothing grows.

Everything changes that may: limits, routes, upstreams, listeners, certificates; every tenth file is
faulty, and requests are held all the while. The short variant is part of `make test`; the long one
is 100 reloads in a minute at 2,000 requests a second.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme
from fakes.nodes import NodeProcess, Ports, free_ports, until
from fakes.quick_origin import BODY_BYTES, QuickOrigin

pytestmark = pytest.mark.e2e

MakeNode = Callable[..., NodeProcess]
ROOT = Path(__file__).resolve().parents[2]

CONF = """
[node]
name = "solo"
drain = "3s"
{workers}
[[listen]]
bind = "127.0.0.1:{ports.listen}"
[[listen]]
bind = "127.0.0.1:{tls}"
tls = {{ cert = "{pem}", key = "{pem}" }}
{listener}
[admin]
bind = "127.0.0.1:{ports.admin}"
[log]
access = "{log}"
[upstream.api]
origin = "{origin}"
[[upstream.api.limit]]
name = "account"
rate = "{rate}/s"
burst = 4000
[upstream.slow]
origin = "{origin}"
wait = {{ max = "60s" }}
[[upstream.slow.limit]]
name = "account"
rate = "4/s"
burst = 1
{upstream}
[[route]]
host = "slow.test"
upstream = "slow"
{route}
[[route]]
upstream = "api"
"""
FAULTY = '[upstream.api.breaker]\nopen = "soon"\n'
# What the collector has not looked at yet: the admin answers and TLS connections of the test leave
# cycles, some 40 KiB a reload, until there are 50,000 objects (`tune_memory`). A leak of a Runtime,
# a few hundred KiB a reload, would be several times this.
GROWTH_BYTES_MAX = 8 << 20
HELD = 3  # requests that are held at any time, each for about 0.75 s


class Changing:
    """A conf that is another one each time."""

    def __init__(self, folder: Path, ports: Ports, origin: str, workers: str = "") -> None:
        self.ports = ports
        self.tls, self.extra = (port.listen for port in free_ports(2))
        self.authority = trustme.CA()
        self.serial = 0
        self._pem = folder / "server.pem"
        self._log = folder / "access.log"
        self._origin = origin
        self._workers = workers
        self._renew()

    def text(self, number: int) -> str:
        """The file of that number. A certificate that is not renewed with it stays in force."""
        if number % 4 == 1:
            self._renew()
        port = self.extra if number % 2 else 0
        extra = f"u{number % 5}"
        return CONF.format(
            ports=self.ports,
            tls=self.tls,
            pem=self._pem,
            log=self._log if number % 3 else "off",
            listener=f'[[listen]]\nbind = "127.0.0.1:{port}"\n' if port else "",
            origin=self._origin,
            rate=20_000 + number,
            upstream=f'[upstream.{extra}]\norigin = "{self._origin}"\n' if number % 5 else "",
            route=f'[[route]]\npath = "/{number}/"\nupstream = "{extra}"\n' if number % 5 else "",
            workers=self._workers,
        )

    def served_serial(self) -> int:
        """The serial number of the certificate that a new connection is shown."""
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        address = ("127.0.0.1", self.tls)
        with (
            socket.create_connection(address, timeout=10) as sock,
            context.wrap_socket(sock, server_hostname="gateway.test") as tls,
        ):
            shown = tls.getpeercert()
            assert shown is not None
            return int(str(shown["serialNumber"]), 16)

    def _renew(self) -> None:
        leaf = self.authority.issue_cert("gateway.test")
        leaf.private_key_and_cert_chain_pem.write_to_path(self._pem)
        certificate = ssl._ssl._test_decode_cert(str(self._pem))  # type: ignore[attr-defined]
        self.serial = int(certificate["serialNumber"], 16)


class Waiting:
    """Requests that wait for their turn, one after the other on threads of their own."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.statuses: list[bytes] = []
        self._address = address
        self._stop = False
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(HELD)]

    def __enter__(self) -> Waiting:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop = True
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()

    def _run(self) -> None:
        while not self._stop:
            with socket.create_connection(self._address, timeout=60) as sock:
                sock.sendall(b"GET / HTTP/1.1\r\nHost: slow.test\r\nConnection: close\r\n\r\n")
                answer = b""
                while data := sock.recv(4096):
                    answer += data
                self.statuses.append(answer[9:12])


@contextmanager
def steady_load(address: tuple[str, int], rate: int, seconds: float) -> Iterator[dict[str, float]]:
    """An open-loop client in a process of its own; what it found is in the dictionary behind it."""
    command = [sys.executable, "-m", "bench.openloop", "--port", str(address[1]), "--path", "/"]
    command += ["--body-bytes", str(BODY_BYTES), "--rate", str(rate), "--seconds", str(seconds)]
    found: dict[str, float] = {}
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
        process_group=0,
    ) as process:
        try:
            yield found
            out, _ = process.communicate(timeout=seconds + 60)
        finally:
            process.kill()
    found.update(json.loads(out))


def size(pid: int) -> tuple[int, int]:
    """(octets resident, descriptors open) of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE"), len(list(Path(f"/proc/{pid}/fd").iterdir()))


def reload_again_and_again(
    process: NodeProcess, conf: Changing, reloads: int, pause_s: float, first: int
) -> None:
    """Each reload is judged: what is right is in force, what is faulty changes nothing."""
    begun = time.monotonic()
    for number in range(first, first + reloads):
        if number % 10 == 9:
            before = process.document()["node"]["generation"]
            process.reload(conf.text(number - 1) + FAULTY, accepted=False)
            assert process.document()["node"]["generation"] == before
        else:
            process.reload(conf.text(number))
            # Workers announce their figures to each other, and until all have, the smaller rules.
            until(lambda wanted=20_000 + number: _rate(process) == wanted, 2.0, "it is in force")
            if number % 4 == 1:
                assert conf.served_serial() == conf.serial
            if number % 2:
                with socket.create_connection(("127.0.0.1", conf.extra), timeout=10):
                    pass
        time.sleep(max(0.0, begun + (number - first + 1) * pause_s - time.monotonic()))


def _rate(process: NodeProcess) -> float:
    rate: float = process.upstream()["limits"][0]["rate_in_force"]
    return rate


def play(
    node: MakeNode, folder: Path, rate: int, reloads: int, pause_s: float, workers: str = ""
) -> None:
    with QuickOrigin() as origin:
        ports = free_ports(1)[0]
        conf = Changing(folder, ports, origin.url, workers)
        process = node(origin.url, text=conf.text(0), ports=ports)
        seconds = reloads * pause_s + 1.0
        warm = max(3, reloads // 5)
        with (
            steady_load(process.address, rate, seconds) as load,
            Waiting(process.address) as waiting,
        ):
            until(lambda: process.upstream("slow")["waiting"] > 0, 10.0, "requests are held")
            reload_again_and_again(process, conf, warm, pause_s, 1)
            process.reload(conf.text(10_000))
            before = size(process.pid), process.document()["node"]["tasks"]
            reload_again_and_again(process, conf, reloads - warm, pause_s, warm + 1)
        process.reload(conf.text(10_000))
        until(lambda: process.document()["node"]["connections"] == 0, 5.0, "all have left")
        document = process.document()
        after = size(process.pid), document["node"]["tasks"]
        assert process.terminate() == 0
    print(f"\n{load}\nbefore {before}, after {after}, held {len(waiting.statuses)}")
    # What the client sent in its first second, to warm up, counts as an error too if it failed.
    assert load["errors"] == 0, load
    assert load["answered"] == load["sent"]
    assert set(waiting.statuses) == {b"200"}
    requests = sum(upstream["requests"] for upstream in document["upstreams"].values())
    assert requests == origin.answered >= load["sent"] + len(waiting.statuses)
    if not workers:  # otherwise it is the supervisor that was measured
        (rss_before, fds_before), tasks_before = before
        (rss_after, fds_after), tasks_after = after
        assert tasks_after <= tasks_before
        # Before, the load's connections were open.
        assert fds_after <= fds_before
        assert rss_after - rss_before <= GROWTH_BYTES_MAX


def test_a_few_reloads_under_load(node: MakeNode, tmp_path: Path) -> None:
    play(node, tmp_path, rate=500, reloads=12, pause_s=0.15)


@pytest.mark.slow
def test_a_hundred_reloads_in_a_minute_under_load(node: MakeNode, tmp_path: Path) -> None:
    play(node, tmp_path, rate=2000, reloads=100, pause_s=0.6)


@pytest.mark.slow
def test_the_same_with_two_workers(node: MakeNode, tmp_path: Path) -> None:
    play(node, tmp_path, rate=1000, reloads=40, pause_s=0.6, workers="workers = 2")
