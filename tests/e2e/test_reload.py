"""SIGHUP under load: nothing fails, counters survive, and a faulty file changes nothing."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes.load import Load, peak
from fakes.nodes import NodeProcess, free_ports, until
from fakes.origin import Origin

pytestmark = pytest.mark.e2e

SECOND = 1_000_000_000
MakeNode = Callable[..., NodeProcess]
MakeMesh = Callable[..., list[NodeProcess]]
MakeConf = Callable[..., str]

LIMITED = """
[[upstream.api.limit]]
name = "account"
rate = "{rate}/s"
burst = {burst}
sync = "local"
[upstream.api.wait]
max = "{wait}"
"""
FAULTY = """
[upstream.api.wait]
maximum = "1s"
queue = "many"
"""


def test_ten_reloads_under_load_and_no_failed_exchange(
    node: MakeNode, make_conf: MakeConf, origin: Origin
) -> None:
    process = node(origin, LIMITED.format(rate=1000, burst=100, wait="1s"))
    refused = reloaded = 0
    with Load([process.address], 300) as load:
        load.go_on(0.5)
        for number in range(1, 13):
            text = FAULTY if number % 3 == 0 else LIMITED.format(rate=1000 + number, burst=100,
                                                                 wait="1s")  # fmt: skip
            conf = make_conf("solo", process.ports, origin.url, text)
            process.reload(conf, accepted=number % 3 != 0)
            if number % 3 == 0:
                refused += 1
                document = process.document()
                assert document["node"]["reload_success"] is False
                assert document["node"]["reloads"] == reloaded
                limit = document["upstreams"]["api"]["limits"][0]
                assert limit["rate"] == f"{1000 + number - 1}/s"
            else:
                reloaded += 1
                assert process.document()["node"]["reload_success"] is True
            load.go_on(0.15)
    assert (reloaded, refused) == (8, 4)
    assert not load.failures
    assert load.retries == 0
    assert set(load.statuses()) == {200}
    document = process.document()
    assert document["upstreams"]["api"]["requests"] == len(load.sent) == len(origin.requests)
    assert document["node"]["generation"] == reloaded + 1
    faults = [line["fault"] for line in process.log("reload refused")]
    lines = process.path.read_text().splitlines()
    at = {key: lines.index(line) + 1 for key, line in
          (("maximum", 'maximum = "1s"'), ("queue", 'queue = "many"'))}  # fmt: skip
    for key, line in at.items():
        begin = f"{process.path}:{line}: upstream.api.wait.{key}: "
        assert sum(fault.startswith(begin) for fault in faults) == 4, faults
    changes = process.log("configuration changed")
    assert changes[1]["changes"] == ["upstream.api.limit.account.rate: 1001/s -> 1002/s"]


@pytest.mark.slow
def test_a_higher_rate_keeps_the_counter(
    node: MakeNode, make_conf: MakeConf, origin: Origin
) -> None:
    process = node(origin, LIMITED.format(rate=20, burst=20, wait="0s"))
    with Load([process.address], 100) as load:
        load.go_on(1.3)
        before = process.upstream()["limits"][0]
        process.reload(
            make_conf("solo", process.ports, origin.url,
                      LIMITED.format(rate=40, burst=20, wait="0s"))
        )  # fmt: skip
        changed_ns = time.monotonic_ns()
        load.go_on(1.2)
    after = process.upstream()["limits"][0]
    assert (before["rate"], after["rate"]) == ("20/s", "40/s")
    assert after["admitted_own"] == len(origin.requests) > before["admitted_own"]
    stamps = [r.at_ns for r in origin.requests if r.at_ns > changed_ns]
    # A fresh bucket would give 40 + 20 in its first second.
    assert 30 <= peak(stamps) <= 42


def test_listeners_come_and_go(node: MakeNode, make_conf: MakeConf, origin: Origin) -> None:
    process = node(origin)
    extra = free_ports(1)[0].listen
    more = f'[[listen]]\nbind = "127.0.0.1:{extra}"\n'
    with Load([process.address], 100) as load:
        load.go_on(0.2)
        process.reload(make_conf("solo", process.ports, origin.url, "", more=more))
        with Load([("127.0.0.1", extra)], 100) as second:
            second.go_on(0.3)
        assert set(second.statuses()) == {200}
        with socket.create_connection(("127.0.0.1", extra), timeout=5) as idle:
            process.reload(make_conf("solo", process.ports, origin.url, ""))
            assert idle.recv(1) == b""  # an idle connection is closed, as at a drain

        def refused() -> bool:
            try:
                socket.create_connection(("127.0.0.1", extra), timeout=1).close()
            except ConnectionRefusedError:
                return True
            return False

        until(refused, 2.0, "the removed listener refuses")
        load.go_on(0.2)
    assert not load.failures
    assert set(load.statuses()) == {200}
    # An address that is taken is a fault like any other: nothing changes.
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        more = f'[[listen]]\nbind = "127.0.0.1:{port}"\n'
        process.reload(make_conf("solo", process.ports, origin.url, "", more=more), accepted=False)
    assert f"127.0.0.1:{port}" in process.log("reload refused")[-1]["fault"]
    assert process.document()["node"]["reload_success"] is False
    with Load([process.address], 50) as load:
        load.go_on(0.2)
    assert set(load.statuses()) == {200}


class Held:
    """A request on a thread of its own, that waits for its turn."""

    def __init__(self, process: NodeProcess) -> None:
        self.answer = b""
        self._sock = socket.create_connection(process.address, timeout=10)
        self._sock.sendall(b"GET /held HTTP/1.1\r\nHost: api.test\r\nConnection: close\r\n\r\n")
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while data := self._sock.recv(65536):
            self.answer += data
        self._sock.close()

    def finish(self) -> bytes:
        self._thread.join(10)
        assert not self._thread.is_alive()
        return self.answer


def test_held_requests_survive_a_reload(
    node: MakeNode, make_conf: MakeConf, origin: Origin
) -> None:
    slow = LIMITED.format(rate=1, burst=1, wait="9s")
    process = node(origin, slow)
    assert Held(process).finish().startswith(b"HTTP/1.1 200 ")  # takes the burst
    held = [Held(process), Held(process)]
    until(lambda: process.upstream()["waiting"] == 2, 3.0, "both are held")
    process.reload(
        make_conf("solo", process.ports, origin.url, LIMITED.format(rate=50, burst=1, wait="9s"))
    )
    assert [h.finish().split(b"\r\n")[0] for h in held] == [b"HTTP/1.1 200 OK"] * 2
    assert len(origin.requests) == 3

    process.reload(make_conf("solo", process.ports, origin.url, slow))
    assert Held(process).finish().startswith(b"HTTP/1.1 200 ")
    orphan = Held(process)
    until(lambda: process.upstream()["waiting"] == 1, 3.0, "one is held")
    text = make_conf("solo", process.ports, origin.url, slow)
    process.reload(text.replace("upstream.api", "upstream.other").replace('= "api"', '= "other"'))
    answer = orphan.finish()
    assert answer.startswith(b"HTTP/1.1 503 "), answer
    assert b"proxy-status:" in answer.lower()
    assert len(origin.requests) == 4


def test_what_needs_a_restart_is_refused(
    node: MakeNode, make_conf: MakeConf, origin: Origin
) -> None:
    process = node(origin)
    ports = free_ports(1)[0]
    ports.listen = process.ports.listen
    process.reload(make_conf("another", ports, origin.url, ""), accepted=False)
    until(lambda: len(process.log("reload refused")) == 2, 2.0, "both faults are logged")
    faults = {line["fault"] for line in process.log("reload refused")}
    for key in ("node.name", "admin.bind"):
        assert any(f"{key}: " in fault and "restart" in fault for fault in faults), faults
    assert process.document()["node"]["name"] == "solo"
    assert process.document()["node"]["reload_success"] is False


def accepted(process: NodeProcess, conf: str) -> bool:
    """Writes the file and reloads; whether it was taken over. What is refused must say why."""
    taken, refused = process.document()["node"]["reloads"], len(process.log("reload refused"))
    process.path.write_text(conf)
    process.signal(signal.SIGHUP)

    def was_taken() -> bool:
        return bool(process.document()["node"]["reloads"] > taken)

    until(
        lambda: was_taken() or len(process.log("reload refused")) > refused,
        5.0,
        "the reload is over",
    )
    if was_taken():
        return True
    faults = [line["fault"] for line in process.log("reload refused")[refused:]]
    assert all("restart" in fault for fault in faults), faults
    return False


def test_what_a_reload_accepts_it_obeys(
    node: MakeNode, make_conf: MakeConf, origin: Origin, tmp_path: Path
) -> None:
    """A key either takes effect on SIGHUP or is refused: never "changed" in the log alone."""
    process = node(origin)
    base = make_conf("solo", process.ports, origin.url, "")
    log = tmp_path / "access.log"
    ignored = []
    if accepted(process, base.replace('drain = "3s"', 'drain = "3s"\ncodec = "h11"')) and (
        process.document()["node"]["codec"] != "h11"
    ):
        ignored.append("node.codec")
    if accepted(process, base.replace('access = "off"', f'access = "{log}"')):
        assert Held(process).finish().startswith(b"HTTP/1.1 200 ")
        try:
            until(lambda: log.exists() and log.read_text(), 1.0, "the access log has a line")
        except AssertionError:
            ignored.append("log.access")
    if accepted(process, base.replace('access = "off"', 'access = "off"\nlevel = "error"')):
        lines = len(process.log("configuration changed"))
        quiet = base.replace('access = "off"', 'access = "off"\nlevel = "error"')
        assert accepted(process, quiet.replace('drain = "3s"', 'drain = "2s"'))
        if len(process.log("configuration changed")) > lines:
            ignored.append("log.level")
    assert ignored == []


def test_a_reload_of_the_mesh_is_obeyed_or_refused(
    mesh: MakeMesh, origin: Origin, tmp_path: Path
) -> None:
    """Above all the keys: who rotates one must not believe that it is in force."""
    old, new = tmp_path / "old.key", tmp_path / "new.key"
    old.write_text("11" * 32)
    new.write_text("22" * 32)
    nodes = mesh(2, origin, keys=[old])
    first, second = nodes
    before = second.drops()
    text = first.path.read_text()
    if accepted(first, text.replace(str(old), str(new))):
        # It seals with the new key, which the other one does not have.
        until(
            lambda: second.drops().get("unknown_key", 0) > before.get("unknown_key", 0),
            2.0,
            "the new key is in use",
        )


def test_every_fault_of_a_reload_names_the_file(
    node: MakeNode, make_conf: MakeConf, origin: Origin
) -> None:
    process = node(origin)
    text = make_conf("another", process.ports, origin.url, "")
    process.reload(text, accepted=False)
    (fault,) = [line["fault"] for line in process.log("reload refused")]
    line = text.splitlines().index('name = "another"') + 1
    assert fault.startswith(f"{process.path}:{line}: node.name: "), fault
