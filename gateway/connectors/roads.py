"""Which road leads to an upstream: direct or through a proxy, HTTP/1.1 or HTTP/2.

Whoever takes a connection from the pool does not see the difference. httpcore is imported only
here and only when an upstream wants it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from gateway.connectors.dial import DialPlan, TcpDialer
from gateway.connectors.forwarded import ForwardedProtocol
from gateway.connectors.via import ViaDialer
from gateway.proxy.pool import UpstreamPool
from gateway.proxy.tunnel import TunnelEnd
from gateway.proxy.upstream import UpstreamProtocol

if TYPE_CHECKING:
    from gateway.h1.codec import HeadLimits
    from gateway.proxy.graph import Worker
    from gateway.proxy.pool import Dialer, Pool

__all__ = ["Proxy", "Road", "tunnel_pool", "upstream_pool"]


class Proxy(NamedTuple):
    """A chained proxy; `scheme` is "http" or "socks5"."""

    scheme: str
    host: str
    port: int


class Road(NamedTuple):
    """The way to an upstream. `authority` is its origin's, as Host says it."""

    plan: DialPlan
    authority: bytes
    via: Proxy | None
    h2: bool
    idle_timeout_ns: int
    head_limits: HeadLimits


def upstream_pool(worker: Worker, road: Road) -> Pool:
    """The pool of an upstream's connections."""
    plan, via = road.plan, road.via
    if road.h2:
        # Late: a gateway without such an upstream need not have httpcore in memory.
        from gateway.connectors.h2_exchange import H2Plan
        from gateway.connectors.relay_httpcore import httpcore_pool

        assert plan.tls is not None, "the configuration demands https with h2"
        # No other protocol is offered: an operator who says h2 means it.
        plan.tls.context.set_alpn_protocols(["h2"])
        h2_plan = H2Plan(
            "https",
            plan.host,
            plan.port,
            road.authority,
            plan.tls_timeout_ns,
            road.idle_timeout_ns,
            road.head_limits,
        )
        return httpcore_pool(worker, _dialer(worker, road), h2_plan)
    if via is not None and via.scheme == "http" and plan.tls is None:
        origin = b"http://" + road.authority
        to_proxy = DialPlan(via.host, via.port, (), None, plan.connect_timeout_ns, 0)
        return UpstreamPool(
            TcpDialer(to_proxy),
            lambda pool: ForwardedProtocol(worker, pool, origin),
            idle_timeout_ns=road.idle_timeout_ns,
            head_limits=road.head_limits,
        )
    return UpstreamPool(
        _dialer(worker, road),
        lambda pool: UpstreamProtocol(worker, pool),
        idle_timeout_ns=road.idle_timeout_ns,
        head_limits=road.head_limits,
    )


def tunnel_pool(worker: Worker, road: Road) -> UpstreamPool:
    """The pool for CONNECT: the same way without TLS, which client and origin do themselves."""
    plain = road._replace(plan=road.plan._replace(tls=None))
    return UpstreamPool(
        _dialer(worker, plain),
        lambda pool: TunnelEnd(worker, pool),
        idle_timeout_ns=road.idle_timeout_ns,
        head_limits=road.head_limits,
    )


def _dialer(worker: Worker, road: Road) -> Dialer:
    via = road.via
    if via is None:
        return TcpDialer(road.plan)
    return ViaDialer(via.scheme, via.host, via.port, road.plan, worker.codec)
