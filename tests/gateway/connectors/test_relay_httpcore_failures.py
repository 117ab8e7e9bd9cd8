"""HTTP/2 upstreams through a whole gateway: what goes wrong, and how connections end."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fakes import h2_origin
from fakes.gateway import Gateway
from fakes.h2_gateway import (
    CONF,
    Make,
    gated,
    nothing_is_held,
    refusal,
    server_context,
)
from fakes.h2_origin import H2Origin, H2Stream, h2_answer
from fakes.origin import Connection, Origin, SilentOrigin


def test_an_upstream_that_hangs_is_504(make_h2: Make) -> None:
    gateway, origin = make_h2(gated, 'timeout = { response = "300ms" }')
    with gateway.client() as client:
        response = client.get(b"/late")
        assert (response.status, refusal(response)) == (504, b"http_response_timeout")
        assert origin.resets.get(timeout=10)[1] == 8
        assert client.get(b"/now").status == 200
    assert origin.connections == 1
    nothing_is_held(gateway)


def test_a_body_that_stops_is_cut_off(make_h2: Make) -> None:
    async def script(stream: H2Stream) -> None:
        await stream.head(b"200")
        await stream.data(b"some")
        await stream.connection.origin.gate.wait()

    gateway, origin = make_h2(script, 'timeout = { body_idle = "300ms" }')
    with gateway.client() as client:
        client.send(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
        client.read_until(b"\r\n\r\n")
        assert client.read_to_end() == b"4\r\nsome\r\n"  # and no last chunk
    assert origin.resets.get(timeout=10)[1] == 8
    nothing_is_held(gateway)


def test_a_throttle_pauses(make_h2: Make) -> None:
    gateway, origin = make_h2(h2_answer(b"429", b"slow down", [(b"retry-after", b"30")]))
    with gateway.client() as client:
        assert client.get().body == b"slow down"
        paused = client.get()
        assert paused.status == 429
        assert 28 <= int(paused.value(b"retry-after")) <= 31
    assert len(origin.streams) == 1


def test_limits_hold(make_h2: Make) -> None:
    limits = '[[upstream.api.limit]]\nname = "l"\nrate = "1/h"\nburst = 2\n'
    gateway, origin = make_h2(upstream='wait = { max = "0s" }\n' + limits)
    with gateway.client() as client:
        assert [client.get().status for _ in range(3)] == [200, 200, 429]
    assert len(origin.streams) == 2


LENGTH = [(b"content-length", b"100")]


@pytest.mark.parametrize(
    ("head", "end"),
    [([], "reset"), ([], "closed"), (LENGTH, "reset"), (LENGTH, "closed"), (LENGTH, "short")],
)
def test_a_truncated_response_stays_visibly_truncated(make_h2: Make, head: Any, end: str) -> None:
    async def script(stream: H2Stream) -> None:
        await stream.head(b"200", head)
        await stream.data(b"hello", end=end == "short")
        if end == "reset":
            await stream.reset(2)
        elif end == "closed":
            await stream.connection.stream.aclose()

    gateway, _ = make_h2(script)
    with gateway.client() as client:
        client.send(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
        if b" 502 " in client.read_until(b"\r\n\r\n"):
            assert end == "short"  # known before anything was passed on
            return
        rest = client.read_to_end()
        assert b"hello" in rest or end == "short"
        assert len(rest) < 100
        assert not rest.endswith(b"0\r\n\r\n")
    nothing_is_held(gateway)


def test_a_length_without_a_body_is_no_response(make_h2: Make) -> None:
    async def script(stream: H2Stream) -> None:
        await stream.head(b"200", [(b"content-length", b"5")], end=True)

    gateway, _ = make_h2(script)
    with gateway.client() as client:
        client.send(
            b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\nGET /2 HTTP/1.1\r\nHost: api.test\r\n\r\n"
        )
        client.read_until(b"\r\n\r\n")
        assert client.read_to_end() == b""  # the next head is not the missing body


@pytest.mark.parametrize(
    ("status", "fields", "error"),
    [
        (b"200", [(b"x-a", b"1\r\nset-cookie: a=b")], b"http_protocol_error"),
        (b"200", [(b"x-a", b"1\nb: c")], b"http_protocol_error"),
        (b"200", [(b"x-a", b"nul \x00")], b"http_protocol_error"),
        (b"200", [(b"x a", b"1")], b"http_protocol_error"),
        (b"200", [(b"x:a", b"1")], b"http_protocol_error"),
        (b"200", [(b"", b"1")], b"http_protocol_error"),
        (b"200", [(b"transfer-encoding", b"chunked")], b"http_protocol_error"),
        (b"200", [(b"connection", b"x-a")], b"http_protocol_error"),
        (b"200", [(b"content-length", b"1"), (b"content-length", b"2")], b"http_protocol_error"),
        (b"200", [(b"content-length", b"0x5")], b"http_protocol_error"),
        (b"banana", [], b"http_protocol_error"),
        (b"99", [], b"http_protocol_error"),
        (b"+200", [], b"http_protocol_error"),
        (b"101", [(b"upgrade", b"websocket")], b"http_protocol_error"),
        (
            b"200",
            [(b"x-a", b"b" * 60_000), (b"x-c", b"d" * 60_000)],
            b"http_response_header_section_size",
        ),
        (b"200", [(b"x-%d" % n, b"1") for n in range(300)], b"http_response_header_section_size"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_response_that_is_none_is_502(
    make_h2: Make, status: bytes, fields: Any, error: bytes
) -> None:
    async def script(stream: H2Stream) -> None:
        await stream.head(status, fields, end=not status.startswith(b"1"))

    gateway, _ = make_h2(script)
    with gateway.client() as client:
        response = client.get()
        assert (response.status, refusal(response)) == (502, error)
    nothing_is_held(gateway)


def test_a_body_where_none_may_be_never_reaches_the_client(make_h2: Make) -> None:
    async def script(stream: H2Stream) -> None:
        await stream.head(b"204")
        await stream.data(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", end=True)

    gateway, _ = make_h2(script)
    with gateway.client() as client:
        client.send(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
        assert client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 204 ")
        assert client.read_to_end() == b""
    nothing_is_held(gateway)


def test_interim_responses_without_end_are_no_response(make_h2: Make) -> None:
    async def script(stream: H2Stream) -> None:
        while stream.reset_code is None:
            await stream.head(b"103", [(b"link", b"</a>")])

    gateway, origin = make_h2(script)
    with gateway.client() as client:
        client.send(b"GET / HTTP/1.0\r\nHost: api.test\r\n\r\n")
        response = client.response()
        assert (response.status, refusal(response)) == (502, b"http_protocol_error")
    assert origin.resets.get(timeout=10)[1] == 8
    nothing_is_held(gateway)


def test_garbage_instead_of_frames_is_502(make_h2: Make) -> None:
    async def script(stream: H2Stream) -> None:
        await stream.connection.flush(b"\xff" * 100)
        await stream.connection.origin.gate.wait()

    gateway, _ = make_h2(script)
    with gateway.client() as client:
        response = client.get()
        assert (response.status, refusal(response)) == (502, b"http_protocol_error")
    nothing_is_held(gateway)


@pytest.mark.slow
def test_an_upstream_that_only_asks_is_cut_off(make_h2: Make) -> None:
    async def script(stream: H2Stream) -> None:
        ping = b"\x00\x00\x08\x06\x00\x00\x00\x00\x0012345678"
        while True:
            await stream.connection.flush(ping * 1000)

    gateway, origin = make_h2(script)

    async def never_read(served: Any) -> None:
        """Reads the request and nothing after it."""
        served.state.initiate_connection()
        await served.flush()
        while not origin.streams:
            for event in served.state.receive_data(await served.stream.receive_some(65536)):
                if type(event).__name__ == "RequestReceived":
                    stream = H2Stream(served, event.stream_id, [])
                    origin.streams.append(stream)
        await script(stream)

    monkey = pytest.MonkeyPatch()
    monkey.setattr(h2_origin.H2Served, "serve", never_read)
    try:
        with gateway.client() as client:
            response = client.get()
            assert (response.status, refusal(response)) == (502, b"connection_terminated")
    finally:
        monkey.undo()
    nothing_is_held(gateway)


# The end of a connection.


def test_a_graceful_goaway_lets_exchanges_finish(make_h2: Make) -> None:
    async def script(stream: H2Stream) -> None:
        if stream.value(b":path") == b"/last":
            await stream.head(b"200", [(b"content-length", b"10")])
            await stream.data(b"hello")
            # RFC 9113 section 6.8: first "no more", then the last stream that is answered.
            for last in (2**31 - 1, stream.number):
                goaway = b"\x00\x00\x08\x07\x00\x00\x00\x00\x00%b\x00\x00\x00\x00"
                await stream.connection.flush(goaway % last.to_bytes(4, "big"))
            await stream.connection.origin.gate.wait()
            await stream.data(b"world", end=True)
        else:
            await h2_answer()(stream)

    gateway, origin = make_h2(script)
    with gateway.client() as client, gateway.client() as other:
        client.send(b"GET /last HTTP/1.1\r\nHost: api.test\r\n\r\n")
        client.read_until(b"hello")
        gateway.until(lambda: not gateway.upstream("api").pool._lanes)
        assert other.get().status == 200
        assert origin.connections == 2
        origin.release()
        assert client.read_exactly(5) == b"world"
    nothing_is_held(gateway)


def test_a_request_that_a_goaway_left_out_is_sent_again(make_h2: Make) -> None:
    async def script(stream: H2Stream) -> None:
        if stream.value(b":path") == b"/refused" and stream.connection.number == 1:
            goaway = b"\x00\x00\x08\x07\x00\x00\x00\x00\x00%b\x00\x00\x00\x00"
            await stream.connection.flush(goaway % (stream.number - 2).to_bytes(4, "big"))
        else:
            await h2_answer()(stream)

    gateway, origin = make_h2(script)
    with gateway.client() as client:
        assert client.get(b"/first").status == 200
        assert client.get(b"/refused").status == 200
    assert origin.connections == 2
    assert dict(gateway.upstream("api").counts.retries) == {"stale_connection": 1}
    nothing_is_held(gateway)


def test_a_post_is_not_sent_twice(make_h2: Make) -> None:
    async def script(stream: H2Stream) -> None:
        if stream.value(b":method") == b"POST":
            await stream.connection.stream.aclose()
        else:
            await h2_answer()(stream)

    gateway, origin = make_h2(script)
    with gateway.client() as client:
        assert client.get().status == 200
        client.send(b"POST / HTTP/1.1\r\nHost: api.test\r\nContent-Length: 2\r\n\r\nhi")
        response = client.response()
        assert (response.status, refusal(response)) == (502, b"connection_terminated")
    assert len(origin.streams) == 2
    nothing_is_held(gateway)


def test_an_idle_connection_that_closes_is_noticed(make_h2: Make) -> None:
    gateway, origin = make_h2()
    with gateway.client() as client:
        assert client.get().status == 200
        served = origin.streams[0].connection
        assert origin._token is not None
        origin._token.run_sync_soon(
            served.stream.transport_stream.socket.shutdown, socket.SHUT_RDWR
        )
        gateway.until(lambda: gateway.upstream("api").pool.open_count == 0)
        assert client.get().status == 200
    assert origin.connections == 2


def test_a_connection_whose_streams_are_used_up_makes_room_for_another(make_h2: Make) -> None:
    gateway, origin = make_h2()

    def use_up() -> None:
        (lane,) = gateway.upstream("api").pool._lanes
        lane._request_count = 2**30 - 65

    with gateway.client() as client:
        assert client.get().status == 200
        gateway.call(use_up)
        for _ in range(3):
            assert client.get().status == 200
    assert [stream.connection.number for stream in origin.streams] == [1, 1, 2, 2]
    gateway.until(lambda: gateway.upstream("api").pool.open_count == 1)


def test_an_idle_connection_is_given_up(make_h2: Make) -> None:
    gateway, _ = make_h2(upstream='timeout = { idle = "300ms" }')
    with gateway.client() as client:
        assert client.get().status == 200
    gateway.until(lambda: gateway.upstream("api").pool.open_count == 0)
    gateway.until(lambda: len(gateway.server.worker.wheel) == 0)


def test_a_reload_that_changes_the_way_ends_no_exchange(make_h2: Make, h2_folder: Path) -> None:
    gateway, origin = make_h2(gated)
    with gateway.client() as client:
        client.send(b"GET /late HTTP/1.1\r\nHost: api.test\r\n\r\n")
        origin.opened.get(timeout=10)
        text = CONF.format(port=origin.port, folder=h2_folder, upstream='timeout = { idle = "9s" }')
        assert gateway.reload(text)
        origin.release()
        assert client.response().body == b"ok"
        assert client.get(b"/now").status == 200
    assert origin.connections == 2
    nothing_is_held(gateway)


def test_stopping_leaves_nothing_behind(h2_folder: Path) -> None:
    with H2Origin(gated, server_context()) as origin:
        text = CONF.format(port=origin.port, folder=h2_folder, upstream="")
        with Gateway(text, h2_folder) as gateway:
            client = gateway.client()
            client.send(b"GET /late HTTP/1.1\r\nHost: api.test\r\n\r\n")
            origin.opened.get(timeout=10)
            worker = gateway.server.worker
        assert len(worker.wheel) == 0
        assert client.read_to_end().startswith((b"", b"HTTP/1.1 503 "))
        client.sock.close()


# Dialling.


def test_an_upstream_without_h2_is_502(make_h2: Make, h2_folder: Path) -> None:
    gateway, _ = make_h2()
    with Origin(ssl_context=server_context()) as plain:
        assert gateway.reload(CONF.format(port=plain.port, folder=h2_folder, upstream=""))
        with gateway.client() as client:
            response = client.get()
            assert (response.status, refusal(response)) == (502, b"tls_protocol_error")
            assert b"does not speak h2" in response.body
    nothing_is_held(gateway)


@pytest.mark.parametrize(
    ("octets", "hold", "status", "error"),
    [
        (b"", True, 504, b"connection_timeout"),
        (b"", False, 502, b"connection_terminated"),
        (b"HTTP/1.1 400 Bad\r\n\r\n", True, 502, b"http_protocol_error"),
        (b"\x00\x00\x08\x07\x00" + bytes(12), True, 502, b"connection_terminated"),
    ],
    ids=["silence", "end", "http", "goaway"],
)
def test_an_upstream_that_does_not_begin_as_h2_does(
    make_h2: Make, h2_folder: Path, octets: bytes, hold: bool, status: int, error: bytes
) -> None:
    class Other(H2Origin):
        async def _serve_requests(self, connection: Connection) -> None:
            await connection.more()
            await connection.send(octets)
            while hold and await connection.more():
                pass

    gateway, _ = make_h2()
    with Other(h2_answer(), server_context()) as other:
        text = CONF.format(
            port=other.port, folder=h2_folder, upstream='timeout = { tls = "400ms" }'
        )
        assert gateway.reload(text)
        with gateway.client() as client:
            response = client.get()
            assert (response.status, refusal(response)) == (status, error)
        nothing_is_held(gateway)


def test_an_upstream_that_says_nothing_of_tls_is_504(make_h2: Make, h2_folder: Path) -> None:
    gateway, _ = make_h2()
    with SilentOrigin() as silent:
        text = CONF.format(
            port=silent.port, folder=h2_folder, upstream='timeout = { tls = "100ms" }'
        )
        assert gateway.reload(text)
        with gateway.client() as client:
            response = client.get()
            assert (response.status, refusal(response)) == (504, b"connection_timeout")
        nothing_is_held(gateway)


def test_a_certificate_of_another_name_is_502(make_h2: Make) -> None:
    gateway, _ = make_h2(ssl_context=server_context("elsewhere.test"))
    with gateway.client() as client:
        response = client.get()
        assert (response.status, refusal(response)) == (502, b"tls_certificate_error")
    nothing_is_held(gateway)


def test_an_upstream_that_is_not_there_is_502(make_h2: Make, h2_folder: Path) -> None:
    gateway, _ = make_h2()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        assert gateway.reload(CONF.format(port=port, folder=h2_folder, upstream=""))
        clients = [gateway.client() for _ in range(5)]
        for client in clients:
            client.send(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
        for client in clients:
            response = client.response()
            assert (response.status, refusal(response)) == (502, b"connection_refused")
            client.sock.close()
    nothing_is_held(gateway)


def test_httpcore_is_imported_by_who_needs_it() -> None:
    program = (
        "import sys, gateway.server, gateway.runtime;"
        "print(sorted({'httpcore', 'h2'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
