"""The mesh over asyncio: one UDP socket, one TCP listener on the same port, one timer.

No decision is made here: the driver carries bytes, times and resolved addresses into the node, and
datagrams and events out of it. Events are handed on and datagrams sent once per turn of the loop,
however many datagrams came in it. A turn reads 32 of them at most (libuv's `uv__udp_recvmsg`;
asyncio's own loop one), so that a flood leaves the loop to others; what it makes the kernel drop is
counted.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Coroutine, Iterable
from time import monotonic_ns
from typing import Any, cast

from peers.core.config import SECOND
from peers.core.errors import Drop
from peers.core.events import Address, Event
from peers.core.node import Node
from peers.core.snapshot import RECORDS_MAX
from peers.core.wire import DATAGRAM_BYTES_MAX, RECORD_BYTES_MAX

__all__ = ["MeshDriver"]

# Names of the form dns:NAME are for groups that change, and are resolved so often.
_DNS_AGAIN_S = 30.0
_RESOLVE_BACKOFF_MAX_S = 30.0
_SNAPSHOT_TIMEOUT_S = 5.0
# Joiners served at once; a snapshot of 20,000 rows takes some 100 ms of this loop.
_SNAPSHOTS_MAX = 4
# A burst of counters of 31 members at one cadence: 31 x 25 datagrams of 1,200 bytes. The kernel
# books 768 bytes for the smallest: in a flood of 100,000/s this is what comes in 27 ms (it doubles
# the figure, socket(7)).
_RECEIVE_BUFFER_BYTES = 1 << 20
# socket(7), asm-generic/socket.h: with CAP_NET_ADMIN net.core.rmem_max is no bound.
_SO_RCVBUFFORCE = 33
# linux/sock_diag.h: nine figures of 32 bits, of which SK_MEMINFO_DROPS is the last.
_SO_MEMINFO = 55
_MEMINFO = struct.Struct("=9I")
_LOOK_NS = SECOND  # at what the kernel has dropped


class MeshDriver:
    """Runs one node in the running loop.

    `on_events` is called with what `Node.events_received` gave, from the loop, never from within a
    call into this driver.
    """

    def __init__(
        self,
        node: Node,
        on_events: Callable[[list[Event]], None],
        clock: Callable[[], int] = monotonic_ns,
    ) -> None:
        self.node = node
        self.send_errors = 0
        self._on_events = on_events
        self._clock = clock
        self._loop: asyncio.AbstractEventLoop | None = None
        self._transport: asyncio.DatagramTransport | None = None
        self._server: asyncio.Server | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ns = 0
        self._look_ns = 0
        self._udp: socket.socket | None = None
        self._flushing = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._snapshots = 0
        self._names = node.config.join
        self._resolving: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        """The port that is bound."""
        assert self._transport is not None
        return int(self._transport.get_extra_info("sockname")[1])

    async def start(self, sock: socket.socket | None = None) -> None:
        """Binds and begins. `sock` is a bound UDP socket to use instead of `config.bind`.

        Raises OSError if the address cannot be had.
        """
        loop = self._loop = asyncio.get_running_loop()
        config = self.node.config
        protocol = _Protocol(self)
        if sock is None:
            transport, _ = await loop.create_datagram_endpoint(
                lambda: protocol, local_addr=config.bind
            )
        else:
            transport, _ = await loop.create_datagram_endpoint(lambda: protocol, sock=sock)
        self._transport = transport
        udp: socket.socket = transport.get_extra_info("socket")
        self._udp = udp
        _enlarge(udp)
        try:
            self._server = await asyncio.start_server(self._connected, config.bind[0], self.port)
        except OSError:
            transport.close()
            raise
        self.node.on_wake = self.poke
        self.set_join(self._names)
        self.node.tick(self._clock())
        self._flush_soon()

    async def stop(self) -> None:
        """Says good-bye, twice against loss, and closes everything. A second call does nothing."""
        self.node.on_wake = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        server, self._server = self._server, None
        if server is not None:
            server.close()  # before the tasks, so that no connection begins another one
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for _ in range(2):
            now_ns = self._clock()
            self.node.leave(now_ns)
            self._send(self.node.datagrams_to_send(now_ns))
        if server is not None:
            await server.wait_closed()
        if self._transport is not None:
            self._transport.close()
            self._transport = None
            await asyncio.sleep(0)  # the transport closes its socket in the loop's next turn

    def poke(self) -> None:
        """After local work: what is due leaves in this turn of the loop, and the timer is set
        anew. Cheap when called again in the same turn."""
        self._flush_soon()

    def socket_lost(self) -> None:
        """The socket is gone: nothing is sent or timed any more, and peers will notice."""
        self._transport = None

    # -- datagrams and time

    def datagram_received(self, data: bytes, source: Address) -> None:
        # In a flood of garbage a flush for each datagram would cost ten times the datagram, and
        # under load as much as reading the counters in it.
        if self.node.receive_datagram(data, source, self._clock()):
            self._flush_soon()

    def _flush_soon(self) -> None:
        if not self._flushing and self._loop is not None:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self._transport is None:
            return
        node = self.node
        now_ns = self._clock()
        if now_ns >= node.next_wake_ns():
            node.tick(now_ns)
        try:
            # First, so that a pause is obeyed before it is passed on, and so that what the owner
            # does upon news leaves in this turn.
            events = node.events_received()
            if events:
                self._flushing = True
                self._on_events(events)
        finally:  # an exception of the owner's stops neither the timer nor the datagrams
            self._flushing = False
            if self._transport is not None:
                self._send(node.datagrams_to_send(self._clock()))
                self._ask_snapshot()
                self._arm(node.next_wake_ns())

    def _arm(self, wake_ns: int) -> None:
        assert self._loop is not None
        if self._timer is not None:
            if self._timer_ns == wake_ns:
                return
            self._timer.cancel()
        self._timer_ns = wake_ns
        delay_s = max(0, wake_ns - self._clock()) / SECOND
        self._timer = self._loop.call_later(delay_s, self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer = None
        now_ns = self._clock()
        self.node.tick(now_ns)
        if now_ns >= self._look_ns:
            self._look_ns = now_ns + _LOOK_NS
            self._count_unread()
        self._flush()

    def _count_unread(self) -> None:
        """What the kernel dropped of this socket's datagrams (modulo 2^32) is told with what the
        node dropped."""
        if self._transport is None or self._udp is None:
            return
        try:
            figures = self._udp.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size)
            self.node.drops[Drop.UNREAD.value] = _MEMINFO.unpack(figures)[-1]
        except (OSError, struct.error):  # no Linux, or one before 4.12: asked once
            self._udp = None

    def _send(self, datagrams: Iterable[tuple[bytes, Address]]) -> None:
        transport = self._transport
        if transport is None:
            return
        for data, address in datagrams:
            try:
                transport.sendto(data, address)
            except (OSError, ValueError):
                # A member that advertises an address of another family than our socket's.
                self.send_errors += 1

    # -- snapshots over TCP: records with a length of four bytes before them

    def _ask_snapshot(self) -> None:
        address = self.node.snapshot_target()
        if address is not None:
            self._spawn(self._fetch_snapshot(address))

    async def _fetch_snapshot(self, address: Address) -> None:
        try:
            async with asyncio.timeout(_SNAPSHOT_TIMEOUT_S):
                reader, writer = await asyncio.open_connection(*address)
                try:
                    _write_record(writer, self.node.snapshot_request())
                    for _ in range(RECORDS_MAX):
                        record = await _read_record(reader, RECORD_BYTES_MAX)
                        if self.node.snapshot_received(record, address, self._clock()):
                            break
                finally:
                    writer.close()
        except (OSError, asyncio.IncompleteReadError, TimeoutError):
            self.node.snapshot_failed()
        self._flush_soon()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A task of ours and not of asyncio's streams, which would outlive `stop` and be cut off
        with a traceback by the loop's end (3.11)."""
        self._spawn(self._serve_snapshot(reader, writer))

    async def _serve_snapshot(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        source = cast(Address, writer.get_extra_info("peername")[:2])
        try:
            if self._snapshots >= _SNAPSHOTS_MAX:
                return
            self._snapshots += 1
            try:
                async with asyncio.timeout(_SNAPSHOT_TIMEOUT_S):
                    request = await _read_record(reader, DATAGRAM_BYTES_MAX)
                    for record in self.node.snapshot_answer(request, source, self._clock()):
                        _write_record(writer, record)
                        await writer.drain()
            finally:
                self._snapshots -= 1
        except (OSError, asyncio.IncompleteReadError, TimeoutError):
            return  # the joiner asks another one
        except asyncio.CancelledError:
            writer.transport.abort()  # what a joiner has not read keeps no node from ending
            raise
        finally:
            writer.close()

    # -- names

    def set_join(self, names: Iterable[Address]) -> None:
        """Other names to join by, from now on; who is a member already stays one."""
        self._names = tuple(names)
        if self._resolving is not None:
            self._resolving.cancel()
        self._resolving = self._spawn(self._resolve_for_ever())

    async def _resolve_for_ever(self) -> None:
        """Resolves the names among the join addresses: at the start, with back-off where one
        fails, and groups (dns:NAME) every 30 s."""
        names = self._names
        pause_s = 1.0
        while True:
            found, failed = await self._resolve(names)
            self.node.set_join_addresses(found, self._clock(), failed)
            self._flush_soon()
            if failed:
                await asyncio.sleep(pause_s)
                pause_s = min(_RESOLVE_BACKOFF_MAX_S, 2 * pause_s)
            elif any(host.startswith("dns:") for host, _ in names):
                await asyncio.sleep(_DNS_AGAIN_S)
            else:
                return

    async def _resolve(self, names: Iterable[Address]) -> tuple[list[Address], int]:
        loop = asyncio.get_running_loop()
        found: dict[Address, None] = {}
        failed = 0
        for name, port in names:
            group = name.startswith("dns:")
            try:
                infos = await loop.getaddrinfo(
                    name.removeprefix("dns:"), port, type=socket.SOCK_DGRAM
                )
            except OSError:
                failed += 1
                continue
            for info in infos if group else infos[:1]:
                found[cast(Address, info[4][:2])] = None
        return list(found), failed

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class _Protocol(asyncio.DatagramProtocol):
    def __init__(self, driver: MeshDriver) -> None:
        self._driver = driver

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        self._driver.datagram_received(data, (addr[0], addr[1]))

    def connection_lost(self, exc: Exception | None) -> None:
        self._driver.socket_lost()

    def error_received(self, exc: Exception) -> None:
        """A member's port is closed (ICMP): the probes find that out by themselves."""
        self._driver.send_errors += 1


def _enlarge(udp: socket.socket) -> None:
    """The receive buffer, as far as this process may: by CAP_NET_ADMIN, else to rmem_max."""
    try:
        udp.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER_BYTES)
    except OSError:  # not permitted, or not Linux
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)


def _write_record(writer: asyncio.StreamWriter, record: bytes) -> None:
    writer.write(len(record).to_bytes(4, "big") + record)


async def _read_record(reader: asyncio.StreamReader, bytes_max: int) -> bytes:
    """One record. Raises IncompleteReadError, also for a length that is over the limit."""
    length = int.from_bytes(await reader.readexactly(4), "big")
    if length > bytes_max:
        raise asyncio.IncompleteReadError(b"", length)
    return await reader.readexactly(length)
