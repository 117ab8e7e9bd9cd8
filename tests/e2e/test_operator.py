"""An operator at one node of a mesh: `egressd ctl` reaches whom it says that it reaches."""

from __future__ import annotations

import http.client
import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from fakes.nodes import COMMAND, NodeProcess, until
from fakes.origin import Origin

pytestmark = pytest.mark.e2e

MakeMesh = Callable[..., list[NodeProcess]]


def ctl(node: NodeProcess, line: str) -> str:
    """Standard output of a verb that is obeyed."""
    command = [*COMMAND, "ctl", "-c", str(node.path), *line.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def shown(node: NodeProcess, resource: str) -> list[dict[str, Any]]:
    status, body = node.ask(f"/api/v1/{resource}")
    assert status == 200
    items: list[dict[str, Any]] = json.loads(body)[resource]
    return items


def status(node: NodeProcess) -> int:
    connection = http.client.HTTPConnection(*node.address, timeout=5)
    connection.request("GET", "/")
    answered = connection.getresponse().status
    connection.close()
    return answered


def test_a_pause_and_a_lower_rate_are_everybodys(mesh: MakeMesh, origin: Origin) -> None:
    first, second = mesh(2, origin)
    said = ctl(first, "pause api --for 60s")
    assert said == "gw-1: api is paused: 1m left (on all nodes)\n" or "59" in said
    until(lambda: shown(second, "breakers")[0]["state"] == "open", 5, "the other one is paused")
    assert status(second) == 429
    assert not origin.requests
    ctl(second, "resume api")
    until(lambda: shown(first, "breakers")[0]["state"] == "closed", 5, "both go on")

    said = ctl(first, "set rate api/account 10/s")
    assert "the smallest rule of all members is in force (on all nodes)" in said
    until(lambda: shown(second, "limits")[0]["differs"], 5, "the other one has heard")
    # While its own breaker's ramp climbs, less than that is in force.
    assert shown(second, "limits")[0]["rate_in_force"] <= 10.0
    assert shown(second, "limits")[0]["rate"] == "45/s"
    said = ctl(first, "set rate api/account file")
    until(lambda: not shown(second, "limits")[0]["differs"], 5, "the other one has heard")
    hashes = {node["config_hash"] for one in (first, second) for node in shown(one, "nodes")}
    assert len(hashes) == 1


@pytest.mark.slow
def test_a_dead_member_is_forgotten(mesh: MakeMesh, origin: Origin) -> None:
    first, second, third = mesh(3, origin)
    third.kill()

    def state(node: NodeProcess) -> str | None:
        return {one["name"]: one["state"] for one in shown(node, "members")}.get("gw-3")

    until(lambda: state(first) == state(second) == "dead", 30, "it is dead for both")
    assert shown(first, "nodes")[0]["members_known"] == 3
    assert ctl(first, "forget gw-3") == "gw-1: gw-3 counts as one that left (on all nodes)\n"
    until(lambda: state(first) == state(second) == "left", 5, "both have heard")
    until(lambda: shown(second, "nodes")[0]["members_known"] == 2, 5, "it counts no more")
