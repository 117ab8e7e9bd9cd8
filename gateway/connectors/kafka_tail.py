"""What is written to the topics of outcomes, by whomever, from some time on.

No group: every worker hears of all of it, so that any node can be asked. Where it begins is asked
for once; after a failure it goes on where it was.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Final

from gateway.connectors.kafka_link import (
    FETCH_BYTES,
    METADATA_MS,
    POLL_MS,
    POLL_RECORDS,
    REQUEST_MS,
    Received,
    as_received,
)

__all__ = ["Tail"]

STOP_SECONDS: Final = 2.0


class Tail:
    """One worker's. `came` hears of each record, with its topic, in the order of its partition."""

    def __init__(
        self,
        bootstrap: Sequence[str],
        client_id: str,
        topics: tuple[str, ...],
        since_ms: int,
        came: Callable[[str, Received], None],
    ) -> None:
        self._bootstrap = list(bootstrap)
        self._client_id = client_id
        self._topics = topics
        self._since_ms = since_ms
        self._came = came
        self._next: dict[Any, int] = {}  # by partition, the offset to go on with

    async def run(
        self,
        backoff_seconds: Callable[[int], float],
        note: Callable[..., None],
        count: Callable[[str], None],
    ) -> None:
        """Follows the topics until it is cancelled; a cluster that is gone is tried again."""
        attempts = 0
        while True:
            try:
                async with contextlib.AsyncExitStack() as stack:
                    consumer = await self._started(stack)
                    while True:
                        await self._poll(consumer)
                        attempts = 0
            except Exception as error:  # whatever it is, the topics may be there again later
                count("kafka_tails_failed")
                if not attempts:
                    note("kafka outcomes unread", reason=f"{type(error).__name__}: {error}")
            await asyncio.sleep(backoff_seconds(attempts))
            attempts += 1

    async def _started(self, stack: contextlib.AsyncExitStack) -> Any:
        from aiokafka import AIOKafkaConsumer

        consumer = AIOKafkaConsumer(
            *self._topics,
            bootstrap_servers=self._bootstrap,
            client_id=self._client_id,
            group_id=None,
            enable_auto_commit=False,
            # Of a topic that was made anew, or a partition that came later, all is news.
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            fetch_max_bytes=FETCH_BYTES,
            request_timeout_ms=REQUEST_MS,
            metadata_max_age_ms=METADATA_MS,
        )
        stack.push_async_callback(_stopped, consumer)
        await consumer.start()
        new = [place for place in consumer.assignment() if place not in self._next]
        async with asyncio.timeout(REQUEST_MS / 1000):
            self._next |= await _begins(consumer, new, self._since_ms)
        for place in consumer.assignment() & self._next.keys():
            consumer.seek(place, self._next[place])
        return consumer

    async def _poll(self, consumer: Any) -> None:
        found = await consumer.getmany(timeout_ms=POLL_MS, max_records=POLL_RECORDS)
        for place, records in found.items():
            for record in records:
                self._came(place.topic, as_received(place.partition, record))
            self._next[place] = records[-1].offset + 1
        # What was read ahead comes without a wait, and others want their turn.
        await asyncio.sleep(0)


async def _begins(consumer: Any, places: list[Any], since_ms: int) -> dict[Any, int]:
    """By partition, where the records of that time and later begin; if there are none, its end.

    The ends are asked for first: what is written between the two questions is not passed over.
    """
    if not places:
        return {}
    begins: dict[Any, int] = dict(await consumer.end_offsets(places))
    found = await consumer.offsets_for_times(dict.fromkeys(places, since_ms))
    for place, told in found.items():
        if told is not None and told.timestamp >= 0:  # some brokers say "none" with a -1
            begins[place] = told.offset
    return begins


async def _stopped(consumer: Any) -> None:
    with contextlib.suppress(Exception):
        async with asyncio.timeout(STOP_SECONDS):
            await consumer.stop()
