"""`node.grace`: between SIGTERM and the first refusal a node serves, and says that it will go."""

from __future__ import annotations

import http.client
import json
import signal
import time
from collections.abc import Callable

import pytest
from fakes.nodes import NodeProcess, until
from fakes.origin import Origin

pytestmark = pytest.mark.e2e

MakeNode = Callable[..., NodeProcess]


def events(process: NodeProcess) -> list[str]:
    return [line["event"] for line in process.log()]


def ask_once(process: NodeProcess) -> tuple[int, str | None]:
    """(status, Connection) of the answer that a newcomer gets. Raises OSError."""
    connection = http.client.HTTPConnection(*process.address, timeout=5)
    try:
        connection.request("GET", "/", headers={"Host": "api.test"})
        response = connection.getresponse()
        response.read()
        return response.status, response.getheader("connection")
    finally:
        connection.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_readiness_falls_before_connections_are_refused(
    node: MakeNode, origin: Origin, workers: int
) -> None:
    process = node(origin, settings=("node.grace=1m", f"node.workers={workers}"))
    process.ask_to_end()
    until(lambda: process.ask("/ready")[0] == 503, 3.0, "readiness falls")
    assert json.loads(process.ask("/ready")[1])["why"] == "draining"
    withdrawing = 1 if workers == 1 else workers + 1  # each worker, and their supervisor
    until(lambda: len(process.log("withdrawing")) == withdrawing, 3.0, "all are told")
    assert ask_once(process) == (200, "close")
    assert not process.log("draining")
    process.signal(signal.SIGTERM)  # whoever asks twice does not wait for the minute
    assert process.wait() == 0
    assert events(process)[-1] == "stopped"


def test_grace_ends_by_itself(node: MakeNode, origin: Origin) -> None:
    process = node(origin, settings=("node.grace=300ms",))
    asked_ns = time.monotonic_ns()
    assert process.terminate() == 0
    assert time.monotonic_ns() - asked_ns >= 300_000_000
    assert events(process)[-3:] == ["withdrawing", "draining", "stopped"]


def test_without_grace_newcomers_are_refused_at_once(node: MakeNode, origin: Origin) -> None:
    process = node(origin)
    assert process.terminate() == 0
    assert events(process)[-2:] == ["draining", "stopped"]
    assert "withdrawing" not in events(process)
    with pytest.raises(ConnectionRefusedError):
        ask_once(process)
