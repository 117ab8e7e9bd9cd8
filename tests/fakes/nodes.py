"""Real `egressd run` processes for tests: started on free ports, watched, and ended by their pids.

What a node says is read where an operator would read it: the admin interface and the log file.
"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = ["NodeProcess", "Ports", "free_port", "free_ports", "until"]

START_SECONDS = 15.0  # an interpreter and its imports take half a second on an idle machine
STOP_SECONDS = 8.0
LOOK_SECONDS = 0.02
COMMAND = (sys.executable, "-m", "gateway")
# What systemd does between fork and exec: the sockets are descriptors from 3 on, for this process.
ACTIVATE = """
import fcntl, os, sys
fds, names, *command = sys.argv[1:]
copies = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 100) for fd in fds.split(",")]
for number, copy in enumerate(copies, 3):
    os.dup2(copy, number)
    os.close(copy)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(copies)), LISTEN_FDNAMES=names)
os.execv(command[0], command)
"""


def until(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Looks until `condition` holds. Raises AssertionError naming `what` when time is up."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(LOOK_SECONDS)


class Ports:
    """Where one node is found; all on 127.0.0.1."""

    def __init__(self, listen: int, mesh: int, admin: int) -> None:
        self.listen = listen
        self.mesh = mesh
        self.admin = admin


# Below the ports that the kernel gives to outgoing connections, which would take one that is free
# now. Each of the processes that run tests side by side has a part of its own.
_LOWEST, _HIGHEST = 10_000, 32_000
_PART = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_PARTS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_PART_PORTS = (_HIGHEST - _LOWEST) // _PARTS
_next_port = itertools.count(os.getpid() * 97)  # another run begins elsewhere


def free_port() -> int:
    """A port of loopback that nobody uses now, for TCP and UDP, and not given out lately."""
    while True:
        port = _LOWEST + _PART * _PART_PORTS + next(_next_port) % _PART_PORTS
        with (
            suppress(OSError),
            socket.socket(socket.AF_INET, socket.SOCK_STREAM) as stream,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
        ):
            stream.bind(("127.0.0.1", port))
            datagrams.bind(("127.0.0.1", port))
            return port


def free_ports(nodes: int) -> list[Ports]:
    """Ports that nobody uses now, all different."""
    return [Ports(free_port(), free_port(), free_port()) for _ in range(nodes)]


class NodeProcess:
    """One node. Its conf file can be written anew; its log goes to a file.

    In a network namespace: `host` is its address there, `prefix` the words that run a command in
    it, and `admin_path` the admin interface's unix socket, which is reached from everywhere.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        ports: Ports,
        conf: str,
        settings: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
        sockets: Sequence[tuple[str, socket.socket]] = (),
        *,
        host: str = "127.0.0.1",
        prefix: Sequence[str] = (),
        admin_path: Path | None = None,
    ) -> None:
        """`sockets` are passed on by name as systemd does."""
        self.name = name
        self.ports = ports
        self.path = folder / f"{name}.toml"
        self.log_path = folder / f"{name}.log"
        self.stdout_path = folder / f"{name}.out"
        self.killed = False
        self.expected_status = 0
        self._asked_to_end = False
        self._settings = tuple(settings)
        self._environ = dict(environ or {})
        self._sockets = tuple(sockets)
        self._host = host
        self._prefix = tuple(prefix)
        self._admin_path = admin_path
        self._process: subprocess.Popen[bytes] | None = None
        self.path.write_text(conf)

    @property
    def address(self) -> tuple[str, int]:
        return (self._host, self.ports.listen)

    @property
    def url(self) -> str:
        return f"http://{self._host}:{self.ports.listen}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Starts the process and returns at once; see `wait_ready`."""
        command = [*self._prefix, *COMMAND, "run", "-c", str(self.path)]
        for setting in self._settings:
            command += ["--set", setting]
        fds = [sock.fileno() for _, sock in self._sockets]
        if fds:
            names = ":".join(name for name, _ in self._sockets)
            command = [sys.executable, "-c", ACTIVATE, ",".join(map(str, fds)), names, *command]
        self.killed = self._asked_to_end = False
        with self.log_path.open("ab") as log, self.stdout_path.open("ab") as out:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                process_group=0,
                pass_fds=fds,
                env={**os.environ, **self._environ},
            )

    def wait_ready(self, seconds: float = START_SECONDS) -> None:
        """Until `/ready` says yes. Fails with the log where the process ends instead."""
        process = self._process
        assert process is not None

        def ready() -> bool:
            assert process.poll() is None, f"{self.name} ended:\n{self.log_text()}"
            try:
                return self.ask("/ready")[0] == 200
            except OSError:
                return False

        until(ready, seconds, f"{self.name} is ready")

    def ask(self, path: str, timeout_s: float = 3.0) -> tuple[int, bytes]:
        """(status, body) of a GET on the admin interface. Raises OSError."""
        connection = http.client.HTTPConnection(self._host, self.ports.admin, timeout=timeout_s)
        try:
            if self._admin_path is not None:
                connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                connection.sock.settimeout(timeout_s)
                connection.sock.connect(str(self._admin_path))
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def document(self) -> dict[str, Any]:
        """What `/api/v1/node` says now."""
        status, body = self.ask("/api/v1/node")
        assert status == 200, body
        found: dict[str, Any] = json.loads(body)
        return found

    def upstream(self, name: str = "api") -> dict[str, Any]:
        found: dict[str, Any] = self.document()["upstreams"][name]
        return found

    def live_members(self) -> list[str]:
        """Names of the members that this node takes for alive, itself among them."""
        return sorted(m["name"] for m in self.document()["members"] if m["state"] == "alive")

    def drops(self) -> dict[str, int]:
        found: dict[str, int] = self.document()["mesh"]["drops"]
        return found

    def log_text(self) -> str:
        return self.log_path.read_text(errors="replace")

    def log(self, event: str = "") -> list[dict[str, Any]]:
        """The log's lines, all or those of one event. Fails where a line is no JSON object."""
        # What is being written at this moment has no end yet.
        whole = self.log_text().rpartition("\n")[0]
        lines = [json.loads(line) for line in whole.splitlines()]
        return [line for line in lines if not event or line["event"] == event]

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def reload(self, conf: str | None = None, *, accepted: bool = True) -> None:
        """Writes the file (if given), sends SIGHUP, waits until the log says what came of it."""
        event = "reloaded" if accepted else "reload refused"
        before = len(self.log(event))
        if conf is not None:
            self.path.write_text(conf)
        self.signal(signal.SIGHUP)
        until(lambda: len(self.log(event)) > before, 5.0, f"{self.name}: {event}")

    def kill(self) -> None:
        """SIGKILL, and gone."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(STOP_SECONDS)
        self.killed = True

    def ask_to_end(self) -> None:
        """SIGTERM, once."""
        if not self._asked_to_end and self.running():
            self._asked_to_end = True
            self.signal(signal.SIGTERM)

    def terminate(self) -> int:
        """SIGTERM; returns the exit status."""
        self.ask_to_end()
        return self.wait()

    def wait(self, seconds: float = STOP_SECONDS) -> int:
        assert self._process is not None
        return self._process.wait(seconds)

    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def close(self) -> None:
        """Ends it in order and judges the end: status 0, no traceback, nothing left behind."""
        process = self._process
        if process is None:
            return
        try:
            self.ask_to_end()
            status = process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"{self.name} did not end on SIGTERM") from None
        assert self.killed or status == self.expected_status, (
            f"{self.name} ended with {status}:\n{self.log_text()}"
        )
        assert "Traceback" not in self.log_text(), self.log_text()
        left = alive_in_group(process.pid)
        assert not left, f"{self.name} left processes behind: {left}"


def alive_in_group(group: int) -> list[int]:
    """The processes of that group. One that has ended and waits for its parent is none: where the
    parent was killed, that is up to the system's first process."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                state, _, pgrp, *_ = (entry / "stat").read_text().rsplit(") ", 1)[1].split()
                if int(pgrp) == group and state != "Z":
                    found.append(int(entry.name))
    return found
