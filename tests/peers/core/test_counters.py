"""Limits and their tables: what is in force, which rows exist, what goes out and comes in."""

from __future__ import annotations

import random

import pytest

from peers.core.config import MS, SECOND, Config
from peers.core.counters import MeshLimit, Rule, Surroundings
from peers.core.gossip import Counters, key64
from peers.core.outbox import Outbox
from peers.core.rows import ROOM
from peers.core.wire import Head as WireHead
from peers.core.wire import Kind, join, pack_head, unpack

HERE = ("127.0.0.1", 7946)
NOW = 1_000 * SECOND
DELAY = 2_500_000
RULE = Rule(100, SECOND, 100)
PEER = b"peer-one"


class Bench:
    """Counters with an outbox whose frames can be read."""

    def __init__(self, members: int = 2, **knobs: int) -> None:
        config = Config(name="a", cluster="c", bind=HERE, advertise=HERE, **knobs)
        self.outbox = Outbox()
        self.members = members
        surroundings = Surroundings(members, members, DELAY)
        self.counters = Counters(config, random.Random(7), self.outbox, surroundings, NOW)
        self.wakes = 0
        self.counters.on_wake = self._woken

    def _woken(self) -> None:
        self.wakes += 1

    def limit(
        self,
        identity: str = "id",
        rule: Rule = RULE,
        keys_max: int = 100,
        on_partition: str = "share",
    ) -> MeshLimit:
        return self.counters.limit(
            identity,
            rule,
            name="limit",
            on_partition=on_partition,
            keys_max=keys_max,
            dry_run=False,
        )

    def sent(self, now_ns: int) -> list[tuple[int, ...]]:
        """Entries that leave now."""
        self.counters.tick(now_ns)
        self.counters.flush(now_ns, self.members - 1)
        head = pack_head(WireHead(1, b"12345678", 1))
        entries: list[tuple[int, ...]] = []
        for data, _ in self.outbox.drain(lambda frames: join(head, frames), [HERE]):
            for frame in unpack(data).frames:
                if frame[0] == Kind.COUNTERS:
                    entries.extend(frame[1:])
        return entries


class TestNames:
    def test_a_counter_has_one_name_in_a_cluster_and_another_elsewhere(self) -> None:
        names = {
            key64("c", "id", b"k"),
            key64("d", "id", b"k"),
            key64("c", "ie", b"k"),
            key64("c", "id", b"l"),
            key64("c", "idk", b""),
        }
        assert len(names) == 5
        assert key64("c", "id", b"k") == key64("c", "id", b"k") < 1 << 64


class TestInForce:
    def test_the_cadence_follows_the_bucket(self) -> None:
        bench = Bench()
        cadences = [
            bench.limit(str(burst), Rule(100, SECOND, burst)).cadence_ns // MS
            for burst in (1, 20, 100, 160, 1000)
        ]
        assert cadences == [25, 25, 125, 200, 200]

    def test_a_minority_works_at_its_share(self) -> None:
        limit = Bench(8).limit()
        limit.retune(Surroundings(4, 8, DELAY))
        assert limit.rate * SECOND == pytest.approx(50)
        limit.retune(Surroundings(5, 8, DELAY))
        assert limit.rate * SECOND == pytest.approx(100)

    def test_open_and_closed(self) -> None:
        bench = Bench(8)
        opened = bench.limit("o", on_partition="open")
        closed = bench.limit("c", on_partition="closed")
        for limit in (opened, closed):
            limit.retune(Surroundings(4, 8, DELAY))
        assert opened.rate * SECOND == pytest.approx(100)
        row = closed.entry(b"", NOW)
        assert row.ask(1, NOW) == SECOND
        assert closed.remaining(row, NOW)[0] == 0
        closed.retune(Surroundings(5, 8, DELAY))
        assert row.ask(1, NOW) == ROOM

    def test_members_that_differ_obey_the_smaller(self) -> None:
        bench = Bench()
        limit = bench.limit()
        name = bench.counters._rule_name("id")
        bench.counters.rules_heard(PEER, [(name, 50, SECOND, 200), (1, 1, 1, 1)])
        assert limit.effective == Rule(50, SECOND, 100)
        assert limit.stats()["differs"]
        bench.counters.rules_heard(PEER, [(name, 600, 60 * SECOND, 7)])
        assert limit.effective.burst == 7
        assert limit.rate * SECOND == pytest.approx(10)
        bench.counters.rules_heard(PEER, [(name, *RULE._replace(burst=RULE.burst + 1))])
        assert limit.effective == RULE
        assert limit.stats()["differs"]  # known to who has the smaller figures as well
        bench.counters.rules_heard(PEER, [(name, *RULE)])
        assert not limit.stats()["differs"]
        bench.counters.member_gone(PEER, left=False)
        assert limit.effective == RULE

    def test_reconfigured_it_keeps_rows_and_counts(self) -> None:
        bench = Bench(1)
        limit = bench.limit()
        row = limit.entry(b"k", NOW)
        row.take(60, NOW)
        again = bench.limit(rule=Rule(200, SECOND, 300))
        assert again is limit
        assert limit.entry(b"k", NOW) is row
        assert row.own == 60
        assert limit.remaining(row, NOW) == (240, 300 * MS)

    def test_a_learned_rate_scales_it(self) -> None:
        limit = Bench(1).limit()
        limit.set_rate_factor(0.42)
        assert limit.rate * SECOND == pytest.approx(42)
        limit.set_rate_factor(5.0)
        assert limit.rate * SECOND == pytest.approx(100)

    def test_alone_nothing_can_be_over(self) -> None:
        assert Bench(1).limit().excess_bound() == 0.0
        assert Bench(8).limit().excess_bound() == pytest.approx(8 + 8)

    def test_a_live_member_of_which_nothing_is_heard_may_have_spent_the_rate(self) -> None:
        limit = Bench(8).limit()
        limit.retune(Surroundings(8, 8, DELAY, unheard=frozenset({PEER}), unheard_ns=7 * SECOND))
        assert limit.excess_bound() == pytest.approx(8 + 8 + 700)
        limit.retune(Surroundings(8, 8, DELAY))
        assert limit.excess_bound() == pytest.approx(8 + 8)


class TestTable:
    def test_the_least_recently_used_goes_first_never_one_that_is_waited_for(self) -> None:
        limit = Bench(1).limit(keys_max=3)
        rows = {key: limit.entry(key, NOW) for key in (b"a", b"b", b"c")}
        limit.entry(b"a", NOW)
        rows[b"b"].waiting = object()
        limit.entry(b"d", NOW)
        assert {row.key for row in limit.rows()} == {b"a", b"b", b"d"}
        assert limit.evicted == 1
        assert limit.entry(b"b", NOW) is rows[b"b"]

    def test_if_all_are_waited_for_the_table_grows(self) -> None:
        limit = Bench(1).limit(keys_max=2)
        for number in range(5):
            limit.entry(b"%d" % number, NOW).waiting = object()
        assert len(limit) == 5
        assert limit.evicted == 0

    def test_a_crowded_table_starts_rows_full(self) -> None:
        """Otherwise a key that comes back after its eviction had a fresh burst."""
        limit = Bench(1).limit(keys_max=2)
        for key in (b"a", b"b", b"c"):
            row = limit.entry(key, NOW)
            row.ask(1, NOW)
        assert limit.started_full == 1
        assert row.ask(1, NOW) > 0
        later = NOW + 3 * SECOND  # 2 burst/rate and one more
        assert limit.entry(b"d", later).ask(100, later) == ROOM

    def test_rows_at_rest_expire_when_empty(self) -> None:
        bench = Bench(1)
        limit = bench.limit()
        row = limit.entry(b"a", NOW)
        row.take(100, NOW)
        limit.entry(b"b", NOW).waiting = object()
        for step in range(70):
            bench.counters.tick(NOW + step * SECOND)
        assert [row.key for row in limit.rows()] == [b"b"]
        assert bench.counters.rows_count == 1
        again = limit.entry(b"a", NOW + 70 * SECOND)
        assert again.gen > row.gen

    def test_a_forgotten_limit_leaves_nothing(self) -> None:
        bench = Bench(1)
        bench.limit().entry(b"a", NOW).arrive(1, NOW)
        bench.counters.forget_limit("id")
        bench.counters.forget_limit("id")
        assert bench.counters.rows_count == 0
        assert bench.counters.limits() == []
        assert bench.sent(NOW + SECOND) == []


class TestOut:
    def test_a_row_at_work_is_told_at_the_cadence(self) -> None:
        bench = Bench()
        row = bench.limit().entry(b"", NOW)
        row.arrive(30, NOW)
        assert bench.wakes == 1
        row.take(30, NOW)
        assert bench.sent(NOW + 100 * MS) == []
        (entry,) = bench.sent(NOW + 140 * MS)
        assert entry[:4] == (row.key64, row.gen, 30, 30)
        wake_ns = bench.counters.next_wake_ns(NOW + 140 * MS)
        assert 0.9 * 125 * MS <= wake_ns - NOW - 140 * MS <= 1.1 * 125 * MS

    def test_many_rows_take_several_turns(self) -> None:
        bench = Bench()
        limit = bench.limit(keys_max=1000)
        for number in range(600):
            row = limit.entry(b"%d" % number, NOW)
            row.arrive(60, NOW)
            row.take(60, NOW)
        now_ns = NOW + 200 * MS
        counts = []
        for _ in range(4):
            counts.append(len(bench.sent(now_ns)))
            now_ns += MS
        assert counts == [250, 250, 100, 0]

    def test_a_byte_budget_puts_the_least_urgent_off(self) -> None:
        bench = Bench(counter_bytes_per_second=27_000)
        limit = bench.limit(keys_max=1000)
        for number in range(200):
            row = limit.entry(b"%d" % number, NOW)
            row.arrive(60 + number % 7, NOW)
            row.take(60 + number % 7, NOW)
        entries = bench.sent(NOW + 200 * MS)
        assert len(entries) == 100  # a tenth of a second of 27,000 bytes at 27 an entry
        assert bench.counters.deferred == 100
        again = bench.sent(NOW + 400 * MS)
        assert len(again) == 100
        assert {entry[0] for entry in entries}.isdisjoint(entry[0] for entry in again)

    def test_the_digest_comes_round_to_every_key(self) -> None:
        bench = Bench()
        limit = bench.limit(keys_max=1000)
        names = set()
        for number in range(100):
            row = limit.entry(b"%d" % number, NOW)
            row.take(1, NOW)
            names.add(row.key64)
        now_ns = NOW
        for _ in range(80):  # all have told that they are idle after 20 s
            now_ns += 250 * MS
            bench.sent(now_ns)
        assert limit.active_count == 0
        seen = set()
        for _ in range(24):
            now_ns += 250 * MS
            seen.update(entry[0] for entry in bench.sent(now_ns))
        assert seen == names

    def test_alone_nobody_is_told(self) -> None:
        bench = Bench(1)
        row = bench.limit().entry(b"", NOW)
        row.arrive(30, NOW)
        row.take(30, NOW)
        bench.counters.tick(NOW + SECOND)
        bench.counters.flush(NOW + SECOND, 0)
        assert not bench.outbox.waiting


class TestIn:
    ENTRY = (0, 1, 40, 40, 0, 0, 40 * 16)

    def entry(self, key: bytes = b"k", **changes: int) -> tuple[int, int, int, int, int, int, int]:
        _, gen, total, delta, lam, waiting, level_16 = self.ENTRY
        level_16 = changes.get("level_16", level_16)
        return key64("c", "id", key), gen, total, delta, lam, waiting, level_16

    def test_news_of_a_key_not_met_is_kept_for_its_row(self) -> None:
        bench = Bench()
        bench.counters.entries_heard(Kind.COUNTERS, PEER, 1, 1, [self.entry()], NOW)
        assert bench.counters.strays_count == 1
        row = bench.limit().entry(b"k", NOW + 100 * MS)
        assert bench.counters.strays_count == 0
        assert row.level(NOW + 100 * MS) == pytest.approx(30.0)
        assert row.peers[PEER].count == 40

    def test_an_old_stray_has_drained(self) -> None:
        bench = Bench()
        bench.counters.entries_heard(Kind.COUNTERS, PEER, 1, 1, [self.entry()], NOW)
        assert bench.limit().entry(b"k", NOW + SECOND).level(NOW + SECOND) == 0.0

    def test_only_the_newest_stray_of_a_peer_counts(self) -> None:
        bench = Bench()
        bench.counters.entries_heard(Kind.COUNTERS, PEER, 1, 2, [self.entry()], NOW)
        bench.counters.entries_heard(Kind.COUNTERS, PEER, 1, 1, [self.entry(level_16=16)], NOW)
        assert bench.limit().entry(b"k", NOW).level(NOW) == pytest.approx(40.0)

    def test_strays_are_bounded(self) -> None:
        bench = Bench(strays_max=10)
        for number in range(50):
            entry = (number, 1, 1, 1, 0, 0, 0)
            bench.counters.entries_heard(Kind.COUNTERS, PEER, 1, 1, [entry], NOW)
        assert bench.counters.strays_count == 10

    def test_a_row_that_is_waited_for_reports_its_news_once(self) -> None:
        bench = Bench()
        row = bench.limit().entry(b"k", NOW)
        bench.counters.entries_heard(Kind.COUNTERS, PEER, 1, 1, [self.entry()], NOW)
        assert not bench.counters.changed
        row.waiting = object()
        for seq in (2, 3, 3):
            bench.counters.entries_heard(Kind.COUNTERS, PEER, 1, seq, [self.entry()], NOW)
        assert list(bench.counters.changed) == [row]


class TestJoining:
    def test_rows_start_full_until_news_comes(self) -> None:
        bench = Bench()
        bench.counters.joining = True
        row = bench.limit().entry(b"k", NOW)
        assert row.level(NOW) == 100
        entry = TestIn().entry()
        bench.counters.snapshot_heard(Kind.COUNTERS, PEER, 1, 1, [entry], NOW)
        assert row.level(NOW) == pytest.approx(40.0)

    def test_its_presumptions_are_told_to_nobody(self) -> None:
        bench = Bench()
        bench.counters.joining = True
        row = bench.limit().entry(b"k", NOW)
        row.arrive(60, NOW)
        assert bench.sent(NOW + 200 * MS) == []
        bench.counters.joined(alone=False, told=False, now_ns=NOW + 300 * MS)
        assert [entry[0] for entry in bench.sent(NOW + 400 * MS)] == [row.key64]

    def test_a_node_that_nobody_answers_has_its_burst(self) -> None:
        bench = Bench(1)
        bench.counters.joining = True
        row = bench.limit().entry(b"k", NOW)
        assert row.ask(1, NOW) > 0
        bench.counters.joined(alone=True, told=False, now_ns=NOW)
        assert row.ask(100, NOW) == ROOM

    def test_what_it_took_meanwhile_still_counts(self) -> None:
        bench = Bench(1)
        bench.counters.joining = True
        row = bench.limit().entry(b"k", NOW)
        later = NOW + 100 * MS
        assert row.ask(10, later) == ROOM
        row.take(10, later)
        bench.counters.joined(alone=True, told=False, now_ns=later)
        assert row.level(later) == pytest.approx(10.0)
