"""How long the admin interface keeps a worker's loop from everything else, with 100,000 rows.

    PYTHONPATH=tests python -m bench.admin

A gateway runs in a thread of this process; a task in its loop turns as often as it can and notes
the most CPU time of that thread between two turns. CPU time, not wall time: what other processes
take from this one is no stall of ours. The target is 10 ms for any of it.
"""

from __future__ import annotations

import asyncio
import http.client
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fakes.gateway import Gateway

from gateway.ctl.client import Admin

ROWS = 100_000
TARGET_MS = 10.0
CONF = """
[[listen]]
bind = "127.0.0.1:0"
[admin]
bind = "unix:{admin}"
[upstream.api]
origin = "http://127.0.0.1:1"
[[upstream.api.limit]]
name = "per-path"
rate = "45/s"
keys_max = 200000
key = ["client", "path"]
"""


def fill(gateway: Gateway) -> None:
    """Makes the rows; to be called in the gateway's loop."""
    limit: Any = gateway.upstream("api").limit_set.limits[0]
    now_ns = gateway.server.worker.now_ns()
    for number in range(ROWS):
        path = b"/some/path/%d" % number
        limit.entry(b"=7:billing=%d:%b" % (len(path), path), now_ns).take(1, now_ns)


def scrape(path: str) -> None:
    """Reads /metrics once."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        connection = http.client.HTTPConnection("localhost")
        connection.sock = sock
        connection.request("GET", "/metrics")
        assert connection.getresponse().read()


def main() -> None:
    """Prints a line for each kind of question."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "admin.sock")
        with Gateway(CONF.format(admin=path), Path(folder)) as gateway:
            gateway.call(lambda: fill(gateway))
            longest = [0.0]

            async def turn() -> None:
                last = time.thread_time()
                while True:
                    await asyncio.sleep(0)
                    now = time.thread_time()
                    longest[0] = max(longest[0], now - last)
                    last = now

            turning = asyncio.run_coroutine_threadsafe(turn(), gateway.loop)
            admin = Admin(f"unix:{path}")
            table = ("tables", "api", "per-path")
            one = {"client": "billing", "path": "/some/path/77777"}
            questions: dict[str, Callable[[], object]] = {
                "nothing": lambda: time.sleep(0.5),
                "a scrape": lambda: scrape(path),
                "the limits": lambda: admin.get("limits"),
                "a page of 100 rows": lambda: admin.get(*table),
                "a page of 1,000 rows": lambda: admin.get(*table, count=1000),
                "rows of a prefix": lambda: admin.get(*table, part="path", prefix="/some/path/77"),
                "clearing one row": lambda: admin.tell("POST", *table, "clear", key=one),
                "clearing all rows": lambda: admin.tell("POST", *table, "clear"),
            }
            print(f"{'question':22} {'took':>9} {'stall':>9}   target {TARGET_MS:.0f} ms")
            for name, ask in questions.items():
                took = stall = 0.0
                for _ in range(5):
                    longest[0] = 0.0
                    begun = time.perf_counter()
                    ask()
                    took = max(took, time.perf_counter() - begun)
                    stall = max(stall, longest[0])
                print(f"{name:22} {took * 1000:6.1f} ms {stall * 1000:6.2f} ms")
            turning.cancel()


if __name__ == "__main__":
    main()
