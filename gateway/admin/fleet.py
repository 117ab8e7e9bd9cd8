"""The admin interface of a node with several workers: asks each of them, and answers as one.

Each worker serves its own interface on a unix socket in a private folder. They are asked by threads
(http.client), a few of them and rarely, so the supervisor's loop waits for none.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.admin.app import guarded, json_answer
from gateway.admin.merge import merged_document
from gateway.admin.metrics import CONTENT_TYPE
from gateway.admin.sums import Reading, Sums
from gateway.admin.views import live_document
from gateway.clock import SECOND, monotonic_ns

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from gateway.conf.schema import Conf

__all__ = ["Crew", "CrewMember", "make_fleet_app"]

ASK_SECONDS = 5.0  # a worker's answer takes milliseconds; behind 100,000 rows a few tens
ANSWER_BYTES_MAX = 64 << 20  # a page of everything; more is a fault of ours


class CrewMember(Protocol):
    """What is shown of a worker."""

    @property
    def number(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def admin_path(self) -> str: ...
    @property
    def pid(self) -> int: ...
    @property
    def ready(self) -> bool: ...
    @property
    def restarts(self) -> int: ...
    @property
    def stalls(self) -> int: ...


class Crew(Protocol):
    """What the interface reads of a `gateway.supervisor.Supervisor`."""

    @property
    def conf(self) -> Conf: ...
    @property
    def members(self) -> Sequence[CrewMember]: ...
    @property
    def ready(self) -> bool: ...
    @property
    def draining(self) -> bool: ...
    @property
    def started_ns(self) -> int: ...
    @property
    def reloads(self) -> int: ...
    @property
    def reload_failures(self) -> int: ...
    @property
    def reload_success(self) -> bool: ...
    @property
    def counts(self) -> dict[str, int]: ...


class _Answer(NamedTuple):
    member: CrewMember
    pid: int  # of the process that was asked
    status: int
    body: bytes


def make_fleet_app(crew: Crew, *, unix: bool = False) -> ASGIApp:
    """The ASGI application that shows the workers as one node; `unix`: it is reached by a unix
    socket only."""
    sums = Sums()
    registry = CollectorRegistry()
    registry.register(sums)

    async def live(request: Request) -> Response:
        return await json_answer(200, live_document())

    async def ready(request: Request) -> Response:
        return await json_answer(*_ready_document(crew))

    async def metrics(request: Request) -> Response:
        answers = await _ask_all(crew, "/metrics")
        readings = [Reading(a.member.number, a.pid, a.body.decode()) for a in answers]
        sums.read(readings, _own_metrics(crew, len(answers)))
        return Response(generate_latest(registry), media_type=CONTENT_TYPE)

    async def node(request: Request) -> Response:
        answers = await _ask_all(crew, "/api/v1/node")
        if not answers:
            return await json_answer(503, {"error": "no worker answers"})
        documents = {a.member.number: json.loads(a.body) for a in answers}
        return await json_answer(200, _node_document(crew, documents))

    routes = [
        Route(path, endpoint, methods=["GET"])
        for path, endpoint in (
            ("/live", live),
            ("/ready", ready),
            ("/metrics", metrics),
            ("/api/v1/node", node),
        )
    ]
    return guarded(routes, crew, crew.counts, unix=unix)


def _ready_document(crew: Crew) -> tuple[int, dict[str, Any]]:
    if crew.draining:
        return 503, {"ready": False, "why": "draining"}
    count = sum(member.ready for member in crew.members)
    if not crew.ready:
        why = f"{count} of {len(crew.members)} workers are ready"
        return 503, {"ready": False, "why": why}
    return 200, {"ready": True, "why": "serving"}


def _node_document(crew: Crew, documents: dict[int, dict[str, Any]]) -> dict[str, Any]:
    merged = merged_document(list(documents.values()))
    node = merged["node"]
    node.update(
        name=crew.conf.node.name,
        uptime_s=round((monotonic_ns() - crew.started_ns) / SECOND, 3),
        generation=crew.reloads + 1,
        reloads=crew.reloads,
        reload_failures=crew.reload_failures,
        reload_success=crew.reload_success,
        draining=crew.draining,
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


async def _ask_all(crew: Crew, path: str) -> list[_Answer]:
    """The answers of the workers that give one; who is starting or gone is left out."""
    token = crew.conf.admin.token if crew.conf.admin is not None else None
    headers = {"authorization": f"Bearer {token.reveal()}"} if token is not None else {}
    answers = await asyncio.gather(
        *(
            asyncio.to_thread(partial(_ask, member, member.pid, path, headers))
            for member in crew.members
            if member.pid
        )
    )
    return [answer for answer in answers if answer is not None and answer.status == 200]


def _ask(member: CrewMember, pid: int, path: str, headers: dict[str, str]) -> _Answer | None:
    connection = _UnixConnection(member.admin_path)
    try:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        body = response.read(ANSWER_BYTES_MAX)
        return _Answer(member, pid, response.status, body)
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=ASK_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
