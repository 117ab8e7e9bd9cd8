"""Where listening sockets come from: bound here, or passed on by whoever started this process.

systemd binds sockets before the service starts and keeps them while it restarts (sd_listen_fds(3)),
so a connection that comes in between waits in the kernel's queue instead of being refused.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Collection, Iterable, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Protocol

from gateway.conf.values import Bind

__all__ = [
    "BACKLOG",
    "EVERYBODY",
    "RETIRE_SECONDS",
    "OwnSockets",
    "SharedSockets",
    "Sockets",
    "bind_socket",
    "forget_socket",
    "inherited_sockets",
]

ADMIN_MODE = 0o660  # of its unix socket: whoever may write may ask, the owner and a group
BACKLOG = 4096  # the kernel cuts it to net.core.somaxconn
RETIRE_SECONDS = 0.1  # what the kernel has queued for a listener that goes is accepted first
EVERYBODY = -1  # the slot of sockets that all workers accept from
FIRST_FD = 3  # SD_LISTEN_FDS_START
# As many listeners as a conf may have, each as IPv4 and IPv6 socket.
INHERITED_MAX = 512


class Sockets(Protocol):
    """Gives a listener the sockets that it accepts from, each with its slot.

    A slot is one worker's share of an address; a process that is alone has slot 0 only.
    """

    def take(self, bind: Bind) -> list[tuple[int, socket.socket]]:
        """Listening sockets, the caller's from now on. Raises OSError that names the address."""
        ...

    def admin(self, bind: Bind | None) -> socket.socket | None:
        """The bound socket of the admin interface; None: there is to be none. Raises OSError."""
        ...

    def forget(self, bind: Bind) -> None:
        """Nobody listens at that address any more."""
        ...


class OwnSockets:
    """Binds what the conf names, and finds by name what systemd has passed."""

    def __init__(self, inherited: Mapping[str, Sequence[socket.socket]] | None = None) -> None:
        self._inherited = dict(inherited or {})

    def take(self, bind: Bind) -> list[tuple[int, socket.socket]]:
        if bind.kind == "systemd":
            return [(0, sock) for sock in self.inherited("listen", bind)]
        sock = bind_socket("listen", bind)
        listen("listen", bind, sock)
        return [(0, sock)]

    def inherited(self, what: str, bind: Bind) -> list[socket.socket]:
        """Copies of the sockets that were passed under that name; the originals stay open, so that
        a reload may leave the listener out and another take it in again. Raises OSError."""
        found = self._inherited.get(bind.name, ())
        if not found:
            names = ", ".join(sorted(self._inherited)) or "none at all"
            raise OSError(f"{what} {bind}: no socket of that name was passed (there is: {names})")
        return [sock.dup() for sock in found]

    def admin(self, bind: Bind | None) -> socket.socket | None:
        if bind is None:
            return None
        if bind.kind != "systemd":
            return bind_socket("admin", bind, mode=ADMIN_MODE)
        first, *others = self.inherited("admin", bind)
        for sock in others:
            sock.close()
        if others:
            first.close()
            raise OSError(f"admin {bind}: {1 + len(others)} sockets of that name were passed")
        return first

    def forget(self, bind: Bind) -> None:
        forget_socket(bind)


class SharedSockets:
    """The sockets of all workers of a node, which the supervisor binds and keeps.

    Each worker accepts from a socket of its own that is bound to the same address: the kernel
    spreads connections over them by a hash, evenly and without waking all workers for each. A
    worker that dies leaves its socket behind, with whoever waits in its queue: a sibling accepts
    there (the slot is lent) until the worker is back. Unix sockets and those of systemd are one
    socket for all, and whoever is awake first accepts.
    """

    def __init__(self, workers: int, own: OwnSockets) -> None:
        self._workers = workers
        self._own = own
        self._held: dict[str, tuple[Bind, list[tuple[int, socket.socket]]]] = {}

    def bind_new(self, binds: Iterable[Bind]) -> list[Bind]:
        """Binds those that are not held, and says which. Raises OSError with none of them held."""
        new: list[Bind] = []
        try:
            for bind in binds:
                if str(bind) not in self._held:
                    self._held[str(bind)] = bind, self._bind(bind)
                    new.append(bind)
        except OSError:
            self.release(new)
            raise
        return new

    def keep_only(self, binds: Iterable[Bind]) -> None:
        """Lets go of all others."""
        names = set(map(str, binds))
        self.release([bind for name, (bind, _) in self._held.items() if name not in names])

    def release(self, binds: Iterable[Bind]) -> None:
        """Closes this process's copies: what workers hold of them stays open."""
        for bind in list(binds):
            for _, sock in self._held.pop(str(bind))[1]:
                sock.close()
            self._own.forget(bind)

    def of_slots(
        self, slots: Collection[int], binds: Iterable[Bind] | None = None
    ) -> list[tuple[str, int, int]]:
        """(address, slot, descriptor) of these workers' own sockets; all addresses, or some."""
        names = self._held if binds is None else map(str, binds)
        return [
            (name, slot, sock.fileno())
            for name in names
            for slot, sock in self._held[name][1]
            if slot in slots
        ]

    def _bind(self, bind: Bind) -> list[tuple[int, socket.socket]]:
        if bind.kind != "tcp":
            return [(EVERYBODY, sock) for _, sock in self._own.take(bind)]
        # With SO_REUSEPORT a second node started by mistake would take half of the connections:
        # a socket without it finds out whether somebody listens.
        bind_socket("listen", bind).close()
        sockets: list[tuple[int, socket.socket]] = []
        try:
            for slot in range(self._workers):
                sock = bind_socket("listen", bind, reuse_port=True)
                sockets.append((slot, sock))
                listen("listen", bind, sock)
                bind = bind._replace(port=sock.getsockname()[1])  # 0: all take the first one's
        except OSError:
            for _, sock in sockets:
                sock.close()
            raise
        return sockets


def bind_socket(
    what: str, bind: Bind, *, reuse_port: bool = False, mode: int | None = None
) -> socket.socket:
    """A bound, not yet listening socket. Raises OSError with `what` and the address in its text.

    With `reuse_port` others of the same user may bind the same TCP address, and the kernel spreads
    connections evenly over all that listen (SO_REUSEPORT, socket(7)). `mode` is for a unix socket's
    file; nobody can connect before it is set, because nobody listens.
    """
    try:
        if bind.kind == "unix":
            return _bind_unix(bind.path, mode)
        return _bind_tcp(bind, reuse_port=reuse_port)
    except OSError as error:
        raise OSError(error.errno, f"{what} {bind}: {error.strerror or error}") from error


def listen(what: str, bind: Bind, sock: socket.socket) -> None:
    """Lets the kernel queue connections. Raises OSError as `bind_socket`, the socket closed."""
    try:
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        forget_socket(bind)
        raise OSError(error.errno, f"{what} {bind}: {error.strerror or error}") from error


def _bind_tcp(bind: Bind, *, reuse_port: bool) -> socket.socket:
    infos = socket.getaddrinfo(
        bind.host or None, bind.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    family, kind, proto, _, address = infos[0]
    sock = socket.socket(family, kind, proto)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(address)
    except BaseException:
        sock.close()
        raise
    return sock


def _bind_unix(path: str, mode: int | None) -> socket.socket:
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
        if mode is not None:
            Path(path).chmod(mode)
    except BaseException:
        sock.close()
        raise
    return sock


def forget_socket(bind: Bind) -> None:
    """Removes a unix socket's file, which nobody listens behind any more."""
    if bind.kind == "unix":
        with contextlib.suppress(OSError):
            Path(bind.path).unlink()


def inherited_sockets(environ: MutableMapping[str, str]) -> dict[str, list[socket.socket]]:
    """The stream sockets that systemd has passed, by name; the variables are taken out.

    sd_listen_fds(3): descriptors from 3 on, LISTEN_FDS of them, for the process LISTEN_PID, named
    by LISTEN_FDNAMES with colons between. Raises OSError where they are not what they should be.
    """
    pid, count_text = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    names_text = environ.pop("LISTEN_FDNAMES", "")
    if pid != str(os.getpid()) or not count_text:
        return {}  # they are for another process, whose environment this one has inherited
    count = int(count_text) if count_text.isascii() and count_text.isdigit() else -1
    if not 0 <= count <= INHERITED_MAX:
        raise OSError(f"LISTEN_FDS is {count_text[:20]!r}; 0 to {INHERITED_MAX} are allowed")
    names = names_text.split(":") if names_text else ["unknown"] * count
    if len(names) != count:
        raise OSError(f"LISTEN_FDNAMES names {len(names)} sockets, LISTEN_FDS counts {count}")
    found: dict[str, list[socket.socket]] = {}
    for fd, name in enumerate(names, FIRST_FD):
        try:
            os.set_inheritable(fd, False)
            sock = socket.socket(fileno=fd)
            accepts = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        except OSError as error:
            raise OSError(error.errno, f"inherited socket {name!r}: {error.strerror}") from error
        if sock.type != socket.SOCK_STREAM or not accepts:
            sock.detach()
            raise OSError(f"inherited socket {name!r} is not a stream socket that listens")
        sock.setblocking(False)
        found.setdefault(name, []).append(sock)
    return found
