"""Gives a worker its spool when an upstream has one: at the start, or at a reload.

Once opened it stays until the worker ends: requests may be in it although no upstream of the newest
configuration takes more. Most nodes have none and need not load it; a reload that brings the first
one must not have the loop wait for the disk.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from gateway.conf.schema import Conf, Kafka
from gateway.conf.schema import Spool as SpoolConf
from gateway.conf.secret import Secret
from gateway.mesh import sealing_keys, worker_name

if TYPE_CHECKING:
    from gateway.breaker.states import Change
    from gateway.connectors.kafka_link import KafkaLink
    from gateway.mesh import Place
    from gateway.proxy.graph import Worker
    from gateway.spool.kafka import KafkaSpool
    from gateway.spool.store import Store
    from gateway.spool.worker import Spool

__all__ = ["Durable", "check_spool"]


def check_spool(facts: SpoolConf | None) -> None:
    """Whether a conf can be obeyed. Raises ImportError where an extra is not installed."""
    if facts is not None and facts.kafka is not None:
        _topic_kinds()[0].check()


class Durable:
    """The worker's spool, if it has one."""

    def __init__(self, worker: Worker, place: Place | None, note: Callable[..., None]) -> None:
        """`note` logs what becomes of a store."""
        self._worker = worker
        self._place = place
        self._note = note
        self._in_file: Spool | None = None
        self._in_topics: KafkaSpool | None = None

    @property
    def spool(self) -> Spool | KafkaSpool | None:
        """It, whatever it is."""
        return self._in_file or self._in_topics

    async def prepare(self, conf: Conf) -> Spool | KafkaSpool | None:
        """Opens a spool where the configuration wants the first one. Raises OSError."""
        facts = conf.spool or SpoolConf()
        wanted = any(one.spool is not None for one in conf.upstream.values())
        if self.spool is not None:
            if wanted or conf.spool is not None:
                self._judge_place(facts)
            return None
        if facts.kafka is not None:
            return await self._make_topics(conf, facts.kafka) if wanted else None
        if not wanted and not await asyncio.to_thread(_is_spool, facts.path):
            return None
        store_kind, spool_kind = await asyncio.to_thread(_file_kinds)
        place = self._place
        number, workers = (place.number, len(place.ports)) if place is not None else (0, 1)
        store = store_kind(facts.path, number, workers, facts.bytes_max, note=self._note)
        spool = spool_kind(
            self._worker, store, conf.node.name, facts.records_max, sealing_keys(conf)
        )
        if wanted:
            await spool.open()
            return spool
        return await self._left_over(spool)

    async def _left_over(self, spool: Spool) -> Spool | None:
        """A file that no upstream needs any more is served while records are in it: they are told
        of, expire and are purged. It is no reason not to start."""
        try:
            await spool.open()
        except OSError as error:
            self._note("spool left over failed", path=spool.store.path, reason=str(error))
            return None
        if not spool.store.has_records:
            await spool.close()
            return None
        return spool

    async def _make_topics(self, conf: Conf, facts: Kafka) -> KafkaSpool:
        link_kind, spool_kind = await asyncio.to_thread(_topic_kinds)
        worker = self._worker
        name = conf.node.name if self._place is None else worker_name(conf, self._place)
        link = link_kind(facts, name, worker.now_ns, worker.chance, self._note, worker.count)
        return spool_kind(worker, link, facts, _injected(conf))

    def _judge_place(self, facts: SpoolConf) -> None:
        """What is in a spool would be left behind. Raises OSError."""
        key = ""
        if self._in_topics is not None and facts.kafka != self._in_topics.conf:
            key = "spool.kafka"
        if self._in_file is not None and (facts.kafka or facts.path != self._in_file.store.path):
            key = "spool.path"
        if key:
            raise OSError(f"{key} cannot change while running; restart to change it")

    def commit(self, conf: Conf, prepared: Spool | KafkaSpool | None) -> None:
        """The worker's Runtime is that of `conf` now."""
        facts = conf.spool or SpoolConf()
        if prepared is not None:
            if facts.kafka is not None:
                self._in_topics = cast("KafkaSpool", prepared)
            else:
                self._in_file = cast("Spool", prepared)
            prepared.start()
        elif self._in_topics is not None:
            self._in_topics.reloaded(_injected(conf))
        elif self._in_file is not None:
            self._in_file.reloaded(facts.records_max, sealing_keys(conf))
            if facts.bytes_max != self._in_file.store.bytes_max:
                self._in_file.store.set_bytes_max(facts.bytes_max)
        if self._in_file is not None:
            for name, count in self._in_file.orphans().items():
                self._note("spool orphans", upstream=name, records=count)

    async def discard(self, prepared: Spool | KafkaSpool | None) -> None:
        """Takes `prepare` back."""
        if prepared is not None:
            await prepared.close()

    def changed(self, upstream: str, change: Change) -> None:
        """A breaker opened or closed."""
        if self.spool is not None:
            self.spool.changed(upstream, change)

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


def _file_kinds() -> tuple[type[Store], type[Spool]]:
    from gateway.spool.store import Store
    from gateway.spool.worker import Spool

    return Store, Spool


def _topic_kinds() -> tuple[type[KafkaLink], type[KafkaSpool]]:
    from gateway.connectors.kafka_link import KafkaLink
    from gateway.spool.kafka import KafkaSpool

    return KafkaLink, KafkaSpool


def _injected(conf: Conf) -> dict[str, tuple[bytes, ...]]:
    """By upstream, what is added to its requests and kept secret: no letter may have it."""
    found = {}
    for name, upstream in conf.upstream.items():
        values = [*upstream.headers.set.values(), *upstream.headers.add.values()]
        secrets = [each.reveal().encode("latin-1") for each in values if isinstance(each, Secret)]
        if secrets:
            found[name] = tuple(secrets)
    return found


def _is_spool(path: str) -> bool:
    """Whether a spool is there; where none is, nothing is loaded."""
    if not os.path.lexists(path):
        return False
    from gateway.spool.place import is_spool

    return is_spool(path)
