"""The channel between a supervisor and a worker: messages that keep their bounds, with descriptors.

A SOCK_SEQPACKET pair, inherited by the worker. A message is a JSON object; sockets, and files too
long for a message, travel beside it (SCM_RIGHTS, unix(7)). The end of the channel is the end of the
other process, however it ended.
"""

from __future__ import annotations

import array
import asyncio
import io
import json
import os
import pickle
import socket
from collections.abc import Callable, Sequence
from typing import Any

from gateway.conf.schema import Conf, Route
from gateway.conf.secret import Secret

__all__ = ["FDS_MAX", "ROUTES_IN_A_PART", "Channel", "conf_file", "read_conf"]

MESSAGE_BYTES_MAX = 64 * 1024  # 200 names of unix sockets are 25 KiB
ROUTES_IN_A_PART = 500  # 1 ms
FDS_MAX = 200  # the kernel takes 253 with one message (SCM_MAX_FD)

OnMessage = Callable[[str, dict[str, Any], list[int]], None]


class Channel:
    """One end. `on_message` gets what was said, its facts and descriptors, which it then owns;
    `on_end` is called once, when the other process is gone."""

    def __init__(self, sock: socket.socket, on_message: OnMessage, on_end: Callable[[], None]):
        sock.setblocking(False)
        self.unsent = 0
        self._sock = sock
        self._on_message = on_message
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock, self._receive)

    def send(self, what: str, fds: Sequence[int] = (), **facts: Any) -> bool:
        """False where the other process is gone, or takes nothing any more (it is counted)."""
        if self._sock.fileno() < 0:
            return False
        data = json.dumps({"what": what, **facts}).encode()
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self._sock.sendmsg([data], rights)
        except OSError:
            self.unsent += 1
            return False
        return True

    def close(self) -> None:
        """Says nothing and hears nothing any more. A second call does nothing."""
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock)
            self._sock.close()

    def _receive(self) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(self._sock, MESSAGE_BYTES_MAX, FDS_MAX)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        if not data:
            self.close()
            self._on_end()
            return
        for fd in fds:
            os.set_inheritable(fd, False)
        facts = json.loads(data)
        self._on_message(facts.pop("what"), facts, list(fds))


class _ConfPickler(pickle.Pickler):
    """A secret refuses to be pickled, so that none is by accident; here it is meant."""

    def reducer_override(self, thing: Any) -> Any:
        if isinstance(thing, Secret):
            return type(thing), (thing.reveal(), thing.source)
        return NotImplemented


def conf_file(conf: Conf) -> int:
    """A descriptor of a file in memory, without a name, that holds the configuration in force.

    A worker must not read the operator's file by itself: when it is restarted, that may already be
    another configuration than its siblings', or a faulty one.

    Routes come in parts behind the rest: to read one is a single step for the interpreter, in
    which a worker's loop does not turn.
    """
    buffer = io.BytesIO()
    pickler = _ConfPickler(buffer, pickle.HIGHEST_PROTOCOL)
    routes = conf.route
    pickler.dump(conf.model_copy(update={"route": ()}) if routes else conf)
    for begin in range(0, len(routes), ROUTES_IN_A_PART):
        pickler.dump(routes[begin : begin + ROUTES_IN_A_PART])
    fd = os.memfd_create("egressd-conf")
    view = buffer.getbuffer()
    while view:
        view = view[os.write(fd, view) :]
    return fd


def read_conf(fd: int) -> Conf:
    """What `conf_file` has written; closes the descriptor. The file comes from the supervisor, over
    a channel that nobody else can reach."""
    with open(fd, "rb") as file:
        # The offset belongs to all who share the file.
        data = os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0)
    buffer = io.BytesIO(data)
    unpickler = pickle.Unpickler(buffer)  # noqa: S301
    conf = unpickler.load()
    assert isinstance(conf, Conf)
    routes: list[Route] = []
    while buffer.tell() < len(data):
        routes += unpickler.load()
    return conf.model_copy(update={"route": tuple(routes)}) if routes else conf
