"""Relays: who may ask for what, and what is believed of it."""

from __future__ import annotations

import random

from peers.core import wire
from peers.core.config import MS, SECOND, Config
from peers.core.counters import Surroundings
from peers.core.events import Event, MemberUnheard
from peers.core.gossip import Counters
from peers.core.members import Members, MemberState, Update
from peers.core.outbox import Outbox
from peers.core.relays import Relays
from peers.core.sessions import Sessions
from peers.core.wire import FRAMES_BYTES_MAX, Frame, Head, Kind

NOW = 1_000 * SECOND
BOOT = 1_700_000_000_000
ENTRY = ((1 << 64) - 1, (1 << 32) - 1, 1 << 62, 1, (1 << 32) - 1, (1 << 32) - 1, 1 << 62)


class Bench:
    """One member among `count` others, of which none is heard unless it is said so."""

    def __init__(self, count: int) -> None:
        config = Config(name="me", cluster="c", bind=("127.0.0.1", 1), advertise=("127.0.0.1", 1))
        self.events: list[Event] = []
        self.outbox = Outbox()
        self.sessions = Sessions(b"secret")
        self.members = Members(config, b"me------", BOOT, self.events, NOW)
        chance = random.Random(7)
        self.counters = Counters(config, chance, self.outbox, Surroundings(1, 1, MS), NOW)
        self.nodes = [b"node-%03d" % number for number in range(count)]
        for number, node in enumerate(self.nodes):
            update = Update(node, f"gw-{number}", "127.0.0.1", 7000 + number, 1, 0, BOOT)
            self.members.merge(update, node, NOW)
            self.sessions.open(node, BOOT, 1, NOW)
        self.events.clear()
        self.relays = Relays(
            config, self.members, self.sessions, self.counters, self.outbox, chance, self.events
        )

    def beats(self, count: int, now_ns: int, *heard: bytes) -> int:
        """So many heartbeats pass, in which these members are heard; returns the time."""
        for _ in range(count):
            now_ns += 200 * MS
            for node in heard:
                session = self.sessions.get(node)
                assert session is not None
                session.heard_ns = now_ns
            self.relays.tick(now_ns)
        return now_ns

    def sent(self) -> list[tuple[int, Frame]]:
        """Frames by the number of the member that they go to."""
        head = wire.pack_head(Head(1, b"me------", BOOT))
        datagrams = self.outbox.drain(lambda frames: wire.join(head, frames), [])
        return [
            (address[1] - 7000, frame)
            for data, address in datagrams
            for frame in wire.unpack(data).frames
        ]


def test_two_that_are_heard_are_asked_after_three_heartbeats() -> None:
    bench = Bench(4)
    missed, *heard = bench.nodes
    now_ns = bench.beats(2, NOW, *heard)
    assert bench.sent() == []
    bench.beats(1, now_ns, *heard)
    asked = bench.sent()
    assert len(asked) == 2
    assert {frame for _, frame in asked} == {(Kind.RELAY_ASK, (missed,))}
    assert 0 not in {number for number, _ in asked}


def test_helpers_that_bring_nothing_are_exchanged_and_others_kept() -> None:
    bench = Bench(9)
    missed, *heard = bench.nodes
    now_ns = bench.beats(3, NOW, *heard)
    first = {number for number, _ in bench.sent()}
    for _ in range(10):
        bench.relays.relayed_heard(missed, BOOT, 1, Kind.HEARTBEAT, (), now_ns)
        now_ns = bench.beats(1, now_ns, *heard)
    assert {number for number, _ in bench.sent()} == first
    assert bench.relays.counted(9, 9, MS, frozenset()) == Surroundings(9, 9, 2 * MS)
    bench.beats(20, now_ns, *heard)
    assert len({number for number, _ in bench.sent()}) > 2
    found = bench.relays.counted(9, 9, MS, frozenset())
    assert found == Surroundings(9, 9, MS, frozenset(), frozenset({missed}), 21 * 200 * MS)


def test_a_suspect_is_not_told_of_as_alive() -> None:
    bench = Bench(2)
    bench.members.suspect(bench.nodes[0], NOW)
    bench.events.clear()
    now_ns = bench.beats(30, NOW, bench.nodes[1])
    assert bench.events == []
    member = bench.members.get(bench.nodes[0])
    assert member is not None
    alive = member.update()._replace(state=int(MemberState.ALIVE), incarnation=1)
    bench.members.merge(alive, bench.nodes[0], now_ns)
    bench.beats(1, now_ns, bench.nodes[1])
    assert MemberUnheard("gw-0", ("127.0.0.1", 7000)) in bench.events


def test_what_nobody_missed_or_of_another_life_is_not_believed() -> None:
    bench = Bench(3)
    missed, *heard = bench.nodes
    bench.relays.relayed_heard(missed, BOOT, 5, Kind.COUNTERS, [ENTRY], NOW)
    now_ns = bench.beats(4, NOW, *heard)
    bench.relays.relayed_heard(heard[0], BOOT, 5, Kind.COUNTERS, [ENTRY], now_ns)
    bench.relays.relayed_heard(missed, BOOT - 1, 5, Kind.COUNTERS, [ENTRY], now_ns)
    bench.relays.relayed_heard(b"stranger", BOOT, 5, Kind.COUNTERS, [ENTRY], now_ns)
    bench.relays.relayed_heard(b"me------", BOOT, 5, Kind.COUNTERS, [ENTRY], now_ns)
    assert bench.counters.entries_received == 0
    bench.relays.relayed_heard(missed, BOOT, 5, Kind.COUNTERS, [ENTRY], now_ns)
    assert bench.counters.entries_received == 1


def test_only_members_are_served_and_no_longer_than_they_ask() -> None:
    bench = Bench(3)
    spoken, asker, other = bench.nodes
    bench.relays.asked(asker, [(spoken,), (b"stranger",), (b"me------",), (asker,)], NOW)
    assert list(bench.relays.wanted) == [spoken]
    bench.relays.forward(spoken, BOOT, 9, Kind.HEARTBEAT, (), NOW)
    bench.relays.forward(spoken, BOOT, 10, Kind.HELD, [(1, 1, 2, 3, 4)], NOW)
    assert bench.sent() == [
        (1, (Kind.RELAYED, spoken, BOOT, 9, Kind.HEARTBEAT)),
        (1, (Kind.RELAYED, spoken, BOOT, 10, Kind.HELD, (1, 1, 2, 3, 4))),
    ]
    bench.relays.forward(spoken, BOOT, 11, Kind.HEARTBEAT, (), NOW + 600 * MS)
    assert bench.sent() == []
    bench.beats(3, NOW, spoken, asker, other)
    assert bench.relays.wanted == {}


def test_a_frame_with_no_room_left_goes_in_pieces() -> None:
    bench = Bench(2)
    spoken, asker = bench.nodes
    entry = wire.pack(ENTRY)
    entries = [ENTRY] * (FRAMES_BYTES_MAX // len(entry))
    bench.relays.asked(asker, [(spoken,)], NOW)
    bench.relays.forward(spoken, BOOT, (1 << 64) - 1, Kind.COUNTERS, entries, NOW)
    sent = bench.sent()
    assert len(sent) == 2
    assert [item for _, frame in sent for item in frame[5:]] == entries
