"""The spool of one worker in topics: records in, results and dead letters out.

All workers of all nodes are one consumer group, so each record is sent by one of them, and who is
killed is replaced. An offset is committed once the record's outcome is acknowledged on all replicas
(`marks`), so nothing is lost, and what was under way at a kill is sent again with the same
Idempotency-Key.

A record waits where it is read: a partition is paused while a record of it waits for the end of a
throttle's pause, and while enough of it is in hand (`partitions`).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, ClassVar, Final, cast

from gateway.breaker.breaker import Breaker
from gateway.breaker.states import BreakerState
from gateway.clock import MS
from gateway.spool import letters
from gateway.spool.envelope import EnvelopeError, judge_body
from gateway.spool.intake import NotSendable, TopicEntry, admit, body_came, unreadable
from gateway.spool.letters import LETTER_BYTES_MAX, Letter
from gateway.spool.partitions import Partition, Partitions
from gateway.spool.record import BODY_BYTES_MAX, Entry, Result, Stored
from gateway.spool.sender import Sender
from gateway.spool.topic_desk import TopicDesk
from gateway.spool.topic_door import TopicDoor

if TYPE_CHECKING:
    from gateway.breaker.states import Change
    from gateway.conf.schema import Kafka
    from gateway.connectors.kafka_link import KafkaLink, Received
    from gateway.proxy.exchange import Exchange
    from gateway.proxy.graph import Worker
    from gateway.spool.sending import Sending

__all__ = ["KafkaSpool"]

# Commits wait so long for others: twenty workers make 400 a second, and a kill repeats that much.
COMMIT_SECONDS: Final = 0.05
COMMIT_AGAIN_SECONDS: Final = 1.0  # after one that failed
# What is under way when the group gives out its partitions anew is waited for so long; all others
# of the group wait as well.
REVOKE_SECONDS: Final = 5.0
CLOSE_SECONDS: Final = 2.0  # for what is being written at the end, and a last commit
# A letter that its topic finds too large loses of its body, down to this; below it is the topic
# that is wrong, and the letter waits until somebody has made that right.
LETTER_BYTES_MIN: Final = 64 * 1024
LETTER_AGAIN_SECONDS: Final = 10.0
_COUNTED: Final = (
    "records", "results", "dead_letters", "commits", "rebalances", "accepted", "known"
)  # fmt: skip


class KafkaSpool(Sender):
    """Satisfies `kafka_link.Taker`: what is read, sent, held and committed is decided here.

    Satisfies `proxy.spooling.SpoolDoor` for exchanges as well.
    """

    # More than is kept of any response: it stays in one piece.
    part_bytes: ClassVar[int] = BODY_BYTES_MAX + 1

    def __init__(
        self, worker: Worker, link: KafkaLink, conf: Kafka, secrets: dict[str, tuple[bytes, ...]]
    ) -> None:
        """`secrets` has, by upstream, what the configuration adds to requests and keeps secret."""
        super().__init__(worker, "kafka")
        self.conf = conf
        self.link = link
        self.secrets = secrets
        self.partitions = Partitions()
        self.held: set[str] = set()  # upstreams that an operator holds back here
        self.paused: set[int] = set()
        self.entries: dict[tuple[int, int], TopicEntry] = {}  # in hand, by partition and offset
        self.accepted: dict[bytes, tuple[int, int]] = {}  # of them, by mark, what gateways wrote
        self.desk = TopicDesk(self)
        self.door = TopicDoor(self)
        self.counts.update(dict.fromkeys(_COUNTED, 0))
        self._numbers = itertools.count(1)
        self._is_rebalancing = True  # until the group has given out its partitions
        self._committed: dict[int, tuple[int, str]] = {}
        self._commit_timer: asyncio.TimerHandle | None = None
        self._is_committing = False
        self._settled = asyncio.Event()

    # Start and stop.

    def start(self) -> None:
        """Joins the group; a cluster that is not there yet is waited for."""
        self.link.start(self)
        self.door.open()

    async def close(self) -> None:
        """Commits what is done and leaves the group. What is still out is sent anew by another."""
        self._is_stopped = True
        self.door.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._settle(CLOSE_SECONDS, sends=False)
                await self.link.committed(self.uncommitted())
        await self.link.stop()
        self._close()
        if self._commit_timer is not None:
            self._commit_timer.cancel()

    def reloaded(self, secrets: dict[str, tuple[bytes, ...]]) -> None:
        """Upstreams, orders, figures and secrets may be others."""
        self.secrets = secrets
        self._rules_changed()

    def changed(self, upstream: str, change: Change) -> None:
        """A breaker opened or closed: what sleeps until its end is looked at."""
        if change.state is BreakerState.CLOSED:
            self.partitions.release(_is_closed)
        super().changed(upstream, change)

    def stop_sending(self) -> None:
        """Nothing new is read or sent."""
        super().stop_sending()
        self._hold_and_release()

    def is_waiting(self, entry: TopicEntry) -> bool:
        """Whether a record has no outcome yet, not even one that is being written."""
        lanes = self.lanes.get(entry.upstream)
        return lanes is not None and entry.number in lanes

    def give_up(self, entry: TopicEntry, reason: str, detail: str) -> None:
        """A record that is not being sent becomes a dead letter."""
        self._forget(entry)
        self._refuse(entry, reason, detail, self.worker.wall_ns() // MS)

    # The data path's side.

    def accept(self, exchange: Exchange, now_ns: int) -> None:
        """Takes the exchange on; it is answered when all replicas have its request."""
        self.door.accept(exchange, now_ns)

    def show(self, exchange: Exchange, now_ns: int) -> bool:
        """Whether the exchange asks for an accepted request and is answered here."""
        return self.door.show(exchange, now_ns)

    # The link's side.

    def received(self, records: Sequence[Received]) -> None:
        """Takes in records of one partition, in their order."""
        for record in records:
            partition = self.partitions.find(record.partition)
            if partition is None:
                return
            if record.offset < partition.marks.mark:
                partition = self._begin_anew(record.partition, record.offset, "")
            if partition.marks.take(record.offset):
                self.counts["records"] += 1
                self._take_in(record)
        self._commit_soon()  # offsets may have been passed over
        self._pump_soon()

    def assigned(self, committed: dict[int, tuple[int, str]]) -> dict[int, int]:
        """These partitions are ours. Returns where to read on in those that were before."""
        self.counts["rebalances"] += 1
        for number, (mark, note) in committed.items():
            if mark < self._committed.get(number, (0, ""))[0]:
                self._begin_anew(number, mark, note)
        for number, offsets in self.partitions.assign(committed).items():
            self._let_go(number, offsets)
        self._committed = dict(committed)
        self._is_rebalancing = False
        self.paused = set()
        self._hold_and_release()
        self._commit_soon()
        self._pump_soon()
        return {
            partition.number: partition.marks.next
            for partition in self.partitions
            if partition.marks.next > committed[partition.number][0]
        }

    async def revoked(self) -> None:
        """The partitions are given out anew: what is under way is finished, if it soon is."""
        self.lost()
        await self._settle(REVOKE_SECONDS, sends=True)
        marks = self.uncommitted()
        if marks and await self.link.committed(marks):
            self._took(marks)

    def lost(self) -> None:
        """Nothing is sent until the group has given out the partitions anew."""
        self._is_rebalancing = True
        self._leave_queues()

    # Records in hand.

    def _take_in(self, record: Received) -> None:
        topic = self.conf.requests
        number = next(self._numbers)
        now_ms = self.worker.wall_ns() // MS
        try:
            entry = admit(self.worker, number, topic, record, self.secrets)
        except EnvelopeError as error:
            entry = unreadable(number, topic, record, now_ms)
            self._hold_in_hand(entry)
            self._refuse(entry, error.flaw.value, error.detail, now_ms)
        except NotSendable as error:
            entry = unreadable(number, topic, record, now_ms)
            entry.envelope = error.envelope
            entry.secrets = letters.Secrets(error.envelope.fields)
            self._hold_in_hand(entry)
            self._refuse(entry, error.reason, error.detail, now_ms)
        except Exception:  # a fault of ours must not meet the same record for ever
            self.worker.count("kafka_records_unforeseen")
            entry = unreadable(number, topic, record, now_ms)
            self._hold_in_hand(entry)
            self._refuse(entry, "internal", "the gateway failed at this record", now_ms)
        else:
            self._hold_in_hand(entry)
            self.add(entry)

    def _hold_in_hand(self, entry: TopicEntry) -> None:
        self.entries[entry.place] = entry
        if entry.mark:
            self.accepted[entry.mark] = entry.place
        self.partitions.records += 1
        self.partitions.octets += entry.octets

    def _begin_anew(self, number: int, mark: int, note: str) -> Partition:
        """The topic or the group was made anew, or an operator has put it back."""
        self.worker.count("kafka_partitions_begun_anew")
        partition, offsets = self.partitions.restart(number, mark, note)
        self._let_go(number, offsets)
        return partition

    def _let_go(self, number: int, offsets: Iterable[int]) -> None:
        """Others have these records now, or have finished them."""
        for offset in offsets:
            entry = self.entries.pop((number, offset), None)
            if entry is None:
                continue
            entry.is_lost = True
            if self.is_waiting(entry) and not entry.is_out:
                self._forget(entry)
                self._finish(entry)

    def _finish(self, entry: TopicEntry) -> None:
        """Its outcome is kept, or is another's."""
        self.partitions.records -= 1
        self.partitions.octets -= entry.octets
        if self.accepted.get(entry.mark) == entry.place:
            del self.accepted[entry.mark]
        if not entry.is_lost:
            del self.entries[entry.place]
            number, offset = entry.place
            partition = self.partitions.find(number)
            if partition is not None:
                partition.marks.finish(offset)
            self._commit_soon()
        self._settled.set()
        self._pump_soon()

    async def _settle(self, seconds: float, *, sends: bool) -> None:
        """Waits until all outcomes are written, with `sends` those of what is out too."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.link.unacknowledged or (sends and self.out):
                    self._settled.clear()
                    await self._settled.wait()

    # The store's side of a send.

    def result_bytes_max(self, entry: Entry) -> int:
        """Of how long a response its beginning is kept: what a letter has, or the body wanted."""
        kept = cast(TopicEntry, entry)
        return kept.body_bytes + 1 if kept.fetches_body else LETTER_BYTES_MAX

    def _load(self, taken: list[Entry]) -> None:
        stored = [cast(TopicEntry, entry).stored for entry in taken]
        self._loaded(taken, cast(list[Stored], stored))

    def _keep_begun(self, entry: Entry, now_ms: int) -> None:
        cast(TopicEntry, entry).last_ms = now_ms

    def _keep_failed(self, entry: Entry, status: int) -> None:
        """Attempts are counted in memory: who takes the record over begins anew, within its ttl."""

    def _keep_done(self, sending: Sending, result: Result, now_ms: int) -> None:
        entry = cast(TopicEntry, sending.entry)
        if entry.fetches_body:
            self._body_came(entry, result, now_ms)
            return
        self.counts["done"] += 1
        envelope = entry.envelope
        assert envelope is not None
        course = entry.course(now_ms)
        place, secrets = entry.origin, entry.secrets

        def build(size: int) -> Letter:
            return letters.result(place, envelope, course, result, secrets, size)

        self._write(entry, self.conf.results, build)

    def _keep_dead(self, entry: Entry, reason: str, status: int, now_ms: int) -> None:
        dead = cast(TopicEntry, entry)
        if dead.is_lost:
            self._finish(dead)  # who has the partition now has all its attempts, too
            return
        detail = f"the last response was a {status}" if status else ""
        self._write_dead(dead, reason, detail, now_ms)

    def _may_take(self, name: str) -> bool:
        # Outcomes that cannot be written would be sent again after a crash: no more are made.
        return not (
            self._is_rebalancing or name in self.held or self.link.is_behind(self.worker.now_ns())
        )

    def load_body(self, sending: Sending) -> None:
        """A body never has parts here: it is in memory."""

    def put_part(self, sending: Sending, number: int, data: bytes) -> None:
        """A response never has parts here."""

    def forget_parts(self, sending: Sending) -> None:
        """A response never has parts here."""

    def must_wait(self, sending: Sending, wait_ns: int) -> None:
        """Not now. Where a pause is the reason, its partition is held until the told time."""
        blocked = sending.last_blocked
        if wait_ns and blocked is not None and isinstance(blocked.blocker, Breaker):
            until_ns = self.worker.now_ns() + wait_ns
            number, _ = cast(TopicEntry, sending.entry).place
            self.partitions.hold(number, blocked.blocker, until_ns)
        super().must_wait(sending, wait_ns)

    def _came_back(self, sending: Sending) -> None:
        super()._came_back(sending)
        self._settled.set()

    def _put_back(self, entry: Entry, until_ns: int, *, all_of_them: bool) -> None:
        kept = cast(TopicEntry, entry)
        if kept.is_lost:
            self._forget(kept)
            self._finish(kept)
        else:
            super()._put_back(entry, until_ns, all_of_them=all_of_them)

    def _body_came(self, entry: TopicEntry, result: Result, now_ms: int) -> None:
        """A body that a record refers to was fetched: the request itself goes next."""
        assert entry.envelope is not None
        assert entry.envelope.body_from is not None
        if entry.is_lost:
            self._finish(entry)
            return
        try:
            if result.status != 200:
                detail = f"the body's upstream answered {result.status}"
                raise NotSendable("no_body", detail, entry.envelope)
            judge_body(entry.envelope.body_from, result.body)
            after = body_came(self.worker, next(self._numbers), entry, result.body)
        except EnvelopeError as error:
            self._refuse(entry, error.flaw.value, error.detail, now_ms)
        except NotSendable as error:
            self._refuse(entry, error.reason, error.detail, now_ms)
        else:
            self.entries[entry.place] = after
            self.add(after)

    # Letters.

    def _refuse(self, entry: TopicEntry, reason: str, detail: str, now_ms: int) -> None:
        """It is in no lane and is not sent."""
        self.dead[reason] = self.dead.get(reason, 0) + 1
        self._write_dead(entry, reason, detail, now_ms)

    def _write_dead(self, entry: TopicEntry, reason: str, detail: str, now_ms: int) -> None:
        course = entry.course(now_ms)
        self._write(
            entry,
            self.conf.dead,
            lambda size: letters.dead_letter(
                entry.origin, entry.envelope, course, reason, entry.secrets, detail, bytes_max=size
            ),
        )

    def _write(
        self,
        entry: TopicEntry,
        topic: str,
        build: Callable[[int], Letter],
        size: int = LETTER_BYTES_MAX,
    ) -> None:
        letter = build(size)

        def told(is_written: bool) -> None:
            if is_written:
                self.counts["results" if topic == self.conf.results else "dead_letters"] += 1
                self._finish(entry)
            elif size > LETTER_BYTES_MIN:
                self.worker.count("kafka_letters_cut")
                self._write(entry, topic, build, max(LETTER_BYTES_MIN, size // 4))
            elif not self._is_closed:
                self.worker.count("kafka_letters_too_large")
                self.worker.loop.call_later(
                    LETTER_AGAIN_SECONDS, self._write, entry, topic, build, size
                )

        self.link.write(topic, letter.key, letter.value, letter.headers, told)

    # Committing.

    def uncommitted(self) -> dict[int, tuple[int, str]]:
        """What has been done since the last commit, by partition: marks and notes."""
        return {
            number: mark
            for number, mark in self.partitions.marks().items()
            if mark != self._committed.get(number)
        }

    def _commit_soon(self, seconds: float = COMMIT_SECONDS) -> None:
        if self._commit_timer is None and not (self._is_committing or self._is_closed):
            self._commit_timer = self.worker.loop.call_later(seconds, self._commit)

    def _commit(self) -> None:
        self._commit_timer = None
        marks = self.uncommitted()
        if not marks or self._is_rebalancing or self._is_closed:
            return
        self._is_committing = True

        def told(is_committed: bool) -> None:
            self._is_committing = False
            if is_committed:
                self._took(marks)
            if self.uncommitted():
                self._commit_soon(COMMIT_SECONDS if is_committed else COMMIT_AGAIN_SECONDS)

        self.link.commit(marks, told)

    def _took(self, marks: dict[int, tuple[int, str]]) -> None:
        self.counts["commits"] += 1
        self._committed.update(marks)

    # What is read.

    def _pump(self) -> None:
        super()._pump()
        if not self._is_closed:
            self._hold_and_release()

    def _hold_and_release(self) -> None:
        """Tells the consumer which partitions it is not to read now."""
        if self._is_stopped:
            wanted = {partition.number for partition in self.partitions}
        else:
            wanted = self.partitions.to_pause(self.worker.now_ns())
        if wanted - self.paused:
            self.link.pause(wanted - self.paused)
        if self.paused - wanted:
            self.link.resume(self.paused - wanted)
        self.paused = wanted

    def _waits_ns(self, now_ns: int) -> list[int]:
        waits = super()._waits_ns(now_ns)
        release_ns = self.partitions.next_release_ns(now_ns)
        if release_ns is not None:
            waits.append(release_ns - now_ns)
        return waits

    def lag(self) -> int:
        """Records of our partitions without an outcome, as far as the ends are known."""
        behind = 0
        for partition in self.partitions:
            end = self.link.end_of(partition.number)
            if end is not None:
                behind += max(0, end - partition.marks.mark)
        return behind


def _is_closed(pause: object) -> bool:
    return isinstance(pause, Breaker) and pause.state is BreakerState.CLOSED
