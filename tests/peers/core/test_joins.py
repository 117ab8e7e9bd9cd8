"""Members and breakers are joins: any order and any number of copies give the same state."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from peers.core.breakers import Breakers
from peers.core.config import MS, SECOND, Config
from peers.core.demand import Demands
from peers.core.events import BreakerClosed, BreakerOpened, Event, MemberJoined, MemberLeft
from peers.core.members import Members, MemberState, Update
from peers.core.outbox import Outbox

HERE = ("127.0.0.1", 7946)
CONFIG = Config(name="me", cluster="c", bind=HERE, advertise=HERE)
NOW = 1_000 * SECOND
ME, PEER = b"node--me", b"node-one"

updates = st.builds(
    Update,
    node=st.sampled_from([b"node-one", b"node-two"]),
    name=st.just("one"),
    host=st.just("127.0.0.1"),
    port=st.just(7001),
    state=st.integers(1, 4),
    incarnation=st.integers(0, 3),
    boot=st.integers(1, 3),
)


def members_after(news: list[Update]) -> tuple[Members, list[Event]]:
    events: list[Event] = []
    members = Members(CONFIG, ME, 1, events, NOW)
    for update in news:
        members.merge(update, b"accuser.", NOW)
    return members, events


@given(st.lists(updates, max_size=12), st.randoms(use_true_random=False))
def test_members_are_a_join(news: list[Update], chance: random.Random) -> None:
    members, events = members_after(news)
    again = news * 2
    chance.shuffle(again)
    other, _ = members_after(again)
    assert {m.node: m.update() for m in members.others()} == {
        m.node: m.update() for m in other.others()
    }
    for member in members.others():
        points = [
            (update.boot, update.incarnation, update.state)
            for update in news
            if update.node == member.node
        ]
        assert (member.boot, member.incarnation, member.state) == max(points)
    # Joining and leaving alternate, so that who counts them is right.
    live = sum(isinstance(event, MemberJoined) for event in events) - sum(
        isinstance(event, MemberLeft) for event in events
    )
    assert live == len(members.live) == members.live_count - 1


def test_own_bad_news_is_refuted_with_a_greater_incarnation() -> None:
    members, _ = members_after([])
    about_me = members.me.update()
    for state in (MemberState.SUSPECT, MemberState.DEAD):
        before = members.me.incarnation
        news = about_me._replace(state=int(state), incarnation=before)
        members.merge(news, b"accuser.", NOW)
        assert members.me.incarnation == before + 1
        members.merge(news, b"accuser.", NOW)  # old by now
        assert members.me.incarnation == before + 1
    assert len(members.broadcasts) == 1
    members.merge(about_me._replace(state=3, boot=99), b"accuser.", NOW)  # another life's
    assert members.me.incarnation == 2
    members.leave()
    members.merge(about_me._replace(state=3, incarnation=9), b"accuser.", NOW)
    assert members.me.incarnation == 2


def test_a_suspect_dies_when_its_time_is_over() -> None:
    members, events = members_after([])
    alive = Update(PEER, "one", "127.0.0.1", 7001, int(MemberState.ALIVE), 0, 1)
    members.merge(alive, PEER, NOW)
    members.suspect(PEER, NOW)
    deadline_ns = members.next_deadline_ns()
    assert deadline_ns == NOW + SECOND
    members.tick(deadline_ns - 1)
    assert members.live_count == 2
    members.tick(deadline_ns)
    assert members.live_count == 1
    assert members.known_count == 2
    assert members.next_deadline_ns() is None
    assert events[-1] == MemberLeft("one", ("127.0.0.1", 7001), True)
    assert members.tick(NOW + 700 * SECOND) == [PEER]
    assert members.known_count == 1


# (epoch, state, seconds, number): an event as it is said by one of two origins.
breaker_events = st.tuples(
    st.integers(0, 3), st.integers(0, 1), st.integers(1, 5), st.sampled_from([PEER, b"node-two"])
)


def breakers_after(
    heard: list[tuple[int, int, int, bytes]],
) -> tuple[Breakers, list[Event], Outbox]:
    events: list[Event] = []
    members, _ = members_after([])
    outbox = Outbox()
    demands = Demands(members, outbox, events, NOW)
    breakers = Breakers(CONFIG, members, outbox, demands, random.Random(1), events, 1, NOW)
    for epoch, state, seconds, origin in heard:
        remaining_ms = seconds * 1000 if state else 0
        number = epoch * 100 + state * 10 + seconds
        entry = (b"s", epoch, state, 429, remaining_ms, origin, number, 0)
        breakers.events_heard([entry], NOW)
    return breakers, events, outbox


@given(st.lists(breaker_events, min_size=1, max_size=10), st.randoms(use_true_random=False))
def test_breakers_are_a_join(
    heard: list[tuple[int, int, int, bytes]], chance: random.Random
) -> None:
    breakers, events, _ = breakers_after(heard)
    again = heard * 3
    chance.shuffle(again)
    other, _, _ = breakers_after(again)
    assert breakers.state(b"s") == other.state(b"s")
    assert breakers.digest(NOW) == other.digest(NOW)
    state = breakers.state(b"s")
    assert state is not None
    greatest = max((epoch, state) for epoch, state, _, _ in heard)
    assert state[:2] == (greatest[0], greatest[1] == 1)
    if greatest[1]:
        ends = [seconds for epoch, s, seconds, _ in heard if (epoch, s) == greatest]
        assert state[2] == NOW + max(ends) * SECOND
    last = events[-1]
    assert isinstance(last, BreakerOpened if greatest[1] else BreakerClosed)


def test_of_one_event_the_earliest_end_counts() -> None:
    breakers, events, _ = breakers_after([])
    for delay_ns in (0, 200 * MS, 5 * MS):  # copies that were long on their way
        breakers.events_heard([(b"s", 1, 1, 429, 5000, PEER, 7, 0)], NOW + delay_ns)
    state = breakers.state(b"s")
    assert state is not None
    assert state[2] == NOW + 5 * SECOND
    assert len(events) == 1


def test_registers_are_bounded_and_forgotten() -> None:
    config = Config(name="me", cluster="c", bind=HERE, advertise=HERE, breakers_max=5)
    members, _ = members_after([])
    demands = Demands(members, Outbox(), [], NOW)
    breakers = Breakers(config, members, Outbox(), demands, random.Random(1), [], 1, NOW)
    for number in range(20):
        breakers.open(b"%d" % number, 1, NOW + SECOND, 1, 0.0, NOW + number)
    assert len(breakers) == 5
    assert breakers.state(b"19") is not None
    assert breakers.state(b"3") is None
    empty = Breakers(config, members, Outbox(), demands, random.Random(1), [], 1, NOW).digest(NOW)
    assert breakers.digest(NOW) != empty
    breakers.tick(NOW + 301 * SECOND)  # half of the memory: no longer in the digest
    assert breakers.digest(NOW + 301 * SECOND) == empty
    assert len(breakers) == 5
    breakers.tick(NOW + 602 * SECOND)
    assert len(breakers) == 0


def test_of_two_rates_learned_in_one_epoch_the_smaller_counts() -> None:
    breakers, _, _ = breakers_after([])
    for number, reff_1000 in ((1, 60_000), (2, 42_500), (3, 0)):
        entry = (b"s", 1, 1, 429, 5000 + number, PEER, number, reff_1000)
        breakers.events_heard([entry], NOW)
    state = breakers.state(b"s")
    assert state is not None
    assert state[3] == 42.5


def test_a_smaller_rate_is_news_even_where_the_pause_stays_as_it_is() -> None:
    """Two members that throttle at once learn different rates, and a lost event is repaired."""
    breakers, events, _ = breakers_after([])
    other, _, _ = breakers_after([])
    for book in (breakers, other):
        book.events_heard([(b"s", 1, 1, 429, 5000, PEER, 1, 60_000)], NOW)
    breakers.events_heard([(b"s", 1, 1, 429, 1000, b"node-two", 2, 42_500)], NOW)
    last = events[-1]
    assert isinstance(last, BreakerOpened)
    assert (last.until_ns, last.reff) == (NOW + 5 * SECOND, 42.5)
    assert breakers.digest(NOW) != other.digest(NOW)
    other.events_heard([(b"s", 1, 1, 429, 5000, PEER, 1, 42_500)], NOW)
    assert breakers.digest(NOW) == other.digest(NOW)
