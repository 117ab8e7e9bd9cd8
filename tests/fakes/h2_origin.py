"""An HTTP/2 origin for tests: h2 on trio, in a thread of its own, answering by a script.

It does as it is told, malformed answers included: h2's checks of what it sends are switched off.
"""

from __future__ import annotations

import contextlib
import queue
import ssl
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings
import trio
from fakes.origin import Connection, Origin

__all__ = ["H2Origin", "H2Script", "H2Stream", "h2_answer"]

# The gateway was faster: it reset the stream or closed the connection.
GONE = (h2.exceptions.ProtocolError, trio.BrokenResourceError, trio.ClosedResourceError)

Headers = list[tuple[bytes, bytes]]


@dataclass
class H2Stream:
    """The origin's end of a stream, for a script."""

    connection: H2Served
    number: int
    fields: Headers
    pieces: list[tuple[bytes, int]] = field(default_factory=list)
    trailer_fields: Headers = field(default_factory=list)  # the request's
    ended: bool = False
    reset_code: int | None = None
    news: trio.Event = field(default_factory=trio.Event)

    def value(self, name: bytes) -> bytes | None:
        """The first value of a field, pseudo-fields included."""
        return next((value for key, value in self.fields if key == name), None)

    async def piece(self) -> bytes:
        """The next piece of the body, whose window is given back; b"" at the end."""
        while not self.pieces:
            if self.ended or self.reset_code is not None:
                return b""
            await self.changed()
        data, window = self.pieces.pop(0)
        self.connection.state.acknowledge_received_data(window, self.number)
        await self.connection.flush()
        return data

    async def body(self) -> bytes:
        """The whole body."""
        whole = b""
        while data := await self.piece():
            whole += data
        return whole

    async def changed(self) -> None:
        """Waits for anything to happen to the stream or the connection's windows."""
        await self.news.wait()

    def tell(self) -> None:
        news, self.news = self.news, trio.Event()
        news.set()

    async def head(
        self, status: bytes, fields: Iterable[tuple[bytes, bytes]] = (), *, end: bool = False
    ) -> None:
        self.connection.state.send_headers(
            self.number, [(b":status", status), *fields], end_stream=end
        )
        await self.connection.flush()

    async def trailers(self, fields: Headers) -> None:
        self.connection.state.send_headers(self.number, fields, end_stream=True)
        await self.connection.flush()

    async def data(self, data: bytes, *, end: bool = False) -> int:
        """Sends as windows allow; returns how much went out before the stream was reset."""
        state = self.connection.state
        sent = 0
        while sent < len(data) and self.reset_code is None:
            room = min(state.local_flow_control_window(self.number), state.max_outbound_frame_size)
            if room <= 0:
                await self.changed()
                continue
            part = data[sent : sent + room]
            sent += len(part)
            state.send_data(self.number, part, end_stream=end and sent == len(data))
            await self.connection.flush()
        if end and not data and self.reset_code is None:
            state.end_stream(self.number)
            await self.connection.flush()
        return sent

    async def reset(self, code: int) -> None:
        self.connection.state.reset_stream(self.number, code)
        await self.connection.flush()


H2Script = Callable[[H2Stream], Awaitable[None]]


class H2Served:
    """One connection."""

    def __init__(self, origin: H2Origin, stream: trio.abc.Stream, number: int) -> None:
        self.origin = origin
        self.stream = stream
        self.number = number
        self.state = h2.connection.H2Connection(
            h2.config.H2Configuration(
                client_side=False,
                header_encoding=False,
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        self.streams: dict[int, H2Stream] = {}
        self._lock = trio.Lock()

    async def flush(self, more: bytes = b"") -> None:
        async with self._lock:
            data = self.state.data_to_send() + more
            if data:
                await self.stream.send_all(data)

    async def serve(self) -> None:
        if self.origin.settings is not None:
            self.state.local_settings = h2.settings.Settings(
                client=False, initial_values=self.origin.settings
            )
        self.state.initiate_connection()
        await self.flush()
        async with trio.open_nursery() as nursery:
            with contextlib.suppress(*GONE):
                while data := await self.stream.receive_some(65536):
                    for event in self.state.receive_data(data):
                        self._heard(event, nursery)
                    await self.flush()
            nursery.cancel_scope.cancel()

    def _heard(self, event: h2.events.Event, nursery: trio.Nursery) -> None:
        if isinstance(event, h2.events.RequestReceived):
            assert event.stream_id is not None
            stream = H2Stream(self, event.stream_id, list(event.headers or []))
            self.streams[stream.number] = stream
            self.origin.streams.append(stream)
            self.origin.opened.put(stream)
            nursery.start_soon(self._run, stream)
        elif isinstance(event, h2.events.DataReceived):
            stream = self.streams[event.stream_id or 0]
            stream.pieces.append((event.data or b"", event.flow_controlled_length or 0))
            stream.tell()
        elif isinstance(event, h2.events.TrailersReceived):
            self.streams[event.stream_id or 0].trailer_fields = list(event.headers or [])
        elif isinstance(event, h2.events.StreamEnded):
            self.streams[event.stream_id or 0].ended = True
            self.streams[event.stream_id or 0].tell()
        elif isinstance(event, h2.events.StreamReset):
            stream = self.streams[event.stream_id or 0]
            stream.reset_code = int(event.error_code or 0)
            self.origin.resets.put((stream.number, stream.reset_code))
            stream.tell()
        elif isinstance(event, h2.events.WindowUpdated):
            for stream in self.streams.values():
                stream.tell()

    async def _run(self, stream: H2Stream) -> None:
        with contextlib.suppress(*GONE):
            await self.origin.h2_script(stream)


class H2Origin(Origin):
    """A scripted HTTP/2 origin on a loopback port; TLS with ALPN. Use as a context manager.

    `streams` has all requests in order, `opened` is the same as a queue, `resets` tells what the
    gateway reset: (stream, code). A script may wait at `gate`, which the test opens by `release`.
    """

    def __init__(
        self,
        script: H2Script,
        ssl_context: ssl.SSLContext,
        *,
        alpn: tuple[str, ...] = ("h2",),
        settings: dict[Any, int] | None = None,
    ) -> None:
        if alpn:
            ssl_context.set_alpn_protocols(list(alpn))
        super().__init__(None, ssl_context)
        self.h2_script = script
        self.settings = settings
        self.streams: list[H2Stream] = []
        self.opened: queue.Queue[H2Stream] = queue.Queue()
        self.resets: queue.Queue[tuple[int, int]] = queue.Queue()
        self.gate = trio.Event()

    def release(self) -> None:
        """Lets those scripts go on that wait at the gate."""
        assert self._token is not None
        self._token.run_sync_soon(self.gate.set)

    async def _serve_requests(self, connection: Connection) -> None:
        await H2Served(self, connection.stream, connection.number).serve()


def h2_answer(
    status: bytes = b"200", body: bytes = b"hello", fields: Iterable[tuple[bytes, bytes]] = ()
) -> H2Script:
    """A script that reads the request and answers it with a Content-Length."""

    async def script(stream: H2Stream) -> None:
        await stream.body()
        length = (b"content-length", b"%d" % len(body))
        head_only = stream.value(b":method") == b"HEAD" or not body
        await stream.head(status, [length, *fields], end=head_only)
        if not head_only:
            await stream.data(body, end=True)

    return script
