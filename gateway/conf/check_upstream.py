"""What no single key of an upstream can tell: limits, breakers, headers that contradict."""

from __future__ import annotations

from collections.abc import Iterator

from gateway.conf.faults import Finding, Path
from gateway.conf.fields import Section
from gateway.conf.schema import Conf
from gateway.conf.schema_upstream import Breaker, Headers, LimitConf, Upstream
from gateway.conf.secret import Secret

__all__ = ["upstream_faults"]

# Fields whose value opens a door; a literal in the file would be a secret that everybody reads.
_SECRET_FIELDS = frozenset(
    ("authorization", "proxy-authorization", "x-api-key", "api-key", "cookie")
)
# Fields of one hop (RFC 9110 section 7.6.1), of the message's framing (RFC 9112 section 6), and
# those that the gateway itself answers for: to set them is to desynchronise or to lie.
_FRAMING_FIELDS = frozenset(
    (
        "connection",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "via",
    )
)
# A limit's figures travel in 32 bits (peers/PROTOCOL.md).
_MESH_COUNT_MAX = 0xFFFF_FFFF
_RATE_ONLY = ("burst", "algorithm", "align", "learn", "cost", "on_partition")


def upstream_faults(name: str, upstream: Upstream, conf: Conf) -> Iterator[Finding]:
    """The faults inside one upstream of `conf`."""
    path: Path = ("upstream", name)
    yield from _transport(upstream, path)
    yield from _headers(upstream.headers, (*path, "headers"))
    yield from _breaker(upstream.breaker, (*path, "breaker"))
    if upstream.retry.on and upstream.retry.attempts < 2:
        message = "1 is no retry; use 2 or more, or leave `on` empty"
        yield Finding((*path, "retry", "attempts"), message)
    names: set[str] = set()
    for index, limit in enumerate(upstream.limit):
        here = (*path, "limit", index)
        if limit.name in names:
            yield Finding((*here, "name"), f"{limit.name!r} names two limits of this upstream")
        names.add(limit.name)
        yield from _limit(limit, here)
        if limit.sync == "redis" and conf.redis is None:
            yield Finding((*here, "sync"), '"redis" needs a [redis] section')
        elif limit.sync == "redis" and conf.mesh is None:
            # The cluster's name keys what credentials and rows are called, the same on all nodes;
            # and each node alone would let the whole rate through while the store is gone.
            message = '"redis" needs a [mesh]: it decides while the store is gone'
            yield Finding((*here, "sync"), message)


def _transport(upstream: Upstream, path: Path) -> Iterator[Finding]:
    tls, plain = upstream.tls, upstream.origin.scheme == "http"
    if plain and tls.model_fields_set:
        yield Finding((*path, "tls"), "has no meaning for an http:// origin; leave it out")
    if (tls.cert is None) != (tls.key is None):
        missing = "key" if tls.key is None else "cert"
        yield Finding((*path, "tls"), f"{missing} is missing; cert and key belong together")
    if plain and upstream.protocol == "h2":
        yield Finding((*path, "protocol"), '"h2" needs an https:// origin')
    if upstream.addresses and upstream.via is not None:
        message = "a chained proxy connects by itself; leave `addresses` or `via` out"
        yield Finding((*path, "addresses"), message)


def _headers(headers: Headers, path: Path) -> Iterator[Finding]:
    removed = {name.lower() for name in headers.remove}
    for word, table in (("set", headers.set), ("add", headers.add)):
        seen: set[str] = set()
        for name, value in table.items():
            here, low = (*path, word, name), name.lower()
            if low in _FRAMING_FIELDS:
                yield Finding(here, "belongs to the gateway itself and cannot be set")
            elif low in _SECRET_FIELDS and not isinstance(value, Secret):
                yield Finding(
                    here,
                    'a secret is never a literal; use { env = "NAME" }, { file = "PATH" } '
                    'or { credential = "NAME" }',
                )
            if low in seen:
                yield Finding(here, "is there twice; names of fields have no case")
            seen.add(low)
            if low in removed:
                yield Finding(here, "is in `remove` as well; `set` alone replaces it")
    for index, name in enumerate(headers.remove):
        if name.lower() in _FRAMING_FIELDS:
            yield Finding((*path, "remove", index), f"{name!r} is the gateway's own business")


def _breaker(breaker: Breaker, path: Path) -> Iterator[Finding]:
    if breaker.open > breaker.open_max:
        yield Finding((*path, "open"), "is longer than `open_max`; the first pause is the shortest")
    both = [item for item in breaker.failure if item in breaker.throttle]
    if both:
        message = f"{both[0]} is in `throttle` as well; a throttle says that the API is healthy"
        yield Finding((*path, "failure"), message)


def _limit(limit: LimitConf, path: Path) -> Iterator[Finding]:
    if (limit.rate is None) == (limit.in_flight is None):
        yield Finding(path, "needs exactly one of `rate` and `in_flight`")
        return
    if limit.in_flight is not None:
        for word in _given(limit, _RATE_ONLY):
            yield Finding((*path, word), "has no meaning with `in_flight`; leave it out")
        if limit.sync in ("exact", "redis"):
            yield Finding((*path, "sync"), '`in_flight` is kept by "local" or "mesh"')
        return
    assert limit.rate is not None
    if limit.algorithm == "window":
        for word in _given(limit, ("burst",)):
            yield Finding((*path, word), 'has no meaning with algorithm = "window"; leave it out')
    else:
        for word in _given(limit, ("align",)):
            yield Finding((*path, word), 'needs algorithm = "window"')
        if limit.burst < 1:
            yield Finding((*path, "burst"), "0 would let nothing pass; use 1 or more")
    most = limit.rate.count if limit.algorithm == "window" else limit.burst
    if limit.cost.kind == "fixed" and limit.cost.tokens > max(most, 1):
        message = f"{limit.cost.tokens} tokens are never there at once; the most is {most}"
        yield Finding((*path, "cost"), message)
    if limit.sync != "local" and max(limit.rate.count, limit.burst) > _MESH_COUNT_MAX:
        yield Finding((*path, "rate"), f"the mesh counts tokens up to {_MESH_COUNT_MAX}")
    if limit.sync == "local" and "on_partition" in limit.model_fields_set:
        yield Finding((*path, "on_partition"), 'has no meaning with sync = "local"')


def _given(section: Section, words: tuple[str, ...]) -> list[str]:
    return [word for word in words if word in section.model_fields_set]
