"""Back-pressure: how much may stand where, why reading stops, and how to see a peer leave.

A connection holds at most one read (READ_BYTES) beyond what its other side has accepted, so 1,000
clients that do not read cost about 1,000 x (WRITE_HIGH + READ_BYTES) = 128 MiB.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Final

__all__ = [
    "FLUSH_BYTES",
    "HELD_BYTES_MAX",
    "PAUSE_HELD",
    "PAUSE_PEER",
    "PAUSE_PIPELINE",
    "READ_BYTES",
    "WRITE_HIGH",
    "news_of",
    "peer_has_left",
]

READ_BYTES: Final = 64 * 1024  # one read; the kernel's default receive buffer is of this order
# A transport with more than this unsent stops the other side's reading.
WRITE_HIGH: Final = 64 * 1024
FLUSH_BYTES: Final = 16 * 1024  # gathered octets that do not wait for the end of the loop's turn
# Body octets kept for a request that has no upstream connection yet.
HELD_BYTES_MAX: Final = 64 * 1024

# Why reading is paused: a set of bits, reading goes on when none is left.
PAUSE_PEER: Final = 1  # the other side cannot take more
PAUSE_HELD: Final = 2  # the request waits and its body fills HELD_BYTES_MAX
PAUSE_PIPELINE: Final = 4  # a later request's octets are buffered, its turn comes after this one


def peer_has_left(fd: int) -> bool:
    """Whether the peer closed or reset, asked without reading.

    With reading paused neither event loop reports FIN or RST; poll(2) reports both.
    """
    poll = select.poll()
    poll.register(fd, select.POLLRDHUP)
    return any(
        events & (select.POLLRDHUP | select.POLLHUP | select.POLLERR) for _, events in poll.poll(0)
    )


def news_of(fd: int) -> Callable[[int], list[tuple[int, int]]]:
    """A question: called with 0, it is true where the peer has sent anything that is not read yet,
    a FIN or a reset included. To be asked as often as wanted while the descriptor is open.
    """
    poll = select.poll()
    poll.register(fd, select.POLLIN | select.POLLRDHUP)
    return poll.poll
