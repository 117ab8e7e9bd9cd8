"""What the central store runs: one script for all limits of a request, its arguments, its answer.

All limits agree, or none is touched; a script is the store's unit of isolation. The clock is the
server's (TIME), so the nodes' clocks need not agree. A key holds one text, "tokens microseconds":
the level and when it was that much, or a window's use and when it ends. It expires when it is as
good as absent (drained, or its window over), which bounds the store's memory by what was used
lately. Rates are arguments and not state, so nodes may differ during a reload.

It needs a server that replicates effects and not scripts (Redis 5 or later): it reads the clock
and writes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from gateway.limits.central import CentralRow

__all__ = ["MANY_MAX", "SCRIPT", "SCRIPT_SHA", "arguments", "probe_arguments", "read_reply"]

# Requests of one row that may be asked for together. A queue that drains faster asks again.
MANY_MAX = 64

# ARGV: how often all costs are wanted (0: taken unasked), then for each key its cost, the burst or
# quota, tokens a microsecond, the window's length in microseconds (0: smooth, < 0: aligned to wall
# time), what the caller knows to be used, and flags: 1 believe the caller if that is more,
# 2 never refuse (a dry run), 4 believe the caller even if that is less.
# A text that is none of ours counts as absent. No wait and no life is longer than a year (3e13 us).
# Answer: how often all were taken, then for each key the microseconds until it has room, or 0.
SCRIPT = """
local wanted = tonumber(ARGV[1])
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local granted, rows, reply = wanted, {}, {0}
for i, key in ipairs(KEYS) do
  local a = i * 6 - 5
  local cost, most, rate = tonumber(ARGV[a + 1]), tonumber(ARGV[a + 2]), tonumber(ARGV[a + 3])
  local period, told, flags = tonumber(ARGV[a + 4]), tonumber(ARGV[a + 5]), tonumber(ARGV[a + 6])
  local value = redis.call('GET', key) or ''
  local used, at = string.match(value, '^(%d+%.%d+) (%d+)$')
  local absent = not used or tonumber(used) > 1e15
  if absent then used, at = 0, 0 end
  used, at = tonumber(used), tonumber(at)
  local length = math.abs(period)
  if period == 0 then
    used = math.max(0, used - math.max(0, now - at) * rate)
    at = now
  elseif absent or now >= at or at - now > length then
    local passed = 0
    if now >= at then passed = math.floor((now - at) / length) + 1 end
    used = math.max(0, used - most * passed)
    if period < 0 then
      at = now - now % length + length
    elseif used == 0 or passed == 0 then
      at = now + length
    else
      at = at + passed * length
    end
  end
  if flags >= 4 then
    used = told
    flags = flags - 4
  elseif absent or flags % 2 == 1 then
    used = math.max(used, told)
  end
  local room = math.floor((most - used + 0.00001) / cost)
  local wait = 0
  if room < 1 then
    local over = used + cost - most
    if period == 0 then
      wait = math.ceil(over / rate)
    else
      wait = at - now + math.max(0, math.floor((over - 1) / most)) * length
    end
    wait = math.min(math.max(1, wait), 3e13)
  end
  local dry = flags >= 2
  if not dry then granted = math.min(granted, math.max(0, room)) end
  rows[i] = {key, cost, most, rate, length, used, at, dry, room}
  reply[i + 1] = wait
end
local times = wanted == 0 and 1 or granted
if times > 0 then
  for _, row in ipairs(rows) do
    local key, cost, most, rate, length, used, at, dry, room = unpack(row)
    if dry and wanted > 0 then times = math.min(granted, math.max(0, room)) end
    used = used + cost * times
    local left = used / rate
    if length > 0 then left = at - now + math.floor(used / most) * length end
    local text = string.format('%.6f %.0f', used, at)
    local life = math.min(math.ceil(left / 1000) + 1000, 3e10)
    redis.call('SET', key, text, 'PX', string.format('%.0f', life))
    times = wanted == 0 and 1 or granted
  end
end
reply[1] = granted
return reply
"""
SCRIPT_SHA = hashlib.sha1(SCRIPT.encode(), usedforsecurity=False).hexdigest().encode()

_MICROSECOND_NS = 1_000
_WAIT_MAX_US = 366 * 86_400_000_000  # a year is longer than any period that a rate can have
_BELIEVE, _DRY, _FORGIVE = 1, 2, 4


def arguments(
    rows: Sequence[CentralRow], costs: Sequence[int], many: int, now_ns: int
) -> list[bytes | int | float]:
    """What follows the script's name: the number of keys, the keys, ARGV. Notes that the store
    hears what the wrapped rows know."""
    keys: list[bytes | int | float] = [len(rows)]
    values: list[bytes | int | float] = [many]
    for row, cost in zip(rows, costs, strict=True):
        limit = row.limit
        flags = _DRY if limit.dry_run else 0
        if row.told_epoch != limit.store.epoch:
            flags |= _FORGIVE if row.forgiven else _BELIEVE
            row.told_epoch = limit.store.epoch
            row.forgiven = False
        period_us = limit.period_ns // _MICROSECOND_NS if limit.window else 0
        keys.append(row.name)
        values += (
            cost,
            limit.most,
            limit.tokens_per_ns * limit.factor * _MICROSECOND_NS,
            -period_us if limit.aligned else period_us,
            row.level(now_ns),
            flags,
        )
    return keys + values


def probe_arguments(name: bytes) -> list[bytes | int | float]:
    """A question that reads and writes as a real one does, about a row of nobody's."""
    return [1, name, 1, 1, 1_000_000, 1.0, 0, 0.0, 0]


def read_reply(reply: Any, rows: int) -> tuple[int, list[int]] | None:
    """(how often all costs were granted, nanoseconds to wait at each row, 0: it has room).

    None where that is no answer of the script's.
    """
    if not isinstance(reply, list) or len(reply) != rows + 1:
        return None
    for value in reply:
        if type(value) is not int or not 0 <= value <= _WAIT_MAX_US:
            return None
    granted = reply[0]
    if granted > MANY_MAX:
        return None
    return granted, [wait * _MICROSECOND_NS for wait in reply[1:]]
