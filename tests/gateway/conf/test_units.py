"""Texts with units: what is read, what is refused, and that printing reads back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.clock import MS, SECOND
from gateway.conf.units import (
    DAY,
    DURATION_NS_MAX,
    DURATION_PATTERN,
    HOUR,
    MINUTE,
    RATE_COUNT_MAX,
    SIZE_BYTES_MAX,
    Rate,
    duration_text,
    parse_duration,
    parse_rate,
    parse_size,
    shown,
    size_text,
)


@pytest.mark.parametrize(
    ("text", "duration_ns"),
    [
        ("250ms", 250 * MS),
        ("10s", 10 * SECOND),
        ("5m", 5 * MINUTE),
        ("1h", HOUR),
        ("1d", DAY),
        ("1.5s", 1500 * MS),
        ("0.5ms", MS // 2),
        ("0.000001ms", 1),
        ("366d", DURATION_NS_MAX),
    ],
)
def test_durations(text: str, duration_ns: int) -> None:
    assert parse_duration(text) == duration_ns


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("512B", 512), ("64KiB", 65536), ("10MiB", 10 << 20), ("1024GiB", SIZE_BYTES_MAX)],
)
def test_sizes(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("100/s", Rate(100, SECOND)),
        ("600/min", Rate(600, MINUTE)),
        ("600/m", Rate(600, MINUTE)),
        ("5000/h", Rate(5000, HOUR)),
        ("10000/d", Rate(10_000, DAY)),
        ("100/10s", Rate(100, 10 * SECOND)),
        ("5/100ms", Rate(5, 100 * MS)),
    ],
)
def test_rates(text: str, rate: Rate) -> None:
    assert parse_rate(text) == rate
    assert parse_rate(str(rate)) == rate


def test_a_rate_is_known_per_second() -> None:
    assert parse_rate("600/min").per_second == 10.0


@pytest.mark.parametrize("parse", [parse_duration, parse_size, parse_rate])
@pytest.mark.parametrize(
    "value",
    [
        None, True, 5, 5.0, -1, float("nan"), [], {}, b"1s", "", " 1s", "1s ", "1 s", "-1s", "+1s",
        "1", "1.5", "s", "1x", "1sec", "1S", "1kb", "1KB", "1e3s", "0x1s", "1_0s", "\u0661s",
        "\uff11s", "1s\n", "1s\0", "1..5s", "1.s", ".5s", "1,5s", "9" * 400 + "s", "1/", "/s",
        "1//s", "1/0s", "0/s", "-1/s", "1/1.5s", "1.5/s", "1/s/s", "1/\u0661s", "9" * 400 + "/s",
        "0s", "0B", "0KiB", "1.5KiB", "1/" + "9" * 400 + "s", "99999999999999d", "9999999999999GiB",
        "99999999999/s", "1/999999999d", "0.0000001ms", "1/w", "1min", "1w",
    ],
)  # fmt: skip
def test_what_is_no_value_with_a_unit_is_refused(parse: Callable[[Any], Any], value: Any) -> None:
    with pytest.raises(ValueError) as caught:
        parse(value)
    assert 10 < len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("parse", "value", "words"),
    [
        (parse_duration, 30, 'the bare number 30 lacks its unit; use a duration such as "250ms"'),
        (parse_duration, "30", "'30' lacks its unit"),
        (parse_duration, "30w", "unknown unit 'w'"),
        (parse_duration, "0s", "must be longer than zero"),
        (parse_duration, "367d", "'367d' is too long; at most 366d"),
        (parse_duration, "0.0000001ms", "finer than a nanosecond"),
        (parse_size, 10, "the bare number 10 lacks its unit; use a size"),
        (parse_size, "1KB", "unknown unit 'KB'; use a size such as \"64KiB\""),
        (parse_size, "1.5KiB", "has a fraction"),
        (parse_rate, 100, "the bare number 100 lacks its period; use a rate such as"),
        (parse_rate, "100", "lacks its period"),
        (parse_rate, "100/fortnight", "unknown unit 'fortnight'"),
        (parse_rate, f"{RATE_COUNT_MAX + 1}/s", "too much"),
    ],
)
def test_a_refusal_says_what_is_allowed(
    parse: Callable[[Any], Any], value: Any, words: str
) -> None:
    with pytest.raises(ValueError) as caught:
        parse(value)
    assert words in str(caught.value)


def test_zero_is_a_duration_only_where_it_means_something() -> None:
    assert parse_duration("0s", zero_ok=True) == 0


@given(st.integers(min_value=1, max_value=DURATION_NS_MAX))
def test_a_printed_duration_reads_back(duration_ns: int) -> None:
    assert parse_duration(duration_text(duration_ns)) == duration_ns


@given(st.integers(min_value=1, max_value=SIZE_BYTES_MAX))
def test_a_printed_size_reads_back(size_bytes: int) -> None:
    assert parse_size(size_text(size_bytes)) == size_bytes


@given(
    st.integers(min_value=1, max_value=RATE_COUNT_MAX),
    st.integers(min_value=1, max_value=999_999_999).map(lambda number: number * MS),
)
def test_a_printed_rate_reads_back(count: int, period_ns: int) -> None:
    assert parse_rate(str(Rate(count, period_ns))) == Rate(count, period_ns)


@given(st.from_regex(DURATION_PATTERN, fullmatch=True))
def test_the_pattern_for_editors_is_no_wider_than_the_bounds(text: str) -> None:
    try:
        parse_duration(text.removesuffix("\n"))
    except ValueError as error:
        assert any(word in str(error) for word in ("too long", "zero", "finer"))


@given(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary()))
def test_shown_is_always_one_short_line(value: Any) -> None:
    text = shown(value)
    assert "\n" not in text
    assert len(text) <= 500


def test_shown_does_not_print_endless_numbers() -> None:
    assert shown(10**5000) == "a number of many digits"
