"""The demo's processes: started, watched, and always ended again, by the handles they came with."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gateway.demo.client import Client

__all__ = ["Child", "NodeChild", "Ports", "SceneError", "free_ports", "node_command"]

START_SECONDS = 15.0  # three interpreters that import at once on a small machine take about two
STOP_SECONDS = 4.0  # the nodes' drain is 2 s
ERROR_LINES_SHOWN = 5
LINE_BYTES_MAX = 64 * 1024


class SceneError(Exception):
    """The demo cannot go on; the text says why."""


class Ports:
    """Where one node is found; all on 127.0.0.1."""

    __slots__ = ("admin", "listen", "mesh")

    def __init__(self, listen: int, mesh: int, admin: int) -> None:
        self.listen = listen
        self.mesh = mesh
        self.admin = admin


def free_ports(nodes: int) -> list[Ports]:
    """Ports that nobody uses now; a mesh port is free for TCP and UDP.

    All are held until all are found, so that no two are the same. Between here and a node's own
    bind somebody else may take one; the node says so then and the demo ends with its words.
    """
    with contextlib.ExitStack() as stack:

        def bound(kind: socket.SocketKind, port: int) -> int:
            sock = stack.enter_context(socket.socket(socket.AF_INET, kind))
            sock.bind(("127.0.0.1", port))
            found: int = sock.getsockname()[1]
            return found

        def both() -> int:
            for _ in range(20):
                port = bound(socket.SOCK_STREAM, 0)
                with contextlib.suppress(OSError):
                    return bound(socket.SOCK_DGRAM, port)
            raise SceneError("no port is free for both TCP and UDP")

        stream = socket.SOCK_STREAM
        return [Ports(bound(stream, 0), both(), bound(stream, 0)) for _ in range(nodes)]


def node_command(
    path: Path, name: str, ports: Ports, mesh_ports: Sequence[int], origin_port: int
) -> list[str]:
    """The command line of one node; all nodes have the same file."""
    join = json.dumps([f"127.0.0.1:{port}" for port in mesh_ports])
    settings = (
        f"node.name={name}",
        f"listen.0.bind=127.0.0.1:{ports.listen}",
        f"mesh.bind=127.0.0.1:{ports.mesh}",
        f"mesh.join={join}",
        f"admin.bind=127.0.0.1:{ports.admin}",
        f"upstream.api.origin=http://127.0.0.1:{origin_port}",
    )
    command = [sys.executable, "-m", "gateway", "run", "-c", str(path)]
    for setting in settings:
        command += ["--set", setting]
    return command


class Child:
    """One process, in a group of its own: Ctrl-C on the terminal reaches only the demo, which
    then ends the others in order.

    Its errors go to a file, of which the last lines are shown if it dies. `latest` is the last
    JSON line that it printed, for those that report.
    """

    def __init__(self, name: str, command: Sequence[str], errors: Path) -> None:
        self.name = name
        self.latest: dict[str, Any] = {}
        self._command = tuple(command)
        self._errors = errors
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._reported = asyncio.Event()
        self._ending = False

    async def start(self, *, reports: bool) -> None:
        """Starts it; with `reports` its standard output is read as JSON lines."""
        with self._errors.open("wb") as errors:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE if reports else asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE if reports else asyncio.subprocess.DEVNULL,
                stderr=errors,
                limit=LINE_BYTES_MAX,
                process_group=0,
            )
        if reports:
            self._reading = asyncio.get_running_loop().create_task(self._read())

    async def first_report(self) -> dict[str, Any]:
        """The first line that it prints. Raises SceneError if it does not come."""
        waiting = asyncio.ensure_future(self._reported.wait())
        try:
            async with asyncio.timeout(START_SECONDS):
                while not waiting.done():
                    self.check()
                    await asyncio.wait({waiting}, timeout=0.1)
        except TimeoutError as error:
            raise SceneError(f"{self.name} said nothing for {START_SECONDS:.0f} s") from error
        finally:
            waiting.cancel()
        return self.latest

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def check(self) -> None:
        """Raises SceneError, with its last words, if the process has ended by itself."""
        process = self._process
        if process is None or process.returncode is None or self._ending:
            return
        text = self._errors.read_text(errors="replace")
        last = "\n  ".join(text.splitlines()[-ERROR_LINES_SHOWN:])
        raise SceneError(f"{self.name} ended with status {process.returncode}:\n  {last}")

    def signal(self, number: signal.Signals) -> None:
        """Sends it a signal, if it is still there."""
        process = self._process
        if process is not None and process.returncode is None:
            process.send_signal(number)

    def ask_to_end(self) -> None:
        """Closes what it reads from, and sends SIGTERM."""
        self._ending = True
        process = self._process
        if process is not None:
            if process.stdin is not None:
                process.stdin.close()
            self.signal(signal.SIGTERM)

    async def ended(self) -> None:
        """Waits for its end, and kills it where it does not come."""
        process = self._process
        if process is None:
            return
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        if self._reading is not None:
            await asyncio.gather(self._reading, return_exceptions=True)

    async def _read(self) -> None:
        process = self._process
        assert process is not None
        assert process.stdout is not None
        async for line in process.stdout:
            self.latest = json.loads(line)
            self._reported.set()


class NodeChild(Child):
    """A gateway node with the client that reads its admin interface."""

    def __init__(self, name: str, command: Sequence[str], errors: Path, ports: Ports) -> None:
        super().__init__(name, command, errors)
        self.ports = ports
        self.admin = Client("127.0.0.1", ports.admin, timeout_s=2.0)
