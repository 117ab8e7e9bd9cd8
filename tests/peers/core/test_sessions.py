"""Who may speak: a life that echoes its cookie, and each of its numbers once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peers.core.config import SECOND
from peers.core.errors import Drop, DropError
from peers.core.sessions import ReplayWindow, Sessions

NODE, SOURCE = b"12345678", ("10.0.0.1", 7946)
NOW = 1_000 * SECOND


@given(st.lists(st.integers(0, 3000) | st.integers(0, (1 << 64) - 1), max_size=200))
def test_the_window_takes_nothing_twice(numbers: list[int]) -> None:
    window = ReplayWindow()
    taken: set[int] = set()
    newest = -1
    for number in numbers:
        took = window.take(number)
        if took:
            assert number not in taken
            taken.add(number)
        else:
            assert number in taken or number <= newest - 1024
        newest = max(newest, number)


@given(st.permutations(range(64)))
def test_reordering_within_the_window_loses_nothing(order: list[int]) -> None:
    window = ReplayWindow()
    assert all(window.take(number) for number in order)
    assert not any(window.take(number) for number in order)


def test_a_huge_jump_costs_nothing_and_forgets_the_past() -> None:
    window = ReplayWindow()
    assert window.take(5)
    assert window.take((1 << 64) - 1)
    assert not window.take(5)
    assert not window.take(6)
    assert window.take((1 << 64) - 2)


def reason(sessions: Sessions, boot: int, seq: int) -> Drop:
    with pytest.raises(DropError) as caught:
        sessions.admit(NODE, boot, seq, NOW)
    return caught.value.reason


def test_lives_are_ordered_by_boot() -> None:
    sessions = Sessions(b"secret")
    assert reason(sessions, 5, 1) == Drop.UNKNOWN_BOOT
    sessions.open(NODE, 5, 1, NOW)
    assert reason(sessions, 5, 1) == Drop.REPLAYED
    assert sessions.admit(NODE, 5, 2, NOW + 7).heard_ns == NOW + 7
    assert reason(sessions, 4, 9) == Drop.OLD_BOOT
    assert reason(sessions, 6, 1) == Drop.UNKNOWN_BOOT
    sessions.drop(NODE)
    assert reason(sessions, 5, 3) == Drop.UNKNOWN_BOOT


def test_a_cookie_is_for_one_life_one_address_and_a_short_while() -> None:
    sessions = Sessions(b"secret")
    cookie = sessions.cookie(NODE, 5, SOURCE, NOW)
    assert sessions.cookie_is_ours(cookie, NODE, 5, SOURCE, NOW)
    assert sessions.cookie_is_ours(cookie, NODE, 5, SOURCE, NOW + 10 * SECOND)
    assert not sessions.cookie_is_ours(cookie, NODE, 5, SOURCE, NOW + 20 * SECOND)
    assert not sessions.cookie_is_ours(cookie, NODE, 6, SOURCE, NOW)
    assert not sessions.cookie_is_ours(cookie, b"87654321", 5, SOURCE, NOW)
    assert not sessions.cookie_is_ours(cookie, NODE, 5, ("10.0.0.1", 7947), NOW)
    assert not sessions.cookie_is_ours(b"", NODE, 5, SOURCE, NOW)
    assert not Sessions(b"other").cookie_is_ours(cookie, NODE, 5, SOURCE, NOW)
