"""What one admission costs: the gateway's limits beside libraries and a store, on one core.

    PYTHONPATH=tests python -m bench.admission [--quick] [--work DIR]

An admission is what a request pays: find the row of every limit, ask all, take from all. Keys are
walked round, so that with 100,000 of them no row is in the processor's caches; the clock is an
argument and goes on by 10 us a request. Mesh rows have eight live peers that have all told their
demand, and own news on its way; ticking and sending are timed apart, because they happen so many
times a second and not per request (`peers` has its own figures for them).

The rivals (`limits`, `pyrate-limiter`, Redis with GCRA in Lua) run in a process and a virtual
environment of their own. Python's own loop (about 25 ns) is in every figure.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from bench.central import BATCHES as BATCHES_CENTRAL
from bench.central import store_figures
from bench.packages import install, virtual_environment, which
from bench.process import BenchError, Process, wait_for_port
from fakes.nodes import free_port

from gateway.clock import monotonic_ns
from gateway.limits.gcra import Gcra
from gateway.limits.policy import LimitSet, Rule
from gateway.limits.verdict import Limit
from peers.core.config import SECOND, Config
from peers.core.counters import Rule as MeshRule
from peers.core.counters import Surroundings
from peers.core.gossip import Counters
from peers.core.outbox import Outbox
from peers.core.wire import Kind

__all__ = ["Figure", "Subject", "local_set", "measure", "mesh_set"]

RIVALS = ("limits", "pyrate-limiter", "redis", "hiredis")
STEP_NS = 10_000  # 100,000 requests/s: more than any node here can pass on
COUNT = 1_000_000  # tokens a second: never full, so that what is timed is the usual case
BURST = 100_000
PEERS = 8
DELAY_NS = 2_500_000  # one way, 99th percentile on a LAN (MESH.md)
BATCH = 5_000  # 50 ms: at most two cadences without news, as on a busy loop
BATCHES = 24
MESH_KEYS_MAX = 120_000
TICKS_MAX = 10_000  # between two batches; 3 x 100,000 rows at 250 a turn need 1,200


class Figure(NamedTuple):
    """Nanoseconds of one admission: the fastest batch, and the median one."""

    what: str
    limits: int
    keys: int
    best_ns: float
    median_ns: float


class Subject(NamedTuple):
    """A set of limits, and what must happen between batches."""

    limit_set: LimitSet
    settle: Callable[[int], None]


def _rules(limits: Sequence[Limit]) -> list[Rule]:
    return [Rule(limit, COUNT, SECOND) for limit in limits]


def _nothing(now_ns: int) -> None:
    """A local limit has no life of its own."""


def local_set(limits: int) -> Subject:
    """Smooth limits of one node."""
    made: list[Limit] = [
        Gcra(f"limit-{i}", COUNT, SECOND, BURST, keys_max=MESH_KEYS_MAX) for i in range(limits)
    ]
    return Subject(LimitSet(_rules(made)), _nothing)


def mesh_set(limits: int, keys: Sequence[bytes], now_ns: int, peers: int = PEERS) -> Subject:
    """Smooth limits of nodes in a mesh: every row has heard of all `peers`."""
    config = Config(name="a", cluster="bench", bind=("127.0.0.1", 1), advertise=("127.0.0.1", 1))
    outbox = Outbox()
    members = peers + 1
    surroundings = Surroundings(members, members, DELAY_NS)
    counters = Counters(config, random.Random(7), outbox, surroundings, now_ns)
    made = [
        counters.limit(
            f"identity-{i}",
            MeshRule(COUNT, SECOND, BURST),
            name=f"limit-{i}",
            on_partition="share",
            keys_max=MESH_KEYS_MAX,
            dry_run=False,
        )
        for i in range(limits)
    ]
    # The demand of all peers together is a fifth of the rate, spread over the keys.
    lam_100 = max(1, COUNT * 100 // 5 // max(1, peers) // len(keys))
    for limit in made:
        for key in keys:
            entry = (limit.entry(key, now_ns).key64, 1, 1, 1, lam_100, 0, 0)
            for peer in range(peers):
                counters.entries_heard(Kind.COUNTERS, b"peer-%03d" % peer, 1, 1, [entry], now_ns)

    def settle(now_ns: int) -> None:
        """Ticks that are due, and what they tell; nothing is sent."""
        for _ in range(TICKS_MAX):
            if counters.next_wake_ns(now_ns) > now_ns:
                break
            counters.tick(now_ns)
            counters.flush(now_ns, peers)
            outbox.drain(lambda frames: b"", [])

    return Subject(LimitSet(_rules(made)), settle)


def measure(
    what: str, subject: Subject, limits: int, keys: Sequence[bytes], batches: int = BATCHES
) -> Figure:
    """Times batches of admissions, key after key. Raises BenchError where one was refused."""
    limit_set = subject.limit_set
    now_ns = 1_000 * SECOND
    each = [(key,) * limits for key in keys]
    costs = (1,) * limits
    for key in each:  # rows are made, and made known, before anything is timed
        limit_set.admit(limit_set.rows(key, now_ns), costs, now_ns)
    took: list[float] = []
    at = 0
    for _ in range(batches):
        subject.settle(now_ns)
        window = [each[(at + i) % len(each)] for i in range(BATCH)]
        at += BATCH
        begun = time.perf_counter_ns()
        for key in window:
            now_ns += STEP_NS
            entries = limit_set.rows(key, now_ns)
            if limit_set.admit(entries, costs, now_ns) is not None:
                raise BenchError(f"{what}: a limit far above the load refused")
        took.append((time.perf_counter_ns() - begun) / BATCH)
    took.sort()
    return Figure(what, limits, len(keys), took[0], took[len(took) // 2])


def own_figures(keys_many: int, batches: int) -> list[Figure]:
    """The gateway's own limits. Garbage of one is collected before the next is built."""
    found = []
    for limits in (1, 3):
        for count in (1, keys_many):
            keys = [b"key-%06d" % i for i in range(count)]
            subject = local_set(limits)
            found.append(measure("local rows", subject, limits, keys, batches))
            subject = mesh_set(limits, keys, 1_000 * SECOND)
            found.append(measure("mesh rows, 8 peers", subject, limits, keys, batches))
            del subject
            gc.collect()
    return found


def central_figures(port: int, keys_many: int, batches: int) -> list[Figure]:
    """Limits with `sync = "redis"` and the mesh's behind them (`bench.central`)."""
    found = []
    for limits in (1, 3):
        for count in (1, keys_many):
            keys = [b"key-%06d" % i for i in range(count)]
            behind = mesh_set(limits, keys, monotonic_ns()).limit_set.limits
            rows = store_figures(port, limits, keys, behind, COUNT, min(batches, BATCHES_CENTRAL))
            found += [Figure(what, limits, count, *times) for what, *times in rows]
    return found


def rival_figures(folder: Path, keys_many: int) -> tuple[list[Figure], list[str]]:
    """What the others cost, and why some are missing."""
    absent = []
    figures: list[Figure] = []
    environment = folder / "venv-rivals"
    why = virtual_environment(environment, RIVALS)
    if why:
        return [], [why]
    python = str(environment / "bin" / "python")
    argv = [python, str(Path(__file__).with_name("rivals.py")), "--keys", str(keys_many)]
    server: Process | None = None
    why = install(["redis-server"])
    if why:
        absent.append(why)
    else:
        port = free_port()
        program = which("redis-server") or "redis-server"
        options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        core = max(os.sched_getaffinity(0))
        server = Process([program, *options], core, folder / "redis.log")
        wait_for_port(server, port)
        argv += ["--redis-port", str(port)]
    try:
        if server is not None:
            figures = central_figures(port, keys_many, BATCHES)
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=600)
    finally:
        if server is not None:
            server.stop()
    if done.returncode:
        return figures, [*absent, done.stderr.strip()[-500:]]
    return [*figures, *(Figure(*row) for row in json.loads(done.stdout))], absent


def lines_of(figures: Sequence[Figure]) -> list[str]:
    """A Markdown table; times in nanoseconds."""
    lines = [
        "| admission                                | limits |    keys | best ns | median ns "
        "| admissions/s |",
        "|------------------------------------------|-------:|--------:|--------:|----------:"
        "|-------------:|",
    ]
    lines += [
        f"| {figure.what:<40} | {figure.limits:>6} | {figure.keys:>7,} "
        f"| {figure.best_ns:>7,.0f} | {figure.median_ns:>9,.0f} "
        f"| {1e9 / figure.median_ns:>12,.0f} |"
        for figure in figures
    ]
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description="nanoseconds per admission")
    parser.add_argument("--quick", action="store_true", help="few keys, no rivals")
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep the work folder, for reuse")
    options = parser.parse_args()
    keys_many = 1_000 if options.quick else 100_000
    figures = own_figures(keys_many, 3 if options.quick else BATCHES)
    absent: list[str] = []
    if not options.quick:
        with tempfile.TemporaryDirectory(prefix="egressd-bench-") as temporary:
            folder = options.work.resolve() if options.work else Path(temporary)
            folder.mkdir(parents=True, exist_ok=True)
            rivals, absent = rival_figures(folder, keys_many)
        figures += rivals
    print("\n".join(lines_of(figures)))
    for why in absent:
        print(f"absent: {why}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
