"""Server-sent events: one snapshot a second for everybody who looks, none while nobody does.

There is no queue. A reader gets the newest snapshot when it is ready for one; a slow reader misses
some, and one that takes nothing any more is let go by the server (`app`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from gateway.admin.pace import encoded_steps, paced
from gateway.admin.problems import Problem
from gateway.admin.resources import RESOURCES
from gateway.clock import MS, monotonic_ns
from gateway.proxy.histogram import BOUNDS_NS

if TYPE_CHECKING:
    from starlette.types import Receive, Send

    from gateway.admin.views import Served

__all__ = ["HEAD_BOUNDS_MS", "READERS_MAX", "SHOWN", "Snapshots", "read_snapshot"]

READERS_MAX = 16  # a page, a `top`, and some of each
SNAPSHOT_SECONDS = 1.0
# A page shows no more, and reading 10,000 each second would take the whole second.
UPSTREAMS_SHOWN_MAX = 100
SHOWN = ("nodes", "members", "upstreams", "limits", "breakers", "waits", "recent")

HEAD_BOUNDS_MS = [bound_ns / MS for bound_ns in BOUNDS_NS]

_START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")],
}


class Snapshots:
    """The snapshots that `read` makes, and who reads them."""

    def __init__(self, read: Callable[[], Awaitable[dict[str, Any]]]) -> None:
        self._read = read
        self._event = b""
        self._number = 0
        self._readers: set[asyncio.Event] = set()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def readers(self) -> int:
        return len(self._readers)

    async def stream(self, receive: Receive, send: Send, most: int | None) -> None:
        """Answers one request with events, up to `most`. Raises Problem before it has begun."""
        if self._closed:
            raise Problem(503, "the node is stopping")
        if self.readers >= READERS_MAX:
            raise Problem(503, f"{READERS_MAX} readers are served at a time")
        wake = asyncio.Event()
        self._readers.add(wake)
        gone = asyncio.ensure_future(_disconnected(receive))
        gone.add_done_callback(lambda _: wake.set())
        if self._task is None:
            self._task = asyncio.ensure_future(self._make())
        seen = self._number
        told = 0
        try:
            await send(_START)
            while not gone.done() and (most is None or told < most):
                await wake.wait()
                wake.clear()
                if self._closed:
                    break
                if self._number != seen:
                    seen = self._number
                    told += 1
                    await send(_body(self._event, more=True))
            await send(_body(b"", more=False))
        finally:
            gone.cancel()
            self._readers.discard(wake)
            if not self._readers:
                self._stop_making()

    def close(self) -> None:
        """Ends all readers: the worker stops."""
        self._closed = True
        self._stop_making()
        self._wake_all()

    def _wake_all(self) -> None:
        for wake in self._readers:
            wake.set()

    def _stop_making(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _make(self) -> None:
        while True:
            text = await paced(encoded_steps(await self._read()))
            self._number += 1
            self._event = b"event: snapshot\nid: %d\ndata: %b\n\n" % (self._number, text)
            self._wake_all()
            await asyncio.sleep(SNAPSHOT_SECONDS)


async def read_snapshot(served: Served) -> dict[str, Any]:
    """What a worker shows now."""
    names = list(served.worker.runtime.upstreams)
    shown = names[:UPSTREAMS_SHOWN_MAX]
    snapshot: dict[str, Any] = {
        "now_ns": monotonic_ns(),
        "truncated": len(names) > len(shown),
        "head_bounds_ms": HEAD_BOUNDS_MS,
    }
    for name in SHOWN:
        snapshot[name] = await paced(RESOURCES[name].read(served, shown))
    return snapshot


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _body(octets: bytes, *, more: bool) -> dict[str, Any]:
    return {"type": "http.response.body", "body": octets, "more_body": more}
