"""`--set KEY=VALUE`: single keys given on the command line, over what the files say.

KEY is dotted as in the faults (`listen.0.bind`, `upstream.stripe.wait.max`), with quotes where a
part has a dot. VALUE is TOML where it is valid TOML and otherwise a text, so that neither a number
nor an address needs quotes inside quotes.
"""

from __future__ import annotations

import tomllib
from typing import Any

from gateway.conf.faults import Fault, Path
from gateway.conf.sources import Sources, clone, too_deep
from gateway.conf.units import shown

__all__ = ["apply_overrides"]

_OVERRIDES_MAX = 1000  # far above what a command line is used for
_TEXT_CHARACTERS_MAX = 64 * 1024
_INDEX_DIGITS_MAX = 6
_LISTS = frozenset(("listen", "route", "client", "limit"))  # made as lists where they are absent


def apply_overrides(sources: Sources, overrides: list[str]) -> None:
    """Sets each key in `sources.data`; what cannot be set becomes a fault of the file `--set`."""
    if not overrides:
        return
    sources.data = clone(sources.data)
    for text in overrides[:_OVERRIDES_MAX]:
        key, equals, value = text.partition("=")
        try:
            if not equals or len(text) > _TEXT_CHARACTERS_MAX:
                raise ValueError("use KEY=VALUE, as in node.name=gw-2")
            parts = _key_parts(key)
            if parts[0] == "include":
                raise ValueError("files are read before this is; it can stand in a file only")
            path = _set(sources.data, parts, _value(value))
        except ValueError as error:
            sources.faults.append(Fault("--set", 0, key.strip()[:200], str(error)))
            continue
        sources.override_paths.append(path)
    if len(overrides) > _OVERRIDES_MAX:
        sources.faults.append(Fault("--set", 0, "", f"at most {_OVERRIDES_MAX} keys can be set"))


def _key_parts(key: str) -> list[str]:
    """The parts of a dotted key, by tomllib itself. Raises ValueError."""
    try:
        node: Any = tomllib.loads(f"{key.strip()} = 0") if "\n" not in key else {}
    except (ValueError, RecursionError):
        node = {}
    parts = []
    while isinstance(node, dict) and len(node) == 1:
        part, node = next(iter(node.items()))
        parts.append(part)
    if node != 0 or not parts or len(parts) > 16:
        raise ValueError("is not a dotted key such as listen.0.bind")
    return parts


def _value(text: str) -> Any:
    try:
        parsed = tomllib.loads("value = " + text)
    except (ValueError, RecursionError):
        return text
    if parsed.keys() != {"value"} or too_deep(parsed) is not None:
        return text
    return parsed["value"]


def _set(data: dict[str, Any], parts: list[str], value: Any) -> Path:
    """Sets the key, making tables on the way; returns its path. Raises ValueError."""
    node: Any = data
    path: list[str | int] = []
    for position, part in enumerate(parts):
        last = position == len(parts) - 1
        if isinstance(node, list):
            index = _index(part, node)
            path.append(index)
            if index == len(node):
                node.append({})
            if last:
                node[index] = value
            node = node[index]
        elif isinstance(node, dict):
            path.append(part)
            if last:
                node[part] = value
            node = node.setdefault(part, [] if part in _LISTS else {})
        else:
            raise ValueError(f"there is no table at {shown('.'.join(parts[:position]))}")
    return tuple(path)


def _index(part: str, items: list[Any]) -> int:
    """The position that a part names in a list; the one behind its end makes a new item."""
    digits = part.isascii() and part.isdigit() and len(part) <= _INDEX_DIGITS_MAX
    if not digits or int(part) > len(items):
        raise ValueError(f"{shown(part)} is not a position in a list of {len(items)}")
    return int(part)
