"""Shapes of load: which node is asked how much, and when; for the simulator and for real runs.

A shape is a list of steps. What is at stake differs with each: a load that moves asks whether one
node may use the whole rate, a cold start whether N nodes spend N bursts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

__all__ = ["SHAPES", "Step", "steps_of"]

# A load stays so long before it moves: five times the 0.3 s by which demand is averaged, and long
# enough that what the move costs can be told from what follows.
_STAY_S = 5.0
# Idle for so long, then busy for so long; a bucket of one second's rate fills while it is idle.
_IDLE_S = 5.0


class Step(NamedTuple):
    """From `at_s` on each node is asked its part of the offered rate; the parts sum to 1 or to 0.

    `burst`: beside that every node is asked burst + 1 tokens within 5 ms of the step.
    """

    at_s: float
    parts: tuple[float, ...]
    burst: bool = False


def _uniform(nodes: int, seconds: float) -> list[Step]:
    return [Step(0.0, _even(nodes))]


def _skew(nodes: int, seconds: float) -> list[Step]:
    rest = max(1, nodes - 2)
    weights = ([0.7, 0.2] + [0.1 / rest] * rest)[:nodes]
    return [Step(0.0, tuple(weight / sum(weights) for weight in weights))]


def _moving(nodes: int, seconds: float) -> list[Step]:
    moves = max(1, int(seconds / _STAY_S + 0.5))
    return [
        Step(move * _STAY_S, tuple(float(node == move % nodes) for node in range(nodes)))
        for move in range(moves)
    ]


def _cold(nodes: int, seconds: float) -> list[Step]:
    return [Step(0.0, _even(nodes), burst=True)]


def _idle_burst(nodes: int, seconds: float) -> list[Step]:
    steps = []
    at_s = 0.0
    while at_s < seconds:
        steps.append(Step(at_s, (0.0,) * nodes))
        steps.append(Step(at_s + _IDLE_S, _even(nodes), burst=True))
        at_s += 2 * _IDLE_S
    return steps


def _even(nodes: int) -> tuple[float, ...]:
    return (1.0 / nodes,) * nodes


# Name: what it is, and its steps.
SHAPES: dict[str, tuple[str, Callable[[int, float], list[Step]]]] = {
    "uniform": ("the same at every node", _uniform),
    "skew": ("70 % at one node, 20 % at another, 10 % at the rest", _skew),
    "moving": (f"all at one node, after {_STAY_S:.0f} s at the next", _moving),
    "cold": ("all nodes asked for the whole burst in the same 5 ms, then uniform", _cold),
    "idle-burst": (f"{_IDLE_S:.0f} s idle, then a cold start, again and again", _idle_burst),
}


def steps_of(shape: str, nodes: int, seconds: float) -> list[Step]:
    """The steps of a shape of SHAPES over so many nodes and seconds, in order; those that would
    begin after the end are left out."""
    return [step for step in SHAPES[shape][1](nodes, seconds) if step.at_s < seconds]
