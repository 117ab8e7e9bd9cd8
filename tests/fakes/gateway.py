"""A whole gateway in a thread, with its own loop: real sockets, no process to start.

The test talks to it with blocking sockets, so neither side's waiting is the other's.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import uvloop

from gateway.conf.load import load
from gateway.server import Server

__all__ = ["Client", "Gateway", "Response"]

T = TypeVar("T")


class Response:
    """A response as octets, taken apart just enough for assertions."""

    def __init__(self, raw_head: bytes, body: bytes) -> None:
        self.raw_head = raw_head
        self.body = body
        self.lines = raw_head.split(b"\r\n")
        self.status = int(self.lines[0].split(b" ")[1])

    def values(self, name: bytes) -> list[bytes]:
        """All values of the fields of that name, in order."""
        found = []
        for line in self.lines[1:]:
            key, _, value = line.partition(b":")
            if key.lower() == name.lower():
                found.append(value.strip())
        return found

    def value(self, name: bytes) -> bytes:
        """The one value of a field; fails the test where there is none or more than one."""
        values = self.values(name)
        assert len(values) == 1, (name, self.raw_head)
        return values[0]


class Client:
    """A blocking socket with a little HTTP. `recv_*` fail after ten seconds."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.sock = socket.create_connection(address, timeout=10)
        self.buffer = b""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def get(self, path: bytes = b"/", host: bytes = b"api.test", fields: bytes = b"") -> Response:
        """Sends a GET and reads the whole response."""
        self.send(b"GET %s HTTP/1.1\r\nHost: %s\r\n%s\r\n" % (path, host, fields))
        return self.response()

    def response(self, method: bytes = b"GET") -> Response:
        """Reads one final response: Content-Length, chunked, or to the end."""
        while True:
            head = self.read_until(b"\r\n\r\n")[:-4]
            response = Response(head, b"")
            if response.status >= 200 or response.status == 101:
                break
        if method == b"HEAD" or response.status in (204, 304):
            return response
        lengths = response.values(b"content-length")
        if lengths:
            response.body = self.read_exactly(int(lengths[0]))
        elif response.values(b"transfer-encoding"):
            while True:
                size = int(self.read_until(b"\r\n")[:-2], 16)
                data = self.read_exactly(size)
                if not size:
                    while self.read_until(b"\r\n") != b"\r\n":
                        pass
                    break
                response.body += data
                self.read_exactly(2)
        else:
            response.body = self.read_to_end()
        return response

    def read_until(self, end: bytes) -> bytes:
        while end not in self.buffer:
            data = self.sock.recv(65536)
            assert data, f"connection ended before {end!r}: {self.buffer!r}"
            self.buffer += data
        cut = self.buffer.index(end) + len(end)
        found, self.buffer = self.buffer[:cut], self.buffer[cut:]
        return found

    def read_exactly(self, count: int) -> bytes:
        while len(self.buffer) < count:
            data = self.sock.recv(65536)
            assert data, f"connection ended {count - len(self.buffer)} octets early"
            self.buffer += data
        found, self.buffer = self.buffer[:count], self.buffer[count:]
        return found

    def read_to_end(self) -> bytes:
        while data := self.sock.recv(65536):
            self.buffer += data
        found, self.buffer = self.buffer, b""
        return found

    def closed(self) -> bool:
        """Waits for the gateway's FIN (or reset); False if octets come instead."""
        try:
            return not self.buffer and not self.sock.recv(1)
        except ConnectionResetError:
            return True


class Gateway:
    """Runs a Server from a conf text. Use as a context manager."""

    def __init__(self, conf: str, folder: Path, *, loop: str = "uvloop", codec: str = "") -> None:
        self.path = folder / "egressd.toml"
        self.path.write_text(conf)
        overrides = ['log.access="off"', "node.name=gw-test", "node.drain=1s"]
        if codec:
            overrides.append(f"node.codec={codec}")
        self._overrides = overrides
        self._loop_kind = loop
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._error: BaseException | None = None
        self.server: Server
        self.loop: asyncio.AbstractEventLoop
        self.unhandled: list[dict[str, Any]] = []

    def __enter__(self) -> Gateway:
        self._thread.start()
        assert self._started.wait(10)
        if self._error is not None:
            raise self._error
        return self

    def __exit__(self, exc_type: object, *exc: object) -> None:
        self.loop.call_soon_threadsafe(self._stop_now)
        self._thread.join(10)
        assert not self._thread.is_alive()
        if exc_type is None:
            assert not self.unhandled, self.unhandled
            if self._error is not None:
                raise self._error

    @property
    def address(self) -> tuple[str, int]:
        """Where the first listener is."""
        return self.addresses[0]

    @property
    def addresses(self) -> list[tuple[str, int]]:
        return self.call(self.server.listeners.addresses)

    def client(self) -> Client:
        return Client(self.address)

    def call(self, function: Callable[[], T]) -> T:
        """Runs a function in the gateway's loop and returns what it returned."""

        async def inside() -> T:
            return function()

        return asyncio.run_coroutine_threadsafe(inside(), self.loop).result(10)

    def connections(self) -> list[Any]:
        """The client connections that are open (to be called in the gateway's loop)."""
        return [c for listener in self.server.listeners for c in listener.connections]

    def until(self, condition: Callable[[], object], seconds: float = 10.0) -> None:
        """Waits until a condition holds in the gateway's loop. Raises TimeoutError."""

        async def wait() -> None:
            async with asyncio.timeout(seconds):
                while not condition():
                    await asyncio.sleep(0.005)

        asyncio.run_coroutine_threadsafe(wait(), self.loop).result(seconds + 5)

    def reload(self, conf: str) -> bool:
        """Writes the file anew and reloads as SIGHUP does; says whether it was taken over."""
        self.path.write_text(conf)
        return asyncio.run_coroutine_threadsafe(self.server.reload(), self.loop).result(10)

    def upstream(self, name: str) -> Any:
        return self.server.worker.runtime.upstreams[name]

    def _stop_now(self) -> None:
        self.server.stop()
        self.server.stop()  # said twice it does not wait for exchanges

    def _run(self) -> None:
        factory = uvloop.new_event_loop if self._loop_kind == "uvloop" else asyncio.new_event_loop
        try:
            with asyncio.Runner(loop_factory=factory) as runner:
                runner.run(self._main())
        except BaseException as error:
            self._error = error
        finally:
            self._started.set()

    async def _main(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.loop.set_exception_handler(lambda _, context: self.unhandled.append(context))
        self.server = Server(load(self.path, self._overrides), str(self.path), self._overrides)
        self.server.on_ready = self._started.set
        await self.server.run(signals=False)
