"""How many members a node can count on: what its limits take for this side of a partition.

Members that do not reach this node where it advertises to be are live, and yet their news does not
come here. For the counters they are beyond a partition. And a node that starts while it is cut off
knows of nobody: until one has answered, each address to join is one member beyond it.
"""

from __future__ import annotations

from collections.abc import Sequence

from peers.core.config import Config
from peers.core.events import Address, Event, Unreached
from peers.core.members import Members
from peers.core.table import Surroundings

__all__ = ["Reach"]


class Reach:
    """Of one node. `unreached_by` are the live members that cannot send to it."""

    def __init__(self, config: Config, members: Members, events: list[Event]) -> None:
        self._own = {config.bind, config.advertise, *config.kin}
        self._met = False  # a member of another host, ever
        self._presumed = 0
        self._members = members
        self._events = events
        self.unreached_by = frozenset[bytes]()

    def set_join(self, addresses: Sequence[Address], unresolved: int) -> None:
        """Where members should be; names that lead nowhere so far are one each."""
        self._presumed = len(set(addresses) - self._own) + unresolved

    @property
    def cut_off(self) -> bool:
        """Whether at least half of the other live members do not reach this node."""
        return 2 * len(self.unreached_by) >= max(1, len(self._members.live))

    def look(self, now_ns: int) -> None:
        """Tells when members begin or cease to say that they do not reach this node."""
        if not self._met:
            self._met = any(other.address not in self._own for other in self._members.others())
        before, now = self.unreached_by, self._members.unreached_by(now_ns)
        self.unreached_by = now
        if bool(before) != bool(now):
            self._events.append(Unreached(len(now), self._members.source))

    def counted(self, surroundings: Surroundings) -> Surroundings:
        """The same without those who do not reach this node, with those who should be there."""
        presumed = 0 if self._met else self._presumed
        if not self.unreached_by and not presumed:
            return surroundings
        return surroundings._replace(
            members=surroundings.members - len(self.unreached_by),
            known=surroundings.known + presumed,
            dead=surroundings.dead | self.unreached_by,
        )
