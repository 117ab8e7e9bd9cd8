"""How many members a node can count on: what its limits take for this side of a partition.

Members that do not reach this node where it advertises to be are live, and yet their news does not
come here. For the counters they are beyond a partition.
"""

from __future__ import annotations

from peers.core.events import Event, Unreached
from peers.core.members import Members
from peers.core.table import Surroundings

__all__ = ["Reach"]


class Reach:
    """Of one node. `unreached_by` are the live members that cannot send to it."""

    def __init__(self, members: Members, events: list[Event]) -> None:
        self._members = members
        self._events = events
        self.unreached_by = frozenset[bytes]()

    @property
    def cut_off(self) -> bool:
        """Whether at least half of the other live members do not reach this node."""
        return 2 * len(self.unreached_by) >= max(1, len(self._members.live))

    def look(self, now_ns: int) -> None:
        """Tells when members begin or cease to say that they do not reach this node."""
        before, now = self.unreached_by, self._members.unreached_by(now_ns)
        self.unreached_by = now
        if bool(before) != bool(now):
            self._events.append(Unreached(len(now), self._members.source))

    def counted(self, surroundings: Surroundings) -> Surroundings:
        """The same without those who do not reach this node."""
        if not self.unreached_by:
            return surroundings
        return surroundings._replace(
            members=surroundings.members - len(self.unreached_by),
            dead=surroundings.dead | self.unreached_by,
        )
