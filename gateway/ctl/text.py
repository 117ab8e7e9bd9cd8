"""How values are written on a terminal: tables by rich on one, plain columns elsewhere.

Keys, header values and names of members come from outside, and a terminal obeys what it is sent:
nothing but printable characters leaves this module.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from gateway.clock import MS
from gateway.conf.units import duration_text

__all__ = [
    "COLUMNS",
    "Column",
    "json_text",
    "key_text",
    "ms_text",
    "plain_table",
    "rich_table",
    "shown",
]


class Column(NamedTuple):
    """A head, the item's key, and how its value is written; numbers stand right."""

    head: str
    key: str
    write: Callable[[Any], str] | None = None
    right: bool = False


def shown(value: Any) -> str:
    """A value as one line of printable characters; null is a hyphen."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ",".join(shown(item) for item in value) or "-"
    if isinstance(value, dict):
        return key_text(value)
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".")
    text = str(value)
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in text
    )


def key_text(key: dict[str, Any]) -> str:
    """A row's key, or an event's facts, as NAME=VALUE pairs; a hyphen for none."""
    return " ".join(f"{shown(name)}={shown(value)}" for name, value in key.items()) or "-"


def ms_text(value: float | None) -> str:
    """Milliseconds in the words of the configuration file."""
    if value is None:
        return "-"
    if value < 1000:
        return f"{value:.3g}ms"
    if value < 60_000:
        return f"{value / 1000:.3g}s"
    return duration_text(int(value / 60_000) * 60_000 * MS)


def _seconds(value: float) -> str:
    return ms_text(value * 1000)


def _latency(value: dict[str, float | None]) -> str:
    return "/".join(ms_text(value[name]) for name in ("p50", "p90", "p99"))


def _responses(value: dict[str, int]) -> str:
    return "/".join(str(value[f"{digit}xx"]) for digit in range(2, 6))


def _credential(value: str | None) -> str:
    return "-" if value is None else shown(value)[:8]


_UPSTREAM = Column("upstream", "upstream")
COLUMNS: dict[str, tuple[Column, ...]] = {
    "nodes": (
        Column("node", "node"),
        Column("version", "version"),
        Column("up", "uptime_s", _seconds, True),
        Column("ready", "ready"),
        Column("draining", "draining"),
        Column("config", "config_hash"),
        Column("reloads", "reloads", None, True),
        Column("last-ok", "reload_success"),
        Column("live", "members_live", None, True),
        Column("known", "members_known", None, True),
        Column("connections", "connections", None, True),
        Column("waiting", "waiting", None, True),
    ),
    "members": (
        Column("seen-by", "node"),
        Column("member", "name"),
        Column("state", "state"),
        Column("self", "self"),
        Column("address", "address"),
        Column("heard-from", "heard_from"),
        Column("rtt", "rtt_ms", ms_text, True),
        Column("heard", "heard_ms", ms_text, True),
    ),
    "upstreams": (
        Column("upstream", "name"),
        Column("origin", "origin"),
        Column("requests", "requests", None, True),
        Column("admitted", "admitted", None, True),
        Column("waited", "waited", None, True),
        Column("refused", "refused", None, True),
        Column("paused", "paused", None, True),
        Column("failed", "failed", None, True),
        Column("2/3/4/5xx", "responses", _responses, True),
        Column("p50/p90/p99", "latency_ms", _latency, True),
        Column("breaker", "breaker"),
    ),
    "limits": (
        _UPSTREAM,
        Column("limit", "name"),
        Column("rate", "rate"),
        Column("burst", "burst", None, True),
        Column("set-by", "overridden", lambda value: "operator" if value else "file"),
        Column("sync", "sync"),
        Column("rows", "rows", None, True),
        Column("own", "admitted_own", None, True),
        Column("mesh", "admitted_mesh", None, True),
        Column("level", "level", None, True),
        Column("refused", "refused", None, True),
        Column("in-force/s", "rate_in_force", None, True),
        Column("over-by", "excess_bound", None, True),
    ),
    "breakers": (
        _UPSTREAM,
        Column("credential", "credential", _credential),
        Column("state", "state"),
        Column("cause", "cause"),
        Column("forced", "forced"),
        Column("left", "remaining_ms", ms_text, True),
        Column("epoch", "epoch", None, True),
    ),
    "waits": (
        _UPSTREAM,
        Column("at", "at"),
        Column("limit", "limit"),
        Column("key", "key", key_text),
        Column("waiting", "waiting", None, True),
        Column("tokens", "tokens", None, True),
        Column("first", "first_client"),
        Column("since", "first_waited_ms", ms_text, True),
        Column("until", "first_until_ms", ms_text, True),
    ),
    "pools": (
        _UPSTREAM,
        Column("idle", "idle", None, True),
        Column("open", "open", None, True),
        Column("in-use", "in_use", None, True),
        Column("max", "max", None, True),
        Column("dialling", "dialling", None, True),
        Column("dials", "dials", None, True),
        Column("reuses", "reuses", None, True),
        Column("tunnels", "tunnels", None, True),
        Column("shared-with", "shared_with"),
    ),
    "clients": (
        Column("client", "name"),
        Column("weight", "weight", None, True),
        Column("priority", "priority", None, True),
        Column("source", "source"),
        Column("known-by", "known_by"),
        Column("upstreams", "upstreams"),
        Column("allowed", "allowed"),
        Column("under-way", "under_way", None, True),
        Column("waiting", "waiting", None, True),
    ),
    "recent": (
        Column("level", "level"),
        Column("event", "event"),
        Column("facts", "facts", key_text),
    ),
    "spool": (
        Column("id", "id"),
        Column("state", "state"),
        _UPSTREAM,
        Column("client", "client"),
        Column("method", "method"),
        Column("target", "target"),
        Column("accepted", "accepted"),
        Column("attempts", "attempts", None, True),
        Column("status", "last_status", None, True),
        Column("reason", "reason"),
    ),
    "rows": (
        Column("key", "key", key_text),
        Column("level", "level", None, True),
        Column("free", "free", None, True),
        Column("full-in", "full_ms", ms_text, True),
        Column("own", "admitted_own", None, True),
        Column("mesh", "admitted_mesh", None, True),
        Column("waiting", "waiting", None, True),
    ),
}


def _cell(column: Column, item: dict[str, Any]) -> str:
    value = item.get(column.key)  # what is not so far is not in it
    if value is None:
        return shown(None)
    return shown(column.write(value) if column.write is not None else value)


def _with_node(columns: Sequence[Column], items: Sequence[dict[str, Any]]) -> Sequence[Column]:
    """Where several nodes, or workers of one, tell, it is said who."""
    if len({item.get("node") for item in items}) < 2 or any(one.key == "node" for one in columns):
        return columns
    return (Column("node", "node"), *columns)


def plain_table(columns: Sequence[Column], items: Sequence[dict[str, Any]]) -> str:
    """Aligned columns under a head that begins with #, for a pipe or a log."""
    columns = _with_node(columns, items)
    lines = [["# " + columns[0].head, *(column.head for column in columns[1:])]]
    lines += [[_cell(column, item) for column in columns] for item in items]
    widths = [max(len(line[at]) for line in lines) for at in range(len(columns))]
    written = []
    for line in lines:
        cells = [
            cell.rjust(width) if column.right else cell.ljust(width)
            for cell, width, column in zip(line, widths, columns, strict=True)
        ]
        written.append("  ".join(cells).rstrip() + "\n")
    return "".join(written)


def rich_table(columns: Sequence[Column], items: Sequence[dict[str, Any]], title: str = "") -> Any:
    """The same for a terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    columns = _with_node(columns, items)
    table = Table(box=SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=False)
    for column in columns:
        table.add_column(column.head, justify="right" if column.right else "left", overflow="fold")
    for item in items:
        # Text, so that nothing in a value is taken for markup.
        table.add_row(*(Text(_cell(column, item)) for column in columns))
    return table


def json_text(document: Any) -> str:
    """Indented, and in ASCII: a terminal may be anything."""
    return json.dumps(document, indent=2)
