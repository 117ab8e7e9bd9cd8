"""The admin interface: Starlette on uvicorn, in the worker's loop, on a socket of its own.

uvicorn is kept from what is the server's business: it installs no signal handlers, configures no
logging and writes no access log. Its h11 side is used although httptools is faster, because that
one has no bound on a head's size.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from functools import partial
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from gateway.admin.api import (
    BODY_BYTES_MAX,
    EVENTS_QUERY,
    OPERATIONS,
    PREFIX,
    Ask,
    Operation,
    body_of,
    query_of,
)
from gateway.admin.events import Snapshots, read_snapshot
from gateway.admin.gate import Configured, Gate
from gateway.admin.metrics import CONTENT_TYPE, NodeMetrics
from gateway.admin.openapi import openapi_document
from gateway.admin.pace import LEVELS, encoded_steps, paced
from gateway.admin.page import page_routes
from gateway.admin.problems import Problem, problem_answer
from gateway.admin.views import live_document, node_steps, ready_document

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from gateway.admin.views import Served

__all__ = ["AdminServer", "api_routes", "guarded", "json_answer", "make_app", "worker_interface"]

# A monitor, a scraper, `top`, a few curls, and as many again that hang.
CONNECTIONS_MAX = 1024
BACKLOG = 64
KEEP_ALIVE_SECONDS = 15  # longer than the usual scrape interval of 10 s
SILENCE_SECONDS = 10
BODY_SECONDS = 10  # for 16 KiB; one octet now and then is not a body
HEAD_BYTES_MAX = 16 * 1024
STOP_SECONDS = 1
NO_STORE = {"cache-control": "no-store"}
JSON_TYPE = "application/json"

Call = Callable[[Operation, Ask], Awaitable[Any]]


def make_app(served: Served, snapshots: Snapshots, *, unix: bool = False) -> ASGIApp:
    """The ASGI application for `served`; `unix`: it is reached by a unix socket only."""

    async def live(request: Request) -> Response:
        return await json_answer(200, live_document())

    async def ready(request: Request) -> Response:
        return await json_answer(*ready_document(served))

    async def show_metrics(request: Request) -> Response:
        document = await paced(node_steps(served))
        # Text for 10,000 upstreams takes a second: a thread leaves the loop its turns.
        body = await asyncio.to_thread(NodeMetrics(served, document).text)
        return Response(body, media_type=CONTENT_TYPE)

    routes: list[BaseRoute] = [
        *page_routes(),
        Route("/live", live, methods=["GET"]),
        Route("/ready", ready, methods=["GET"]),
        Route("/metrics", show_metrics, methods=["GET"]),
        *api_routes(lambda operation, ask: operation.call(served, ask), snapshots),
    ]
    return guarded(routes, served, served.worker.counts, unix=unix)


def api_routes(call: Call, snapshots: Snapshots) -> list[BaseRoute]:
    """The routes of `/api/v1/`: what comes in is judged here, `call` does it."""

    async def openapi(request: Request) -> Response:
        return await json_answer(200, openapi_document())

    return [
        Route(f"{PREFIX}/openapi.json", openapi, methods=["GET"]),
        Route(f"{PREFIX}/events", _Events(snapshots), methods=["GET"]),
        *(
            Route(PREFIX + operation.path, _endpoint(call, operation), methods=[operation.method])
            for operation in OPERATIONS
        ),
    ]


def guarded(
    routes: list[BaseRoute], configured: Configured, counts: MutableMapping[str, int], *, unix: bool
) -> ASGIApp:
    """An application of these routes behind the gate; what it refuses is counted in `counts`."""

    async def problem(request: Request, found: Problem) -> Response:
        counts[f"admin_refused_{found.status}"] += 1
        return problem_answer(found)

    handlers: dict[Any, Any] = {Problem: problem, HTTPException: _http_problem}
    app = Starlette(routes=routes, exception_handlers=handlers)
    return Gate(app, configured, counts, unix=unix)


def _endpoint(call: Call, operation: Operation) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        query = query_of(operation.query, request.scope["query_string"])
        body = {}
        if operation.takes is not None:
            body = body_of(operation, await _octets(request))
        document = await call(operation, Ask(request.path_params, query, body))
        return await json_answer(200, document, operation.levels)

    return answer


async def _octets(request: Request) -> bytes:
    """A verb's body. Raises Problem where it is none, too long, or too slow."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != JSON_TYPE:
        raise Problem(415, f"a verb has a body of type {JSON_TYPE}")
    octets = b""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                octets += chunk
                if len(octets) > BODY_BYTES_MAX:
                    raise Problem(413, f"a body has at most {BODY_BYTES_MAX} octets")
    except ClientDisconnect:
        raise Problem(400, "the body broke off") from None
    except TimeoutError:
        raise Problem(408, f"the body did not come within {BODY_SECONDS} s") from None
    return octets


async def json_answer(status: int, document: dict[str, Any], levels: int = LEVELS) -> Response:
    """A JSON answer, not to be stored; below so many `levels` its values are small (see `pace`)."""
    body = await paced(encoded_steps(document, levels)) + b"\n"
    return Response(body, status, NO_STORE, media_type=JSON_TYPE)


async def _http_problem(request: Request, error: HTTPException) -> Response:
    detail = {404: "nothing is here; /api/v1/openapi.json says what is", 405: "not by this method"}
    answer = problem_answer(Problem(error.status_code, detail.get(error.status_code, error.detail)))
    answer.headers.update(error.headers or {})
    return answer


class _Events:
    """The endpoint of server-sent events; an ASGI application, which Starlette lets stream."""

    def __init__(self, snapshots: Snapshots) -> None:
        self._snapshots = snapshots

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        query = query_of(EVENTS_QUERY, scope["query_string"])
        await self._snapshots.stream(receive, send, query.get("snapshots"))


def worker_interface(served: Served, sock: socket.socket) -> AdminServer:
    """The interface of a worker on a bound socket, which it owns from now on."""
    snapshots = Snapshots(partial(read_snapshot, served))
    app = make_app(served, snapshots, unix=sock.family == socket.AF_UNIX)
    return AdminServer(app, sock, snapshots.close)


class _Protocol(H11Protocol):
    """Closes connections that bring no whole request: uvicorn has no time limit for a head.

    Looked at every SILENCE_SECONDS, so a connection without a request ends after one to two times
    as long, whether it sends nothing or an octet now and then. One that takes no octet of an answer
    between two looks ends likewise.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._last_cycle: object = self
        self._last_unsent = 0
        self._look_again()

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        unsent = self.transport.get_write_buffer_size()
        if unsent and unsent == self._last_unsent:
            self.transport.abort()
            return
        self._last_unsent = unsent
        cycle = self.cycle
        waiting = cycle is None or cycle.response_complete
        if waiting and not unsent and cycle is self._last_cycle:
            self.transport.close()
            return
        self._last_cycle = cycle
        self._look_again()

    def _look_again(self) -> None:
        self._timer = self.loop.call_later(SILENCE_SECONDS, self._look)


class _Uvicorn(uvicorn.Server):
    """uvicorn without its grip on the process's signals; tells when it accepts."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.accepting = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.accepting.set()


class AdminServer:
    """Serves the admin interface on a bound socket, which it owns from now on.

    `close` ends what the application has begun and would never end by itself.
    """

    def __init__(self, app: ASGIApp, sock: socket.socket, close: Callable[[], None]) -> None:
        self._sock = sock
        self._task: asyncio.Task[None] | None = None
        self._close = close
        self._uvicorn = _Uvicorn(
            uvicorn.Config(
                app,
                http=_Protocol,
                ws="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                log_level="error",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                backlog=BACKLOG,
                limit_concurrency=CONNECTIONS_MAX,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=STOP_SECONDS,
                h11_max_incomplete_event_size=HEAD_BYTES_MAX,
            )
        )

    async def start(self) -> None:
        """Returns when connections are accepted. Raises OSError where the socket cannot listen."""
        serving = self._uvicorn.serve(sockets=[self._sock])
        self._task = asyncio.get_running_loop().create_task(serving)
        accepting = asyncio.ensure_future(self._uvicorn.accepting.wait())
        await asyncio.wait({self._task, accepting}, return_when=asyncio.FIRST_COMPLETED)
        if self._task.done():
            accepting.cancel()
            self._sock.close()
            await self._task

    async def stop(self) -> None:
        """Closes the socket and its connections; requests under way get STOP_SECONDS."""
        if self._task is not None:
            self._close()
            self._uvicorn.should_exit = True
            await self._task
            self._task = None
