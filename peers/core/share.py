"""What all counters have in common, and what one node knows of another's part in one."""

from __future__ import annotations

from math import expm1
from typing import Any

from peers.core.config import SECOND
from peers.core.wire import Kind

__all__ = ["Due", "Entry", "PeerShare", "Row"]

# A peer's rate is remembered as an average over 3 s: long enough to be a rate, short enough for
# a load that moves.
_PEER_RATE_TAU_NS = 3.0 * SECOND
# The average of a peer heard for a shorter time is over that time, but not over less than half a
# second, 1 - exp(-0.5 / 3): one token in a first interval of 1 ms is no rate of 1,000/s.
_PEER_RATE_WEIGHT_MIN = 0.15

# An entry as it travels: [key64, gen, count, delta, lam_100, waiting, level_16]. `count` are
# admissions so far, absolute; `delta` those since it last told; `lam_100` arrivals a second in
# hundredths; `waiting` the tokens that waiting requests want; `level_16` the level in sixteenths.
Entry = tuple[int, int, int, int, int, int, int]


class Due:
    """What a tick found to tell; a greater number goes first."""

    NOTHING = 0
    CALM = 1
    CONTENDED = 2


class Row:
    """One counter that the members keep together, as gossip and its table see it.

    `key64` is its name on the wire, `own` this node's admissions in tokens, monotone. `waiting`
    belongs to the caller. An `active` row is ticked by its table, an `urgent` one is told before
    its next tick. Entries are the items of `kind`'s frames.
    """

    __slots__ = ("active", "gen", "key", "key64", "own", "queued", "urgent", "used_ns", "waiting")

    kind: Kind

    def __init__(self, key: bytes, key64: int, gen: int, now_ns: int) -> None:
        self.key = key
        self.key64 = key64
        self.gen = gen
        self.own = 0
        self.queued = 0  # tokens that requests waiting here want
        self.waiting: Any = None
        self.active = False
        self.urgent = False
        self.used_ns = now_ns

    def wake(self, now_ns: int) -> None:
        """Has its table tick the row from now on."""
        raise NotImplementedError

    def tick(self, now_ns: int) -> int:
        """Brings the row up to date; returns what is Due."""
        raise NotImplementedError

    def tell(self, now_ns: int) -> tuple[int, ...]:
        """The entry for the wire as of now, and the note that it leaves now."""
        raise NotImplementedError

    def picture(self, now_ns: int) -> tuple[int, ...]:
        """The entry for a joiner, which notes nothing as told."""
        raise NotImplementedError

    def hear(self, node: bytes, boot: int, seq: int, entry: Any, now_ns: int) -> bool:
        """Takes a peer's entry in; False if it is not newer than what is held. `boot` and `seq`
        are its datagram's."""
        raise NotImplementedError

    def inherit(self, told: dict[bytes, tuple[int, int, Any, int]], now_ns: int) -> None:
        """What peers told before the row was made: boot, seq, entry, when."""
        for node, (boot, seq, entry, heard_ns) in told.items():
            self.hear(node, boot, seq, entry, heard_ns)

    def left_by_now(self, left: float, elapsed_ns: int) -> float:
        """What an upstream said was left so long ago, as of now."""
        raise NotImplementedError

    def hear_left(self, left: float, now_ns: int) -> None:
        """A peer was told by the upstream that `left` tokens are left."""
        raise NotImplementedError

    def forget_peer(self, node: bytes) -> None:
        """The peer is no longer a member."""
        raise NotImplementedError

    def level(self, now_ns: int) -> float:
        """Tokens taken and not free again; changes nothing."""
        raise NotImplementedError

    def fill(self, now_ns: int) -> None:
        """Nothing is free until it drains, or until news says otherwise."""
        raise NotImplementedError

    def presume(self, entry: Any, now_ns: int) -> None:
        """Corrects a level that was presumed full at a join, by a snapshot's entry."""
        raise NotImplementedError

    def joined(self, alone: bool, told: bool, now_ns: int) -> None:
        """No snapshot's entry will come any more: nobody is there who could have used tokens
        (`alone`), or all entries have come (`told`), or none did."""
        raise NotImplementedError

    @property
    def told_ns(self) -> int:
        """When it was told last."""
        raise NotImplementedError

    @property
    def fresh(self) -> int:
        """Own admissions not told yet."""
        raise NotImplementedError

    @property
    def news(self) -> bool:
        """Whether an entry now would say something that the last one did not."""
        raise NotImplementedError

    @property
    def at_rest(self) -> bool:
        """Nothing to tell and nobody to watch: needs no ticks until it is used or heard of."""
        raise NotImplementedError

    @property
    def pinned(self) -> bool:
        """Whether requests depend on it, so that it must not be thrown out."""
        return self.waiting is not None

    @property
    def mesh_count(self) -> int:
        """Tokens taken by all, as this node knows."""
        raise NotImplementedError

    @property
    def peers_rate(self) -> float:
        """What peers admit, in tokens per nanosecond."""
        raise NotImplementedError


class PeerShare:
    """What one peer told about one key."""

    __slots__ = (
        "_average",
        "_weight",
        "boot",
        "count",
        "demand",
        "excused",
        "gen",
        "heard_ns",
        "phantom",
        "rate",
        "seq",
    )

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
        self._average = 0.0  # of the rate, as if it had been 0 before it was heard
        self._weight = 0.0  # what part of an average's weight falls on the time it was heard in

    def note_rate(self, grown: int, now_ns: int) -> None:
        """It admitted so much since it was heard last.

        The average is corrected for its short start, as Adam's moments are (Kingma, Ba 2015,
        section 3): a partition soon after a load began is charged at the rate of that load.
        """
        elapsed_ns = now_ns - self.heard_ns
        if elapsed_ns <= 0 or self.demand == 0.0:  # how long it was idle says nothing of its rate
            return
        part = -expm1(-elapsed_ns / _PEER_RATE_TAU_NS)
        self._average += (grown / elapsed_ns - self._average) * part
        weight = self._weight = self._weight + (1.0 - self._weight) * part
        self.rate = self._average / max(weight, _PEER_RATE_WEIGHT_MIN)

    def rest(self) -> None:
        """It says that it is idle: its silence is no news, and its rate begins anew."""
        self.rate = 0.0
        self._average = 0.0
        self._weight = 0.0
