"""The files of a configuration: reading, including, merging, and finding a key's place again.

Files are merged as data, before anything is judged, so that a section may be spread over files in
any way. Tables merge, arrays of tables are joined in the order of the files, and any other key may
be set once only: the second place is a fault that names the first. Relative paths, also those of
included files, count from the main file's folder, so that moving a section to another file changes
nothing.
"""

from __future__ import annotations

import codecs
import glob
import os
import re
import tomllib
from pathlib import Path as FilePath
from typing import Any

from gateway.conf.faults import Fault, Path, key_text
from gateway.conf.positions import key_lines
from gateway.conf.units import shown

__all__ = ["FILES_MAX", "FILE_BYTES_MAX", "Source", "Sources", "clone", "collect", "too_deep"]

FILE_BYTES_MAX = 1 << 20  # 10,000 routes take about 0.6 MiB
FILES_MAX = 100  # one file for each of a hundred teams
# The deepest key of the schema is upstream.NAME.headers.set.FIELD.env, 6; room for mistakes.
_DEPTH_MAX = 16

_SYNTAX_LINE = re.compile(r"(.*) \(at line ([0-9]+), column ([0-9]+)\)", re.DOTALL)


class Source:
    """One file: its name as the operator gave it, its data as tomllib reads it."""

    __slots__ = ("_lines", "data", "file", "text")

    def __init__(self, file: str, text: str, data: dict[str, Any]) -> None:
        self.file = file
        self.text = text
        self.data = data
        self._lines: dict[Path, int] | None = None

    def line(self, path: Path) -> int:
        """The line of a key, or of the innermost table around it that the file has."""
        if self._lines is None:
            self._lines = key_lines(self.text)
        while path:
            line = self._lines.get(path)
            if line is not None:
                return line
            path = path[:-1]
        return 1


class Sources:
    """All files of a configuration, merged into `data`; `faults` says what went wrong so far."""

    __slots__ = ("data", "faults", "files", "folder", "override_paths", "unreadable")

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.files: list[Source] = []
        self.data: dict[str, Any] = {}
        self.faults: list[Fault] = []
        self.override_paths: list[Path] = []
        self.unreadable = False  # a syntax error, or the main file is missing: nothing to judge

    def locate(self, path: Path) -> tuple[str, int]:
        """File and line of a key of `data`; ("--set", 0) where an override set it, or made the
        table that it belongs to."""
        if any(path[: len(set_path)] == set_path for set_path in self.override_paths):
            return "--set", 0
        if any(self._is_made(path[:length]) for length in range(1, len(path) + 1)):
            return "--set", 0
        places: list[tuple[Source, Any, Path]] = [(file, file.data, ()) for file in self.files]
        for part in path:
            inner = _step(places, part)
            if not inner:
                break
            places = inner
        source, _, local = places[0]
        return source.file, source.line(local)

    def _is_made(self, path: Path) -> bool:
        """Whether no file has this key or table, and an override has put something into it."""
        if not any(set_path[: len(path)] == path for set_path in self.override_paths):
            return False
        places: list[tuple[Source, Any, Path]] = [(file, file.data, ()) for file in self.files]
        for part in path:
            places = _step(places, part)
        return not places

    def fault(self, path: Path, message: str) -> Fault:
        """A fault at a key of `data`."""
        return Fault(*self.locate(path), key_text(path), message)


def collect(path: str) -> Sources:
    """Reads the main file and all that it includes. Never raises for what a file holds."""
    sources = Sources(os.path.dirname(os.path.abspath(path)))  # noqa: PTH100, PTH120 -- texts
    _add(sources, path, [], None)
    if sources.unreadable:
        return sources
    if len(sources.files) == 1:
        sources.data = sources.files[0].data
        return sources
    for source in sources.files:
        for duplicate in _merge(sources.data, source.data, ()):
            first_file, first_line = sources.locate(duplicate)
            sources.faults.append(
                Fault(
                    source.file,
                    source.line(duplicate),
                    key_text(duplicate),
                    f"is set twice; also at {first_file}:{first_line}",
                )
            )
    return sources


def clone(node: Any) -> Any:
    """A copy of tables and lists; the values in them are immutable."""
    if isinstance(node, dict):
        return {key: clone(value) for key, value in node.items()}
    if isinstance(node, list):
        return [clone(item) for item in node]
    return node


def too_deep(data: dict[str, Any]) -> Path | None:
    """The path of a value that is nested deeper than any key of the schema, if there is one."""
    stack: list[tuple[Any, Path]] = [(data, ())]
    while stack:
        node, path = stack.pop()
        if len(path) > _DEPTH_MAX:
            return path
        if isinstance(node, dict):
            stack.extend(
                (value, (*path, key))
                for key, value in node.items()
                if isinstance(value, dict | list)
            )
        elif isinstance(node, list):
            stack.extend(
                (item, (*path, index))
                for index, item in enumerate(node)
                if isinstance(item, dict | list)
            )
    return None


def _add(sources: Sources, path: str, chain: list[str], asked: Fault | None) -> None:
    """Reads a file and then what it includes; `asked` is the place of the include."""
    if len(sources.files) >= FILES_MAX:
        sources.faults.append(_at(asked, path, f"more than {FILES_MAX} files are included"))
        return
    source = _read(sources, path, asked)
    if source is None:
        return
    sources.files.append(source)
    chain = [*chain, os.path.realpath(path)]
    patterns = source.data.get("include")
    if chain[1:]:
        source.data.pop("include", None)  # the merged data keeps the main file's
    if isinstance(patterns, list) and all(isinstance(item, str) and item for item in patterns):
        for index, pattern in enumerate(patterns):
            line = source.line(("include", index))
            _include(sources, pattern, chain, Fault(source.file, line, f"include.{index}", ""))
    elif patterns is not None and chain[1:]:
        line = source.line(("include",))
        sources.faults.append(Fault(source.file, line, "include", "must be a list of texts"))


def _include(sources: Sources, pattern: str, chain: list[str], asked: Fault) -> None:
    whole = os.path.join(sources.folder, pattern)  # noqa: PTH118 -- a text with stars
    if "\0" in whole:
        sources.faults.append(asked._replace(message="a path has no NUL in it"))
        return
    names = [whole]
    if glob.has_magic(pattern):
        names = sorted(glob.glob(whole), key=os.path.basename)  # noqa: PTH207 -- stars in folders
    for name in names:
        real = os.path.realpath(name)
        if real in chain:
            text = f"{shown(pattern)} includes {shown(name)}, which includes this file"
            sources.faults.append(asked._replace(message=text))
        elif all(os.path.realpath(source.file) != real for source in sources.files):
            _add(sources, name, chain, asked)


def _read(sources: Sources, path: str, asked: Fault | None) -> Source | None:
    """The file's Source; None with a fault where it cannot be read or is no TOML."""
    try:
        if not FilePath(path).is_file():  # a device or a fifo could block or never end
            raise ValueError("does not exist or is not a plain file")
        with FilePath(path).open("rb") as file:
            octets = file.read(FILE_BYTES_MAX + 1)
        if len(octets) > FILE_BYTES_MAX:
            raise ValueError("is longer than 1MiB; spread it over files with `include`")
        if octets.startswith(codecs.BOM_UTF8):
            raise ValueError("begins with a byte order mark, which TOML does not have")
        text = octets.decode()
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        sources.faults.append(Fault(path, line, "", "is not UTF-8 text"))
        sources.unreadable = True
        return None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        sources.faults.append(_at(asked, path, str(reason)))
        sources.unreadable = sources.unreadable or asked is None
        return None
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        sources.faults.append(_syntax_fault(path, text, error))
        sources.unreadable = True
        return None
    source = Source(path, text, data)
    deep = too_deep(data)
    if deep is not None:
        place = Fault(path, source.line(deep), key_text(deep[:3]), "is nested too deeply")
        sources.faults.append(place)
        sources.unreadable = True
        return None
    return source


def _at(asked: Fault | None, path: str, message: str) -> Fault:
    """A fault about a whole file: at the place that asked for it, or at the file itself."""
    if asked is None:
        return Fault(path, 0, "", message)
    return asked._replace(message=f"{path}: {message}")


def _syntax_fault(path: str, text: str, error: Exception) -> Fault:
    if isinstance(error, RecursionError):
        return Fault(path, 1, "", "is nested too deeply")
    match = _SYNTAX_LINE.fullmatch(str(error))
    if match is not None:
        return Fault(path, int(match[2]), "", f"{match[1]} (column {match[3]})")
    # "at end of document", and numbers of too many digits, which come without a place.
    message = str(error).removesuffix(" (at end of document)")
    at_end = message != str(error)
    return Fault(path, text.rstrip().count("\n") + 1 if at_end else 1, "", message)


def _merge(target: dict[str, Any], addition: dict[str, Any], path: Path) -> list[Path]:
    """Puts a file's data into the merged data; returns the keys that were there already."""
    duplicates: list[Path] = []
    for key, value in addition.items():
        here = (*path, key)
        if key not in target:
            target[key] = clone(value)
        elif isinstance(value, dict) and isinstance(target[key], dict):
            duplicates += _merge(target[key], value, here)
        elif _are_tables(value) and _are_tables(target[key]):
            target[key].extend(clone(value))
        else:
            duplicates.append(here)
    return duplicates


def _are_tables(node: Any) -> bool:
    return isinstance(node, list) and bool(node) and all(isinstance(item, dict) for item in node)


def _step(
    places: list[tuple[Source, Any, Path]], part: str | int
) -> list[tuple[Source, Any, Path]]:
    """One part further into every file that has it; list items are counted through the files."""
    if isinstance(part, str):
        return [
            (source, node[part], (*local, part))
            for source, node, local in places
            if isinstance(node, dict) and part in node
        ]
    index = part
    for source, node, local in places:
        if isinstance(node, list):
            if index < len(node):
                return [(source, node[index], (*local, index))]
            index -= len(node)
    return []
