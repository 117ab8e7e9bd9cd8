"""How fast requests are accepted durably: 202 after the fsync, 1 KiB bodies, on two cores.

    make bench-spool
    PYTHONPATH=tests .venv/bin/python -m bench.spool [--seconds N] [--clients N] [--json FILE]

The target is 2,000 acceptances a second. The gateway, its clients and the origin share the
machine. Sending is held back to 100/s, so that what is measured is acceptance; the figures say how
many acceptances one commit took and how long a commit takes on this disk.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path

from fakes.nodes import NodeProcess, free_ports
from fakes.quick_origin import QuickOrigin

__all__ = ["main"]

TARGET_PER_S = 2000
BODY = bytes(1024)
CONF = """[node]
name = "bench"
[[listen]]
bind = "127.0.0.1:{listen}"
[admin]
bind = "127.0.0.1:{admin}"
[log]
access = "off"
[spool]
path = "{path}"
records_max = 1_000_000
[upstream.api]
origin = "{origin}"
[upstream.api.spool]
ttl = "1h"
[[upstream.api.limit]]
name = "account"
rate = "100/s"
[[route]]
upstream = "api"
"""
REQUEST = (
    b"POST / HTTP/1.1\r\nHost: bench\r\nPrefer: respond-async\r\nContent-Length: %d\r\n\r\n%b"
    % (len(BODY), BODY)
)


async def _client(port: int, end: float, took: list[float]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while time.perf_counter() < end:
        begun = time.perf_counter()
        writer.write(REQUEST)
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 202 "):
            raise SystemExit(f"not accepted: {head!r}")
        await reader.readuntil(b"\n")
        took.append(time.perf_counter() - begun)
    writer.close()


async def _load(port: int, seconds: float, clients: int) -> list[float]:
    took: list[float] = []
    end = time.perf_counter() + seconds
    await asyncio.gather(*(_client(port, end, took) for _ in range(clients)))
    return took


def measure(seconds: float, clients: int, folder: Path) -> dict[str, float]:
    """One run on a fresh file in that folder."""
    with QuickOrigin() as origin, tempfile.TemporaryDirectory(dir=folder) as place:
        (ports,) = free_ports(1)
        path = Path(place).resolve()
        text = CONF.format(
            listen=ports.listen, admin=ports.admin, origin=origin.url, path=path / "spool.db"
        )
        node = NodeProcess("bench", path, ports, text)
        node.start()
        node.wait_ready()
        try:
            took = asyncio.run(_load(ports.listen, seconds, clients))
            figures = node.document()["spool"]
        finally:
            node.kill()
    ordered = sorted(took)
    return {
        "accepts_per_s": round(len(took) / seconds, 1),
        "p50_ms": round(statistics.median(ordered) * 1000, 2),
        "p99_ms": round(ordered[int(len(ordered) * 0.99)] * 1000, 2),
        "accepts_per_commit": round(figures["accepted"] / figures["commits"], 1),
        "commit_ms": round(figures["commit_s"] / figures["commits"] * 1000, 2),
        "commit_max_ms": round(figures["commit_max_s"] * 1000, 1),
    }


def main() -> None:
    """Prints the figures; status 1 where the target is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--folder", type=Path, default=Path())  # on the disk that is meant
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    figures = measure(args.seconds, args.clients, args.folder)
    for name, value in figures.items():
        print(f"{name:20} {value:>10,}")
    if args.json is not None:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")
    if figures["accepts_per_s"] < TARGET_PER_S:
        raise SystemExit(f"below the target of {TARGET_PER_S:,} acceptances/s")


if __name__ == "__main__":
    main()
