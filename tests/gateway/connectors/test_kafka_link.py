"""The link against librdkafka's cluster, which can what the other broker of the tests cannot."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition
from fakes.kafka import Broker, MockCluster, kafka_missing

from gateway.conf.schema import Kafka
from gateway.connectors.kafka_link import RECORD_BYTES_MAX, KafkaLink, Received

SECONDS = 20.0


class Notes:
    """Takes what a link says; partitions are kept as they come."""

    def __init__(self) -> None:
        self.records: list[Received] = []
        self.committed: dict[int, tuple[int, str]] | None = None
        self.events: list[str] = []
        self.counts: list[str] = []

    def received(self, records: Sequence[Received]) -> None:
        assert self.committed is not None, "nothing comes before it is known where to begin"
        self.records += records

    def assigned(self, committed: dict[int, tuple[int, str]]) -> dict[int, int]:
        self.committed = committed
        return {}

    async def revoked(self) -> None:
        """Nothing is under way."""

    def lost(self) -> None:
        self.events.append("lost")

    def note(self, event: str, **_: Any) -> None:
        self.events.append(event)


def link_to(bootstrap: str, notes: Notes) -> KafkaLink:
    conf = Kafka(bootstrap=tuple(bootstrap.split(",")))
    return KafkaLink(
        conf, "test", time.monotonic_ns, random.random, notes.note, notes.counts.append
    )


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():
            await asyncio.sleep(0.01)


async def joined(bootstrap: str) -> tuple[KafkaLink, Notes]:
    notes = Notes()
    link = link_to(bootstrap, notes)
    link.start(notes)
    await until(lambda: notes.committed is not None)
    return link, notes


@pytest.mark.slow
def test_what_is_committed_comes_back_with_its_note() -> None:
    async def run(cluster: MockCluster) -> None:
        link, notes = await joined(cluster.bootstrap)
        await until(lambda: notes.records)
        (first,) = notes.records
        assert (first.offset, first.key, first.value) == (0, b"k", b"v")
        assert first.headers == (("h", b"1"),)
        assert link.up
        assert await link.committed({first.partition: (1, "done 1")})
        await link.stop()
        link, notes = await joined(cluster.bootstrap)
        assert notes.committed is not None
        assert notes.committed[first.partition] == (1, "done 1")
        await link.stop()
        assert "lost" not in notes.events

    with MockCluster() as cluster:
        cluster.produce("egress", [(b"k", b"v", [("h", b"1")])])
        asyncio.run(run(cluster))


def test_writes_are_idempotent_where_the_cluster_can() -> None:
    async def run(cluster: MockCluster) -> None:
        link, _ = await joined(cluster.bootstrap)
        told: list[bool] = []
        for number in range(20):
            link.write("egress-results", b"k", b"%d" % number, [("a", b"b")], told.append)
        await until(lambda: told == [True] * 20)
        assert link.idempotent
        link.write("egress-results", b"k", bytes(RECORD_BYTES_MAX + 1), [], told.append)
        await until(lambda: told[20:] == [False])
        assert link.unacknowledged == 0
        assert not link.is_behind(time.monotonic_ns())
        await link.stop()

    with MockCluster() as cluster:
        cluster.produce("egress", [(b"k", b"v")])
        asyncio.run(run(cluster))


def test_a_cluster_that_is_not_there_is_said_once_and_tried_again() -> None:
    async def run() -> None:
        notes = Notes()
        link = link_to("127.0.0.1:1", notes)
        link.start(notes)
        link.write("egress-dead", None, b"v", [], lambda _: None)
        await until(lambda: notes.counts.count("kafka_sessions_failed") > 2)
        await until(lambda: notes.counts.count("kafka_writes_failed") > 2)
        assert notes.events.count("kafka down") == notes.events.count("kafka write failed") == 1
        assert link.is_behind(time.monotonic_ns())
        assert link.unacknowledged == 1
        assert not await link.committed({0: (1, "")})
        assert link.end_of(0) is None
        link.pause({0})
        await link.stop()

    asyncio.run(run())


def test_what_is_offered_is_written_once_or_not_at_all() -> None:
    async def run() -> None:
        notes = Notes()
        link = link_to("127.0.0.1:1", notes)
        told: list[bool] = []
        failed: list[str] = []
        sent: list[asyncio.Future[None]] = []

        async def send(*_: Any, **__: Any) -> asyncio.Future[None]:
            sent.append(asyncio.get_running_loop().create_future())
            return sent[-1]

        async def breaks(*_: Any, **__: Any) -> None:
            raise OSError("gone")

        def offer(name: str) -> Callable[[], None]:
            return link.offer("t", None, b"v", [], told.append, lambda: failed.append(name))

        offer("cannot be sent")
        with pytest.raises(OSError, match="gone"):
            await link._write_next(SimpleNamespace(send=breaks))
        assert failed == ["cannot be sent"]
        offer("withdrawn in the queue")()
        assert (link.unacknowledged, len(link._queue)) == (0, 0)
        for name in ("refused", "lost", "withdrawn"):
            withdraw = offer(name)
            await link._write_next(SimpleNamespace(send=send))
        withdraw()
        withdraw()
        sent[0].set_exception(OSError("refused"))
        await asyncio.sleep(0)
        link._again()  # the producer is given up with what it had under way
        assert failed == ["cannot be sent", "refused", "lost"]
        assert (link.unacknowledged, len(link._queue), told) == (0, 0, [])
        for future in sent[1:]:
            future.cancel()

    asyncio.run(run())


def test_outcomes_that_cannot_be_read_are_said_once_and_tried_again() -> None:
    async def run() -> None:
        notes = Notes()
        link = link_to("127.0.0.1:1", notes)
        link.follow(0, lambda topic, record: None)
        await until(lambda: notes.counts.count("kafka_tails_failed") > 1)
        assert notes.events == ["kafka outcomes unread"]
        await link.stop()

    asyncio.run(run())


@pytest.mark.skipif(bool(kafka_missing()), reason=kafka_missing())
def test_outcomes_are_heard_of_from_a_time_on(tmp_path: Path) -> None:
    async def run(broker: Broker) -> None:
        heard: list[tuple[str, bytes | None]] = []
        link = link_to(broker.bootstrap, Notes())
        link.follow(
            time.time_ns() // 10**6 - 3_600_000,
            lambda topic, record: heard.append((topic, record.value)),
        )
        await until(lambda: heard == [("egress-results", b"before")])
        broker.produce("egress-dead", [(None, b"after")])
        await until(lambda: heard[1:] == [("egress-dead", b"after")])
        await link.stop()

    with Broker(tmp_path) as broker:
        broker.make_topic("egress-results")
        broker.make_topic("egress-dead")
        broker.produce("egress-results", [(None, b"before")])
        asyncio.run(run(broker))


def test_records_wait_for_the_word_of_what_is_committed() -> None:
    """The library hands out records of an assignment before it has told of it to its end."""

    async def run() -> None:
        notes = Notes()
        link = link_to("127.0.0.1:1", notes)
        link._taker = notes
        place = TopicPartition("egress", 0)
        record = SimpleNamespace(offset=0, timestamp=1, key=None, value=b"v", headers=())
        link._consumer = SimpleNamespace(
            getmany=lambda **_: _soon({place: [record]}), assignment=lambda: {place}
        )
        known = asyncio.Event()

        async def committed(places: list[Any]) -> dict[int, tuple[int, str]]:
            await known.wait()
            return {0: (0, "")}

        link._committed = committed  # type: ignore[method-assign]
        telling = asyncio.ensure_future(link.on_assigned([place]))
        polling = asyncio.ensure_future(link._poll())
        done, _ = await asyncio.wait({polling}, timeout=0.05)
        assert not done
        known.set()
        await asyncio.gather(telling, polling)
        assert len(notes.records) == 1
        # Those of an assignment that is over are dropped: they come again.
        await link.on_revoked([])
        polling = asyncio.ensure_future(link._poll())
        await asyncio.sleep(0)
        await link.on_revoked([])
        await link.on_assigned([place])
        await polling
        assert len(notes.records) == 1

    asyncio.run(run())


async def _soon(found: Any) -> Any:
    return found


def test_the_extra_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "aiokafka", None)
    with pytest.raises(ImportError, match=r"pip install 'egressd\[kafka\]'"):
        KafkaLink.check()
