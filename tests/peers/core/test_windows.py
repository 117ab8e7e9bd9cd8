"""A window row: whose window it is, what is left of it, and what it owes to the next."""

from __future__ import annotations

import random
from typing import Any

import pytest

from peers.core.config import MS, SECOND, Config
from peers.core.counters import Rule, Surroundings
from peers.core.gossip import Counters
from peers.core.outbox import Outbox
from peers.core.rows import NEVER, ROOM
from peers.core.windows import WindowLimit, WindowRow

HERE = ("127.0.0.1", 7946)
NOW = 1_000 * SECOND
DELAY = 2_500_000
PERIOD = 10 * SECOND
A, B = b"peer-one", b"peer-two"


def make_counters(members: int) -> Counters:
    config = Config(name="a", cluster="c", bind=HERE, advertise=HERE)
    return Counters(config, random.Random(7), Outbox(), Surroundings(members, members, DELAY), NOW)


def make_limit(
    members: int = 1,
    quota: int = 100,
    wall_offset_ns: int | None = None,
    known: int = 0,
    **facts: Any,
) -> WindowLimit:
    limit = make_counters(members).table(
        WindowLimit,
        "id",
        Rule(quota, PERIOD, quota),
        **{"name": "l", "on_partition": "share", "keys_max": 100, "dry_run": False, **facts},
    )
    limit.align(wall_offset_ns)
    limit.retune(Surroundings(members, known or members, DELAY))
    return limit


def make_row(members: int = 1, quota: int = 100) -> WindowRow:
    row = make_limit(members, quota).entry(b"", NOW)
    assert isinstance(row, WindowRow)
    return row


def grab(row: WindowRow, now_ns: int, cost: int = 1) -> int:
    taken = 0
    while taken < 10_000 and row.ask(cost, now_ns) == ROOM:
        row.take(cost, now_ns)
        taken += 1
    return taken


class Peer:
    """Tells a row what a peer counts."""

    def __init__(self, row: WindowRow, node: bytes = A) -> None:
        self.row = row
        self.node = node
        self.seq = 0
        self.count = 0

    def tell(
        self, now_ns: int, used: int, age_ns: int | None, total: int = 0, **facts: int
    ) -> bool:
        self.seq += 1
        age_1 = 0 if age_ns is None else age_ns // MS + 1
        entry = (
            self.row.key64,
            facts.get("gen", 1),
            facts.get("count", used),
            used,
            facts.get("lam_100", 0),
            facts.get("waiting", 0),
            max(total, used),
            age_1,
        )
        seq = facts.get("seq", self.seq)
        return self.row.hear(self.node, facts.get("boot", 1), seq, entry, now_ns)


class TestAlone:
    def test_the_first_use_opens_the_window_and_its_end_empties_it(self) -> None:
        row = make_row()
        assert row.ask(1, NOW) == ROOM
        assert row.ask(1, NOW + 3 * PERIOD) == ROOM  # asking opens none
        later = NOW + 4 * PERIOD
        assert grab(row, later) == 100
        assert row.ask(1, later + SECOND) == PERIOD - SECOND
        assert row.limit.remaining(row, later + SECOND) == (0, PERIOD - SECOND)
        assert row.ask(1, later + PERIOD - 1) == 1
        assert grab(row, later + PERIOD) == 100

    def test_costs(self) -> None:
        row = make_row()
        assert row.ask(101, NOW) == NEVER
        assert grab(row, NOW, cost=30) == 3
        assert row.ask(30, NOW) == PERIOD
        assert row.ask(10, NOW) == ROOM

    def test_debt_is_paid_by_the_windows_that_pass(self) -> None:
        row = make_row()
        row.take(250, NOW)  # a settled cost
        assert row.ask(1, NOW) == 2 * PERIOD
        assert row.ask(60, NOW) == 3 * PERIOD
        assert row.ask(1, NOW + PERIOD) == PERIOD
        assert row.level(NOW + PERIOD) == 150
        assert grab(row, NOW + 2 * PERIOD) == 50
        assert row.level(NOW + 10 * PERIOD) == 0

    def test_small_debt_waits_a_period_for_the_next_window(self) -> None:
        row = make_row()
        row.take(103, NOW)
        assert grab(row, NOW + PERIOD + SECOND) == 97
        assert row.limit.remaining(row, NOW + PERIOD + SECOND)[1] == PERIOD
        row = make_row()
        row.take(103, NOW)
        assert row.ask(1, NOW + PERIOD) == ROOM
        assert row.level(NOW + 2 * PERIOD) == 0
        assert grab(row, NOW + 2 * PERIOD + SECOND) == 100

    def test_windows_by_the_wall_clock(self) -> None:
        row = make_limit(wall_offset_ns=4 * SECOND).entry(b"", NOW)
        assert grab(row, NOW) == 100  # type: ignore[arg-type]
        assert row.ask(1, NOW) == 6 * SECOND
        assert grab(row, NOW + 6 * SECOND) == 100  # type: ignore[arg-type]
        assert row.ask(1, NOW + 57 * SECOND) == ROOM
        row.take(100, NOW + 57 * SECOND)
        assert row.ask(1, NOW + 57 * SECOND) == 9 * SECOND

    def test_rows_come_empty_and_go(self) -> None:
        limit = make_limit(keys_max=2)
        for key in (b"a", b"b"):
            limit.entry(key, NOW).take(1, NOW)
        limit.entry(b"c", NOW)  # throws out a, which was young
        assert limit.evicted == 1
        assert limit.entry(b"d", NOW).ask(1, NOW) > 0
        assert limit.entry(b"d", NOW).ask(1, NOW + PERIOD) == ROOM
        limit.tick(NOW + 5 * PERIOD, [], [])
        limit.expire(NOW + 60 * PERIOD)
        assert len(limit) == 0


class TestTogether:
    def test_without_demand_each_has_an_equal_part(self) -> None:
        assert 24 <= grab(make_row(4), NOW) <= 26

    def test_uses_of_peers_count_once_each(self) -> None:
        row, one, two = make_row(3), None, None
        one, two = Peer(row), Peer(row, B)
        one.tell(NOW, 30, 2 * SECOND)
        one.tell(NOW, 30, 2 * SECOND)
        two.tell(NOW, 20, 2 * SECOND)
        assert not one.tell(NOW, 90, 2 * SECOND, seq=1)
        one.tell(NOW, 35, 2 * SECOND)
        assert row.level(NOW) == 55
        assert row.mesh_count == 55
        assert row.end_ns == NOW + 8 * SECOND

    def test_the_earlier_start_wins_and_a_later_one_changes_nothing(self) -> None:
        row, peer = make_row(2), None
        peer = Peer(row)
        row.take(10, NOW)
        peer.tell(NOW + SECOND, 5, 4 * SECOND)
        assert row.end_ns == NOW + 7 * SECOND
        peer.tell(NOW + SECOND, 6, SECOND // 2)
        assert row.end_ns == NOW + 7 * SECOND
        assert row.level(NOW + SECOND) == 16
        told = row.picture(NOW + SECOND)
        assert told[3:4] + told[6:] == (10, 16, 4001)

    def test_echoes_do_not_move_a_window(self) -> None:
        """Ages are rounded down, so what comes back is never earlier than what went out."""
        rows = [make_row(2), make_row(2)]
        rows[0].take(1, NOW + 999_999)
        now_ns = NOW + 999_999
        for seq in range(200):
            now_ns += 333_333  # under a millisecond for the way
            entry = rows[seq % 2].picture(now_ns)
            rows[1 - seq % 2].hear(A, 1, seq, entry, now_ns + 1)
        for row in rows:
            assert 0 <= row.end_ns - (NOW + 999_999 + PERIOD) < 2 * MS

    def test_who_is_in_the_next_window_takes_us_along(self) -> None:
        row = make_row(2)
        peer = Peer(row)
        row.take(80, NOW)
        late = NOW + PERIOD - 2 * MS
        peer.tell(late, 7, MS)
        assert row.level(late) == 7
        assert row.end_ns == late - MS + PERIOD

    def test_news_of_the_window_before_is_no_use_of_this_one(self) -> None:
        row = make_row(2)
        peer = Peer(row)
        peer.tell(NOW, 50, PERIOD - MS, lam_100=1000)
        now_ns = NOW + 3 * MS
        row.take(1, now_ns)
        peer.tell(now_ns + MS, 60, PERIOD - 3 * MS, lam_100=1000)
        assert row.level(now_ns + MS) == 1
        assert row.peers_sum > 0.0
        peer.tell(now_ns + MS, 70, PERIOD + SECOND)
        assert row.level(now_ns + MS) == 1

    def test_a_new_life_begins_at_nothing_and_the_old_one_counts_on(self) -> None:
        row = make_row(2)
        peer = Peer(row)
        peer.tell(NOW, 30, SECOND)
        peer.tell(NOW, 5, SECOND, boot=2)
        assert row.level(NOW) == 35
        assert not peer.tell(NOW, 40, SECOND, boot=1)

    def test_no_window_is_open_at_the_peer(self) -> None:
        row = make_row(2)
        assert Peer(row).tell(NOW, 0, None, lam_100=100)
        assert row.level(NOW) == 0
        assert row.picture(NOW)[7] == 0

    def test_much_at_once_is_told_at_once(self) -> None:
        row = make_row(4, quota=320)
        for _ in range(9):
            assert row.ask(1, NOW) == ROOM
            row.take(1, NOW)
        assert not row.urgent
        row.take(1, NOW)
        assert row.urgent  # 320 / 8 / 4

    def test_a_silent_peer_is_charged_until_the_window_ends(self) -> None:
        row = make_row(2)
        peer = Peer(row)
        for tenth in range(1, 40):
            peer.tell(NOW + tenth * SECOND // 10, tenth, tenth * SECOND // 10, lam_100=1000)
        now_ns = NOW + 4 * SECOND
        for _ in range(20):
            now_ns += SECOND // 10
            row.tick(now_ns)
        assert row.level(now_ns) > 45
        assert row.picture(now_ns)[6] == 39  # what is told is what is known
        peer.tell(now_ns, 41, 6 * SECOND)
        assert row.level(now_ns) == pytest.approx(41)
        row.tick(NOW + PERIOD)
        assert row.level(NOW + PERIOD) == 0


class TestJoining:
    def make(self) -> tuple[Counters, WindowRow]:
        counters = make_counters(3)
        counters.joining = True
        limit = counters.table(
            WindowLimit, "id", Rule(100, PERIOD, 100),
            name="l", on_partition="share", keys_max=100, dry_run=False,
        )  # fmt: skip
        row = limit.entry(b"", NOW)
        assert isinstance(row, WindowRow)
        assert row.ask(1, NOW) == PERIOD
        return counters, row

    def test_a_total_is_taken_over_and_no_peer_counts_twice(self) -> None:
        _, row = self.make()
        Peer(row).tell(NOW, 30, 4 * SECOND, total=80)
        assert (row.level(NOW), row.end_ns) == (80, NOW + 6 * SECOND)
        other = Peer(row, B)
        other.tell(NOW, 50, 4 * SECOND, total=80)
        assert row.level(NOW) == 80
        other.tell(NOW, 53, 4 * SECOND, total=83)
        assert row.level(NOW) == 83

    @pytest.mark.parametrize(("alone", "told"), [(True, False), (False, True)])
    def test_where_nothing_was_told_nothing_was_used(self, alone: bool, told: bool) -> None:
        counters, row = self.make()
        counters.joined(alone=alone, told=told, now_ns=NOW)
        assert row.level(NOW) == 0

    def test_without_a_snapshot_a_window_is_not_lost_whole(self) -> None:
        counters, row = self.make()
        counters.joined(alone=False, told=False, now_ns=NOW)
        assert row.ask(1, NOW) == 5 * SECOND
        assert row.ask(1, NOW + 5 * SECOND) == ROOM

    def test_news_before_the_row_is_made(self) -> None:
        counters, row = self.make()
        counters.joining = False
        name = row.key64
        row.limit.drop_all()
        for node, used in ((A, 30), (B, 20)):
            entry = (name, 1, used, used, 0, 0, 50, 1001)
            counters.entries_heard(row.kind, node, 1, 1, [entry], NOW)
        row = row.limit.entry(b"", NOW + SECOND)  # type: ignore[assignment]
        assert (row.level(NOW + SECOND), row.end_ns) == (50, NOW + 9 * SECOND)


@pytest.mark.parametrize(("on_partition", "quota"), [("share", 50), ("open", 100), ("closed", 0)])
def test_a_cut_off_side(on_partition: str, quota: int) -> None:
    limit = make_limit(1, known=2, on_partition=on_partition)
    row: Any = limit.entry(b"", NOW)
    assert grab(row, NOW) == quota
    wait_ns = row.ask(1, NOW)
    assert wait_ns == (SECOND if quota == 0 else PERIOD)
    assert limit.stats()["rate"] == quota / 10 if quota else limit.closed
