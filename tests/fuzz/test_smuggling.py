"""Whatever a client sends: nothing ambiguous reaches the origin, one request never becomes two.

A live gateway stands between a hostile client and an origin that keeps every octet. The gateway may
refuse, or take what is sent as one request or as several in a pipeline; but each that it takes must
arrive as exactly one, with exactly one framing, and be answered exactly once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from fakes.gateway import Client, Gateway
from fakes.origin import Origin, answer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

CONF = """
[[listen]]
bind = "127.0.0.1:0"
[upstream.api]
origin = "{origin}"
breaker = {{ failure_min = 1000000 }}
timeout = {{ body_idle = "150ms", head = "150ms", idle = "150ms" }}
[[route]]
upstream = "api"
"""

LENGTHS = st.sampled_from(
    [
        b"0",
        b"4",
        b"5",
        b"44",
        b"+4",
        b"-1",
        b"0x4",
        b"4 ",
        b" 4",
        b"4,4",
        b"4, 5",
        b"4\t",
        b"",
        b"00004",
        b"1_0",
        b"99999999999999999999",
    ]
)
CODINGS = st.sampled_from(
    [
        b"chunked",
        b"Chunked",
        b" chunked",
        b"chunked ",
        b"\tchunked",
        b"xchunked",
        b"chunked, chunked",
        b"identity",
        b"identity, chunked",
        b"chunked, identity",
        b"gzip",
        b"\x0bchunked",
        b"chunked\x00",
        b'"chunked"',
        b"chunked;q=1",
    ]
)
NAMES = st.sampled_from(
    [
        b"Content-Length",
        b"content-length",
        b"Content-Length ",
        b" Content-Length",
        b"Content_Length",
        b"Transfer-Encoding",
        b"transfer-encoding",
        b"Transfer-Encoding ",
        b"Transfer\x00-Encoding",
        b"Transfer-Encoding\t",
        b"X: y\r\nTransfer-Encoding",
        b"X: y\nTransfer-Encoding",
    ]
)
ENDS = st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r", b"\r\r\n", b"\r\n ", b" \r\n"])
BODIES = st.sampled_from(
    [
        b"",
        b"body",
        b"4\r\nbody\r\n0\r\n\r\n",
        b"0\r\n\r\n",
        b"4\nbody\n0\n\n",
        b"0004\r\nbody\r\n0\r\n\r\n",
        b"4;a=b\r\nbody\r\n0\r\n\r\n",
        b"4 ; a = b\r\nbody\r\n0 ;c\r\n\r\n",
        b"4;\r\nbody\r\n0\r\n\r\n",
        b'4;a="\r\nbody\r\n0\r\n\r\n"\r\n',
        b"4 \r\nbody\r\n0\r\n\r\n",
        b"0x4\r\nbody\r\n0\r\n\r\n",
        b"-4\r\nbody\r\n0\r\n\r\n",
        b"4\r\nbodyX\r\n0\r\n\r\n",
        b"FFFFFFFFFFFFFFFFF\r\n",
        b"0\r\nX: y\r\n\r\n",
        b"0\r\nContent-Length: 4\r\n\r\n",
    ]
)
SECOND_REQUEST = b"GET /smuggled HTTP/1.1\r\nHost: api.test\r\n\r\n"

ONE_HEAD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+: ?[^\x00\r\n]*")


@pytest.fixture(scope="module", params=["httptools", "h11"])
def between(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Gateway, Origin]]:
    with ExitStack() as stack:
        origin = stack.enter_context(Origin(answer(body=b"ok")))
        text = CONF.format(origin=origin.url)
        folder = tmp_path_factory.mktemp("smuggling")
        gateway = stack.enter_context(Gateway(text, folder, codec=request.param))
        yield gateway, origin


@st.composite
def hostile(draw: st.DrawFn) -> bytes:
    """A POST with up to three framing fields, a body, and another request behind it."""
    lines = []
    for _ in range(draw(st.integers(0, 3))):
        name = draw(NAMES)
        value = draw(CODINGS if b"ncoding" in name else LENGTHS)
        lines.append(name + b": " + value + draw(ENDS))
    head = b"POST / HTTP/1." + draw(st.sampled_from([b"1", b"1", b"0"])) + b"\r\nHost: api.test\r\n"
    tail = draw(st.sampled_from([b"", b"", SECOND_REQUEST]))
    return head + b"".join(lines) + b"\r\n" + draw(BODIES) + tail


def statuses(client: Client) -> list[int]:
    """The final statuses that come before the gateway closes or falls silent."""
    client.sock.settimeout(3)
    received = b""
    try:
        while data := client.sock.recv(65536):
            received += data
    except (TimeoutError, ConnectionResetError):
        pass
    return [int(found) for found in re.findall(rb"HTTP/1\.1 ([2-5]\d\d) ", received)]


@settings(
    max_examples=50,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(octets=hostile())
def test_one_in_one_out(between: tuple[Gateway, Origin], octets: bytes) -> None:
    gateway, origin = between
    origin.requests.clear()
    with gateway.client() as client:
        client.send(octets)
        got = statuses(client)
    passed = [request for request in origin.requests if request.raw_head]
    assert len(passed) == got.count(200), (octets, got)
    assert got.count(200) <= octets.count(b"HTTP/1.")
    for request in passed:
        lengths = request.values(b"content-length")
        codings = request.values(b"transfer-encoding")
        assert len(lengths) + len(codings) <= 1
        assert not codings or codings == [b"chunked"]
        assert not lengths or lengths[0].isdigit()
        assert all(ONE_HEAD.fullmatch(line) for line in request.lines[1:]), request.raw_head
        assert len(request.values(b"host")) == 1
