"""The in-flight limit: slots come back, and are never invented."""

from __future__ import annotations

import pytest

from gateway.limits.inflight import Inflight
from gateway.limits.verdict import NEVER, ROOM

S = 1_000_000_000


def test_slots_are_taken_and_come_back() -> None:
    limit = Inflight("open", 2)
    row = limit.entry(b"", 0)
    for _ in range(2):
        assert row.ask(1, 0) == ROOM
        row.arrive(1, 0)
        row.take(1, 0)
    assert (row.taken, limit.arrived) == (2, 2)
    assert row.ask(1, 0) == S
    assert limit.remaining(row, 0) == (0, S)
    row.give_back(1, 0)
    assert row.ask(1, 0) == ROOM


def test_what_was_never_taken_is_not_given_back() -> None:
    limit = Inflight("open", 2)
    row = limit.entry(b"", 0)
    row.take(1, 0)
    row.give_back(2, 0)
    assert (row.used, limit.underflows) == (0, 1)
    assert limit.remaining(row, 0) == (2, 0)


def test_fewer_slots_than_held_frees_none_until_enough_come_back() -> None:
    limit = Inflight("open", 3)
    row = limit.entry(b"", 0)
    row.take(3, 0)
    limit.configure(1)
    row.give_back(1, 0)
    row.give_back(1, 0)
    assert row.ask(1, 0) == S
    row.give_back(1, 0)
    assert row.ask(1, 0) == ROOM


def test_the_parts_of_all_members_are_the_whole_and_a_part_may_be_nothing() -> None:
    limits = [Inflight("open", 2) for _ in range(3)]
    for rank, limit in enumerate(limits):
        limit.split(3, rank)
    assert [limit.slots for limit in limits] == [1, 1, 0]
    assert limits[2].entry(b"", 0).ask(1, 0) == S  # the members may change
    assert limits[0].entry(b"", 0).ask(2, 0) == NEVER


def test_rows_with_slots_held_stay() -> None:
    limit = Inflight("open", 2, keys_max=2)
    held = limit.entry(b"held", 0)
    held.take(1, 0)
    for i in range(100):
        limit.entry(str(i).encode(), i)
    assert limit.peek(b"held") is held
    assert len(limit) == 2
    assert limit.started_full == 0


def test_less_than_one_slot_is_refused() -> None:
    with pytest.raises(ValueError):
        Inflight("open", 0)


def test_too_many_at_a_time_are_fewer_from_then_on() -> None:
    limit = Inflight("open", 8)
    row = limit.entry(b"", 0)
    row.take(6, 0)
    limit.ease(row.used, 0)
    assert (limit.slots, row.ask(1, 0)) == (5, S)
    row.give_back(2, 0)
    assert row.ask(1, 0) == ROOM
    row.take(1, 0)
    limit.ease(row.used, S)
    assert limit.slots == 4
    # One slot in ten seconds, looked at when it is wanted.
    assert row.ask(1, 10 * S) == S
    assert row.ask(1, 11 * S) == S  # five in use, five slots
    row.give_back(5, 11 * S)
    row.take(5, 50 * S)
    for _ in range(3):
        assert row.ask(1, 60 * S) == ROOM
        row.take(1, 60 * S)
    assert (limit.slots, limit.eased) == (8, 0)
    assert row.ask(1, 60 * S) == S


def test_easing_leaves_one_slot_and_never_adds_any() -> None:
    limit = Inflight("open", 3)
    row = limit.entry(b"", 0)
    for _ in range(9):
        limit.ease(1, 0)
    assert (limit.slots, row.ask(1, 0)) == (1, ROOM)
    assert row.ask(2, 0) == S  # it waits: two are what the limit gives when all is well
    limit.ease(9, 0)
    assert limit.slots == 1
    limit.split(3, 0)
    assert (limit.slots, limit.eased) == (1, 0)
    limit.configure(5)
    assert limit.slots == 5


def test_no_slot_is_foreseen() -> None:
    limit = Inflight("open", 1)
    row = limit.entry(b"", 0)
    row.take(1, 0)
    assert row.ask(1, 0) == S
    assert not row.foresees(1, 0)
    row.give_back(1, 0)
    assert row.ask(1, 1) == ROOM  # long before the second is over
