"""After a pause, where no rate limit stands: what was held leaves at a pace, through a gateway."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import Any

import pytest
from fakes.origin import Connection, Received, answer

from gateway.clock import SECOND
from gateway.proxy import pauses

HELD = 40

NO_LIMIT = ""
WINDOW = """[[upstream.api.limit]]
name = "quota"
rate = "1000/min"
algorithm = "window"
sync = "local"
"""
IN_FLIGHT = """[[upstream.api.limit]]
name = "slots"
in_flight = 500
sync = "local"
"""
COUNTED = """[[upstream.api.limit]]
name = "seen"
rate = "10/s"
dry_run = true
"""


def refusing(status: bytes, times: int) -> Any:
    """Answers `/refuse` with that status so many times, all else with 200."""
    left = times

    async def script(connection: Connection, request: Received) -> bool | None:
        nonlocal left
        if request.target == b"/refuse" and left:
            left -= 1
            return await answer(status, fields=b"Retry-After: 1\r\n")(connection, request)
        return await answer()(connection, request)

    return script


def upstream(limit: str, wait: str = "30s", ramp: str = "10s") -> str:
    breaker = f'breaker = {{ ramp = "{ramp}", failure_min = 5, open = "1s" }}'
    return f'wait = {{ max = "{wait}" }}\n{breaker}\n{limit}'


def arrivals_after_pause(gateway: Any, origin: Any) -> list[int]:
    """Holds HELD requests through the pause that there is; nanoseconds from the trial of each."""
    before = len(origin.requests)
    with ExitStack() as stack:
        clients = [stack.enter_context(gateway.client()) for _ in range(HELD)]
        for client in clients:
            client.send(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
        assert [client.response().status for client in clients] == [200] * HELD
    arrivals = sorted(request.at_ns for request in origin.requests[before:])
    return [at_ns - arrivals[0] for at_ns in arrivals]


FAST = pytest.mark.parametrize("drivers", [("httptools", "uvloop")], ids=["fast"], indirect=True)


def spread_out(after_ns: list[int]) -> bool:
    """With a ramp of 5 s the pace of 10/s doubles every half second: after t seconds
    7.2 (4 ** t - 1) have gone, so 7 after half a second, 22 after one, and 40 after 1.36 s."""
    early = sum(at_ns < SECOND // 2 for at_ns in after_ns)
    return early <= 11 and sum(at_ns < SECOND for at_ns in after_ns) <= 27


@FAST
@pytest.mark.slow
@pytest.mark.parametrize(
    "limit",
    [NO_LIMIT, WINDOW, IN_FLIGHT, COUNTED],
    ids=["no limit", "window", "in flight", "dry run"],
)
def test_what_was_held_does_not_come_as_a_burst(make, limit: str) -> None:
    gateway, origin = make(refusing(b"429 Slow", 1), upstream=upstream(limit, ramp="5s"))
    with gateway.client() as client:
        assert client.get(b"/refuse").status == 429
    after_ns = arrivals_after_pause(gateway, origin)
    assert spread_out(after_ns), after_ns
    assert gateway.call(lambda: gateway.upstream("api").counts.refused) == 0


@FAST
@pytest.mark.slow
def test_an_outage_s_end_brings_no_burst_either(make) -> None:
    text = upstream(NO_LIMIT, ramp="5s")
    gateway, origin = make(refusing(b"500 Broken", 5), upstream=text)
    with gateway.client() as client:
        assert [client.get(b"/refuse").status for _ in range(5)] == [500] * 5
    after_ns = arrivals_after_pause(gateway, origin)
    assert spread_out(after_ns), after_ns


def test_the_pace_ends_with_the_climb(make) -> None:
    text = upstream(NO_LIMIT, ramp="1s")
    gateway, _ = make(refusing(b"429 Slow", 1), upstream=text)
    with gateway.client() as client:
        assert client.get(b"/refuse").status == 429
        assert client.get().status == 200  # the trial
        pacer = gateway.upstream("api").pacer
        assert gateway.call(lambda: pacer.active)
        gateway.until(lambda: pacer.row(None, gateway.server.worker.now_ns()) is None)
        assert client.get().status == 200
        assert not gateway.call(lambda: pacer.active)


def test_who_may_not_wait_is_told_the_pace_and_no_limit(make) -> None:
    gateway, _ = make(refusing(b"429 Slow", 1), upstream=upstream(WINDOW, wait="0s"))
    with gateway.client() as client:
        assert client.get(b"/refuse").status == 429

        def end_the_pause() -> None:
            worker = gateway.server.worker
            now_ns = worker.now_ns()
            api = gateway.upstream("api")
            api.breakers.before_per_s = 1.0
            pauses.report(worker, api, api.breakers.resume(b"", now_ns), now_ns)

        gateway.call(end_the_pause)
        assert client.get().status == 200
        refused = client.get()
    assert refused.status == 429
    assert json.loads(refused.body)["reason"] == "paused"
    assert 0 < int(refused.value(b"retry-after-ms")) <= 1000
    assert refused.value(b"ratelimit").startswith(b'"quota"')
    assert gateway.call(lambda: gateway.upstream("api").counts.paused) == 1


def test_one_credential_s_return_does_not_slow_another(make) -> None:
    gateway, origin = make(refusing(b"429 Slow", 1), upstream=upstream(NO_LIMIT))
    a, b = b"Authorization: Bearer a\r\n", b"Authorization: Bearer b\r\n"
    with gateway.client() as client:
        assert client.get(b"/refuse", fields=a).status == 429
        assert client.get(fields=a).status == 200  # held through the pause: the trial
        before = len(origin.requests)
        for _ in range(20):
            assert client.get(fields=b).status == 200
        came = origin.requests[before:]
        counts = gateway.upstream("api").counts
        assert len(came) == 20
        assert gateway.call(lambda: counts.waited) == 1
        assert gateway.call(lambda: gateway.upstream("api").pacer.active)
