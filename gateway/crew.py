"""A supervisor's view of one worker: its process, its channel, how often it had to be restarted."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gateway.clock import MS, SECOND, monotonic_ns
from gateway.control import FDS_MAX, Channel

__all__ = ["Backoff", "Member"]

# A fresh interpreter, not a fork: nothing of the supervisor's loop, threads or secrets that a
# reload has replaced is inherited, and after an upgrade a restarted worker runs the new code.
# Past the command line, whose libraries a worker does not need.
COMMAND = (sys.executable, "-P", "-m", "gateway.worker")
SOURCE_FOLDER = str(Path(__file__).resolve().parents[1])


class Backoff:
    """How long to wait before a worker is started again.

    Twice as long after each end, from 0.1 s (a worker killed by mistake is hardly missed) to 10 s
    (a start costs half a second of a core: one in twenty). A worker that lived for a minute has
    recovered.
    """

    FIRST_NS = 100 * MS
    MAX_NS = 10 * SECOND
    RECOVERED_NS = 60 * SECOND

    def __init__(self) -> None:
        self._ends = 0

    def next_ns(self, lived_ns: int) -> int:
        """The pause after a life of that length."""
        if lived_ns >= self.RECOVERED_NS:
            self._ends = 0
        self._ends += 1
        return min(self.MAX_NS, self.FIRST_NS << min(self._ends - 1, 30))


class Member:
    """One of the workers. Its number is its slot: which sockets are its own."""

    def __init__(self, number: int, name: str, admin_path: str) -> None:
        self.number = number
        self.name = name
        self.admin_path = admin_path
        self.ready = False
        self.restarts = 0
        self.stalls = 0
        self.reason = ""  # why it could not start
        self.asked_to_end = False
        self.heard_ns = 0
        self.started_ns = 0
        self.borrowed: set[int] = set()  # slots of siblings that it serves too
        self.backoff = Backoff()
        self.on_change: Callable[[Member], None] = _nothing  # it is ready, or no longer
        self._process: asyncio.subprocess.Process | None = None
        self._channel: Channel | None = None
        self._answer: asyncio.Future[tuple[str, dict[str, Any]]] | None = None

    @property
    def pid(self) -> int:
        """0 while there is no process."""
        return self._process.pid if self._process is not None else 0

    @property
    def unsent(self) -> int:
        return self._channel.unsent if self._channel is not None else 0

    async def start(self) -> None:
        """Starts the process; it waits for what it is told. Raises OSError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        paths = [SOURCE_FOLDER, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        self.ready, self.asked_to_end, self.reason = False, False, ""
        self.heard_ns = self.started_ns = monotonic_ns()
        self.borrowed.clear()
        self._channel = Channel(ours, self._said, self._ended)
        self._answer = asyncio.get_running_loop().create_future()
        try:
            self._process = await asyncio.create_subprocess_exec(
                *COMMAND,
                str(theirs.fileno()),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))},
            )
        except OSError:
            self._channel.close()
            raise
        finally:
            theirs.close()

    def tell(self, what: str, fds: Sequence[int] = (), **facts: Any) -> bool:
        """False where it cannot hear."""
        return self._channel is not None and self._channel.send(what, fds, **facts)

    def give(self, what: str, sockets: Sequence[tuple[str, int, int]]) -> None:
        """Sends sockets (address, slot, descriptor), as many messages as they need."""
        for begin in range(0, len(sockets), FDS_MAX):
            some = sockets[begin : begin + FDS_MAX]
            names = [(name, slot) for name, slot, _ in some]
            self.tell(what, [fd for _, _, fd in some], names=names)

    async def ask(
        self, what: str, fds: Sequence[int] = (), *, seconds: float
    ) -> tuple[str, dict[str, Any]]:
        """What it answers; "gone" where it ends instead, "silent" where it says nothing."""
        self._answer = asyncio.get_running_loop().create_future()
        if not self.tell(what, fds):
            return "gone", {}
        return await self.answer(seconds)

    async def answer(self, seconds: float) -> tuple[str, dict[str, Any]]:
        """The answer to the start, or to what was asked."""
        assert self._answer is not None
        try:
            async with asyncio.timeout(seconds):
                return await self._answer
        except TimeoutError:
            return "silent", {}

    async def wait(self) -> int:
        """The exit status, once it has ended."""
        assert self._process is not None
        status = await self._process.wait()
        self.ready = False
        self._process = None
        if self._channel is not None:
            self._channel.close()
        self._settle("gone", {})
        return status

    def kill(self) -> None:
        """SIGKILL: it takes nothing else any more."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    def _said(self, what: str, facts: dict[str, Any], fds: list[int]) -> None:
        self.heard_ns = monotonic_ns()
        if what == "alive":
            return
        if what in ("ready", "draining"):
            self.ready = what == "ready"
            self.on_change(self)
        elif what == "failed":
            self.reason = facts["reason"]
        self._settle(what, facts)

    def _ended(self) -> None:
        self.ready = False
        self._settle("gone", {})

    def _settle(self, what: str, facts: dict[str, Any]) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((what, facts))


def _nothing(member: Member) -> None:
    """Until the supervisor says what to do."""
