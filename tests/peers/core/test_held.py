"""Slots: how they are split, when a share counts, and whose word is fresh."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peers.core.config import MS, SECOND, Config
from peers.core.counters import Rule, Surroundings
from peers.core.gossip import Counters
from peers.core.held import HeldLimit, HeldRow, Want, split
from peers.core.outbox import Outbox
from peers.core.rows import NEVER, ROOM

HERE = ("127.0.0.1", 7946)
NOW = 1_000 * SECOND
DELAY = 2_500_000
RIPE = 2 * (27_500_000 + DELAY)
A, B = b"peer-one", b"peer-two"


def make_counters(members: int) -> Counters:
    config = Config(name="a", cluster="c", bind=HERE, advertise=HERE)
    return Counters(config, random.Random(7), Outbox(), Surroundings(members, members, DELAY), NOW)


def make_row(members: int = 1, slots: int = 12, known: int = 0, **facts: Any) -> HeldRow:
    limit = make_counters(members).table(
        HeldLimit,
        "id",
        Rule(slots, SECOND, slots),
        **{"name": "l", "on_partition": "share", "keys_max": 100, "dry_run": False, **facts},
    )
    limit.retune(Surroundings(members, known or members, DELAY))
    return limit.entry(b"", NOW)


def grab(row: HeldRow, now_ns: int) -> int:
    taken = 0
    while taken < 10_000 and row.ask(1, now_ns) == ROOM:
        row.take(1, now_ns)
        taken += 1
    return taken


def hear(row: HeldRow, now_ns: int, seq: int, held: int, wanted: int, **facts: Any) -> bool:
    entry = (row.key64, facts.get("gen", 1), held, wanted, facts.get("served_16", 16 * held))
    return row.hear(facts.get("node", A), facts.get("boot", 1), seq, entry, now_ns)


WANTS = st.lists(st.tuples(st.integers(0, 300), st.integers(0, 3000)), min_size=1, max_size=8)


@given(slots=st.integers(0, 200), told=WANTS, silent=st.integers(0, 4))
def test_all_shares_together_are_the_slots(
    slots: int, told: list[tuple[int, int]], silent: int
) -> None:
    wants = [Want(wanted, served, bytes([i])) for i, (wanted, served) in enumerate(told)]
    shares = split(slots, wants, len(wants) + silent)
    total = sum(wanted for wanted, _ in told)
    assert sum(shares) <= slots
    if total > slots:
        assert sum(shares) == slots
        assert all(
            abs(share * total - slots * want.wanted) < total
            for share, want in zip(shares, wants, strict=True)
        )
    else:
        assert all(share >= want.wanted for share, want in zip(shares, wants, strict=True))
    turned = split(slots, wants[::-1], len(wants) + silent)
    assert turned[::-1] == shares  # the order in which words came does not matter


def test_an_odd_slot_goes_to_whoever_had_least() -> None:
    assert split(1, [Want(5, 16, A), Want(5, 3, B)], 2) == [0, 1]
    assert split(1, [Want(5, 3, A), Want(5, 3, B)], 2) == [1, 0]


def test_whoever_has_its_whole_proportion_gets_no_odd_slot() -> None:
    assert split(3, [Want(4, 0, A), Want(1, 99, B), Want(1, 98, b"peer-333")], 3) == [2, 0, 1]


def test_alone_all_slots_and_back() -> None:
    row = make_row()
    assert grab(row, NOW) == 12
    assert row.ask(1, NOW) == SECOND
    assert row.ask(13, NOW) == NEVER
    row.give_back(5, NOW)
    assert row.ask(5, NOW) == ROOM
    assert row.limit.remaining(row, NOW) == (5, SECOND)
    row.give_back(99, NOW)
    assert (row.used, row.limit.underflows) == (0, 1)


def test_whoever_said_nothing_has_an_equal_part() -> None:
    row = make_row(3)
    assert grab(row, NOW) == 4
    row = make_row(3)
    hear(row, NOW, 1, 0, 6)
    assert grab(row, NOW) == 2  # (12 - 6) / 3


def test_a_greater_share_counts_two_horizons_after_it_was_told() -> None:
    row = make_row(2)
    assert grab(row, NOW) == 6
    row.hold(6)
    assert row.urgent
    row.tick(NOW + MS)
    row.tell(NOW + MS)
    wait_ns = row.ask(1, NOW + MS)
    assert wait_ns == RIPE
    assert row.ask(1, NOW + MS + RIPE - 1) == MS
    assert grab(row, NOW + MS + RIPE) == 6
    assert row.used == 12


def test_a_smaller_share_counts_at_once_and_what_is_beyond_is_told() -> None:
    row = make_row(2)
    assert grab(row, NOW) == 6
    row.urgent = False
    hear(row, NOW, 1, 0, 12)
    assert row.ask(1, NOW) > 0
    assert row.urgent
    row.give_back(6, NOW)
    assert row.ask(1, NOW) > 0  # it had told no wish yet


def test_what_another_holds_beyond_its_share_is_missing_here() -> None:
    row = make_row(2, slots=10)
    row.hold(10)
    row.tick(NOW)
    row.tell(NOW)
    hear(row, NOW, 1, 9, 10)
    later = NOW + RIPE
    hear(row, later, 2, 9, 10)
    assert grab(row, later) == 1
    hear(row, later, 3, 5, 10)
    assert grab(row, later) == 4


def test_old_words_and_old_lives_do_not_count() -> None:
    row = make_row(3)
    assert hear(row, NOW, 5, 2, 3)
    assert not hear(row, NOW, 5, 9, 9)
    assert not hear(row, NOW, 4, 9, 9)
    assert hear(row, NOW, 1, 1, 1, boot=2)
    assert not hear(row, NOW, 9, 9, 9)
    assert hear(row, NOW, 2, 4, 4, boot=2, gen=2)
    assert (row.peers[A].held, row.peers[A].want.wanted) == (4, 4)


def test_a_word_is_fresh_for_three_seconds() -> None:
    row = make_row(2)
    hear(row, NOW, 1, 12, 12)
    assert row.ask(1, NOW) > 0
    row.hold(12)
    for tick in range(130):
        now_ns = NOW + tick * 25 * MS
        if row.tick(now_ns):
            row.tell(now_ns)
    assert not row.peers
    assert grab(row, NOW + 4 * SECOND) == 12


def test_who_says_goodbye_holds_nothing() -> None:
    row = make_row(2)
    hear(row, NOW, 1, 12, 12)
    assert row.ask(1, NOW) > 0
    row.forget_peer(A)
    row.forget_peer(B)
    row.limit.retune(Surroundings(1, 1, DELAY))
    assert grab(row, NOW) == 12


def test_refused_arrivals_are_demand_that_fades() -> None:
    row = make_row(2)
    for _ in range(8):
        row.arrive(1, NOW)
    row.tick(NOW + 25 * MS)
    assert row.news
    assert row.tell(NOW + 25 * MS)[3] >= 7
    for tick in range(2, 400):
        row.tick(NOW + tick * 25 * MS)
    assert row.tell(NOW + 10 * SECOND)[2:] == (0, 0, 0)
    for _ in range(3):
        row.tell(NOW + 10 * SECOND)
    assert row.at_rest


def test_a_joiner_has_no_slot_before_all_have_spoken() -> None:
    counters = make_counters(3)
    counters.joining = True
    limit = counters.table(
        HeldLimit, "id", Rule(9, SECOND, 9),
        name="l", on_partition="share", keys_max=9, dry_run=False,
    )  # fmt: skip
    row = limit.entry(b"", NOW)
    assert row.ask(1, NOW) > 0
    counters.joined(alone=False, told=True, now_ns=NOW)
    assert row.ask(1, NOW + 499 * MS) > 0
    row.ask(1, NOW + 500 * MS)
    assert row.ask(1, NOW + 500 * MS + 2 * RIPE) == ROOM
    other = limit.entry(b"k", NOW)
    assert other.ask(1, NOW) == ROOM  # made later: peers reserve for it already


def test_rows_that_hold_slots_stay() -> None:
    limit = make_row(keys_max=2).limit
    rows = [limit.entry(key, NOW) for key in (b"a", b"b")]
    for row in rows:
        row.take(1, NOW)
    limit.entry(b"c", NOW)
    assert all(limit.entry(row.key, NOW) is row for row in rows)
    limit.expire(NOW + 100 * SECOND)
    assert limit.entry(b"a", NOW) is rows[0]


@pytest.mark.parametrize(("on_partition", "slots"), [("share", 4), ("open", 12), ("closed", 0)])
def test_a_cut_off_side(on_partition: str, slots: int) -> None:
    row = make_row(1, known=3, on_partition=on_partition)
    assert grab(row, NOW) == slots
    assert row.ask(1, NOW) == SECOND
    assert not row.foresees(1, NOW)  # a slot, or the others, may be back at any moment


class TestEasing:
    """The upstream found too many at a time (SIGNALS: a concurrency limit)."""

    def test_one_less_than_all_members_had_and_one_back_in_ten_seconds(self) -> None:
        row = make_row(3)
        limit = row.limit
        hear(row, NOW, 1, held=4, wanted=4)
        row.take(3, NOW)
        row.ease(NOW)
        assert (limit.slots, limit.eased, limit.announced.burst) == (6, 6, 6)
        assert limit.stats()["eased"] == 6
        assert not limit.stats()["differs"]  # nobody is configured otherwise
        row.ease(NOW + SECOND)
        assert limit.slots == 6  # seven were under way: that is no news
        limit.expire(NOW + 9 * SECOND)
        assert limit.slots == 6
        limit.expire(NOW + 35 * SECOND)  # looked at late, and all are given whose time has come
        assert limit.slots == 9
        limit.expire(NOW + 40 * SECOND)
        assert limit.slots == 10
        limit.expire(NOW + 300 * SECOND)
        assert (limit.slots, limit.announced) == (12, limit.rule)

    def test_one_slot_is_left(self) -> None:
        row = make_row(3, slots=2)
        for _ in range(9):
            row.ease(NOW)
        assert row.limit.slots == 1
        assert row.ask(2, NOW) != NEVER  # two are what it gives when all is well
        assert row.ask(3, NOW) == NEVER

    def test_a_reload_that_lowers_the_slots_leaves_one(self) -> None:
        row = make_row(3)
        row.take(1, NOW)
        row.ease(NOW)
        limit = row.limit
        limit.reconfigure(
            Rule(3, SECOND, 3), name="l", on_partition="share", keys_max=9, dry_run=False
        )
        assert limit.slots == 1
        limit.expire(NOW + 10 * SECOND)
        assert limit.slots == 2

    def test_the_smallest_word_of_all_members_rules(self) -> None:
        row = make_row(3)
        limit = row.limit
        limit.set_peer_rule(A, Rule(7, SECOND, 7))
        assert limit.slots == 7
        hear(row, NOW, 1, held=9, wanted=9)
        row.ease(NOW)
        assert (limit.slots, limit.announced.burst) == (7, 7)
        limit.set_peer_rule(A, Rule(12, SECOND, 12))
        assert limit.slots == 7
