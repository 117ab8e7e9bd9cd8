"""What no single key can tell: names that lead nowhere, addresses that collide, doors left open.

These checks run on a `Conf` whose keys are each right by themselves, so they speak of meaning
only. A fault stops the start (and a reload); what is merely unwise is a warning, see `advice`.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path as FilePath

from gateway.conf.check_routes import route_faults
from gateway.conf.check_upstream import upstream_faults
from gateway.conf.faults import Finding, Hints, Path
from gateway.conf.redis_url import parse_redis_url
from gateway.conf.schema import Conf, Kafka, Listen, Mesh, Redis, Spool
from gateway.conf.secret import Secret
from gateway.conf.units import size_text
from gateway.conf.values import Bind, HostPort

__all__ = ["faults"]

_HEAD_BYTES_MIN = 1 << 10  # below it ordinary requests with a cookie fail
_HEAD_BYTES_MAX = 1 << 20  # held for each connection while it comes in
_BODY_BYTES_MAX = 16 << 20  # held for each exchange that may be retried
_PORT_MAX = 65535
_STORE_NS_MIN = 1_000_000  # a loop that others use turns no faster
_STORE_NS_MAX = 1_000_000_000  # every request waits so long when the store is lost
# What brokers take as a topic's name (Kafka's `Topic.validate`); "." and ".." are none.
_is_topic = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,249}").fullmatch
_WORKER_NAME_MAX = 61  # a member's name has 64, and "/31" stands behind it


def faults(conf: Conf, declared_upstreams: Collection[str] = ()) -> list[Finding]:
    """All faults that span keys.

    `declared_upstreams` are names that exist in the file although their own faults keep them out
    of `conf`, so that one fault does not cause others.
    """
    upstreams = {*conf.upstream, *declared_upstreams}
    found = [
        *_listeners(conf),
        *_sockets(conf),
        *_clients(conf, upstreams),
        *_forward(conf),
        *route_faults(conf.route, upstreams),
        *_files(conf),
    ]
    if conf.node.workers != 1 and len(conf.node.name) > _WORKER_NAME_MAX:
        message = f"has more than {_WORKER_NAME_MAX} characters; workers add their number to it"
        found.append(Finding(("node", "name"), message))
    if conf.mesh is not None:
        found += _mesh(conf.mesh, conf.node.workers)
    if conf.admin is not None and conf.admin.token is None and not conf.admin.bind.is_loopback:
        message = "is missing; it is demanded where `bind` is not loopback or a unix socket"
        found.append(Finding(("admin", "token"), message))
    if conf.spool is not None and conf.spool.nodes and not (conf.mesh and conf.mesh.keys):
        message = "needs `mesh.keys`, with which nodes vouch for their clients"
        found.append(Finding(("spool", "nodes"), message))
    for name, upstream in conf.upstream.items():
        found += upstream_faults(name, upstream, conf)
        if upstream.retry.body > _BODY_BYTES_MAX:
            message = f"is more than {size_text(_BODY_BYTES_MAX)}, which each exchange may hold"
            found.append(Finding(("upstream", name, "retry", "body"), message))
    if conf.redis is not None:
        found += _redis(conf.redis)
    if conf.spool is not None and conf.spool.kafka is not None:
        found += _kafka(conf.spool, conf.spool.kafka)
    return found


def _kafka(spool: Spool, kafka: Kafka) -> Iterator[Finding]:
    for key in ("path", "records_max", "bytes_max", "nodes"):
        if key in spool.model_fields_set:
            yield Finding(("spool", "kafka"), f"stands instead of `{key}`; leave one out")
    for index, address in enumerate(kafka.bootstrap):
        if not _is_address(address):
            path: Path = ("spool", "kafka", "bootstrap", index)
            yield Finding(path, f"{address!r} is not HOST:PORT")
    topics: set[str] = set()
    for key in ("requests", "results", "dead"):
        topic = getattr(kafka, key)
        if _is_topic(topic) is None:
            message = f"{topic!r} is no topic's name; use up to 249 of A-Z, a-z, 0-9, . _ -"
            yield Finding(("spool", "kafka", key), message)
        elif topic in topics:
            message = f"{topic!r} is the name of two; what comes of a record is no request"
            yield Finding(("spool", "kafka", key), message)
        topics.add(topic)


def _is_address(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return bool(host) and port.isascii() and port.isdigit() and 1 <= int(port) <= _PORT_MAX


def _redis(redis: Redis) -> Iterator[Finding]:
    secret = isinstance(redis.url, Secret)
    try:
        url = parse_redis_url(redis.url.reveal() if isinstance(redis.url, Secret) else redis.url)
    except ValueError as error:
        yield Finding(("redis", "url"), str(error))
    else:
        if url.password and not secret:
            message = 'holds a password, which is never a literal; use { env = "NAME" } for it all'
            yield Finding(("redis", "url"), message)
    if not _STORE_NS_MIN <= redis.timeout <= _STORE_NS_MAX:
        message = "is no time to wait for a store on each request's way; use 1ms to 1s"
        yield Finding(("redis", "timeout"), message)


def _listeners(conf: Conf) -> Iterator[Finding]:
    if not conf.listen:
        yield Finding(("listen",), "is missing; at least one [[listen]] is needed")
    for index, listen in enumerate(conf.listen):
        if not _HEAD_BYTES_MIN <= listen.limits.head <= _HEAD_BYTES_MAX:
            low, high = size_text(_HEAD_BYTES_MIN), size_text(_HEAD_BYTES_MAX)
            path: Path = ("listen", index, "limits", "head")
            yield Finding(path, f"{size_text(listen.limits.head)} is not between {low} and {high}")
        if listen.proxy_protocol and listen.bind.kind == "unix":
            message = "can never be believed: who connects to a unix socket has no address"
            yield Finding(("listen", index, "proxy_protocol"), message)


def _sockets(conf: Conf) -> Iterator[Finding]:
    """Two sockets on one address: the second could not be opened."""
    binds: list[tuple[Path, Bind]] = [
        (("listen", index, "bind"), listen.bind) for index, listen in enumerate(conf.listen)
    ]
    if conf.admin is not None:
        binds.append((("admin", "bind"), conf.admin.bind))
    if conf.mesh is not None:
        at = conf.mesh.bind
        workers = conf.node.workers if isinstance(conf.node.workers, int) else 1
        for number in range(workers if at.kind == "tcp" else 1):
            binds.append((("mesh", "bind"), at._replace(port=at.port + number)))
    for position, (path, bind) in enumerate(binds):
        for earlier_path, earlier in binds[:position]:
            if _collide(bind, earlier):
                place = ".".join(map(str, earlier_path))
                yield Finding(path, f"{str(bind)!r} is taken by {place}, {str(earlier)!r}")
                break


def _collide(one: Bind, other: Bind) -> bool:
    if one.kind != "tcp" or other.kind != "tcp":
        return one == other
    if one.port != other.port or one.port == 0:
        return False
    same_family = (":" in one.host) == (":" in other.host)
    return one.host == other.host or (same_family and (one.is_wildcard or other.is_wildcard))


def _advertise(bind: Bind, advertise: HostPort) -> Iterator[Finding]:
    """Members send to `advertise` and are read at `bind`; a node heard from and never reached
    would keep limits of its own beside theirs."""
    if (":" in bind.host) != (":" in advertise.host):
        message = f"and bind ({bind.host}) must both be IPv4, or both IPv6"
        yield Finding(("mesh", "advertise"), message)
    elif bind.is_loopback and not Bind("tcp", advertise.host).is_loopback:
        message = f"is not reached: bind ({bind.host}) takes in what comes from this host only"
        yield Finding(("mesh", "advertise"), message)


def _mesh(mesh: Mesh, workers: int | str) -> Iterator[Finding]:
    if mesh.bind.kind != "tcp" or mesh.bind.port == 0:
        yield Finding(("mesh", "bind"), 'must be "HOST:PORT"; members find each other by the port')
        return
    if isinstance(workers, int):
        told = mesh.advertise.port if mesh.advertise is not None else 0
        for name, port in (("bind", mesh.bind.port), ("advertise", told)):
            if port + workers - 1 > _PORT_MAX:
                yield Finding(("mesh", name), f"port + workers - 1 is more than {_PORT_MAX}")
    if mesh.advertise is not None:
        yield from _advertise(mesh.bind, mesh.advertise)
    if mesh.bind.is_wildcard and mesh.advertise is None:
        message = "is missing; it is demanded with a wildcard `bind`: the node's own address"
        yield Finding(("mesh", "advertise"), message)
    if not mesh.keys and not mesh.bind.is_loopback:
        message = "is missing; without keys only a loopback `bind` is allowed"
        yield Finding(("mesh", "keys"), message)
    seen = set()
    for index, key in enumerate(mesh.keys):
        if key in seen:
            yield Finding(("mesh", "keys", index), "is the same key as one before it")
        seen.add(key)


def _clients(conf: Conf, upstreams: Collection[str]) -> Iterator[Finding]:
    hints = Hints(upstreams)
    names: set[str] = set()
    tokens = set()
    mutual_tls = any(listen.tls and listen.tls.client_ca for listen in conf.listen)
    for index, client in enumerate(conf.client):
        path: Path = ("client", index)
        if client.name == "anonymous":
            yield Finding((*path, "name"), '"anonymous" is who no [[client]] matches')
        elif client.name in names:
            yield Finding((*path, "name"), f"{client.name!r} names two clients")
        names.add(client.name)
        if not client.source and client.token is None and client.certificate is None:
            yield Finding(path, "needs one of `source`, `token`, `certificate` to be known by")
        if client.token is not None:
            if client.token in tokens:
                yield Finding((*path, "token"), "is another client's token as well")
            tokens.add(client.token)
        if client.certificate is not None and not mutual_tls:
            message = "can never be seen: no [[listen]] has tls.client_ca"
            yield Finding((*path, "certificate"), message)
        if "upstreams" in client.model_fields_set and not client.upstreams:
            yield Finding((*path, "upstreams"), "is empty; leave it out to allow all")
        for position, name in enumerate(client.upstreams):
            if name not in upstreams:
                message = f"there is no [upstream.{name}]{hints.text(name)}"
                yield Finding((*path, "upstreams", position), message)
    if not conf.access.anonymous and not conf.client:
        yield Finding(("access", "anonymous"), "false, and no [[client]]: nobody could ask")


def _forward(conf: Conf) -> Iterator[Finding]:
    for index, port in enumerate(conf.forward.connect_ports):
        if not 1 <= port <= _PORT_MAX:
            path: Path = ("forward", "connect_ports", index)
            yield Finding(path, f"{port} is no port; use 1 to {_PORT_MAX}")


def _files(conf: Conf) -> Iterator[Finding]:
    """Certificates and keys that are named must be there and be what they should."""
    named: list[tuple[Path, str | None]] = []
    for index, listen in enumerate(conf.listen):
        named += _listen_files(listen, ("listen", index, "tls"))
    for name, upstream in conf.upstream.items():
        path: Path = ("upstream", name, "tls")
        tls = upstream.tls
        named += [((*path, "ca"), tls.ca), ((*path, "cert"), tls.cert), ((*path, "key"), tls.key)]
    for path, file in named:
        if file is not None and not _readable(file):
            yield Finding(path, f"the file {file!r} does not exist or cannot be read")
    tables: list[tuple[Path, str | None, str | None, str | None, str]] = [
        (
            ("listen", index, "tls"),
            listen.tls.cert,
            listen.tls.key,
            listen.tls.client_ca,
            "client_ca",
        )
        for index, listen in enumerate(conf.listen)
        if listen.tls is not None
    ]
    for name, upstream in conf.upstream.items():
        own = upstream.tls
        tables.append((("upstream", name, "tls"), own.cert, own.key, own.ca, "ca"))
    for path, cert, key, authority, authority_key in tables:
        if all(file is None or _readable(file) for file in (cert, key, authority)):
            yield from _certificates(path, cert, key, authority, authority_key)


def _certificates(
    path: Path, cert: str | None, key: str | None, authority: str | None, authority_key: str
) -> Iterator[Finding]:
    """What the TLS library itself says of the files, at the key that names them."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if cert is not None and key is not None:
        try:
            # A key with a passphrase would ask at the terminal; nobody sits there.
            context.load_cert_chain(cert, key, password=lambda: "")
        except (OSError, ValueError) as error:
            yield Finding((*path, "cert"), f"with its key cannot be used: {_reason(error)}")
    if authority is not None:
        try:
            context.load_verify_locations(authority)
        except (OSError, ValueError) as error:
            yield Finding((*path, authority_key), f"cannot be used: {_reason(error)}")


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None)
    return str(reason).replace("_", " ").lower() if reason else str(error)


def _listen_files(listen: Listen, path: Path) -> Iterable[tuple[Path, str | None]]:
    tls = listen.tls
    if tls is None:
        return ()
    return (
        ((*path, "cert"), tls.cert),
        ((*path, "key"), tls.key),
        ((*path, "client_ca"), tls.client_ca),
    )


def _readable(file: str) -> bool:
    try:
        with FilePath(file).open("rb"):
            return FilePath(file).is_file()
    except (OSError, ValueError):
        return False
