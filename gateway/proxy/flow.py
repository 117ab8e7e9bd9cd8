"""Back-pressure: how much may stand where, why reading stops, and how to see a peer leave.

A connection holds at most one read (READ_BYTES) beyond what its other side has accepted, so 1,000
clients that do not read cost about 1,000 x (WRITE_HIGH + READ_BYTES) = 128 MiB.
"""

from __future__ import annotations

import select

__all__ = [
    "FLUSH_BYTES",
    "HELD_BYTES_MAX",
    "PAUSE_HELD",
    "PAUSE_PEER",
    "PAUSE_PIPELINE",
    "READ_BYTES",
    "WRITE_HIGH",
    "peer_has_left",
]

READ_BYTES = 64 * 1024  # one read; the kernel's default receive buffer is of this order
WRITE_HIGH = 64 * 1024  # a transport with more than this unsent stops the other side's reading
FLUSH_BYTES = 16 * 1024  # gathered octets that do not wait for the end of the loop's turn
HELD_BYTES_MAX = 64 * 1024  # body octets kept for a request that has no upstream connection yet

# Why reading is paused: a set of bits, reading goes on when none is left.
PAUSE_PEER = 1  # the other side cannot take more
PAUSE_HELD = 2  # the request waits and its body fills HELD_BYTES_MAX
PAUSE_PIPELINE = 4  # a later request's octets are buffered, its turn comes after this one


def peer_has_left(fd: int) -> bool:
    """Whether the peer closed or reset, asked without reading.

    With reading paused neither event loop reports FIN or RST; poll(2) reports both.
    """
    poll = select.poll()
    poll.register(fd, select.POLLRDHUP)
    return any(
        events & (select.POLLRDHUP | select.POLLHUP | select.POLLERR) for _, events in poll.poll(0)
    )
