"""Sending again: only as `retry` says, within its budget, and never what cannot be repeated."""

from __future__ import annotations

import json
import threading
import time
from contextlib import ExitStack

import pytest
import trio
from fakes.origin import Connection, Received, SilentOrigin, answer

from gateway.clock import SECOND

RETRY = 'wait = {{ max = "{wait}" }}\nretry = {{ on = {on}, attempts = {attempts}{more} }}\n'


def retry(on: str = "[503]", attempts: int = 3, wait: str = "5s", more: str = "") -> str:
    return RETRY.format(on=on, attempts=attempts, wait=wait, more=more)


def fails_first(times: int, status: bytes = b"503 Busy", fields: bytes = b""):
    seen = []

    async def script(connection: Connection, request: Received) -> bool | None:
        seen.append(request)
        if len(seen) <= times:
            return await answer(status, b"no", fields)(connection, request)
        return await answer()(connection, request)

    return script


def test_a_listed_status_is_tried_again(make) -> None:
    gateway, origin = make(fails_first(2), upstream=retry())
    with gateway.client() as client:
        response = client.get()
    assert response.status == 200
    assert len(origin.requests) == 3
    pool = gateway.upstream("api").pool
    # The refused responses were read to their end: no connection was thrown away.
    gateway.until(lambda: pool.idle_count == pool.open_count == origin.connections)
    assert gateway.call(lambda: gateway.upstream("api").counts.retried) == 2


def test_attempts_are_the_end(make) -> None:
    gateway, origin = make(fails_first(9), upstream=retry(attempts=2))
    with gateway.client() as client:
        response = client.get()
    assert response.status == 503
    assert response.body == b"no"
    assert len(origin.requests) == 2


def test_other_statuses_pass(make) -> None:
    gateway, origin = make(fails_first(9, b"500 Broken"), upstream=retry())
    with gateway.client() as client:
        assert client.get().status == 500
    assert len(origin.requests) == 1


def test_a_429_is_absorbed_within_the_deadline(make) -> None:
    gateway, origin = make(
        fails_first(1, b"429 Slow", b"Retry-After: 1\r\n"), upstream=retry("[429]", 2)
    )
    with gateway.client() as client:
        assert client.get().status == 200
    first, second = origin.requests
    assert second.at_ns - first.at_ns >= SECOND


def test_a_429_beyond_the_deadline_is_passed_on(make) -> None:
    gateway, origin = make(
        fails_first(1, b"429 Slow", b"Retry-After: 60\r\n"), upstream=retry("[429]", 2)
    )
    with gateway.client() as client:
        begun = time.monotonic()
        response = client.get()
        assert time.monotonic() - begun < 1
    assert response.status == 429
    assert response.value(b"retry-after") == b"60"
    assert response.body == b"no"
    assert len(origin.requests) == 1


@pytest.mark.parametrize(
    ("more", "fields", "sent"),
    [
        ("", b"", 1),
        (', methods = "all"', b"", 1),
        (', methods = "all"', b"Idempotency-Key: 1\r\n", 2),
    ],
)
def test_a_post_needs_an_idempotency_key(make, more: str, fields: bytes, sent: int) -> None:
    gateway, origin = make(fails_first(1), upstream=retry(more=more))
    with gateway.client() as client:
        client.send(
            b"POST / HTTP/1.1\r\nHost: api.test\r\nContent-Length: 5\r\n%s\r\nhello" % fields
        )
        assert client.response().status == (200 if sent == 2 else 503)
    assert [request.body for request in origin.requests] == [b"hello"] * sent


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_is_sent_again_whole(make, chunked: bool) -> None:
    gateway, origin = make(fails_first(1), upstream=retry())
    with gateway.client() as client:
        if chunked:
            framing, body = b"Transfer-Encoding: chunked", b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
        else:
            framing, body = b"Content-Length: 5", b"abcde"
        client.send(b"PUT / HTTP/1.1\r\nHost: api.test\r\n%s\r\n\r\n%s" % (framing, body))
        assert client.response().status == 200
    first, second = origin.requests
    assert first.body == second.body != b""


def test_a_body_that_is_too_long_is_not(make) -> None:
    gateway, origin = make(fails_first(1), upstream=retry(more=', body = "1KiB"'))
    with gateway.client() as client:
        client.send(b"PUT / HTTP/1.1\r\nHost: api.test\r\nContent-Length: 2000\r\n\r\n")
        client.send(bytes(2000))
        assert client.response().status == 503
    assert len(origin.requests) == 1


def test_the_budget_ends_a_storm(make) -> None:
    gateway, origin = make(
        fails_first(10**6),
        upstream=retry(attempts=2, more=", budget = 0.0") + "breaker = { failure_min = 999 }",
    )
    with gateway.client() as client:
        for _ in range(30):
            assert client.get().status == 503
    # The ten that are always there, and 0 % of 30.
    assert len(origin.requests) == 30 + 10


def test_a_reset_is_tried_again_where_listed(make) -> None:
    seen = []

    async def script(connection: Connection, request: Received) -> bool | None:
        seen.append(request)
        return False if len(seen) == 1 else await answer()(connection, request)

    gateway, origin = make(script, upstream=retry('["reset"]'))
    with gateway.client() as client:
        assert client.get().status == 200
    assert len(origin.requests) == 2


def test_each_send_takes_a_token(make) -> None:
    gateway, origin = make(
        fails_first(9),
        upstream='wait = { max = "0s" }\nretry = { on = [503], attempts = 9 }\n'
        '[[upstream.api.limit]]\nname = "l"\nrate = "3/min"\nburst = 3\n',
    )
    with gateway.client() as client:
        assert client.get().status == 503  # the upstream's own: no room for another send
        assert client.get().status == 429
    assert len(origin.requests) == 3


def test_the_upstreams_word_against_retrying_wins(make) -> None:
    gateway, origin = make(
        fails_first(1, b"503 Busy", b"x-should-retry: false\r\n"), upstream=retry()
    )
    with gateway.client() as client:
        assert client.get().status == 503
    assert len(origin.requests) == 1


def test_prefer_wait_shortens_the_wait(make) -> None:
    gateway, _ = make(
        upstream='wait = { max = "30s", prefer = true }\n'
        '[[upstream.api.limit]]\nname = "l"\nrate = "1/min"\nburst = 1\n'
    )
    with gateway.client() as client:
        assert client.get().status == 200
        begun = time.monotonic()
        assert client.get(fields=b"Prefer: respond-async, wait=0\r\n").status == 429
        assert time.monotonic() - begun < 1


def test_costs_that_the_response_tells_are_settled(make) -> None:
    gateway, origin = make(
        answer(fields=b"X-Tokens-Used: 40\r\n"),
        upstream='wait = { max = "0s" }\n[[upstream.api.limit]]\nname = "tokens"\n'
        'rate = "60/min"\nburst = 50\ncost = { response_header = "X-Tokens-Used" }\n',
    )
    with gateway.client() as client:
        assert client.get().status == 200  # reserved 1, cost 40
        response = client.get()
        assert response.status == 429  # the mean is 40 now, and 10 are left
        assert 28 <= int(response.value(b"retry-after")) <= 31
    assert len(origin.requests) == 1


POST = b"POST / HTTP/1.1\r\nHost: api.test\r\nIdempotency-Key: 1\r\nContent-Length: 5\r\n\r\nhello"


def test_no_client_sees_a_429_that_its_deadline_absorbs(make) -> None:
    """More than the budget's credit were under way: all wait through the pause, one goes first."""
    count = 24
    refused = []

    async def script(connection: Connection, request: Received) -> bool | None:
        if len(refused) < count:
            refused.append(request)
            while len(refused) < count:  # all are under way when the first is refused
                await trio.sleep(0.001)
            return await answer(b"429 Slow", b"no", b"Retry-After: 1\r\n")(connection, request)
        return await answer()(connection, request)

    gateway, origin = make(script, upstream=retry("[429]", 2, more=', methods = "all"'))
    with ExitStack() as stack:
        clients = [stack.enter_context(gateway.client()) for _ in range(count)]
        for i, client in enumerate(clients):
            get = b"%s / HTTP/1.1\r\nHost: api.test\r\n\r\n" % (b"HEAD" if i % 3 else b"GET")
            client.send(POST if i % 3 == 2 else get)
        for i, client in enumerate(clients):
            response = client.response(b"HEAD" if i % 3 == 1 else b"GET")
            assert response.status == 200
            assert response.body == (b"" if i % 3 == 1 else b"hello")
    assert len(origin.requests) == 2 * count
    again = origin.requests[count:]
    assert sorted(r.body for r in again) == sorted(r.body for r in origin.requests[:count])
    assert again[0].at_ns - max(r.at_ns for r in refused) >= SECOND
    counts = gateway.upstream("api").counts
    assert gateway.call(lambda: (counts.retried, counts.throttled, counts.trials)) == (24, 24, 1)
    assert gateway.call(lambda: counts.retry_credit) == 10.0


def test_a_trial_that_is_throttled_again_waits_again(make) -> None:
    gateway, origin = make(
        fails_first(2, b"429 Slow", b"Retry-After: 1\r\n"), upstream=retry("[429]", 3)
    )
    with gateway.client() as client:
        assert client.get().status == 200
    assert len(origin.requests) == 3
    assert gateway.call(lambda: gateway.upstream("api").counts.trials) == 2


def test_only_what_a_retry_could_replace_is_kept_back(make) -> None:
    """A 429 of a request that cannot be repeated streams: its head comes before its body ends."""
    gate = threading.Event()

    async def script(connection: Connection, request: Received) -> bool:
        await connection.send(b"HTTP/1.1 429 Slow\r\nRetry-After: 1\r\nContent-Length: 2\r\n\r\n")
        await trio.to_thread.run_sync(gate.wait)
        await connection.send(b"no")
        return True

    gateway, _ = make(script, upstream=retry("[429]", 2))
    with gateway.client() as client:
        client.send(POST)  # `methods` is "idempotent"
        assert client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 429 ")
        gate.set()
        assert client.read_exactly(2) == b"no"


def test_tls_that_never_comes_is_a_timeout(make) -> None:
    gateway, origin = make()
    more = 'timeout = { tls = "100ms" }\nbreaker = { failure = ["timeout"], failure_min = 3 }\n'
    with SilentOrigin() as silent:
        text = gateway.path.read_text().replace(origin.url, f"https://localhost:{silent.port}")
        text = text.replace("[[route]]", more + retry('["timeout"]') + "[[route]]")
        assert gateway.reload(text)
        with gateway.client() as client:
            response = client.get()
            assert response.status == 504
            assert response.value(b"proxy-status").endswith(b"error=connection_timeout")
            problem = json.loads(response.body)
            assert (problem["reason"], problem["attempts"]) == ("tls_timeout", 3)
            assert silent.connections == 3
            # Three of three failed: the breaker, which counts nothing else, is open.
            assert json.loads(client.get().body)["reason"] == "breaker_open"
