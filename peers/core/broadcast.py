"""News about members, riding on datagrams that go anyway (SWIM section 4.1).

Each update is attached a bounded number of times, those sent least first; newer news about a member
replaces older. What this loses, the sync of whole lists repairs.
"""

from __future__ import annotations

import math

__all__ = ["Broadcasts", "retransmits"]


def retransmits(mult: int, live_count: int) -> int:
    """How often an update is sent: mult x ceil(log10(N + 1)), as memberlist."""
    return mult * math.ceil(math.log10(live_count + 1))


class Broadcasts:
    """Packed updates by the member that they are about; at most one a member."""

    def __init__(self) -> None:
        self._updates: dict[bytes, tuple[int, bytes]] = {}

    def __len__(self) -> int:
        return len(self._updates)

    def put(self, node: bytes, update: bytes) -> None:
        self._updates[node] = (0, update)

    def take(self, bytes_max: int, times_max: int) -> list[bytes]:
        """Updates for one datagram; each is counted as sent, and gone after `times_max`."""
        taken: list[bytes] = []
        size = 0
        for node, (times, update) in sorted(self._updates.items(), key=_times):
            if size + len(update) > bytes_max:
                continue
            taken.append(update)
            size += len(update)
            if times + 1 >= times_max:
                del self._updates[node]
            else:
                self._updates[node] = (times + 1, update)
        return taken


def _times(item: tuple[bytes, tuple[int, bytes]]) -> int:
    return item[1][0]
