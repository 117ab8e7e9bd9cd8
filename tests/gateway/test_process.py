"""What a process sets for itself: its log's lines, and how soon threads give way to the loop."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import pytest
import structlog

from gateway.process import configure_log, favour_loop


class Raw(io.RawIOBase):
    """A descriptor that remembers what each write(2) would carry."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        self.writes.append(bytes(memoryview(data)))  # type: ignore[arg-type]
        return len(self.writes[-1])


def test_a_line_and_its_end_are_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """With two writes another process's line comes between them (test_grace.py saw it)."""
    raw = Raw()
    stream = io.TextIOWrapper(raw, write_through=True)  # as with PYTHONUNBUFFERED=1
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", stream)
        configure_log("info")
        structlog.get_logger().info("first", key="value")
        structlog.get_logger().info("second")
    structlog.reset_defaults()
    assert [json.loads(line)["event"] for line in raw.writes] == ["first", "second"]
    assert all(line.endswith(b"}\n") and line.count(b"\n") == 1 for line in raw.writes)


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        # It serves nobody: each of these would make every worker start later.
        ("gateway.supervisor", {"rich", "click", "gateway.server", "gateway.proxy", "uvicorn"}),
        ("gateway.worker", {"rich", "click", "gateway.cli", "gateway.spool", "redis", "httpcore"}),
        ("gateway.cli", {"rich", "gateway.server", "gateway.supervisor", "importlib.metadata"}),
    ],
)
def test_what_a_process_does_not_need_it_does_not_load(module: str, unwanted: set[str]) -> None:
    code = f"import {module}, sys; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()
    assert module in loaded
    assert not unwanted & set(loaded)


def test_a_thread_that_computes_gives_way_within_a_tenth_of_a_millisecond() -> None:
    before = sys.getswitchinterval()
    try:
        favour_loop()
        assert sys.getswitchinterval() <= 0.0001
    finally:
        sys.setswitchinterval(before)
