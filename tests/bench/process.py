"""Processes under measurement: started on one core, read through /proc, ended by their own pids.

The kernel's account of a process (proc(5): utime and stime of /proc/PID/stat) is the judge of what
a request costs, because requests/s of one core also measure the client that shares the machine.
Loopback delivers a packet in the sender's context, so that each side pays for its own sends; this
holds for all contenders alike.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

__all__ = [
    "BenchError",
    "Process",
    "Stat",
    "busy_ns",
    "parse_stat",
    "wait_for_port",
]

NS = 1_000_000_000
TICK_NS = NS // os.sysconf("SC_CLK_TCK")  # 10 ms: 0.2 % of a run of 5 s
READY_SECONDS_MAX = 30  # mitmproxy needs three on a busy machine
STOP_SECONDS_MAX = 5
LOOK_SECONDS = 0.05


class BenchError(Exception):
    """A part of the bench cannot go on; the text is for the operator."""


class Stat(NamedTuple):
    """What /proc/PID/stat says of one process; CPU in nanoseconds, reaped children included.

    With its start (in ticks since boot) a process is known apart from a later one with its pid.
    """

    parent: int
    cpu_ns: int
    start: int


def parse_stat(text: str, tick_ns: int = TICK_NS) -> Stat:
    """Reads a line of /proc/PID/stat. The name in brackets may hold spaces and brackets itself."""
    fields = text.rpartition(")")[2].split()
    # Behind the name comes field 3 of proc(5): parent is field 4, utime to cstime are 14 to 17.
    cpu = sum(int(value) for value in fields[11:15])
    return Stat(int(fields[1]), cpu * tick_ns, int(fields[19]))


def _stat(pid: int) -> Stat | None:
    try:
        return parse_stat(Path(f"/proc/{pid}/stat").read_text())
    except OSError:  # it ended meanwhile
        return None


def _stats() -> dict[int, Stat]:
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        stat = _stat(int(path.name))
        if stat is not None:
            found[int(path.name)] = stat
    return found


def busy_ns(core: int) -> int:
    """What a core has worked since boot, for whomever (proc(5): the cpuN lines of /proc/stat)."""
    for line in Path("/proc/stat").read_text().splitlines():
        if line.startswith(f"cpu{core} "):
            user, nice, system, _, _, irq, softirq = (int(word) for word in line.split()[1:8])
            return (user + nice + system + irq + softirq) * TICK_NS
    raise BenchError(f"/proc/stat does not know core {core}")


class Process:
    """One started program with all that it starts, on one core (None: on any). Output goes to a
    file, for faults and logs."""

    def __init__(
        self,
        argv: Sequence[str],
        core: int | None,
        output: Path,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.output = output
        with output.open("ab") as sink:
            self._popen = subprocess.Popen(
                argv if core is None else ["taskset", "-c", str(core), *argv],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env=dict(environ) if environ is not None else None,
            )

    @property
    def alive(self) -> bool:
        return self._popen.poll() is None

    def pids(self) -> list[int]:
        """This process and its descendants (taskset replaces itself, so it is not among them)."""
        return self._family(_stats())

    def cpu_ns(self) -> int:
        """CPU time of user and kernel that all of them have used so far."""
        stats = _stats()
        return sum(stats[pid].cpu_ns for pid in self._family(stats))

    def memory_peak_bytes(self) -> int:
        """The sum of their peaks of resident memory (proc(5): VmHWM); shared pages count twice."""
        total = 0
        for pid in self.pids():
            try:
                text = Path(f"/proc/{pid}/status").read_text()
            except OSError:
                continue
            for line in text.splitlines():
                if line.startswith("VmHWM:"):
                    total += int(line.split()[1]) * 1024
        return total

    def tail(self) -> str:
        """The end of its output, to say why it failed."""
        return self.output.read_bytes()[-2000:].decode(errors="replace").strip()

    def stop(self) -> None:
        """Ends it: politely, then not. Only processes that it started are touched."""
        before = _stats()
        family = self._family(before)
        if self.alive:
            self._popen.send_signal(signal.SIGTERM)
            try:
                self._popen.wait(STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                self._popen.kill()
                self._popen.wait()
        for pid in family:
            stat = _stat(pid)
            if stat is not None and stat.start == before[pid].start:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _family(self, stats: Mapping[int, Stat]) -> list[int]:
        family = [self._popen.pid]
        for parent in family:  # grows while it is walked
            family += [pid for pid, stat in stats.items() if stat.parent == parent]
        return [pid for pid in family if pid in stats]


def wait_for_port(process: Process, port: int) -> None:
    """Returns when somebody accepts connections there. Raises BenchError where nobody does."""
    deadline = time.monotonic() + READY_SECONDS_MAX
    while process.alive and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(LOOK_SECONDS)
        else:
            return
    raise BenchError(f"not listening on port {port}: {process.tail()}")
