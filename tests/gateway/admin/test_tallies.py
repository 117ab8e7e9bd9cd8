"""Counts that are more than a number: as counted, with bounded names, as Prometheus reads them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.admin.metrics import NodeMetrics
from gateway.admin.tallies import tallies
from gateway.clock import MS, SECOND, monotonic_ns
from gateway.proxy import pauses
from gateway.proxy.histogram import BOUNDS_NS, Histogram

MakeServed = Callable[..., Any]

# Counts of things have no unit, nor have switches; a share is a ratio.
UNITLESS = {
    "egressd_breaker_state",
    "egressd_config_generation",
    "egressd_config_reload_success",
    "egressd_connections",
    "egressd_credentials_paused",
    "egressd_kafka_idempotent",
    "egressd_kafka_in_hand_records",
    "egressd_kafka_lag_records",
    "egressd_kafka_partitions",
    "egressd_kafka_uncommitted",
    "egressd_kafka_up",
    "egressd_limit_differs",
    "egressd_limit_rows",
    "egressd_limit_slots",
    "egressd_listener_connections",
    "egressd_mesh_member_unreached",
    "egressd_mesh_members",
    "egressd_mesh_unreached_by",
    "egressd_ready",
    "egressd_spool_dead_letters",
    "egressd_spool_outcomes_waiting",
    "egressd_spool_requests",
    "egressd_upstream_connections",
    "egressd_waiting",
    "process_max_fds",
    "process_open_fds",
}
UNITS = ("_seconds", "_bytes", "_ratio", "_tokens", "_per_second", "_info")


def families(served: Any) -> dict[str, Any]:
    text = NodeMetrics(served).text().decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


@pytest.mark.parametrize(
    ("duration_ns", "bucket"),
    [(0, 0), (1 * MS, 0), (1 * MS + 1, 1), (60 * SECOND, 14), (60 * SECOND + 1, 15)],
)
def test_a_bound_belongs_to_the_bucket_below_it(duration_ns: int, bucket: int) -> None:
    histogram = Histogram()
    histogram.observe(duration_ns)
    assert histogram.counts.index(1) == bucket
    assert histogram.sum_ns == duration_ns
    assert list(BOUNDS_NS) == sorted(set(BOUNDS_NS))


def test_durations_are_histograms_as_prometheus_reads_them(make_served: MakeServed) -> None:
    served = make_served()
    counts = served.worker.runtime.upstreams["api"].counts
    for duration_ns in (3 * MS, 3 * MS, 70 * SECOND):
        counts.duration.observe(duration_ns)
    counts.wait.observe(250 * MS)
    counts.head_time.observe(2 * MS)
    found = families(served)
    taken = found["egressd_request_duration_seconds"]
    assert taken.type == "histogram"
    by_bound = {
        sample.labels["le"]: sample.value for sample in taken.samples if "le" in sample.labels
    }
    assert by_bound.pop("+Inf") == 3
    assert by_bound.pop("60.0" if "60.0" in by_bound else "60") == 2
    assert by_bound["0.0025"] == 0
    assert by_bound["0.005"] == 2
    rest = {sample.name[-5:]: sample.value for sample in taken.samples if "le" not in sample.labels}
    assert rest == {"count": 3, "s_sum": 70.006}
    assert {f"egressd_{name}_seconds" for name in ("upstream_head", "wait")} <= found.keys()


def test_counts_by_name(make_served: MakeServed) -> None:
    served = make_served()
    upstream = served.worker.runtime.upstreams["api"]
    counts = upstream.counts
    counts.answers = [1, 0, 7, 0, 2, 3]
    counts.retries["503"] = 4
    counts.throttles["peer"] = 5
    counts.waited_at["account"] = 2
    counts.refused_by["account"] = 3
    upstream.limit_set.admitted = 10
    upstream.limit_set.would_refuse[1] = 6
    shown = json.loads(json.dumps(tallies(upstream, monotonic_ns())))
    assert shown["answers"] == {"none": 1, "1xx": 0, "2xx": 7, "3xx": 0, "4xx": 2, "5xx": 3}
    assert shown["dials"] == {"made": 8, "failed": 2, "spared": 14}
    assert shown["decisions"] == {
        "account": {"admitted": 8, "waited": 2, "refused": 3, "dry": 0},
        "quota": {"admitted": 4, "waited": 0, "refused": 0, "dry": 6},
        "open": {"admitted": 10, "waited": 0, "refused": 0, "dry": 0},
    }
    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in families(served).values()
        for sample in family.samples
    }
    assert samples["egressd_answers_total", "api", "none"] == 1
    assert samples["egressd_retries_total", "503", "api"] == 4
    assert samples["egressd_throttles_total", "api", "peer"] == 5
    assert samples["egressd_limit_decisions_total", "account", "api", "waited"] == 2
    assert samples["egressd_dial_failures_total", "api"] == 2


def test_pauses_are_counted_and_timed(make_served: MakeServed) -> None:
    served = make_served()
    upstream = served.worker.runtime.upstreams["api"]
    upstream.limit_uses = ()
    worker = served.worker
    for name in ("note_change", "waitroom", "mesh"):
        setattr(worker, name, Quiet())
    table = upstream.breakers

    def happen(changes: Any, now_ns: int) -> None:
        pauses.report(worker, upstream, changes, now_ns)

    begun_ns = monotonic_ns()
    happen(table.throttled(None, (0, 0), 3 * SECOND, begun_ns, 0.0), begun_ns)
    later_ns = begun_ns + SECOND
    assert tallies(upstream, later_ns)["pause_s"] == {"upstream": 1.0}
    happen(table.throttled(None, (0, 0), 9 * SECOND, later_ns, 0.0), later_ns)
    happen(table.resume(b"", begun_ns + 4 * SECOND), begun_ns + 4 * SECOND)
    key = b"c" * 16
    happen(table.throttled(key, table.epochs(key), SECOND, begun_ns, 0.0), begun_ns)
    happen(table.resume(key, begun_ns + SECOND // 2), begun_ns + SECOND // 2)
    shown = tallies(upstream, begun_ns + 60 * SECOND)
    assert shown["pause_s"] == {"upstream": 4.0, "credential": 0.5}
    assert shown["transitions"] == {
        "upstream": {"paused": 1, "prolonged": 1, "closed": 1},
        "credential": {"paused": 1, "closed": 1},
    }


class Quiet:
    """Hears and does nothing."""

    def __call__(self, *args: Any) -> None:
        """`note_change`."""

    def poke(self, blocker: Any) -> None:
        """The waitroom's."""

    def breaker_changed(self, upstream: Any, change: Any, now_ns: int) -> None:
        """The mesh's."""

    def trial_at_ns(self, upstream: Any, change: Any, now_ns: int) -> int:
        return int(change.until_ns)


def test_the_process_is_measured(make_served: MakeServed) -> None:
    before = time.time()
    found = {name: family.samples[0].value for name, family in families(make_served()).items()
             if name.startswith("process_")}  # fmt: skip
    own = len(list(Path("/proc/self/fd").iterdir())) - 1
    assert found["process_open_fds"] == own <= found["process_max_fds"]
    resident = found["process_resident_memory_bytes"]
    assert 10 << 20 < resident < found["process_virtual_memory_bytes"]
    assert 0 < found["process_cpu_seconds"] < 1e6
    assert found["process_start_time_seconds"] == pytest.approx(before - 5, abs=5)


def test_every_family_has_help_and_a_unit(make_served: MakeServed) -> None:
    found = families(make_served())
    assert len(found) > 60
    assert [name for name, family in found.items() if not family.documentation] == []
    without_unit = {
        name
        for name, family in found.items()
        if family.type != "counter" and not name.endswith(UNITS)
    }
    assert without_unit == UNITLESS & found.keys()
    assert UNITLESS - found.keys() <= {"egressd_limit_slots"}
    # Base units: no family counts milliseconds or kilobytes.
    assert [name for name in found if "milli" in name or name.endswith(("_ms", "_kb"))] == []
