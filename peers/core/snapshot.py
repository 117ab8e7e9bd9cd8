"""What a joiner is told first, over TCP: pauses and counters of one member, in sealed records.

Until it comes a joiner's rows start full, so that a restart never opens with a fresh burst. A
request is tied to a session and its parts to the request's nonce, so neither can be replayed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice

from peers.core.breakers import Breakers
from peers.core.chance import Chance
from peers.core.errors import Drop, DropError
from peers.core.events import Address
from peers.core.gossip import Counters
from peers.core.keyring import Opened
from peers.core.members import Members
from peers.core.wire import (
    ENTRY_KINDS,
    ENVELOPE_BYTES,
    HEAD_BYTES_MAX,
    RECORD_BYTES_MAX,
    Head,
    Kind,
    Payload,
    pack,
)

__all__ = ["RECORDS_MAX", "Snapshots"]

# 256 records of 32 KiB are 8 MiB, some 280,000 counters: more than all tables of a node hold.
RECORDS_MAX = 256
_PART_BYTES = 16
_FRAME_BYTES_MAX = RECORD_BYTES_MAX - ENVELOPE_BYTES - HEAD_BYTES_MAX - _PART_BYTES


class Snapshots:
    """Both sides of the exchange; the bytes are moved, and framed, by a driver."""

    def __init__(
        self,
        members: Members,
        counters: Counters,
        breakers: Breakers,
        seal: Callable[[Sequence[bytes]], bytes],
        chance: Chance,
    ) -> None:
        self._members = members
        self._counters = counters
        self._breakers = breakers
        self._seal = seal
        self._chance = chance
        self._nonce = b""
        self._asked: set[bytes] = set()
        self._pending = False
        self._node = b""
        self.answered = 0

    def target(self) -> Address | None:
        """Whom to ask next: one at a time, and each at most once."""
        if self._pending:
            return None
        for member in self._members.live:
            if member.node not in self._asked:
                self._asked.add(member.node)
                self._node = member.node
                self._pending = True
                return member.address
        return None

    def failed(self) -> None:
        """The one asked did not answer, or not well: the next one may be asked."""
        self._pending = False

    def request(self) -> bytes:
        self._nonce = self._chance.getrandbits(64).to_bytes(8, "big")
        return self._seal((pack((Kind.SNAPSHOT_REQUEST, self._nonce)),))

    def answer(self, payload: Payload, now_ns: int) -> Iterator[bytes]:
        """Sealed records for a request that was found good. Raises DropError."""
        frames = payload.frames
        if len(frames) != 1 or frames[0][0] != Kind.SNAPSHOT_REQUEST:
            raise DropError(Drop.GARBAGE)
        self.answered += 1
        return self._records(frames[0][1], now_ns)

    def _records(self, nonce: bytes, now_ns: int) -> Iterator[bytes]:
        more = pack((Kind.SNAPSHOT_PART, nonce, 0))
        frames = chain(
            self._breakers.snapshot(now_ns, _FRAME_BYTES_MAX),
            self._counters.snapshot(now_ns, _FRAME_BYTES_MAX),
        )
        for frame in islice(frames, RECORDS_MAX - 1):
            yield self._seal((more, frame))
        yield self._seal((pack((Kind.SNAPSHOT_PART, nonce, 1)),))

    def receive(self, head: Head, opened: Opened, payload: Payload, now_ns: int) -> bool:
        """One record of the answer; True if it was the last. Raises DropError."""
        frames = payload.frames
        if not frames or frames[0][0] != Kind.SNAPSHOT_PART or head.node != self._node:
            raise DropError(Drop.GARBAGE)
        _, nonce, last = frames[0]
        if nonce != self._nonce:
            raise DropError(Drop.REPLAYED)
        for frame in frames[1:]:
            if frame[0] == Kind.BREAKERS:
                self._breakers.events_heard(frame[1:], now_ns, forward=False)
            elif frame[0] in ENTRY_KINDS:
                kind, *entries = frame
                self._counters.snapshot_heard(
                    kind, head.node, head.boot, opened.seq, entries, now_ns
                )
        return bool(last)
