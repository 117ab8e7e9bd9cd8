"""What the admin interface shows: a worker read once, as plain values.

Nothing here is asked for by a request. The rows of a limit and the credentials of a breaker are
looked at up to a bound, and what goes over all upstreams is written as steps, between which the
loop may turn: one upstream is read in about a millisecond at most, 10,000 are not. Durations are
milliseconds, `*_ns` are CLOCK_MONOTONIC and comparable between the processes of a host. No secret
and no credential is in it: a credential is the first 8 hexadecimal digits of its keyed hash.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from gateway.admin.tallies import tallies
from gateway.build import build_kind, egressd_version
from gateway.clock import MS, SECOND, monotonic_ns
from gateway.limits.peaks import WINDOWS
from gateway.limits.settled import unwrapped

if TYPE_CHECKING:
    from gateway.breaker.breaker import Breaker
    from gateway.breaker.table import BreakerTable
    from gateway.conf.schema import Conf
    from gateway.conf.schema_upstream import LimitConf
    from gateway.conf.units import Rate
    from gateway.limits.lessons import Lesson
    from gateway.limits.peaks import LimitPeaks
    from gateway.proxy.downstream import DownstreamProtocol
    from gateway.proxy.graph import Listener, Upstream, Worker
    from peers.core.node import Node

__all__ = [
    "Served",
    "SpoolDesk",
    "Steps",
    "breaker_figures",
    "limit_figures",
    "live_document",
    "member_figures",
    "mesh_stats",
    "node_document",
    "node_figures",
    "node_steps",
    "peer_figures",
    "pool_figures",
    "ready_document",
    "told_at_once",
]

T = TypeVar("T")
Steps = Generator[None, None, T]  # what is read bit by bit; its result is the last step's

ROWS_READ_MAX = 1000  # of an upstream's limits together, at some 0.4 us a row
CREDENTIALS_SHOWN_MAX = 100


class Watched(Protocol):
    """What is read of a `gateway.mesh` adapter."""

    def peaks(self, limit: object) -> LimitPeaks | None: ...
    def names(self) -> dict[bytes, str]: ...


class Served(Protocol):
    """What the admin interface reads of a `gateway.server.Server`."""

    @property
    def name(self) -> str: ...
    @property
    def conf(self) -> Conf: ...
    @property
    def worker(self) -> Worker: ...
    @property
    def mesh(self) -> Watched: ...
    @property
    def started_ns(self) -> int: ...
    @property
    def reloads(self) -> int: ...
    @property
    def reload_failures(self) -> int: ...
    @property
    def reload_success(self) -> bool: ...
    @property
    def listeners(self) -> Iterable[Listener]: ...
    @property
    def ready(self) -> bool: ...

    @property
    def operator(self) -> Operator: ...
    @property
    def spool(self) -> SpoolDesk | None: ...
    @property
    def reload_faults(self) -> list[str]: ...
    @property
    def recent(self) -> list[dict[str, Any]]: ...

    def connection_count(self) -> int: ...
    def task_count(self) -> int: ...
    def connections(self) -> Iterator[DownstreamProtocol]: ...
    async def reload(self) -> bool: ...


class SpoolDesk(Protocol):
    """What the admin interface asks of a `gateway.spool.desk.Desk`."""

    def figures(self) -> dict[str, Any]: ...
    async def listed(
        self, states: list[str], upstream: str, after: int, count: int
    ) -> list[dict[str, Any]]: ...
    async def shown(self, name: str) -> dict[str, Any] | None: ...
    async def requeue(self, name: str) -> bool: ...
    async def drop(self, name: str) -> bool: ...
    async def hold(self, upstream: str, *, held: bool) -> None: ...


class Operator(Protocol):
    """What the admin interface asks of a `gateway.operator.Operator`."""

    overridden: dict[tuple[str, str], LimitConf]

    def set_rate(self, upstream: str, limit: str, rate: Rate, burst: int | None) -> LimitConf: ...
    def reset_rate(self, upstream: str, limit: str) -> LimitConf: ...
    def drain(self, on: bool) -> None: ...
    def forget_member(self, name: str) -> bool: ...
    def members(self) -> list[dict[str, Any]]: ...
    def note(self, event: str, **facts: object) -> None: ...


def told_at_once(steps: Steps[T]) -> T:
    """The result of all steps, without a turn of the loop in between."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result


def live_document() -> dict[str, Any]:
    """That the event loop turns: whoever can answer is alive."""
    return {"live": True}


def ready_document(served: Served) -> tuple[int, dict[str, Any]]:
    """(200 or 503, why): whether new requests should be sent to this node."""
    if served.worker.draining:
        return 503, {"ready": False, "why": "draining"}
    if not served.ready:
        return 503, {"ready": False, "why": "starting"}
    node: Node | None = getattr(served.mesh, "node", None)
    if node is not None and node.cut_off:
        return 503, {"ready": False, "why": "members do not reach mesh.advertise"}
    return 200, {"ready": True, "why": "serving"}


def node_document(served: Served) -> dict[str, Any]:
    """Everything about the node, for the metrics and the demo."""
    return told_at_once(node_steps(served))


def node_steps(served: Served) -> Steps[dict[str, Any]]:
    """The same for `/api/v1/node`, a step for each upstream."""
    now_ns = monotonic_ns()
    worker = served.worker
    conf = served.conf
    stats = mesh_stats(served, now_ns)
    upstreams = {}
    for name, upstream in worker.runtime.upstreams.items():
        upstreams[name] = _upstream(upstream, conf.upstream[name].limit, served.mesh, now_ns)
        yield
    return {
        "node": node_figures(served, now_ns),
        "listeners": [
            {
                "name": listener.name,
                "connections": len(listener.connections),
                "connections_max": listener.connections_max,
            }
            for listener in served.listeners
        ],
        "upstreams": upstreams,
        "members": [member_figures(member) for member in stats.pop("members")],
        "mesh": _mesh(stats),
        "spool": served.spool.figures() if served.spool is not None else None,
        "redis": worker.store.document(),
        "counts": {**worker.counts, "access_log_dropped": worker.ring_dropped},
    }


def node_figures(served: Served, now_ns: int) -> dict[str, Any]:
    """The process itself."""
    worker = served.worker
    return {
        "name": served.conf.node.name,
        "version": egressd_version(),
        "build": build_kind(),
        "uptime_s": round((now_ns - served.started_ns) / SECOND, 3),
        "now_ns": now_ns,
        "generation": worker.runtime.generation,
        "reloads": served.reloads,
        "reload_failures": served.reload_failures,
        "reload_success": served.reload_success,
        "codec": worker.codec.name,
        "connections": served.connection_count(),
        "tasks": served.task_count(),
        "draining": worker.draining,
        "ready": ready_document(served)[1]["ready"],
    }


def mesh_stats(served: Served, now_ns: int) -> dict[str, Any]:
    """What the mesh's node tells of itself; no members where this node stands alone."""
    node = getattr(served.mesh, "node", None)
    stats: dict[str, Any] = node.stats(now_ns) if node is not None else {"members": []}
    return stats


def _upstream(
    upstream: Upstream, limits: Iterable[LimitConf], mesh: Watched, now_ns: int
) -> dict[str, Any]:
    counts = upstream.counts
    breakers: BreakerTable = upstream.breakers
    return {
        "requests": counts.requests,
        "admitted": counts.admitted,
        "waited": counts.waited,
        "wait_s": round(counts.wait.sum_ns / SECOND, 6),
        "refused": counts.refused,
        "paused": counts.paused,
        "pauses": counts.pauses,
        "failed": counts.failed,
        "aborted": counts.aborted,
        "retried": counts.retried,
        "throttled": counts.throttled,
        "trials": counts.trials,
        "slow_head_ms": round(counts.slow_head_ns / MS, 3),
        "responses": {f"{digit}xx": counts.responses[digit] for digit in range(1, 6)},
        "waiting": upstream.queue_budget.used,
        "pool": pool_figures(upstream),
        "breaker": breaker_figures(breakers.shown, now_ns),
        "credential_breakers": [
            {"credential": key.hex()[:8], **breaker_figures(breaker, now_ns)}
            for key, breaker in islice(breakers.credentials(), CREDENTIALS_SHOWN_MAX)
        ],
        "rate_factor": round(breakers.ramp.factor(now_ns), 4),
        "provider": upstream.profile.name,
        "preempted": counts.preempted,
        "throttle_scopes": dict(counts.scopes),
        **tallies(upstream, now_ns),
        "limits": limit_figures(upstream, list(limits), mesh, now_ns),
    }


def pool_figures(upstream: Upstream) -> dict[str, Any]:
    """The connections to an upstream; `open` counts idle and busy ones, `in_use` exchanges."""
    pool = upstream.pool
    return {
        "idle": pool.idle_count,
        "open": pool.open_count,
        "dialling": pool.dialling_count,
        "in_use": upstream.slots.used,
    }


def member_figures(stats: dict[str, Any]) -> dict[str, Any]:
    """One member, this node itself among them; null where nothing was measured or heard.

    `loss` is the share of datagrams lost one way, from the last 32 probes or so. What was received
    counts from the member's start, what was sent from ours. `heard_from` is where it is heard from,
    if that is not where it advertises to be and it does not answer there.
    """
    staleness_ns = stats["staleness_ns"]
    return {
        "name": stats["name"],
        "self": stats["self"],
        "state": stats["state"],
        "address": _authority(stats["address"]),
        "heard_from": _authority(stats["heard_from"]) if stats["heard_from"] else None,
        "rtt_ms": round(stats["rtt_ns"] / MS, 3) if stats["rtt_ns"] else None,
        "heard_ms": round(staleness_ns / MS, 3) if staleness_ns is not None else None,
        "loss": round(stats["loss"], 4) if stats["rtt_ns"] else None,
        "datagrams_received": stats["received"],
        "bytes_received": stats["received_bytes"],
        "datagrams_sent": stats["sent"],
        "bytes_sent": stats["sent_bytes"],
    }


def _authority(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _mesh(stats: dict[str, Any]) -> dict[str, Any]:
    """The mesh's own figures; a limit's identity is joined by NUL, which reads badly."""
    limits = stats.pop("limits", {})
    named = {identity.replace("\0", "/"): figures for identity, figures in limits.items()}
    return {**stats, "limits": named}


def breaker_figures(breaker: Breaker, now_ns: int) -> dict[str, Any]:
    """One breaker; `forced` is the operator's word, null where the machine decides."""
    remaining_ns = max(0, breaker.until_ns - now_ns)
    return {
        "state": breaker.state.name.lower(),
        "cause": breaker.cause.name.lower(),
        "forced": breaker.forced.name.lower() if breaker.forced is not None else None,
        "epoch": breaker.epoch,
        "remaining_ms": -(-remaining_ns // MS),
        "opened_ns": breaker.opened_ns,
        "closed_ns": breaker.closed_ns,
    }


def limit_figures(
    upstream: Upstream, confs: list[LimitConf], mesh: Watched, now_ns: int
) -> list[dict[str, Any]]:
    """The configured limits in the file's order; the connections' in-flight limit comes last."""
    limit_set = upstream.limit_set
    lessons = upstream.lessons.by_limit
    documents = []
    for index, limit in enumerate(limit_set.limits):
        conf = confs[index] if index < len(confs) else None
        document: dict[str, Any] = {
            "name": limit.name,
            "sync": conf.sync if conf is not None else "local",
            "algorithm": (
                conf.algorithm if conf is not None and conf.rate is not None else "in_flight"
            ),
            "rate": str(conf.rate) if conf is not None and conf.rate is not None else None,
            "burst": conf.burst if conf is not None else 0,
            "quota": limit_set.rules[index].quota,
            "dry_run": limit.dry_run,
            "refused": limit_set.refused[index],
            "would_refuse": limit_set.would_refuse[index],
        }
        document.update(_rows(limit, ROWS_READ_MAX // len(limit_set.limits), now_ns))
        document["windows"] = _windows(mesh.peaks(unwrapped(limit)))
        document["advertised"] = _advertised(lessons.get(index), now_ns)
        documents.append(document)
    return documents


def peer_figures(upstream: Upstream, mesh: Watched) -> dict[str, dict[str, int]]:
    """By limit the tokens that each peer took, by its name; empty where nodes do not tell.

    It is of as many rows as `limit_figures` reads.
    """
    names = mesh.names()
    limits = upstream.limit_set.limits
    return {limit.name: _peers(limit, ROWS_READ_MAX // len(limits), names) for limit in limits}


def _peers(limit: Any, rows_max: int, names: dict[bytes, str]) -> dict[str, int]:
    taken: dict[str, int] = {}
    limit = unwrapped(limit)
    if not names or not hasattr(limit, "rows"):
        return taken
    for row in islice(limit.rows(), rows_max):
        for node, share in getattr(row, "peers", {}).items():
            name = names.get(node)
            count: int | None = getattr(share, "count", None)  # None: slots, which are not summed
            if name is not None and count is not None:
                taken[name] = taken.get(name, 0) + count
    return taken


def _advertised(lesson: Lesson | None, now_ns: int) -> dict[str, Any] | None:
    """What the upstream told last of any row; None where it was not listened to, or said nothing.

    `free` is what the node's own count had left of that row when it was told.
    """
    newest = lesson.newest if lesson is not None else None
    if lesson is None or newest is None:
        return None
    reset_ns = newest.reset_ns
    return {
        "limit": newest.quota,
        "remaining": newest.remaining,
        "reset_s": round(reset_ns / SECOND, 3) if reset_ns is not None else None,
        "age_s": round((now_ns - newest.heard_ns) / SECOND, 3),
        "free": newest.free,
        "rows": len(lesson),
        "told": lesson.told,
        "adopted": lesson.adopted,
    }


def _rows(limit: Any, rows_max: int, now_ns: int) -> dict[str, Any]:
    """The rows of a limit, whatever its kind, summed up over at most `rows_max` of them.

    Mesh rows count their own admissions and know those of their peers; the node's own kinds count
    what they took. `level` is the fullest row's. `excess_bound` is how far all nodes together may
    go over rate * w + burst (0: not at all), `differs` that members were told different figures.
    """
    limit = unwrapped(limit)
    own = mesh = rows_read = 0
    level = 0.0
    rows = limit.rows() if hasattr(limit, "rows") else iter(limit)
    for row in islice(rows, rows_max):
        rows_read += 1
        if hasattr(row, "peers"):  # a mesh-wide row
            own += row.own
            mesh += row.mesh_count
        else:
            own += row.taken
            mesh += row.taken
        if hasattr(row, "level"):
            level = max(level, row.level(now_ns))
        elif now_ns < getattr(row, "end_ns", now_ns + 1):  # slots held, or a window under way
            level = max(level, float(row.used))
    shared: dict[str, Any] = limit.stats() if hasattr(limit, "stats") else {}
    return {
        "rows": len(limit),
        "rows_read": rows_read,
        "admitted_own": own,
        "admitted_mesh": mesh,
        "level": round(level, 3),
        "evicted": limit.evicted,
        "started_full": getattr(limit, "started_full", 0),
        "tight": shared.get("tight", False),
        "differs": shared.get("differs", False),
        "excess_bound": round(shared.get("excess_bound", 0.0), 3),
        "rate_in_force": _rate_in_force(limit),
        # Of slots that the whole mesh shares it is this node's part.
        "slots_in_force": limit.slots_here()
        if hasattr(limit, "slots_here")
        else getattr(limit, "slots", None),
    }


def _windows(peaks: LimitPeaks | None) -> dict[str, dict[str, float]]:
    """Of a mesh-wide limit, for windows of 1 s and 10 s, as known here since its figures came into
    force: `tokens` that all nodes took in the present one (of the fullest row), `peak` of the
    fullest ever as a share of rate * w + burst, and the most tokens `over` that."""
    if peaks is None:
        return {}
    return {
        name: {
            "tokens": worst.tokens,
            "peak": round(worst.ratio, 4),
            "over": round(worst.over, 3),
        }
        for (name, _), worst in zip(WINDOWS, peaks.worst(), strict=True)
    }


def _rate_in_force(limit: Any) -> float | None:
    """Tokens a second now: after a throttle, or while members differ, less than configured."""
    per_ns = getattr(limit, "rate", None) or getattr(limit, "tokens_per_ns", None)
    return round(per_ns * SECOND, 3) if per_ns is not None else None
