"""The channel between supervisor and worker, and the configuration that goes over it."""

from __future__ import annotations

import asyncio
import os
import pickle
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.conf.load import load
from gateway.conf.schema import Conf
from gateway.control import ROUTES_IN_A_PART, Channel, conf_file, read_conf

CONF = """
[[listen]]
bind = "127.0.0.1:8080"
proxy_protocol = ["10.0.0.0/8"]
[mesh]
bind = "127.0.0.1:7946"
keys = [{ env = "KEY" }]
[upstream.api]
origin = "https://api.example"
headers.set.Authorization = { env = "AUTH" }
[[upstream.api.limit]]
name = "account"
rate = "10/s"
key = ["credential", "path:2"]
[[route]]
upstream = "api"
"""


@pytest.fixture
def conf(tmp_path: Path) -> Conf:
    path = tmp_path / "egressd.toml"
    path.write_text(CONF)
    return load(path, (), {"KEY": "ab" * 32, "AUTH": "Bearer s3cr3t"})


def test_a_configuration_arrives_whole_with_its_secrets(conf: Conf) -> None:
    with pytest.raises(TypeError, match="a secret cannot be pickled"):
        pickle.dumps(conf)
    fd = conf_file(conf)
    try:
        # Every worker gets the same file, and none moves the others' offset.
        copies = [read_conf(os.dup(fd)) for _ in range(2)]
    finally:
        os.close(fd)
    for copy in copies:
        assert copy == conf
        secret: Any = copy.upstream["api"].headers.set["Authorization"]
        assert secret.reveal() == "Bearer s3cr3t"
        assert repr(secret) == "<secret from env AUTH>"
        assert copy.mesh is not None
        assert copy.mesh.keys[0].reveal_bytes() == bytes.fromhex("ab" * 32)
        assert copy.upstream["api"].model_fields_set == conf.upstream["api"].model_fields_set


def test_ten_thousand_routes_arrive_in_parts_and_in_order(conf: Conf) -> None:
    route = conf.route[0]
    many = conf.model_copy(
        update={
            "route": tuple(
                route.model_copy(update={"path": f"/{number}/"})
                for number in range(2 * ROUTES_IN_A_PART + 1)
            )
        }
    )
    copy = read_conf(conf_file(many))
    assert copy == many
    assert copy.model_fields_set == many.model_fields_set
    assert [route.path for route in copy.route[:2]] == ["/0/", "/1/"]


def test_messages_keep_their_bounds_order_and_descriptors() -> None:
    async def talk() -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        heard: list[tuple[str, dict[str, Any], list[int]]] = []
        ended = asyncio.Event()
        one = Channel(ours, lambda *said: None, lambda: None)
        two = Channel(theirs, lambda *said: heard.append(said), ended.set)
        read, write = os.pipe()
        assert one.send("first", number=1)
        assert one.send("second", [write], names=["x" * 30_000])
        os.close(write)
        one.close()
        assert not one.send("third")
        async with asyncio.timeout(5):
            await ended.wait()
        assert [(what, facts) for what, facts, _ in heard] == [
            ("first", {"number": 1}),
            ("second", {"names": ["x" * 30_000]}),
        ]
        (fd,) = heard[1][2]
        assert not os.get_inheritable(fd)
        os.write(fd, b"through")
        os.close(fd)
        assert os.read(read, 10) == b"through"
        os.close(read)
        assert not two.send("nobody hears it")

    asyncio.run(talk())


def test_who_does_not_read_is_told_no_more_and_it_is_counted() -> None:
    async def talk() -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        channel = Channel(ours, lambda *said: None, lambda: None)
        sent = 0
        while channel.send("much", data="x" * 10_000):
            sent += 1
            assert sent < 10_000
        assert channel.unsent == 1
        channel.close()
        theirs.close()

    asyncio.run(talk())


def test_a_reset_is_an_end_as_well() -> None:
    async def talk(say: Callable[[Channel], object]) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ended = asyncio.Event()
        channel = Channel(ours, lambda *said: None, ended.set)
        say(channel)  # unread at the close of the other end: ECONNRESET instead of an end
        theirs.close()
        async with asyncio.timeout(5):
            await ended.wait()

    asyncio.run(talk(lambda channel: channel.send("unread")))
