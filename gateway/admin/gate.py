"""Who may ask: the token, and without one that no web page asks in the operator's browser.

With a token the rest is moot: no page knows it, and it is in no cookie that a browser would add by
itself. Without one the interface is on loopback or on a unix socket, and whoever can connect may
ask. A browser on the same host can, so

- a request must name a host that is this one (a page of evil.example whose name was made to mean
  127.0.0.1 still says evil.example: DNS rebinding),
- one that comes from a page must come from a page of this interface (Origin, Sec-Fetch-Site), and
- a verb has a body of type application/json, which no form can send and for which a script of
  another origin must ask first (a preflight); it gets no answer that would allow it.

A unix socket has no host to name and no browser that connects to it.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Protocol

from gateway.admin.page import PAGE_PATHS
from gateway.admin.problems import Problem, problem_answer

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from gateway.conf.schema import Conf

__all__ = ["Configured", "Gate"]

# Health checks come from load balancers that hold no secrets, and tell nothing but yes or no. The
# page's files are the same for everybody, and it is the page that asks for the token.
OPEN_PATHS = frozenset({"/live", "/ready"}) | PAGE_PATHS


class Configured(Protocol):
    """Whoever has the configuration in force."""

    @property
    def conf(self) -> Conf: ...


class Gate:
    """Stands before the application; `unix` says that it is reached by a unix socket only.

    Refusals are counted in `counts`. The token is read for each request, because a reload may have
    changed it.
    """

    def __init__(
        self,
        app: ASGIApp,
        configured: Configured,
        counts: MutableMapping[str, int],
        *,
        unix: bool = False,
    ) -> None:
        self._app = app
        self._configured = configured
        self._counts = counts
        self._unix = unix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            try:
                self._judge(scope)
            except Problem as problem:
                self._counts[f"admin_refused_{problem.status}"] += 1
                await problem_answer(problem)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _judge(self, scope: Scope) -> None:
        admin = self._configured.conf.admin
        token = admin.token if admin is not None else None
        if token is not None:
            if not _shows(scope, token.reveal()):
                raise Problem(401, "a bearer token is needed: Authorization: Bearer TOKEN")
        elif not self._unix:
            host = _one(scope, b"host")
            if not _is_this_host(host, admin.bind.host if admin is not None else ""):
                raise Problem(
                    403,
                    "the Host field names another host; ask by a loopback address or localhost, "
                    "or set admin.token",
                )
            _judge_page(scope, host)


def _judge_page(scope: Scope, host: str) -> None:
    origin = _one(scope, b"origin")
    site = _one(scope, b"sec-fetch-site")
    if origin and origin.lower() != f"http://{host}".lower():
        raise Problem(403, "a page of another origin may not ask")
    if site and site not in ("same-origin", "none"):
        raise Problem(403, "a page of another site may not ask")


def _one(scope: Scope, name: bytes) -> str:
    """The value of a field that is there at most once; "" without it, a text that fits nothing
    where there are more."""
    values = [value for field, value in scope["headers"] if field == name]
    if len(values) > 1:
        return ","
    return values[0].decode("latin-1").strip() if values else ""


def _is_this_host(host: str, bound: str) -> bool:
    """Whether a Host field's value (any port) is loopback, or what the interface is bound to."""
    name, _, port = host.rpartition(":")
    if not name or not port.isdigit():
        name = host
    name = name.removeprefix("[").removesuffix("]").lower()
    if name in ("localhost", bound.lower()):
        return bool(name)
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _shows(scope: Scope, token: str) -> bool:
    """Whether the request carries the token (RFC 6750 section 2.1), in constant time."""
    shown = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(shown) != 1:
        return False
    scheme, _, credentials = shown[0].partition(b" ")
    equal = hmac.compare_digest(credentials.strip(), token.encode())
    return bool(equal and scheme.lower() == b"bearer")
