"""The rows of one limit, however many: read by pages, searched, forgiven.

A table turns over while it is read: rows come, go and change places with every request. So a page
is "the next rows after this key in the order of keys", which is the same order at any moment; a row
that stays is shown exactly once, and workers' pages can be merged. Finding the next keys means to
look at all of them: the keys are copied (a millisecond for 100,000) and looked at in steps.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from gateway.clock import MS, monotonic_ns
from gateway.limits.settled import central_of, unwrapped
from gateway.proxy.keys import key_of_parts, parts_of_key

if TYPE_CHECKING:
    from gateway.admin.views import Served, Steps
    from gateway.conf.schema_upstream import LimitConf

__all__ = ["PLACE_BYTES_MAX", "ROWS_A_PAGE_MAX", "Sought", "clear_row", "clear_steps"]
__all__ += ["page_steps", "table_of"]

ROWS_A_PAGE_MAX = 1000
KEY_BYTES_A_PAGE_MAX = 1024 * 1024  # a key may have 32 KiB; a page of such ones is a short one
PLACE_BYTES_MAX = 256
DIGEST_BYTES = 16
KEYS_A_STEP = 200  # at some 4 us each where a part is compared
CLEARED_A_STEP = 200  # at some 2 us each, with a look at the row's queue


class Sought(NamedTuple):
    """Which rows: those with a part (of that name, or any for "") whose value begins so."""

    part: str = ""
    prefix: str = ""

    def fits(self, key: dict[str, str | None]) -> bool:
        """Whether a row's key is one of them; an absent part has no value."""
        return any(
            value is not None and value.startswith(self.prefix)
            for name, value in key.items()
            if not self.part or name == self.part
        )


ALL = Sought()


class Table(NamedTuple):
    """A limit with what the file says of it; `limit` is the one that has the rows."""

    conf: LimitConf
    limit: Any
    parts: tuple[str, ...]  # of the key
    central: Any = None  # the same limit as a central store keeps it, if one does

    def key(self, octets: bytes) -> dict[str, str | None]:
        """A row's key as its parts and their values; empty for a limit without a key."""
        return parts_of_key(self.parts, octets) if self.parts else {}


def table_of(served: Served, upstream: str, limit: str) -> Table:
    """The table of that name. Raises LookupError."""
    conf = served.conf.upstream[upstream]
    uses = served.worker.runtime.upstreams[upstream].limit_uses
    for filed, use in zip(conf.limit, uses, strict=True):
        if filed.name == limit:
            parts = tuple(str(part) for part in filed.key)
            return Table(filed, unwrapped(use.limit), parts, central_of(use.limit))
    raise LookupError(limit)


def page_steps(
    served: Served, table: Table, sought: Sought, after: bytes | None, count: int
) -> Steps[dict[str, Any]]:
    """Up to `count` rows whose keys come after `after` (None: from the first), and the next page's
    `after`."""
    found: list[tuple[bytes, bytes]] = []  # (place, key), one more than the page has
    last: bytes | None = None  # what comes after it cannot be on this page
    for keys in _slices(table.limit.keys(), KEYS_A_STEP):
        fitting = [
            (place, key)
            for place, key in zip(map(_place, keys), keys, strict=True)
            if (after is None or place > after)
            and (last is None or place < last)
            and (sought == ALL or sought.fits(table.key(key)))
        ]
        if fitting:
            found = heapq.nsmallest(count + 1, [*found, *fitting])
            last = found[-1][0] if len(found) > count else None
        yield
    more = len(found) > count
    del found[count:]
    items: list[dict[str, Any]] = []
    key_bytes = 0
    for number, (_, key) in enumerate(found):
        key_bytes += len(key)
        if items and key_bytes > KEY_BYTES_A_PAGE_MAX:
            found = found[:number]
            more = True
            break
        row = table.limit.peek(key)
        if row is not None:  # it may have been thrown out since
            items.append(_item(served, table, row, monotonic_ns()))
        yield
    return {
        "rows": items,
        "total": len(table.limit),
        "next": found[-1][0].hex() if more and found else None,
    }


def clear_row(served: Served, table: Table, parts: dict[str, str | None], now_ns: int) -> bool:
    """Forgives the row whose key has exactly these parts; False: there is none.

    Raises PermissionError where another node of the mesh keeps what it counts (`sync = "exact"`).
    """
    try:
        key = key_of_parts(table.parts, parts) if table.parts else b""
    except ValueError:
        return False
    limit = table.limit
    if hasattr(limit, "bucket"):
        bucket = limit.bucket(key)
        if bucket is None:
            raise PermissionError
        return _clear_bucket(served, limit, bucket, now_ns)
    row = limit.peek(key)
    if row is None:
        return False
    _clear_row_here(served, table, row, now_ns)
    return True


def _clear_row_here(served: Served, table: Table, row: Any, now_ns: int) -> None:
    """Of a limit in a central store the row behind is cleared, and the store told to follow."""
    row.clear(now_ns)
    in_store = table.central.peek(row.key) if table.central is not None else None
    if in_store is not None:
        in_store.was_cleared()
    served.worker.waitroom.poke(row)


def clear_steps(served: Served, table: Table) -> Steps[int]:
    """Forgives all rows, or of an exact limit all buckets that this node keeps; says how many."""
    limit = table.limit
    limit.forgive()
    exact = hasattr(limit, "buckets")
    cleared = 0
    for names in _slices(limit.buckets() if exact else limit.keys(), CLEARED_A_STEP):
        now_ns = monotonic_ns()
        for name in names:
            if exact:
                cleared += _clear_bucket(served, limit, name, now_ns)
                continue
            row = limit.peek(name)
            if row is not None:
                _clear_row_here(served, table, row, now_ns)
                cleared += 1
        yield
    return cleared


def _clear_bucket(served: Served, limit: Any, name: int, now_ns: int) -> bool:
    """What other members wait for is granted at the next turn of serving."""
    if not limit.clear_bucket(name, now_ns):
        return False
    row = limit.row_of(name)
    if row is not None:
        served.worker.waitroom.poke(row)
    return True


def _place(key: bytes) -> bytes:
    """Where a key stands in the order of pages: itself, or of a long one the beginning and a hash.

    So a page's end can be named in a URL, although a key may be as long as a head.
    """
    if len(key) <= PLACE_BYTES_MAX:
        return key
    digest = hashlib.blake2b(key, digest_size=DIGEST_BYTES).digest()
    return key[: PLACE_BYTES_MAX - DIGEST_BYTES] + digest


def _slices(keys: list[Any], size: int) -> Iterator[list[Any]]:
    for begin in range(0, len(keys), size):
        yield keys[begin : begin + size]


def _item(served: Served, table: Table, row: Any, now_ns: int) -> dict[str, Any]:
    free, full_ns = table.limit.remaining(row, now_ns)
    if hasattr(row, "peers"):  # a mesh-wide row
        own, mesh = row.own, row.mesh_count
    else:
        own = mesh = row.taken
    if hasattr(row, "level"):
        level = row.level(now_ns)
    else:  # slots held, or a window under way
        level = float(row.used) if now_ns < getattr(row, "end_ns", now_ns + 1) else 0.0
    return {
        "node": served.name,
        "key": table.key(row.key),
        "level": round(level, 3),
        "free": free,
        "full_ms": -(-full_ns // MS),
        "admitted_own": own,
        "admitted_mesh": mesh,
        "waiting": len(row.waiting) if row.waiting is not None else 0,
    }
