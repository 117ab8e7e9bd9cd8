"""What a reload does to `[forward]` targets: pauses, held requests, busy connections, counts."""

from __future__ import annotations

import json

import pytest
from fakes.origin import Connection, Received, answer

# What waits for time, or is long, is run on the reference drivers by `make test-slow` only.
FAST_FIRST = pytest.mark.parametrize(
    "drivers",
    [("httptools", "uvloop"), pytest.param(("h11", "asyncio"), marks=pytest.mark.slow)],
    ids=["fast", "reference"],
    indirect=True,
)


async def slows_down(connection: Connection, request: Received) -> bool | None:
    """/slow is refused for a second; anything else is answered."""
    if request.target == b"/slow":
        return await answer(b"429 Slow", fields=b"Retry-After: 1\r\n")(connection, request)
    return await answer()(connection, request)


def forward(port: int, more: str = "deny_private = false") -> str:
    return f'\n[forward]\nallow = ["127.0.0.1:{port}"]\n{more}\n'


def request(port: int, path: bytes) -> bytes:
    return b"GET http://127.0.0.1:%d%s HTTP/1.1\r\nHost: y\r\n\r\n" % (port, path)


@pytest.fixture
def paused(make):
    """(gateway, origin, the file without [forward]): the target is paused for a second."""
    # The route's upstream is elsewhere: by_origin would find it before [forward] does.
    gateway, origin = make(slows_down)
    base = gateway.path.read_text().replace(f":{origin.port}", ":1")
    assert gateway.reload(base + forward(origin.port))
    with gateway.client() as client:
        client.send(request(origin.port, b"/slow"))
        assert client.response().status == 429
    return gateway, origin, base


@FAST_FIRST
def test_a_held_request_goes_on_where_its_target_is_still_allowed(paused) -> None:
    gateway, origin, base = paused
    with gateway.client() as held:
        held.send(request(origin.port, b"/held"))
        gateway.until(lambda: gateway.server.worker.waitroom.waiting_count == 1)
        before_ns = origin.requests[0].at_ns
        assert gateway.reload(base + forward(origin.port, "deny_private = false\nconnect_ports=[]"))
        # The pause outlives the reload, as an upstream's does.
        assert gateway.call(lambda: gateway.server.worker.waitroom.waiting_count) == 1
        assert held.response().status == 200
        assert origin.requests[-1].at_ns - before_ns >= 1_000_000_000


def test_a_held_request_is_refused_where_its_target_is_not(paused) -> None:
    gateway, origin, base = paused
    with gateway.client() as held:
        held.send(request(origin.port, b"/held"))
        gateway.until(lambda: gateway.server.worker.waitroom.waiting_count == 1)
        assert gateway.reload(base + forward(1))
        response = held.response()
        assert response.status == 403
        assert json.loads(response.body)["reason"] == "target_denied"
        assert held.get().status == 502  # nobody listens at port 1; the connection goes on
    assert [one.target for one in origin.requests] == [b"/slow"]


def test_a_new_rule_for_addresses_holds_for_held_requests(paused) -> None:
    """The connection that would be reused was made under the old rule."""
    gateway, origin, base = paused
    with gateway.client() as held:
        held.send(request(origin.port, b"/held"))
        gateway.until(lambda: gateway.server.worker.waitroom.waiting_count == 1)
        assert gateway.reload(base + forward(origin.port, "deny_private = true"))
        response = held.response()
        assert response.status == 403
        assert json.loads(response.body)["reason"] == "address_denied"
    counts = gateway.call(lambda: dict(gateway.server.worker.counts))
    assert counts["addresses_denied_loopback"] == 1


def test_a_held_request_may_become_an_upstreams(paused) -> None:
    gateway, origin, base = paused
    with gateway.client() as held:
        held.send(request(origin.port, b"/held"))
        gateway.until(lambda: gateway.server.worker.waitroom.waiting_count == 1)
        assert gateway.reload(
            base + f'\n[upstream.own]\norigin = "http://127.0.0.1:{origin.port}"\n'
        )
        assert held.response().status == 200
    assert gateway.call(lambda: gateway.upstream("own").counts.admitted) == 1


def test_a_held_request_may_not_become_an_upstreams_that_its_client_may_not_use(paused) -> None:
    gateway, origin, base = paused
    with gateway.client() as held:
        held.send(request(origin.port, b"/held"))
        gateway.until(lambda: gateway.server.worker.waitroom.waiting_count == 1)
        client = next(iter(gateway.call(gateway.connections)))
        # As one that a [[client]] table binds to another upstream.
        exchange = gateway.call(lambda: client.exchange)
        bound = exchange.client._replace(upstreams=frozenset(("api",)))
        gateway.call(lambda: setattr(exchange, "client", bound))
        assert gateway.reload(
            base + f'\n[upstream.own]\norigin = "http://127.0.0.1:{origin.port}"\n'
        )
        assert json.loads(held.response().body)["reason"] == "client_denied"


@pytest.mark.parametrize("kind", ["upstream", "forward"])
def test_what_a_reload_retires_while_busy_ends_with_the_worker(make, kind: str) -> None:
    """Its answer may go on for long; it must not go on behind the worker's back."""

    async def endless(connection: Connection, request: Received) -> bool:
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello")
        return await connection.more()

    gateway, origin = make(endless)
    base = gateway.path.read_text()
    elsewhere = base.replace(f":{origin.port}", ":1")
    if kind == "forward":
        assert gateway.reload(elsewhere + forward(origin.port))
    with gateway.client() as client:
        if kind == "forward":
            client.send(request(origin.port, b"/"))
        else:
            client.send(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
        client.read_until(b"hello")
        assert gateway.reload(elsewhere)
        assembly = gateway.server.assembly
        busy = gateway.call(lambda: [p for p in assembly.registry.all_pools() if p.open_count])
        assert len(busy) == 1
        gateway.call(lambda: gateway.loop.create_task(assembly.abort()))
        client.read_to_end()  # cut, visibly: there were to be a hundred octets
        gateway.until(lambda: not busy[0].open_count)
    # What has come to rest is not kept for ever.
    assert gateway.reload(base)
    assert gateway.reload(elsewhere)
    assert gateway.call(lambda: busy[0] not in assembly.registry.all_pools())
