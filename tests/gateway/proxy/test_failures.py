"""What goes wrong, on either side: a clear answer, nothing leaked, and counted."""

from __future__ import annotations

import json
import socket
import ssl

import pytest
import trustme
from fakes.gateway import Client
from fakes.origin import Connection, Received, answer


def nothing_is_held(gateway) -> None:
    """After all clients have gone: no connection, slot, waiter or dial is left."""
    upstream = gateway.upstream("api")
    slots = upstream.slots.limit

    def at_rest() -> bool:
        pool = upstream.pool
        return (
            not gateway.connections()
            and not gateway.server.worker.waitroom.waiting_count
            and not pool.dialling_count
            and pool.open_count == pool.idle_count
            and all(row.used == 0 for row in slots)
        )

    gateway.until(at_rest)


@pytest.mark.parametrize(
    ("octets", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\nHost: a\n\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64), 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 40_000 + b"\r\n\r\n", 431),
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
    ],
)
def test_a_malformed_request_is_refused_and_closed(make, octets: bytes, status: int) -> None:
    gateway, origin = make()
    with gateway.client() as client:
        client.send(octets)
        response = client.response()
        assert response.status == status
        assert response.value(b"connection") == b"close"
        assert response.value(b"content-type") == b"application/problem+json"
        assert json.loads(response.body)["said_by"] == "gateway"
        assert client.closed()
    with gateway.client() as client:
        assert client.get().status == 200
    assert len(origin.requests) == 1
    nothing_is_held(gateway)


def test_an_unknown_route_is_404_and_the_connection_goes_on(make) -> None:
    gateway, _ = make()
    with gateway.client() as client:
        response = client.get(host=b"other.test")
        assert response.status == 404
        assert b"error=destination_not_found" in response.value(b"proxy-status")
        assert response.value(b"cache-control") == b"no-store"
        assert client.get().status == 200


def test_a_refused_request_with_a_small_body_keeps_its_connection(make) -> None:
    gateway, _ = make()
    with gateway.client() as client:
        client.send(b"POST / HTTP/1.1\r\nHost: other\r\nContent-Length: 5\r\n\r\n")
        assert client.response().status == 404
        client.send(b"hello")
        assert client.get().status == 200


def test_a_refused_request_with_a_large_body_is_closed(make) -> None:
    gateway, _ = make()
    with gateway.client() as client:
        client.send(
            b"POST / HTTP/1.1\r\nHost: other\r\nContent-Length: 9999999\r\n\r\n" + b"x" * 999
        )
        assert client.response().status == 404
        assert client.closed()
    nothing_is_held(gateway)


def test_an_unreachable_upstream_is_502_with_its_reason(make) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        gateway, _ = make(
            more=f'[upstream.gone]\norigin = "http://127.0.0.1:{port}"\n'
            '[[route]]\nhost = "gone.test"\nupstream = "gone"\n'
        )
        with gateway.client() as client:
            response = client.get(host=b"gone.test")
            assert response.status == 502
            assert b"error=connection_refused" in response.value(b"proxy-status")
            problem = json.loads(response.body)
            assert problem["upstream"] == "gone"
            assert f"127.0.0.1:{port}" in problem["detail"]
            assert client.get().status == 200


def test_a_name_that_does_not_resolve_is_502(make) -> None:
    gateway, _ = make(
        more='[upstream.gone]\norigin = "http://nowhere.invalid"\n'
        '[[route]]\nhost = "gone.test"\nupstream = "gone"\n'
    )
    with gateway.client() as client:
        response = client.get(host=b"gone.test")
        assert response.status in (502, 504)
        assert b"error=dns_" in response.value(b"proxy-status")


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (b"", b"connection_terminated"),
        (b"HTTP/1.1 200 OK\r\nContent-Le", b"http_response_incomplete"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", b"http_protocol_error"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            b"http_protocol_error",
        ),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 80_000, b"http_response_header_section_size"),
    ],
)
def test_a_response_that_is_none_is_502(make, sent: bytes, error: bytes) -> None:
    async def script(connection: Connection, request: Received) -> bool:
        await connection.send(sent)
        return False

    gateway, _ = make(script)
    with gateway.client() as client:
        response = client.get()
        assert response.status == 502
        assert b"error=" + error in response.value(b"proxy-status")
    nothing_is_held(gateway)


def test_a_truncated_body_is_reset_for_a_1_0_client(make) -> None:
    async def script(connection: Connection, request: Received) -> bool:
        await connection.send(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
        )
        await connection.more()
        return False

    gateway, _ = make(script, 'timeout = { body_idle = "300ms" }')
    with gateway.client() as client:
        client.send(b"GET / HTTP/1.0\r\nHost: api.test\r\n\r\n")
        client.read_until(b"\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            client.read_to_end()


def test_a_stale_connection_is_tried_once_more_on_a_fresh_one(make) -> None:
    async def script(connection: Connection, request: Received) -> bool | None:
        if connection.number == 1 and request.target == b"/2":
            return False
        return await answer()(connection, request)

    gateway, origin = make(script)
    with gateway.client() as client:
        assert client.get(b"/1").status == 200
        assert client.get(b"/2").status == 200
        assert origin.connections == 2
    assert dict(gateway.upstream("api").counts.retries) == {"stale_connection": 1}


def test_a_client_that_leaves_takes_its_request_along(make) -> None:
    async def script(connection: Connection, request: Received) -> bool:
        return await connection.more()  # false once the gateway has closed

    gateway, origin = make(script)
    client = gateway.client()
    client.send(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
    origin.next_request()
    client.sock.close()
    nothing_is_held(gateway)
    assert gateway.call(lambda: gateway.upstream("api").counts.aborted) == 1


def test_a_client_that_leaves_while_its_reading_is_paused_is_noticed(make) -> None:
    async def script(connection: Connection, request: Received) -> bool:
        return await connection.more()

    gateway, origin = make(script)
    client = gateway.client()
    client.send(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n" * 3)  # the second pauses reading
    origin.next_request()
    gateway.until(lambda: gateway.connections()[0].reading_paused)
    client.sock.close()
    nothing_is_held(gateway)


def test_a_slow_head_is_408_and_an_idle_connection_just_closes(make) -> None:
    gateway, _ = make(upstream='timeout = { head = "300ms", idle = "300ms" }')
    with gateway.client() as slow, gateway.client() as idle:
        slow.send(b"GET / HT")
        assert slow.response().status == 408
        assert slow.closed()
        assert idle.closed()


def test_a_request_body_that_stops_is_408(make) -> None:
    gateway, _ = make(upstream='timeout = { body_idle = "300ms" }')
    with gateway.client() as client:
        client.send(b"POST / HTTP/1.1\r\nHost: api.test\r\nContent-Length: 9\r\n\r\nabc")
        assert client.response().status == 408
    nothing_is_held(gateway)


def test_a_broken_chunk_in_the_request_is_400(make) -> None:
    gateway, origin = make()
    with gateway.client() as client:
        client.send(
            b"POST / HTTP/1.1\r\nHost: api.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
        )
        client.send(b"zz\r\n")
        assert client.response().status == 400
        assert client.closed()
    assert origin.requests == []  # cut off before its end, so the origin never had a whole one
    nothing_is_held(gateway)


def test_an_early_answer_ends_the_upload(make) -> None:
    async def script(connection: Connection, request: Received) -> bool:
        return False

    async def early(connection: Connection, request: Received) -> bool:
        return False

    gateway, origin = make(early)

    async def refuse_at_once(connection: Connection) -> None:
        while b"\r\n\r\n" not in connection.buffer:
            await connection.more()
        await connection.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        while await connection.more():
            pass

    origin._serve_requests = refuse_at_once  # type: ignore[method-assign]
    with gateway.client() as client:
        client.send(b"POST / HTTP/1.1\r\nHost: api.test\r\nContent-Length: 999999\r\n\r\nstart")
        response = client.response()
        assert response.status == 413
        assert response.body == b"no"
        assert response.value(b"connection") == b"close"
    nothing_is_held(gateway)


def test_too_many_connections_are_refused(make, tmp_path) -> None:
    gateway, _ = make()
    gateway.call(lambda: setattr(next(iter(gateway.server.listeners)), "connections_max", 1))
    with gateway.client() as first:
        assert first.get().status == 200
        with gateway.client() as second:
            assert second.closed()
        assert first.get().status == 200
    assert gateway.call(lambda: gateway.server.worker.counts["connections_refused"]) == 1


def test_https_upstreams_are_verified(make, tmp_path) -> None:
    authority = trustme.CA()
    good = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(good)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    gateway, origin = make(
        upstream=f'tls = {{ ca = "{tmp_path}/ca.pem" }}',
        ssl_context=good,
        more='[upstream.strict]\norigin = "https://localhost:1"\n[[route]]\nhost = "strict.test"\n'
        'upstream = "strict"\n',
    )
    with gateway.client() as client:
        for _ in range(3):
            assert client.get().body == b"hello"
        assert origin.connections == 1
        text = gateway.path.read_text().replace('https://localhost:1"', f'{origin.url}"')
        text += f'[upstream.misnamed]\norigin = "https://localhost:{origin.port}"\n'
        text += f'host = "wrong.test"\ntls = {{ ca = "{tmp_path}/ca.pem" }}\n'
        text += '[[route]]\nhost = "misnamed.test"\nupstream = "misnamed"\n'
        assert gateway.reload(text)
        for host in (b"strict.test", b"misnamed.test"):
            response = client.get(host=host)
            assert response.status == 502, host
            assert b"tls_certificate_error" in response.value(b"proxy-status")
        assert client.get().status == 200


def test_garbage_never_stops_the_gateway(make) -> None:
    gateway, _ = make()
    for garbage in (b"\x00" * 1000, b"\r\n" * 500, bytes(range(256)) * 8, b"GET", b"\xff\xfe"):
        with Client(gateway.address) as client:
            client.send(garbage)
    with gateway.client() as client:
        assert client.get().status == 200
    nothing_is_held(gateway)
