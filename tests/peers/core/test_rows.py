"""The reservation algorithm on one row: what it grants, what it holds back, what news does."""

from __future__ import annotations

import random

import pytest

from peers.core.config import MS, SECOND, Config
from peers.core.counters import MeshLimit, Rule, Surroundings
from peers.core.gossip import Counters
from peers.core.outbox import Outbox
from peers.core.rows import NEVER, ROOM, MeshRow
from peers.core.share import Due

HERE = ("127.0.0.1", 7946)
NOW = 1_000 * SECOND
DELAY = 2_500_000
PEER, OTHER = b"peer-one", b"peer-two"


def make_limit(
    members: int = 1,
    rate: int = 100,
    burst: int = 100,
    period_ns: int = SECOND,
    on_partition: str = "share",
) -> MeshLimit:
    config = Config(name="a", cluster="c", bind=HERE, advertise=HERE)
    surroundings = Surroundings(members, members, DELAY)
    counters = Counters(config, random.Random(7), Outbox(), surroundings, NOW)
    return counters.limit(
        "id",
        Rule(rate, period_ns, burst),
        name="limit",
        on_partition=on_partition,
        keys_max=10_000,
        dry_run=False,
    )


def make_row(members: int = 1, rate: int = 100, burst: int = 100) -> MeshRow:
    return make_limit(members, rate, burst).entry(b"", NOW)


def grab(row: MeshRow, now_ns: int, most: int = 10_000, cost: int = 1) -> int:
    """Takes as much as is granted at one moment."""
    taken = 0
    while taken < most and row.ask(cost, now_ns) == ROOM:
        row.take(cost, now_ns)
        taken += 1
    return taken


def hear(
    row: MeshRow,
    now_ns: int,
    seq: int = 1,
    total: int = 0,
    delta: int = 0,
    *,
    lam_100: int = 0,
    waiting: int = 0,
    level: float = 0.0,
    node: bytes = PEER,
    boot: int = 1,
    gen: int = 1,
) -> bool:
    """An entry of a peer comes in."""
    entry = (row.key64, gen, total, delta, lam_100, waiting, int(level * 16))
    return row.hear(node, boot, seq, entry, now_ns)


class TestAlone:
    """One member has the whole bucket."""

    def test_a_full_burst_then_the_rate(self) -> None:
        row = make_row()
        assert grab(row, NOW) == 100
        wait_ns = row.ask(1, NOW)
        assert wait_ns == 10 * MS
        assert row.ask(1, NOW + wait_ns - 1) > 0
        assert grab(row, NOW + wait_ns) == 1
        assert grab(row, NOW + 10 * SECOND) == 100

    def test_asking_changes_nothing(self) -> None:
        row = make_row()
        for _ in range(1000):
            assert row.ask(100, NOW) == ROOM
        assert row.own == 0
        assert row.level(NOW) == 0.0

    def test_a_cost_over_the_burst_can_never_be_had(self) -> None:
        row = make_row(burst=10)
        assert row.ask(10, NOW) == ROOM
        assert row.ask(11, NOW) == NEVER

    def test_costs_are_whole_tokens(self) -> None:
        row = make_row()
        assert grab(row, NOW, cost=7) == 14
        assert row.own == 98
        assert row.ask(7, NOW) == 50 * MS
        assert row.ask(2, NOW) == ROOM

    def test_what_remains(self) -> None:
        row = make_row()
        grab(row, NOW, most=30)
        assert row.limit.remaining(row, NOW) == (70, 300 * MS)
        assert row.limit.remaining(row, NOW + 100 * MS) == (80, 200 * MS)
        assert row.limit.remaining(row, NOW + SECOND) == (100, 0)

    def test_tokens_of_a_rate_are_not_given_back(self) -> None:
        row = make_row()
        grab(row, NOW, most=10)
        row.give_back(10, NOW)
        assert row.level(NOW) == 10.0

    def test_filled_it_has_no_burst(self) -> None:
        row = make_row()
        row.fill(NOW)
        assert grab(row, NOW) == 0
        assert grab(row, NOW + 100 * MS) == 10

    def test_slow_rates_are_exact(self) -> None:
        row = make_limit(rate=10, period_ns=86_400 * SECOND, burst=1).entry(b"", NOW)
        assert grab(row, NOW) == 1
        wait_ns = row.ask(1, NOW)
        assert wait_ns == pytest.approx(8_640 * SECOND, abs=1_000)
        assert row.ask(1, NOW + wait_ns - 1_000_000) > 0
        assert grab(row, NOW + wait_ns) == 1


class TestShare:
    """Several members: what is unseen stays within one's share of what is free."""

    def test_the_first_burst_is_an_equal_part(self) -> None:
        row = make_row(members=4)
        assert 25 <= grab(row, NOW) <= 26
        assert row.ask(1, NOW) >= MS

    def test_what_peers_have_seen_is_no_longer_in_flight(self) -> None:
        row = make_row(members=4)
        first = grab(row, NOW)
        row.tell(NOW)
        assert grab(row, NOW + DELAY - 1) == 0
        again = grab(row, NOW + DELAY)
        assert abs(again - (100 - first) / 4) <= 1

    def test_announced_demand_gets_its_part_once_it_is_ripe(self) -> None:
        row = make_row(members=4)
        hear(row, NOW, waiting=30)
        row.hold(90)
        row.tell(NOW)
        limit = row.limit
        assert grab(row, NOW + limit.ripe_ns - 1) <= 20  # a quarter of what 30 leave of 100
        row = make_row(members=4)
        hear(row, NOW, waiting=30)
        row.hold(90)
        row.tell(NOW)
        granted = grab(row, NOW + row.limit.ripe_ns)
        assert abs(granted - 100 * 90 / 120) <= 1

    def test_a_fraction_of_a_token_is_a_chance(self) -> None:
        """Eight members with demand for far more than there is: each gets its part on average,
        and what is in flight never is more than one over the part."""
        granted = 0
        rounds = 2_000
        limit = make_limit(members=8, rate=1, burst=2)
        for number in range(rounds):
            row = limit.entry(b"%d" % number, NOW)
            hear(row, NOW, waiting=70)
            granted += grab(row, NOW)
        assert 0.02 < granted / rounds < 0.06  # 2 tokens of 70 + 1 waiting: 0.028 and the spare

    def test_the_wait_is_honest(self) -> None:
        """Nobody speaks, time passes: at the told moment, or soon after it, there is room."""
        row = make_row(members=4)
        now_ns = NOW
        grab(row, now_ns)
        for _ in range(50):
            wait_ns = row.ask(1, now_ns)
            if wait_ns == ROOM:
                break
            assert MS <= wait_ns <= 2 * row.limit.cadence_ns
            now_ns += wait_ns
        assert row.ask(1, now_ns) == ROOM
        assert now_ns - NOW <= 60 * MS  # the rate gives a quarter of a token in 10 ms

    def test_a_granted_chance_is_not_revoked(self) -> None:
        """Asked again within a horizon the answer is the same as long as nothing changes."""
        row = make_row(members=4)
        grab(row, NOW, most=25)
        answers = {row.ask(1, NOW) == ROOM for _ in range(100)}
        assert len(answers) == 1

    def test_a_cost_over_the_share_is_had_by_chance(self) -> None:
        limit = make_limit(members=4, rate=100, burst=20)
        granted = 0
        for number in range(400):
            row = limit.entry(b"%d" % number, NOW)
            hear(row, NOW, waiting=30)
            granted += grab(row, NOW, most=1, cost=10)
        assert 160 <= granted <= 240  # 10 of 40 wanted: a part of 5, half a request

    def test_a_small_bucket_grows_to_what_two_horizons_bring(self) -> None:
        limit = make_limit(members=8, rate=1000, burst=32)
        assert limit.effective_burst == pytest.approx(1 + 2 * limit.horizon_ns / MS)
        assert make_limit(members=1, rate=1000, burst=32).effective_burst == 32


class TestNews:
    def test_counts_are_absolute_and_copies_harmless(self) -> None:
        row = make_row(members=2)
        assert hear(row, NOW, 1, total=10, delta=10, level=10)
        level = row.level(NOW)
        assert level == 10.0
        assert not hear(row, NOW, 1, total=10, delta=10, level=10)
        assert hear(row, NOW, 3, total=30, delta=5, level=30)
        assert row.level(NOW) == 30.0
        assert not hear(row, NOW, 2, total=25, delta=15, level=25)
        assert row.level(NOW) == 30.0

    def test_an_unknown_peer_brings_only_its_latest(self) -> None:
        row = make_row(members=2)
        hear(row, NOW, 9, total=5_000, delta=3, level=3)
        assert row.level(NOW) == 3.0

    def test_a_new_life_counts_from_nothing(self) -> None:
        row = make_row(members=2)
        hear(row, NOW, 9, total=50, delta=50, level=50)
        assert hear(row, NOW, 1, total=5, delta=5, boot=2, level=55)
        assert row.level(NOW) == 55.0
        assert hear(row, NOW, 2, total=2, delta=2, boot=2, gen=2, level=57)
        assert row.level(NOW) == 57.0
        assert not hear(row, NOW, 99, total=99, boot=1, gen=9)
        assert not hear(row, NOW, 99, total=99, boot=2, gen=1)

    def test_late_news_is_debt_and_debt_is_capped(self) -> None:
        row = make_row(members=2, rate=100, burst=100)
        hear(row, NOW, 1)
        hear(row, NOW, 2, total=1_000_000, delta=9, level=10_000)
        assert row.level(NOW) == 100 + 200
        assert row.ask(1, NOW) == 2 * SECOND + 10 * MS

    def test_levels_that_drifted_apart_creep_together(self) -> None:
        row = make_row(members=2)
        now_ns = NOW
        for seq in range(1, 200):
            now_ns += 100 * MS
            hear(row, now_ns, seq, total=1, lam_100=1, level=50)
        band = 1 + 100 * row.limit.horizon_ns / SECOND / 2
        # Each tenth of a second drains ten tokens and the gain brings a tenth of the difference.
        assert 0 < row.level(now_ns) <= 50 - band

    def test_peers_sum_is_what_they_want_within_a_horizon(self) -> None:
        row = make_row(members=3)
        horizon_s = row.limit.horizon_ns / SECOND
        hear(row, NOW, 1, lam_100=10_000)
        assert row.peers_sum == pytest.approx(100 * horizon_s)
        hear(row, NOW, 1, waiting=40, node=OTHER)
        assert row.peers_sum == pytest.approx(100 * horizon_s + 40)
        row.forget_peer(PEER)
        assert row.peers_sum == 40
        hear(row, NOW, 2, node=OTHER)
        assert row.peers_sum == 0


class TestSilence:
    def speak(self, row: MeshRow, now_ns: int, seconds: int) -> int:
        """A peer that admits 40 a second and says so every 100 ms."""
        for step in range(seconds * 10):
            now_ns += 100 * MS
            hear(row, now_ns, step + 1, total=4 * step, delta=4, lam_100=4_000)
            row.tick(now_ns)
        return now_ns

    def test_a_silent_peer_is_charged_and_trued_up(self) -> None:
        row = make_row(members=2, rate=100, burst=1000)
        now_ns = self.speak(row, NOW, 30)
        rate = row.peers[PEER].rate * SECOND
        assert rate == pytest.approx(40, rel=0.01)
        for _ in range(100):
            now_ns += 100 * MS
            row.tick(now_ns)
        phantom = row.peers[PEER].phantom
        assert phantom == pytest.approx(40 * 10, rel=0.01)
        before = row.level(now_ns)
        total = row.peers[PEER].count
        hear(row, now_ns, 10_000, total=total, lam_100=4_000, level=before)
        assert row.level(now_ns) == max(0.0, before - phantom)
        assert row.peers[PEER].phantom == 0.0

    def test_nothing_is_charged_in_the_first_half_second_and_then_all_of_it(self) -> None:
        row = make_row(members=2, rate=100, burst=1000)
        now_ns = self.speak(row, NOW, 30)
        for step in range(1, 8):
            row.tick(now_ns + step * 100 * MS)
            charged_s = 0.0 if step <= 5 else step / 10
            assert row.peers[PEER].phantom == pytest.approx(40 * charged_s, rel=0.01)

    def test_a_load_that_has_just_begun_is_charged_as_it_is(self) -> None:
        """Its average began at 0; two seconds of three would be half of the rate."""
        row = make_row(members=2, rate=100, burst=1000)
        self.speak(row, NOW, 2)
        assert row.peers[PEER].rate * SECOND == pytest.approx(40, rel=0.01)

    def test_a_load_after_an_idle_time_begins_anew(self) -> None:
        row = make_row(members=2, rate=100, burst=1000)
        hear(row, NOW, 1, total=0)
        now_ns = NOW + 60 * SECOND
        for step in range(10):
            now_ns += 100 * MS
            hear(row, now_ns, step + 2, total=4 * (step + 1), delta=4, lam_100=4_000)
        assert row.peers[PEER].rate * SECOND == pytest.approx(40, rel=0.01)

    def test_one_token_in_a_short_time_is_no_rate(self) -> None:
        row = make_row(members=2, rate=100, burst=1000)
        hear(row, NOW, 1, total=0, lam_100=100)
        hear(row, NOW + MS, 2, total=1, delta=1, lam_100=100)
        assert row.peers[PEER].rate * SECOND == pytest.approx(1 / 0.45, rel=0.01)

    def test_after_half_a_minute_it_is_forgotten(self) -> None:
        row = make_row(members=2, rate=100, burst=1000)
        now_ns = self.speak(row, NOW, 5)
        assert row.peers_sum > 0
        for _ in range(310):
            now_ns += 100 * MS
            row.tick(now_ns)
        assert PEER not in row.peers
        assert row.peers_sum == 0

    def test_who_said_it_is_idle_is_not_charged(self) -> None:
        row = make_row(members=2)
        now_ns = self.speak(row, NOW, 5)
        total = row.peers[PEER].count
        hear(row, now_ns, 10_000, total=total)
        level = row.level(now_ns + 5 * SECOND)
        for _ in range(50):
            now_ns += 100 * MS
            row.tick(now_ns)
        assert row.level(now_ns) == level == 0.0

    def test_beyond_a_partition_that_halved_the_rate_nobody_is_charged(self) -> None:
        row = make_row(members=2, rate=100, burst=1000)
        now_ns = self.speak(row, NOW, 30)
        row.limit.retune(Surroundings(1, 2, DELAY, frozenset({PEER})))
        assert row.limit.rate * SECOND == 50
        for _ in range(100):
            now_ns += 100 * MS
            row.tick(now_ns)
        assert row.level(now_ns) == 0.0
        # What it spent of its half meanwhile is no debt, and what is over that is.
        row.limit.retune(Surroundings(2, 2, DELAY))
        total = row.peers[PEER].count
        hear(row, now_ns, 10_000, total=total + 600, lam_100=4_000, level=100)
        assert row.level(now_ns) == pytest.approx(600 - 50 * 9.5, abs=10)


class TestTick:
    def test_a_contended_row_speaks_on_every_change(self) -> None:
        row = make_row(members=2)
        hear(row, NOW, waiting=500)
        row.arrive(1, NOW)
        grab(row, NOW, most=1)
        assert row.tick(NOW + 125 * MS) == Due.CONTENDED
        row.tell(NOW + 125 * MS)
        assert row.tick(NOW + 126 * MS) == Due.NOTHING

    def test_a_calm_row_lets_a_quarter_of_its_part_gather(self) -> None:
        row = make_row(members=2)
        now_ns = NOW + SECOND
        row.tell(now_ns)
        grab(row, now_ns, most=5)
        assert row.tick(now_ns + MS) == Due.NOTHING
        grab(row, now_ns, most=8)
        assert row.tick(now_ns + 2 * MS) == Due.CALM

    def test_a_change_goes_within_the_refresh(self) -> None:
        row = make_row(members=2)
        row.tell(NOW)
        grab(row, NOW, most=1)
        assert row.tick(NOW + 249 * MS) == Due.NOTHING
        assert row.tick(NOW + 250 * MS) == Due.CALM

    def test_an_idle_row_says_so_three_times_and_rests(self) -> None:
        row = make_row(members=2)
        now_ns = NOW
        row.arrive(1, now_ns)
        told = []
        for _ in range(400):
            now_ns += 125 * MS
            if row.tick(now_ns) != Due.NOTHING:
                told.append(row.tell(now_ns))
        assert [entry[4] for entry in told[-3:]] == [0, 0, 0]
        assert told[-4][4] > 0
        assert row.at_rest

    def test_demand_is_averaged_over_a_third_of_a_second(self) -> None:
        row = make_row(members=2)
        now_ns = NOW
        for _ in range(40):
            now_ns += 50 * MS
            row.arrive(4, now_ns)
            row.tick(now_ns)
        assert row.tell(now_ns)[4] == pytest.approx(8_000, rel=0.01)
        row.tick(now_ns + 300 * MS)
        assert row.tell(now_ns + 300 * MS)[4] == pytest.approx(8_000 * 0.368, rel=0.01)

    def test_an_entry_says_what_is_new_since_the_last(self) -> None:
        row = make_row(members=2)
        grab(row, NOW, most=3)
        row.hold(2)
        key, gen, total, delta, _, waiting, level_16 = row.tell(NOW)
        assert (key, gen) == (row.key64, row.gen)
        assert (total, delta, waiting, level_16) == (3, 3, 2, 48)
        assert row.tell(NOW)[2:4] == (3, 0)
        assert row.picture(NOW)[2:4] == (3, 0)

    def test_notes_of_what_was_told_stay_few(self) -> None:
        row = make_row(members=2)
        for step in range(1000):
            row.tell(NOW + step * 10 * MS)
        assert len(row._sent) < 20


class TestTight:
    """Small buckets (burst under four tokens a member) speak early."""

    def test_refused_with_tokens_to_spare_it_announces_at_once(self) -> None:
        limit = make_limit(members=8, rate=10, burst=10)
        row = limit.entry(b"", NOW)
        assert limit.tight
        grab(row, NOW)
        row.hold(1)
        assert row in limit.urgent
        due: list[MeshRow] = []
        limit.due_urgent(NOW + MS, due)
        assert due == [row]
        wait_ns = row.ask(1, NOW)
        assert wait_ns <= limit.ripe_ns < limit.horizon_ns

    def test_flushes_keep_their_distance(self) -> None:
        limit = make_limit(members=8, rate=10, burst=10)
        row = limit.entry(b"", NOW)
        due: list[MeshRow] = []
        row.hold(3)
        limit.urge(row)
        limit.due_urgent(NOW, due)
        assert due == [row]
        row.tell(NOW)
        due.clear()
        row.hold(3)
        limit.urge(row)
        limit.due_urgent(NOW + MS, due)
        assert due == []
        assert limit.next_wake_ns(NOW + MS) == NOW + 2 * MS
        limit.due_urgent(NOW + 2 * MS, due)
        assert due == [row]
        row.tell(NOW + 2 * MS)
        limit.urge(row)
        limit.due_urgent(NOW + 9 * MS, due)
        assert due == [row]  # it had nothing new to say

    def test_large_buckets_do_not(self) -> None:
        limit = make_limit(members=8, rate=100, burst=100)
        row = limit.entry(b"", NOW)
        grab(row, NOW)
        row.hold(1)
        assert not limit.tight
        assert limit.urgent == []


def test_clearing_a_row_empties_the_bucket() -> None:
    row = make_row(rate=10, burst=10)
    assert grab(row, NOW) == 10
    row.clear(NOW)
    assert row.level(NOW) == 0.0
    assert row.own == 10  # what was admitted stays counted: peers know it
    assert grab(row, NOW) == 10


def test_a_mesh_table_shows_its_keys_and_forgets_that_it_was_crowded() -> None:
    limit = make_row().limit
    limit.keys_max = 2
    for key in (b"a", b"b", b"c"):
        limit.entry(key, NOW).take(1, NOW)
    assert len(limit.keys()) == 2
    assert limit.peek(b"c") is limit.entry(b"c", NOW)
    assert limit.peek(b"nobody") is None
    assert limit.entry(b"d", NOW).level(NOW) > 0.0
    limit.forgive()
    limit.keys_max = 9  # otherwise the next eviction crowds it again
    assert limit.entry(b"e", NOW).level(NOW) == 0.0


# What an upstream says is left.


def test_a_lower_figure_is_taken_over_and_a_higher_one_is_not() -> None:
    limit = make_limit(members=2, rate=100, burst=100)
    row = limit.entry(b"", NOW)
    row.take(10, NOW)
    assert not row.learn(95, NOW, NOW)
    assert not row.learn(90, NOW, NOW)
    assert row.learn(40, NOW, NOW)
    assert row.level(NOW) == pytest.approx(60)
    assert not row.learn(40, NOW, NOW)
    assert row.own == 10  # it is nobody's admission
    # As of when its request was sent: what drained since is not taken once more.
    assert not row.learn(40, NOW, NOW + SECOND // 10)
    assert row.level(NOW + SECOND // 10) == pytest.approx(50)


def test_news_that_the_upstream_had_counted_counts_once() -> None:
    """The peer took ten tokens; the upstream says so before the peer does."""
    limit = make_limit(members=2, rate=100, burst=100)
    row = limit.entry(b"", NOW)
    assert row.hear(PEER, 1, 1, (0, 1, 5, 5, 0, 0, 80), NOW)
    later = NOW + 20 * MS
    assert row.learn(87, later, later)  # 13 tokens: three that had not drained, and the ten
    assert row.level(later) == pytest.approx(13)
    assert row.hear(PEER, 1, 2, (0, 1, 15, 10, 0, 0, 13 * 16), later)
    assert row.level(later) == pytest.approx(13, abs=0.5)
    assert row.hear(PEER, 1, 3, (0, 1, 20, 5, 0, 0, 18 * 16), later + MS)
    assert row.level(later + MS) == pytest.approx(17.9, abs=0.5)  # these are new


def test_what_a_peer_was_told_lowers_what_is_left_here() -> None:
    limit = make_limit(members=2, rate=100, burst=100)
    row = limit.entry(b"", NOW)
    assert row.lower(30.5, NOW)
    assert not row.lower(30.5, NOW)
    assert row.level(NOW) == pytest.approx(69.5)
    assert not row.lower(float(1 << 60), NOW)
    assert row.level(NOW) == pytest.approx(69.5)


class TestForesees:
    """Whether what `ask` says ends a wait that is shorter."""

    def test_the_sum_of_all_is_full(self) -> None:
        row = make_row(members=1, rate=10, burst=5)
        assert grab(row, NOW) == 5
        assert row.ask(3, NOW) == pytest.approx(3 * SECOND / 10, abs=MS)
        assert row.foresees(3, NOW)
        late_ns = NOW + 2 * SECOND // 10
        assert row.ask(3, late_ns) == pytest.approx(SECOND / 10, abs=MS)
        assert row.foresees(3, late_ns)

    def test_what_peers_may_give_up_is_not_foreseen(self) -> None:
        row = make_row(members=4, rate=100, burst=100)
        assert grab(row, NOW) < 100
        assert row.ask(1, NOW) not in (ROOM, NEVER)
        assert not row.foresees(1, NOW)

    def test_nor_is_the_end_of_a_partition(self) -> None:
        limit = make_limit(members=1, on_partition="closed")
        limit.retune(Surroundings(1, 3, DELAY))
        row = limit.entry(b"", NOW)
        assert row.ask(1, NOW) == SECOND
        assert not row.foresees(1, NOW)
