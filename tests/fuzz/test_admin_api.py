"""schemathesis against the OpenAPI document: what it says is what the interface does.

Every operation gets requests that the document allows and requests that it forbids; each answer
must be of a status, type and shape that the document tells, garbage must be refused, and nothing
may be a fault of the server's. The examples are the same in every run.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from fakes.gateway import Gateway
from fakes.nodes import free_ports
from hypothesis import HealthCheck, settings

from gateway.admin.openapi import openapi_document

CONF = """
[[listen]]
bind = "127.0.0.1:0"
[admin]
bind = "127.0.0.1:{admin}"
[upstream.a]
origin = "http://127.0.0.1:1"
[[upstream.a.limit]]
name = "a"
rate = "100/s"
key = ["client", "credential"]
[[upstream.a.limit]]
name = "b"
in_flight = 7
[[route]]
upstream = "a"
"""
EXAMPLES = 12  # of each operation: some 5 s in all

schema = schemathesis.openapi.from_dict(openapi_document())
schema.config.generation.update(modes=list(schemathesis.GenerationMode))


@schema.hook
def map_path_parameters(context: Any, value: Any) -> Any:
    """Names that are drawn from the document alone would never be those of this node."""
    if value and all(isinstance(name, str) and len(name) % 2 for name in value.values()):
        return {key: {"member": "gw-test"}.get(key, "a") for key in value}
    return value


@pytest.fixture(scope="module")
def base_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    (ports,) = free_ports(1)
    folder: Path = tmp_path_factory.mktemp("admin")
    with Gateway(CONF.format(admin=ports.admin), folder) as gateway:
        with gateway.client() as client:
            client.get()  # so that there is a row, a pool, a count
        yield f"http://127.0.0.1:{ports.admin}"


# Events never end by themselves; tests/gateway/admin has them.
@schema.exclude(operation_id="events").parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_the_interface_does_what_its_document_says(case: Any, base_url: str) -> None:
    case.call_and_validate(base_url=base_url)
