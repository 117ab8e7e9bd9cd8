"""Who takes part: nodes that keep one limit together, each kind in its own way, on loopback.

A request's path is `/rRATE-BURST/CELL`: the first part names the limit, the second its counter, so
that every cell of the bench has a fresh one and nobody has to be started again. All refuse at once
(429); what waiting would add is not what is compared.
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
from fakes.nodes import NodeProcess, Ports, free_port, free_ports, until

__all__ = ["CONTENDERS", "GROUPS", "PAUSE_GROUP", "Contender", "Egressd", "Group", "Stage"]

ROOT = Path(__file__).resolve().parents[3]
HERE = Path(__file__).resolve().parent
HOST = "127.0.0.1"
START_SECONDS = 90.0  # eight interpreters at once, on two cores that others may use as well
JOIN_SECONDS = 20.0
CONNECTIONS_MAX = 8000  # of an HAProxy; each needs two descriptors


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
        """What its nodes tell each other by, one for each node (or one store)."""
        return []

    def start(self) -> None:
        raise NotImplementedError(self.name)

    def stop(self) -> None:
        self._stack.close()

    def _process(self, argv: Sequence[str], name: str) -> Process:
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = Process(argv, None, self.folder / f"{name}.out", environ)
        self._stack.callback(process.stop)
        return process


class Egressd(Contender):
    name = "egressd"
    title = "egressd"
    mesh = True

    def links(self) -> list[Link]:
        return [Link("udp", ports.mesh) for ports in self.ports]

    def start(self) -> None:
        self.processes: list[NodeProcess] = []
        for number, ports in enumerate(self.ports):
            conf = self.conf(number, ports)
            node = NodeProcess(f"gw-{number + 1}", self.folder, ports, conf)
            self._stack.callback(node.close)
            node.start()
            self.processes.append(node)
        self._stack.callback(lambda: [node.ask_to_end() for node in self.processes])
        for node in self.processes:
            node.wait_ready(START_SECONDS)
        if self.mesh:
            self.wait_joined()

    def wait_joined(self) -> None:
        def joined() -> bool:
            documents = [node.document() for node in self.processes]
            return all(
                sum(m["state"] == "alive" for m in document["members"]) == self.nodes
                and not document["mesh"]["joining"]
                for document in documents
            )

        until(joined, JOIN_SECONDS, "all nodes have joined")

    def conf(self, number: int, ports: Ports) -> str:
        text = f"""
[node]
name = "gw-{number + 1}"
drain = "1s"
[[listen]]
bind = "{HOST}:{ports.listen}"
[admin]
bind = "{HOST}:{ports.admin}"
[log]
access = "off"
"""
        if self.mesh:
            fronts = [self.wires.front(other) for other in range(self.nodes)]
            text += f"""
[mesh]
cluster = "bench"
bind = "{HOST}:{ports.mesh}"
advertise = "{HOST}:{fronts[number]}"
join = {json.dumps([f"{HOST}:{front}" for front in fronts])}
"""
        return text + "".join(self._upstream(group) for group in (*GROUPS, PAUSE_GROUP))

    def _upstream(self, group: Group) -> str:
        name = f"r{group.rate}-{group.burst}"
        return f"""
[upstream.{name}]
origin = "http://{HOST}:{self.stage.origin_port}"
connections = 2000
wait = {{ max = "0s" }}
breaker = {{ scope = "upstream" }}
[[upstream.{name}.limit]]
name = "all"
rate = "{self.rate(group)}"
burst = {self.burst(group)}
key = ["path:2"]
[[route]]
path = "{group.path}"
upstream = "{name}"
"""

    def rate(self, group: Group) -> str:
        return f"{group.rate}/s"

    def burst(self, group: Group) -> int:
        return group.burst


class StaticSplit(Egressd):
    """Each node has its part of rate and burst, and tells nobody anything."""

    name = "static"
    title = "static split"
    mesh = False

    def links(self) -> list[Link]:
        return []

    def rate(self, group: Group) -> str:
        return f"{group.rate}/{self.nodes}s"

    def burst(self, group: Group) -> int:
        return max(1, group.burst // self.nodes)


class Haproxy(Contender):
    """Peers with a stick table of admissions (gpc0_rate): http_req_rate would count what is refused
    as well, so that twice the rate would be refused for ever. A table knows rates only, no bucket:
    it allows `rate` in a second, without the burst."""

    name = "haproxy"
    title = "HAProxy peers"

    @classmethod
    def missing(cls) -> str:
        return "" if which("haproxy") else "haproxy is not there"

    def links(self) -> list[Link]:
        return [Link("tcp", ports.mesh) for ports in self.ports]

    def start(self) -> None:
        started = []
        for number, ports in enumerate(self.ports):
            path = self.folder / f"{number}.cfg"
            path.write_text(self._conf(number, ports))
            argv = [which("haproxy") or "haproxy", "-db", "-L", f"gw{number}", "-f", str(path)]
            started.append((self._process(argv, str(number)), ports.listen))
        for process, port in started:
            wait_for_port(process, port)
        time.sleep(2.0)  # peers say hello to each other; they have no admin word for it

    def _conf(self, number: int, ports: Ports) -> str:
        doors = [
            port.mesh if other == number else self.wires.front(other)
            for other, port in enumerate(self.ports)
        ]
        peers = "".join(f"    peer gw{other} {HOST}:{door}\n" for other, door in enumerate(doors))
        rules = "".join(
            f"    http-request deny deny_status 429 if {{ path_beg {group.path} }} "
            f"{{ sc0_gpc0_rate ge {group.rate} }}\n"
            for group in GROUPS
        )
        return f"""
global
    nbthread 1
    maxconn {CONNECTIONS_MAX}
defaults
    mode http
    timeout connect 5s
    timeout client 600s
    timeout server 60s
    http-reuse always
peers mesh
{peers}
frontend in
    bind {HOST}:{ports.listen} backlog 4096
    http-request track-sc0 path,field(3,/) table counters
{rules}
    http-request sc-inc-gpc0(0)
    default_backend out
backend counters
    stick-table type string len 64 size 100k expire 60s store gpc0,gpc0_rate(1s) peers mesh
backend out
    server origin {HOST}:{self.stage.origin_port}
"""


class RedisGcra(Contender):
    """Forwarders that ask one Redis about every request (see `forwarder`)."""

    name = "redis"
    title = "Redis GCRA"

    @classmethod
    def missing(cls) -> str:
        return "" if which("redis-server") else "redis-server is not there"

    def links(self) -> list[Link]:
        self.redis_port = free_port()
        return [Link("tcp", self.redis_port)]

    def start(self) -> None:
        argv = [which("redis-server") or "redis-server", "--port", str(self.redis_port),
                "--bind", HOST, "--save", "", "--appendonly", "no"]  # fmt: skip
        wait_for_port(self._process(argv, "redis"), self.redis_port)
        front = str(self.wires.front(0))
        for number, ports in enumerate(self.ports):
            argv = [sys.executable, str(HERE / "forwarder.py"), str(ports.listen),
                    str(self.stage.origin_port), HOST, front]  # fmt: skip
            process = self._process(argv, str(number))
            wait_for_port(process, ports.listen)


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
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(spec) + "\n")
    process.stdin.flush()
    if process.stdout.readline().strip() != "ready":
        process.kill()
        raise BenchError("the load did not start")
    return process


CONTENDERS: tuple[type[Contender], ...] = (Egressd, Haproxy, StaticSplit, RedisGcra)
