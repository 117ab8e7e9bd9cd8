"""A real redis-server for tests: on a free port, without a disk, ended by its pid."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path
from typing import Any

import hiredis
from fakes.nodes import free_port, until
from fakes.server import ServerProcess

__all__ = ["RedisServer", "redis_missing"]

START_SECONDS = 10.0


def redis_missing() -> str:
    """Why the server cannot be used here; "" where it can."""
    return "" if shutil.which("redis-server") else "redis-server is not installed"


class RedisServer(ServerProcess):
    """`options` go onto its command line."""

    def __init__(self, folder: Path, *options: str, port: int = 0, tls: bool = False) -> None:
        super().__init__(folder / "redis.log")
        self._folder = folder
        self._options = options
        self._tls = tls
        self.port = port or free_port()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Starts it, and waits until it answers (with TLS, until it listens)."""
        port = ["--port", "0", "--tls-port"] if self._tls else ["--port"]
        self._run(["redis-server", *port, str(self.port), "--bind", "127.0.0.1", "--save", "",
                   "--appendonly", "no", "--dir", str(self._folder), *self._options])  # fmt: skip

        def there() -> bool:
            try:
                if self._tls:
                    socket.create_connection(("127.0.0.1", self.port), 1).close()
                else:
                    self.run("PING")
            except (OSError, EOFError):
                return False
            return True

        until(there, START_SECONDS, "redis-server answers")

    def run(self, *command: Any) -> Any:
        """The reply to one command, on a connection of its own; errors come as values."""
        reader = hiredis.Reader()
        with socket.create_connection(("127.0.0.1", self.port), 5) as sock:
            sock.sendall(hiredis.pack_command(command))
            while True:
                reply = reader.gets()
                if reply is not False:
                    return reply
                data = sock.recv(65536)
                if not data:
                    raise EOFError("it closed the connection")
                reader.feed(data)

    def keys(self) -> list[bytes]:
        """The names of the rows that it keeps now, but not the probe's."""
        return [key for key in self.run("KEYS", "egressd:*") if key != b"egressd:probe"]
