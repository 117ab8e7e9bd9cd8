"""The one-way delay that the horizon is made of: its 99th percentile, measured.

News is surely with a peer after D. Too small a D lets two nodes spend a token twice, too large a D
keeps tokens reserved for longer than needed (D of a horizon of 1.1 cadence + D).
"""

from __future__ import annotations

from peers.core.config import Config

__all__ = ["DelayMeter"]

# At one probe per 200 ms, 256 samples remember 51 s and hold two above the 99th percentile.
_SAMPLES = 256
# Below this many, the largest sample says little about a percentile.
_SAMPLES_MIN = 20


class DelayMeter:
    """Half of each round trip plus the lag with which our own loop woke."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._samples: list[int] = []
        self._next = 0
        self.lag_ns = 0  # how late the last timer was

    def add_round_trip(self, rtt_ns: int) -> None:
        sample = rtt_ns // 2 + self.lag_ns
        if len(self._samples) < _SAMPLES:
            self._samples.append(sample)
        else:
            self._samples[self._next] = sample
            self._next = (self._next + 1) % _SAMPLES

    def p99_ns(self) -> int:
        """D, within the configured bounds."""
        config = self._config
        if len(self._samples) < _SAMPLES_MIN:
            measured = max([config.delay_initial_ns, *self._samples])
        else:
            ordered = sorted(self._samples)
            measured = ordered[(len(ordered) * 99 - 1) // 100]
        return max(config.delay_min_ns, min(config.delay_max_ns, measured))
