"""Open-loop load: requests leave at their scheduled times whether or not earlier ones are answered.

A closed loop would slow down with the gateway and hide what a limit does. It is a process of its
own that measures from outside, and prints what it has counted as a JSON line five times a second.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from gateway.clock import MS, SECOND, monotonic_ns
from gateway.demo.child import parent_gone
from gateway.demo.client import Answer, Client, ClientError

__all__ = ["Load", "TargetCounts", "main", "schedule"]

# At 100/s and a request timeout of 5 s there are at most 500 on their way; what would come on top
# is not sent and counted as skipped, so that a gateway that stands still costs bounded memory.
OUTSTANDING_MAX = 512
REQUEST_TIMEOUT_S = 5.0
REPORT_SECONDS = 0.2
LATENCIES_MAX = 2048  # the newest ones, for the percentiles: 20 s at 100/s
TARGETS_MAX = 64
RAMP_SECONDS_MAX = 3600.0
RATE_MAX = 10_000  # requests/s; one process of streams does about so many


def schedule(
    rate: int, shares: Sequence[int], seed: int, ramp_s: float = 0.0
) -> Iterator[tuple[int, int]]:
    """When each request leaves (nanoseconds after the start) and to which target, for ever.

    In the first `ramp_s` seconds the rate grows evenly from nothing to `rate` (requests/s).
    One request in each slot of 1/rate, at a random place inside it: the rate is exact over any
    second and the requests keep no step with anybody's tick. The targets follow by smooth weighted
    round robin (as nginx has it), so their shares are exact too. Raises ValueError.
    """
    if not 1 <= rate <= RATE_MAX:
        raise ValueError(f"rate is 1 to {RATE_MAX} a second")
    if not 0.0 <= ramp_s <= RAMP_SECONDS_MAX:
        raise ValueError(f"the ramp is 0 to {RAMP_SECONDS_MAX} seconds")
    if not shares or min(shares) < 0 or not sum(shares):
        raise ValueError("shares are whole numbers from 0, not all 0")
    chance = random.Random(seed)  # noqa: S311 a reproducible schedule, not a secret
    total = sum(shares)
    current = [0] * len(shares)
    slot = 0
    while True:
        for index, share in enumerate(shares):
            current[index] += share
        target = max(range(len(shares)), key=current.__getitem__)
        current[target] -= total
        yield int(_due_s(slot + chance.random(), rate, ramp_s) * SECOND), target
        slot += 1


def _due_s(count: float, rate: int, ramp_s: float) -> float:
    """When the count of requests is reached: rate * t**2 / (2 * ramp) while the rate grows, and
    rate * (t - ramp / 2) after that."""
    if count < rate * ramp_s / 2:
        return math.sqrt(2 * count * ramp_s / rate)
    return count / rate + ramp_s / 2


class TargetCounts:
    """What one target answered. `refused` is the gateway's own no, `throttled` the origin's 429."""

    __slots__ = ("errors", "latencies", "ok", "other", "refused", "sent", "skipped", "throttled")

    def __init__(self) -> None:
        self.sent = 0
        self.ok = 0
        self.refused = 0
        self.throttled = 0
        self.other = 0
        self.errors = 0
        self.skipped = 0
        self.latencies: deque[int] = deque(maxlen=LATENCIES_MAX)

    def answered(self, answer: Answer, latency_ns: int) -> None:
        """Counts an answer; the latency counts only where the request was served."""
        if answer.by_gateway:
            self.refused += 1
        elif answer.status < 400:
            self.ok += 1
            self.latencies.append(latency_ns)
        elif answer.status == 429:
            self.throttled += 1
        else:
            self.other += 1

    def report(self) -> dict[str, Any]:
        """Plain numbers; the percentiles are of the newest LATENCIES_MAX served requests."""
        ordered = sorted(self.latencies)
        return {
            "sent": self.sent,
            "ok": self.ok,
            "refused": self.refused,
            "throttled": self.throttled,
            "other": self.other,
            "errors": self.errors,
            "skipped": self.skipped,
            "p50_ms": _percentile_ms(ordered, 50),
            "p99_ms": _percentile_ms(ordered, 99),
        }


def _percentile_ms(ordered: Sequence[int], percent: int) -> float | None:
    if not ordered:
        return None
    return round(ordered[(len(ordered) - 1) * percent // 100] / MS, 1)


class Load:
    """The generator: one task per request on its way, at most OUTSTANDING_MAX."""

    def __init__(self, clients: Sequence[Client], target: bytes) -> None:
        self._clients = clients
        self._target = target
        self._tasks: set[asyncio.Task[None]] = set()
        self.counts = [TargetCounts() for _ in clients]
        self.late_ns_max = 0  # how far a sending lagged behind its schedule, at the worst

    async def run(self, plan: Iterator[tuple[int, int]]) -> None:
        """Sends by the plan until it ends or this is cancelled."""
        start_ns = monotonic_ns()
        for offset_ns, index in plan:
            due_ns = start_ns + offset_ns
            wait_ns = due_ns - monotonic_ns()
            if wait_ns > 0:
                await asyncio.sleep(wait_ns / SECOND)
            self.late_ns_max = max(self.late_ns_max, monotonic_ns() - due_ns)
            self._send(index)

    async def stop(self) -> None:
        """Calls off what is on its way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for client in self._clients:
            client.close()

    async def settle(self) -> None:
        """Waits for what is on its way."""
        await asyncio.gather(*self._tasks)

    def report(self) -> dict[str, Any]:
        """All counts as one JSON-able document."""
        return {
            "now_ns": monotonic_ns(),
            "late_ms_max": round(self.late_ns_max / MS, 1),
            "outstanding": len(self._tasks),
            "targets": [counts.report() for counts in self.counts],
        }

    def _send(self, index: int) -> None:
        counts = self.counts[index]
        if len(self._tasks) >= OUTSTANDING_MAX:
            counts.skipped += 1
            return
        counts.sent += 1
        task = asyncio.get_running_loop().create_task(self._one(index, counts))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _one(self, index: int, counts: TargetCounts) -> None:
        begun_ns = monotonic_ns()
        try:
            answer = await self._clients[index].request(b"GET", self._target)
        except ClientError:
            counts.errors += 1
        else:
            counts.answered(answer, monotonic_ns() - begun_ns)


async def _run(options: argparse.Namespace) -> None:
    clients = []
    for text in options.target:
        host, _, port = text.rpartition(":")
        clients.append(Client(host, int(port), authority=options.host, timeout_s=REQUEST_TIMEOUT_S))
    load = Load(clients, options.path.encode())
    shares = [int(share) for share in options.shares.split(",")]
    if len(shares) != len(clients):
        raise ValueError("as many shares as targets")
    plan = schedule(options.rate, shares, options.seed, options.ramp)
    sending = asyncio.ensure_future(load.run(plan))
    gone = asyncio.ensure_future(parent_gone())
    try:
        while not gone.done():
            done, _ = await asyncio.wait(
                {gone, sending}, timeout=REPORT_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            if sending in done:
                await sending  # the plan has no end, so this raises what went wrong
            print(json.dumps(load.report()), flush=True)
    except BrokenPipeError:
        pass  # nobody reads the counts any more
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        await load.stop()


def main(argv: list[str] | None = None) -> int:
    """`python -m gateway.demo.load HOST:PORT …`: sends until standard input ends."""
    parser = argparse.ArgumentParser(prog="gateway.demo.load", description=__doc__)
    parser.add_argument("target", nargs="+", help="HOST:PORT of a gateway node")
    parser.add_argument("--rate", type=int, default=100, help="requests/s over all targets")
    parser.add_argument("--ramp", type=float, default=0.0, help="seconds until it is reached")
    parser.add_argument("--shares", default="70,20,10", help="of each target, e.g. 70,20,10")
    parser.add_argument("--host", default="", help="the Host field; default: the target")
    parser.add_argument("--path", default="/")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(argv)
    if len(options.target) > TARGETS_MAX:
        parser.error(f"at most {TARGETS_MAX} targets")
    try:
        asyncio.run(_run(options))
    except ValueError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
