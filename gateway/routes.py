"""Which upstream a request goes to: authority -> Route in one look-up, the rest in `*_slow`.

Routes match in file order. The table remembers, for each Host value as received, the few routes
that could match it; that memory is bounded, since Host values are the clients' to invent.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, NamedTuple, TypeVar

__all__ = ["Route", "RouteTable", "strip_path"]

Target = TypeVar("Target")

REMEMBERED_MAX = 4096  # Host values; at about 150 B each 600 KiB, then the memory starts afresh
REMEMBERED_BYTES_MAX = 256  # a longer Host value is looked up the slow way each time


class Route(NamedTuple, Generic[Target]):
    """One rule. `host` is lower case, b"*.suffix" or b"" for any; `prefix` ends without a slash."""

    host: bytes
    prefix: bytes
    methods: frozenset[bytes]
    strip: bytes
    target: Target

    def matches(self, method: bytes, path: bytes) -> bool:
        """Path and method; the host has been matched by the table."""
        prefix = self.prefix
        if prefix and not (
            path.startswith(prefix) and path[len(prefix) : len(prefix) + 1] in (b"", b"/", b"?")
        ):
            return False
        return not self.methods or method in self.methods


class RouteTable(Generic[Target]):
    """All routes, in file order."""

    __slots__ = ("_any_or_suffix", "_by_host", "_remembered", "_routes")

    def __init__(self, routes: Iterable[Route[Target]]) -> None:
        self._routes = tuple(routes)
        # Positions keep the file's order across the two groups.
        self._by_host: dict[bytes, list[int]] = {}
        self._any_or_suffix: list[int] = []
        for position, route in enumerate(self._routes):
            if route.host and not route.host.startswith(b"*."):
                self._by_host.setdefault(route.host, []).append(position)
            else:
                self._any_or_suffix.append(position)
        self._remembered: dict[bytes, tuple[Route[Target], ...]] = {}

    def __len__(self) -> int:
        return len(self._routes)

    def find(self, method: bytes, host: bytes, path: bytes) -> Route[Target] | None:
        """The first route that matches; `host` is the Host value as received, port included."""
        routes = self._remembered.get(host)
        if routes is None:
            routes = self._find_slow(host)
        for route in routes:
            if route.matches(method, path):
                return route
        return None

    def _find_slow(self, host: bytes) -> tuple[Route[Target], ...]:
        name = host.lower()
        if not name.endswith(b"]"):  # a bare IPv6 literal has colons but no port
            head, colon, port = name.rpartition(b":")
            if colon and port.isdigit():
                name = head
        name = name.removesuffix(b".")
        positions = self._by_host.get(name, []) + [
            position
            for position in self._any_or_suffix
            if not self._routes[position].host or name.endswith(self._routes[position].host[1:])
        ]
        routes = tuple(self._routes[position] for position in sorted(positions))
        if len(host) <= REMEMBERED_BYTES_MAX:
            if len(self._remembered) >= REMEMBERED_MAX:
                self._remembered.clear()
            self._remembered[host] = routes
        return routes


def strip_path(path: bytes, strip: bytes) -> bytes:
    """The path without the route's `strip` prefix, octet for octet; never empty.

    RFC 9112 section 3.2.1: an empty path is sent as "/".
    """
    if not strip or not path.startswith(strip):
        return path
    rest = path[len(strip) :]
    return rest if rest.startswith(b"/") else b"/" + rest
