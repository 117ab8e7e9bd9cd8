"""Real keepalived for tests, with the configuration that is shipped in conf/keepalived."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from fakes.netns import Host

__all__ = ["SHIPPED", "Keepalived", "install"]

SHIPPED = Path(__file__).resolve().parent.parent.parent / "conf" / "keepalived"
STOP_SECONDS = 8.0
# Stands in for logger(1): the last argument of a line is the message.
LOGGER = '#!/bin/sh\nfor text; do :; done\necho "$text" >> {}\n'


def install(folder: Path, values: Mapping[str, str], conf: str = "nodes.conf") -> Path:
    """Installs the shipped files as their comments say, with other values for the `$` lines.

    Returns the configuration file. keepalived runs no script that anybody but root may write, so
    the folder and those above it must be root's alone.
    """
    for name in ("check-ready", "notify-log"):
        shutil.copy(SHIPPED / name, folder)
        (folder / name).chmod(0o755)
    text = (SHIPPED / conf).read_text()
    for name, value in {**values, "FOLDER": str(folder)}.items():
        text, count = re.subn(rf"(?m)^\${name}=\S+", f"${name}={value}", text)
        assert count == 1, name
    path = folder / "keepalived.conf"
    path.write_text(text)
    return path


class Keepalived:
    """keepalived on one host. `said` is what its notify script gave to the system's log."""

    def __init__(self, host: Host, conf: Path) -> None:
        folder = conf.parent / host.name
        self._log_path = folder / "keepalived.log"
        self._said_path = folder / "said"
        folder.mkdir()
        self._said_path.touch()
        self._said_path.chmod(0o666)  # scripts run as nobody
        (folder / "logger").write_text(LOGGER.format(self._said_path))
        (folder / "logger").chmod(0o755)
        self._command = [
            *host.prefix,
            *("keepalived", "--dont-fork", "--log-console", "--log-detail", "--vrrp"),
            *("--use-file", str(conf), "--config-id", host.name),
            *("--pid", str(folder / "pid"), "--vrrp_pid", str(folder / "vrrp.pid")),
        ]
        self._environ = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environ,
                process_group=0,
            )

    def kill(self) -> None:
        """SIGKILL for the parent and its child, in one blow: it would start the child anew."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(STOP_SECONDS)
        self._process = None

    def close(self) -> None:
        """Ends it in order; the addresses go with it."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(STOP_SECONDS)

    def said(self) -> list[str]:
        return self._said_path.read_text().splitlines()

    def log_text(self) -> str:
        return self._log_path.read_text(errors="replace")
