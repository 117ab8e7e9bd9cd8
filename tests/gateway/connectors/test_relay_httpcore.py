"""HTTP/2 upstreams through a whole gateway: messages, back-pressure, clients that leave."""

from __future__ import annotations

import contextlib
import socket
from typing import Any

import h2.settings
import pytest
from fakes.gateway import Client
from fakes.h2_gateway import (
    Make,
    gated,
    nothing_is_held,
    refusal,
)
from fakes.h2_origin import H2Stream, h2_answer


def test_a_request_passes(make_h2: Make) -> None:
    gateway, origin = make_h2(h2_answer(fields=[(b"x-end", b"1")]))
    with gateway.client() as client:
        for _ in range(3):
            response = client.get(
                b"/v1/x?a=%2F&b=+c",
                fields=b"X-One: 1\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nTE: trailers\r\n",
            )
            assert response.status == 200
            assert response.body == b"hello"
            assert response.value(b"x-end") == b"1"
            assert response.value(b"via") == b"2.0 egressd-gw-test"  # RFC 9110 section 7.6.3
    assert origin.connections == 1
    assert origin.streams[0].fields == [
        (b":method", b"GET"),
        (b":scheme", b"https"),
        (b":authority", f"localhost:{origin.port}".encode()),
        (b":path", b"/v1/x?a=%2F&b=+c"),
        (b"x-one", b"1"),
        (b"via", b"1.1 egressd-gw-test"),
        (b"te", b"trailers"),
    ]
    nothing_is_held(gateway)


@pytest.mark.parametrize(
    "target", [b"/", b"//a//b", b"/%7Euser/%2e%2E/;x?", b"/a?b?c&d=%00|{}\"'", b"/\\^`~!$*()"]
)
def test_the_target_is_not_touched(make_h2: Make, target: bytes) -> None:
    gateway, origin = make_h2()
    with gateway.client() as client:
        assert client.get(target).status == 200
    assert origin.streams[0].value(b":path") == target


def test_options_of_the_whole_server(make_h2: Make) -> None:
    gateway, origin = make_h2()
    with gateway.client() as client:
        client.send(b"OPTIONS * HTTP/1.1\r\nHost: api.test\r\n\r\n")
        assert client.response().status == 200
    assert origin.streams[0].value(b":path") == b"*"


def test_bodies_pass_both_ways(make_h2: Make) -> None:
    async def echo(stream: H2Stream) -> None:
        body = await stream.body()
        await stream.head(b"201")
        await stream.data(body, end=True)

    gateway, origin = make_h2(echo)
    body = bytes(range(256)) * 8192  # 2 MiB: beyond every window and buffer on the way
    with gateway.client() as client:
        client.send(
            b"POST /up HTTP/1.1\r\nHost: api.test\r\nContent-Length: %d\r\n\r\n" % len(body)
        )
        client.send(body)
        response = client.response()
        assert response.status == 201
        assert response.values(b"transfer-encoding") == [b"chunked"]
        assert response.body == body
        client.send(
            b"PUT / HTTP/1.1\r\nHost: api.test\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"5\r\nhello\r\n6\r\n world\r\n0\r\nX-Trailer: 1\r\n\r\n"
        )
        assert client.response().body == b"hello world"
    assert origin.streams[0].value(b"content-length") == b"%d" % len(body)
    assert origin.streams[1].value(b"transfer-encoding") is None
    assert origin.streams[1].value(b"content-length") is None
    nothing_is_held(gateway)


@pytest.mark.parametrize(
    ("method", "status", "fields"),
    [
        (b"HEAD", b"200", [(b"content-length", b"5")]),
        (b"GET", b"204", []),
        (b"GET", b"304", [(b"content-length", b"5")]),
        (b"GET", b"200", [(b"content-length", b"0")]),
    ],
)
def test_responses_without_a_body(make_h2: Make, method: bytes, status: bytes, fields: Any) -> None:
    async def script(stream: H2Stream) -> None:
        await stream.head(status, fields, end=True)

    gateway, origin = make_h2(script)
    with gateway.client() as client:
        for _ in range(2):
            client.send(b"%s / HTTP/1.1\r\nHost: api.test\r\n\r\n" % method)
            response = client.response(method)
            assert response.status == int(status)
            assert response.values(b"transfer-encoding") == []
            assert response.values(b"content-length") == [value for _, value in fields]
    assert origin.connections == 1
    nothing_is_held(gateway)


def test_interim_responses_and_trailers_pass(make_h2: Make) -> None:
    async def script(stream: H2Stream) -> None:
        await stream.head(b"103", [(b"link", b"</a>")])
        await stream.body()
        await stream.head(b"200")
        await stream.data(b"abc")
        await stream.trailers([(b"x-sum", b"900150983cd24fb0")])

    gateway, _ = make_h2(script)
    with gateway.client() as client:
        client.send(b"GET / HTTP/1.1\r\nHost: api.test\r\nTE: trailers\r\nConnection: TE\r\n\r\n")
        early = client.read_until(b"\r\n\r\n")
        assert early.startswith(b"HTTP/1.1 103 ")
        assert b"link: </a>" in early
        assert client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 200 ")
        assert client.read_until(b"\r\n\r\n") == (
            b"3\r\nabc\r\n0\r\nx-sum: 900150983cd24fb0\r\n\r\n"
        )


@pytest.mark.parametrize("body", [b"", b"abc", bytes(300_000)], ids=["empty", "short", "long"])
def test_9110_6_5_request_trailers_go_on(make_h2: Make, body: bytes) -> None:
    gateway, origin = make_h2()
    head = (
        b"POST / HTTP/1.1\r\nHost: api.test\r\nTransfer-Encoding: chunked\r\n"
        b"Connection: X-Hop\r\nTrailer: X-Sum\r\n\r\n"
    )
    chunks = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
    trailers = b"X-Sum: 1\r\nX-Hop: 2\r\nAuthorization: no\r\nx-sum: 3\r\n"
    with gateway.client() as client:
        for with_trailers in (True, False):
            client.send(head + chunks + b"0\r\n" + trailers * with_trailers + b"\r\n")
            assert client.response().status == 200
    first, second = origin.streams
    assert first.value(b"trailer") == b"X-Sum"
    # Neither what Connection names nor what cannot be a trailer, and each line by itself.
    assert first.trailer_fields == [(b"x-sum", b"1"), (b"x-sum", b"3")]
    assert second.trailer_fields == []
    assert first.ended
    assert second.ended
    nothing_is_held(gateway)


@pytest.mark.parametrize(
    ("version", "te"), [(b"1.1", b""), (b"1.1", b"TE: gzip, x-trailers\r\n"), (b"1.0", b"")]
)
def test_9110_6_5_1_trailers_nobody_asked_for_are_dropped(
    make_h2: Make, version: bytes, te: bytes
) -> None:
    async def script(stream: H2Stream) -> None:
        await stream.head(b"200")
        await stream.data(b"abc")
        await stream.trailers([(b"x-sum", b"1")])

    gateway, origin = make_h2(script)
    with gateway.client() as client:
        client.send(
            b"GET / HTTP/%b\r\nHost: api.test\r\n%bConnection: close\r\n\r\n" % (version, te)
        )
        whole = client.read_to_end()
        assert whole.endswith(b"0\r\n\r\n" if version == b"1.1" else b"\r\n\r\nabc")
        assert b"x-sum" not in whole
    assert origin.streams[0].value(b"te") is None


def test_a_client_that_expects_100_gets_it_from_the_upstream(make_h2: Make) -> None:
    async def script(stream: H2Stream) -> None:
        assert stream.value(b"expect") == b"100-continue"
        await stream.head(b"100")
        body = await stream.body()
        await stream.head(b"200", [(b"content-length", b"%d" % len(body))])
        await stream.data(body, end=True)

    gateway, _ = make_h2(script)
    with gateway.client() as client:
        client.send(
            b"POST / HTTP/1.1\r\nHost: api.test\r\nContent-Length: 5\r\n"
            b"Expect: 100-continue\r\n\r\n"
        )
        assert client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 100 ")
        client.send(b"hello")
        assert client.response().body == b"hello"
    nothing_is_held(gateway)


def test_exchanges_share_a_connection_and_do_not_wait_for_each_other(make_h2: Make) -> None:
    gateway, origin = make_h2(gated)
    waiting = [Client(gateway.address) for _ in range(4)]
    for client in waiting:
        client.send(b"GET /late HTTP/1.1\r\nHost: api.test\r\n\r\n")
    for _ in waiting:
        origin.opened.get(timeout=10)
    with gateway.client() as client:
        for _ in range(5):
            assert client.get(b"/now").body == b"ok"
    origin.release()
    for client in waiting:
        assert client.response().body == b"ok"
        client.sock.close()
    assert origin.connections == 1
    nothing_is_held(gateway)


def test_a_lane_that_is_full_gets_a_second_beside_it(make_h2: Make) -> None:
    limit = {h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: 2}
    gateway, origin = make_h2(gated, settings=limit)
    waiting = [Client(gateway.address) for _ in range(3)]
    for client in waiting:
        client.send(b"GET /late HTTP/1.1\r\nHost: api.test\r\n\r\n")
    for _ in waiting:
        origin.opened.get(timeout=10)
    assert gateway.call(lambda: gateway.upstream("api").pool.open_count) == 2
    origin.release()
    for client in waiting:
        assert client.response().status == 200
        client.sock.close()
    nothing_is_held(gateway)


def test_a_burst_is_served_by_one_dial(make_h2: Make) -> None:
    gateway, origin = make_h2()
    clients = [Client(gateway.address) for _ in range(40)]
    for number, client in enumerate(clients):
        client.send(b"GET /%d HTTP/1.1\r\nHost: api.test\r\n\r\n" % number)
    for client in clients:
        assert client.response().status == 200
        client.sock.close()
    assert {stream.value(b":path") for stream in origin.streams} == {b"/%d" % n for n in range(40)}
    assert origin.connections == 1
    nothing_is_held(gateway)


def test_an_upstream_that_takes_no_streams_is_502(make_h2: Make) -> None:
    gateway, _ = make_h2(settings={h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: 0})
    with gateway.client() as client:
        response = client.get()
        assert (response.status, refusal(response)) == (502, b"connection_terminated")
    gateway.until(lambda: gateway.upstream("api").pool.open_count == 1)


# Slow readers and back-pressure.


def test_a_slow_reader_stops_its_stream_and_no_other(make_h2: Make) -> None:
    size = 8 << 20
    sent: dict[int, int] = {}

    async def script(stream: H2Stream) -> None:
        if stream.value(b":path") != b"/large":
            await h2_answer()(stream)
            return
        await stream.head(b"200", [(b"content-length", b"%d" % size)])
        piece = bytes(1 << 14)
        for count in range(size // len(piece)):
            await stream.data(piece, end=(count + 1) * len(piece) == size)
            sent[stream.number] = (count + 1) * len(piece)

    gateway, origin = make_h2(script)
    # 16 MiB of window would be eaten by three of them, were a stream's not so much smaller.
    slow = [gateway.client() for _ in range(6)]
    for client in slow:
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        client.send(b"GET /large HTTP/1.1\r\nHost: api.test\r\n\r\n")
        client.read_until(b"\r\n\r\n")
    gateway.until(
        lambda: sum(connection.write_blocked for connection in gateway.connections()) == len(slow)
    )
    with gateway.client() as client:
        for _ in range(3):
            assert client.get().body == b"hello"
    # What loopback's socket buffers hold, WRITE_HIGH, and the stream's window of 256 KiB.
    assert max(sent.values()) < 6 << 20
    held = gateway.call(
        lambda: sum(c.transport.get_write_buffer_size() for c in gateway.connections())
    )
    assert held <= len(slow) * (64 + 64) * 1024
    for client in slow[1:]:
        client.sock.close()
    with slow[0] as client:
        assert len(client.read_exactly(size)) == size
    assert origin.connections == 1
    nothing_is_held(gateway)


def test_a_slow_upstream_stops_the_client(make_h2: Make) -> None:
    async def script(stream: H2Stream) -> None:
        await stream.connection.origin.gate.wait()
        body = await stream.body()
        await stream.head(
            b"200", [(b"content-length", b"0"), (b"x-got", b"%d" % len(body))], end=True
        )

    gateway, origin = make_h2(script)
    size = 4 << 20
    with gateway.client() as client:
        client.send(b"POST / HTTP/1.1\r\nHost: api.test\r\nContent-Length: %d\r\n\r\n" % size)
        client.sock.setblocking(False)
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while sent < size:
                sent += client.sock.send(bytes(min(size - sent, 65536)))
        gateway.until(
            lambda: any(c.reading_paused and c.exchange.connection for c in gateway.connections())
        )
        held = gateway.call(lambda: gateway.connections()[0].exchange.connection._body_bytes)
        assert held <= (64 + 64) * 1024
        origin.release()
        client.sock.settimeout(10)
        client.send(bytes(size - sent))
        assert client.response().value(b"x-got") == b"%d" % size
    nothing_is_held(gateway)


def test_an_early_answer_ends_the_upload(make_h2: Make) -> None:
    async def script(stream: H2Stream) -> None:
        if stream.value(b":method") == b"POST":
            await stream.head(b"413", [(b"content-length", b"2")])
            await stream.data(b"no", end=True)
        else:
            await h2_answer()(stream)

    gateway, origin = make_h2(script)
    with gateway.client() as client:
        client.send(b"POST / HTTP/1.1\r\nHost: api.test\r\nContent-Length: 9999999\r\n\r\nstart")
        response = client.response()
        assert response.status == 413
        assert response.body == b"no"
        assert response.value(b"connection") == b"close"
    assert origin.resets.get(timeout=10) == (1, 8)
    with gateway.client() as client:
        assert client.get().status == 200
    assert origin.connections == 1
    nothing_is_held(gateway)


# Clients that leave.


def test_a_client_that_leaves_resets_its_stream(make_h2: Make) -> None:
    gateway, origin = make_h2(gated)
    client = gateway.client()
    client.send(b"GET /late HTTP/1.1\r\nHost: api.test\r\n\r\n")
    stream = origin.opened.get(timeout=10)
    client.sock.close()
    assert origin.resets.get(timeout=10) == (stream.number, 8)  # CANCEL
    nothing_is_held(gateway)
    assert gateway.call(lambda: gateway.upstream("api").counts.aborted) == 1
    with gateway.client() as client:
        assert client.get().status == 200
    assert origin.connections == 1


def test_clients_that_leave_do_not_eat_the_connections_window(make_h2: Make) -> None:
    async def script(stream: H2Stream) -> None:
        await stream.head(b"200")
        while await stream.data(bytes(1 << 18)):
            pass

    gateway, origin = make_h2(script)
    # 80 x 256 KiB is more than the connection's 16 MiB: unacknowledged, the last would get nothing.
    for _ in range(80):
        with gateway.client() as client:
            client.send(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
            client.read_until(b"\r\n\r\n")
            client.read_exactly(1 << 17)
        origin.resets.get(timeout=10)
    assert origin.connections == 1
    nothing_is_held(gateway)


def test_a_client_that_leaves_before_its_stream_began(make_h2: Make) -> None:
    gateway, _ = make_h2()
    for _ in range(20):
        client = gateway.client()
        client.send(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
        client.sock.close()
    nothing_is_held(gateway)
    with gateway.client() as client:
        assert client.get().status == 200


def test_a_throttle_in_the_body_is_absorbed(make_h2: Make) -> None:
    """What the body says is waited for here too; the stream of the first answer has ended."""
    body = b'{"message": "You are being rate limited.", "retry_after": 0.2, "global": false}'

    async def script(stream: H2Stream) -> None:
        first = len(stream.connection.origin.streams) == 1
        await (h2_answer(b"429", body) if first else h2_answer())(stream)

    gateway, origin = make_h2(script, 'provider = "discord"\nretry = { on = [429] }')
    with gateway.client() as client:
        response = client.get()
        assert (response.status, response.body) == (200, b"hello")
    assert len(origin.streams) == 2
    nothing_is_held(gateway)
