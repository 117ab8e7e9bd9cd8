"""How long things took, as counts in buckets: two additions and one search per observation.

The bounds begin where the gateway's own part ends (0.3 ms at half load), and end with the longest
time that an answer may take (`timeout.response`, a minute where the file says nothing).
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

__all__ = ["BOUNDS_NS", "Histogram"]

_MS: Final = 1_000_000
BOUNDS_NS: Final = (
    1 * _MS,
    2_500_000,
    5 * _MS,
    10 * _MS,
    25 * _MS,
    50 * _MS,
    100 * _MS,
    250 * _MS,
    500 * _MS,
    1_000 * _MS,
    2_500 * _MS,
    5_000 * _MS,
    10_000 * _MS,
    30_000 * _MS,
    60_000 * _MS,
)


class Histogram:
    """Durations in nanoseconds; `counts` has one more element than the bounds, for the longest."""

    __slots__ = ("counts", "sum_ns")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_NS) + 1)
        self.sum_ns = 0

    def observe(self, duration_ns: int) -> None:
        """One duration; a bound belongs to the bucket below it (Prometheus: `le`)."""
        self.counts[bisect_left(BOUNDS_NS, duration_ns)] += 1
        self.sum_ns += duration_ns
