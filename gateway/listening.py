"""The sockets that clients come in by: bound, opened, retired on a reload, closed at the end."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from gateway.conf.schema import Listen
from gateway.conf.values import Bind
from gateway.h1.codec import HeadLimits
from gateway.proxy.downstream import DownstreamProtocol
from gateway.proxy.graph import Listener, Worker
from gateway.proxy.preface import Preface

__all__ = ["Listeners", "bind_socket", "forget_socket"]

BACKLOG = 4096  # the kernel cuts it to net.core.somaxconn
RETIRE_SECONDS = 0.1  # what the kernel has queued for a listener that goes is accepted first


def bind_socket(what: str, bind: Bind) -> socket.socket:
    """A bound, not yet listening socket. Raises OSError with `what` and the address in its text."""
    try:
        if bind.kind == "unix":
            return _bind_unix(bind.path)
        return _bind_tcp(bind)
    except OSError as error:
        raise OSError(error.errno, f"{what} {bind}: {error.strerror or error}") from error


def _bind_tcp(bind: Bind) -> socket.socket:
    infos = socket.getaddrinfo(
        bind.host or None, bind.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    family, kind, proto, _, address = infos[0]
    sock = socket.socket(family, kind, proto)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except BaseException:
        sock.close()
        raise
    return sock


def _bind_unix(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # A socket file that a killed process left behind refuses connections: only such a one goes.
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISSOCK(Path(path).stat().st_mode):
                with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                    try:
                        probe.connect(path)
                    except ConnectionRefusedError:
                        Path(path).unlink()
        sock.bind(path)
    except BaseException:
        sock.close()
        raise
    return sock


def forget_socket(bind: Bind) -> None:
    """Removes a unix socket's file, which nobody listens behind any more."""
    if bind.kind == "unix":
        with contextlib.suppress(OSError):
            Path(bind.path).unlink()


def _head_limits(conf: Listen) -> HeadLimits:
    limits = conf.limits
    # CONF.md gives the target no key of its own: half a head, where RFC 9112 section 3 wants 8,000.
    return HeadLimits(limits.head, limits.headers, limits.head // 2)


class _Open:
    """One listener that is open: what accepts, and who is connected."""

    __slots__ = ("bind", "listener", "server")

    def __init__(self, bind: Bind, listener: Listener, server: asyncio.Server) -> None:
        self.bind = bind
        self.listener = listener
        self.server = server

    def stop_accepting(self) -> None:
        if self.server.is_serving():
            self.server.close()
            forget_socket(self.bind)


class Listeners:
    """All listeners of a worker."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._open: dict[str, _Open] = {}
        self._gone: list[_Open] = []

    def __iter__(self) -> Iterator[Listener]:
        """Those that accept, then those that only drain."""
        return iter([entry.listener for entry in (*self._open.values(), *self._gone)])

    @property
    def connection_count(self) -> int:
        return sum(len(listener.connections) for listener in self)

    def addresses(self) -> list[tuple[str, int]]:
        """The TCP addresses that accept, with the ports that the kernel chose."""
        names = [
            sock.getsockname()[:2]
            for entry in self._open.values()
            for sock in entry.server.sockets
            if sock.family != socket.AF_UNIX
        ]
        return [(str(host), int(port)) for host, port in names]

    async def open_new(self, confs: Sequence[Listen]) -> list[str]:
        """Opens those that are not open; says which. Raises OSError, and then none of them is."""
        opened: list[str] = []
        try:
            for conf in confs:
                if str(conf.bind) not in self._open:
                    await self._open_one(conf)
                    opened.append(str(conf.bind))
        except OSError:
            self.close_again(opened)
            raise
        return opened

    def close_again(self, opened: Sequence[str]) -> None:
        """Takes `open_new` back."""
        for name in opened:
            self._open.pop(name).stop_accepting()

    def settle(self, confs: Sequence[Listen]) -> None:
        """Those that stay take their new limits and certificates, the others are retired."""
        wanted = {str(conf.bind): conf for conf in confs}
        for name in list(self._open):
            if name not in wanted:
                self._retire(self._open.pop(name))
                continue
            entry, conf = self._open[name], wanted[name]
            entry.listener.connections_max = conf.limits.connections
            entry.listener.head_limits = _head_limits(conf)
            entry.listener.proxied_by = conf.proxy_protocol
            context = entry.listener.context
            if context is not None and conf.tls is not None:
                # For new handshakes; `check` has seen that the pair fits.
                context.load_cert_chain(conf.tls.cert, conf.tls.key)
                if conf.tls.client_ca is not None:
                    # What the file has new is trusted; what has gone from it is until a restart.
                    context.load_verify_locations(conf.tls.client_ca)

    def drain(self) -> None:
        """Nobody new is accepted; idle connections close, busy ones after their answer."""
        for entry in (*self._open.values(), *self._gone):
            entry.stop_accepting()
            entry.listener.end_handshakes()
            for connection in list(entry.listener.connections):
                connection.drain()

    def abort(self) -> int:
        """Ends all connections at once; says how many."""
        count = self.connection_count
        for entry in (*self._open.values(), *self._gone):
            entry.stop_accepting()
            entry.listener.end_handshakes()
            for connection in list(entry.listener.connections):
                connection.abort()
        return count

    async def _open_one(self, conf: Listen) -> None:
        worker = self._worker
        context = server_context(conf)
        listener = Listener(
            str(conf.bind),
            _head_limits(conf),
            conf.limits.connections,
            conf.proxy_protocol,
            context,
        )

        def accept() -> DownstreamProtocol | Preface:
            if listener.proxied_by or listener.context is not None:
                return Preface(worker, listener)
            return DownstreamProtocol(worker, listener)

        sock = bind_socket("listen", conf.bind)
        loop = asyncio.get_running_loop()
        server = await loop.create_server(accept, sock=sock, backlog=BACKLOG)
        if conf.bind.kind == "tcp" and not conf.bind.port:
            listener.name = "{}:{}".format(*sock.getsockname()[:2])
        self._open[str(conf.bind)] = _Open(conf.bind, listener, server)

    def _retire(self, entry: _Open) -> None:
        asyncio.get_running_loop().call_later(RETIRE_SECONDS, entry.stop_accepting)
        for connection in list(entry.listener.connections):
            connection.drain()
        self._gone = [
            gone for gone in self._gone if gone.listener.connections or gone.listener.handshakes
        ]
        self._gone.append(entry)


def server_context(conf: Listen) -> ssl.SSLContext | None:
    """The TLS context of a listener, or None. Raises OSError (ssl.SSLError is one)."""
    tls = conf.tls
    if tls is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(tls.cert, tls.key)
        if tls.client_ca is not None:
            context.load_verify_locations(tls.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except OSError as error:
        raise OSError(f"listen {conf.bind}: tls: {error}") from error
    return context
