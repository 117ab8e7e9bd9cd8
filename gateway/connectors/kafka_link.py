"""The door to a Kafka cluster: one consumer of a group, one producer, and nothing decided here.

What is read, held and committed is decided by a `Taker` (`gateway.spool.kafka`). What it writes is
kept until the cluster has acknowledged it on all replicas, and sent again when it has not: whoever
writes hears of nothing but the acknowledgement, or that a record is too large. A cluster that is
gone costs this worker's records their time and nothing else: both halves try again, each in its own
task, and say so once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from gateway.clock import SECOND

if TYPE_CHECKING:
    from gateway.conf.schema import Kafka

__all__ = ["KafkaLink", "Received", "Taker", "as_received"]

Headers = Sequence[tuple[str, bytes | None]]
Marks = dict[int, tuple[int, str]]  # by partition: the offset to commit, and its metadata

# How long a poll waits for records; that often it is also looked whether the group is well.
POLL_MS: Final = 500
# Records of one turn of the loop: at 0.1 ms each to be read and judged, 3 ms for live traffic.
POLL_RECORDS: Final = 32
FETCH_BYTES: Final = 8 * 1024 * 1024  # of all partitions, read ahead; one record may be longer
SESSION_MS: Final = 10_000  # a gateway that was killed is missed after so long
HEARTBEAT_MS: Final = 3_000
REBALANCE_MS: Final = 30_000  # a revocation waits 5 s for what is under way; others wait for it
METADATA_MS: Final = 30_000  # a topic that is made while we run is seen after so long
REQUEST_MS: Final = 10_000
LINGER_MS: Final = 5  # what comes within it goes in one batch
RECORD_BYTES_MAX: Final = 1024 * 1024
PROBE_NS: Final = 3 * SECOND  # without records for so long, the cluster is asked for an answer
PROBE_SECONDS: Final = 3.0
BACKOFF_SECONDS: Final = 0.5
BACKOFF_MAX_SECONDS: Final = 30.0
STOP_SECONDS: Final = 2.0  # to leave in order; a cluster that is gone is left without
# A write that is not acknowledged for so long is behind: nothing more is sent that would need one.
BEHIND_NS: Final = 2 * SECOND


class Received(NamedTuple):
    """A record of the requests topic. `timestamp_ms` is the producer's or the log's; -1: none."""

    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers


class Taker(Protocol):
    """Who decides. All are called in the worker's loop."""

    def received(self, records: Sequence[Received]) -> None:
        """Records of one partition, in their order."""
        ...

    def assigned(self, committed: Marks) -> dict[int, int]:
        """These partitions are this worker's from now on, with what is committed of them.

        Returns where to read on in those of which more is known than that. All are read at first.
        """
        ...

    async def revoked(self) -> None:
        """All partitions are about to go, some of them to come back: what can be finished and
        committed in a few seconds is."""
        ...

    def lost(self) -> None:
        """They are gone, without a chance to commit."""
        ...


class _Write:
    """A record to be written. `told` hears True once it is, False if it is too large.

    With `failed` it is written once or not at all, and `failed` hears that it was not.
    """

    __slots__ = ("failed", "headers", "key", "since_ns", "told", "topic", "value")

    def __init__(
        self,
        topic: str,
        key: bytes | None,
        value: bytes,
        headers: list[tuple[str, bytes]],
        told: Callable[[bool], None],
        since_ns: int,
        failed: Callable[[], None] | None = None,
    ) -> None:
        self.failed = failed
        self.topic = topic
        self.key = key
        self.value = value
        self.headers = headers
        self.told = told
        self.since_ns = since_ns


class KafkaLink:
    """One worker's. `note` logs, `count` counts something rare."""

    def __init__(
        self,
        conf: Kafka,
        client_id: str,
        now_ns: Callable[[], int],
        chance: Callable[[], float],
        note: Callable[..., None],
        count: Callable[[str], None],
    ) -> None:
        self.up = False  # whether the cluster answers, and the group has this consumer
        self.idempotent = False  # whether the cluster drops what the producer sends twice
        self._conf = conf
        self._client_id = client_id
        self._now_ns = now_ns
        self._chance = chance
        self._note = note
        self._count = count
        self._taker: Taker
        self._consumer: Any = None
        self._heard_ns = 0  # when the cluster answered last
        self._broken: Exception | None = None
        self._assignment = 0  # counted, so that what was read under another is known
        self._is_assigned = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._committing: asyncio.Task[None] | None = None
        self._queue: deque[_Write] = deque()
        self._unacknowledged: dict[_Write, None] = {}
        self._flying: dict[asyncio.Future[Any], _Write] = {}
        self._wake = asyncio.Event()
        self._failed: Exception | None = None  # for the task that writes
        self._is_failing = False
        self._write_failures = 0  # since one was acknowledged

    @staticmethod
    def check() -> None:
        """Raises ImportError where the extra is not installed."""
        try:
            import aiokafka  # noqa: F401
        except ImportError:
            raise ImportError(
                "[spool] kafka needs a package that is not installed: pip install 'egressd[kafka]'"
            ) from None

    def start(self, taker: Taker) -> None:
        """Begins to read and write; a cluster that is not there is tried again."""
        import logging

        # What goes wrong comes as an exception and is told in this process's own log.
        logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
        self._taker = taker
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._read()), loop.create_task(self._write())]

    def follow(self, since_ms: int, came: Callable[[str, Received], None]) -> None:
        """Has `came` hear of each record of the topics of outcomes, whoever wrote it, with its
        topic; from that time on, until `stop`."""
        from gateway.connectors.kafka_tail import Tail

        topics = (self._conf.results, self._conf.dead)
        tail = Tail(self._conf.bootstrap, self._client_id, topics, since_ms, came)
        run = tail.run(self._backoff_seconds, self._note, self._count)
        self._tasks.append(asyncio.get_running_loop().create_task(run))

    async def stop(self) -> None:
        """Leaves the group. What is not acknowledged by then is given up."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        if self._committing is not None:
            self._committing.cancel()
            await asyncio.gather(self._committing, return_exceptions=True)

    # Reading.

    def pause(self, partitions: Iterable[int]) -> None:
        """They are not read until `resume`, or until they are assigned anew."""
        self._of_own(partitions, lambda consumer, places: consumer.pause(*places))

    def resume(self, partitions: Iterable[int]) -> None:
        """They are read again."""
        self._of_own(partitions, lambda consumer, places: consumer.resume(*places))

    def _of_own(self, partitions: Iterable[int], do: Callable[[Any, Any], None]) -> None:
        consumer = self._consumer
        if consumer is not None:
            places = {_place(self._conf.requests, number) for number in partitions}
            own = places & consumer.assignment()
            if own:
                do(consumer, own)

    def end_of(self, partition: int) -> int | None:
        """The offset that the next record of it will have, as far as is known."""
        place = _place(self._conf.requests, partition)
        consumer = self._consumer
        if consumer is None or place not in consumer.assignment():
            return None
        end: int | None = consumer.highwater(place)
        return end

    async def _read(self) -> None:
        attempts = 0
        while True:
            try:
                async with contextlib.AsyncExitStack() as stack:
                    await self._join(stack)
                    while True:
                        await self._poll()
                        attempts = 0
            except Exception as error:  # whatever it is, the records are still there
                self.up = False
                self._consumer = None
                self._count("kafka_sessions_failed")
                if not attempts:
                    self._note("kafka down", reason=_words(error))
                self._taker.lost()
            await asyncio.sleep(self._backoff_seconds(attempts))
            attempts += 1

    async def _join(self, stack: contextlib.AsyncExitStack) -> None:
        from aiokafka import AIOKafkaConsumer
        from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor

        self._broken = None
        self._is_assigned.clear()
        consumer = AIOKafkaConsumer(
            bootstrap_servers=list(self._conf.bootstrap),
            client_id=self._client_id,
            group_id=self._conf.group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            # Partitions stay where they are: what is in hand of them is not begun anew.
            partition_assignment_strategy=(StickyPartitionAssignor,),
            fetch_max_bytes=FETCH_BYTES,
            request_timeout_ms=REQUEST_MS,
            session_timeout_ms=SESSION_MS,
            heartbeat_interval_ms=HEARTBEAT_MS,
            rebalance_timeout_ms=REBALANCE_MS,
            metadata_max_age_ms=METADATA_MS,
        )
        stack.push_async_callback(_stopped, consumer)
        await consumer.start()
        self._consumer = consumer
        self._heard_ns = self._now_ns()
        consumer.subscribe([self._conf.requests], listener=_listener(self))

    async def _poll(self) -> None:
        found = await self._consumer.getmany(timeout_ms=POLL_MS, max_records=POLL_RECORDS)
        if self._broken is not None:
            raise self._broken
        if not found:
            if self._now_ns() - self._heard_ns > PROBE_NS:
                await self._probe()
            return
        self._heard_ns = self._now_ns()
        # The library reads on while it still tells whose the partitions are: records wait for the
        # word of what is committed, and those of an assignment that is over come again.
        assignment = self._assignment
        await self._is_assigned.wait()
        if assignment != self._assignment:
            return
        self._is_up(len(self._consumer.assignment()))
        for place, records in found.items():
            self._taker.received([as_received(place.partition, record) for record in records])
        # What was read ahead comes without a wait, and others want their turn.
        await asyncio.sleep(0)

    async def _probe(self) -> None:
        """The consumer reconnects without a word: whether the cluster answers has to be asked."""
        self._heard_ns = self._now_ns()
        own = self._consumer.assignment()
        if not own:
            return
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                await self._consumer.end_offsets(own)
        except Exception as error:
            if self.up:
                self.up = False
                self._note("kafka down", reason=_words(error))
        else:
            if self._is_assigned.is_set():
                self._is_up(len(own))

    def _is_up(self, partitions: int) -> None:
        if not self.up:
            self.up = True
            self._note("kafka up", partitions=partitions)

    async def on_assigned(self, places: Iterable[Any]) -> None:
        """The group gave out its partitions."""
        try:
            committed = await self._committed(list(places))
        except Exception as error:  # nobody would know where to begin: the group is joined anew
            self._broken = error
            self._assignment += 1
            self._is_assigned.set()
            return
        self._is_assigned.set()
        for number, offset in self._taker.assigned(committed).items():
            self._consumer.seek(_place(self._conf.requests, number), offset)
        self._is_up(len(committed))

    async def on_revoked(self, places: Iterable[Any]) -> None:
        """The group is about to give out its partitions anew."""
        self._assignment += 1
        self._is_assigned.clear()
        if list(places):
            await self._taker.revoked()

    async def _committed(self, places: list[Any]) -> Marks:
        """What was committed, with its metadata, which the consumer does not tell."""
        if not places:
            return {}
        from aiokafka.admin import AIOKafkaAdminClient

        admin = AIOKafkaAdminClient(
            bootstrap_servers=list(self._conf.bootstrap),
            client_id=self._client_id,
            request_timeout_ms=REQUEST_MS,
        )
        try:
            await admin.start()
            found = await admin.list_consumer_group_offsets(self._conf.group, partitions=places)
        finally:
            await admin.close()
        marks: Marks = {}
        for place in places:
            offset, metadata = found.get(place, (-1, ""))
            marks[place.partition] = (max(0, offset), metadata or "")
        return marks

    # Committing.

    def commit(self, marks: Marks, told: Callable[[bool], None]) -> None:
        """Commits; one at a time. `told` hears whether it was taken."""
        self._committing = asyncio.get_running_loop().create_task(self._commit(marks, told))

    async def _commit(self, marks: Marks, told: Callable[[bool], None]) -> None:
        told(await self.committed(marks))

    async def committed(self, marks: Marks) -> bool:
        """Commits what is still this worker's, and says whether that went well."""
        consumer = self._consumer
        if consumer is None:
            return False
        own = consumer.assignment()
        places = {_place(self._conf.requests, number): mark for number, mark in marks.items()}
        try:
            async with asyncio.timeout(REQUEST_MS / 1000):  # by itself it tries for ever
                await consumer.commit({at: mark for at, mark in places.items() if at in own})
        except Exception:  # whoever has the partitions then begins a little earlier
            self._count("kafka_commits_failed")
            return False
        return True

    # Writing.

    def write(
        self,
        topic: str,
        key: bytes | None,
        value: bytes,
        headers: list[tuple[str, bytes]],
        told: Callable[[bool], None],
    ) -> None:
        """Has a record written, however long that takes; `told` hears when all replicas have it,
        or that it is too large."""
        self._enqueue(_Write(topic, key, value, headers, told, self._now_ns()))

    def offer(
        self,
        topic: str,
        key: bytes | None,
        value: bytes,
        headers: list[tuple[str, bytes]],
        told: Callable[[bool], None],
        failed: Callable[[], None],
    ) -> Callable[[], None]:
        """As `write`, but once: `failed` hears that it could not be written.

        Returns what withdraws it: nobody hears of it then, and it is not written unless it is on
        its way already.
        """
        write = _Write(topic, key, value, headers, told, self._now_ns(), failed)
        self._enqueue(write)
        return lambda: self._withdraw(write)

    def _enqueue(self, write: _Write) -> None:
        self._unacknowledged[write] = None
        self._queue.append(write)
        self._wake.set()

    def _withdraw(self, write: _Write) -> None:
        if write not in self._unacknowledged:
            return
        del self._unacknowledged[write]
        write.told = write.failed = _unheard  # should it be on its way
        if write in self._queue:
            self._queue.remove(write)

    @property
    def unacknowledged(self) -> int:
        """Records that are being written."""
        return len(self._unacknowledged)

    def is_behind(self, now_ns: int) -> bool:
        """Whether writes wait for longer than is good."""
        oldest = next(iter(self._unacknowledged), None)
        return self._is_failing or (oldest is not None and now_ns - oldest.since_ns > BEHIND_NS)

    async def _write(self) -> None:
        while True:
            try:
                async with contextlib.AsyncExitStack() as stack:
                    producer = await self._produce(stack)
                    while True:
                        await self._write_next(producer)
            except Exception as error:  # whatever it is, the writes are still here
                self._count("kafka_writes_failed")
                if not self._write_failures:
                    self._note("kafka write failed", reason=_words(error))
                self._is_failing = True
                self._again()
            await asyncio.sleep(self._backoff_seconds(self._write_failures))
            self._write_failures += 1

    async def _write_next(self, producer: Any) -> None:
        while not self._queue and self._failed is None:
            self._wake.clear()
            await self._wake.wait()
        if self._failed is not None:
            failed, self._failed = self._failed, None
            raise failed
        write = self._queue.popleft()
        try:
            async with asyncio.timeout(REQUEST_MS / 1000):
                future = await producer.send(
                    write.topic, write.value, write.key, headers=write.headers
                )
        except _too_large():
            self._settle(write, False)
        except BaseException:
            self._not_written(write)
            raise
        else:
            self._flying[future] = write
            future.add_done_callback(self._landed)

    def _landed(self, future: asyncio.Future[Any]) -> None:
        write = self._flying.pop(future, None)
        error = None if future.cancelled() else future.exception()
        if write is None:
            return  # it is being written anew
        if future.cancelled():
            self._not_written(write)
        elif error is None:
            self._is_failing = False
            self._write_failures = 0
            self._settle(write, True)
        elif isinstance(error, _too_large()):
            self._settle(write, False)
        else:
            self._not_written(write)
            self._failed = OSError(_words(error))
        self._wake.set()

    def _settle(self, write: _Write, is_written: bool) -> None:
        self._unacknowledged.pop(write, None)
        write.told(is_written)

    def _not_written(self, write: _Write) -> None:
        if write.failed is None:
            self._queue.append(write)  # at the end: its topic may be the only one that is missing
        else:
            self._unacknowledged.pop(write, None)
            write.failed()

    def _again(self) -> None:
        """A producer was given up; what it had not finished is written anew."""
        flying = list(self._flying.values())
        self._flying.clear()
        self._queue.extendleft(reversed([each for each in flying if each.failed is None]))
        for write in flying:
            if write.failed is not None:
                self._not_written(write)
        self._failed = None

    async def _produce(self, stack: contextlib.AsyncExitStack) -> Any:
        """A producer whose cluster drops repetitions; or, where it cannot, one that may repeat."""
        from aiokafka.errors import KafkaConnectionError

        try:
            producer = await self._started(stack, idempotent=True)
            self.idempotent = True
        except (KafkaConnectionError, TimeoutError):
            raise
        except Exception:  # each broker has its own way to say that it has no such request
            producer = await self._started(stack, idempotent=False)
            self.idempotent = False
        self._is_failing = False  # until the next write shows otherwise
        return producer

    async def _started(self, stack: contextlib.AsyncExitStack, *, idempotent: bool) -> Any:
        from aiokafka import AIOKafkaProducer

        producer = AIOKafkaProducer(
            bootstrap_servers=list(self._conf.bootstrap),
            client_id=self._client_id,
            acks="all",
            enable_idempotence=idempotent,
            linger_ms=LINGER_MS,
            max_request_size=RECORD_BYTES_MAX,
            request_timeout_ms=REQUEST_MS,
            metadata_max_age_ms=METADATA_MS,
        )
        try:
            async with asyncio.timeout(REQUEST_MS / 1000):
                await producer.start()
        except BaseException:
            await _stopped(producer)
            raise
        stack.push_async_callback(_stopped, producer)
        return producer

    def _backoff_seconds(self, attempts: int) -> float:
        longest = min(BACKOFF_MAX_SECONDS, BACKOFF_SECONDS * (1 << min(attempts, 10)))
        return longest * (0.5 + self._chance() / 2)


def _unheard(_: object = None) -> None:
    """Nobody wants to know any more."""


def _place(topic: str, partition: int) -> Any:
    from aiokafka import TopicPartition

    return TopicPartition(topic, partition)


def as_received(partition: int, record: Any) -> Received:
    """A record of the library's, as ours."""
    return Received(
        partition, record.offset, record.timestamp, record.key, record.value, record.headers
    )


def _listener(link: KafkaLink) -> Any:
    """A listener of the library's own class, which it asks for."""
    from aiokafka import ConsumerRebalanceListener

    class Listener(ConsumerRebalanceListener):  # type: ignore[misc]
        def on_partitions_assigned(self, assigned: Any) -> Awaitable[None]:
            return link.on_assigned(assigned)

        def on_partitions_revoked(self, revoked: Any) -> Awaitable[None]:
            return link.on_revoked(revoked)

    return Listener()


def _too_large() -> tuple[type[Exception], ...]:
    from aiokafka.errors import MessageSizeTooLargeError, RecordTooLargeError

    return (MessageSizeTooLargeError, RecordTooLargeError)


async def _stopped(client: Any) -> None:
    """Stops a consumer or producer, which may wait for a cluster that is gone."""
    with contextlib.suppress(Exception):
        async with asyncio.timeout(STOP_SECONDS):
            await client.stop()


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
