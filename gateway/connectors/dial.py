"""Opens one connection to an upstream: resolve, judge the addresses, connect, TLS.

Every way to fail becomes a GatewayError of its own kind, so that the client's answer, the log and
the metrics say which step failed.

TLS is tried on the address that connected first, and on no other. HAProxy does the same: a failed
handshake is the answer of a server that is there. To go on would hide a bad certificate, or an
attacker's, behind the next address, and would let one dial last a handshake's time for each.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable
from ipaddress import ip_address
from typing import NamedTuple, TypeVar

from gateway.clock import MS, SECOND
from gateway.connectors.address import (
    SELF_CONNECTION,
    AddressClass,
    AddressDenied,
    Endpoint,
    IPAddress,
    classify,
    parse_ip,
    unmapped,
)
from gateway.connectors.happy_eyeballs import Connect, first_connected, interleave
from gateway.errors import ErrorKind, GatewayError, Phase
from gateway.proxy.relay import Relay

__all__ = [
    "DialPlan",
    "Resolve",
    "TcpDialer",
    "TlsPlan",
    "client_context",
    "system_resolve",
    "tcp_connect",
    "tls_failure",
]

# A name's further addresses are ignored. 250 ms apart, the default budget of 3 s begins 12 attempts
# and no more; a name of a thousand addresses, all refusing, must not make a port scan of a dial.
ADDRESSES_MAX = 16

# What a failed connect means; any other number is the far side's refusal.
_KINDS = {
    errno.ETIMEDOUT: ErrorKind.CONNECT_TIMEOUT,
    errno.ENETUNREACH: ErrorKind.UNREACHABLE,
    errno.EHOSTUNREACH: ErrorKind.UNREACHABLE,
    errno.EADDRNOTAVAIL: ErrorKind.UNREACHABLE,
    errno.EAFNOSUPPORT: ErrorKind.UNREACHABLE,  # a host without IPv6
    errno.EMFILE: ErrorKind.CONNECTIONS_USED_UP,
    errno.ENFILE: ErrorKind.CONNECTIONS_USED_UP,
    errno.ENOBUFS: ErrorKind.CONNECTIONS_USED_UP,
    errno.ENOMEM: ErrorKind.CONNECTIONS_USED_UP,
}

_LOOPBACK = {4: ip_address("127.0.0.1"), 6: ip_address("::1")}
_ANY_PORT = 9  # discard, RFC 863; nothing is sent to it

Resolve = Callable[[str, int], Awaitable[list[Endpoint]]]
"""The addresses of a name, best first. Raises OSError or ValueError where there are none."""


R = TypeVar("R", bound=Relay)


def _uncounted(reason: str) -> None:
    """The default of `count_denied`: nothing is denied where `deny` is empty."""


class TlsPlan(NamedTuple):
    """How to speak TLS to an upstream. `server_name` is what the certificate must be valid for."""

    context: ssl.SSLContext
    server_name: str


class DialPlan(NamedTuple):
    """Where and how to connect. `addresses` replaces resolution of `host` where it is not empty.

    `connect_timeout_ns` is one budget for resolving and all attempts; TLS has its own. `deny` is
    for targets that a client chose: addresses of these classes are not connected to.
    `own_addresses` gives (host, port) of our listeners, wildcards included, where a target must
    not be one of them: the gateway would talk to itself until its connections are used up.
    `count_denied` is called with the reason for each address that was refused.
    """

    host: str
    port: int
    addresses: tuple[tuple[str, int], ...]
    tls: TlsPlan | None
    connect_timeout_ns: int
    tls_timeout_ns: int
    deny: frozenset[AddressClass] = frozenset()
    own_addresses: Callable[[], Iterable[tuple[str, int]]] | None = None
    count_denied: Callable[[str], None] = _uncounted


def client_context(
    ca: str | None = None, cert: str | None = None, key: str | None = None, verify: bool = True
) -> ssl.SSLContext:
    """A context that verifies names and chains unless `verify` is false (paths name PEM files).

    Raises OSError or ssl.SSLError where a file cannot be read or is not what it should be.
    """
    context = ssl.create_default_context(cafile=ca)
    context.set_alpn_protocols(["http/1.1"])
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if cert is not None:
        context.load_cert_chain(cert, key)
    return context


async def system_resolve(host: str, port: int) -> list[Endpoint]:
    """What the host's resolver says, in its order (RFC 6724).

    The look-up has a thread of the loop's, which a cancelled caller leaves to finish by itself.
    uvloop loses the scope of a link-local address here; written as a literal it keeps it.
    """
    infos = await asyncio.get_running_loop().getaddrinfo(
        host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
    )
    found = []
    for *_, sockaddr in infos:
        parsed = parse_ip(str(sockaddr[0]))
        if parsed is not None:
            scope_id = int(sockaddr[3]) if len(sockaddr) == 4 else 0
            found.append(Endpoint(parsed[0], port, scope_id))
    return found


async def tcp_connect(endpoint: Endpoint) -> socket.socket:
    """One attempt. Raises GatewayError; no socket is left behind, also when cancelled."""
    try:
        sock = socket.socket(socket.AF_INET6 if endpoint.is_v6 else socket.AF_INET)
    except OSError as error:
        raise _connect_error(endpoint, error) from None
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Not loop.sock_connect, which resolves the address once more and drops its scope.
        failed = sock.connect_ex(endpoint.sockaddr)
        if failed == errno.EINPROGRESS:
            await _writable(sock)
            failed = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if not failed and sock.getsockname() == sock.getpeername():
            # Nobody listens there: the kernel happened to choose the target's port for our side,
            # and the socket is connected to itself (RFC 9293 section 3.5, simultaneous open).
            failed = errno.ECONNREFUSED
        if failed:
            raise OSError(failed, os.strerror(failed))
    except OSError as error:
        sock.close()
        raise _connect_error(endpoint, error) from None
    except BaseException:
        sock.close()
        raise
    return sock


class TcpDialer:
    """The Dialer of one upstream. `resolve` and `connect` are its ways to ask the world outside."""

    __slots__ = ("_connect", "_resolve", "plan")

    def __init__(
        self, plan: DialPlan, *, resolve: Resolve = system_resolve, connect: Connect = tcp_connect
    ) -> None:
        self.plan = plan
        self._resolve = resolve
        self._connect = connect

    async def __call__(self, make: Callable[[], R]) -> R:
        return await self._wrap(await self._first(), make)

    async def _first(self) -> socket.socket:
        """A socket that is connected within the budget, to an address that is allowed."""
        plan = self.plan
        endpoints: list[Endpoint] = []
        try:
            async with asyncio.timeout(plan.connect_timeout_ns / SECOND):
                endpoints = await self._endpoints()
                return await first_connected(self._allowed(endpoints), self._connect)
        except TimeoutError:
            if not endpoints:
                raise GatewayError(ErrorKind.DNS_TIMEOUT, plan.host, phase=Phase.CONNECT) from None
            others = f" and {len(endpoints) - 1} more" if len(endpoints) > 1 else ""
            detail = f"{plan.host}: {endpoints[0]}{others}"
            raise GatewayError(ErrorKind.CONNECT_TIMEOUT, detail, phase=Phase.CONNECT) from None

    async def _endpoints(self) -> list[Endpoint]:
        plan = self.plan
        found: list[Endpoint] = []
        try:
            for host, port in plan.addresses or ((plan.host, plan.port),):
                literal = parse_ip(host)
                if literal is not None:
                    found.append(Endpoint(literal[0], port, _scope_id(literal[1])))
                else:
                    found += interleave(await self._resolve(host, port))[:ADDRESSES_MAX]
        except (OSError, ValueError) as error:  # ValueError: not even a name
            detail = f"{plan.host}: {error}"
            raise GatewayError(ErrorKind.DNS_ERROR, detail, phase=Phase.CONNECT) from None
        if not found:
            detail = f"{plan.host}: no address"
            raise GatewayError(ErrorKind.DNS_ERROR, detail, phase=Phase.CONNECT)
        return found

    def _allowed(self, endpoints: list[Endpoint]) -> list[Endpoint]:
        """Those that may be connected to. Raises AddressDenied where there is none."""
        allowed: list[Endpoint] = []
        first: tuple[Endpoint, str] | None = None
        for endpoint in endpoints:
            reason = self._denial(endpoint)
            if not reason:
                allowed.append(endpoint)
                continue
            self.plan.count_denied(reason)
            first = first or (endpoint, reason)
        if first is not None and not allowed:
            detail = f"{self.plan.host}: {first[0]} is not allowed: {first[1]}"
            raise AddressDenied(first[1], detail)
        return allowed

    def _denial(self, endpoint: Endpoint) -> str:
        """Why an address may not be connected to, or ""."""
        plan = self.plan
        # Asked first: under deny_private too, the loop is what the operator must hear of.
        if plan.own_addresses is not None and _is_own(endpoint, plan.own_addresses()):
            return SELF_CONNECTION
        if not plan.deny:
            return ""
        kind = classify(endpoint.ip)
        return kind.value if kind in plan.deny else ""

    async def _wrap(self, sock: socket.socket, make: Callable[[], R]) -> R:
        loop = asyncio.get_running_loop()
        tls = self.plan.tls
        try:
            if tls is None:
                _, protocol = await loop.create_connection(make, sock=sock)
            else:
                _, protocol = await loop.create_connection(
                    make,
                    sock=sock,
                    ssl=tls.context,
                    server_hostname=tls.server_name,
                    ssl_handshake_timeout=self.plan.tls_timeout_ns / SECOND,
                )
        except OSError as error:  # ssl.SSLError is one
            sock.close()
            if tls is not None:
                raise tls_failure(self.plan, error) from None
            detail = f"{self.plan.host}: {error}"
            kind = ErrorKind.CONNECTION_REFUSED
            raise GatewayError(kind, detail, phase=Phase.CONNECT) from None
        except BaseException:
            sock.close()
            raise
        return protocol


def tls_failure(plan: DialPlan, error: OSError) -> GatewayError:
    """What a handshake's failure is: out of time, a certificate that is not valid, or no TLS.

    Both loops say that their `ssl_handshake_timeout` is over with a ConnectionAbortedError of their
    own making: unlike the kernel's ECONNABORTED it has no number.
    """
    words = str(error)
    kind = ErrorKind.TLS_ERROR
    if isinstance(error, ssl.SSLCertVerificationError):
        kind = ErrorKind.TLS_CERTIFICATE
        words = error.verify_message
    elif isinstance(error, TimeoutError):
        kind = ErrorKind.TLS_TIMEOUT
    elif isinstance(error, ConnectionAbortedError) and error.errno is None:
        kind = ErrorKind.TLS_TIMEOUT
        words = f"no TLS within {plan.tls_timeout_ns // MS} ms"
    return GatewayError(kind, f"{plan.host}: {words}", phase=Phase.CONNECT)


def _connect_error(endpoint: Endpoint, error: OSError) -> GatewayError:
    kind = _KINDS.get(error.errno or 0, ErrorKind.CONNECTION_REFUSED)
    return GatewayError(kind, f"{endpoint}: {error.strerror or error}", phase=Phase.CONNECT)


def _scope_id(scope: str) -> int:
    """The index of an interface given by name or number. Raises OSError for an unknown name."""
    if not scope:
        return 0
    return int(scope) if scope.isdecimal() else socket.if_nametoindex(scope)


def _is_own(endpoint: Endpoint, own: Iterable[tuple[str, int]]) -> bool:
    """Whether a connection to an endpoint would come in by one of our listeners."""
    target = unmapped(endpoint.ip)
    if target.is_unspecified:  # Linux connects to loopback instead
        target = _LOOPBACK[target.version]
    for host, port in own:
        parsed = parse_ip(host)
        if port != endpoint.port or parsed is None:
            continue
        bound = unmapped(parsed[0])
        if bound == target:
            return True
        # A wildcard takes what comes to any of this host's addresses; "::" takes IPv4 as well.
        fits = bound.version in (6, target.version)
        if bound.is_unspecified and fits and _is_local(target, endpoint.scope_id):
            return True
    return False


def _is_local(address: IPAddress, scope_id: int) -> bool:
    """Whether an address is this host's.

    The kernel is asked which source it would use: for an address of its own, that very address.
    Connecting a datagram socket sends nothing. Binding to the address would tell less: where a
    virtual address moves between hosts, net.ipv4.ip_nonlocal_bind lets that succeed for any.
    """
    if address.is_loopback:
        return True
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect(Endpoint(address, _ANY_PORT, scope_id).sockaddr)
            source = parse_ip(sock.getsockname()[0])
    except OSError:
        return False  # no way there at all
    return source is not None and source[0] == address


async def _writable(sock: socket.socket) -> None:
    """Waits until a connect that is under way has ended."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    loop.add_writer(sock, _settle, ended)
    try:
        await ended
    finally:
        loop.remove_writer(sock)


def _settle(ended: asyncio.Future[None]) -> None:
    if not ended.done():
        ended.set_result(None)
