"""The API of a whole gateway: every resource has its shape, every verb does what it says."""

from __future__ import annotations

import http.client
import json
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from fakes.gateway import Gateway
from fakes.nodes import free_ports
from fakes.origin import Origin

from gateway.admin.api import OPERATIONS
from gateway.admin.app import make_app
from gateway.admin.events import Snapshots, read_snapshot
from gateway.admin.openapi import openapi_document
from gateway.admin.resources import RESOURCES, latency
from gateway.ctl.client import Admin, NotAnswered, Refused
from gateway.proxy.histogram import BOUNDS_NS

CONF = """
[[listen]]
bind = "127.0.0.1:0"
[admin]
bind = "unix:{admin}"
[upstream.api]
origin = "{origin}"
headers = {{ set = {{ X-Set = {{ env = "API_SECRET" }} }} }}
[[upstream.api.limit]]
name = "account"
rate = "{rate}"
burst = 5
[[upstream.api.limit]]
name = "per-key"
rate = "500/s"
burst = 50
key = ["client", "credential"]
[[upstream.api.limit]]
name = "quota"
rate = "600/min"
algorithm = "window"
sync = "local"
[[upstream.api.limit]]
name = "open"
in_flight = 40
[upstream.api.wait]
max = "{wait}"
[upstream.other]
origin = "{origin}"
[[route]]
upstream = "api"
[[client]]
name = "billing"
source = ["127.0.0.0/8"]
weight = 3
"""
SECRET = "hush-hush-value"
Make = Callable[..., tuple[Gateway, Admin, Origin]]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    monkeypatch.setenv("API_SECRET", SECRET)
    with Origin() as origin:
        gateways: list[Gateway] = []

        def start(
            rate: str = "100/s", wait: str = "0s", more: str = ""
        ) -> tuple[Gateway, Admin, Origin]:
            path = tmp_path / "admin.sock"
            text = CONF.format(admin=path, origin=origin.url, rate=rate, wait=wait) + more
            gateway = Gateway(text, tmp_path)
            gateway.__enter__()
            gateways.append(gateway)
            return gateway, Admin(f"unix:{path}"), origin

        yield start
        for gateway in gateways:
            gateway.__exit__(None)


def statuses(gateway: Gateway, count: int, *fields: bytes) -> list[int]:
    with gateway.client() as client:
        sent = b"".join(field + b"\r\n" for field in fields)
        return [client.get(fields=sent).status for _ in range(count)]


def one(items: list[dict[str, Any]], **facts: Any) -> dict[str, Any]:
    (found,) = [item for item in items if facts.items() <= item.items()]
    return found


def test_every_resource_has_the_shape_that_the_document_tells(make: Make) -> None:
    gateway, admin, _ = make()
    assert statuses(gateway, 3, b"Authorization: Bearer abc") == [200, 200, 200]
    admin.tell("PUT", "breakers", "api", state="open", credential="ab" * 16)
    for operation in OPERATIONS:
        if operation.method == "GET" and "{" not in operation.path:
            document = admin.get(operation.path.strip("/"))
            jsonschema_rs.validator_for(operation.gives).validate(document)
            if operation.path.strip("/") != "members":  # it stands alone
                assert document
    page = next(one for one in OPERATIONS if one.name == "show_table")
    for limit in ("account", "per-key", "quota", "open"):
        document = admin.get("tables", "api", limit)
        jsonschema_rs.validator_for(page.gives).validate(document)
        assert len(document["rows"]) == 1


def test_what_happened_is_shown(make: Make) -> None:
    gateway, admin, _ = make()
    assert statuses(gateway, 4, b"Authorization: Bearer abc") == [200] * 4
    api = one(admin.get("upstreams")["upstreams"], name="api")
    assert (api["requests"], api["responses"]["2xx"], sum(api["heads"])) == (4, 4, 4)
    assert api["latency_ms"]["p50"] <= api["latency_ms"]["p99"]
    limit = one(admin.get("limits", upstream="api")["limits"], name="account")
    assert (limit["admitted_own"], limit["rate"], limit["overridden"]) == (4, "100/s", False)
    (row,) = admin.get("tables", "api", "per-key")["rows"]
    assert row["key"]["client"] == "billing"
    assert len(row["key"]["credential"]) == 32
    assert one(admin.get("clients")["clients"], name="billing")["weight"] == 3
    pool = one(admin.get("pools")["pools"], upstream="api")
    assert (pool["dials"], pool["reuses"]) == (1, 3)
    assert admin.get("limits", upstream="other")["limits"] == []


def test_a_pool_that_upstreams_share_is_shown_once(make: Make) -> None:
    gateway, admin, origin = make()
    twin = f'[upstream.twin]\norigin = "{origin.url}"\nconnections = 7\n'
    assert gateway.reload(gateway.path.read_text() + twin)
    assert statuses(gateway, 2, b"Authorization: Bearer abc") == [200] * 2
    pools = admin.get("pools")["pools"]
    pool = one(pools, upstream="api")
    assert pool["shared_with"] == ["other", "twin"]
    assert (pool["dials"], pool["max"]) == (1, 200 + 200 + 7)
    assert len(pools) == 1
    # Asked for by the other's name it is the same one.
    (same,) = admin.get("pools", upstream="twin")["pools"]
    assert (same["shared_with"], same["dials"]) == (["api", "other"], 1)


def test_no_secret_is_in_anything(make: Make) -> None:
    gateway, admin, _ = make()
    statuses(gateway, 1, b"Authorization: Bearer abcdefgh")
    for name in RESOURCES:
        text = json.dumps(admin.get(name))
        assert SECRET not in text
        assert "abcdefgh" not in text
    shown = admin.get("conf")["conf"][0]["conf"]
    assert shown["upstream"]["api"]["headers"]["set"] == {"X-Set": "<secret from env API_SECRET>"}
    assert shown["upstream"]["api"]["limit"][0]["rate"] == "100/s"


def test_a_rate_is_set_until_the_next_reload(make: Make) -> None:
    gateway, admin, _ = make(rate="1000/h")
    assert statuses(gateway, 6) == [200] * 5 + [429]
    done = admin.tell("PUT", "limits", "api", "account", "rate", rate="1000/s", burst=10)
    assert done["reach"] == "node"  # there is no mesh
    limit = one(admin.get("limits")["limits"], name="account")
    assert (limit["rate"], limit["rate_in_file"], limit["overridden"]) == ("1000/s", "1000/h", True)
    gateway.until(lambda: gateway.upstream("api").limit_set.limits[0].entry(b"", 0))
    assert statuses(gateway, 2) == [200, 200]
    assert limit["refused"] == 1  # counts go on
    admin.tell("POST", "reload")
    limit = one(admin.get("limits")["limits"], name="account")
    assert (limit["rate"], limit["burst"], limit["overridden"]) == ("1000/h", 5, False)


def test_a_rate_that_is_raised_lets_those_go_who_wait(make: Make) -> None:
    gateway, admin, origin = make(rate="3/min", wait="30s")
    assert statuses(gateway, 5) == [200] * 5
    with gateway.client() as client:
        client.send(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
        gateway.until(lambda: gateway.server.worker.waitroom.waiting_count == 1)
        (wait,) = admin.get("waits")["waits"]
        assert (wait["at"], wait["limit"], wait["first_client"]) == ("limit", "account", "billing")
        admin.tell("PUT", "limits", "api", "account", "rate", rate="1000/s")
        assert client.response().status == 200
    assert len(origin.requests) == 6


def test_null_gives_the_files_rate_back(make: Make) -> None:
    _, admin, _ = make()
    admin.tell("PUT", "limits", "api", "quota", "rate", rate="10/min")
    assert one(admin.get("limits")["limits"], name="quota")["quota"] == 10
    admin.tell("PUT", "limits", "api", "quota", "rate", rate=None)
    limit = one(admin.get("limits")["limits"], name="quota")
    assert (limit["quota"], limit["overridden"]) == (600, False)


IMPOSSIBLE: list[tuple[str, dict[str, Any], str]] = [
    ("open", {"rate": "5/s"}, "counts requests in flight"),
    ("quota", {"rate": "5/s"}, "a window keeps its length: N/min"),
    ("quota", {"rate": "5/min", "burst": 3}, "has no meaning with algorithm"),
    ("account", {"rate": "0/s"}, "0/s"),
    ("account", {"rate": "5000000000/s"}, "the mesh counts tokens up to 4294967295"),
    ("account", {"rate": None, "burst": 3}, "burst goes with a rate"),
    ("account", {"rate": "5"}, "must match"),
    ("account", {"rate": 5}, "must be string or null"),
    ("account", {}, "rate is missing"),
    ("account", {"rate": "5/s", "brust": 1}, "no key 'brust'; it has rate, burst"),
    ("nobody", {"rate": "5/s"}, "has no limit nobody"),
]


def test_a_rate_that_cannot_be_changes_nothing(make: Make) -> None:
    _, admin, _ = make()
    before = [(one["name"], one["rate"], one["burst"]) for one in admin.get("limits")["limits"]]
    for limit, body, words in IMPOSSIBLE:
        with pytest.raises(Refused, match=words):
            admin.tell("PUT", "limits", "api", limit, "rate", **body)
    assert before == [(x["name"], x["rate"], x["burst"]) for x in admin.get("limits")["limits"]]


def test_mesh_wide_limits_of_each_kind_are_shown_and_cleared(make: Make) -> None:
    (ports,) = free_ports(1)
    more = f"""
[mesh]
bind = "127.0.0.1:{ports.mesh}"
[[upstream.api.limit]]
name = "window"
rate = "600/h"
algorithm = "window"
[[upstream.api.limit]]
name = "held"
in_flight = 10
sync = "mesh"
"""
    gateway, admin, _ = make(more=more)
    assert statuses(gateway, 3) == [200] * 3
    page = next(one for one in OPERATIONS if one.name == "show_table")
    for limit in ("account", "window", "held"):
        document = admin.get("tables", "api", limit)
        jsonschema_rs.validator_for(page.gives).validate(document)
        assert document["rows"][0]["admitted_own"] == 3
    listed = next(one for one in OPERATIONS if one.name == "list_limits")
    jsonschema_rs.validator_for(listed.gives).validate(admin.get("limits"))
    for limit in ("account", "window"):
        done = admin.tell("POST", "tables", "api", limit, "clear")
        assert "what other members hold comes back" in done["done"]
        assert admin.get("tables", "api", limit)["rows"][0]["level"] == 0.0
    with pytest.raises(Refused, match="nothing to clear"):
        admin.tell("POST", "tables", "api", "held", "clear")
    assert admin.tell("PUT", "limits", "api", "window", "rate", rate="60/h")["reach"] == "mesh"
    assert admin.tell("POST", "upstreams", "api", "pause", for_ms=1000)["reach"] == "mesh"
    (member,) = admin.get("members")["members"]
    with pytest.raises(Refused, match="gw-test is alive; only a dead member"):
        admin.tell("POST", "members", member["name"], "forget")


def test_a_table_and_a_row_are_cleared(make: Make) -> None:
    gateway, admin, _ = make(rate="5/h")
    assert statuses(gateway, 6) == [200] * 5 + [429]
    assert admin.tell("POST", "tables", "api", "account", "clear")["count"] == 1
    assert statuses(gateway, 1, b"Authorization: a") == [200]
    (first,) = admin.get("tables", "api", "per-key", part="credential", prefix="")["rows"]
    done = admin.tell("POST", "tables", "api", "per-key", "clear", key=first["key"])
    assert done["done"] == "cleared 1 row of api/per-key"
    with pytest.raises(Refused, match="no row of this key"):
        key = {"client": "billing", "credential": "00"}
        admin.tell("POST", "tables", "api", "per-key", "clear", key=key)
    with pytest.raises(Refused, match="key parts: client, credential"):
        admin.tell("POST", "tables", "api", "per-key", "clear", key={"client": "billing"})
    with pytest.raises(Refused, match="nothing to clear"):
        admin.tell("POST", "tables", "api", "open", "clear")


def test_a_breaker_is_held_open_and_closed(make: Make) -> None:
    gateway, admin, _ = make(wait="2s")  # after a pause there is no burst
    admin.tell("PUT", "breakers", "api", state="open")
    assert statuses(gateway, 1) == [503]
    shown = one(admin.get("breakers")["breakers"], upstream="api", credential=None)
    assert (shown["state"], shown["forced"]) == ("closed", "open")
    admin.tell("POST", "upstreams", "api", "pause", for_ms=60_000)
    admin.tell("PUT", "breakers", "api", state="closed")
    assert statuses(gateway, 1) == [200]
    admin.tell("PUT", "breakers", "api", state="auto")
    assert statuses(gateway, 1) == [429]  # the pause is still there
    admin.tell("POST", "upstreams", "api", "resume")
    assert statuses(gateway, 1) == [200]


def test_a_credential_is_named_by_the_beginning_of_its_hash(make: Make) -> None:
    gateway, admin, _ = make()
    statuses(gateway, 1, b"Authorization: Bearer one")
    (row,) = admin.get("tables", "api", "per-key")["rows"]
    whole = row["key"]["credential"]
    with pytest.raises(Refused, match="its whole hash will do"):
        admin.tell("PUT", "breakers", "api", state="open", credential=whole[:8])
    admin.tell("PUT", "breakers", "api", state="open", credential=whole)
    assert statuses(gateway, 1, b"Authorization: Bearer one") == [503]
    assert statuses(gateway, 1, b"Authorization: Bearer two") == [200]
    admin.tell("PUT", "breakers", "api", state="auto", credential=whole[:8])
    assert statuses(gateway, 1, b"Authorization: Bearer one") == [200]
    near = whole[:8] + "0" * 24
    admin.tell("PUT", "breakers", "api", state="open", credential=whole)
    admin.tell("PUT", "breakers", "api", state="open", credential=near)
    with pytest.raises(Refused, match="2 credentials begin with"):
        admin.tell("PUT", "breakers", "api", state="auto", credential=whole[:8])


def test_a_pause_holds_requests_and_resume_lets_them_go(make: Make) -> None:
    gateway, admin, _ = make(wait="30s")
    done = admin.tell("POST", "upstreams", "api", "pause", for_ms=20_000)
    assert done["done"].startswith("api is paused")
    with gateway.client() as client:
        client.send(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
        gateway.until(lambda: gateway.server.worker.waitroom.waiting_count == 1)
        assert one(admin.get("waits")["waits"], at="breaker")["waiting"] == 1
        admin.tell("POST", "upstreams", "api", "resume")
        assert client.response().status == 200
    assert "was not paused" in admin.tell("POST", "upstreams", "api", "resume")["done"]
    with pytest.raises(Refused, match=r"breaker\.pause_max of api is 1h"):
        admin.tell("POST", "upstreams", "api", "pause", for_ms=3_600_001)


def test_a_drained_node_is_not_ready_and_serves(make: Make) -> None:
    gateway, admin, _ = make()
    for draining in (True, False):
        admin.tell("PUT", "drain", draining=draining)
        (node,) = admin.get("nodes")["nodes"]
        assert (node["draining"], node["ready"]) == (draining, not draining)
        with gateway.client() as client:
            response = client.get()
            assert response.status == 200
            assert (b"close" in response.values(b"connection")) is draining


def test_a_faulty_file_is_refused_with_every_fault(make: Make) -> None:
    gateway, admin, _ = make()
    text = gateway.path.read_text()
    gateway.path.write_text(text + '\n[nonsense]\na = 1\n[log]\nlevel = "loud"\n')
    with pytest.raises(Refused) as caught:
        admin.tell("POST", "reload")
    assert "nonsense" in str(caught.value)
    assert "log.level" in str(caught.value)
    assert one(admin.get("recent")["recent"][-1:], level="error")["event"] == "reload refused"
    gateway.path.write_text(text)
    assert admin.tell("POST", "reload")["done"] == "reloaded: generation 2"


def test_there_is_no_member_to_forget_without_a_mesh(make: Make) -> None:
    _, admin, _ = make()
    with pytest.raises(Refused, match="no member gw-9 is known"):
        admin.tell("POST", "members", "gw-9", "forget")


def test_a_stopping_node_takes_no_orders(make: Make) -> None:
    gateway, admin, _ = make()
    with gateway.client() as client:
        client.send(b"GET / HTTP/1.1\r\nHost: api.test\r\n")  # so that draining has to wait
        gateway.until(lambda: gateway.connections())
        gateway.loop.call_soon_threadsafe(gateway.server.stop)
        gateway.until(lambda: not gateway.server.ready)
        with pytest.raises(Refused, match="starting or stopping"):
            admin.tell("PUT", "drain", draining=False)


def raw_status(path: str, method: str, target: str, body: bytes, **headers: str) -> int:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    connection = http.client.HTTPConnection("localhost", timeout=10)
    connection.sock = sock
    connection.request(method, target, body, headers)
    status = connection.getresponse().status
    connection.close()
    return status


def test_the_unix_socket_is_for_its_owner_and_group(make: Make) -> None:
    _, admin, _ = make()
    assert stat.S_IMODE(Path(admin.where.removeprefix("unix:")).stat().st_mode) == 0o660


def test_a_verb_is_json_and_small_and_strict(make: Make) -> None:
    _, admin, _ = make()
    path = admin.where.removeprefix("unix:")
    json_type = {"Content-Type": "application/json"}

    def told(body: bytes, target: str = "/api/v1/drain", **headers: str) -> int:
        return raw_status(path, "PUT", target, body, **(headers or json_type))

    good = b'{"draining": false}'
    assert told(good) == 200
    assert told(good, **{"Content-Type": "application/json; charset=utf-8"}) == 200
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        assert told(good, **{"Content-Type": kind}) == 415
    for bad in (
        b"", b"{", b"[]", b"null", b'"x"', b"{}", b'{"draining": 0}', b'{"draining": null}',
        b'{"draining": true, "draining": false}', b'{"draining": false, "x": 1}',
        b'{"draining": NaN}', b"\xff\xfe", b"[" * 10_000, b'{"a":' * 2000,
    ):  # fmt: skip
        assert told(bad) == 400
    assert told(b" " * 20_000) == 413
    assert told(good, "/api/v1/drain?x=1") == 400
    for query in ("x=1", "upstream=api&upstream=api", "upstream=%ff", "upstream", "upstream=API"):
        assert raw_status(path, "GET", f"/api/v1/limits?{query}", b"") == 400
    for query in ("count=0", "count=1001", "count=x", "after=zz", "after=0"):
        assert raw_status(path, "GET", f"/api/v1/tables/api/account?{query}", b"") == 400
    # Another limit has such a part.
    assert raw_status(path, "GET", "/api/v1/tables/api/account?part=credential", b"") == 409
    for target in ("/api/v1/tables/api/nobody", "/api/v1/tables/x/account", "/api/v1/nothing"):
        assert raw_status(path, "GET", target, b"") == 404
    assert raw_status(path, "GET", "/api/v1/limits?upstream=nobody", b"") == 404
    assert raw_status(path, "POST", "/api/v1/drain", good, **json_type) == 405
    counts = admin.get("node")["counts"]
    assert (counts["admin_refused_415"], counts["admin_refused_413"]) == (4, 1)


def test_the_document_names_every_route_and_no_other(make_served: Callable[..., Any]) -> None:
    served = make_served()
    app: Any = make_app(served, Snapshots(partial(read_snapshot, served)))
    routes = {
        (method.lower(), route.path)
        for route in app._app.routes
        for method in route.methods - {"HEAD"}
        if route.path.startswith("/api/")
    }
    document = openapi_document()
    told = {(method, path) for path, item in document["paths"].items() for method in item}
    assert routes == told
    names = [item["operationId"] for path in document["paths"].values() for item in path.values()]
    assert len(names) == len(set(names))


def test_quantiles_lie_within_their_class() -> None:
    heads = [0] * (len(BOUNDS_NS) + 1)
    assert latency(heads) == {"p50": None, "p90": None, "p99": None}
    heads[3] = 100  # 5 to 10 ms
    assert latency(heads) == {"p50": 7.5, "p90": 9.5, "p99": 9.95}
    heads[-1] = 100  # above 60 s
    assert latency(heads) == {"p50": 10.0, "p90": 60000.0, "p99": 60000.0}


def test_snapshots_come_once_a_second_and_end(make: Make) -> None:
    gateway, admin, _ = make()
    statuses(gateway, 1)
    first, second = admin.snapshots(2)
    assert second["now_ns"] - first["now_ns"] >= 900_000_000
    assert one(first["upstreams"], name="api")["requests"] == 1
    for name in ("nodes", "members", "upstreams", "limits", "breakers", "waits", "recent"):
        assert isinstance(first[name], list)
    assert first["truncated"] is False


def test_readers_are_bounded_and_end_with_the_node(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.admin.events.READERS_MAX", 2)
    monkeypatch.setattr("gateway.admin.events.SNAPSHOT_SECONDS", 0.05)
    gateway, admin, _ = make()
    streams = [admin.snapshots(), admin.snapshots()]
    for stream in streams:
        next(stream)
    with pytest.raises(Refused, match="2 readers are served at a time"):
        next(admin.snapshots())
    streams.pop().close()
    left = threading.Event()

    def again() -> None:
        while not left.is_set():
            try:
                next(admin.snapshots(1))
                left.set()
            except Refused:
                pass  # the node has not heard yet that one is gone

    reader = threading.Thread(target=again)
    reader.start()
    reader.join(10)
    assert left.is_set()
    gateway.loop.call_soon_threadsafe(gateway.server.stop)
    with pytest.raises(NotAnswered):
        for _ in streams.pop():
            pass
