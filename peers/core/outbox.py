"""Frames that wait to leave, and how they are packed into datagrams.

A frame goes to one address or to all live members. What goes to all is sealed once and sent as the
same bytes, because a seal costs more than a send. Frames keep their order of urgency: breakers
first, then the rest as queued.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from peers.core.events import Address
from peers.core.wire import FRAMES_BYTES_MAX

__all__ = ["Outbox"]

# Answers to strangers in one turn; a flood of them gets no more datagrams from us than this.
_STRANGERS_MAX = 64
# Addresses whose share of what was sent is kept: those of 32 members, and some of former ones.
_ADDRESSES_MAX = 64


class Outbox:
    """Frames by destination. `bytes_sent` and `datagrams_sent` count what `drain` gave out, `sent`
    the same for the members' addresses."""

    def __init__(self) -> None:
        self._to_all: list[bytes] = []
        self._to_one: dict[Address, list[bytes]] = {}
        self._strangers: dict[Address, bytes] = {}
        self.datagrams_sent = 0
        self.bytes_sent = 0
        self.sent: dict[Address, tuple[int, int]] = {}  # datagrams, bytes

    def send(self, address: Address, frame: bytes) -> None:
        self._to_one.setdefault(address, []).append(frame)

    def send_all(self, frame: bytes) -> None:
        self._to_all.append(frame)

    def answer_stranger(self, address: Address, frame: bytes) -> None:
        """One small frame to an address that has proved nothing yet; the last one counts."""
        if address in self._strangers or len(self._strangers) < _STRANGERS_MAX:
            self._strangers[address] = frame

    @property
    def waiting(self) -> bool:
        return bool(self._to_all or self._to_one or self._strangers)

    def drain(
        self, seal: Callable[[Sequence[bytes]], bytes], live: Sequence[Address]
    ) -> list[tuple[bytes, Address]]:
        """Everything that waits, as sealed datagrams with their addresses."""
        datagrams: list[tuple[bytes, Address]] = []
        to_all = [seal(frames) for frames in _parcels(self._to_all)]
        for data in to_all:
            datagrams.extend((data, address) for address in live)
        if to_all:
            size = sum(map(len, to_all))
            for address in live:
                self._count(address, len(to_all), size)
        for address, unicast in self._to_one.items():
            to_one = [seal(frames) for frames in _parcels(unicast)]
            datagrams.extend((data, address) for data in to_one)
            if address in self.sent:
                self._count(address, len(to_one), sum(map(len, to_one)))
        for address, frame in self._strangers.items():
            datagrams.append((seal((frame,)), address))
        self._to_all = []
        self._to_one = {}
        self._strangers = {}
        self.datagrams_sent += len(datagrams)
        self.bytes_sent += sum(len(data) for data, _ in datagrams)
        return datagrams

    def _count(self, address: Address, datagrams: int, size: int) -> None:
        before = self.sent.get(address)
        if before is None:
            if len(self.sent) >= _ADDRESSES_MAX:
                del self.sent[next(iter(self.sent))]
            before = (0, 0)
        self.sent[address] = (before[0] + datagrams, before[1] + size)


def _parcels(frames: Sequence[bytes]) -> Iterable[list[bytes]]:
    """The frames in order, as many to a datagram as fit; no frame is longer than a datagram."""
    parcel: list[bytes] = []
    size = 0
    for frame in frames:
        if parcel and (size + len(frame) > FRAMES_BYTES_MAX or len(parcel) == 32):
            yield parcel
            parcel = []
            size = 0
        parcel.append(frame)
        size += len(frame)
    if parcel:
        yield parcel
