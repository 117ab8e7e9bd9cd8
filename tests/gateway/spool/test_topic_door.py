"""Requests that are accepted into a topic, and what is told of them; the cluster is the test's."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from fakes.gateway import Response
from fakes.kafka_link import FakeLink
from fakes.origin import Connection, Origin, answer
from fakes.origin import Received as Request
from fakes.spooled import Spooled

from gateway.connectors.kafka_link import Received
from gateway.spool import topic_door

CONF = """
[[listen]]
bind = "127.0.0.1:0"
[spool.kafka]
bootstrap = ["127.0.0.1:1"]
[upstream.api]
origin = "{origin}"
headers = {{ set = {{ X-Injected = {{ env = "INJECTED" }} }} }}
[upstream.api.spool]
[upstream.twin]
origin = "{origin}"
[upstream.twin.spool]
[[route]]
host = "api.test"
upstream = "api"
[[route]]
host = "twin.test"
upstream = "twin"
[[client]]
name = "other"
token = {{ env = "OTHER" }}
"""
AUTH = b"Authorization: Bearer secret-of-one\r\n"
OTHER = b"Proxy-Authorization: Bearer the-token-of-another\r\n"
KEY = b'Idempotency-Key: "one"\r\n'


class Doored(Spooled):
    """A gateway whose cluster is a `FakeLink`."""

    url = ""
    origin: Origin

    @property
    def link(self) -> FakeLink:
        found: FakeLink = self.spool.link
        return found

    def deliver(self, offset: int) -> dict[str, Any]:
        """What was offered comes as a record of partition 0, is sent, and its letter comes back."""
        offer = self.link.offered[offset]
        came = Received(0, offset, -1, offer["key"], offer["value"], tuple(offer["headers"]))
        before = len(self.link.letters)
        self.call(lambda: self.spool.received([came]))
        self.until(lambda: len(self.link.letters) > before)
        topic, letter = self.link.letters[-1]
        self.tell(topic, json.dumps(letter).encode(), offer["headers"])
        return letter

    def tell(self, topic: str, value: bytes, headers: list[tuple[str, bytes]]) -> None:
        """A record of a topic of outcomes."""
        self.call(lambda: self.link.came(topic, Received(0, 0, -1, None, value, tuple(headers))))


@pytest.fixture
def gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Doored]:
    monkeypatch.setattr("gateway.connectors.kafka_link.KafkaLink", FakeLink)
    monkeypatch.setenv("INJECTED", "the-injected-secret")
    monkeypatch.setenv("OTHER", "the-token-of-another")
    script = answer(b"201 Made", b"ok \xff", fields=b"X-Of: api\r\n")
    with Origin(script) as origin, Doored(CONF.format(origin=origin.url), tmp_path) as found:
        found.url, found.origin = origin.url, origin
        found.call(lambda: found.link.assign({0: (0, "")}))
        yield found


def test_a_request_is_a_record_and_its_outcome_is_told_to_its_client_only(gateway: Doored) -> None:
    accepted = gateway.post(fields=AUTH)
    assert (accepted.status, accepted.value(b"preference-applied")) == (202, b"respond-async")
    path = accepted.value(b"location")
    (offer,) = gateway.link.offered
    record = json.loads(offer["value"])
    assert (record["method"], record["url"]) == ("POST", gateway.url + "/a")
    assert (record["body"], record["headers"]["Authorization"]) == (
        "hello", ["Bearer secret-of-one"]
    )  # fmt: skip
    assert b"the-injected-secret" not in offer["value"]
    assert b"secret-of-one" not in offer["key"]
    assert len(offer["key"]) == 32
    identifier = path.rpartition(b"/")[2]
    ((_, mark),) = offer["headers"]
    assert mark not in identifier and identifier.partition(b"-")[0] not in offer["value"] + mark
    assert gateway.state(path)["state"] == "queued"
    assert gateway.ask(path + b"/response").status == 404
    gateway.deliver(0)
    told = gateway.state(path)
    assert (told["state"], told["last_status"], told["attempts"]) == ("done", 201, 0)
    given = gateway.ask(path + b"/response")
    assert (given.status, given.body, given.value(b"x-of")) == (201, b"ok \xff", b"api")
    assert given.values(b"date") and given.values(b"via")
    for asked in (path, path + b"/response"):
        assert gateway.ask(asked, OTHER).status == 404


def test_the_worker_that_sends_says_so(gateway: Doored) -> None:
    go_on = threading.Event()

    async def slow(connection: Connection, request: Request) -> bool:
        while not go_on.is_set():
            await trio.sleep(0.01)
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        return True

    gateway.origin.script = slow
    path = gateway.post().value(b"location")
    offer = gateway.link.offered[0]
    came = Received(0, 0, -1, offer["key"], offer["value"], tuple(offer["headers"]))
    gateway.call(lambda: gateway.spool.received([came]))
    gateway.until_state(path, "sending")
    go_on.set()
    gateway.until(lambda: bool(gateway.link.letters))
    gateway.until(lambda: not gateway.spool.accepted)


@pytest.mark.parametrize("wrong", [b"", b"x", b"-1-", b"0" * 32, b"0" * 32 + b"-1-" + b"0" * 16])
def test_what_is_no_id_is_not_there(gateway: Doored, wrong: bytes) -> None:
    assert gateway.ask(b"/.egressd/requests/" + wrong).status == 404


def test_a_changed_id_is_not_there(gateway: Doored) -> None:
    path = gateway.post().value(b"location")
    assert gateway.ask(path).status == 200
    digit = b"1" if path.endswith(b"0") else b"0"
    assert gateway.ask(path[:-1] + digit).status == 404


def test_a_dead_letter_has_its_reason(gateway: Doored) -> None:
    path = gateway.post().value(b"location")
    value = json.dumps({"outcome": "dead", "reason": "attempts", "attempts": 8}).encode()
    gateway.tell("egress-dead", value, gateway.link.offered[0]["headers"])
    told = gateway.state(path)
    assert (told["state"], told["reason"], told["attempts"]) == ("dead", "attempts", 8)
    assert gateway.ask(path + b"/response").status == 404


@pytest.mark.parametrize(
    "value",
    [
        b"{",
        b"[]",
        b"[" * 100_000,
        b"{}",
        b'{"outcome": "result"}',
        b'{"outcome": "result", "status": 99, "headers": [], "body": ""}',
        b'{"outcome": "result", "status": true, "headers": [], "body": ""}',
        b'{"outcome": "result", "status": 200, "headers": [["a", "b\\r\\nc: d"]], "body": ""}',
        b'{"outcome": "result", "status": 200, "headers": [["a"]], "body": ""}',
        b'{"outcome": "result", "status": 200, "headers": [], "body_base64": "~"}',
        b'{"outcome": "result", "status": 200, "headers": [], "body": 1}',
        b'{"outcome": "result", "status": 200, "headers": [], "body": "\\ud800"}',
    ],
)
def test_a_letter_that_is_none_is_said_to_be_unreadable(gateway: Doored, value: bytes) -> None:
    path = gateway.post().value(b"location")
    gateway.tell("egress-results", value, gateway.link.offered[0]["headers"])
    assert gateway.ask(path).status == 503
    assert gateway.server.worker.counts["kafka_outcomes_unreadable"] == 1


def test_the_same_key_is_the_same_acceptance(gateway: Doored) -> None:
    first = gateway.post(fields=KEY)
    second = gateway.post(fields=KEY)
    assert first.value(b"location") == second.value(b"location")
    assert len(gateway.link.offered) == 1
    assert json.loads(gateway.link.offered[0]["value"])["idempotency_key"] == '"one"'
    assert gateway.post(b"another", KEY).status == 422
    gateway.post()
    assert len(gateway.link.offered) == 2


def test_who_comes_meanwhile_waits_for_the_same_acknowledgement(gateway: Doored) -> None:
    gateway.link.acknowledges = False
    answers: list[Response] = []
    threads = [
        threading.Thread(target=lambda: answers.append(gateway.post(fields=KEY))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    gateway.until(lambda: gateway.spool.counts["known"] == 2)
    assert not answers
    gateway.call(gateway.link.acknowledge)
    for thread in threads:
        thread.join(10)
    assert [each.status for each in answers] == [202] * 3
    assert len({each.value(b"location") for each in answers}) == len(gateway.link.offered) == 1


def test_what_the_cluster_does_not_take_is_not_accepted(gateway: Doored) -> None:
    gateway.link.takes_offers = False
    refused = gateway.post(fields=KEY)
    assert (refused.status, refused.value(b"retry-after")) == (503, b"1")
    gateway.link.takes_offers = True
    assert gateway.post(fields=KEY).status == 202, "a refusal is not remembered"
    gateway.link.is_slow = True
    assert gateway.post().status == 503
    assert gateway.post(asks=False).status == 201, "live traffic is not concerned"
    assert gateway.spool.door.gathered_bytes == 0


def test_a_cluster_that_says_nothing_is_waited_for_so_long(
    gateway: Doored, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topic_door, "ACCEPT_SECONDS", 0.05)
    gateway.link.acknowledges = False
    refused = gateway.post()
    assert (refused.status, refused.value(b"retry-after")) == (503, b"1")
    assert gateway.link.offered[0]["withdrawn"]
    assert gateway.server.worker.counts["kafka_accepts_late"] == 1


def test_a_body_has_to_fit_into_a_record(gateway: Doored) -> None:
    assert gateway.post(b"x" * (1 << 20)).status == 413
    assert gateway.post(b"\xff" * 900_000).status == 413, "as base64 it is too long"
    gateway.link.letter_bytes_max = 1000
    assert gateway.post(b"x" * 1000).status == 413, "the topic takes less"
    assert gateway.post(b"\x00\xff").status == 202
    assert json.loads(gateway.link.offered[-1]["value"])["body_base64"] == "AP8="
    assert gateway.spool.door.gathered_bytes == 0


def test_so_much_is_on_its_way_and_no_more(
    gateway: Doored, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topic_door, "GATHERED_BYTES_MAX", 4)
    assert gateway.post(b"hello").status == 507
    assert gateway.post(b"four").status == 202
    assert gateway.spool.door.gathered_bytes == 0


def test_what_no_record_can_have_is_refused_at_once(gateway: Doored) -> None:
    assert gateway.post(fields=b"X-Name: \xff\r\n").status == 400
    assert gateway.post(fields=b"Idempotency-Key: \xc3\xa4\r\n").status == 400
    assert not gateway.link.offered


def test_an_upstream_that_records_do_not_find_takes_none(gateway: Doored) -> None:
    with gateway.client() as client:
        client.send(b"GET / HTTP/1.1\r\nHost: twin.test\r\nPrefer: respond-async\r\n\r\n")
        assert client.response().status == 503
    assert not gateway.link.offered
