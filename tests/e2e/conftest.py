"""Fixtures of the end-to-end tests: real nodes, alone or as a mesh, in front of a trio origin."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from fakes.browser import Browser
from fakes.nodes import NodeProcess, Ports, free_ports, until
from fakes.origin import Origin, Script

JOINED_SECONDS = 8.0

MakeOrigin = Callable[..., Origin]
MakeNode = Callable[..., NodeProcess]
MakeMesh = Callable[..., list[NodeProcess]]
MakeConf = Callable[..., str]

CONF = """
[node]
name = "{name}"
drain = "3s"
[[listen]]
bind = "127.0.0.1:{listen}"
[admin]
bind = "127.0.0.1:{admin}"
[log]
access = "off"
{mesh}
[upstream.api]
origin = "{origin}"
{upstream}
[[route]]
upstream = "api"
{more}
"""
MESH = """
[mesh]
cluster = "{cluster}"
bind = "127.0.0.1:{port}"
join = {join}
keys = {keys}
"""
LIMIT = """
[[upstream.api.limit]]
name = "account"
rate = "45/s"
burst = 5
"""


def conf_text(
    name: str, ports: Ports, origin: str, upstream: str = LIMIT, mesh: str = "", more: str = ""
) -> str:
    """A node's file. `upstream` goes into the table of the upstream "api"."""
    return CONF.format(
        name=name,
        listen=ports.listen,
        admin=ports.admin,
        origin=origin,
        upstream=upstream,
        mesh=mesh,
        more=more,
    )


def mesh_text(
    port: int, join: list[int], cluster: str = "e2e", keys: list[Path] | None = None
) -> str:
    """The [mesh] table of a node on loopback."""
    files = ", ".join(f"{{ file = {json.dumps(str(key))} }}" for key in keys or [])
    addresses = json.dumps([f"127.0.0.1:{other}" for other in join])
    return MESH.format(cluster=cluster, port=port, join=addresses, keys=f"[{files}]")


@pytest.fixture
def make_origin() -> Iterator[MakeOrigin]:
    """Starts origins that answer by a script and stamp what arrives."""
    with ExitStack() as stack:

        def make(script: Script | None = None) -> Origin:
            return stack.enter_context(Origin(script))

        yield make


@pytest.fixture
def origin(make_origin: MakeOrigin) -> Origin:
    """An origin that answers everything with 200."""
    return make_origin()


@pytest.fixture
def make_conf() -> MakeConf:
    """(name, ports, origin's URL, upstream=, mesh=, more=) to a conf's text."""
    return conf_text


@pytest.fixture
def node(tmp_path: Path) -> Iterator[MakeNode]:
    """Starts one node: `node(origin, upstream=, more=, name=, settings=, mesh=, ports=, text=,
    environ=, sockets=)`; `text` is a whole conf of its own."""
    started: list[NodeProcess] = []
    with ExitStack() as stack:

        def make(
            origin: Origin | str,
            upstream: str = "",
            more: str = "",
            *,
            name: str = "solo",
            settings: tuple[str, ...] = (),
            mesh: str = "",
            ports: Ports | None = None,
            wait: bool = True,
            text: str = "",
            environ: Mapping[str, str] | None = None,
            sockets: Sequence[tuple[str, socket.socket]] = (),
        ) -> NodeProcess:
            ports = ports or free_ports(1)[0]
            url = origin if isinstance(origin, str) else origin.url
            text = text or conf_text(name, ports, url, upstream, mesh, more)
            process = NodeProcess(name, tmp_path, ports, text, settings, environ, sockets)
            stack.callback(process.close)
            started.append(process)
            process.start()
            if wait:
                process.wait_ready()
            return process

        yield make
        for process in started:  # all at once; each is judged when the stack unwinds
            process.ask_to_end()


@pytest.fixture
def mesh(node: MakeNode) -> MakeMesh:
    """Starts n nodes that know each other: `mesh(n, origin, upstream=, cluster=, keys=, more=)`."""

    def make(
        count: int,
        origin: Origin,
        upstream: str = LIMIT,
        *,
        cluster: str = "e2e",
        keys: list[Path] | None = None,
        more: str = "",
        join_also: tuple[int, ...] = (),
    ) -> list[NodeProcess]:
        ports = free_ports(count)
        join = [*(port.mesh for port in ports), *join_also]
        nodes = [
            node(
                origin,
                upstream,
                more,
                name=f"gw-{index + 1}",
                mesh=mesh_text(port.mesh, join, cluster, keys),
                ports=port,
                wait=False,
            )
            for index, port in enumerate(ports)
        ]
        for process in nodes:
            process.wait_ready()
        wait_joined(nodes)
        return nodes

    return make


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with Browser() as browser:
        yield browser


@pytest.fixture
def browser(chromium: Browser, node: MakeNode) -> Iterator[Browser]:
    """The browser; whatever a test did, its page complained of nothing and asked nobody else.

    It leaves the page before the nodes end (`node`), or it would complain that they are gone.
    """
    yield chromium
    chromium.requests()
    complaints = chromium.complaints()
    hosts = set(chromium.hosts)
    chromium.leave()
    assert not complaints
    assert len(hosts) <= 1, hosts


def wait_joined(nodes: list[NodeProcess]) -> None:
    """Until every node knows all as alive and has joined."""
    names = sorted(process.name for process in nodes)

    def joined() -> bool:
        return all(
            process.live_members() == names and not process.document()["mesh"]["joining"]
            for process in nodes
        )

    until(joined, JOINED_SECONDS, "all nodes have joined")
