"""A whole gateway with an admin interface on a unix socket, for what asks it from outside."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.gateway import Gateway

CONF = """
[[listen]]
bind = "127.0.0.1:0"
[admin]
bind = "unix:{admin}"
[upstream.api]
origin = "http://127.0.0.1:1"
[[upstream.api.limit]]
name = "account"
rate = "100/s"
[[upstream.api.limit]]
name = "per-client"
rate = "100/s"
key = ["client", "header:x-tenant"]
[[route]]
upstream = "api"
"""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Has had one request for each of three tenants, one with a hostile name."""
    folder: Path = tmp_path_factory.mktemp("ctl")
    with Gateway(CONF.format(admin=folder / "admin.sock"), folder) as running:
        for tenant in (b"one", b"two", b"\x9b31m[bold]"):
            with running.client() as client:
                client.get(fields=b"X-Tenant: %s\r\n" % tenant)
        yield running


@pytest.fixture
def where(gateway: Gateway) -> str:
    """What `--admin` takes."""
    return f"unix:{gateway.path.parent / 'admin.sock'}"
