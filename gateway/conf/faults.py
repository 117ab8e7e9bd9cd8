"""What is wrong with a configuration, and where.

All faults of a configuration are reported at once, each with its file and line, so that an
operator corrects a file in one go. Checks know keys only (as a `Path`); the loader knows lines.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["ConfError", "Fault", "Finding", "Hints", "Path", "did_you_mean", "key_text"]

# A key's place: names, and positions in lists. ("listen", 0, "bind") is written listen.0.bind.
Path = tuple[str | int, ...]


class Finding(NamedTuple):
    """Something wrong at a key: what is wrong, what is allowed."""

    path: Path
    message: str


class Fault(NamedTuple):
    """A finding with its place. `line` counts from 1; 0 where there is none (`--set`)."""

    file: str
    line: int
    key: str
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.key}: {self.message}" if self.key else f"{place}: {self.message}"


class ConfError(Exception):
    """The configuration cannot be obeyed; `faults` has at least one entry, in order of place."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(map(str, self.faults)))


def key_text(path: Path) -> str:
    """A path as `--set` and the messages write it."""
    return ".".join(_part_text(part) for part in path)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'?" for the known word most like this one, or nothing."""
    close = difflib.get_close_matches(word[:64], list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


class Hints:
    """`did_you_mean` for many words: each is looked up once, and only the first 20 at all.

    One search takes about a millisecond among a thousand names; a file whose upstreams were all
    renamed would take minutes.
    """

    __slots__ = ("_known", "_texts")

    _WORDS_MAX = 20

    def __init__(self, known: Iterable[str]) -> None:
        self._known = list(known)
        self._texts: dict[str, str] = {}

    def text(self, word: str) -> str:
        """The hint for a word; nothing where none is near or too many were asked for."""
        hint = self._texts.get(word)
        if hint is None:
            if len(self._texts) >= self._WORDS_MAX:
                return ""
            hint = self._texts[word] = did_you_mean(word, self._known)
        return hint


def _part_text(part: str | int) -> str:
    if isinstance(part, int):
        return str(part)
    plain = part.replace("-", "").replace("_", "")
    return part if plain.isascii() and plain.isalnum() else ascii(part[:64])
