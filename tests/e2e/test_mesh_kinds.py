"""Windows and slots that three real nodes share, judged by the origin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
from fakes.load import Load
from fakes.nodes import NodeProcess
from fakes.origin import Connection, Origin, Received, answer

pytestmark = pytest.mark.e2e

SECOND = 1_000_000_000
QUOTA = 90
SLOTS = 6
MakeMesh = Callable[..., list[NodeProcess]]

WINDOW = f"""
[[upstream.api.limit]]
name = "account"
rate = "{QUOTA}/2s"
algorithm = "window"
align = "{{align}}"
[upstream.api.wait]
max = "0s"
"""
OPEN = f"""
[[upstream.api.limit]]
name = "open"
in_flight = {SLOTS}
sync = "mesh"
[upstream.api.wait]
max = "2s"
"""


class Slow:
    """An origin's script: 100 ms an answer, and the most at a time."""

    def __init__(self) -> None:
        self.now = 0
        self.most = 0
        self.served = 0

    async def __call__(self, connection: Connection, request: Received) -> bool | None:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await trio.sleep(0.1)
        finally:
            self.now -= 1
        self.served += 1
        return await answer()(connection, request)


@pytest.mark.parametrize("align", ["first", pytest.param("clock", marks=pytest.mark.slow)])
def test_three_nodes_use_one_window(mesh: MakeMesh, origin: Origin, align: str) -> None:
    nodes = mesh(3, origin, WINDOW.format(align=align))
    with Load([process.address for process in nodes], 120) as load:
        load.go_on(3.6)
    stamps = sorted(request.at_ns for request in list(origin.requests))
    assert set(load.statuses()) == {200, 429}
    begin = stamps[0]
    if align == "first":
        first = [at for at in stamps if at < begin + 2 * SECOND]
        # One bucket more or less a member, and what is on its way when the quota ends.
        assert 0.95 * QUOTA <= len(first) <= QUOTA + 3 + 0.08 * QUOTA
    # In any two seconds: the end of one window and the beginning of the next.
    most = max(sum(at <= other < at + 2 * SECOND for other in stamps) for at in stamps)
    assert most <= 2 * (QUOTA + 3 + 0.08 * QUOTA)
    assert len(stamps) >= 1.5 * QUOTA


def test_three_nodes_share_slots_by_demand(mesh: MakeMesh, make_origin: Any) -> None:
    script = Slow()
    nodes = mesh(3, make_origin(script), OPEN)
    with Load([process.address for process in nodes], 90, (8, 1, 1)) as load:
        load.go_on(2.5)
    # Even parts would let the first node have two slots, and 20 answers a second.
    served = [process.upstream()["limits"][0]["admitted_own"] for process in nodes]
    assert script.most <= SLOTS + 1  # a slot is free when the answer was read, not when it was sent
    assert served[0] >= 60
    assert min(served) >= 5
    assert not load.failures
