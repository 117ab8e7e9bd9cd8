"""What an API says of its limits in its answers, through a whole gateway."""

from __future__ import annotations

import time
from typing import Any

import pytest
from fakes.origin import Connection, Received, answer

from gateway.clock import SECOND

LIMIT = """
wait = {{ max = "0s" }}
{more}
[[upstream.api.limit]]
name = "account"
rate = "60/min"
learn = "{learn}"
{kind}
"""
SMOOTH = "burst = 20"
WINDOW = 'algorithm = "window"\nsync = "local"'


def limited(learn: str = "observe", kind: str = SMOOTH, more: str = "") -> str:
    return LIMIT.format(learn=learn, kind=kind, more=more)


def telling(*remaining: int) -> Any:
    """Answers that tell these figures one after the other, and the last one for ever."""
    left = list(remaining)

    async def script(connection: Connection, request: Received) -> bool | None:
        told = left.pop(0) if len(left) > 1 else left[0]
        fields = b"X-RateLimit-Limit: 60\r\nX-RateLimit-Remaining: %d\r\n" % told
        return await answer(fields=fields + b"X-RateLimit-Reset: 30\r\n")(connection, request)

    return script


def lesson(gateway: Any) -> Any:
    return gateway.upstream("api").lessons.by_limit[0]


@pytest.mark.parametrize("kind", [SMOOTH, WINDOW], ids=["smooth", "window"])
def test_a_lower_figure_is_taken_over_at_once(make, kind: str) -> None:
    """Someone else has spent the quota: three are left, not the nineteen that we believe."""
    gateway, origin = make(telling(3, 2, 1, 0), upstream=limited("adopt", kind))
    with gateway.client() as client:
        statuses = [client.get().status for _ in range(6)]
    assert statuses == [200, 200, 200, 200, 429, 429]
    assert len(origin.requests) == 4
    assert gateway.call(lambda: lesson(gateway).adopted) == 1  # after that both count alike


def test_a_higher_figure_never_is(make) -> None:
    gateway, _ = make(telling(1000), upstream=limited("adopt"))
    with gateway.client() as client:
        statuses = [client.get().status for _ in range(25)]
    assert statuses.count(200) in (20, 21)  # a token a second comes free
    assert gateway.call(lambda: lesson(gateway).adopted) == 0


def test_what_is_observed_is_shown_and_not_obeyed(make) -> None:
    gateway, _ = make(telling(0), upstream=limited("observe"))
    with gateway.client() as client:
        assert [client.get().status for _ in range(5)] == [200] * 5
    newest = gateway.call(lambda: lesson(gateway).newest)
    assert (newest.quota, newest.remaining, newest.reset_ns) == (60, 0, 30 * SECOND)
    assert newest.free == 19


def test_off_listens_to_nothing(make) -> None:
    gateway, _ = make(telling(0), upstream=limited("off"))
    with gateway.client() as client:
        assert client.get().status == 200
    assert gateway.call(lambda: gateway.upstream("api").lessons.by_limit) == {}


def test_each_credential_has_figures_of_its_own(make) -> None:
    text = limited("adopt") + 'key = ["credential"]\n'
    gateway, _ = make(telling(0, 15), upstream=text)
    with gateway.client() as client:
        assert client.get(fields=b"Authorization: a\r\n").status == 200
        assert client.get(fields=b"Authorization: b\r\n").status == 200
        assert client.get(fields=b"Authorization: a\r\n").status == 429
        assert client.get(fields=b"Authorization: b\r\n").status == 200


def test_what_was_learned_outlives_a_reload(make) -> None:
    gateway, _ = make(telling(0), upstream=limited("adopt"))
    with gateway.client() as client:
        assert client.get().status == 200
        before = gateway.call(lambda: lesson(gateway))
        assert gateway.reload(gateway.path.read_text().replace('"60/min"', '"61/min"'))
        assert client.get().status == 429
    assert gateway.call(lambda: lesson(gateway)) is before


@pytest.mark.parametrize(("preempt", "statuses"), [("true", [200, 429]), ("false", [200, 200])])
def test_a_success_that_leaves_nothing_pauses_where_asked_for(
    make, preempt: str, statuses: list[int]
) -> None:
    more = f'provider = {{ name = "generic", preempt = {preempt} }}'
    gateway, _ = make(telling(0), upstream=limited("off", more=more))
    with gateway.client() as client:
        assert [client.get().status for _ in range(2)] == statuses
    counts = gateway.upstream("api").counts
    paused = preempt == "true"
    assert gateway.call(lambda: (counts.preempted, counts.throttled)) == (paused, 0)


def test_a_ban_of_the_address_pauses_all_credentials(make) -> None:
    page = b"<html>error code: 1015</html>"
    script = answer(b"429 Slow", page, b"Content-Type: text/html\r\nRetry-After: 60\r\n")
    gateway, origin = make(script, upstream='provider = "discord"\nwait.max = "0s"\n')
    noted = []
    gateway.server.worker.note_change = lambda upstream, change: noted.append(change)
    with gateway.client() as client:
        assert client.get(fields=b"Authorization: a\r\n").body == page
        assert client.get(fields=b"Authorization: b\r\n").status == 429
    assert len(origin.requests) == 1
    scopes = gateway.call(lambda: gateway.upstream("api").counts.scopes)
    assert scopes == {"address": 1}
    assert [(change.scope, change.told) for change in noted] == [(b"", "address")]


def test_too_many_at_a_time_shrink_the_slots_and_not_the_rate(make) -> None:
    fields = b"Retry-After: 0\r\nStripe-Rate-Limited-Reason: global-concurrency\r\n"
    text = limited("off") + '[[upstream.api.limit]]\nname = "open"\nin_flight = 5\n'
    gateway, _ = make(answer(b"429 Slow", b"{}", fields), upstream='provider = "stripe"\n' + text)
    with gateway.client() as client:
        assert client.get().status == 429
    upstream = gateway.upstream("api")
    assert gateway.call(lambda: upstream.limit_uses[1].limit.slots) == 1
    assert gateway.call(lambda: upstream.breakers.ramp.learned_per_s) is None


def test_idle_time_before_the_load_does_not_lower_the_learned_rate(make) -> None:
    async def script(connection: Connection, request: Received) -> bool | None:
        status = b"429 Slow" if request.target == b"/refuse" else b"200 OK"
        return await answer(status, fields=b"Retry-After: 60\r\n")(connection, request)

    limit = '[[upstream.api.limit]]\nname = "account"\nrate = "20/s"\nburst = 20\n'
    gateway, _ = make(script, upstream=limit)

    def age() -> None:
        now_ns = gateway.server.worker.now_ns()
        gateway.upstream("api").breakers.own.meter.clear(now_ns - 30 * SECOND)

    gateway.call(age)
    begun = time.monotonic()
    sent = 0
    with gateway.client() as client:
        while sent < 20 or time.monotonic() < begun + 0.3:
            assert client.get().status == 200
            sent += 1
        assert client.get(b"/refuse").status == 429
    learned_per_s = gateway.call(lambda: gateway.upstream("api").breakers.ramp.learned_per_s)
    assert learned_per_s == pytest.approx(0.7 * 20, rel=0.1)
