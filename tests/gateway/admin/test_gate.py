"""Who may ask: what a browser on this host could be made to send, and what it could not."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from gateway.admin.gate import Gate

MakeServed = Callable[..., Any]


def status(
    served: Any, *fields: tuple[str, str], path: str = "/metrics", unix: bool = False
) -> int:
    """What the gate answers; 200: it let the request through."""
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        sent.append({"status": 200})

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request"}

    headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in fields]
    scope = {"type": "http", "method": "GET", "path": path, "headers": headers}
    asyncio.run(Gate(app, served, served.worker.counts, unix=unix)(scope, receive, send))
    code: int = sent[0]["status"]
    return code


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.1:9901",
        "127.8.9.1:1",
        "localhost",
        "LOCALHOST:80",
        "[::1]",
        "[::1]:9901",
    ],
)
def test_this_host_may_be_named(make_served: MakeServed, host: str) -> None:
    assert status(make_served(), ("Host", host)) == 200
    assert status(make_served(), ("Host", host), ("Origin", f"http://{host}")) == 200


@pytest.mark.parametrize(
    "host",
    ["", "evil.example", "evil.example:9901", "localhost.evil.example", "127.0.0.1.evil.example",
     "10.0.0.1:9901", "[2001:db8::1]", "localhost, evil.example", "[", ":", "[]:9901", "0x7f.1"],
)  # fmt: skip
def test_a_name_that_was_made_to_mean_this_host_may_not(make_served: MakeServed, host: str) -> None:
    assert status(make_served(), ("Host", host)) == 403


def test_no_host_and_two_hosts_are_none(make_served: MakeServed) -> None:
    assert status(make_served()) == 403
    assert status(make_served(), ("Host", "localhost"), ("Host", "localhost")) == 403


@pytest.mark.parametrize(
    "field",
    [
        ("Origin", "http://evil.example"),
        ("Origin", "null"),
        ("Origin", "https://localhost"),
        ("Origin", "http://localhost:8080"),
        ("Sec-Fetch-Site", "cross-site"),
        ("Sec-Fetch-Site", "same-site"),
    ],
)
def test_a_page_of_another_origin_may_not_ask(
    make_served: MakeServed, field: tuple[str, str]
) -> None:
    assert status(make_served(), ("Host", "localhost"), field) == 403


def test_a_page_of_this_interface_may(make_served: MakeServed) -> None:
    page = (("Host", "localhost:9901"), ("Origin", "http://localhost:9901"))
    assert status(make_served(), *page, ("Sec-Fetch-Site", "same-origin")) == 200
    assert status(make_served(), ("Host", "localhost"), ("Sec-Fetch-Site", "none")) == 200


def test_no_browser_connects_to_a_unix_socket(make_served: MakeServed) -> None:
    assert status(make_served(), unix=True) == 200
    assert status(make_served(token="secret"), unix=True) == 401


def test_with_a_token_the_host_may_be_any(make_served: MakeServed) -> None:
    shown = ("Authorization", "Bearer secret")
    assert status(make_served(token="secret"), ("Host", "gw-1.internal"), shown) == 200
    assert status(make_served(token="secret"), ("Host", "localhost")) == 401


def test_health_checks_are_open(make_served: MakeServed) -> None:
    for path in ("/live", "/ready"):
        assert status(make_served(token="secret"), path=path) == 200
        assert status(make_served(), ("Host", "10.0.0.1"), path=path) == 200
