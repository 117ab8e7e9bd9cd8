"""The corpus of requests on the live gateway: what is refused gets its status and reaches nobody,
and what is a message reaches the origin as that message."""

from __future__ import annotations

import socket
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from fakes.gateway import Gateway
from fakes.origin import Connection, Origin, Received

from gateway.errors import ErrorKind
from gateway.h1.codec import BadMessage, HeadLimits, load_codec
from gateway.h1.message import Fields, RequestHead, ResponseHead

CASES = tomllib.loads((Path(__file__).parent / "requests.toml").read_text(encoding="utf-8"))["case"]

CONF = """
[[listen]]
bind = "127.0.0.1:0"
[upstream.api]
origin = "{origin}"
[[route]]
upstream = "api"
"""
END = b"GET /the-end HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


class Transcript:
    """A sink that notes only that a message is complete."""

    complete = False

    def head_received(self, head: RequestHead | ResponseHead) -> None:
        """Heads are judged elsewhere."""

    def body_received(self, data: bytes) -> None:
        """Bodies too."""

    def message_complete(self, trailers: Fields) -> None:
        self.complete = True


class Live(NamedTuple):
    gateway: Gateway
    origin: Origin


async def script(connection: Connection, request: Received) -> None:
    if b"\r\nExpect: 100-continue" in request.raw_head:
        await connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
    body = b"" if request.request_line.startswith(b"HEAD ") else b"ok\r\n"
    await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n" + body)


@pytest.fixture(scope="module", params=[("httptools", "uvloop"), ("h11", "asyncio")])
def live(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Live]:
    codec, loop = request.param
    folder = tmp_path_factory.mktemp("live")
    with (
        Origin(script) as origin,
        Gateway(CONF.format(origin=origin.url), folder, loop=loop, codec=codec) as gateway,
    ):
        yield Live(gateway, origin)


def sent_on(expected: list[str]) -> list[tuple[str, str, str]]:
    """(method, target, body) of the messages that a gateway passes on: origin-form and `*`."""
    found = []
    for line in expected:
        if line.startswith(("!", "rest ", "trailer ")):
            continue
        method, target, framing, *body = line.split(" ", 3)
        if target.startswith(("/", "*")):
            text = body[0] if body else ""
            found.append((method, target, text if framing != "NONE" else ""))
    return found


def seen(request: Received) -> tuple[str, str, str]:
    """The same of what the origin received."""
    method, target, _ = request.request_line.decode("latin-1").split(" ", 2)
    body = request.body
    if request.values(b"transfer-encoding"):
        rest, body = body, b""
        while size := int(rest.partition(b"\r\n")[0], 16):
            at = rest.index(b"\r\n") + 2
            body, rest = body + rest[at : at + size], rest[at + size + 2 :]
    return method, target, body.decode("latin-1")


def refused_at_once(octets: bytes) -> bool:
    """Whether the octets themselves are refused, and not the end that comes behind them."""
    sink = Transcript()
    decoder = load_codec("h11").request_decoder(sink, HeadLimits())
    try:
        decoder.feed(octets)
        while sink.complete:
            sink.complete = False
            decoder.next_message()
    except BadMessage:
        return True
    return False


def statuses(octets: bytes) -> list[int]:
    """The final statuses in a stream of responses whose bodies end their lines."""
    lines = [line for line in octets.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]
    return [status for line in lines if (status := int(line.split(b" ")[1])) >= 200]


@pytest.mark.parametrize(
    ("octets", "expected"), [pytest.param(*case[1:], id=case[0]) for case in CASES]
)
def test_requests(live: Live, octets: str, expected: list[str]) -> None:
    gateway, origin = live
    del origin.requests[:]
    raw = octets.encode("latin-1")
    wanted = sent_on(expected)
    refusal = expected[-1] if expected and expected[-1].startswith("!") else ""
    with gateway.client() as client:
        client.send(raw)
        if refusal and refused_at_once(raw):
            answers = statuses(client.read_to_end())  # a refusal ends the connection
            assert answers[-1] == ErrorKind[refusal[1:]].status
        elif refusal:
            client.sock.shutdown(socket.SHUT_WR)
            answers = statuses(client.read_to_end())
            assert len(answers) <= len(wanted)  # none to what was cut off
            wanted = wanted[: len(origin.requests)]  # whoever leaves need not be served
        elif any(line.startswith("rest ") for line in expected):
            for line in expected[:-1]:
                client.response(line.partition(" ")[0].encode())
        else:
            # One more, to see that the gateway still listens, and from the right place on.
            client.send(END)
            client.read_to_end()
            if not (octets.startswith("CONNECT") or " HTTP/1.0" in octets):
                wanted.append(("GET", "/the-end", ""))
    assert [seen(request) for request in origin.requests] == wanted
