"""The metrics of several workers as those of one node, without a label for the worker.

Counters and histograms are summed up. What a worker counted until it ended is kept, so that a sum
never falls: Prometheus would take that for a restart of the node and count everything again.
A gauge is the sum, the largest or the smallest value, as GAUGES says for each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

__all__ = ["GAUGES", "Reading", "Sums"]

ADDED = frozenset({"counter", "histogram", "summary"})
# Views of one thing are not added: what the mesh knows, each of its members knows alike.
GAUGES: dict[str, Callable[[list[float]], float]] = {
    "egressd_breaker_remaining_seconds": max,
    "egressd_breaker_state": max,
    "egressd_build_info": max,
    "egressd_connections": sum,
    "egressd_credentials_paused": max,
    "egressd_kafka_idempotent": min,
    "egressd_kafka_in_hand_bytes": sum,
    "egressd_kafka_in_hand_records": sum,
    "egressd_kafka_lag_records": sum,
    "egressd_kafka_partitions": sum,
    "egressd_kafka_uncommitted": sum,
    "egressd_kafka_up": min,
    "egressd_limit_advertised_tokens": min,
    "egressd_limit_burst_tokens": max,
    "egressd_limit_differs": max,
    "egressd_limit_excess_tokens": max,
    "egressd_limit_fill_ratio": max,
    "egressd_limit_level_tokens": max,
    "egressd_limit_rate_tokens_per_second": min,
    "egressd_limit_rows": max,
    "egressd_limit_slots": sum,
    "egressd_limit_tokens": sum,  # but for by="mesh", which is a view
    "egressd_limit_window_over_tokens": max,
    "egressd_limit_window_peak_ratio": max,
    "egressd_limit_window_tokens": max,
    "egressd_listener_connections": sum,
    "egressd_mesh_delay_seconds": max,
    "egressd_mesh_loss_ratio": max,
    "egressd_mesh_member_unreached": max,
    "egressd_mesh_members": max,
    "egressd_mesh_unreached_by": max,
    "egressd_mesh_rtt_seconds": min,
    "egressd_mesh_staleness_seconds": min,
    "egressd_rate_ratio": min,
    "egressd_redis_delay_seconds": max,
    "egressd_redis_up": min,
    "egressd_spool_commit_max_seconds": max,
    "egressd_spool_dead_letters": max,
    "egressd_spool_oldest_seconds": max,
    "egressd_spool_outcomes_waiting": sum,
    "egressd_spool_requests": sum,
    "egressd_upstream_connections": sum,
    "egressd_waiting": sum,
    "process_max_fds": max,  # of each process
    "process_open_fds": sum,
    "process_resident_memory_bytes": sum,
    "process_start_time_seconds": min,
    "process_virtual_memory_bytes": sum,
}
# A node's own, which the supervisor knows better than any worker.
REPLACED = frozenset(
    {
        "egressd_config_generation",
        "egressd_config_reload_failures",
        "egressd_config_reload_success",
        "egressd_config_reloads",
        "egressd_ready",
        "egressd_uptime_seconds",
    }
)

_Key = tuple[str, tuple[tuple[str, str], ...]]  # a sample's name and labels


class Reading(NamedTuple):
    """One worker's exposition. `pid` tells its lives apart."""

    number: int
    pid: int
    text: str


class Sums(Collector):
    """Adds up readings. In a registry it gives the last sums, and the node's own families."""

    def __init__(self) -> None:
        self._counted: dict[tuple[int, int], dict[_Key, float]] = {}  # by worker and process
        self._ended: dict[_Key, float] = {}  # by all that have ended, when they were last read
        self._families: list[Metric] = []

    def read(self, readings: Iterable[Reading], own: Iterable[Metric]) -> None:
        """Takes the readings of the workers that answer now."""
        kinds: dict[str, Metric] = {}
        gauges: dict[_Key, list[float]] = {}
        for reading in readings:
            self._counted[reading.number, reading.pid] = self._split(reading.text, kinds, gauges)
            for number, pid in list(self._counted):
                if number == reading.number and pid != reading.pid:
                    _add(self._ended, self._counted.pop((number, pid)))
        totals = dict(self._ended)
        for counts in self._counted.values():
            _add(totals, counts)
        for key, values in gauges.items():
            totals[key] = _gauge_rule(key)(values)
        for (name, labels), value in totals.items():
            family = kinds.get(_family_of(name, kinds))
            if family is not None:  # of a kind that no living worker has: nothing to say of it
                family.add_sample(name, dict(labels), value)
        self._families = [*own, *kinds.values()]

    def describe(self) -> list[Metric]:
        """Empty: nothing has been read when this is registered."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The families of the last `read`."""
        return iter(self._families)

    def _split(
        self, text: str, kinds: dict[str, Metric], gauges: dict[_Key, list[float]]
    ) -> dict[_Key, float]:
        """The counts of a reading; its gauges and kinds are added to those given."""
        counts: dict[_Key, float] = {}
        for family in text_string_to_metric_families(text):
            if family.name in REPLACED:
                continue
            kinds.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                key = sample.name, tuple(sorted(sample.labels.items()))
                if family.type in ADDED:
                    counts[key] = sample.value
                else:
                    gauges.setdefault(key, []).append(sample.value)
        return counts


def _add(totals: dict[_Key, float], counts: Mapping[_Key, float]) -> None:
    for key, value in counts.items():
        totals[key] = totals.get(key, 0.0) + value


def _gauge_rule(key: _Key) -> Callable[[list[float]], float]:
    """How a gauge's values become one; the largest, where GAUGES does not know it."""
    name, labels = key
    if ("by", "mesh") in labels:
        return max
    return GAUGES.get(name, max)


def _family_of(sample: str, kinds: Mapping[str, Metric]) -> str:
    """The family of a sample: its name without what the kind adds to it."""
    if sample in kinds:
        return sample
    for suffix in ("_total", "_bucket", "_count", "_sum", "_created"):
        name = sample.removesuffix(suffix)
        if name != sample and name in kinds:
            return name
    return ""
