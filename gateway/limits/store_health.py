"""Whether a central store is used: down at the first doubt, up again only after some good answers.

A table of two states, with time and chance as arguments:

    state  what happens      next   when
    down   answered          up     GOOD_MIN answers in a row, `hold_ns` after it went down
    down   failed            down   the next try is `retry_ns` later, twice as long each time
    up     failed            down   at once: whoever asked is decided by the mesh

A store that comes and goes would switch all limits with each turn: one that lasted less than
STEADY_NS is held off twice as long the next time. At the first start one answer is enough.
"""

from __future__ import annotations

from typing import Final

__all__ = ["GOOD_MIN", "HOLD_MAX_NS", "HOLD_MIN_NS", "PROBE_NS", "STEADY_NS", "Health"]

_MS = 1_000_000

GOOD_MIN: Final = 3
PROBE_NS: Final = 50 * _MS  # between two probes of a store that answers: three take 100 ms
HOLD_MIN_NS: Final = 250 * _MS
HOLD_MAX_NS: Final = 8_000 * _MS
STEADY_NS: Final = 10_000 * _MS
RETRY_MIN_NS: Final = 50 * _MS
RETRY_MAX_NS: Final = 1_000 * _MS  # nobody waits for it; a second more on the mesh is no harm


class Health:
    """The state of one store. `up` is what is asked per request."""

    __slots__ = ("_ever", "_good", "_hold_ns", "_retry_ns", "changed_ns", "up")

    def __init__(self, now_ns: int) -> None:
        self.up = False
        self.changed_ns = now_ns
        self._ever = False
        self._good = 0
        self._hold_ns = HOLD_MIN_NS
        self._retry_ns = RETRY_MIN_NS

    def answered(self, now_ns: int) -> bool:
        """A probe was answered in time; True: the store is up from now on."""
        if self.up:
            return False
        self._good += 1
        if self._ever and (self._good < GOOD_MIN or now_ns - self.changed_ns < self._hold_ns):
            return False
        self.up = self._ever = True
        self.changed_ns = now_ns
        self._retry_ns = RETRY_MIN_NS
        return True

    def failed(self, now_ns: int) -> bool:
        """An answer was late, wrong or never came; True: the store is down from now on."""
        self._good = 0
        if not self.up:
            return False
        steady = now_ns - self.changed_ns >= STEADY_NS
        self._hold_ns = HOLD_MIN_NS if steady else min(HOLD_MAX_NS, 2 * self._hold_ns)
        self.up = False
        self.changed_ns = now_ns
        return True

    def retry_ns(self, x: float) -> int:
        """How long to wait before the next try, with chance 0 <= x < 1: a half to the whole."""
        retry_ns = self._retry_ns
        self._retry_ns = min(RETRY_MAX_NS, 2 * retry_ns)
        return int(retry_ns * (1.0 + x) / 2)
