"""What else keeps a shared limit, and the way without anything between client and origin."""

from __future__ import annotations

import sys
import time

from bench.mesh.contenders import GROUPS, HERE, HOST, Contender, redis_argv
from bench.mesh.wires import Link
from bench.packages import which
from bench.process import wait_for_port
from fakes.nodes import Ports, free_port

__all__ = ["Direct", "Haproxy", "RedisGcra"]

CONNECTIONS_MAX = 8000  # of an HAProxy; each needs two descriptors


class Direct(Contender):
    """No node at all: what the load and the origin take by themselves. Nothing is limited."""

    name = "direct"
    title = "direct"

    @property
    def addresses(self) -> list[tuple[str, int]]:
        return [(HOST, self.stage.origin_port)] * self.nodes

    def start(self) -> None:
        """The origin is there."""


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
        return [Link("tcp", ports.mesh, number) for number, ports in enumerate(self.ports)]

    def start(self) -> None:
        started = []
        for number, ports in enumerate(self.ports):
            path = self.folder / f"{number}.cfg"
            path.write_text(self._conf(number, ports))
            argv = [which("haproxy") or "haproxy", "-db", "-L", f"gw{number}", "-f", str(path)]
            started.append((self.process(argv, str(number)), ports.listen))
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

    name = "gcra"
    title = "Redis GCRA"

    @classmethod
    def missing(cls) -> str:
        return "" if which("redis-server") else "redis-server is not there"

    def links(self) -> list[Link]:
        self.redis_port = free_port()
        return [Link("tcp", self.redis_port, 0, store=True)]

    def start(self) -> None:
        argv = redis_argv(self.redis_port, [HOST])
        wait_for_port(self.process(argv, "redis"), self.redis_port)
        front = str(self.wires.front(0))
        for number, ports in enumerate(self.ports):
            argv = [sys.executable, str(HERE / "forwarder.py"), str(ports.listen),
                    str(self.stage.origin_port), HOST, front]  # fmt: skip
            process = self.process(argv, str(number))
            wait_for_port(process, ports.listen)
