"""Which of a name's addresses answers first: Happy Eyeballs, version 2 (RFC 8305).

A host with a broken IPv6 path must not make each dial wait for a time-out, and a healthy one must
not get two connections. So attempts start one after another, a quarter of a second apart, and the
first to succeed ends the others. How one attempt is made, and how long all may take, is the
caller's: this is only the order and the race.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from itertools import chain, zip_longest
from typing import Any

from gateway.clock import MS, SECOND
from gateway.connectors.address import Endpoint
from gateway.errors import ErrorKind, GatewayError

__all__ = ["ATTEMPT_DELAY_NS", "Connect", "first_connected", "interleave"]

# RFC 8305 section 5: 250 ms is recommended (100 ms to 2 s are allowed). It is longer than most
# round trips, so that a healthy first address is left alone.
ATTEMPT_DELAY_NS = 250 * MS

Connect = Callable[[Endpoint], Coroutine[Any, Any, socket.socket]]
"""One attempt: a connected socket, or GatewayError; cancelled, it leaves no socket behind."""


def interleave(endpoints: Iterable[Endpoint]) -> list[Endpoint]:
    """Alternates the two families (RFC 8305 section 4), each in its order, without repetitions.

    The resolver's first address says which family begins: it has sorted them by what this host
    can reach (RFC 6724), so IPv6 comes first where there is any.
    """
    unique = list(dict.fromkeys(endpoints))
    if not unique:
        return []
    first = unique[0].is_v6
    leading = [endpoint for endpoint in unique if endpoint.is_v6 is first]
    other = [endpoint for endpoint in unique if endpoint.is_v6 is not first]
    pairs = chain.from_iterable(zip_longest(leading, other))
    return [endpoint for endpoint in pairs if endpoint is not None]


async def first_connected(
    endpoints: Sequence[Endpoint], connect: Connect, delay_ns: int = ATTEMPT_DELAY_NS
) -> socket.socket:
    """The first connection to come about; at least one endpoint must be given.

    The next attempt starts when the delay is over or at once when one has failed. Raises the most
    telling GatewayError of the attempts if all have failed. However it ends, also by cancellation,
    all other attempts are cancelled and their sockets closed.
    """
    loop = asyncio.get_running_loop()
    waiting = deque(endpoints)
    attempts: list[asyncio.Task[socket.socket]] = []
    running: set[asyncio.Task[socket.socket]] = set()
    winner: asyncio.Task[socket.socket] | None = None
    try:
        while waiting or running:
            if waiting:
                attempt = loop.create_task(connect(waiting.popleft()))
                attempts.append(attempt)
                running.add(attempt)
            done, running = await asyncio.wait(
                running,
                timeout=delay_ns / SECOND if waiting else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            winner = next((task for task in attempts if task in done and _connected(task)), None)
            if winner is not None:
                return winner.result()
        raise _most_telling([task.exception() for task in attempts])
    finally:
        # Nothing is awaited here: a cancellation now could lose the winner.
        for task in attempts:
            if task is winner:
                continue
            if task.done():
                _discard(task)
            else:
                task.add_done_callback(_discard)
                task.cancel()


def _connected(task: asyncio.Task[socket.socket]) -> bool:
    """Whether an attempt succeeded. Raises its error where that is a fault of ours."""
    error = task.exception()
    if error is not None and not isinstance(error, GatewayError):
        raise error
    return error is None


def _discard(task: asyncio.Task[socket.socket]) -> None:
    """Closes what a superfluous attempt has brought; its error is thereby seen and forgotten."""
    if not task.cancelled() and task.exception() is None:
        task.result().close()


def _most_telling(errors: Sequence[BaseException | None]) -> BaseException:
    """The first error of an address that there was a way to; else the first."""
    found = [error for error in errors if error is not None]
    for error in found:
        if isinstance(error, GatewayError) and error.kind is not ErrorKind.UNREACHABLE:
            return error
    return found[0]
