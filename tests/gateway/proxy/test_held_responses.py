"""Responses that are judged by their bodies: kept back, obeyed, passed on octet for octet."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest
import trio
from fakes.origin import Connection, Received, answer

from gateway.breaker.signals import BODY_BYTES_MAX
from gateway.clock import SECOND

SECONDARY = b'{"message": "You have exceeded a secondary rate limit. Please wait."}'
DISCORD = b'{"message": "You are being rate limited.", "retry_after": 7.5, "global": false}'
SHOPIFY = json.dumps(
    {
        "errors": [{"message": "Throttled", "extensions": {"code": "THROTTLED"}}],
        "extensions": {
            "cost": {
                "requestedQueryCost": 202,
                "throttleStatus": {
                    "maximumAvailable": 1000.0,
                    "currentlyAvailable": 102,
                    "restoreRate": 50.0,
                },
            }
        },
    }
).encode()


def provider(name: str, more: str = "") -> str:
    return f'provider = "{name}"\nwait = {{ max = "0s" }}\n{more}'


def pause_seconds(gateway: Any) -> float:
    """What is left of the upstream's pause; 0.0 where it is not paused."""

    def look() -> int:
        breaker = gateway.upstream("api").breakers.own
        now_ns: int = gateway.server.worker.now_ns()
        return int(breaker.until_ns - now_ns) if breaker.until_ns else 0

    return float(gateway.call(look)) / SECOND


def counted(gateway: Any) -> dict[str, int]:
    """How many bodies were not waited for, by reason."""
    counts = gateway.call(lambda: dict(gateway.server.worker.counts))
    return {name: count for name, count in counts.items() if name.startswith("signal_bodies_")}


def in_pieces(status: bytes, pieces: list[bytes], fields: bytes = b"", end: bytes = b"0\r\n\r\n"):
    """A chunked answer; an empty `end` leaves it open until the connection is closed."""

    async def script(connection: Connection, request: Received) -> bool:
        head = b"HTTP/1.1 %s\r\nTransfer-Encoding: chunked\r\n%s\r\n" % (status, fields)
        await connection.send(head)
        for piece in pieces:
            await trio.sleep(0.01)
            await connection.send(b"%x\r\n%s\r\n" % (len(piece), piece))
        if not end:
            await connection.more()
            return False
        await connection.send(end)
        return True

    return script


@pytest.mark.parametrize(
    ("name", "status", "body", "low", "high"),
    [
        ("github", b"403 Forbidden", SECONDARY, 58, 61),  # no time told: a minute, as documented
        ("discord", b"429 Slow", DISCORD, 6.5, 8.3),  # finer than any field
        ("shopify", b"200 OK", SHOPIFY, 1.5, 2.3),  # (202 - 102) / 50 s
    ],
)
@pytest.mark.parametrize("chunked", [False, True])
def test_a_throttle_in_the_body_pauses(
    make, name: str, status: bytes, body: bytes, low: float, high: float, chunked: bool
) -> None:
    pieces = [body[:20], body[20:]]
    script = in_pieces(status, pieces) if chunked else answer(status, body)
    gateway, origin = make(script, upstream=provider(name))
    with gateway.client() as client:
        response = client.get()
        assert response.status == int(status[:3])
        assert response.body == body
        assert low <= pause_seconds(gateway) <= high
        assert client.get().status == 429
    assert len(origin.requests) == 1
    assert counted(gateway) == {}


@pytest.mark.parametrize(
    ("name", "status", "body"),
    [
        ("github", b"403 Forbidden", b'{"message": "Resource not accessible"}'),
        ("shopify", b"200 OK", b'{"data": {"shop": {"name": "A"}}}'),
        ("shopify", b"200 OK", b""),
    ],
)
def test_what_is_no_throttle_passes(make, name: str, status: bytes, body: bytes) -> None:
    gateway, origin = make(answer(status, body), upstream=provider(name))
    with gateway.client() as client:
        for _ in range(3):
            assert client.get().body == body
    assert pause_seconds(gateway) == 0.0
    assert origin.connections == 1


def test_a_compressed_body_is_read(make) -> None:
    body = gzip.compress(SECONDARY)
    script = answer(b"403 Forbidden", body, b"Content-Encoding: gzip\r\n")
    gateway, _ = make(script, upstream=provider("github"))
    with gateway.client() as client:
        assert client.get().body == body
    assert pause_seconds(gateway) > 50
    assert counted(gateway) == {}


def test_a_coding_that_cannot_be_read_is_counted(make) -> None:
    script = answer(b"429 Slow", b"\x8b\x00", b"Content-Encoding: br\r\nRetry-After: 30\r\n")
    gateway, _ = make(script, upstream=provider("discord"))
    with gateway.client() as client:
        assert client.get().body == b"\x8b\x00"
    assert pause_seconds(gateway) > 25  # the fields say enough
    assert counted(gateway) == {"signal_bodies_coded": 1}


def test_a_body_that_does_not_come_holds_nothing_up(make) -> None:
    script = in_pieces(b"429 Slow", [DISCORD[:20]], b"Retry-After: 30\r\n", end=b"")
    gateway, _ = make(script, upstream=provider("discord"))
    with gateway.client() as client:
        client.send(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
        head = client.read_until(b"\r\n\r\n")  # it waits ten seconds at most
        assert head.startswith(b"HTTP/1.1 429 ")
        assert client.read_until(DISCORD[:20])
    assert pause_seconds(gateway) > 25
    assert counted(gateway) == {"signal_bodies_slow": 1}


@pytest.mark.parametrize(("name", "status"), [("shopify", b"200 OK"), ("github", b"403 No")])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_long_body_streams(make, name: str, status: bytes, chunked: bool) -> None:
    body = bytes(range(256)) * (BODY_BYTES_MAX // 256 + 40)
    pieces = [body[i : i + 5000] for i in range(0, len(body), 5000)]
    script = in_pieces(status, pieces) if chunked else answer(status, body)
    gateway, _ = make(script, upstream=provider(name))
    with gateway.client() as client:
        assert client.get().body == body
        assert client.get().body == body
    assert pause_seconds(gateway) == 0.0
    assert counted(gateway) == {"signal_bodies_long": 2}


def test_a_body_that_breaks_off_is_passed_on_as_far_as_it_goes(make) -> None:
    async def script(connection: Connection, request: Received) -> bool:
        head = b"HTTP/1.1 403 No\r\nContent-Length: 500\r\n\r\n"
        await connection.send(head + SECONDARY)
        return False

    gateway, _ = make(script, upstream=provider("github"))
    with gateway.client() as client:
        client.send(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
        octets = client.read_to_end()  # Content-Length tells the client that more was to come
    head, _, body = octets.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 403 ")
    assert body == SECONDARY
    assert pause_seconds(gateway) > 50


def test_a_client_that_leaves_does_not_undo_the_pause(make) -> None:
    script = in_pieces(b"429 Slow", [DISCORD], b"Retry-After: 30\r\n", end=b"")
    gateway, origin = make(script, upstream=provider("discord"))
    with gateway.client() as client:
        client.send(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
        origin.next_request()
        gateway.until(lambda: any(c.exchange._held for c in gateway.connections() if c.exchange))
    gateway.until(lambda: gateway.upstream("api").breakers.active == 1)


def test_a_head_has_no_body_to_wait_for(make) -> None:
    gateway, _ = make(answer(b"429 Slow", DISCORD), upstream=provider("discord"))
    with gateway.client() as client:
        client.send(b"HEAD / HTTP/1.1\r\nHost: api.test\r\n\r\n")
        assert client.response(b"HEAD").status == 429
    assert pause_seconds(gateway) > 0
    assert counted(gateway) == {}


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(
    ("name", "status", "body"),
    [("discord", b"429 Slow", DISCORD.replace(b"7.5", b"0.2")), ("shopify", b"200 OK", SHOPIFY)],
)
def test_a_throttle_told_in_the_body_is_absorbed(
    make, name: str, status: bytes, body: bytes, chunked: bool
) -> None:
    """Whatever status it came with: the request goes again when the body's time has passed."""
    seen: list[Received] = []

    async def script(connection: Connection, request: Received) -> bool | None:
        seen.append(request)
        if len(seen) == 1:
            sent = in_pieces(status, [body]) if chunked else answer(status, body)
            return await sent(connection, request)
        return await answer()(connection, request)

    more = "retry = { on = [429] }\n"
    text = provider(name, more).replace('"0s"', '"5s"')
    gateway, origin = make(script, upstream=text)
    with gateway.client() as client:
        assert client.get().body == b"hello"
    assert len(origin.requests) == 2
    pool = gateway.upstream("api").pool
    # The response was read to its end, so its connection is one that can be used again.
    gateway.until(lambda: pool.idle_count == pool.open_count == origin.connections)


def test_other_providers_wait_for_no_body(make) -> None:
    script = in_pieces(b"429 Slow", [b"late"], b"Retry-After: 30\r\n", end=b"")
    gateway, _ = make(script, upstream=provider("generic"))
    with gateway.client() as client:
        client.send(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
        client.read_until(b"\r\n\r\n")
    assert counted(gateway) == {}


def test_an_api_at_a_host_of_ones_own_is_recognised(make) -> None:
    """Its first answer has the name of a field that only GitHub sends."""
    script = answer(b"403 Forbidden", SECONDARY, b"X-GitHub-Request-Id: 1:2\r\n")
    gateway, _ = make(script, upstream=provider("auto"))
    with gateway.client() as client:
        assert client.get().body == SECONDARY
    assert pause_seconds(gateway) > 50
    assert gateway.call(lambda: gateway.upstream("api").profile.name) == "github"


def test_a_success_makes_it_known_that_successes_are_to_be_read(make) -> None:
    seen: list[Received] = []

    async def script(connection: Connection, request: Received) -> bool | None:
        seen.append(request)
        body = b"{}" if len(seen) == 1 else SHOPIFY
        return await answer(body=body, fields=b"X-ShopId: 7\r\n")(connection, request)

    gateway, _ = make(script, upstream=provider("auto"))
    with gateway.client() as client:
        assert client.get().body == b"{}"
        assert client.get().body == SHOPIFY
    assert pause_seconds(gateway) > 1


def test_an_unknown_api_is_held_at_what_any_api_is(make) -> None:
    script = in_pieces(b"429 Slow", [b"late"], b"Retry-After: 30\r\n", end=b"")
    gateway, _ = make(script, upstream=provider("auto"))
    with gateway.client() as client:
        client.send(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
        client.read_until(b"\r\n\r\n")
    assert counted(gateway) == {}
    assert gateway.call(lambda: gateway.upstream("api").profile.recognises)
