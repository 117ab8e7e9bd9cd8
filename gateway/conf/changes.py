"""What differs between two configurations: what a reload may not change, and what it did."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from gateway.conf.faults import Finding
from gateway.conf.fields import Printed, Section
from gateway.conf.schema import Conf, Route
from gateway.conf.secret import Secret

__all__ = ["RESTART_KEYS", "cannot_change", "diff"]

# The name and the mesh's addresses identify the member to its peers, the cluster names every
# counter, the workers are processes, and the admin socket is held by whoever asks for the reload.
RESTART_KEYS = (
    "node.name",
    "node.workers",
    "mesh.cluster",
    "mesh.bind",
    "mesh.advertise",
    "admin.bind",
)

_NOTHING = "(none)"
_LISTS_OF_TABLES = ("listen", "client", "limit")
_SECTIONS = ("mesh", "admin", "spool", "redis")
# One log line says what changed; a file with a thousand new routes is summed up.
_LINES_MAX = 200


def cannot_change(old: Conf, new: Conf) -> list[Finding]:
    """A finding for each of RESTART_KEYS that differs, and for each open listener's TLS."""
    found = []
    for key in RESTART_KEYS:
        before, after = _value(old, key), _value(new, key)
        if before != after:
            message = f"cannot change while running ({before} -> {after}); restart to change it"
            found.append(Finding(tuple(key.split(".")), message))
    return [*found, *_listeners(old, new)]


def _listeners(old: Conf, new: Conf) -> Iterator[Finding]:
    """Whether an open listener speaks TLS, and asks for certificates, is so until it closes.

    New certificates in the files and other `proxy_protocol` networks are taken over.
    """
    before = {str(listen.bind): listen for listen in old.listen}
    for index, listen in enumerate(new.listen):
        was = before.get(str(listen.bind))
        if was is None:
            continue
        changed: tuple[str, ...] = ()
        if was.tls is None or listen.tls is None:
            changed = ("tls",) if was.tls is not listen.tls else ()
        elif was.tls.client_ca != listen.tls.client_ca:
            changed = ("tls", "client_ca")
        if changed:
            message = "cannot come, go or change while the listener is open; restart to change it"
            yield Finding(("listen", index, *changed), message)


def diff(old: Conf, new: Conf) -> list[str]:
    """A line for each key that differs, as "upstream.a.limit.b.rate: 100/s -> 50/s".

    A table that comes or goes is one line with what the file says in it. Limits and clients are
    known by name, listeners by address; secrets only by where they come from. At most 200 lines and
    one that counts the rest.
    """
    lines, whole = _table_lines(dict(_tables(old, "")), dict(_tables(new, "")))
    before, after = dict(_flat(old, "")), dict(_flat(new, ""))
    for key in {*before, *after}:
        was, now = before.get(key), after.get(key)
        if was != now and not key.startswith(whole):
            lines.append(f"{key}: {_shown(was, now)}")
    lines.sort()
    lines += _route_lines(old.route, new.route)
    if len(lines) > _LINES_MAX:
        lines = [*lines[:_LINES_MAX], f"and {len(lines) - _LINES_MAX} more changes"]
    return lines


def _table_lines(
    before: dict[str, Section], after: dict[str, Section]
) -> tuple[list[str], tuple[str, ...]]:
    """A line for each table that only one side has, and the prefixes of the keys in them."""
    lines = []
    whole: list[str] = []
    # A table stands before those within it, which are part of its line.
    for name in [*(after.keys() - before.keys()), *(before.keys() - after.keys())]:
        what, section = ("added", after[name]) if name in after else ("removed", before[name])
        whole.append(f"{name}.")
        lines.append((name, f"{name}: {what}{_given(section)}"))
    outer = tuple(whole)
    return [line for name, line in lines if not name.startswith(outer)], outer


def _tables(section: Section, prefix: str) -> Iterator[tuple[str, Section]]:
    """The tables that may come and go: those with a name of their own, and whole sections."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        key = f"{prefix}{name}"
        if isinstance(value, dict):
            inner = [(f"{key}.{part}", item) for part, item in value.items()]
        elif name in _LISTS_OF_TABLES:
            inner = [(f"{key}.{_called(item)}", item) for item in value]
        elif name in _SECTIONS and value is not None:
            inner = [(key, value)]
        else:
            continue
        for path, item in inner:
            if isinstance(item, Section):
                yield path, item
                yield from _tables(item, f"{path}.")


def _called(table: Any) -> str:
    return str(getattr(table, "name", None) or table.bind)


def _given(section: Section) -> str:
    """What the file says in a table, in brackets; what it leaves to defaults is left out."""
    flat = _flat(section, "", given=True)
    texts = [f"{key} {value}" for key, value in flat if not key.endswith(".name")]
    return f" ({', '.join(texts)})" if texts else ""


def _shown(was: Any, now: Any) -> str:
    if isinstance(was, Secret) and isinstance(now, Secret) and repr(was) == repr(now):
        return f"{now} has a new value"
    left = _NOTHING if was is None else was
    right = _NOTHING if now is None else now
    return f"{left} -> {right}"


def _value(conf: Conf, key: str) -> Any:
    section_name, name = key.split(".")
    section = getattr(conf, section_name)
    return _NOTHING if section is None else getattr(section, name)


def _flat(section: Section, prefix: str, *, given: bool = False) -> Iterator[tuple[str, Any]]:
    """Every key below a section with its value: a text, a Secret, or None. With `given` only those
    that the file has."""
    for name, field in type(section).model_fields.items():
        if given and (name not in section.model_fields_set or (name == "name" and not prefix)):
            continue
        if isinstance(section, Conf) and name == "route":
            continue  # routes have no name; they are compared as a sequence
        if name in _LISTS_OF_TABLES and not getattr(section, name):
            continue  # what is not there has no keys
        printed = next((item for item in field.metadata if isinstance(item, Printed)), None)
        value = getattr(section, name)
        if printed is not None:
            value = printed.text(value)
        yield from _flat_value(value, f"{prefix}{name}", given=given)


def _flat_value(value: Any, key: str, *, given: bool) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Section):
        yield from _flat(value, f"{key}.", given=given)
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _flat_value(item, f"{key}.{name}", given=given)
    elif isinstance(value, tuple) and value and isinstance(value[0], Section):
        for item in value:
            yield from _flat(item, f"{key}.{_called(item)}.", given=given)
    elif isinstance(value, tuple) and value and isinstance(value[0], Secret):
        for index, item in enumerate(value):
            yield f"{key}.{index}", item
    elif isinstance(value, tuple) and type(value) is tuple:
        yield key, "[" + ", ".join(map(str, value)) + "]"
    elif isinstance(value, Secret) or value is None:
        yield key, value
    else:
        yield key, str(value)


def _route_lines(old: tuple[Route, ...], new: tuple[Route, ...]) -> Iterable[str]:
    before, after = [_route_text(route) for route in old], [_route_text(route) for route in new]
    if before == after:
        return []
    gone, come = set(before) - set(after), set(after) - set(before)
    lines = [f"route: - {text}" for text in before if text in gone]
    lines += [f"route: + {text}" for text in after if text in come]
    stayed = [text for text in before if text not in gone]
    if stayed != [text for text in after if text not in come]:
        lines.append("route: the order changed")
    return lines


def _route_text(route: Route) -> str:
    methods = ",".join(route.methods) or "any"
    strip = f", strip {route.strip}" if route.strip is not None else ""
    return f"{methods} {route.host or '*'}{route.path} to {route.upstream}{strip}"
