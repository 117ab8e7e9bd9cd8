"""JSON from outside, parsed only after a look at how much there is of it.

A parser makes an object for each value, a hundred octets for one: 14 MiB of `[0,0,...` are 200 MiB
of list. Whoever knows what he expects knows its texts and values, so they are counted first, in a
few passes that make no objects.
"""

from __future__ import annotations

import json
from typing import Any, Final, NamedTuple, NoReturn

__all__ = ["Bounds", "OutOfBounds", "parse"]

_MARKS: Final = b"{}[],:"
_NOT_MARKS: Final = bytes(set(range(256)) - set(_MARKS))


class OutOfBounds(ValueError):
    """There is more in it than is expected, or one key twice."""


class Bounds(NamedTuple):
    """The most that is expected, outside of texts: brackets, commas and colons; quotes; depth."""

    marks: int
    quotes: int
    depth: int


def parse(value: bytes, most: Bounds) -> Any:
    """The value of a JSON text in UTF-8 (RFC 8259). Raises OutOfBounds; ValueError: it is none."""
    _judge(value, most)
    return json.loads(value.decode(), object_pairs_hook=_object, parse_constant=_no_constant)


def _judge(value: bytes, most: Bounds) -> None:
    """Exact for JSON and for what stands before a first fault; the rest is never parsed."""
    bare = value
    if b"\\" in value:  # outside of texts a backslash is a fault
        bare = value.replace(rb"\\", b"").replace(rb"\"", b"")
    if bare.count(b'"') > most.quotes:
        raise OutOfBounds("more texts than are expected")
    marks = b"".join(bare.split(b'"')[::2]).translate(None, _NOT_MARKS)
    if len(marks) > most.marks:
        raise OutOfBounds("more values than are expected")
    depth = 0
    for mark in marks:
        if mark in b"{[":
            depth += 1
            if depth > most.depth:
                raise OutOfBounds("nested deeper than is expected")
        elif mark in b"}]":
            depth -= 1


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        # RFC 8259 section 4: which of them counts differs from reader to reader.
        raise OutOfBounds("a key stands twice in one object")
    return found


def _no_constant(_: str) -> NoReturn:
    """NaN and Infinity are not JSON (RFC 8259 section 6), though Python writes and reads them."""
    raise ValueError("a number that is not finite")
