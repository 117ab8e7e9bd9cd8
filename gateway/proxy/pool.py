"""The connections to one upstream: idle ones are reused last in, first out; others are dialled.

How many may be in use is a limit like any other (see `Upstream.limits`): an exchange that comes
here has its place. A dial is the pool's task: its connection goes to whoever waits first, and
idles if by then nobody does. Every waiter has one dial under way that is its own: whoever is served
by another's gives that one its own in exchange. So a failure is told to the one whose attempt it
was, while the others' attempts go on, and nobody waits longer than an attempt lasts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Protocol, TypeAlias, TypeVar

from gateway.clock import monotonic_ns
from gateway.errors import ErrorKind, GatewayError, Phase
from gateway.h1.codec import HeadLimits

if TYPE_CHECKING:
    from gateway.proxy.exchange import Exchange
    from gateway.proxy.relay import Relay
    from gateway.proxy.tunnel import TunnelEnd
    from gateway.proxy.upstream import UpstreamProtocol

    PooledConnection: TypeAlias = UpstreamProtocol | TunnelEnd

R = TypeVar("R", bound="Relay")

__all__ = ["Dialer", "Pool", "UpstreamPool"]


class Dialer(Protocol):
    """Opens connections to one upstream: resolve, address check, connect, TLS."""

    def __call__(self, make: Callable[[], R]) -> Coroutine[None, None, R]:
        """A connected protocol made by `make`. Raises GatewayError, and nothing else."""
        ...


class Pool(Protocol):
    """What an exchange, a reload and the admin interface need of a pool."""

    dials: int
    failures: int  # of dials
    reuses: int

    @property
    def idle_count(self) -> int: ...

    @property
    def open_count(self) -> int: ...

    @property
    def dialling_count(self) -> int: ...

    def take(self, exchange: Exchange) -> None:
        """Gives the exchange a connection, now or later, through `connected` or `upstream_failed`.

        `exchange.wants_fresh` asks for a new one: the retry after a stale connection must leave
        the pool.
        """
        ...

    def leave(self, exchange: Exchange) -> None:
        """The exchange no longer wants the connection it asked for."""
        ...

    def close(self) -> None:
        """No more reuse: idle connections close now, busy ones after their exchange."""
        ...

    async def abort(self) -> None:
        """Ends everything now (the worker stops)."""
        ...


class UpstreamPool:
    """The connections of one upstream on one worker."""

    __slots__ = (
        "_all",
        "_dial",
        "_dials",
        "_idle",
        "_make",
        "_waiting",
        "closed",
        "dials",
        "failures",
        "head_limits",
        "idle_timeout_ns",
        "reuses",
    )

    def __init__(
        self,
        dial: Dialer,
        make: Callable[[UpstreamPool], PooledConnection],
        *,
        idle_timeout_ns: int,
        head_limits: HeadLimits,
    ) -> None:
        self._dial = dial
        self._make = make
        self.idle_timeout_ns = idle_timeout_ns
        self.head_limits = head_limits
        self._idle: list[PooledConnection] = []
        self._all: set[PooledConnection] = set()
        self._waiting: dict[Exchange, asyncio.Task[None]] = {}  # in order, each with its dial
        self._dials: dict[asyncio.Task[None], Exchange | None] = {}  # and for whom it is
        self.closed = False
        self.dials = 0
        self.failures = 0
        self.reuses = 0

    @property
    def idle_count(self) -> int:
        return len(self._idle)

    @property
    def open_count(self) -> int:
        return len(self._all)

    @property
    def dialling_count(self) -> int:
        return len(self._dials)

    def take(self, exchange: Exchange) -> None:
        """Gives the exchange a connection, now or later, through `connected` or `upstream_failed`.

        `exchange.wants_fresh` asks for a new one: the retry after a stale connection must leave
        the pool.
        """
        idle = self._idle
        if idle and not exchange.wants_fresh:
            connection = self._reusable_slow() if exchange.must_arrive() else self._reusable()
            if connection is not None:
                connection.deadline_ns = 0
                self.reuses += 1
                exchange.connected(connection)
                return
        task = asyncio.get_running_loop().create_task(self._dial_one())
        self._waiting[exchange] = task
        self._dials[task] = exchange
        task.add_done_callback(self._dial_over)

    def _reusable(self) -> PooledConnection | None:
        idle = self._idle
        while idle:
            connection = idle.pop()
            if not connection.lost_already and not connection.transport.is_closing():
                return connection
        return None

    def _reusable_slow(self) -> PooledConnection | None:
        """One of which the kernel has no news either: for a request that is lost with a stale one.

        The others stay where they are until the loop tells what it is. The question costs 0.6 us,
        which a request that can be sent once more need not pay (RFC 9110 section 9.2.2).
        """
        doubtful: list[PooledConnection] = []
        connection = self._reusable()
        while connection is not None and connection.something_came():
            doubtful.append(connection)
            connection = self._reusable()
        self._idle += reversed(doubtful)
        return connection

    def leave(self, exchange: Exchange) -> None:
        """The exchange no longer wants the connection it asked for."""
        task = self._waiting.pop(exchange, None)
        if task is not None and task in self._dials:  # not, once they were aborted
            self._dials[task] = None

    def give(self, connection: PooledConnection) -> None:
        """A connection whose exchange is over: to the first waiter, or idle."""
        for waiter in self._waiting:
            if connection.fresh or not waiter.wants_fresh:
                self.leave(waiter)
                waiter.connected(connection)
                return
        if self.closed or not connection.idle_ns_max:
            connection.close()
            return
        connection.fresh = False  # what has idled may be stale, whether it was used or not
        connection.deadline_ns = monotonic_ns() + connection.idle_ns_max
        self._idle.append(connection)

    def forget(self, connection: PooledConnection) -> None:
        """A connection is gone."""
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def close(self) -> None:
        """No more reuse: idle connections close now, busy ones after their exchange."""
        self.closed = True
        for connection in list(self._idle):
            connection.close()
        self._idle.clear()

    async def abort(self) -> None:
        """Ends everything now (the worker stops)."""
        self.close()
        for task in list(self._dials):
            task.cancel()
        await asyncio.gather(*list(self._dials), return_exceptions=True)
        for connection in list(self._all):
            connection.abort()

    async def _dial_one(self) -> None:
        self.dials += 1
        task = asyncio.current_task()
        assert task is not None
        try:
            connection = await self._dial(lambda: self._make(self))
        except GatewayError as error:
            self._failed(task, error)
        except Exception as error:
            # The dialer promises GatewayError only; a fault of ours must not strand the waiter.
            self._failed(task, GatewayError(ErrorKind.INTERNAL, repr(error), phase=Phase.CONNECT))
            raise
        else:
            if not connection.lost_already:
                self._all.add(connection)
                self._hand_over(task)
                self.give(connection)
            else:
                self._failed(
                    task,
                    GatewayError(ErrorKind.UPSTREAM_CLOSED, "closed at once", phase=Phase.CONNECT),
                )

    def _hand_over(self, task: asyncio.Task[None]) -> None:
        """A dial has succeeded and serves the first: the one it was for has the first's dial."""
        owner = self._dials[task]
        if owner is None:
            return
        first = next(iter(self._waiting))
        theirs = self._waiting[first]
        self._waiting[first], self._waiting[owner] = task, theirs
        self._dials[task], self._dials[theirs] = first, owner

    def _failed(self, task: asyncio.Task[None], error: GatewayError) -> None:
        self.failures += 1
        owner = self._dials[task]
        if owner is not None:
            self.leave(owner)
            owner.upstream_failed(error)

    def _dial_over(self, task: asyncio.Task[None]) -> None:
        del self._dials[task]
