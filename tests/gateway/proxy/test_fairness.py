"""Turns between clients that all want more than there is, through a whole gateway."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from statistics import median

import pytest

pytestmark = pytest.mark.slow

RATE = 100
SECONDS = 10.0
CONNECTIONS = 15  # of each noisy client, always one request on each: 45 want 100/s, waiting 0.45 s
WEIGHTS = {"127.0.0.3": 3, "127.0.0.2": 2, "127.0.0.1": 1}
QUIET = "127.0.0.4"

LIMIT = f"""
wait = {{ max = "10s" }}
[[upstream.api.limit]]
name = "shared"
rate = "{RATE}/s"
burst = 20
"""
CLIENTS = "".join(
    f'[[client]]\nname = "c{source[-1]}"\nsource = ["{source}"]\nweight = {weight}\n'
    for source, weight in {**WEIGHTS, QUIET: 1}.items()
)


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> float:
    """One request and its whole answer; the seconds that it took."""
    begun = time.monotonic()
    writer.write(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 "), head
    await reader.readexactly(5)
    return time.monotonic() - begun


async def noisy(port: int, source: str, end: float, took: dict[str, list[float]]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
    while time.monotonic() < end:
        took[source].append(await ask(reader, writer))
    writer.close()
    await writer.wait_closed()


async def quiet(port: int, end: float, took: dict[str, list[float]]) -> None:
    """One request every quarter of a second: far below its share."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(QUIET, 0))
    while time.monotonic() < end:
        took[QUIET].append(await ask(reader, writer))
        await asyncio.sleep(0.25)
    writer.close()
    await writer.wait_closed()


async def all_at_once(port: int, took: dict[str, list[float]]) -> None:
    end = time.monotonic() + SECONDS
    async with asyncio.TaskGroup() as tasks:
        for source in WEIGHTS:
            for _ in range(CONNECTIONS):
                tasks.create_task(noisy(port, source, end, took))
        tasks.create_task(quiet(port, end, took))


def test_shares_follow_the_weights_and_the_quiet_one_is_not_delayed(make) -> None:
    gateway, origin = make(upstream=LIMIT, more=CLIENTS)
    took: dict[str, list[float]] = {source: [] for source in (*WEIGHTS, QUIET)}
    asyncio.run(all_at_once(gateway.address[1], took))
    assert len(origin.requests) >= RATE * SECONDS / 2  # or the machine had other things to do
    got = Counter({source: len(took[source]) for source in WEIGHTS})
    for source, weight in WEIGHTS.items():
        share = got[source] / got.total()
        assert abs(share - weight / sum(WEIGHTS.values())) <= 0.02, got
    # The noisy ones stand behind their own requests; the quiet one behind the turn under way.
    assert median(took[QUIET]) < min(median(took[source]) for source in WEIGHTS) / 3
