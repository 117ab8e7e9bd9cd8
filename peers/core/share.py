"""What one node knows of another's part in one counter, and how it heard."""

from __future__ import annotations

__all__ = ["Due", "Entry", "PeerShare"]

# An entry as it travels: [key64, gen, count, delta, lam_100, waiting, level_16]. `count` are
# admissions so far, absolute; `delta` those since it last told; `lam_100` arrivals a second in
# hundredths; `waiting` the tokens that waiting requests want; `level_16` the level in sixteenths.
Entry = tuple[int, int, int, int, int, int, int]


class Due:
    """What a tick found to tell; a greater number goes first."""

    NOTHING = 0
    CALM = 1
    CONTENDED = 2


class PeerShare:
    """What one peer told about one key."""

    __slots__ = ("boot", "count", "demand", "excused", "gen", "heard_ns", "phantom", "rate", "seq")

    def __init__(self, boot: int, gen: int, now_ns: int) -> None:
        self.boot = boot
        self.gen = gen
        self.seq = -1
        self.count = 0
        self.demand = 0.0  # announced, in tokens per horizon
        self.rate = 0.0  # admitted, tokens per nanosecond
        self.heard_ns = now_ns
        self.phantom = 0.0  # charged on suspicion while it was silent
        self.excused = False  # it was beyond a partition that halved our rate instead
