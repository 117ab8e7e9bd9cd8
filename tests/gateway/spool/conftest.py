"""A gateway with a spool in front of a scripted origin."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from fakes.origin import Origin, Script
from fakes.spooled import Spooled

CONF = """
[[listen]]
bind = "127.0.0.1:0"
[spool]
path = "{path}"
{spool}
[upstream.api]
origin = "{origin}"
{upstream}
[upstream.api.spool]
{rule}
[[route]]
host = "api.test"
upstream = "api"
{more}
"""


Make = Callable[..., tuple[Spooled, Origin]]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Starts an origin and a gateway. Texts go into [spool], the upstream, its spool, the end."""
    with ExitStack() as stack:

        def build(
            script: Script | None = None,
            *,
            upstream: str = "",
            rule: str = "",
            spool: str = "",
            more: str = "",
            loop: str = "uvloop",
            codec: str = "",
        ) -> tuple[Spooled, Origin]:
            origin = stack.enter_context(Origin(script))
            text = CONF.format(
                origin=origin.url, path=tmp_path / "spool.db", upstream=upstream, rule=rule,
                spool=spool, more=more,
            )  # fmt: skip
            gateway = Spooled(text, tmp_path, loop=loop, codec=codec)
            return stack.enter_context(gateway), origin

        yield build
