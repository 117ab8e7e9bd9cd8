"""One of several workers of a node: a server that obeys its supervisor.

It gets its configuration and its sockets over the channel, says when it is ready and, every second,
that its loop turns. Without its supervisor it drains and ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from typing import Any

from gateway.clock import SECOND
from gateway.conf.values import Bind
from gateway.control import Channel, read_conf
from gateway.mesh import Place
from gateway.process import (
    ServeError,
    configure_log,
    favour_loop,
    raise_file_limit,
    reason_of,
    tune_memory,
)
from gateway.server import Prepared, Server
from gateway.sockets import bind_socket
from gateway.systemd import Notifier

__all__ = ["ALIVE_NS", "run_worker"]

ALIVE_NS = 1 * SECOND
IGNORED = (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class _GivenSockets:
    """Sockets that the supervisor has bound, and keeps: it also removes their files."""

    def __init__(self, admin_path: str) -> None:
        self._given: dict[str, list[tuple[int, socket.socket]]] = {}
        self._admin_path = admin_path

    def put(self, name: str, slot: int, fd: int) -> None:
        sock = socket.socket(fileno=fd)
        sock.setblocking(False)
        self._given.setdefault(name, []).append((slot, sock))

    def take(self, bind: Bind) -> list[tuple[int, socket.socket]]:
        if str(bind) not in self._given:
            raise OSError(f"listen {bind}: the supervisor passed no socket")
        return self._given.pop(str(bind))

    def admin(self, bind: Bind | None) -> socket.socket | None:
        """Always on a private unix socket: the supervisor asks there, and serves `bind` itself."""
        return bind_socket("admin", Bind("unix", path=self._admin_path)) if bind else None

    def forget(self, bind: Bind) -> None:
        """The address is the supervisor's."""

    def close(self) -> None:
        """Closes what nobody took."""
        for sockets in self._given.values():
            for _, sock in sockets:
                sock.close()
        self._given.clear()


class _Reporter(Notifier):
    """Tells the supervisor what the node tells systemd."""

    def __init__(self, channel: Channel) -> None:
        super().__init__(watchdog_ns=3 * ALIVE_NS)
        self._channel = channel

    def _send(self, state: str, status: str) -> None:
        name = state.partition("=")[0]
        if name in ("READY", "WATCHDOG"):
            self._channel.send("ready" if name == "READY" else "alive")


class _WorkerProcess:
    """Turns what the supervisor says into calls of a server, one after the other."""

    def __init__(self, sock: socket.socket) -> None:
        self._orders: asyncio.Queue[tuple[str, dict[str, Any], list[int]]] = asyncio.Queue()
        self._channel = Channel(sock, self._ordered, self._orphaned)
        self._sockets: _GivenSockets
        self._server: Server | None = None
        self._prepared: Prepared | None = None

    async def run(self) -> int:
        """The exit status."""
        what, facts, fds = await self._orders.get()
        if what != "start":
            return 1
        conf = read_conf(fds[0])
        configure_log(conf.log.level)
        place = Place(
            facts["number"], tuple(facts["ports"]), facts["cluster"], bytes.fromhex(facts["key"])
        )
        self._sockets = _GivenSockets(facts["admin_path"])
        obeying: asyncio.Task[None] | None = None
        try:
            await self._until_sockets_are_there()
            server = self._server = Server(
                conf, "", sockets=self._sockets, notifier=_Reporter(self._channel), place=place
            )
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._drain)
            obeying = asyncio.ensure_future(self._obey(server))
            await server.run(signals=False)
        except (ServeError, OSError, ImportError) as error:
            reason = str(error) if isinstance(error, ServeError) else reason_of(error)
            self._channel.send("failed", reason=reason)
            return 1
        finally:
            if obeying is not None:
                obeying.cancel()
                await asyncio.gather(obeying, return_exceptions=True)
            self._sockets.close()
            self._channel.close()
        return 0

    async def _until_sockets_are_there(self) -> None:
        while True:
            what, facts, fds = await self._orders.get()
            if what == "sockets":
                self._put(facts, fds)
            elif what == "serve":
                return
            else:
                raise ServeError(f"the supervisor says {what}")

    def _put(self, facts: dict[str, Any], fds: list[int]) -> None:
        for (name, slot), fd in zip(facts["names"], fds, strict=True):
            self._sockets.put(name, slot, fd)

    def _ordered(self, what: str, facts: dict[str, Any], fds: list[int]) -> None:
        server = self._server
        if what == "stop" and server is not None:  # at once, whatever else is being done
            server.stop(at_once=facts["at_once"])
        elif what == "withdraw" and server is not None:
            server.withdraw()
        elif what == "reopen" and server is not None:
            server.reopen_logs()
        else:
            self._orders.put_nowait((what, facts, fds))

    def _orphaned(self) -> None:
        self._orders.put_nowait(("the end", {}, []))
        self._drain()

    def _drain(self) -> None:
        """SIGTERM: siblings take over at once, not when the last exchange has ended."""
        self._channel.send("draining")
        if self._server is not None:
            self._server.stop(at_once=False)

    async def _obey(self, server: Server) -> None:
        try:
            await self._obey_forever(server)
        except OSError as error:
            # What was promised by "prepared" did not come true: a fresh start will.
            self._channel.send("failed", reason=reason_of(error))
            server.stop(at_once=True)

    async def _obey_forever(self, server: Server) -> None:
        while True:
            what, facts, fds = await self._orders.get()
            if what == "sockets":
                self._put(facts, fds)
            elif what == "prepare":
                await self._prepare(server, fds[0])
            elif what == "commit" and self._prepared is not None:
                await server.commit(self._prepared)
                self._prepared = None
                self._channel.send("committed")
            elif what == "abort" and self._prepared is not None:
                await server.discard(self._prepared)
                self._prepared = None
            elif what == "lend":
                for (name, slot), fd in zip(facts["names"], fds, strict=True):
                    sock = socket.socket(fileno=fd)
                    sock.setblocking(False)
                    await server.listeners.lend(slot, name, sock)
            elif what == "return":
                server.listeners.return_slot(facts["slot"])

    async def _prepare(self, server: Server, fd: int) -> None:
        try:
            self._prepared = await server.prepare(await asyncio.to_thread(read_conf, fd))
        except (OSError, ImportError) as error:
            self._sockets.close()
            self._channel.send("refused", fault=reason_of(error))
        else:
            self._channel.send("prepared", changes=self._prepared.changes)


def run_worker(fd: int) -> int:
    """Serves until the supervisor, or SIGTERM, says stop. Returns the exit status.

    Signals that reach a whole terminal or group are the supervisor's business.
    """
    import uvloop

    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    raise_file_limit()
    tune_memory()
    favour_loop()

    async def serve() -> int:
        return await _WorkerProcess(socket.socket(fileno=fd)).run()

    with (
        contextlib.suppress(KeyboardInterrupt),
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        return runner.run(serve())
    return 1


if __name__ == "__main__":
    sys.exit(run_worker(int(sys.argv[1])))
