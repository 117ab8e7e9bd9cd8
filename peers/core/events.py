"""What a node tells its owner: plain values, drained with `Node.events_received()`."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from peers.core.leases import ExactRow
    from peers.core.share import Row

__all__ = [
    "Address",
    "BreakerClosed",
    "BreakerOpened",
    "Event",
    "MemberHeard",
    "MemberJoined",
    "MemberLeft",
    "MemberRefused",
    "MemberSuspected",
    "MemberUnheard",
    "MemberUnreached",
    "MeshFull",
    "NameConflict",
    "RowChanged",
    "TrialClaimed",
    "TripMajority",
    "Unreached",
]

Address = tuple[str, int]


class MemberJoined(NamedTuple):
    """A member became alive: new, restarted, or back after it was thought dead."""

    name: str
    address: Address


class MemberSuspected(NamedTuple):
    """A member does not answer; it still counts as live until `MemberLeft`."""

    name: str
    address: Address


class MemberLeft(NamedTuple):
    """A member no longer counts as live: it said good-bye (`crashed` False) or fell silent."""

    name: str
    address: Address
    crashed: bool


class MemberUnreached(NamedTuple):
    """A member is heard from `source`, but advertises `address`, where it does not answer: it is
    held for dead, and does not hear what members tell."""

    name: str
    address: Address
    source: Address


class Unreached(NamedTuple):
    """`members` (none: no longer) hear this node, the last one from `source`, but do not reach it
    at the address that it advertises."""

    members: int
    source: Address


class MemberUnheard(NamedTuple):
    """A member is alive, as others say, but nothing of it itself comes here: the way between the
    two is cut. What it counts comes by way of others; exact limits whose keys it owns get nothing
    here."""

    name: str
    address: Address


class MemberHeard(NamedTuple):
    """A member that was unheard is heard again."""

    name: str
    address: Address


class NameConflict(NamedTuple):
    """Two live nodes use one name. `refused` is True on the one that came second: it is no member
    and stays none until the other has gone or it is started under another name."""

    name: str
    address: Address
    refused: bool


class RowChanged(NamedTuple):
    """News came for a row whose `waiting` is set: asking again may help now."""

    row: Row | ExactRow


class BreakerOpened(NamedTuple):
    """A peer opened a breaker, or prolonged it. `reff` is the learned rate in tokens a second
    (0.0: none was learned), `cause` as given to `open_breaker`, `origin` the opening node's name
    (hexadecimal id where the name is not known yet)."""

    scope: bytes
    epoch: int
    until_ns: int
    cause: int
    origin: str
    reff: float


class BreakerClosed(NamedTuple):
    """A peer closed a breaker: its trial succeeded, and `epoch` is the new epoch."""

    scope: bytes
    epoch: int
    reff: float


class TrialClaimed(NamedTuple):
    """A peer sends the one trial of this epoch; until then nobody else should. A time that is
    not in the future: it gave the trial back, or is gone."""

    scope: bytes
    epoch: int
    until_ns: int


class TripMajority(NamedTuple):
    """This node has tripped for this scope (`Node.trip`), and with it more than half of the
    members that use it: the breaker should open for all. Told again while it lasts."""

    scope: bytes
    tripped: int
    wanting: int


class MemberRefused(NamedTuple):
    """A newcomer is not taken in: there are as many members as a full mesh bears."""

    name: str
    address: Address


class MeshFull(NamedTuple):
    """A member of a full mesh does not take this node in: it is none."""

    address: Address


Event = (
    MemberJoined
    | MemberSuspected
    | MemberUnheard
    | MemberHeard
    | MemberLeft
    | NameConflict
    | RowChanged
    | BreakerOpened
    | BreakerClosed
    | TrialClaimed
    | TripMajority
    | MemberRefused
    | MemberUnreached
    | Unreached
    | MeshFull
)
