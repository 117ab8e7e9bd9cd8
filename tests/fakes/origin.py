"""Origins for tests: trio in a thread of their own, so that the subject's loop never serves itself.

`Origin` answers by a script, octet for octet, and keeps what it received.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import trio

__all__ = ["Origin", "Received", "Script", "SilentOrigin", "answer"]


@dataclass
class Received:
    """One request as it reached the origin."""

    raw_head: bytes
    body: bytes = b""
    at_ns: int = 0
    connection: int = 0

    @property
    def lines(self) -> list[bytes]:
        return self.raw_head.split(b"\r\n")

    @property
    def request_line(self) -> bytes:
        return self.lines[0]

    @property
    def target(self) -> bytes:
        return self.request_line.split(b" ")[1]

    def values(self, name: bytes) -> list[bytes]:
        """All values of the fields of that name, in order."""
        found = []
        for line in self.lines[1:]:
            key, _, value = line.partition(b":")
            if key.lower() == name.lower():
                found.append(value.strip())
        return found


Script = Callable[["Connection", Received], Awaitable[bool | None]]


@dataclass
class Connection:
    """The origin's end of a connection, for a script."""

    stream: trio.abc.Stream
    number: int
    buffer: bytearray = field(default_factory=bytearray)

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def more(self) -> bool:
        data = await self.stream.receive_some(65536)
        self.buffer += data
        return bool(data)


def answer(
    status: bytes = b"200 OK", body: bytes = b"hello", fields: bytes = b"", *, close: bool = False
) -> Script:
    """A script that answers every request alike, with Content-Length."""

    async def script(connection: Connection, request: Received) -> bool:
        head = b"HTTP/1.1 %s\r\nContent-Length: %d\r\n%s" % (status, len(body), fields)
        if close:
            head += b"Connection: close\r\n"
        sent = b"" if request.request_line.startswith(b"HEAD ") else body
        await connection.send(head + b"\r\n" + sent)
        return not close

    return script


class Origin:
    """A scripted HTTP/1.1 origin on a loopback port. Use as a context manager.

    The script returns False (or raises) to close the connection. `requests` holds all that came,
    in order. Faults of a script are raised when the origin is closed. With `close_notify` a script
    that closes its TLS stream says so first; by default, as most HTTPS servers, it does not.
    `enter` is called first in its thread, and may take it to a network namespace where `host` is
    an address.
    """

    def __init__(
        self,
        script: Script | None = None,
        ssl_context: object = None,
        *,
        close_notify: bool = False,
        host: str = "127.0.0.1",
        enter: Callable[[], None] | None = None,
    ) -> None:
        self.script: Script = script or answer()
        self.requests: list[Received] = []
        self.arrivals: queue.Queue[Received] = queue.Queue()
        self.connections = 0
        self.open_now = 0
        self._ssl = ssl_context
        self._close_notify = close_notify
        self._host = host
        self._enter = enter
        self._started = threading.Event()
        self._cancel: trio.CancelScope | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.port = 0

    def __enter__(self) -> Origin:
        self._thread.start()
        assert self._started.wait(10)
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._token is not None
        assert self._cancel is not None
        self._token.run_sync_soon(self._cancel.cancel)
        self._thread.join(10)
        assert not self._thread.is_alive()

    @property
    def url(self) -> str:
        host = "localhost" if self._host == "127.0.0.1" else self._host
        return f"{'https' if self._ssl else 'http'}://{host}:{self.port}"

    def next_request(self, timeout: float = 10.0) -> Received:
        """Waits for the next request that came. Raises queue.Empty."""
        return self.arrivals.get(timeout=timeout)

    def _run(self) -> None:
        if self._enter is not None:
            self._enter()
        trio.run(self._main)

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        with trio.CancelScope() as self._cancel:
            async with trio.open_nursery() as nursery:
                listeners = await trio.open_tcp_listeners(0, host=self._host)
                self.port = listeners[0].socket.getsockname()[1]
                self._started.set()
                await trio.serve_listeners(self._serve, listeners, handler_nursery=nursery)

    async def _serve(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        self.open_now += 1
        wrapped: trio.abc.Stream = stream
        try:
            if self._ssl is not None:
                wrapped = trio.SSLStream(
                    stream,
                    self._ssl,
                    server_side=True,
                    https_compatible=not self._close_notify,
                )
            await self._serve_requests(Connection(wrapped, self.connections))
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            pass
        finally:
            self.open_now -= 1
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 0.5):
                await trio.aclose_forcefully(wrapped)

    async def _serve_requests(self, connection: Connection) -> None:
        while True:
            request = await read_request(connection)
            if request is None:
                return
            self.requests.append(request)
            self.arrivals.put(request)
            if await self.script(connection, request) is False:
                return


async def read_request(connection: Connection) -> Received | None:
    """One whole request (Content-Length or chunked, undecoded), or None at the end."""
    buffer = connection.buffer
    while b"\r\n\r\n" not in buffer:
        if not await connection.more():
            return None
    head, _, rest = bytes(buffer).partition(b"\r\n\r\n")
    request = Received(head, at_ns=time.monotonic_ns(), connection=connection.number)
    lengths = request.values(b"content-length")
    buffer[:] = rest
    if lengths:
        length = int(lengths[0])
        while len(buffer) < length:
            if not await connection.more():
                return None
        request.body = bytes(buffer[:length])
        del buffer[:length]
    elif request.values(b"transfer-encoding"):
        while (end := chunked_end(buffer)) is None:
            if not await connection.more():
                return None
        request.body = bytes(buffer[:end])
        del buffer[:end]
    return request


def chunked_end(buffer: bytearray) -> int | None:
    """Where a chunked body that begins the buffer ends, trailers included; None: it goes on."""
    at = 0
    while (line := buffer.find(b"\r\n", at)) >= 0:
        size = int(buffer[at:line].partition(b";")[0], 16)
        if not size:
            end = buffer.find(b"\r\n\r\n", line)
            return end + 4 if end >= 0 else None
        at = line + 2 + size + 2
    return None


class SilentOrigin(Origin):
    """Accepts, reads whatever comes and never says a word."""

    async def _serve_requests(self, connection: Connection) -> None:
        while await connection.more():
            connection.buffer.clear()
