"""On which line every key of a TOML text stands.

The standard library's parser gives values without positions, and a fault without a line is of
little use in a file of a thousand routes. This scanner knows only as much TOML as it takes to find
keys (TOML 1.0: keys, tables, arrays of tables, inline tables, strings); whether a text is valid is
tomllib's to say, and tests hold both to the same keys. It runs only once a fault is found, and
never raises: on a text that is no TOML it returns what it understood.
"""

from __future__ import annotations

import re
import tomllib

from gateway.conf.faults import Path

__all__ = ["key_lines"]

# Possessive repeats: none of these can backtrack, so a scan is linear in the text.
_BLANK = re.compile(r"(?:[ \t\r\n]++|#[^\n]*+)++")
_SPACE = re.compile(r"[ \t]*+")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]++")
_QUOTED = re.compile(r'"(?:[^"\\\n]|\\.)*+"|\'[^\'\n]*+\'')
_LONG = re.compile(r'"""(?:[^"\\]|\\(?s:.)|"(?!""))*+"{3,5}' r"|'''(?:[^']|'(?!''))*+'{3,5}")
# Deeper keys get their table's line: without a bound, a text of brackets would fill the memory
# with paths. The loader refuses what is nested deeper than 16.
_DEPTH_MAX = 24
_SCALAR = re.compile(r"[^,\]}#\n]++")


def key_lines(text: str) -> dict[Path, int]:
    """The line, from 1, where each key, table and list item of a TOML text begins.

    For a table that comes up several times it is the first line.
    """
    scanner = _Scanner(text)
    scanner.scan()
    return scanner.lines


class _Frame:
    """An open bracket: a list with the index of its next item, or an inline table (-1)."""

    __slots__ = ("next_index", "path")

    def __init__(self, path: Path, next_index: int) -> None:
        self.path = path
        self.next_index = next_index


class _Scanner:
    __slots__ = ("_counted", "_line", "_text", "items", "lines", "pos")

    def __init__(self, text: str) -> None:
        self._text = text
        self.pos = 0
        self._line = 1
        self._counted = 0  # newlines before this position are in _line
        self.lines: dict[Path, int] = {}
        self.items: dict[Path, int] = {}  # arrays of tables: how many items they have so far

    def scan(self) -> None:
        text = self._text
        table: Path = ()
        while True:
            self._skip_blank()
            if self.pos >= len(text):
                return
            if text[self.pos] == "[":
                table = self._header(table)
            elif not self._pair(table):
                end = text.find("\n", self.pos)
                self.pos = len(text) if end < 0 else end

    def _header(self, table: Path) -> Path:
        """`[a.b]` or `[[a.b]]`: the path of the table that begins here."""
        several = self._text.startswith("[[", self.pos)
        self.pos += 2 if several else 1
        parts = self._key()
        if parts is None:
            return table
        path: Path = ()
        for part in parts[:-1]:
            path = _below(path, part)
            self._record(path)
            if path in self.items:
                path = _below(path, self.items[path] - 1)  # a table below the latest item
        path = _below(path, parts[-1])
        self._record(path)
        if several:
            index = self.items.get(path, 0)
            self.items[path] = index + 1
            path = _below(path, index)
            self._record(path)
        while self._text.startswith("]", self.pos):
            self.pos += 1
        return path

    def _pair(self, table: Path) -> bool:
        """`a.b = value`; False where no key stands here."""
        path = self._dotted(table)
        if path is None:
            return False
        self._value(path)
        return True

    def _dotted(self, table: Path) -> Path | None:
        """The path of the key that stands here, which is recorded; the position is behind `=`."""
        parts = self._key()
        if parts is None:
            return None
        path = table
        for part in parts:
            path = _below(path, part)
            self._record(path)
        if self._text.startswith("=", self.pos):
            self.pos += 1
        return path

    def _value(self, path: Path) -> None:
        """Passes over a value; keys and items inside it are recorded. A stack, no recursion."""
        text = self._text
        frames: list[_Frame] = []
        following: Path | None = path
        while following is not None:
            path = following
            self._skip_blank()
            bracket = text[self.pos : self.pos + 1]
            if bracket == "[":
                self.pos += 1
                frames.append(_Frame(path, 0))
            elif bracket == "{":
                self.pos += 1
                frames.append(_Frame(path, -1))
            else:
                self._pass_scalar()
            following = self._next(frames)

    def _pass_scalar(self) -> None:
        for pattern in (_LONG, _QUOTED, _SCALAR):
            match = pattern.match(self._text, self.pos)
            if match is not None:
                self.pos = match.end()
                return

    def _next(self, frames: list[_Frame]) -> Path | None:
        """The path of the next value inside the open brackets; None once all are closed."""
        text = self._text
        while frames:
            self._skip_blank()
            if self.pos >= len(text):
                return None
            character = text[self.pos]
            if character in "]},":
                self.pos += 1
                if character != ",":
                    frames.pop()
                continue
            frame = frames[-1]
            if frame.next_index < 0:
                path = self._dotted(frame.path)
                if path is None:
                    self.pos += 1
                    continue
                return path
            path = _below(frame.path, frame.next_index)
            frame.next_index += 1
            self._record(path)
            return path
        return None

    def _key(self) -> list[str] | None:
        """The parts of a dotted key, with the space around it; None where there is none."""
        text = self._text
        parts: list[str] = []
        while True:
            self._skip(_SPACE)
            match = _BARE_KEY.match(text, self.pos)
            if match is None:
                match = _QUOTED.match(text, self.pos)
                if match is None:
                    return None
            self.pos = match.end()
            parts.append(_unquoted(match[0]))
            self._skip(_SPACE)
            if not text.startswith(".", self.pos):
                return parts
            self.pos += 1

    def _skip_blank(self) -> None:
        self._skip(_BLANK)

    def _skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self._text, self.pos)
        if match is not None:
            self.pos = match.end()

    def _record(self, path: Path) -> None:
        if path in self.lines:
            return
        self._line += self._text.count("\n", self._counted, self.pos)
        self._counted = self.pos
        self.lines[path] = self._line


def _below(path: Path, part: str | int) -> Path:
    return (*path, part) if len(path) < _DEPTH_MAX else path


def _unquoted(token: str) -> str:
    if token[0] not in "\"'":
        return token
    try:
        return str(tomllib.loads("k = " + token)["k"])
    except ValueError:
        return token
