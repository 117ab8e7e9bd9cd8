"""Messages through a whole gateway: what arrives at the origin and what comes back, in octets."""

from __future__ import annotations

from fakes.gateway import Client
from fakes.origin import Connection, Received


def test_a_request_passes(make) -> None:
    gateway, origin = make()
    with gateway.client() as client:
        response = client.get(b"/v1/x?a=%2F&b=+c")
    assert response.status == 200
    assert response.body == b"hello"
    request = origin.next_request()
    assert request.request_line == b"GET /v1/x?a=%2F&b=+c HTTP/1.1"
    assert request.values(b"host") == [f"localhost:{origin.port}".encode()]
    assert request.values(b"via") == [b"1.1 egressd-gw-test"]


def test_both_sides_keep_their_connections(make) -> None:
    gateway, origin = make()
    for _ in range(2):
        with gateway.client() as client:
            for _ in range(3):
                assert client.get().status == 200
    assert len(origin.requests) == 6
    assert origin.connections == 1
    assert gateway.call(lambda: gateway.upstream("api").pool.idle_count) == 1


def test_bodies_with_a_length_pass_both_ways(make) -> None:
    async def echo(connection: Connection, request: Received) -> None:
        await connection.send(
            b"HTTP/1.1 201 Created\r\nContent-Length: %d\r\n\r\n" % len(request.body) + request.body
        )

    gateway, origin = make(echo)
    body = bytes(range(256)) * 4096  # 1 MiB: far beyond every buffer on the way
    with gateway.client() as client:
        client.send(
            b"POST /up HTTP/1.1\r\nHost: api.test\r\nContent-Length: %d\r\n\r\n" % len(body)
        )
        client.send(body)
        response = client.response()
        assert response.status == 201
        assert response.body == body
        assert client.get(b"/next").status == 201
    assert origin.connections == 1


def test_chunked_bodies_pass_both_ways(make) -> None:
    async def script(connection: Connection, request: Received) -> None:
        await connection.send(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"3;ext=1\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n"
        )

    gateway, origin = make(script)
    with gateway.client() as client:
        client.send(
            b"POST / HTTP/1.1\r\nHost: api.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
        )
        client.send(b"6\r\n world\r\n0\r\n\r\n")
        response = client.response()
        assert response.body == b"abcdefg"
        assert response.values(b"transfer-encoding") == [b"chunked"]
        assert client.get().body == b"abcdefg"
    request = origin.next_request()
    assert request.values(b"transfer-encoding") == [b"chunked"]
    assert request.body == b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"


def test_http_1_0_clients_get_what_they_understand(make) -> None:
    async def script(connection: Connection, request: Received) -> None:
        await connection.send(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
        )

    gateway, origin = make(script)
    with gateway.client() as client:
        client.send(b"GET / HTTP/1.0\r\nHost: api.test\r\nConnection: keep-alive\r\n\r\n")
        response = client.response()
        assert response.body == b"abc"
        assert response.values(b"transfer-encoding") == []
        assert response.value(b"connection") == b"close"
        assert client.closed()
    assert origin.next_request().request_line == b"GET / HTTP/1.1"


def test_pipelined_requests_are_answered_in_order(make) -> None:
    async def script(connection: Connection, request: Received) -> None:
        body = request.target
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    gateway, _ = make(script)
    with gateway.client() as client:
        client.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: api.test\r\n\r\n" % n for n in range(20)))
        assert [client.response().body for _ in range(20)] == [b"/%d" % n for n in range(20)]


def test_a_pipeline_of_refusals_does_not_nest(make) -> None:
    gateway, _ = make()
    with gateway.client() as client:
        client.send(b"GET / HTTP/1.1\r\nHost: nowhere\r\n\r\n" * 1500)
        assert {client.response().status for _ in range(1500)} == {404}


def test_routes_strip_their_prefix_and_match_whole_segments(make) -> None:
    gateway, origin = make(more='[[route]]\npath = "/api/"\nstrip = "/api"\nupstream = "api"\n')
    with gateway.client() as client:
        for sent, wanted in ((b"/api/v1?x", b"/v1?x"), (b"/api", b"/"), (b"/api?q=1", b"/?q=1")):
            assert client.get(sent, host=b"gw").status == 200
            assert origin.next_request().target == wanted
        assert client.get(b"/apiary", host=b"gw").status == 404


def test_a_large_response_waits_for_a_slow_reader(make) -> None:
    size = 16 << 20  # far more than the sockets between hold

    async def script(connection: Connection, request: Received) -> None:
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        piece = bytes(1 << 20)
        for _ in range(16):
            await connection.send(piece)

    gateway, _ = make(script)
    with gateway.client() as client:
        client.send(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
        client.read_until(b"\r\n\r\n")
        gateway.until(lambda: gateway.connections()[0].write_blocked)
        # What the transport may hold at its high-water mark, and one read more.
        assert 0 < gateway.call(_held_octets(gateway)) <= 64 * 1024 + 64 * 1024
        for _ in range(16):
            assert len(client.read_exactly(1 << 20)) == 1 << 20


def _held_octets(gateway):
    def look() -> int:
        return sum(c.transport.get_write_buffer_size() for c in gateway.connections())

    return look


def test_request_framing_is_the_gateways_own(make) -> None:
    """RFC 9112 section 6.1: no message reaches the origin with two framings."""
    gateway, origin = make()
    with gateway.client() as client:
        client.send(
            b"POST / HTTP/1.1\r\nHost: api.test\r\nContent-Length: 4\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        )
        assert client.response().status == 400
        assert client.closed()
    assert origin.requests == []


def test_two_clients_do_not_share_an_answer(make) -> None:
    async def script(connection: Connection, request: Received) -> None:
        body = request.values(b"x-who")[0] * 3000
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    gateway, _ = make(script)
    clients = [Client(gateway.address) for _ in range(8)]
    for number, client in enumerate(clients):
        client.send(b"GET / HTTP/1.1\r\nHost: api.test\r\nX-Who: %d\r\n\r\n" % number)
    for number, client in enumerate(clients):
        assert client.response().body == b"%d" % number * 3000
        client.sock.close()
