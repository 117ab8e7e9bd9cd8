"""What is read of a node is what the admin interface offers, and rates are over a second."""

import pytest

from gateway.clock import MS, SECOND
from gateway.demo.reading import NodeReading, Rates, Reading


def node(name: str, now_ns: int, admitted: int) -> NodeReading:
    return NodeReading(name, now_ns, admitted, admitted, 0, 0, 0, 0, "closed", 0, 0, 0)


def reading(now_ns: int, *admitted: int) -> Reading:
    nodes = tuple(node(f"gw-{number}", now_ns, count) for number, count in enumerate(admitted))
    return Reading(nodes, {"now_ns": now_ns}, {})


def test_a_document_is_read() -> None:
    document = {
        "node": {"name": "gw-1", "now_ns": 7, "reloads": 2},
        "upstreams": {
            "api": {
                "requests": 10,
                "admitted": 6,
                "refused": 3,
                "paused": 1,
                "trials": 1,
                "waiting": 4,
                "breaker": {"state": "open", "remaining_ms": 9, "opened_ns": 5, "closed_ns": 3},
            }
        },
    }
    read = NodeReading.of(document)
    assert read == NodeReading("gw-1", 7, 10, 6, 4, 1, 4, 2, "open", 9, 5, 3)
    with pytest.raises(KeyError):
        NodeReading.of({})


def test_rates_are_over_the_last_second() -> None:
    rates = Rates()
    rates.add(reading(0, 0, 100))
    assert rates.per_second("admitted") == [0.0, 0.0]
    for tick in range(1, 31):
        # The first admits 40/s all the time, the second 10/s until 2 s have passed, then nothing.
        rates.add(reading(tick * 100 * MS, tick * 4, 100 + min(tick, 20)))
        if tick >= 10:
            assert rates.per_second("admitted")[0] == pytest.approx(40.0)
        if tick == 20:
            assert rates.per_second("admitted")[1] == pytest.approx(10.0)
    assert rates.per_second("admitted")[1] == 0.0
    assert len(rates._readings) <= 12


def test_a_sum_is_over_all_nodes() -> None:
    assert reading(SECOND, 5, 7, 11).admitted == 23
