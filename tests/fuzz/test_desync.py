"""Whatever an upstream answers: each client reads the answer to its own request, or an end.

A live gateway stands between a hostile origin and a client that reads as RFC 9112 section 6.3 says.
The gateway may refuse a response, pass it on or cut it off; but the next answer on the same client
connection, and the next on any other, is the one to the request that was sent there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import trio
from fakes.gateway import Client, Gateway
from fakes.origin import Connection, Origin, Received, answer
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

CONF = """
[[listen]]
bind = "127.0.0.1:0"
[upstream.api]
origin = "{origin}"
breaker = {{ failure_min = 1000000 }}
[[route]]
upstream = "api"
"""

STATUSES = (100, 101, 102, 103, 200, 200, 200, 204, 205, 206, 304, 404, 426, 500, 999)
FIELDS = (
    b"Content-Length: 0",
    b"Content-Length: 2",
    b"Content-Length: 2",
    b"Content-Length: 02",
    b"Content-Length: 2, 2",
    b"Content-Length: 50",
    b"Content-Length: +2",
    b"Content-Length : 2",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding : Chunked",
    b"Transfer-Encoding:\r\n chunked",
    b"Transfer-Encoding: identity",
    b"Transfer-Encoding: gzip, chunked",
    b"Connection: close",
    b"Connection: content-length, transfer-encoding",
    b"Connection: upgrade\r\nUpgrade: websocket",
    b"Keep-Alive: timeout=0",
    b"X: a\r\n Content-Length: 2",
    b"X: a\nContent-Length: 2",
    b"X: a\rTransfer-Encoding: chunked",
)
EVIL = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
BODIES = (
    b"",
    b"ok",
    b"2\r\nok\r\n0\r\n\r\n",
    b"2;a=b\r\nok\r\n0\r\nX: y\r\nContent-Length: 4\r\n\r\n",
    b"2\r\nok\r\n0\r\n",
    b"2\nok\n0\n\n",
    b"2\r\nokk\r\n0\r\n\r\n",
    b"ok" + EVIL,
    b"2\r\nok\r\n0\r\n\r\n" + EVIL,
    EVIL,
)


@st.composite
def hostile(draw: st.DrawFn) -> list[bytes]:
    """A response that is nearly right, in up to three pieces; b"" last: then an end."""
    version = draw(st.sampled_from((b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0")))
    lines = [b"%b %d X" % (version, draw(st.sampled_from(STATUSES)))]
    lines += draw(st.lists(st.sampled_from(FIELDS), max_size=3))
    octets = b"\r\n".join(lines) + b"\r\n\r\n" + draw(st.sampled_from(BODIES))
    if draw(st.booleans()):
        octets = b"HTTP/1.1 103 Early\r\nContent-Length: 4\r\n\r\n" + octets
    cuts = sorted(draw(st.lists(st.integers(0, len(octets)), max_size=2)))
    pieces = [octets[a:b] for a, b in zip([0, *cuts], [*cuts, len(octets)], strict=True)]
    return [piece for piece in pieces if piece] + [b""] * draw(st.integers(0, 1))


class Between:
    """The gateway, and an origin that answers /hostile with the pieces it was given."""

    def __init__(self, stack: ExitStack, folder: pytest.TempPathFactory, codec: str) -> None:
        self.pieces: list[bytes] = []
        origin = stack.enter_context(Origin(self._script))
        text = CONF.format(origin=origin.url)
        self.gateway = stack.enter_context(Gateway(text, folder.mktemp("desync"), codec=codec))

    async def _script(self, connection: Connection, request: Received) -> bool | None:
        if not request.target.startswith(b"/hostile"):
            return await answer(body=request.target)(connection, request)
        for piece in self.pieces:
            if not piece:
                return False
            await connection.send(piece)
            await trio.sleep(0)
        # What is still to come of the response, if anything, is the connection's end.
        with trio.move_on_after(0.1):
            return await connection.more()
        return False


@pytest.fixture(scope="module", params=["httptools", "h11"])
def between(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Between]:
    with ExitStack() as stack:
        yield Between(stack, tmp_path_factory, request.param)


@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(pieces=hostile(), method=st.sampled_from((b"GET", b"GET", b"HEAD", b"POST")))
@example(pieces=[b"HTTP/1.1 205 X\r\nContent-Length: 2\r\n\r\n"], method=b"GET")
@example(pieces=[b"HTTP/1.1 205 X\r\n\r\n"], method=b"GET")
@example(pieces=[b"HTTP/1.1 200 X\r\nContent-Length: 2\r\n\r\n", b"ok"], method=b"HEAD")
def test_each_reads_its_own_answer(between: Between, pieces: list[bytes], method: bytes) -> None:
    between.pieces = pieces
    with between.gateway.client() as client:
        client.send(method + b" /hostile HTTP/1.1\r\nHost: api.test\r\nContent-Length: 0\r\n\r\n")
        if goes_on(client, method):
            assert client.get(b"/mine").body == b"/mine", pieces
    with between.gateway.client() as client:
        assert client.get(b"/theirs").body == b"/theirs", pieces


def goes_on(client: Client, method: bytes) -> bool:
    """Reads one response; says whether the connection can carry another request."""
    try:
        response = client.response(method)
    except (AssertionError, ConnectionResetError):
        return False  # cut off, and seen to be
    assert response.status not in (100, 101, 102, 103)
    framed = response.values(b"content-length") + response.values(b"transfer-encoding")
    ended = not framed and response.status not in (204, 304) and method != b"HEAD"
    return not ended and b"close" not in response.values(b"connection")
