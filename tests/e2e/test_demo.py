"""`egressd demo` as a user runs it: real processes, about 30 s, and nothing left behind."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

COMMAND = [sys.executable, "-m", "gateway", "demo"]
DEMO_SECONDS_MAX = 90.0  # it takes 30; a loaded machine may be slow to start six interpreters


def start(tmp_path: Path, *options: str) -> subprocess.Popen[str]:
    # Its temporary files go where the test can see that they are gone afterwards.
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    return subprocess.Popen(
        [*COMMAND, *options],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def left_behind(tmp_path: Path) -> list[str]:
    """Processes whose command line names the demo's folder, and what is left of the folder."""
    found = [str(path) for path in tmp_path.iterdir()]
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = process.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it has ended meanwhile
        if str(tmp_path) in line:
            found.append(line)
    return found


def number(output: str, what: str) -> float:
    """The figure in the summary's row for `what`."""
    found = re.search(rf"^ *{re.escape(what)} +([0-9.]+)", output, re.MULTILINE)
    assert found is not None, f"no row for {what!r} in:\n{output}"
    return float(found.group(1))


@pytest.mark.slow
def test_the_demo_keeps_its_promises(tmp_path: Path) -> None:
    begun = time.monotonic()
    process = start(tmp_path)
    output, _ = process.communicate(timeout=DEMO_SECONDS_MAX)
    took = time.monotonic() - begun
    assert process.returncode == 0, output
    assert "every promise was kept" in output
    # The first act: what the limit allows, and not much less.
    assert 0.95 * 45 <= number(output, "admitted by all nodes together") <= 1.02 * 45
    assert number(output, "most arrivals in any sliding second") <= 50
    assert number(output, "refused by the origin, unasked") == 0
    # The second: one 429 and all have stopped; what still arrives had left before.
    for node in ("gw-1", "gw-2", "gw-3"):
        assert number(output, f"from the 429 to {node} stopped") < 500.0
    assert number(output, "arrived at the origin after its 429") <= 3
    assert number(output, "trials sent by all nodes together") == 1
    assert 3000.0 <= number(output, "from the 429 to all going again") < 4500.0
    # The third: the file rules.
    for node in ("gw-1", "gw-2", "gw-3"):
        assert number(output, f"from SIGHUP to {node} obeying the edited file") < 2000.0
    assert 0.8 * 20 <= number(output, "admitted after the reload") <= 1.05 * 20
    assert "\x1b" not in output  # a pipe gets plain lines
    assert took < 60.0
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize("number_of_signal", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted_it_takes_everything_down(tmp_path: Path, number_of_signal: int) -> None:
    process = start(tmp_path)
    assert process.stdout is not None
    for line in process.stdout:
        if " steady " in line:
            break  # all is running
    process.send_signal(number_of_signal)
    output, _ = process.communicate(timeout=30.0)
    assert process.returncode == 130, output
    assert "interrupted" in output
    assert left_behind(tmp_path) == []


def test_a_node_that_dies_fails_the_demo(tmp_path: Path) -> None:
    process = start(tmp_path)
    assert process.stdout is not None
    for line in process.stdout:
        if " steady " in line:
            break
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if "node.name=gw-2" in words and any(str(tmp_path) in word for word in words):
            os.kill(int(path.parent.name), signal.SIGKILL)
    output, _ = process.communicate(timeout=30.0)
    assert process.returncode == 1, output
    assert "FAILED: gw-2 ended with status -9" in output
    assert left_behind(tmp_path) == []
