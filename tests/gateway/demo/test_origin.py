"""The strict origin: its judgement with a manual clock, its protocol with a fake transport."""

import asyncio
import json
from typing import Any

import pytest

from gateway.clock import MS, SECOND
from gateway.demo import origin as module
from gateway.demo.origin import OriginProtocol, Strictness, control

T0 = 1_000 * SECOND


def test_any_sliding_second_gets_the_limit_and_not_one_more() -> None:
    origin = Strictness(50)
    for number in range(50):
        assert origin.arrive(T0 + number * 10 * MS) == 0
    # 500 ms of the second are left: 25 more would be fine on average, and are refused.
    assert origin.arrive(T0 + 500 * MS) == 1
    assert origin.arrive(T0 + SECOND - 1) == 1
    # Exactly a second after the first one there is room for one, and for the next 10 ms only one.
    assert origin.arrive(T0 + SECOND) == 0
    assert origin.arrive(T0 + SECOND + 10 * MS - 1) == 1
    assert origin.arrive(T0 + SECOND + 10 * MS) == 0
    assert (origin.served, origin.refused_unasked, origin.requests) == (52, 3, 55)


def test_a_refused_request_takes_no_place() -> None:
    origin = Strictness(1)
    assert origin.arrive(T0) == 0
    for number in range(1, 100):
        assert origin.arrive(T0 + number) == 1
    assert origin.arrive(T0 + SECOND) == 0


def test_the_peak_counts_arrivals_whatever_they_were_answered() -> None:
    origin = Strictness(1)
    for number in range(7):
        origin.arrive(T0 + number * 100 * MS)
    origin.arrive(T0 + 1050 * MS)  # the first has left the window: seven again
    assert origin.peak == 7
    origin.mark()
    assert origin.peak == 0
    origin.arrive(T0 + 1060 * MS)
    state = origin.state(T0 + 1060 * MS)
    assert (state["peak"], state["last_second"]) == (1, 1)
    assert origin.state(T0 + 3 * SECOND)["last_second"] == 0


def test_it_refuses_once_when_asked_and_counts_who_comes_nevertheless() -> None:
    origin = Strictness(50)
    origin.refuse_once(3)
    assert origin.arrive(T0) == 3
    assert origin.arrive(T0 + 1) == 0
    assert origin.arrive(T0 + 3 * SECOND - 1) == 0
    assert origin.arrive(T0 + 3 * SECOND) == 0
    state = origin.state(T0 + 4 * SECOND)
    assert state["after_asked"] == 2
    assert state["asked_ns"] == T0
    assert (state["refused_asked"], state["refused_unasked"]) == (1, 0)


def test_the_stamps_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ARRIVALS_MAX", 100)
    origin = Strictness(5)
    for number in range(1000):
        origin.arrive(T0 + number)
    assert origin.peak == 100
    assert len(origin._served) == 5


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_of_nothing_is_refused(limit: int) -> None:
    with pytest.raises(ValueError, match="nothing"):
        Strictness(limit)


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        (b"GET", b"/_demo/state", 200),
        (b"POST", b"/_demo/state", 404),
        (b"POST", b"/_demo/mark", 200),
        (b"GET", b"/_demo/mark", 404),
        (b"POST", b"/_demo/refuse-once?retry_after=3", 200),
        (b"POST", b"/_demo/refuse-once", 400),
        (b"POST", b"/_demo/refuse-once?retry_after=0", 400),
        (b"POST", b"/_demo/refuse-once?retry_after=61", 400),
        (b"POST", b"/_demo/refuse-once?retry_after=-3", 400),
        (b"POST", b"/_demo/refuse-once?retry_after=3.5", 400),
        (b"POST", b"/_demo/refuse-once?retry_after=%D9%A3", 400),
        (b"POST", b"/_demo/refuse-once?retry_after=" + b"9" * 5000, 400),
        (b"POST", b"/_demo/refuse-once?" + b"a=1&" * 50, 400),
        (b"GET", b"/_demo/\xff", 404),
    ],
)
def test_control_obeys_what_it_knows(method: bytes, target: bytes, status: int) -> None:
    assert control(Strictness(), method, target)[0] == status


class Transport(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = False
        self.aborted = False
        self.reading = True

    def write(self, data: Any) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True

    def is_closing(self) -> bool:
        return self.closed or self.aborted

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


def connect(strictness: Strictness) -> tuple[OriginProtocol, Transport]:
    protocol = OriginProtocol(strictness, set())
    transport = Transport()
    protocol.connection_made(transport)
    return protocol, transport


GET = b"GET / HTTP/1.1\r\nHost: api\r\n\r\n"


def test_it_serves_and_refuses_over_the_protocol() -> None:
    protocol, transport = connect(Strictness(1))
    protocol.data_received(GET)
    assert transport.written.startswith(b"HTTP/1.1 200 OK\r\n")
    transport.written = b""
    protocol.data_received(GET)
    head, _, body = transport.written.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 429 ")
    assert b"\r\nRetry-After: 1" in head
    assert b"\r\nDate: " in head
    assert json.loads(body) == {"error": "too many requests"}
    assert not transport.closed


def test_pipelined_requests_are_all_answered() -> None:
    strictness = Strictness(50)
    protocol, transport = connect(strictness)
    protocol.data_received(GET * 20)
    assert transport.written.count(b"HTTP/1.1 200 OK") == 20
    assert strictness.served == 20


def test_a_client_that_reads_nothing_is_not_answered_for_ever() -> None:
    protocol, transport = connect(Strictness(50))
    protocol.pause_writing()
    protocol.data_received(GET * 20)
    assert transport.written.count(b"HTTP/1.1 200 OK") == 1
    assert not transport.reading
    protocol.resume_writing()
    assert transport.written.count(b"HTTP/1.1 200 OK") == 20
    assert transport.reading


def test_control_requests_are_not_counted() -> None:
    strictness = Strictness(1)
    protocol, transport = connect(strictness)
    protocol.data_received(b"GET /_demo/state HTTP/1.1\r\nHost: api\r\n\r\n" * 3)
    assert transport.written.count(b'"requests": 0') == 3
    assert strictness.requests == 0


def test_a_head_request_gets_no_body() -> None:
    protocol, transport = connect(Strictness())
    protocol.data_received(GET.replace(b"GET", b"HEAD"))
    assert transport.written.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 20_000 + b"\r\n\r\n",
        b"GET /" + b"y" * 10_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
)
def test_garbage_is_refused_and_the_connection_closed(garbage: bytes) -> None:
    strictness = Strictness()
    protocol, transport = connect(strictness)
    protocol.data_received(garbage)
    assert transport.written.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 431 ", b"HTTP/1.1 414 "))
    assert transport.closed
    assert strictness.requests == 0


@pytest.mark.parametrize(
    "octets",
    [
        b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    ],
)
def test_nothing_follows_on_a_connection_that_might_not_be_http_any_more(octets: bytes) -> None:
    protocol, transport = connect(Strictness())
    protocol.data_received(octets + GET)
    assert transport.written.count(b"HTTP/1.1 ") == 1
    assert transport.closed


def test_an_endless_body_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BODY_BYTES_MAX", 10)
    protocol, transport = connect(Strictness())
    protocol.data_received(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n")
    protocol.data_received(b"x" * 11)
    assert transport.aborted


def test_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONNECTIONS_MAX", 2)
    connections: set[OriginProtocol] = set()
    transports = [Transport() for _ in range(3)]
    protocols = [OriginProtocol(Strictness(), connections) for _ in transports]
    for protocol, transport in zip(protocols, transports, strict=True):
        protocol.connection_made(transport)
    assert [transport.aborted for transport in transports] == [False, False, True]
    for protocol in protocols:
        protocol.connection_lost(None)
    assert not connections
