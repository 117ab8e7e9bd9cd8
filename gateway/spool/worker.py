"""The spool of one worker on a file: takes requests in, and keeps what came of them.

When they are sent is `sender`'s; what is known of a record is in the file.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from gateway.clock import MS, SECOND
from gateway.errors import ErrorKind, GatewayError
from gateway.proxy import admission
from gateway.spool import status, tables
from gateway.spool.accept import Acceptor
from gateway.spool.desk import Desk
from gateway.spool.record import Entry, Kept, Result
from gateway.spool.sender import Sender
from gateway.spool.store import Store

if TYPE_CHECKING:
    from gateway.proxy.exchange import Exchange
    from gateway.proxy.graph import Worker
    from gateway.spool.sending import Sending

__all__ = ["DEAD_KEEP_NS", "Spool"]

DEAD_KEEP_NS: Final = 7 * 24 * 3600 * SECOND  # a dead letter waits a week for somebody to look
PURGE_SECONDS: Final = 5.0


class Spool(Sender):
    """Satisfies `proxy.spooling.SpoolDoor` for exchanges."""

    def __init__(
        self,
        worker: Worker,
        store: Store,
        node: str,
        records_max: int,
        keys: tuple[bytes, ...] = (),
    ) -> None:
        """`node` names the node in ids; `records_max` may wait to be sent by this worker. With the
        mesh's `keys` nodes vouch for the clients whose questions they pass on."""
        super().__init__(worker, "spool")
        self.store = store
        self.node = node
        self.records_max = records_max
        self.keys = keys
        self.counts.update({"accepted": 0, "known": 0})
        self.dead_letters = 0
        self.readers = 0  # of long stored responses, that are being given out
        self.desk = Desk(self)
        self._entries: list[Entry] = []
        self._purging: asyncio.TimerHandle | None = None

    # Start and stop.

    async def open(self) -> None:
        """Opens the file. Raises OSError, which names it."""
        self._entries = await asyncio.to_thread(self.store.open)

    def start(self) -> None:
        """Goes on with what is in the file, and takes in what comes."""
        self.store.on_room = self._pump_soon
        self.store.start(self.worker.loop)
        for entry in self._entries:
            self._lanes_of(entry.upstream).add(entry)
        self._entries = []
        self.worker.spool = self
        self._look_after()
        self._pump_soon()

    async def close(self) -> None:
        """Writes down what is known and closes the file. What is still out is sent anew later."""
        self._close()
        if self.worker.spool is self:
            self.worker.spool = None
        if self._purging is not None:
            self._purging.cancel()
        await self.store.close()

    def reloaded(self, records_max: int, keys: tuple[bytes, ...]) -> None:
        """Upstreams, orders and figures may be others."""
        self.records_max = records_max
        self.keys = keys
        self._rules_changed()

    # The data path's side.

    def accept(self, exchange: Exchange, now_ns: int) -> None:
        """Takes the exchange on; it is answered when its request is on disk.

        Raises GatewayError.
        """
        rule = exchange.upstream.spool
        assert rule is not None
        admission.identify(exchange)
        if self.waiting_count >= self.records_max:
            self.worker.count("spool_refused_records_max")
            detail = f"{self.records_max} requests wait already"
            raise GatewayError(ErrorKind.SPOOL_FULL, detail, retry_after_ns=10 * SECOND)
        acceptor = Acceptor(exchange, rule, self.store, self._accepted)
        exchange.downstream.deadline_ns = now_ns + exchange.upstream.timeouts.total_ns
        exchange.connected(acceptor)

    def show(self, exchange: Exchange, now_ns: int) -> bool:
        """Whether the exchange asks for an accepted request and is answered here."""
        return status.show(self, exchange, now_ns)

    def _accepted(self, acceptor: Acceptor, kept: Kept) -> None:
        if kept.is_new:
            self.counts["accepted"] += 1
            new = acceptor.new
            entry = Entry(
                kept.number, new.upstream, new.lane, new.accepted_ms, new.expires_ms, new.body_bytes
            )
            self.add(entry)
        else:
            self.counts["known"] += 1
        if acceptor.is_waited_for:
            status.accepted(acceptor.exchange, status.id_of(self.node, kept.token))

    # The store's side of a send.

    def _load(self, taken: list[Entry]) -> None:
        numbers = [entry.number for entry in taken]
        self.store.submit(
            lambda db: tables.load(db, numbers), lambda stored: self._loaded(taken, stored)
        )

    def _keep_begun(self, entry: Entry, now_ms: int) -> None:
        self.store.submit(lambda db: tables.begin(db, entry.number, now_ms))

    def _keep_failed(self, entry: Entry, status: int) -> None:
        attempts = entry.attempts
        self.store.submit(lambda db: tables.fail(db, entry.number, attempts, status), must=True)

    def _keep_done(self, sending: Sending, result: Result, now_ms: int) -> None:
        self.counts["done"] += 1
        number, token = sending.entry.number, sending.stored.token
        keep_ns = sending.upstream.spool.keep_ns if sending.upstream.spool else 0
        purge_ms = now_ms + keep_ns // MS
        self.store.submit(
            lambda db: tables.succeed(db, number, token, result, now_ms, purge_ms), must=True
        )

    def _keep_dead(self, entry: Entry, reason: str, status: int, now_ms: int) -> None:
        self.dead_letters += 1
        purge_ms = now_ms + DEAD_KEEP_NS // MS
        attempts = entry.attempts
        self.store.submit(
            lambda db: tables.bury(db, entry.number, reason, attempts, status, now_ms, purge_ms),
            must=True,
        )

    def _may_take(self, name: str) -> bool:
        # Outcomes that find no room on disk would be lost in a crash: no more of them are made.
        store = self.store
        return not (name in store.paused or store.stats.again or store.is_ended)

    def load_body(self, sending: Sending) -> None:
        """Gets a body that has parts, for `Sending.body_loaded`."""
        token = sending.stored.token
        self.store.read(lambda db: tables.body(db, token, tables.REQUEST), sending.body_loaded)

    def put_part(self, sending: Sending, number: int, data: bytes) -> None:
        """Keeps a piece of a response, and calls `Sending.part_kept`."""
        token, owner = sending.stored.token, self.store.owner
        self.store.submit(
            lambda db: tables.put_part(db, token, tables.RESPONSE, number, owner, data),
            sending.part_kept,
            must=True,
        )

    def forget_parts(self, sending: Sending) -> None:
        """A response broke off: its pieces are no result."""
        token = sending.stored.token
        self.store.submit(lambda db: tables.forget_parts(db, token, tables.RESPONSE), must=True)

    # Housekeeping.

    def _look_after(self) -> None:
        self._purging = self.worker.loop.call_later(PURGE_SECONDS, self._look_after)
        now_ms = self.worker.wall_ns() // MS
        self.store.submit(lambda db: _tidy(db, now_ms), self._tidied)

    def _tidied(self, outcome: Any) -> None:
        if self._is_closed or isinstance(outcome, Exception):
            return
        purged, self.dead_letters = outcome
        if purged:
            now_ms = self.worker.wall_ns() // MS
            self.store.submit(lambda db: _tidy(db, now_ms), self._tidied)


def _tidy(db: Any, now_ms: int) -> tuple[int, int]:
    return tables.purge(db, now_ms), tables.dead_count(db)
