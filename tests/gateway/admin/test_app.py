"""The interface over a real socket: routes, token, what it does with garbage, how it stops."""

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from gateway.admin import app as module
from gateway.admin.app import worker_interface

MakeServed = Callable[..., Any]
Ask = Callable[..., Awaitable[tuple[int, bytes, bytes]]]


def serve(served: Any, scenario: Callable[[Ask, int], Awaitable[None]]) -> None:
    """Runs the scenario while the interface serves; `ask` sends octets, reads one answer."""

    async def run() -> None:
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        admin = worker_interface(served, sock)
        await admin.start()

        async def ask(
            path: str = "/", *fields: str, method: str = "GET", raw: bytes = b""
        ) -> tuple[int, bytes, bytes]:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *fields, "Connection: close"]
            writer.write(raw or "\r\n".join([*lines, "", ""]).encode("latin-1"))
            answer = await asyncio.wait_for(reader.read(), 5.0)
            writer.close()
            await writer.wait_closed()
            head, _, body = answer.partition(b"\r\n\r\n")
            return int(head.split(b" ", 2)[1]), head.lower(), body

        try:
            await scenario(ask, port)
        finally:
            await admin.stop()

    asyncio.run(run())


def test_every_route_answers(make_served: MakeServed) -> None:
    async def scenario(ask: Ask, port: int) -> None:
        status, head, body = await ask("/api/v1/node")
        assert status == 200
        assert b"content-type: application/json" in head
        assert b"cache-control: no-store" in head
        assert json.loads(body)["node"]["name"] == "gw-7"
        status, head, body = await ask("/metrics")
        assert status == 200
        assert b"content-type: text/plain; version=0.0.4" in head
        assert b"egressd_build_info" in body
        assert json.loads((await ask("/live"))[2]) == {"live": True}
        status, _, body = await ask("/ready")
        assert (status, json.loads(body)["why"]) == (200, "serving")

    serve(make_served(), scenario)


def test_readiness_follows_the_worker(make_served: MakeServed) -> None:
    served = make_served()

    async def scenario(ask: Ask, port: int) -> None:
        served.worker.draining = True
        status, _, body = await ask("/ready")
        assert (status, json.loads(body)) == (503, {"ready": False, "why": "draining"})
        assert (await ask("/live"))[0] == 200

    serve(served, scenario)


def test_nothing_can_be_written_and_nothing_else_is_there(make_served: MakeServed) -> None:
    async def scenario(ask: Ask, port: int) -> None:
        for path in ("/live", "/ready", "/metrics", "/api/v1/node"):
            for method in ("POST", "PUT", "DELETE", "OPTIONS"):
                status, head, _ = await ask(path, method=method)
                assert status == 405
                assert b"access-control" not in head
        for path in ("/static/", "/docs", "/api", "/api/v1/node/../../live", "//live", "/live%00"):
            assert (await ask(path))[0] == 404
        status, head, _ = await ask("/metrics", "Origin: http://evil.example")
        assert status == 403
        assert b"access-control" not in head

    serve(make_served(), scenario)


def test_the_token_is_demanded_but_for_health_checks(make_served: MakeServed) -> None:
    served = make_served(token="correct-horse")

    async def scenario(ask: Ask, port: int) -> None:
        for path in ("/metrics", "/api/v1/node", "/static/", "/nonsense"):
            status, head, body = await ask(path)
            assert status == 401
            assert b"www-authenticate: bearer" in head
            assert b"correct-horse" not in body
        assert (await ask("/live"))[0] == 200
        assert (await ask("/ready"))[0] == 200
        assert (await ask("/metrics", "Authorization: Bearer correct-horse"))[0] == 200
        assert (await ask("/metrics", "Authorization: bearer correct-horse"))[0] == 200

    serve(served, scenario)


@pytest.mark.parametrize(
    "fields",
    [
        ["Authorization: Bearer wrong"],
        ["Authorization: Bearer correct-horse-and-more"],
        ["Authorization: Bearer correct"],
        ["Authorization: Bearer"],
        ["Authorization: correct-horse"],
        ["Authorization: Basic correct-horse"],
        ["Authorization: Bearer \xe9\xff"],
        ["Authorization: Bearer wrong", "Authorization: Bearer correct-horse"],
        ["Authorization: Bearer correct-horse", "Authorization: Bearer correct-horse"],
        ["X-Token: correct-horse"],
    ],
)
def test_anything_else_is_no_token(make_served: MakeServed, fields: list[str]) -> None:
    async def scenario(ask: Ask, port: int) -> None:
        assert (await ask("/metrics", *fields))[0] == 401

    serve(make_served(token="correct-horse"), scenario)


@pytest.mark.parametrize(
    "raw",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
        b"GET /live HTTP/1.1\r\n\r\n",
        b"GET /live HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: b\r\n\r\n",
        b"GET /live HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"y" * 40_000,
        b"GET /" + b"y" * 40_000,
    ],
)
def test_garbage_is_refused_and_the_interface_goes_on(make_served: MakeServed, raw: bytes) -> None:
    async def scenario(ask: Ask, port: int) -> None:
        assert (await ask(raw=raw))[0] == 400
        assert (await ask("/live"))[0] == 200

    serve(make_served(), scenario)


def test_connections_are_bounded(make_served: MakeServed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONNECTIONS_MAX", 4)

    async def scenario(ask: Ask, port: int) -> None:
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(4)]
        assert (await ask("/live"))[0] == 503
        for _, writer in held:
            writer.close()
            await writer.wait_closed()
        async with asyncio.timeout(5.0):
            while (await ask("/live"))[0] != 200:
                pass  # the interface has not heard yet that they are gone

    serve(make_served(), scenario)


@pytest.mark.parametrize(
    "begun",
    [
        b"",
        b"GET /live HT",
        b"GET /live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET /live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nGET /live HT",
    ],
)
def test_silence_is_ended(
    make_served: MakeServed, monkeypatch: pytest.MonkeyPatch, begun: bytes
) -> None:
    monkeypatch.setattr(module, "SILENCE_SECONDS", 0.02)

    async def scenario(ask: Ask, port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(begun)
        answer = await asyncio.wait_for(reader.read(), 5.0)  # to the end of the connection
        assert answer.count(b"HTTP/1.1 200 OK") == begun.count(b"\r\n\r\n")
        writer.close()
        await writer.wait_closed()

    serve(make_served(), scenario)


def test_a_connection_in_use_is_not_ended(
    make_served: MakeServed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SILENCE_SECONDS", 0.5)

    async def scenario(ask: Ask, port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        loop = asyncio.get_running_loop()
        until = loop.time() + 1.2  # two looks and more
        while loop.time() < until:
            writer.write(b"GET /live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            await asyncio.wait_for(reader.readuntil(b'{"live":true}\n'), 5.0)
        writer.close()
        await writer.wait_closed()

    serve(make_served(), scenario)


def test_it_stops_although_connections_are_open(make_served: MakeServed) -> None:
    async def run() -> None:
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        admin = worker_interface(make_served(), sock)
        await admin.start()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert b"200" in await reader.readline()
        await asyncio.wait_for(admin.stop(), 5.0)
        await asyncio.wait_for(reader.read(), 5.0)  # to the end of the connection
        writer.close()
        await writer.wait_closed()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)

    asyncio.run(run())


def test_a_socket_that_cannot_listen_is_an_error(make_served: MakeServed) -> None:
    async def run() -> None:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("127.0.0.1", 0))
        with pytest.raises((OSError, ValueError)):
            await worker_interface(make_served(), sock).start()

    asyncio.run(run())


def test_a_body_that_does_not_come_is_not_waited_for(
    make_served: MakeServed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BODY_SECONDS", 0.05)
    head = b"POST /api/v1/reload HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"

    async def scenario(ask: Ask, port: int) -> None:
        begun = head + b"Connection: close\r\nContent-Length: 10\r\n\r\n{"
        status, _, body = await ask(raw=begun)
        assert (status, json.loads(body)["title"]) == (408, "Request Timeout")
        # One that breaks off is nobody's fault and leaves no trace.
        _reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(begun)
        writer.close()
        await writer.wait_closed()
        assert (await ask("/live"))[0] == 200

    serve(make_served(), scenario)


def test_who_takes_no_octet_of_an_answer_is_let_go(
    make_served: MakeServed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SILENCE_SECONDS", 0.02)
    served = make_served()
    # Some 20 MB, more than the kernel's buffers for both sides hold.
    served.worker.counts = {f"{number:0200}": number for number in range(100_000)}

    async def run() -> None:
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        admin = worker_interface(served, sock)
        port = sock.getsockname()[1]
        await admin.start()
        connections = admin._uvicorn.server_state.connections
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.send(b"GET /api/v1/node HTTP/1.1\r\nHost: localhost\r\n\r\n")
            async with asyncio.timeout(20.0):
                while not connections:
                    await asyncio.sleep(0.005)
                while connections:
                    await asyncio.sleep(0.005)
        await admin.stop()

    asyncio.run(run())
