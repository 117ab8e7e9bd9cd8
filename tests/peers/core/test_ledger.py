"""The owner's book by itself: no token is minted, none is lost, whatever arrives how often."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peers.core.config import MS, SECOND
from peers.core.ledger import SELF, Ledger

NOW_NS = 1000 * SECOND
A, B = b"member-a", b"member-b"
TERM = 7


def limit(rate: float = 10.0, burst: float = 10.0, share: int = 100) -> Any:
    """Stands for ExactLimit: what a ledger reads of it."""
    return SimpleNamespace(
        rate=rate / SECOND,
        burst=burst,
        fair_share=share,
        agreed_ns=NOW_NS,
        effective=SimpleNamespace(burst=burst),
        may_grant=lambda now_ns: True,
        claimed=lambda ledger, now_ns: None,
    )


def ledger(**facts: Any) -> Ledger:
    return Ledger(limit(**facts), 1, TERM, NOW_NS)


def ask(
    want: int, least: int = 1, spent: int = 0, returned: int = 0, term: int = TERM
) -> tuple[int, ...]:
    return (1, 2, 1, term, spent, returned, want, least)


def test_a_lost_grant_is_told_again_and_costs_nothing() -> None:
    book = ledger()
    account = book.hear(A, 1, 1, ask(3), NOW_NS)
    assert account is not None
    assert book.serve(NOW_NS) == [account]
    assert book.answer(account, NOW_NS)[3] == 3
    again = book.hear(A, 1, 2, ask(3), NOW_NS + MS)  # it never saw the grant
    assert again is account
    assert book.serve(NOW_NS + MS) == []
    assert book.answer(account, NOW_NS + MS)[3] == 3
    assert book.reserved == 3


def test_copies_and_old_requests_are_not_taken() -> None:
    book = ledger()
    assert book.hear(A, 2, 5, ask(1), NOW_NS) is not None
    assert book.hear(A, 2, 5, ask(1), NOW_NS) is None
    assert book.hear(A, 2, 4, ask(9), NOW_NS) is None
    assert book.hear(A, 1, 9, ask(9), NOW_NS) is None


def test_what_is_reserved_does_not_drain() -> None:
    book = ledger()
    book.hear(A, 1, 1, ask(10), NOW_NS)
    book.serve(NOW_NS)
    late_ns = NOW_NS + 2 * SECOND
    assert book.free(late_ns) < 1
    account = book.hear(A, 1, 2, ask(0, spent=10), late_ns)
    assert account is not None
    assert book.free(late_ns) < 1
    assert book.free(late_ns + SECOND // 2) == pytest.approx(5, abs=0.01)


def test_what_is_given_back_is_free_at_once() -> None:
    book = ledger()
    book.hear(A, 1, 1, ask(10), NOW_NS)
    book.serve(NOW_NS)
    book.hear(A, 1, 2, ask(0, spent=4, returned=6), NOW_NS)
    assert int(book.free(NOW_NS)) == 6
    book.hear(A, 1, 3, ask(0, spent=4, returned=900), NOW_NS)
    assert int(book.free(NOW_NS)) == 6
    assert book.reserved == 0


def test_more_spent_than_granted_is_debt() -> None:
    book = ledger()
    account = book.hear(A, 1, 1, ask(0, spent=25), NOW_NS)
    assert account is not None
    assert book.answer(account, NOW_NS)[3] == 25
    assert book.reserved == 0
    assert book.free(NOW_NS + SECOND) < 0
    assert int(book.free(NOW_NS + 2 * SECOND)) == 5


def test_what_the_upstream_says_is_left_counts_once() -> None:
    book = ledger()
    book.hear(A, 1, 1, ask(3), NOW_NS)
    book.serve(NOW_NS)
    assert not book.lower(7.0, NOW_NS)  # that is what it thinks itself
    assert book.lower(2.0, NOW_NS)
    assert not book.lower(2.0, NOW_NS)
    assert int(book.free(NOW_NS)) == 2
    book.clear(NOW_NS)
    assert int(book.free(NOW_NS)) == 7  # three are still with the member


def test_the_numbers_of_an_earlier_term_say_nothing() -> None:
    book = ledger()
    account = book.hear(A, 1, 1, ask(2, spent=9, returned=9, term=TERM - 1), NOW_NS)
    assert account is not None
    assert (account.spent, account.returned) == (0, 0)
    assert int(book.free(NOW_NS)) == 10


@pytest.mark.parametrize("gone", ["restarted", "silent", "dropped"])
def test_what_a_member_took_along_counts_as_spent(gone: str) -> None:
    book = ledger()
    book.hear(A, 1, 1, ask(10), NOW_NS)
    book.serve(NOW_NS)
    later_ns = NOW_NS + 4 * SECOND
    if gone == "restarted":
        book.hear(A, 2, 1, ask(0), later_ns)
    elif gone == "silent":
        book.lapse(later_ns)
    else:
        book.drop(A, later_ns)
    assert book.reserved == 0
    assert book.free(later_ns) < 1
    assert int(book.free(later_ns + SECOND)) == 10


def test_too_little_is_shared_by_what_is_claimed() -> None:
    book = ledger(burst=9.0)
    a = book.hear(A, 1, 1, ask(20), NOW_NS)
    b = book.hear(B, 1, 1, ask(10), NOW_NS)
    assert a is not None
    assert b is not None
    book.serve(NOW_NS)
    assert a.held + b.held == 9
    assert 5 <= a.held <= 7


def test_a_large_request_is_waited_for() -> None:
    book = ledger()
    book.take(10, NOW_NS)
    large = book.hear(A, 1, 1, ask(10, 10), NOW_NS)
    assert large is not None
    now_ns = NOW_NS
    smaller = 0
    while not large.held and now_ns < NOW_NS + 5 * SECOND:
        now_ns += 100 * MS
        book.hear(A, 1, now_ns, ask(10, 10), now_ns)
        small = book.hear(B, 1, now_ns, ask(1, 1, spent=smaller), now_ns)
        assert small is not None
        book.serve(now_ns)
        smaller += small.held
    assert large.held == 10
    assert smaller <= 15


def test_a_claim_is_void_when_it_is_not_renewed() -> None:
    book = ledger()
    book.take(10, NOW_NS)
    book.hear(A, 1, 1, ask(5), NOW_NS)
    assert book.serve(NOW_NS + SECOND) == []
    assert book.reserved == 0


def test_a_new_owner_waits_until_all_agree() -> None:
    facts = limit()
    facts.agreed_ns = None
    book = Ledger(facts, 1, TERM, NOW_NS)
    book.presume(NOW_NS)
    book.hear(A, 1, 1, ask(1), NOW_NS)
    assert book.serve(NOW_NS + SECOND) == []
    facts.agreed_ns = NOW_NS + SECOND  # the bucket drains from here on
    assert book.free(NOW_NS + SECOND) < 1
    assert int(book.free(NOW_NS + 3 * SECOND // 2)) == 5


numbers = st.integers(0, 1 << 40)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([A, B, SELF]),
            st.integers(0, 3),
            st.sampled_from([0, TERM, TERM + 1]),
            numbers,
            numbers,
            numbers,
            numbers,
            st.integers(0, 2 * SECOND),
        ),
        max_size=40,
    )
)
def test_no_request_breaks_the_book(asks: list[tuple[Any, ...]]) -> None:
    """Whatever members say: what is reserved is what they hold, and grants fit into the burst."""
    book = ledger()
    now_ns = NOW_NS
    for seq, (node, boot, term, spent, returned, want, least, pause_ns) in enumerate(asks):
        now_ns += pause_ns
        before = book.committed(now_ns)
        account = book.hear(node, boot, seq, (1, 2, 1, term, spent, returned, want, least), now_ns)
        book.serve(now_ns)
        held = [account.held for account in book.accounts.values()]
        assert min(held, default=0) >= 0
        assert sum(held) == book.reserved
        if account is not None and spent == 0:
            assert book.committed(now_ns) <= max(before, 10.0) + 1e-3


def test_members_that_lose_half_of_everything_spend_all_there_is() -> None:
    """Two members, every other message lost either way: the bucket is kept and used."""
    chance = random.Random(4)
    book = ledger(rate=100.0, burst=10.0)
    granted = {A: 0, B: 0}
    spent = {A: 0, B: 0}
    seq = 0
    for step in range(5000):
        now_ns = NOW_NS + step * MS
        for node in (A, B):
            if chance.random() < 0.5:
                seq += 1
                account = book.hear(node, 1, seq, ask(3, 1, spent=spent[node]), now_ns)
                book.serve(now_ns)
                assert account is not None
                if chance.random() < 0.5:
                    granted[node] = max(granted[node], book.answer(account, now_ns)[3])
            spent[node] = granted[node]
        assert sum(spent.values()) <= 10 + step * 0.1 + 1e-6
    assert sum(spent.values()) >= 0.99 * 510
