"""Where a client may not send the gateway: inside addresses, and the gateway itself.

Every test runs under a fixture that demands that no task and no open socket remains.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable

import pytest
from fakes.dialling import Attempts, dial, endpoint, fails, listening, never, plan, says

from gateway.connectors.address import NOT_PUBLIC, AddressClass, AddressDenied, Endpoint
from gateway.connectors.dial import TcpDialer
from gateway.errors import ErrorKind


class Denied:
    """Counts the reasons of refused addresses."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def __call__(self, reason: str) -> None:
        self.counts[reason] += 1


@pytest.mark.parametrize("host", ["", "a" * 70, "a..b", "\0", "x\0y", "é" * 80, "fe80::1%nowhere"])
def test_garbage_for_a_name(run: Callable, host: str) -> None:
    async def main() -> None:
        # "" would be this host to getaddrinfo; all of them are judged, whatever they become.
        error = await fails(TcpDialer(plan(host, deny=frozenset(AddressClass)), connect=never))
        assert error.kind in (ErrorKind.DNS_ERROR, ErrorKind.ADDRESS_DENIED)

    run(main)


@pytest.mark.parametrize("host", ["0x7f.1", "2130706433", "017700000001", "127.1", "127.0.0.1"])
def test_spellings_of_loopback_are_judged_by_what_they_become(run: Callable, host: str) -> None:
    async def main() -> None:
        with listening() as port:
            denied = Denied()
            dialer = TcpDialer(plan(host, port, deny=NOT_PUBLIC, count_denied=denied))
            error = await fails(dialer)
            assert isinstance(error, AddressDenied)
            assert error.kind is ErrorKind.ADDRESS_DENIED
            assert error.reason == "loopback"
            assert error.detail == f"{host}: 127.0.0.1:{port} is not allowed: loopback"
            assert denied.counts == {"loopback": 1}

    run(main)


def test_a_denied_address_is_never_connected_to(run: Callable) -> None:
    async def main() -> None:
        attempts = Attempts()
        resolve = says("169.254.169.254", "::ffff:10.0.0.1", "fe80::1", "64:ff9b::7f00:1")
        denied = Denied()
        facts = plan(deny=NOT_PUBLIC, count_denied=denied)
        dialer = TcpDialer(facts, resolve=resolve, connect=attempts)
        for times in (1, 2):
            error = await fails(dialer)
            assert isinstance(error, AddressDenied)
            assert error.reason == "metadata"
            assert denied.counts == {
                "metadata": times,
                "private": times,
                "link_local": times,
                "loopback": times,
            }
        assert attempts.targets == []

    run(main)


def test_only_the_allowed_addresses_of_a_name_are_tried(run: Callable) -> None:
    async def main() -> None:
        attempts = Attempts()
        resolve = says("10.0.0.1", "1.1.1.1", "127.0.0.1", "1.0.0.1")
        denied = Denied()
        facts = plan(deny=NOT_PUBLIC, count_denied=denied)
        dialer = TcpDialer(facts, resolve=resolve, connect=attempts)
        error = await fails(dialer)
        assert error.kind is ErrorKind.CONNECTION_REFUSED
        assert attempts.targets == ["1.1.1.1:443", "1.0.0.1:443"]
        assert denied.counts == {"private": 1, "loopback": 1}

    run(main)


def test_the_answer_is_judged_that_is_used(run: Callable) -> None:
    """DNS rebinding: a resolver that changes its mind is asked once only."""

    async def main() -> None:
        asked: list[str] = []

        async def rebinding(host: str, port: int) -> list[Endpoint]:
            asked.append(host)
            return [endpoint("1.1.1.1" if len(asked) == 1 else "127.0.0.1", port)]

        attempts = Attempts()
        await fails(TcpDialer(plan(deny=NOT_PUBLIC), resolve=rebinding, connect=attempts))
        assert (asked, attempts.targets) == (["api.test"], ["1.1.1.1:443"])

    run(main)


def test_a_configured_upstream_may_be_anywhere(run: Callable) -> None:
    async def main() -> None:
        with listening() as port:
            denied = Denied()
            dialer = TcpDialer(plan("127.0.0.1", port, count_denied=denied))
            (await dial(dialer)).transport.abort()
            assert denied.counts == {}

    run(main)


OWN_PORT = 8080


@pytest.mark.parametrize(
    ("bound", "target", "denied"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "::ffff:127.0.0.1", True),
        ("127.0.0.1", "0.0.0.0", True),
        ("::1", "::", True),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("0.0.0.0", "127.0.0.5", True),
        ("0.0.0.0", "::ffff:127.0.0.5", True),
        ("::", "127.0.0.1", True),
        ("::", "::1", True),
        ("0.0.0.0", "::1", False),
        ("127.0.0.1", "127.0.0.2", False),
        ("0.0.0.0", "192.0.2.77", False),
        ("::", "2001:db8::77", False),
        ("10.0.0.1", "10.0.0.2", False),
        ("not an address", "127.0.0.1", False),
    ],
)
def test_a_listener_of_ours_is_not_a_target(
    run: Callable, bound: str, target: str, denied: bool
) -> None:
    async def main() -> None:
        attempts = Attempts()
        own = [("203.0.113.1", OWN_PORT + 1), (bound, OWN_PORT)]
        denials = Denied()
        facts = plan(port=OWN_PORT, own_addresses=lambda: own, count_denied=denials)
        dialer = TcpDialer(facts, resolve=says(target), connect=attempts)
        error = await fails(dialer)
        assert isinstance(error, AddressDenied) is denied
        assert denials.counts == ({"self_connection": 1} if denied else {})
        # The same address with another port is somebody else's.
        elsewhere = TcpDialer(facts._replace(port=9), resolve=says(target), connect=attempts)
        assert (await fails(elsewhere)).kind is ErrorKind.CONNECTION_REFUSED

    run(main)


def test_an_address_of_this_host_that_is_not_loopback_is_its_own(run: Callable) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("192.0.2.77", 9))  # nothing is sent
        except OSError:
            pytest.skip("this host has no route, hence no such address")
        own = sock.getsockname()[0]

    async def main() -> None:
        facts = plan(own, OWN_PORT, own_addresses=lambda: [("0.0.0.0", OWN_PORT)])
        error = await fails(TcpDialer(facts, connect=never))
        assert isinstance(error, AddressDenied)
        assert error.reason == "self_connection"

    run(main)


def test_listeners_are_asked_for_at_each_dial(run: Callable) -> None:
    async def main() -> None:
        own: list[tuple[str, int]] = []
        facts = plan("127.0.0.1", OWN_PORT, own_addresses=lambda: own)
        dialer = TcpDialer(facts, connect=Attempts())
        assert (await fails(dialer)).kind is ErrorKind.CONNECTION_REFUSED
        own.append(("127.0.0.1", OWN_PORT))  # a reload opened it
        assert (await fails(dialer)).kind is ErrorKind.ADDRESS_DENIED

    run(main)
