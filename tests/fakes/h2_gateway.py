"""What the tests of HTTP/2 upstreams share: a conf, certificates, and what must be left at rest."""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable
from typing import Any

import trustme
from fakes.gateway import Gateway
from fakes.h2_origin import H2Origin, H2Stream

__all__ = [
    "AUTHORITY",
    "CONF",
    "Make",
    "gated",
    "nothing_is_held",
    "refusal",
    "server_context",
]

CONF = """
[[listen]]
bind = "127.0.0.1:0"
[upstream.api]
origin = "https://localhost:{port}"
protocol = "h2"
tls = {{ ca = "{folder}/ca.pem" }}
{upstream}
[[route]]
host = "api.test"
upstream = "api"
"""

AUTHORITY = trustme.CA()
Make = Callable[..., tuple[Gateway, H2Origin]]


def server_context(name: str = "localhost") -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    AUTHORITY.issue_cert(name).configure_cert(context)
    return context


def nothing_is_held(gateway: Gateway) -> None:
    """After all clients have gone: no stream, slot, waiter, dial or deadline is left."""
    upstream = gateway.upstream("api")
    slots = upstream.slots.limit

    def at_rest() -> bool:
        pool = upstream.pool
        return (
            not gateway.connections()
            and not pool.dialling_count
            and pool.open_count == pool.idle_count
            and all(row.used == 0 for row in slots)
            # A lane stands in the wheel itself; what has left the pool may still be closing.
            and len(gateway.server.worker.wheel) == pool.open_count
        )

    gateway.until(at_rest)


async def gated(stream: H2Stream) -> None:
    """Answers /late when the gate opens, anything else at once."""
    if stream.value(b":path") == b"/late":
        await stream.connection.origin.gate.wait()
    await stream.head(b"200", [(b"content-length", b"2")])
    await stream.data(b"ok", end=True)


def refusal(response: Any) -> bytes:
    """The kind of error in an answer of the gateway's own."""
    assert json.loads(response.body)["said_by"] == "gateway"
    return response.value(b"proxy-status").partition(b"error=")[2]
