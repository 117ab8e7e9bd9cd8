"""A spool's file without a gateway: requests to keep, and a loop to keep them in."""

from __future__ import annotations

import asyncio
import secrets
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gateway.spool.record import NewRequest
from gateway.spool.store import Store

__all__ = ["done", "held_by_another", "request", "run"]


def request(key: bytes = b"", **other: Any) -> NewRequest:
    """A request of the client "c" for the upstream "api"."""
    new = NewRequest(
        token=secrets.token_bytes(16), owner=0, upstream="api", client="c", source="::1",
        idempotency_key=key or secrets.token_hex(8).encode(), fingerprint=b"f", lane=b"",
        method=b"POST", host=b"api.test", target=b"/a", fields=[(b"A", b"b: c"), (b"D", b"")],
        body=b"hello", parts=0, body_bytes=5, accepted_ms=1, expires_ms=10_000,
    )  # fmt: skip
    return new._replace(**other)


async def done(store: Store, op: Callable[[sqlite3.Connection], Any], **how: Any) -> Any:
    """What came of an op."""
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[Any] = loop.create_future()
    store.submit(op, outcome.set_result, **how)
    return await outcome


def run(path: Path, work: Callable[[Store], Any], **how: Any) -> Any:
    """Opens the store, does the work in a loop, closes the store."""

    async def main() -> Any:
        store = Store(str(path), **how)
        store.open()
        store.start(asyncio.get_running_loop())
        try:
            return await work(store)
        finally:
            await store.close()

    return asyncio.run(main())


@contextmanager
def held_by_another(path: Path) -> Iterator[None]:
    """Another process has the store open meanwhile, and ends in good order."""
    code = (
        "import sys; from gateway.spool.store import Store\n"
        f"Store({str(path)!r}).open(); print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"open\n"
        yield
        other.communicate(b"")
