"""The dashboard in a real browser, on real nodes: it shows what the API says, and does as told."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable
from typing import Any

import pytest
from fakes.browser import Browser, missing
from fakes.load import Load
from fakes.looks import looks_right
from fakes.nodes import NodeProcess
from fakes.origin import Connection, Origin, Received, answer

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(bool(missing()), reason=missing()),
]

MakeNode = Callable[..., NodeProcess]
MakeMesh = Callable[..., list[NodeProcess]]
MakeOrigin = Callable[..., Origin]

ACCOUNT = '[data-limit="api account"]'
API = '[data-upstream="api"]'
WAITING = """
[[upstream.api.limit]]
name = "account"
rate = "45/s"
burst = 5
[upstream.api.wait]
max = "200ms"
[upstream.api.breaker]
scope = "upstream"
"""


def url_of(node: NodeProcess) -> str:
    return f"http://127.0.0.1:{node.ports.admin}/"


def listed(node: NodeProcess, what: str) -> list[dict[str, Any]]:
    """What `/api/v1/` says of a resource."""
    status, body = node.ask(f"/api/v1/{what}")
    assert status == 200, body
    found: list[dict[str, Any]] = json.loads(body)[what]
    return found


def ask_once(node: NodeProcess, target: str = "/", **fields: str) -> int:
    connection = http.client.HTTPConnection(*node.address, timeout=5)
    try:
        connection.request("GET", target, headers={"Host": "api.test", **fields})
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


def test_it_shows_a_node_live(browser: Browser, node: MakeNode, origin: Origin) -> None:
    process = node(origin, WAITING)
    for _ in range(3):
        assert ask_once(process) == 200
    browser.open(url_of(process))
    browser.until_text("#link", "live")
    browser.until_text("#node", "solo")
    browser.until(lambda: browser.number(f"{ACCOUNT} [data-fact=own]") == 3, "three were taken")
    assert browser.text(f"{API} .said .pill") == "closed"
    assert browser.text("#no-mesh") != ""
    assert ask_once(process) == 200
    browser.until(lambda: browser.number(f"{ACCOUNT} [data-fact=own]") == 4, "and one more")
    looks_right(browser)
    assert set(browser.requests()) >= {url_of(process), f"{url_of(process)}api/v1/events"}


class Refusals:
    """An origin's script that answers 429 once when it is told to."""

    def __init__(self) -> None:
        self.wanted = False

    async def __call__(self, connection: Connection, request: Received) -> bool | None:
        if self.wanted:
            self.wanted = False
            throttled = answer(b"429 Too Many Requests", b"slow down", b"Retry-After: 6\r\n")
            return await throttled(connection, request)
        return await answer()(connection, request)


@pytest.mark.slow
def test_a_mesh_under_load_a_pause_and_a_death(
    browser: Browser, mesh: MakeMesh, make_origin: MakeOrigin
) -> None:
    refusals = Refusals()
    nodes = mesh(3, make_origin(refusals), WAITING)
    first = nodes[0]
    browser.open(url_of(first))
    browser.until_text("[data-tile=members] .big", "3/3")
    with Load([node.address for node in nodes], 90.0, (5, 3, 2)) as load:
        load.go_on(12.0)
        the_figures_agree(browser, first)
        the_nodes_share(browser)
        the_pause_is_counted_down(browser, first, refusals)
        nodes[2].kill()
        browser.until_text('[data-member="gw-3"] .pill', "dead", 20.0)
        assert browser.text("[data-tile=members] .big") == "2/3"
    browser.until(lambda: "Member gw-3 is dead." in spoken(browser), "it is said aloud")
    looks_right(browser)


def the_figures_agree(browser: Browser, node: NodeProcess) -> None:
    """A count on the page lies between those of the API before and after it."""

    def count(what: str) -> int:
        return next(int(one[what]) for one in listed(node, "limits") if one["name"] == "account")

    for fact, what in (("own", "admitted_own"), ("mesh", "admitted_mesh"), ("refused", "refused")):
        before = count(what)
        selector = f"{ACCOUNT} [data-fact={fact}]"
        browser.until(lambda: browser.number(selector) >= before, f"{fact} has come")  # noqa: B023
        assert browser.number(selector) <= count(what)
    # Two seconds of 45/s hold 90 tokens; the burst and what was under way may be on top.
    browser.until(lambda: 35 < browser.number(f"{ACCOUNT} .big") < 60, "the sum is the rate")
    assert browser.text(f"{ACCOUNT} .of") == "of 45/s"
    assert "45.0/s" in browser.text(f"{ACCOUNT} [data-fact=in-force]")
    waits = browser.number("[data-tile=waiting] .big")
    assert 0 <= waits <= 90
    summary = browser.run(
        "return document.querySelector(arguments[0]).getAttribute('aria-label')",
        f"{ACCOUNT} svg",
    )
    assert "by all nodes now" in summary
    assert browser.run(
        "return document.querySelector(arguments[0]).getAttribute('d').length > 50",
        f"{ACCOUNT} .area.others",
    )
    p99 = next(one["latency_ms"]["p99"] for one in listed(node, "upstreams"))
    shown = browser.text(f"{API} [data-fact=p99-ever]")
    assert p99 is not None
    assert shown.endswith((" ms", " s"))


def the_nodes_share(browser: Browser) -> None:
    browser.until(lambda: len(browser.texts(f"{ACCOUNT} .shares li")) == 3, "three shares")
    assert browser.texts(f"{ACCOUNT} .shares .name") == ["gw-1", "gw-2", "gw-3"]
    lines = browser.texts(f"{ACCOUNT} .shares .number")
    rates = [float(line.partition("/s")[0]) for line in lines]
    assert 35 < sum(rates) < 60, lines
    assert "(here)" in lines[0]


def the_pause_is_counted_down(browser: Browser, node: NodeProcess, refusals: Refusals) -> None:
    refusals.wanted = True
    browser.until_text(f"{API} .said .pill", "paused")
    browser.until_text("[data-tile=paused] .big", "1")
    left = browser.number(f"{API} .left")
    breaker = next(one for one in listed(node, "breakers") if one["credential"] is None)
    assert breaker["state"] == "open"
    assert 0 < left <= 7.5, left  # Retry-After and its jitter
    # It falls between snapshots too: a countdown and no text that changes once a second.
    seen: set[float] = set()
    browser.until(
        lambda: seen.add(browser.number(f"{API} .left")) or len(seen) >= 5,  # type: ignore[func-returns-value]
        "it counts down",
    )
    assert max(seen) <= left
    browser.until_text(f"{API} .said .pill", "closed", 20.0)
    assert browser.text("[data-tile=paused] .big") == "none"
    assert any(text.startswith("api is paused") for text in spoken(browser))
    assert browser.run(
        "return document.querySelectorAll(arguments[0]).length", f"{ACCOUNT} .plot .band"
    )


def spoken(browser: Browser) -> list[str]:
    found: list[str] = browser.run(
        "return [...document.querySelectorAll('#live-region p')].map((one) => one.textContent)"
    )
    return found


@pytest.mark.slow
def test_verbs_ask_first_and_are_obeyed(browser: Browser, mesh: MakeMesh, origin: Origin) -> None:
    nodes = mesh(2, origin, WAITING)
    first, second = nodes
    browser.until(lambda: ask_once(first) == 200, "a request goes through")
    browser.open(url_of(first))
    browser.until_text(f"{API} .said .pill", "closed")

    browser.click(f"{API} button[aria-label='Pause api']")
    assert "All nodes of the mesh" in browser.text("#confirm-text")
    browser.type("\ue00c")  # Escape
    browser.until(lambda: browser.text("#confirm-text") == "", "the question is gone")
    assert first.upstream()["breaker"]["state"] == "closed"
    assert browser.focused() == "Pause api"  # the focus is where it was

    browser.type("\ue007")  # Enter, on the button that has the focus
    browser.until(lambda: browser.focused() == "For how long", "the dialog has the focus")
    looks_right(browser)
    browser.click("#confirm-yes")
    browser.until_text("#toast", "is paused")
    assert "(all nodes)" in browser.text("#toast")
    for node in nodes:
        browser.until(
            lambda: node.upstream()["breaker"]["state"] == "open",  # noqa: B023
            f"{node.name} pauses",
        )
    browser.until(lambda: 30 < browser.number(f"{API} .left") < 60, "it counts down from 1 min")
    assert ask_once(second) == 429

    browser.click(f"{API} button[aria-label='Resume api']")
    browser.click("#confirm-yes")
    browser.until_text("#toast", "goes on")
    browser.until(lambda: ask_once(second) == 200, "requests go through again")

    browser.until(lambda: ask_once(first) == 200, "here too, after the trial")
    before = listed(first, "limits")[0]["level"]
    browser.click(f"{ACCOUNT} button")
    assert "comes back unless" in browser.text("#confirm-text")
    browser.click("#confirm-yes")
    browser.until_text("#toast", "cleared 1 row")
    assert listed(first, "limits")[0]["level"] <= before

    force(first, "open")
    browser.until_text(f"{API} .said .pill", "held open")
    browser.click(f"{API} button[aria-label='Let the breaker of api decide']")
    browser.click("#confirm-yes")
    browser.until_text("#toast", "decides by itself")
    assert first.upstream()["breaker"]["forced"] is None
    browser.until(
        lambda: browser.text(f"{API} .said .pill") != "held open", "the page sees it decide"
    )


def force(node: NodeProcess, state: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", node.ports.admin, timeout=5)
    try:
        body = json.dumps({"state": state})
        fields = {"Content-Type": "application/json"}
        connection.request("PUT", "/api/v1/breakers/api", body, fields)
        assert connection.getresponse().status == 200
    finally:
        connection.close()


@pytest.mark.slow
def test_a_node_that_goes_and_comes_back(browser: Browser, node: MakeNode, origin: Origin) -> None:
    process = node(origin, WAITING)
    browser.open(url_of(process))
    browser.until_text("#link", "live")
    assert browser.text("#stale") == ""
    process.terminate()
    browser.until_text("#stale", "No connection")
    browser.until_text("#stale", "old")
    assert browser.text("#link") == "not live"
    assert browser.run("return document.body.classList.contains('old')")
    looks_right(browser)
    process.start()
    process.wait_ready()
    browser.run("document.getElementById('retry').click()")  # or it has found it by itself
    browser.until_text("#link", "live")
    assert browser.text("#stale") == ""
    said = spoken(browser)
    assert "The figures are live again." in said
    refused = browser.complaints()  # what the browser itself says of a node that is not there
    assert refused
    assert all("ERR_" in line for line in refused), refused


@pytest.mark.slow
def test_a_token_is_asked_for_and_kept_in_the_tab(
    browser: Browser, node: MakeNode, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADMIN_TOKEN", "s3cret-token")
    process = node(origin, WAITING, settings=('admin.token={ env = "ADMIN_TOKEN" }',), wait=False)
    process.wait_ready()
    browser.open(url_of(process))
    browser.until_text("#token-form", "asks for a token")
    assert browser.focused() == "Admin token"
    looks_right(browser)
    browser.type("wrong\ue007")
    browser.until_text("#token-wrong", "does not accept")
    assert browser.text("#figures") == ""
    browser.type("s3cret-token\ue007")
    browser.until_text("#link", "live")
    browser.until_text("#node", "solo")
    assert browser.text("#token-form") == ""
    browser.reload()
    browser.until_text("#link", "live")  # the tab knows it still
    browser.click(f"{ACCOUNT} button")
    browser.click("#confirm-yes")
    browser.until_text("#toast", "cleared")
    kept = browser.run("return [JSON.stringify(localStorage), document.cookie, location.href]")
    assert not [where for where in kept if "s3cret" in where]
    assert not [url for url in browser.requests() if "s3cret" in url]
    browser.click("#forget-token")
    browser.until_text("#token-form", "asks for a token")
    assert browser.run("return sessionStorage.length") == 0
    assert all("401" in line for line in browser.complaints())


@pytest.mark.slow
def test_workers_are_shown_as_one_node_and_told_alike(
    browser: Browser, node: MakeNode, origin: Origin
) -> None:
    process = node(origin, WAITING, settings=("node.workers=2",))
    browser.open(url_of(process))
    browser.until_text("#link", "live")
    for _ in range(30):  # each on a connection of its own, so that both workers get some
        assert ask_once(process) == 200
    browser.until(lambda: browser.number(f"{ACCOUNT} [data-fact=own]") == 30, "own are added up")
    browser.until(lambda: browser.number(f"{ACCOUNT} [data-fact=mesh]") == 30, "by all is a view")
    assert sum(one["admitted_own"] for one in account(process)) == 30
    assert browser.text("#node") == "solo"
    assert "2 workers" in browser.text("#about")
    names = sorted(one["node"] for one in listed(process, "nodes"))
    assert sorted(browser.texts("#workers th .name")) == names
    assert browser.text("[data-tile=members] .big") == "2/2"  # workers are members of each other
    looks_right(browser)

    browser.click(f"{API} button[aria-label='Pause api']")
    browser.click("#confirm-yes")
    browser.until_text("#toast", "is paused")
    browser.until_text(f"{API} .said .pill", "paused")
    assert {ask_once(process) for _ in range(10)} == {429}
    browser.click(f"{API} button[aria-label='Resume api']")
    browser.click("#confirm-yes")
    browser.until_text("#toast", "goes on")
    browser.until_text(f"{API} .said .pill", "closed", 20.0)


def account(node: NodeProcess) -> list[dict[str, Any]]:
    return [one for one in listed(node, "limits") if one["name"] == "account"]


HOSTILE = "<img src=x onerror=alert(1)>\"'&amp;</td><script>alert(2)</script>"


@pytest.mark.slow
def test_hostile_names_stay_text(browser: Browser, node: MakeNode, make_origin: MakeOrigin) -> None:
    upstream = """
    [[upstream.api.limit]]
    name = "per-team"
    rate = "3/min"
    burst = 1
    key = ["header:x-team"]
    [upstream.api.wait]
    max = "30s"
    """
    process = node(make_origin(), upstream)
    browser.open(url_of(process))
    browser.until_text("#link", "live")
    assert ask_once(process, "/<script>alert(3)</script>", **{"X-Team": HOSTILE}) == 200
    with Load([process.address], 2.0, fields=f"X-Team: {HOSTILE}\r\n") as load:
        load.go_on(1.0)
        browser.until_text("#waits", HOSTILE)
        counts = browser.run(
            "return ['#main img', 'main script', 'iframe'].map("
            "(one) => document.querySelectorAll(one).length)"
        )
        assert counts == [0, 0, 0]
        looks_right(browser)
        process.terminate()
    browser.complaints()  # the node went; nobody complains of anything else
