"""The other limiters of `bench.admission`, run by an interpreter that has them installed.

Nothing of the project is imported here. Each rival is used as its manual shows for a limit per key
in one process; the Redis one asks a server on loopback, as a gateway with a central store would,
one round trip per request with all limits in one script. Prints rows of `admission.Figure` as JSON.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

COUNT = 1_000_000
BATCHES = 7

Hit = Callable[[str], Any]

# GCRA as redis-cell does it, the time taken from the server: all limits agree, or none is touched.
# A row is its theoretical arrival time in microseconds and expires when it is as good as new.
GCRA = """
local now = redis.call('TIME')
local t = now[1] * 1000000 + now[2]
local step = 1000000 / tonumber(ARGV[1])
local burst = tonumber(ARGV[2]) * step
local tats = {}
for i, key in ipairs(KEYS) do
  local tat = math.max(tonumber(redis.call('GET', key) or t), t) + step
  if tat - t > burst then return math.ceil(tat - t - burst) end
  tats[i] = tat
end
for i, key in ipairs(KEYS) do
  redis.call('SET', key, string.format('%.3f', tats[i]), 'PX', math.ceil((tats[i] - t) / 1000) + 1)
end
return 0
"""


def timed(what: str, limits: int, keys: Sequence[str], hit: Hit, batch: int) -> list[Any]:
    """A row: the fastest and the median batch, in nanoseconds per admission."""
    for key in keys[:batch]:
        hit(key)
    took = []
    at = 0
    for _ in range(BATCHES):
        window = [keys[(at + i) % len(keys)] for i in range(batch)]
        at += batch
        begun = time.perf_counter_ns()
        for key in window:
            hit(key)
        took.append((time.perf_counter_ns() - begun) / batch)
    took.sort()
    return [what, limits, len(keys), took[0], took[len(took) // 2]]


def limits_library(strategy: str) -> Hit:
    """https://limits.readthedocs.io: a strategy over the memory of the process."""
    limits = importlib.import_module("limits")
    storage = importlib.import_module("limits.storage").MemoryStorage()
    limiter = getattr(importlib.import_module("limits.strategies"), strategy)(storage)
    item = limits.RateLimitItemPerSecond(COUNT)
    return lambda key: limiter.hit(item, key)


def pyrate() -> Hit:
    """https://pyratelimiter.readthedocs.io: one bucket in memory; it has no key."""
    module = importlib.import_module("pyrate_limiter")
    limiter = module.Limiter(module.InMemoryBucket([module.Rate(COUNT, module.Duration.SECOND)]))
    return lambda key: limiter.try_acquire(key, blocking=False)


def redis_store(port: int, limits: int) -> Hit:
    """redis-py over hiredis, EVALSHA, one kept connection."""
    client = importlib.import_module("redis").Redis(port=port)
    script = client.register_script(GCRA)

    def hit(key: str) -> Any:
        keys = [f"{i}:{key}" for i in range(limits)]
        return script(keys=keys, args=[COUNT, COUNT])

    return hit


def main() -> None:
    parser = argparse.ArgumentParser(description="rival limiters")
    parser.add_argument("--keys", type=int, default=100_000)
    parser.add_argument("--redis-port", type=int)
    options = parser.parse_args()
    many = [f"key-{i:06d}" for i in range(options.keys)]
    rows = []
    for strategy in ("FixedWindowRateLimiter", "MovingWindowRateLimiter"):
        for keys in (many[:1], many):
            rows.append(timed(f"limits {strategy}", 1, keys, limits_library(strategy), 5_000))
    rows.append(timed("pyrate-limiter InMemoryBucket", 1, many[:1], pyrate(), 5_000))
    if options.redis_port is not None:
        for limits in (1, 3):
            for keys in (many[:1], many):
                hit = redis_store(options.redis_port, limits)
                rows.append(timed("Redis, GCRA in Lua, loopback", limits, keys, hit, 2_000))
    json.dump(rows, sys.stdout)


if __name__ == "__main__":
    main()
