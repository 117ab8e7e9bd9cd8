"""The demo's client against servers that do as they please."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from gateway.demo import client as module
from gateway.demo.client import Answer, Client, ClientError

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def talk(handler: Handler, scenario: Callable[[Client], Awaitable[None]]) -> None:
    """Runs the scenario with a client of a server that treats each connection with `handler`."""

    async def run() -> None:
        done = asyncio.Event()

        async def handled(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await handler(reader, writer)
            finally:
                writer.close()
                done.set()

        server = await asyncio.start_server(handled, "127.0.0.1", 0)
        client = Client("127.0.0.1", server.sockets[0].getsockname()[1], timeout_s=5.0)
        try:
            await scenario(client)
        finally:
            client.close()
            await asyncio.wait_for(done.wait(), 5.0)
            server.close()
            await server.wait_closed()

    asyncio.run(run())


async def read_head(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n")


def test_a_connection_is_used_again() -> None:
    connections = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while True:
            try:
                head = await read_head(reader)
            except asyncio.IncompleteReadError:
                return
            assert b"\r\nHost: 127.0.0.1:" in head
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    async def scenario(client: Client) -> None:
        for _ in range(3):
            assert await client.request(b"GET", b"/") == Answer(200, False, b"{}")
        assert await client.json(b"GET", b"/") == {}

    talk(handler, scenario)
    assert connections == 1


def test_a_kept_connection_that_was_closed_meanwhile_is_replaced() -> None:
    connections = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await read_head(reader)
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        # Answers once; the second request on this connection finds it closed.
        if connections == 1:
            await read_head(reader)

    async def scenario(client: Client) -> None:
        assert (await client.request(b"GET", b"/")).status == 204
        assert (await client.request(b"GET", b"/")).status == 204

    talk(handler, scenario)
    assert connections == 2


def test_the_gateways_own_answers_are_known() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.write(
            b"HTTP/1.1 429 Too Many Requests\r\nProxy-Status: x; error=http_request_denied\r\n"
            b"Content-Length: 0\r\n\r\n"
        )

    async def scenario(client: Client) -> None:
        assert await client.request(b"GET", b"/") == Answer(429, True, b"")

    talk(handler, scenario)


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000,
    ],
)
def test_garbage_is_no_answer(octets: bytes) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.write(octets)

    async def scenario(client: Client) -> None:
        with pytest.raises(ClientError):
            await client.request(b"GET", b"/")

    talk(handler, scenario)


@pytest.mark.parametrize("body", [b"nonsense", b"[1]", b"\xff"])
def test_what_is_no_json_object_is_an_error(body: bytes) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    async def scenario(client: Client) -> None:
        with pytest.raises(ClientError):
            await client.json(b"GET", b"/")

    talk(handler, scenario)


def test_an_endless_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BODY_BYTES_MAX", 1000)

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 999999\r\n\r\n" + b"x" * 2000)

    async def scenario(client: Client) -> None:
        with pytest.raises(ClientError, match="too long"):
            await client.request(b"GET", b"/")

    talk(handler, scenario)


def test_silence_is_given_up() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()  # to the end of the connection

    async def scenario(client: Client) -> None:
        client._timeout_s = 0.05
        with pytest.raises(ClientError, match="no answer"):
            await client.request(b"GET", b"/")

    talk(handler, scenario)


def test_nobody_there_is_an_error() -> None:
    async def scenario() -> None:
        server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        server.close()
        await server.wait_closed()
        with pytest.raises(ClientError):
            await Client("127.0.0.1", port).request(b"GET", b"/")

    asyncio.run(scenario())
