"""The schema of `[upstream.NAME]` and the tables below it.

An upstream is an external API: where it is, how it is spoken to, what it allows, and what happens
to a request when it says no. Attribute names are the file's keys; the sentence beside each is the
one that the reference file and the JSON schema show.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from gateway.breaker.providers import PROVIDERS as DIALECTS
from gateway.conf.fields import (
    Address,
    Condition,
    CostField,
    Duration,
    FieldName,
    FieldValue,
    FilePath,
    Flag,
    Float,
    HostSent,
    Int,
    KeyField,
    Name,
    OriginField,
    RateField,
    Section,
    Size,
    Status,
    TimeZone,
    Unique,
    Via,
    Wait,
    derived,
    option,
    required,
)
from gateway.conf.units import RATE_COUNT_MAX

__all__ = [
    "PROVIDERS",
    "Breaker",
    "Headers",
    "LimitConf",
    "Provider",
    "Retry",
    "Timeout",
    "Upstream",
    "UpstreamSpool",
    "UpstreamTls",
    "WaitConf",
    "default_burst",
]

# The dialects that the gateway knows by name; "auto" goes by the upstream's host or its fields.
PROVIDERS = ("auto", *sorted(DIALECTS))

_LIMITS_MAX = 32  # every limit of an upstream is asked for every request (at most 3 us in all)


_ProviderName = Literal[PROVIDERS]  # type: ignore[valid-type]


class Timeout(Section):
    """How long each phase of an exchange may take."""

    head: Duration = option("10s", "From a request's first octet to the end of its head.")
    connect: Duration = option("3s", "Resolving the name and connecting, all addresses together.")
    tls: Duration = option("5s", "The TLS handshake with the upstream.")
    response: Duration = option("60s", "From the end of the request to the response's head.")
    body_idle: Duration = option("60s", "The longest silence inside a body, either way.")
    idle: Duration = option("55s", "How long an unused upstream connection is kept.")
    total: Duration = option("10m", "An exchange from first to last octet, waiting included.")
    tunnel: Duration = option("1h", "The longest silence of a CONNECT tunnel.")


class UpstreamTls(Section):
    """TLS towards the upstream."""

    ca: FilePath | None = option(None, "A PEM bundle to trust instead of the system's.")
    cert: FilePath | None = option(None, "The client certificate, PEM, with its chain.")
    key: FilePath | None = option(None, "The client certificate's key, PEM.")
    verify: Flag = option(True, "Whether the upstream's certificate and name are checked.")


class Headers(Section):
    """What is changed in a request's head on its way up."""

    set: dict[FieldName, FieldValue] = option(
        {}, "Fields that replace any of that name; a text or a secret."
    )
    add: dict[FieldName, FieldValue] = option({}, "Fields that are added to what is there.")
    remove: Annotated[tuple[FieldName, ...], Unique] = option((), "Fields that are taken out.")


class Provider(Section):
    """The dialect of an API's rate-limit fields, and what it leaves open."""

    name: _ProviderName = option("auto", "The API's dialect.")
    time_zone: TimeZone = option("UTC", "Where the API's day begins and ends.")
    retry_after_unit: Literal["s", "ms"] = option("s", "The unit of a bare number in Retry-After.")
    reset_unit: Literal["s", "ms"] = option("s", "The unit of a short number in a reset field.")
    preempt: Flag = option(
        False, "Whether a success that says remaining 0 pauses before the API refuses."
    )


def default_burst(data: dict[str, Any]) -> int:
    """A tenth of the rate's count, at least 1; 0 for a limit without a rate."""
    rate = data.get("rate")
    return max(1, rate.count // 10) if rate is not None else 0


def default_sync(data: dict[str, Any]) -> str:
    """Rates are kept together by the mesh; slots are split evenly, which never overshoots."""
    return "local" if data.get("in_flight") is not None else "mesh"


class LimitConf(Section):
    """One limit of an upstream; a request must pass them all, and takes from all or none."""

    name: Name = required("Names the limit in answers, logs and metrics.")
    rate: RateField | None = option(None, "How many tokens in what time; or else `in_flight`.")
    in_flight: Int | None = option(
        None, "How many requests at a time over all nodes, instead of `rate`.", ge=1, le=1_000_000
    )
    burst: Int = derived(
        default_burst,
        "Tokens that may be taken at once; any window w may see rate*w + burst.",
        ge=0,
        le=RATE_COUNT_MAX,
    )
    key: Annotated[tuple[KeyField, ...], Unique] = option(
        (), "A counter for each value of these parts; none: one for the upstream.", max_length=8
    )
    algorithm: Literal["smooth", "window"] = option(
        "smooth", "A leaky bucket, or a quota that comes back at the window's end."
    )
    align: Literal["first", "clock"] = option(
        "first", "Windows begin at a key's first use, or at wall-clock multiples of the period."
    )
    learn: Literal["off", "observe", "adopt"] = option(
        "observe", "What the API advertises as remaining: ignored, shown, or taken over if lower."
    )
    sync: Literal["mesh", "exact", "local", "redis"] = derived(
        default_sync, "How the nodes share the limit."
    )
    on_partition: Literal["share", "open", "closed"] = option(
        "share", "What a node that is cut off from the mesh may take: its part, all, or nothing."
    )
    cost: CostField = option(
        1, "Tokens that a request takes: a number, or the field that tells it."
    )
    keys_max: Int = option(
        20_000, "Counters kept; the least recently used go first.", ge=1, le=10_000_000
    )
    dry_run: Flag = option(False, "Whether the limit only counts and reports.")


class WaitConf(Section):
    """What happens to a request that no limit lets through now."""

    max: Wait = option("2s", "How long it may be held before 429; 0s refuses at once.")
    queue: Int = option(1000, "How many may wait on a node for this upstream.", ge=1, le=1_000_000)
    fair_by: KeyField = option("client", "The key part whose values take fair turns.")
    prefer: Flag = option(False, "Whether `Prefer: wait=N` may set the wait, up to `max`.")


class Breaker(Section):
    """When an upstream, or one credential, is left alone, and for how long."""

    throttle: Annotated[tuple[Status, ...], Unique] = option(
        (429,), "Statuses that pause, plus the provider's own."
    )
    scope: Literal["credential", "upstream"] = option("credential", "Whom a throttle pauses.")
    failure: Annotated[tuple[Condition, ...], Unique] = option(
        (500, 502, 503, 504, "connect", "timeout", "reset"), "What counts as a failure."
    )
    failure_ratio: Float = option(0.5, "The share of failures that opens it.", gt=0, le=1)
    failure_min: Int = option(20, "Fewer outcomes in the window never open it.", ge=1, le=1_000_000)
    window: Duration = option("10s", "The time over which outcomes are counted.")
    open: Duration = option(
        "5s", "The first pause where no time is told; each failed trial doubles it."
    )
    open_max: Duration = option("5m", "Where the doubling ends.")
    pause_max: Duration = option("1h", "The longest Retry-After that is believed.")
    ramp: Duration = option("10s", "After closing, the rate climbs back over this time.")


class Retry(Section):
    """What the gateway itself sends again."""

    on: Annotated[tuple[Condition, ...], Unique] = option(
        (), "Outcomes that are tried again; empty: only a stale connection's."
    )
    attempts: Int = option(2, "Sends in all; each takes tokens.", ge=1, le=10)
    budget: Float = option(0.2, "Retries are at most this share of the requests.", ge=0, le=1)
    body: Size = option("64KiB", "Kept for replay; a longer body is not retried.")
    methods: Literal["idempotent", "all"] = option(
        "idempotent", "Others too with `all`, if the request carries Idempotency-Key."
    )


class UpstreamSpool(Section):
    """Durable acceptance: `Prefer: respond-async` is answered 202 once the request is on disk."""

    ttl: Duration = option("10m", "What is older is dead and not sent.")
    attempts: Int = option(8, "Sends that reached the upstream and failed.", ge=1, le=1000)
    order_by: Annotated[tuple[KeyField, ...], Unique] = option(
        (), "One at a time and in order for each value of these key parts.", max_length=8
    )
    priority: Int = option(-1, "Beside live traffic, which has 0.", ge=-100, le=100)
    keep: Duration = option("1h", "How long a result can be fetched.")


def _provider_table(value: object) -> object:
    """A bare name is the short form of a table."""
    return {"name": value} if isinstance(value, str) else value


class Upstream(Section):
    """An external API."""

    origin: OriginField = required("Scheme, host and port; a path here is an error.")
    addresses: Annotated[tuple[Address, ...], Unique] = option(
        (), "Connect here instead of resolving; tried in turn.", max_length=64
    )
    host: HostSent = option(
        "origin", "The Host sent on: `origin`, `client` (as received), or a name."
    )
    timeout: Timeout = option(Timeout(), "How long each phase may take.")
    connections: Int = option(200, "Connections of one node to it.", ge=1, le=100_000)
    protocol: Literal["http/1.1", "h2"] = option("http/1.1", "The HTTP version spoken to it.")
    via: Via | None = option(None, "A chained proxy, http:// or socks5://.")
    tls: UpstreamTls = option(UpstreamTls(), "TLS towards it.")
    headers: Headers = option(Headers(), "What is changed in a request's head.")
    tunnel: Flag = option(
        False, "Whether CONNECT to it is allowed although limits cannot see inside."
    )
    provider: Annotated[
        Provider,
        BeforeValidator(_provider_table, json_schema_input_type=_ProviderName | Provider),
    ] = option(Provider(), "The dialect of its rate-limit fields, by name or as a table.")
    limit: tuple[LimitConf, ...] = option((), "What it allows.", max_length=_LIMITS_MAX)
    wait: WaitConf = option(WaitConf(), "What happens to a request that must wait.")
    breaker: Breaker = option(Breaker(), "When it is left alone.")
    retry: Retry = option(Retry(), "What is sent again.")
    spool: UpstreamSpool | None = option(None, "Durable acceptance; absent: none.")
