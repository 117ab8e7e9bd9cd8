"""How strangers become members: challenge, hello, and who is tried again.

A datagram of a life that is not known is answered with a CHALLENGE; the HELLO that echoes its
cookie makes the life known, and both sides then exchange their lists of members. Nothing else of a
stranger is looked at. Addresses to join, and those of dead members, are greeted for ever with
back-off, so that a partition of any length ends by itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NoReturn

from peers.core.config import MS, Config
from peers.core.errors import Drop, DropError
from peers.core.events import Address, Event, MemberRefused, MemberUnreached, MeshFull, NameConflict
from peers.core.members import Members, MemberState, Update
from peers.core.outbox import Outbox
from peers.core.probe import Prober
from peers.core.sessions import Session, Sessions
from peers.core.wire import FRAMES_BYTES_MAX, U63, Frame, Head, Kind, join_items, pack

__all__ = ["Handshake", "cluster_label", "members_frames", "node_id"]

# A member that was heard within three heartbeats and still uses another address is not the
# restarted one that a newcomer of its name claims to be.
_PRESENT_HEARTBEATS = 3
# One life is challenged so often; a lost challenge costs that long.
_CHALLENGE_NS = 50 * MS
_CHALLENGED_MAX = 256
# A member that we hold for dead but that talks is told so, that often.
_TELL_DEAD_NS = 200 * MS


def node_id(cluster: str, name: str) -> bytes:
    """A member's eight bytes on the wire."""
    return hashlib.blake2b(
        name.encode(), digest_size=8, key=cluster.encode(), person=b"egressd node"
    ).digest()


def cluster_label(cluster: str) -> int:
    """The cluster's label on the wire: it tells alien datagrams apart and is no secret."""
    digest = hashlib.blake2b(cluster.encode(), digest_size=8, person=b"egressd cluster")
    return int.from_bytes(digest.digest(), "big")


def members_frames(members: Members, want: bool) -> list[bytes]:
    """The whole list as MEMBERS frames; the last one asks for the receiver's list, if wanted."""
    frames: list[bytes] = []
    items: list[bytes] = []
    size = 5
    for member in (members.me, *members.others()):
        item = pack(member.update())
        if size + len(item) > FRAMES_BYTES_MAX:
            frames.append(join_items(Kind.MEMBERS, [b"\x00", *items]))
            items, size = [], 5
        items.append(item)
        size += len(item)
    frames.append(join_items(Kind.MEMBERS, [b"\x01" if want else b"\x00", *items]))
    return frames


class _Greeting:
    __slots__ = ("next_ns", "pause_ns")

    def __init__(self, now_ns: int, pause_ns: int) -> None:
        self.next_ns = now_ns
        self.pause_ns = pause_ns


class Handshake:
    """Strangers, greetings, and conflicts of names."""

    def __init__(
        self,
        config: Config,
        members: Members,
        sessions: Sessions,
        outbox: Outbox,
        prober: Prober,
        events: list[Event],
    ) -> None:
        self._config = config
        self._members = members
        self._sessions = sessions
        self._outbox = outbox
        self._prober = prober
        self._events = events
        self._join: tuple[Address, ...] = ()
        self._greetings: dict[Address, _Greeting] = {}
        self._told_dead_ns: dict[bytes, int] = {}
        self._challenged_ns: dict[tuple[bytes, int, Address, bool], int] = {}
        self._conflicts: set[tuple[str, Address]] = set()
        self.refused = False  # by a member that has our name, or by a full mesh

    # -- strangers

    def stranger(
        self, head: Head, seq: int, frames: Sequence[Frame], source: Address, now_ns: int
    ) -> Session:
        """A datagram from a life that is not known. Returns its session if it made itself known;
        otherwise it was challenged, and DropError says why its other frames are not taken."""
        session = self._sessions.get(head.node)
        known_boot = session.boot if session is not None else 0
        for frame in frames:
            if frame[0] == Kind.CHALLENGE:
                if frame[3]:
                    self.challenge_received(frame, source)
                    raise DropError(Drop.UNKNOWN_BOOT)
                self.challenge_received(frame, source)
            elif frame[0] == Kind.FULL:
                self.full_received(frame, source)
            elif frame[0] == Kind.HELLO and head.boot > known_boot:
                cookie = frame[1]
                if self._sessions.cookie_is_ours(cookie, head.node, head.boot, source, now_ns):
                    return self._accept(head, seq, frame, source, now_ns)
        self._challenge(head, source, known_boot, False, now_ns)
        raise DropError(Drop.OLD_BOOT if head.boot < known_boot else Drop.UNKNOWN_BOOT)

    def challenge_received(self, frame: Frame, source: Address) -> None:
        """Somebody does not know this life: says hello with the cookie, from a boot that is newer
        than any they know (a clock may have gone back over a restart)."""
        _, cookie, known_boot, refused = frame
        me = self._members.me
        if refused:
            self.refused = True
            self._conflict(me.name, source, True)
            return
        if known_boot > me.boot:
            me.boot = min(U63, known_boot + 1)
        self._outbox.send(source, self.hello(cookie))

    def full_received(self, frame: Frame, source: Address) -> None:
        """A member has no room for this node. The boot is this life's: no record of an earlier
        refusal keeps a node out."""
        if frame[1] == self._members.me.boot and not self.refused:
            self.refused = True
            self._events.append(MeshFull(source))

    def hello(self, cookie: bytes = b"") -> bytes:
        me = self._members.me
        host, port = me.address
        return pack((Kind.HELLO, cookie, me.name, host, port, me.incarnation))

    def _challenge(
        self, head: Head, source: Address, known_boot: int, refused: bool, now_ns: int
    ) -> None:
        # A challenge may be answered with a challenge. Two nodes that will never know each other
        # (of one name, say) would do that for ever without this.
        asked = (head.node, head.boot, source, refused)
        if now_ns - self._challenged_ns.get(asked, -_CHALLENGE_NS) < _CHALLENGE_NS:
            return
        if len(self._challenged_ns) >= _CHALLENGED_MAX:
            self._challenged_ns.clear()
        self._challenged_ns[asked] = now_ns
        cookie = self._sessions.cookie(head.node, head.boot, source, now_ns)
        frame = pack((Kind.CHALLENGE, cookie, known_boot, int(refused)))
        self._outbox.answer_stranger(source, frame)

    def _accept(self, head: Head, seq: int, frame: Frame, source: Address, now_ns: int) -> Session:
        _, _, name, host, port, incarnation = frame
        members = self._members
        if head.node != node_id(self._config.cluster, name):
            raise DropError(Drop.GARBAGE)
        if head.node == members.me.node:
            self._same_name(head, source, now_ns)
        member = members.get(head.node)
        if member is None and members.full and not members.make_room():
            self._refuse(name, (host, port))
            self._outbox.answer_stranger(source, pack((Kind.FULL, head.boot)))
            raise DropError(Drop.MEMBERS_FULL)
        if member is not None and member.live and member.address != (host, port):
            session = self._sessions.get(head.node)
            present_ns = _PRESENT_HEARTBEATS * self._config.heartbeat_interval_ns
            if session is not None and now_ns - session.heard_ns < present_ns:
                self._conflict(name, (host, port), False)
                self._challenge(head, source, session.boot, True, now_ns)
                raise DropError(Drop.DUPLICATE_NAME)
        accepted = self._sessions.open(head.node, head.boot, seq, now_ns)
        state = int(MemberState.ALIVE)
        update = Update(head.node, name, host, port, state, incarnation, head.boot)
        members.merge(update, head.node, now_ns)
        self._greetings.pop((host, port), None)
        for reply in members_frames(members, want=True):
            self._outbox.send((host, port), reply)
        return accepted

    def _same_name(self, head: Head, source: Address, now_ns: int) -> NoReturn:
        """Another process has our name; the one that started later is the intruder."""
        me = self._members.me
        if head.boot < me.boot:
            self.refused = True
            self._conflict(me.name, source, True)
        else:
            self._conflict(me.name, source, False)
            self._challenge(head, source, me.boot, True, now_ns)
        raise DropError(Drop.DUPLICATE_NAME)

    def _conflict(self, name: str, address: Address, refused: bool) -> None:
        # Told once for each address, of which a misconfigured cluster has few.
        if (name, address) not in self._conflicts and len(self._conflicts) < 64:
            self._conflicts.add((name, address))
            self._events.append(NameConflict(name, address, refused))

    def _refuse(self, name: str, address: Address) -> None:
        # Told once for each address; whoever keeps asking is counted as a drop.
        if (name, address) not in self._conflicts and len(self._conflicts) < 64:
            self._conflicts.add((name, address))
            self._events.append(MemberRefused(name, address))

    # -- members held for dead

    def tell_dead(self, node: bytes, source: Address, now_ns: int) -> None:
        """A member that is not live here talks: it learns that where it is heard from, and may
        refute it; unless it has never answered at another address, which it advertises."""
        member = self._members.get(node)
        if member is None or member.state == MemberState.ALIVE:
            return
        if now_ns - self._told_dead_ns.get(node, -_TELL_DEAD_NS) < _TELL_DEAD_NS:
            return
        self._told_dead_ns[node] = now_ns
        if source != member.address and not member.reached:
            self._outbox.send(source, pack((Kind.UNREACHED, *source)))
            if member.heard_from is None:
                self._events.append(MemberUnreached(member.name, member.address, source))
            member.heard_from = source
        self._outbox.send(source, join_items(Kind.MEMBERS, [b"\x01", pack(member.update())]))

    def forget(self, node: bytes) -> None:
        self._told_dead_ns.pop(node, None)
        self._prober.forget(node)

    # -- greetings

    def set_join(self, addresses: Sequence[Address], now_ns: int) -> None:
        self._join = tuple(address for address in addresses if address != self._members.me.address)
        for address in self._join:
            self._greetings.setdefault(address, _Greeting(now_ns, self._config.join_interval_ns))

    def tick(self, now_ns: int) -> None:
        """Greets who is due: join addresses that are no live member, and dead members."""
        live = {member.address for member in self._members.live}
        dead = {m.address: m for m in self._members.others() if m.state == MemberState.DEAD}
        # A dict, for its order: what a node sends must not depend on the hashes of a process.
        wanted = {address: None for address in (*self._join, *dead) if address not in live}
        first_ns = self._config.join_interval_ns
        for address in list(self._greetings):
            if address not in wanted:
                del self._greetings[address]
        for address in wanted:
            greeting = self._greetings.get(address)
            if greeting is None:
                greeting = self._greetings[address] = _Greeting(now_ns, first_ns)
            if now_ns >= greeting.next_ns:
                greeting.next_ns = now_ns + greeting.pause_ns
                greeting.pause_ns = min(self._config.join_backoff_max_ns, 2 * greeting.pause_ns)
                self._outbox.send(address, self.hello())
                if address in dead and dead[address].heard_from is not None:
                    self._prober.look(dead[address])

    def next_wake_ns(self) -> int | None:
        return min((greeting.next_ns for greeting in self._greetings.values()), default=None)
