"""Limits, waiting, pauses and reloads through a whole gateway."""

from __future__ import annotations

import base64
import json
import time
from contextlib import ExitStack
from email.utils import formatdate

import pytest
from fakes.gateway import Client
from fakes.origin import Connection, Received, answer

from gateway.clock import MS, SECOND
from gateway.proxy import pauses

LIMIT = """
wait = {{ max = "{wait}" }}
[[upstream.api.limit]]
name = "account"
rate = "{rate}"
burst = {burst}
{more}
"""

OTHER_LIMIT = """[[upstream.api.limit]]
name = "other"
rate = "1000/s"
[[upstream.api.limit]]"""


def limited(rate: str = "10/s", burst: int = 2, wait: str = "0s", more: str = "") -> str:
    return LIMIT.format(rate=rate, burst=burst, wait=wait, more=more)


def test_a_limit_refuses_with_all_that_a_client_needs(make) -> None:
    gateway, origin = make(upstream=limited("1/min", 2))
    with gateway.client() as client:
        assert [client.get().status for _ in range(2)] == [200, 200]
        response = client.get()
    assert response.status == 429
    assert 59 <= int(response.value(b"retry-after")) <= 60
    assert 59_000 <= int(response.value(b"retry-after-ms")) <= 60_000
    assert response.value(b"ratelimit-policy").startswith(b'"account";q=1;w=60')
    assert response.value(b"ratelimit").startswith(b'"account";r=0;t=')
    assert response.value(b"cache-control") == b"no-store"
    assert response.value(b"proxy-status") == b"egressd-gw-test; error=http_request_denied"
    assert response.values(b"x-should-retry") == []
    problem = json.loads(response.body)
    assert problem["upstream"] == "api"
    assert problem["limit"] == "account"
    assert problem["status"] == 429
    assert problem["said_by"] == "gateway"
    assert len(origin.requests) == 2


def test_a_held_request_goes_when_its_turn_comes(make) -> None:
    gateway, origin = make(upstream=limited("10/s", 1, "5s"))
    with gateway.client() as client:
        begun = time.monotonic()
        assert [client.get().status for _ in range(4)] == [200] * 4
        assert time.monotonic() - begun >= 0.29
    gaps = [b.at_ns - a.at_ns for a, b in zip(origin.requests, origin.requests[1:], strict=False)]
    assert all(gap > 80 * MS for gap in gaps), gaps
    counts = gateway.call(lambda: gateway.upstream("api").counts)
    assert counts.waited == 3
    assert counts.refused == 0


def test_held_requests_go_first_come_first_served(make) -> None:
    gateway, origin = make(upstream=limited("20/s", 1, "5s"))
    clients = [gateway.client() for _ in range(5)]
    for number, client in enumerate(clients):
        client.send(b"GET /%d HTTP/1.1\r\nHost: api.test\r\n\r\n" % number)
        gateway.until(lambda: gateway.upstream("api").counts.requests == number + 1)  # noqa: B023
    assert [client.response().status for client in clients] == [200] * 5
    assert [request.target for request in origin.requests] == [b"/%d" % n for n in range(5)]
    for client in clients:
        client.sock.close()


def test_a_wait_that_cannot_end_in_time_is_refused_at_once(make) -> None:
    gateway, _ = make(upstream=limited("1/min", 1, "500ms"))
    with gateway.client() as client:
        assert client.get().status == 200
        begun = time.monotonic()
        assert client.get().status == 429
        assert time.monotonic() - begun < 0.25


def test_a_queue_that_is_full_refuses(make) -> None:
    gateway, _ = make(
        upstream='wait = { max = "5s", queue = 2 }\n[[upstream.api.limit]]\nname = "a"\n'
        'rate = "2/s"\nburst = 1\n'
    )
    clients = [gateway.client() for _ in range(4)]
    for number, client in enumerate(clients):
        client.send(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
        gateway.until(lambda: gateway.upstream("api").counts.requests == number + 1)  # noqa: B023
    refused = clients[3].response()
    assert refused.status == 429
    assert json.loads(refused.body)["reason"] == "queue_full"
    assert refused.values(b"retry-after")
    assert [client.response().status for client in clients[:3]] == [200] * 3
    for client in clients:
        client.sock.close()


def test_a_client_that_leaves_gives_its_place_up(make) -> None:
    gateway, origin = make(upstream=limited("2/s", 1, "5s"))
    first, leaver, last = (gateway.client() for _ in range(3))
    for number, client in enumerate((first, leaver, last)):
        client.send(b"GET /%d HTTP/1.1\r\nHost: api.test\r\n\r\n" % number)
        gateway.until(lambda: gateway.upstream("api").counts.requests == number + 1)  # noqa: B023
    assert first.response().status == 200
    leaver.sock.close()
    assert last.response().status == 200
    assert [request.target for request in origin.requests] == [b"/0", b"/2"]
    gateway.until(lambda: gateway.server.worker.waitroom.waiting_count == 0)
    first.sock.close()
    last.sock.close()


def test_keys_have_counters_of_their_own(make) -> None:
    gateway, _ = make(upstream=limited("1/min", 1, more='key = ["credential"]'))
    with gateway.client() as client:
        for who, wanted in ((b"a", 200), (b"a", 429), (b"b", 200), (b"b", 429), (b"", 200)):
            fields = b"Authorization: Bearer %s\r\n" % who if who else b""
            assert client.get(fields=fields).status == wanted
    rows = gateway.call(lambda: list(gateway.upstream("api").limit_uses[0].limit))
    assert len(rows) == 3
    assert all(b"Bearer" not in row.key for row in rows)


def test_a_request_takes_from_all_limits_or_from_none(make) -> None:
    gateway, _ = make(
        upstream='wait = { max = "0s" }\n'
        '[[upstream.api.limit]]\nname = "wide"\nrate = "60/min"\nburst = 10\n'
        '[[upstream.api.limit]]\nname = "narrow"\nrate = "1/min"\nburst = 1\nkey = ["path"]\n'
    )
    with gateway.client() as client:
        assert [client.get(b"/a").status for _ in range(5)] == [200, 429, 429, 429, 429]
        assert [client.get(b"/%d" % n).status for n in range(9)] == [200] * 9
        wide = client.get(b"/z")
    assert wide.status == 429
    assert json.loads(wide.body)["limit"] == "wide"


def test_in_flight_slots_are_given_back(make) -> None:
    async def script(connection: Connection, request: Received) -> bool | None:
        if request.target == b"/hold":
            return await connection.more()
        return await answer()(connection, request)

    gateway, origin = make(
        script,
        upstream='wait = { max = "0s" }\n[[upstream.api.limit]]\nname = "open"\nin_flight = 1\n',
    )
    with gateway.client() as client:
        holder = gateway.client()
        holder.send(b"GET /hold HTTP/1.1\r\nHost: api.test\r\n\r\n")
        origin.next_request()
        refused = client.get()
        assert refused.status == 429
        assert json.loads(refused.body)["limit"] == "open"
        holder.sock.close()
        gateway.until(lambda: gateway.upstream("api").counts.aborted == 1)
        assert client.get().status == 200


def test_used_up_connections_wait_and_then_are_503(make) -> None:
    async def script(connection: Connection, request: Received) -> bool:
        return await connection.more()

    gateway, origin = make(script, upstream='connections = 1\nwait = { max = "200ms" }')
    with gateway.client() as holder, gateway.client() as client:
        holder.send(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
        origin.next_request()
        response = client.get()
        assert response.status == 503
        assert b"error=connection_limit_reached" in response.value(b"proxy-status")


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_a_429_pauses_and_one_trial_goes_first(make, form: str) -> None:
    async def script(connection: Connection, request: Received) -> bool | None:
        if request.target == b"/refuse":
            told = b"1" if form == "seconds" else formatdate(time.time() + 2, usegmt=True).encode()
            status = b"429 Too Many Requests"
            return await answer(status, fields=b"Retry-After: %s\r\n" % told)(connection, request)
        return await answer()(connection, request)

    gateway, origin = make(script, upstream='wait = { max = "0s" }')
    with gateway.client() as client:
        passed_on = client.get(b"/refuse")
        assert passed_on.status == 429
        assert passed_on.values(b"proxy-status") == []  # the upstream's own, as it came
        paused = client.get()
        assert paused.status == 429
        assert json.loads(paused.body)["reason"] == "paused"
        assert 1 <= int(paused.value(b"retry-after")) <= 3
        until_ns = time.monotonic_ns() + int(paused.value(b"retry-after-ms")) * MS
        while time.monotonic_ns() < until_ns:
            time.sleep(0.01)
        assert client.get(b"/trial").status == 200
        assert client.get().status == 200
    assert [request.target for request in origin.requests] == [b"/refuse", b"/trial", b"/"]
    assert gateway.call(lambda: gateway.upstream("api").counts.trials) == 1


def test_requests_are_held_through_a_short_pause(make) -> None:
    async def script(connection: Connection, request: Received) -> bool | None:
        if request.target == b"/refuse":
            fields = b"Retry-After: 1\r\n"
            return await answer(b"429 Slow", fields=fields)(connection, request)
        return await answer()(connection, request)

    gateway, origin = make(script, upstream='wait = { max = "5s" }')
    with gateway.client() as first:
        assert first.get(b"/refuse").status == 429
    clients = [gateway.client() for _ in range(5)]
    for client in clients:
        client.send(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
    assert [client.response().status for client in clients] == [200] * 5
    refuse, *later = origin.requests
    assert all(request.at_ns - refuse.at_ns >= SECOND for request in later)
    assert gateway.call(lambda: gateway.upstream("api").counts.trials) == 1
    for client in clients:
        client.sock.close()


def test_one_credentials_throttle_does_not_pause_another(make) -> None:
    async def script(connection: Connection, request: Received) -> bool | None:
        if request.target == b"/refuse":
            return await answer(b"429 Slow", fields=b"Retry-After: 9\r\n")(connection, request)
        return await answer()(connection, request)

    gateway, _ = make(script, upstream='wait = { max = "0s" }')
    with gateway.client() as client:
        a, b = b"Authorization: Bearer a\r\n", b"Authorization: Bearer b\r\n"
        assert client.get(b"/refuse", fields=a).status == 429
        assert client.get(fields=a).status == 429
        assert client.get(fields=b).status == 200
        assert client.get().status == 200


def test_failures_open_the_breaker(make) -> None:
    gateway, origin = make(
        answer(b"500 Broken"),
        upstream='wait = { max = "0s" }\n[upstream.api.breaker]\nfailure_min = 5\nopen = "10s"\n',
    )
    with gateway.client() as client:
        assert [client.get().status for _ in range(5)] == [500] * 5
        response = client.get()
    assert response.status == 503
    assert b"error=destination_unavailable" in response.value(b"proxy-status")
    assert response.values(b"retry-after")
    assert len(origin.requests) == 5


def test_counters_and_pauses_survive_a_reload(make) -> None:
    gateway, origin = make(upstream=limited("1/min", 2))
    with gateway.client() as client:
        assert [client.get().status for _ in range(3)] == [200, 200, 429]
        text = gateway.path.read_text()
        assert gateway.reload(text.replace('"1/min"', '"2/min"'))
        assert client.get().status == 429  # not a fresh burst
        assert gateway.reload(text.replace("burst = 2", "burst = 3"))
        assert [client.get().status for _ in range(2)] == [200, 429]
    assert len(origin.requests) == 3
    assert origin.connections == 1  # the pool's connection outlived both reloads


def test_a_faulty_file_changes_nothing(make) -> None:
    gateway, _ = make(upstream=limited("1/min", 1))
    with gateway.client() as client:
        assert client.get().status == 200
        runtime = gateway.call(lambda: gateway.server.worker.runtime)
        assert not gateway.reload(gateway.path.read_text() + "[upstream.api2]\nrate = 5\n")
        assert gateway.call(lambda: gateway.server.worker.runtime) is runtime
        assert not gateway.call(lambda: gateway.server.reload_success)
        assert gateway.call(lambda: gateway.server.reload_failures) == 1
        assert client.get().status == 429


def test_a_held_request_goes_on_under_the_new_limit(make) -> None:
    gateway, origin = make(upstream=limited("1/s", 1, "30s"))
    with gateway.client() as client:
        assert client.get().status == 200
        waiters = [gateway.client() for _ in range(3)]
        for number, waiter in enumerate(waiters):
            waiter.send(b"GET /%d HTTP/1.1\r\nHost: api.test\r\n\r\n" % number)
        gateway.until(lambda: gateway.server.worker.waitroom.waiting_count == 3)
        text = (
            gateway.path.read_text().replace('"1/s"', '"100/s"').replace("burst = 1", "burst = 50")
        )
        begun = time.monotonic()
        assert gateway.reload(text)
        assert [waiter.response().status for waiter in waiters] == [200] * 3
        assert time.monotonic() - begun < 0.9
        for waiter in waiters:
            waiter.sock.close()
    assert len(origin.requests) == 4


def test_a_held_request_whose_upstream_goes_is_503(make) -> None:
    gateway, _ = make(upstream=limited("1/s", 1, "30s"))
    with gateway.client() as client, gateway.client() as held:
        assert client.get().status == 200
        held.send(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
        gateway.until(lambda: gateway.server.worker.waitroom.waiting_count == 1)
        text = gateway.path.read_text()
        text = text.replace("upstream.api", "upstream.new").replace('"api"', '"new"')
        assert gateway.reload(text)
        response = held.response()
        assert response.status == 503
        assert json.loads(response.body)["reason"] == "upstream_gone"
        assert client.get().status == 200


def test_listeners_come_and_go_with_a_reload(make) -> None:
    gateway, _ = make()
    old = gateway.client()
    assert old.get().status == 200
    text = gateway.path.read_text()
    more = text + '[[listen]]\nbind = "127.0.0.2:0"\n'
    assert gateway.reload(more)
    with Client(gateway.addresses[1]) as added:
        assert added.get().status == 200
    assert old.get().status == 200
    assert gateway.reload(text.replace("127.0.0.1:0", "127.0.0.3:0"))
    assert gateway.addresses[0][0] == "127.0.0.3"
    with gateway.client() as new:
        assert new.get().status == 200
    assert old.closed()  # it was idle, and its listener has gone
    old.sock.close()


def test_a_client_is_named_by_its_token(make, monkeypatch) -> None:
    monkeypatch.setenv("EGRESSD_TEST_TOKEN", "correct horse")
    gateway, _ = make(
        upstream=limited("1/min", 1, more='key = ["client"]'),
        more='[access]\nanonymous = false\n[[client]]\nname = "local"\nsource = ["127.0.0.2/32"]\n'
        'upstreams = ["other"]\n[[client]]\nname = "tok"\ntoken = { env = "EGRESSD_TEST_TOKEN" }\n'
        '[upstream.other]\norigin = "http://127.0.0.1:1"\n',
    )
    with gateway.client() as client:
        unknown = client.get()
        assert unknown.status == 407
        assert unknown.value(b"proxy-authenticate").startswith(b"Basic")
        basic = base64.b64encode(b"tok:correct horse")
        good = b"Proxy-Authorization: Basic %s\r\n" % basic
        assert client.get(fields=good).status == 200
        assert client.get(fields=good).status == 429
        wrong = b"Proxy-Authorization: Basic %s\r\n" % base64.b64encode(b"tok:wrong")
        assert client.get(fields=wrong).status == 407


def test_an_arrival_counts_once_over_a_reload_and_a_pause(make) -> None:
    text = 'wait.max = "30s"\n[[upstream.api.limit]]\nname = "l"\nrate = "60/min"\nburst = 1\n'
    gateway, origin = make(upstream=text)
    with gateway.client() as first, gateway.client() as second:
        assert first.get().status == 200
        second.send(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
        waitroom = gateway.server.worker.waitroom
        gateway.until(lambda: waitroom.waiting_count == 1)
        conf = gateway.path.read_text().replace("[[upstream.api.limit]]", OTHER_LIMIT)
        assert gateway.reload(conf)
        upstream = gateway.upstream("api")
        limit = upstream.limit_uses[1].limit
        assert gateway.call(lambda: (waitroom.waiting_count, limit.arrived)) == (1, 2)

        def pause() -> None:
            worker = gateway.server.worker
            now_ns = worker.now_ns()
            breakers = upstream.breakers
            changes = breakers.throttled(None, breakers.epochs(None), 1300 * MS, now_ns, 0.0)
            pauses.report(worker, upstream, changes, now_ns)

        gateway.call(pause)
        assert second.response().status == 200
    assert gateway.call(lambda: (waitroom.waiting_count, limit.arrived, limit.name)) == (0, 2, "l")
    assert gateway.call(lambda: upstream.counts.requests) == 2
    assert len(origin.requests) == 2


@pytest.mark.parametrize(
    ("cost", "fields", "statuses"),
    [
        ("4", b"", [200, 200, 429]),
        ('{ header = "X-Cost" }', b"X-Cost: 9\r\n", [200, 429, 429]),
        ('{ header = "X-Cost" }', b"X-Cost: a lot\r\n", [200, 200, 200]),  # counts as 1
        ('{ header = "X-Cost" }', b"X-Cost: 11\r\n", [429, 429, 429]),  # over the burst
    ],
)
def test_what_a_request_costs(make, cost: str, fields: bytes, statuses: list[int]) -> None:
    text = limited("10/h", burst=10, more=f"cost = {cost}\n")
    gateway, _ = make(upstream=text)
    with gateway.client() as client:
        answers = [client.get(fields=fields) for _ in range(3)]
    assert [one.status for one in answers] == statuses
    if statuses[0] == 429:
        assert answers[0].values(b"retry-after") == []
        assert b"account" in answers[0].body


def test_a_dry_run_limit_counts_and_refuses_nothing(make) -> None:
    gateway, origin = make(upstream=limited("1/h", burst=1, more="dry_run = true\n"))
    with gateway.client() as client:
        answers = [client.get() for _ in range(4)]
    assert [one.status for one in answers] == [200] * 4
    assert len(origin.requests) == 4
    limit_set = gateway.upstream("api").limit_set
    assert gateway.call(lambda: (limit_set.would_refuse, limit_set.refused)) == ([3], [0])


def test_a_higher_priority_goes_first(make) -> None:
    """It came last and goes before all who wait."""
    clients = "".join(
        f'[[client]]\nname = "{name}"\ntoken = {{ env = "TOKEN_{name.upper()}" }}\n{more}'
        for name, more in {"low": "", "high": "priority = 1\n"}.items()
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOKEN_LOW", "low-token-low")
        patch.setenv("TOKEN_HIGH", "high-token-high")
        text = limited("1/min", burst=1, wait="9m")
        gateway, origin = make(upstream=text, more=clients)
    waitroom = gateway.server.worker.waitroom
    row = gateway.upstream("api").limit_uses[0].limit.entry(b"", 0)

    def one_more() -> None:
        row.clear(gateway.server.worker.now_ns())
        waitroom.poke(row)

    with ExitStack() as stack:
        waiting = [stack.enter_context(gateway.client()) for _ in range(4)]
        for i, client in enumerate(waiting):
            token = b"high-token-high" if i == 3 else b"low-token-low"
            client.send(
                b"GET /%d HTTP/1.1\r\nHost: api.test\r\n"
                b"Proxy-Authorization: Bearer %s\r\n\r\n" % (i, token)
            )
            gateway.until(lambda count=i: waitroom.waiting_count == count)
            if not i:
                assert client.response().status == 200
        for i in (3, 1, 2):
            gateway.call(one_more)
            assert waiting[i].response().status == 200
    assert [request.target for request in origin.requests] == [b"/0", b"/3", b"/1", b"/2"]
