"""How the rate comes back after a throttle.

An API that throttles at a rate that its operator thought allowed has another limit than the one
configured. Going back to the full rate at once finds that out again and again: simulated with a
true limit of 60/s behind a configured 100/s it met 540 throttles in 300 s, a linear climb of 10 s
met 92, and what is done here met 18: start at 0.7 of the rate that succeeded before the throttle
and grow by 2 % a second.
"""

from __future__ import annotations

__all__ = ["Ramp"]

_BACK = 0.7
_GROWTH_PER_S = 1.02
_SECOND_NS = 1_000_000_000

# A client that asked for little measures little. From a fiftieth the full rate is back after
# ln(50) / ln(1.02) = 198 s; without a floor a single request a minute would cost ten minutes.
_FACTOR_MIN = 0.02

# The linear climb has to begin above nothing, or the first request would wait for ever.
_LINEAR_MIN = 0.05


class Ramp:
    """The factor, 0 < factor <= 1, that scales every smooth limit of an upstream.

    `full_per_s` is the configured rate that factor 1 stands for: the upstream's most generous
    smooth limit; 0 where it has none. Then nothing can be learned, and only the linear climb
    remains.
    """

    __slots__ = ("_from", "_full_per_s", "_linear", "_next", "_ramp_ns", "_since_ns")

    def __init__(self, full_per_s: float, ramp_ns: int) -> None:
        self._full_per_s = full_per_s
        self._ramp_ns = ramp_ns
        self._since_ns: int | None = None  # None: not climbing
        self._from = 1.0
        self._linear = False
        self._next: float | None = None  # what to start from at the close, as a factor

    def configure(self, full_per_s: float, ramp_ns: int) -> None:
        """New figures after a reload. What was learned is a rate of the upstream's, in tokens a
        second, so a climb under way goes on from where it is, whatever share of the new rate."""
        if full_per_s > 0 and self._full_per_s > 0 and full_per_s != self._full_per_s:
            change = self._full_per_s / full_per_s
            if self._next is not None:
                self._next = min(1.0, max(_FACTOR_MIN, self._next * change))
            if not self._linear:
                self._from = max(_FACTOR_MIN, self._from * change)
        self._full_per_s = full_per_s
        self._ramp_ns = ramp_ns

    @property
    def scales(self) -> bool:
        """Whether there is a smooth limit that the factor scales."""
        return self._full_per_s > 0

    @property
    def climbing(self) -> bool:
        return self._since_ns is not None

    @property
    def learned_per_s(self) -> float | None:
        """The rate that the climb starts from: what goes to peers as reff; None: not measured."""
        factor = self._next
        if factor is None and self._since_ns is not None and not self._linear:
            factor = self._from
        return None if factor is None else factor * self._full_per_s

    def throttled(self, measured_per_s: float | None, now_ns: int) -> None:
        """A pause begins; `measured_per_s` is the rate that succeeded before it, if known."""
        if measured_per_s is None or self._full_per_s <= 0:
            return
        now = self.factor(now_ns)
        learned = _BACK * min(now, measured_per_s / self._full_per_s)
        learned = max(_FACTOR_MIN, learned)
        self._next = learned if self._next is None else min(self._next, learned)

    def adopt(self, reff_per_s: float, now_ns: int) -> None:
        """A peer's learned rate: the smaller one is used by all. Nonsense is ignored."""
        if self._full_per_s <= 0 or not 0.0 < reff_per_s < self._full_per_s:
            return
        factor = max(_FACTOR_MIN, reff_per_s / self._full_per_s)
        if self._next is None or factor < self._next:
            self._next = factor

    def closed(self, now_ns: int) -> None:
        """The pause is over: the climb begins."""
        self._since_ns = now_ns
        self._linear = self._next is None
        if self._next is not None:
            self._from = self._next
            self._next = None

    def climb(self, now_ns: int) -> float:
        """The factor for the limits from now on; at 1 the climb is over. Whoever only looks
        calls `factor`: a climb that ended unseen would leave the limits where they were."""
        factor = self.factor(now_ns)
        if factor >= 1.0:
            self._since_ns = None
        return factor

    def factor(self, now_ns: int) -> float:
        """The share of the configured rates that holds now; changes nothing."""
        if self._since_ns is None:
            return 1.0
        elapsed_ns = max(0, now_ns - self._since_ns)
        if self._linear:
            factor = elapsed_ns / self._ramp_ns if elapsed_ns < self._ramp_ns else 1.0
            factor = max(_LINEAR_MIN, factor)
        else:
            # Capped in time before the power is taken: 1.02 ** 1e6 is no float.
            factor = self._from * _GROWTH_PER_S ** min(elapsed_ns / _SECOND_NS, 1_000.0)
        return min(1.0, factor)
