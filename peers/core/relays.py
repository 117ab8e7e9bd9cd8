"""News by way of others: a member that is alive, but that we do not hear ourselves.

SWIM keeps a member alive as long as anybody hears it. Where the way between two members alone is
cut, counters would go apart for ever: each charges the other at its last known rate, and together
they admitted up to 1.6 times the rate. So who misses a member asks two others to hand on what they
hear of it. An entry is absolute and carries its first sender's sequence number, so it may come by
several ways, late or twice, as any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peers.core.chance import Chance, sample
from peers.core.config import Config
from peers.core.events import Event, MemberHeard, MemberUnheard
from peers.core.gossip import Counters
from peers.core.members import Member, Members, MemberState
from peers.core.outbox import Outbox
from peers.core.sessions import Sessions
from peers.core.table import Surroundings
from peers.core.wire import ENTRY_KINDS, FRAMES_BYTES_MAX, Kind, join_items, pack

__all__ = ["Relays"]

# Heartbeats missed in a row before others are asked: with a fifth lost, once in 125 times for
# nothing, which costs a few datagrams.
_ASK_AFTER = 3
# Before a member of which nothing comes by any way is unheard: it widens bounds, and slots are an
# n-th (with a fifth lost, once in 3,125). With the turn of retuning that is less than the three
# seconds for which its last word about slots counts.
_UNHEARD_AFTER = 5
# Before the operator is told: a member that was killed is dead by then (2 s), and not in the log
# twice.
_TELL_AFTER = 20
# Two, so that one that is lost or stops does not matter.
_HELPERS = 2
# Helpers by whom nothing came for so many heartbeats are exchanged for others.
_HELPERS_KEPT = 5
# A request that is not repeated, each heartbeat, ends after so many.
_LEASE = 3


class Relays:
    """Who is not heard, who hands on what of whom; ticked with each heartbeat.

    Nothing grows beyond the table of members: both directions are kept by live members only.
    """

    def __init__(
        self,
        config: Config,
        members: Members,
        sessions: Sessions,
        counters: Counters,
        outbox: Outbox,
        chance: Chance,
        events: list[Event],
    ) -> None:
        self._beat_ns = config.heartbeat_interval_ns
        self._members = members
        self._sessions = sessions
        self._counters = counters
        self._outbox = outbox
        self._chance = chance
        self._events = events
        self._missed: dict[bytes, _Missed] = {}
        # Of whom: who wants it, and until when.
        self.wanted: dict[bytes, dict[bytes, int]] = {}
        self.forwarded = 0  # frames handed on for others
        self._unheard: frozenset[bytes] = frozenset()  # live members, by any way
        self._unheard_ns = 0  # for how long not, all together
        self._relayed = False  # news of some member come by way of another

    # -- who misses a member

    def tick(self, now_ns: int) -> None:
        """Asks for news of live members that are not heard, and says which they are."""
        beat_ns = self._beat_ns
        live = self._members.live
        for node in self._missed.keys() - {member.node for member in live}:
            del self._missed[node]
        silences: dict[bytes, int] = {}
        self._relayed = False
        for member in live:
            silent_ns = now_ns - self._heard_ns(member)
            if silent_ns < _ASK_AFTER * beat_ns:
                self._missed.pop(member.node, None)
                if member.cut:
                    member.cut = False
                    self._events.append(MemberHeard(member.name, member.address))
                continue
            missed = self._missed.setdefault(member.node, _Missed(now_ns - silent_ns))
            self._ask(member, missed, now_ns)
            tell = member.state == MemberState.ALIVE and silent_ns >= _TELL_AFTER * beat_ns
            if tell and not member.cut:
                member.cut = True
                self._events.append(MemberUnheard(member.name, member.address))
            if now_ns - missed.word_ns >= _UNHEARD_AFTER * beat_ns:
                silences[member.node] = now_ns - missed.word_ns
            elif silent_ns >= _UNHEARD_AFTER * beat_ns:
                self._relayed = True
        self._unheard_ns = sum(silences.values())
        self._unheard = frozenset(silences)
        for node, askers in list(self.wanted.items()):
            for asker in [asker for asker, until_ns in askers.items() if until_ns <= now_ns]:
                del askers[asker]
            if not askers:
                del self.wanted[node]

    def counted(
        self, members: int, known: int, delay_ns: int, dead: frozenset[bytes]
    ) -> Surroundings:
        """What rows need to know: news by way of another take twice as long as one way does."""
        delay_ns *= 2 if self._relayed else 1
        return Surroundings(members, known, delay_ns, dead, self._unheard, self._unheard_ns)

    def lately_heard(self, node: bytes, boot: int, now_ns: int) -> bool:
        """Whether this life of a live member was heard within two heartbeats, and has answered at
        its address: it is not dead."""
        session = self._sessions.get(node)
        member = self._members.get(node)
        if session is None or session.boot != boot or member is None or not member.live:
            return False
        return member.reached and now_ns - session.heard_ns <= 2 * self._beat_ns

    def relayed_heard(
        self, node: bytes, boot: int, seq: int, kind: int, entries: Sequence[Any], now_ns: int
    ) -> None:
        """What another heard of a member; only while that is missed, and of its present life."""
        missed = self._missed.get(node)
        member = self._members.get(node)
        if missed is None or member is None or boot != member.boot:
            return
        missed.word_ns = now_ns
        if entries:
            self._counters.entries_heard(Kind(kind), node, boot, seq, entries, now_ns)

    def _ask(self, member: Member, missed: _Missed, now_ns: int) -> None:
        live = {m.node: m for m in self._members.live if m.node not in self._missed}
        useless = now_ns - max(missed.word_ns, missed.chosen_ns) >= _HELPERS_KEPT * self._beat_ns
        if useless or not missed.helpers or not live.keys() >= set(missed.helpers):
            chosen = sample(self._chance, list(live.values()), _HELPERS)
            missed.helpers = [helper.node for helper in chosen]
            missed.chosen_ns = now_ns
        for helper in missed.helpers:
            frame = join_items(Kind.RELAY_ASK, [pack((member.node,))])
            self._outbox.send(live[helper].address, frame)

    def _heard_ns(self, member: Member) -> int:
        session = self._sessions.get(member.node)
        # Of a newcomer nothing can have been heard before it was known.
        return session.heard_ns if session is not None else member.changed_ns

    # -- who hears it

    def asked(self, asker: bytes, nodes: Sequence[tuple[bytes]], now_ns: int) -> None:
        """A member misses these: what comes from them is handed on to it for a while."""
        until_ns = now_ns + _LEASE * self._beat_ns
        for (node,) in nodes:
            member = self._members.get(node)
            if member is not None and member.live and node != asker:
                self.wanted.setdefault(node, {})[asker] = until_ns

    def forward(
        self, node: bytes, boot: int, seq: int, kind: int, entries: Sequence[Any], now_ns: int
    ) -> None:
        """A frame came from a member itself: hands it on to who asked. A heartbeat goes without
        its content, as a sign of life; a frame that has no room for where it is from, in two."""
        if kind not in ENTRY_KINDS:
            kind, entries = Kind.HEARTBEAT, ()
        frame = pack((Kind.RELAYED, node, boot, seq, int(kind), *entries))
        if len(frame) > FRAMES_BYTES_MAX:
            half = len(entries) // 2
            self.forward(node, boot, seq, kind, entries[:half], now_ns)
            self.forward(node, boot, seq, kind, entries[half:], now_ns)
            return
        for asker, until_ns in self.wanted[node].items():
            member = self._members.get(asker)
            if member is not None and member.live and now_ns < until_ns:
                self._outbox.send(member.address, frame)
                self.forwarded += 1


class _Missed:
    """A live member that is not heard: since when not by any way, and who was asked for it."""

    __slots__ = ("chosen_ns", "helpers", "word_ns")

    def __init__(self, word_ns: int) -> None:
        self.word_ns = word_ns
        self.helpers: list[bytes] = []
        self.chosen_ns = 0
