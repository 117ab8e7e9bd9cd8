"""The one door to http-sf: RateLimit fields of draft-ietf-httpapi-ratelimit-headers, -07 to -10.

Drafts -08 and later send Lists of Items, `"burst";r=12;t=1`; -07 sent one Dictionary,
`limit=10, remaining=10, reset=4`. Both are read, and Token items too, which the draft's own
examples have. What does not parse is ignored as the draft demands.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import http_sf

__all__ = ["Allowance", "quota_of", "read_rate_limit"]

_FIELD_BYTES_MAX = 4 * 1024
_ITEMS_MAX = 32

# draft-10: r, q and t are non-negative Integers, and RFC 9651 gives an Integer 15 digits.
_INTEGER_MAX = 10**15


class Allowance(NamedTuple):
    """What one policy leaves: `remaining` is None where it is not said, `reset_s` likewise."""

    policy: str
    limit: int | None
    remaining: int | None
    reset_s: int | None


def read_rate_limit(value: bytes) -> list[Allowance]:
    """The items of a RateLimit field's combined value; nothing where it is malformed."""
    if len(value) > _FIELD_BYTES_MAX:
        return []
    members = _parsed(value, "list")
    if members is not None:
        items = [_allowance(member) for member in members[:_ITEMS_MAX]]
        return [item for item in items if item is not None]
    table = _parsed(value, "dictionary")
    if table is None:
        return []
    limit, remaining, reset_s = (_member(table, name) for name in ("limit", "remaining", "reset"))
    if remaining is None and reset_s is None:
        return []
    return [Allowance("", limit, remaining, reset_s)]


def quota_of(value: bytes) -> dict[str, int]:
    """The quotas of a RateLimit-Policy field by policy; "" for a bare `100;w=60` (draft -06)."""
    if len(value) > _FIELD_BYTES_MAX:
        return {}
    quotas: dict[str, int] = {}
    for member in (_parsed(value, "list") or [])[:_ITEMS_MAX]:
        bare, parameters = member
        if _integer(bare) is not None:
            quotas.setdefault("", bare)
        elif isinstance(bare, str | http_sf.Token):
            quota = _integer(parameters.get("q"))
            if quota is not None:
                quotas.setdefault(str(bare), quota)
    return quotas


def _allowance(member: Any) -> Allowance | None:
    bare, parameters = member
    if not isinstance(bare, str | http_sf.Token):
        return None
    remaining = _integer(parameters.get("r"))
    reset_s = _integer(parameters.get("t"))
    if ("r" in parameters and remaining is None) or ("t" in parameters and reset_s is None):
        return None
    return Allowance(str(bare), None, remaining, reset_s)


def _member(table: Any, name: str) -> int | None:
    member = table.get(name)
    return None if member is None else _integer(member[0])


def _integer(value: Any) -> int | None:
    # A bare parameter is True, and a bool is an int to Python.
    if type(value) is int and 0 <= value < _INTEGER_MAX:
        return value
    return None


def _parsed(value: bytes, kind: str) -> Any:
    try:
        parsed: Any = http_sf.parse(value, tltype=kind)
    except (ValueError, OverflowError, OSError):  # StructuredFieldError is a ValueError
        return None
    return parsed
