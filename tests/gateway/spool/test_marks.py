"""What may be committed of a partition, whatever the order in which its records are done."""

from __future__ import annotations

import string

from hypothesis import given
from hypothesis import strategies as st

from gateway.spool.marks import NOTE_BYTES_MAX, Marks


def taken(mark: int, *offsets: int) -> Marks:
    marks = Marks(mark)
    for offset in offsets:
        assert marks.take(offset)
    return marks


def test_the_mark_is_the_lowest_that_is_under_way() -> None:
    marks = taken(10, 10, 11, 12)
    marks.finish(11)
    marks.finish(12)
    assert (marks.mark, marks.note(), marks.spread, len(marks)) == (10, "done 1-2", 3, 1)
    marks.finish(10)
    assert (marks.mark, marks.note(), marks.spread, len(marks)) == (13, "", 0, 0)


def test_what_is_known_is_not_taken_again() -> None:
    marks = taken(0, 0, 1)
    marks.finish(1)
    assert not marks.take(0)
    assert not marks.take(1)
    assert marks.is_under_way(0)
    assert not marks.is_under_way(1)


def test_offsets_that_are_missing_in_the_log_are_done() -> None:
    marks = taken(0, 5)
    assert (marks.mark, marks.spread) == (5, 1)
    marks.take(9)
    marks.finish(5)
    assert marks.mark == 9


def test_who_comes_next_sends_nothing_that_is_done() -> None:
    before = taken(100, *range(100, 110))
    for offset in (101, 102, 105, 109):
        before.finish(offset)
    after = Marks(before.mark, before.note())
    assert [o for o in range(100, 112) if after.take(o)] == [100, 103, 104, 106, 107, 108, 110, 111]


def test_what_another_finished_is_not_under_way_any_more() -> None:
    marks = taken(0, *range(8))
    assert marks.absorb(3, "done 2,4-5") == [0, 1, 2, 5, 7]
    assert marks.under_way() == [3, 4, 6]
    assert not marks.take(8)  # the range went beyond what had come here
    assert marks.take(9)


def test_what_is_committed_behind_us_changes_nothing() -> None:
    marks = taken(5, 5, 6)
    marks.finish(5)
    assert marks.absorb(2, "") == []
    assert (marks.mark, marks.next) == (6, 7)


def test_a_note_has_a_bound() -> None:
    marks = taken(0, *range(4000))
    for offset in range(1, 4000, 2):
        marks.finish(offset)
    note = marks.note()
    assert len(note) <= NOTE_BYTES_MAX
    after = Marks(0, note)
    assert after.take(0)
    assert not after.take(1)
    assert after.take(3999), "what does not fit is sent twice"


@given(st.text(string.printable + "²٣", max_size=60) | st.text("0123456789,-").map("done ".__add__))
def test_any_note_can_be_read(note: str) -> None:
    marks = Marks(7, note)
    marks.take(7)
    assert 7 <= marks.mark <= 8


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1000)), max_size=200), st.integers(0, 9)
)
def test_no_record_is_lost_and_none_that_is_done_comes_again(
    steps: list[tuple[int, int]], begin: int
) -> None:
    """Held against a model that knows every offset; at each step the partition could move on."""
    marks = Marks(begin)
    came: list[int] = []
    done: set[int] = set()
    highest = begin - 1
    for step, number in steps:
        left = [offset for offset in came if offset not in done]
        if step <= 2 or not left:
            highest += 1 + (step == 0) * number % 3  # now and then there is a gap
            assert marks.take(highest)
            came.append(highest)
        else:
            offset = left[number % len(left)]
            marks.finish(offset)
            done.add(offset)
        left = [offset for offset in came if offset not in done]
        assert marks.mark == min(left, default=highest + 1)
        assert marks.under_way() == left
        after = Marks(marks.mark, marks.note())
        again = [o for o in came if o >= after.next and after.take(o)]
        assert again == left
