"""Sockets for several workers: one for each at every address, kept while workers come and go."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.conf.values import Bind, parse_bind
from gateway.ports import LOWEST, free_mesh_ports
from gateway.sockets import EVERYBODY, OwnSockets, SharedSockets


@pytest.fixture
def shared() -> Iterator[SharedSockets]:
    sockets = SharedSockets(3, OwnSockets())
    yield sockets
    sockets.keep_only(())


def test_each_worker_has_a_socket_of_its_own(shared: SharedSockets, tmp_path: Path) -> None:
    tcp, unix = parse_bind("127.0.0.1:0"), parse_bind(f"unix:{tmp_path}/s")
    assert shared.bind_new([tcp, unix]) == [tcp, unix]
    assert shared.bind_new([tcp, unix]) == []
    found = shared.of_slots({1, EVERYBODY})
    assert [(name, slot) for name, slot, _ in found] == [(str(tcp), 1), (str(unix), EVERYBODY)]
    assert len(shared.of_slots({0, 1, 2})) == 3
    assert shared.of_slots({0}, [unix]) == []
    shared.keep_only([tcp])
    assert not (tmp_path / "s").exists()
    assert [name for name, _, _ in shared.of_slots({0, EVERYBODY})] == [str(tcp)]


def test_connections_spread_over_the_sockets(shared: SharedSockets) -> None:
    tcp = parse_bind("127.0.0.1:0")
    shared.bind_new([tcp])
    servers = [socket.socket(fileno=os.dup(fd)) for _, _, fd in shared.of_slots({0, 1, 2})]
    ports = {server.getsockname()[1] for server in servers}
    assert len(ports) == 1
    clients = [socket.create_connection(("127.0.0.1", *ports)) for _ in range(90)]
    counts = []
    for server in servers:
        server.setblocking(False)
        accepted = 0
        while True:
            try:
                server.accept()[0].close()
            except BlockingIOError:
                break
            accepted += 1
        counts.append(accepted)
        server.close()
    for client in clients:
        client.close()
    assert sum(counts) == 90
    assert min(counts) >= 10, counts  # the kernel's hash: once in 10^7 there are fewer


def test_an_address_where_somebody_listens_is_refused_and_nothing_is_held(
    shared: SharedSockets,
) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # it would share
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = Bind("tcp", "127.0.0.1", other.getsockname()[1])
        with pytest.raises(OSError, match=rf"^\[Errno 98\] listen {taken}: Address already in use"):
            shared.bind_new([parse_bind("127.0.0.1:0"), taken])
    assert shared.of_slots({0, 1, 2, EVERYBODY}) == []


def test_an_inherited_socket_is_everybodys(shared: SharedSockets) -> None:
    with socket.create_server(("127.0.0.1", 0)) as web:
        inherited = SharedSockets(2, OwnSockets({"web": [web]}))
        inherited.bind_new([parse_bind("systemd:web")])
        ((name, slot, _),) = inherited.of_slots({0, 1, EVERYBODY})
        assert (name, slot) == ("systemd:web", EVERYBODY)
        inherited.keep_only(())
        with socket.create_connection(web.getsockname()[:2]):  # the original is still open
            pass


def test_mesh_ports_are_free_and_not_among_the_kernels_own() -> None:
    def choose(low: int, high: int) -> int:
        assert low == LOWEST
        assert high > low
        return next(numbers)

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        for port in range(LOWEST, LOWEST + 500):
            try:
                taken.bind(("127.0.0.1", port))
                break
            except OSError:
                continue
        numbers = iter([port, *range(port + 1, port + 900)])
        found = free_mesh_ports(3, choose)
    assert len(set(found)) == 3
    assert port not in found
    with pytest.raises(OSError, match=r"^mesh: 2 ports between"):
        free_mesh_ports(2, lambda low, high: found[0])  # never a second one
