"""CONNECT, protocol upgrades, and targets that a client names itself."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Iterator

import pytest
import trustme
from fakes.origin import Connection, Received, answer

from gateway.breaker.states import TRIAL, BreakerState


@pytest.fixture
def echo() -> Iterator[int]:
    """A TCP server that echoes until the client's FIN, then says "bye" and closes; its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    stopping = threading.Event()

    def serve() -> None:
        while not stopping.is_set():
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            with sock:
                while data := sock.recv(65536):
                    sock.sendall(data)
                sock.sendall(b"bye")

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield listener.getsockname()[1]
    stopping.set()
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)


def tunnel_conf(port: int, more: str = "tunnel = true") -> str:
    return f'[upstream.raw]\norigin = "https://127.0.0.1:{port}"\n{more}\n'


def limit(name: str = "raw") -> str:
    return f'[[upstream.{name}.limit]]\nname = "l"\nrate = "1/min"\nburst = 1\n'


@pytest.mark.parametrize(
    "head",
    [
        b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n",
        b"CONNECT 127.0.0.1:%d HTTP/1.0\r\n\r\n",  # requests, boto3 and stripe send it so
    ],
    ids=["1.1", "1.0"],
)
def test_a_tunnel_carries_octets_and_half_closes(make, echo: int, head: bytes) -> None:
    gateway, _ = make(more=tunnel_conf(echo))
    with gateway.client() as client:
        client.send(head % ((echo,) * head.count(b"%d")))
        opened = client.read_until(b"\r\n\r\n")
        assert opened.startswith(b"HTTP/1.1 200 ")
        assert b"content-length" not in opened.lower()
        body = bytes(range(256)) * 4096
        threading.Thread(target=client.send, args=(body,)).start()
        assert client.read_exactly(len(body)) == body
        client.sock.shutdown(socket.SHUT_WR)
        assert client.read_to_end() == b"bye"
    gateway.until(lambda: not gateway.connections())
    gateway.until(lambda: gateway.upstream("raw").tunnels.open_count == 0)


def test_octets_sent_behind_the_head_belong_to_the_tunnel(make, echo: int) -> None:
    gateway, _ = make(more=tunnel_conf(echo))
    with gateway.client() as client:
        client.send(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: x\r\n\r\nearly" % echo)
        client.read_until(b"\r\n\r\n")
        assert client.read_exactly(5) == b"early"


def test_connect_to_an_upstream_with_limits_names_the_base_url(make, echo: int) -> None:
    gateway, _ = make(
        more=tunnel_conf(echo, "")
        + limit()
        + '[[route]]\nhost = "raw.internal"\npath = "/raw/"\nupstream = "raw"\n'
    )
    with gateway.client() as client:
        client.send(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: x\r\n\r\n" % echo)
        response = client.response()
    assert response.status == 403
    assert "http://raw.internal/raw" in json.loads(response.body)["detail"]


def test_a_tunnel_costs_a_token_and_holds_a_slot(make, echo: int) -> None:
    gateway, _ = make(
        more=tunnel_conf(echo, 'tunnel = true\nwait = { max = "0s" }')
        + '[[upstream.raw.limit]]\nname = "open"\nin_flight = 1\n'
    )
    connect = b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: x\r\n\r\n" % echo
    with gateway.client() as first:
        first.send(connect)
        assert first.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 200")
        with gateway.client() as second:
            second.send(connect)
            assert second.response().status == 429
    gateway.until(lambda: all(row.used == 0 for row in gateway.upstream("raw").limit_uses[0].limit))
    with gateway.client() as third:
        third.send(connect)
        assert third.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 200")


def test_a_tunnel_that_is_silent_ends(make, echo: int) -> None:
    gateway, _ = make(more=tunnel_conf(echo, 'tunnel = true\ntimeout = { tunnel = "300ms" }'))
    with gateway.client() as client:
        client.send(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: x\r\n\r\n" % echo)
        client.read_until(b"\r\n\r\n")
        assert client.closed()


@pytest.mark.parametrize(
    "target",
    [b"127.0.0.1:1", b"localhost:22", b"[::1]:443", b"169.254.169.254:443"],
)
def test_connect_elsewhere_is_403(make, target: bytes) -> None:
    gateway, _ = make()
    with gateway.client() as client:
        client.send(b"CONNECT %s HTTP/1.1\r\nHost: x\r\n\r\n" % target)
        assert client.response().status == 403


def test_tls_goes_through_a_tunnel_end_to_end(make, tmp_path) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    gateway, origin = make(upstream="tunnel = true", ssl_context=context)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    with gateway.client() as client:
        client.send(b"CONNECT localhost:%d HTTP/1.1\r\nHost: x\r\n\r\n" % origin.port)
        client.read_until(b"\r\n\r\n")
        with trusting.wrap_socket(client.sock, server_hostname="localhost") as tls:
            tls.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert tls.recv(65536).startswith(b"HTTP/1.1 200 OK")


def test_a_websocket_is_relayed(make) -> None:
    async def script(connection: Connection, request: Received) -> bool:
        assert request.values(b"upgrade") == [b"websocket"]
        assert request.values(b"connection") == [b"Upgrade"] or request.values(b"connection")
        await connection.send(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\nfirst"
        )
        while await connection.more():
            await connection.send(bytes(connection.buffer))
            connection.buffer.clear()
        return False

    gateway, _ = make(script)
    with gateway.client() as client:
        client.send(
            b"GET /chat HTTP/1.1\r\nHost: api.test\r\nConnection: Upgrade\r\n"
            b"Upgrade: websocket\r\nSec-WebSocket-Key: k\r\n\r\n"
        )
        head = client.read_until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 ")
        assert b"upgrade: websocket" in head.lower()
        assert client.read_exactly(5) == b"first"
        client.send(b"\x81\x02hi")
        assert client.read_exactly(4) == b"\x81\x02hi"
    gateway.until(lambda: not gateway.connections())


PAUSED = """
wait = { max = "0s" }
tunnel = true
[upstream.api.breaker]
failure_min = 1
open = "100ms"
failure = [500, "connect"]
"""


def fails_once(gateway) -> None:
    """Opens the upstream's breaker, and waits until it asks for a trial."""
    with gateway.client() as client:
        assert client.get(b"/fail").status == 500
    breakers = gateway.upstream("api").breakers
    gateway.until(lambda: breakers.ask(None, gateway.server.worker.now_ns()) == TRIAL)


def is_closed(gateway) -> bool:
    breakers = gateway.upstream("api").breakers
    return breakers.own.state is BreakerState.CLOSED and not breakers.active


def test_a_websocket_ends_a_trial_when_it_begins(make) -> None:
    """A trial that lasted as long as the socket would keep everybody else out."""

    async def script(connection: Connection, request: Received) -> bool:
        if request.target == b"/fail":
            return bool(await answer(b"500 Broken")(connection, request))
        await connection.send(
            b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
        )
        return await connection.more()

    gateway, _ = make(script, upstream=PAUSED)
    fails_once(gateway)
    with gateway.client() as client:
        client.send(
            b"GET /chat HTTP/1.1\r\nHost: api.test\r\nConnection: Upgrade\r\n"
            b"Upgrade: websocket\r\n\r\n"
        )
        assert client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")
        assert gateway.call(lambda: is_closed(gateway))
        assert gateway.call(lambda: gateway.upstream("api").counts.trials) == 1


def test_a_tunnel_ends_a_trial_when_it_is_open(make) -> None:
    gateway, origin = make(answer(b"500 Broken"), upstream=PAUSED)
    fails_once(gateway)
    with gateway.client() as client:
        client.send(b"CONNECT localhost:%d HTTP/1.1\r\nHost: x\r\n\r\n" % origin.port)
        assert client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 200 ")
        assert gateway.call(lambda: is_closed(gateway))


def test_a_101_that_nobody_asked_for_is_502(make) -> None:
    async def script(connection: Connection, request: Received) -> bool:
        await connection.send(
            b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
        )
        return await connection.more()

    gateway, _ = make(script)
    with gateway.client() as client:
        assert client.get().status == 502


@pytest.mark.parametrize(
    "host",
    [b"127.1", b"0177.0.0.1", b"2130706433", b"a..test", b"-a.test", b"a~b", b".", b"a" * 64],
)
def test_a_host_that_is_none_is_refused_and_said_to_be(make, host: bytes) -> None:
    gateway, origin = make(more='[forward]\nallow = ["*:80", "*:443"]\ndeny_private = false\n')
    for head in (b"GET http://%b/ HTTP/1.1\r\n", b"CONNECT %b:443 HTTP/1.1\r\n"):
        with gateway.client() as client:
            client.send(head % host + b"Host: x\r\n\r\n")
            response = client.response()
        assert response.status == 400
        assert b"error=http_request_error" in response.value(b"proxy-status")
    assert origin.requests == []


def test_no_spelling_of_a_host_leads_past_the_limits_of_its_upstream(make) -> None:
    """Where `[forward]` allows everything, an origin still has the limits of its upstream."""
    more = (
        '[upstream.six]\norigin = "http://[::1]:9"\n' + limit("six")
        + '[upstream.name]\norigin = "http://localhost:9"\n' + limit("name")
        + '[forward]\nallow = ["*:9"]\ndeny_private = false\n'
    )  # fmt: skip
    gateway, _ = make(more=more)
    with gateway.client() as client:
        for authority in (b"[::1]", b"[0:0::0:1]", b"[::0001]", b"localhost", b"LOCALHOST."):
            client.send(b"GET http://%b:9/ HTTP/1.1\r\nHost: x\r\n\r\n" % authority)
            problem = json.loads(client.response().body)
            assert problem["upstream"] == ("six" if b"[" in authority else "name")
    with gateway.client() as client:
        client.send(b"CONNECT localhost.:9 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.response().status == 403


def test_forward_targets_need_leave_and_a_public_address(make) -> None:
    gateway, origin = make()
    text = gateway.path.read_text()
    target = b"GET http://127.0.0.1:%d/x HTTP/1.1\r\nHost: y\r\n\r\n" % origin.port
    with gateway.client() as client:
        client.send(target)
        assert client.response().status == 403
        allow = f'[forward]\nallow = ["127.0.0.1:{origin.port}"]\n'
        assert gateway.reload(text + allow)
        client.send(target)
        private = client.response()
        assert private.status == 403
        assert b"error=destination_ip_prohibited" in private.value(b"proxy-status")
        assert gateway.reload(text + allow + "deny_private = false\n")
        client.send(target)
        assert client.response().status == 200
    request = origin.next_request()
    assert request.request_line == b"GET /x HTTP/1.1"
    assert request.values(b"host") == [b"127.0.0.1:%d" % origin.port]


def test_the_gateway_does_not_connect_to_itself(make) -> None:
    gateway, _ = make()
    host, port = gateway.address
    text = gateway.path.read_text().replace("127.0.0.1:0", f"127.0.0.1:{port}")
    assert gateway.reload(
        gateway.path.read_text() + f'[forward]\nallow = ["{host}:{port}"]\ndeny_private = false\n'
    )
    with gateway.client() as client:
        client.send(b"GET http://%s:%d/ HTTP/1.1\r\nHost: y\r\n\r\n" % (host.encode(), port))
        response = client.response()
    assert response.status == 403
    assert b"destination_ip_prohibited" in response.value(b"proxy-status")
    del text
