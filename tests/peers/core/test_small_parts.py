"""The parts that are one idea each: suspicion, broadcasts, delay, chance, outbox, config."""

from __future__ import annotations

import random

import pytest

from peers.core.broadcast import Broadcasts, retransmits
from peers.core.chance import sample, shuffled
from peers.core.config import MS, SECOND, Config, is_loopback
from peers.core.delay import DelayMeter
from peers.core.errors import ConfigError
from peers.core.outbox import Outbox
from peers.core.suspicion import Suspicion
from peers.core.wire import FRAMES_BYTES_MAX

HERE = ("127.0.0.1", 7946)
CONFIG = Config(name="a", cluster="c", bind=HERE, advertise=HERE)
NOW = 1_000 * SECOND


class TestSuspicion:
    def test_few_members_decide_alone(self) -> None:
        suspicion = Suspicion(CONFIG, 3, b"one", NOW)
        assert suspicion.deadline_ns == NOW + 1 * SECOND
        assert not suspicion.confirm(b"two")

    def test_confirmations_shorten_it_each_accuser_once(self) -> None:
        suspicion = Suspicion(CONFIG, 8, b"one", NOW)
        deadlines = [suspicion.deadline_ns]
        for accuser in (b"two", b"three", b"four"):
            assert suspicion.confirm(accuser)
            assert not suspicion.confirm(accuser)
            deadlines.append(suspicion.deadline_ns)
        assert deadlines == sorted(deadlines, reverse=True)
        assert deadlines[0] == NOW + 6 * SECOND
        assert deadlines[-1] == NOW + 1 * SECOND
        assert not suspicion.confirm(b"five")

    def test_it_grows_with_the_logarithm_of_members(self) -> None:
        suspicion = Suspicion(CONFIG, 32, b"one", NOW)
        for accuser in (b"two", b"three", b"four"):
            suspicion.confirm(accuser)
        assert 1.5 * SECOND <= suspicion.deadline_ns - NOW <= 1.51 * SECOND


class TestBroadcasts:
    def test_each_update_goes_a_bounded_number_of_times_the_least_sent_first(self) -> None:
        broadcasts = Broadcasts()
        broadcasts.put(b"a", b"A" * 10)
        assert broadcasts.take(100, 3) == [b"A" * 10]
        broadcasts.put(b"b", b"B" * 10)
        assert broadcasts.take(15, 3) == [b"B" * 10]
        assert broadcasts.take(100, 3) == [b"A" * 10, b"B" * 10]
        assert broadcasts.take(100, 3) == [b"A" * 10, b"B" * 10]
        assert broadcasts.take(100, 3) == []
        assert len(broadcasts) == 0

    def test_newer_news_replaces_older(self) -> None:
        broadcasts = Broadcasts()
        broadcasts.put(b"a", b"old")
        broadcasts.put(b"a", b"new")
        assert broadcasts.take(100, 1) == [b"new"]

    def test_how_often(self) -> None:
        assert [retransmits(4, n) for n in (1, 2, 9, 10, 32, 99)] == [4, 4, 4, 8, 8, 8]


class TestDelay:
    def test_it_starts_at_the_configured_value(self) -> None:
        assert DelayMeter(CONFIG).p99_ns() == CONFIG.delay_initial_ns

    def test_an_early_large_sample_counts_at_once(self) -> None:
        meter = DelayMeter(CONFIG)
        meter.add_round_trip(80 * MS)
        assert meter.p99_ns() == 40 * MS

    def test_it_is_the_99th_percentile_of_half_the_round_trip_plus_lag(self) -> None:
        meter = DelayMeter(CONFIG)
        meter.lag_ns = 1 * MS
        for milliseconds in range(1, 101):
            meter.add_round_trip(2 * milliseconds * MS)
        assert meter.p99_ns() == 100 * MS

    def test_it_stays_within_bounds_and_forgets(self) -> None:
        meter = DelayMeter(CONFIG)
        for _ in range(256):
            meter.add_round_trip(100 * SECOND)
        assert meter.p99_ns() == CONFIG.delay_max_ns
        for _ in range(256):
            meter.add_round_trip(1000)
        assert meter.p99_ns() == CONFIG.delay_min_ns


class TestChance:
    def test_a_sample_has_no_item_twice_and_every_item_its_turn(self) -> None:
        chance = random.Random(1)
        seen: set[int] = set()
        for _ in range(200):
            drawn = sample(chance, range(5), 2)
            assert len(set(drawn)) == 2
            seen.update(drawn)
        assert seen == set(range(5))
        assert sample(chance, [1], 3) == [1]
        assert sample(chance, [], 3) == []

    def test_shuffling_keeps_all(self) -> None:
        assert sorted(shuffled(random.Random(1), range(9))) == list(range(9))


class TestOutbox:
    def drain(self, outbox: Outbox) -> list[tuple[bytes, tuple[str, int]]]:
        return outbox.drain(b"".join, [("a", 1), ("b", 2)])

    def test_what_goes_to_all_is_sealed_once(self) -> None:
        outbox = Outbox()
        outbox.send_all(b"x")
        outbox.send_all(b"y")
        one, other = self.drain(outbox)
        assert one == (b"xy", ("a", 1))
        assert other == (b"xy", ("b", 2))
        assert one[0] is other[0]
        assert not outbox.waiting
        assert self.drain(outbox) == []

    def test_frames_are_packed_up_to_the_limit(self) -> None:
        outbox = Outbox()
        for _ in range(5):
            outbox.send(("a", 1), b"x" * 500)
        sizes = [len(data) for data, _ in self.drain(outbox)]
        assert sizes == [1000, 1000, 500]
        assert max(sizes) <= FRAMES_BYTES_MAX
        assert outbox.datagrams_sent == 3
        assert outbox.bytes_sent == 2500

    def test_strangers_get_one_answer_each_and_not_too_many(self) -> None:
        outbox = Outbox()
        for number in range(200):
            outbox.answer_stranger(("s", number), b"1")
            outbox.answer_stranger(("s", number), b"2")
        answers = self.drain(outbox)
        assert len(answers) == 64
        assert {data for data, _ in answers} == {b"2"}


class TestConfig:
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("name", ""),
            ("name", "x" * 65),
            ("cluster", ""),
            ("keys", (b"short",)),
            ("keys", (b"k" * 32, b"k" * 32)),
            ("bind", ("0.0.0.0", 7946)),
            ("bind", ("name.example", 7946)),
            ("advertise", ("127.0.0.1", 0)),
            ("advertise", ("gw-1.test", 7946)),
            ("members_max", 33),
            ("members_max", 1),
        ],
    )
    def test_what_cannot_work_is_said_at_once(self, field: str, value: object) -> None:
        values = {"name": "a", "cluster": "c", "bind": HERE, "advertise": HERE, field: value}
        with pytest.raises(ConfigError, match=field if field != "bind" else "keys"):
            Config(**values)

    def test_loopback_in_all_its_forms(self) -> None:
        assert all(map(is_loopback, ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"]))
        assert not any(map(is_loopback, ["10.0.0.1", "::2", "0.0.0.0", "localhost", "", "\x00"]))
