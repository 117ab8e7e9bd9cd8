"""Real drivers on loopback in one loop: every wait is for an event, with a timeout."""

from __future__ import annotations

import asyncio
import random
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar, cast

import pytest

from peers.core.config import SECOND, Config
from peers.core.events import (
    BreakerClosed,
    BreakerOpened,
    Event,
    MemberJoined,
    MemberLeft,
    RowChanged,
    TrialClaimed,
)
from peers.core.node import Node
from peers.core.rows import ROOM, MeshRow
from peers.driver import MeshDriver, _enlarge

KEY = b"k" * 32
T = TypeVar("T")
LIMIT: dict[str, Any] = {
    "name": "x",
    "rate_count": 1,
    "rate_period_ns": 60 * SECOND,
    "burst": 100,
}


class Member:
    """A driver whose events can be waited for."""

    def __init__(
        self, name: str, sock: socket.socket, join: tuple[tuple[str, int], ...], **knobs: Any
    ) -> None:
        address = sock.getsockname()
        config = Config(
            name=name, cluster="c", bind=address, advertise=address, join=join, keys=(KEY,), **knobs
        )
        boot_ms = time.time_ns() // 1_000_000
        node = Node(config, random.Random(name), time.monotonic_ns(), boot_ms)
        self.sock = sock
        self.seen: list[Event] = []
        self.driver = MeshDriver(node, self.on_events)
        self._changed = asyncio.Event()

    @property
    def node(self) -> Node:
        return self.driver.node

    def on_events(self, events: list[Event]) -> None:
        self.seen += events
        self._changed.set()

    async def sees(self, wanted: Callable[[Event], bool]) -> Event:
        """The first event that is wanted, past or to come."""
        async with asyncio.timeout(10):
            while True:
                for event in self.seen:
                    if wanted(event):
                        return event
                self._changed.clear()
                await self._changed.wait()

    def row(self) -> MeshRow:
        return self.node.limit("x", **LIMIT).entry(b"", time.monotonic_ns())


def bound_socket() -> socket.socket:
    """A UDP socket whose port is free for TCP too."""
    while True:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setblocking(False)
        sock.bind(("127.0.0.1", 0))
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            try:
                probe.bind(sock.getsockname())
            except OSError:
                sock.close()
                continue
        return sock


@asynccontextmanager
async def cluster(count: int, **knobs: Any) -> AsyncIterator[list[Member]]:
    socks = [bound_socket() for _ in range(count)]
    addresses = [sock.getsockname() for sock in socks]
    members = [
        Member(f"m-{number}", sock, tuple(a for a in addresses if a != sock.getsockname()), **knobs)
        for number, sock in enumerate(socks)
    ]
    try:
        for member in members:
            await member.driver.start(member.sock)
        for member in members:
            for other in members:
                if other is not member:
                    await member.sees(joined(other))
        yield members
    finally:
        for member in members:
            await member.driver.stop()


def joined(other: Member) -> Callable[[Event], bool]:
    return lambda event: isinstance(event, MemberJoined) and event.name == other.node.config.name


def left(other: Member, crashed: bool) -> Callable[[Event], bool]:
    name = other.node.config.name
    return lambda event: (
        isinstance(event, MemberLeft) and event.name == name and event.crashed == crashed
    )


def run(scenario: Callable[[], Awaitable[T]]) -> T:
    async def bounded() -> T:
        async with asyncio.timeout(30):
            return await scenario()

    return asyncio.run(bounded())


def test_three_share_a_counter() -> None:
    async def scenario() -> None:
        async with cluster(3) as members:
            rows = [member.row() for member in members]
            now_ns = time.monotonic_ns()
            # The joiners' presumption is over when a snapshot came; nobody waits for it by time.
            first = rows[0]
            first.waiting = rows[2].waiting = object()
            taken = 0
            while rows[1].ask(1, now_ns) == ROOM:
                rows[1].take(1, now_ns)
                taken += 1
            rows[1].arrive(1, now_ns)
            members[1].driver.poke()
            changed = await members[0].sees(lambda event: isinstance(event, RowChanged))
            assert changed == RowChanged(first)
            await members[2].sees(lambda event: isinstance(event, RowChanged))
            for row in (rows[0], rows[2]):
                heard = {share.count for share in row.peers.values()}
                assert taken in heard

    run(scenario)


def test_three_lease_an_exact_limit() -> None:
    """As under trio's clock in test_driver_trio: never over, and all of it is used."""

    async def scenario() -> None:
        async with cluster(3) as members:
            rows = [
                member.node.exact_limit(
                    "e",
                    name="e",
                    rate_count=200,
                    rate_period_ns=SECOND,
                    burst=20,
                    now_ns=time.monotonic_ns(),
                ).entry(b"", time.monotonic_ns())
                for member in members
            ]
            start_ns = time.monotonic_ns()
            taken = 0
            while taken < 150:
                for member, row in zip(members, rows, strict=True):
                    now_ns = time.monotonic_ns()
                    row.arrive(1, now_ns)
                    if row.ask(1, now_ns) == ROOM:
                        row.take(1, now_ns)
                        taken += 1
                    member.driver.poke()
                elapsed_ns = time.monotonic_ns() - start_ns
                assert taken <= 20 + 200 * elapsed_ns / SECOND
                assert elapsed_ns < 20 * SECOND
                await asyncio.sleep(0.002)
            assert sum(row.ledger is not None for row in rows) == 1
            assert all(row.own > 0 for row in rows)

    run(scenario)


def test_a_pause_reaches_all_at_once() -> None:
    async def scenario() -> None:
        async with cluster(3) as members:
            start_ns = time.monotonic_ns()
            members[0].node.open_breaker(b"scope", 1, start_ns + 5 * SECOND, 429, start_ns)
            for member in members[1:]:
                event = await member.sees(lambda event: isinstance(event, BreakerOpened))
                assert isinstance(event, BreakerOpened)
                assert event.scope == b"scope"
                assert event.origin == "m-0"
                assert event.until_ns >= start_ns + 5 * SECOND
            # Far sooner than a heartbeat, by which it would have come in the end: no timer helped.
            assert time.monotonic_ns() - start_ns < SECOND
            members[1].node.claim_trial(b"scope", 1, start_ns + SECOND, start_ns)
            claim = await members[2].sees(lambda event: isinstance(event, TrialClaimed))
            assert claim[:2] == (b"scope", 1)

    run(scenario)


def test_keys_rotate_without_a_dropped_datagram() -> None:
    """Added last, moved first, removed: each step on one member after the other, under traffic."""
    new = b"n" * 32

    async def scenario() -> None:
        async with cluster(3) as members:
            rows = [member.row() for member in members]

            def traffic() -> None:
                now_ns = time.monotonic_ns()
                for member, row in zip(members, rows, strict=True):
                    row.arrive(1, now_ns)
                    if row.ask(1, now_ns) == ROOM:
                        row.take(1, now_ns)
                    member.driver.poke()

            def received(member: Member) -> list[int]:
                stats = member.node.stats(time.monotonic_ns())["members"]
                return [other["received"] for other in stats if not other["self"]]

            for keys in ((KEY, new), (new, KEY), (new,)):
                for member in members:
                    member.node.set_keys(keys)
                    traffic()
                    await asyncio.sleep(0)
                before = [received(member) for member in members]
                # All have heard each of the others under the new keys before the next step.
                async with asyncio.timeout(10):
                    while any(
                        now < then + 5
                        for member, held in zip(members, before, strict=True)
                        for now, then in zip(received(member), held, strict=True)
                    ):
                        traffic()
                        await asyncio.sleep(0.005)
            for member in members:
                drops = {reason: count for reason, count in member.node.drops.items() if count}
                assert drops.keys() <= {"unknown_boot"}, drops  # from when they met
                assert member.node.live_count() == 3

    run(scenario)


def test_who_stops_says_good_bye_and_who_vanishes_is_missed() -> None:
    async def scenario() -> None:
        async with cluster(3) as members:
            await members[2].driver.stop()
            await members[0].sees(left(members[2], crashed=False))
            await members[1].sees(left(members[2], crashed=False))
            transport = members[1].driver._transport
            assert transport is not None
            transport.abort()  # as a crash: nothing is said
            await members[0].sees(left(members[1], crashed=True))
            assert members[0].node.live_count() == 1

    run(scenario)


def test_a_joiner_gets_a_snapshot_over_tcp() -> None:
    """Presuming would last a minute here, so only a snapshot can end it."""

    async def scenario() -> None:
        async with cluster(1) as (first,):
            row = first.row()
            now_ns = time.monotonic_ns()
            for _ in range(60):
                assert row.ask(1, now_ns) == ROOM
                row.take(1, now_ns)
            sock = bound_socket()
            joiner = Member("late", sock, (first.sock.getsockname(),), joining_ns=60 * SECOND)
            await joiner.driver.start(sock)
            early = joiner.row()
            assert early.level(time.monotonic_ns()) > 99
            early.waiting = object()
            await joiner.sees(lambda event: isinstance(event, RowChanged))
            await joiner.sees(joined(first))
            async with asyncio.timeout(5):
                while joiner.driver._tasks:
                    await asyncio.gather(*joiner.driver._tasks)
            assert not joiner.node.stats(time.monotonic_ns())["joining"]
            assert 58 <= early.level(time.monotonic_ns()) <= 61
            await joiner.driver.stop()

    run(scenario)


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff\xff\xff\xff", b"\x00\x00\x00\x05hello", b"GET / HTTP/1.1\r\n\r\n", bytes(4)],
)
def test_garbage_on_the_tcp_port_gets_nothing(data: bytes) -> None:
    async def scenario() -> None:
        async with cluster(1) as (member,):
            reader, writer = await asyncio.open_connection("127.0.0.1", member.driver.port)
            writer.write(data)
            writer.write_eof()
            assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()

    run(scenario)


def test_who_stops_closes_open_tcp_connections_without_an_error() -> None:
    faults: list[dict[str, Any]] = []

    async def scenario() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, fault: faults.append(fault))
        async with cluster(1) as (member,):
            reader, writer = await asyncio.open_connection("127.0.0.1", member.driver.port)
            writer.write(b"\0")
            while not member.driver._snapshots:
                await asyncio.sleep(0.001)
            await member.driver.stop()
            assert asyncio.all_tasks() == {asyncio.current_task()}
            assert await closed(reader)
            writer.close()

    async def closed(reader: asyncio.StreamReader) -> bool:
        try:
            return await reader.read() == b""
        except ConnectionResetError:
            return True

    run(scenario)
    assert not faults


def test_garbage_on_the_udp_port_is_counted() -> None:
    async def scenario() -> None:
        async with cluster(2) as members:
            target = members[0].sock.getsockname()
            with bound_socket() as stranger:
                stranger.sendto(b"garbage", target)
                stranger.sendto(bytes(1300), target)
                # A pause that comes after them proves that they were read.
                now_ns = time.monotonic_ns()
                members[1].node.open_breaker(b"s", 1, now_ns + SECOND, 1, now_ns)
                await members[0].sees(lambda event: isinstance(event, BreakerOpened))
            assert members[0].node.drops["garbage"] == 1
            assert members[0].node.drops["oversized"] == 1

    run(scenario)


def test_neither_a_failing_owner_nor_a_strange_address_stops_a_driver() -> None:
    async def scenario() -> None:
        async with cluster(2) as members:
            failures: list[Any] = []
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _, context: failures.append(context))

            def fail(events: list[Event]) -> None:
                raise RuntimeError("the owner's fault")

            members[0].driver._on_events = fail
            now_ns = time.monotonic_ns()
            members[0].node.set_join_addresses([("::1", 7946)], now_ns)
            members[1].node.open_breaker(b"s", 1, now_ns + SECOND, 1, now_ns)
            async with asyncio.timeout(5):
                while not failures or not members[0].driver.send_errors:
                    await asyncio.sleep(0)
            members[0].driver._on_events = members[0].on_events
            members[1].node.close_breaker(b"s", 2, now_ns)
            await members[0].sees(lambda event: isinstance(event, BreakerClosed))

    run(scenario)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells it on Linux only")
def test_what_the_kernel_drops_is_told() -> None:
    """More than the socket's buffer holds, while the loop has no turn."""

    async def scenario() -> None:
        async with cluster(2) as members:
            node = members[0].node
            sent = 8192  # 2 MiB hold 2,700 of the smallest datagrams
            read = node.drops["garbage"]
            for _ in range(sent):
                members[1].sock.sendto(b"x", members[0].node.config.advertise)
            async with asyncio.timeout(5):
                while node.drops["unread"] + node.drops["garbage"] - read < sent:
                    await asyncio.sleep(0.01)
            assert node.drops["unread"] > sent // 2
            assert node.drops["garbage"] - read > 100
            now_ns = time.monotonic_ns()
            members[1].node.open_breaker(b"s", 1, now_ns + SECOND, 1, now_ns)
            await members[0].sees(lambda event: isinstance(event, BreakerOpened))

    run(scenario)


class Stubborn:
    """A socket of a kernel that neither enlarges a buffer by force nor tells what it dropped."""

    def __init__(self) -> None:
        self.options: dict[int, int] = {}

    def setsockopt(self, level: int, option: int, value: int) -> None:
        if option != socket.SO_RCVBUF:
            raise PermissionError
        self.options[option] = value

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        raise OSError("protocol not available")


def test_an_older_kernel_or_fewer_rights_are_enough() -> None:
    sock = Stubborn()
    _enlarge(cast(socket.socket, sock))
    assert sock.options == {socket.SO_RCVBUF: 1 << 20}

    async def scenario() -> None:
        async with cluster(2) as members:
            members[0].driver._udp = cast(socket.socket, sock)
            async with asyncio.timeout(5):
                while members[0].driver._udp is not None:
                    await asyncio.sleep(0.01)
            now_ns = time.monotonic_ns()
            members[1].node.open_breaker(b"s", 1, now_ns + SECOND, 1, now_ns)
            await members[0].sees(lambda event: isinstance(event, BreakerOpened))

    run(scenario)


def test_names_are_resolved_off_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host name, a group with two addresses, and a name that fails first."""

    async def scenario() -> None:
        socks = [bound_socket() for _ in range(3)]
        ports = [sock.getsockname()[1] for sock in socks]
        asked: list[str] = []

        async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
            asked.append(host)
            if host == "late.test" and asked.count(host) == 1:
                raise socket.gaierror("not yet")
            found = ports[1:] if host == "group.test" else [port]
            return [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", ("127.0.0.1", p)) for p in found]

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo, raising=False)
        monkeypatch.setattr("peers.driver._RESOLVE_BACKOFF_MAX_S", 0.01)
        members = [
            Member("a", socks[0], (("dns:group.test", 1), ("late.test", 9))),
            Member("b", socks[1], ()),
            Member("c", socks[2], ()),
        ]
        for member in members:
            # A bound socket is given, so that only join names are looked up.
            await member.driver.start(member.sock)
        for member in members[1:]:
            await members[0].sees(joined(member))
        assert {"group.test", "late.test"} <= set(asked)
        for member in members:
            await member.driver.stop()

    run(scenario)


def test_a_port_that_is_taken_is_said() -> None:
    async def scenario() -> None:
        async with cluster(1) as (member,):
            config = member.node.config
            node = Node(config, random.Random(1), time.monotonic_ns(), 1)
            with pytest.raises(OSError, match="in use"):
                await MeshDriver(node, lambda events: None).start()

    run(scenario)
