"""Who may speak: lives of members that proved to be present, and what each has said already.

A recorded datagram of an earlier life carries a valid seal for ever. So a life, which is a node's
id and its boot time, is taken only after it echoed a cookie that depends on its source address, on
our secret and on the present ten seconds; after that, each of its sequence numbers is taken once.
Cookies need no memory (the manner of RFC 4987's SYN cookies), so asking costs nothing but a
datagram.
"""

from __future__ import annotations

import hashlib

from peers.core.config import SECOND
from peers.core.errors import Drop, DropError
from peers.core.events import Address

__all__ = ["COOKIE_BYTES", "ReplayWindow", "Session", "Sessions"]

COOKIE_BYTES = 8
_COOKIE_EPOCH_NS = 10 * SECOND
# 4 MB/s of counters are 3,400 datagrams a second; a thousand allow 0.3 s of reordering.
_WINDOW = 1024
_WINDOW_MASK = (1 << _WINDOW) - 1


class ReplayWindow:
    """The newest sequence number and which of the 1,024 up to it were seen (RFC 6479's idea)."""

    __slots__ = ("_newest", "_seen")

    def __init__(self) -> None:
        self._newest = -1
        self._seen = 0

    def take(self, seq: int) -> bool:
        """Whether `seq` is new; it is not afterwards. Too old to tell counts as seen."""
        ahead = seq - self._newest
        if ahead > 0:
            # A jump past the whole window must not shift by 2^64 bits.
            self._seen = ((self._seen << ahead) & _WINDOW_MASK | 1) if ahead < _WINDOW else 1
            self._newest = seq
            return True
        if ahead <= -_WINDOW:
            return False
        bit = 1 << -ahead
        if self._seen & bit:
            return False
        self._seen |= bit
        return True

    def has(self, seq: int) -> bool:
        """Whether `take` would refuse it; changes nothing."""
        ahead = seq - self._newest
        return ahead <= 0 and (ahead <= -_WINDOW or bool(self._seen >> -ahead & 1))


class Session:
    """One accepted life of a member; counts of what it sent are for the operator."""

    __slots__ = ("boot", "heard_ns", "received", "received_bytes", "window")

    def __init__(self, boot: int, now_ns: int) -> None:
        self.boot = boot
        self.window = ReplayWindow()
        self.heard_ns = now_ns
        self.received = 0
        self.received_bytes = 0


class Sessions:
    """The accepted life of each node id. Bounded by the table of members, which drops ids here."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._sessions: dict[bytes, Session] = {}

    def get(self, node: bytes) -> Session | None:
        return self._sessions.get(node)

    def admit(self, node: bytes, boot: int, seq: int, now_ns: int) -> Session:
        """The session of this datagram's sender. Raises DropError: unknown, old, replayed."""
        session = self._sessions.get(node)
        if session is None or boot > session.boot:
            raise DropError(Drop.UNKNOWN_BOOT)
        if boot < session.boot:
            raise DropError(Drop.OLD_BOOT)
        if not session.window.take(seq):
            raise DropError(Drop.REPLAYED)
        session.heard_ns = now_ns
        return session

    def open(self, node: bytes, boot: int, seq: int, now_ns: int) -> Session:
        """Accepts a life; its datagram that echoed the cookie is its first."""
        session = self._sessions[node] = Session(boot, now_ns)
        session.window.take(seq)
        return session

    def drop(self, node: bytes) -> None:
        self._sessions.pop(node, None)

    def cookie(self, node: bytes, boot: int, source: Address, now_ns: int) -> bytes:
        """What this life must echo from this address within 10 to 20 s."""
        return self._cookie(node, boot, source, now_ns // _COOKIE_EPOCH_NS)

    def cookie_is_ours(
        self, cookie: bytes, node: bytes, boot: int, source: Address, now_ns: int
    ) -> bool:
        epoch = now_ns // _COOKIE_EPOCH_NS
        return cookie in (
            self._cookie(node, boot, source, epoch),
            self._cookie(node, boot, source, epoch - 1),
        )

    def _cookie(self, node: bytes, boot: int, source: Address, epoch: int) -> bytes:
        text = b"%s %d %s %d %d" % (node, boot, source[0].encode(), source[1], epoch)
        return hashlib.blake2b(text, key=self._secret, digest_size=COOKIE_BYTES).digest()
