"""How requests return after a pause to an upstream without a rate limit: a clock by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.limits.pacer import Pacer
from gateway.limits.verdict import ROOM

S = 1_000_000_000
MS = 1_000_000
T0 = 10**15
RAMP_NS = 10 * S


def goes(pacer: Pacer, seconds: float, count_max: int = 10_000) -> list[int]:
    """When requests go of which that many are waiting, in milliseconds from T0."""
    gone = []
    row = pacer.row(None, T0)
    assert row is not None
    row.waiting = SimpleNamespace()
    for ms in range(int(seconds * 1000)):
        now_ns = T0 + ms * MS
        assert pacer.row(None, now_ns) is row
        while row.ask(1, now_ns) == ROOM:
            row.take(1, now_ns)
            gone.append(ms)
        if len(gone) >= count_max:
            break
    row.waiting = None
    return gone


def begun(before_per_s: float | None, *, throttled: bool = True, scope: bytes = b"") -> Pacer:
    pacer = Pacer()
    pacer.begin(scope, before_per_s, throttled, RAMP_NS, T0)
    return pacer


def test_at_rest_it_paces_nothing() -> None:
    pacer = Pacer()
    assert not pacer.active
    assert pacer.row(None, T0) is None


def test_a_learned_rate_begins_at_seven_tenths_and_grows_two_percent_a_second() -> None:
    pacer = begun(100.0)
    assert pacer.rate_per_s(T0) == pytest.approx(70)
    assert pacer.rate_per_s(T0 + S) == pytest.approx(70 * 1.02)
    assert len(goes(pacer, 1.0)) == pytest.approx(
        71, abs=5
    )  # a millisecond is a fourteenth of a gap


def test_it_is_given_up_when_the_rate_of_before_is_reached() -> None:
    pacer = begun(100.0)
    assert pacer.row(None, T0 + 17 * S) is not None
    assert pacer.row(None, T0 + 19 * S) is None  # ln(1 / 0.7) / ln(1.02) = 18.01 s
    assert not pacer.active


def test_who_waits_at_its_end_goes_at_a_pace_that_doubles() -> None:
    pacer = begun(100.0)
    row = pacer.row(None, T0)
    assert row is not None
    row.waiting = SimpleNamespace()
    assert pacer.row(None, T0 + 20 * S) is row
    assert pacer.rate_per_s(T0 + 19_012 * MS) == pytest.approx(200, rel=0.01)
    row.waiting = None
    assert pacer.row(None, T0 + 21 * S) is None


def test_nothing_measured_begins_with_ten_a_second_that_doubles() -> None:
    gone = goes(begun(None), 4.0)
    first, second, third = (sum(at <= ms < at + 1000 for ms in gone) for at in (0, 1000, 2000))
    assert first == pytest.approx(10 / 0.693, abs=2)
    assert second == pytest.approx(2 * first, rel=0.2)
    assert third == pytest.approx(4 * first, rel=0.2)
    assert len(gone) >= 150
    assert all(sum(0 <= ms - at < 100 for ms in gone) <= 20 for at in gone)


def test_who_asked_for_little_waits_a_second_at_most() -> None:
    pacer = begun(0.1)
    assert pacer.rate_per_s(T0) == pytest.approx(1)
    assert pacer.row(None, T0 + S // 2) is not None
    assert pacer.row(None, T0 + S) is None


def test_after_an_outage_it_climbs_from_a_twentieth_over_the_ramp() -> None:
    pacer = begun(100.0, throttled=False)
    assert pacer.rate_per_s(T0) == pytest.approx(5)
    assert pacer.rate_per_s(T0 + RAMP_NS) == pytest.approx(100)
    assert pacer.row(None, T0 + RAMP_NS + S) is None


def test_only_the_credential_that_was_paused_is_paced() -> None:
    pacer = begun(None, scope=b"a")
    assert pacer.by_credential
    assert pacer.row(b"a", T0) is not None
    assert pacer.row(b"b", T0) is None
    assert pacer.row(None, T0) is None
    pacer.begin(b"", None, True, RAMP_NS, T0)
    assert not pacer.by_credential
    assert pacer.row(b"b", T0) is pacer.row(None, T0)


def test_another_pause_goes_on_from_the_pace_that_was_too_much() -> None:
    pacer = begun(None)
    pacer.stop(b"b", T0 + S)
    assert pacer.active
    pacer.stop(b"", T0 + 6 * S)
    assert not pacer.active
    pacer.begin(b"", None, True, RAMP_NS, T0 + 9 * S)
    assert pacer.rate_per_s(T0 + 9 * S) == pytest.approx(0.7 * 640)


def test_without_a_ramp_only_what_was_learned_is_obeyed() -> None:
    pacer = Pacer()
    pacer.begin(b"", None, True, 0, T0)
    pacer.begin(b"", 100.0, False, 0, T0)
    assert not pacer.active
    pacer.begin(b"", 100.0, True, 0, T0)
    assert pacer.active


@pytest.mark.parametrize("before_per_s", [None, 1.0, 100.0])
@pytest.mark.parametrize("throttled", [True, False])
def test_how_long_a_queue_takes_is_known(before_per_s: float | None, throttled: bool) -> None:
    pacer = begun(before_per_s, throttled=throttled)
    told_ns = pacer.drain_ns(150, T0)
    gone = goes(pacer, 30.0, 150)
    assert gone[149] * MS == pytest.approx(told_ns, rel=0.15)


@given(
    st.one_of(st.none(), st.floats(0, 1e12)),
    st.booleans(),
    st.integers(0, 10**15),
    st.integers(0, 10**18),
    st.integers(1, 10**6),
)
def test_no_figure_makes_nonsense(
    before_per_s: float | None, throttled: bool, ramp_ns: int, later_ns: int, count: int
) -> None:
    pacer = Pacer()
    pacer.begin(b"", before_per_s, throttled, ramp_ns, T0)
    assert 1.0 <= pacer.rate_per_s(T0 + later_ns) <= 1e6
    assert pacer.drain_ns(count, T0 + later_ns) >= 0
    row = pacer.row(None, T0 + later_ns)
    assert row is None or row.ask(1, T0 + later_ns) >= ROOM
