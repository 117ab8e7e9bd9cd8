"""A breaker that opens on failures: for one node by itself, for all when most of them see it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fakes.load import Load
from fakes.nodes import NodeProcess, until
from fakes.origin import Connection, Origin, Received, answer

pytestmark = pytest.mark.e2e

UPSTREAM = """
[upstream.api.breaker]
failure_min = 5
window = "5s"
open = "1s"
ramp = "1s"
"""

MakeMesh = Callable[..., list[NodeProcess]]
MakeOrigin = Callable[..., Origin]


class FailsFor:
    """An origin's script: what comes through these nodes is answered with 500."""

    def __init__(self) -> None:
        self.nodes: set[bytes] = set()

    async def __call__(self, connection: Connection, request: Received) -> bool | None:
        via = next(line for line in request.lines if line.lower().startswith(b"via:"))
        if any(via.endswith(b" egressd-" + node) for node in self.nodes):
            return await answer(b"500 Internal Server Error")(connection, request)
        return await answer()(connection, request)


def states(nodes: list[NodeProcess]) -> list[str]:
    return [process.upstream()["breaker"]["state"] for process in nodes]


@pytest.mark.slow
def test_one_nodes_failures_stop_nobody_else_and_most_stop_all(
    mesh: MakeMesh, make_origin: MakeOrigin
) -> None:
    script = FailsFor()
    nodes = mesh(3, make_origin(script), UPSTREAM)
    with Load([process.address for process in nodes], 60) as load:
        load.go_on(1.5)  # all have demand, and have told so
        script.nodes = {b"gw-1"}
        until(lambda: nodes[0].log("breaker open"), 3.0, "the first has tripped")
        load.go_on(1.0)
        assert states(nodes)[1:] == ["closed", "closed"]
        assert {line["scope"] for line in nodes[0].log("breaker open")} == {"node"}
        script.nodes = {b"gw-1", b"gw-2"}
        until(
            lambda: all(
                any(line["scope"] == "upstream" for line in process.log("breaker open"))
                for process in nodes
            ),
            4.0,
            "all have stopped, the third one too, which has seen no failure",
        )
        script.nodes = set()
        until(lambda: states(nodes) == ["closed"] * 3, 6.0, "one trial closes it for all")
    assert 503 in load.statuses()
