"""Faults that a second look at the data path found; each test names the state that was missed."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
import time

import pytest
import trio
from fakes.origin import Connection, Received, answer

from gateway.clock import MS, SECOND
from gateway.proxy import downstream, relay

GET = b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n"
SLOW = 'wait = {{ max = "{wait}" }}\n[[upstream.api.limit]]\nname = "l"\nrate = "{rate}"\n'


def slow(rate: str = "1/s", wait: str = "30s", more: str = "burst = 1\n") -> str:
    return SLOW.format(rate=rate, wait=wait) + more


def waiting(gateway, count: int) -> None:
    gateway.until(lambda: gateway.server.worker.waitroom.waiting_count == count)


# Waiting.


def test_two_reloads_do_not_send_a_held_request_twice(make) -> None:
    gateway, origin = make(upstream=slow("3/min"))
    with gateway.client() as client, gateway.client() as held:
        assert client.get().status == 200
        held.send(b"GET /held HTTP/1.1\r\nHost: api.test\r\n\r\n")
        waiting(gateway, 1)
        text = gateway.path.read_text()
        assert gateway.reload(text)
        assert gateway.reload(text)
        waiting(gateway, 1)
        row = gateway.call(lambda: next(iter(gateway.upstream("api").limit_uses[0].limit)))
        assert gateway.call(lambda: row.held) == 1
        faster = text.replace('"3/min"', '"100/s"').replace("burst = 1", "burst = 9")
        assert gateway.reload(faster)
        assert held.response().status == 200
        assert client.get().status == 200
        assert gateway.call(lambda: row.held) == 0
    assert [request.target for request in origin.requests] == [b"/", b"/held", b"/"]


def test_a_held_cost_that_no_longer_fits_is_refused_and_the_next_one_goes(make) -> None:
    """The membership can shrink a burst below the cost of a request that waits already."""
    gateway, origin = make(upstream=slow("5/s", more='burst = 5\ncost = { header = "X-Cost" }\n'))
    with gateway.client() as client, gateway.client() as large, gateway.client() as small:
        assert client.get(fields=b"X-Cost: 5\r\n").status == 200
        large.send(b"GET /large HTTP/1.1\r\nHost: api.test\r\nX-Cost: 5\r\n\r\n")
        waiting(gateway, 1)
        small.send(b"GET /small HTTP/1.1\r\nHost: api.test\r\nX-Cost: 1\r\n\r\n")
        waiting(gateway, 2)
        limit = gateway.upstream("api").limit_uses[0].limit
        gateway.call(lambda: limit.configure(5, SECOND, 3, time.monotonic_ns()))
        refused = large.response()
        assert refused.status == 429
        assert json.loads(refused.body)["reason"] == "cost_over_burst"
        assert small.response().status == 200
    assert [request.target for request in origin.requests] == [b"/", b"/small"]


def test_news_for_the_row_behind_settled_costs_do_not_spin(make) -> None:
    """Peers' news name the mesh's row; requests wait at the row in front of it."""
    gateway, _ = make(
        answer(fields=b"X-Used: 1\r\n"),
        upstream=slow("2/s", more='burst = 1\ncost = { response_header = "X-Used" }\n'),
    )
    with gateway.client() as client, gateway.client() as held:
        assert client.get().status == 200
        held.send(GET)
        waiting(gateway, 1)
        limit = gateway.upstream("api").limit_uses[0].limit
        gateway.call(lambda: gateway.server.worker.waitroom.poke(next(iter(limit)).inner))
        assert held.response().status == 200
    waiting(gateway, 0)


def test_a_pause_ends_for_a_credential_with_settled_costs(make) -> None:
    async def script(connection: Connection, request: Received) -> bool | None:
        if request.target == b"/refuse":
            return await answer(b"429 Slow", fields=b"retry-after-ms: 200\r\n")(connection, request)
        return await answer(fields=b"X-Used: 1\r\n")(connection, request)

    gateway, _ = make(
        script,
        upstream=slow(
            "60/s",
            more='burst = 9\nkey = ["credential"]\ncost = { response_header = "X-Used" }\n',
        ),
    )
    fields = b"Authorization: Bearer a\r\n"
    with gateway.client() as client:
        assert client.get(b"/refuse", fields=fields).status == 429
        assert client.get(fields=fields).status == 200
        assert client.get(fields=fields).status == 200


def test_time_at_the_upstream_is_no_time_in_the_queue(make) -> None:
    seen = []

    async def script(connection: Connection, request: Received) -> bool | None:
        seen.append(request)
        if len(seen) == 2:
            await trio.sleep(0.6)
            return await answer(b"503 Busy")(connection, request)
        return await answer()(connection, request)

    gateway, _ = make(
        script,
        upstream="retry = { on = [503], attempts = 2 }\n" + slow("10/s", more="burst = 1\n"),
    )
    with gateway.client() as client:
        assert client.get().status == 200
        assert client.get().status == 200  # held for 100 ms, refused after 600 ms, sent again
    counts = gateway.call(lambda: gateway.upstream("api").counts)
    assert 50 * MS < counts.wait.sum_ns < 400 * MS


def test_a_retry_without_room_is_no_refusal(make) -> None:
    gateway, _ = make(
        answer(b"503 Busy"),
        upstream="retry = { on = [503], attempts = 9 }\n" + slow("1/min", "0s"),
    )
    with gateway.client() as client:
        assert client.get().status == 503
    assert gateway.call(lambda: gateway.upstream("api").counts.refused) == 0


def test_a_held_request_goes_with_the_new_confs_fields(make) -> None:
    gateway, origin = make(
        upstream='headers = { set = { X-Version = "old" } }\n' + slow("3/min", "30s")
    )
    with gateway.client() as client, gateway.client() as held:
        assert client.get().status == 200
        held.send(GET)
        waiting(gateway, 1)
        text = gateway.path.read_text()
        text = text.replace('"3/min"', '"9/s"').replace("burst = 1", "burst = 9")
        assert gateway.reload(text.replace('"old"', '"new"'))
        assert held.response().status == 200
    assert [request.values(b"x-version") for request in origin.requests] == [[b"old"], [b"new"]]


def test_a_held_expectation_does_not_time_the_client_out(make) -> None:
    """Nobody has said 100 yet: it is the gateway that makes the client wait."""
    gateway, _ = make(
        upstream='timeout = { body_idle = "150ms" }\n' + slow("2/s", "10s", "burst = 1\n")
    )

    with gateway.client() as client:
        assert client.get().status == 200
        client.send(
            b"POST / HTTP/1.1\r\nHost: api.test\r\nContent-Length: 2\r\n"
            b"Expect: 100-continue\r\n\r\n"
        )
        waiting(gateway, 1)
        waiting(gateway, 0)  # half a second later, and not by a 408
        client.send(b"hi")
        assert client.response().status == 200


# What is left of a request that was answered.


def test_garbage_behind_a_last_answer_is_not_answered_again(make) -> None:
    gateway, _ = make()
    with gateway.client() as client:
        client.send(
            b"POST / HTTP/1.1\r\nHost: nowhere\r\nConnection: close\r\n"
            b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"
        )
        assert client.response().status == 404
        assert client.closed()


def test_the_rest_of_a_refused_upload_is_read(make) -> None:
    """Reading stopped because the request waited; it does not wait any more."""
    gateway, _ = make(upstream=slow("1/min", "300ms"))
    with gateway.client() as client:
        # A wait that seems short enough at first: the row is freed and taken while it is held.
        limit = gateway.upstream("api").limit_uses[0].limit
        gateway.call(lambda: limit.configure(10, SECOND, 1, time.monotonic_ns()))
        assert client.get().status == 200
        gateway.call(lambda: limit.entry(b"", 0).take(1, time.monotonic_ns()))
        client.send(
            b"POST / HTTP/1.1\r\nHost: api.test\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"11000\r\n" + bytes(0x11000)
        )
        gateway.until(lambda: any(c.reading_paused for c in gateway.connections()))
        gateway.call(lambda: limit.configure(1, 60 * SECOND, 1, time.monotonic_ns()))
        assert client.response().status == 429
        client.send(b"\r\n0\r\n\r\n")
        assert client.get(host=b"nowhere").status == 404


def test_a_pause_for_an_upstream_that_has_answered_is_over(make) -> None:
    """It answers a whole request that it has not read: nobody will say that it reads again."""

    async def script(connection: Connection, request: Received) -> bool | None:
        if request.target == b"/slow":
            await trio.sleep(0.2)
        return await answer()(connection, request)

    gateway, origin = make(script)
    with gateway.client() as client:
        client.send(b"GET /slow HTTP/1.1\r\nHost: api.test\r\n\r\n")
        origin.next_request()
        connection = gateway.call(gateway.connections)[0]
        gateway.call(lambda: connection.exchange.upstream_writable(False))
        assert client.response().status == 200
        assert client.get().status == 200


def test_a_connect_that_is_refused_ends_the_connection(make) -> None:
    """What follows was meant for the tunnel: it must not be read as a request."""
    gateway, origin = make()
    with gateway.client() as client:
        client.send(b"CONNECT 127.0.0.1:1 HTTP/1.1\r\nHost: x\r\n\r\n" + GET)
        response = client.response()
        assert response.status == 403
        assert response.value(b"connection") == b"close"
        assert client.closed()
    assert origin.requests == []


def test_a_101_before_the_request_is_complete_is_502(make) -> None:
    async def serve(connection: Connection) -> None:
        await connection.more()
        await connection.send(
            b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
        )
        await connection.more()

    gateway, origin = make()
    origin._serve_requests = serve  # type: ignore[method-assign]
    with gateway.client() as client:
        client.send(
            b"GET / HTTP/1.1\r\nHost: api.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Content-Length: 9\r\n\r\n"
        )
        assert client.response().status == 502


# Peers that do not read.


def test_a_client_that_reads_no_answers_gets_no_new_ones(make) -> None:
    gateway, origin = make(answer(body=bytes(60_000)))
    with gateway.client() as client:
        client.send(GET * 1000)  # 60 MB of answers
        gateway.until(lambda: any(c.write_blocked for c in gateway.connections()))
        connection = gateway.connections()[0]
        settled = -1
        while settled != len(origin.requests):
            settled = len(origin.requests)
            time.sleep(0.2)
        assert gateway.call(lambda: connection.transport.get_write_buffer_size()) < 256 * 1024
        for _ in range(1000):
            assert len(client.response().body) == 60_000


def test_a_client_that_reads_no_answers_is_closed_in_time(make, monkeypatch) -> None:
    monkeypatch.setattr(relay, "CLOSE_TIMEOUT_NS", SECOND // 4)
    gateway, _ = make(answer(body=bytes(60_000)), 'timeout = { idle = "500ms" }')
    with gateway.client() as client:
        client.send(GET * 1000)
        gateway.until(lambda: any(c.write_blocked for c in gateway.connections()))
        gateway.until(lambda: not gateway.connections())
        with pytest.raises(ConnectionResetError):
            client.read_to_end()


def test_a_slow_reader_gets_the_end_of_a_last_answer(make, monkeypatch) -> None:
    """Lingering is for what the client may still send, not a deadline for what it is sent."""
    monkeypatch.setattr(downstream, "LINGER_TIMEOUT_NS", SECOND // 5)
    size, last = 1 << 20, 60_000  # less than what stops the reading of more: the exchange ends
    release = threading.Event()

    async def script(connection, request) -> bool:
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        await connection.send(bytes(size - last))
        await trio.to_thread.run_sync(release.wait, 10.0)
        await connection.send(bytes(last))
        return True

    gateway, _ = make(script)
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(10)
        sock.connect(gateway.address)
        gateway.until(gateway.connections)
        connection = gateway.call(gateway.connections)[0]
        accepted = connection.transport.get_extra_info("socket")
        gateway.call(lambda: accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096))
        sock.sendall(GET[:-2] + b"Connection: close\r\n\r\n")
        received = 0
        while received < size - last:
            received += len(sock.recv(8192))
        release.set()
        gateway.until(lambda: connection.exchange is None)
        assert gateway.call(connection.transport.get_write_buffer_size) > 20_000
        for _ in range(8):
            time.sleep(0.1)
            received += len(sock.recv(1024))
        while data := sock.recv(1 << 16):
            received += len(data)
    assert received > size


def test_a_tunnel_whose_upstream_does_not_read_ends(make, monkeypatch) -> None:
    monkeypatch.setattr(relay, "CLOSE_TIMEOUT_NS", SECOND // 4)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        port = deaf.getsockname()[1]
        gateway, _ = make(
            more=f'[upstream.raw]\norigin = "https://127.0.0.1:{port}"\ntunnel = true\n'
        )
        pool = gateway.upstream("raw").tunnels
        with gateway.client() as client:
            client.send(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: x\r\n\r\n" % port)
            client.read_until(b"\r\n\r\n")
            end = gateway.call(lambda: next(iter(pool._all)))
            while not gateway.call(lambda: end.transport.get_write_buffer_size()):
                client.send(bytes(8192))
            # l_onoff = 1, l_linger = 0 (socket(7)): the client is gone at once.
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        gateway.until(lambda: pool.open_count == 0)


def test_a_request_that_is_sent_whole_has_the_responses_time(make) -> None:
    """Back-pressure in the upload is over: neither the client nor the body is waited for."""

    async def serve(connection: Connection) -> None:
        await trio.sleep(0.2)
        seen = 0
        while seen < 24 << 20:
            await connection.more()
            seen += len(connection.buffer)
            connection.buffer.clear()
        await trio.sleep(0.7)
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    gateway, origin = make(upstream='timeout = { body_idle = "300ms", response = "5s" }')
    origin._serve_requests = serve  # type: ignore[method-assign]
    with gateway.client() as client:
        client.send(b"PUT / HTTP/1.1\r\nHost: api.test\r\nContent-Length: %d\r\n\r\n" % (24 << 20))
        client.send(bytes(24 << 20))
        assert client.response().status == 200


def test_a_tunnel_that_nobody_took_is_not_kept(make) -> None:
    """Octets right behind a CONNECT would be lost: its decoder has not returned yet."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        port = server.getsockname()[1]
        gateway, _ = make(
            more=f'[upstream.raw]\norigin = "https://127.0.0.1:{port}"\ntunnel = true\n'
        )
        pool = gateway.upstream("raw").tunnels
        dialled = gateway.call(lambda: pool._dial)

        async def slow_dial(make_end):
            end = await dialled(make_end)
            while pool._waiting:
                await asyncio.sleep(0.005)
            return end

        gateway.call(lambda: setattr(pool, "_dial", slow_dial))
        with gateway.client() as leaver:
            leaver.send(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: x\r\n\r\n" % port)
            gateway.until(lambda: pool._waiting)
        gateway.until(lambda: not pool.dialling_count)
        gateway.call(lambda: setattr(pool, "_dial", dialled))
        server.accept()[0].close()
        with gateway.client() as client:
            client.send(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: x\r\n\r\nearly" % port)
            client.read_until(b"\r\n\r\n")
            sock = server.accept()[0]
            sock.settimeout(5)
            assert sock.recv(5) == b"early"
            sock.close()


def test_a_server_that_speaks_first_is_heard_through_a_tunnel(make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        gateway, _ = make(
            more=f'[upstream.raw]\norigin = "https://127.0.0.1:{port}"\ntunnel = true\n'
        )
        for _ in range(5):
            with gateway.client() as client:
                client.send(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: x\r\n\r\n" % port)
                server.settimeout(10)
                with server.accept()[0] as sock:
                    sock.sendall(b"220 ready\r\n")
                    client.read_until(b"\r\n\r\n")
                    assert client.read_exactly(11) == b"220 ready\r\n"


# What the log says.


def test_a_client_that_stops_reading_is_the_one_to_blame(make) -> None:
    async def script(connection: Connection, request: Received) -> bool:
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n")
        piece = bytes(1 << 20)
        while True:
            await connection.send(piece)

    gateway, _ = make(script, 'timeout = { body_idle = "300ms" }')
    worker = gateway.server.worker
    gateway.call(lambda: setattr(worker, "runtime", worker.runtime._replace(access_log=True)))
    with gateway.client() as client:
        client.send(GET)
        gateway.until(lambda: worker.ring)
    assert str(gateway.call(lambda: worker.ring[0].termination)) == "cD"


def test_a_reload_that_is_refused_leaves_the_log_as_it_was(make, tmp_path) -> None:
    gateway, _ = make()
    server = gateway.server
    gateway.call(lambda: setattr(server, "overrides", ("node.name=gw-test",)))
    old, new = tmp_path / "old.log", tmp_path / "new.log"
    text = gateway.path.read_text()
    assert gateway.reload(text + f'[log]\naccess = "{old}"\n')
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        more = f'[log]\naccess = "{new}"\n[[listen]]\nbind = "127.0.0.1:{port}"\n'
        assert not gateway.reload(text + more)
    with gateway.client() as client:
        for _ in range(3):
            assert client.get().status == 200
    gateway.until(lambda: old.read_text().count("\n") == 3)
    assert not new.exists()


# What held.


def test_an_error_for_head_has_no_body_and_the_connection_goes_on(make) -> None:
    gateway, _ = make()
    with gateway.client() as client:
        client.send(b"HEAD / HTTP/1.1\r\nHost: nowhere\r\n\r\n" + GET)
        refused = client.response(b"HEAD")
        assert refused.status == 404
        assert int(refused.value(b"content-length")) > 0
        assert client.response().status == 200


def test_a_pipeline_of_bodies_keeps_their_bounds(make) -> None:
    async def echo(connection: Connection, request: Received) -> None:
        await answer(body=request.target + b" " + request.body)(connection, request)

    gateway, _ = make(echo)
    sized = b"POST /%d HTTP/1.1\r\nHost: %s\r\nContent-Length: 20\r\n\r\nGET / HTTP/1.1\r\n\r\n.."
    chunked = (
        b"POST /%d HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    )
    with gateway.client() as client:
        for number in range(6):  # every third is refused, and its body dropped
            form = sized if number % 2 else chunked
            client.send(form % (number, b"nowhere" if number % 3 == 2 else b"api.test"))
        for number in range(6):
            response = client.response()
            if number % 3 == 2:
                assert response.status == 404
            else:
                assert response.body.startswith(b"/%d " % number)


def test_a_head_octet_by_octet(make) -> None:
    gateway, origin = make()
    head = b"GET / HTTP/1.1\r\nHost: api.test\r\nX: " + b"a" * 3000 + b"\r\n\r\n"
    with gateway.client() as client:
        client.send(head[:1])
        gateway.until(gateway.connections)
        (connection,) = gateway.call(gateway.connections)

        def feed() -> None:
            for position in range(1, len(head)):
                connection.received(head[position : position + 1])

        gateway.call(feed)
        assert client.response().status == 200
    assert origin.next_request().values(b"x") == [b"a" * 3000]


def test_a_refused_expectation_ends_the_connection(make) -> None:
    """Whether the body comes or not nobody knows: what follows could be either."""
    gateway, _ = make()
    with gateway.client() as client:
        client.send(
            b"POST / HTTP/1.1\r\nHost: nowhere\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
        )
        response = client.response()
        assert response.status == 404
        assert response.value(b"connection") == b"close"
        assert client.closed()
