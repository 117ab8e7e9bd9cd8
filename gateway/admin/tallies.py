"""What an upstream's counts say, as plain values: a part of `/api/v1/node`, and metrics of it.

All of it adds up: over the workers of a node and the nodes of a mesh. Buckets of durations are
cumulative and named by their bounds in seconds, as Prometheus has them. Labels are bounded: the
names come from the configuration or from tables in the source.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric

from gateway.breaker.states import BreakerState
from gateway.clock import SECOND
from gateway.proxy.histogram import BOUNDS_NS, Histogram

if TYPE_CHECKING:
    from gateway.proxy.graph import Upstream

__all__ = ["tallies", "tally_metrics"]

_BOUNDS = (*(f"{bound / SECOND:g}" for bound in BOUNDS_NS), "+Inf")
_CLASSES = ("none", "1xx", "2xx", "3xx", "4xx", "5xx")


def tallies(upstream: Upstream, now_ns: int) -> dict[str, Any]:
    """The counts of an upstream that are more than one number."""
    counts = upstream.counts
    pools = (upstream.pool, upstream.tunnels)
    return {
        "answers": dict(zip(_CLASSES, counts.answers, strict=True)),
        "durations": {
            "exchange": _buckets(counts.duration),
            "head": _buckets(counts.head_time),
            "wait": _buckets(counts.wait),
        },
        "retries": dict(counts.retries),
        "throttles": dict(counts.throttles),
        "transitions": _transitions(counts.transitions),
        "pause_s": _pause_seconds(upstream, now_ns),
        "dials": {
            "made": sum(pool.dials for pool in pools),
            "failed": sum(pool.failures for pool in pools),
            "spared": sum(pool.reuses for pool in pools),
        },
        "decisions": _decisions(upstream),
    }


def _buckets(histogram: Histogram) -> dict[str, Any]:
    buckets = dict(zip(_BOUNDS, accumulate(histogram.counts), strict=True))
    return {"sum_s": round(histogram.sum_ns / SECOND, 9), "buckets": buckets}


def _transitions(counted: dict[tuple[str, str], int]) -> dict[str, dict[str, int]]:
    nested: dict[str, dict[str, int]] = {}
    for (scope, happened), count in counted.items():
        nested.setdefault(scope, {})[happened] = count
    return nested


def _pause_seconds(upstream: Upstream, now_ns: int) -> dict[str, float]:
    """How long breakers were not closed, by scope; of the upstream's own one up to now, of the
    others, which come and go, when they close."""
    paused_ns = dict(upstream.counts.paused_ns)
    own = upstream.breakers.own
    under_way_ns = now_ns - own.opened_ns if own.state is not BreakerState.CLOSED else 0
    paused_ns["upstream"] = paused_ns.get("upstream", 0) + under_way_ns
    return {scope: round(total / SECOND, 6) for scope, total in paused_ns.items()}


def _decisions(upstream: Upstream) -> dict[str, dict[str, int]]:
    """What became of requests at each limit: let through at once (`admitted`) or at last
    (`waited`), `refused`, or let through although a limit on trial would not have (`dry`)."""
    counts = upstream.counts
    limit_set = upstream.limit_set
    decisions = {}
    for index, limit in enumerate(limit_set.limits):
        waited = counts.waited_at.get(limit.name, 0)
        dry = limit_set.would_refuse[index]
        decisions[limit.name] = {
            "admitted": max(0, limit_set.admitted_by(index) - waited - dry),
            "waited": waited,
            "refused": counts.refused_by.get(limit.name, 0),
            "dry": dry,
        }
    return decisions


# (key in the document, metric, help, labels) of counts by one name.
_BY_NAME = (
    ("answers", "egressd_answers", "What clients got in the end, by class of status.", "class"),
    ("retries", "egressd_retries", "Requests sent again, by what went before.", "reason"),
    ("throttles", "egressd_throttles", "Throttles, by what told of them.", "source"),
)
_DURATIONS = (
    (
        "exchange",
        "egressd_request_duration_seconds",
        "From a request's first octet to the answer's last; tunnels are left out.",
    ),
    (
        "head",
        "egressd_upstream_head_seconds",
        "From a request's sending to the head of its response.",
    ),
    ("wait", "egressd_wait_seconds", "How long requests were held, whatever came of it."),
)
_DIALS = (
    ("made", "egressd_dials", "Connections to the upstream that were tried."),
    ("failed", "egressd_dial_failures", "Of those, the ones that did not come about."),
    ("spared", "egressd_connection_reuses", "Requests that an idle connection took."),
)


def tally_metrics(upstreams: dict[str, Any]) -> Iterator[Metric]:
    """The same as metric families, of all upstreams."""
    for key, name, text, label in _BY_NAME:
        family = CounterMetricFamily(name, text, labels=("upstream", label))
        for upstream, figures in upstreams.items():
            for named, count in figures[key].items():
                family.add_metric((upstream, named), count)
        yield family
    for key, name, text in _DURATIONS:
        histogram = HistogramMetricFamily(name, text, labels=("upstream",))
        for upstream, figures in upstreams.items():
            taken = figures["durations"][key]
            histogram.add_metric((upstream,), list(taken["buckets"].items()), taken["sum_s"])
        yield histogram
    for key, name, text in _DIALS:
        dials = CounterMetricFamily(name, text, labels=("upstream",))
        for upstream, figures in upstreams.items():
            dials.add_metric((upstream,), figures["dials"][key])
        yield dials
    yield from _pauses(upstreams)
    yield from _decided(upstreams)


def _pauses(upstreams: dict[str, Any]) -> Iterator[Metric]:
    transitions = CounterMetricFamily(
        "egressd_breaker_transitions",
        "What happened to breakers: paused by a throttle, opened on failures, prolonged, closed.",
        labels=("upstream", "scope", "to"),
    )
    seconds = CounterMetricFamily(
        "egressd_pause_seconds",
        "How long breakers were not closed; of credentials' when they close.",
        labels=("upstream", "scope"),
    )
    for upstream, figures in upstreams.items():
        for scope, by_state in figures["transitions"].items():
            for happened, count in by_state.items():
                transitions.add_metric((upstream, scope, happened), count)
        for scope, total in figures["pause_s"].items():
            seconds.add_metric((upstream, scope), total)
    yield from (transitions, seconds)


def _decided(upstreams: dict[str, Any]) -> Iterator[Metric]:
    decisions = CounterMetricFamily(
        "egressd_limit_decisions",
        "Requests by what a limit did: admitted at once, waited, refused, dry (on trial).",
        labels=("upstream", "limit", "decision"),
    )
    for upstream, figures in upstreams.items():
        for limit, by_decision in figures["decisions"].items():
            for decision, count in by_decision.items():
                decisions.add_metric((upstream, limit, decision), count)
    yield decisions
