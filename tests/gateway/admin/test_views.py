"""The node's document: complete, plain, bounded, and without secrets."""

import json
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.admin import views
from gateway.admin.views import node_document, peer_figures, ready_document
from gateway.clock import MS, SECOND, monotonic_ns
from gateway.limits.settled import Settled
from gateway.mesh import MeshAdapter
from peers.core.config import Config
from peers.core.node import Node
from peers.simnet import Simulation

MakeServed = Callable[..., Any]


def test_the_document_is_plain_and_complete(make_served: MakeServed) -> None:
    served = make_served()
    document = json.loads(json.dumps(node_document(served)))
    node = document["node"]
    assert (node["name"], node["generation"], node["reloads"]) == ("gw-7", 4, 3)
    assert 5.0 <= node["uptime_s"] < 60.0
    assert (node["ready"], node["draining"], node["connections"]) == (True, False, 9)
    api = document["upstreams"]["api"]
    assert api["pool"] == {"idle": 2, "open": 3, "dialling": 1, "in_use": 3}
    assert api["breaker"]["state"] == "closed"
    assert [limit["name"] for limit in api["limits"]] == ["account", "quota", "open"]
    kinds = [(limit["algorithm"], limit["rate"], limit["burst"]) for limit in api["limits"]]
    assert kinds == [("smooth", "45/s", 5), ("window", "100/min", 10), ("in_flight", None, 0)]
    assert document["counts"]["stale_connection_retries"] == 1
    assert document["members"] == []


def test_counts_are_shown_as_counted(make_served: MakeServed) -> None:
    served = make_served()
    counts = served.worker.runtime.upstreams["api"].counts
    shown_otherwise = {"responses", "scopes", "slow_head_ns", "retry_credit"}
    shown_otherwise |= {"answers", "duration", "head_time", "wait", "waited_at", "refused_by"}
    shown_otherwise |= {"retries", "throttles", "transitions", "paused_ns"}  # see test_tallies
    names = set(type(counts).__slots__) - shown_otherwise
    for number, name in enumerate(sorted(names), start=1):
        setattr(counts, name, number)
    counts.responses = [0, 1, 2, 3, 4, 5]
    counts.scopes = {"global": 3}
    counts.wait.observe(1_500 * MS)
    counts.slow_head_ns = 20 * MS
    api = node_document(served)["upstreams"]["api"]
    for name in names:
        assert api[name] == getattr(counts, name)
    assert api["responses"] == {"1xx": 1, "2xx": 2, "3xx": 3, "4xx": 4, "5xx": 5}
    assert api["throttle_scopes"] == {"global": 3}
    assert (api["wait_s"], api["slow_head_ms"]) == (1.5, 20.0)


def test_rows_of_each_kind_are_summed_up(make_served: MakeServed) -> None:
    served = make_served()
    limits = served.worker.runtime.upstreams["api"].limit_set.limits
    now_ns = monotonic_ns()
    limits[0].entry(b"", now_ns).take(4, now_ns)
    for key in (b"one", b"two"):
        limits[1].entry(key, now_ns).take(3, now_ns)
    limits[2].entry(b"", now_ns).take(7, now_ns)
    account, quota, slots = node_document(served)["upstreams"]["api"]["limits"]
    assert (account["admitted_own"], account["admitted_mesh"], account["rows"]) == (4, 4, 1)
    assert 0.0 < account["level"] <= 4.0
    assert account["rate_in_force"] == 45.0
    assert (quota["admitted_own"], quota["level"], quota["rows"]) == (6, 3.0, 2)
    assert (slots["level"], slots["quota"], slots["sync"]) == (7.0, 200, "local")


def test_a_window_that_is_over_holds_nothing(make_served: MakeServed) -> None:
    served = make_served()
    quota = served.worker.runtime.upstreams["api"].limit_set.limits[1]
    long_ago_ns = monotonic_ns() - 120 * SECOND
    quota.entry(b"k", long_ago_ns).take(3, long_ago_ns)
    assert node_document(served)["upstreams"]["api"]["limits"][1]["level"] == 0.0


def test_settled_costs_show_the_limit_below(make_served: MakeServed) -> None:
    served = make_served()
    limit_set = served.worker.runtime.upstreams["api"].limit_set
    inner = limit_set.limits[0]
    limit_set.limits = (Settled(inner, 5, 100, 10), *limit_set.limits[1:])
    now_ns = monotonic_ns()
    limit_set.limits[0].entry(b"", now_ns).take(2, now_ns)
    account = node_document(served)["upstreams"]["api"]["limits"][0]
    assert (account["name"], account["admitted_own"]) == ("account", 2)


def test_an_open_breaker_says_when_it_opened(make_served: MakeServed) -> None:
    served = make_served()
    table = served.worker.runtime.upstreams["api"].breakers
    now_ns = monotonic_ns()
    table.throttled(None, table.epochs(None), 3 * SECOND, now_ns, 0.0)
    breaker = node_document(served)["upstreams"]["api"]["breaker"]
    assert (breaker["state"], breaker["cause"]) == ("open", "throttle")
    assert breaker["opened_ns"] == now_ns
    assert 0 < breaker["remaining_ms"] <= 3000


def test_credentials_are_bounded_and_cut_short(
    make_served: MakeServed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "CREDENTIALS_SHOWN_MAX", 3)
    served = make_served()
    table = served.worker.runtime.upstreams["api"].breakers
    now_ns = monotonic_ns()
    for number in range(10):
        key = bytes([number]) * 16
        table.throttled(key, table.epochs(key), SECOND, now_ns, 0.0)
    shown = node_document(served)["upstreams"]["api"]["credential_breakers"]
    assert [one["credential"] for one in shown] == ["00000000", "01010101", "02020202"]


def test_rows_read_are_bounded(make_served: MakeServed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "ROWS_READ_MAX", 30)
    served = make_served()
    quota = served.worker.runtime.upstreams["api"].limit_set.limits[1]
    now_ns = monotonic_ns()
    for number in range(50):
        quota.entry(b"%d" % number, now_ns).take(1, now_ns)
    shown = node_document(served)["upstreams"]["api"]["limits"][1]
    assert (shown["rows"], shown["rows_read"], shown["admitted_own"]) == (50, 10, 10)


def test_a_token_is_nowhere_in_it(make_served: MakeServed) -> None:
    served = make_served(token="correct-horse")
    assert "correct-horse" not in json.dumps(node_document(served))


def test_the_mesh_is_shown(make_served: MakeServed) -> None:
    served = make_served()
    now_ns = monotonic_ns()
    address = ("127.0.0.1", 7946)
    config = Config(name="gw-7", cluster="demo", bind=address, advertise=address)
    node = Node(config, random.Random(1), now_ns, 1)
    served.mesh = MeshAdapter(node, served.worker, lambda event, **facts: None)
    limit_set = served.worker.runtime.upstreams["api"].limit_set
    shared = node.limit(
        "api\0account\0\0smooth", name="account", rate_count=45, rate_period_ns=SECOND, burst=5
    )
    limit_set.limits = (shared, *limit_set.limits[1:])
    row = shared.entry(b"", now_ns)
    served.mesh.tick(now_ns)
    row.take(1, now_ns)
    row.heard += 3
    served.mesh.tick(now_ns + SECOND // 4)
    document = json.loads(json.dumps(node_document(served)))
    (me,) = document["members"]
    assert (me["name"], me["self"], me["state"]) == ("gw-7", True, "alive")
    assert me["address"] == "127.0.0.1:7946"
    assert "api/account//smooth" in document["mesh"]["limits"]
    account = document["upstreams"]["api"]["limits"][0]
    assert (account["admitted_own"], account["admitted_mesh"]) == (1, 1)
    assert account["rate_in_force"] == 45.0
    seen = {"tokens": 4, "peak": round(4 / (45 * 0.25 + 5), 4), "over": 0.0}
    assert account["windows"] == {"1s": seen, "10s": seen}
    assert document["upstreams"]["api"]["limits"][1]["windows"] == {}
    # Two quotas side by side are no fault of a window limit: it is not watched so.
    quota = node.window_limit("w", name="w", count=10, period_ns=SECOND)
    served.mesh.tick(now_ns + SECOND)
    assert served.mesh.peaks(quota) is None
    served.mesh.forget("api\0account\0\0smooth")
    assert served.mesh.peaks(shared) is None


def test_what_each_peer_took_is_told_by_name(make_served: MakeServed, bench: Simulation) -> None:
    served = make_served()
    shared = []
    for sim in bench.nodes:
        limit = sim.up.limit("x", name="account", rate_count=45, rate_period_ns=SECOND, burst=9)
        row = limit.entry(b"", bench.now_ns)
        shared.append((limit, row))
    bench.run_for(SECOND)
    for (_, row), sim in zip(shared, bench.nodes, strict=True):
        row.take(2, bench.now_ns)
        bench.after_step(sim)
    bench.run_for(SECOND)
    upstream = served.worker.runtime.upstreams["api"]
    limit_set = upstream.limit_set
    limit_set.limits = (shared[0][0], *limit_set.limits[1:])
    names = {member.node: member.name for member in bench.nodes[0].up.members()}
    mesh: Any = SimpleNamespace(names=lambda: names)
    assert peer_figures(upstream, mesh) == {"account": {"node-1": 2}, "quota": {}, "open": {}}
    alone = {"account": {}, "quota": {}, "open": {}}
    assert peer_figures(upstream, served.mesh) == alone


@pytest.mark.parametrize(
    ("ready", "draining", "status", "why"),
    [
        (True, False, 200, "serving"),
        (False, False, 503, "starting"),
        (True, True, 503, "draining"),
        (False, True, 503, "draining"),
    ],
)
def test_readiness_says_why(
    make_served: MakeServed, ready: bool, draining: bool, status: int, why: str
) -> None:
    served = make_served()
    served.ready = ready
    served.worker.draining = draining
    assert ready_document(served) == (status, {"ready": status == 200, "why": why})


def test_a_node_that_members_do_not_reach_is_not_ready(make_served: MakeServed) -> None:
    served = make_served()
    served.ready = True
    served.mesh = SimpleNamespace(node=SimpleNamespace(cut_off=True))
    status, document = ready_document(served)
    assert status == 503
    assert "mesh.advertise" in document["why"]
