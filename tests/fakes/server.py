"""A real server as a process for tests: started, stalled, and ended by its pid."""

from __future__ import annotations

import os
import signal
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Self

__all__ = ["ServerProcess"]


class ServerProcess(ABC):
    """Use as a context manager. `log` takes what the process says."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()

    @abstractmethod
    def start(self) -> None:
        """Starts it, and waits until it can be used."""

    def _run(self, command: Sequence[str]) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)

    def kill(self) -> None:
        """SIGKILL, and gone; what was in its memory is lost."""
        if self._process is not None:
            self.go_on()
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def stall(self) -> None:
        """It keeps its connections, takes new ones, and says nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)  # its threads stop one by one

    def go_on(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)
