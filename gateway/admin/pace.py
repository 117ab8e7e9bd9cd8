"""Work in steps, with turns of the loop in between: nothing that is asked for here may stall it.

The data path's latency is worth more than an operator's answer: whoever reads 100,000 rows or
10,000 upstreams gets them some hundred microseconds later, and no request waits for longer than
SLICE_NS and one step.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any, TypeVar

from gateway.admin.views import Steps
from gateway.clock import MS, monotonic_ns

__all__ = ["LEVELS", "encoded_steps", "paced"]

T = TypeVar("T")

# The bound is 10 ms for everything; a step is at most about 1 ms.
SLICE_NS = 2 * MS
# Below so many levels a value is small: an item of a list, an upstream of a document.
LEVELS = 3


async def paced(steps: Steps[T]) -> T:
    """The result of all steps; the loop turns whenever SLICE_NS are over."""
    until_ns = monotonic_ns() + SLICE_NS
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
        if monotonic_ns() >= until_ns:
            await asyncio.sleep(0)
            until_ns = monotonic_ns() + SLICE_NS


def encoded_steps(value: Any, levels: int = LEVELS) -> Steps[bytes]:
    """JSON text of a value, a step for each of its parts: the encoder itself never pauses."""
    if not levels or not value or not isinstance(value, dict | list):
        return json.dumps(value, separators=(",", ":")).encode()
    parts = []
    if isinstance(value, dict):
        for key, item in value.items():
            part = yield from encoded_steps(item, levels - 1)
            parts.append(json.dumps(key).encode() + b":" + part)
            yield
        return b"{" + b",".join(parts) + b"}"
    for item in value:
        parts.append((yield from encoded_steps(item, levels - 1)))
        yield
    return b"[" + b",".join(parts) + b"]"
