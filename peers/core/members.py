"""Who is in the cluster: SWIM's table of members (Das, Gupta, Motivala 2002, section 4).

What is known about a member is a point (boot, incarnation, state), ordered in that order; the
greater one wins, whatever way and however often it comes. A life (boot) is decided by the member's
start, an incarnation by the member itself when it hears itself called suspect or dead.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from peers.core.broadcast import Broadcasts, retransmits
from peers.core.config import SECOND, Config
from peers.core.events import (
    Address,
    Event,
    MemberJoined,
    MemberLeft,
    MemberSuspected,
)
from peers.core.suspicion import Suspicion
from peers.core.wire import U32, pack

__all__ = ["Departed", "Member", "MemberState", "Members", "Update"]

# UNREACHED comes every 200 ms while it is so: ten of them are missed.
_UNREACHED_NS = 2 * SECOND


class MemberState(enum.IntEnum):
    """The numbers go over the wire, and a greater one wins within an incarnation."""

    ALIVE = 1
    SUSPECT = 2
    DEAD = 3
    LEFT = 4


class Update(NamedTuple):
    """What one member says about another; the item of a MEMBERS frame."""

    node: bytes
    name: str
    host: str
    port: int
    state: int
    incarnation: int
    boot: int


class Member:
    """One member as known here. `rtt_ns` is its last measured round trip, 0 before the first;
    `unanswered` the share of direct probes that it did not answer in time, over some 32. `reached`
    says whether it answered any since it became live, `heard_from` where it is heard from, if that
    is not where it advertises to be and it does not answer there."""

    __slots__ = (
        "address",
        "boot",
        "changed_ns",
        "cut",
        "heard_from",
        "incarnation",
        "name",
        "node",
        "reached",
        "rtt_ns",
        "state",
        "suspicion",
        "unanswered",
    )

    def __init__(self, update: Update, now_ns: int) -> None:
        self.node = update.node
        self.name = update.name
        self.address: Address = (update.host, update.port)
        self.state = MemberState(update.state)
        self.incarnation = update.incarnation
        self.boot = update.boot
        self.changed_ns = now_ns
        self.rtt_ns = 0
        self.suspicion: Suspicion | None = None
        self.unanswered = 0.0
        self.reached = False
        self.heard_from: Address | None = None
        self.cut = False  # alive, but nothing of it comes here: the operator was told

    def answered(self) -> None:
        """A probe reached it where it advertises to be."""
        self.reached = True
        self.heard_from = None

    @property
    def live(self) -> bool:
        return self.state <= MemberState.SUSPECT

    def update(self) -> Update:
        host, port = self.address
        return Update(self.node, self.name, host, port, self.state, self.incarnation, self.boot)


class Departed(NamedTuple):
    """A member that is no longer live; `left` where it said so itself."""

    node: bytes
    left: bool


class Members:
    """The table. `events` is the node's list; `version` changes whenever who is live may have."""

    def __init__(
        self, config: Config, node: bytes, boot: int, events: list[Event], now_ns: int
    ) -> None:
        self._config = config
        self._events = events
        host, port = config.advertise
        self.me = Member(Update(node, config.name, host, port, MemberState.ALIVE, 0, boot), now_ns)
        self._others: dict[bytes, Member] = {}
        self.broadcasts = Broadcasts()
        self.live: list[Member] = []  # the others that are alive or suspect
        self.version = 0
        self._departed: list[Departed] = []
        self._unreached: dict[bytes, int] = {}  # who says so: until_ns
        self.source: Address = config.advertise  # where this node was heard from, as told last

    def get(self, node: bytes) -> Member | None:
        return self._others.get(node)

    def others(self) -> list[Member]:
        return list(self._others.values())

    @property
    def live_count(self) -> int:
        """Live members, this one among them; what MESH calls n."""
        return 1 + len(self.live)

    @property
    def known_count(self) -> int:
        """Live and dead ones, without those that left: what a majority is counted against."""
        return 1 + sum(member.state != MemberState.LEFT for member in self._others.values())

    def dead(self) -> frozenset[bytes]:
        return frozenset(
            node for node, member in self._others.items() if member.state == MemberState.DEAD
        )

    @property
    def full(self) -> bool:
        return 1 + len(self._others) >= self._config.members_max

    def name_of(self, node: bytes) -> str:
        if node == self.me.node:
            return self.me.name
        member = self._others.get(node)
        return member.name if member is not None else node.hex()

    def merge(self, update: Update, accuser: bytes, now_ns: int) -> None:
        """Takes one update in; `accuser` is who said so. Own bad news is refuted."""
        if update.node == self.me.node:
            if accuser not in self.unreached_by(now_ns):
                self._refute(update)
            return
        member = self._others.get(update.node)
        if member is None:
            if update.state <= MemberState.SUSPECT and not self.make_room():
                return
            if update.state > MemberState.SUSPECT and self.full:
                return
            member = self._others[update.node] = Member(update, now_ns)
            self._changed(member, None, accuser, now_ns)
            return
        held = (member.boot, member.incarnation, member.state)
        news = (update.boot, update.incarnation, update.state)
        if news > held:
            before = member.state
            member.boot, member.incarnation = update.boot, update.incarnation
            member.state = MemberState(update.state)
            member.name, member.address = update.name, (update.host, update.port)
            member.changed_ns = now_ns
            self._changed(member, before, accuser, now_ns)
        elif news == held and member.suspicion is not None and member.suspicion.confirm(accuser):
            self.announce(member)

    @property
    def retransmits(self) -> int:
        return retransmits(self._config.retransmit_mult, self.live_count)

    def take_departed(self) -> list[Departed]:
        """Who is no longer live since the last call."""
        departed = self._departed
        self._departed = []
        return departed

    def suspect(self, node: bytes, now_ns: int) -> None:
        """A probe of ours failed."""
        member = self._others.get(node)
        if member is not None and member.live:
            update = member.update()._replace(state=int(MemberState.SUSPECT))
            self.merge(update, self.me.node, now_ns)

    def leave(self) -> Update:
        """This member goes; returns the update that says so."""
        self.me.state = MemberState.LEFT
        return self.me.update()

    def forget(self, name: str, now_ns: int) -> bytes | None:
        """Takes a dead member for one that left, and tells all; its id, or None if none is dead.

        Merely struck out here it would come back with the next member's list.
        """
        for node, member in self._others.items():
            if member.name == name and member.state == MemberState.DEAD:
                left = member.update()._replace(state=int(MemberState.LEFT))
                self.merge(left, self.me.node, now_ns)
                return node
        return None

    # -- whether others reach this node where it advertises to be

    def unreached(self, node: bytes, source: Address, now_ns: int) -> None:
        """A member hears this node from `source` and does not reach it at its address. Its calling
        us dead is then the truth and not refuted, or we would die and rise for ever."""
        if node in self._others:
            self._unreached[node] = now_ns + _UNREACHED_NS
            self.source = source

    def unreached_by(self, now_ns: int) -> frozenset[bytes]:
        """The live members that do not reach this node."""
        return frozenset(
            node
            for node, until_ns in self._unreached.items()
            if now_ns < until_ns and node in self._others and self._others[node].live
        )

    def tick(self, now_ns: int) -> list[bytes]:
        """Suspects whose time is over die; returns the ids that were forgotten."""
        gone: list[bytes] = []
        for node, member in self._others.items():
            if member.suspicion is not None and now_ns >= member.suspicion.deadline_ns:
                update = member.update()._replace(state=int(MemberState.DEAD))
                self.merge(update, self.me.node, now_ns)
            elif not member.live and now_ns - member.changed_ns >= self._config.forget_dead_ns:
                gone.append(node)
        for node in gone:
            self._strike_out(node)
        if gone:
            self.version += 1
        return gone

    def next_deadline_ns(self) -> int | None:
        """When the next suspect dies, if there is one."""
        timers = [m.suspicion.deadline_ns for m in self.live if m.suspicion is not None]
        return min(timers, default=None)

    def announce(self, member: Member) -> None:
        self.broadcasts.put(member.node, pack(member.update()))

    def make_room(self) -> bool:
        """A live newcomer may push out the member that is gone longest."""
        if not self.full:
            return True
        gone = [member for member in self._others.values() if not member.live]
        if not gone:
            return False
        self._strike_out(min(gone, key=lambda member: member.changed_ns).node)
        return True

    def _strike_out(self, node: bytes) -> None:
        del self._others[node]
        self._unreached.pop(node, None)

    def _refute(self, update: Update) -> None:
        """Somebody calls us suspect or dead (SWIM section 4.2): a greater incarnation says no."""
        me = self.me
        if me.state == MemberState.LEFT or update.boot != me.boot:
            return
        if update.state != MemberState.ALIVE and update.incarnation >= me.incarnation:
            me.incarnation = min(update.incarnation + 1, U32)
            self.announce(me)

    def _changed(
        self, member: Member, before: MemberState | None, accuser: bytes, now_ns: int
    ) -> None:
        self.live = [other for other in self._others.values() if other.live]
        self.version += 1
        member.suspicion = None
        was_live = before is not None and before <= MemberState.SUSPECT
        if member.state == MemberState.SUSPECT:
            member.suspicion = Suspicion(self._config, self.live_count, accuser, now_ns)
        if member.live and not was_live:
            member.reached = False
            self._events.append(MemberJoined(member.name, member.address))
        elif was_live and not member.live:
            crashed = member.state == MemberState.DEAD
            self._events.append(MemberLeft(member.name, member.address, crashed))
            self._departed.append(Departed(member.node, not crashed))
        elif member.state == MemberState.SUSPECT:
            self._events.append(MemberSuspected(member.name, member.address))
        self.announce(member)
