"""Chained proxies: the two dialogues octet by octet, and whole gateways behind real ones."""

from __future__ import annotations

import contextlib
import json
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from fakes.gateway import Gateway
from fakes.h2_origin import H2Origin, h2_answer
from fakes.origin import Connection, Origin, Received, SilentOrigin
from fakes.proxies import HttpProxy, Socks5Proxy
from hypothesis import given
from hypothesis import strategies as st

from gateway.connectors.via import Connect, Socks5
from gateway.errors import ErrorKind, GatewayError
from gateway.h1.codec import load_codec

CONF = """
[[listen]]
bind = "127.0.0.1:0"
[upstream.api]
origin = "{origin}"
via = "{scheme}://127.0.0.1:{proxy}"
{upstream}
[[route]]
host = "api.test"
upstream = "api"
"""

AUTHORITY = trustme.CA()
Make = Callable[..., Gateway]


@pytest.fixture(params=[("httptools", "uvloop"), ("h11", "asyncio")], ids=["fast", "reference"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    """A gateway whose upstream is an origin behind a proxy."""
    codec, loop = request.param
    AUTHORITY.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with contextlib.ExitStack() as stack:

        def build(origin: str, proxy: Origin, upstream: str = "") -> Gateway:
            if origin.startswith("https"):
                upstream += f'\ntls = {{ ca = "{tmp_path}/ca.pem" }}'
            text = CONF.format(
                origin=origin,
                scheme="http" if isinstance(proxy, HttpProxy) else "socks5",
                proxy=proxy.port,
                upstream=upstream,
            )
            return stack.enter_context(Gateway(text, tmp_path, loop=loop, codec=codec))

        yield build


def tls(name: str = "localhost") -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    AUTHORITY.issue_cert(name).configure_cert(context)
    return context


def nothing_is_held(gateway: Gateway) -> None:
    pool = gateway.upstream("api").pool
    gateway.until(
        lambda: (
            not gateway.connections()
            and not pool.dialling_count
            and pool.open_count == pool.idle_count
        )
    )


def refusal(response: Any) -> tuple[int, bytes, str]:
    problem = json.loads(response.body)
    error = response.value(b"proxy-status").partition(b"error=")[2]
    return response.status, error, problem["detail"]


# Through whole gateways.


@pytest.mark.parametrize("kind", [HttpProxy, Socks5Proxy])
@pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
def test_requests_pass(make: Make, kind: type[Any], secure: bool) -> None:
    with Origin(ssl_context=tls() if secure else None) as origin, kind() as proxy:
        gateway = make(origin.url, proxy)
        target = b"/v1//x/%2e%2E?a=%2F&b=+c|{}"
        with gateway.client() as client:
            for _ in range(3):
                assert client.get(target).body == b"hello"
        request = origin.next_request()
        assert request.target == target
        assert request.values(b"host") == [f"localhost:{origin.port}".encode()]
        assert origin.connections == proxy.connections == 1
        name = f"localhost:{origin.port}".encode()
        if kind is Socks5Proxy:
            assert proxy.asked == [b"\x03\x09localhost" + origin.port.to_bytes(2, "big")]
        elif secure:
            assert proxy.asked == [name]
        else:
            assert proxy.asked[0] == b"http://" + name + target
        nothing_is_held(gateway)


def test_options_of_the_whole_server_has_no_path_in_absolute_form(make: Make) -> None:
    with Origin() as origin, HttpProxy() as proxy:
        gateway = make(origin.url, proxy)
        with gateway.client() as client:
            client.send(b"OPTIONS * HTTP/1.1\r\nHost: api.test\r\n\r\n")
            assert client.response().status == 200
        assert proxy.asked == [origin.url.encode()]
        assert origin.next_request().target == b"*"


@pytest.mark.parametrize("kind", [HttpProxy, Socks5Proxy])
def test_h2_passes(make: Make, kind: type[Any]) -> None:
    with H2Origin(h2_answer(), tls()) as origin, kind() as proxy:
        gateway = make(origin.url, proxy, 'protocol = "h2"')
        with gateway.client() as client:
            for _ in range(3):
                assert client.get(b"/x?%20").body == b"hello"
        assert origin.streams[0].value(b":path") == b"/x?%20"
        assert proxy.connections == 1
        nothing_is_held(gateway)


@pytest.mark.parametrize("kind", [HttpProxy, Socks5Proxy])
def test_large_bodies_pass_both_ways(make: Make, kind: type[Any]) -> None:
    async def echo(connection: Connection, request: Received) -> None:
        await connection.send(
            b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(request.body) + request.body
        )

    body = bytes(range(256)) * 4096
    with Origin(echo, ssl_context=tls()) as origin, kind() as proxy:
        gateway = make(origin.url, proxy)
        with gateway.client() as client:
            head = b"POST / HTTP/1.1\r\nHost: api.test\r\nContent-Length: %d\r\n\r\n" % len(body)
            client.send(head + body)
            assert client.response().body == body
        nothing_is_held(gateway)


@pytest.mark.parametrize("kind", [HttpProxy, Socks5Proxy])
def test_certificates_are_the_origins(make: Make, kind: type[Any]) -> None:
    with Origin(ssl_context=tls("elsewhere.test")) as origin, kind() as proxy:
        gateway = make(origin.url, proxy)
        with gateway.client() as client:
            assert refusal(client.get())[:2] == (502, b"tls_certificate_error")
        nothing_is_held(gateway)


@pytest.mark.parametrize("kind", [HttpProxy, Socks5Proxy])
@pytest.mark.parametrize("protocol", ["http/1.1", "h2"])
def test_an_origin_that_says_nothing_of_tls(make: Make, kind: type[Any], protocol: str) -> None:
    with SilentOrigin() as origin, kind() as proxy:
        url = f"https://localhost:{origin.port}"
        upstream = f'protocol = "{protocol}"\ntimeout = {{ tls = "100ms" }}'
        gateway = make(url, proxy, upstream)
        with gateway.client() as client:
            status, error, detail = refusal(client.get())
        assert (status, error) == (504, b"connection_timeout")
        assert detail == "localhost: no TLS within 100 ms"
        nothing_is_held(gateway)


SOCKS_REFUSED = b"\x05\x00\x05\x05\x00\x01\x00\x00\x00\x00\x00\x00"


@pytest.mark.parametrize(
    ("proxy", "status", "error", "words"),
    [
        (
            HttpProxy(b"HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno"),
            502,
            b"destination_ip_unroutable",
            "403",
        ),
        (HttpProxy(b"HTTP/1.1 407 No\r\n\r\n"), 502, b"destination_ip_unroutable", "407"),
        (HttpProxy(b"HTTP/1.1 504 No\r\n\r\n"), 504, b"connection_timeout", "504"),
        (
            HttpProxy(b"HTTP/1.1 101 No\r\nConnection: upgrade\r\nUpgrade: a\r\n\r\n"),
            502,
            b"http_protocol_error",
            "101",
        ),
        (HttpProxy(b"SSH-2.0-OpenSSH\r\n\r\n"), 502, b"http_protocol_error", "CONNECT"),
        (
            HttpProxy(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 30_000),
            502,
            b"http_protocol_error",
            "CONNECT",
        ),
        (
            HttpProxy(b"HTTP/1.1 200 OK\r\n\r\nearly", hold=True),
            502,
            b"http_protocol_error",
            "more",
        ),
        (HttpProxy(b""), 502, b"destination_ip_unroutable", "closed"),
        (HttpProxy(b"HTTP/1.1 20", hold=True), 504, b"connection_timeout", "in time"),
        (Socks5Proxy(SOCKS_REFUSED), 502, b"connection_refused", "refused"),
        (Socks5Proxy(b"\x05\x00\x05\x02"), 502, b"destination_ip_unroutable", "ruleset"),
        (Socks5Proxy(b"\x05\x00\x05\x63"), 502, b"destination_ip_unroutable", "99"),
        (Socks5Proxy(b"\x05\xff"), 502, b"destination_ip_unroutable", "login"),
        (Socks5Proxy(b"HTTP/1.1 400 Bad\r\n\r\n"), 502, b"http_protocol_error", "SOCKS5"),
        (Socks5Proxy(b"\x05\x00\x05\x00\x00\x09\x00\x00"), 502, b"http_protocol_error", "type"),
        (Socks5Proxy(b"\x05"), 502, b"destination_ip_unroutable", "closed"),
        (Socks5Proxy(b"\x05\x00", hold=True), 504, b"connection_timeout", "in time"),
    ],
    ids=lambda value: repr(getattr(value, "answer", value))[:30],
)
def test_a_proxy_that_does_not_connect(
    make: Make, proxy: Any, status: int, error: bytes, words: str
) -> None:
    # One dial per answer: parameters are shared by the two drivers.
    kind = type(proxy)(proxy.answer, hold=proxy.hold)
    with kind as running:
        gateway = make("https://localhost:9", running, 'timeout = { connect = "400ms" }')
        with gateway.client() as client:
            said, kind_of_error, detail = refusal(client.get())
        assert (said, kind_of_error) == (status, error) or (
            # The head's size is judged before its syntax.
            len(proxy.answer) > 20_000 and kind_of_error == b"http_response_header_section_size"
        )
        assert f"proxy 127.0.0.1:{running.port}" in detail
        assert words in detail or len(proxy.answer) > 20_000
        nothing_is_held(gateway)


def test_a_proxy_that_is_not_there(make: Make) -> None:
    with HttpProxy() as proxy:
        pass
    gateway = make("https://localhost:9", proxy)
    with gateway.client() as client:
        status, error, detail = refusal(client.get())
    assert (status, error) == (502, b"connection_refused")
    assert f"proxy 127.0.0.1:{proxy.port}" in detail


def test_a_tunnel_goes_through_the_proxy(make: Make) -> None:
    with Origin() as origin, HttpProxy() as proxy:
        gateway = make(origin.url, proxy)
        with gateway.client() as client:
            name = f"localhost:{origin.port}".encode()
            client.send(b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n\r\n" % (name, name))
            assert client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 200 ")
            client.send(b"GET /inside HTTP/1.1\r\nHost: api.test\r\n\r\n")
            assert client.response().body == b"hello"
        assert proxy.asked == [name]
        assert origin.next_request().target == b"/inside"


# The dialogues.


def talk(dialogue: Any, octets: bytes, size: int) -> bytes:
    """What is said to a proxy that sends these octets in pieces of that size."""
    said = dialogue.first()
    for at in range(0, len(octets), size):
        said += dialogue.feed(octets[at : at + size])
    return said


@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("api.test", b"\x03\x08api.test"),
        ("10.1.2.3", b"\x01\x0a\x01\x02\x03"),
        ("fd00::1", b"\x04\xfd" + bytes(14) + b"\x01"),
    ],
)
@pytest.mark.parametrize("bound", [b"\x01" + bytes(4), b"\x04" + bytes(16), b"\x03\x02ab"])
def test_socks5_octets(host: str, address: bytes, bound: bytes, size: int) -> None:
    dialogue = Socks5(host, 443)
    said = talk(dialogue, b"\x05\x00" + b"\x05\x00\x00" + bound + b"\x01\xbb", size)
    assert said == b"\x05\x01\x00" + b"\x05\x01\x00" + address + b"\x01\xbb"
    assert dialogue.done
    assert dialogue.rest == b""


def test_socks5_keeps_what_follows() -> None:
    dialogue = Socks5("a", 1)
    talk(dialogue, b"\x05\x00" + b"\x05\x00\x00\x01" + bytes(6) + b"rest", 100)
    assert dialogue.rest == b"rest"


@pytest.mark.parametrize("codec", ["httptools", "h11"])
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_connect_octets(codec: str, size: int) -> None:
    dialogue = Connect("fd00::1", 443, load_codec(codec))
    interim = b"HTTP/1.1 100 Continue\r\n\r\n"
    said = talk(dialogue, interim + b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", size)
    assert said == b"CONNECT [fd00::1]:443 HTTP/1.1\r\nHost: [fd00::1]:443\r\n\r\n"
    assert dialogue.done
    assert dialogue.rest == b""


@given(octets=st.binary(min_size=1, max_size=80), size=st.integers(1, 40), http=st.booleans())
def test_garbage_ends_in_an_error_or_a_wait(octets: bytes, size: int, http: bool) -> None:
    dialogue: Any = Connect("a", 1, load_codec("h11")) if http else Socks5("a", 1)
    dialogue.first()
    try:
        for at in range(0, len(octets), size):
            if dialogue.done:
                break
            dialogue.feed(octets[at : at + size])
    except GatewayError as error:
        assert error.kind in (
            ErrorKind.BAD_RESPONSE,
            ErrorKind.UNREACHABLE,
            ErrorKind.CONNECT_TIMEOUT,
            ErrorKind.CONNECTION_REFUSED,
        )
