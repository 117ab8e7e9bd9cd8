"""Reaches an upstream through another proxy: CONNECT (RFC 9110 section 9.3.6) or SOCKS5 (RFC 1928).

A chained proxy changes how a connection comes to be and nothing after it. So it is a Dialer: what
it returns is the connection that a direct dial would have made, with TLS end to end, and the data
path is the same. Only a plain http:// origin behind an http:// proxy is spoken to otherwise, in
absolute-form, because such proxies let CONNECT through to TLS ports alone (`forwarded`).

`Connect` and `Socks5` are the two dialogues with the proxy, without sockets; `Handshake` carries
one over a connection.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeVar, cast

from gateway.clock import SECOND, monotonic_ns
from gateway.connectors.dial import DialPlan, TcpDialer, tls_failure
from gateway.errors import ErrorKind, GatewayError, Phase
from gateway.h1.codec import BadMessage, Codec, HeadLimits
from gateway.h1.message import Fields, RequestHead, ResponseHead

if TYPE_CHECKING:
    from gateway.proxy.upstream import UpstreamProtocol

__all__ = ["Connect", "Socks5", "ViaDialer"]

Made = TypeVar("Made", bound=asyncio.BufferedProtocol)

# An answer to CONNECT is a status and a few fields; what a proxy adds is its error page, unread.
ANSWER_LIMITS = HeadLimits(head_bytes_max=16 * 1024, fields_max=50)
# After TLS a server may speak first (HTTP/2's SETTINGS), but only in one turn of the loop.
EARLY_BYTES_MAX = 64 * 1024

SOCKS_VERSION = 5
SOCKS_NO_LOGIN = 0
SOCKS_CONNECT = 1
SOCKS_IPV4, SOCKS_NAME, SOCKS_IPV6 = 1, 3, 4
# RFC 1928 section 6, in the words of the RFC.
SOCKS_REPLIES = {
    1: (ErrorKind.UNREACHABLE, "general SOCKS server failure"),
    2: (ErrorKind.UNREACHABLE, "connection not allowed by ruleset"),
    3: (ErrorKind.UNREACHABLE, "network unreachable"),
    4: (ErrorKind.UNREACHABLE, "host unreachable"),
    5: (ErrorKind.CONNECTION_REFUSED, "connection refused"),
    6: (ErrorKind.CONNECT_TIMEOUT, "TTL expired"),
    7: (ErrorKind.UNREACHABLE, "command not supported"),
    8: (ErrorKind.UNREACHABLE, "address type not supported"),
}


class Dialogue(Protocol):
    """What is said to a proxy until it has made the connection.

    `feed` returns what to answer. `done` is true when the octets that follow are the origin's;
    `rest` has those that came with the proxy's last ones. Raises GatewayError.
    """

    done: bool
    rest: bytes

    def first(self) -> bytes: ...

    def feed(self, data: bytes) -> bytes: ...


class Connect:
    """One CONNECT request and its answer, decoded and judged like any response."""

    def __init__(self, host: str, port: int, codec: Codec) -> None:
        self._authority = (f"[{host}]:{port}" if ":" in host else f"{host}:{port}").encode()
        self._decoder = codec.response_decoder(self, ANSWER_LIMITS)
        self.done = False
        self.rest = b""
        self._status = 0

    def first(self) -> bytes:
        self._decoder.expect(b"CONNECT")
        return b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n\r\n" % (self._authority, self._authority)

    def feed(self, data: bytes) -> bytes:
        try:
            self._decoder.feed(data)
        except BadMessage as bad:
            raise _failed(ErrorKind.BAD_RESPONSE, f"answered CONNECT with {bad}") from None
        if self._status >= 300:
            kind = ErrorKind.CONNECT_TIMEOUT if self._status == 504 else ErrorKind.UNREACHABLE
            raise _failed(kind, f"answered CONNECT with {self._status}")
        if self._status:
            self.done = True
            self.rest = self._decoder.take_rest()
        return b""

    def head_received(self, head: RequestHead | ResponseHead) -> None:
        assert isinstance(head, ResponseHead)
        if head.status >= 200:
            self._status = head.status
        elif head.status == 101:
            raise BadMessage(ErrorKind.BAD_RESPONSE, "101 was not asked for")

    def body_received(self, data: bytes) -> None:
        """A refusal's page: the status has said enough."""

    def message_complete(self, trailers: Fields) -> None:
        """The head alone decides."""


class Socks5:
    """Greeting, request and their two replies (RFC 1928 sections 3, 4 and 6), without login."""

    def __init__(self, host: str, port: int) -> None:
        self._target = _socks_address(host) + port.to_bytes(2, "big")
        self._buffer = b""
        self._greeted = False
        self.done = False
        self.rest = b""

    def first(self) -> bytes:
        return bytes((SOCKS_VERSION, 1, SOCKS_NO_LOGIN))

    def feed(self, data: bytes) -> bytes:
        # At most one read beyond a reply of 262 octets: nothing is kept once it is whole.
        buffer = self._buffer + data
        if buffer[0] != SOCKS_VERSION:
            raise _failed(ErrorKind.BAD_RESPONSE, "does not speak SOCKS5")
        answer = b""
        if not self._greeted and len(buffer) >= 2:
            if buffer[1] != SOCKS_NO_LOGIN:
                raise _failed(ErrorKind.UNREACHABLE, "wants a login")
            self._greeted = True
            buffer = buffer[2:]
            answer = bytes((SOCKS_VERSION, SOCKS_CONNECT, 0)) + self._target
        if self._greeted and buffer:
            buffer = self._reply(buffer)
        self._buffer = buffer
        return answer

    def _reply(self, buffer: bytes) -> bytes:
        """Looks for the reply to the request; returns what of it has come so far."""
        if buffer[0] != SOCKS_VERSION:
            raise _failed(ErrorKind.BAD_RESPONSE, "does not speak SOCKS5")
        if len(buffer) > 1 and buffer[1]:
            kind, words = SOCKS_REPLIES.get(buffer[1], (ErrorKind.UNREACHABLE, "refused"))
            raise _failed(kind, f"said: {words} ({buffer[1]})")
        if len(buffer) < 5:
            return buffer
        sizes = {SOCKS_IPV4: 4, SOCKS_IPV6: 16, SOCKS_NAME: 1 + buffer[4]}
        if buffer[3] not in sizes:
            raise _failed(ErrorKind.BAD_RESPONSE, "sent an unknown type of address")
        whole = 4 + sizes[buffer[3]] + 2
        if len(buffer) < whole:
            return buffer
        self.done = True
        self.rest = buffer[whole:]
        return b""


def _socks_address(host: str) -> bytes:
    """Type and address (RFC 1928 section 5); a name is left to the proxy to resolve."""
    try:
        literal = ipaddress.ip_address(host)
    except ValueError:
        name = host.encode()
        return bytes((SOCKS_NAME, len(name))) + name
    return bytes((SOCKS_IPV4 if literal.version == 4 else SOCKS_IPV6,)) + literal.packed


def _failed(kind: ErrorKind, words: str) -> GatewayError:
    return GatewayError(kind, words, phase=Phase.CONNECT)


class Handshake(asyncio.Protocol):
    """Carries a dialogue over a connection to the proxy, and keeps what comes after it."""

    def __init__(self, dialogue: Dialogue) -> None:
        self._dialogue = dialogue
        self.transport: asyncio.Transport
        self.early = bytearray()
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # The dialer returns a connection before it looks whether it is still there.
        self.lost_already = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(self._dialogue.first())

    def data_received(self, data: bytes) -> None:
        dialogue = self._dialogue
        if dialogue.done:
            self.early += data
            if len(self.early) > EARLY_BYTES_MAX:
                self.transport.abort()
            return
        if self.over.done():
            return  # failed already, and about to be closed
        try:
            answer = dialogue.feed(data)
            if dialogue.rest:
                # Nobody has spoken to the origin yet: these octets are not its.
                raise _failed(ErrorKind.BAD_RESPONSE, "sent more than its answer")
        except GatewayError as error:
            self.over.set_exception(error)
            return
        if answer:
            self.transport.write(answer)
        if dialogue.done:
            self.over.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost_already = True
        if not self.over.done():
            self.over.set_exception(_failed(ErrorKind.UNREACHABLE, "closed the connection"))


class ViaDialer:
    """The Dialer of an upstream behind a proxy. `plan` is the upstream's own."""

    __slots__ = ("_dialogue", "_proxy", "_where", "plan")

    def __init__(self, scheme: str, host: str, port: int, plan: DialPlan, codec: Codec) -> None:
        """`scheme` is "http" or "socks5"; host and port are the proxy's."""
        self.plan = plan
        self._where = f"proxy {host}:{port}"
        self._proxy = TcpDialer(DialPlan(host, port, (), None, plan.connect_timeout_ns, 0))
        self._dialogue: Callable[[], Dialogue] = (
            (lambda: Socks5(plan.host, plan.port))
            if scheme == "socks5"
            else (lambda: Connect(plan.host, plan.port, codec))
        )

    async def __call__(self, make: Callable[[], Made]) -> Made:
        """A connection to the origin. Raises GatewayError, whose detail names the proxy."""
        try:
            handshake = await self._ask()
        except GatewayError as error:
            detail = f"{self._where}: {error.detail}"
            raise GatewayError(error.kind, detail, phase=Phase.CONNECT) from None
        transport = handshake.transport
        try:
            if self.plan.tls is not None:
                transport = await self._secure(handshake)
            return _hand_over(handshake, transport, make)
        except BaseException:
            transport.abort()
            raise

    async def _ask(self) -> Handshake:
        """A connection through which the proxy has reached the origin; one budget for all of it."""
        deadline_ns = monotonic_ns() + self.plan.connect_timeout_ns
        # The dialer only connects what `make` returns; it asks nothing of the protocol.
        make = cast("Callable[[], UpstreamProtocol]", lambda: Handshake(self._dialogue()))
        handshake = cast(Handshake, await self._proxy(make))
        try:
            async with asyncio.timeout(max(0, deadline_ns - monotonic_ns()) / SECOND):
                await handshake.over
        except TimeoutError:
            handshake.transport.abort()
            raise _failed(ErrorKind.CONNECT_TIMEOUT, "did not connect in time") from None
        except BaseException:
            handshake.transport.abort()
            raise
        return handshake

    async def _secure(self, handshake: Handshake) -> asyncio.Transport:
        """TLS with the origin, end to end through the proxy."""
        tls = self.plan.tls
        assert tls is not None
        try:
            transport = await asyncio.get_running_loop().start_tls(
                handshake.transport,
                handshake,
                tls.context,
                server_hostname=tls.server_name,
                ssl_handshake_timeout=self.plan.tls_timeout_ns / SECOND,
            )
        except OSError as error:
            raise tls_failure(self.plan, error) from None
        assert transport is not None
        return transport


def _hand_over(
    handshake: Handshake, transport: asyncio.Transport, make: Callable[[], Made]
) -> Made:
    """The connection gets the protocol it is for, as if that had been there from the start."""
    if handshake.lost_already:
        raise _failed(ErrorKind.UPSTREAM_CLOSED, "closed at once")
    protocol = make()
    transport.set_protocol(protocol)
    protocol.connection_made(transport)
    early = bytes(handshake.early)
    if early:
        room = memoryview(protocol.get_buffer(len(early)))
        room[: len(early)] = early
        protocol.buffer_updated(len(early))
    return protocol
