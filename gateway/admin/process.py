"""The process as metrics, under the names that every Prometheus client uses.

prometheus-client's own collector needs /proc/stat, which the hardened unit hides (ProcSubset=pid);
what is read here is of this process alone.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from gateway.clock import SECOND, wall_ns

__all__ = ["process_metrics"]

_SELF = Path("/proc/self")


def process_metrics(uptime_s: float) -> Iterator[Metric]:
    """What this process uses; `uptime_s` is for how long it has been there."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    yield CounterMetricFamily(
        "process_cpu_seconds",
        "Total user and system CPU time spent in seconds.",
        value=used.ru_utime + used.ru_stime,
    )
    virtual_pages, resident_pages = (_SELF / "statm").read_text().split()[:2]
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    # One descriptor is that of the folder being read.
    open_fds = len(os.listdir(_SELF / "fd")) - 1  # noqa: PTH208 -- names, not 10,000 Paths
    for name, text, value in (
        (
            "process_resident_memory_bytes",
            "Resident memory size in bytes.",
            int(resident_pages) * page_bytes,
        ),
        (
            "process_virtual_memory_bytes",
            "Virtual memory size in bytes.",
            int(virtual_pages) * page_bytes,
        ),
        ("process_open_fds", "Number of open file descriptors.", open_fds),
        (
            "process_max_fds",
            "Maximum number of open file descriptors.",
            resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        ),
        (
            "process_start_time_seconds",
            "Start time of the process since unix epoch in seconds.",
            wall_ns() / SECOND - uptime_s,
        ),
    ):
        yield GaugeMetricFamily(name, text, value=value)
