"""The schema of a node's configuration file: every key, its type, its default, one sentence.

Attribute names are the file's keys. Durations are whole nanoseconds, sizes whole octets, rates
`Rate`, addresses the types of `values`. A `Conf` is frozen: a reload makes a new one. What spans
several sections is judged in `check`.
"""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

from gateway.conf.fields import (
    Advertise,
    BindField,
    Duration,
    FilePath,
    Flag,
    Float,
    HostField,
    Int,
    Join,
    LogPath,
    MethodName,
    Name,
    NetworkField,
    NodeName,
    OriginField,
    Prefix,
    SealingKeyField,
    SecretField,
    SecretOrText,
    Section,
    Size,
    Target,
    Text,
    Unique,
    Wait,
    Workers,
    derived,
    option,
    required,
)
from gateway.conf.schema_upstream import Upstream

__all__ = [
    "Access",
    "Admin",
    "Client",
    "Conf",
    "Forward",
    "Kafka",
    "Listen",
    "ListenLimits",
    "ListenTls",
    "Log",
    "Mesh",
    "Node",
    "Redis",
    "Route",
    "Spool",
    "json_schema",
]


def _host_name() -> str:
    return os.uname().nodename


class Node(Section):
    """The process itself."""

    name: NodeName = derived(
        _host_name, "Two members of one name refuse to join; default: the host's name."
    )
    workers: Workers = option(1, "Processes, each a member of the mesh; `auto`: one a core.")
    codec: Literal["auto", "httptools", "h11"] = option("auto", "Who tokenizes HTTP/1.1.")
    drain: Duration = option("30s", "How long SIGTERM lets exchanges finish.")
    grace: Wait = option(
        "0s", "How long newcomers are still served after SIGTERM, while `/ready` says no."
    )


class ListenTls(Section):
    """TLS towards clients."""

    cert: FilePath = required("The certificate with its chain, PEM.")
    key: FilePath = required("The certificate's key, PEM.")
    client_ca: FilePath | None = option(
        None, "A PEM bundle; clients must show a certificate signed by it."
    )


class ListenLimits(Section):
    """What one listener takes on."""

    head: Size = option("32KiB", "The longest head of a request.")
    headers: Int = option(100, "Fields in a head.", ge=1, le=10_000)
    connections: Int = option(10_000, "Client connections at a time.", ge=1, le=1_000_000)
    pipelined: Int = option(
        16, "Requests that a client may send ahead on a connection.", ge=1, le=1000
    )


class Listen(Section):
    """Where clients come in."""

    bind: BindField = required(
        '"HOST:PORT", "[::]:PORT", "unix:PATH" or "systemd:NAME" (an inherited socket).'
    )
    tls: ListenTls | None = option(None, "TLS towards clients; absent: none.")
    proxy_protocol: Annotated[tuple[NetworkField, ...], Unique] = option(
        (), "PROXY v1/v2 is believed from these sources only.", max_length=256
    )
    limits: ListenLimits = option(ListenLimits(), "What this listener takes on.")


class Mesh(Section):
    """The other nodes."""

    cluster: Name = option("egressd", "Keys the counters' names on the wire; no secret.")
    bind: BindField = option("0.0.0.0:7946", "UDP, and TCP for snapshots.")
    advertise: Advertise | None = option(
        None, "The node's own address for others; demanded with a wildcard bind."
    )
    join: Annotated[tuple[Join, ...], Unique] = option(
        (),
        'Members to find: "HOST:PORT", or "dns:NAME:PORT" for all addresses of a name.',
        max_length=256,
    )
    keys: tuple[SealingKeyField, ...] = option(
        (), "32 octets each, hex or base64; the first seals, all open.", max_length=8
    )


class Admin(Section):
    """The admin interface; absent: none."""

    bind: BindField = option("127.0.0.1:9901", '"HOST:PORT", "unix:PATH" or "systemd:NAME".')
    token: SecretField | None = option(
        None, "Demanded of callers; needed where the bind is not loopback or a unix socket."
    )


class Log(Section):
    """What is written down."""

    level: Literal["debug", "info", "warning", "error"] = option(
        "info", "The least grave message that is logged."
    )
    access: LogPath = option(
        "stdout", '"off", "stdout", or a path, which is opened again on SIGUSR1.'
    )
    access_sample: Float = option(
        1.0,
        "The share of exchanges that went well that is written down; all others always are.",
        ge=0,
        le=1,
    )
    format: Literal["json", "text"] = option("json", "One JSON object a line, or HAProxy's manner.")


class Route(Section):
    """Gateway form: which request goes to which upstream; the first match in file order wins."""

    host: HostField | None = option(
        None, 'An exact host without port, or "*.internal"; absent: any.'
    )
    path: Prefix = option("/", "A prefix of whole segments, compared undecoded.")
    methods: Annotated[tuple[MethodName, ...], Unique] = option(
        (), "The methods that it is for; empty: all.", max_length=32
    )
    strip: Prefix | None = option(None, "The part of `path` that is not sent on.")
    upstream: Name = required("Where the request goes.")


class Forward(Section):
    """Proxy form: targets that may be reached although they are no upstream's origin."""

    allow: Annotated[tuple[Target, ...], Unique] = option(
        (), '"HOST:PORT", "*.HOST:PORT" or "*:PORT"; default: none.', max_length=10_000
    )
    deny_private: Flag = option(
        True, "Whether targets that resolve to loopback, private or metadata addresses are refused."
    )
    connect_ports: Annotated[tuple[Int, ...], Unique] = option(
        (443,), "The ports that CONNECT may ask for.", max_length=256
    )


class Client(Section):
    """Who is asking; the first match wins, otherwise the client is "anonymous"."""

    name: Name = required("Names the client in keys, logs and metrics.")
    source: Annotated[tuple[NetworkField, ...], Unique] = option(
        (), "Networks that it comes from.", max_length=1024
    )
    token: SecretField | None = option(
        None, "What it shows in Proxy-Authorization: Basic with its name as the user, or Bearer."
    )
    certificate: Text | None = option(None, "The name in its certificate, with mutual TLS.")
    weight: Int = option(1, "Its share in a fair queue.", ge=1, le=1000)
    priority: Int = option(0, "Higher goes first.", ge=-100, le=100)
    upstreams: Annotated[tuple[Name, ...], Unique] = option(
        (), "What it may reach; empty: all.", max_length=10_000
    )


class Access(Section):
    """Who may ask at all."""

    anonymous: Flag = option(True, "False: an unknown client gets 407.")


class Kafka(Section):
    """The cluster's spool."""

    bootstrap: Annotated[tuple[Text, ...], Unique] = required(
        '"HOST:PORT" of some brokers.', min_length=1, max_length=64
    )
    requests: Text = option(
        "egress", "The topic of requests: JSON as in egressd.kafka.schema.json."
    )
    results: Text = option("egress-results", "The topic of results.")
    dead: Text = option("egress-dead", "The topic of requests that were given up.")
    group: Text = option("egressd", "The consumer group of the nodes.")


class Spool(Section):
    """Where durably accepted requests are kept; absent: SQLite at the default path."""

    path: FilePath = option("/var/lib/egressd/spool.db", "The SQLite file.")
    records_max: Int = option(
        100_000, "Requests that may wait to be sent, for each worker.", ge=1, le=1_000_000
    )
    bytes_max: Size = option("10GiB", "What the file may grow to; then 507.")
    nodes: dict[NodeName, OriginField] = option(
        {}, "Where other nodes listen, by name: they are asked for what they keep.", max_length=256
    )
    kafka: Kafka | None = option(
        None, "Topics of a Kafka cluster, instead of the file and its keys."
    )


class Redis(Section):
    """The store behind limits with `sync = "redis"`."""

    url: SecretOrText = required("redis:// or rediss://; with a password it is a secret.")
    timeout: Duration = option("20ms", "After it the limit falls back to the mesh.")


class Conf(Section):
    """A node, completely."""

    include: Annotated[tuple[Text, ...], Unique] = option(
        (), "Patterns of files that are merged in, in name order.", max_length=100
    )
    node: Node = derived(Node, "The process itself.")
    listen: tuple[Listen, ...] = option((), "Where clients come in.", max_length=256)
    mesh: Mesh | None = option(None, "The other nodes; absent: the node stands alone.")
    admin: Admin | None = option(None, "The admin interface; absent: none.")
    log: Log = option(Log(), "What is written down.")
    upstream: dict[Name, Upstream] = option({}, "External APIs, by name.", max_length=10_000)
    route: tuple[Route, ...] = option((), "Gateway form: where requests go.", max_length=100_000)
    forward: Forward = option(Forward(), "Proxy form: other targets.")
    client: tuple[Client, ...] = option((), "Who is asking.", max_length=10_000)
    access: Access = option(Access(), "Who may ask at all.")
    spool: Spool | None = option(None, "Where durably accepted requests are kept.")
    redis: Redis | None = option(None, 'The store behind limits with `sync = "redis"`.')


def json_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of the file as an operator writes it, for editors."""
    schema = _without_null(Conf.model_json_schema(mode="validation"))
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "egressd configuration",
        **{name: value for name, value in schema.items() if name != "title"},
    }


def _without_null(node: Any) -> Any:
    """TOML has no null and an absent table is not a table of defaults: both are taken out."""
    if isinstance(node, list):
        return [_without_null(item) for item in node]
    if not isinstance(node, dict):
        return node
    result = {
        name: _without_null(value)
        for name, value in node.items()
        if not (name == "title" and isinstance(value, str))  # a key's name again, in capitals
    }
    if result.get("default", 0) is None or isinstance(result.get("default"), dict):
        del result["default"]
    if "patternProperties" in result:
        result.setdefault("additionalProperties", False)
    choices = result.get("anyOf")
    if isinstance(choices, list) and {"type": "null"} in choices:
        rest = [choice for choice in choices if choice != {"type": "null"}]
        del result["anyOf"]
        result = {**(rest[0] if len(rest) == 1 else {"anyOf": rest}), **result}
    return result
