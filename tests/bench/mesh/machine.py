"""The machine that is measured on, and this run's processes: what others use, what must end."""

from __future__ import annotations

import os
import platform
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from bench.process import Stat, busy_ns, parse_stat

__all__ = ["Machine", "end_family", "end_in_order", "family_cpu_ns", "machine"]


class Machine:
    """How much of the machine others used meanwhile: then late timers are not the subject's."""

    def __init__(self) -> None:
        self._cores = sorted(os.sched_getaffinity(0))
        self._begin = self._read()

    def others(self) -> float:
        """Share of all cores that neither this program nor its descendants used, since the start
        or the last call."""
        before, self._begin = self._begin, self._read()
        wall_ns, busy, ours = (now - then for now, then in zip(self._begin, before, strict=True))
        return max(0.0, busy - ours) / (wall_ns * len(self._cores))

    def _read(self) -> tuple[int, int, int]:
        busy = sum(busy_ns(core) for core in self._cores)
        return time.monotonic_ns(), busy, family_cpu_ns(os.getpid(), _stats())


def _stats() -> Iterator[tuple[int, Stat]]:
    for path in Path("/proc").glob("[0-9]*"):
        try:
            yield int(path.name), parse_stat((path / "stat").read_text())
        except OSError:  # it ended meanwhile
            continue


def family_of(pid: int, known: dict[int, Stat]) -> list[int]:
    """A process and its descendants."""
    family = [pid]
    for parent in family:  # grows while it is walked
        family += [child for child, stat in known.items() if stat.parent == parent]
    return family


def family_cpu_ns(pid: int, stats: Iterator[tuple[int, Stat]]) -> int:
    """CPU time of a process and its descendants, those included that it has waited for."""
    known = dict(stats)
    return sum(known[member].cpu_ns for member in family_of(pid, known) if member in known)


def end_family() -> list[int]:
    """Ends by pid what this process has started and what is not gone: an interrupt may come
    between a start and the note that it must be ended."""
    _, *left = family_of(os.getpid(), dict(_stats()))
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return left


def end_in_order(number: int, frame: object) -> None:
    """The first signal ends the run in order; another one must not break off the ending."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def machine() -> str:
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores, Linux {platform.release()}, Python {platform.python_version()}"
