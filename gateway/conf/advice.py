"""What is allowed and probably not meant: the warnings of `egressd check`."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from gateway.conf.account import effective_burst
from gateway.conf.check_routes import shadowed_routes
from gateway.conf.schema import Conf, Spool
from gateway.conf.schema_upstream import LimitConf, Upstream
from gateway.conf.secret import Secret
from gateway.conf.units import duration_text

__all__ = ["warnings"]

_SHOWN_MAX = 20  # of one kind of warning about routes and targets; the rest is only counted


def warnings(conf: Conf, members: int) -> list[str]:
    """Sentences, each beginning with the key that it is about; `members` share the limits."""
    return [
        *_reach(conf),
        *_mesh(conf),
        *_spool(conf),
        *_upstreams(conf, members),
        *_routes(conf),
    ]


def _reach(conf: Conf) -> Iterator[str]:
    if not conf.upstream and not conf.forward.allow:
        yield "upstream: there is none, and forward.allow is empty: nothing can be reached"
    if not conf.forward.deny_private and conf.forward.allow:
        yield "forward.deny_private: false lets clients reach this network's own addresses"
    open_doors = [str(listen.bind) for listen in conf.listen if not listen.bind.is_loopback]
    anyone = any(target.wildcard and not target.host for target in conf.forward.allow)
    if anyone and conf.access.anonymous and open_doors:
        yield f"forward.allow: any host, for anyone who reaches {open_doors[0]}: an open proxy"
    yield from _mapped(conf)


def _mapped(conf: Conf) -> Iterator[str]:
    """Targets are compared as clients spell them, and nobody spells an IPv4 address like that."""
    count = 0
    for index, target in enumerate(conf.forward.allow):
        mapped = _ipv4_mapped(target.host)
        if mapped is None:
            continue
        count += 1
        if count <= _SHOWN_MAX:
            yield (
                f"forward.allow.{index}: {target} is an IPv4-mapped address, and clients do not "
                f'name it so; use "{mapped}:{target.port}"'
            )
    if count > _SHOWN_MAX:
        yield f"forward.allow: {count - _SHOWN_MAX} more are IPv4-mapped addresses"


def _ipv4_mapped(host: str) -> IPv4Address | None:
    try:
        return IPv6Address(host).ipv4_mapped
    except ValueError:
        return None


def _mesh(conf: Conf) -> Iterator[str]:
    mesh = conf.mesh
    if mesh is None:
        return
    if not mesh.join:
        yield "mesh.join: is empty; the node waits to be found by others"
    if mesh.bind.is_loopback:
        for index, address in enumerate(mesh.join):
            if not (address.host.startswith("127.") or address.host in ("::1", "localhost")):
                yield f"mesh.join.{index}: {address} cannot be reached from a loopback bind"


def _spool(conf: Conf) -> Iterator[str]:
    facts = conf.spool or Spool()
    has_one = any(upstream.spool is not None for upstream in conf.upstream.values())
    folder = Path(facts.path).parent
    if facts.kafka is not None:
        if not has_one:
            yield "spool.kafka: no upstream has a spool, so no record is read"
        yield from _kafka(conf)
    elif has_one and not folder.is_dir():
        # No fault: what makes it (`StateDirectory=`) may not have run where this is read.
        yield f"spool.path: there is no directory {folder} here; the start fails without it"


def _kafka(conf: Conf) -> Iterator[str]:
    """Requests whose record another upstream would take, or none."""
    seen: set[str] = set()
    for name, upstream in conf.upstream.items():
        origin = f"{upstream.origin.scheme}://{upstream.origin.authority}"
        if upstream.spool is not None and origin in seen:
            yield (
                f"upstream.{name}.spool: records for {origin} go to the upstream that has it"
                " first, so `Prefer: respond-async` gets 503 here"
            )
        elif upstream.spool is not None and upstream.host == "client":
            yield (
                f"upstream.{name}.host: a record has the origin's Host, so"
                " `Prefer: respond-async` gets 503 with any other"
            )
        seen.add(origin)


def _upstreams(conf: Conf, members: int) -> Iterator[str]:
    yield from _heads(conf)
    origins: dict[str, str] = {}
    for name, upstream in conf.upstream.items():
        first = origins.setdefault(str(upstream.origin), name)
        if first != name:
            yield (
                f"upstream.{name}.origin: is also {first}'s; in proxy form, without a route, "
                f"{first} is taken"
            )
        yield from _upstream(f"upstream.{name}", upstream)
        for limit in upstream.limit:
            yield from _limit(f"upstream.{name}.limit.{limit.name}", limit, members)


def _heads(conf: Conf) -> Iterator[str]:
    """A head is read before its upstream is known, so one time holds for all (`timeout.head`)."""
    heads = {name: upstream.timeout.head for name, upstream in conf.upstream.items()}
    longest = max(heads.values(), default=0)
    shorter = [name for name, head in heads.items() if head < longest]
    if not shorter:
        return
    name = next(name for name, head in heads.items() if head == longest)
    more = f" and {len(shorter) - 1} more" if len(shorter) > 1 else ""
    yield (
        f"upstream.{shorter[0]}.timeout.head: {duration_text(heads[shorter[0]])}{more} without "
        f"effect: a head is read before its upstream is known, so the longest is in effect for "
        f"all ({duration_text(longest)}, {name}'s)"
    )


def _upstream(key: str, upstream: Upstream) -> Iterator[str]:
    if not upstream.tls.verify:
        yield f"{key}.tls.verify: false: whoever answers for {upstream.origin.host} is believed"
    values = (*upstream.headers.set.values(), *upstream.headers.add.values())
    if upstream.origin.scheme == "http" and any(isinstance(value, Secret) for value in values):
        yield f"{key}.headers: a secret is sent in clear to {upstream.origin}"
    timeout = upstream.timeout
    for word in ("head", "connect", "tls", "response", "body_idle"):
        if getattr(timeout, word) > timeout.total:
            total = duration_text(timeout.total)
            yield f"{key}.timeout.{word}: is longer than timeout.total ({total}), which ends first"
    if upstream.wait.max >= timeout.total:
        yield f"{key}.wait.max: is not shorter than timeout.total, which ends first"
    if upstream.tunnel and upstream.limit:
        yield f"{key}.tunnel: requests inside a tunnel are seen by no limit"


def _limit(key: str, limit: LimitConf, members: int) -> Iterator[str]:
    if not limit.key and "keys_max" in limit.model_fields_set:
        yield f"{key}.keys_max: has no effect without `key`"
    if limit.rate is None:
        if limit.in_flight is not None and limit.sync == "local" and limit.in_flight < members:
            slots = limit.in_flight
            yield f"{key}.in_flight: {slots} cannot be split evenly over {members} members"
        return
    if limit.algorithm == "window" or limit.sync != "mesh" or members < 2:
        return
    if limit.burst < members:
        yield (
            f"{key}.burst: {limit.burst} is less than {members} members; "
            'sync = "exact" never goes over'
        )
    needed = effective_burst(limit.rate, limit.burst, members)
    if needed > limit.burst:
        yield (
            f"{key}.burst: {limit.burst} is too little to keep {limit.rate} over {members} members "
            f"without a round trip; {needed:.1f} is in effect"
        )


def _routes(conf: Conf) -> Iterator[str]:
    count = 0
    for index, earlier in shadowed_routes(conf.route):
        count += 1
        if count <= _SHOWN_MAX:
            yield f"route.{index}: can never match; route.{earlier} comes first and takes all of it"
    if count > _SHOWN_MAX:
        yield f"route: {count - _SHOWN_MAX} more routes can never match"
