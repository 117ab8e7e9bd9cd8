"""The many ways in which upstreams write a time, each to nanoseconds or to nothing.

Python's own parsers take too much: `int` takes `1_0` and full-width digits, `float` takes `nan` and
`inf`. Whatever is read here comes from outside, so every form is a whole-value match of ASCII
octets, every number has a bound, and nothing raises: what does not parse is None.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

__all__ = [
    "duration_ns",
    "epoch_or_delta_ns",
    "go_duration_ns",
    "http_date_ns",
    "is_zero",
    "number_ns",
    "timestamp_ns",
    "whole",
]

MS_NS = 1_000_000
SECOND_NS = 1_000_000_000
MINUTE_NS = 60 * SECOND_NS

# Longer than any form below, and short enough that no pattern takes long over it.
_VALUE_BYTES_MAX = 128

# 10^18 s is 3e10 years; a longer row of digits means nothing else than "very long".
_DIGITS_MAX = 18
_HUGE: int = 10**_DIGITS_MAX

_NUMBER = re.compile(rb"([0-9]+)(?:\.([0-9]*))?|\.([0-9]+)")
_WHOLE = re.compile(rb"[0-9]+")
_GO_PART = re.compile(rb"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|\xc2\xb5s|\xce\xbcs|ms|s|m|h)")
_GO_UNITS_NS = {
    b"ns": 1,
    b"us": 1_000,
    b"\xc2\xb5s": 1_000,  # the micro sign
    b"\xce\xbcs": 1_000,  # the Greek letter
    b"ms": MS_NS,
    b"s": SECOND_NS,
    b"m": MINUTE_NS,
    b"h": 60 * MINUTE_NS,
}

_MONTHS = {
    name: number
    for number, name in enumerate(b"Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split(), 1)
}
# RFC 9110 section 5.6.7. The day's name is redundant and not held against the date.
_IMF = re.compile(
    rb"[A-Z][a-z]{2}, (?P<d>[0-9]{2}) (?P<mon>[A-Z][a-z]{2}) (?P<y>[0-9]{4}) "
    rb"(?P<H>[0-9]{2}):(?P<M>[0-9]{2}):(?P<S>[0-9]{2}) GMT"
)
_RFC850 = re.compile(
    rb"[A-Z][a-z]{5,8}, (?P<d>[0-9]{2})-(?P<mon>[A-Z][a-z]{2})-(?P<y>[0-9]{2}) "
    rb"(?P<H>[0-9]{2}):(?P<M>[0-9]{2}):(?P<S>[0-9]{2}) GMT"
)
_ASCTIME = re.compile(
    rb"[A-Z][a-z]{2} (?P<mon>[A-Z][a-z]{2}) (?P<d>[ 0-9][0-9]) "
    rb"(?P<H>[0-9]{2}):(?P<M>[0-9]{2}):(?P<S>[0-9]{2}) (?P<y>[0-9]{4})"
)
# RFC 3339 section 5.6, and what is sent in its name: a blank for the T, no seconds, no offset.
_RFC3339 = re.compile(
    rb"(?P<y>[0-9]{4})-(?P<mon>[0-9]{2})-(?P<d>[0-9]{2})[Tt ](?P<H>[0-9]{2}):(?P<M>[0-9]{2})"
    rb"(?::(?P<S>[0-9]{2})(?:\.(?P<f>[0-9]{1,30}))?)?"
    rb"(?P<off>[Zz]|(?P<sign>[+-])(?P<oh>[0-9]{2}):?(?P<om>[0-9]{2}))?"
)


def number_ns(value: bytes, unit_ns: int) -> int | None:
    """A plain decimal number of units, ASCII digits with at most one point, as nanoseconds."""
    if len(value) > _VALUE_BYTES_MAX:
        return None
    match = _NUMBER.fullmatch(value)
    if match is None:
        return None
    digits = match[1] or b"0"
    if len(digits.lstrip(b"0")) > _DIGITS_MAX:
        return _HUGE * unit_ns
    fraction = (match[2] or match[3] or b"")[:9].ljust(9, b"0")
    return int(digits) * unit_ns + int(fraction) * unit_ns // SECOND_NS


def whole(value: bytes) -> int | None:
    """A whole number of at most 18 digits; a fraction (Reddit's "0.0") is cut off."""
    if len(value) <= _DIGITS_MAX and value.isdigit():
        return int(value)  # of octets `isdigit` is true for ASCII digits only
    ns = number_ns(value, SECOND_NS)
    return None if ns is None else ns // SECOND_NS


def is_zero(value: bytes) -> bool:
    """Whether a count says that nothing is left; 0.4 of a request is nothing."""
    return whole(value) == 0


def go_duration_ns(value: bytes) -> int | None:
    """A duration as Go writes it: "6m0s", "12ms", "11m32.334s"."""
    if not value or len(value) > _VALUE_BYTES_MAX:
        return None
    total_ns = 0
    at = 0
    while at < len(value):
        match = _GO_PART.match(value, at)
        if match is None:
            return None
        part_ns = number_ns(match[1], _GO_UNITS_NS[match[2]])
        if part_ns is None:
            return None
        total_ns += part_ns
        at = match.end()
    return total_ns


def http_date_ns(value: bytes, now_wall_ns: int) -> int | None:
    """An HTTP-date in any of its three forms, as nanoseconds since 1970.

    A two-digit year that seems more than 50 years ahead is in the past (RFC 9110 section 5.6.7).
    """
    if len(value) > _VALUE_BYTES_MAX:
        return None
    match = _IMF.fullmatch(value) or _ASCTIME.fullmatch(value)
    if match is not None:
        return _civil_ns(match, int(match["y"]), _MONTHS.get(match["mon"]))
    match = _RFC850.fullmatch(value)
    if match is None:
        return None
    this_year = datetime.fromtimestamp(now_wall_ns // SECOND_NS, UTC).year
    year = this_year // 100 * 100 + int(match["y"])
    if year > this_year + 50:
        year -= 100
    return _civil_ns(match, year, _MONTHS.get(match["mon"]))


def timestamp_ns(value: bytes) -> int | None:
    """An RFC 3339 date and time as nanoseconds since 1970; without an offset it is UTC."""
    if len(value) > _VALUE_BYTES_MAX:
        return None
    match = _RFC3339.fullmatch(value)
    if match is None:
        return None
    at_ns = _civil_ns(match, int(match["y"]), int(match["mon"]))
    if at_ns is None:
        return None
    if match["f"]:
        at_ns += int(match["f"][:9].ljust(9, b"0"))
    if match["sign"]:
        minutes = int(match["oh"]) * 60 + int(match["om"])
        if minutes >= 24 * 60:
            return None
        at_ns += minutes * MINUTE_NS * (1 if match["sign"] == b"-" else -1)
    return at_ns


def duration_ns(value: bytes, unit_ns: int) -> int | None:
    """A delta: a number of units, or a Go duration."""
    number = number_ns(value, unit_ns)
    return go_duration_ns(value) if number is None else number


def epoch_or_delta_ns(value: bytes, unit_ns: int, now_wall_ns: int, date_ns: int) -> int | None:
    """How long to wait for what `value` names, in any form, never negative.

    A number tells by its size what it is: from 1e12 on milliseconds since 1970, from 1e9 seconds
    since 1970, below that `unit_ns` from now. `date_ns` is the response's own Date, or the local
    wall time: a point in time is compared with the clock it was written by. An epoch of whole
    seconds may name any moment of its second, hence one second more.
    """
    number = number_ns(value, SECOND_NS)
    if number is not None:
        if number >= 10**12 * SECOND_NS:
            return max(0, number // 1_000 - date_ns)
        if number >= 10**9 * SECOND_NS:
            whole_second = SECOND_NS if number % SECOND_NS == 0 else 0
            return max(0, number - date_ns + whole_second)
        return number_ns(value, unit_ns)
    at_ns = http_date_ns(value, now_wall_ns)
    if at_ns is None:
        at_ns = timestamp_ns(value)
    if at_ns is not None:
        return max(0, at_ns - date_ns)
    return go_duration_ns(value)


def _civil_ns(match: re.Match[bytes], year: int, month: int | None) -> int | None:
    if month is None:
        return None
    second = int(match["S"] or b"0")
    leap = second == 60  # allowed by the grammar; datetime has no such second
    try:
        at = datetime(
            year,
            month,
            int(match["d"]),
            int(match["H"]),
            int(match["M"]),
            second - leap,
            tzinfo=UTC,
        )
    except ValueError:
        return None
    since = at - datetime(1970, 1, 1, tzinfo=UTC)
    return (since // timedelta(seconds=1) + leap) * SECOND_NS
