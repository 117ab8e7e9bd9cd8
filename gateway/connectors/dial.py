"""Opens one connection to an upstream: resolve, connect to each address in turn, TLS.

Every way to fail becomes a GatewayError of its own kind, so that the client's answer, the log and
the metrics say which step failed.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
import ssl
from collections.abc import Callable
from typing import NamedTuple

from gateway.clock import SECOND, monotonic_ns
from gateway.errors import ErrorKind, GatewayError, Phase
from gateway.proxy.upstream import UpstreamProtocol

__all__ = ["DialPlan", "TcpDialer", "TlsPlan", "client_context"]

_UNROUTABLE = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL}


class TlsPlan(NamedTuple):
    """How to speak TLS to an upstream. `server_name` is what the certificate must be valid for."""

    context: ssl.SSLContext
    server_name: str


class DialPlan(NamedTuple):
    """Where and how to connect. `addresses` replaces resolution of `host` where it is not empty."""

    host: str
    port: int
    addresses: tuple[tuple[str, int], ...]
    tls: TlsPlan | None
    connect_timeout_ns: int
    tls_timeout_ns: int


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


class TcpDialer:
    """The Dialer of one upstream."""

    __slots__ = ("plan",)

    def __init__(self, plan: DialPlan) -> None:
        self.plan = plan

    async def __call__(self, make: Callable[[], UpstreamProtocol]) -> UpstreamProtocol:
        plan = self.plan
        error = GatewayError(ErrorKind.DNS_ERROR, f"{plan.host}: no address", phase=Phase.CONNECT)
        # One budget for resolving and all addresses: a dead one may use an even part of the rest.
        deadline_ns = monotonic_ns() + plan.connect_timeout_ns
        addresses = await self._addresses()
        for position, (family, address, port) in enumerate(addresses):
            left_ns = max(0, deadline_ns - monotonic_ns()) // (len(addresses) - position)
            try:
                sock = await self._connect(family, address, port, left_ns)
                return await self._wrap(sock, make)
            except GatewayError as failed:
                error = failed
        raise error

    async def _addresses(self) -> list[tuple[socket.AddressFamily, str, int]]:
        plan = self.plan
        targets = plan.addresses or ((plan.host, plan.port),)
        found: list[tuple[socket.AddressFamily, str, int]] = []
        for host, port in targets:
            try:
                literal = ipaddress.ip_address(host)
            except ValueError:
                found += await self._resolve(host, port)
            else:
                family = socket.AF_INET if literal.version == 4 else socket.AF_INET6
                found.append((family, host, port))
        return found

    async def _resolve(self, host: str, port: int) -> list[tuple[socket.AddressFamily, str, int]]:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.plan.connect_timeout_ns / SECOND):
                infos = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except TimeoutError:
            raise GatewayError(ErrorKind.DNS_TIMEOUT, host, phase=Phase.CONNECT) from None
        except (OSError, UnicodeError) as error:
            detail = f"{host}: {error}"
            raise GatewayError(ErrorKind.DNS_ERROR, detail, phase=Phase.CONNECT) from None
        return [(info[0], str(info[4][0]), port) for info in infos]

    async def _connect(
        self, family: socket.AddressFamily, address: str, port: int, timeout_ns: int
    ) -> socket.socket:
        loop = asyncio.get_running_loop()
        sock = socket.socket(family, socket.SOCK_STREAM)
        where = f"[{address}]:{port}" if family == socket.AF_INET6 else f"{address}:{port}"
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.timeout(timeout_ns / SECOND):
                await loop.sock_connect(sock, (address, port))
        except TimeoutError:
            sock.close()
            raise GatewayError(ErrorKind.CONNECT_TIMEOUT, where, phase=Phase.CONNECT) from None
        except OSError as error:
            sock.close()
            kind = ErrorKind.CONNECTION_REFUSED
            if error.errno in _UNROUTABLE:
                kind = ErrorKind.UNREACHABLE
            detail = f"{where}: {error.strerror or error}"
            raise GatewayError(kind, detail, phase=Phase.CONNECT) from None
        except BaseException:
            sock.close()
            raise
        return sock

    async def _wrap(
        self, sock: socket.socket, make: Callable[[], UpstreamProtocol]
    ) -> UpstreamProtocol:
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
        except ssl.SSLCertVerificationError as error:
            sock.close()
            detail = f"{self.plan.host}: {error.verify_message}"
            raise GatewayError(ErrorKind.TLS_CERTIFICATE, detail, phase=Phase.CONNECT) from None
        except (OSError, TimeoutError) as error:  # ssl.SSLError is an OSError
            sock.close()
            detail = f"{self.plan.host}: {error}"
            raise GatewayError(ErrorKind.TLS_ERROR, detail, phase=Phase.CONNECT) from None
        except BaseException:
            sock.close()
            raise
        return protocol
