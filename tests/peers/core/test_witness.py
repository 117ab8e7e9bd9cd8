"""Who is asked what became of a key, and when nobody can know."""

from __future__ import annotations

from peers.core.config import SECOND
from peers.core.witness import Past, Sight, best_of

NOW_NS = 1000 * SECOND
MEMORY_NS = 10 * SECOND
A, B, C, D = (name * 8 for name in (b"a", b"b", b"c", b"d"))


def key_of(*nodes: bytes) -> int:
    """A key whose owners are these, in order, as the first ones go."""
    return next(
        key
        for key in range(10_000)
        if all(best_of(key, nodes[i:]) == nodes[i] for i in range(len(nodes)))
    )


def past(*nodes: bytes) -> Past:
    """One that looks back far enough."""
    return Past(dict.fromkeys(nodes, 1), NOW_NS - 100 * SECOND)


def owners(known: Past, key: int, me: bytes = A) -> tuple[set[bytes], Sight]:
    return known.owners(key, me, NOW_NS - MEMORY_NS, MEMORY_NS)


def test_an_owner_that_lost_the_key_to_a_newcomer_is_asked() -> None:
    known = past(B, C)
    known.changed({A: 1, B: 1, C: 1}, (), NOW_NS)
    assert owners(known, key_of(A, B, C)) == ({B}, Sight.WHOLE)


def test_who_came_lately_asks_everybody_and_says_so() -> None:
    known = Past({A: 1, B: 1, C: 1}, NOW_NS - SECOND)
    assert owners(known, key_of(A, B, C)) == ({B, C}, Sight.SHORT)


def test_an_owner_that_crashed_leaves_its_heir_blind_and_nobody_else() -> None:
    key = key_of(D, A, B)
    seen = []
    for me in (A, B):
        known = past(A, B, D)
        known.changed({A: 1, B: 1}, (), NOW_NS - SECOND)
        seen.append(owners(known, key, me))
    assert seen == [(set(), Sight.BLIND), ({A}, Sight.WHOLE)]
    known.changed({A: 1, B: 1}, (), NOW_NS + MEMORY_NS)
    assert known.owners(key, A, NOW_NS, MEMORY_NS) == (set(), Sight.WHOLE)


def test_a_restart_is_a_crash_and_who_saw_it_says_so() -> None:
    known = past(A, B)
    known.changed({A: 1, B: 2}, (), NOW_NS)
    key = key_of(B, A)
    assert owners(known, key) == ({B}, Sight.BLIND)


def test_who_leaves_its_books_leaves_nobody_blind() -> None:
    key = key_of(D, A, B)
    known = past(A, B, D)
    known.inherited(D, 1, 2, [key])
    known.changed({A: 1, B: 1}, (D,), NOW_NS)
    assert owners(known, key)[1] == Sight.BLIND, "a part of the books is missing"
    known.inherited(D, 1, 2, [key + 1])
    assert owners(known, key) == (set(), Sight.WHOLE)


def test_a_witness_that_crashed_may_have_been_the_only_one() -> None:
    known = Past({A: 1, B: 1, C: 1}, NOW_NS - SECOND)
    known.changed({A: 1, B: 1}, (), NOW_NS)
    assert owners(known, key_of(A, B, C)) == ({B}, Sight.GAP)


def test_what_is_remembered_is_bounded() -> None:
    known = past(A)
    for boot in range(1000):
        known.inherited(B, boot, 1, [boot])
        known.changed({A: 1, B: boot}, (B,), NOW_NS + boot)
    assert len(known._views) <= 64
    assert len(known._legacies) <= 64
    assert len(known._left) <= 64
    ask, _ = known.owners(key_of(A, B), A, NOW_NS, MEMORY_NS)
    assert ask == {B}, "beyond what is remembered everybody is asked"
