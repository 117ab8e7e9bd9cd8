"""RFC 9112 on the live gateway: framing, connections, time; each test named by its section.

Which octets are a message at all is the corpus's to say (`tests/conformance`), which is run on the
live gateway too.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import ssl

import pytest
import trio
import trustme
from fakes.origin import Connection, Received, answer

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

# What waits for time, or is long, is run on the reference drivers by `make test-slow` only.
FAST_FIRST = pytest.mark.parametrize(
    "drivers",
    [("httptools", "uvloop"), pytest.param(("h11", "asyncio"), marks=pytest.mark.slow)],
    ids=["fast", "reference"],
    indirect=True,
)


def says(octets: bytes, *, close: bool = False):
    """A script that answers with these octets, whatever was asked."""

    async def script(connection: Connection, request: Received) -> bool | None:
        await connection.send(octets)
        return False if close else None

    return script


@pytest.mark.parametrize(
    ("target", "host", "path"),
    [
        (b"http://LOCALHOST:%d/a?b#", None, None),
        (b"http://u:p@localhost:%d/", None, None),
        (b"http://:%d/", None, None),
        (b"ftp://localhost:%d/", None, None),
        (b"http://LOCALHOST:%d/a?b", b"other.test", b"/a?b"),
        (b"HTTP://localhost:%d", b"", b"/"),
        (b"http://localhost:%d?q", b"localhost", b"/?q"),
    ],
)
def test_9112_3_2_2_absolute_form(make, target: bytes, host: bytes | None, path) -> None:
    """The target rules and a new Host is made from it; one that differs is counted."""
    gateway, origin = make()
    authority = b"localhost:%d" % origin.port
    with gateway.client() as client:
        client.send(b"GET %b HTTP/1.1\r\nHost: %b\r\n\r\n" % (target % origin.port, host or b"x"))
        assert client.response().status == (400 if path is None else 200)
        if path is None:
            assert client.closed()
            assert origin.requests == []
            return
        client.send(b"GET http://%b/ HTTP/1.1\r\nHost: %b\r\n\r\n" % (authority, authority))
        assert client.response().status == 200
    first, second = origin.requests
    assert first.target == path
    assert first.values(b"host") == second.values(b"host") == [authority]
    assert gateway.call(lambda: gateway.server.worker.counts["hosts_overruled"]) == 1


def test_9112_3_2_4_options_of_the_whole_server(make) -> None:
    gateway, origin = make()
    authority = b"localhost:%d" % origin.port
    with gateway.client() as client:
        for target in (b"*", b"http://" + authority, b"http://%b/" % authority):
            client.send(b"OPTIONS %b HTTP/1.1\r\nHost: api.test\r\n\r\n" % target)
            assert client.response().status == 200
        client.send(b"GET * HTTP/1.1\r\nHost: api.test\r\n\r\n")
        assert client.response().status == 400
        assert client.closed()
    assert [request.target for request in origin.requests] == [b"*", b"*", b"/"]


def test_9112_3_lengths_of_a_request_line(make) -> None:
    gateway, origin = make()
    with gateway.client() as client:
        assert client.get(b"/" + b"a" * 7999).status == 200  # 8,000 SHOULD be supported
    for octets, status in (
        (b"GET /" + b"a" * 20_000, 414),
        (b"M" * 200 + b" /", 501),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 40_000, 431),
        (b"GET / HTTP/1.1\r\n" + b"X: 1\r\n" * 200, 431),
    ):
        with gateway.client() as client:
            more = b"" if b"HTTP" in octets else b" HTTP/1.1"
            client.send(octets + more + b"\r\nHost: api.test\r\n\r\n")
            assert client.response().status == status
            assert client.closed()
    assert len(origin.requests) == 1


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"X : a b\r\n", 200),
        (b"X: a\r\n b\r\n", 200),
        (b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n", 502),
        (b"Content-Length: 2, 2\r\n", 200),
        (b"Content-Length: 2\r\nContent-Length: 2\r\n", 200),
        (b"Content-Length: 2\r\nContent-Length: 3\r\n", 502),
        (b"Content-Length: +2\r\n", 502),
        (b"Transfer-Encoding: gzip, chunked\r\n", 502),
        (b"Transfer-Encoding: chunked, chunked\r\n", 502),
    ],
)
def test_9112_5_and_6_3_doubtful_responses(make, head: bytes, status: int) -> None:
    """Refused, or repaired and then the connection is not used again."""
    length = b"" if b"Content-Length" in head or b"Transfer" in head else b"Content-Length: 2\r\n"
    gateway, origin = make(says(b"HTTP/1.1 200 OK\r\n" + head + length + b"\r\nok"))
    with gateway.client() as client:
        for _ in range(2):
            response = client.get()
            assert response.status == status
            if status == 200:
                assert response.body == b"ok"
                assert response.values(b"content-length") == [b"2"]
                assert response.values(b"x") in ([], [b"a b"])
            else:
                assert b"error=http_protocol_error" in response.value(b"proxy-status")
    assert origin.connections == 2


@pytest.mark.parametrize(
    ("method", "head"),
    [
        (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n"),
        (b"HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n"),
        (b"GET", b"HTTP/1.1 204 No Content\r\nContent-Length: 50\r\n"),
        (b"GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 50\r\n"),
        (b"GET", b"HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\n"),
    ],
)
def test_9112_6_3_responses_that_have_no_body(make, method: bytes, head: bytes) -> None:
    gateway, origin = make(says(head + b"\r\n"))
    with gateway.client() as client:
        for _ in range(2):
            client.send(b"%b / HTTP/1.1\r\nHost: api.test\r\n\r\n" % method)
            raw = client.read_until(b"\r\n\r\n")
            assert raw.split(b" ")[1] == head.split(b" ")[1]
            if b"204" in head:
                assert b"ontent-" not in raw.partition(b"\r\n")[2]  # RFC 9110 section 8.6
    assert origin.connections == 1
    assert len(origin.requests) == 2


@pytest.mark.parametrize(
    "rest",
    [
        b"\r\n",
        b"Content-Length: 0\r\n\r\n",
        b"Content-Length: 2\r\n\r\nhi",
        b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    ],
)
def test_9110_15_3_6_a_205_says_that_it_has_no_content(make, rest: bytes) -> None:
    """Without a length, or with the one that came, the client would take the next answer for it."""
    gateway, origin = make(says(b"HTTP/1.1 205 Reset Content\r\n" + rest))
    with gateway.client() as client:
        for _ in range(2):
            response = client.get()
            assert response.status == 205
            assert response.values(b"content-length") == [b"0"]
            assert response.values(b"transfer-encoding") == []
            assert client.buffer == b""
    assert origin.connections == (1 if b": 0" in rest else 2)


def test_9112_6_3_octets_behind_a_response_answer_nobody(make) -> None:
    gateway, origin = make(says(OK + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"))
    with gateway.client() as client:
        for _ in range(3):
            assert client.get().body == b"ok"
    assert origin.connections == 3


def test_9112_7_1_1_chunk_extensions_are_dropped(make) -> None:
    chunked = b'Transfer-Encoding: chunked\r\n\r\n2;a=b;c="d;e"\r\nok\r\n00;last\r\n\r\n'
    gateway, origin = make(says(b"HTTP/1.1 200 OK\r\n" + chunked))
    with gateway.client() as client:
        client.send(b"POST / HTTP/1.1\r\nHost: api.test\r\n" + chunked)
        client.read_until(b"\r\n\r\n")
        assert client.read_exactly(12) == b"2\r\nok\r\n0\r\n\r\n"
    assert origin.next_request().body == b"2\r\nok\r\n0\r\n\r\n"


@pytest.mark.parametrize("framing", [b"Content-Length: 100\r\n", b"Transfer-Encoding: chunked\r\n"])
@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
def test_9112_8_what_was_cut_off_is_seen_to_be(make, framing: bytes, version: bytes) -> None:
    gateway, _ = make(says(b"HTTP/1.1 200 OK\r\n%b\r\n5\r\nhello\r\n" % framing, close=True))
    with gateway.client() as client:
        client.send(b"GET / HTTP/%b\r\nHost: api.test\r\n\r\n" % version)
        rest = b""
        try:
            client.read_until(b"\r\n\r\n")
            rest = client.read_to_end()
        except ConnectionResetError:
            return  # the one sign that a close-delimited body can give
        assert b"Length" in framing or version == b"1.1"
        assert len(rest) < 100
        assert not rest.endswith(b"0\r\n\r\n")


def test_9112_6_3_a_body_without_length_is_framed_anew(make) -> None:
    gateway, _ = make(says(b"HTTP/1.0 200 OK\r\n\r\nto the end", close=True))
    with gateway.client() as client:
        for _ in range(2):
            response = client.get()
            assert response.value(b"transfer-encoding") == b"chunked"
            assert response.body == b"to the end"
        client.send(b"GET / HTTP/1.0\r\nHost: api.test\r\nConnection: keep-alive\r\n\r\n")
        response = client.response()
        assert response.values(b"transfer-encoding") == []
        assert response.body == b"to the end"


def test_9112_9_3_an_http_1_0_client_is_not_kept(make) -> None:
    """A proxy MUST NOT: the client's Keep-Alive may be for somebody between (appendix C.2.2)."""
    gateway, _ = make()
    with gateway.client() as client:
        client.send(b"GET / HTTP/1.0\r\nHost: api.test\r\nConnection: keep-alive\r\n\r\n" * 2)
        assert client.response().value(b"connection") == b"close"
        assert client.closed()


@pytest.mark.parametrize(
    ("told", "connections"),
    [(b"", 1), (b"timeout=60", 1), (b"timeout=1", 2), (b"timeout=0", 2), (b"max=5", 1)],
)
def test_9112_9_3_an_upstream_says_how_long_it_keeps_a_connection(
    make, told: bytes, connections: int
) -> None:
    gateway, origin = make(answer(fields=b"Keep-Alive: %b\r\n" % told if told else b""))
    with gateway.client() as client:
        for _ in range(2):
            assert client.get().status == 200
    assert origin.connections == connections


@FAST_FIRST
def test_9112_9_3_2_the_next_in_a_pipeline_waits_for_the_answer(make) -> None:
    order: list[bytes] = []

    async def script(connection: Connection, request: Received) -> None:
        order.append(b"got " + request.target)
        await trio.sleep(0.05)  # long enough for the next to come, if it were sent
        order.append(b"answered " + request.target)
        await connection.send(OK)

    gateway, _ = make(script)
    with gateway.client() as client:
        client.send(
            b"".join(
                b"POST /%d HTTP/1.1\r\nHost: api.test\r\nContent-Length: 2\r\n\r\nhi" % n
                for n in range(3)
            )
        )
        assert [client.response().status for _ in range(3)] == [200] * 3
    assert order == [b"%b /%d" % (what, n) for n in range(3) for what in (b"got", b"answered")]


# Each deadline that a client can see, what the other side does, and the answer.


async def never(connection: Connection, request: Received) -> None:
    await trio.sleep_forever()


async def stops(connection: Connection, request: Received) -> None:
    await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello")
    await trio.sleep_forever()


async def drips(connection: Connection, request: Received) -> None:
    await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    while True:
        await connection.send(b"x")
        await trio.sleep(0.05)


GET = b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: api.test\r\nContent-Length: 100\r\n\r\n"


@pytest.mark.parametrize(
    ("key", "script", "sent", "status"),
    [
        ("head", answer(), GET[:20], 408),
        ("body_idle", answer(), POST + b"some", 408),
        ("response", never, GET, 504),
        ("total", never, GET, 504),
        ("body_idle", stops, GET, None),
        ("total", drips, GET, None),
        ("idle", answer(), GET, None),
    ],
)
@FAST_FIRST
def test_9112_9_5_every_deadline_ends_in_time(make, key, script, sent, status) -> None:
    """Before the answer's head it is told; inside a body only the end can tell."""
    gateway, _ = make(script, f'timeout = {{ {key} = "300ms" }}')
    with gateway.client() as client:
        client.send(sent)
        if status is None:
            with contextlib.suppress(ConnectionResetError):
                assert len(client.read_to_end()) < 1000
            return
        response = client.response()
        assert response.status == status
        error = b"http_response_timeout" if status == 504 else b"http_request_error"
        assert error in response.value(b"proxy-status")


@FAST_FIRST
def test_9112_9_5_an_upstream_that_does_not_read_is_given_up(make) -> None:
    gateway, origin = make(upstream='timeout = { body_idle = "300ms" }')

    async def deaf(connection: Connection) -> None:
        await connection.more()
        await trio.sleep_forever()

    origin._serve_requests = deaf  # type: ignore[method-assign]
    with gateway.client() as client:
        client.send(b"POST / HTTP/1.1\r\nHost: api.test\r\nContent-Length: %d\r\n\r\n" % (1 << 26))
        # As fast as it is taken: a client that stops by itself would get the 408. More than the
        # gateway lets linger is on its way by the time of the answer, so a reset may follow it.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while not select.select([client.sock], [], [], 0)[0]:
                if select.select([client.sock], [client.sock], [], 10)[1]:
                    client.sock.send(bytes(16 << 10))
        assert client.response().status == 504


def test_9112_9_6_the_last_answer_outlives_what_is_still_being_sent(make) -> None:
    """Closing at once would answer those octets with a reset, and that destroys the answer."""
    gateway, _ = make()
    with gateway.client() as client:
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")
        client.send(bytes(300_000))
        assert client.response().status == 400
        assert client.closed()


def secured(tmp_path, name: str = "localhost") -> tuple[ssl.SSLContext, str]:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return context, f'tls = {{ ca = "{tmp_path}/ca.pem" }}'


@pytest.mark.parametrize("notified", [True, False])
@pytest.mark.parametrize("framing", ["none", "length", "chunked"])
def test_9112_9_8_an_end_without_close_notify_is_no_end(
    make, drivers, tmp_path, framing: str, notified: bool
) -> None:
    """Whoever can cut the TCP connection could otherwise shorten any body without length."""
    if drivers[1] == "asyncio" and framing == "none" and not notified:
        pytest.skip("asyncio reports both ends alike; the gateway itself runs on uvloop only")
    head = {
        "none": b"\r\nhello",
        "length": b"Content-Length: 5\r\n\r\nhello",
        "chunked": b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    }[framing]

    async def ends(connection: Connection, request: Received) -> bool:
        await connection.send(b"HTTP/1.1 200 OK\r\n" + head)
        await connection.stream.aclose()
        return False

    context, trusts = secured(tmp_path)
    gateway, _ = make(ends, trusts, ssl_context=context, close_notify=notified)
    with gateway.client() as client:
        client.send(GET)
        if framing != "none" or notified:
            assert client.response().body == b"hello"
        else:
            client.read_until(b"\r\n\r\n")
            assert client.read_to_end() == b"5\r\nhello\r\n"  # and no last chunk


def test_9112_9_7_sni_and_the_name_are_the_targets(make, tmp_path) -> None:
    """Neither Host nor the address that is connected to."""
    asked: list[str | None] = []
    context, trusts = secured(tmp_path)
    context.sni_callback = lambda _, name, __: asked.append(name)
    gateway, _ = make(answer(), trusts, ssl_context=context)
    with gateway.client() as client:
        assert client.get().status == 200
    other, trusts = secured(tmp_path, "other.test")
    gateway, _ = make(answer(), trusts, ssl_context=other)
    with gateway.client() as client:
        refused = client.get()
    assert asked == ["localhost"]
    assert refused.status == 502
    assert b"tls_certificate_error" in refused.value(b"proxy-status")


def test_9112_11_1_a_response_is_not_split_by_what_a_request_says(make) -> None:
    """What the gateway says itself repeats nothing of a request in a field, or unescaped."""
    gateway, _ = make()
    path = b"/%0d%0aSet-Cookie:%20a=b"
    with gateway.client() as client:
        response = client.get(path, host=b"nowhere.test", fields=b'X: "\\\xff\r\n')
        assert response.status == 404
        assert response.values(b"set-cookie") == []
        assert json.loads(response.body)["status"] == 404
        client.send(b"GET http://a.test/\xff HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.response().status == 400


def test_9112_9_5_each_piece_goes_on_as_it_comes(make) -> None:
    """Server-sent events: nothing waits until there is more of it."""
    turn = trio.Event()

    async def script(connection: Connection, request: Received) -> None:
        await connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        await connection.send(b"7\r\ndata: 1\r\n")
        await turn.wait()
        await connection.send(b"0\r\n\r\n")

    gateway, origin = make(script)
    with gateway.client() as client:
        client.send(GET)
        client.read_until(b"\r\n\r\n")
        assert client.read_exactly(12) == b"7\r\ndata: 1\r\n"
        origin._token.run_sync_soon(turn.set)
        assert client.read_exactly(5) == b"0\r\n\r\n"
        client.sock.shutdown(socket.SHUT_WR)


def test_9112_5_1_spaces_before_a_colon_are_removed_from_a_response(make) -> None:
    async def script(connection: Connection, request: Received) -> None:
        await connection.send(b"HTTP/1.1 200 OK\r\nX-Own : a :b\r\nContent-Length\t: 2\r\n\r\nhi")

    gateway, origin = make(script)
    with gateway.client() as client:
        for _ in range(2):
            response = client.get()
            assert (response.status, response.body) == (200, b"hi")
            assert response.values(b"x-own") == [b"a :b"]
            assert response.values(b"content-length") == [b"2"]
    assert origin.connections == 2  # a server that does this is not relied upon


def test_9110_2_5_versions(make) -> None:
    gateway, origin = make()
    with gateway.client() as client:
        client.send(b"GET /new HTTP/1.7\r\nHost: api.test\r\n\r\n")
        assert client.response().status == 200
        client.send(b"GET / HTTP/2.0\r\nHost: api.test\r\n\r\n")
        refused = client.response()
        assert refused.status == 505
        assert refused.value(b"proxy-status").endswith(b"error=http_request_error")
        assert client.closed()
    assert [request.request_line for request in origin.requests] == [b"GET /new HTTP/1.1"]


def test_9112_3_2_4_options_of_the_gateway_itself(make) -> None:
    """Where only routes with a path are there, no upstream is asked; one for the host is."""
    gateway, origin = make()
    text = gateway.path.read_text().replace('host = "api.test"', 'path = "/v1"')
    assert gateway.reload(text)
    with gateway.client() as client:
        for _ in range(2):
            client.send(b"OPTIONS * HTTP/1.1\r\nHost: api.test\r\n\r\n")
            answered = client.response()
            assert answered.status == 200
            assert answered.values(b"content-length") == [b"0"]
            assert answered.value(b"date").endswith(b" GMT")
        client.send(b"OPTIONS /other HTTP/1.1\r\nHost: api.test\r\n\r\n")
        assert client.response().status == 404
    assert origin.requests == []
