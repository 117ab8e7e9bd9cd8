"""What comes before HTTP: PROXY headers, TLS, both, and the names that clients get from them."""

from __future__ import annotations

import gc
import json
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import trustme
from fakes.gateway import Client, Gateway
from fakes.origin import Origin

from gateway.clock import SECOND

V2_SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")
V1 = b"PROXY TCP4 203.0.113.7 192.0.2.1 51234 443\r\n"
V1_OTHER = b"PROXY TCP6 2001:db8::7 2001:db8::1 51234 443\r\n"
V2 = (
    V2_SIGNATURE
    + b"\x21\x11\x00\x13"
    + bytes.fromhex("cb007107 c0000201 c822 01bb 03 0004 deadbeef")
)
V2_LOCAL = V2_SIGNATURE + b"\x20\x00\x00\x00"

CONF = """
[[listen]]
bind = "127.0.0.1:0"
{listen}
[upstream.api]
origin = "{origin}"
[[upstream.api.limit]]
name = "per-source"
rate = "2/h"
burst = {burst}
key = ["{key}"]
[[route]]
host = "api.test"
upstream = "api"
[access]
anonymous = {anonymous}
{more}
"""
BELIEVED = 'proxy_protocol = ["127.0.0.1/32"]'
NOT_BELIEVED = 'proxy_protocol = ["203.0.113.0/24", "::1"]'
INSIDE = '[[client]]\nname = "inside"\nsource = ["203.0.113.0/24"]\n'

Serve = Callable[..., Gateway]


@pytest.fixture
def serve(drivers: tuple[str, str], tmp_path: Path) -> Iterator[Serve]:
    """Starts a gateway whose one listener is as told, in front of an origin."""
    codec, loop = drivers
    with ExitStack() as stack:

        def start(
            listen: str = "",
            more: str = "",
            *,
            anonymous: bool = True,
            burst: int = 2,
            key: str = "source",
        ) -> Gateway:
            origin = stack.enter_context(Origin())
            text = CONF.format(
                listen=listen,
                origin=origin.url,
                more=more,
                anonymous=str(anonymous).lower(),
                burst=burst,
                key=key,
            )
            return stack.enter_context(Gateway(text, tmp_path, loop=loop, codec=codec))

        yield start


class Certificates:
    """A server's certificate and two authorities for clients, of which one is trusted."""

    def __init__(self, folder: Path) -> None:
        self.authority = trustme.CA()
        self.clients = trustme.CA()
        self.strangers = trustme.CA()
        server = self.authority.issue_cert("gateway.test")
        server.private_key_and_cert_chain_pem.write_to_path(folder / "server.pem")
        self.clients.cert_pem.write_to_path(folder / "clients.pem")
        pem = folder / "server.pem"
        self.one_way = f'tls = {{ cert = "{pem}", key = "{pem}" }}'
        self.mutual = self.one_way.replace(" }", f', client_ca = "{folder}/clients.pem" }}')

    def context(self, certificate: trustme.LeafCert | None = None) -> ssl.SSLContext:
        """A client's context, which shows that certificate."""
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        if certificate is not None:
            certificate.configure_cert(context)
        return context


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


@contextmanager
def connected(
    gateway: Gateway, preface: bytes = b"", context: ssl.SSLContext | None = None
) -> Iterator[Client]:
    """A client that sends `preface` in the open and then, with a context, speaks TLS."""
    with Client(gateway.address) as client:
        client.send(preface)
        if context is not None:
            client.sock = context.wrap_socket(client.sock, server_hostname="gateway.test")
        yield client


def count(gateway: Gateway, name: str) -> int:
    return gateway.call(lambda: gateway.server.worker.counts.get(name, 0))


def nothing_is_open(gateway: Gateway) -> None:
    """No connection is listed, none has a deadline, and no handshake is under way."""
    pool = gateway.upstream("api").pool
    gateway.until(
        lambda: (
            not gateway.connections()
            and not any(listener.handshakes for listener in gateway.server.listeners)
            and len(gateway.server.worker.wheel) == pool.open_count
        )
    )


@pytest.mark.parametrize(
    ("first", "second"), [(V1, V1_OTHER), (V2, V1_OTHER), (V1_OTHER, V2), (V2_LOCAL, V2)]
)
def test_the_source_is_what_a_believed_header_tells(serve, first: bytes, second: bytes) -> None:
    gateway = serve(BELIEVED)
    with connected(gateway, first) as client:
        assert [client.get().status for _ in range(3)] == [200, 200, 429]
    with connected(gateway, first) as client:
        assert client.get().status == 429  # the row is the address's, not the connection's
    with connected(gateway, second) as client:
        assert client.get().status == 200
    nothing_is_open(gateway)
    assert count(gateway, "proxy_protocol_bad") == 0


def test_header_and_request_may_come_in_any_pieces(serve) -> None:
    gateway = serve(BELIEVED, burst=1000)
    for header in (V1, V2):
        octets = header + b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n"
        with connected(gateway, octets) as client:
            assert client.response().status == 200
            assert client.get().status == 200
        with connected(gateway) as client:
            client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for n in range(len(octets)):
                client.send(octets[n : n + 1])
            assert client.response().status == 200


def test_two_requests_behind_a_header(serve) -> None:
    gateway = serve(BELIEVED)
    request = b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n"
    with connected(gateway, V2 + request * 2) as client:
        assert [client.response().status for _ in range(2)] == [200, 200]


@pytest.mark.parametrize(
    "octets",
    [
        b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n",
        b"PROXY TCP4 203.0.113.7 192.0.2.1 51234\r\nGET / HTTP/1.1\r\nHost: api.test\r\n\r\n",
        V2_SIGNATURE + b"\x21\x12\x00\x0c" + bytes(12),
        V2_SIGNATURE + b"\x21\x11\xff\xff",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        bytes(10_000),
    ],
)
@pytest.mark.parametrize("tls", [False, True])
def test_a_header_is_demanded_of_those_who_are_believed(
    capsys, serve, certificates, octets: bytes, tls: bool
) -> None:
    gateway = serve(BELIEVED + "\n" + certificates.one_way * tls)
    with connected(gateway, octets) as client:
        assert client.closed()
    gateway.until(lambda: gateway.server.worker.counts["proxy_protocol_bad"] == 1)
    nothing_is_open(gateway)
    assert count(gateway, "bad_requests_bad_request") == 0
    told = [line for line in capsys.readouterr().out.splitlines() if "PROXY header refused" in line]
    assert len(told) == 1
    assert "debug" in told[0]
    assert "peer=127.0.0.1" in told[0]
    assert "PROXY protocol section 2" in told[0]
    assert all(line["event"] != "PROXY header refused" for line in gateway.server.log.lines())


@pytest.mark.parametrize("header", [V1, V2])
def test_a_header_of_others_is_a_malformed_request(serve, header: bytes) -> None:
    gateway = serve(NOT_BELIEVED)
    with connected(gateway, header) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
        assert client.response().status == 400
        assert client.closed()
    with connected(gateway) as client:
        assert client.get().status == 200
    assert count(gateway, "proxy_protocol_bad") == 0
    nothing_is_open(gateway)


def test_a_header_where_none_is_asked_for_is_a_malformed_request(serve) -> None:
    gateway = serve()
    with connected(gateway, V1) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
        assert client.response().status == 400


def test_clients_are_known_by_the_source_that_a_header_tells(serve) -> None:
    gateway = serve(BELIEVED, INSIDE, anonymous=False)
    for header, status in ((V1, 200), (V1_OTHER, 407), (V2, 200), (V2_LOCAL, 407)):
        with connected(gateway, header) as client:
            assert client.get().status == status, header


@pytest.mark.parametrize("sent", [b"", V1[:20], V2[:14]])
def test_a_header_must_come_within_the_head_timeout(serve, sent: bytes) -> None:
    gateway = serve(BELIEVED)
    with connected(gateway, sent) as client:
        gateway.until(lambda: any(c.header.begun == bool(sent) for c in gateway.connections()))
        timeout_ns = gateway.server.worker.runtime.head_timeout_ns

        def much_later() -> None:
            worker = gateway.server.worker
            now_ns = worker.now_ns() + timeout_ns + SECOND
            for _ in range(4):  # one turn
                worker.wheel.turn(now_ns)

        assert [c.deadline_ns > 0 for c in gateway.call(gateway.connections)] == [True]
        gateway.call(much_later)
        assert client.closed()
    assert count(gateway, "proxy_protocol_bad") == 1
    nothing_is_open(gateway)


def test_a_balancer_that_only_looks_whether_we_listen_is_no_fault(serve) -> None:
    gateway = serve(BELIEVED)
    with connected(gateway) as client:
        client.sock.shutdown(socket.SHUT_WR)
        assert client.closed()
    assert count(gateway, "proxy_protocol_bad") == 0
    with connected(gateway, V1[:9]) as client:
        client.sock.shutdown(socket.SHUT_WR)
        assert client.closed()
    assert count(gateway, "proxy_protocol_bad") == 1
    nothing_is_open(gateway)


def test_waiting_for_a_header_takes_a_connection_of_the_listener(serve) -> None:
    gateway = serve(BELIEVED)
    gateway.call(lambda: setattr(next(iter(gateway.server.listeners)), "connections_max", 1))
    with connected(gateway, V1[:5]):
        gateway.until(lambda: len(gateway.connections()) == 1)
        with connected(gateway, V1) as refused:
            assert refused.closed()
    nothing_is_open(gateway)
    with connected(gateway, V1) as client:
        assert client.get().status == 200
    assert count(gateway, "connections_refused") == 1


def test_networks_come_and_go_with_a_reload(serve) -> None:
    gateway = serve()
    text = gateway.path.read_text()
    bind = 'bind = "127.0.0.1:0"\n'
    assert gateway.reload(text.replace(bind, bind + BELIEVED))
    with connected(gateway, V1) as client:
        assert client.get().status == 200
    with connected(gateway) as client:
        client.send(b"GET / HTTP/1.1\r\n\r\n")
        assert client.closed()
    assert gateway.reload(text)
    with connected(gateway) as client:
        assert client.get().status == 200


def test_draining_ends_what_waits_for_a_header(serve, certificates) -> None:
    gateway = serve(BELIEVED + "\n" + certificates.one_way)
    with connected(gateway, V1[:5]) as waiting, connected(gateway, V1) as shaking:
        gateway.until(lambda: len(next(iter(gateway.server.listeners)).handshakes) == 1)
        gateway.until(lambda: len(gateway.connections()) == 1)
        gateway.call(gateway.server.listeners.drain)
        assert waiting.closed()
        assert shaking.closed()
    nothing_is_open(gateway)


# TLS.


@pytest.mark.parametrize(("listen", "preface"), [("", b""), (BELIEVED, V1), (NOT_BELIEVED, b"")])
def test_tls_with_and_without_a_header_before_it(
    serve, certificates, listen: str, preface: bytes
) -> None:
    gateway = serve(listen + "\n" + certificates.one_way, INSIDE, anonymous=not preface, burst=9)
    with connected(gateway, preface, certificates.context()) as client:
        assert [client.get().status for _ in range(3)] == [200] * 3
    nothing_is_open(gateway)


def test_a_tls_connection_leaves_no_tls_to_the_collector(serve, certificates) -> None:
    """It looks once in 50,000 objects: what waits for it is memory that grows."""
    gateway = serve(certificates.one_way, burst=9)
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            with connected(gateway, b"", certificates.context()) as client:
                assert client.get().status == 200
        nothing_is_open(gateway)
        gateway.until(lambda: not any(isinstance(it, ssl.SSLObject) for it in gc.get_objects()))
    finally:
        gc.enable()


def test_the_header_before_tls_tells_the_source(serve, certificates) -> None:
    gateway = serve(BELIEVED + "\n" + certificates.one_way)
    for header in (V1, V2):
        with connected(gateway, header, certificates.context()) as client:
            assert client.get().status == 200
    with connected(gateway, V2, certificates.context()) as client:
        assert client.get().status == 429
    with connected(gateway, V1_OTHER, certificates.context()) as client:
        assert client.get().status == 200


def test_header_and_client_hello_may_come_in_one_segment(serve, certificates) -> None:
    gateway = serve(BELIEVED + "\n" + certificates.one_way)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = certificates.context().wrap_bio(incoming, outgoing, server_hostname="gateway.test")
    with connected(gateway) as client:
        before = V1
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                client.send(before + outgoing.read())
                before = b""
                incoming.write(client.sock.recv(65536))
        tls.write(b"GET / HTTP/1.1\r\nHost: api.test\r\nConnection: close\r\n\r\n")
        client.send(outgoing.read())
        answered = b""
        while b"hello" not in answered:
            try:
                answered += tls.read(65536)
            except ssl.SSLWantReadError:
                incoming.write(client.sock.recv(65536))
        assert answered.startswith(b"HTTP/1.1 200 ")


def test_a_header_inside_tls_is_a_malformed_request(serve, certificates) -> None:
    gateway = serve(NOT_BELIEVED + "\n" + certificates.one_way)
    with connected(gateway, b"", certificates.context()) as client:
        client.send(V1 + b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
        assert client.response().status == 400


@pytest.mark.parametrize(("listen", "preface"), [(BELIEVED, V1), (NOT_BELIEVED, V1), ("", b"")])
def test_what_is_no_handshake_is_closed(serve, certificates, listen: str, preface: bytes) -> None:
    gateway = serve(listen + "\n" + certificates.one_way)
    for octets in (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", bytes(2000), b"\x16\x03\x01\x00\x05aaaaa"):
        with connected(gateway, preface + octets) as client:
            client.read_to_end()  # an alert, perhaps
    with connected(gateway, preface if listen == BELIEVED else b"", certificates.context()) as good:
        assert good.get().status == 200
    nothing_is_open(gateway)


@pytest.mark.parametrize(("listen", "preface"), [(BELIEVED, V1), ("", b"")])
def test_plain_http_on_a_tls_port_is_told_so(serve, certificates, listen, preface) -> None:
    gateway = serve(listen + "\n" + certificates.one_way)
    request = b"POST / HTTP/1.1\r\nHost: api.test\r\nContent-Length: 5\r\n\r\nhello"
    with connected(gateway, preface + request) as client:
        response = client.response()
        assert response.status == 400
        assert json.loads(response.body)["detail"] == "plain HTTP sent to a TLS port"
        assert response.value(b"connection") == b"close"
        assert client.closed()
    assert count(gateway, "plain_http_on_tls_port") == 1
    assert count(gateway, "tls_handshakes_failed") == 0
    nothing_is_open(gateway)


def test_handshakes_that_fail_are_counted_and_health_checks_are_not(serve, certificates) -> None:
    gateway = serve(certificates.one_way)
    with connected(gateway):
        pass  # a balancer's look
    with connected(gateway, bytes(2000)) as client:
        client.read_to_end()
    gateway.until(lambda: gateway.server.worker.counts["tls_handshakes_failed"] == 1)
    nothing_is_open(gateway)


def test_handshakes_take_connections_of_the_listener(serve, certificates) -> None:
    gateway = serve(f"{certificates.one_way}\nlimits = {{ connections = 2 }}")
    with connected(gateway), connected(gateway):
        gateway.until(lambda: sum(len(one.handshakes) for one in gateway.server.listeners) == 2)
        with connected(gateway) as third:
            assert third.closed()
    assert count(gateway, "connections_refused") == 1
    nothing_is_open(gateway)
    with connected(gateway, b"", certificates.context()) as client:
        assert client.get().status == 200


def test_a_reload_turns_the_header_on_and_off_before_tls(serve, certificates) -> None:
    gateway = serve(certificates.one_way)
    plain = gateway.path.read_text()
    bind = 'bind = "127.0.0.1:0"\n'
    assert gateway.reload(plain.replace(bind, bind + BELIEVED + "\n"))
    with connected(gateway, V1, certificates.context()) as client:
        assert client.get().status == 200
    assert gateway.reload(plain)
    with connected(gateway, b"", certificates.context()) as client:
        assert client.get().status == 200


# Certificates of clients.

BY_NAME = """
[[client]]
name = "billing"
certificate = "billing.internal"
upstreams = ["api"]
[[client]]
name = "reports"
certificate = "spiffe://corp/reports"
[[client]]
name = "mail"
certificate = "ops@corp.test"
[[client]]
name = "elsewhere"
certificate = "elsewhere.internal"
upstreams = ["other"]
[[client]]
name = "by-common-name"
certificate = "old name"
[upstream.other]
origin = "http://127.0.0.1:1"
"""


@pytest.mark.parametrize(("listen", "preface"), [("", b""), (BELIEVED, V1)])
def test_a_certificate_names_the_client(serve, certificates, listen: str, preface: bytes) -> None:
    gateway = serve(
        listen + "\n" + certificates.mutual, BY_NAME, anonymous=False, burst=1, key="client"
    )
    issue = certificates.clients.issue_cert
    for certificate, statuses in (
        (issue("BILLING.internal"), [200, 429]),  # a row of its own: the limit counts by client
        (issue("ops@corp.test", "also.this"), [200, 429]),
        (issue("elsewhere.internal"), [403, 403]),
        (issue(common_name="old name"), [200, 429]),
        (issue("someone.else", common_name="billing.internal"), [407, 407]),
        (issue("sub.billing.internal"), [407, 407]),
    ):
        with connected(gateway, preface, certificates.context(certificate)) as client:
            assert [client.get().status for _ in range(2)] == statuses
    nothing_is_open(gateway)


@pytest.mark.parametrize(("listen", "preface"), [("", b""), (BELIEVED, V1)])
def test_without_a_certificate_of_the_right_authority_there_is_no_request(
    serve, certificates, listen: str, preface: bytes
) -> None:
    gateway = serve(listen + "\n" + certificates.mutual, BY_NAME)
    strange = certificates.strangers.issue_cert("billing.internal")
    for certificate in (None, strange):
        context = certificates.context(certificate)
        with (
            pytest.raises((ssl.SSLError, ConnectionError, AssertionError)),
            connected(gateway, preface, context) as client,
        ):
            client.get()
    assert gateway.call(lambda: gateway.upstream("api").counts.requests) == 0
    good = certificates.context(certificates.clients.issue_cert("billing.internal"))
    with connected(gateway, preface, good) as client:
        assert client.get().status == 200
    nothing_is_open(gateway)


def test_a_reload_takes_an_authority_in(serve, certificates, tmp_path: Path) -> None:
    gateway = serve(certificates.mutual, BY_NAME, anonymous=False)
    with (tmp_path / "clients.pem").open("ab") as bundle:
        bundle.write(certificates.strangers.cert_pem.bytes())
    assert gateway.reload(gateway.path.read_text())
    newcomer = certificates.context(certificates.strangers.issue_cert("billing.internal"))
    with connected(gateway, b"", newcomer) as client:
        assert client.get().status == 200
