"""The owner's book of a window: when it begins, when leases end, and when the next may begin."""

from __future__ import annotations

from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peers.core.config import MS, SECOND
from peers.core.ledger import State
from peers.core.quotas import QuotaLedger
from peers.core.table import aligned_end

NOW_NS = 1000 * SECOND
PERIOD_NS = 60 * SECOND
A, B = b"member-a", b"member-b"


def ledger(aligned: bool = False, agreed_ns: int | None = NOW_NS) -> QuotaLedger:
    terms = count(7)
    limit: Any = SimpleNamespace(
        rate=10 / PERIOD_NS,
        burst=10.0,
        effective=SimpleNamespace(burst=10),
        fair_share=100,
        period_ns=PERIOD_NS,
        aligned=aligned,
        agreed_ns=agreed_ns,
        may_grant=lambda now_ns: True,
        claimed=lambda ledger, now_ns: None,
        aligned_end=lambda near_ns, now_ns: aligned_end(near_ns, now_ns, PERIOD_NS, 7 * SECOND),
        desk=SimpleNamespace(next_term=lambda: next(terms), row_of=lambda key64: None),
    )
    return QuotaLedger(limit, 1, 6, NOW_NS)


def ask(book: QuotaLedger, want: int, spent: int = 0, returned: int = 0) -> tuple[int, ...]:
    return (1, 2, 1, book.term, spent, returned, want, 1, 5_000)


def test_leases_end_before_the_window_does() -> None:
    """Granted at 0 s, its use told at 2 s: leases end at 60, the next window begins at 62."""
    book = ledger()
    account = book.hear(A, 1, 1, ask(book, 4), NOW_NS)
    assert account is not None
    book.serve(NOW_NS)
    *_, stamp, lease_ms, left_ms = book.answer(account, NOW_NS)
    assert (stamp, lease_ms, left_ms) == (5_000, 60_000, 0)
    used_ns = NOW_NS + 2 * SECOND
    book.hear(A, 1, 2, ask(book, 0, spent=1), used_ns)
    assert book.answer(account, used_ns)[-2:] == (58_000, 60_000)
    assert book.free(NOW_NS + PERIOD_NS - 1) == pytest.approx(6, abs=0.01)
    assert book.free(NOW_NS + PERIOD_NS) == 0
    assert book.free(used_ns + PERIOD_NS - 1) == 0
    assert book.free(used_ns + PERIOD_NS) == pytest.approx(10, abs=0.01)
    assert (book.reserved, account.held, book.end_ns) == (0, 0, 0)


def test_what_comes_back_unused_began_no_window() -> None:
    book = ledger()
    book.hear(A, 1, 1, ask(book, 4), NOW_NS)
    book.serve(NOW_NS)
    book.hear(A, 1, 2, ask(book, 0, returned=4), NOW_NS + 50 * SECOND)
    late_ns = NOW_NS + 70 * SECOND
    account = book.hear(A, 1, 3, ask(book, 1, returned=4), late_ns)
    assert account is not None
    book.serve(late_ns)
    assert book.answer(account, late_ns)[-2:] == (60_000, 0)


def test_what_was_never_told_was_used_when_its_lease_ended_at_the_latest() -> None:
    book = ledger()
    book.hear(A, 1, 1, ask(book, 4), NOW_NS)
    book.serve(NOW_NS)
    assert book.free(NOW_NS + 2 * PERIOD_NS - 1) == 0
    assert book.free(NOW_NS + 2 * PERIOD_NS) == pytest.approx(10, abs=0.01)


def test_old_terms_say_nothing_in_a_new_window() -> None:
    book = ledger()
    book.take(1, NOW_NS)
    old = ask(book, 3)
    book.hear(A, 1, 1, old, NOW_NS)
    book.serve(NOW_NS)
    next_ns = NOW_NS + PERIOD_NS
    account = book.hear(A, 1, 2, (*old[:4], 3, 0, 0, 0, 0), next_ns)
    assert account is not None
    assert book.committed(next_ns) == 0
    assert book.answer(account, next_ns)[2] == 7


def test_debt_is_paid_by_the_windows_that_follow() -> None:
    book = ledger()
    book.take(35, NOW_NS)
    assert book.committed(NOW_NS + PERIOD_NS) == 25
    assert book.committed(NOW_NS + 3 * PERIOD_NS) == 5
    assert book.free(NOW_NS + 3 * PERIOD_NS) == pytest.approx(5, abs=0.01)
    assert book.committed(NOW_NS + 9 * PERIOD_NS) == 0


def test_windows_by_the_wall_clock_end_for_all_at_once() -> None:
    book = ledger(aligned=True)
    assert (book.end_ns + 7 * SECOND) % PERIOD_NS == 0
    book.take(10, NOW_NS)
    end_ns = book.end_ns
    assert book.lease_end_ns == end_ns
    assert book.free(end_ns - 1) < 1
    assert book.free(end_ns) == pytest.approx(10, abs=0.01)
    assert book.end_ns == end_ns + PERIOD_NS


@pytest.mark.parametrize("aligned", [False, True])
def test_a_new_owner_presumes_the_worst_from_when_all_agreed(aligned: bool) -> None:
    book = ledger(aligned, agreed_ns=None)
    book.presume(NOW_NS)
    limit: Any = book.limit
    agreed_ns = NOW_NS + 90 * SECOND  # a window's end has passed meanwhile
    assert book.free(agreed_ns) < 1
    limit.agreed_ns = agreed_ns
    assert book.free(agreed_ns) < 1
    end_ns = limit.aligned_end(agreed_ns, agreed_ns) if aligned else agreed_ns + PERIOD_NS
    assert book.free(end_ns - 1) < 1
    assert book.free(end_ns) == pytest.approx(10, abs=0.01)


def test_a_new_owner_takes_over_the_window_that_it_is_told() -> None:
    book = ledger()
    book.presume(NOW_NS)
    told = State(4.0, NOW_NS + 20 * SECOND, NOW_NS + 21 * SECOND)
    book.recall([told, State(0.0), State(9.0, NOW_NS - 2, NOW_NS - 1)], NOW_NS)
    assert int(book.free(NOW_NS)) == 6
    assert book.free(NOW_NS + 20 * SECOND) == 0
    assert int(book.free(NOW_NS + 21 * SECOND)) == 10
    unused = ledger()
    unused.presume(NOW_NS)
    unused.recall([State(0.0)], NOW_NS)
    assert int(unused.free(NOW_NS)) == 10
    assert unused.end_ns == 0


numbers = st.integers(0, 1 << 40)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([A, B]), st.integers(0, 2), st.booleans(),
            numbers, numbers, numbers, numbers, numbers, st.integers(0, 40 * SECOND),
        ),
        max_size=40,
    )
)  # fmt: skip
def test_no_request_breaks_the_book(asks: list[tuple[Any, ...]]) -> None:
    """Whatever members say: what is reserved is what they hold, and grants fit into the quota."""
    book = ledger()
    now_ns = NOW_NS
    for seq, (node, boot, old, spent, returned, want, least, stamp, pause_ns) in enumerate(asks):
        now_ns += pause_ns
        before = book.committed(now_ns)
        term = book.term - old
        item = (1, 2, 1, term, spent, returned, want, least, stamp)
        account = book.hear(node, boot, seq, item, now_ns)
        book.serve(now_ns)
        held = [account.held for account in book.accounts.values()]
        assert min(held, default=0) >= 0
        assert sum(held) == book.reserved
        if account is not None:
            lease_ms, left_ms = book.answer(account, now_ns)[-2:]
            assert 0 <= lease_ms <= PERIOD_NS // MS
            assert 0 <= left_ms <= 2 * PERIOD_NS // MS
            if spent == 0:
                assert book.committed(now_ns) <= max(before, 10.0)
