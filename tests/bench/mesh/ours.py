"""Our own ways to keep a shared limit, each with the same listeners, upstreams and limits.

The mesh, leases of an owner (`sync = "exact"`), one Redis (`sync = "redis"`), the spool in front of
the mesh, and for comparison each node's own part with nobody told.
"""

from __future__ import annotations

import importlib.util
import json
import time

from bench.mesh.contenders import GROUPS, HOST, PAUSE_GROUP, Contender, Group, redis_argv
from bench.mesh.wires import Link
from bench.packages import which
from bench.process import wait_for_port
from fakes.nodes import NodeProcess, Ports, free_port, until

__all__ = ["Egressd", "Exact", "Redis", "Spooled", "StaticSplit"]

START_SECONDS = 90.0  # eight interpreters at once, on two cores that others may use as well
JOIN_SECONDS = 20.0


class Egressd(Contender):
    """A mesh that keeps the limit by gossip: `sync = "mesh"`."""

    name = "egressd"
    title = "egressd mesh"
    mesh = True
    sync = "mesh"

    def links(self) -> list[Link]:
        return [Link("udp", ports.mesh, number) for number, ports in enumerate(self.ports)]

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
        return (
            text
            + self.more(number)
            + "".join(self._upstream(group) for group in (*GROUPS, PAUSE_GROUP))
        )

    def more(self, number: int) -> str:
        """Tables that only this kind of node has."""
        return ""

    def of_upstream(self, name: str) -> str:
        """Tables that only this kind's upstreams have."""
        return ""

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
sync = "{self.sync}"
{self.of_upstream(name)}
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
    sync = "local"

    def links(self) -> list[Link]:
        return []

    def rate(self, group: Group) -> str:
        return f"{group.rate}/{self.nodes}s"

    def burst(self, group: Group) -> int:
        return max(1, group.burst // self.nodes)


class Exact(Egressd):
    """Tokens are leased from the key's owner. While owners are new their buckets count as full, and
    drain from then on: until they are empty a load would be measured without its burst."""

    name = "exact"
    title = "egressd exact"
    sync = "exact"
    holds = True  # up to 100 ms, for tokens

    def start(self) -> None:
        super().start()
        until(
            lambda: not any(n.document()["mesh"]["leases_held_back"] for n in self.processes),
            JOIN_SECONDS,
            "owners may grant",
        )
        time.sleep(max(group.burst / group.rate for group in GROUPS))


class Redis(Egressd):
    """One bucket in a real redis-server, and the mesh behind it.

    The server listens on an address for each node, so that a cut between halves takes it from one
    of them: a rule sees which node a stream belongs to.
    """

    name = "redis"
    title = "egressd redis"
    sync = "redis"

    @classmethod
    def missing(cls) -> str:
        if importlib.util.find_spec("hiredis") is None:
            return "the extra egressd[redis] is not installed"
        return "" if which("redis-server") else "redis-server is not there"

    def links(self) -> list[Link]:
        self.redis_port = free_port()
        stores = [
            Link("tcp", self.redis_port, number, f"127.0.0.{2 + number}", store=True)
            for number in range(self.nodes)
        ]
        return [*super().links(), *stores]

    def start(self) -> None:
        hosts = [link.host for link in self.wires.links if link.store]
        argv = redis_argv(self.redis_port, [HOST, *hosts])
        wait_for_port(self.process(argv, "redis"), self.redis_port)
        super().start()
        for node in self.processes:
            until(lambda of=node: of.document()["redis"]["up"], JOIN_SECONDS, "redis is used")

    def more(self, number: int) -> str:
        host, port = self.wires.address(self.nodes + number)
        return f"""
[redis]
url = "redis://{host}:{port}/0"
"""


class Spooled(Egressd):
    """Accepted durably (`Prefer: respond-async`), sent by the mesh's limit."""

    name = "spool"
    title = "egressd spool"
    fields = "Prefer: respond-async\r\n"
    fresh = True
    holds = True

    def more(self, number: int) -> str:
        return f"""
[spool]
path = "{self.folder}/spool-{number + 1}.db"
"""

    def of_upstream(self, name: str) -> str:
        return f"""
[upstream.{name}.spool]
ttl = "10m"
"""
