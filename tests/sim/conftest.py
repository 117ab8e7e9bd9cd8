"""Checkers: promises that are looked at after every step of every simulated node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from peers.core.config import SECOND
from peers.simnet import SimNode, Simulation


class CountersNeverShrink:
    """Own counts, and what is held of each life of each peer, only grow."""

    def __init__(self) -> None:
        self.held: dict[Any, Any] = {}
        self.steps = 0

    def __call__(self, bench: Simulation, sim: SimNode) -> None:
        self.steps += 1
        node = sim.node
        if node is None:
            return
        for limit in node._counters.limits():
            for row in limit.rows():
                name = (sim.number, sim.lives, row.key64, row.gen)
                self.grows(bench, name, row.own)
                for peer, share in row.peers.items():
                    told = (share.boot, share.gen, getattr(share, "count", share.seq))
                    self.grows(bench, (*name, peer), told)

    def grows(self, bench: Simulation, name: Any, value: Any) -> None:
        before = self.held.get(name, value)
        assert value >= before, f"seed {bench.seed}: {name} went from {before} to {value}"
        self.held[name] = value


class NobodyIsResurrected:
    """What a node holds of a member only moves upwards in (boot, incarnation, state), unless the
    member was forgotten meanwhile."""

    def __init__(self) -> None:
        self.held: dict[Any, Any] = {}

    def __call__(self, bench: Simulation, sim: SimNode) -> None:
        node = sim.node
        if node is None:
            return
        for member in node.members()[1:]:
            name = (sim.number, sim.lives, member.name)
            point = (member.boot, member.incarnation, member.state)
            before = self.held.get(name, point)
            assert point >= before, f"seed {bench.seed}: {name} went from {before} to {point}"
            self.held[name] = point


def timers_are_known(bench: Simulation, sim: SimNode) -> None:
    """What a node remembers of its timers is what they are, or nothing would wake it in time."""
    node = sim.node
    if node is not None and node._slow_wake_ns is not None:
        assert node._slow_wake_ns == node._reckon_slow_wake(), f"seed {bench.seed}"


class BoundIsKept:
    """One bucket that refuses nothing, fed with every admission: its level is what an upstream
    with the same limit would see, and it stays under burst + `over` at every moment."""

    def __init__(self, stamps: list[int], rate: float, burst: float, over: float) -> None:
        self.stamps = stamps
        self.rate = rate
        self.allowed = burst + over
        self.level = 0.0
        self.peak = 0.0
        self._read = 0
        self._last_ns = 0

    def __call__(self, bench: Simulation, sim: SimNode) -> None:
        while self._read < len(self.stamps):
            now_ns = self.stamps[self._read]
            self._read += 1
            drained = (now_ns - self._last_ns) * self.rate / SECOND
            self.level = max(0.0, self.level - drained) + 1.0
            self._last_ns = now_ns
            self.peak = max(self.peak, self.level)
            assert self.level <= self.allowed, (
                f"seed {bench.seed}: {self.level:.1f} tokens, {self.allowed:.1f} are allowed"
            )


@pytest.fixture
def watched() -> Callable[[Simulation], Simulation]:
    """Puts the checkers that always hold on a simulation."""

    def watch(bench: Simulation) -> Simulation:
        bench.checkers += [CountersNeverShrink(), NobodyIsResurrected(), timers_are_known]
        return bench

    return watch


@pytest.fixture
def bound() -> type[BoundIsKept]:
    return BoundIsKept
