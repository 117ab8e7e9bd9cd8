"""Limits with `sync = "redis"` on the data path: a real Redis decides, and the mesh without it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from fakes.gateway import Gateway
from fakes.nodes import free_ports
from fakes.origin import Origin, answer
from fakes.redis_server import RedisServer, redis_missing

pytestmark = pytest.mark.skipif(bool(redis_missing()), reason=redis_missing())

Make = Callable[..., tuple[Gateway, Origin]]

LIMIT = """
[[upstream.api.limit]]
name = "account"
rate = "{rate}"
burst = {burst}
sync = "redis"
{more}
"""
WAIT = """
[upstream.api.wait]
max = "{max}"
"""


def limit(rate: str = "1/min", burst: int = 3, more: str = "", wait: str = "0s") -> str:
    return LIMIT.format(rate=rate, burst=burst, more=more) + WAIT.format(max=wait)


def store_conf(url: str, timeout: str = "200ms") -> str:
    """[redis] and a [mesh] of this node alone. The timeout is long: the machine may be busy."""
    port = free_ports(1)[0].mesh
    shown = url if url.startswith("{") else f'"{url}"'
    return f'[redis]\nurl = {shown}\ntimeout = "{timeout}"\n[mesh]\nbind = "127.0.0.1:{port}"\n'


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as server:
        yield server


def store(gateway: Gateway) -> dict[str, Any]:
    found: dict[str, Any] | None = gateway.call(gateway.server.store.document)
    assert found is not None
    return found


def is_up(gateway: Gateway) -> bool:
    return gateway.server.store.up


def statuses(gateway: Gateway, count: int, fields: bytes = b"") -> list[int]:
    with gateway.client() as client:
        return [client.get(fields=fields).status for _ in range(count)]


def test_redis_decides(make: Make, server: RedisServer) -> None:
    gateway, origin = make(upstream=limit(), more=store_conf(server.url))
    assert is_up(gateway), "the start waits for the first try"
    with gateway.client() as client:
        assert [client.get().status for _ in range(3)] == [200] * 3
        refused = client.get()
    assert refused.status == 429
    assert int(refused.value(b"retry-after")) in (59, 60)
    assert b"account" in refused.body
    assert len(origin.requests) == 3
    assert len(server.keys()) == 1
    assert store(gateway)["calls"] == 4
    assert 0 < store(gateway)["delay_ms"] < 200


def test_a_refusal_is_told_without_asking_again(make: Make, server: RedisServer) -> None:
    gateway, _ = make(upstream=limit(), more=store_conf(server.url))
    assert statuses(gateway, 50) == [200] * 3 + [429] * 47
    assert store(gateway)["calls"] == 4, "the row is closed until the time that Redis told"


def test_requests_that_wait_go_at_the_told_time_and_one_asks_for_all(
    make: Make, server: RedisServer
) -> None:
    gateway, origin = make(upstream=limit("50/s", 1, wait="5s"), more=store_conf(server.url))
    with ExitStack() as stack:
        clients = [stack.enter_context(gateway.client()) for _ in range(40)]
        begun = time.monotonic()
        for client in clients:
            client.send(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
        assert {client.response().status for client in clients} == {200}
        took = time.monotonic() - begun
    stamps = [request.at_ns for request in origin.requests]
    assert len(stamps) == 40
    assert took >= 39 / 50 - 0.1
    # 40 in the first turn, before anybody knew; then two for each token, and now and then one more.
    assert store(gateway)["calls"] <= 40 + 3 * 40


def test_all_limits_agree_or_none_is_touched(make: Make, server: RedisServer) -> None:
    upstream = LIMIT.format(rate="1/min", burst=5, more="").replace("account", "wide") + limit(
        "1/min", 1, 'key = ["header:X-Key"]'
    )
    gateway, origin = make(upstream=upstream, more=store_conf(server.url))
    assert statuses(gateway, 10, b"X-Key: a\r\n") == [200] + [429] * 9
    # Nine refusals took nothing from the wide one.
    keys = [b"X-Key: %d\r\n" % number for number in range(6)]
    assert [statuses(gateway, 1, key) for key in keys] == [[200]] * 4 + [[429]] * 2
    assert len(origin.requests) == 5


def test_a_limit_of_the_node_beside_it(make: Make, server: RedisServer) -> None:
    local = '[[upstream.api.limit]]\nname = "own"\nrate = "1/min"\nburst = 2\nsync = "local"\n'
    gateway, _ = make(upstream=local + limit(burst=5), more=store_conf(server.url))
    assert statuses(gateway, 8) == [200, 200] + [429] * 6
    assert store(gateway)["calls"] == 2, "what another limit blocks is not asked"


def test_a_cost_that_the_request_tells(make: Make, server: RedisServer) -> None:
    more = 'cost = { header = "X-Cost" }'
    gateway, _ = make(upstream=limit(burst=10, more=more), more=store_conf(server.url))
    assert statuses(gateway, 2, b"X-Cost: 4\r\n") == [200, 200]
    assert statuses(gateway, 1, b"X-Cost: 3\r\n") == [429]
    assert statuses(gateway, 1, b"X-Cost: 2\r\n") == [200]
    with gateway.client() as client:
        never = client.get(fields=b"X-Cost: 11\r\n")
    assert never.status == 429 and not never.values(b"retry-after")
    assert store(gateway)["calls"] == 4


def test_a_cost_that_the_response_tells(make: Make, server: RedisServer) -> None:
    more = 'cost = { response_header = "X-Used" }'
    gateway, _ = make(
        answer(fields=b"X-Used: 4\r\n"), limit(burst=12, more=more), store_conf(server.url)
    )
    # It reserves 1 and is told 4 (3 of debt), then reserves the mean, 4, twice.
    assert statuses(gateway, 4) == [200, 200, 200, 429]
    assert store(gateway)["charges"] == 1


def test_windows(make: Make, server: RedisServer) -> None:
    upstream = limit(burst=3, more='algorithm = "window"').replace("burst = 3", "")
    upstream = upstream.replace('"1/min"', '"3/min"')
    gateway, _ = make(upstream=upstream, more=store_conf(server.url))
    assert statuses(gateway, 4) == [200] * 3 + [429]


def test_a_dry_run_counts_and_refuses_nobody(make: Make, server: RedisServer) -> None:
    gateway, _ = make(upstream=limit(more="dry_run = true"), more=store_conf(server.url))
    assert statuses(gateway, 6) == [200] * 6
    counted = gateway.call(lambda: gateway.upstream("api").limit_set.would_refuse)
    assert counted == [3]


def test_scripts_are_flushed_and_the_memory_emptied(make: Make, server: RedisServer) -> None:
    gateway, _ = make(upstream=limit(burst=6), more=store_conf(server.url))
    assert statuses(gateway, 2) == [200, 200]
    server.run("SCRIPT", "FLUSH")
    assert statuses(gateway, 2) == [200, 200]
    server.run("FLUSHALL")
    # The limit behind knows what was taken, and tells.
    assert statuses(gateway, 3) == [200, 200, 429]
    assert store(gateway)["scripts_sent"] == 1
    assert store(gateway)["falls"] == 0


def test_it_is_killed_and_comes_back(make: Make, server: RedisServer) -> None:
    gateway, _ = make(upstream=limit(burst=6), more=store_conf(server.url))
    assert statuses(gateway, 3) == [200] * 3
    server.kill()
    gateway.until(lambda: not is_up(gateway))
    assert statuses(gateway, 2) == [200] * 2
    assert store(gateway)["falls"] == 1
    server.start()
    gateway.until(lambda: is_up(gateway))
    # Its memory is lost: it is told what the node knows.
    assert statuses(gateway, 2) == [200, 429]


def test_it_is_silent_and_nobody_waits_twice(make: Make, server: RedisServer) -> None:
    gateway, _ = make(upstream=limit(burst=100), more=store_conf(server.url, "100ms"))
    assert statuses(gateway, 1) == [200]
    server.stall()
    with ExitStack() as stack:
        clients = [stack.enter_context(gateway.client()) for _ in range(10)]
        begun = time.monotonic()
        for client in clients:
            client.send(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
        assert {client.response().status for client in clients} == {200}
        assert time.monotonic() - begun >= 0.09
        calls = store(gateway)["calls"]
        assert {client.get().status for client in clients} == {200}
    found = store(gateway)
    assert found["calls"] == calls and not found["up"]
    assert found["failed_over"] >= 1 and found["reasons"]["timeout"] >= 1
    server.go_on()
    gateway.until(lambda: is_up(gateway))


def test_who_waits_in_line_for_redis_is_served_by_the_mesh(make: Make, server: RedisServer) -> None:
    gateway, _ = make(upstream=limit("1/h", 1, wait="2h"), more=store_conf(server.url))
    with gateway.client() as client, gateway.client() as waiting:
        assert client.get().status == 200
        waiting.send(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
        gateway.until(lambda: gateway.server.worker.waitroom.waiting_count == 1)
        # The mesh's limit is forgiven, so that it has room where Redis has none.
        gateway.call(lambda: [row.clear(time.monotonic_ns()) for row in behind(gateway)])
        server.kill()
        assert waiting.response().status == 200


def test_who_was_held_by_a_pause_goes_with_all_others(make: Make, server: RedisServer) -> None:
    paused = answer(status=b"429 Too Many Requests", fields=b"Retry-After: 1\r\n")

    async def script(connection: Any, request: Any) -> bool | None:
        said = paused if len(origin.requests) == 1 else answer()
        return await said(connection, request)

    upstream = limit("1000/s", 100, wait="30s")
    gateway, origin = make(script, upstream, store_conf(server.url))
    with ExitStack() as stack:
        clients = [stack.enter_context(gateway.client()) for _ in range(20)]
        assert clients[0].get().status == 429
        for client in clients:
            client.send(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
        gateway.until(lambda: gateway.server.worker.waitroom.waiting_count == 20)
        assert {client.response().status for client in clients} == {200}
    assert gateway.server.worker.waitroom.waiting_count == 0
    assert len(origin.requests) == 21
    assert store(gateway)["answers"] == store(gateway)["calls"]


def behind(gateway: Gateway) -> list[Any]:
    """The rows of the limit behind the central one."""
    return list(gateway.upstream("api").limit_set.limits[0].inner.rows())


def test_a_client_that_leaves_while_its_answer_is_on_the_way(
    make: Make, server: RedisServer
) -> None:
    gateway, origin = make(upstream=limit(), more=store_conf(server.url, "1s"))
    server.stall()
    client = gateway.client()
    client.send(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
    gateway.until(lambda: gateway.server.store.counts["calls"] == 1)
    client.sock.close()
    gateway.until(lambda: gateway.connections() == [])
    server.go_on()
    gateway.until(lambda: gateway.server.store.counts["answers"] == 1)
    # What it was granted serves whoever comes in time; or else it is gone, and never too many.
    assert statuses(gateway, 4).count(200) in (2, 3)
    assert gateway.server.worker.waitroom.waiting_count == 0
    assert len(origin.requests) <= 3


def test_a_reload_while_an_answer_is_on_the_way(make: Make, server: RedisServer) -> None:
    more = store_conf(server.url, "1s")
    gateway, _ = make(upstream=limit(), more=more)
    server.stall()
    with gateway.client() as client:
        client.send(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
        gateway.until(lambda: gateway.server.store.counts["calls"] == 1)
        text = gateway.path.read_text()
        assert gateway.reload(text.replace("burst = 3", "burst = 2"))
        server.go_on()
        assert client.response().status == 200
        assert [client.get().status for _ in range(3)] == [200, 429, 429]
        # Away from Redis: the limit behind has counted, and [redis] goes with its connection.
        plain = gateway.path.read_text().replace('sync = "redis"', "")
        assert gateway.reload(plain[: plain.index("[redis]")] + plain[plain.index("[mesh]") :])
        assert client.get().status == 429
    assert gateway.call(gateway.server.store.document) is None


@contextmanager
def pretender(answer: bytes) -> Iterator[int]:
    """A server that gives one answer to whatever comes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.05)
        ended = threading.Event()

        def serve(connection: socket.socket) -> None:
            with connection:
                connection.settimeout(0.05)
                while not ended.is_set():
                    try:
                        if not connection.recv(65536):
                            return
                        connection.sendall(answer)
                    except TimeoutError:
                        continue
                    except OSError:
                        return

        def accept() -> None:
            threads = []
            while not ended.is_set():
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    continue
                threads.append(threading.Thread(target=serve, args=(connection,)))
                threads[-1].start()
            for thread in threads:
                thread.join()

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            ended.set()
            thread.join()


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"+OK\r\n", b"*1\r\n:1\r\n", b":7\r\n", b"$-1\r\n",
     b"-evil\nword x\r\n", b"\x00" * 4000, b"$2000000\r\n" + b"x" * 1_500_000],
    ids=lambda answer: repr(answer[:12]),
)  # fmt: skip
def test_a_server_that_is_no_redis(answer: bytes, make: Make) -> None:
    with pretender(answer) as port:
        gateway, _ = make(upstream=limit(), more=store_conf(f"redis://127.0.0.1:{port}"))
        assert not is_up(gateway)
        assert statuses(gateway, 4) == [200] * 3 + [429]
        reasons = store(gateway)["reasons"]
    assert reasons and set(reasons) <= {"garbage", "timeout", "closed", "wrongpass", "error"}


def test_nobody_listens(make: Make) -> None:
    port = free_ports(1)[0].listen
    gateway, _ = make(upstream=limit(), more=store_conf(f"redis://127.0.0.1:{port}"))
    assert statuses(gateway, 4) == [200] * 3 + [429]
    assert set(store(gateway)["reasons"]) == {"unreachable"}


def test_a_password_is_a_secret(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RedisServer(tmp_path, "--requirepass", "s3cret") as server:
        url = f"redis://:s3cret@127.0.0.1:{server.port}/1"
        monkeypatch.setenv("STORE", url)
        gateway, _ = make(upstream=limit(), more=store_conf('{ env = "STORE" }'))
        assert is_up(gateway)
        assert statuses(gateway, 4) == [200] * 3 + [429]
        assert "s3cret" not in repr(store(gateway))
        assert "s3cret" not in repr(gateway.call(lambda: gateway.server.recent))
        monkeypatch.setenv("STORE", url.replace("s3cret", "wrong"))
        assert gateway.reload(gateway.path.read_text())
        gateway.until(lambda: "wrongpass" in gateway.server.store.reasons)
        assert statuses(gateway, 1) == [429]


def test_over_tls(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import trustme

    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    files = str(tmp_path / "server.pem"), str(tmp_path / "ca.pem")
    options = ("--tls-cert-file", files[0], "--tls-key-file", files[0], "--tls-ca-cert-file",
               files[1], "--tls-auth-clients", "no")  # fmt: skip
    with RedisServer(tmp_path, *options, tls=True) as server:
        more = store_conf(f"rediss://127.0.0.1:{server.port}")
        gateway, _ = make(upstream=limit(), more=more)
        assert not is_up(gateway), "nobody vouches for it"
        assert statuses(gateway, 1) == [200]
        monkeypatch.setenv("SSL_CERT_FILE", files[1])
        gateway.until(lambda: is_up(gateway))
        assert statuses(gateway, 3) == [200, 200, 429]
