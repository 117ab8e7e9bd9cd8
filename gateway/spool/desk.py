"""What an operator sees of a spool and does with it: figures, lists, dead letters, holding back.

Asked by the admin interface, in the worker's loop; what stands in the file is read by the store's
thread. Any worker of a node tells of all records, and each does what concerns its own.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from gateway.clock import MS, SECOND
from gateway.spool import tables
from gateway.spool.reader import Done, Op
from gateway.spool.record import TOKEN_BYTES, Entry, State, Told
from gateway.spool.status import document

if TYPE_CHECKING:
    from gateway.spool.worker import Spool

__all__ = ["Desk"]

T = TypeVar("T")


class Desk:
    """One spool's."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool

    def figures(self) -> dict[str, Any]:
        """How many, how old, how fast; for metrics and monitors."""
        spool = self._spool
        stats = spool.store.stats
        upstreams, oldest_s = spool.depths()
        for name, upstream in upstreams.items():
            upstream["held"] = name in spool.store.paused
        return {
            **spool.counts,
            "dead": dict(spool.dead),
            "dead_letters": spool.dead_letters,
            "oldest_s": oldest_s,
            "upstreams": upstreams,
            "commits": stats.commits,
            "commit_s": round(stats.commit_ns / SECOND, 6),
            "commit_max_s": round(stats.commit_max_ns / SECOND, 6),
            "refused_full": stats.full,
            "store_failures": stats.failed,
            "outcomes_waiting": stats.again,
        }

    async def listed(
        self, states: list[str], upstream: str, after: int, count: int
    ) -> list[dict[str, Any]]:
        """At most `count` records of those states, in the order of acceptance.

        Raises OSError.
        """
        wanted = [State[state.upper()] for state in states]
        store = self._spool.store
        found = await self._ask(
            lambda db: tables.listed(db, wanted, upstream, after, count), store.read
        )
        return [self._item(told) for told in found]

    async def shown(self, name: str) -> dict[str, Any] | None:
        """The record of that id; None: there is none. Raises OSError."""
        told = await self._find(name)
        return self._item(told) if told is not None else None

    async def requeue(self, name: str) -> bool:
        """A dead letter is sent again; False: there is no such. Raises OSError."""
        told = await self._find(name)
        spool = self._spool
        if told is None or told.owner != spool.store.owner:
            return False
        rule = spool.rule(told.upstream)
        ttl_ms = rule.ttl_ns // MS if rule is not None else told.expires_ms - told.accepted_ms
        expires_ms = spool.worker.wall_ns() // MS + ttl_ms
        entry: Entry | None = await self._ask(
            lambda db: tables.requeue(db, told.number, expires_ms)
        )
        if entry is not None:
            spool.dead_letters -= 1
            spool.add(entry)
        return entry is not None

    async def drop(self, name: str) -> bool:
        """Takes a record out, unless it is being sent; False: it is, or there is none.

        Raises OSError.
        """
        told = await self._find(name)
        if told is None or told.owner != self._spool.store.owner:
            return False
        if self._spool.is_in_hand(told.upstream, told.number):
            return False
        self._spool.drop(told.upstream, told.number)
        return bool(await self._ask(lambda db: tables.drop(db, told.number)))

    async def hold(self, upstream: str, *, held: bool) -> None:
        """Stops or goes on with the sending to an upstream, over restarts. Raises OSError."""
        await self._ask(lambda db: tables.set_pause(db, upstream, held))
        paused = self._spool.store.paused
        (paused.add if held else paused.discard)(upstream)
        self._spool.look_again()

    # Inside.

    def _item(self, told: Told) -> dict[str, Any]:
        found = document(self._spool.node, told)
        return {"number": told.number, "client": told.client, "bytes": told.body_bytes, **found}

    async def _find(self, name: str) -> Told | None:
        node, _, digits = name.rpartition(".")
        if node != self._spool.node or len(digits) != 2 * TOKEN_BYTES:
            return None
        try:
            token = bytes.fromhex(digits)
        except ValueError:
            return None
        told: Told | None = await self._ask(
            lambda db: tables.told(db, token), self._spool.store.read
        )
        return told

    async def _ask(
        self,
        op: Callable[[sqlite3.Connection], T],
        submit: Callable[[Op, Done], None] | None = None,
    ) -> T:
        outcome: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def done(found: Any) -> None:
            if not outcome.done():
                outcome.set_result(found)

        (submit or self._spool.store.submit)(op, done)
        found: T = await outcome
        if isinstance(found, Exception):
            raise OSError(f"the spool's file: {found}")
        return found
