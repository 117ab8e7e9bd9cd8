"""`egressd top`: frames from snapshots, one printed, and a live one on a terminal of its own."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
from click.testing import CliRunner
from fakes.gateway import Gateway
from fakes.nodes import until
from rich.console import Console

from gateway.cli import main
from gateway.ctl.client import Admin, NotAnswered
from gateway.ctl.top import Sums, frame

SECOND = 1_000_000_000


def written(snapshot: dict[str, Any], before: dict[str, Any] | None, trouble: str = "") -> str:
    console = Console(width=160)
    with console.capture() as capture:
        console.print(frame(snapshot, Sums.of(before) if before else None, trouble))
    return capture.get()


@pytest.fixture
def snapshot(where: str) -> dict[str, Any]:
    (one,) = Admin(where).snapshots(1)
    return one


def test_rates_are_differences_over_the_nodes_own_clock(snapshot: dict[str, Any]) -> None:
    later = deepcopy(snapshot)
    later["now_ns"] += 2 * SECOND
    later["limits"][0]["admitted_own"] += 30
    later["limits"][0]["admitted_mesh"] += 100
    later["limits"][1]["admitted_mesh"] -= 1  # a row was thrown out
    later["limits"][0]["rate_in_force"] = 100.0
    later["upstreams"][0]["requests"] += 44
    text = written(later, snapshot)
    account = next(line for line in text.splitlines() if "api/account" in line)
    assert account.split()[:6] == [
        "api/account",
        "100/s",
        "100",
        "50",
        "15",
        "##########..........",
    ]
    other = next(line for line in text.splitlines() if "api/per-client" in line)
    assert other.split()[3:5] == ["0", "0"]
    upstream = next(line for line in text.splitlines() if line.split()[:1] == ["api"])
    assert upstream.split()[1] == "22"


def test_without_an_earlier_snapshot_there_are_no_rates(snapshot: dict[str, Any]) -> None:
    account = next(line for line in written(snapshot, None).splitlines() if "api/account" in line)
    assert account.split()[3:5] == ["-", "-"]


def test_a_clock_that_stands_divides_nothing(snapshot: dict[str, Any]) -> None:
    assert "api/account" in written(snapshot, snapshot)


def test_what_is_out_of_order_is_shown(snapshot: dict[str, Any]) -> None:
    text = written(snapshot, None)
    assert "breakers that are not closed" not in text
    assert "waits" not in text
    snapshot["breakers"][0]["state"] = "open"
    snapshot["breakers"][0]["remaining_ms"] = 12_500
    snapshot["waits"] = [
        {"node": "gw-test", "upstream": "api", "at": "limit", "limit": "account", "key": {},
         "waiting": 17, "tokens": 17, "first_client": "[red]", "first_waited_ms": 3,
         "first_until_ms": 9}
    ]  # fmt: skip
    snapshot["members"] = [
        {"node": "gw-test", "name": "gw-2", "self": False, "state": "suspect", "address": "h:1",
         "rtt_ms": 0.4, "heard_ms": 1200.0, "loss": None}
    ]  # fmt: skip
    snapshot["truncated"] = True
    text = written(snapshot, None, "nobody answers")
    for words in (
        "not closed",
        "12.5s",
        "[red]",
        "suspect",
        "1.2s",
        "nobody answers",
        "only the first",
    ):
        assert words in text


def test_once_prints_a_frame_with_rates(where: str) -> None:
    result = CliRunner().invoke(main, ["top", "--admin", where, "--once"])
    assert result.exit_code == 0, result.output
    account = next(line for line in result.output.splitlines() if "api/account" in line)
    assert account.split()[3:5] == ["0", "0"]


def test_a_live_view_needs_a_terminal_and_a_node(where: str) -> None:
    assert CliRunner().invoke(main, ["top", "--admin", where]).exit_code == 2
    for more in ([], ["--once"]):
        result = CliRunner().invoke(main, ["top", "--admin", "unix:/nonexistent", *more])
        assert result.exit_code == (3 if more else 2)


def test_a_stream_that_ends_early_is_an_error(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Admin, "snapshots", lambda self, most=None: iter(()))
    result = CliRunner().invoke(main, ["top", "--admin", where, "--once"])
    assert result.exit_code == NotAnswered.exit_status


@pytest.mark.parametrize("key", [b"q", None])
def test_live_until_q_or_an_interrupt(gateway: Gateway, where: str, key: bytes | None) -> None:
    terminal, other = pty.openpty()
    environ = {**os.environ, "TERM": "xterm", "COLUMNS": "160", "LINES": "50"}
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway", "top", "--admin", where],
        stdin=other, stdout=other, stderr=other, env=environ, start_new_session=True,
    )  # fmt: skip
    os.close(other)
    seen: list[bytes] = []

    def read() -> None:
        while True:
            try:
                seen.append(os.read(terminal, 65536))
            except OSError:  # EIO: the other side is closed
                return

    reader = threading.Thread(target=read)
    reader.start()
    shows: Callable[[], bool] = lambda: b"api/account" in b"".join(seen)  # noqa: E731
    try:
        until(shows, 20, "a frame")
        if key is not None:
            os.write(terminal, key)
        else:
            process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        reader.join(10)
        os.close(terminal)
    text = b"".join(seen)
    assert text.count(b"\x1b[?1049h") == text.count(b"\x1b[?1049l") == 1  # the screen is given back
    assert b"Traceback" not in text
