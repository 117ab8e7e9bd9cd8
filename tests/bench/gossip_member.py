"""One process of a mesh under load: what gossip costs with its driver, timers and sockets.

    python -m bench.gossip_member NUMBER KEYS RATE BURST LOAD SECONDS PORT...

Joins the others at their ports on loopback and prints "met"; after a line on standard input it asks
for random keys, prints its costs as JSON, and leaves after another line.
The processor time is the whole process's less that of asking, which is admission, not gossip.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time

import uvloop
from bench.process import BenchError

from peers.core.config import MS, SECOND, Config
from peers.core.events import Event
from peers.core.node import Node
from peers.core.rows import ROOM
from peers.driver import MeshDriver

__all__ = ["SEALING_KEY", "WARM_SECONDS"]

SEALING_KEY = bytes(range(32))
WARM_SECONDS = 4  # all keys are met by all nodes
MEET_SECONDS_MAX = 30.0
# Requests come in groups of so many seconds: with 375/s two at a time, as turns of a busy loop do.
ASK_SECONDS = 0.005


class Asker:
    """Asks for random keys at a rate, and times itself."""

    def __init__(self, driver: MeshDriver, keys: int, rate: int, burst: int, per_s: float) -> None:
        self.spent_s = 0.0
        self._chance = random.Random(driver.port)
        self._limit = driver.node.limit(
            "bench", name="l", rate_count=rate, rate_period_ns=SECOND, burst=burst
        )
        self._keys = [b"key-%d" % number for number in range(keys)]
        self._per_s = per_s
        self._then_s = time.monotonic()
        self._owed = 0.0

    def ask(self) -> None:
        begun = time.thread_time()
        now_ns = time.monotonic_ns()
        now_s = now_ns / SECOND
        self._owed += (now_s - self._then_s) * self._per_s
        self._then_s = now_s
        while self._owed >= 1.0:
            self._owed -= 1.0
            row = self._limit.entry(self._chance.choice(self._keys), now_ns)
            row.arrive(1, now_ns)
            if row.ask(1, now_ns) == ROOM:
                row.take(1, now_ns)
        self.spent_s += time.thread_time() - begun
        asyncio.get_running_loop().call_later(ASK_SECONDS, self.ask)


def ignore(events: list[Event]) -> None:
    """Nobody waits for a row here, and members are counted at the end."""


async def told() -> None:
    """Returns when standard input has another line, or its end."""
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)


async def run(
    number: int, keys: int, rate: int, burst: int, load: float, seconds: int, ports: list[int]
) -> None:
    """Prints a member's costs over so many seconds. Raises BenchError where the mesh does not form
    or does not last."""
    nodes = len(ports)
    addresses = [("127.0.0.1", port) for port in ports]
    address = addresses[number]
    config = Config(
        name=f"n{number}",
        cluster="bench",
        bind=address,
        advertise=address,
        join=tuple(other for other in addresses if other != address),
        keys=(SEALING_KEY,),
    )
    boot_ms = time.time_ns() // MS
    node = Node(config, random.Random(number), time.monotonic_ns(), boot_ms)
    driver = MeshDriver(node, ignore)
    await driver.start()
    deadline = time.monotonic() + MEET_SECONDS_MAX
    while node.live_count() < nodes:
        if time.monotonic() > deadline:
            raise BenchError(f"member {number} met {node.live_count() - 1} others")
        await asyncio.sleep(0.05)
    print("met", flush=True)
    await told()
    asker = Asker(driver, keys, rate, burst, rate * load * keys / nodes)
    asker.ask()
    await asyncio.sleep(WARM_SECONDS)
    before, asked, begun = node.stats(time.monotonic_ns()), asker.spent_s, time.process_time()
    then = time.monotonic()
    await asyncio.sleep(seconds)
    elapsed = time.monotonic() - then
    core = time.process_time() - begun - (asker.spent_s - asked)
    after = node.stats(time.monotonic_ns())
    whole = node.live_count() == nodes
    unread = after["drops"].pop("unread", 0) - before["drops"].pop("unread", 0)
    costs = {"core": core / elapsed, "unread": unread / elapsed} | {
        name: (after[name] - before[name]) / elapsed
        for name in ("bytes_sent", "datagrams_sent", "datagrams_received", "entries_received")
    }
    print(json.dumps(costs), flush=True)
    await told()  # nobody leaves while another still measures
    await driver.stop()
    if not whole or after["drops"] != before["drops"]:
        raise BenchError(f"member {number}: {after['live']} live, dropped {after['drops']}")


def main() -> None:
    number, keys, rate, burst, load, seconds, *ports = sys.argv[1:]
    work = run(
        int(number),
        int(keys),
        int(rate),
        int(burst),
        float(load),
        int(seconds),
        [int(port) for port in ports],
    )
    try:
        uvloop.run(work)
    except BenchError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
