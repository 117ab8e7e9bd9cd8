"""What an upstream says is left: kept for each row, shown, taken over where that is asked for."""

from __future__ import annotations

from gateway.limits.gcra import Gcra
from gateway.limits.lessons import OBSERVE_NS, ROWS_MAX, Lesson, Lessons
from gateway.limits.window import Window

S = 1_000_000_000
T0 = 100 * S


def test_observing_changes_nothing() -> None:
    limit = Gcra("l", 10, S, 5, now_ns=T0)
    lesson = Lesson(limit, adopts=False)
    lessons = Lessons({0: lesson})
    lessons.hear([b"k"], (50, 1, 3 * S), T0, T0)
    told = lesson.newest
    assert told == lesson.of(b"k")
    assert told is not None
    assert (told.quota, told.remaining, told.reset_ns, told.free) == (50, 1, 3 * S, 5)
    assert limit.remaining(limit.entry(b"k", T0), T0)[0] == 5
    assert (lesson.told, lesson.adopted) == (1, 0)


def test_adopting_takes_the_lower_figure_of_that_row_only() -> None:
    limit = Window("w", 10, S)
    lesson = Lesson(limit, adopts=True)
    lessons = Lessons({0: lesson})
    for key in (b"a", b"b"):
        limit.entry(key, T0).take(1, T0)
    lessons.hear([b"a"], (None, 4, None), T0, T0)
    lessons.hear([b"a"], (None, 8, None), T0, T0)
    assert limit.remaining(limit.entry(b"a", T0), T0)[0] == 4
    assert limit.remaining(limit.entry(b"b", T0), T0)[0] == 9
    assert (lesson.told, lesson.adopted) == (2, 1)


def test_without_a_remaining_nothing_is_learned() -> None:
    lesson = Lesson(Gcra("l", 10, S, 5, now_ns=T0), adopts=True)
    Lessons({0: lesson}).hear([b""], (50, None, S), T0, T0)
    assert (lesson.newest, lesson.told) == (None, 0)


def test_a_figure_however_large_is_only_shown() -> None:
    limit = Gcra("l", 10, S, 5, now_ns=T0)
    lesson = Lesson(limit, adopts=True)
    Lessons({0: lesson}).hear([b""], (10**18, 10**18, 10**30), T0, T0)
    assert lesson.adopted == 0
    assert limit.remaining(limit.entry(b"", T0), T0)[0] == 5


def test_the_rows_remembered_are_bounded() -> None:
    lesson = Lesson(Gcra("l", 10, S, 5, now_ns=T0), adopts=False)
    for i in range(ROWS_MAX + 10):
        lesson.hear(b"%d" % i, None, 1, None, T0, T0)
    assert len(lesson) == ROWS_MAX
    assert lesson.of(b"9") is None
    assert lesson.of(b"10") is not None


def test_how_often_a_success_is_read() -> None:
    """To take over: each. To show: ten a second. With nothing to learn: none."""
    limit = Gcra("l", 10, S, 5, now_ns=T0)
    adopting = Lessons({0: Lesson(limit, adopts=True)})
    adopting.looked(T0)
    assert adopting.look_ns == 0
    observing = Lessons({0: Lesson(limit, adopts=False)})
    assert observing.look_ns == 0
    observing.looked(T0)
    assert observing.look_ns == T0 + OBSERVE_NS
    nothing = Lessons({})
    nothing.looked(T0)
    assert nothing.look_ns > 10**18
    preempting = Lessons({}, each=True)
    preempting.looked(T0)
    assert preempting.look_ns == 0
