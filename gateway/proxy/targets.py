"""Targets that name their destination themselves: absolute-form and CONNECT (proxy form).

They are looked up among the upstreams' origins first, so that limits hold for whoever uses the
gateway as a proxy, and then in `[forward]`. They never go through the routes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from gateway.errors import ErrorKind, GatewayError
from gateway.h1.target import split_absolute, split_authority

if TYPE_CHECKING:
    from gateway.proxy.graph import Runtime, Upstream
    from gateway.proxy.pool import Pool

__all__ = [
    "FORWARD",
    "ForwardTable",
    "Pattern",
    "find_absolute",
    "find_tunnel",
    "is_other_host",
]

# The name of all `[forward]` targets in counts and logs: one that no upstream can have.
FORWARD = "[forward]"

TARGETS_MAX = 1024  # targets that keep a pool; at about 4 KiB each 4 MiB, the oldest goes first


class Pattern(NamedTuple):
    """`host` is lower case (IPv6 in brackets); with `below` every name under it, b"" any host."""

    host: bytes
    port: int
    below: bool

    def matches(self, host: bytes, port: int) -> bool:
        if port != self.port:
            return False
        if not self.below:
            return host == self.host
        return not self.host or host.endswith(b"." + self.host)


class ForwardTable:
    """`[forward]`: which other targets may be reached, and an upstream for each that was.

    `retire` takes the pools of those that are dropped, whose connections may still be busy.
    """

    __slots__ = ("_made", "_make", "_retire", "connect_ports", "patterns")

    def __init__(
        self,
        patterns: Sequence[Pattern],
        connect_ports: frozenset[int],
        make: Callable[[bytes, bytes, int], Upstream],
        retire: Callable[[Pool], None],
    ) -> None:
        self.patterns = tuple(patterns)
        self.connect_ports = connect_ports
        self._make = make
        self._retire = retire
        self._made: OrderedDict[tuple[bytes, bytes, int], Upstream] = OrderedDict()

    def find(self, scheme: bytes, host: bytes, port: int) -> Upstream | None:
        """The upstream for an allowed target, made at its first use."""
        if not self._allows(host, port):
            return None
        key = (scheme, host, port)
        upstream = self._made.get(key)
        if upstream is None:
            upstream = self._made[key] = self._make(scheme, host, port)
            if len(self._made) > TARGETS_MAX:
                _, oldest = self._made.popitem(last=False)
                self._drop(oldest)
        else:
            self._made.move_to_end(key)
        return upstream

    def succeed(self, old: ForwardTable, *, same_way: bool) -> None:
        """Takes over what the table before a reload made for targets that are still allowed.

        Without `same_way` (what may be connected to has changed) only their breakers and pace: a
        connection that was made under the old rule is not one that the new rule allows.
        """
        for key, upstream in old._made.items():
            _, host, port = key
            if self._allows(host, port):
                if same_way:
                    self._made[key] = upstream
                    continue
                self._made[key] = anew = self._make(*key)
                anew.breakers = upstream.breakers
                anew.pacer = upstream.pacer
            self._drop(upstream)

    def upstreams(self) -> list[Upstream]:
        """All that were made and are kept."""
        return list(self._made.values())

    def _allows(self, host: bytes, port: int) -> bool:
        return any(pattern.matches(host, port) for pattern in self.patterns)

    def _drop(self, upstream: Upstream) -> None:
        self._retire(upstream.pool)
        self._retire(upstream.tunnels)


def find_absolute(runtime: Runtime, target: bytes, method: bytes) -> tuple[Upstream, bytes, bytes]:
    """(upstream, path, Host value) of an absolute-form target. Raises GatewayError."""
    scheme, host, port, path = split_absolute(target, method)
    authority = host if port == (443 if scheme == b"https" else 80) else b"%s:%d" % (host, port)
    name = host.removesuffix(b".")  # the root's, which changes the spelling and not the name
    upstream = runtime.by_origin.get((scheme, name, port))
    if upstream is None:
        upstream = runtime.forward.find(scheme, name, port)
    if upstream is None:
        detail = f"{authority.decode('latin-1')} is no upstream's origin and not in forward.allow"
        raise GatewayError(ErrorKind.TARGET_DENIED, detail)
    return upstream, path, authority


def is_other_host(host: bytes, authority: bytes, target: bytes) -> bool:
    """Whether a Host field names another than the absolute target whose authority that is.

    The target rules (RFC 9112 section 3.2.2), but whoever sends two names may be up to something.
    """
    port = b":443" if target[:6].lower() == b"https:" else b":80"
    return host != b"" and host.lower().removesuffix(port) != authority


def find_tunnel(runtime: Runtime, target: bytes) -> tuple[Upstream, bytes]:
    """(upstream, Host value) of a CONNECT target. Raises GatewayError.

    An upstream that has limits is refused unless it says `tunnel = true`: one token would open the
    tunnel for any number of requests. The refusal names what to use instead, since clients show it.
    """
    host, port = split_authority(target)
    host = host.removesuffix(b".")
    upstream = runtime.by_origin.get((b"https", host, port))
    if upstream is None:
        upstream = runtime.by_origin.get((b"http", host, port))
    if upstream is not None:
        if upstream.tunnel_denied:
            raise GatewayError(ErrorKind.TARGET_DENIED, upstream.tunnel_denied)
        return upstream, target
    forward = runtime.forward
    if port in forward.connect_ports:
        upstream = forward.find(b"https", host, port)
    if upstream is None:
        detail = f"CONNECT to {target.decode('latin-1')} is not allowed"
        raise GatewayError(ErrorKind.TARGET_DENIED, detail)
    return upstream, target
