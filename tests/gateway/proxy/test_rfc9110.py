"""RFC 9110 on the live gateway: what an intermediary owes, each test named by its section."""

from __future__ import annotations

import email.utils
import json
import socket
import struct
import threading
import time

import pytest
import trio
from fakes.origin import Connection, Received, answer

# What waits for time, or is long, is run on the reference drivers by `make test-slow` only.
FAST_FIRST = pytest.mark.parametrize(
    "drivers",
    [("httptools", "uvloop"), pytest.param(("h11", "asyncio"), marks=pytest.mark.slow)],
    ids=["fast", "reference"],
    indirect=True,
)


async def echo(connection: Connection, request: Received) -> None:
    """Answers with the request's body as it came, chunks and all."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(request.body)
    await connection.send(head + request.body)


def says(octets: bytes):
    """A script that answers with these octets, whatever was asked."""

    async def script(connection: Connection, request: Received) -> None:
        await connection.send(octets)

    return script


def test_9110_5_3_order_and_lines_stay_as_they_are(make) -> None:
    lines = [b"Set-Cookie: a=b, c", b"X-One: 1", b"set-cookie: d=e", b"X-one: 2", b"X-ONE: 3"]
    gateway, origin = make(answer(fields=b"".join(line + b"\r\n" for line in lines)))
    with gateway.client() as client:
        response = client.get(fields=b"X-B: 1\r\nCookie: a\r\nX-A: 2\r\nx-b: 3\r\nCookie: b\r\n")
    assert response.lines[2:7] == lines  # behind the status line and Content-Length
    assert response.values(b"set-cookie") == [b"a=b, c", b"d=e"]
    request = origin.next_request()
    assert [line for line in request.lines if line[:1] in b"XxC"] == [
        b"X-B: 1", b"Cookie: a", b"X-A: 2", b"x-b: 3", b"Cookie: b",
    ]  # fmt: skip


@pytest.mark.parametrize("value", [b"a\rb", b"a\nb", b"a\0b", b"a\x0bb", b"\x7f"])
def test_9110_5_5_control_characters_are_refused_both_ways(make, value: bytes) -> None:
    gateway, origin = make(answer(fields=b"X-Bad: " + value + b"\r\n"))
    with gateway.client() as client:
        assert client.get(fields=b"X-Bad: " + value + b"\r\n").status == 400
        assert client.closed()
    assert origin.requests == []
    with gateway.client() as client:
        assert client.get().status == 502


def test_9110_5_5_other_octets_pass_as_they_are(make) -> None:
    text = bytes(range(0x80, 0x100)) + b"\t \"'%(),/:;<=>?@[\\]{}~"
    gateway, origin = make(answer(fields=b"X-Text: a" + text + b"b\r\n"))
    with gateway.client() as client:
        assert client.get(fields=b"X-Text: a" + text + b"b\r\n").values(b"x-text") == [
            b"a" + text + b"b"
        ]
    assert origin.next_request().values(b"x-text") == [b"a" + text + b"b"]


TRAILERS = (
    b"X-Sum: 1\r\nX-Hop: 2\r\nContent-Length: 9\r\nAuthorization: x\r\nHost: y\r\nx-sum: 3\r\n"
)


@pytest.mark.parametrize("te", [b"TE: trailers\r\n", b"TE: deflate\r\n", b""])
def test_9110_6_5_trailers_of_a_response(make, te: bytes) -> None:
    """Only for a client that asked, only what may be one, and never merged into the head."""
    gateway, _ = make(
        says(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n"
            b"Connection: X-Hop\r\n\r\n2\r\nok\r\n0\r\n" + TRAILERS + b"\r\n"
        )
    )
    with gateway.client() as client:
        for _ in range(2):
            client.send(b"GET / HTTP/1.1\r\nHost: api.test\r\n" + te + b"\r\n")
            head = client.read_until(b"\r\n\r\n")
            # RFC 9110 section 6.6.2: what is dropped is not announced.
            assert head.count(b"\r\nTrailer: X-Sum\r\n") == (b"trailers" in te)
            assert head.count(b"X-Sum") == (b"trailers" in te)
            kept = b"X-Sum: 1\r\nx-sum: 3\r\n" if b"trailers" in te else b""
            assert client.read_exactly(12 + len(kept)) == b"2\r\nok\r\n0\r\n" + kept + b"\r\n"


def test_9110_6_5_trailers_of_a_request(make) -> None:
    gateway, origin = make()
    with gateway.client() as client:
        client.send(
            b"POST / HTTP/1.1\r\nHost: api.test\r\nTransfer-Encoding: chunked\r\n"
            b"Connection: X-Hop\r\n\r\n0\r\n" + TRAILERS + b"\r\n"
        )
        assert client.response().status == 200
    request = origin.next_request()
    assert request.body == b"0\r\nX-Sum: 1\r\nx-sum: 3\r\n\r\n"
    assert request.values(b"x-sum") == []


def test_9110_6_6_1_own_answers_have_a_date(make) -> None:
    gateway, _ = make()
    with gateway.client() as client:
        date = client.get(host=b"nowhere.test").value(b"date").decode()
    assert date.endswith(" GMT")
    assert email.utils.parsedate_to_datetime(date)


def test_9110_6_6_1_a_response_without_a_date_gets_one(make) -> None:
    """And only that: one that has a Date keeps it, whatever it says; interim ones need none."""

    async def script(connection: Connection, request: Received) -> None:
        own = b"DATE: yesterday\r\n" if request.lines[0] == b"GET /own HTTP/1.1" else b""
        await connection.send(
            b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
            b"HTTP/1.1 200 OK\r\n" + own + b"Content-Length: 0\r\n\r\n"
        )

    gateway, _ = make(script)
    with gateway.client() as client:
        before = int(time.time())
        client.send(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
        assert b"date" not in client.read_until(b"\r\n\r\n").lower()
        date = client.response().value(b"date").decode()
        assert date.endswith(" GMT")
        dated = email.utils.parsedate_to_datetime(date).timestamp()
        assert before <= dated <= time.time()
        assert client.get(b"/own").values(b"date") == [b"yesterday"]


def test_9110_6_6_1_the_answer_to_max_forwards_has_a_date(make) -> None:
    gateway, _ = make()
    with gateway.client() as client:
        client.send(b"OPTIONS / HTTP/1.1\r\nHost: api.test\r\nMax-Forwards: 0\r\n\r\n")
        assert client.response().value(b"date").endswith(b" GMT")


def test_9110_7_6_methods_fields_and_statuses_nobody_knows_pass(make) -> None:
    gateway, origin = make(
        says(b"HTTP/1.1 299 Quite Fine\r\nX-New: 1\r\nContent-Length: 0\r\n\r\n")
    )
    with gateway.client() as client:
        client.send(b"BREW /pot HTTP/1.1\r\nHost: api.test\r\nX-Unheard-Of: 1\r\n\r\n")
        response = client.response()
    assert response.lines[0] == b"HTTP/1.1 299 Quite Fine"
    assert response.value(b"x-new") == b"1"
    request = origin.next_request()
    assert request.request_line == b"BREW /pot HTTP/1.1"
    assert request.values(b"x-unheard-of") == [b"1"]


def test_9110_7_6_where_a_request_came_from_stays_here(make) -> None:
    gateway, origin = make()
    names = (b"Forwarded", b"X-Forwarded-For", b"X-Forwarded-Host", b"x-forwarded-proto")
    with gateway.client() as client:
        client.get(fields=b"".join(name + b": secret.internal\r\n" for name in names))
    assert b"internal" not in origin.next_request().raw_head


HOP_BY_HOP = (
    b"Keep-Alive: timeout=9\r\nProxy-Connection: keep-alive\r\nTE: gzip\r\nUpgrade: h2c\r\n"
    b"X-Hop: 1\r\nx-hop-too: 2\r\nConnection: X-Hop\r\nConnection: close, x-HOP-too\r\n"
)


def test_9110_7_6_1_hop_by_hop_fields_go_no_further(make) -> None:
    """Named by Connection or not, in either direction; Connection itself is the gateway's own."""
    fields = HOP_BY_HOP + b"Proxy-Authenticate: Basic\r\nProxy-Authentication-Info: x\r\n"
    gateway, origin = make(answer(fields=fields.replace(b"close, ", b"") + b"X-End: 1\r\n"))
    with gateway.client() as client:
        response = client.get(
            fields=HOP_BY_HOP + b"Proxy-Authorization: Basic eDp5\r\nX-End: 1\r\n"
        )
        assert response.value(b"connection") == b"close"
    request = origin.next_request()
    for line in fields.split(b"\r\n")[:-1]:
        name = line.partition(b":")[0]
        assert request.values(name) == [], name
        assert name == b"Connection" or response.values(name) == [], name
    assert request.values(b"proxy-authorization") == []
    assert request.values(b"x-end") == response.values(b"x-end") == [b"1"]


def test_9110_7_6_1_connection_cannot_take_away_what_is_for_all(make) -> None:
    gateway, origin = make(
        answer(fields=b"Cache-Control: no-store\r\nConnection: content-length, cache-control\r\n")
    )
    with gateway.client() as client:
        client.send(
            b"POST / HTTP/1.1\r\nHost: api.test\r\nContent-Length: 2\r\nAuthorization: x\r\n"
            b"Connection: Host, Content-Length, authorization\r\n\r\nhi"
        )
        response = client.response()
    assert response.body == b"hello"
    assert response.value(b"cache-control") == b"no-store"
    request = origin.next_request()
    assert request.body == b"hi"
    assert request.values(b"authorization") == [b"x"]
    assert request.values(b"host") == [b"localhost:%d" % origin.port]


@pytest.mark.parametrize("method", [b"OPTIONS", b"TRACE", b"GET"])
def test_9110_7_6_2_max_forwards(make, method: bytes) -> None:
    gateway, origin = make()
    with gateway.client() as client:
        for told, sent in (
            (b"Max-Forwards: 2\r\n", b"1"),
            (b"Max-Forwards: x\r\n", b"x"),
            (b"", None),
        ):
            client.send(method + b" / HTTP/1.1\r\nHost: api.test\r\n" + told + b"\r\n")
            assert client.response().status == 200
            if method == b"GET" and sent == b"1":
                sent = b"2"  # it is for OPTIONS and TRACE only
            values = origin.next_request().values(b"max-forwards")
            assert values == ([] if sent is None else [sent])  # 9.3.7: none is added
        client.send(method + b" / HTTP/1.1\r\nHost: api.test\r\nMax-Forwards: 0\r\n\r\n")
        status = client.response().status
    assert status == {b"OPTIONS": 204, b"TRACE": 501, b"GET": 200}[method]
    assert len(origin.requests) == (4 if method == b"GET" else 3)


@pytest.mark.parametrize(("version", "via"), [(b"1.1", b"1.1"), (b"1.0", b"1.0")])
def test_9110_7_6_3_via_says_the_version_that_came(make, version: bytes, via: bytes) -> None:
    """Behind those of earlier hops, on requests and on responses, whatever they answer."""
    gateway, origin = make(
        says(b"HTTP/%b 404 No\r\nVia: 1.1 cache\r\nContent-Length: 2\r\n\r\nno" % version)
    )
    with gateway.client() as client:
        head = b"GET / HTTP/%b\r\nHost: api.test\r\nVia: 1.0 fred, HTTP/2 p.example\r\n\r\n"
        client.send(head % version)
        response = client.response()
    entry = via + b" egressd-gw-test"
    assert origin.next_request().values(b"via") == [b"1.0 fred, HTTP/2 p.example", entry]
    assert response.values(b"via") == [b"1.1 cache", entry]


def test_9110_7_6_3_a_loop_is_refused(make) -> None:
    gateway, origin = make()
    with gateway.client() as client:
        response = client.get(fields=b"Via: 1.1 a\r\nVia: 1.1 b, 1.1 egressd-gw-test (x)\r\n")
        assert response.status == 508
        assert b"error=proxy_loop_detected" in response.value(b"proxy-status")
        assert client.get(fields=b"Via: 1.1 egressd-gw-test-2\r\n").status == 200
    assert len(origin.requests) == 1


@pytest.mark.parametrize(
    "target", [b"/", b"//a//b", b"/%7Euser/%2e%2E/;x?", b"/a?b?c&d=%00|{}\"'", b"/\\^`~!$*()"]
)
def test_9110_7_7_target_and_content_are_not_transformed(make, target: bytes) -> None:
    """Signed requests must survive, and what is compressed, or is not, is the origin's choice."""
    packed = b"\x1f\x8b\x08\0 no gzip at all"
    fields = (
        b"Cache-Control: no-transform\r\nContent-Encoding: gzip\r\nContent-MD5: x\r\n"
        b'ETag: W/"1"\r\nContent-Type: Text/Plain;Charset=x\r\nAccept-Ranges: none\r\n'
        b"Last-Modified: whenever\r\n"
    )
    gateway, origin = make(answer(body=packed, fields=fields))
    with gateway.client() as client:
        response = client.get(
            target, fields=b"Accept-Encoding: br;q=0.1, *;q=0\r\nRange: bytes=0-\r\n"
        )
    assert response.body == packed
    assert b"\r\n".join(response.lines).find(fields[:-2]) > 0
    request = origin.next_request()
    assert request.target == target
    assert request.values(b"accept-encoding") == [b"br;q=0.1, *;q=0"]
    assert request.values(b"range") == [b"bytes=0-"]


def test_9110_7_8_only_a_websocket_is_upgraded(make) -> None:
    gateway, origin = make()
    with gateway.client() as client:
        for protocol, sent in ((b"h2c", []), (b"TLS/1.0", []), (b"websocket", [b"websocket"])):
            fields = b"Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: x\r\nUpgrade: "
            assert client.get(fields=fields + protocol + b"\r\n").status == 200
            request = origin.next_request()
            assert request.values(b"upgrade") == sent
            assert request.values(b"connection") == ([b"upgrade"] if sent else [])
            assert request.values(b"http2-settings") == []


async def upgrades(connection: Connection, request: Received) -> bool:
    await connection.send(
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 101 Switching Protocols\r\n"
        b"Connection: upgrade\r\nUpgrade: websocket\r\n\r\n"
    )
    while await connection.more():
        await connection.send(bytes(connection.buffer))
        connection.buffer.clear()
    await connection.send(b"bye")
    return False


UPGRADE = b"GET / HTTP/1.1\r\nHost: api.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


@FAST_FIRST
def test_9110_7_8_100_comes_before_101_and_then_octets(make) -> None:
    gateway, origin = make(upgrades, upstream='timeout = { tunnel = "400ms", idle = "1h" }')
    with gateway.client() as client:
        client.send(UPGRADE)
        assert client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 100 ")
        assert client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")
        client.send(b"\0GET / HTTP/1.1\r\n\r\n")
        assert client.read_exactly(19) == b"\0GET / HTTP/1.1\r\n\r\n"
        client.sock.shutdown(1)  # half of it: the other half still comes
        assert client.read_to_end() == b"bye"
    with gateway.client() as client:
        client.send(UPGRADE)
        client.read_until(b"101")
        client.read_to_end()  # silence for longer than `tunnel`
    gateway.until(lambda: not gateway.connections())
    assert gateway.call(lambda: gateway.upstream("api").pool.open_count) == 0
    assert origin.connections == 2  # one that has been upgraded is never used again


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket, h2c", b"websocket/13"])
def test_9110_7_8_no_upgrade_to_what_was_not_asked_for(make, protocol: bytes) -> None:
    async def script(connection: Connection, request: Received) -> None:
        fields = b"Connection: upgrade\r\nUpgrade: %b\r\n\r\n" % protocol
        await connection.send(b"HTTP/1.1 101 Switching Protocols\r\n" + fields + b"octets")

    gateway, _ = make(script)
    with gateway.client() as client:
        client.send(UPGRADE)
        response = client.response()
        assert response.status == 502
        assert b"error=http_protocol_error" in response.value(b"proxy-status")
        assert b"octets" not in response.body


@pytest.mark.parametrize("how", ["end", "reset"])
@pytest.mark.parametrize("method", [b"GET", b"POST", b"PUT"])
def test_9110_9_2_2_only_what_is_safe_to_repeat_is_repeated(make, method: bytes, how: str) -> None:
    """A pooled connection that closes on a request may have done it: once more, on a fresh one."""

    async def script(connection: Connection, request: Received) -> bool | None:
        if request.target == b"/2" and connection.number == 1:
            if how == "reset":
                linger = struct.pack("ii", 1, 0)
                connection.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            return False
        return await answer()(connection, request)

    gateway, origin = make(script)
    with gateway.client() as client:
        assert client.get(b"/1").status == 200
        client.send(method + b" /2 HTTP/1.1\r\nHost: api.test\r\nContent-Length: 2\r\n\r\nhi")
        repeated = method != b"POST"
        assert client.response().status == (200 if repeated else 502)
    assert [one.connection for one in origin.requests] == ([1, 1, 2] if repeated else [1, 1])


def test_9110_9_3_2_a_head_that_is_refused_is_answered_without_content(make) -> None:
    gateway, _ = make()
    with gateway.client() as client:
        client.send(b"HEAD / HTTP/1.1\r\nHost: api.test\r\nExpect: tea\r\n\r\n")
        answer = client.read_to_end()
    assert answer.startswith(b"HTTP/1.1 417 ")
    assert b"\r\nContent-Length: " in answer
    assert answer.index(b"\r\n\r\n") + 4 == len(answer)


@FAST_FIRST
@pytest.mark.parametrize("method", [b"GET", b"POST"])
@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"])
def test_9110_9_2_2_an_idle_connection_has_news_the_loop_has_not_heard(make, said, method) -> None:
    """Its end costs no request, not even one that is never repeated; what it says answers none."""
    close = threading.Event()

    async def script(connection: Connection, request: Received) -> bool | None:
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood")
        if connection.number == 1:
            await trio.to_thread.run_sync(close.wait)
            await connection.send(said)
            return False
        return None

    gateway, origin = make(script)
    with gateway.client() as client:
        assert client.get().body == b"good"
        resume = threading.Event()
        held = threading.Event()
        gateway.loop.call_soon_threadsafe(lambda: (held.set(), resume.wait(10)))
        assert held.wait(10)
        # The loop is told of the request first, and of the connection's end only after it.
        client.send(method + b" / HTTP/1.1\r\nHost: api.test\r\nContent-Length: 0\r\n\r\n")
        close.set()
        deadline = time.monotonic() + 10
        while origin.open_now and time.monotonic() < deadline:
            time.sleep(0.002)
        resume.set()
        response = client.response()
    assert response.status == 200
    assert response.body == b"good"
    assert origin.connections == 2


def test_9110_9_3_6_a_2xx_to_connect_has_no_framing(make) -> None:
    gateway, origin = make(upstream="tunnel = true")
    target = b"localhost:%d" % origin.port
    with gateway.client() as client:
        client.send(
            b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n\r\nGET /in HTTP/1.1\r\n\r\n" % (target, target)
        )
        assert client.read_until(b"\r\n\r\n") == b"HTTP/1.1 200 Connection Established\r\n\r\n"
        assert client.response().body == b"hello"  # what came behind the head went in
    assert origin.next_request().target == b"/in"


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (b"localhost", 400),
        (b"localhost:", 400),
        (b"localhost:0", 400),
        (b"localhost:65536", 400),
        (b"localhost:x", 400),
        (b":443", 400),
        (b"u@localhost:443", 400),
        (b"http://localhost:443", 400),
        (b"/", 400),
        (b"localhost:25", 403),
        (b"other.test:443", 403),
    ],
)
def test_9110_9_3_6_what_is_no_target_for_connect(make, target: bytes, status: int) -> None:
    gateway, origin = make(
        upstream="tunnel = true", more='[forward]\nallow = ["localhost:443", "localhost:25"]\n'
    )
    with gateway.client() as client:
        client.send(
            b"CONNECT %b HTTP/1.1\r\nHost: localhost\r\n\r\nGET / HTTP/1.1\r\n\r\n" % target
        )
        response = client.response()
        assert response.status == status
        assert response.value(b"connection") == b"close"  # what follows is not read as a request
        assert client.closed()
    assert origin.requests == []


def test_9110_10_1_1_an_expectation_goes_on_and_100_comes_back(make) -> None:
    gateway, origin = make()
    expects = (
        b"POST / HTTP/1.1\r\nHost: api.test\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
    )

    async def waits(connection: Connection) -> None:
        for interim in (b"HTTP/1.1 100 Continue\r\n\r\n", b""):
            while b"\r\n\r\n" not in connection.buffer:
                if not await connection.more():
                    return
            assert b"Expect: 100-continue" in connection.buffer
            await connection.send(interim or b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n")
            if not interim:
                break
            while not connection.buffer.endswith(b"hello"):
                await connection.more()
            connection.buffer.clear()
            await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        while await connection.more():
            pass

    origin._serve_requests = waits  # type: ignore[method-assign]
    with gateway.client() as client:
        client.send(expects)
        assert client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 100 Continue\r\n")
        client.send(b"hello")
        assert client.response().status == 200
        # A final status instead: the body is not sent, and nothing else may be read as one.
        client.send(expects)
        refused = client.response()
        assert (refused.status, refused.value(b"connection")) == (401, b"close")
        assert client.closed()


def test_9110_10_1_1_other_expectations_and_1_0(make) -> None:
    gateway, origin = make()
    with gateway.client() as client:
        assert client.get(fields=b"Expect: a-miracle\r\n").status == 417
    with gateway.client() as client:
        client.send(
            b"POST / HTTP/1.0\r\nHost: api.test\r\nContent-Length: 2\r\n"
            b"Expect: 100-continue\r\n\r\nhi"
        )
        assert client.response().status == 200
    assert origin.next_request().values(b"expect") == []


def test_9110_15_2_interim_responses_pass_but_not_to_1_0(make) -> None:
    interim = (
        b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\nLink: </b>\r\n"
        b"Content-Length: 7\r\nConnection: X-Hop\r\nX-Hop: 1\r\n\r\n"
    )
    gateway, _ = make(says(interim * 2 + b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"))
    with gateway.client() as client:
        client.send(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
        for _ in range(2):
            assert client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 102 Processing\r\n")
            hints = client.read_until(b"\r\n\r\n")
            assert hints.startswith(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nLink: </b>\r\n")
            assert b"X-Hop" not in hints
            assert b"ontent-" not in hints  # 8.6
        assert client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 200 OK\r\n")
    with gateway.client() as client:
        client.send(b"GET / HTTP/1.0\r\nHost: api.test\r\n\r\n")
        assert client.read_to_end().startswith(b"HTTP/1.1 200 OK\r\n")


def test_9110_15_6_whose_503_it_is_can_be_told(make) -> None:
    gateway, _ = make(
        answer(b"503 Away", fields=b"Retry-After: 7\r\n"),
        upstream='wait = { max = "0s" }\nbreaker = { failure_min = 1, open = "20s" }\n',
    )
    with gateway.client() as client:
        theirs, ours = client.get(), client.get()
    assert (theirs.status, theirs.body, theirs.values(b"proxy-status")) == (503, b"hello", [])
    assert theirs.value(b"retry-after") == b"7"
    assert ours.value(b"proxy-status").startswith(b"egressd-gw-test; error=")
    assert int(ours.value(b"retry-after")) > 0
    assert json.loads(ours.body)["said_by"] == "gateway"
