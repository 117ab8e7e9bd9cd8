"""Gives a worker its spool when an upstream has one: at the start, or at a reload.

Once opened it stays until the worker ends: requests may be in it although no upstream of the newest
configuration takes more.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from gateway.conf.schema import Conf
from gateway.conf.schema import Spool as SpoolConf
from gateway.mesh import sealing_keys

if TYPE_CHECKING:
    from gateway.mesh import Place
    from gateway.proxy.graph import Worker
    from gateway.spool.store import Store
    from gateway.spool.worker import Spool

__all__ = ["Durable"]


class Durable:
    """The worker's spool, if it has one."""

    def __init__(self, worker: Worker, place: Place | None) -> None:
        self._worker = worker
        self._place = place
        self.spool: Spool | None = None

    async def prepare(self, conf: Conf) -> Spool | None:
        """Opens a spool where the configuration wants the first one. Raises OSError."""
        facts = conf.spool or SpoolConf()
        if self.spool is not None:
            if facts.path != self.spool.store.path:
                raise OSError("spool.path cannot change while running; restart to change it")
            return None
        if all(one.spool is None for one in conf.upstream.values()):
            return None
        # Most nodes have none and need not load it; a reload that brings the first one must not
        # have the loop wait for the disk.
        store_kind, spool_kind = await asyncio.to_thread(_kinds)
        place = self._place
        number, workers = (place.number, len(place.ports)) if place is not None else (0, 1)
        store = store_kind(facts.path, number, workers, facts.bytes_max)
        spool = spool_kind(
            self._worker, store, conf.node.name, facts.records_max, sealing_keys(conf)
        )
        await spool.open()
        return spool

    def commit(self, conf: Conf, prepared: Spool | None) -> None:
        """The worker's Runtime is that of `conf` now."""
        if prepared is not None:
            self.spool = prepared
            prepared.start()
        elif self.spool is not None:
            facts = conf.spool or SpoolConf()
            self.spool.reloaded(facts.records_max, sealing_keys(conf))
            if facts.bytes_max != self.spool.store.bytes_max:
                self.spool.store.set_bytes_max(facts.bytes_max)

    async def discard(self, prepared: Spool | None) -> None:
        """Takes `prepare` back."""
        if prepared is not None:
            await prepared.close()

    def stop_sending(self) -> None:
        """The worker drains: what is under way is finished, nothing new begun."""
        if self.spool is not None:
            self.spool.stop_sending()

    @property
    def out_count(self) -> int:
        """Stored requests that are being sent."""
        return len(self.spool.out) if self.spool is not None else 0

    async def close(self) -> None:
        """Writes down what is known. What is still out is sent anew after the next start."""
        if self.spool is not None:
            await self.spool.close()


def _kinds() -> tuple[type[Store], type[Spool]]:
    from gateway.spool.store import Store
    from gateway.spool.worker import Spool

    return Store, Spool
