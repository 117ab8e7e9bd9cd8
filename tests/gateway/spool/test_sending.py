"""Pulling: limits, pauses, attempts, order, expiry, and live traffic beside it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from fakes.origin import Connection, Origin, Received, Script, answer
from fakes.spooled import Spooled

Make = Callable[..., tuple[Spooled, Origin]]

FAST = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


def in_turn(*statuses: bytes, fields: bytes = b"") -> Script:
    """Answers with these statuses, one after the other, then with 200."""
    left = list(statuses)

    async def script(connection: Connection, request: Received) -> bool:
        status = left.pop(0) if left else b"200 OK"
        more = fields if not status.startswith(b"2") else b""
        await connection.send(b"HTTP/1.1 %b\r\nContent-Length: 2\r\n%b\r\nok" % (status, more))
        return True

    return script


def closes(connections: int) -> Script:
    """Closes the first connections without a word."""
    seen = 0

    async def script(connection: Connection, request: Received) -> bool:
        nonlocal seen
        seen += 1
        if seen <= connections:
            return False
        await connection.send(FAST)
        return True

    return script


@pytest.mark.slow
def test_a_failure_is_an_attempt_and_goes_again_later(make: Make) -> None:
    gateway, origin = make(in_turn(b"500 No", b"503 No"))
    told = gateway.until_state(gateway.post().value(b"location"), "done")
    assert told["attempts"] == 2
    assert told["last_status"] == 200
    first, second, third = origin.requests
    keys = {request.values(b"idempotency-key")[0] for request in origin.requests}
    assert len(keys) == 1
    assert second.at_ns - first.at_ns > 0.4e9
    assert third.at_ns - second.at_ns > 0.9e9


def test_out_of_attempts_it_is_dead_with_all_that_is_known(make: Make) -> None:
    gateway, origin = make(answer(b"503 No"), rule="attempts = 2")
    path = gateway.post().value(b"location")
    told = gateway.until_state(path, "dead")
    assert (told["reason"], told["attempts"], told["last_status"]) == ("attempts", 2, 503)
    assert told["accepted"] <= told["first_sent"] < told["last_sent"] <= told["finished"]
    assert len(origin.requests) == 2
    assert gateway.ask(path + b"/response").status == 404
    assert gateway.spool.dead == {"attempts": 1}


def test_a_final_refusal_is_a_result(make: Make) -> None:
    gateway, _ = make(answer(b"404 Not Found", b"gone", b"X-Why: because\r\n"))
    path = gateway.post().value(b"location")
    told = gateway.until_state(path, "done")
    assert told["last_status"] == 404
    response = gateway.ask(path + b"/response")
    assert (response.status, response.body) == (404, b"gone")
    assert response.value(b"x-why") == b"because"


def test_a_connection_that_breaks_is_an_attempt(make: Make) -> None:
    gateway, origin = make(closes(1))
    told = gateway.until_state(gateway.post().value(b"location"), "done")
    assert told["attempts"] == 1
    keys = {request.values(b"idempotency-key")[0] for request in origin.requests}
    assert len(keys) == 1


def test_who_cannot_be_reached_costs_no_attempt(make: Make, tmp_path: Path) -> None:
    gateway, _ = make(upstream='addresses = ["127.0.0.1:1"]')
    path = gateway.post().value(b"location")
    gateway.until(lambda: gateway.upstream("api").counts.failed)
    told = gateway.until_state(path, "queued")
    assert told["attempts"] == 0
    assert "first_sent" in told


@pytest.mark.slow
def test_a_pause_is_slept_through_until_the_told_time(make: Make) -> None:
    gateway, origin = make(in_turn(b"429 Slow", fields=b"Retry-After: 2\r\n"))
    paths = [gateway.post(b"%d" % number).value(b"location") for number in range(1)]
    gateway.until(lambda: gateway.upstream("api").counts.throttled)
    paths += [gateway.post(b"%d" % number).value(b"location") for number in range(1, 6)]
    before = gateway.upstream("api").counts.requests
    told = [gateway.until_state(path, "done") for path in paths]
    assert [each["attempts"] for each in told] == [1, 0, 0, 0, 0, 0]
    first, second = origin.requests[:2]
    assert 1.95e9 < second.at_ns - first.at_ns < 6e9
    # While it is paused each of the lane asks once, and at the end once more: nothing polls.
    assert gateway.upstream("api").counts.requests - before < 40


def test_it_goes_at_the_rate_of_the_limit(make: Make) -> None:
    gateway, origin = make(
        upstream='limit = [{ name = "l", rate = "20/s", burst = 1, sync = "local" }]'
    )
    paths = [gateway.post(b"%d" % number).value(b"location") for number in range(15)]
    for path in paths:
        gateway.until_state(path, "done")
    times = [request.at_ns for request in origin.requests]
    assert len(times) == 15
    assert times[-1] - times[0] > 14 * 50e6 * 0.95


def test_a_paused_credential_holds_back_only_its_own(make: Make) -> None:
    async def script(connection: Connection, request: Received) -> bool:
        if request.values(b"authorization") == [b"bad"]:
            await connection.send(
                b"HTTP/1.1 429 No\r\nContent-Length: 0\r\nRetry-After: 600\r\n\r\n"
            )
        else:
            await connection.send(FAST)
        return True

    gateway, origin = make(script, rule='order_by = ["credential"]')
    bad = [gateway.post(b"%d" % n, b"Authorization: bad\r\n") for n in range(5)]
    gateway.until(lambda: gateway.upstream("api").counts.throttled)
    good = [gateway.post(b"%d" % n, b"Authorization: good\r\n") for n in range(20)]
    for response in good:
        gateway.until_state(response.value(b"location"), "done")
    assert [r.body for r in origin.requests if r.values(b"authorization") == [b"good"]] == [
        b"%d" % n for n in range(20)
    ]
    assert {gateway.state(r.value(b"location"))["state"] for r in bad} == {"queued"}
    assert sum(r.values(b"authorization") == [b"bad"] for r in origin.requests) == 1


def test_order_is_kept_over_failures(make: Make) -> None:
    gateway, origin = make(in_turn(b"500 No"), rule='order_by = ["header:X-Order"]')
    paths = [gateway.post(b"%d" % n, b"X-Order: a\r\n").value(b"location") for n in range(4)]
    gateway.until_state(paths[-1], "done")
    assert [request.body for request in origin.requests] == [b"0", b"0", b"1", b"2", b"3"]


def test_what_expires_costs_no_token(make: Make) -> None:
    gateway, origin = make(
        rule='ttl = "1s"',
        upstream='limit = [{ name = "l", rate = "1/h", burst = 1, sync = "local" }]',
    )
    gateway.until_state(gateway.post().value(b"location"), "done")
    path = gateway.post().value(b"location")
    told = gateway.until_state(path, "dead")
    assert (told["reason"], told["attempts"]) == ("expired", 0)
    assert "first_sent" not in told
    assert len(origin.requests) == 1
    (limit,) = gateway.upstream("api").limit_set.limits
    assert gateway.call(lambda: limit.entry(b"", 0).taken) == 1


@pytest.mark.slow
def test_what_expires_in_a_queue_costs_no_token(make: Make) -> None:
    """It stands at the row, and its time is up before its turn: asked for is then nothing."""
    gateway, origin = make(rule='ttl = "1s"', upstream="connections = 1\n", script=_slow(1.5))
    paths = [gateway.post(b"%d" % n).value(b"location") for n in range(3)]
    states = [gateway.until_state(path, state)["state"] for path, state in zip(
        paths, ("done", "dead", "dead"), strict=True
    )]  # fmt: skip
    assert states == ["done", "dead", "dead"]
    assert len(origin.requests) == 1


def _slow(seconds: float) -> Script:
    async def script(connection: Connection, request: Received) -> bool:
        await trio.sleep(seconds)
        await connection.send(FAST)
        return True

    return script


@pytest.mark.slow
def test_live_traffic_goes_first(make: Make) -> None:
    gateway, origin = make(
        upstream='wait.max = "20s"\n'
        'limit = [{ name = "l", rate = "10/s", burst = 1, sync = "local" }]',
    )
    for number in range(30):
        gateway.post(b"%d" % number, path=b"/stored")
    gateway.until(lambda: len(origin.requests) >= 2)
    begun = time.monotonic_ns()
    live: list[int] = []

    def ask() -> None:
        for _ in range(5):
            live.append(gateway.post(path=b"/live", asks=False).status)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert live == [200] * 15
    during = [r.target for r in origin.requests if r.at_ns > begun]
    # Between two of a client's own requests one stored one may slip in while nobody waits.
    last = len(during) - 1 - during[::-1].index(b"/live")
    assert during[:last].count(b"/stored") <= 8


def test_a_long_result_is_stored_in_pieces(make: Make) -> None:
    body = bytes(range(256)) * 4096 * 3
    gateway, _ = make(answer(body=body))
    path = gateway.post().value(b"location")
    told = gateway.until_state(path, "done")
    assert (told["response_bytes"], told["response_cut"]) == (len(body), False)
    assert gateway.ask(path + b"/response").body == body


def test_a_longer_result_is_cut_and_says_so(make: Make) -> None:
    gateway, _ = make(answer(body=bytes(11 << 20)))
    path = gateway.post().value(b"location")
    told = gateway.until_state(path, "done")
    assert (told["response_bytes"], told["response_cut"]) == (10 << 20, True)
    assert len(gateway.ask(path + b"/response").body) == 10 << 20


def test_a_result_that_breaks_off_is_none(make: Make) -> None:
    broken = True

    async def script(connection: Connection, request: Received) -> bool:
        nonlocal broken
        if broken:
            broken = False
            await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n")
            await connection.send(bytes(200_000))
            return False
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n" + bytes(300_000))
        return True

    gateway, _ = make(script)
    path = gateway.post().value(b"location")
    told = gateway.until_state(path, "done")
    assert told["attempts"] == 1
    assert gateway.ask(path + b"/response").body == bytes(300_000)


@pytest.mark.slow
def test_results_go_when_they_were_kept_long_enough(make: Make) -> None:
    gateway, _ = make(rule='keep = "1s"')
    path = gateway.post().value(b"location")
    gateway.until_state(path, "done")
    gateway.poll(lambda: gateway.ask(path).status == 404)


def test_what_no_repetition_helps_is_dead_at_once(make: Make) -> None:
    gateway, origin = make(
        upstream='limit = [{ name = "l", rate = "10/s", burst = 2, cost = { header = "X-Cost" },'
        ' sync = "local" }]'
    )
    path = gateway.post(b"", b"X-Cost: 5\r\n").value(b"location")
    assert gateway.until_state(path, "dead")["reason"] == "cost_over_burst"
    assert not origin.requests


@pytest.mark.slow
def test_it_goes_on_after_a_restart(make: Make, tmp_path: Path) -> None:
    gateway, origin = make(_slow(0.5), upstream="connections = 1")
    paths = [gateway.post(b"%d" % n).value(b"location") for n in range(4)]
    gateway.until(lambda: origin.requests)
    text = gateway.path.read_text()
    gateway.stop()
    again = Spooled(text, tmp_path)
    with again:
        for path in paths:
            again.until_state(path, "done")
    bodies = [request.body for request in origin.requests]
    assert set(bodies) == {b"0", b"1", b"2", b"3"}
    keys = {request.values(b"idempotency-key")[0] for request in origin.requests}
    assert len(keys) == 4


def test_a_reload_moves_what_waits(make: Make) -> None:
    limit = 'limit = [{ name = "l", rate = "RATE", burst = 1, sync = "local" }]'
    gateway, origin = make(upstream=limit.replace("RATE", "1/h"))
    paths = [gateway.post(b"%d" % n).value(b"location") for n in range(4)]
    gateway.until_state(paths[0], "done")
    assert gateway.reload(gateway.path.read_text().replace("1/h", "1000/s"))
    for path in paths:
        gateway.until_state(path, "done")
    assert len(origin.requests) == 4


def test_a_reload_may_bring_the_spool_but_not_move_it(make: Make, tmp_path: Path) -> None:
    gateway, _ = make()
    text = gateway.path.read_text()
    assert not gateway.reload(text.replace("spool.db", "other.db"))
    assert not (tmp_path / "other.db").exists()
    assert gateway.post().status == 202


@pytest.mark.parametrize("count", [200])
def test_many_are_all_sent_once(make: Make, count: int) -> None:
    gateway, origin = make()
    paths = [gateway.post(b"%d" % number).value(b"location") for number in range(count)]
    for path in paths:
        gateway.until_state(path, "done")
    assert sorted(int(request.body) for request in origin.requests) == list(range(count))
    assert gateway.spool.counts == {
        "accepted": count, "known": 0, "sent": count, "done": count,
    }  # fmt: skip
    assert not gateway.spool.out
    assert not gateway.spool.waiting
    assert gateway.call(lambda: gateway.upstream("api").slots.used) == 0
