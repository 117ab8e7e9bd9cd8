"""A status is asked of any node; one node vouches for its client to another."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from fakes.nodes import free_ports
from fakes.origin import Origin
from fakes.spooled import Spooled
from hypothesis import given
from hypothesis import strategies as st

from gateway.spool.vouch import FIELD, client_of, field_for

KEY = b"k" * 32
PATH = b"/.egressd/requests/gw-2.00"
OWN = b"Proxy-Authorization: Bearer aaa\r\n"
CONF = """
[[listen]]
bind = "127.0.0.1:0"
[mesh]
bind = "127.0.0.1:{port}"
keys = [{{ file = "{key}" }}]
[spool]
path = "{path}"
nodes = {{ {nodes} }}
[upstream.api]
origin = "{origin}"
[upstream.api.spool]
[[route]]
host = "api.test"
upstream = "api"
[[client]]
name = "a"
token = {{ env = "TOKEN_A" }}
upstreams = ["api"]
"""


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Spooled, Spooled]]:
    """(a node that knows where the second one is, the second one)."""
    monkeypatch.setenv("TOKEN_A", "aaa")
    key = tmp_path / "key"
    key.write_text("6b" * 32)
    with ExitStack() as stack:
        origin = stack.enter_context(Origin())
        nodes = ""
        found = []
        for name, ports in zip(("gw-2", "gw-1"), free_ports(2), strict=True):
            folder = tmp_path / name
            folder.mkdir()
            text = CONF.format(
                port=ports.mesh, key=key, path=folder / "spool.db", nodes=nodes, origin=origin.url
            )
            gateway = Spooled(text, folder)
            gateway._overrides.append(f"node.name={name}")
            found.append(stack.enter_context(gateway))
            host, port = gateway.address
            nodes = f'gw-2 = "http://{host}:{port}"'
        yield found[1], found[0]


def test_another_node_passes_the_question_on(two: tuple[Spooled, Spooled]) -> None:
    first, second = two
    path = second.post(b"x", OWN).value(b"location")
    assert path.rpartition(b"/")[2].startswith(b"gw-2.")
    second.poll(lambda: json.loads(first.ask(path, OWN).body).get("state") == "done")
    assert first.ask(path + b"/response", OWN).body == b"hello"
    assert first.ask(path).status == 404, "whose it is not is told nothing"
    forged = b"Egressd-Client: a;1;00\r\n"
    assert second.ask(path, forged).status == 404
    assert first.ask(path, forged + OWN).status == 200


def test_a_node_that_nobody_knows_has_no_records(two: tuple[Spooled, Spooled]) -> None:
    first, second = two
    path = first.post(b"x", OWN).value(b"location")
    assert second.ask(path, OWN).status == 404


def test_a_word_is_good_for_its_path_its_minute_and_its_keys() -> None:
    field = field_for("billing", PATH, KEY, 1000)
    assert client_of([(b"A", b"b"), field], PATH, (b"o" * 32, KEY), 1059) == "billing"
    assert client_of([field], PATH, (KEY,), 1061) == ""
    assert client_of([field], PATH, (KEY,), 939) == ""
    assert client_of([field], PATH + b"1", (KEY,), 1000) == ""
    assert client_of([field], PATH, (b"o" * 32,), 1000) == ""
    assert client_of([field], PATH, (), 1000) == ""
    name, value = field
    assert client_of([(name, value.replace(b"billing", b"b1lling"))], PATH, (KEY,), 1000) == ""


@given(value=st.binary(max_size=300))
def test_garbage_is_nobodys_word(value: bytes) -> None:
    assert client_of([(FIELD, value)], PATH, (KEY,), 1000) == ""
