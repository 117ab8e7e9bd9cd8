"""One measurement: load on a contender for some seconds, and the kernel's account of it.

wrk gives requests/s and closed-loop latency; the CPU of the contender's processes is read before
and after and divided by the requests that wrk counted. The open-loop client gives the latency that
independent callers would see at half of what the contender can do.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from bench.contenders import HOST, LARGE_BYTES, SMALL_BYTES, Contender, Origin, Stage
from bench.packages import which
from bench.process import NS, BenchError, busy_ns

__all__ = ["BODY_BYTES", "Cell", "Latency", "Run", "Wrk", "check_answer", "measure", "parse_wrk"]

BODY_BYTES = {"small": SMALL_BYTES, "64KiB": LARGE_BYTES}
# After the load: buffered access logs are written, and their writing is paid. egressd drains every
# 200 ms, so twice that.
SETTLE_SECONDS = 0.4
# The open-loop client costs some 20 us a request and has the origin (10 us) on its core: at
# 10,000/s a third of the core is left, so that it is not itself what waits.
OPEN_LOOP_RATE_MAX = 10_000


class Cell(NamedTuple):
    """What is asked: how the upstream is reached, how long bodies are, how many connections."""

    scheme: str
    body: str
    connections: int

    def __str__(self) -> str:
        return f"{self.scheme}, {self.body}, {self.connections} connections"


class Wrk(NamedTuple):
    """wrk's account. `errors` are answers other than 2xx and 3xx, and faults of sockets."""

    requests: int
    requests_per_s: float
    p50_us: float
    p99_us: float
    errors: int


class Run(NamedTuple):
    """One contender in one cell in one round.

    `foreign` is the share of the contender's core that others used meanwhile: above some percent
    the machine was not quiet, and only ratios within the round say something.
    """

    contender: str
    cell: Cell
    round: int
    requests_per_s: float
    cpu_us: float
    p50_us: float
    p99_us: float
    errors: int
    memory_peak_bytes: int
    foreign: float


class Latency(NamedTuple):
    """Open loop in one round: a contender at half its load, and the origin at the same rate."""

    contender: str
    round: int
    rate: float
    capped: bool
    p50_us: float
    p99_us: float
    direct_p50_us: float
    direct_p99_us: float
    lag_p99_us: float
    errors: int


_UNITS_US = {"us": 1.0, "ms": 1000.0, "s": 1_000_000.0, "m": 60_000_000.0}


def parse_wrk(text: str) -> Wrk:
    """Reads what `wrk --latency` prints (version 4). Raises BenchError where it is not that."""
    total = re.search(r"^\s*(\d+) requests in ", text, re.MULTILINE)
    rate = re.search(r"^Requests/sec:\s+([\d.]+)", text, re.MULTILINE)
    shares = {
        share: float(value) * _UNITS_US[unit]
        for share, value, unit in re.findall(r"^\s+(\d+)%\s+([\d.]+)(us|ms|s|m)$", text, re.M)
    }
    if total is None or rate is None or not {"50", "99"} <= shares.keys():
        raise BenchError(f"wrk printed something else: {text[-500:]}")
    errors = sum(int(number) for number in re.findall(r"Non-2xx or 3xx responses: (\d+)", text))
    sockets = re.search(r"Socket errors: (.*)", text)
    if sockets is not None:
        errors += sum(int(number) for number in re.findall(r"\d+", sockets.group(1)))
    return Wrk(int(total.group(1)), float(rate.group(1)), shares["50"], shares["99"], errors)


def run_wrk(contender: Contender, cell: Cell, seconds: int) -> Wrk:
    """One thread of wrk on the load's core."""
    target = contender.target(cell.body)
    port = contender.port
    absolute = ["-s", str(Path(__file__).with_name("absolute.lua"))] if target[0] != "/" else []
    argv = [
        "taskset", "-c", str(contender.stage.load_core),
        which("wrk") or "wrk", *absolute, "--latency", "--timeout", "10s",
        "-t1", f"-c{cell.connections}", f"-d{seconds}s", "-H", f"Host: {HOST}", f"http://127.0.0.1:{port}/{cell.body}",
    ]  # fmt: skip
    environ = {**os.environ, "BENCH_TARGET": target}
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=seconds + 60, check=False, env=environ
    )
    return parse_wrk(done.stdout + done.stderr)


def check_answer(contender: Contender, body: str) -> None:
    """One request by hand: what comes through must be the origin's body, whole."""
    connection = http.client.HTTPConnection("127.0.0.1", contender.port, timeout=10)
    try:
        connection.request("GET", contender.target(body), headers={"Host": HOST})
        answer = connection.getresponse()
        received = len(answer.read())
    except (OSError, http.client.HTTPException) as error:
        raise BenchError(f"GET {body}: {error!r}") from error
    finally:
        connection.close()
    if answer.status != 200 or received != BODY_BYTES[body]:
        raise BenchError(f"GET {body}: status {answer.status} with {received} octets")


def measure(contender: Contender, cell: Cell, number: int, seconds: int) -> Run:
    """Warms up, then measures. Raises BenchError where the contender does not answer."""
    check_answer(contender, cell.body)
    stage = contender.stage
    run_wrk(contender, cell, 1)
    time.sleep(SETTLE_SECONDS)
    process = contender.process
    core_before = busy_ns(stage.core)
    cpu_before = process.cpu_ns()
    began = time.monotonic()
    result = run_wrk(contender, cell, seconds)
    time.sleep(SETTLE_SECONDS)
    took = time.monotonic() - began
    cpu_ns = process.cpu_ns() - cpu_before
    core_ns = busy_ns(stage.core) - core_before
    return Run(
        contender=contender.name,
        cell=cell,
        round=number,
        requests_per_s=result.requests_per_s,
        cpu_us=cpu_ns / 1000 / max(1, result.requests),
        p50_us=result.p50_us,
        p99_us=result.p99_us,
        errors=result.errors,
        memory_peak_bytes=process.memory_peak_bytes(),
        foreign=max(0.0, core_ns - cpu_ns) / NS / took,
    )


def run_open_loop(
    stage: Stage, port: int, target: str, rate: float, seconds: int
) -> dict[str, Any]:
    """Small bodies at a fixed rate, from a process of its own on the load's core."""
    argv = [
        "taskset", "-c", str(stage.load_core),
        sys.executable, str(Path(__file__).with_name("openloop.py")),
        "--port", str(port), "--host", HOST, "--path", target, "--body-bytes", str(SMALL_BYTES),
        "--rate", str(rate), "--seconds", str(seconds),
    ]  # fmt: skip
    done = subprocess.run(argv, capture_output=True, text=True, timeout=seconds + 60, check=False)
    if done.returncode:
        raise BenchError(f"open-loop client: {done.stderr.strip()[-500:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measure_latency(
    contender: Contender, origin: Origin, number: int, requests_per_s: float, seconds: int
) -> Latency:
    """The origin first, then the contender, at half of `requests_per_s` but for the cap."""
    rate = min(OPEN_LOOP_RATE_MAX, requests_per_s / 2)
    stage = contender.stage
    direct = run_open_loop(stage, origin.port, "/small", rate, seconds)
    through = run_open_loop(stage, contender.port, contender.target("small"), rate, seconds)
    return Latency(
        contender=contender.name,
        round=number,
        rate=rate,
        capped=rate < requests_per_s / 2,
        p50_us=through["p50_us"],
        p99_us=through["p99_us"],
        direct_p50_us=direct["p50_us"],
        direct_p99_us=direct["p99_us"],
        lag_p99_us=through["lag_p99_us"],
        errors=through["errors"],
    )
