"""The usual cure, as small as it can be: a forwarder that asks one Redis about every request.

GCRA in Lua, EVALSHA over one pipelined connection, the limit named by the request's path; refusals
are 429, and so is everything while Redis does not answer in time (it fails closed; open it would
keep no limit). Usage: forwarder.py PORT ORIGIN_PORT REDIS_HOST REDIS_PORT
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from pathlib import Path
from typing import cast

import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.rivals import GCRA

ANSWER_SECONDS = 1.0
REFUSED = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n\r\n"
FAILED = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"


def command(*words: bytes) -> bytes:
    """A command in RESP (https://redis.io/docs/latest/develop/reference/protocol-spec/)."""
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(w), w) for w in words)


class Redis(asyncio.Protocol):
    """One connection; answers (integers, here) come in the order of the questions."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._asked: deque[asyncio.Future[int]] = deque()
        self.sha = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it

    def ask(self, key: bytes, rate: bytes, burst: bytes) -> asyncio.Future[int]:
        assert self._transport is not None
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._asked.append(future)
        self._transport.write(command(b"EVALSHA", self.sha, b"1", key, rate, burst))
        return future

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n")) >= 0:
            line, self._buffer = self._buffer[:end], self._buffer[end + 2 :]
            future = self._asked.popleft()
            if not future.done():
                if line.startswith(b":"):
                    future.set_result(int(line[1:]))
                else:
                    future.set_exception(OSError(line.decode()))

    def connection_lost(self, exc: Exception | None) -> None:
        raise SystemExit("redis closed the connection")


class Origin:
    """Kept connections to the origin."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def exchange(self, head: bytes) -> bytes:
        if self._idle:
            reader, writer = self._idle.pop()
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(head)
        answer = await reader.readuntil(b"\r\n\r\n")
        length = answer.partition(b"Content-Length: ")[2].partition(b"\r\n")[0]
        body = await reader.readexactly(int(length))
        self._idle.append((reader, writer))
        return answer + body


class Forwarder(asyncio.Protocol):
    """One client's connection: one request at a time."""

    def __init__(self, redis: Redis, origin: Origin) -> None:
        self._redis = redis
        self._origin = origin
        self._buffer = b""
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._buffer.endswith(b"\r\n\r\n"):
            head, self._buffer = self._buffer, b""
            self._task = asyncio.get_running_loop().create_task(self._one(head))

    async def _one(self, head: bytes) -> None:
        # /rRATE-BURST/CELL
        _, group, cell = head.split(b" ", 2)[1].split(b"/")[:3]
        rate, _, burst = group[1:].partition(b"-")
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                wait_us = await self._redis.ask(cell, rate, burst)
            answer = REFUSED if wait_us else await self._origin.exchange(head)
        except TimeoutError:
            answer = REFUSED
        except (OSError, asyncio.IncompleteReadError):
            answer = FAILED
        if self._transport is not None:
            self._transport.write(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None


async def serve(port: int, origin_port: int, redis_host: str, redis_port: int) -> None:
    loop = asyncio.get_running_loop()
    reader, writer = await asyncio.open_connection(redis_host, redis_port)
    writer.write(command(b"SCRIPT", b"LOAD", GCRA.encode()))
    await reader.readline()
    sha = (await reader.readline()).strip()
    writer.close()
    _, redis = await loop.create_connection(Redis, redis_host, redis_port)
    redis.sha = sha
    origin = Origin(origin_port)
    server = await loop.create_server(
        lambda: Forwarder(redis, origin), "127.0.0.1", port, backlog=4096
    )
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])))
