"""The operator's view: ctl, the admin API, metrics."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from fakes.origin import Origin, answer
from fakes.spooled import Spooled

from gateway.cli import main

Make = Callable[..., tuple[Spooled, Origin]]
ONE_AN_HOUR = 'limit = [{ name = "l", rate = "1/h", burst = 1, sync = "local" }]'


class Admin(http.client.HTTPConnection):
    """The admin interface on its unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=10)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(str(self._path))

    def ask(self, path: str, method: str = "GET", body: object = None) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body).encode()
        self.request(method, path, data, {"Content-Type": "application/json"} if data else {})
        response = self.getresponse()
        found = response.read()
        self.close()
        return response.status, (found if path == "/metrics" else json.loads(found))


@pytest.fixture
def admin(tmp_path: Path) -> Admin:
    return Admin(tmp_path / "admin.sock")


@pytest.fixture
def more(tmp_path: Path) -> str:
    return f'[admin]\nbind = "unix:{tmp_path / "admin.sock"}"\n'


def ctl(admin: Admin, *words: str, status: int = 0) -> str:
    result: Result = CliRunner().invoke(
        main, ["ctl", "--admin", f"unix:{admin._path}", "spool", *words]
    )
    assert result.exit_code == status, result.output
    return result.output


def test_dead_letters_are_listed_shown_queued_again_and_dropped(
    make: Make, admin: Admin, more: str
) -> None:
    gateway, origin = make(answer(b"503 No"), rule="attempts = 1", more=more)
    paths = [gateway.post(b"%d" % n).value(b"location") for n in range(2)]
    for path in paths:
        gateway.until_state(path, "dead")
    first, second = (path.rpartition(b"/")[2].decode() for path in paths)
    lines = ctl(admin, "list", "--state", "dead").splitlines()
    assert len(lines) == 3
    assert [line.split()[0] for line in lines[1:]] == [first, second]
    assert "attempts" in lines[1]
    assert "reason: attempts" in ctl(admin, "show", first)
    origin.script = answer()
    assert "queued again" in ctl(admin, "requeue", first)
    assert gateway.until_state(paths[0], "done")["attempts"] == 0
    ctl(admin, "drop", second)
    assert gateway.ask(paths[1]).status == 404
    ctl(admin, "requeue", second, status=1)
    ctl(admin, "show", second, status=1)
    assert len(ctl(admin, "list", "--rows", "1").splitlines()) == 2
    status, document = admin.ask("/api/v1/spool?state=dead")
    assert (status, document) == (200, {"records": [], "next": None})


def test_held_back_it_stays_over_a_restart(
    make: Make, admin: Admin, more: str, tmp_path: Path
) -> None:
    gateway, origin = make(more=more)
    ctl(admin, "pause", "api")
    path = gateway.post().value(b"location")
    assert gateway.post(asks=False).status == 200
    text = gateway.path.read_text()
    gateway.stop()
    with Spooled(text, tmp_path) as again:
        assert again.state(path)["state"] == "queued"
        assert again.spool.store.paused == {"api"}
        assert len(origin.requests) == 1
        ctl(admin, "resume", "api")
        again.until_state(path, "done")
    assert len(origin.requests) == 2


def test_pages_follow_each_other(make: Make, admin: Admin, more: str) -> None:
    gateway, _ = make(upstream=ONE_AN_HOUR, more=more)
    ids = [gateway.post().value(b"location").rpartition(b"/")[2].decode() for _ in range(5)]
    found, after = [], 0
    while after is not None:
        _, page = admin.ask(f"/api/v1/spool?count=2&after={after}")
        assert len(page["records"]) <= 2
        found += [item["id"] for item in page["records"]]
        after = page["next"]
    assert found == ids


def test_a_queued_one_can_be_dropped(make: Make, admin: Admin, more: str) -> None:
    gateway, origin = make(upstream=ONE_AN_HOUR, more=more)
    gateway.until_state(gateway.post().value(b"location"), "done")
    path = gateway.post().value(b"location")
    gateway.until(lambda: not gateway.spool.waiting)
    ctl(admin, "drop", path.rpartition(b"/")[2].decode())
    assert gateway.spool.waiting_count == 0
    assert gateway.ask(path).status == 404
    assert len(origin.requests) == 1


@pytest.mark.parametrize("name", ["x", "gw-test.0", "gw-test." + "z" * 32, "other." + "0" * 32])
def test_what_is_no_id_is_not_found(make: Make, admin: Admin, more: str, name: str) -> None:
    make(more=more)
    assert admin.ask(f"/api/v1/spool/records/{name}")[0] == 404
    for verb in ("requeue", "drop"):
        assert admin.ask(f"/api/v1/spool/records/{name}/{verb}", "POST", {})[0] == 404


def test_garbage_is_refused(make: Make, admin: Admin, more: str) -> None:
    make(more=more)
    for query in ("state=gone", "after=-1", "count=0", "count=99999", "upstream=%00", "x=y"):
        assert admin.ask(f"/api/v1/spool?{query}")[0] == 400
    assert admin.ask("/api/v1/spool/upstreams/none", "PUT", {"held": True})[0] == 404
    assert admin.ask("/api/v1/spool/upstreams/api", "PUT", {"held": 1})[0] == 400


def test_metrics_tell_of_it(make: Make, admin: Admin, more: str) -> None:
    gateway, _ = make(upstream=ONE_AN_HOUR, more=more)
    gateway.until_state(gateway.post().value(b"location"), "done")
    gateway.post()
    _, text = admin.ask("/metrics")
    lines = set(text.decode().splitlines())
    assert "egressd_spool_accepted_total 2.0" in lines
    assert "egressd_spool_done_total 1.0" in lines
    assert 'egressd_spool_requests{state="queued",upstream="api"} 1.0' in lines
    figures = gateway.call(gateway.server.durable.spool.desk.figures)  # type: ignore[union-attr]
    assert figures["commits"] >= 2
    assert figures["commit_s"] > 0
    assert 0 <= figures["oldest_s"] < 60


def test_no_secret_is_shown(make: Make, admin: Admin, more: str) -> None:
    gateway, _ = make(upstream=ONE_AN_HOUR, more=more)
    for _ in range(2):
        path = gateway.post(b"a-private-body", b"Authorization: Bearer of-value\r\n")
    name = path.value(b"location").rpartition(b"/")[2].decode()
    shown = json.dumps([admin.ask(f"/api/v1/spool/records/{name}"), admin.ask("/api/v1/spool")])
    shown += ctl(admin, "list") + ctl(admin, "show", name)
    assert "of-value" not in shown
    assert "a-private-body" not in shown
