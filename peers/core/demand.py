"""Who has use for an upstream, and who has found it failing: what members tell of scopes.

Two questions need it. A failure that one member sees may be its own network's, so a breaker opens
for all only when more than half of the members that use the upstream have tripped. And the one
trial after a pause belongs to somebody who has a request to send. Each member tells once a second,
and at once when it trips, which scopes it had requests for and which of them have tripped.
"""

from __future__ import annotations

from collections.abc import Sequence

from peers.core.config import SECOND
from peers.core.events import Event, TripMajority
from peers.core.gossip import frames_of
from peers.core.members import Members
from peers.core.outbox import Outbox
from peers.core.wire import FRAMES_BYTES_MAX, Kind, pack

__all__ = ["Demands"]

_TELL_NS = 1 * SECOND
# A member that said so within five seconds has demand: five tellings, of which one comes through
# even at 20 % loss in 3,124 of 3,125 cases.
_DEMAND_NS = 5 * SECOND
# A trip that is not told again is over: its member is gone, or does not use the upstream any more.
_TRIPPED_NS = 3 * SECOND
# Scopes told and remembered for each member; a configuration has tens of upstreams.
_SCOPES_MAX = 1000


class _Told:
    """What one member told of one scope, and when."""

    __slots__ = ("demand_ns", "tripped", "tripped_ns")

    def __init__(self) -> None:
        self.demand_ns = -_DEMAND_NS
        self.tripped = False
        self.tripped_ns = -_TRIPPED_NS

    def wants(self, now_ns: int) -> bool:
        return now_ns - self.demand_ns < _DEMAND_NS or self.has_tripped(now_ns)

    def has_tripped(self, now_ns: int) -> bool:
        return self.tripped and now_ns - self.tripped_ns < _TRIPPED_NS


class Demands:
    """What is known of all members, this one among them. `events` is the node's list."""

    def __init__(self, members: Members, outbox: Outbox, events: list[Event], now_ns: int) -> None:
        self._members = members
        self._outbox = outbox
        self._events = events
        self._told: dict[bytes, dict[bytes, _Told]] = {members.me.node: {}}
        self._heard: dict[bytes, tuple[int, int]] = {}  # node: (boot, seq) of its newest word
        self._fresh: dict[bytes, None] = {}  # own demand since it was told last
        self._tell_ns = now_ns + _TELL_NS

    # -- this node's own

    def note(self, scope: bytes, now_ns: int) -> None:
        """Requests came for this scope (to be called now and then, not for each)."""
        told = self._of(self._members.me.node, scope)
        if told is not None:
            told.demand_ns = now_ns
            self._fresh[scope] = None

    def trip(self, scope: bytes, tripped: bool, now_ns: int) -> None:
        """This node found the upstream failing, or well again: all hear it at once."""
        told = self._of(self._members.me.node, scope)
        if told is None:
            return
        told.tripped = tripped
        told.tripped_ns = now_ns
        self._outbox.send_all(pack((Kind.DEMANDS, (scope, int(tripped)))))
        self._judge(scope, now_ns)

    # -- what is known

    def wanting(self, scope: bytes, now_ns: int) -> list[bytes]:
        """The live members that have demand, this node among them if it has."""
        live = [self._members.me, *self._members.live]
        found = []
        for member in live:
            told = self._told.get(member.node, {}).get(scope)
            if told is not None and told.wants(now_ns):
                found.append(member.node)
        return found

    def heard(
        self, node: bytes, boot: int, seq: int, items: Sequence[tuple[bytes, int]], now_ns: int
    ) -> None:
        if (boot, seq) <= self._heard.get(node, (0, -1)):
            return
        self._heard[node] = (boot, seq)
        for scope, tripped in items:
            told = self._of(node, scope)
            if told is None:
                continue
            told.demand_ns = now_ns
            told.tripped = bool(tripped)
            told.tripped_ns = now_ns
            self._judge(scope, now_ns)

    def member_gone(self, node: bytes, now_ns: int) -> None:
        """A member that is not live has no vote; those of the others may be a majority now."""
        self._told.pop(node, None)
        self._heard.pop(node, None)
        for scope in self._told[self._members.me.node]:
            self._judge(scope, now_ns)

    # -- time

    def tick(self, now_ns: int) -> None:
        if now_ns < self._tell_ns:
            return
        self._tell_ns = now_ns + _TELL_NS
        own = self._told[self._members.me.node]
        items = []
        for scope, told in list(own.items()):
            if told.tripped:
                told.tripped_ns = now_ns
            if scope in self._fresh or told.tripped:
                items.append(pack((scope, int(told.tripped))))
            elif not told.wants(now_ns):
                del own[scope]
        self._fresh.clear()
        for frame in frames_of(items, FRAMES_BYTES_MAX, Kind.DEMANDS):
            self._outbox.send_all(frame)
        for node in list(self._told):
            if node != self._members.me.node:
                book = self._told[node]
                for scope in [scope for scope in book if not book[scope].wants(now_ns)]:
                    del book[scope]
        for scope in list(own):
            self._judge(scope, now_ns)

    def next_wake_ns(self) -> int:
        return self._tell_ns

    def _judge(self, scope: bytes, now_ns: int) -> None:
        """Says so where this node has tripped and is one of a majority."""
        own = self._told[self._members.me.node].get(scope)
        if own is None or not own.has_tripped(now_ns):
            return
        wanting = self.wanting(scope, now_ns)
        tripped = sum(self._told[node][scope].has_tripped(now_ns) for node in wanting)
        if 2 * tripped > len(wanting):
            self._events.append(TripMajority(scope, tripped, len(wanting)))

    def _of(self, node: bytes, scope: bytes) -> _Told | None:
        book = self._told.setdefault(node, {})
        told = book.get(scope)
        if told is None:
            if len(book) >= _SCOPES_MAX:
                return None
            told = book[scope] = _Told()
        return told
