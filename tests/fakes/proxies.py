"""Chained proxies for tests: CONNECT and absolute-form, or SOCKS5, as little as each needs."""

from __future__ import annotations

import contextlib
import ipaddress
import re
from collections.abc import Iterator

import trio
from fakes.origin import Connection, Origin

__all__ = ["HttpProxy", "Socks5Proxy"]


class _Proxy(Origin):
    """`asked` holds where clients wanted to go. With `answer` that is sent instead, octet for
    octet and in `parts` of that size, and the connection stays open if `hold` is true."""

    def __init__(self, answer: bytes | None = None, *, parts: int = 65536, hold: bool = False):
        super().__init__()
        self.answer = answer
        self.parts = parts
        self.hold = hold
        self.asked: list[bytes] = []

    async def _say(self, connection: Connection, data: bytes) -> None:
        for part in _cut(data, self.parts):
            await connection.send(part)
            await trio.sleep(0)

    async def _refuse(self, connection: Connection) -> None:
        assert self.answer is not None
        await self._say(connection, self.answer)
        if self.hold:
            while await connection.more():
                pass

    async def _pipe(self, connection: Connection, host: str, port: int, first: bytes) -> None:
        upstream = await trio.open_tcp_stream(host, port)
        async with upstream, trio.open_nursery() as nursery:
            await upstream.send_all(first)
            nursery.start_soon(_copy, connection.stream, upstream)
            await _copy(upstream, connection.stream)
            nursery.cancel_scope.cancel()


class HttpProxy(_Proxy):
    """RFC 9110 section 9.3.6 and RFC 9112 section 3.2.2; `asked` holds the request-targets."""

    async def _serve_requests(self, connection: Connection) -> None:
        while b"\r\n\r\n" not in connection.buffer:
            if not await connection.more():
                return
        head, _, rest = bytes(connection.buffer).partition(b"\r\n\r\n")
        method, target, _ = head.split(b"\r\n")[0].split(b" ")
        self.asked.append(target)
        if self.answer is not None:
            await self._refuse(connection)
        elif method == b"CONNECT":
            host, _, port = target.decode().rpartition(":")
            await self._say(connection, b"HTTP/1.1 200 Connection established\r\nX-A: b\r\n\r\n")
            await self._pipe(connection, host, int(port), rest)
        else:
            found = re.fullmatch(rb"http://([^/?]+):(\d+)(.*)", target)
            assert found is not None, target
            path = found[3] or b"*"
            first = head.replace(target, path, 1) + b"\r\n\r\n" + rest
            await self._pipe(connection, found[1].decode(), int(found[2]), first)


class Socks5Proxy(_Proxy):
    """RFC 1928; `asked` holds the addresses as they were sent, type and port included."""

    async def _serve_requests(self, connection: Connection) -> None:
        buffer = connection.buffer
        while len(buffer) < 3:
            if not await connection.more():
                return
        assert bytes(buffer[:3]) == b"\x05\x01\x00"
        del buffer[:3]
        if self.answer is not None and not self.answer.startswith(b"\x05\x00"):
            await self._refuse(connection)
            return
        await self._say(connection, b"\x05\x00")
        while len(buffer) < 5 or len(buffer) < self._size(buffer):
            if not await connection.more():
                return
        assert bytes(buffer[:3]) == b"\x05\x01\x00"
        address = bytes(buffer[3 : self._size(buffer)])
        del buffer[: self._size(buffer)]
        self.asked.append(address)
        if self.answer is not None:
            self.answer = self.answer[2:]
            await self._refuse(connection)
            return
        await self._say(connection, b"\x05\x00\x00\x03\x04gate\x00\x00")
        host = (
            address[2:-2].decode() if address[0] == 3 else str(ipaddress.ip_address(address[1:-2]))
        )
        await self._pipe(connection, host, int.from_bytes(address[-2:], "big"), bytes(buffer))

    @staticmethod
    def _size(buffer: bytearray) -> int:
        return 4 + {1: 4, 3: 1 + buffer[4], 4: 16}[buffer[3]] + 2


def _cut(data: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def _copy(source: trio.abc.Stream, target: trio.abc.Stream) -> None:
    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        while data := await source.receive_some(65536):
            await target.send_all(data)
