"""The service manager's end of sd_notify(3): a datagram socket that keeps what it is told."""

from __future__ import annotations

import socket
import time
from pathlib import Path

__all__ = ["Manager"]


class Manager:
    """Receives notifications. Use as a context manager."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "notify"
        self.told: list[dict[str, str]] = []
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(str(self.path))

    def __enter__(self) -> Manager:
        return self

    def __exit__(self, *exc: object) -> None:
        self._sock.close()

    def wait_for(self, key: str, seconds: float = 10.0) -> dict[str, str]:
        """The next datagram that has the key; those before it are kept in `told`."""
        deadline = time.monotonic() + seconds
        while True:
            self._sock.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                data = self._sock.recv(4096)
            except TimeoutError:
                raise AssertionError(f"no {key} within {seconds} s, but {self.told}") from None
            lines = data.decode().split("\n")
            datagram = dict(line.split("=", 1) for line in lines)
            self.told.append(datagram)
            if key in datagram:
                return datagram
