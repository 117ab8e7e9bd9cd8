"""Keys of the contract that this version cannot obey.

A key that is read and then ignored is worse than one that is refused: a limit that the operator
believes to be exact would not be. So each of them is a fault that says so. The table shrinks with
the versions and is empty in the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from gateway.conf.faults import Finding, Path
from gateway.conf.schema import Conf

__all__ = ["NOT_YET", "Row", "unavailable"]


class Row(NamedTuple):
    """One thing that cannot be had."""

    pattern: str  # a dotted key; `*` is any name or position
    is_unavailable: Callable[[Any, Any], bool]  # of the key's value and the table around it
    what: str  # what of the key is unavailable, as in the message; "" is the whole key
    instead: str  # what the operator can do


# To make a key available: take its row out. The tests then name the lines of the reference file
# and the cases that go with it.
NOT_YET: tuple[Row, ...] = ()


def unavailable(conf: Conf, rows: Iterable[Row]) -> list[Finding]:
    """A finding for every value of the configuration that a row says cannot be had."""
    findings = []
    for row in rows:
        subject = f"{row.what} is" if row.what else "is"
        message = f"{subject} not available in this version; {row.instead}"
        for path, value, table in _matches(conf, row.pattern.split("."), ()):
            if row.is_unavailable(value, table):
                findings.append(Finding(path, message))
    return findings


def _matches(node: Any, pattern: list[str], path: Path) -> Iterator[tuple[Path, Any, Any]]:
    """Path, value and surrounding table of everything that a pattern names; absent tables: none."""
    part, rest = pattern[0], pattern[1:]
    for key, value in _children(node, part):
        here = (*path, key)
        if not rest:
            yield here, value, node
        elif value is not None:
            yield from _matches(value, rest, here)


def _children(node: Any, part: str) -> list[tuple[str | int, Any]]:
    if part != "*":
        return [(part, getattr(node, part))]
    if isinstance(node, dict):
        return list(node.items())
    return list(enumerate(node))
