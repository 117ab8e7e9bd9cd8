"""Where the contenders come from: Debian's packages, and virtual environments for PyPI's.

Nothing of this is needed by the project itself. What cannot be installed is skipped, with a reason.
`python -m bench.packages PROGRAM ...` installs programs, for tests that need them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

__all__ = ["install", "virtual_environment", "which"]

PACKAGE_OF = {"nft": "nftables", "ip": "iproute2"}  # where it has another name than the program
POLICY = Path("/usr/sbin/policy-rc.d")
SBIN = "/usr/sbin:/usr/local/sbin:/sbin"  # not on everybody's PATH


def which(program: str) -> str | None:
    """The path of a program, looked for where daemons are too."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:{SBIN}")


def install(programs: Iterable[str]) -> str:
    """Installs the Debian packages of programs that are missing; says why it could not."""
    missing = [PACKAGE_OF.get(name, name) for name in programs if which(name) is None]
    if not missing:
        return ""
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        return f"not installed, and only root with apt-get could change that: {', '.join(missing)}"
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    # Where packets to the mirror vanish, nobody should wait for minutes to hear that it is so.
    apt = ["apt-get", "-o", "Acquire::Retries=0", "-o", "Acquire::http::Timeout=20"]
    for argv in (
        [*apt, "update"],
        [*apt, "install", "--yes", "--no-install-recommends", *missing],
    ):
        with _services_stay_off():
            done = subprocess.run(argv, env=environ, capture_output=True, text=True, check=False)
        if done.returncode:
            return f"{' '.join(argv)}: {done.stderr.strip()[-300:]}"
    return ""


@contextmanager
def _services_stay_off() -> Iterator[None]:
    """Debian starts a daemon that it installs, unless policy-rc.d says 101 (invoke-rc.d(8))."""
    if POLICY.exists():
        yield
        return
    POLICY.write_text("#!/bin/sh\nexit 101\n")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink()


def virtual_environment(folder: Path, requirements: Sequence[str]) -> str:
    """Makes (or finds) an environment with these distributions; says why it could not."""
    stamp = folder / "complete"
    wanted = "\n".join(requirements)
    if stamp.exists() and stamp.read_text() == wanted:
        return ""
    python = str(folder / "bin" / "python")
    for argv in (
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        [python, "-m", "pip", "install", "--quiet", *requirements],
    ):
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode:
            return f"{' '.join(argv)}: {done.stderr.strip()[-300:]}"
    stamp.write_text(wanted)
    return ""


if __name__ == "__main__":
    print(install(sys.argv[1:]) or "all are installed")
