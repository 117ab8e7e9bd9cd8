"""What metrics and the access log cost: what is counted per request, a line, and a scrape.

    make bench-ops
    PYTHONPATH=tests .venv/bin/python -m bench.metrics [--quick]

- *count*: all that a request which goes well adds to the counts of its upstream, as the data path
  does it, without the call around it. One that waits, is refused or is retried adds one or two
  look-ups in a dict. CPU time, the best of several rounds, less the loop; the target is 1 us.
- *line*: one line of the access log from its record, as JSON and as text.
- *scrape*: the exposition of that many upstreams, per upstream (some 150 series each).
"""

from __future__ import annotations

import argparse
import time
import timeit
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from prometheus_client import generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from gateway.accesslog import json_line, text_line
from gateway.admin.tallies import tallies, tally_metrics
from gateway.breaker.states import BreakerPolicy
from gateway.breaker.table import BreakerTable
from gateway.errors import Phase, Source, Termination
from gateway.limits.policy import LimitSet
from gateway.proxy.counts import UpstreamCounts
from gateway.proxy.graph import AccessRecord

__all__ = ["count_ns", "line_ns", "scrape_ns"]

_CPU = time.process_time  # a busy machine makes time pass that this process did not use
TARGET_NS = 1000
UPSTREAMS = 100
HEAD_NS, TOTAL_NS = 23_000_000, 24_000_000  # what a usual API takes


def _count(counts: UpstreamCounts, times: range) -> None:
    for _ in times:
        counts.requests += 1
        counts.admitted += 1
        counts.responses[200 // 100] += 1
        counts.head_time.observe(HEAD_NS)
        counts.answers[min(200 // 100, 5)] += 1
        counts.duration.observe(TOTAL_NS)


def _nothing(counts: UpstreamCounts, times: range) -> None:
    for _ in times:
        pass


def count_ns(times: int, rounds: int) -> float:
    """Nanoseconds of counting one request."""
    counts = UpstreamCounts()

    def best(work: Callable[[UpstreamCounts, range], None]) -> float:
        return min(
            timeit.repeat(lambda: work(counts, range(times)), number=1, repeat=rounds, timer=_CPU)
        )

    return (best(_count) - best(_nothing)) / times * 1e9


def line_ns(form: Callable[[AccessRecord, str], str], times: int, rounds: int) -> float:
    """Nanoseconds of one line."""
    record = AccessRecord(
        wall_ns=1_800_000_000_000_000_000,
        source="10.1.2.3",
        client="billing",
        listener="0.0.0.0:8080",
        upstream="stripe",
        method=b"GET",
        host=b"stripe.internal",
        target=b"/v1/charges/ch_123?expand=customer",
        status=200,
        bytes_in=0,
        bytes_out=1234,
        request_ns=0,
        waited_ns=0,
        connect_ns=0,
        response_ns=HEAD_NS,
        total_ns=TOTAL_NS,
        attempts=1,
        limit="",
        number=123_456,
        request_id=b"",
        traceparent=b"",
        termination=Termination(Source.NONE, Phase.NONE),
        error=None,
    )
    line = timeit.repeat(
        lambda: form(record, "0123456789ab"), number=times, repeat=rounds, timer=_CPU
    )
    return min(line) / times * 1e9


def scrape_ns(upstreams: int) -> float:
    """Nanoseconds of the exposition of the counts of one upstream among so many."""
    pool = SimpleNamespace(dials=1, failures=0, reuses=9)
    upstream: Any = SimpleNamespace(
        counts=UpstreamCounts(),
        pool=pool,
        tunnels=pool,
        breakers=BreakerTable(BreakerPolicy(), 0),
        limit_set=LimitSet([]),
    )

    class Counts(Collector):
        def collect(self) -> Any:
            figures = {f"api-{number}": tallies(upstream, 1) for number in range(upstreams)}
            return tally_metrics(figures)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Counts())
    return (
        min(timeit.repeat(lambda: generate_latest(registry), number=1, repeat=3, timer=_CPU))
        / upstreams
        * 1e9
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    times, rounds = (20_000, 3) if quick else (200_000, 9)
    counted = count_ns(times, rounds)
    print(f"count   {counted:8.0f} ns a request (target {TARGET_NS})")
    for name, form in (("json", json_line), ("text", text_line)):
        print(f"line    {line_ns(form, times // 10, rounds):8.0f} ns, {name}")
    print(f"scrape  {scrape_ns(UPSTREAMS) / 1000:8.0f} us an upstream, of {UPSTREAMS}")


if __name__ == "__main__":
    main()
