"""Plain http:// origins behind an http:// proxy: spoken to in absolute-form, without CONNECT.

Apart from `via`, because it is hot: all requests of such an upstream go through it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.h1.message import Fields, Framing
from gateway.proxy.upstream import UpstreamProtocol

if TYPE_CHECKING:
    from gateway.proxy.exchange import Exchange
    from gateway.proxy.graph import Worker
    from gateway.proxy.pool import UpstreamPool

__all__ = ["ForwardedProtocol"]


class ForwardedProtocol(UpstreamProtocol):
    """A connection to an http:// proxy that forwards by itself: targets are in absolute-form.

    RFC 9112 section 3.2.2; path and query go on octet for octet.
    """

    __slots__ = ("_origin",)

    def __init__(self, worker: Worker, pool: UpstreamPool, origin: bytes) -> None:
        """`origin` is scheme and authority, e.g. b"http://api.example.com:8080"."""
        super().__init__(worker, pool)
        self._origin = origin

    def begin(
        self, exchange: Exchange, method: bytes, target: bytes, fields: Fields, framing: Framing
    ) -> None:
        # RFC 9112 section 3.2.4: `OPTIONS *` for another host is written without any path.
        whole = self._origin if target == b"*" else self._origin + target
        super().begin(exchange, method, whole, fields, framing)
