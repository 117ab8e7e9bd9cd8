"""What a limit in a central store costs: one admission, alone and among others of the same turn.

The gateway's own half with a real Redis on loopback: the question is packed, sent, answered, read,
and the request asked once more, which takes what was granted. "One at a time" is the round trip
that `sync = "redis"` adds to a request; "64 a turn" is what a busy worker pays, because questions
of one turn share a write, a read and a wake-up. Redis runs on the same machine, as in `rivals`.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import uvloop
from bench.process import BenchError

from gateway.clock import SECOND
from gateway.conf.schema import Redis
from gateway.connectors.redis_store import RedisStore
from gateway.limits.central import CentralLimit
from gateway.limits.policy import LimitSet, Rule
from gateway.proxy import central
from gateway.proxy.admission import Admittee
from gateway.proxy.graph import CentralUse, Upstream, Worker

__all__ = ["BATCHES", "store_figures"]

A_TURN = 64
BATCH = 2_048
BATCHES = 12


class Asker(Admittee):
    """The half of an exchange that waits, without the one that moves octets."""

    def __init__(self, worker: Worker, upstream: Upstream, keys: tuple[bytes, ...]) -> None:
        super().__init__(worker, SimpleNamespace(), "", frozenset())  # type: ignore[arg-type]
        self.upstream = upstream
        self.keys = keys
        self.costs = (1,) * len(keys)
        self.done = 0
        self.wanted = asyncio.Event()

    def ask(self) -> None:
        """The hot part of `admission._ask`, twice: before the answer and after it."""
        now_ns = self.worker.now_ns()
        limit_set = self.upstream.limit_set
        entries = limit_set.rows(self.keys, now_ns)
        if central.question(self, entries, now_ns) is not None:
            return
        if limit_set.admit(entries, self.costs, now_ns) is not None:
            raise BenchError("redis: a limit far above the load refused")
        self.wanted.set()

    def asked_centrally(self, now_ns: int) -> None:
        self.ask()


def _upstream(store: RedisStore, limits: int, inner: Sequence[Any], count: int) -> Upstream:
    made = []
    for number in range(limits):
        limit = CentralLimit(inner[number], store, b"bench-%d" % number, 200_000)
        limit.configure(count, SECOND, count, window=False, aligned=False)
        made.append(limit)
    upstream = Upstream()
    upstream.limit_set = LimitSet([Rule(limit, count, SECOND) for limit in made])
    upstream.central = tuple(CentralUse(number, False) for number in range(limits))
    upstream.fixed_keys = None
    return upstream


async def _measure(
    port: int, limits: int, keys: Sequence[bytes], inner: Sequence[Any], count: int, batches: int
) -> tuple[list[float], list[float], list[float]]:
    """(ns each at 64 a turn by batch, the processor's part of it, ns one at a time)."""
    codec: Any = SimpleNamespace(name="none")
    worker = Worker(asyncio.get_running_loop(), codec, b"bench", random.random)
    waitroom: Any = SimpleNamespace(exchanges=list, poke=lambda row: None)
    worker.waitroom = waitroom
    store = RedisStore(worker, lambda event, **facts: None)
    worker.store = store
    conf = {"url": f"redis://127.0.0.1:{port}", "timeout": "1s"}
    store.configure(Redis.model_validate(conf))
    try:
        await store.first_try()
        if not store.up:
            raise BenchError("redis: not up")
        upstream = _upstream(store, limits, inner, count)
        askers = [Asker(worker, upstream, (key,) * limits) for key in keys]
        each: list[float] = []
        cpu: list[float] = []
        alone: list[float] = []
        at = 0
        for _ in range(batches):
            begun, used = time.perf_counter_ns(), time.process_time_ns()
            for _ in range(BATCH // A_TURN):
                turn = [askers[(at + i) % len(askers)] for i in range(A_TURN)]
                at += A_TURN
                for asker in turn:
                    asker.wanted.clear()
                    asker.ask()
                for asker in turn:
                    await asker.wanted.wait()
            each.append((time.perf_counter_ns() - begun) / BATCH)
            cpu.append((time.process_time_ns() - used) / BATCH)
            for asker in turn * 4:
                begun = time.perf_counter_ns()
                asker.wanted.clear()
                asker.ask()
                await asker.wanted.wait()
                alone.append(float(time.perf_counter_ns() - begun))
        if store.counts["falls"]:
            raise BenchError("redis: it fell while it was measured")
        return each, cpu, alone
    finally:
        await store.stop()


def store_figures(
    port: int, limits: int, keys: Sequence[bytes], inner: Sequence[Any], count: int, batches: int
) -> list[tuple[str, float, float]]:
    """Rows of (what, best or p50, median or p99), in nanoseconds. `inner` are the limits behind."""
    distinct = keys if len(keys) >= A_TURN else list(keys) * A_TURN
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        each, cpu, alone = runner.run(_measure(port, limits, distinct, inner, count, batches))
    for took in (each, cpu, alone):
        took.sort()
    half, last = len(each) // 2, len(alone) * 99 // 100
    return [
        ("sync redis, 64 a turn", each[0], each[half]),
        ("the same, our processor time", cpu[0], cpu[half]),
        ("sync redis, one at a time: p50, p99", alone[len(alone) // 2], alone[last]),
    ]
