"""The metrics of several workers are those of one node, and a sum never falls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families

from gateway.admin.metrics import NodeMetrics
from gateway.admin.sums import GAUGES, REPLACED, Reading, Sums
from gateway.clock import SECOND
from gateway.mesh import MeshAdapter
from peers.simnet import Simulation

COUNTS = """# HELP egressd_requests_total Requests.
# TYPE egressd_requests_total counter
egressd_requests_total{{upstream="api"}} {count}
"""
GAUGE = """# TYPE {name} gauge
{name}{{{labels}}} {value}
"""

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def summed(sums: Sums, *readings: tuple[int, int, str]) -> Samples:
    """What comes of (worker, process, exposition), as Prometheus reads it."""
    registry = CollectorRegistry()
    registry.register(sums)
    sums.read([Reading(*reading) for reading in readings], ())
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


REQUESTS = ("egressd_requests_total", (("upstream", "api"),))


def test_counters_are_added_and_survive_their_worker() -> None:
    sums = Sums()
    one, two = COUNTS.format(count=10), COUNTS.format(count=5)
    assert summed(sums, (0, 100, one), (1, 101, two)) == {REQUESTS: 15}
    # Worker 1 does not answer, then another process has its place, which counts from 0.
    assert summed(sums, (0, 100, one)) == {REQUESTS: 15}
    assert summed(sums, (0, 100, one), (1, 102, COUNTS.format(count=0))) == {REQUESTS: 15}
    assert summed(sums, (0, 100, one), (1, 102, COUNTS.format(count=2))) == {REQUESTS: 17}
    assert summed(sums, (0, 103, COUNTS.format(count=1)), (1, 102, two)) == {REQUESTS: 21}
    assert summed(sums) == {}


def test_histograms_are_added_bucket_by_bucket() -> None:
    texts = []
    for values in ((0.1, 0.7), (0.2,)):
        registry = CollectorRegistry()
        histogram = Histogram("egressd_x_seconds", "x", buckets=(0.15, 0.5), registry=registry)
        for value in values:
            histogram.observe(value)
        texts.append(generate_latest(registry).decode())
    found = summed(Sums(), (0, 1, texts[0]), (1, 2, texts[1]))
    buckets = {labels: v for (name, labels), v in found.items() if name.endswith("_bucket")}
    assert buckets == {(("le", "0.15"),): 1, (("le", "0.5"),): 2, (("le", "+Inf"),): 3}
    assert found["egressd_x_seconds_count", ()] == 3
    assert found["egressd_x_seconds_sum", ()] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("name", "labels", "result"),
    [
        ("egressd_connections", "", 5),
        ("egressd_rate_ratio", 'upstream="api"', 2),
        ("egressd_limit_level_tokens", 'limit="l"', 3),
        ("egressd_limit_tokens", 'by="self"', 5),
        ("egressd_limit_tokens", 'by="mesh"', 3),
        ("egressd_of_tomorrow", "", 3),
    ],
)
def test_a_gauge_is_a_sum_or_a_view(name: str, labels: str, result: float) -> None:
    texts = [GAUGE.format(name=name, labels=labels, value=value) for value in (2, 3)]
    found = summed(Sums(), (0, 1, texts[0]), (1, 2, texts[1]))
    assert list(found.values()) == [result]


def test_what_the_supervisor_knows_better_is_its_own() -> None:
    sums = Sums()
    own = GaugeMetricFamily("egressd_ready", "Ready.")
    own.add_metric((), 1.0)
    text = GAUGE.format(name="egressd_ready", labels="", value=0)
    sums.read([Reading(0, 1, text)], [own])
    assert [family.name for family in sums.collect()] == ["egressd_ready"]
    assert [sample.value for family in sums.collect() for sample in family.samples] == [1.0]


def test_every_gauge_has_a_rule(make_served: Callable[..., Any], bench: Simulation) -> None:
    """Who adds a gauge decides how several workers' values become one."""
    served = make_served()
    node = bench.nodes[0].up
    served.mesh = MeshAdapter(node, served.worker, lambda event, **facts: None)
    shared = node.limit("x", name="account", rate_count=9, rate_period_ns=SECOND, burst=2)
    limit_set = served.worker.runtime.upstreams["api"].limit_set
    limit_set.limits = (shared, *limit_set.limits[1:])
    families = text_string_to_metric_families(NodeMetrics(served).text().decode())
    gauges = {family.name for family in families if family.type == "gauge"}
    assert len(gauges) > 15
    assert gauges - GAUGES.keys() - REPLACED == set()
