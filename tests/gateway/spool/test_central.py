"""Stored requests under a limit of a central store: asked for like live ones, and without it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fakes.nodes import free_ports
from fakes.origin import Origin
from fakes.redis_server import RedisServer, redis_missing
from fakes.spooled import Spooled

pytestmark = pytest.mark.skipif(bool(redis_missing()), reason=redis_missing())

Make = Callable[..., tuple[Spooled, Origin]]

LIMIT = """
[[upstream.api.limit]]
name = "account"
rate = "20/s"
burst = 1
sync = "redis"
"""


def test_stored_requests_are_asked_for_and_go_when_it_is_gone(make: Make, tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        mesh = f'[mesh]\nbind = "127.0.0.1:{free_ports(1)[0].mesh}"\n'
        store = f'[redis]\nurl = "{server.url}"\ntimeout = "200ms"\n'
        gateway, origin = make(upstream=LIMIT, more=mesh + store)
        paths = [gateway.post().value(b"location") for _ in range(5)]
        for path in paths:
            gateway.until_state(path, "done")
        assert gateway.server.store.counts["answers"] >= 5
        server.stall()
        path = gateway.post().value(b"location")
        gateway.until_state(path, "done")
        assert not gateway.server.store.up
    assert len(origin.requests) == 6
