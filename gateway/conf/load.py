"""From a file to a `Conf`, or to all of its faults at once, each with its line.

Files are read and merged (`sources`), single keys are set from the command line (`overrides`),
every key is judged by itself (pydantic, through `explain`), and then what spans keys (`check`).
Where keys are wrong, the rest is still judged: the wrong ones are taken out, and what is said about
their surroundings is dropped, so that no fault is a consequence of another.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from gateway.conf.check import faults
from gateway.conf.explain import FINDINGS_MAX, error_details, explain
from gateway.conf.faults import ConfError, Fault, Finding, Hints, Path
from gateway.conf.overrides import apply_overrides
from gateway.conf.schema import Conf
from gateway.conf.secret import Surroundings
from gateway.conf.sources import Sources, collect

__all__ = ["load", "placed"]

# A round takes out what is wrong; a table that lacks a key then goes as a whole, and so do those
# around it, of which there are at most six.
_ROUNDS_MAX = 8
_PLACEHOLDER = "https://placeholder.invalid"  # RFC 2606 section 2


def load(
    path: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    environ: Mapping[str, str] = os.environ,
) -> Conf:
    """The configuration in a file, with `KEY=VALUE` overrides; secrets are read here.

    Raises ConfError with all faults, in the order of files and lines.
    """
    sources = collect(os.fspath(path))
    if sources.unreadable:
        raise ConfError(sources.faults)
    apply_overrides(sources, list(overrides))
    conf, findings = _judge(sources.data, Surroundings(sources.folder, environ))
    found = [*sources.faults, *(sources.fault(*finding) for finding in findings)]
    if found or conf is None:
        raise ConfError(_in_order(found, sources))
    return conf


def placed(
    findings: Iterable[Finding], path: str | os.PathLike[str], overrides: Sequence[str] = ()
) -> list[Fault]:
    """Findings about a configuration that was loaded, with the file and line of each key."""
    sources = collect(os.fspath(path))
    apply_overrides(sources, list(overrides))
    return [sources.fault(*finding) for finding in findings]


def _in_order(found: list[Fault], sources: Sources) -> list[Fault]:
    order = {source.file: position for position, source in enumerate(sources.files)}
    unique = dict.fromkeys(found)
    faults = sorted(unique, key=lambda fault: (order.get(fault.file, len(order)), fault.line))
    if len(faults) > FINDINGS_MAX:
        more = f"{len(faults) - FINDINGS_MAX} more faults are not shown"
        faults = [*faults[:FINDINGS_MAX], Fault(faults[-1].file, 0, "", more)]
    return faults


def _judge(data: dict[str, Any], around: Surroundings) -> tuple[Conf | None, list[Finding]]:
    """The configuration, as far as it could be made, and everything that is wrong with it."""
    try:
        conf = Conf.model_validate(data, context=around)
    except ValidationError as error:
        return _judge_rest(data, around, error)
    return conf, faults(conf)


def _judge_rest(
    data: dict[str, Any], around: Surroundings, error: ValidationError
) -> tuple[Conf | None, list[Finding]]:
    """Judges what remains once the keys that are wrong by themselves are taken out."""
    findings = explain(error)
    pruned = _Pruned(data)
    for _ in range(_ROUNDS_MAX):
        for detail in error_details(error):
            if not pruned.remove(detail["loc"]):
                return None, findings
        rest = pruned.data()
        try:
            conf = Conf.model_validate(rest, context=around)
        except ValidationError as next_error:
            error = next_error
            continue
        declared = data.get("upstream")
        names = [str(name) for name in declared] if isinstance(declared, dict) else []
        for path, message in faults(conf, names):
            original = pruned.original(path)
            if not pruned.is_consequence(original):
                findings.append(Finding(original, message))
        findings += _references(data, names)
        return conf, findings
    return None, findings


def _references(data: dict[str, Any], upstreams: list[str]) -> Iterator[Finding]:
    """Names of upstreams in tables that were taken out for another fault: they count all the same.

    What the checks have found already comes in the same words, and is told once.
    """
    hints = Hints(upstreams)
    for section, key in (("route", "upstream"), ("client", "upstreams")):
        tables = data.get(section)
        for index, table in enumerate(tables if isinstance(tables, list) else ()):
            named = table.get(key) if isinstance(table, dict) else None
            path: Path = (section, index, key)
            if isinstance(named, str):
                named, paths = [named], [path]
            elif isinstance(named, list):
                paths = [(*path, position) for position in range(len(named))]
            else:
                continue
            for name, at in zip(named, paths, strict=True):
                if isinstance(name, str) and name not in upstreams:
                    yield Finding(at, f"there is no [upstream.{name}]{hints.text(name)}")


class _Pruned:
    """Data without some of its keys, which still knows where its list items came from."""

    def __init__(self, data: dict[str, Any]) -> None:
        self._data = data
        self._gone: set[Path] = set()  # in the numbering of the whole data
        self._fresh: set[Path] = set()  # those since the data was last copied
        self._around: set[Path] = set()  # what holds something that is gone
        self._tables: set[Path] = set()  # tables that lost a key
        self._kept: dict[Path, list[int]] = {}  # of a list that lost items: where the rest was

    def remove(self, path: Path) -> bool:
        """Takes out what stands at a path of the pruned data; False where nothing can be."""
        original: Path = ()
        node: Any = self._data
        if path[0:1] == ("upstream",) and path[2:] == ("origin",):
            self._gone.add(path)  # gets a placeholder, so that the rest of the upstream is judged
            return True
        for part in self.original(path):
            here = (*original, part)
            if here in self._fresh:
                return True
            if here in self._gone or not _has(node, part):
                break  # a key is missing, perhaps since it was taken out: its table goes
            node, original = node[part], here
        if not original:
            return False
        self._gone.add(original)
        self._fresh.add(original)
        return True

    def data(self) -> dict[str, Any]:
        """A copy of the data without what was taken out."""
        self._kept = {}
        self._fresh = set()
        copy = self._copy(self._data, ())
        assert isinstance(copy, dict)
        return copy

    def original(self, path: Path) -> Path:
        """A path of the pruned data, as one of the whole data."""
        result: Path = ()
        for part in path:
            kept = self._kept.get(result)
            if kept is not None and isinstance(part, int) and part < len(kept):
                part = kept[part]
            result = (*result, part)
        return result

    def is_consequence(self, path: Path) -> bool:
        """Whether a key is, holds, or stands directly beside something that was taken out."""
        if not self._around:
            for gone in self._gone:
                self._around.update(gone[:length] for length in range(len(gone)))
                table = gone[:-1]
                # Items of a list, and upstreams, stand beside each other without being one thing.
                if not isinstance(gone[-1], int) and table not in ((), ("upstream",)):
                    self._tables.add(table)
        if path in self._around or path[:-1] in self._tables:
            return True
        return any(path[:length] in self._gone for length in range(1, len(path) + 1))

    def _copy(self, node: Any, path: Path) -> Any:
        if isinstance(node, dict):
            copy = {
                key: self._copy(value, (*path, key))
                for key, value in node.items()
                if (*path, key) not in self._gone
            }
            if (*path, "origin") in self._gone:
                copy["origin"] = _PLACEHOLDER
            return copy
        if isinstance(node, list):
            kept = [index for index in range(len(node)) if (*path, index) not in self._gone]
            if len(kept) < len(node):
                self._kept[path] = kept
            return [self._copy(node[index], (*path, index)) for index in kept]
        return node


def _has(node: Any, part: str | int) -> bool:
    if isinstance(part, int):
        return isinstance(node, list) and part < len(node)
    return isinstance(node, dict) and part in node
