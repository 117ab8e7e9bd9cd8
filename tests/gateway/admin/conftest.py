"""A worker that was never started, made of real limits, breakers and conf, to be looked at."""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.breaker.providers import profile
from gateway.breaker.states import BreakerPolicy
from gateway.breaker.table import BreakerTable
from gateway.clock import SECOND, monotonic_ns
from gateway.conf.load import load
from gateway.h1.codec import HeadLimits
from gateway.limits.central import NoStore
from gateway.limits.gcra import Gcra
from gateway.limits.inflight import Inflight
from gateway.limits.lessons import Lesson, Lessons
from gateway.limits.policy import LimitSet, Rule
from gateway.limits.window import Window
from gateway.mesh import NoMesh
from gateway.proxy.counts import UpstreamCounts
from gateway.proxy.graph import Listener, Upstream
from gateway.waiting.fair_queue import Budget
from peers.simnet import Simulation

CONF = """
[node]
name = "gw-7"
[[listen]]
bind = "127.0.0.1:8080"
[admin]
bind = "127.0.0.1:9901"
{token}
[upstream.api]
origin = "https://api.example"
[[upstream.api.limit]]
name = "account"
rate = "45/s"
burst = 5
[[upstream.api.limit]]
name = "quota"
rate = "100/min"
algorithm = "window"
sync = "local"
key = ["credential"]
[[route]]
upstream = "api"
"""


@pytest.fixture
def make_served(tmp_path: Path) -> Callable[..., Any]:
    """Makes what the admin interface reads of a server; `token` is configured for it."""

    def make(*, token: str = "", mesh: Any = None) -> Any:
        path = tmp_path / "egressd.toml"
        path.write_text(CONF.format(token='token = { env = "TOKEN" }' if token else ""))
        conf = load(str(path), (), {"TOKEN": token})
        now_ns = monotonic_ns()
        upstream = Upstream()
        upstream.name = "api"
        upstream.counts = UpstreamCounts()
        upstream.queue_budget = Budget(10)
        upstream.breakers = BreakerTable(BreakerPolicy(), now_ns, 45.0)
        upstream.limit_set = LimitSet(
            [
                Rule(Gcra("account", 45, SECOND, 5, now_ns=now_ns), 45, SECOND),
                Rule(Window("quota", 100, 60 * SECOND), 100, 60 * SECOND),
                Rule(Inflight("open", 200), 200, 0, in_flight=True),
            ]
        )
        upstream.profile = profile("generic")
        limits = upstream.limit_set.limits
        upstream.lessons = Lessons({0: Lesson(limits[0], adopts=False)})
        upstream.slots = Inflight("connections", 200).entry(b"", now_ns)
        upstream.slots.take(3, now_ns)
        dialled: Any = {"dials": 4, "failures": 1, "reuses": 7}
        upstream.pool = SimpleNamespace(idle_count=2, open_count=3, dialling_count=1, **dialled)  # type: ignore[assignment]
        upstream.tunnels = SimpleNamespace(**dialled)  # type: ignore[assignment]
        worker = SimpleNamespace(
            runtime=SimpleNamespace(generation=4, upstreams={"api": upstream}),
            codec=SimpleNamespace(name="h11"),
            draining=False,
            counts=defaultdict(int, {"bad_requests_bad_request": 2, "stale_connection_retries": 1}),
            ring_dropped=0,
            store=NoStore(),
        )
        return SimpleNamespace(
            name=conf.node.name,
            conf=conf,
            worker=worker,
            mesh=mesh if mesh is not None else NoMesh(b"k" * 32),
            started_ns=now_ns - 5 * SECOND,
            reloads=3,
            reload_failures=2,
            reload_success=True,
            listeners=[Listener("127.0.0.1:8080", HeadLimits(32_768, 100), 10_000)],
            ready=True,
            spool=None,
            connection_count=lambda: 9,
            task_count=lambda: 6,
        )

    return make


@pytest.fixture
def bench() -> Simulation:
    """Two nodes, "node-0" and "node-1", that have met and probed each other for some seconds."""
    bench = Simulation(2, 1)
    bench.start()
    bench.run_until(bench.meshed, 30 * SECOND)
    bench.run_for(5 * SECOND)
    return bench
