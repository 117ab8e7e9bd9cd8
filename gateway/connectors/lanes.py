"""The pool of an upstream whose connections carry many exchanges at a time (HTTP/2).

It has the face of `proxy.pool.UpstreamPool` and another heart: there a connection belongs to one
exchange, here an exchange gets a place in a lane. New lanes are dialled only for those whom no
lane has room for, and one dial serves as many of them as a lane has places.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Protocol

from gateway.errors import ErrorKind, GatewayError, Phase

if TYPE_CHECKING:
    from gateway.proxy.exchange import Exchange

__all__ = ["STREAMS_MAX", "Lane", "LanePool"]

# Places in a lane. Its receive window is 16 MiB (2^24, httpcore's choice) and a stream's is 256 KiB
# (2^18): 2^24 / 2^18 = 64 readers may stand still, and the lane still moves for the next one.
STREAMS_MAX = 64


class Lane(Protocol):
    """One connection. `rested`: it has answered or idled, so that a failure may mean stale."""

    rested: bool
    streams: int  # exchanges on it now

    @property
    def has_room(self) -> bool: ...

    def carry(self, exchange: Exchange) -> None:
        """Gives the exchange a connection of its own, so to speak, through `connected`."""
        ...

    def idle(self) -> None:
        """Nobody is on it: it closes when it has been so for long, or at once if it is done."""
        ...

    def close(self) -> None: ...

    async def abort(self, error: GatewayError) -> None:
        """Fails the exchanges on it, drops the connection, and waits until it is gone."""
        ...


class LanePool:
    """The lanes of one upstream on one worker."""

    __slots__ = (
        "_dial",
        "_dials",
        "_lanes",
        "_open",
        "_waiting",
        "aborted",
        "closed",
        "dials",
        "failures",
        "reuses",
    )

    def __init__(self, dial: Callable[[LanePool], Coroutine[None, None, Lane]]) -> None:
        """`dial` opens a lane for a pool; it raises GatewayError, and nothing else."""
        self._dial = dial
        self._lanes: list[Lane] = []  # those that may take an exchange, now or later
        self._open: set[Lane] = set()
        self._waiting: deque[Exchange] = deque()
        self._dials: set[asyncio.Task[None]] = set()
        self.closed = False
        self.aborted = False
        self.dials = 0
        self.failures = 0
        self.reuses = 0

    @property
    def idle_count(self) -> int:
        return sum(lane.streams == 0 for lane in self._open)

    @property
    def open_count(self) -> int:
        return len(self._open)

    @property
    def dialling_count(self) -> int:
        return len(self._dials)

    def take(self, exchange: Exchange) -> None:
        """Gives the exchange a place, now or later, through `connected` or `upstream_failed`.

        `exchange.wants_fresh` asks for a lane that has not yet answered anybody or idled.
        """
        for lane in reversed(self._lanes):
            if lane.has_room and not (exchange.wants_fresh and lane.rested):
                self.reuses += lane.rested
                self._place(lane, exchange)
                return
        if self.aborted:
            exchange.upstream_failed(GatewayError(ErrorKind.DRAINING, phase=Phase.CONNECT))
            return
        self._waiting.append(exchange)
        self._dial_for_waiting()

    def leave(self, exchange: Exchange) -> None:
        """The exchange no longer wants the place it asked for."""
        if exchange in self._waiting:
            self._waiting.remove(exchange)

    def left(self, lane: Lane) -> None:
        """An exchange is through with its place."""
        lane.streams -= 1
        self._serve(lane)
        if not lane.streams:
            lane.idle()

    def forget(self, lane: Lane) -> None:
        """A lane takes nobody any more: it ends after those who are on it."""
        if lane in self._lanes:
            self._lanes.remove(lane)

    def gone(self, lane: Lane) -> None:
        """A lane's connection is lost."""
        self.forget(lane)
        self._open.discard(lane)

    def close(self) -> None:
        """No more reuse: idle lanes close now, busy ones after their exchanges."""
        self.closed = True
        for lane in list(self._lanes):
            if not lane.streams:
                lane.close()

    async def abort(self) -> None:
        """Ends everything now (the worker stops)."""
        self.aborted = self.closed = True
        for task in list(self._dials):
            task.cancel()
        await asyncio.gather(*self._dials, return_exceptions=True)
        for lane in list(self._open):
            await lane.abort(GatewayError(ErrorKind.DRAINING, phase=Phase.HEAD))

    def _place(self, lane: Lane, exchange: Exchange) -> None:
        lane.streams += 1
        lane.carry(exchange)

    def _serve(self, lane: Lane) -> None:
        """Gives the lane's free places to those who wait."""
        for exchange in list(self._waiting):
            if not lane.has_room:
                return
            if not (exchange.wants_fresh and lane.rested):
                self._waiting.remove(exchange)
                self._place(lane, exchange)

    def _dial_for_waiting(self, done: int = 0) -> None:
        """Dials where more wait than the dials under way (but for the `done`) will serve."""
        if len(self._waiting) > (len(self._dials) - done) * STREAMS_MAX:
            task = asyncio.get_running_loop().create_task(self._dial_one())
            self._dials.add(task)
            task.add_done_callback(self._dials.discard)

    async def _dial_one(self) -> None:
        self.dials += 1
        try:
            lane = await self._dial(self)
        except GatewayError as error:
            self._failed(error)
        except Exception as error:
            # A fault of ours must not strand those who wait.
            self._failed(GatewayError(ErrorKind.INTERNAL, repr(error), phase=Phase.CONNECT))
            raise
        else:
            self._lanes.append(lane)
            self._open.add(lane)
            self._serve(lane)
            if lane.streams:
                self._dial_for_waiting(done=1)
                return
            lane.idle()
            if self._waiting and not lane.has_room:
                detail = "the connection takes no requests"
                self._failed(GatewayError(ErrorKind.UPSTREAM_CLOSED, detail, phase=Phase.CONNECT))

    def _failed(self, error: GatewayError) -> None:
        """Fails those whom no other dial under way is for."""
        self.failures += 1
        others = len(self._dials) - 1
        failed = [self._waiting.popleft() for _ in range(len(self._waiting) - others * STREAMS_MAX)]
        for exchange in failed:
            exchange.upstream_failed(error)
