"""The sockets that clients come in by: bound, opened, retired on a reload, closed at the end."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from gateway.conf.schema import Listen
from gateway.conf.values import Bind
from gateway.h1.codec import HeadLimits
from gateway.proxy.downstream import DownstreamProtocol
from gateway.proxy.graph import Listener, Worker
from gateway.proxy.preface import Preface
from gateway.sockets import BACKLOG, RETIRE_SECONDS, Sockets

__all__ = ["Listeners", "Opening", "server_context"]


def _head_limits(conf: Listen) -> HeadLimits:
    limits = conf.limits
    # CONF.md gives the target no key of its own: half a head, where RFC 9112 section 3 wants 8,000.
    return HeadLimits(limits.head, limits.headers, limits.head // 2)


class Opening(NamedTuple):
    """A listener that could be opened: all that may fail has been done."""

    conf: Listen
    sockets: list[tuple[int, socket.socket]]  # each with its slot; they listen already
    context: ssl.SSLContext | None


class _Open:
    """One listener that is open: what accepts, and who is connected."""

    __slots__ = ("bind", "listener", "servers")

    def __init__(self, bind: Bind, listener: Listener) -> None:
        self.bind = bind
        self.listener = listener
        self.servers: list[tuple[int, asyncio.Server]] = []  # each with its slot

    def stop_accepting(self) -> bool:
        """False where nobody was accepted any more."""
        servers, self.servers = self.servers, []
        for _, server in servers:
            server.close()
        return bool(servers)

    def return_slot(self, slot: int) -> None:
        """Accepts no more from the sockets of that slot; who is connected stays."""
        for number, server in self.servers:
            if number == slot:
                server.close()
        self.servers = [pair for pair in self.servers if pair[0] != slot]


class Listeners:
    """All listeners of a worker."""

    def __init__(self, worker: Worker, sockets: Sockets) -> None:
        self._worker = worker
        self._sockets = sockets
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
        names = dict.fromkeys(
            sock.getsockname()[:2]
            for entry in self._open.values()
            for _, server in entry.servers
            for sock in server.sockets
            if sock.family != socket.AF_UNIX
        )
        return [(str(host), int(port)) for host, port in names]

    async def wait_retired(self, confs: Iterable[Listen]) -> None:
        """Until none of these addresses is still held by a listener that a reload took away: 0.1 s
        at most, in which another reload may already want it again."""
        wanted = {str(conf.bind) for conf in confs}
        # Rare, and short: not worth an event that every listener would keep.
        while any(  # noqa: ASYNC110
            entry.servers and str(entry.bind) in wanted for entry in self._gone
        ):
            await asyncio.sleep(RETIRE_SECONDS / 4)

    def prepare(self, confs: Sequence[Listen]) -> list[Opening]:
        """Binds those that are not open. Raises OSError, and then none of them is bound."""
        openings: list[Opening] = []
        try:
            for conf in confs:
                context = server_context(conf)
                if str(conf.bind) not in self._open:
                    openings.append(Opening(conf, self._sockets.take(conf.bind), context))
        except OSError:
            self.undo(openings)
            raise
        return openings

    def undo(self, openings: Iterable[Opening]) -> None:
        """Takes `prepare` (and `open`) back; who has connected meanwhile is reset."""
        for opening in openings:
            entry = self._open.pop(str(opening.conf.bind), None)
            if entry is not None:
                self._stop_accepting(entry)
                continue
            for _, sock in opening.sockets:
                sock.close()
            self._sockets.forget(opening.conf.bind)

    async def open(self, openings: Iterable[Opening]) -> None:
        """Accepts from now on."""
        for opening in openings:
            await self._open_one(opening)

    async def lend(self, slot: int, name: str, sock: socket.socket) -> None:
        """Accepts from another worker's socket of that listener too, until `return_slot`."""
        entry = self._open.get(name)
        if entry is None:
            sock.close()
        else:
            await self._accept(entry, slot, sock)

    def return_slot(self, slot: int) -> None:
        """That worker accepts again by itself."""
        for entry in self._open.values():
            entry.return_slot(slot)

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
            self._stop_accepting(entry)
            entry.listener.end_handshakes()
            for connection in list(entry.listener.connections):
                connection.drain()

    def abort(self) -> int:
        """Ends all connections at once; says how many."""
        count = self.connection_count
        for entry in (*self._open.values(), *self._gone):
            self._stop_accepting(entry)
            entry.listener.end_handshakes()
            for connection in list(entry.listener.connections):
                connection.abort()
        return count

    async def _open_one(self, opening: Opening) -> None:
        conf = opening.conf
        listener = Listener(
            str(conf.bind),
            _head_limits(conf),
            conf.limits.connections,
            conf.proxy_protocol,
            opening.context,
        )
        if conf.bind.kind == "tcp" and not conf.bind.port:
            listener.name = "{}:{}".format(*opening.sockets[0][1].getsockname()[:2])
        entry = self._open[str(conf.bind)] = _Open(conf.bind, listener)
        for slot, sock in opening.sockets:
            await self._accept(entry, slot, sock)

    async def _accept(self, entry: _Open, slot: int, sock: socket.socket) -> None:
        worker, listener = self._worker, entry.listener

        def accept() -> DownstreamProtocol | Preface:
            if listener.proxied_by or listener.context is not None:
                return Preface(worker, listener)
            return DownstreamProtocol(worker, listener)

        server = await asyncio.get_running_loop().create_server(accept, sock=sock, backlog=BACKLOG)
        entry.servers.append((slot, server))

    def _stop_accepting(self, entry: _Open) -> None:
        if entry.stop_accepting():
            self._sockets.forget(entry.bind)

    def _retire(self, entry: _Open) -> None:
        asyncio.get_running_loop().call_later(RETIRE_SECONDS, self._stop_accepting, entry)
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
