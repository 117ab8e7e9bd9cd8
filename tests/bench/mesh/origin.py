"""The judge: an origin in a process of its own that stamps every request on arrival.

A request's path is `/GROUP/CELL/...`; stamps are kept by cell, with the client's own stamp (the
field X-Sent), both of CLOCK_MONOTONIC, which all processes of a host share. Control, never counted:

    /_bench/take/CELL      [[arrived, sent], ...] of a cell as JSON, and forgets them
    /_bench/refuse/CELL    the cell's next request gets 429 with Retry-After: 1
    /_bench/refused/CELL   when that answer was written, 0 before
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import defaultdict
from time import monotonic_ns
from typing import cast

import uvloop

HEAD_BYTES_MAX = 16 * 1024
STAMPS_MAX = 1_000_000  # of a cell: 1,000/s for a quarter of an hour
RETRY_AFTER_S = 1
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
THROTTLED = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: %d\r\nContent-Length: 0\r\n\r\n"


class Record:
    """What was seen, by cell."""

    def __init__(self) -> None:
        self.stamps: defaultdict[bytes, list[tuple[int, int]]] = defaultdict(list)
        self.refuse: set[bytes] = set()
        self.refused_ns: dict[bytes, int] = {}

    def answer(self, head: bytes) -> bytes:
        now_ns = monotonic_ns()
        path = head.split(b" ", 2)[1]
        parts = path.split(b"/")
        if parts[1] == b"_bench":
            return self.control(parts[2], parts[3])
        cell = parts[2]
        stamps = self.stamps[cell]
        if len(stamps) < STAMPS_MAX:
            stamps.append((now_ns, sent_ns(head)))
        if cell in self.refuse:
            self.refuse.discard(cell)
            self.refused_ns[cell] = monotonic_ns()
            return THROTTLED % RETRY_AFTER_S
        return OK

    def control(self, verb: bytes, cell: bytes) -> bytes:
        if verb == b"take":
            found: object = self.stamps.pop(cell, [])
        elif verb == b"refuse":
            self.refused_ns.pop(cell, None)
            self.refuse.add(cell)
            found = True
        else:
            found = self.refused_ns.get(cell, 0)
        body = json.dumps(found).encode()
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def sent_ns(head: bytes) -> int:
    """The client's stamp; field names come in any case."""
    at = head.lower().find(b"\r\nx-sent:")
    if at < 0:
        return 0
    value = head[at + 9 : head.index(b"\r\n", at + 2)].strip()
    return int(value) if value.isdigit() else 0


class Connection(asyncio.Protocol):
    """Requests without bodies, one after the other."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head, self._buffer = self._buffer[: end + 2], self._buffer[end + 4 :]
            self._transport.write(self._record.answer(head))
        if len(self._buffer) > HEAD_BYTES_MAX:
            self._transport.abort()


async def serve(port: int) -> None:
    loop = asyncio.get_running_loop()
    record = Record()
    server = await loop.create_server(lambda: Connection(record), "127.0.0.1", port, backlog=4096)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
