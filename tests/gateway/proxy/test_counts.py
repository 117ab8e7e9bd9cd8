"""What the data path counts, for metrics: by source, by reason, and on over a reload."""

from __future__ import annotations

from typing import Any

import pytest
from fakes.origin import Connection, Received, answer

from gateway.admin.tallies import tallies

DISCORD = b'{"message": "You are being rate limited.", "retry_after": 7.5, "global": false}'


def shown(gateway: Any) -> dict[str, Any]:
    found: dict[str, Any] = gateway.call(
        lambda: tallies(gateway.upstream("api"), gateway.server.worker.now_ns())
    )
    return found


@pytest.mark.parametrize(
    ("provider", "status", "fields", "body", "source"),
    [
        ("auto", b"429 Slow", b"Retry-After: 9\r\n", b"", "status"),
        ("auto", b"503 Busy", b"Retry-After: 9\r\n", b"", "status"),
        ("github", b"403 No", b"X-RateLimit-Remaining: 0\r\nRetry-After: 9\r\n", b"{}", "provider"),
        ("github", b"403 No", b"", b'{"message": "a secondary rate limit"}', "body"),
    ],
)
def test_throttles_are_counted_by_what_told_of_them(
    make, provider: str, status: bytes, fields: bytes, body: bytes, source: str
) -> None:
    gateway, _ = make(
        answer(status, body, fields), upstream=f'provider = "{provider}"\nwait = {{ max = "0s" }}'
    )
    with gateway.client() as client:
        assert client.get().status == int(status[:3])
        assert client.get().status == 429  # said by the gateway, which has paused
    assert shown(gateway)["throttles"] == {source: 1}
    assert shown(gateway)["transitions"] == {"upstream": {"paused": 1}}
    assert shown(gateway)["pause_s"]["upstream"] > 0


def test_what_clients_got_is_counted_and_timed(make) -> None:
    async def script(connection: Connection, request: Received) -> None:
        status = b"404 Not Found" if request.lines[0].startswith(b"GET /no") else b"200 OK"
        await connection.send(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n")

    limit = 'wait = { max = "0s" }\nlimit = [{ name = "l", rate = "3/h", burst = 3 }]'
    gateway, _ = make(script, limit)
    with gateway.client() as client:
        for path in (b"/a", b"/no", b"/b", b"/c"):
            client.get(path)
        client.get(host=b"nowhere.test")  # of no upstream
    found = shown(gateway)
    assert found["answers"] == {"none": 0, "1xx": 0, "2xx": 2, "3xx": 0, "4xx": 2, "5xx": 0}
    assert found["durations"]["exchange"]["buckets"]["+Inf"] == 4
    assert found["durations"]["head"]["buckets"]["+Inf"] == 3
    assert found["durations"]["wait"]["buckets"]["+Inf"] == 0
    assert found["decisions"] == {"l": {"admitted": 3, "waited": 0, "refused": 1, "dry": 0}}
    assert found["dials"] == {"made": 1, "failed": 0, "spared": 2}


def test_waits_are_timed_whatever_came_of_them(make) -> None:
    limit = 'wait = { max = "400ms" }\nlimit = [{ name = "l", rate = "10/s", burst = 1 }]'
    gateway, _ = make(upstream=limit)
    with gateway.client() as client:
        statuses = [client.get().status for _ in range(3)]
    assert statuses == [200, 200, 200]
    found = shown(gateway)
    assert found["decisions"]["l"] == {"admitted": 1, "waited": 2, "refused": 0, "dry": 0}
    waits = found["durations"]["wait"]
    assert waits["buckets"]["+Inf"] == 2
    assert 0.1 < waits["sum_s"] < 0.8


def test_retries_are_counted_by_what_went_before(make) -> None:
    statuses = iter([b"503 Busy", b"502 Bad", b"200 OK"])

    async def script(connection: Connection, request: Received) -> None:
        head = b"HTTP/1.1 " + next(statuses) + b"\r\nContent-Length: 0\r\n\r\n"
        await connection.send(head)

    gateway, _ = make(script, "retry = { on = [502, 503], attempts = 3 }")
    with gateway.client() as client:
        assert client.get().status == 200
    assert shown(gateway)["retries"] == {"503": 1, "502": 1}
    assert shown(gateway)["answers"]["2xx"] == 1


def test_what_limits_decided_counts_on_over_a_reload(make) -> None:
    limit = 'wait = { max = "0s" }\nlimit = [{ name = "l", rate = "2/h", burst = 2 }]'
    gateway, _ = make(upstream=limit)
    with gateway.client() as client:
        for _ in range(3):
            client.get()
        text = gateway.path.read_text()
        more = text.replace("limit = [{", 'limit = [{ name = "new", rate = "99/s" }, {')
        assert gateway.reload(more)
        client.get()
        found = shown(gateway)["decisions"]
    assert found["l"] == {"admitted": 2, "waited": 0, "refused": 2, "dry": 0}
    assert found["new"]["admitted"] == 0
    held_up = gateway.call(lambda: list(gateway.upstream("api").limit_set.refused))
    assert held_up == [0, 2]


def test_failed_dials_are_counted(make) -> None:
    gateway, _ = make(upstream='addresses = ["127.0.0.1:1"]')  # tcpmux: nobody has it
    with gateway.client() as client:
        assert client.get().status == 502
    assert shown(gateway)["dials"]["failed"] == 1
