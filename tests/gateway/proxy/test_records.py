"""What is written down of each exchange on the live gateway, and by which names it is called."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from fakes.gateway import Gateway
from fakes.origin import Connection, Received, answer

from gateway.accesslog import json_line, text_line
from gateway.clock import MS
from gateway.proxy.graph import AccessRecord

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = b"00-" + TRACE.encode() + b"-00f067aa0ba902b7-01"


@pytest.fixture
def write_down(make):
    """As `make`, with records that stay in the ring; `sample` is `log.access_sample`."""

    def build(*args: Any, sample: float = 1.0, **more: Any) -> tuple[Gateway, Any]:
        gateway, origin = make(*args, **more)
        worker = gateway.server.worker

        def begin() -> None:
            runtime = worker.runtime
            worker.runtime = runtime._replace(access_log=True, access_sample=sample)

        gateway.call(begin)
        return gateway, origin

    return build


def records(gateway: Gateway, count: int) -> list[AccessRecord]:
    worker = gateway.server.worker
    gateway.until(lambda: len(worker.ring) >= count)
    found = gateway.call(lambda: list(worker.ring))
    assert len(found) == count
    return found


def lines(gateway: Gateway, count: int) -> list[dict[str, Any]]:
    prefix = gateway.server.worker.id_prefix.decode()
    return [json.loads(json_line(record, prefix)) for record in records(gateway, count)]


def test_trace_fields_go_on_untouched_and_the_trace_is_in_the_log(write_down) -> None:
    gateway, origin = write_down()
    sent = [
        b"TraceParent: " + TRACEPARENT,
        b"tracestate: a=1, b=2",
        b"tracestate: c=3",
        b"X-REQUEST-ID: from-the-client",
    ]
    with gateway.client() as client:
        response = client.get(fields=b"".join(line + b"\r\n" for line in sent))
    assert response.status == 200
    assert response.values(b"x-request-id") == []
    request = origin.next_request()
    assert [line for line in request.lines if line.lower()[:5] in (b"trace", b"x-req")] == sent
    (line,) = lines(gateway, 1)
    assert (line["trace_id"], line["request_id"]) == (TRACE, "from-the-client")


def test_what_the_upstream_says_of_ids_is_its_own_business(write_down) -> None:
    gateway, origin = write_down(answer(fields=b"X-Request-Id: theirs\r\n"))
    with gateway.client() as client:
        assert client.get().values(b"x-request-id") == [b"theirs"]
    assert origin.next_request().values(b"x-request-id") == []
    (line,) = lines(gateway, 1)
    assert line["request_id"] != "theirs"


def test_our_own_answer_and_the_log_call_a_request_the_same(write_down) -> None:
    gateway, _ = write_down()
    own = []
    with gateway.client() as client:
        for _ in range(2):
            own.append(client.get(host=b"nowhere.test").value(b"x-request-id").decode())
        fields = b"X-Request-Id: mine\r\n"
        told = client.get(host=b"nowhere.test", fields=fields).value(b"x-request-id")
        fields = b"X-Request-Id: not one word\r\n"
        own.append(client.get(host=b"nowhere.test", fields=fields).value(b"x-request-id").decode())
        client.send(b"GARBAGE\r\n\r\n")
        own.append(client.response().value(b"x-request-id").decode())
    assert told == b"mine"
    assert len(set(own)) == 4
    found = [line["request_id"] for line in lines(gateway, 5)]
    assert found == [own[0], own[1], "mine", own[2], own[3]]


def test_the_time_that_a_head_takes_is_told(write_down) -> None:
    gateway, _ = write_down()
    with gateway.client() as client:
        client.get()
        client.send(b"GET / HTTP/1.1\r\n")
        listener = next(iter(gateway.server.listeners))
        (connection,) = gateway.call(lambda: list(listener.connections))
        gateway.until(lambda: connection._head_ns)
        began = time.monotonic_ns()
        while time.monotonic_ns() < began + 20 * MS:
            gateway.call(lambda: None)
        client.send(b"Host: api.test\r\n\r\n")
        client.response()
        client.get()
    first, second, third = records(gateway, 3)
    assert (first.request_ns, third.request_ns) == (0, 0)
    assert 20 * MS <= second.request_ns < second.total_ns
    assert second.connect_ns >= 0
    assert second.response_ns >= 0


def test_what_it_did_not_come_to_is_told(write_down) -> None:
    limit = """
    wait = { max = "5s" }
    [[upstream.api.limit]]
    name = "account"
    rate = "20/s"
    burst = 1
    """
    gateway, _ = write_down(upstream=limit)
    with gateway.client() as client:
        assert client.get(host=b"nowhere.test").status == 404
        assert client.get().status == 200
        assert client.get().status == 200
    nowhere, first, waited = records(gateway, 3)
    assert (nowhere.connect_ns, nowhere.response_ns, nowhere.limit) == (-1, -1, "")
    assert (first.waited_ns, first.limit) == (0, "")
    assert waited.limit == "account"
    assert 0 < waited.waited_ns <= waited.total_ns
    text = text_line(nowhere, "p")
    assert text.split()[5].startswith("0/0/-1/-1/")
    assert text.endswith(" destination_not_found")


def test_a_sample_has_all_that_went_wrong(write_down) -> None:
    async def script(connection: Connection, request: Received) -> None:
        status = b"404 Not Found" if request.lines[0].startswith(b"GET /no") else b"200 OK"
        await connection.send(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n")

    gateway, _ = write_down(script, sample=0.25)
    chances = iter([0.2, 0.25, 0.9, 0.0])
    with gateway.client() as client:
        gateway.call(lambda: setattr(gateway.server.worker, "chance", lambda: next(chances)))
        for path in (b"/a", b"/b", b"/no", b"/c", b"/d"):
            client.get(path)
        client.get(host=b"nowhere.test")
    found = records(gateway, 4)
    assert [record.target for record in found] == [b"/a", b"/no", b"/d", b"/"]
    assert next(chances, None) is None
