"""Routes that can never match, or lead nowhere. Ten thousand of them are judged in one pass."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from gateway.conf.faults import Finding, Hints, Path
from gateway.conf.schema import Route

__all__ = ["route_faults", "shadowed_routes"]

# Host ("" is any) and path without its last slash, of the routes seen so far: index and methods.
_Seen = dict[tuple[str, str], list[tuple[int, frozenset[str]]]]


def route_faults(routes: tuple[Route, ...], upstreams: Collection[str]) -> Iterator[Finding]:
    """The faults of the routes; `upstreams` are the names that they may lead to."""
    seen: dict[tuple[str, str, frozenset[str]], int] = {}
    hints = Hints(upstreams)
    for index, route in enumerate(routes):
        path: Path = ("route", index)
        if route.upstream not in upstreams:
            message = f"there is no [upstream.{route.upstream}]{hints.text(route.upstream)}"
            yield Finding((*path, "upstream"), message)
        if route.strip is not None and not _covers(_plain(route.strip), _plain(route.path)):
            message = f"{route.strip!r} is not a prefix of whole segments of path {route.path!r}"
            yield Finding((*path, "strip"), message)
        if "CONNECT" in route.methods:
            message = "CONNECT is never routed; it is looked up among the upstreams' origins"
            yield Finding((*path, "methods"), message)
        match = (route.host or "", _plain(route.path), frozenset(route.methods))
        first = seen.setdefault(match, index)
        if first != index:
            yield Finding(path, f"matches the same requests as route.{first}, which comes first")


def shadowed_routes(routes: tuple[Route, ...]) -> Iterator[tuple[int, int]]:
    """(route, earlier route) where the earlier one takes everything, and is not the same match.

    For each route only the hosts and paths that could cover it are looked up, so that the cost is
    the number of labels times the number of segments.
    """
    seen: _Seen = {}
    for index, route in enumerate(routes):
        methods = frozenset(route.methods)
        key = (route.host or "", _plain(route.path))
        for host in _covering_hosts(key[0]):
            earlier = _first_covering(seen, host, key[1], methods)
            if earlier is not None and not (
                routes[earlier].methods == route.methods
                and (routes[earlier].host or "", _plain(routes[earlier].path)) == key
            ):
                yield index, earlier
                break
        seen.setdefault(key, []).append((index, methods))


def _first_covering(seen: _Seen, host: str, path: str, methods: frozenset[str]) -> int | None:
    while True:
        for index, earlier in seen.get((host, path), ()):
            if not earlier or (methods and methods <= earlier):
                return index
        if not path:
            return None
        path = path.rpartition("/")[0]


def _covering_hosts(host: str) -> list[str]:
    """The hosts that match whatever this one matches: itself, wildcards above it, any."""
    hosts = [host] if host else []
    rest = host.removeprefix("*.")
    if not host.startswith("["):
        while "." in rest:
            rest = rest.partition(".")[2]
            hosts.append("*." + rest)
    return [*hosts, ""]


def _plain(path: str) -> str:
    return path.rstrip("/")


def _covers(prefix: str, path: str) -> bool:
    return path == prefix or path.startswith(prefix + "/")
