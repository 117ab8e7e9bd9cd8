"""What those who take part have in common: some nodes on loopback that keep one limit together.

A request's path is `/rRATE-BURST/CELL`: the first part names the limit, the second its counter, so
that every cell of the bench has a fresh one and nobody has to be started again. All refuse at once
(429), but for the spool; what waiting would add is not what is compared.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar, NamedTuple

from bench.mesh.wires import Link, Wires
from bench.packages import which
from bench.process import READY_SECONDS_MAX, BenchError, Process, wait_for_port
from fakes.nodes import Ports, free_port, free_ports

__all__ = [
    "GROUPS",
    "PAUSE_GROUP",
    "Contender",
    "Group",
    "Recorder",
    "Stage",
    "launched",
    "redis_argv",
]

ROOT = Path(__file__).resolve().parents[3]
HERE = Path(__file__).resolve().parent
HOST = "127.0.0.1"


class Group(NamedTuple):
    """A limit that all contenders are configured with."""

    rate: int
    burst: int

    @property
    def path(self) -> str:
        return f"/r{self.rate}-{self.burst}/"


GROUPS = (Group(100, 100), Group(1000, 1000))
# An upstream of its own, so that its pauses stop no other cell.
PAUSE_GROUP = Group(5000, 5000)


class Stage(NamedTuple):
    """The work folder, the origin's port, and whether nftables may be used (see `wires`)."""

    folder: Path
    origin_port: int
    nft: bool


class Contender:
    """Some nodes. `addresses` are where clients go; `start` raises BenchError."""

    name: ClassVar[str]
    title: ClassVar[str]
    fields: ClassVar[str] = ""  # lines that each request of the load has in addition
    # Nodes keep requests for a while: only arrival says what they let through.
    holds: ClassVar[bool] = False
    # Started anew for every row: what is queued would still be sent in the next one.
    fresh: ClassVar[bool] = False

    def __init__(self, stage: Stage, nodes: int, relayed: bool) -> None:
        self.stage = stage
        self.nodes = nodes
        self.ports: list[Ports] = free_ports(nodes)
        self.folder = stage.folder / f"{self.name}-{nodes}-{time.monotonic_ns()}"
        self.folder.mkdir(parents=True)
        self._stack = ExitStack()
        self.wires: Wires = self._stack.enter_context(Wires(self.links(), stage.nft, relayed))

    @property
    def addresses(self) -> list[tuple[str, int]]:
        return [(HOST, ports.listen) for ports in self.ports]

    @classmethod
    def missing(cls) -> str:
        """Why it cannot take part, or nothing."""
        return ""

    def links(self) -> list[Link]:
        """What its nodes tell each other by, their own first, those to a store behind them."""
        return []

    def start(self) -> None:
        raise NotImplementedError(self.name)

    def stop(self) -> None:
        self._stack.close()

    def process(self, argv: Sequence[str], name: str) -> Process:
        """Starts a program that ends with the contender."""
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = Process(argv, None, self.folder / f"{name}.out", environ)
        self._stack.callback(process.stop)
        return process


def redis_argv(port: int, hosts: Sequence[str]) -> list[str]:
    """A redis-server in memory only, on these addresses."""
    return [which("redis-server") or "redis-server", "--port", str(port), "--bind", *hosts,
            "--save", "", "--appendonly", "no"]  # fmt: skip


class Recorder:
    """The origin's process (see `origin`)."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        argv = [sys.executable, str(HERE / "origin.py"), str(self.port)]
        self._process = Process(argv, None, folder / "origin.out")
        wait_for_port(self._process, self.port)

    def stop(self) -> None:
        self._process.stop()

    def ask(self, verb: str, cell: str) -> object:
        """One word of control: take, refuse, refused."""
        import http.client

        connection = http.client.HTTPConnection(HOST, self.port, timeout=READY_SECONDS_MAX)
        try:
            connection.request("GET", f"/_bench/{verb}/{cell}")
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()


def launched(spec: object) -> subprocess.Popen[str]:
    """The load's process, with its connections open. Raises BenchError."""
    process = subprocess.Popen(
        [sys.executable, str(HERE / "load.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        process_group=0,  # ^C is for us, who end it
    )
    assert process.stdin is not None
    assert process.stdout is not None
    is_ready = False
    try:
        process.stdin.write(json.dumps(spec) + "\n")
        process.stdin.flush()
        is_ready = process.stdout.readline().strip() == "ready"
    finally:
        if not is_ready:
            process.kill()
            process.communicate()
    if not is_ready:
        raise BenchError("the load did not start")
    return process
