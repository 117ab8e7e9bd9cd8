"""What gossip costs a node: bytes and time for many keys over eight nodes.

    PYTHONPATH=tests python -m bench.gossip [--keys N] [--nodes N] [--seconds N] [--json FILE]

Measured twice. *Core*: all nodes run in one process in virtual time, a step each millisecond, with
sealed datagrams. What node 0 is given is recorded, and then given once more to a node that is alone
in the process and made with the same chance, so that it does the very same: its processor time is
what one node costs, caches and all. *Process*: as many processes with sockets on loopback, of which
each counts its own processor time less that of its load; the median is shown. Kernel, driver and
timers are in it, and caches that others have used meanwhile.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any, NamedTuple

from bench.gossip_member import SEALING_KEY, WARM_SECONDS
from bench.process import BenchError
from fakes.nodes import free_port

from peers.core.config import MS, SECOND, Config
from peers.core.node import Node
from peers.core.rows import ROOM

NODES = 8
KEYS = 1000
SECONDS = 6
WAIT_SECONDS_MAX = 30.0
FAILED = "a member ended early; it says above why"
BOOT_MS = 1_700_000_000_000


class Case(NamedTuple):
    """A load on every key; the targets are those of the design."""

    name: str
    burst: int
    load: float
    bytes_max: float
    core_max: float


RATE = 10  # a second and key
CASES = (
    Case("none saturated", 100, 0.3, 0.6e6, 0.05),
    Case("none saturated, tight", 10, 0.3, 0.6e6, 0.05),
    Case("all saturated", 100, 2.0, 1.5e6, 0.15),
    Case("all saturated, tight", 10, 2.0, 1.5e6, 0.15),
)


class Subject:
    """A node and its limit, driven a millisecond at a time."""

    def __init__(self, number: int, nodes: int, burst: int, now_ns: int) -> None:
        addresses = [("127.0.0.1", 7000 + other) for other in range(nodes)]
        self.address = addresses[number]
        config = Config(
            name=f"n{number}",
            cluster="bench",
            bind=self.address,
            advertise=self.address,
            join=tuple(address for address in addresses if address != self.address),
            keys=(SEALING_KEY,),
        )
        chance = random.Random(number)
        self.node = Node(config, chance, now_ns, BOOT_MS + number)
        self.limit = self.node.limit(
            "bench", name="l", rate_count=RATE, rate_period_ns=SECOND, burst=burst
        )

    def step(
        self, now_ns: int, datagrams: list[tuple[bytes, Any]], keys: list[bytes]
    ) -> list[tuple[bytes, Any]]:
        """One turn: what came in, requests for these keys, and what leaves."""
        node = self.node
        for data, source in datagrams:
            node.receive_datagram(data, source, now_ns)
        for key in keys:
            row = self.limit.entry(key, now_ns)
            row.arrive(1, now_ns)
            if row.ask(1, now_ns) == ROOM:
                row.take(1, now_ns)
        if now_ns >= node.next_wake_ns():
            node.tick(now_ns)
        sent = node.datagrams_to_send(now_ns)
        node.events_received()
        return sent


Turn = tuple[int, list[tuple[bytes, Any]], list[bytes]]


def record(case: Case, nodes: int, keys: int, seconds: int) -> list[Turn]:
    """All nodes under load; what node 0 was given in each turn."""
    now_ns = 1_000 * SECOND
    chance = random.Random(1)
    subjects = [Subject(number, nodes, case.burst, now_ns) for number in range(nodes)]
    inboxes: dict[Any, list[tuple[bytes, Any]]] = {s.address: [] for s in subjects}
    names = [b"key-%d" % number for number in range(keys)]
    per_turn = RATE * case.load * keys / 1000
    turns: list[Turn] = []
    owed = 0.0
    for turn in range((WARM_SECONDS + seconds) * 1000):
        now_ns += MS
        wanted: list[list[bytes]] = [[] for _ in subjects]
        if turn >= 1500:  # meshed by then
            owed += per_turn
            while owed >= 1.0:
                owed -= 1.0
                wanted[chance.randrange(nodes)].append(chance.choice(names))
        arrived, inboxes = inboxes, {s.address: [] for s in subjects}
        turns.append((now_ns, arrived[subjects[0].address], wanted[0]))
        for subject, asked in zip(subjects, wanted, strict=True):
            for data, address in subject.step(now_ns, arrived[subject.address], asked):
                inboxes[address].append((data, subject.address))
    assert all(subject.node.live_count() == nodes for subject in subjects)
    return turns


def replay(case: Case, nodes: int, turns: list[Turn], seconds: int) -> dict[str, float]:
    """Node 0 alone, given the same: its costs over the last `seconds`."""
    subject = Subject(0, nodes, case.burst, 1_000 * SECOND)
    measured = len(turns) - seconds * 1000
    for turn in turns[:measured]:
        subject.step(*turn)
    before = subject.node.stats(turns[measured][0])
    begin = time.thread_time()
    for turn in turns[measured:]:
        subject.step(*turn)
    core = (time.thread_time() - begin) / seconds
    after = subject.node.stats(turns[-1][0])
    assert after["drops"] == before["drops"], after["drops"]
    assert after["entries_received"] > before["entries_received"]

    def rate(name: str) -> float:
        return float(after[name] - before[name]) / seconds

    return {
        "core": core,
        "bytes_per_s": rate("bytes_sent"),
        "datagrams_per_s": rate("datagrams_sent"),
        "entries_per_s": rate("entries_sent"),
        "heard_per_s": rate("entries_received"),
    }


def _tell_all(members: list[subprocess.Popen[str]]) -> list[str]:
    """What each has to say; then all hear that they all did. Raises BenchError."""
    lines = []
    for member in members:
        assert member.stdout is not None
        lines.append(member.stdout.readline())  # a member that fails closes it
        if not lines[-1]:
            raise BenchError(FAILED)
    for member in members:
        assert member.stdin is not None
        member.stdin.write("\n")
        member.stdin.flush()
    return lines


def live(case: Case, nodes: int, keys: int, seconds: int) -> dict[str, float]:
    """The same load on processes with sockets: the median of their costs. Raises BenchError."""
    ports = [str(free_port()) for _ in range(nodes)]
    facts = [str(fact) for fact in (keys, RATE, case.burst, case.load, seconds)]
    members = [
        subprocess.Popen(
            [sys.executable, "-m", "bench.gossip_member", str(number), *facts, *ports],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(nodes)
    ]
    try:
        _tell_all(members)  # once all have met
        costs = [json.loads(line) for line in _tell_all(members)]
        if any(member.wait(WAIT_SECONDS_MAX) for member in members):
            raise BenchError(FAILED)
    finally:
        for member in members:
            member.kill()
            member.communicate()
    return {name: statistics.median(cost[name] for cost in costs) for name in costs[0]}


def row_bytes(peers: int) -> float:
    """Memory of one mesh row whose key this many peers use."""
    subject = Subject(0, 2, 100, 1_000 * SECOND)
    now_ns = 1_000 * SECOND
    count = 2000
    nodes = [b"peer-%03d" % number for number in range(peers)]
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for number in range(count):
        row = subject.limit.entry(b"key-%08d" % number, now_ns)
        row.arrive(1, now_ns)
        row.take(1, now_ns)
        row.tell(now_ns)
        for seq, node in enumerate(nodes):
            entry = (row.key64, 1, 1000 + number, 3, 12345, 2, 1600)
            row.hear(node, BOOT_MS, 100_000 + seq, entry, now_ns)
    size = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return size / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=NODES)
    parser.add_argument("--keys", type=int, default=KEYS)
    parser.add_argument("--seconds", type=int, default=SECONDS)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", help="the loads whose names begin so")
    arguments = parser.parse_args()
    found: dict[str, Any] = {}
    print(f"{arguments.nodes} nodes, {arguments.keys} keys of {RATE}/s: one node's part")
    print(
        f"{'load':24} {'MB/s':>6} {'reach':>6} {'core':>7} {'process':>8} {'reach':>6}  "
        "datagrams, entries out/in"
    )
    for case in CASES:
        if arguments.only and not case.name.startswith(arguments.only):
            continue
        turns = record(case, arguments.nodes, arguments.keys, arguments.seconds)
        costs = replay(case, arguments.nodes, turns, arguments.seconds)
        found[case.name] = costs
        shown = "-"
        try:
            process = live(case, arguments.nodes, arguments.keys, arguments.seconds)
        except BenchError as error:  # a machine too busy for so many processes
            print(error, file=sys.stderr)
        else:
            costs |= {f"process_{name}": part for name, part in process.items()}
            shown = f"{process['core']:.1%}"
            if process["unread"]:
                shown += f" ({process['unread']:.0f} datagrams/s unread)"
        print(
            f"{case.name:24} {costs['bytes_per_s'] / 1e6:6.2f} {case.bytes_max / 1e6:6.1f} "
            f"{costs['core']:7.1%} {shown:>8} {case.core_max:6.0%}  "
            f"{costs['datagrams_per_s']:.0f}/s, "
            f"{costs['entries_per_s']:.0f}/s, {costs['heard_per_s']:.0f}/s",
            flush=True,
        )
    alone, eight = row_bytes(0), row_bytes(8)
    found["row_bytes"], found["peer_bytes"] = alone, (eight - alone) / 8
    print(f"a row: {alone:.0f} B (reach 1,200); an active peer: {found['peer_bytes']:.0f} B (250)")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
