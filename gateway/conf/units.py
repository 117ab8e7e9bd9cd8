"""Durations, sizes and rates as an operator writes them, and back.

Everything behind the configuration counts in whole nanoseconds and whole octets. The texts exist
so that nobody has to remember whether a bare 30 means seconds or milliseconds: a number without a
unit is an error that says so. Parsing and printing live together because a reload's log line and
the tests print what was parsed.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from gateway.clock import MS, SECOND

__all__ = [
    "DAY",
    "DURATION_NS_MAX",
    "DURATION_PATTERN",
    "HOUR",
    "MINUTE",
    "RATE_COUNT_MAX",
    "RATE_PATTERN",
    "SIZE_BYTES_MAX",
    "SIZE_PATTERN",
    "Rate",
    "duration_text",
    "parse_duration",
    "parse_rate",
    "parse_size",
    "shown",
    "size_text",
]

MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR

# The longest quota period that an API is known to have is a month; a year leaves room and keeps
# now_ns + duration far below 2**63.
DURATION_NS_MAX = 366 * DAY
# Larger than any body or file that the gateway keeps; below 2**53, so exact in JSON as well.
SIZE_BYTES_MAX = 1 << 40
# Above what one node can forward in a day (40,000/s * 86,400 s is 3.5e9), below 2**53 / 2**16:
# the mesh sends levels in sixteenths.
RATE_COUNT_MAX = 10_000_000_000

_DURATION_UNITS = {"ms": MS, "s": SECOND, "m": MINUTE, "h": HOUR, "d": DAY}
_SIZE_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_RATE_UNITS = {"ms": MS, "s": SECOND, "m": MINUTE, "min": MINUTE, "h": HOUR, "d": DAY}

# ASCII digits only: `\d` and int() also take other scripts' digits. The counts of digits bound the
# work before the value itself is judged. The patterns are shared with the JSON schema.
DURATION_PATTERN = r"^[0-9]{1,15}(\.[0-9]{1,9})?(ms|s|m|h|d)$"
SIZE_PATTERN = r"^[0-9]{1,15}(B|KiB|MiB|GiB)$"
RATE_PATTERN = r"^[0-9]{1,15}/([0-9]{1,9})?(ms|s|min|m|h|d)$"

_NUMBER_AND_UNIT = re.compile(r"([0-9]{1,15})(?:\.([0-9]{1,9}))?([A-Za-z]{1,16})")
_RATE = re.compile(r"([0-9]{1,15})/([0-9]{1,9})?([A-Za-z]{1,16})")
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")

_SHOWN_CHARACTERS_MAX = 40  # enough to recognise a value in a message of one line


class Rate(NamedTuple):
    """`count` tokens in every `period_ns` nanoseconds."""

    count: int  # type: ignore[assignment] # hides tuple.count, which nobody needs here
    period_ns: int

    @property
    def per_second(self) -> float:
        """The rate in tokens a second."""
        return self.count * SECOND / self.period_ns

    def __str__(self) -> str:
        for unit in ("d", "h", "min", "s", "ms"):
            length_ns = _RATE_UNITS[unit]
            if self.period_ns % length_ns == 0:
                number = self.period_ns // length_ns
                return f"{self.count}/{unit}" if number == 1 else f"{self.count}/{number}{unit}"
        return f"{self.count}/{self.period_ns}ns"


def shown(value: object) -> str:
    """A value as a message of one line may show it: printable, quoted, clipped."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        clipped = value[:_SHOWN_CHARACTERS_MAX]
        return ascii(clipped) + ("..." if len(value) > len(clipped) else "")
    if isinstance(value, int):
        # Printing an integer of many digits raises (sys.set_int_max_str_digits).
        return str(value) if value.bit_length() <= 64 else "a number of many digits"
    if isinstance(value, float):
        return str(value)
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list | tuple):
        return "a list"
    return f"a {type(value).__name__}"


def parse_duration(value: object, *, zero_ok: bool = False) -> int:
    """Nanoseconds of "250ms", "1.5s", "5m", "1h", "1d". Raises ValueError with a full sentence."""
    allowed = 'a duration such as "250ms", "10s", "5m", "1h" or "1d"'
    whole, fraction, unit_ns = _number_and_unit(value, _DURATION_UNITS, allowed)
    scale: int = 10 ** len(fraction)
    duration_ns, rest = divmod(int(whole + fraction) * unit_ns, scale)
    if rest:
        raise ValueError(f"{shown(value)} is finer than a nanosecond; use {allowed}")
    if duration_ns == 0 and not zero_ok:
        raise ValueError(f"must be longer than zero; use {allowed}")
    if duration_ns > DURATION_NS_MAX:
        raise ValueError(f"{shown(value)} is too long; at most {duration_text(DURATION_NS_MAX)}")
    return duration_ns


def parse_size(value: object) -> int:
    """Octets of "512B", "64KiB", "10MiB", "1GiB". Raises ValueError with a full sentence."""
    allowed = 'a size such as "64KiB" or "10MiB" (units B, KiB, MiB, GiB)'
    whole, fraction, unit_bytes = _number_and_unit(value, _SIZE_UNITS, allowed)
    if fraction:
        raise ValueError(f"{shown(value)} has a fraction; use {allowed}")
    size_bytes = int(whole) * unit_bytes
    if size_bytes == 0:
        raise ValueError(f"must be larger than zero; use {allowed}")
    if size_bytes > SIZE_BYTES_MAX:
        raise ValueError(f"{shown(value)} is too large; at most {size_text(SIZE_BYTES_MAX)}")
    return size_bytes


def parse_rate(value: object) -> Rate:
    """The Rate of "100/s", "600/min", "5000/h", "10000/d", "100/10s".

    Raises ValueError with a full sentence.
    """
    allowed = 'a rate such as "100/s", "600/min", "5000/h", "10000/d" or "100/10s"'
    if not isinstance(value, str):
        if isinstance(value, int | float) and not isinstance(value, bool):
            raise ValueError(f"the bare number {shown(value)} lacks its period; use {allowed}")
        raise ValueError(f"{shown(value)} is not a rate; use {allowed}")
    match = _RATE.fullmatch(value)
    if match is None:
        if _NUMBER.fullmatch(value):
            raise ValueError(f"{shown(value)} lacks its period; use {allowed}")
        raise ValueError(f"{shown(value)} is not a rate; use {allowed}")
    count, number, unit = int(match[1]), int(match[2] or 1), match[3]
    if unit not in _RATE_UNITS:
        raise ValueError(f"unknown unit {unit!r} (ms, s, min, h, d are known); use {allowed}")
    if count == 0 or number == 0:
        raise ValueError(f"must be more than zero; use {allowed}")
    period_ns = number * _RATE_UNITS[unit]
    if count > RATE_COUNT_MAX:
        raise ValueError(f"{shown(value)} is too much; at most {RATE_COUNT_MAX} in a period")
    if period_ns > DURATION_NS_MAX:
        raise ValueError(f"{shown(value)} has too long a period; at most 366d")
    return Rate(count, period_ns)


def duration_text(duration_ns: int) -> str:
    """The shortest exact text that `parse_duration` reads back."""
    for unit in ("d", "h", "m", "s"):
        if duration_ns % _DURATION_UNITS[unit] == 0 and duration_ns:
            return f"{duration_ns // _DURATION_UNITS[unit]}{unit}"
    if duration_ns % MS == 0:
        return f"{duration_ns // MS}ms" if duration_ns else "0s"
    milliseconds, rest = divmod(duration_ns, MS)
    return f"{milliseconds}.{rest:06d}".rstrip("0") + "ms"


def size_text(size_bytes: int) -> str:
    """The shortest exact text that `parse_size` reads back."""
    for unit in ("GiB", "MiB", "KiB"):
        if size_bytes % _SIZE_UNITS[unit] == 0 and size_bytes:
            return f"{size_bytes // _SIZE_UNITS[unit]}{unit}"
    return f"{size_bytes}B"


def _number_and_unit(value: object, units: dict[str, int], allowed: str) -> tuple[str, str, int]:
    """The digits before and after the point, and the unit's factor. Raises ValueError."""
    if not isinstance(value, str):
        if isinstance(value, int | float) and not isinstance(value, bool):
            raise ValueError(f"the bare number {shown(value)} lacks its unit; use {allowed}")
        raise ValueError(f"{shown(value)} is not allowed here; use {allowed}")
    match = _NUMBER_AND_UNIT.fullmatch(value)
    if match is None:
        if _NUMBER.fullmatch(value):
            raise ValueError(f"{shown(value)} lacks its unit; use {allowed}")
        raise ValueError(f"{shown(value)} cannot be read; use {allowed}")
    if match[3] not in units:
        raise ValueError(f"unknown unit {match[3]!r}; use {allowed}")
    return match[1], match[2] or "", units[match[3]]
