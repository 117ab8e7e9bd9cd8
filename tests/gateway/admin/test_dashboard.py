"""The Grafana dashboard asks for nothing that a node does not say."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.admin.metrics import NodeMetrics
from gateway.clock import SECOND, monotonic_ns
from gateway.mesh import MeshAdapter
from peers.simnet import Simulation

MakeServed = Callable[..., Any]
DASHBOARD = json.loads(
    (Path(__file__).parents[3] / "conf" / "grafana" / "egressd.json").read_text()
)
ROWS = ["Traffic", "Limits and waits", "Pauses and breakers", "Mesh", "Process"]
METRIC = re.compile(r"\b(?:egressd|process)_\w+")
# A selector, and the labels that an aggregation keeps; Prometheus itself adds `instance`.
SELECTOR = re.compile(r"((?:egressd|process)_\w+)\{([^}]*)\}")
LABEL = re.compile(r'(\w+)(?:=~|!=|!~|=)"')
KEPT = re.compile(r"by \(([^)]*)\)")
ADDED = {"instance"}


def expressions(node: Any) -> Iterator[str]:
    """Everything that the dashboard asks Prometheus."""
    if isinstance(node, list):
        for item in node:
            yield from expressions(item)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key in ("expr", "query") and isinstance(value, str):
                yield value
            else:
                yield from expressions(value)


EXPRESSIONS = list(expressions(DASHBOARD))


@pytest.fixture
def said(make_served: MakeServed, bench: Simulation) -> dict[str, set[str]]:
    """The labels of every sample name in a scrape of a node in a mesh, all of which have one."""
    served = make_served()
    served.mesh = MeshAdapter(bench.nodes[0].up, served.worker, lambda event, **facts: None)
    upstream = served.worker.runtime.upstreams["api"]
    counts = upstream.counts
    counts.retries["503"] = counts.throttles["peer"] = 1
    counts.transitions["upstream", "paused"] = 1
    served.worker.counts["addresses_denied_loopback"] = 1
    node = bench.nodes[0].up
    node.drops["garbage"] = 1
    shared = node.limit("x", name="account", rate_count=45, rate_period_ns=SECOND, burst=5)
    upstream.limit_set.limits = (shared, *upstream.limit_set.limits[1:])
    shared.entry(b"", bench.now_ns)
    served.mesh.tick(bench.now_ns)
    now_ns = monotonic_ns()
    upstream.lessons.hear([b""], (100, 3, None), now_ns, now_ns)
    labels: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(NodeMetrics(served).text().decode()):
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
    return labels


def test_it_has_the_rows_and_every_panel_a_place() -> None:
    panels = DASHBOARD["panels"]
    assert [panel["title"] for panel in panels if panel["type"] == "row"] == ROWS
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells


def test_every_metric_that_it_names_is_said(said: dict[str, set[str]]) -> None:
    named = {name for text in EXPRESSIONS for name in METRIC.findall(text)}
    assert len(named) > 45
    assert named - said.keys() == set()


def test_every_label_that_it_names_is_there(said: dict[str, set[str]]) -> None:
    for text in EXPRESSIONS:
        for name, selector in SELECTOR.findall(text):
            wanted = set(LABEL.findall(selector))
            for kept in KEPT.findall(text):
                wanted |= {label.strip() for label in kept.split(",")}
            assert wanted - said[name] - ADDED == set(), text


def test_legends_name_labels_that_are_kept() -> None:
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            kept = {
                label.strip()
                for labels in KEPT.findall(target["expr"])
                for label in labels.split(",")
            } or ADDED
            named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert named <= kept, target


def test_nothing_points_out_of_it() -> None:
    """Any Prometheus can be chosen, and nothing is fetched from elsewhere."""
    text = json.dumps(DASHBOARD)
    assert "http://" not in text
    assert "https://" not in text
    uids = {panel["datasource"]["uid"] for panel in DASHBOARD["panels"] if "datasource" in panel}
    assert uids == {"${datasource}"}
    variables = [variable["name"] for variable in DASHBOARD["templating"]["list"]]
    assert variables == ["datasource", "instance", "upstream"]
