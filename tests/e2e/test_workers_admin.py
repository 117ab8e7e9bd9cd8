"""The admin interface of a node with two workers: what both show, and what both are told."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from fakes.load import Load, peak
from fakes.nodes import COMMAND, NodeProcess, free_ports, until
from fakes.origin import Origin

pytestmark = pytest.mark.e2e

MakeNode = Callable[..., NodeProcess]
MakeConf = Callable[..., str]

WORKERS = ("node.workers=2",)
NAMES = {"solo/0", "solo/1"}
LIMIT = """
[[upstream.api.limit]]
name = "account"
rate = "1000/s"
burst = 100
[[upstream.api.limit]]
name = "paths"
rate = "10000/s"
key = ["path"]
[upstream.api.wait]
max = "0s"
"""
BACK_SECONDS = 15.0


def ask(
    node: NodeProcess, method: str, path: str, body: object = None, token: str = "", raw: str = ""
) -> tuple[int, Any]:
    """(status, document); `raw` is a body that is sent as it is."""
    connection = http.client.HTTPConnection("127.0.0.1", node.ports.admin, timeout=10)
    headers = {"content-type": "application/json"}
    if token:
        headers["authorization"] = f"Bearer {token}"
    try:
        data = raw or (json.dumps(body) if body is not None else None)
        connection.request(method, "/api/v1/" + path, data, headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def shown(node: NodeProcess, resource: str) -> list[dict[str, Any]]:
    status, document = ask(node, "GET", resource)
    assert status == 200, document
    items: list[dict[str, Any]] = document[resource.partition("?")[0]]
    return items


def tell(node: NodeProcess, method: str, path: str, **body: object) -> dict[str, Any]:
    """What was done by both workers."""
    status, document = ask(node, method, path, body)
    assert status == 200, document
    assert document["node"] == "solo"
    assert {one["node"] for one in document["workers"]} == NAMES
    told: dict[str, Any] = document
    return told


def request(node: NodeProcess, path: str = "/") -> int:
    """The status of a request on a connection of its own."""
    with socket.create_connection(node.address, timeout=10) as sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
        return int(sock.makefile("rb").read().split(b" ", 2)[1])


def of_account(node: NodeProcess) -> list[dict[str, Any]]:
    return [limit for limit in shown(node, "limits") if limit["name"] == "account"]


def pages(node: NodeProcess, count: int, query: str = "") -> tuple[list[dict[str, Any]], int]:
    """(all rows of the limit by path, the total that the last page tells)."""
    rows: list[dict[str, Any]] = []
    after = ""
    while True:
        status, page = ask(node, "GET", f"tables/api/paths?count={count}{after}{query}")
        assert status == 200, page
        assert len(page["rows"]) <= count
        rows += page["rows"]
        if page["next"] is None:
            return rows, page["total"]
        after = f"&after={page['next']}"


def test_what_each_worker_shows_is_joined(node: MakeNode, origin: Origin) -> None:
    process = node(origin, LIMIT, settings=WORKERS)
    paths = [f"/{number}" for number in range(40)]
    for path in paths:
        assert request(process, path) == 200
    for resource in ("nodes", "members", "upstreams", "limits", "breakers", "pools", "clients"):
        assert {item["node"] for item in shown(process, resource)} == NAMES, resource
    assert sum(item["requests"] for item in shown(process, "upstreams?upstream=api")) == 40
    assert [item["node"] for item in shown(process, "conf")] == ["solo"]
    recent = shown(process, "recent")
    assert {item["node"] for item in recent} == NAMES | {"solo"}
    assert [item["wall_ms"] for item in recent] == sorted(item["wall_ms"] for item in recent)
    for count in (7, 1000):
        rows, total = pages(process, count)
        found = [(row["node"], row["key"]["path"]) for row in rows]
        assert len(found) == len(set(found)) == total
        assert {path for _, path in found} == set(paths)
        assert {name for name, _ in found} == NAMES
    assert {row["key"]["path"] for row in pages(process, 3, "&prefix=/3")[0]} == {
        "/3",
        *(f"/3{digit}" for digit in range(10)),
    }
    for path, status in (
        ("upstreams?upstream=none", 404),
        ("tables/api/none", 404),
        ("tables/api/paths?part=nonsense", 409),
        ("tables/api/paths?after=ff", 400),
        ("tables/api/paths?after=xyz", 400),
        ("limits?what=ever", 400),
        ("nothing", 404),
    ):
        assert ask(process, "GET", path)[0] == status, path
    assert process.ask("/")[0] == 200  # the dashboard, which reads what is above
    assert ask(process, "GET", "openapi.json")[1]["openapi"] == "3.1.0"
    assert process.document()["counts"]["admin_refused_400"] == 3


def test_a_verb_is_all_workers(node: MakeNode, origin: Origin) -> None:
    process = node(origin, LIMIT, settings=WORKERS)
    for number in range(20):
        request(process, f"/{number}")
    both = {row["node"] for row in pages(process, 100)[0]}
    assert both == NAMES
    assert tell(process, "POST", "tables/api/paths/clear")["count"] == 20
    told = tell(process, "POST", "tables/api/paths/clear", key={"path": "/3"})
    assert told["count"] >= 1
    assert ask(process, "POST", "tables/api/paths/clear", {"key": {"path": "/x"}})[0] == 404

    assert tell(process, "POST", "upstreams/api/pause", for_ms=60_000)["done"].startswith("api is")
    assert {item["state"] for item in shown(process, "breakers")} == {"open"}
    assert {request(process) for _ in range(8)} == {429}
    assert tell(process, "POST", "upstreams/api/resume")["done"] == "api goes on"
    assert {item["state"] for item in shown(process, "breakers")} == {"closed"}

    tell(process, "PUT", "breakers/api", state="open")
    assert {item["forced"] for item in shown(process, "breakers")} == {"open"}
    assert {request(process) for _ in range(8)} == {503}
    tell(process, "PUT", "breakers/api", state="auto")
    # After the pause the limits have no burst, and their rates climb.
    until(lambda: request(process) == 200, 5.0, "requests go again")

    tell(process, "PUT", "drain", draining=True)
    assert process.ask("/ready")[0] == 503
    assert process.document()["node"]["draining"]
    until(lambda: request(process) == 200, 5.0, "who comes all the same is served")
    tell(process, "PUT", "drain", draining=False)
    assert process.ask("/ready")[0] == 200

    for method, path, raw, status in (
        ("PUT", "limits/api/account/rate", "{", 400),
        ("PUT", "limits/api/account/rate", '{"rate": "fast"}', 400),
        ("PUT", "limits/api/none/rate", '{"rate": "5/s"}', 404),
        ("POST", "upstreams/api/pause", '{"for_ms": -1}', 400),
        ("POST", "upstreams/none/pause", '{"for_ms": 5}', 404),
        ("POST", "members/solo%2F1/forget", "{}", 404),  # a path, not a name
        ("POST", "members/nobody/forget", "{}", 404),
        ("DELETE", "limits/api/account/rate", "", 405),
    ):
        assert ask(process, method, path, raw=raw)[0] == status, (path, raw)


@pytest.mark.slow
def test_a_rate_holds_for_the_sum_and_for_who_comes_back(
    node: MakeNode, make_conf: MakeConf, origin: Origin
) -> None:
    process = node(origin, LIMIT, settings=WORKERS)
    told = tell(process, "PUT", "limits/api/account/rate", rate="40/s", burst=10)
    assert "40/s" in told["done"]
    tell(process, "PUT", "drain", draining=True)
    before = len(origin.requests)
    with Load([process.address], 160) as load:
        load.go_on(1.5)
    assert not load.failures
    assert set(load.statuses()) == {200, 429}
    # 40 in a second and a burst of 10, with one token a member; the burst before may have drained.
    assert peak([one.at_ns for one in origin.requests[before:]]) <= 40 + 10 + 2
    os.kill(process.document()["workers"][0]["pid"], signal.SIGKILL)

    def restored() -> bool:
        found = of_account(process)
        ready = process.document()["workers"]
        return (
            [one["restarts"] for one in ready] == [1, 0]
            and len(found) == 2
            and all(one["overridden"] and one["rate"] == "40/s" for one in found)
            and all(item["draining"] for item in shown(process, "nodes"))
        )

    until(restored, BACK_SECONDS, "the new worker has been told")
    tell(process, "PUT", "drain", draining=False)
    told = tell(process, "PUT", "limits/api/account/rate", rate=None)
    assert {one["rate"] for one in of_account(process)} == {"1000/s"}

    tell(process, "PUT", "limits/api/account/rate", rate="50/s")
    status, document = ask(process, "POST", "reload", {})
    assert (status, document["done"]) == (200, "reloaded: generation 2")
    assert {(one["rate"], one["overridden"]) for one in of_account(process)} == {("1000/s", False)}
    good = process.path.read_text()
    process.path.write_text(good + "[nonsense]\n")
    status, document = ask(process, "POST", "reload", {})
    assert status == 422
    assert any("nonsense" in fault for fault in document["faults"])
    assert {item["reload_success"] for item in shown(process, "nodes")} == {False}
    process.path.write_text(good)
    assert ask(process, "POST", "reload", {})[0] == 200
    assert {item["generation"] for item in shown(process, "nodes")} == {3}


def test_a_token_is_wanted_once_and_passed_on(
    node: MakeNode, make_conf: MakeConf, origin: Origin
) -> None:
    ports = free_ports(1)[0]
    text = make_conf("solo", ports, origin.url, LIMIT)
    text = text.replace("[admin]", '[admin]\ntoken = { env = "ADMIN_TOKEN" }')
    secret = "s3cret-of-the-operator"
    environ = {"ADMIN_TOKEN": secret}
    process = node(origin, text=text, ports=ports, settings=WORKERS, environ=environ)
    for token in ("", "wrong"):
        assert ask(process, "GET", "nodes", token=token)[0] == 401
        assert ask(process, "PUT", "drain", {"draining": True}, token=token)[0] == 401
    assert process.ask("/metrics")[0] == 401
    assert process.ask("/ready")[0] == 200
    status, document = ask(process, "GET", "nodes", token=secret)
    assert (status, len(document["nodes"])) == (200, 2)
    assert ask(process, "PUT", "drain", {"draining": True}, token=secret)[0] == 200
    assert ask(process, "GET", "node", token=secret)[1]["counts"]["admin_refused_401"] == 5


def run(node: NodeProcess, line: str) -> tuple[int, str, str]:
    """(exit status, standard output, standard error) of `ctl` or `top`."""
    verb, *others = line.split()
    command = [*COMMAND, verb, "-c", str(node.path), *others]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return done.returncode, done.stdout, done.stderr


def test_ctl_and_top_take_it_for_one_node(node: MakeNode, origin: Origin) -> None:
    process = node(origin, LIMIT, settings=WORKERS)
    for number in range(10):
        request(process, f"/{number}")
    status, out, err = run(process, "ctl show limits")
    assert status == 0, err
    head, *lines = out.splitlines()
    assert head.split()[1] == "node"
    assert sorted({line.split()[0] for line in lines}) == sorted(NAMES)
    status, out, err = run(process, "ctl show table api/paths --rows 4")
    assert (status, len(out.splitlines())) == (0, 5), err
    assert "rows in all" in err
    status, out, err = run(process, "ctl set rate api/account 30/s")
    assert status == 0, err
    assert out.startswith("solo: limit api/account is 30/s")
    status, out, err = run(process, "ctl clear table api/paths")
    assert (status, out) == (0, "solo: cleared 10 rows of api/paths\n"), err
    status, out, err = run(process, "ctl drain")
    assert (status, out) == (0, "solo: draining: /ready says no\n"), err
    assert run(process, "ctl forget nobody")[0] == 1
    status, out, err = run(process, "ctl reload")
    assert (status, out) == (0, "solo: reloaded: generation 2\n"), err
    status, out, err = run(process, "top --once")
    assert status == 0, err
    for word in (*NAMES, "api/account", "draining"):
        assert word in out
