"""What is read of nodes, origin and load, ten times a second, and the rates that follow from it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from gateway.clock import SECOND

__all__ = ["NodeReading", "Rates", "Reading"]

UPSTREAM = "api"  # as the demo's file names it
RATE_SPAN_NS = 1 * SECOND  # rates are over the last second, as the limit is


class NodeReading(NamedTuple):
    """The figures of one node's `/api/v1/node` that the demo shows."""

    name: str
    now_ns: int  # the node's own stamp of the reading
    requests: int
    admitted: int
    refused: int
    trials: int
    waiting: int
    reloads: int
    breaker: str
    remaining_ms: int
    opened_ns: int
    closed_ns: int

    @classmethod
    def of(cls, document: dict[str, Any]) -> NodeReading:
        """Raises KeyError for a document that is not a node's."""
        node = document["node"]
        upstream = document["upstreams"][UPSTREAM]
        breaker = upstream["breaker"]
        return cls(
            node["name"],
            node["now_ns"],
            upstream["requests"],
            upstream["admitted"],
            upstream["refused"] + upstream["paused"],
            upstream["trials"],
            upstream["waiting"],
            node["reloads"],
            breaker["state"],
            breaker["remaining_ms"],
            breaker["opened_ns"],
            breaker["closed_ns"],
        )


class Reading(NamedTuple):
    """All of it, read at about one time."""

    nodes: tuple[NodeReading, ...]
    origin: dict[str, int]
    load: dict[str, Any]

    @property
    def now_ns(self) -> int:
        return self.origin["now_ns"]

    @property
    def admitted(self) -> int:
        return sum(node.admitted for node in self.nodes)


class Rates:
    """Readings of the last second, and what went on in it."""

    def __init__(self) -> None:
        self._readings: deque[Reading] = deque()

    def add(self, reading: Reading) -> None:
        """Takes a reading in; those that are older than needed go."""
        readings = self._readings
        readings.append(reading)
        while len(readings) > 2 and readings[1].now_ns <= reading.now_ns - RATE_SPAN_NS:
            readings.popleft()

    def per_second(self, field: str) -> Sequence[float]:
        """The growth of a node's counter in one second, for each node; 0 before two readings."""
        newest = self._readings[-1]
        oldest = self._readings[0]
        rates = []
        for now, before in zip(newest.nodes, oldest.nodes, strict=True):
            span_ns = now.now_ns - before.now_ns
            grown: int = getattr(now, field) - getattr(before, field)
            rates.append(grown * SECOND / span_ns if span_ns > 0 else 0.0)
        return rates
