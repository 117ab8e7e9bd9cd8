"""The admin interface of a node with several workers: asks each of them, and answers as one."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gateway.admin.api import PREFIX
from gateway.admin.app import AdminServer, api_routes, guarded, json_answer
from gateway.admin.asking import Question
from gateway.admin.events import Snapshots
from gateway.admin.merge import merged_document
from gateway.admin.metrics import CONTENT_TYPE, text_of_counts
from gateway.admin.page import page_routes
from gateway.admin.problems import Problem
from gateway.admin.sums import Reading, Sums
from gateway.admin.together import Directed, Together
from gateway.admin.views import live_document
from gateway.clock import SECOND, monotonic_ns

if TYPE_CHECKING:
    from starlette.types import ASGIApp

__all__ = ["Crew", "fleet_interface"]

SUPERVISOR = -1  # its number among the workers whose counts are added


class Crew(Directed, Protocol):
    """What the interface reads of a `gateway.supervisor.Supervisor`."""

    @property
    def ready(self) -> bool: ...
    @property
    def draining(self) -> bool: ...
    @property
    def started_ns(self) -> int: ...
    @property
    def counts(self) -> dict[str, int]: ...


def fleet_interface(crew: Crew, sock: socket.socket) -> AdminServer:
    """The interface of all workers on a bound socket, which it owns from now on."""
    together = Together(crew, partial(_node_document, crew))
    snapshots = Snapshots(together.snapshot)

    def close() -> None:
        snapshots.close()
        together.close()

    unix = sock.family == socket.AF_UNIX
    return AdminServer(_make_app(crew, together, snapshots, unix=unix), sock, close)


def _make_app(crew: Crew, together: Together, snapshots: Snapshots, *, unix: bool) -> ASGIApp:
    sums = Sums()
    registry = CollectorRegistry()
    registry.register(sums)

    async def live(request: Request) -> Response:
        return await json_answer(200, live_document())

    async def ready(request: Request) -> Response:
        return await json_answer(*_ready_document(crew))

    async def metrics(request: Request) -> Response:
        answers = [one for one in await Question("GET", "/metrics").all(crew) if one.done]
        readings = [Reading(one.member.number, one.pid, one.body.decode()) for one in answers]
        readings.append(Reading(SUPERVISOR, os.getpid(), text_of_counts(crew.counts)))
        sums.read(readings, _own_metrics(crew, len(answers)))
        return Response(generate_latest(registry), media_type=CONTENT_TYPE)

    routes: list[BaseRoute] = [
        *page_routes(),
        Route("/live", live, methods=["GET"]),
        Route("/ready", ready, methods=["GET"]),
        Route("/metrics", metrics, methods=["GET"]),
        *api_routes(together.call, snapshots),
    ]
    return guarded(routes, crew, crew.counts, unix=unix)


def _ready_document(crew: Crew) -> tuple[int, dict[str, Any]]:
    if crew.draining or crew.drained:
        return 503, {"ready": False, "why": "draining"}
    count = sum(member.ready for member in crew.members)
    if not crew.ready:
        why = f"{count} of {len(crew.members)} workers are ready"
        return 503, {"ready": False, "why": why}
    return 200, {"ready": True, "why": "serving"}


async def _node_document(crew: Crew) -> dict[str, Any]:
    answers = await Question("GET", f"{PREFIX}/node").all(crew)
    documents = {one.member.number: one.document() for one in answers if one.done}
    if not documents:
        raise Problem(503, "no worker answers")
    merged = merged_document(list(documents.values()))
    for name, count in crew.counts.items():
        merged["counts"][name] = merged["counts"].get(name, 0) + count
    node = merged["node"]
    node.update(
        name=crew.conf.node.name,
        uptime_s=round((monotonic_ns() - crew.started_ns) / SECOND, 3),
        generation=crew.reloads + 1,
        reloads=crew.reloads,
        reload_failures=crew.reload_failures,
        reload_success=crew.reload_success,
        draining=crew.draining or crew.drained,
        ready=_ready_document(crew)[1]["ready"],
    )
    merged["workers"] = [
        {
            "name": member.name,
            "pid": member.pid,
            "ready": member.ready,
            "restarts": member.restarts,
            "stalls": member.stalls,
            "requests": _requests(documents.get(member.number)),
        }
        for member in crew.members
    ]
    return merged


def _requests(document: dict[str, Any] | None) -> int | None:
    """What this process of a worker was asked, to see the spread; None: it does not answer."""
    if document is None:
        return None
    return sum(int(upstream["requests"]) for upstream in document["upstreams"].values())


def _own_metrics(crew: Crew, answering: int) -> Iterator[Metric]:
    """What the supervisor itself knows; the sums have these families no more."""
    for name, text, value in (
        ("egressd_ready", "1 while new requests are welcome.", crew.ready and not crew.draining),
        (
            "egressd_uptime_seconds",
            "Time since the supervisor was made.",
            (monotonic_ns() - crew.started_ns) / SECOND,
        ),
        (
            "egressd_config_reload_success",
            "1 if the last reload was taken over, or there was none.",
            crew.reload_success,
        ),
        ("egressd_config_generation", "Which configuration is in force.", crew.reloads + 1),
        ("egressd_workers", "Workers that there should be.", len(crew.members)),
        ("egressd_workers_answering", "Workers whose figures are in this answer.", answering),
    ):
        gauge = GaugeMetricFamily(name, text)
        gauge.add_metric((), float(value))
        yield gauge
    for name, text, value in (
        ("egressd_config_reloads", "Reloads that were taken over.", crew.reloads),
        ("egressd_config_reload_failures", "Reloads that were refused.", crew.reload_failures),
        (
            "egressd_worker_restarts",
            "Workers that ended and were started again.",
            sum(member.restarts for member in crew.members),
        ),
        (
            "egressd_worker_stalls",
            "Workers that were killed because their loop did not turn.",
            sum(member.stalls for member in crew.members),
        ),
    ):
        counter = CounterMetricFamily(name, text)
        counter.add_metric((), value)
        yield counter
