"""Who is sent next: lanes take turns, sleep by themselves, and keep their order."""

from __future__ import annotations

import random

from gateway.spool.lanes import EXPIRED_AT_ONCE, LOOKS_AT_ONCE, WINDOW, Lanes
from gateway.spool.record import Entry


def filled(count: int, lanes: int = 1, *, ordered: bool = False) -> tuple[Lanes, list[Entry]]:
    """So many requests, dealt out over so many lanes."""
    found = Lanes(ordered=ordered)
    entries = [Entry(i + 1, "api", b"%d" % (i % lanes), 1, 1000 + i, 0) for i in range(count)]
    for entry in entries:
        found.add(entry)
    return found, entries


def drawn(lanes: Lanes) -> list[int]:
    """The numbers of all that may be taken now."""
    found = []
    while (entry := lanes.take()) is not None:
        found.append(entry.number)
    return found


def test_a_lane_has_so_many_in_hand() -> None:
    lanes, entries = filled(20)
    assert drawn(lanes) == list(range(1, WINDOW + 1))
    lanes.sent(entries[0])
    assert drawn(lanes) == [WINDOW + 1]
    assert (lanes.in_hand, lanes.out) == (WINDOW + 1, 1)


def test_lanes_take_turns() -> None:
    lanes, _ = filled(6, 3)
    lanes.add(Entry(7, "api", b"0", 1, 1, 0))
    assert drawn(lanes) == [1, 2, 3, 4, 5, 6, 7]


def test_one_that_sleeps_holds_no_other_back() -> None:
    lanes, entries = filled(4, 2)
    first = lanes.take()
    assert first is entries[0]
    lanes.put_back(first, 500, all_of_them=True)
    assert drawn(lanes) == [2, 4]
    assert lanes.next_wake_ns() == 500
    lanes.wake(499)
    assert drawn(lanes) == []
    lanes.wake(500)
    assert drawn(lanes) == [1, 3]


def test_one_that_backs_off_does_so_alone() -> None:
    lanes, entries = filled(3)
    assert lanes.take() is entries[0]
    lanes.put_back(entries[0], 500, all_of_them=False)
    assert drawn(lanes) == [2, 3]
    lanes.wake(500)
    assert drawn(lanes) == [1]


def test_with_an_order_the_next_waits_for_the_outcome() -> None:
    lanes, entries = filled(4, 2, ordered=True)
    assert drawn(lanes) == [1, 2]
    lanes.sent(entries[0])
    assert drawn(lanes) == []
    lanes.put_back(entries[0], 500, all_of_them=False)  # it failed: the others wait for it
    lanes.forget(entries[1])
    assert drawn(lanes) == [4]
    lanes.wake(500)
    assert drawn(lanes) == [1]
    lanes.sent(entries[0])
    lanes.forget(entries[0])
    assert drawn(lanes) == [3]


def test_all_that_sleep_can_be_woken() -> None:
    lanes, _ = filled(1)
    entry = lanes.take()
    assert entry is not None
    lanes.put_back(entry, 10**18, all_of_them=True)
    lanes.wake_all()
    lanes.wake(0)
    assert lanes.take() is entry


def test_what_is_too_old_is_handed_out_once_and_only_if_nobody_has_it() -> None:
    lanes, entries = filled(3)
    assert lanes.take() is entries[0]
    assert lanes.next_expiry_ms() == 1000
    assert lanes.expire(1001) == [entries[1]]
    assert lanes.expire(1001) == []
    lanes.put_back(entries[0], 0, all_of_them=True)
    assert lanes.expire(1001) == [entries[0]]
    assert drawn(lanes) == [3]
    assert len(lanes) == 1


def test_one_may_come_again_under_its_number() -> None:
    lanes, entries = filled(2)
    lanes.forget(entries[0])
    again = Entry(1, "api", b"0", 1, 5000, 0)
    lanes.add(again)
    assert drawn(lanes) == [1, 2]
    assert again.in_hand
    assert not entries[0].in_hand


def test_nothing_is_left_of_many() -> None:
    lanes, _ = filled(5000, 700)
    while (entry := lanes.take()) is not None:
        lanes.sent(entry)
        lanes.forget(entry)
    assert len(lanes) == 0
    assert (lanes.in_hand, lanes.out) == (0, 0)
    assert lanes._lanes == {}
    assert len(lanes._expiries) < 1000


def test_whatever_happens_each_is_sent_and_none_twice_at_a_time() -> None:
    for seed in range(30):
        chance = random.Random(seed)
        ordered = chance.random() < 0.5
        lanes, entries = filled(60, 5, ordered=ordered)
        now_ns, finished, in_hand = 0, [], set()
        while len(finished) < len(entries):
            now_ns += 10
            lanes.wake(now_ns)
            while (entry := lanes.take()) is not None:
                assert entry.number not in in_hand, seed
                in_hand.add(entry.number)
                if ordered:
                    same = [n for n in in_hand if n % 5 == entry.number % 5]
                    assert same == [entry.number], seed
            number = chance.choice(sorted(in_hand)) if in_hand else 0
            entry = lanes.find(number)
            if entry is None:
                continue
            in_hand.discard(number)
            if chance.random() < 0.5:
                lanes.put_back(entry, now_ns + 50, all_of_them=chance.random() < 0.5)
                continue
            lanes.sent(entry)
            lanes.forget(entry)
            finished.append(number)
        if ordered:
            for lane in range(5):
                own = [number for number in finished if number % 5 == lane]
                assert own == sorted(own), seed


def test_all_are_woken_some_at_a_time_and_in_their_order() -> None:
    count = 2 * LOOKS_AT_ONCE + 1
    lanes, entries = filled(count, count)
    for entry in entries:
        assert lanes.take() is entry
        lanes.put_back(entry, 10**12, all_of_them=True)
    lanes.wake_all()
    assert lanes.next_wake_ns() == 0
    found = []
    for _ in range(3):
        lanes.wake(1)
        found.append(drawn(lanes))
        assert len(found[-1]) <= LOOKS_AT_ONCE
    assert [number for turn in found for number in turn] == [entry.number for entry in entries]
    assert lanes.next_wake_ns() == 10**12


def test_a_lane_that_is_told_anew_while_all_wake_heeds_that() -> None:
    lanes, (first, second) = filled(2)
    for entry in (first, second):
        assert lanes.take() is entry
    lanes.put_back(first, 900, all_of_them=True)
    lanes.wake_all()
    lanes.put_back(second, 500, all_of_them=True)
    lanes.wake(1)
    assert drawn(lanes) == []
    lanes.wake(500)
    assert drawn(lanes) == [1, 2]


def test_expiry_and_looking_for_a_turn_are_bounded() -> None:
    count = LOOKS_AT_ONCE + 10
    lanes, _ = filled(count, count)
    sizes = []
    while len(lanes):
        sizes.append(len(lanes.expire(10**6)))
    assert max(sizes) == EXPIRED_AT_ONCE
    lanes.add(Entry(count + 1, "api", b"new", 1, 10**9, 0))
    assert lanes.take() is None
    assert lanes.has_turns
    entry = lanes.take()
    assert entry is not None
    assert entry.number == count + 1
