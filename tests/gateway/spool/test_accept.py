"""Acceptance: 202 once it is on disk; what it keeps; what cannot be accepted."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
from fakes.origin import Origin
from fakes.spooled import Spooled

Make = Callable[..., tuple[Spooled, Origin]]


@pytest.mark.parametrize(("codec", "loop"), [("httptools", "uvloop"), ("h11", "asyncio")])
def test_accepted_sent_and_told(make: Make, codec: str, loop: str) -> None:
    gateway, origin = make(codec=codec, loop=loop)
    response = gateway.post(b"a body", b"X-Own: 1\r\nAuthorization: Bearer c\r\n", b"/a?b=c")
    assert response.status == 202
    assert response.value(b"preference-applied") == b"respond-async"
    path = response.value(b"location")
    assert json.loads(response.body)["id"] == path.rpartition(b"/")[2].decode()
    told = gateway.until_state(path, "done")
    assert told["id"].startswith("gw-test.")
    assert (told["method"], told["target"], told["last_status"]) == ("POST", "/a?b=c", 200)
    assert told["attempts"] == 0
    (request,) = origin.requests
    assert request.request_line == b"POST /a?b=c HTTP/1.1"
    assert request.body == b"a body"
    assert request.values(b"x-own") == [b"1"]
    assert request.values(b"authorization") == [b"Bearer c"]
    assert len(request.values(b"idempotency-key")) == 1
    assert len(request.values(b"via")) == 1
    assert request.values(b"prefer") == []
    stored = gateway.ask(path + b"/response")
    assert (stored.status, stored.body) == (200, b"hello")


def test_without_the_wish_nothing_changes(make: Make) -> None:
    gateway, origin = make()
    response = gateway.post(asks=False)
    assert (response.status, response.body) == (200, b"hello")
    assert origin.requests[0].values(b"idempotency-key") == []
    assert gateway.spool.counts["accepted"] == 0


def test_other_preferences_go_on(make: Make) -> None:
    gateway, origin = make()
    gateway.post(b"x", b"Prefer: respond-async, wait=5\r\nX-A: b\r\n", asks=False)
    assert origin.next_request().values(b"prefer") == [b"wait=5"]


def test_injected_secrets_are_never_stored(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_SECRET", "Bearer injected-secret")
    gateway, origin = make(
        upstream='headers = { set = { Authorization = { env = "TEST_SECRET" } } }\n'
        'limit = [{ name = "l", rate = "1/h", burst = 1 }]',
        more='[[client]]\nname = "a"\ntoken = { env = "TEST_SECRET" }\n',
    )
    gateway.post(b"", b"Authorization: mine\r\nProxy-Authorization: Bearer proxy-secret\r\n")
    gateway.post(b"", b"Authorization: mine\r\nProxy-Authorization: Bearer proxy-secret\r\n")
    assert origin.next_request().values(b"authorization") == [b"Bearer injected-secret"]
    kept = b"".join(path.read_bytes() for path in tmp_path.glob("spool.db*"))
    assert b"Idempotency-Key" in kept
    assert b"injected-secret" not in kept
    assert b"proxy-secret" not in kept
    assert b"UHJveHk" not in kept


def test_a_second_acceptance_is_the_same_one(make: Make) -> None:
    gateway, origin = make()
    key = b'Idempotency-Key: "one"\r\n'
    first = gateway.post(b"x", key)
    again = gateway.post(b"x", key)
    assert again.status == 202
    assert again.value(b"location") == first.value(b"location")
    other = gateway.post(b"y", key)
    assert other.status == 422
    assert json.loads(other.body)["reason"] == "key_reused"
    elsewhere = gateway.post(b"x", key, b"/b")
    assert elsewhere.status == 422
    gateway.until_state(first.value(b"location"), "done")
    assert [r.values(b"idempotency-key") for r in origin.requests] == [[b'"one"']]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_long_body_is_stored_in_pieces(make: Make, chunked: bool) -> None:
    gateway, origin = make()
    body = bytes(range(256)) * 4096 * 10  # 10 MiB
    head = b"POST /long HTTP/1.1\r\nHost: api.test\r\nPrefer: respond-async\r\n"
    with gateway.client() as client:
        if chunked:
            client.send(head + b"Transfer-Encoding: chunked\r\n\r\n")
            for at in range(0, len(body), 100_000):
                piece = body[at : at + 100_000]
                client.send(b"%x\r\n%b\r\n" % (len(piece), piece))
            client.send(b"0\r\n\r\n")
        else:
            client.send(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        response = client.response()
    assert response.status == 202
    request = origin.next_request()
    assert request.values(b"content-length") == [b"%d" % len(body)]
    assert request.body == body
    gateway.until_state(response.value(b"location"), "done")


def test_a_client_that_waits_for_100_gets_it(make: Make) -> None:
    gateway, origin = make()
    with gateway.client() as client:
        client.send(
            b"POST / HTTP/1.1\r\nHost: api.test\r\nPrefer: respond-async\r\n"
            b"Content-Length: 2\r\nExpect: 100-continue\r\n\r\n"
        )
        assert client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 100 ")
        client.send(b"ok")
        assert client.response().status == 202
    assert origin.next_request().values(b"expect") == []


@pytest.mark.parametrize("framing", [b"Content-Length: 10485761", b"Transfer-Encoding: chunked"])
def test_a_longer_body_is_refused_and_leaves_nothing(make: Make, framing: bytes) -> None:
    gateway, _ = make()
    with gateway.client() as client:
        client.send(
            b"POST / HTTP/1.1\r\nHost: api.test\r\nPrefer: respond-async\r\n%s\r\n\r\n" % framing
        )
        if b"chunked" in framing:
            piece = b"%x\r\n%b\r\n" % (1 << 20, bytes(1 << 20))
            for _ in range(10):
                client.send(piece)
            client.send(b"1\r\nx\r\n")
        assert client.response().status == 413
    gateway.poll(lambda: _parts(gateway) == 0)


def test_who_leaves_in_the_middle_leaves_nothing(make: Make) -> None:
    gateway, origin = make()
    with gateway.client() as client:
        client.send(
            b"POST / HTTP/1.1\r\nHost: api.test\r\nPrefer: respond-async\r\n"
            b"Content-Length: 1000000\r\n\r\n" + bytes(500_000)
        )
        gateway.poll(lambda: _parts(gateway) > 0)
    gateway.poll(lambda: _parts(gateway) == 0)
    assert not origin.requests


def _parts(gateway: Spooled) -> int:
    db = sqlite3.connect(gateway.spool.store.path)
    try:
        return int(db.execute("SELECT count(*) FROM part").fetchone()[0])
    finally:
        db.close()


@pytest.mark.parametrize(
    ("fields", "detail"),
    [
        (b"X-Expires-At: soon\r\n", "X-Expires-At is no number"),
        (b"X-Expires-At: 9999999999999\r\n", "X-Expires-At is no number"),
        (b"X-Expires-At: 1000\r\n", "X-Expires-At has passed"),
        (b"Idempotency-Key: \r\n", "Idempotency-Key is one value"),
        (b"Idempotency-Key: %b\r\n" % (b"k" * 256), "Idempotency-Key is one value"),
        (b"Idempotency-Key: a\r\nIdempotency-Key: b\r\n", "Idempotency-Key is one value"),
    ],
)
def test_garbage_is_refused(make: Make, fields: bytes, detail: str) -> None:
    gateway, origin = make()
    response = gateway.post(b"x", fields)
    assert response.status == 400
    assert detail in json.loads(response.body)["detail"]
    assert not origin.requests


def test_a_request_may_ask_for_less_time(make: Make) -> None:
    gateway, _ = make(rule='ttl = "1h"')
    soon = int(time.time()) + 100
    told = gateway.state(gateway.post(b"", b"X-Expires-At: %d\r\n" % soon).value(b"location"))
    later = gateway.state(
        gateway.post(b"", b"X-Expires-At: %d\r\n" % (soon + 99_999)).value(b"location")
    )
    assert _epoch(told["expires"]) == soon
    assert _epoch(later["expires"]) < soon + 3600


def _epoch(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def test_so_many_may_wait_and_no_more(make: Make) -> None:
    gateway, _ = make(
        spool="records_max = 2",
        upstream='limit = [{ name = "l", rate = "1/h", burst = 1, sync = "local" }]',
    )
    gateway.until_state(gateway.post().value(b"location"), "done")
    assert [gateway.post().status for _ in range(3)] == [202, 202, 507]
    assert "2 requests wait already" in gateway.post().body.decode()


def test_a_full_disk_refuses_and_keeps_what_it_has(make: Make) -> None:
    gateway, _ = make(
        spool='bytes_max = "1MiB"',
        upstream='limit = [{ name = "l", rate = "1/h", burst = 1, sync = "local" }]',
    )
    accepted = []
    for _ in range(100):
        response = gateway.post(bytes(30_000))
        if response.status != 202:
            break
        accepted.append(response.value(b"location"))
    assert response.status == 507
    assert json.loads(response.body)["reason"] == "spool_full"
    assert response.value(b"retry-after") == b"10"
    assert len(accepted) > 5
    assert {gateway.state(path)["state"] for path in accepted} <= {"queued", "done", "sending"}


def test_a_gateway_without_a_spool_knows_no_status(make: Make) -> None:
    gateway, _ = make()
    for path in (
        b"/.egressd/requests/", b"/.egressd/requests/gw-test.", b"/.egressd/requests/other.%032d",
        b"/.egressd/requests/gw-test.%s" % (b"0" * 32), b"/.egressd/requests/gw-test." + b"z" * 32,
        b"/.egressd/requests/gw-test.%s/response" % (b"0" * 32),
    ):  # fmt: skip
        assert gateway.ask(path).status == 404


def test_only_who_stored_it_is_told(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN_A", "aaa")
    monkeypatch.setenv("TOKEN_B", "bbb")
    clients = "".join(
        f'[[client]]\nname = "{name}"\ntoken = {{ env = "TOKEN_{name.upper()}" }}\n'
        for name in "ab"
    )
    gateway, _ = make(more=clients)
    own = b"Proxy-Authorization: Bearer aaa\r\n"
    path = gateway.post(b"", own).value(b"location")
    assert gateway.ask(path, own).status == 200
    for fields in (b"", b"Proxy-Authorization: Bearer bbb\r\n"):
        assert gateway.ask(path, fields).status == 404
        assert gateway.ask(path + b"/response", fields).status == 404


def test_an_unknown_client_stores_nothing(make: Make) -> None:
    gateway, _ = make(
        more='[[client]]\nname = "far"\nsource = ["10.0.0.0/8"]\n[access]\nanonymous = false\n'
    )
    assert gateway.post().status == 407
    assert gateway.ask(b"/.egressd/requests/gw-test." + b"0" * 32).status == 407
