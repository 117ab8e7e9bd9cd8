"""One dial: what is resolved is judged, what is judged is connected to, and nothing is left over.

Every test runs under a fixture that demands that no task and no open socket remains.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from ipaddress import IPv6Address
from typing import Any, ClassVar

import pytest
import trustme
import uvloop
from fakes.dialling import (
    Attempts,
    Connection,
    dial,
    endpoint,
    fails,
    knows_nothing,
    listening,
    never,
    plan,
    says,
)

from gateway.clock import MS
from gateway.connectors import dial as subject
from gateway.connectors.address import Endpoint
from gateway.connectors.dial import (
    ADDRESSES_MAX,
    TcpDialer,
    TlsPlan,
    client_context,
    system_resolve,
    tcp_connect,
)
from gateway.errors import ErrorKind, GatewayError, Phase


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that refuses: bound, so that nobody else gets it, but not listening."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


# Connecting.


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_literal_is_connected_to_without_a_look_up(run: Callable, host: str) -> None:
    async def main() -> None:
        with listening(host) as port:
            connection = await dial(TcpDialer(plan(host, port), resolve=knows_nothing))
            assert connection.transport.get_extra_info("peername")[:2] == (host, port)
            connection.transport.abort()

    run(main)


def test_the_connection_goes_to_the_address_that_was_resolved(run: Callable) -> None:
    async def main() -> None:
        with listening("127.0.0.7") as port:
            connection = await dial(TcpDialer(plan(port=port), resolve=says("127.0.0.7")))
            assert connection.transport.get_extra_info("peername") == ("127.0.0.7", port)
            connection.transport.abort()

    run(main)


def test_a_refused_address_gives_way_to_the_next(run: Callable) -> None:
    async def main() -> None:
        # The listener is bound to 127.0.0.1 alone.
        with listening() as port:
            dialer = TcpDialer(plan(port=port), resolve=says("127.0.0.9", "127.0.0.1"))
            connection = await dial(dialer)
            assert connection.transport.get_extra_info("peername") == ("127.0.0.1", port)
            connection.transport.abort()

    run(main)


def test_refused(run: Callable, closed_port: int) -> None:
    async def main() -> None:
        error = await fails(TcpDialer(plan("127.0.0.1", closed_port)))
        assert error.kind is ErrorKind.CONNECTION_REFUSED
        assert f"127.0.0.1:{closed_port}" in error.detail

    run(main)


def test_configured_addresses_are_tried_in_their_order_and_replace_the_name(run: Callable) -> None:
    async def main() -> None:
        attempts = Attempts()
        addresses = (("10.0.0.2", 8443), ("10.0.0.1", 443), ("fd00::1", 443))
        dialer = TcpDialer(plan(addresses=addresses), resolve=knows_nothing, connect=attempts)
        await fails(dialer)
        assert attempts.targets == ["10.0.0.2:8443", "10.0.0.1:443", "[fd00::1]:443"]

    run(main)


def test_a_names_families_alternate(run: Callable) -> None:
    async def main() -> None:
        attempts = Attempts()
        resolve = says("2606:4700::1", "2606:4700::2", "1.1.1.1", "1.0.0.1")
        await fails(TcpDialer(plan(), resolve=resolve, connect=attempts))
        assert attempts.targets == [
            "[2606:4700::1]:443",
            "1.1.1.1:443",
            "[2606:4700::2]:443",
            "1.0.0.1:443",
        ]

    run(main)


def test_a_name_of_a_thousand_addresses_does_not_make_a_port_scan(run: Callable) -> None:
    async def main() -> None:
        attempts = Attempts()
        texts = [f"1.1.{high}.{low}" for high in range(4) for low in range(250)]
        await fails(TcpDialer(plan(), resolve=says(*texts), connect=attempts))
        assert attempts.targets == [f"{text}:443" for text in texts[:ADDRESSES_MAX]]

    run(main)


# Time.


def test_resolving_and_connecting_share_one_budget(run_virtual: Callable) -> None:
    async def main() -> None:
        async def slow(host: str, port: int) -> list[Endpoint]:
            await asyncio.sleep(2.0)
            return [endpoint("1.1.1.1", port), endpoint("1.0.0.1", port)]

        error = await fails(TcpDialer(plan(), resolve=slow, connect=never))
        assert error.kind is ErrorKind.CONNECT_TIMEOUT
        assert error.detail == "api.test: 1.1.1.1:443 and 1 more"
        assert asyncio.get_running_loop().time() == pytest.approx(3.0)

    run_virtual(main)


def test_a_silent_resolver(run_virtual: Callable) -> None:
    async def main() -> None:
        error = await fails(TcpDialer(plan(), resolve=never, connect=never))
        assert error.kind is ErrorKind.DNS_TIMEOUT
        assert asyncio.get_running_loop().time() == pytest.approx(3.0)

    run_virtual(main)


def test_the_handshake_has_its_own_budget(run: Callable) -> None:
    async def main() -> None:
        # The kernel accepts for a listener that never speaks.
        tls = TlsPlan(client_context(), "api.test")
        with listening() as port:
            dialer = TcpDialer(plan("127.0.0.1", port, tls=tls, tls_timeout_ns=50 * MS))
            error = await fails(dialer)
        assert error.kind is ErrorKind.TLS_TIMEOUT
        assert error.detail == "127.0.0.1: no TLS within 50 ms"

    run(main)


@pytest.mark.parametrize("secure", [False, True], ids=["connecting", "handshaking"])
def test_cancelled(run: Callable, secure: bool) -> None:
    async def main() -> None:
        tls = TlsPlan(client_context(), "api.test") if secure else None
        begun = asyncio.Event()

        async def connect(target: Endpoint) -> socket.socket:
            if secure:
                sock = await tcp_connect(target)
                asyncio.get_running_loop().call_soon(begun.set)
                return sock
            begun.set()
            return await never()

        with listening() as port:
            dialer = TcpDialer(plan("127.0.0.1", port, tls=tls), connect=connect)
            task = asyncio.ensure_future(dial(dialer))
            await begun.wait()
            for _ in range(5):  # into the handshake
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    run(main)


def test_an_attempt_cancelled_while_the_kernel_waits_closes_its_socket(
    run: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        # On loopback no connect takes long enough: this one is said to be under way for ever.
        monkeypatch.setattr(subject, "_writable", never)
        with listening() as port:
            task = asyncio.ensure_future(tcp_connect(endpoint("127.0.0.1", port)))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    run(main)


# TLS.


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@contextmanager
def trusting(authority: trustme.CA) -> Iterator[TlsPlan]:
    with authority.cert_pem.tempfile() as path:
        yield TlsPlan(client_context(path), "api.test")


class Accepted(Connection):
    """The server's side; `all` is emptied when its server goes."""

    all: ClassVar[list[Accepted]] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.all.append(self)


class Plain(Accepted):
    """Not a TLS server."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport.write(b"SSH-2.0-hello\r\n" + bytes(64))


@asynccontextmanager
async def serving(
    factory: type[Accepted], host: str, port: int = 0, context: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """A server in the test's own loop; its port."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(factory, host, port, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for connection in Accepted.all:
            connection.transport.abort()
        Accepted.all.clear()


def certified(authority: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


def test_tls_to_the_winner(run: Callable, authority: trustme.CA) -> None:
    async def main() -> None:
        good = certified(authority, "api.test")
        async with serving(Accepted, "127.0.0.1", 0, good) as port:
            with trusting(authority) as tls:
                resolve = says("127.0.0.9", "127.0.0.1")
                connection = await dial(TcpDialer(plan(port=port, tls=tls), resolve=resolve))
            assert connection.transport.get_extra_info("ssl_object").version() == "TLSv1.3"
            connection.transport.abort()

    run(main)


def test_a_failed_handshake_is_not_hidden_by_the_next_address(
    run: Callable, authority: trustme.CA
) -> None:
    async def main() -> None:
        bad, good = certified(authority, "other.test"), certified(authority, "api.test")
        async with (
            serving(Accepted, "127.0.0.1", 0, bad) as port,
            serving(Accepted, "127.0.0.2", port, good),
        ):
            with trusting(authority) as tls:
                addresses = (("127.0.0.1", port), ("127.0.0.2", port))
                error = await fails(TcpDialer(plan(tls=tls, addresses=addresses)))
            assert error.kind is ErrorKind.TLS_CERTIFICATE
            assert "api.test" in error.detail

    run(main)


def test_a_peer_that_does_not_speak_tls(run: Callable) -> None:
    async def main() -> None:
        async with serving(Plain, "127.0.0.1") as port:
            tls = TlsPlan(client_context(), "api.test")
            error = await fails(TcpDialer(plan("127.0.0.1", port, tls=tls)))
            assert error.kind is ErrorKind.TLS_ERROR

    run(main)


# Errors of the kernel and of names.


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ECONNREFUSED, ErrorKind.CONNECTION_REFUSED),
        (errno.ECONNRESET, ErrorKind.CONNECTION_REFUSED),
        (errno.ENETUNREACH, ErrorKind.UNREACHABLE),
        (errno.EHOSTUNREACH, ErrorKind.UNREACHABLE),
        (errno.ETIMEDOUT, ErrorKind.CONNECT_TIMEOUT),
        (errno.EMFILE, ErrorKind.CONNECTIONS_USED_UP),
    ],
)
def test_what_the_kernel_says(
    run: Callable, monkeypatch: pytest.MonkeyPatch, number: int, kind: ErrorKind
) -> None:
    class Refusing(socket.socket):
        def connect_ex(self, address: Any) -> int:
            return number

    async def main() -> None:
        monkeypatch.setattr(subject.socket, "socket", Refusing)
        with pytest.raises(GatewayError) as caught:
            await tcp_connect(endpoint("127.0.0.1", 1))
        monkeypatch.undo()
        assert caught.value.kind is kind
        assert os.strerror(number) in caught.value.detail

    run(main)


def test_no_file_is_left_to_open_a_socket_with(
    run: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(*_: object) -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")

    async def main() -> None:
        monkeypatch.setattr(subject.socket, "socket", none_left)
        with pytest.raises(GatewayError) as caught:
            await tcp_connect(endpoint("127.0.0.1", 1))
        monkeypatch.undo()
        assert caught.value.kind is ErrorKind.CONNECTIONS_USED_UP

    run(main)


def test_a_socket_connected_to_itself_is_a_refusal(
    run: Callable, monkeypatch: pytest.MonkeyPatch, closed_port: int
) -> None:
    class SamePort(socket.socket):
        """The kernel's chance, made certain: our side gets the port that is dialled."""

        def connect_ex(self, address: Any) -> int:
            self.bind(address)
            return super().connect_ex(address)

    async def main() -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        monkeypatch.setattr(subject.socket, "socket", SamePort)
        with pytest.raises(GatewayError) as caught:
            await tcp_connect(endpoint("127.0.0.1", port))
        monkeypatch.undo()
        assert caught.value.kind is ErrorKind.CONNECTION_REFUSED

    run(main)


@pytest.mark.parametrize(
    "raised",
    [
        socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
        UnicodeError("label too long"),
        ValueError("embedded null character"),
    ],
)
def test_a_name_that_does_not_resolve(run: Callable, raised: Exception) -> None:
    async def resolve(host: str, port: int) -> list[Endpoint]:
        raise raised

    async def main() -> None:
        error = await fails(TcpDialer(plan(), resolve=resolve, connect=never))
        assert error.kind is ErrorKind.DNS_ERROR
        assert error.detail.startswith("api.test: ")

    run(main)


def test_a_name_without_addresses(run: Callable) -> None:
    async def main() -> None:
        error = await fails(TcpDialer(plan(), resolve=says(), connect=never))
        assert error.kind is ErrorKind.DNS_ERROR

    run(main)


# The resolver of the host.


def test_the_hosts_resolver(run: Callable) -> None:
    async def main() -> None:
        assert endpoint("127.0.0.1", 80) in await system_resolve("localhost", 80)
        scoped = await system_resolve("fe80::1%lo", 80)
        # uvloop 0.23 loses the scope of what it resolves; literals do not go that way.
        uses_uvloop = isinstance(asyncio.get_running_loop(), uvloop.Loop)
        index = 0 if uses_uvloop else socket.if_nametoindex("lo")
        assert scoped == [Endpoint(IPv6Address("fe80::1"), 80, index)]

    run(main)


def test_a_scope_reaches_the_kernel(run: Callable) -> None:
    async def main() -> None:
        seen: list[Endpoint] = []

        async def connect(target: Endpoint) -> socket.socket:
            seen.append(target)
            raise GatewayError(ErrorKind.UNREACHABLE, phase=Phase.CONNECT)

        for scope in ("lo", str(socket.if_nametoindex("lo"))):
            await fails(TcpDialer(plan(f"fe80::1%{scope}"), connect=connect))
        assert {target.sockaddr[3] for target in seen if len(target.sockaddr) == 4} == {
            socket.if_nametoindex("lo")
        }

    run(main)
