"""Which partitions are read: bounds, pauses, and what a change of owners leaves in hand."""

from __future__ import annotations

from gateway.spool.partitions import (
    BYTES_ALL_MAX,
    RECORDS_ALL_MAX,
    RECORDS_MAX,
    SPREAD_MAX,
    Partitions,
)


def assigned(*numbers: int) -> Partitions:
    partitions = Partitions()
    partitions.assign(dict.fromkeys(numbers, (0, "")))
    return partitions


def test_a_pause_holds_its_partition_until_the_told_time_and_no_other() -> None:
    partitions = assigned(0, 1)
    partitions.hold(1, "a", 500)
    partitions.hold(1, "a", 300)  # a shorter wait of another record ends nothing
    assert partitions.to_pause(499) == {1}
    assert partitions.next_release_ns(499) == 500
    assert partitions.to_pause(500) == set()
    assert partitions.next_release_ns(500) is None


def test_a_pause_that_ends_early_lets_go_of_what_it_held_alone() -> None:
    partitions = assigned(0, 1)
    partitions.hold(0, "a", 500)
    partitions.hold(1, "a", 500)
    partitions.hold(1, "b", 400)
    partitions.release(lambda pause: pause == "a")
    assert partitions.to_pause(1) == {1}
    assert partitions.next_release_ns(1) == 400


def test_a_partition_is_full_until_half_of_it_is_done() -> None:
    partitions = assigned(0, 1)
    partition = partitions.find(0)
    assert partition is not None
    for offset in range(RECORDS_MAX):
        assert partitions.to_pause(0) == set()
        partition.marks.take(offset)
    assert partitions.to_pause(0) == {0}
    for offset in range(RECORDS_MAX // 2 - 1):
        partition.marks.finish(offset)
    assert partitions.to_pause(0) == {0}
    partition.marks.finish(RECORDS_MAX - 1)
    assert partitions.to_pause(0) == set()


def test_one_record_that_stays_does_not_let_the_others_run_away() -> None:
    partitions = assigned(0)
    partition = partitions.find(0)
    assert partition is not None
    partition.marks.take(0)
    for offset in range(1, SPREAD_MAX):
        partition.marks.take(offset)
        partition.marks.finish(offset)
    assert partitions.to_pause(0) == {0}
    partition.marks.finish(0)
    assert partitions.to_pause(0) == set()


def test_all_together_are_bounded_in_records_and_in_octets() -> None:
    partitions = assigned(0, 1)
    partitions.records = RECORDS_ALL_MAX
    assert partitions.to_pause(0) == {0, 1}
    partitions.records = RECORDS_ALL_MAX // 2
    assert partitions.to_pause(0) == set()
    partitions.octets = BYTES_ALL_MAX
    assert partitions.to_pause(0) == {0, 1}
    partitions.octets = BYTES_ALL_MAX // 2 + 1
    assert partitions.to_pause(0) == {0, 1}


def test_a_partition_that_stays_keeps_what_is_in_hand_and_its_hold() -> None:
    partitions = assigned(0, 1)
    for number in (0, 1):
        partition = partitions.find(number)
        assert partition is not None
        for offset in range(3):
            partition.marks.take(offset)
    partitions.hold(0, "a", 500)
    gone = partitions.assign({0: (1, "done 1"), 2: (7, "")})
    assert gone == {0: [0, 2], 1: [0, 1, 2]}
    assert partitions.to_pause(0) == {0}
    assert partitions.marks() == {0: (1, "done 1"), 2: (7, "")}


def test_a_log_that_begins_anew_is_read_from_there() -> None:
    partitions = Partitions()
    partitions.assign({0: (100, "")})
    partition = partitions.find(0)
    assert partition is not None
    partition.marks.take(100)
    anew, gone = partitions.restart(0, 0, "")
    assert (anew.number, gone) == (0, [100])
    assert partitions.marks() == {0: (0, "")}
