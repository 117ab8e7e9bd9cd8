"""Tables of outcomes and keys: so many, so long, so much; and what an id says."""

from __future__ import annotations

import pytest

from gateway.spool.outcomes import Known, KnownKeys, Outcomes, id_of, mark_of, read_id

TOKEN = bytes(range(16))


def test_an_id_is_its_clients() -> None:
    name = id_of(TOKEN, "one", 1_800_000_000)
    asked = read_id(name, "one")
    assert asked is not None
    assert (asked.token, asked.until_s) == (TOKEN, 1_800_000_000)
    assert read_id(name, "two") is None
    assert mark_of(TOKEN, "one") != mark_of(TOKEN, "two")
    assert read_id(id_of(TOKEN, "one", 7).replace("-7-", "-8-"), "one") is None


@pytest.mark.parametrize("name", ["", "-", "é" * 32, "0" * 10_000, f"{'A' * 32}-1-{'0' * 16}"])
def test_garbage_is_no_id(name: str) -> None:
    assert read_id(name, "one") is None


def put(outcomes: Outcomes, mark: bytes, value: bytes, at_ms: int, *, result: bool = True) -> int:
    return outcomes.put(mark, value, at_ms, 100, is_result=result)


def test_the_oldest_outcome_goes_first() -> None:
    outcomes = Outcomes(count_max=2, bytes_max=10)
    assert put(outcomes, b"a", b"12345", 1) == 0
    assert put(outcomes, b"b", b"1234", 2) == 0
    assert put(outcomes, b"c", b"1", 4) == 1
    assert (outcomes.find(b"a"), outcomes.find(b"b")) == (None, b"1234")
    assert put(outcomes, b"d", b"1234567890", 5) == 2, "by octets"
    assert (len(outcomes), outcomes.octets) == (1, 10)
    put(outcomes, b"e", b"1", 200)
    assert outcomes.find(b"d") is None, "by age"
    outcomes.expire(201)
    assert (len(outcomes), outcomes.octets) == (0, 0)


def test_the_first_result_stays_and_a_dead_letter_may_be_sent_anew() -> None:
    outcomes = Outcomes()
    put(outcomes, b"a", b"dead", 1, result=False)
    put(outcomes, b"a", b"done", 2)
    put(outcomes, b"a", b"again", 3)
    put(outcomes, b"a", b"too old", 4, result=False)
    assert (outcomes.find(b"a"), outcomes.octets) == (b"done", 4)


def test_keys_are_known_for_so_long_and_so_many() -> None:
    keys = KnownKeys(count_max=2)
    places = [("api", "one", b"%d" % number) for number in range(3)]
    for place in places:
        keys.put(place, Known("id", b"", 100))
    assert [keys.find(place, 99) is not None for place in places] == [False, True, True]
    assert keys.find(places[1], 100) is None
    keys.forget(places[2])
    keys.forget(places[2])
    assert len(keys) == 0
