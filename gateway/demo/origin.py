"""A strict external API for the demo: so many requests in any sliding second, and 429 beyond.

It is a process of its own, so that neither the load nor the display delays what it measures, and it
is the judge of the demo: it stamps arrivals with CLOCK_MONOTONIC, which all processes of a host
share. What is said to it under `/_demo/` is control and never counted:

    GET  /_demo/state                        what was seen so far, as JSON
    POST /_demo/refuse-once?retry_after=S    the next request gets 429 with Retry-After: S
    POST /_demo/mark                         forgets the peak: another act begins
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections import deque
from email.utils import formatdate
from typing import Any
from urllib.parse import parse_qs

from gateway.clock import SECOND, monotonic_ns
from gateway.demo.child import parent_gone
from gateway.h1 import encode
from gateway.h1.codec import BadMessage, HeadLimits, load_codec
from gateway.h1.message import Fields, Framing, RequestHead, ResponseHead

__all__ = ["OriginProtocol", "Strictness", "main"]

LIMIT = 50  # 45/s with a burst of 5, as the demo's file has it: rate * 1 s + burst
CONNECTIONS_MAX = 256  # three gateway nodes of at most 50 connections, and some curls
BODY_BYTES_MAX = 1024 * 1024
RETRY_AFTER_MAX = 60  # seconds; whoever asks for more would wait for the demo's end
ARRIVALS_MAX = 10_000  # stamps kept for the peak: a hundred times what the load can send
IDLE_TIMEOUT_NS = 90 * SECOND  # longer than the gateway keeps an idle connection (55 s)
SWEEP_SECONDS = 5.0
HEAD_LIMITS = HeadLimits(head_bytes_max=16 * 1024, fields_max=64, target_bytes_max=4096)


class Strictness:
    """Judges arrivals, and remembers what it saw. Pure: time is an argument."""

    __slots__ = (
        "_arrivals",
        "_ask",
        "_served",
        "after_asked",
        "asked_ns",
        "asked_until_ns",
        "limit",
        "peak",
        "refused_asked",
        "refused_unasked",
        "requests",
        "served",
    )

    def __init__(self, limit: int = LIMIT) -> None:
        if limit < 1:
            raise ValueError("an origin that allows nothing shows nothing")
        self.limit = limit
        self._served: deque[int] = deque()  # at most `limit` stamps
        self._arrivals: deque[int] = deque(maxlen=ARRIVALS_MAX)
        self._ask = 0  # seconds of Retry-After that the next request gets, 0: none
        self.requests = 0
        self.served = 0
        self.refused_asked = 0
        self.refused_unasked = 0
        self.peak = 0  # most arrivals in any sliding second since `mark`
        self.asked_ns = 0  # when the asked 429 went out
        self.asked_until_ns = 0
        self.after_asked = 0  # arrivals after it, before its time was over

    def arrive(self, now_ns: int) -> int:
        """Judges one request: 0 if it is served, otherwise the seconds of its Retry-After."""
        self.requests += 1
        arrivals = self._arrivals
        arrivals.append(now_ns)
        self._forget(arrivals, now_ns)
        self.peak = max(self.peak, len(arrivals))
        if now_ns < self.asked_until_ns:
            self.after_asked += 1
        if self._ask:
            retry_after, self._ask = self._ask, 0
            self.refused_asked += 1
            self.asked_ns = now_ns
            self.asked_until_ns = now_ns + retry_after * SECOND
            self.after_asked = 0
            return retry_after
        served = self._served
        self._forget(served, now_ns)
        if len(served) < self.limit:
            served.append(now_ns)
            self.served += 1
            return 0
        self.refused_unasked += 1
        return -(-(served[0] + SECOND - now_ns) // SECOND)

    def refuse_once(self, retry_after: int) -> None:
        """The next request gets 429 with this Retry-After (seconds, 1 to RETRY_AFTER_MAX)."""
        if not 1 <= retry_after <= RETRY_AFTER_MAX:
            raise ValueError(f"retry_after is 1 to {RETRY_AFTER_MAX} seconds")
        self._ask = retry_after

    def mark(self) -> None:
        """Another act begins: its peak counts only arrivals from now on."""
        self._arrivals.clear()
        self.peak = 0

    def state(self, now_ns: int) -> dict[str, int]:
        """What was seen so far; `*_ns` are CLOCK_MONOTONIC."""
        self._forget(self._arrivals, now_ns)
        return {
            "now_ns": now_ns,
            "limit": self.limit,
            "requests": self.requests,
            "served": self.served,
            "refused_asked": self.refused_asked,
            "refused_unasked": self.refused_unasked,
            "last_second": len(self._arrivals),
            "peak": self.peak,
            "asked_ns": self.asked_ns,
            "asked_until_ns": self.asked_until_ns,
            "after_asked": self.after_asked,
        }

    @staticmethod
    def _forget(stamps: deque[int], now_ns: int) -> None:
        # A sliding second is half open: what came exactly a second ago is outside.
        over_ns = now_ns - SECOND
        while stamps and stamps[0] <= over_ns:
            stamps.popleft()


class OriginProtocol(asyncio.Protocol):
    """One connection, one request at a time, under the gateway's own message guard."""

    def __init__(self, strictness: Strictness, connections: set[OriginProtocol]) -> None:
        self._strictness = strictness
        self._connections = connections
        self._decoder = load_codec("auto").request_decoder(self, HEAD_LIMITS)
        self._transport: asyncio.Transport | None = None
        self._head: RequestHead | None = None
        self._retry_after = 0
        self._body_bytes = 0
        self._answered = False
        self._full = False  # the peer does not read its answers: its requests wait
        self.active_ns = monotonic_ns()

    # asyncio's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._connections.add(self)
        if len(self._connections) > CONNECTIONS_MAX:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        self._transport = None

    def data_received(self, data: bytes) -> None:
        self.active_ns = monotonic_ns()
        try:
            self._decoder.feed(data)
            self._go_on()
        except BadMessage as bad:
            self._refuse(bad)

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._full = True
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._full = False
        if self._transport is not None:
            self._transport.resume_reading()
        try:
            self._go_on()
        except BadMessage as bad:
            self._refuse(bad)

    def abort(self) -> None:
        """Ends the connection now."""
        if self._transport is not None:
            self._transport.abort()

    # The decoder's side.

    def head_received(self, head: RequestHead | ResponseHead) -> None:
        assert isinstance(head, RequestHead)
        self._head = head
        self._body_bytes = 0
        if not head.target.startswith(b"/_demo/"):
            self._retry_after = self._strictness.arrive(monotonic_ns())

    def body_received(self, data: bytes) -> None:
        self._body_bytes += len(data)
        if self._body_bytes > BODY_BYTES_MAX:
            self.abort()

    def message_complete(self, trailers: Fields) -> None:
        head = self._head
        assert head is not None
        if head.target.startswith(b"/_demo/"):
            status, document = control(self._strictness, head.method, head.target)
            self._answer(status, document, [])
        elif self._retry_after:
            fields = [(b"Retry-After", b"%d" % self._retry_after)]
            self._answer(429, {"error": "too many requests"}, fields)
        else:
            self._answer(200, {"ok": True}, [])

    # Inside.

    def _go_on(self) -> None:
        while self._answered and not self._full and self._transport is not None:
            self._answered = False
            self._decoder.next_message()

    def _answer(self, status: int, document: dict[str, Any], more: Fields) -> None:
        head = self._head
        transport = self._transport
        assert head is not None
        if transport is None or transport.is_closing():
            return
        # After CONNECT or Upgrade no HTTP may follow; neither is offered here.
        close = not head.keep_alive or head.method == b"CONNECT" or bool(head.upgrade)
        body = json.dumps(document).encode() + b"\n"
        fields: Fields = [
            (b"Date", formatdate(usegmt=True).encode()),
            (b"Content-Type", b"application/json"),
            (b"Content-Length", b"%d" % len(body)),
            *more,
        ]
        reason = encode.reason_phrase(status)
        out = encode.response(status, reason, fields, Framing.LENGTH, close)
        transport.write(out if head.method == b"HEAD" else out + body)
        if close:
            transport.close()
        else:
            self._answered = True

    def _refuse(self, bad: BadMessage) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        status = bad.kind.status
        fields: Fields = [(b"Content-Length", b"0")]
        reason = encode.reason_phrase(status)
        transport.write(encode.response(status, reason, fields, Framing.LENGTH, True))
        transport.close()


def control(strictness: Strictness, method: bytes, target: bytes) -> tuple[int, dict[str, Any]]:
    """Obeys one control request; returns status and document."""
    path, _, query = target.decode("latin-1").partition("?")
    if (method, path) == (b"GET", "/_demo/state"):
        return 200, strictness.state(monotonic_ns())
    if (method, path) == (b"POST", "/_demo/mark"):
        strictness.mark()
        return 200, {"ok": True}
    if (method, path) == (b"POST", "/_demo/refuse-once"):
        try:
            text = parse_qs(query, max_num_fields=4)["retry_after"][0]
            if not (text.isascii() and text.isdigit() and len(text) <= 4):
                raise ValueError("retry_after is a whole number of seconds")
            strictness.refuse_once(int(text))
        except (KeyError, ValueError) as error:
            return 400, {"error": str(error)}
        return 200, {"ok": True}
    return 404, {"error": "no such control"}


async def _serve(host: str, port: int, limit: int) -> None:
    """Serves until whoever started this process is gone."""
    loop = asyncio.get_running_loop()
    strictness = Strictness(limit)
    connections: set[OriginProtocol] = set()
    server = await loop.create_server(
        lambda: OriginProtocol(strictness, connections), host, port, backlog=CONNECTIONS_MAX
    )
    print(json.dumps({"port": server.sockets[0].getsockname()[1]}), flush=True)
    ended = asyncio.ensure_future(parent_gone())
    while not ended.done():
        await asyncio.wait({ended}, timeout=SWEEP_SECONDS)
        idle_since_ns = monotonic_ns() - IDLE_TIMEOUT_NS
        for connection in list(connections):
            if connection.active_ns < idle_since_ns:
                connection.abort()
    server.close()
    for connection in list(connections):
        connection.abort()


def main(argv: list[str] | None = None) -> int:
    """`python -m gateway.demo.origin`: prints its port as a JSON line, serves till stdin ends."""
    parser = argparse.ArgumentParser(prog="gateway.demo.origin", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--limit", type=int, default=LIMIT, help="requests in any sliding second")
    options = parser.parse_args(argv)
    asyncio.run(_serve(options.host, options.port, options.limit))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
