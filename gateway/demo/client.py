"""The demo's HTTP client: keep-alive on asyncio streams, under the gateway's own message guard.

One class serves the load generator and the display; both need no more than small requests to a
loopback address, and what comes back is bounded all the same.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any, NamedTuple

from gateway.h1 import encode
from gateway.h1.codec import BadMessage, HeadLimits, ResponseDecoder, load_codec
from gateway.h1.message import Fields, Framing, RequestHead, ResponseHead

__all__ = ["Answer", "Client", "ClientError"]

# The admin's document of a node is some kilobytes; this is for a node that has gone mad.
BODY_BYTES_MAX = 4 * 1024 * 1024
READ_BYTES = 64 * 1024


class ClientError(Exception):
    """No answer: refused, cut off, silent, or not HTTP. The text says which."""


class Answer(NamedTuple):
    """A response. `by_gateway` tells the gateway's own answers (Proxy-Status) from the origin's."""

    status: int
    by_gateway: bool
    body: bytes


class _Sink:
    """Collects one response."""

    def __init__(self) -> None:
        self.head: ResponseHead | None = None
        self.body: list[bytes] = []
        self.body_bytes = 0
        self.done = False

    def head_received(self, head: RequestHead | ResponseHead) -> None:
        assert isinstance(head, ResponseHead)
        self.head = head

    def body_received(self, data: bytes) -> None:
        self.body_bytes += len(data)
        if self.body_bytes <= BODY_BYTES_MAX:
            self.body.append(data)

    def message_complete(self, trailers: Fields) -> None:
        self.done = True

    def answer(self) -> Answer:
        head = self.head
        assert head is not None
        by_gateway = any(name.lower() == b"proxy-status" for name, _ in head.fields)
        return Answer(head.status, by_gateway, b"".join(self.body))


class _Connection:
    __slots__ = ("_codec_sink", "_decoder", "_reader", "_writer", "fresh")

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._codec_sink = _Relay()
        self._decoder: ResponseDecoder = load_codec("auto").response_decoder(
            self._codec_sink, HeadLimits()
        )
        self.fresh = True

    async def exchange(self, method: bytes, out: bytes) -> Answer:
        sink = self._codec_sink.sink = _Sink()
        self._decoder.expect(method)
        self._writer.write(out)
        while not sink.done:
            data = await self._reader.read(READ_BYTES)
            if data:
                self._decoder.feed(data)
            else:
                self._decoder.eof()
            if sink.body_bytes > BODY_BYTES_MAX:
                raise ClientError("the answer is too long")
        self.fresh = False
        return sink.answer()

    @property
    def reusable(self) -> bool:
        return self._decoder.reusable and not self._reader.at_eof()

    def close(self) -> None:
        self._writer.close()


class _Relay:
    """The decoder's sink for a connection's life; passes on to the current response's."""

    def __init__(self) -> None:
        self.sink = _Sink()

    def head_received(self, head: RequestHead | ResponseHead) -> None:
        self.sink.head_received(head)

    def body_received(self, data: bytes) -> None:
        self.sink.body_received(data)

    def message_complete(self, trailers: Fields) -> None:
        self.sink.message_complete(trailers)


class Client:
    """Keep-alive connections to one address; as many as there are requests at a time."""

    def __init__(
        self, host: str, port: int, *, authority: str = "", timeout_s: float = 5.0
    ) -> None:
        self.address = f"{host}:{port}"
        self._host = host
        self._port = port
        self._authority = (authority or self.address).encode()
        self._timeout_s = timeout_s
        self._idle: list[_Connection] = []
        self._all: set[_Connection] = set()

    async def request(self, method: bytes, target: bytes) -> Answer:
        """Sends a request without a body and returns its answer. Raises ClientError."""
        fields: Fields = [(b"Host", self._authority)]
        if method not in (b"GET", b"HEAD"):
            fields.append((b"Content-Length", b"0"))
        out = encode.request(method, target, fields, Framing.NONE)
        try:
            async with asyncio.timeout(self._timeout_s):
                while True:
                    try:
                        return await self._once(method, out)
                    except _StaleError:
                        continue
        except TimeoutError as error:
            raise ClientError(f"{self.address}: no answer in {self._timeout_s} s") from error
        except (OSError, BadMessage) as error:
            raise ClientError(f"{self.address}: {error}") from error

    async def json(self, method: bytes, target: bytes) -> dict[str, Any]:
        """The JSON object that a request gets. Raises ClientError for anything else."""
        answer = await self.request(method, target)
        try:
            document = json.loads(answer.body)
        except ValueError as error:
            raise ClientError(f"{self.address}: answered no JSON") from error
        if answer.status != 200 or not isinstance(document, dict):
            raise ClientError(f"{self.address}: answered {answer.status}")
        return document

    def close(self) -> None:
        """Closes all connections."""
        for connection in self._all:
            connection.close()
        self._all.clear()
        self._idle.clear()

    async def _once(self, method: bytes, out: bytes) -> Answer:
        if self._idle:
            connection = self._idle.pop()
        else:
            connection = _Connection(*await asyncio.open_connection(self._host, self._port))
            self._all.add(connection)
        keep = False
        try:
            answer = await connection.exchange(method, out)
            keep = connection.reusable
            return answer
        except (OSError, BadMessage) as error:
            # A kept connection may have been closed by the other side meanwhile.
            if connection.fresh:
                raise
            raise _StaleError from error
        finally:
            if keep:
                self._idle.append(connection)
            else:
                self._all.discard(connection)
                connection.close()


class _StaleError(Exception):
    """A kept connection broke before it answered: the request goes out again on another."""
