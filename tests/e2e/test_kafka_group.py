"""Two gateways in one consumer group and one mesh: a kill midway, and a broker that goes away."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes.kafka import Broker, kafka_missing
from fakes.load import peak
from fakes.nodes import NodeProcess, until
from fakes.origin import Origin, Received, answer

from gateway.spool.partitions import RECORDS_MAX

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.skipif(bool(kafka_missing()), reason=kafka_missing()),
]

SECOND = 1_000_000_000
RATE = 200
BURST = 20
PARTITIONS = 6
UPSTREAM = """
[upstream.api.spool]
ttl = "1h"
[[upstream.api.limit]]
name = "account"
rate = "200/s"
burst = 20
sync = "exact"
"""
WINDOW_S = 10
# What is late on the way to the origin, on a machine that stands still for a quarter of a second.
PUSHED = RATE // 4
SPOOL = '[spool.kafka]\nbootstrap = ["{bootstrap}"]\n'
MakeMesh = Callable[..., list[NodeProcess]]
MakeNode = Callable[..., NodeProcess]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with Broker(tmp_path) as broker:
        broker.make_topic("egress", PARTITIONS)
        broker.make_topic("egress-results")
        broker.make_topic("egress-dead")
        yield broker


def requests(origin: Origin, first: int, count: int) -> list[tuple[bytes, bytes]]:
    """(key, value) of so many records, of twenty customers."""
    return [
        (
            b"customer-%d" % (number % 20),
            json.dumps(
                {
                    "method": "POST",
                    "url": origin.url + "/",
                    "headers": {"Authorization": f"Bearer customer-{number % 20}"},
                    "body": str(number),
                }
            ).encode(),
        )
        for number in range(first, first + count)
    ]


def partitions(node: NodeProcess) -> int:
    return sum(_kafka(node)["partitions"].values())


def test_a_gateway_killed_midway_loses_nothing(
    broker: Broker, mesh: MakeMesh, make_origin: Callable[..., Origin]
) -> None:
    count = 10_000
    origin = make_origin(answer(b"200 OK", b"ok"))
    more = SPOOL.format(bootstrap=broker.bootstrap)
    survivor, victim = mesh(2, origin, UPSTREAM, more=more)
    until(
        lambda: [partitions(node) for node in (survivor, victim)] == [3, 3], 40, "both have three"
    )
    broker.produce("egress", requests(origin, 0, count))
    until(lambda: len(origin.requests) > count // 2, 90, "half of them came")
    under_way = _kafka(victim)["in_hand"]
    victim.kill()
    until(lambda: partitions(survivor) == PARTITIONS, 60, "the other has them all")
    # The origin is a thread of this process, whose stamps are to be true: nothing big is read yet.
    last = {b"%d" % number for number in range(count - 400, count)}
    until(lambda: last <= {request.body for request in origin.requests[-5000:]}, 90, "all came")
    until(lambda: broker.lag("egressd", "egress") == 0, 20, "all is committed")

    sends: dict[bytes, list[Received]] = {}
    for request in origin.requests:
        sends.setdefault(request.body, []).append(request)
    assert sends.keys() == {b"%d" % number for number in range(count)}, "none is lost"
    twice = [each for each in sends.values() if len(each) > 1]
    for each in twice:
        assert len({request.values(b"idempotency-key")[0] for request in each}) == 1
        by = [request.values(b"via")[-1].rpartition(b" ")[2] for request in each]
        assert by == [b"egressd-gw-2", b"egressd-gw-1"], "by who was killed, and by who is left"
    print(f"{len(twice)} sent twice; {under_way} were in hand shortly before the kill")
    assert len(twice) <= RECORDS_MAX * PARTITIONS // 2, "only what was in hand"

    places = Counter(
        (value["record"]["partition"], value["record"]["offset"])
        for value in (json.loads(each.value or b"") for each in broker.read("egress-results"))
    )
    assert len(places) == count
    assert broker.read("egress-dead") == []
    stamps = sorted(request.at_ns for request in origin.requests)
    fullest = peak(stamps, WINDOW_S * SECOND)
    allowed = RATE * WINDOW_S + BURST
    print(f"fullest: {peak(stamps)} in 1 s, {fullest} in {WINDOW_S} s of {allowed} allowed")
    assert fullest <= allowed + PUSHED


def test_a_broker_that_stalls_costs_live_traffic_nothing(
    broker: Broker, node: MakeNode, make_origin: Callable[..., Origin]
) -> None:
    origin = make_origin(answer(b"200 OK", b"ok"))
    upstream = UPSTREAM.replace("200/s", "10000/s").replace("20\n", "200\n")
    process = node(origin, upstream, SPOOL.format(bootstrap=broker.bootstrap))
    until(lambda: partitions(process) == PARTITIONS, 40, "it has them")
    broker.produce("egress", requests(origin, 0, 100))
    until(lambda: broker.lag("egressd", "egress") == 0, 20, "all is committed")
    broker.stall()
    try:
        for _ in range(100):
            assert _live(process) == 200
        until(lambda: not _kafka(process)["up"], 20, "it is noticed")
    finally:
        broker.go_on()
    broker.produce("egress", requests(origin, 100, 100))
    until(lambda: broker.lag("egressd", "egress") == 0, 60, "it goes on")
    until(lambda: _kafka(process)["up"], 20, "and that it is there again")
    assert len(process.log("kafka down")) == 1
    bodies = {request.body for request in origin.requests if request.body}
    assert bodies == {b"%d" % number for number in range(200)}


def test_a_broker_that_is_not_there_is_waited_for(
    node: MakeNode, make_origin: Callable[..., Origin], tmp_path: Path
) -> None:
    origin = make_origin(answer(b"200 OK", b"ok"))
    with Broker(tmp_path) as broker:
        broker.kill()
        process = node(origin, UPSTREAM, SPOOL.format(bootstrap=broker.bootstrap))
        until(lambda: process.log("kafka down"), 20, "it says so")
        assert _live(process) == 200
        assert _kafka(process)["up"] == 0
        broker.start()
        for topic in ("egress", "egress-results", "egress-dead"):
            broker.make_topic(topic, 2)
        broker.produce("egress", requests(origin, 0, 10))
        until(lambda: len(broker.read("egress-results")) == 10, 90, "they are done")
        until(lambda: broker.lag("egressd", "egress") == 0, 20, "they are committed")
        assert len(process.log("kafka down")) == len(process.log("kafka up")) == 1
        assert process.terminate() == 0


def _kafka(node: NodeProcess) -> dict[str, Any]:
    """What a node says of its part in the group."""
    found: dict[str, Any] = node.document()["spool"]["kafka"]
    return found


def _live(process: NodeProcess) -> int:
    """The status of a request of live traffic."""
    return httpx.get(process.url, timeout=5).status_code
