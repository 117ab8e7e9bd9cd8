"""What several workers say, as one node: counts are summed up, states are the gravest.

A worker's figures are its own, but what the mesh knows (levels, sums over all nodes) each of its
members knows alike: there the largest view stands, not the sum of views.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["merged_document"]

# Keys whose values are views of one thing.
LARGEST = frozenset(
    {
        "active_rows",
        "admitted_mesh",
        "awareness",
        "burst",
        "cadence_ns",
        "commit_max_s",
        "dead_letters",
        "closed_ns",
        "delay_ms",
        "delay_ns",
        "effective_burst",
        "epoch",
        "excess_bound",
        "horizon_ns",
        "incarnation",
        "known",
        "lag_ns",
        "level",
        "live",
        "now_ns",
        "oldest_s",
        "opened_ns",
        "over",
        "peak",
        "quota",
        "rate",
        "remaining_ms",
        "rows",
        "rows_read",
        "since_ns",
        "slow_head_ms",
        "strays",
        "tokens",
        "unreached_by",
    }
)
SMALLEST = frozenset({"heard_ms", "rate_factor", "rate_in_force", "rtt_ms", "uptime_s"})
# A flag is up where any worker has it up, except for these.
ALL_OF = frozenset({"ready", "reload_success", "up"})
# Tables in lists are the same thing where these are equal.
NAMES = ("name", "credential")
BEST = {"alive": 4, "unheard": 3, "suspect": 2, "left": 1, "dead": 0}


def merged_document(documents: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """`/api/v1/node` of a node from those of its workers, of which there is at least one.

    Counts start again with a worker that was restarted.
    """
    merged: dict[str, Any] = _merge_tables(documents)
    merged["members"] = _members([document["members"] for document in documents])
    return merged


def _merge_tables(tables: Sequence[dict[str, Any]]) -> dict[str, Any]:
    keys = dict.fromkeys(key for table in tables for key in table)
    if "state" in keys and "epoch" in keys:  # a breaker: the mesh keeps them equal, but for news
        return max(tables, key=lambda table: (table["epoch"], table["state"] != "closed"))
    if "age_s" in keys and "told" in keys:  # what the API said last, to whichever worker
        newest = min(tables, key=lambda table: float(table["age_s"]))
        counts = {key: sum(table[key] for table in tables) for key in ("told", "adopted")}
        return {**newest, **counts}
    return {key: _merge(key, [table[key] for table in tables if key in table]) for key in keys}


def _merge(key: str, values: Sequence[Any]) -> Any:
    known = [value for value in values if value is not None]
    if not known:
        return None
    first = known[0]
    if isinstance(first, bool):
        return all(known) if key in ALL_OF else any(known)
    if isinstance(first, int | float):
        if key in LARGEST:
            return max(known)
        if key in SMALLEST:
            return min(known)
        total = sum(known)
        return round(total, 6) if isinstance(total, float) else total
    if isinstance(first, dict):
        return _merge_tables(known)
    if isinstance(first, list):
        return _merge_lists(known)
    return first


def _merge_lists(lists: Sequence[list[Any]]) -> list[Any]:
    """Tables that have a name are merged by it; of other lists the first one stands."""
    tables = [item for items in lists for item in items]
    if not tables or not isinstance(tables[0], dict):
        return lists[0]
    name = next((name for name in NAMES if name in tables[0]), None)
    if name is None:
        return lists[0]
    alike: dict[Any, list[dict[str, Any]]] = {}
    for table in tables:
        alike.setdefault(table[name], []).append(table)
    return [_merge_tables(same) for same in alike.values()]


def _members(views: Sequence[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Each member as whoever knows it best sees it; the node's own workers are `self`."""
    best: dict[str, dict[str, Any]] = {}
    for members in views:
        for member in members:
            known = best.get(member["name"])
            if known is None or _rank(member) > _rank(known):
                best[member["name"]] = member
    return [best[name] for name in sorted(best)]


def _rank(member: dict[str, Any]) -> tuple[bool, int]:
    return bool(member["self"]), BEST.get(member["state"], -1)
