"""Each way to write a time, and what is none."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.breaker.times import (
    MS_NS,
    SECOND_NS,
    epoch_or_delta_ns,
    go_duration_ns,
    http_date_ns,
    number_ns,
    timestamp_ns,
    whole,
)

NOW = 1_795_500_000 * SECOND_NS


@pytest.mark.parametrize(
    ("value", "ns"),
    [
        (b"0", 0),
        (b"12", 12 * SECOND_NS),
        (b"0.35", 350 * MS_NS),
        (b"2.", 2 * SECOND_NS),
        (b".5", 500 * MS_NS),
        (b"1.0000000019", SECOND_NS + 1),
        (b"007", 7 * SECOND_NS),
        (b"9" * 100, 10**18 * SECOND_NS),
        (b"0" * 100 + b"3", 3 * SECOND_NS),
    ],
)
def test_numbers(value: bytes, ns: int) -> None:
    assert number_ns(value, SECOND_NS) == ns


@pytest.mark.parametrize(
    "value",
    [
        *(b"", b".", b"1.2.3", b"1,2", b"-1", b"+1", b"1e3", b"0x1", b"1_0", b" 1", b"1\n"),
        *(b"nan", b"inf", "\uff11".encode(), "\u0661".encode(), b"1" * 200),
    ],
)
def test_what_is_no_number(value: bytes) -> None:
    assert number_ns(value, SECOND_NS) is None
    assert whole(value) is None


@given(st.integers(0, 10**12), st.integers(0, 999_999_999))
def test_no_digit_is_lost(seconds: int, fraction: int) -> None:
    value = b"%d.%09d" % (seconds, fraction)
    assert number_ns(value, SECOND_NS) == seconds * SECOND_NS + fraction


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"1s", 1),
        (b"6m0s", 360),
        (b"1h2m3s", 3723),
        (b"12ms", 0.012),
        (b"11m32.334s", 692.334),
        (b"1.5h", 5400),
        ("7µs".encode(), 7e-6),
        ("7μs".encode(), 7e-6),
        (b"5us", 5e-6),
        (b"3ns", 3e-9),
        (b"37s", 37),
    ],
)
def test_go_durations(value: bytes, seconds: float) -> None:
    assert go_duration_ns(value) == round(seconds * SECOND_NS)


@pytest.mark.parametrize("value", [b"", b"1", b"s", b"1 s", b"-1s", b"1d", b"1s2", b"1s" * 100])
def test_what_is_no_go_duration(value: bytes) -> None:
    assert go_duration_ns(value) is None


@given(st.integers(0, 253_402_300_799))  # 1970 to 9999
def test_every_moment_reads_the_same_in_all_forms(second: int) -> None:
    moment = datetime.fromtimestamp(second, UTC)
    ns = second * SECOND_NS
    assert http_date_ns(format_datetime(moment, usegmt=True).encode(), NOW) == ns
    asctime = f"{moment:%a %b} {moment.day:2d} {moment:%H:%M:%S} {moment.year:04d}"
    assert http_date_ns(asctime.encode(), NOW) == ns
    assert timestamp_ns(moment.isoformat().encode()) == ns
    if 1977 <= moment.year <= 2076:
        rfc850 = f"{moment:%A, %d-%b-%y %H:%M:%S} GMT"
        assert http_date_ns(rfc850.encode(), NOW) == ns


@pytest.mark.parametrize(
    ("value", "like"),
    [
        (b"2026-11-24T06:00:45Z", b"Tue, 24 Nov 2026 06:00:45 GMT"),
        (b"2026-11-24t06:00:45z", b"Tue, 24 Nov 2026 06:00:45 GMT"),
        (b"2026-11-24 06:00:45", b"Tue, 24 Nov 2026 06:00:45 GMT"),
        (b"2026-11-24T08:00:45+02:00", b"Tue, 24 Nov 2026 06:00:45 GMT"),
        (b"2026-11-23T23:30:45-06:30", b"Tue, 24 Nov 2026 06:00:45 GMT"),
        (b"2026-11-24T06:01Z", b"Tue, 24 Nov 2026 06:01:00 GMT"),
        (b"2026-11-24T06:00:60Z", b"Tue, 24 Nov 2026 06:01:00 GMT"),
    ],
)
def test_timestamps(value: bytes, like: bytes) -> None:
    assert timestamp_ns(value) == http_date_ns(like, NOW)


def test_a_fraction_of_a_second_counts() -> None:
    whole_ns = timestamp_ns(b"2026-11-24T06:00:45Z")
    assert whole_ns is not None
    assert timestamp_ns(b"2026-11-24T06:00:45.25Z") == whole_ns + 250 * MS_NS


@pytest.mark.parametrize(
    "value",
    [
        b"Tue, 31 Feb 2026 06:00:45 GMT",
        b"Tue, 24 Nov 2026 25:00:45 GMT",
        b"Tue, 24 Nov 2026 06:00:61 GMT",
        b"Tue, 24 Foo 2026 06:00:45 GMT",
        b"Tue, 24 Nov 2026 06:00:45 EST",
        b"Tue, 24 Nov 0000 06:00:45 GMT",
        b"2026-13-24T06:00:45Z",
        b"2026-11-24T06:00:45+99:99",
        b"2026-11-24",
        b"x" * 1000,
        b"",
    ],
)
def test_what_is_no_date(value: bytes) -> None:
    assert http_date_ns(value, NOW) is None
    assert timestamp_ns(value) is None


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"60", 60),
        (b"999999999", 999_999_999),
        (b"1795500060", 61),
        (b"1795500060.5", 60.5),
        (b"1795500060500", 60.5),
        (b"1795499999", 0),
        (b"Tue, 24 Nov 2026 06:01:00 GMT", 60),
        (b"2026-11-24 06:01:00", 60),
        (b"1m0s", 60),
    ],
)
def test_a_moment_or_a_delta(value: bytes, seconds: float) -> None:
    assert epoch_or_delta_ns(value, SECOND_NS, NOW, NOW) == round(seconds * SECOND_NS)


def test_a_moment_is_compared_with_the_clock_it_was_written_by() -> None:
    for value in (b"1795500060", b"Tue, 24 Nov 2026 06:01:00 GMT"):
        near = epoch_or_delta_ns(value, SECOND_NS, NOW, NOW)
        skewed = epoch_or_delta_ns(value, SECOND_NS, NOW, NOW + 30 * SECOND_NS)
        assert near is not None
        assert skewed == near - 30 * SECOND_NS


@given(st.binary(max_size=200))
def test_garbage_never_raises(value: bytes) -> None:
    for ns in (
        number_ns(value, SECOND_NS),
        go_duration_ns(value),
        epoch_or_delta_ns(value, MS_NS, NOW, NOW),
    ):
        assert ns is None or ns >= 0
    http_date_ns(value, NOW)
    timestamp_ns(value)
