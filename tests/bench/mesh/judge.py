"""What the origin's stamps say: peaks, excess, share of the ideal. Pure.

Eight nodes, origin and load on two cores delay each other by tens of milliseconds, so every peak is
judged twice: by when requests arrived at the origin, and by when their clients sent them. What a
node really let through lies between the two.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from peers.sim import excess, ideal, peak

__all__ = ["SECOND", "judged", "medians", "passes", "percentile", "sliding_sum"]

SECOND = 1_000_000_000
ACCEPTED = 202


def passes(value: float, target: float, at_least: bool) -> bool:
    return value >= target if at_least else value <= target


def judged(
    requests: Sequence[Sequence[int]],
    stamps: Sequence[Sequence[int]],
    rate: float,
    burst: float,
    seconds: float,
    *,
    held: bool = False,
) -> dict[str, float]:
    """Figures of one run. `requests` are the load's (sent_ns, target, status, done_ns), `stamps`
    the origin's (arrived_ns, sent_ns); a window that is longer than the run is left out. What got
    neither 200, 202 nor 429 is lost, and counted by its status. With `held` arrival alone says what
    the limit did: the nodes kept requests for a while."""
    asked = [request[0] for request in requests]
    begin_ns = min(asked, default=0)
    end_ns = begin_ns + int(seconds * SECOND)
    accepted = {sent: done for sent, _, status, done in requests if status == ACCEPTED}
    if accepted:  # the rest of a queue is sent later
        stamps = [stamp for stamp in stamps if stamp[0] < end_ns]
    arrived = [stamp[0] for stamp in stamps]
    best = ideal(asked, rate, burst, 0, end_ns)
    found: dict[str, float] = {
        "asked": len(asked),
        "admitted": len(stamps),
        "share": len(stamps) / best if best else 1.0,
        "lost": 0,
    }
    for _, _, status, _ in requests:
        if status not in (200, ACCEPTED, 429):  # 0: no answer at all
            found["lost"] += 1
            found[f"status_{status}"] = found.get(f"status_{status}", 0) + 1
    took_ms = [
        (done - begun) / 1e6 for begun, _, status, done in requests if status in (200, ACCEPTED)
    ]
    # Sending may begin a moment before the client has read its 202.
    queued_ms = [max(0, at - accepted[sent]) / 1e6 for at, sent in stamps if sent in accepted]
    for name, values in (("", took_ms), ("queued_", queued_ms)):
        if values:
            found[f"{name}p50_ms"] = percentile(values, 50)
            found[f"{name}p99_ms"] = percentile(values, 99)
    judges = [("", arrived)]
    if not held:
        judges.append(("_sent", [stamp[1] for stamp in stamps]))
    for name, times in judges:
        for length in (1, 10):
            if seconds >= length:
                allowed = rate * length + burst
                found[f"peak_{length}s{name}"] = peak(times, length * SECOND) / allowed
        found[f"excess{name}"] = excess(times, rate, burst)
    return found


def medians(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    """The median of each figure over the rounds that have it."""
    names = {name: None for found in rounds for name in found}
    return {
        name: statistics.median(found[name] for found in rounds if name in found) for name in names
    }


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that so many percent do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def sliding_sum(stamps: Sequence[int], begin_ns: int, seconds: float) -> list[Any]:
    """(seconds since `begin_ns`, requests in the second before), twenty times a second."""
    ordered = sorted(stamps)
    points = []
    low = high = 0
    for step in range(int(seconds * 20) + 1):
        at_ns = begin_ns + step * SECOND // 20
        while high < len(ordered) and ordered[high] <= at_ns:
            high += 1
        while low < high and ordered[low] <= at_ns - SECOND:
            low += 1
        points.append((step / 20, high - low))
    return points
