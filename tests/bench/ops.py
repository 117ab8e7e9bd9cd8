"""What operating costs: the start, and a reload of 10,000 routes under load.

    make bench-ops
    PYTHONPATH=tests .venv/bin/python -m bench.ops [--routes N] [--rounds N] [--json FILE]

- *start*: from the start of the process until `/ready` says yes, looked at every 2 ms; of several
  starts the median. With two workers it is until both are ready.
- *reload*: from the signal until the log says that it is over (the whole file is read again).
- *pause*: the longest that a request took during the reloads, at 1,000 requests/s in an open loop,
  beside the longest without a reload: where the loop stands still, requests due meanwhile show it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from fakes.nodes import NodeProcess, free_ports
from fakes.quick_origin import BODY_BYTES, QuickOrigin

__all__ = ["conf_text", "main"]

RATE = 1000
RELOADS = 5
LOOK_SECONDS = 0.002
UPSTREAMS = 50
HEAD = """[node]
name = "bench"
workers = {workers}
[[listen]]
bind = "127.0.0.1:{listen}"
[admin]
bind = "127.0.0.1:{admin}"
[log]
access = "off"
[upstream.api]
origin = "{origin}"
[[upstream.api.limit]]
name = "account"
rate = "{rate}/s"
burst = 10000
[[route]]
host = "bench.internal"
upstream = "api"
"""
UPSTREAM = """[upstream.u{number}]
origin = "https://u{number}.example"
[[upstream.u{number}.limit]]
name = "account"
rate = "{rate}/s"
"""
ROUTE = """[[route]]
host = "h{host}.internal"
path = "/p{number}/"
strip = "/p{number}"
upstream = "u{upstream}"
"""


def conf_text(listen: int, admin: int, origin: str, routes: int, rate: int, workers: int) -> str:
    """A file with so many routes to 50 upstreams over https; `rate` makes it another one."""
    parts = [HEAD.format(listen=listen, admin=admin, origin=origin, rate=rate, workers=workers)]
    parts += [UPSTREAM.format(number=number, rate=rate) for number in range(UPSTREAMS)]
    for number in range(routes):
        at = number % UPSTREAMS
        parts.append(ROUTE.format(number=number, host=number % 2000, upstream=at))
    return "".join(parts)


class _Subject:
    """A node, its file, and how it is asked."""

    def __init__(self, folder: Path, origin: str, routes: int, workers: int) -> None:
        self.ports = free_ports(1)[0]
        self._make = (self.ports.listen, self.ports.admin, origin, routes)
        self._workers = workers
        self.process = NodeProcess(f"bench-{workers}", folder, self.ports, self.text(10_000))

    def text(self, rate: int) -> str:
        return conf_text(*self._make, rate, self._workers)

    def start_ms(self) -> float:
        begun = time.perf_counter()
        self.process.start()
        while True:
            try:
                if self.process.ask("/ready")[0] == 200:
                    return (time.perf_counter() - begun) * 1000
            except OSError:
                pass
            if not self.process.running():
                sys.exit(self.process.log_text())
            time.sleep(LOOK_SECONDS)

    def reload_ms(self, rate: int) -> float:
        begun = time.perf_counter()
        self.process.reload(self.text(rate))
        return (time.perf_counter() - begun) * 1000


def _starts(folder: Path, origin: str, rounds: int, routes: int, workers: int) -> float:
    times = []
    for _ in range(rounds):
        subject = _Subject(folder, origin, routes, workers)
        times.append(subject.start_ms())
        subject.process.close()
        subject.process.log_path.unlink()
    return statistics.median(times)


def _load(port: int, seconds: float) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "bench.openloop", "--port", str(port), "--path", "/"]
    command += ["--body-bytes", str(BODY_BYTES), "--rate", str(RATE), "--seconds", str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ)


def _reloads(folder: Path, origin: str, routes: int, workers: int) -> dict[str, float]:
    with ExitStack() as stack:
        subject = _Subject(folder, origin, routes, workers)
        stack.callback(subject.process.close)
        subject.start_ms()
        quiet = json.loads(_load(subject.ports.listen, 4.0).communicate(timeout=60)[0])
        load = _load(subject.ports.listen, 8.0)
        time.sleep(2.0)  # its connections are open, its warming second is over
        times = []
        for number in range(RELOADS):
            times.append(subject.reload_ms(10_001 + number))
            time.sleep(0.2)
        busy = json.loads(load.communicate(timeout=60)[0])
    return {
        "reload_ms": round(statistics.median(times), 1),
        "reload_max_ms": round(max(times), 1),
        "pause_ms": round(busy["max_us"] / 1000, 1),
        "pause_without_ms": round(quiet["max_us"] / 1000, 1),
        "p99_ms": round(busy["p99_us"] / 1000, 2),
        "client_lag_p99_ms": round(busy["lag_p99_us"] / 1000, 2),
        "errors": busy["errors"] + quiet["errors"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--routes", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    figures: dict[str, object] = {"load_average": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory() as name, QuickOrigin() as origin:
        folder = Path(name)
        for workers in (1, 2):
            key = f"{workers} worker" + "s" * (workers > 1)
            small = _starts(folder, origin.url, options.rounds, 0, workers)
            figures[f"start ms, {key}"] = round(small)
            large = _starts(folder, origin.url, options.rounds, options.routes, workers)
            figures[f"start ms, {key}, {options.routes} routes"] = round(large)
            figures[f"reload, {key}"] = _reloads(folder, origin.url, options.routes, workers)
    text = json.dumps(figures, indent=2)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
