"""Conf -> Runtime in two steps: what takes long is in the first, which touches nothing in use."""

from __future__ import annotations

from pathlib import Path

from fakes.gateway import Gateway

from gateway.conf.load import load
from gateway.proxy.graph import Runtime
from gateway.runtime import Plan

CONF = """
[[listen]]
bind = "127.0.0.1:0"
[upstream.api]
origin = "http://127.0.0.1:9"
[[upstream.api.limit]]
name = "account"
rate = "{rate}/s"
{routes}
"""
ROUTES = "".join(
    f'[[route]]\nhost = "h{number}.test"\npath = "/p/"\nupstream = "api"\n' for number in range(50)
)


def rate(runtime: Runtime) -> int:
    return runtime.upstreams["api"].limit_set.rules[0].quota


def test_a_plan_changes_nothing_until_it_is_committed(tmp_path: Path) -> None:
    with Gateway(CONF.format(rate=10, routes=""), tmp_path) as gateway:
        server = gateway.server
        gateway.path.write_text(CONF.format(rate=20, routes=ROUTES))
        before = server.worker.runtime

        def prepare() -> Plan:
            return server.assembly.prepare(load(server.path, server.overrides))

        plan = gateway.call(prepare)
        assert server.worker.runtime is before
        assert rate(before) == 10
        after = gateway.call(lambda: server.assembly.commit(plan))
        assert rate(after) == 20
        # The table is the plan's own, and its routes lead to upstreams that are whole by now.
        assert after.routes is plan.routes
        found = after.routes.find(b"GET", b"h7.test", b"/p/x")
        assert found is not None
        assert found.target is after.upstreams["api"]
        assert found.target.counts is before.upstreams["api"].counts
