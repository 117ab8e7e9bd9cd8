"""Open load on several nodes, in a process of its own: requests leave when they are due.

Reads one JSON object from standard input (see `Spec`), opens its connections, says "ready", waits
for a line, runs, and prints what became of every request. A closed loop would slow down with the
subject and hide what a limit does. A request whose node cannot be reached goes to the next one, as
behind a virtual address; what its node breaks off is lost, and counted.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections.abc import Sequence
from time import monotonic_ns
from typing import Any, NamedTuple, cast

import uvloop

__all__ = ["Spec", "due"]

SECOND = 1_000_000_000
BURST_NS = 5_000_000  # a simultaneous start is one within 5 ms
CONNECTIONS_MAX = 1500  # to a node; a burst of 1,000 needs as many
ANSWER_SECONDS = 10.0
LOST = 0  # the status of a request that got no answer


class Spec(NamedTuple):
    """`steps` are [at_s, parts of `rate` by target, burst]; `burst` requests to each target at the
    steps that say so. `warm` connections to each target are opened before."""

    targets: list[tuple[str, int]]
    host: str
    path: str
    rate: float
    seconds: float
    steps: list[tuple[float, list[float], bool]]
    burst: int
    seed: int
    warm: int = 8
    fields: str = ""  # further lines of each request's head


def due(spec: Spec) -> list[tuple[int, int]]:
    """When each request leaves (nanoseconds after the start), and to which target.

    Arrivals are evenly random (Poisson) at each target; a step's burst is spread over 5 ms.
    """
    chance = random.Random(spec.seed)
    found: list[tuple[int, int]] = []
    for number, (at_s, parts, burst) in enumerate(spec.steps):
        begin_ns = int(at_s * SECOND)
        end_s = spec.steps[number + 1][0] if number + 1 < len(spec.steps) else spec.seconds
        for target, part in enumerate(parts):
            if burst:
                found += [
                    (begin_ns + chance.randrange(BURST_NS), target) for _ in range(spec.burst)
                ]
            at = at_s
            while part > 0.0:
                at += chance.expovariate(spec.rate * part)
                if at >= end_s:
                    break
                found.append((int(at * SECOND), target))
    return sorted(found)


class Request:
    """One request: when it left, for which target, and what came of it."""

    __slots__ = ("done", "done_ns", "sent_ns", "status", "target")

    def __init__(self, target: int) -> None:
        self.target = target
        self.sent_ns = 0
        self.status = LOST
        self.done_ns = 0
        self.done = False


class Connection(asyncio.Protocol):
    """One request at a time; goes back to its target's idle ones after each answer."""

    def __init__(self, load: Load, target: int) -> None:
        self._load = load
        self._target = target
        self._buffer = b""
        self._request: Request | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it

    def send(self, request: Request) -> None:
        assert self._transport is not None
        self._request = request
        self._transport.write(self._load.head % request.sent_ns)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found or len(rest) < content_length(head):
            return
        self._buffer = b""
        request, self._request = self._request, None
        if request is not None:
            self._load.answered(request, int(head[9:12]))
        if b"\r\nconnection: close" not in head.lower():
            self._load.idle[self._target].append(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._load.closed(self._target, self)
        request, self._request = self._request, None
        if request is not None:
            self._load.answered(request, LOST)


def content_length(head: bytes) -> int:
    lower = head.lower()
    at = lower.find(b"\r\ncontent-length:")
    if at < 0:
        return 0
    end = lower.find(b"\r\n", at + 2)
    return int(lower[at + 17 : end if end >= 0 else None])


class Load:
    """Sends what is due, over as many connections as are busy at a time."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.head = (
            f"GET {spec.path} HTTP/1.1\r\nHost: {spec.host}\r\n{spec.fields}".encode()
            + b"X-Sent: %d\r\n\r\n"
        )
        self.idle: list[list[Connection]] = [[] for _ in spec.targets]
        self.open = [0] * len(spec.targets)
        self.requests: list[Request] = []
        self.late_ns = 0
        self.skipped = 0
        self.waiting = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def warm(self) -> None:
        """Opens connections, some at a time: a listener's queue is not endless."""
        for _ in range(0, self.spec.warm, 32):
            for target in range(len(self.spec.targets)):
                count = min(32, self.spec.warm - self.open[target])
                found = await asyncio.gather(*(self.connect(target) for _ in range(count)))
                self.idle[target] += [connection for connection in found if connection]

    async def connect(self, target: int) -> Connection | None:
        self.open[target] += 1
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: Connection(self, target), *self.spec.targets[target]
            )
        except OSError:
            self.open[target] -= 1
            return None
        return connection

    async def run(self) -> None:
        plan = due(self.spec)
        start_ns = monotonic_ns()
        for offset_ns, target in plan:
            wait_ns = start_ns + offset_ns - monotonic_ns()
            if wait_ns > 0:
                await asyncio.sleep(wait_ns / SECOND)
            self.late_ns = max(self.late_ns, monotonic_ns() - start_ns - offset_ns)
            self.send(target)
        await asyncio.sleep(
            max(0.0, start_ns / SECOND + self.spec.seconds - monotonic_ns() / SECOND)
        )
        deadline_ns = monotonic_ns() + int(ANSWER_SECONDS * SECOND)
        while self.waiting and monotonic_ns() < deadline_ns:
            await asyncio.sleep(0.01)

    def send(self, target: int) -> None:
        request = Request(target)
        request.sent_ns = monotonic_ns()  # what is skipped was due as well
        self.requests.append(request)
        self.waiting += 1
        idle = self.idle[target]
        if idle:
            idle.pop().send(request)
        elif self.open[target] >= CONNECTIONS_MAX:
            self.skipped += 1
            self.answered(request, LOST)
        else:
            task = asyncio.get_running_loop().create_task(self._fresh(request))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _fresh(self, request: Request) -> None:
        targets = len(self.spec.targets)
        request.sent_ns = monotonic_ns()
        for step in range(targets):
            target = (request.target + step) % targets
            connection = await self.connect(target)
            if connection is not None:
                request.target = target
                request.sent_ns = monotonic_ns()
                connection.send(request)
                return
        self.answered(request, LOST)

    def answered(self, request: Request, status: int) -> None:
        if not request.done:
            request.done = True
            request.status = status
            request.done_ns = monotonic_ns()
            self.waiting -= 1

    def closed(self, target: int, connection: Connection) -> None:
        self.open[target] -= 1
        if connection in self.idle[target]:
            self.idle[target].remove(connection)

    def report(self) -> dict[str, Any]:
        return {
            "late_ms": round(self.late_ns / 1e6, 1),
            "skipped": self.skipped,
            "requests": [[r.sent_ns, r.target, r.status, r.done_ns] for r in self.requests],
        }


async def main(lines: Sequence[str]) -> None:
    spec = Spec(**json.loads(lines[0]))
    load = Load(spec)
    await load.warm()
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    await load.run()
    print(json.dumps(load.report()), flush=True)


if __name__ == "__main__":
    uvloop.run(main([sys.stdin.readline()]))
