"""Fixtures of the data path's tests: every test runs on both codecs and on both event loops."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from fakes.gateway import Gateway
from fakes.origin import Origin, Script

CONF = """
[[listen]]
bind = "127.0.0.1:0"
[upstream.api]
origin = "{origin}"
{upstream}
[[route]]
host = "api.test"
upstream = "api"
{more}
"""

Make = Callable[..., tuple[Gateway, Origin]]


@pytest.fixture(params=[("httptools", "uvloop"), ("h11", "asyncio")], ids=["fast", "reference"])
def drivers(request: pytest.FixtureRequest) -> tuple[str, str]:
    """(codec, loop)."""
    codec, loop = request.param
    return codec, loop


@pytest.fixture
def make(drivers: tuple[str, str], tmp_path: Path) -> Iterator[Make]:
    """Starts an origin and a gateway in front of it; `conf` texts go into its upstream table."""
    codec, loop = drivers
    with ExitStack() as stack:

        def build(
            script: Script | None = None, upstream: str = "", more: str = "", **origin_facts: object
        ) -> tuple[Gateway, Origin]:
            origin = stack.enter_context(Origin(script, **origin_facts))
            text = CONF.format(origin=origin.url, upstream=upstream, more=more)
            gateway = stack.enter_context(Gateway(text, tmp_path, loop=loop, codec=codec))
            return gateway, origin

        yield build
