"""The dashboard with snapshots that no node would send soon: names full of markup, a hundred
upstreams, several workers, counters that start again.

The page and its first snapshot are a real node's; what follows is fed into the page in place of the
node's events.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from fakes.browser import Browser, missing
from fakes.looks import looks_right
from fakes.nodes import NodeProcess
from fakes.origin import Origin

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing()), reason=missing()),
]

MakeNode = Callable[..., NodeProcess]
Snapshot = dict[str, Any]

MARKUP = "<img src=x onerror=alert(1)>\"'&amp;</script><script>alert(2)</script>"
SECOND = 1_000_000_000
FED = """
const real = window.fetch;
window.fetch = (url, options) => {
  if (!String(url).endsWith("/events")) return real(url, options);
  const start = (control) => {
    window.control = control;
    options.signal.addEventListener("abort", () => control.error(options.signal.reason));
  };
  return Promise.resolve(new Response(new ReadableStream({ start })));
};
window.feed = (snapshot) => {
  const text = "event: snapshot\\ndata: " + JSON.stringify(snapshot) + "\\n\\n";
  window.control.enqueue(new TextEncoder().encode(text));
};
"""
LIMIT = """
[[upstream.api.limit]]
name = "account"
rate = "45/s"
burst = 5
sync = "local"
"""


@pytest.fixture
def snapshot(node: MakeNode, origin: Origin) -> Snapshot:
    """A node's own snapshot; `url` is where its page is."""
    process = node(origin, LIMIT)
    status, body = process.ask("/api/v1/events?snapshots=1")
    assert status == 200
    data = next(line for line in body.splitlines() if line.startswith(b"data:"))
    found: Snapshot = json.loads(data[len("data:") :])
    found["url"] = f"http://127.0.0.1:{process.ports.admin}/"
    return found


@contextmanager
def page(browser: Browser, first: Snapshot) -> Iterator[None]:
    """The page, with its first snapshot shown."""
    with browser.prepared(FED):
        browser.open(first["url"])
        browser.until(lambda: browser.run("return window.control !== undefined"), "it listens")
        browser.run("feed(arguments[0])", first)
        browser.until_text("#link", "live")
        yield


def later(snapshot: Snapshot, seconds: float, **counts: int) -> Snapshot:
    """The same node so much later, with these counts of each limit."""
    moved = copy.deepcopy(snapshot)
    moved["now_ns"] += int(seconds * SECOND)
    for limit in moved["limits"]:
        limit.update(counts)
    return moved


def member(name: str, **facts: Any) -> dict[str, Any]:
    return {
        "node": "solo", "name": name, "self": False, "state": "alive", "address": "10.0.0.9:7946",
        "rtt_ms": 0.4, "heard_ms": 12.0, "loss": 0.0, "datagrams_received": 5,
        "bytes_received": 500, "datagrams_sent": 5, "bytes_sent": 500, **facts,
    }  # fmt: skip


def wait(**facts: Any) -> dict[str, Any]:
    return {
        "node": "solo", "upstream": "api", "at": "limit", "limit": "account", "key": {},
        "waiting": 2, "tokens": 2, "first_client": "anonymous", "first_waited_ms": 40,
        "first_until_ms": 160, **facts,
    }  # fmt: skip


def test_markup_in_every_name_stays_text(browser: Browser, snapshot: Snapshot) -> None:
    hostile = copy.deepcopy(snapshot)
    for one in hostile["nodes"]:
        one.update(node=MARKUP, name=MARKUP, cluster=MARKUP, build=MARKUP)
    for one in hostile["upstreams"]:
        one.update(name=MARKUP, origin=MARKUP, provider=MARKUP, protocol=MARKUP)
    for one in hostile["limits"]:
        one.update(node=MARKUP, upstream=MARKUP, sync=MARKUP, admitted_peers={MARKUP: 1})
    own = hostile["breakers"][0]
    own.update(upstream=MARKUP)
    hostile["breakers"].append({**own, "credential": MARKUP, "state": "open", "remaining_ms": 9000})
    hostile["members"] = [member(MARKUP, state=MARKUP, address=MARKUP)]
    hostile["waits"] = [wait(upstream=MARKUP, key={MARKUP: MARKUP}, first_client=MARKUP)]
    told = {"node": MARKUP, "wall_ms": 1_800_000_000_000, "level": "error", "event": MARKUP}
    hostile["recent"] = [{**told, "facts": {MARKUP: MARKUP}}]
    with page(browser, hostile):
        browser.run("feed(arguments[0])", later(hostile, 1, admitted_peers={MARKUP: 50}))
        for place in ("#node", "#about", f"[data-upstream={json.dumps(MARKUP)}] h3", "#members",
                      "#waits", "#recent", ".credentials", "#mesh-note"):  # fmt: skip
            browser.until_text(place, MARKUP if place != ".credentials" else MARKUP[:8])
        browser.click(f"[data-upstream={json.dumps(MARKUP)}] header button")
        assert MARKUP in browser.text("#confirm-title")
        assert browser.run("return document.querySelectorAll('main img, main script').length") == 0
        looks_right(browser)


def test_a_hundred_upstreams_are_found_by_name(browser: Browser, snapshot: Snapshot) -> None:
    many = copy.deepcopy(snapshot)
    many["truncated"] = True
    for what in ("upstreams", "limits", "breakers"):
        name = "name" if what == "upstreams" else "upstream"
        many[what] = [
            {**copy.deepcopy(one), name: f"api-{number}"}
            for number in range(100)
            for one in snapshot[what]
        ]
    with page(browser, many):
        browser.run("feed(arguments[0])", later(many, 1, admitted_own=45, admitted_mesh=45))
        browser.until(lambda: len(browser.texts(".upstream")) == 100, "all are shown")
        assert "first 100" in browser.text("#limits-note")
        drawn = browser.run(
            "return [...document.querySelectorAll('.upstream svg')]"
            ".filter((one) => one.hasAttribute('aria-label')).length"
        )
        assert drawn < 20  # what is not in sight is not drawn
        browser.click("#filter")
        browser.type("API-77")
        browser.until(lambda: browser.texts(".upstream h3") == ["api-77"], "one is left")
        assert browser.texts("#limits .limit h3")[0].startswith("api-77")
        looks_right(browser)


def test_workers_are_one_node(browser: Browser, snapshot: Snapshot) -> None:
    both = copy.deepcopy(snapshot)
    names = ("solo.1", "solo.2")
    for what in ("nodes", "upstreams", "limits", "breakers"):
        both[what] = [
            {**copy.deepcopy(one), "node": name} for name in names for one in snapshot[what]
        ]
    for one in both["limits"]:
        one["admitted_peers"] = dict.fromkeys((*names, "gw-9"), 0)
        del one["admitted_peers"][one["node"]]
    both["members"] = [
        member(name, node=teller, self=name == teller, state="alive" if name != "gw-9" else state)
        for teller, state in zip(names, ("suspect", "alive"), strict=True)
        for name in (*names, "gw-9")
    ]
    with page(browser, both):
        next_one = later(both, 2, admitted_mesh=90)
        for limit in next_one["limits"]:
            first = limit["node"] == names[0]
            limit["admitted_own"] = 40 if first else 30
            limit["admitted_peers"] = {names[first]: 30 if first else 40, "gw-9": 20}
        browser.run("feed(arguments[0])", next_one)
        account = '[data-limit="api account"]'
        browser.until(lambda: browser.number(f"{account} [data-fact=own]") == 70, "own are added")
        assert browser.number(f"{account} [data-fact=mesh]") == 90  # views of one sum are not
        assert browser.text(f"{account} .big") == "45.0/s"
        assert browser.texts(f"{account} .shares .name") == ["gw-9", *names]
        shares = browser.texts(f"{account} .shares .number")
        assert shares == ["10.0/s, 22 %", "20.0/s, 44 % (here)", "15.0/s, 33 % (here)"]
        assert browser.texts("#workers th .name") == list(names)
        assert browser.text("[data-tile=members] .big") == "3/3"  # the best view of each
        assert browser.texts("#members th .name") == ["gw-9", *names]
        looks_right(browser)


def test_a_node_without_a_worker_says_so(browser: Browser, snapshot: Snapshot) -> None:
    with page(browser, snapshot):
        lists = ("nodes", "upstreams", "limits", "breakers")
        browser.run("feed(arguments[0])", later({**snapshot, **{one: [] for one in lists}}, 1))
        browser.until_text("#stale", "No worker of the node answers.")
        assert browser.text("#node") == "solo"  # what was known stays to be seen
        browser.run("feed(arguments[0])", later(snapshot, 2))
        browser.until_text("#link", "live")
        assert browser.text("#stale") == ""


def test_silence_is_seen_before_the_connection_ends(browser: Browser, snapshot: Snapshot) -> None:
    with page(browser, snapshot):
        browser.until_text("#stale", "old", 6.0)
        assert browser.text("#link") == "not live"
        assert "No connection" not in browser.text("#stale")
        browser.run("feed(arguments[0])", later(snapshot, 4))
        browser.until_text("#link", "live")
        assert browser.text("#stale") == ""
        browser.until_text("#stale", "the node has gone silent", 15.0)


def test_counters_that_start_again_are_no_rate(browser: Browser, snapshot: Snapshot) -> None:
    first = later(snapshot, 0, admitted_own=1000, admitted_mesh=1000)
    account = '[data-limit="api account"]'
    with page(browser, first):
        browser.run("feed(arguments[0])", later(first, 2, admitted_own=1100, admitted_mesh=1100))
        browser.until(lambda: browser.text(f"{account} .big") == "50.0/s", "a rate")
        browser.run("feed(arguments[0])", later(first, 4, admitted_own=3, admitted_mesh=3))
        browser.until(lambda: browser.text(f"{account} .big") == "0.0/s", "no rate below nothing")
        # A hole is a hole, and no line over what nobody saw.
        browser.run("feed(arguments[0])", later(first, 60, admitted_own=900, admitted_mesh=900))
        browser.until(lambda: browser.text(f"{account} .big") == "\u2013", "no mean over a hole")
        browser.run("feed(arguments[0])", later(first, 62, admitted_own=920, admitted_mesh=920))
        browser.until(lambda: browser.text(f"{account} .big") == "10.0/s", "a rate again")
        path = f"return document.querySelector('{account} .line.rate').getAttribute('d')"
        assert browser.run(path).count("M") == 2
        # The host was restarted: its clock begins again, and so does the history.
        browser.run("feed(arguments[0])", later(first, -50, admitted_own=5, admitted_mesh=5))
        browser.until(lambda: browser.run(path).count("L") == 0, "nothing of before is left")


def test_quantiles_and_rates_are_the_servers(browser: Browser, snapshot: Snapshot) -> None:
    with page(browser, snapshot):
        found = browser.run(
            "return import('/static/history.js').then(({ quantile, rateOf }) => ["
            "quantile([0, 10, 0, 0], [1, 2, 4], 0.5), quantile([0, 0, 0, 3], [1, 2, 4], 0.99),"
            "quantile([0, 0, 0, 0], [1, 2, 4], 0.5), rateOf('45/s'), rateOf('100/5min'),"
            "rateOf('10/100ms'), rateOf(null), rateOf('many')])"
        )
    assert found == [1.5, 4, None, 45, 1 / 3, 100, None, None]


@pytest.mark.parametrize("garbage", ["{", "[]", "null", '{"now_ns": 1}', "0"])
def test_what_is_no_snapshot_is_said(browser: Browser, snapshot: Snapshot, garbage: str) -> None:
    with page(browser, snapshot):
        browser.run(
            "control.enqueue(new TextEncoder().encode("
            "'event: snapshot\\ndata: ' + arguments[0] + '\\n\\n'))",
            garbage,
        )
        browser.until_text("#stale", "what is no snapshot")
        browser.until_text("#link", "connecting")  # it tries again
