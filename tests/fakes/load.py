"""Open load for tests: requests at fixed times whatever becomes of them, from a trio thread.

A request whose node cannot be reached goes to the next one, as behind a virtual address. One that
finds its idle connection closed goes out again on a fresh one, as with every client (RFC 9112
section 9.3.1), and is counted.
"""

from __future__ import annotations

import bisect
import select
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import trio

__all__ = ["Load", "Sent", "peak"]

SECOND = 1_000_000_000
ANSWER_SECONDS = 12.0


class _Unanswered(EOFError):
    """The connection ended before the first octet of an answer."""


@dataclass
class Sent:
    """One request of the load. `status` 0: no whole answer came, and `failure` says why."""

    at_ns: int
    node: int
    status: int = 0
    done_ns: int = 0
    fields: dict[str, str] = field(default_factory=dict)
    failure: str = ""


def peak(stamps: Sequence[int], window_ns: int = SECOND) -> int:
    """The most stamps in any half-open interval of that length."""
    ordered = sorted(stamps)
    return max(
        (bisect.bisect_left(ordered, at + window_ns) - i for i, at in enumerate(ordered)),
        default=0,
    )


class Load:
    """`rate` requests a second, spread over `addresses` by `shares`. Use as a context manager.

    `enter` is called first in the load's thread, and may take it to a network namespace.

    Leaving it stops the sending and waits for the answers under way. `failures` are the requests
    that got no whole answer, `unreached` has a request once for each node that it could not reach.
    """

    def __init__(
        self,
        addresses: Sequence[tuple[str, int]],
        rate: float,
        shares: Sequence[float] = (),
        fields: str = "",
        *,
        path: str = "/load",
        answer_s: float = ANSWER_SECONDS,
        enter: Callable[[], None] | None = None,
    ) -> None:
        self.sent: list[Sent] = []
        self._addresses = list(addresses)
        self._rate = rate
        self._shares = list(shares) or [1.0] * len(self._addresses)
        self._idle: list[list[trio.SocketStream]] = [[] for _ in self._addresses]
        self._request = f"GET {path} HTTP/1.1\r\nHost: api.test\r\n{fields}\r\n".encode()
        self.retries = 0
        self.unreached: list[Sent] = []
        self._answer_s = answer_s
        self._enter = enter
        self._stop = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, exc_type: object, *exc: object) -> None:
        self._stop = True
        self._thread.join(self._answer_s + 3)
        assert not self._thread.is_alive()
        if exc_type is None and self._error is not None:
            raise self._error

    @property
    def failures(self) -> list[Sent]:
        return [s for s in list(self.sent) if s.done_ns and not s.status]

    def statuses(self) -> dict[int, int]:
        """How many answers of each status."""
        found: dict[int, int] = {}
        for sent in list(self.sent):
            if sent.done_ns:
                found[sent.status] = found.get(sent.status, 0) + 1
        return found

    def go_on(self, seconds: float) -> None:
        """Returns when the load has gone on for so long, counted in requests sent."""
        wanted = len(self.sent) + round(seconds * self._rate)
        deadline = time.monotonic() + seconds + 5
        while len(self.sent) < wanted:
            assert self._error is None, self._error
            assert time.monotonic() < deadline, "the load fell behind"
            time.sleep(0.02)

    def _run(self) -> None:
        try:
            if self._enter is not None:
                self._enter()
            trio.run(self._main)
        except BaseException as error:
            self._error = error

    async def _main(self) -> None:
        start = trio.current_time()
        credit = [0.0] * len(self._shares)
        whole = sum(self._shares)
        try:
            async with trio.open_nursery() as nursery:
                number = 0
                while not self._stop:
                    await trio.sleep_until(start + number / self._rate)
                    number += 1
                    for index, share in enumerate(self._shares):
                        credit[index] += share / whole
                    node = credit.index(max(credit))
                    credit[node] -= 1.0
                    sent = Sent(time.monotonic_ns(), node)
                    self.sent.append(sent)
                    nursery.start_soon(self._one, sent)
        finally:
            for stream in [s for idle in self._idle for s in idle]:
                await trio.aclose_forcefully(stream)

    async def _one(self, sent: Sent) -> None:
        try:
            with trio.fail_after(self._answer_s):
                stream, fresh = await self._connection(sent)
                try:
                    await self._use(stream, sent)
                except (trio.BrokenResourceError, _Unanswered):
                    if fresh:
                        raise
                    self.retries += 1
                    await self._use((await self._connection(sent, fresh=True))[0], sent)
        except (OSError, trio.BrokenResourceError, trio.TooSlowError, EOFError) as error:
            sent.status = 0
            sent.failure = f"{type(error).__name__}: {error}"
        sent.done_ns = time.monotonic_ns()

    async def _use(self, stream: trio.SocketStream, sent: Sent) -> None:
        try:
            keep = await self._exchange(stream, sent)
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        if keep:
            self._idle[sent.node].append(stream)
        else:
            await trio.aclose_forcefully(stream)

    async def _connection(
        self, sent: Sent, *, fresh: bool = False
    ) -> tuple[trio.SocketStream, bool]:
        """(a connection, whether it is new), to the request's node or to the next that is there."""
        first = sent.node
        for step in range(len(self._addresses)):
            sent.node = (first + step) % len(self._addresses)
            stream = None if fresh else self._take_idle(sent.node)
            if stream is not None:
                return stream, False
            try:
                return await trio.open_tcp_stream(*self._addresses[sent.node]), True
            except OSError:
                self.unreached.append(sent)
        raise OSError("no node can be reached")

    def _take_idle(self, node: int) -> trio.SocketStream | None:
        """An idle connection that the node has not closed."""
        idle = self._idle[node]
        while idle:
            stream = idle.pop()
            poll = select.poll()
            poll.register(stream.socket.fileno(), select.POLLIN)
            if not poll.poll(0):
                return stream
            stream.socket.close()
        return None

    async def _exchange(self, stream: trio.SocketStream, sent: Sent) -> bool:
        await stream.send_all(self._request)
        buffer = bytearray()

        async def more() -> None:
            data = await stream.receive_some(65536)
            if not data:
                if not buffer:
                    raise _Unanswered("closed without an answer")
                raise EOFError(f"closed after {len(buffer)} octets")
            buffer.extend(data)

        while b"\r\n\r\n" not in buffer:
            await more()
        head, _, rest = bytes(buffer).partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        for line in lines[1:]:
            name, _, value = line.partition(":")
            sent.fields[name.lower()] = value.strip()
        length = int(sent.fields.get("content-length", "0"))
        while len(buffer) < len(head) + 4 + length:
            await more()
        assert len(rest) <= length
        sent.status = int(lines[0].split(" ")[1])
        return sent.fields.get("connection") != "close"
