"""An open-loop HTTP client: requests leave when they are due, whether or not answers have come.

wrk sends a request when the last is answered, so a proxy that stalls is simply asked less, and the
stall is seen by one request instead of by all that were due meanwhile. Here latency is counted from
the moment a request was due, and arrivals are those of a Poisson process: at half load that is what
independent callers look like.

One thread and `select` on plain sockets, because event loops round their timers up to the
millisecond that is to be measured. Run as a script in a process of its own:

    python openloop.py --port P --path /small --body-bytes 128 --rate 5000 --seconds 5

It prints one JSON object; durations in microseconds. `lag` is how late the client itself sent:
where it is not small against the latencies, the client is what was measured.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import random
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Sequence

__all__ = ["Client", "due_times", "percentile"]

NS = 1_000_000_000
SEED = 20260101  # the same arrivals for every contender
GRACE_NS = 2 * NS  # how long after the last due time answers may still come
RECEIVE_BYTES = 131_072


def due_times(rate: float, seconds: float, seed: int = SEED) -> list[int]:
    """Arrivals of a Poisson process in nanoseconds from its beginning."""
    draw = random.Random(seed).expovariate
    times = []
    at = 0.0
    while at < seconds:
        times.append(int(at * NS))
        at += draw(rate)
    return times


def percentile(ordered: Sequence[int], share: float) -> int:
    """The smallest value that at least `share` of the values do not exceed; 0 where is none."""
    if not ordered:
        return 0
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


class Client:
    """Connections to one address, each with at most one request on its way."""

    def __init__(self, address: tuple[str, int], request: bytes, body_bytes: int) -> None:
        self.address = address
        self.request = request
        self.body_bytes = body_bytes
        self.latencies_ns: list[int] = []
        self.lags_ns: list[int] = []
        self.errors = 0
        self._idle: list[socket.socket] = []
        self._busy: dict[socket.socket, int] = {}
        self._received: dict[socket.socket, bytes] = {}

    def open(self, connections: int) -> None:
        """Opens connections. Raises OSError where one is refused."""
        for _ in range(connections):
            sock = socket.create_connection(self.address, timeout=5)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._idle.append(sock)

    def run(self, times: Sequence[int]) -> None:
        """Sends a request at each of these times (ns from now) and waits for the answers."""
        clock = time.perf_counter_ns
        start = clock()
        backlog: deque[int] = deque()
        sent = 0
        total = len(times)
        end = start + times[-1] + GRACE_NS
        while sent < total or backlog or self._busy:
            now = clock()
            if now > end:
                self.errors += len(backlog) + len(self._busy)
                return
            while sent < total and start + times[sent] <= now:
                backlog.append(start + times[sent])
                sent += 1
            while backlog and self._idle:
                due = backlog.popleft()
                sock = self._idle.pop()
                sock.send(self.request)
                self._busy[sock] = due
                self._received[sock] = b""
                self.lags_ns.append(clock() - due)
            # In microseconds of the kernel's timers; the end is looked at each tenth of a second.
            wait_ns = min(NS // 10, start + times[sent] - clock()) if sent < total else NS // 10
            ready, _, _ = select.select(list(self._busy), (), (), max(0, wait_ns) / NS)
            for sock in ready:
                self._readable(sock, clock())

    def close(self) -> None:
        for sock in (*self._idle, *self._busy):
            sock.close()

    def _readable(self, sock: socket.socket, now: int) -> None:
        try:
            data = sock.recv(RECEIVE_BYTES)
        except OSError:
            data = b""
        if not data:
            self._lost(sock)
            return
        received = self._received[sock] + data
        head_end = received.find(b"\r\n\r\n")
        if head_end < 0 or len(received) < head_end + 4 + self.body_bytes:
            self._received[sock] = received
            return
        due = self._busy.pop(sock)
        self._idle.append(sock)
        if received[9:12] == b"200":
            self.latencies_ns.append(now - due)
        else:
            self.errors += 1

    def _lost(self, sock: socket.socket) -> None:
        """The other side hung up: one request failed; the next ones get a new connection."""
        del self._busy[sock]
        sock.close()
        self.errors += 1
        self.open(1)


def main() -> None:
    parser = argparse.ArgumentParser(description="open-loop HTTP latency")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", default="bench.internal")
    parser.add_argument("--path", required=True)
    parser.add_argument("--body-bytes", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--connections", type=int, default=64)
    options = parser.parse_args()
    request = f"GET {options.path} HTTP/1.1\r\nHost: {options.host}\r\n\r\n".encode()
    client = Client(("127.0.0.1", options.port), request, options.body_bytes)
    client.open(options.connections)
    client.run(due_times(options.rate, min(1.0, options.seconds)))  # connections, caches, pools
    client.latencies_ns.clear()
    client.lags_ns.clear()
    times = due_times(options.rate, options.seconds)
    gc.disable()  # nothing here makes cycles, and a collection would look like the proxy's stall
    client.run(times)
    client.close()
    latencies = sorted(client.latencies_ns)
    lags = sorted(client.lags_ns)
    json.dump(
        {
            "sent": len(lags),
            "answered": len(latencies),
            "errors": client.errors,
            "p50_us": percentile(latencies, 0.5) / 1000,
            "p99_us": percentile(latencies, 0.99) / 1000,
            "max_us": (latencies[-1] if latencies else 0) / 1000,
            "lag_p99_us": percentile(lags, 0.99) / 1000,
        },
        sys.stdout,
    )


if __name__ == "__main__":
    main()
