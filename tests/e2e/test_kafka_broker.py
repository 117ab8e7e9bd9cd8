"""What the tests' broker and aiokafka do together: the ground that the gateway's topics stand on.

What does not work is here as well, so that a newer version of either that mends it is noticed.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import KafkaError
from fakes.kafka import Broker, MockCluster, kafka_missing

pytestmark = pytest.mark.skipif(bool(kafka_missing()), reason=kafka_missing())

CODECS = ["none", "gzip", "snappy", "lz4", "zstd"]
SECONDS = 20.0
# What a dead member of a group costs at most; the least that brokers take.
SESSION_MS = 6000
MEMBER = """
import asyncio, sys
from aiokafka import AIOKafkaConsumer
async def main():
    consumer = AIOKafkaConsumer("t", bootstrap_servers=sys.argv[1], group_id="g",
        session_timeout_ms=int(sys.argv[2]), heartbeat_interval_ms=200)
    await consumer.start()
    print("in", flush=True)
    while True:
        await consumer.getmany(timeout_ms=100)
asyncio.run(main())
"""


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with Broker(tmp_path) as broker:
        yield broker


def _run(test: Callable[[], Awaitable[None]]) -> None:
    async def within() -> None:
        async with asyncio.timeout(2 * SECONDS):
            await test()

    asyncio.run(within())


class _Member(ConsumerRebalanceListener):  # type: ignore[misc]
    """A consumer of the group "g" that reads topic "t", and what came and went of partitions."""

    def __init__(self, broker: Broker) -> None:
        self.events: list[tuple[str, list[int]]] = []
        self.offsets: dict[int, list[int]] = {}
        self.consumer = AIOKafkaConsumer(
            bootstrap_servers=broker.bootstrap,
            group_id="g",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            session_timeout_ms=SESSION_MS,
            heartbeat_interval_ms=200,
        )

    async def __aenter__(self) -> _Member:
        await self.consumer.start()
        self.consumer.subscribe(["t"], listener=self)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.consumer.stop()

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        self.events.append(("revoked", sorted(each.partition for each in revoked)))

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        self.events.append(("assigned", sorted(each.partition for each in assigned)))

    @property
    def partitions(self) -> list[int]:
        return sorted(each.partition for each in self.consumer.assignment())

    async def polls(self, condition: Callable[[], object], *others: _Member) -> None:
        """Polls (and so do others) until something holds."""
        async with asyncio.timeout(SECONDS):
            while not condition():
                await asyncio.gather(*(each._poll() for each in (self, *others)))

    async def _poll(self) -> None:
        for at, records in (await self.consumer.getmany(timeout_ms=50)).items():
            self.offsets.setdefault(at.partition, []).extend(each.offset for each in records)


def test_what_one_library_writes_the_other_reads(broker: Broker) -> None:
    broker.make_topic("t", 2)
    headers = [("trace", b"\x00\xff"), ("none", None)]
    for codec in CODECS:
        broker.produce("t", [(b"k", codec.encode() * 1000, headers)], partition=0, codec=codec)
    broker.produce("t", [(None, b"no key"), (b"k", None)], partition=1)

    async def test() -> None:
        consumer = AIOKafkaConsumer(
            bootstrap_servers=broker.bootstrap, auto_offset_reset="earliest"
        )
        consumer.assign([TopicPartition("t", 0), TopicPartition("t", 1)])
        await consumer.start()
        try:
            found: list[Any] = [await consumer.getone() for _ in range(7)]
        finally:
            await consumer.stop()
        read = {(each.partition, each.offset): each for each in found}
        for offset, codec in enumerate(CODECS):
            assert read[0, offset].value == codec.encode() * 1000
            assert read[0, offset].key == b"k"
            assert list(read[0, offset].headers) == headers
        assert (read[1, 0].key, read[1, 1].value) == (None, None)

        async with AIOKafkaProducer(bootstrap_servers=broker.bootstrap, acks="all") as producer:
            await producer.send_and_wait("u", b"v" * 900_000, b"k", headers=[("h", b"1")])

    broker.make_topic("u")
    _run(test)
    (record,) = broker.read("u")
    assert (record.key, record.headers) == (b"k", {"h": b"1"})
    assert record.value == b"v" * 900_000
    assert broker.ends("t") == {0: 5, 1: 2}


def test_the_end_of_a_partition_is_told_by_what_is_fetched(broker: Broker) -> None:
    broker.make_topic("t")
    broker.produce("t", [(None, b"")] * 3)
    at = TopicPartition("t", 0)

    async def test() -> None:
        consumer = AIOKafkaConsumer(
            bootstrap_servers=broker.bootstrap, auto_offset_reset="earliest"
        )
        consumer.assign([at])
        await consumer.start()
        try:
            await consumer.getone()
            assert consumer.highwater(at) == 3
            assert await consumer.end_offsets([at]) != {at: 3}  # a batch is counted as one record
        finally:
            await consumer.stop()

    _run(test)


def test_a_key_is_in_one_partition_whoever_writes(broker: Broker) -> None:
    broker.make_topic("t", 8)
    keys = [b"key-%d" % number for number in range(32)]
    places = broker.produce("t", [(key, b"") for key in keys])

    async def test() -> None:
        async with AIOKafkaProducer(bootstrap_servers=broker.bootstrap, acks="all") as producer:
            told = [await producer.send_and_wait("t", b"", key) for key in keys]
        assert [each.partition for each in told] == [partition for partition, _ in places]

    _run(test)
    assert len({partition for partition, _ in places}) > 4


def test_a_group_with_a_paused_partition_and_commits(broker: Broker) -> None:
    broker.make_topic("t", 2)
    for partition in (0, 1):
        broker.produce("t", [(None, b"")] * 5, partition=partition)
    at = [TopicPartition("t", 0), TopicPartition("t", 1)]

    async def test() -> None:
        async with _Member(broker) as member:
            consumer = member.consumer
            await member.polls(lambda: member.offsets == {0: [*range(5)], 1: [*range(5)]})
            assert member.events[-1] == ("assigned", [0, 1])
            consumer.pause(at[0])
            for partition in (0, 1):
                broker.produce("t", [(None, b"")] * 2, partition=partition)
            await member.polls(lambda: len(member.offsets[1]) == 7)
            await member.polls(lambda: True)
            assert member.offsets[0] == [*range(5)]
            assert consumer.paused() == {at[0]}
            consumer.resume(at[0])
            await member.polls(lambda: member.offsets[0] == [*range(7)])
            consumer.seek(at[0], 3)  # what was fetched and put back comes again
            await member.polls(lambda: member.offsets[0] == [*range(7), *range(3, 7)])
            await consumer.commit({at[0]: 4})
            await consumer.commit({at[0]: 5, at[1]: 7})

    _run(test)
    assert broker.committed("g", "t") == {0: 5, 1: 7}
    assert broker.lag("g", "t") == 2


@pytest.mark.slow
def test_members_come_stay_paused_and_go(broker: Broker) -> None:
    broker.make_topic("t", 4)
    broker.produce("t", [(None, b"")], partition=0)

    async def test() -> None:
        async with _Member(broker) as first:
            await first.polls(lambda: first.partitions == [0, 1, 2, 3])
            await first.consumer.commit({TopicPartition("t", 0): 1})
            first.consumer.pause(*first.consumer.assignment())
            async with _Member(broker) as second:
                await first.polls(
                    lambda: len(first.partitions) == len(second.partitions) == 2, second
                )
                assert sorted(first.partitions + second.partitions) == [0, 1, 2, 3]
                assert ("revoked", [0, 1, 2, 3]) in first.events
                assert not first.consumer.paused()  # a rebalance forgets it
                # Membership holds while all is paused, for longer than a session.
                first.consumer.pause(*first.consumer.assignment())
                loop = asyncio.get_running_loop()
                end = loop.time() + 1.5 * SESSION_MS / 1000
                before = list(first.events)
                await first.polls(lambda: loop.time() > end, second)
                assert first.events == before
            await first.polls(lambda: first.partitions == [0, 1, 2, 3])  # the second one left

    _run(test)


@pytest.mark.slow
def test_a_member_that_was_killed_is_expelled(broker: Broker) -> None:
    broker.make_topic("t", 2)
    command = [sys.executable, "-c", MEMBER, broker.bootstrap, str(SESSION_MS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == b"in\n"

            async def test() -> None:
                async with _Member(broker) as member:
                    await member.polls(lambda: len(member.partitions) == 1)
                    other.kill()
                    await member.polls(lambda: member.partitions == [0, 1])

            _run(test)
        finally:
            other.kill()


def test_idempotence_is_the_mock_clusters(broker: Broker) -> None:
    async def writes(bootstrap: str) -> list[int]:
        producer = AIOKafkaProducer(bootstrap_servers=bootstrap, enable_idempotence=True)
        try:
            await producer.start()
            return [(await producer.send_and_wait("t", b"v", b"k")).offset for _ in range(3)]
        finally:
            await producer.stop()

    async def test() -> None:
        with MockCluster() as cluster:
            assert await writes(cluster.bootstrap) == [0, 1, 2]
            (place,) = cluster.produce("t", [(b"k", b"w")])
            assert place[1] == 3
            assert await writes(cluster.bootstrap) == [4, 5, 6]
        with pytest.raises(KafkaError):
            await writes(broker.bootstrap)

    _run(test)


def test_a_broker_that_stalls_and_one_that_is_killed(broker: Broker) -> None:
    broker.make_topic("t")

    async def test() -> None:
        async with AIOKafkaProducer(bootstrap_servers=broker.bootstrap, acks="all") as producer:
            await producer.send_and_wait("t", b"1")
            broker.stall()
            sent = await producer.send("t", b"2")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(sent), 0.3)
            broker.go_on()
            assert (await sent).offset == 1

    _run(test)
    broker.kill()
    broker.start()
    broker.make_topic("t")  # the one of before is gone
    assert broker.read("t") == []
