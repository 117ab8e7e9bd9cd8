"""What is read, sent, held and committed of a topic's records; the cluster is the test's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import trio
from fakes.kafka_link import FakeLink, record
from fakes.origin import Connection, Origin, Received, Script, answer
from fakes.spooled import Spooled

from gateway.proxy import pauses
from gateway.spool import kafka as kafka_module
from gateway.spool.partitions import RECORDS_MAX

CONF = """
[[listen]]
bind = "127.0.0.1:0"
[spool.kafka]
bootstrap = ["127.0.0.1:1"]
[upstream.api]
origin = "{origin}"
{upstream}
[upstream.api.spool]
{rule}
[[route]]
host = "api.test"
path = "/v1/"
strip = "/v1"
upstream = "api"
{more}
"""
DONE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
HOUR_NS = 3600 * 10**9
DAY = 'ttl = "1d"\n'  # longer than what these tests wait


class Topics(Spooled):
    """A gateway whose cluster is a `FakeLink`, and whose clock can be put forward."""

    url = ""

    def __enter__(self) -> Topics:
        super().__enter__()
        self.ahead_ns = 0
        worker = self.server.worker
        steady, wall = worker.now_ns, worker.wall_ns

        def put() -> None:
            worker.now_ns = lambda: steady() + self.ahead_ns
            worker.wall_ns = lambda: wall() + self.ahead_ns

        self.call(put)
        return self

    def advance(self, ns: int) -> None:
        """Puts the clock forward; whatever waits for a time looks at it."""

        def ring() -> None:
            self.ahead_ns += ns
            self.spool.look_again()

        self.call(ring)

    @property
    def link(self) -> FakeLink:
        found: FakeLink = self.spool.link
        return found

    def assign(self, *numbers: int, at: int = 0) -> dict[int, int]:
        return self.call(lambda: self.link.assign(dict.fromkeys(numbers, (at, ""))))

    def give(self, *offsets: int, partition: int = 0, **more: Any) -> None:
        """Records of one partition."""
        records = [record(self.url, partition, offset, **more) for offset in offsets]
        self.call(lambda: self.spool.received(records))

    def until_committed(self, partition: int, mark: int) -> None:
        self.until(lambda: (self.link.commits or [{}])[-1].get(partition, (-1,))[0] == mark)

    def run(self, make: Callable[[], Any]) -> Any:
        """Runs a coroutine in the gateway's loop."""
        return asyncio.run_coroutine_threadsafe(make(), self.loop).result(10)


Make = Callable[..., tuple[Topics, Origin]]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    monkeypatch.setattr("gateway.connectors.kafka_link.KafkaLink", FakeLink)
    with ExitStack() as stack:

        def build(
            script: Script | None = None, *, upstream: str = "", rule: str = DAY, more: str = ""
        ) -> tuple[Topics, Origin]:
            origin = stack.enter_context(Origin(script or answer(b"200 OK", b"ok")))
            text = CONF.format(origin=origin.url, upstream=upstream, rule=rule, more=more)
            gateway = Topics(text, tmp_path)
            gateway.url = origin.url + "/do"
            stack.enter_context(gateway)
            return gateway, origin

        yield build


def throttles(*credentials: bytes, seconds: int = 3600) -> Script:
    """Throttles each of these credentials once; all else is done."""
    left = set(credentials)
    throttle = b"HTTP/1.1 429 Slow\r\nRetry-After: %d\r\nContent-Length: 0\r\n\r\n" % seconds

    async def script(connection: Connection, request: Received) -> bool:
        credential = (request.values(b"authorization") or [b""])[0]
        await connection.send(throttle if credential in left else DONE)
        left.discard(credential)
        return True

    return script


class Gate:
    """An origin that answers nothing until it is opened."""

    def __init__(self) -> None:
        self.is_open = False

    async def __call__(self, connection: Connection, request: Received) -> bool:
        while not self.is_open:
            await trio.sleep(0.005)
        await connection.send(DONE)
        return True


# Outcomes and offsets.


def test_an_offset_is_committed_after_its_outcome_is_acknowledged(make: Make) -> None:
    gateway, _ = make()
    gateway.assign(0, at=5)
    link = gateway.link
    link.acknowledges = False
    gateway.give(5, 6, 7)
    gateway.until(lambda: len(link.letters) == 3)
    middle = [letter["record"]["offset"] for _, letter in link.letters].index(6)
    gateway.call(lambda: link.waiting.pop(middle)(True))
    gateway.until(lambda: link.commits == [{0: (5, "done 1")}])
    gateway.call(link.acknowledge)
    gateway.until_committed(0, 8)
    assert gateway.spool.partitions.records == gateway.spool.partitions.octets == 0
    assert gateway.spool.entries == {}


def test_a_commit_that_fails_is_made_again(make: Make) -> None:
    gateway, _ = make()
    gateway.assign(0)
    gateway.link.takes_commits = False
    gateway.give(0)
    gateway.until(lambda: gateway.link.letters and not gateway.spool.entries)
    gateway.link.takes_commits = True
    gateway.until_committed(0, 1)


def test_what_another_has_finished_is_not_sent(make: Make) -> None:
    gateway, origin = make()
    gateway.call(lambda: gateway.link.assign({0: (10, "done 1-2,4")}))
    gateway.give(10, 11, 12, 13, 14, 15)
    gateway.until_committed(0, 16)
    assert len(origin.requests) == 3
    assert gateway.spool.counts["results"] == 3


def test_the_key_of_a_record_is_the_same_whoever_sends_it(make: Make) -> None:
    gateway, origin = make()
    gateway.assign(0)
    gateway.give(3)
    gateway.until_committed(0, 4)
    gateway.call(lambda: gateway.link.assign({}))
    gateway.assign(0)  # as if nothing had been committed
    gateway.give(3)
    gateway.give(4, idempotency_key="a-key-of-its-own")
    gateway.until_committed(0, 5)
    first, second, own = [r.values(b"idempotency-key") for r in origin.requests]
    assert first == second != own
    assert own == [b"a-key-of-its-own"]


def test_a_log_that_begins_anew_is_read_anew(make: Make) -> None:
    gateway, origin = make()
    gateway.assign(0, at=100)
    gateway.give(0, 1)
    gateway.until_committed(0, 2)
    assert len(origin.requests) == 2
    assert gateway.server.worker.counts["kafka_partitions_begun_anew"] == 1


def test_a_group_that_was_put_back_is_followed(make: Make) -> None:
    gateway, origin = make()
    gateway.assign(0)
    gateway.give(0, 1)
    gateway.until_committed(0, 2)
    gateway.run(gateway.spool.revoked)
    assert gateway.assign(0) == {}, "it is read from where the group now is"
    gateway.give(0, 1)
    gateway.until(lambda: gateway.spool.counts["results"] == 4)
    assert len(origin.requests) == 4


# Bad records.


def test_a_record_that_always_fails_is_given_up(make: Make) -> None:
    gateway, origin = make(answer(b"500 No"), rule="attempts = 1")
    gateway.assign(0)
    gateway.give(0)
    gateway.until_committed(0, 1)
    (letter,) = gateway.link.letters_in("egress-dead")
    assert (letter["reason"], letter["attempts"]) == ("attempts", 1)
    assert letter["detail"] == "the last response was a 500"
    assert len(origin.requests) == 1


def test_what_is_too_old_is_dead_without_a_token(make: Make) -> None:
    gateway, origin = make(rule='ttl = "10s"')
    gateway.assign(0)
    gateway.give(0, timestamp_ms=1)
    gateway.give(1, expires_at=1)
    gateway.give(2, timestamp_ms=int(time.time() * 1000) + 10**9)  # nobody's clock
    gateway.until_committed(0, 3)
    reasons = [letter["reason"] for letter in gateway.link.letters_in("egress-dead")]
    assert reasons == ["expired", "expired"]
    assert len(origin.requests) == 1
    assert gateway.upstream("api").counts.admitted == 1


def test_it_expires_while_it_waits(make: Make) -> None:
    gateway, _ = make(throttles(b"a"), rule='ttl = "10s"')
    gateway.assign(0)
    gateway.give(0, credential="a")
    gateway.until(lambda: gateway.link.paused == {0})
    gateway.advance(11 * 10**9)
    gateway.until_committed(0, 1)
    assert gateway.link.letters_in("egress-dead")[0]["reason"] == "expired"


def test_a_client_named_kafka_may_be_kept_from_an_upstream(make: Make) -> None:
    more = '[upstream.b]\norigin = "http://b"\n[[client]]\nname = "kafka"\n' \
        'source = ["192.0.2.1"]\nupstreams = ["b"]\n'  # fmt: skip
    gateway, origin = make(more=more)
    gateway.assign(0)
    gateway.give(0)
    gateway.until_committed(0, 1)
    assert gateway.link.letters_in("egress-dead")[0]["reason"] == "client_denied"
    assert not origin.requests


def test_a_url_may_be_a_routes(make: Make) -> None:
    gateway, origin = make()
    gateway.assign(0)
    gateway.call(lambda: gateway.spool.received([record("http://api.test/v1/a?b=c")]))
    gateway.call(lambda: gateway.spool.received([record("http://other.test/v1/a", 0, 1)]))
    gateway.until_committed(0, 2)
    (request,) = origin.requests
    assert request.target == b"/a?b=c"
    assert gateway.link.letters_in("egress-dead")[0]["reason"] == "no_upstream"


def test_a_letter_that_its_topic_finds_too_large_is_cut(make: Make) -> None:
    gateway, _ = make(answer(b"200 OK", b"x" * 900_000))
    gateway.assign(0)
    gateway.link.letter_bytes_max = 300_000
    gateway.give(0)
    gateway.until_committed(0, 1)
    (letter,) = gateway.link.letters_in("egress-results")
    assert letter["body_cut"]
    assert letter["body_bytes"] == 900_000
    assert 100_000 < len(letter["body"]) < 300_000
    assert gateway.server.worker.counts["kafka_letters_cut"] == 1


def test_a_fault_of_the_gateways_own_does_not_meet_a_record_for_ever(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise ZeroDivisionError

    gateway, _ = make()
    gateway.assign(0)
    with monkeypatch.context() as patch:
        patch.setattr(kafka_module, "admit", fails)
        gateway.give(0)
    gateway.give(1)
    gateway.until_committed(0, 2)
    assert gateway.link.letters_in("egress-dead")[0]["reason"] == "internal"
    assert gateway.server.worker.counts["kafka_records_unforeseen"] == 1


# Pauses and bounds.


def test_a_paused_key_holds_its_partition_until_the_told_time_and_not_before(make: Make) -> None:
    gateway, origin = make(throttles(b"slow"))
    gateway.assign(0, 1)
    gateway.give(0, 1, credential="slow")
    gateway.until(lambda: gateway.link.paused == {0})
    gateway.give(*range(20), partition=1, credential="fast")
    gateway.until_committed(1, 20)
    sent = len(origin.requests)
    gateway.advance(HOUR_NS - 60 * 10**9)
    gateway.until(lambda: not gateway.spool._pump_due)
    assert gateway.link.paused == {0}
    assert gateway.link.resumed == []
    assert len(origin.requests) == sent
    gateway.advance(60 * 10**9)
    gateway.until_committed(0, 2)
    gateway.until(lambda: gateway.link.paused == set())
    assert set(gateway.link.resumed) == {0}, "and again after the trial, if that took a while"
    assert gateway.spool.counts["results"] == 22


def test_a_pause_is_applied_again_after_the_group_gave_out_its_partitions(make: Make) -> None:
    gateway, origin = make(throttles(b"slow"), rule=DAY + 'order_by = ["credential"]')
    gateway.assign(0, 1)
    gateway.give(0, 1, credential="slow")
    gateway.until(lambda: gateway.link.paused == {0})
    gateway.run(gateway.spool.revoked)
    assert gateway.assign(0) == {0: 2}, "what is in hand is not read again"
    assert gateway.link.paused == {0}
    gateway.give(0, 1, credential="slow")  # a cluster that reads again all the same
    assert len(gateway.spool.entries) == 2
    gateway.advance(HOUR_NS)
    gateway.until_committed(0, 2)
    assert len(origin.requests) == 3


def test_a_pause_that_an_operator_ends_lets_the_partition_go(make: Make) -> None:
    gateway, _ = make(throttles(b"slow"))
    gateway.assign(0)
    gateway.give(0, credential="slow")
    gateway.until(lambda: gateway.link.paused == {0})

    def resume() -> None:
        upstream, worker = gateway.upstream("api"), gateway.server.worker
        partition = gateway.spool.partitions.find(0)
        (breaker,) = partition.holds
        now_ns = worker.now_ns()
        changes = upstream.breakers.resume(breaker.scope, now_ns)
        pauses.report(worker, upstream, changes, now_ns)

    gateway.call(resume)
    gateway.until_committed(0, 1)


def test_as_much_as_may_be_is_in_hand(make: Make) -> None:
    gate = Gate()
    gateway, _ = make(gate)
    gateway.assign(0, 1)
    gateway.give(*range(RECORDS_MAX))
    gateway.until(lambda: gateway.link.paused == {0})
    gate.is_open = True
    gateway.until_committed(0, RECORDS_MAX)
    assert gateway.link.paused == set()


def test_nothing_is_sent_whose_outcome_could_not_be_written(make: Make) -> None:
    gateway, origin = make()
    gateway.assign(0)
    gateway.link.is_slow = True
    gateway.give(0)
    gateway.until(lambda: not gateway.spool._pump_due)
    assert not origin.requests
    gateway.link.is_slow = False
    gateway.advance(0)
    gateway.until_committed(0, 1)


def test_order_is_kept_for_each_value(make: Make) -> None:
    gateway, origin = make(rule=DAY + 'order_by = ["credential"]')
    gateway.assign(0)
    for offset in range(30):
        gateway.give(offset, credential="ab"[offset % 2], body=str(offset))
    gateway.until_committed(0, 30)
    for name in (b"a", b"b"):
        mine = [int(r.body) for r in origin.requests if r.values(b"authorization") == [name]]
        assert mine == sorted(mine)


# Partitions that come and go.


def test_a_revocation_waits_for_what_is_under_way_and_commits_it(make: Make) -> None:
    gate = Gate()
    gateway, origin = make(gate)
    gateway.assign(0)
    gateway.give(0)
    gateway.until(lambda: gateway.spool.out)
    revoked = asyncio.run_coroutine_threadsafe(gateway.spool.revoked(), gateway.loop)
    gateway.give(1)
    gateway.until(lambda: origin.requests)
    assert not revoked.done()
    gate.is_open = True
    revoked.result(10)
    assert gateway.link.commits[-1] == {0: (1, "")}
    assert len(origin.requests) == 1, "nothing new is sent meanwhile"


def test_what_takes_too_long_is_handed_over(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_module, "REVOKE_SECONDS", 0.05)
    gate = Gate()
    gateway, _ = make(gate)
    gateway.assign(0, 1)
    gateway.give(0)
    gateway.give(0, partition=1)
    gateway.until(lambda: len(gateway.spool.out) == 2)
    gateway.run(gateway.spool.revoked)
    gateway.assign(1)
    gate.is_open = True
    gateway.until_committed(1, 1)
    gateway.until(lambda: gateway.spool.counts["results"] == 2)
    assert all(0 not in marks for marks in gateway.link.commits)
    assert gateway.spool.partitions.records == 0


def test_records_of_a_partition_that_went_are_not_sent(make: Make) -> None:
    gateway, origin = make(throttles(b"slow"))
    gateway.assign(0)
    gateway.give(0, 1, 2, credential="slow")
    gateway.until(lambda: gateway.link.paused == {0})
    sent = len(origin.requests)
    gateway.run(gateway.spool.revoked)
    gateway.assign(7)
    assert gateway.spool.partitions.records == 0
    assert gateway.spool.waiting_count == 0
    gateway.advance(HOUR_NS)
    gateway.until(lambda: not gateway.spool._pump_due)
    assert len(origin.requests) == sent
    assert gateway.link.paused == set()


def test_a_session_that_is_lost_sends_nothing_until_the_next(make: Make) -> None:
    gateway, origin = make()
    gateway.assign(0)
    gateway.call(gateway.spool.lost)
    gateway.give(0)
    gateway.until(lambda: not gateway.spool._pump_due)
    assert not origin.requests
    gateway.assign(0)
    gateway.until_committed(0, 1)


def test_a_node_that_drains_reads_no_more(make: Make) -> None:
    gateway, _ = make()
    gateway.assign(0, 1)
    gateway.call(gateway.spool.stop_sending)
    assert gateway.link.paused == {0, 1}


# Reloads.


def test_a_reload_may_change_rules_but_not_the_place(make: Make) -> None:
    gateway, _ = make()
    gateway.assign(0)
    text = gateway.path.read_text()
    assert gateway.reload(text.replace('ttl = "1d"', 'ttl = "1h"'))
    assert not gateway.reload(text.replace("127.0.0.1:1", "127.0.0.1:2"))
    assert "spool.kafka cannot change" in gateway.server.reload_faults[0]
    file = text.replace('[spool.kafka]\nbootstrap = ["127.0.0.1:1"]', "")
    assert not gateway.reload(file)
    gateway.give(0)
    gateway.until_committed(0, 1)


def test_lag_counts_what_is_not_done(make: Make) -> None:
    gateway, _ = make(Gate())
    gateway.assign(0, 1)
    gateway.link.ends = {0: 7, 1: 3}
    gateway.give(0)
    assert gateway.call(gateway.spool.desk.figures)["kafka"]["lag"] == 10
