"""Records of a topic on a real broker, by a real gateway process, to an origin."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes.kafka import Broker, Read, kafka_missing
from fakes.nodes import NodeProcess, free_ports, until
from fakes.origin import Connection, Origin, Received

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(bool(kafka_missing()), reason=kafka_missing()),
]

CONF = """
[node]
name = "gw-1"
drain = "3s"
[[listen]]
bind = "127.0.0.1:{listen}"
[admin]
bind = "127.0.0.1:{admin}"
[log]
access = "off"
[spool.kafka]
bootstrap = ["{bootstrap}"]
[upstream.api]
origin = "{origin}"
[upstream.api.headers]
set = {{ X-Injected = {{ env = "INJECTED" }} }}
[upstream.api.spool]
attempts = 2
[upstream.plain]
origin = "http://plain.test"
[[route]]
host = "api.test"
upstream = "api"
[[client]]
name = "other"
token = {{ env = "OTHER" }}
"""
PARTITIONS = 4
INJECTED = "the-injected-secret"
OTHER = "the-token-of-another"
THROTTLE = b"HTTP/1.1 429 Slow\r\nRetry-After: 3\r\nContent-Length: 0\r\n\r\n"
PICTURE = bytes(range(256)) * 8


class Api:
    """Answers 200 and what it got; a credential can be throttled, once, for three seconds."""

    def __init__(self) -> None:
        self.throttled: set[bytes] = set()

    async def __call__(self, connection: Connection, request: Received) -> bool:
        credential = (request.values(b"authorization") or [b""])[0]
        if credential in self.throttled:
            self.throttled.discard(credential)
            await connection.send(THROTTLE)
            return True
        injected = request.values(b"x-injected")[0]
        body = PICTURE if request.target == b"/picture" else b"got %b" % request.body
        if request.target == b"/mirror":
            body = b"with %b and %b" % (credential, injected)
        head = b"HTTP/1.1 200 OK\r\nX-Saw: %b\r\nContent-Length: %d\r\n\r\n"
        await connection.send(head % (injected, len(body)) + body)
        return True


class Set:
    """A broker with its topics, an origin, and one gateway that has joined the group."""

    def __init__(self, broker: Broker, origin: Origin, api: Api, node: NodeProcess) -> None:
        self.broker = broker
        self.origin = origin
        self.api = api
        self.node = node

    def request(self, body: str, credential: str = "Bearer of-nobody", **more: Any) -> bytes:
        document = {
            "method": "POST",
            "url": self.origin.url + "/do",
            "headers": {"Authorization": credential},
            "body": body,
        }
        return json.dumps({**document, **more}).encode()

    def letters(self, topic: str, offsets: set[tuple[int, int]]) -> dict[tuple[int, int], Read]:
        """The letters about these places, once all are there."""
        found: dict[tuple[int, int], Read] = {}

        def there() -> bool:
            for each in self.broker.read(topic):
                place = json.loads(each.value or b"")["record"]
                if (place["partition"], place["offset"]) in offsets:
                    found[place["partition"], place["offset"]] = each
            return found.keys() == offsets

        until(there, 20, f"{topic} has them all")
        return found

    def admin(self, method: str, path: str, body: Any = None) -> tuple[int, dict[str, Any]]:
        """(status, document) of what the admin interface is asked."""
        url = f"http://127.0.0.1:{self.node.ports.admin}/api/v1/{path}"
        answer = httpx.request(method, url, json=body)
        return answer.status_code, answer.json()

    def figures(self) -> dict[str, Any]:
        """The node's own, of its spool."""
        found: dict[str, Any] = self.node.document()["spool"]
        return found


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Set]:
    folder: Path = tmp_path_factory.mktemp("kafka")
    api = Api()
    with Broker(folder) as broker, Origin(api) as origin:
        broker.make_topic("egress", PARTITIONS)
        broker.make_topic("egress-results")
        broker.make_topic("egress-dead")
        (ports,) = free_ports(1)
        text = CONF.format(
            listen=ports.listen, admin=ports.admin, bootstrap=broker.bootstrap, origin=origin.url
        )
        node = NodeProcess(
            "gw-1", folder, ports, text, environ={"INJECTED": INJECTED, "OTHER": OTHER}
        )
        node.start()
        node.wait_ready()
        try:
            yield Set(broker, origin, api, node)
        finally:
            node.close()


def test_records_become_results_with_all_that_identifies_them(running: Set) -> None:
    headers = [("trace", b"7"), ("empty", b""), ("x-api-key", b"not passed on")]
    places = running.broker.produce(
        "egress",
        [(b"key-%d" % i, running.request(f"hello {i}", id=f"job-{i}"), headers) for i in range(40)],
    )
    found = running.letters("egress-results", set(places))
    for number, place in enumerate(places):
        letter = found[place]
        value = json.loads(letter.value or b"")
        assert letter.key == b"key-%d" % number
        assert (value["status"], value["body"]) == (200, f"got hello {number}")
        assert (value["id"], value["upstream"], value["attempts"]) == (f"job-{number}", "api", 0)
        assert letter.headers == {
            "trace": b"7",
            "empty": b"",
            "egressd-topic": b"egress",
            "egressd-partition": b"%d" % place[0],
            "egressd-offset": b"%d" % place[1],
            "egressd-outcome": b"result",
            "egressd-status": b"200",
        }
    sent = [request for request in running.origin.requests if request.target == b"/do"]
    keys = {request.values(b"idempotency-key")[0] for request in sent}
    assert len(keys) == len(sent) == 40
    until(lambda: running.broker.lag("egressd", "egress") == 0, 10, "all is committed")


def test_no_secret_comes_back_in_a_letter(running: Set) -> None:
    credential = "Bearer the-credential-of-one"
    value = running.request("x", credential, url=running.origin.url + "/mirror")
    (place,) = running.broker.produce("egress", [(b"k", value)])
    letter = running.letters("egress-results", {place})[place]
    assert INJECTED.encode() not in (letter.value or b"")
    assert b"the-credential-of-one" not in (letter.value or b"")
    assert json.loads(letter.value or b"")["body"].startswith("with ***")
    assert INJECTED not in running.node.log_text()


def test_what_cannot_be_sent_is_a_dead_letter_and_stops_no_partition(running: Set) -> None:
    url = running.origin.url
    bad: dict[str, bytes | None] = {
        "bad_json": b"{nothing",
        "no_value": None,
        "missing_key": b"{}",
        "unknown_key": running.request("x", priority=3),
        "bad_headers": running.request("x", "Bearer\r\nX: y"),
        "no_upstream": running.request("x", url="http://elsewhere.test/"),
        "no_spool": running.request("x", url="http://plain.test/"),
        "expired": running.request("x", expires_at=1_700_000_000),
        "body_differs": json.dumps(
            {
                "method": "POST",
                "url": url,
                "body_from": {
                    "upstream": "api", "path": "/picture", "bytes": 2048, "sha256": "0" * 64
                },
            }
        ).encode(),
    }  # fmt: skip
    before = len(running.origin.requests)
    records = [(b"k", value) for value in bad.values()]
    places = running.broker.produce("egress", [*records, (b"k", running.request("after"))])
    running.letters("egress-results", {places[-1]})
    found = running.letters("egress-dead", set(places[:-1]))
    for reason, place in zip(bad, places, strict=False):
        value = json.loads(found[place].value or b"")
        assert (value["outcome"], value["reason"]) == ("dead", reason)
        assert found[place].headers["egressd-reason"] == reason.encode()
        assert found[place].key == b"k"
    sent = [request.target for request in running.origin.requests[before:]]
    assert sorted(sent) == [b"/do", b"/picture"], "nothing of the others was sent"
    assert running.figures()["dead"].keys() == bad.keys()
    until(lambda: running.broker.lag("egressd", "egress") == 0, 10, "all is committed")


def test_a_body_can_be_fetched(running: Set) -> None:
    wanted = {
        "upstream": "api",
        "path": "/picture",
        "bytes": len(PICTURE),
        "sha256": hashlib.sha256(PICTURE).hexdigest(),
    }
    value = {"method": "PUT", "url": running.origin.url + "/by-reference", "body_from": wanted}
    (place,) = running.broker.produce("egress", [(None, json.dumps(value).encode())])
    letter = running.letters("egress-results", {place})[place]
    assert json.loads(letter.value or b"")["method"] == "PUT"
    (request,) = [each for each in running.origin.requests if each.target == b"/by-reference"]
    assert request.body == PICTURE


def test_a_pause_holds_its_partition_until_the_told_time_and_no_other(running: Set) -> None:
    running.api.throttled.add(b"Bearer slow")
    before = len(running.origin.requests)
    slow = [(b"slow", running.request(f"slow {i}", "Bearer slow")) for i in range(3)]
    held = running.broker.produce("egress", slow, partition=1)
    until(lambda: running.figures()["kafka"]["partitions"]["paused"], 5, "the partition is held")
    fast = [(b"fast", running.request(f"fast {i}", "Bearer fast")) for i in range(20)]
    others = running.broker.produce("egress", fast, partition=2)
    running.letters("egress-results", set(others))
    listed = running.admin("GET", "spool")[1]["records"]
    assert {record["id"].rpartition(":")[0] for record in listed} <= {"egress:1"}
    running.letters("egress-results", set(held))
    seen: dict[bytes, list[int]] = {}
    for request in running.origin.requests[before:]:
        seen.setdefault(request.values(b"authorization")[0], []).append(request.at_ns)
    throttled_ns, *after = seen[b"Bearer slow"]
    # All but those that were under way when the throttle came.
    late = [at_ns for at_ns in after if at_ns - throttled_ns > 10**9]
    assert late
    assert min(late) - throttled_ns >= 2.95e9
    assert max(seen[b"Bearer fast"]) < min(late)
    until(lambda: not running.figures()["kafka"]["partitions"]["paused"], 5, "it is read again")


def test_what_an_operator_sees_and_may_do(running: Set) -> None:
    assert running.admin("PUT", "spool/upstreams/api", {"held": True})[0] == 200
    (place,) = running.broker.produce("egress", [(b"k", running.request("held"))], partition=3)
    name = f"egress:{place[0]}:{place[1]}"
    path = f"spool/records/{name}"
    until(lambda: running.admin("GET", path)[0] == 200, 5, "it is in hand")
    record = running.admin("GET", path)[1]
    assert (record["state"], record["upstream"], record["client"]) == ("queued", "api", "kafka")
    status, told = running.admin("POST", f"{path}/requeue", {})
    assert status == 409
    assert "the topic egress-dead" in told["detail"]
    assert running.admin("POST", f"{path}/drop", {})[0] == 200
    letter = running.letters("egress-dead", {place})[place]
    assert json.loads(letter.value or b"")["reason"] == "dropped"
    assert running.admin("PUT", "spool/upstreams/api", {"held": False})[0] == 200
    metrics = running.node.ask("/metrics")[1].decode()
    assert "egressd_kafka_up 1.0" in metrics
    assert "egressd_kafka_lag_records 0.0" in metrics
    assert 'egressd_spool_dead_total{reason="bad_json"} 1.0' in metrics


def accepts(running: Set, fields: dict[str, str], body: str = "from a client") -> httpx.Response:
    """A live request that would rather not wait."""
    url = f"http://127.0.0.1:{running.node.ports.listen}/do"
    told = {"Host": "api.test", "Prefer": "respond-async", "Authorization": "Bearer of-a-client"}
    return httpx.post(url, headers={**told, **fields}, content=body, timeout=20)


def test_a_request_is_accepted_into_the_topic_and_told_of(running: Set) -> None:
    accepted = accepts(running, {})
    assert (accepted.status_code, accepted.headers["preference-applied"]) == (202, "respond-async")
    base = f"http://127.0.0.1:{running.node.ports.listen}"
    path = accepted.headers["location"]
    until(lambda: httpx.get(base + path).json()["state"] == "done", 20, "it is done")
    told = httpx.get(base + path).json()
    assert (told["upstream"], told["last_status"]) == ("api", 200)
    given = httpx.get(base + path + "/response")
    assert (given.status_code, given.text) == (200, "got from a client")
    other = {"Proxy-Authorization": f"Bearer {OTHER}"}
    assert httpx.get(base + path, headers=other).status_code == 404
    assert httpx.get(base + path + "/response", headers=other).status_code == 404
    (record,) = [
        each for each in running.broker.read("egress") if b"a client" in (each.value or b"")
    ]
    assert INJECTED.encode() not in (record.value or b"")


def test_a_broker_that_says_nothing_gets_503_and_harms_no_live_request(running: Set) -> None:
    running.broker.stall()
    try:
        refused = accepts(running, {})
        assert refused.status_code == 503
        assert "retry-after" in refused.headers
        live = accepts(running, {"Prefer": "wait=1"}, "live")
        assert (live.status_code, live.text) == (200, "got live")
    finally:
        running.broker.go_on()
    until(lambda: accepts(running, {}).status_code == 202, 30, "it is accepted again")


def test_the_end_of_a_node_commits_what_is_done_and_the_next_one_tells_of_it(running: Set) -> None:
    path = accepts(running, {}, "before the restart").headers["location"]
    records = [(b"%d" % i, running.request("last")) for i in range(50)]
    running.letters("egress-results", set(running.broker.produce("egress", records)))
    base = f"http://127.0.0.1:{running.node.ports.listen}"
    until(lambda: httpx.get(base + path).json()["state"] == "done", 20, "it is done")
    assert running.node.terminate() == 0
    assert running.broker.lag("egressd", "egress") == 0
    running.node.start()
    running.node.wait_ready()
    until(lambda: httpx.get(base + path).json()["state"] == "done", 20, "it is known")
    assert httpx.get(base + path + "/response").text == "got before the restart"
