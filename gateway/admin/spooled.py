"""The spool in metrics and in `/api/v1/spool`: what waits to be sent, and what was given up."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from gateway.admin.problems import Problem
from gateway.admin.shapes import integer, record, text, truth

if TYPE_CHECKING:
    from gateway.admin.views import Served, SpoolDesk

__all__ = ["RECORD_ITEM", "STATES", "drop", "hold", "listed", "requeue", "shown", "spool_metrics"]

STATES = ("queued", "sending", "done", "dead")
_Families = tuple[tuple[str, str, str], ...]  # key among the figures, name, what it is

_COUNTERS = (
    ("accepted", "egressd_spool_accepted", "Requests that were answered 202."),
    ("known", "egressd_spool_known", "Acceptances whose Idempotency-Key was known."),
    ("sent", "egressd_spool_sends", "Sends of stored requests."),
    ("done", "egressd_spool_done", "Stored requests whose response was kept."),
    ("commits", "egressd_spool_commits", "Transactions, each one fsync."),
    ("commit_s", "egressd_spool_commit_seconds", "Time that transactions took."),
    ("refused_full", "egressd_spool_full", "Writes that found no room on disk."),
    ("store_failures", "egressd_spool_store_failures", "Writes that failed for another reason."),
)
_GAUGES = (
    ("dead_letters", "egressd_spool_dead_letters", "Dead letters that are kept."),
    ("oldest_s", "egressd_spool_oldest_seconds", "Age of the oldest request without an outcome."),
    ("commit_max_s", "egressd_spool_commit_max_seconds", "The longest transaction so far."),
    ("outcomes_waiting", "egressd_spool_outcomes_waiting", "Outcomes that wait to be kept."),
)

_KAFKA_COUNTERS = (
    ("records", "egressd_kafka_records", "Records that were read."),
    ("results", "egressd_kafka_results", "Results that all replicas have."),
    ("dead_letters", "egressd_kafka_dead_letters", "Dead letters that all replicas have."),
    ("commits", "egressd_kafka_commits", "Commits of offsets."),
    ("rebalances", "egressd_kafka_rebalances", "Times that the group gave out its partitions."),
)
_KAFKA_GAUGES = (
    ("up", "egressd_kafka_up", "1 while the group has this node."),
    ("idempotent", "egressd_kafka_idempotent", "1 if the cluster drops repeated letters."),
    ("lag", "egressd_kafka_lag_records", "Records of this node's partitions without an outcome."),
    ("uncommitted", "egressd_kafka_uncommitted", "Partitions with outcomes since the last commit."),
    ("in_hand", "egressd_kafka_in_hand_records", "Those of them that were read."),
    ("in_hand_bytes", "egressd_kafka_in_hand_bytes", "Octets of what was read."),
)

RECORD_ITEM = record(
    {
        "node": text("The node that tells."),
        "number": integer("In the order of acceptance."),
        "id": text("What its 202 named."),
        "state": text("How far it has come.", enum=list(STATES)),
        "upstream": text("The upstream's name."),
        "client": text("Who stored it."),
        "method": text("Of the request."),
        "target": text("As it goes to the upstream."),
        "bytes": integer("Of its body."),
        "accepted": text("When, RFC 3339."),
        "expires": text("When it is too old to be sent."),
        "attempts": integer("Sends that reached the upstream and failed."),
        "first_sent": text("When it was first sent."),
        "last_sent": text("When it was last sent."),
        "last_status": integer("The last answer's."),
        "finished": text("When it was done, or given up."),
        "reason": text("Why it was given up."),
        "response": text("Where its client finds the response."),
        "response_bytes": integer("Of the stored response."),
        "response_cut": truth("Whether the response was longer."),
    },
    optional=(
        "first_sent",
        "last_sent",
        "last_status",
        "finished",
        "reason",
        "response",
        "response_bytes",
        "response_cut",
    ),
)


def spool_metrics(figures: dict[str, Any] | None) -> Iterator[Metric]:
    """The families of a spool; of a node without one they are empty."""
    yield from _plain(_COUNTERS, _GAUGES, figures or {})
    dead = CounterMetricFamily(
        "egressd_spool_dead", "Requests that were given up.", labels=("reason",)
    )
    depth = GaugeMetricFamily(
        "egressd_spool_requests",
        "Stored requests without an outcome.",
        labels=("upstream", "state"),
    )
    if figures is not None:
        for reason, count in figures["dead"].items():
            dead.add_metric((reason,), count)
        for name, upstream in figures["upstreams"].items():
            for state in ("queued", "sending"):
                depth.add_metric((name, state), upstream[state])
    yield from (dead, depth)
    yield from _kafka_metrics((figures or {}).get("kafka"))


def _kafka_metrics(figures: dict[str, Any] | None) -> Iterator[Metric]:
    yield from _plain(_KAFKA_COUNTERS, _KAFKA_GAUGES, figures or {})
    partitions = GaugeMetricFamily(
        "egressd_kafka_partitions", "Partitions of this node, by what is done.", labels=("state",)
    )
    if figures is not None:
        for state, count in figures["partitions"].items():
            partitions.add_metric((state,), count)
    yield partitions


def _plain(counters: _Families, gauges: _Families, figures: dict[str, Any]) -> Iterator[Metric]:
    """Families without labels; of a figure that there is not they are empty."""
    for key, name, about in counters:
        counter = CounterMetricFamily(name, about, labels=())
        if key in figures:
            counter.add_metric((), figures[key])
        yield counter
    for key, name, about in gauges:
        gauge = GaugeMetricFamily(name, about, labels=())
        if key in figures:
            gauge.add_metric((), float(figures[key]))
        yield gauge


async def listed(served: Served, query: dict[str, Any]) -> dict[str, Any]:
    """A page of records, in the order of acceptance. Raises Problem."""
    states = [query["state"]] if "state" in query else list(STATES)
    count = query.get("count", 100)
    desk = served.spool
    if desk is None:
        return {"records": [], "next": None}
    try:
        found = await desk.listed(
            states, query.get("upstream", ""), query.get("after", 0), count + 1
        )
    except OSError as error:
        raise _unreadable(error) from None
    more = len(found) > count
    found = found[:count]
    items = [{"node": served.conf.node.name, **item} for item in found]
    return {"records": items, "next": items[-1]["number"] if more else None}


async def shown(served: Served, name: str) -> dict[str, Any]:
    """One record. Raises Problem."""
    try:
        found = await _desk(served).shown(name)
    except OSError as error:
        raise _unreadable(error) from None
    if found is None:
        raise _no_record(name)
    return {"node": served.conf.node.name, **found}


async def requeue(served: Served, name: str) -> dict[str, Any]:
    """A dead letter is sent again. Raises Problem."""
    try:
        done = await _desk(served).requeue(name)
    except OSError as error:
        raise _unreadable(error) from None
    except ValueError as error:
        raise Problem(409, str(error)) from None
    if not done:
        raise Problem(404, f"no dead letter {name}")
    served.operator.note("stored request queued again", id=name)
    return _done(served, f"{name} is queued again, with all its attempts and a new time")


async def drop(served: Served, name: str) -> dict[str, Any]:
    """A record is taken out. Raises Problem."""
    try:
        desk = _desk(served)
        if await desk.shown(name) is None:
            raise _no_record(name)
        done = await desk.drop(name)
    except OSError as error:
        raise _unreadable(error) from None
    if not done:
        raise Problem(409, f"{name} is being sent")
    served.operator.note("stored request dropped", id=name)
    return _done(served, f"{name} is dropped")


async def hold(served: Served, upstream: str, *, held: bool) -> dict[str, Any]:
    """Stops or goes on with the sending of what is stored for an upstream. Raises Problem."""
    desk = _desk(served)
    if upstream not in served.worker.runtime.upstreams:
        raise Problem(404, f"no upstream {upstream}")
    try:
        await desk.hold(upstream, held=held)
    except OSError as error:
        raise _unreadable(error) from None
    word = "is held back" if held else "goes on"
    served.operator.note(f"spool {word}", upstream=upstream)
    return _done(served, f"what is stored for {upstream} {word}")


def _desk(served: Served) -> SpoolDesk:
    if served.spool is None:
        raise Problem(409, "no upstream of this node has a spool")
    return served.spool


def _no_record(name: str) -> Problem:
    return Problem(404, f"no stored request {name}")


def _unreadable(error: OSError) -> Problem:
    return Problem(503, str(error))


def _done(served: Served, done: str) -> dict[str, Any]:
    return {"node": served.conf.node.name, "done": done, "reach": "node"}
