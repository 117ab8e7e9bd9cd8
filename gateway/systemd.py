"""Tells the service manager how the process is: sd_notify(3), a datagram to NOTIFY_SOCKET.

Without NOTIFY_SOCKET nobody wants to know, and nothing is sent. A datagram that cannot be sent is
counted and otherwise let go: the service does not depend on who watches it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping

__all__ = ["Notifier"]

STATUS_CHARACTERS_MAX = 500  # a line in `systemctl status`


class Notifier:
    """The states of a service. `watchdog_ns` 0: no sign of life is wanted."""

    def __init__(self, address: str = "", watchdog_ns: int = 0) -> None:
        """Raises OSError where `address` is neither a path nor an abstract name ("@...")."""
        self.unsent = 0
        self._watchdog_ns = watchdog_ns
        self._alive_ns = 0
        self._sock: socket.socket | None = None
        if not address:
            return
        if address[0] not in "/@":
            raise OSError(f"NOTIFY_SOCKET is {address[:100]!r}; a path or @NAME is allowed")
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)
            sock.connect("\0" + address[1:] if address[0] == "@" else address)
        except OSError as error:
            sock.close()
            raise OSError(error.errno, f"NOTIFY_SOCKET {address}: {error.strerror}") from error
        self._sock = sock

    @classmethod
    def from_environ(cls, environ: MutableMapping[str, str]) -> Notifier:
        """By NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID, which are taken out: the processes that
        this one starts must not speak for it. Raises OSError."""
        address = environ.pop("NOTIFY_SOCKET", "")
        usec, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        wanted = usec.isascii() and usec.isdigit() and len(usec) < 19  # below 2**63
        if not wanted or pid not in ("", str(os.getpid())):
            usec = "0"
        return cls(address, int(usec) * 1000)

    def ready(self, status: str) -> None:
        """The start, or a reload, is over."""
        self._send("READY=1", status)

    def reloading(self, now_ns: int) -> None:
        """A reload has begun; `ready` ends it. `now_ns` is CLOCK_MONOTONIC, which orders this
        message and the manager's own view."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={now_ns // 1000}", "reloading")

    def stopping(self, status: str) -> None:
        """New requests are no longer welcome."""
        self._send("STOPPING=1", status)

    def alive(self, now_ns: int) -> None:
        """To be called whenever the loop turns: says so three times per watchdog interval."""
        if self._watchdog_ns and now_ns - self._alive_ns >= self._watchdog_ns // 3:
            self._alive_ns = now_ns
            self._send("WATCHDOG=1", "")

    def close(self) -> None:
        """Nothing more will be said."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def _send(self, state: str, status: str) -> None:
        if self._sock is None:
            return
        if status:
            line = " ".join(status.split())[:STATUS_CHARACTERS_MAX]
            state += f"\nSTATUS={line}"
        try:
            self._sock.send(state.encode())
        except OSError:
            self.unsent += 1
