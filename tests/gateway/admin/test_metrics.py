"""The exposition: parsed by Prometheus's own parser, and equal to what the worker counted."""

from collections.abc import Callable
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from gateway.admin.metrics import NodeMetrics
from gateway.build import build_kind
from gateway.clock import SECOND, monotonic_ns
from gateway.mesh import MeshAdapter
from peers.simnet import Simulation

MakeServed = Callable[..., Any]
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(served: Any) -> Samples:
    samples: Samples = {}
    for family in text_string_to_metric_families(NodeMetrics(served).text().decode()):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in samples, "the same series twice"
            samples[key] = sample.value
    return samples


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


def test_what_the_worker_counted_is_exposed(make_served: MakeServed) -> None:
    served = make_served()
    upstream = served.worker.runtime.upstreams["api"]
    counts = upstream.counts
    counts.requests, counts.admitted, counts.refused, counts.paused = 10, 7, 2, 1
    counts.waited = 3
    counts.responses = [0, 0, 6, 0, 1, 0]
    upstream.queue_budget.used = 4
    samples = scrape(served)
    assert value(samples, "egressd_requests_total", upstream="api") == 10
    assert value(samples, "egressd_admitted_total", upstream="api") == 7
    assert value(samples, "egressd_refusals_total", upstream="api", reason="limit") == 2
    assert value(samples, "egressd_refusals_total", upstream="api", reason="breaker") == 1
    assert value(samples, "egressd_waits_total", upstream="api") == 3
    assert value(samples, "egressd_waiting", upstream="api") == 4
    for status_class, count in {"2xx": 6, "4xx": 1, "5xx": 0}.items():
        labels = {"upstream": "api", "class": status_class}
        assert value(samples, "egressd_responses_total", **labels) == count
    for state, count in {"idle": 2, "busy": 1, "dialling": 1}.items():
        labels = {"upstream": "api", "state": state}
        assert value(samples, "egressd_upstream_connections", **labels) == count


def test_the_node_itself_is_exposed(make_served: MakeServed) -> None:
    served = make_served()
    served.reload_success = False
    samples = scrape(served)
    assert value(samples, "egressd_config_reload_success") == 0
    assert value(samples, "egressd_config_reloads_total") == 3
    assert value(samples, "egressd_config_generation") == 4
    assert value(samples, "egressd_connections") == 9
    assert value(samples, "egressd_ready") == 1
    assert value(samples, "egressd_bad_requests_total", reason="bad_request") == 2
    assert value(samples, "egressd_events_total", event="stale_connection_retries") == 1
    assert value(samples, "egressd_access_log_dropped_total") == 0
    assert value(samples, "egressd_config_reload_failures_total") == 2
    assert value(samples, "egressd_listener_connections", listener="127.0.0.1:8080") == 0
    builds = [labels for name, labels in samples if name == "egressd_build_info"]
    assert [dict(labels)["codec"] for labels in builds] == ["h11"]
    assert [dict(labels)["build"] for labels in builds] == [build_kind()]
    assert value(samples, "egressd_mesh_members", state="alive") == 0


def test_limits_and_breakers_are_exposed(make_served: MakeServed) -> None:
    served = make_served()
    upstream = served.worker.runtime.upstreams["api"]
    now_ns = monotonic_ns()
    upstream.limit_set.limits[2].entry(b"", now_ns).take(7, now_ns)
    table = upstream.breakers
    table.throttled(None, table.epochs(None), 30 * SECOND, now_ns, 0.0)
    key = b"c" * 16
    table.throttled(key, table.epochs(key), 30 * SECOND, now_ns, 0.0)
    samples = scrape(served)
    account = {"upstream": "api", "limit": "account"}
    assert value(samples, "egressd_limit_rows_started_full_total", **account) == 0
    assert value(samples, "egressd_limit_rate_tokens_per_second", **account) == 45
    assert value(samples, "egressd_limit_burst_tokens", **account) == 5
    slots = {"upstream": "api", "limit": "open"}
    assert value(samples, "egressd_limit_level_tokens", **slots) == 7
    assert value(samples, "egressd_limit_slots", **slots) == 200
    assert value(samples, "egressd_limit_tokens", **slots, by="self") == 7
    states = {
        state: value(samples, "egressd_breaker_state", upstream="api", state=state)
        for state in ("closed", "open", "half_open")
    }
    assert states == {"closed": 0, "open": 1, "half_open": 0}
    assert 29 < value(samples, "egressd_breaker_remaining_seconds", upstream="api") <= 30
    assert value(samples, "egressd_credentials_paused", upstream="api") == 1


def test_what_the_upstream_advertises_is_exposed(make_served: MakeServed) -> None:
    served = make_served()
    upstream = served.worker.runtime.upstreams["api"]
    account = {"upstream": "api", "limit": "account"}
    assert all(name != "egressd_limit_advertised_tokens" for name, _ in scrape(served))
    now_ns = monotonic_ns()
    upstream.lessons.hear([b""], (100, 3, None), now_ns, now_ns)
    upstream.counts.count_scope("endpoint")
    samples = scrape(served)
    name = "egressd_limit_advertised_tokens"
    told = {f: value(samples, name, **account, figure=f) for f in ("limit", "remaining", "free")}
    assert told == {"limit": 100, "remaining": 3, "free": 5}
    assert value(samples, "egressd_limit_adoptions_total", **account) == 0
    scope = {"upstream": "api", "scope": "endpoint"}
    assert value(samples, "egressd_throttle_scopes_total", **scope) == 1


def test_scopes_that_the_upstream_makes_up_are_bounded(make_served: MakeServed) -> None:
    counts = make_served().worker.runtime.upstreams["api"].counts
    for i in range(500):
        counts.count_scope(f"bucket-{i}")
    assert len(counts.scopes) == 33
    assert counts.scopes["other"] == 468


def test_names_have_the_prefix_and_nothing_is_labelled_by_key(make_served: MakeServed) -> None:
    served = make_served()
    quota = served.worker.runtime.upstreams["api"].limit_set.limits[1]
    now_ns = monotonic_ns()
    quota.entry(b"hash-of-a-credential", now_ns).take(1, now_ns)
    text = NodeMetrics(served).text().decode()
    assert "hash-of-a-credential" not in text
    names = {name for name, _ in scrape(served)}
    assert all(name.startswith(("egressd_", "process_")) for name in names)


def test_two_workers_do_not_share_a_registry(make_served: MakeServed) -> None:
    first, second = NodeMetrics(make_served()), NodeMetrics(make_served())
    assert b"egressd_requests_total" in first.text()
    assert b"egressd_requests_total" in second.text()


def test_the_mesh_is_measured_by_limit_and_member(
    make_served: MakeServed, bench: Simulation
) -> None:
    node = bench.nodes[0].up
    now_ns = bench.now_ns
    served = make_served()
    served.mesh = MeshAdapter(node, served.worker, lambda event, **facts: None)
    limit_set = served.worker.runtime.upstreams["api"].limit_set
    shared = node.limit("x", name="account", rate_count=100, rate_period_ns=SECOND, burst=20)
    limit_set.limits = (shared, *limit_set.limits[1:])
    row = shared.entry(b"", now_ns)
    served.mesh.tick(now_ns)
    row.own, row.heard = 10, 60
    served.mesh.tick(now_ns + SECOND // 4)
    samples = scrape(served)
    for window in ("1s", "10s"):
        labels = {"upstream": "api", "limit": "account", "window": window}
        assert value(samples, "egressd_limit_window_tokens", **labels) == 70
        assert value(samples, "egressd_limit_window_over_tokens", **labels) == 70 - 45
        assert value(samples, "egressd_limit_window_peak_ratio", **labels) == round(70 / 45, 4)
    assert value(samples, "egressd_mesh_loss_ratio", member="node-1") == 0.0
    assert value(samples, "egressd_mesh_rtt_seconds", member="node-1") > 0.0
    for direction in ("received", "sent"):
        labels = {"member": "node-1", "direction": direction}
        datagrams = value(samples, "egressd_mesh_member_datagrams_total", **labels)
        assert datagrams >= 5
        octets = value(samples, "egressd_mesh_member_bytes_total", **labels)
        assert 40 * datagrams <= octets <= 1200 * datagrams
    # This node itself is no member that it sends to.
    assert not [key for key in samples if ("member", "node-0") in key[1]]
