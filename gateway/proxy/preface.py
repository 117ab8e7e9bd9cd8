"""What comes before HTTP on a listener with `proxy_protocol` or `tls`: the PROXY header, then TLS.

Only such listeners pay for this room. The header is read to the octet, never beyond it, so that
whatever follows is still in the kernel for who comes next: HTTP on the same transport, or a TLS
layer on the same socket. asyncio has TLS from a connection's first octet or not at all
(`start_tls` tells the protocol nothing of the new transport before data arrives), so for TLS the
socket is taken from its transport and accepted once more; that handshake is a task. It looks at the
first octet before it takes any, so that a client that speaks plain HTTP there is told so.
"""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING

from gateway.errors import ErrorKind, GatewayError
from gateway.h1.codec import BadMessage
from gateway.h1.proxy_protocol import ProxyHeader
from gateway.proxy.clients import address_of, within
from gateway.proxy.downstream import DownstreamProtocol
from gateway.proxy.relay import Relay

if TYPE_CHECKING:
    import ssl

    from gateway.proxy.graph import Listener, Worker

__all__ = ["Preface"]

TLS_HANDSHAKE_SECONDS = 10.0


class Preface(Relay):
    """A client's connection until its PROXY header is read, or known not to be believed."""

    __slots__ = ("_listener", "header")

    def __init__(self, worker: Worker, listener: Listener) -> None:
        super().__init__(worker)
        self._listener = listener
        self.header = ProxyHeader()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if not self._listener.admit_preface(self):
            self.worker.count("connections_refused")
            self.abort()
            return
        if not self._listener.proxied_by:
            self._hand_over("")
            return
        peer = transport.get_extra_info("peername")
        address = address_of(str(peer[0])) if isinstance(peer, tuple) and peer else None
        if address is None or not within(address, self._listener.proxied_by):
            # Not believed: a header would be a malformed request, or a malformed TLS record.
            self._hand_over("")
            return
        self.set_timeout(self.worker.runtime.head_timeout_ns)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.worker.read_buffer[: self.header.wanted]

    def received(self, data: bytes) -> None:
        try:
            end = self.header.feed(data)
        except BadMessage as bad:
            self._refuse(str(bad))
            return
        if end is not None:
            self._hand_over(self.header.address or "")

    def ended(self) -> None:
        if self.header.begun:  # a bare connection and its end are a balancer's health check
            self._fault("the connection ended inside it")

    def lost(self) -> None:
        """Nobody waits for it."""

    def forget(self) -> None:
        self._listener.leave(self)

    def writable(self, yes: bool) -> None:
        """Nothing is written here."""

    def timed_out(self, now_ns: int) -> None:
        self._refuse("it did not come in time")

    def drain(self) -> None:
        """The worker stops: no request has begun."""
        self.abort()

    def _refuse(self, reason: str) -> None:
        """Closes without a word: the peer is a balancer, no client that could read an answer."""
        self._fault(reason)
        self.abort()

    def _fault(self, reason: str) -> None:
        worker = self.worker
        worker.count("proxy_protocol_bad")
        peer = self.transport.get_extra_info("peername")
        worker.note_bad_header(self._listener.name, str(peer[0]), reason)

    def _hand_over(self, source: str) -> None:
        """The connection goes on, as that of `source`; "" is the peer itself."""
        if self._listener.context is not None:
            self._secure(self._listener.context, source)
            return
        if self._spoke is not None:
            self._spoke.discard(self)
            self._spoke = None
        self.forget()
        connection = DownstreamProtocol(self.worker, self._listener, source)
        self.transport.set_protocol(connection)
        connection.connection_made(self.transport)

    def _secure(self, context: ssl.SSLContext, source: str) -> None:
        """Takes the socket away from its transport, with its unread octets, and begins TLS."""
        self.deadline_ns = 0
        fd = self.transport.get_extra_info("socket").fileno()
        try:
            sock = socket.socket(fileno=os.dup(fd))
        except OSError:  # no descriptor is left
            self.worker.count("connections_refused")
        else:
            handshake = _accept(self.worker, self._listener, sock, context, source)
            task = self.worker.loop.create_task(handshake)
            self._listener.handshakes.add(task)
            task.add_done_callback(self._listener.handshakes.discard)
        self.abort()  # closes this descriptor; the connection lives while the other is open


async def _accept(
    worker: Worker, listener: Listener, sock: socket.socket, context: ssl.SSLContext, source: str
) -> None:
    """One handshake; afterwards the connection stands on its own. A failed one is closed."""
    sock.setblocking(False)
    try:
        async with asyncio.timeout(TLS_HANDSHAKE_SECONDS):
            first = await _first_octet(sock)
        if not first:
            sock.close()  # a bare connection and its end are a balancer's health check
        elif first.isalpha():  # so begins every method; a TLS record does with 20 to 24
            await worker.loop.connect_accepted_socket(
                lambda: PlainSpeaker(worker, listener, source), sock
            )
        else:
            await worker.loop.connect_accepted_socket(
                lambda: DownstreamProtocol(worker, listener, source),
                sock,
                ssl=context,
                ssl_handshake_timeout=TLS_HANDSHAKE_SECONDS,
            )
    except OSError:  # ssl.SSLError and the timeout are such
        worker.count("tls_handshakes_failed")
        sock.close()
    except BaseException:
        sock.close()
        raise


class PlainSpeaker(DownstreamProtocol):
    """A client that speaks plain HTTP to a TLS port: closing without a word would tell it nothing.

    It gets a 400 that it can read, as from nginx, and what it says is not looked at.
    """

    __slots__ = ()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if not self.transport.is_closing():
            self.worker.count("plain_http_on_tls_port")
            self.refuse(GatewayError(ErrorKind.BAD_REQUEST, "plain HTTP sent to a TLS port"))


async def _first_octet(sock: socket.socket) -> bytes:
    """The first octet that comes, which stays where it is; b"" at the end. Raises OSError."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    while True:
        try:
            return sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            pass
        loop.add_reader(sock, readable.set)
        try:
            await readable.wait()
        finally:
            loop.remove_reader(sock)
        readable.clear()
