"""How long a member that does not answer stays a suspect before it is dead.

Lifeguard's dynamic suspicion timeout (Dadgar, Phillips, Currey 2017, section IV-B): it starts long
and shrinks with the logarithm of the number of members that independently suspect the same one, so
that a single slow observer needs company to kill.
"""

from __future__ import annotations

import math

from peers.core.config import Config

__all__ = ["Suspicion"]


class Suspicion:
    """One suspect's timer. `confirm` is idempotent for each accuser."""

    __slots__ = ("_accusers", "_max_ns", "_min_ns", "_needed", "_start_ns")

    def __init__(self, config: Config, live_count: int, accuser: bytes, now_ns: int) -> None:
        scale = max(1.0, math.log10(max(1, live_count)))
        self._min_ns = int(config.suspicion_mult * scale * config.probe_interval_ns)
        self._max_ns = self._min_ns * config.suspicion_max_mult
        # memberlist's k = mult - 2 confirmations; with fewer others than that nobody can confirm.
        needed = config.suspicion_mult - 2
        self._needed = needed if live_count - 2 >= needed else 0
        self._accusers = {accuser}
        self._start_ns = now_ns

    def confirm(self, accuser: bytes) -> bool:
        """One more accuser; True if it was a new one and there was need of it."""
        if accuser in self._accusers or len(self._accusers) > self._needed:
            return False
        self._accusers.add(accuser)
        return True

    @property
    def deadline_ns(self) -> int:
        """When the suspect is dead."""
        if self._needed == 0:
            return self._start_ns + self._min_ns
        confirmations = len(self._accusers) - 1
        part = math.log(confirmations + 1) / math.log(self._needed + 1)
        span = int(part * (self._max_ns - self._min_ns))
        return self._start_ns + max(self._min_ns, self._max_ns - span)
