"""How evenly a limit lets through what it admits: eight clients, three times too much, one gateway.

    PYTHONPATH=tests python -m bench.pacing [--quick] [--seconds N]

A real gateway process has one core; this process is its clients and its origin on the other one.
The origin's stamps are the judge: how many came in the measured time beside what a perfect pacer
would have sent (rate x time + burst), the fullest second, and how far gaps stray from 1/rate. What
the scheduler adds on the way from the gateway to the origin is in these figures; on a machine that
has other things to do it is most of them. So the same is said of the moments at which the gateway
let each request go, to the millisecond, out of its access log.

Each client sends when a request is due, answered or not (3/8 of the rate, evenly, out of step with
the others), from an address of its own, so that the gateway can take turns between them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from bench.process import BenchError, Process, wait_for_port
from fakes.nodes import free_port

__all__ = ["Pacing", "Row", "fullest_window", "judge"]

NS = 1_000_000_000
RATE = 100
BURST = 10
CLIENTS = 8
OVERLOAD = 3
CONNECTIONS = 24  # of each client: 37.5 requests/s that are held for up to 0.5 s, and some to spare
WAIT = "500ms"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
SETTLE_SECONDS = 1.0  # connections are made and the burst is spent before the gaps are looked at

CONF = """
[node]
name = "pacing"
[[listen]]
bind = "127.0.0.1:{port}"
[log]
access = "{log}"
[upstream.api]
origin = "http://127.0.0.1:{origin}"
wait = {{ max = "{wait}", fair_by = "source" }}
[[upstream.api.limit]]
name = "paced"
rate = "{rate}/s"
burst = {burst}
[[route]]
host = "bench.internal"
upstream = "api"
"""


class Row(NamedTuple):
    """One figure beside what it should be."""

    what: str
    found: float
    target: str
    met: bool


class Pacing(NamedTuple):
    """What the origin saw: arrivals in ns since the first one, and how many each client got;
    `sent` is when the gateway let them go, in ns since the first."""

    stamps: list[int]
    sent: list[int]
    per_client: list[int]
    refused: int
    unsent: int


def fullest_window(stamps: Sequence[int], window_ns: int = NS) -> int:
    """The most arrivals in any window [t, t + window)."""
    most = start = 0
    for end, stamp_ns in enumerate(stamps):
        while stamp_ns - stamps[start] >= window_ns:
            start += 1
        most = max(most, end - start + 1)
    return most


def sent_times(log: str) -> list[int]:
    """When each request that was let through went, in ns since the first, out of a JSON log.

    A line is written at the end: the exchange began `total_ms` before it and waited `waited_ms`.
    """
    times = []
    for line in log.splitlines():
        record = json.loads(line)
        if record["status"] == 200:
            end = datetime.fromisoformat(record["time"])
            went_ms = end.timestamp() * 1000 - record["total_ms"] + record["waited_ms"]
            times.append(round(went_ms * 1e6))
    times.sort()
    return [time_ns - times[0] for time_ns in times]


def spread(stamps: Sequence[int]) -> tuple[float, float]:
    """Mean and standard deviation of the gaps, in ms; infinite where there is none."""
    gaps = [later - earlier for earlier, later in pairwise(stamps)]
    if not gaps:
        return float("inf"), float("inf")
    return statistics.fmean(gaps) / 1e6, statistics.pstdev(gaps) / 1e6


def judge(seen: Pacing, seconds: float, rate: int = RATE, burst: int = BURST) -> list[Row]:
    """The issue's three figures, and the shares of the clients."""
    stamps = seen.stamps
    within = [stamp_ns for stamp_ns in stamps if stamp_ns < seconds * NS]
    ideal = rate * seconds + burst
    off = abs(len(within) - ideal) / ideal
    fullest = fullest_window(within)
    mean_ms, spread_ms = spread([at_ns for at_ns in within if at_ns >= SETTLE_SECONDS * NS])
    sent = [at_ns for at_ns in seen.sent if at_ns < seconds * NS]
    sent_fullest = fullest_window(sent)
    _, sent_spread = spread([at_ns for at_ns in sent if at_ns >= SETTLE_SECONDS * NS])
    room = rate + burst
    gap_ms = 1000 / rate
    tenth = gap_ms / 10
    even = sum(seen.per_client) / len(seen.per_client) if seen.per_client else 0.0
    unfair = max((abs(one - even) / even for one in seen.per_client), default=0.0) if even else 1.0
    return [
        Row("admitted, off the ideal, %", off * 100, "<= 0.5", off <= 0.005),
        Row("fullest second, requests", fullest, f"<= {room}", fullest <= room),
        Row("  as the gateway let them go", sent_fullest, f"<= {room}", sent_fullest <= room),
        Row("gap, mean, ms", mean_ms, f"{gap_ms:g}", abs(mean_ms - gap_ms) <= gap_ms * 0.005),
        Row("gap, standard deviation, ms", spread_ms, f"<= {tenth:g}", spread_ms <= tenth),
        Row("  as the gateway let them go", sent_spread, f"<= {tenth:g}", sent_spread <= tenth),
        Row("a client's share, off the even one, %", unfair * 100, "<= 2", unfair <= 0.02),
    ]  # fmt: skip


class Origin(asyncio.Protocol):
    """Answers each request with two octets and stamps when it came."""

    def __init__(self, stamps: list[int]) -> None:
        self.stamps = stamps
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        # A request of the gateway's is one segment of a few hundred octets.
        if data.endswith(b"\r\n\r\n") and self.transport is not None:
            self.stamps.append(time.monotonic_ns())
            self.transport.write(ANSWER)


class Connection(asyncio.Protocol):
    """One of a client's connections; goes back to its idle ones when it is answered."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.transport: asyncio.Transport | None = None
        self.received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def send(self) -> None:
        assert self.transport is not None
        self.received = b""
        self.transport.write(b"GET / HTTP/1.1\r\nHost: bench.internal\r\n\r\n")

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, end, body = self.received.partition(b"\r\n\r\n")
        if not end:
            return
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        if len(body) >= length:
            self.client.answered(self, int(head[9:12]))


class Client:
    """Sends at its rate whatever the answers do, as far as it has connections."""

    def __init__(self, number: int, port: int) -> None:
        self.address = f"127.0.0.{11 + number}"
        self.port = port
        self.number = number
        self.admitted = 0
        self.refused = 0
        self.unsent = 0
        self._idle: deque[Connection] = deque()

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(CONNECTIONS):
            _, connection = await loop.create_connection(
                lambda: Connection(self), "127.0.0.1", self.port, local_addr=(self.address, 0)
            )
            self._idle.append(connection)

    async def run(self, begin: float, seconds: float) -> None:
        """One request every CLIENTS / (OVERLOAD x RATE) seconds, out of step with the others."""
        loop = asyncio.get_running_loop()
        gap = CLIENTS / (OVERLOAD * RATE)
        due = begin + gap * self.number / CLIENTS
        while due < begin + seconds:
            await asyncio.sleep(max(0.0, due - loop.time()))
            due += gap
            if self._idle:
                self._idle.popleft().send()
            else:
                self.unsent += 1

    def answered(self, connection: Connection, status: int) -> None:
        self._idle.append(connection)
        if status == 200:
            self.admitted += 1
        else:
            self.refused += 1


async def measure(port: int, origin_port: int, seconds: float) -> Pacing:
    """Load for a little more than `seconds` from the first arrival on."""
    loop = asyncio.get_running_loop()
    stamps: list[int] = []
    server = await loop.create_server(lambda: Origin(stamps), "127.0.0.1", origin_port)
    clients = [Client(number, port) for number in range(CLIENTS)]
    for client in clients:
        await client.open()
    begin = loop.time() + 0.1
    await asyncio.gather(*[client.run(begin, seconds + 0.5) for client in clients])
    server.close()
    if not stamps:
        raise BenchError("no request reached the origin")
    first = stamps[0]
    return Pacing(
        [stamp_ns - first for stamp_ns in stamps],
        [],
        [client.admitted for client in clients],
        sum(client.refused for client in clients),
        sum(client.unsent for client in clients),
    )


def run(folder: Path, seconds: float) -> Pacing:
    """A gateway on the first core, the load on the last. Raises BenchError."""
    cores = sorted(os.sched_getaffinity(0))
    port, origin_port = free_port(), free_port()
    conf = folder / "egressd.toml"
    log = folder / "access.log"
    facts = {"rate": RATE, "burst": BURST, "wait": WAIT, "log": log}
    conf.write_text(CONF.format(port=port, origin=origin_port, **facts))
    argv = [sys.executable, "-m", "gateway", "run", "-c", str(conf)]
    gateway = Process(argv, cores[0], folder / "egressd.log", os.environ)
    try:
        wait_for_port(gateway, port)
        os.sched_setaffinity(0, {cores[-1]})
        gc.disable()  # a collection here would look like the gateway's unevenness
        seen = asyncio.run(measure(port, origin_port, seconds))
    finally:
        gc.enable()
        os.sched_setaffinity(0, cores)
        gateway.stop()
    return seen._replace(sent=sent_times(log.read_text()))


def lines_of(rows: Sequence[Row]) -> list[str]:
    """A Markdown table."""
    lines = [
        "| pacing                                   |      found |  reach |     |",
        "|------------------------------------------|-----------:|-------:|-----|",
    ]
    for row in rows:
        met = "ok" if row.met else "NO"
        lines.append(f"| {row.what:<40} | {row.found:>10.3f} | {row.target:>6} | {met:<3} |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description="how evenly a limit lets through")
    parser.add_argument("--quick", action="store_true", help="five seconds")
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    seconds = 5.0 if options.quick else options.seconds
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="egressd-bench-")))
        try:
            seen = run(folder, seconds)
        except BenchError as error:
            print(f"bench: {error}", file=sys.stderr)
            return 1
    print(
        f"{RATE}/s, burst {BURST}, {CLIENTS} clients at {OVERLOAD} x, {seconds:g} s: "
        f"{len(seen.stamps)} arrived, {seen.refused} refused, {seen.unsent} found no connection\n"
    )
    print("\n".join(lines_of(judge(seen, seconds))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
