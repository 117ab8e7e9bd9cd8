"""The resource that a 202 points to: who leaves, who is slow, what is not allowed."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest
from fakes.origin import Origin, answer
from fakes.spooled import Spooled

from gateway.spool import status

Make = Callable[..., tuple[Spooled, Origin]]
LONG = bytes(range(256)) * 4096 * 8  # the kernel takes up to 4 MiB of it unread (tcp_wmem)


class Held:
    """Holds the reading thread back, until it is let go."""

    def __init__(self, gateway: Spooled) -> None:
        self._go = threading.Event()
        self.is_held = threading.Event()
        gateway.spool.store.read(self._hold, lambda _: None)
        assert self.is_held.wait(10)

    def _hold(self, _: Any) -> None:
        self.is_held.set()
        self._go.wait(30)

    def let_go(self) -> None:
        self._go.set()


def stored(gateway: Spooled) -> bytes:
    """The path of a request that is done."""
    path = gateway.post().value(b"location")
    gateway.until_state(path, "done")
    return path


def asks(gateway: Spooled, path: bytes, method: bytes = b"GET") -> socket.socket:
    """A connection that has asked and reads nothing."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
    sock.connect(gateway.address)
    sock.sendall(b"%b %b HTTP/1.1\r\nHost: gw.test\r\n\r\n" % (method, path))
    return sock


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_who_leaves_while_it_waits_is_counted_and_forgotten(make: Make, loop: str) -> None:
    gateway, _ = make(loop=loop, more='[log]\naccess = "off"')
    path = stored(gateway)
    held = Held(gateway)
    socks = [asks(gateway, path) for _ in range(20)]
    gateway.until(lambda: sum(c.exchange is not None for c in gateway.server.connections()) == 20)
    for sock in socks:
        sock.close()
    gateway.until(lambda: gateway.server.worker.counts["own_answers_aborted"] == 20)
    held.let_go()
    assert gateway.state(path)["state"] == "done"
    gateway.until(lambda: gateway.server.connection_count() == 0)


@pytest.mark.parametrize("method", [b"POST", b"DELETE", b"OPTIONS", b"PUT"])
def test_other_methods_are_told_which_are_allowed(make: Make, method: bytes) -> None:
    gateway, _ = make()
    path = stored(gateway)
    with gateway.client() as client:
        client.send(b"%b %b HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n" % (method, path))
        refused = client.response()
    assert (refused.status, refused.value(b"allow")) == (405, b"GET, HEAD")


@pytest.mark.parametrize("framing", [b"Content-Length: 5", b"Transfer-Encoding: chunked"])
def test_a_question_has_no_content(make: Make, framing: bytes) -> None:
    gateway, _ = make()
    path = stored(gateway)
    with gateway.client() as client:
        client.send(b"GET %b HTTP/1.1\r\nHost: x\r\n%b\r\n\r\n" % (path, framing))
        assert client.response().status == 400


def test_a_stored_response_is_dated_and_says_its_way(make: Make) -> None:
    gateway, origin = make()
    own = gateway.ask(stored(gateway) + b"/response")
    assert len(own.values(b"date")) == 1
    assert own.value(b"via").startswith(b"1.1 ")
    origin.script = answer(fields=b"Date: Tue, 01 Jan 2030 00:00:00 GMT\r\n")
    told = gateway.ask(stored(gateway) + b"/response")
    assert told.values(b"date") == [b"Tue, 01 Jan 2030 00:00:00 GMT"]


@pytest.mark.parametrize(("codec", "loop"), [("httptools", "uvloop"), ("h11", "asyncio")])
def test_a_long_response_comes_whole_in_pieces(make: Make, codec: str, loop: str) -> None:
    gateway, _ = make(answer(body=LONG), codec=codec, loop=loop)
    path = stored(gateway) + b"/response"
    with gateway.client() as client:
        for _ in range(2):
            assert client.get(path, b"gw.test").body == LONG
        client.send(b"HEAD %b HTTP/1.1\r\nHost: x\r\n\r\n" % path)
        head = client.read_until(b"\r\n\r\n")
        assert b"Content-Length: %d\r\n" % len(LONG) in head
    assert gateway.spool.readers == 0


def test_who_takes_nothing_costs_some_pieces_and_holds_nobody_up(make: Make) -> None:
    gateway, _ = make(answer(body=LONG))
    path = stored(gateway) + b"/response"
    socks = [asks(gateway, path) for _ in range(10)]
    gateway.until(lambda: gateway.spool.readers == 10)
    gateway.until(lambda: all(c.write_blocked for c in gateway.server.connections()))
    unsent = gateway.call(
        lambda: [c.transport.get_write_buffer_size() for c in gateway.server.connections()]
    )
    assert max(unsent) <= 128 * 1024
    assert gateway.post().status == 202
    data = b""
    while len(data) < len(LONG):
        data += socks[0].recv(1 << 20)
    for sock in socks:
        sock.close()
    gateway.until(lambda: gateway.spool.readers == 0)


def test_so_many_are_given_out_at_once_and_no_more(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "READERS_MAX", 2)
    gateway, _ = make(answer(body=LONG))
    path = stored(gateway) + b"/response"
    socks = [asks(gateway, path) for _ in range(2)]
    gateway.until(lambda: gateway.spool.readers == 2)
    refused = gateway.ask(path)
    assert (refused.status, refused.value(b"retry-after")) == (503, b"1")
    assert gateway.server.worker.counts["spool_readers_refused"] == 1
    for sock in socks:
        sock.close()
    gateway.until(lambda: gateway.spool.readers == 0)
    assert gateway.ask(path).body == LONG


def test_a_response_that_goes_while_it_is_read_is_cut_off(make: Make) -> None:
    gateway, _ = make(answer(body=LONG))
    path = stored(gateway)
    with asks(gateway, path + b"/response") as sock:
        gateway.until(lambda: all(c.write_blocked for c in gateway.server.connections()))
        gateway.server.worker.loop.call_soon_threadsafe(
            gateway.spool.store.submit, lambda db: db.execute("DELETE FROM request")
        )
        gateway.poll(lambda: gateway.ask(path).status == 404)
        data = piece = sock.recv(1 << 20)
        while piece:
            piece = sock.recv(1 << 20)
            data += piece
    assert 0 < len(data) < len(LONG)
    assert gateway.server.worker.counts["spool_responses_broken"] == 1
    assert gateway.spool.readers == 0
