"""The Prometheus exposition: the node's document again, as metrics with base units.

A custom collector reads the same document as `/api/v1/node` at each scrape, so no metric can differ
from what the interface shows and nothing is counted twice. The registry is the worker's own, not
the process-wide one. Labels are bounded: names of upstreams and limits come from the file, reasons
from tables in the source, members from a mesh of bounded size; no client, key or path is a label.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.admin.process import process_metrics
from gateway.admin.spooled import spool_metrics
from gateway.admin.tallies import tally_metrics
from gateway.admin.views import node_document
from gateway.clock import SECOND

if TYPE_CHECKING:
    from gateway.admin.views import Served

__all__ = ["CONTENT_TYPE", "NodeMetrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# (document's key, metric, help) of an upstream's counters.
_UPSTREAM_COUNTERS = (
    ("requests", "egressd_requests", "Requests routed to the upstream."),
    ("admitted", "egressd_admitted", "Requests that all limits let through."),
    ("waited", "egressd_waits", "Requests that were held and then let through."),
    ("failed", "egressd_failures", "Requests that failed at or on the way to the upstream."),
    ("aborted", "egressd_aborts", "Requests whose client left."),
    ("preempted", "egressd_preemptive_pauses", "Pauses before a refusal (provider.preempt)."),
    ("pauses", "egressd_pauses", "Pauses and openings of the upstream's breakers."),
    ("trials", "egressd_trials", "Requests that went as the trial of a half-open breaker."),
)
_REDIS_COUNTERS = (
    ("calls", "egressd_redis_calls", "Questions that requests sent to the store."),
    ("answers", "egressd_redis_answers", "Answers to them that came in time."),
    (
        "charges",
        "egressd_redis_charges",
        "Costs that a response told, passed on to the store; 0 without such limits.",
    ),
    ("falls", "egressd_redis_falls", "Times that limits fell back from the store to the mesh."),
    ("failed_over", "egressd_redis_failovers", "Questions that the mesh decided instead."),
    ("scripts_sent", "egressd_redis_scripts_sent", "Times that the store had lost the script."),
)
_BREAKER_STATES = ("closed", "open", "half_open")
# (metric, help, type) of `Server`'s own figures.
_COUNT_PREFIXES = (
    # Counted under names with the reason at the end: one metric with a label.
    ("bad_requests_", "egressd_bad_requests", "Requests refused before routing.", "reason"),
    (
        "addresses_denied_",
        "egressd_addresses_denied",
        "Addresses of `[forward]` targets that were not connected to.",
        "class",
    ),
)


class NodeMetrics(Collector):
    """Collects a worker's figures at each scrape."""

    def __init__(self, served: Served, document: dict[str, Any] | None = None) -> None:
        """`document` is what `node_document` gives, where it has been read already."""
        self._served = served
        self._document = document
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def text(self) -> bytes:
        """The exposition in CONTENT_TYPE."""
        return generate_latest(self._registry)

    def describe(self) -> list[Metric]:
        """Empty: the registry must not read the worker before it has started."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All metric families, from one reading."""
        document = self._document or node_document(self._served)
        yield from _node(document)
        upstreams = document["upstreams"]
        yield from _traffic(upstreams)
        yield from tally_metrics(upstreams)
        yield from _breakers(upstreams)
        yield from _limits(upstreams)
        yield from _mesh(document)
        yield from spool_metrics(document["spool"])
        yield from _redis(document["redis"])
        yield from _counts(document["counts"])
        yield from process_metrics(document["node"]["uptime_s"])


def _node(document: dict[str, Any]) -> Iterator[Metric]:
    node = document["node"]
    build = GaugeMetricFamily(
        "egressd_build_info", "The build; always 1.", labels=("version", "codec", "build")
    )
    build.add_metric((node["version"], node["codec"], node["build"]), 1)
    yield build
    yield _gauge("egressd_uptime_seconds", "Time since the worker was made.", node["uptime_s"])
    yield _gauge("egressd_ready", "1 while new requests are welcome.", node["ready"])
    yield _gauge("egressd_connections", "Client connections that are open.", node["connections"])
    yield _gauge(
        "egressd_config_reload_success",
        "1 if the last reload was taken over, or there was none.",
        node["reload_success"],
    )
    yield _gauge(
        "egressd_config_generation", "Which configuration is in force.", node["generation"]
    )
    yield _counter("egressd_config_reloads", "Reloads that were taken over.", node["reloads"])
    yield _counter(
        "egressd_config_reload_failures", "Reloads that were refused.", node["reload_failures"]
    )
    listeners = GaugeMetricFamily(
        "egressd_listener_connections",
        "Client connections by the listener that they came in by.",
        labels=("listener",),
    )
    for listener in document["listeners"]:
        listeners.add_metric((listener["name"],), listener["connections"])
    yield listeners


def _gauge(name: str, text: str, value: float) -> Metric:
    family = GaugeMetricFamily(name, text)
    family.add_metric((), float(value))
    return family


def _counter(name: str, text: str, value: float) -> Metric:
    family = CounterMetricFamily(name, text)
    family.add_metric((), float(value))
    return family


def _traffic(upstreams: dict[str, Any]) -> Iterator[Metric]:
    for key, name, text in _UPSTREAM_COUNTERS:
        counter = CounterMetricFamily(name, text, labels=("upstream",))
        for upstream, figures in upstreams.items():
            counter.add_metric((upstream,), figures[key])
        yield counter
    responses = CounterMetricFamily(
        "egressd_responses", "Answers of the upstream by class.", labels=("upstream", "class")
    )
    refusals = CounterMetricFamily(
        "egressd_refusals", "Requests that the gateway refused.", labels=("upstream", "reason")
    )
    waiting = GaugeMetricFamily("egressd_waiting", "Requests held now.", labels=("upstream",))
    pool = GaugeMetricFamily(
        "egressd_upstream_connections",
        "Connections to the upstream: idle, busy with an exchange, or being dialled.",
        labels=("upstream", "state"),
    )
    for upstream, figures in upstreams.items():
        for status_class, count in figures["responses"].items():
            responses.add_metric((upstream, status_class), count)
        refusals.add_metric((upstream, "limit"), figures["refused"])
        refusals.add_metric((upstream, "breaker"), figures["paused"])
        waiting.add_metric((upstream,), figures["waiting"])
        held = figures["pool"]
        pool.add_metric((upstream, "idle"), held["idle"])
        pool.add_metric((upstream, "busy"), held["open"] - held["idle"])
        pool.add_metric((upstream, "dialling"), held["dialling"])
    yield from (responses, refusals, waiting, pool)


def _breakers(upstreams: dict[str, Any]) -> Iterator[Metric]:
    states = GaugeMetricFamily(
        "egressd_breaker_state",
        "1 for the state that the upstream's breaker is in.",
        labels=("upstream", "state"),
    )
    remaining = GaugeMetricFamily(
        "egressd_breaker_remaining_seconds", "Until its pause ends.", labels=("upstream",)
    )
    credentials = GaugeMetricFamily(
        "egressd_credentials_paused",
        "Credentials with a breaker that is not closed, of those looked at.",
        labels=("upstream",),
    )
    epochs = CounterMetricFamily(
        "egressd_breaker_epochs",
        "Closings and re-openings of the upstream's breaker.",
        labels=("upstream",),
    )
    factor = GaugeMetricFamily(
        "egressd_rate_ratio",
        "Share of the configured rates in force; below 1 while climbing after a throttle.",
        labels=("upstream",),
    )
    scopes = CounterMetricFamily(
        "egressd_throttle_scopes",
        "Throttles by what the upstream said that they concern; 32 names, then `other`.",
        labels=("upstream", "scope"),
    )
    for upstream, figures in upstreams.items():
        breaker = figures["breaker"]
        for scope, count in figures["throttle_scopes"].items():
            scopes.add_metric((upstream, scope), count)
        factor.add_metric((upstream,), figures["rate_factor"])
        for state in _BREAKER_STATES:
            states.add_metric((upstream, state), float(state == breaker["state"]))
        remaining.add_metric((upstream,), breaker["remaining_ms"] / 1000)
        paused = [one for one in figures["credential_breakers"] if one["state"] != "closed"]
        credentials.add_metric((upstream,), len(paused))
        epochs.add_metric((upstream,), breaker["epoch"])
    yield from (states, remaining, credentials, epochs, factor, scopes)


def _limits(upstreams: dict[str, Any]) -> Iterator[Metric]:
    labels = ("upstream", "limit")
    # A gauge, not a counter: rows that are thrown out take their part of the sum with them.
    taken = GaugeMetricFamily(
        "egressd_limit_tokens",
        "Tokens taken from the rows that are kept: by this node, and by all as it knows.",
        labels=(*labels, "by"),
    )
    rate = GaugeMetricFamily("egressd_limit_rate_tokens_per_second", "In force now.", labels=labels)
    excess = GaugeMetricFamily(
        "egressd_limit_excess_tokens",
        "How far all nodes together may go over rate * w + burst in any window w.",
        labels=labels,
    )
    differs = GaugeMetricFamily(
        "egressd_limit_differs",
        "1 while members were told different figures; the smaller ones rule.",
        labels=labels,
    )
    rows = GaugeMetricFamily("egressd_limit_rows", "Rows kept.", labels=labels)
    evicted = CounterMetricFamily(
        "egressd_limit_evictions", "Rows thrown out to make room.", labels=labels
    )
    started_full = CounterMetricFamily(
        "egressd_limit_rows_started_full",
        "Rows that began without a burst, because rows still remembered were thrown out.",
        labels=labels,
    )
    refused = CounterMetricFamily(
        "egressd_limit_held_up",
        "Requests that it had no room for at their first try.",
        labels=(*labels, "dry_run"),
    )
    for upstream, figures in upstreams.items():
        for limit in figures["limits"]:
            values = (upstream, limit["name"])
            taken.add_metric((*values, "self"), limit["admitted_own"])
            if limit["sync"] == "mesh" and limit["slots_in_force"] is None:
                # Of a lease only the key's owner is told, and of slots only how many are held: what
                # others took is not known here, and the own count in its place would be a lie.
                taken.add_metric((*values, "mesh"), limit["admitted_mesh"])
            if limit["rate_in_force"] is not None:
                rate.add_metric(values, limit["rate_in_force"])
            excess.add_metric(values, limit["excess_bound"])
            differs.add_metric(values, float(limit["differs"]))
            rows.add_metric(values, limit["rows"])
            evicted.add_metric(values, limit["evicted"])
            started_full.add_metric(values, limit["started_full"])
            refused.add_metric((*values, "false"), limit["refused"])
            refused.add_metric((*values, "true"), limit["would_refuse"])
    yield from (taken, rate, excess, differs, rows, evicted, started_full, refused)
    yield from _levels(upstreams)
    yield from _upstreams_word(upstreams)
    yield from _windows(upstreams)


def _levels(upstreams: dict[str, Any]) -> Iterator[Metric]:
    """How full limits are."""
    labels = ("upstream", "limit")
    level = GaugeMetricFamily(
        "egressd_limit_level_tokens", "Level of the fullest row.", labels=labels
    )
    fill = GaugeMetricFamily(
        "egressd_limit_fill_ratio",
        "Level of the fullest row as a share of what it holds: burst, quota or slots.",
        labels=labels,
    )
    burst = GaugeMetricFamily("egressd_limit_burst_tokens", "As configured.", labels=labels)
    for upstream, figures in upstreams.items():
        for limit in figures["limits"]:
            values = (upstream, limit["name"])
            smooth = limit["algorithm"] == "smooth"
            # A node's share of slots may be none for a moment.
            holds = limit["burst"] if smooth else limit["slots_in_force"] or limit["quota"] or 1
            level.add_metric(values, limit["level"])
            fill.add_metric(values, limit["level"] / holds)
            burst.add_metric(values, limit["burst"])
    yield from (level, fill, burst)


def _upstreams_word(upstreams: dict[str, Any]) -> Iterator[Metric]:
    """What upstreams say of their limits, and what follows from it here."""
    labels = ("upstream", "limit")
    told = GaugeMetricFamily(
        "egressd_limit_advertised_tokens",
        "What the upstream last said of a row: its limit, what remains, and what we had left.",
        labels=(*labels, "figure"),
    )
    adopted = CounterMetricFamily(
        "egressd_limit_adoptions",
        "Times that a lower figure of the upstream's was taken over.",
        labels=labels,
    )
    slots = GaugeMetricFamily(
        "egressd_limit_slots",
        "In-flight slots of this node now: its share of what all may hold.",
        labels=labels,
    )
    for upstream, figures in upstreams.items():
        for limit in figures["limits"]:
            values = (upstream, limit["name"])
            if limit["slots_in_force"] is not None:
                slots.add_metric(values, limit["slots_in_force"])
            advertised = limit["advertised"]
            if advertised is not None:
                adopted.add_metric(values, advertised["adopted"])
                for figure in ("limit", "remaining", "free"):
                    if advertised[figure] is not None:
                        told.add_metric((*values, figure), advertised[figure])
    yield from (told, adopted, slots)


def _windows(upstreams: dict[str, Any]) -> Iterator[Metric]:
    """What the promise of the mesh-wide limits is held against."""
    labels = ("upstream", "limit", "window")
    tokens = GaugeMetricFamily(
        "egressd_limit_window_tokens",
        "Tokens that all nodes took in the present window, of the fullest row, as known here.",
        labels=labels,
    )
    peak = GaugeMetricFamily(
        "egressd_limit_window_peak_ratio",
        "The fullest window as a share of rate * w + burst, since these figures are in force.",
        labels=labels,
    )
    over = GaugeMetricFamily(
        "egressd_limit_window_over_tokens",
        "The most tokens over rate * w + burst in a window; 0 if none was over.",
        labels=labels,
    )
    for upstream, figures in upstreams.items():
        for limit in figures["limits"]:
            for window, seen in limit["windows"].items():
                values = (upstream, limit["name"], window)
                tokens.add_metric(values, seen["tokens"])
                peak.add_metric(values, seen["peak"])
                over.add_metric(values, seen["over"])
    yield from (tokens, peak, over)


def _mesh(document: dict[str, Any]) -> Iterator[Metric]:
    stats = document["mesh"]
    members = GaugeMetricFamily(
        "egressd_mesh_members", "Members that this node knows, itself included.", labels=("state",)
    )
    by_state = dict.fromkeys(("alive", "unheard", "suspect", "dead", "left"), 0)
    rtt = GaugeMetricFamily(
        "egressd_mesh_rtt_seconds", "Last round trip to a member.", labels=("member",)
    )
    heard = GaugeMetricFamily(
        "egressd_mesh_staleness_seconds", "Since a member was last heard.", labels=("member",)
    )
    loss = GaugeMetricFamily(
        "egressd_mesh_loss_ratio",
        "Datagrams lost on the way to or from a live member, one way, over some 32 probes.",
        labels=("member",),
    )
    to_member = {
        unit: CounterMetricFamily(
            f"egressd_mesh_member_{unit}",
            f"Mesh {unit} by member and direction.",
            labels=("member", "direction"),
        )
        for unit in ("datagrams", "bytes")
    }
    unreached = GaugeMetricFamily(
        "egressd_mesh_member_unreached",
        "1: a member that is heard, but does not answer where it advertises to be.",
        labels=("member",),
    )
    for member in document["members"]:
        by_state[member["state"]] = by_state.get(member["state"], 0) + 1
        if not member["self"]:
            unreached.add_metric((member["name"],), float(member["heard_from"] is not None))
            for unit, counter in to_member.items():
                for direction in ("received", "sent"):
                    counter.add_metric((member["name"], direction), member[f"{unit}_{direction}"])
        if member["loss"] is not None and member["state"] in ("alive", "unheard", "suspect"):
            loss.add_metric((member["name"],), member["loss"])
        if member["rtt_ms"] is not None:
            rtt.add_metric((member["name"],), member["rtt_ms"] / 1000)
        if member["heard_ms"] is not None and not member["self"]:
            heard.add_metric((member["name"],), member["heard_ms"] / 1000)
    for state, count in by_state.items():
        members.add_metric((state,), count)
    yield from (members, rtt, heard, loss, unreached, *to_member.values())
    yield _gauge(
        "egressd_mesh_unreached_by",
        "Members that hear this node and do not reach it where it advertises to be.",
        stats.get("unreached_by", 0),
    )
    for unit in ("datagrams", "bytes"):
        counter = CounterMetricFamily(
            f"egressd_mesh_{unit}", f"Mesh {unit} by direction.", labels=("direction",)
        )
        for direction in ("received", "sent"):
            counter.add_metric((direction,), stats.get(f"{unit}_{direction}", 0))
        yield counter
    yield _gauge(
        "egressd_mesh_delay_seconds",
        "The one-way delay that news is reckoned with (99th percentile); 0 without a mesh.",
        stats.get("delay_ns", 0) / SECOND,
    )
    drops = CounterMetricFamily(
        "egressd_mesh_drops", "Datagrams refused, by reason.", labels=("reason",)
    )
    for reason, count in stats.get("drops", {}).items():
        drops.add_metric((reason,), count)
    yield drops


def text_of_counts(counts: dict[str, int]) -> str:
    """Counts alone as an exposition: a supervisor's own."""
    registry = CollectorRegistry()
    registry.register(_Families(list(_counts(counts))))
    return generate_latest(registry).decode()


class _Families(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        return iter(self._families)


def _redis(store: dict[str, Any] | None) -> Iterator[Metric]:
    """The central store of limits with `sync = "redis"`; nothing where there is none."""
    if store is None:
        return
    yield _gauge(
        "egressd_redis_up", "1 while the store decides, 0 while the mesh does.", store["up"]
    )
    yield _gauge("egressd_redis_delay_seconds", "To an answer, smoothed.", store["delay_ms"] / 1000)
    for key, name, text in _REDIS_COUNTERS:
        counter = CounterMetricFamily(name, text)
        counter.add_metric((), store[key])
        yield counter
    failures = CounterMetricFamily(
        "egressd_redis_failures",
        "Times that the store was lost, or could not be had, by reason.",
        labels=("reason",),
    )
    for reason, count in store["reasons"].items():
        failures.add_metric((reason,), count)
    yield failures


def _counts(counts: dict[str, int]) -> Iterator[Metric]:
    """What the worker counts under a name of its own: one metric each, or a label of one."""
    plain = dict(counts)
    yield _counter(
        "egressd_access_log_dropped",
        "Lines of the access log that could not be written.",
        plain.pop("access_log_dropped", 0),  # a supervisor's own counts have none
    )
    for prefix, name, text, label in _COUNT_PREFIXES:
        family = CounterMetricFamily(name, text, labels=(label,))
        for key in [key for key in plain if key.startswith(prefix)]:
            family.add_metric((key.removeprefix(prefix),), plain.pop(key))
        yield family
    events = CounterMetricFamily(
        "egressd_events", "Rare events that the worker counts.", labels=("event",)
    )
    for key, count in sorted(plain.items()):
        events.add_metric((key,), count)
    yield events
