"""The admin interface: Starlette on uvicorn, in the worker's loop, on a socket of its own.

It reads and never writes, so a caller can learn but not change. uvicorn is kept from what is the
server's business: it installs no signal handlers, configures no logging and writes no access log.
Its h11 side is used although httptools is faster, because that one has no bound on a head's size.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from gateway.admin.metrics import CONTENT_TYPE, NodeMetrics
from gateway.admin.views import live_document, node_document, ready_document

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from gateway.admin.views import Served
    from gateway.conf.schema import Conf

__all__ = ["AdminServer", "json_answer", "make_app", "token_gate"]

# A monitor, a scraper, `top`, a few curls, and as many again that hang.
CONNECTIONS_MAX = 1024
BACKLOG = 64
KEEP_ALIVE_SECONDS = 15  # longer than the usual scrape interval of 10 s
SILENCE_SECONDS = 10
HEAD_BYTES_MAX = 16 * 1024
STOP_SECONDS = 1
# Health checks come from load balancers that hold no secrets, and tell nothing but yes or no.
OPEN_PATHS = frozenset({"/live", "/ready"})


class Configured(Protocol):
    """Whoever has the configuration in force."""

    @property
    def conf(self) -> Conf: ...


def make_app(served: Served) -> ASGIApp:
    """The ASGI application that shows `served`."""
    metrics = NodeMetrics(served)

    async def live(request: Request) -> Response:
        return json_answer(200, live_document())

    async def ready(request: Request) -> Response:
        return json_answer(*ready_document(served))

    async def show_metrics(request: Request) -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    async def node(request: Request) -> Response:
        return json_answer(200, node_document(served))

    routes = [
        _route("/live", live),
        _route("/ready", ready),
        _route("/metrics", show_metrics),
        _route("/api/v1/node", node),
    ]
    app: ASGIApp = Starlette(routes=routes)
    return token_gate(app, served)


def token_gate(app: ASGIApp, configured: Configured) -> ASGIApp:
    """The application behind the token that the conf in force demands, if any."""
    return _TokenGate(app, configured)


def _route(path: str, endpoint: Callable[[Request], Awaitable[Response]]) -> Route:
    return Route(path, endpoint, methods=["GET"])


def json_answer(status: int, document: dict[str, Any]) -> Response:
    """A JSON answer, not to be stored."""
    body = json.dumps(document, separators=(",", ":")).encode() + b"\n"
    headers = {"cache-control": "no-store"}
    return Response(body, status, headers, media_type="application/json")


class _TokenGate:
    """Where a token is configured, demands it for every path but the health checks.

    The token is read for each request, because a reload may have changed it.
    """

    def __init__(self, app: ASGIApp, configured: Configured) -> None:
        self._app = app
        self._configured = configured

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            admin = self._configured.conf.admin
            token = admin.token if admin is not None else None
            if token is not None and not _shows(scope, token.reveal()):
                answer = json_answer(401, {"error": "a bearer token is needed"})
                answer.headers["www-authenticate"] = 'Bearer realm="egressd admin"'
                await answer(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _shows(scope: Scope, token: str) -> bool:
    """Whether the request carries the token (RFC 6750 section 2.1), in constant time."""
    shown = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(shown) != 1:
        return False
    scheme, _, credentials = shown[0].partition(b" ")
    equal = hmac.compare_digest(credentials.strip(), token.encode())
    return bool(equal and scheme.lower() == b"bearer")


class _Protocol(H11Protocol):
    """Closes connections that bring no whole request: uvicorn has no time limit for a head.

    Looked at every SILENCE_SECONDS, so a connection without a request ends after one to two times
    as long, whether it sends nothing or an octet now and then.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._last_cycle: object = self
        self._look_again()

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        cycle = self.cycle
        waiting = cycle is None or cycle.response_complete
        if waiting and cycle is self._last_cycle:
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
    """Serves the admin interface on a bound socket, which it owns from now on."""

    def __init__(self, app: ASGIApp, sock: socket.socket) -> None:
        self._sock = sock
        self._task: asyncio.Task[None] | None = None
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
            self._uvicorn.should_exit = True
            await self._task
            self._task = None
