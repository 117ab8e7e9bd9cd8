"""The composition root of a worker: sockets, signals, reload, drain.

Everything that has a life of its own is started here and stopped here, in the reverse order. A
signal only sets an event; what it asks for happens in `run`, between two events of the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os
import random
import signal
import socket
import sys
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

import structlog

from gateway.accesslog import AccessLog
from gateway.breaker.states import LOCAL, BreakerState, Cause, Change
from gateway.build import build_kind
from gateway.clock import MS, monotonic_ns, wall_ns
from gateway.conf.changes import cannot_change, diff
from gateway.conf.faults import ConfError
from gateway.conf.load import load, placed
from gateway.conf.schema import Conf
from gateway.h1.codec import load_codec
from gateway.listening import Listeners, bind_socket, forget_socket, server_context
from gateway.mesh import MeshAdapter, NoMesh, join_addresses, node_config, sealing_keys
from gateway.proxy import pauses
from gateway.proxy.graph import Worker
from gateway.proxy.waitroom import WaitRoom
from gateway.runtime import Assembly
from peers.core.node import Node
from peers.driver import MeshDriver

__all__ = ["ServeError", "Server", "configure_log", "raise_file_limit", "tune_memory"]

M_MMAP_THRESHOLD = -3  # mallopt(3)
MMAP_THRESHOLD_BYTES = 128 * 1024  # glibc's initial value, which setting it keeps
DRAIN_LOOK_SECONDS = 0.02
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
JOIN_SECONDS = 10.0  # members on a LAN are found within one
TICK_SECONDS = 0.25  # a ramp that grows 2 % a second moves by half a percent
PSEUDONYM_PREFIX = "egressd-"


def tune_memory() -> None:
    """Sets the allocator and the collector for a process that holds many connections for long.

    glibc raises its mmap threshold when a large block is freed; the 256 KiB that the loop takes per
    TLS connection then come from the heap and stay resident (47 KiB an idle connection; 24 with the
    threshold fixed). What is loaded by now never becomes garbage: the collector need not look at it
    again, nor look every 700 objects (3 us of 55 per request).
    """
    with contextlib.suppress(OSError, AttributeError):  # another libc has another allocator
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def _nothing() -> None:
    """The default of `on_ready`."""


class ServeError(Exception):
    """The node cannot start: an address is taken, a file is not readable. The text says which."""


def configure_log(level: str) -> None:
    """Process log: one JSON object a line on standard error."""
    import logging

    def in_order(_: object, __: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
        """When, how grave and what come first in a line; the facts follow."""
        first = {key: event.pop(key) for key in ("timestamp", "level", "event")}
        return {**first, **event}

    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            in_order,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


def raise_file_limit() -> int:
    """Raises the soft limit of open files to the hard one; returns it."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _reason(error: OSError | ImportError) -> str:
    """The text of an error, without the number that the operating system has for it."""
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)


class Server:
    """One worker from start to stop."""

    def __init__(self, conf: Conf, path: str, overrides: Sequence[str] = ()) -> None:
        self.conf = conf
        self.path = path
        self.overrides = tuple(overrides)
        self.log = structlog.get_logger()
        self.reloads = 0
        self.reload_success = True
        self.ready = False
        self.on_ready: Callable[[], None] = _nothing
        self.started_ns = monotonic_ns()
        self._ticking: asyncio.TimerHandle
        self._stop = asyncio.Event()
        self._reload = asyncio.Event()
        self._stops = 0
        self._handles_signals = False
        self._refused = ""  # why the mesh does not want this node
        self.reload_noted = False  # a SIGHUP came while the node was starting
        loop = asyncio.get_running_loop()
        chance = random.SystemRandom()
        self.worker = Worker(
            loop,
            load_codec(conf.node.codec),
            (PSEUDONYM_PREFIX + conf.node.name).encode(),
            random.Random(chance.getrandbits(64)).random,  # noqa: S311 jitter, not secrets
        )
        self.listeners = Listeners(self.worker)
        self.worker.waitroom = WaitRoom(self.worker)
        self.worker.note_change = self._log_change
        self.driver: MeshDriver | None = None
        self.mesh: MeshAdapter | NoMesh
        if conf.mesh is None:
            self.mesh = NoMesh(random.SystemRandom().randbytes(32))
        else:
            node = Node(node_config(conf), chance, monotonic_ns(), wall_ns() // MS)
            self.mesh = MeshAdapter(node, self.worker, self._log_mesh)
            self.mesh.on_refused = self._refused_by_mesh
            self.driver = MeshDriver(node, self.mesh.events)
        self.worker.mesh = self.mesh
        self.assembly = Assembly(self.worker, self.mesh, self.listeners.addresses)
        self.mesh.on_members = self.assembly.registry.resplit
        self.access_log: AccessLog | None = None

    # Start and stop.

    async def run(self, *, signals: bool = True) -> None:
        """Serves until SIGTERM or SIGINT. Raises ServeError where it cannot start.

        Without `signals` (a loop that is not the main thread's) `stop` and `reload` are called.
        """
        async with contextlib.AsyncExitStack() as stack:
            try:
                await self._start(stack)
            except (OSError, ImportError) as error:
                raise ServeError(_reason(error)) from error
            if signals:
                self._on_signals()
            if self.reload_noted:
                self._reload.set()
            self.ready = True
            self.log.info(
                "serving",
                node=self.conf.node.name,
                codec=self.worker.codec.name,
                build=build_kind(),
                listen=[listener.name for listener in self.listeners],
                upstreams=sorted(self.worker.runtime.upstreams),
                start_ms=(monotonic_ns() - self.started_ns) // MS,
            )
            self.on_ready()
            await self._serve()
            self.ready = False
            await self._drain()
        if self._refused:
            raise ServeError(f"mesh: {self._refused}; two members of one name cannot share limits")

    async def _start(self, stack: contextlib.AsyncExitStack) -> None:
        conf = self.conf
        self.worker.runtime = self.assembly.build(conf)
        stack.push_async_callback(self.assembly.abort)
        self.worker.wheel.start()
        stack.callback(self.worker.wheel.stop)
        self._tick()
        stack.callback(lambda: self._ticking.cancel())
        self.access_log = self._make_access_log(conf)
        stack.push_async_callback(self._stop_access_log)
        if self.driver is not None:
            await self._start_mesh(self.driver)
            stack.push_async_callback(self.driver.stop)
            if self._joins_others(conf):
                loop = asyncio.get_running_loop()
                looking = loop.call_later(JOIN_SECONDS, self._look_for_members)
                stack.callback(looking.cancel)
        if conf.admin is not None:
            from gateway.admin.app import AdminServer

            sock = bind_socket("admin", conf.admin.bind)
            interface = AdminServer(self, sock)
            stack.callback(forget_socket, conf.admin.bind)
            await interface.start()
            stack.push_async_callback(interface.stop)
        stack.callback(self.listeners.abort)
        await self.listeners.open_new(conf.listen)

    def _joins_others(self, conf: Conf) -> bool:
        """Whether `join` names anybody but this node itself."""
        own = self.driver.node.config.advertise if self.driver is not None else None
        return any(address != own for address in join_addresses(conf))

    async def _start_mesh(self, driver: MeshDriver) -> None:
        bind = driver.node.config.bind
        # Bound here: the loops give the reason in two ways, uvloop none at all.
        family = socket.AF_INET6 if ":" in bind[0] else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_DGRAM)
        try:
            sock.bind(bind)
            await driver.start(sock)
        except OSError as error:
            sock.close()
            where = self.conf.mesh.bind if self.conf.mesh is not None else bind
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise OSError(error.errno, f"mesh.bind {where}: {reason}") from error

    def _on_signals(self) -> None:
        self._handles_signals = True
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGHUP, self._reload.set)
        loop.add_signal_handler(signal.SIGUSR1, self.reopen_logs)

    def stop(self) -> None:
        """Begins to drain; said twice, ends at once."""
        self._stops += 1
        self._stop.set()

    def _refused_by_mesh(self, reason: str) -> None:
        """A node that is no member must not serve: its limits would come on top of the mesh's."""
        self.log.error("refused by the mesh", reason=reason)
        self._refused = reason
        self.stop()

    def _look_for_members(self) -> None:
        """Said once: a wrong key, cluster or address otherwise shows on the other nodes only."""
        if self.driver is not None and self.driver.node.live_count() <= 1:
            self.log.warning(
                "no member answers",
                join=[f"{host}:{port}" for host, port in self.driver.node.config.join],
                drops=dict(self.driver.node.drops),
            )

    def reopen_logs(self) -> None:
        """Opens the access log's path again, after it was moved away."""
        if self.access_log is not None:
            try:
                self.access_log.reopen()
            except OSError as error:
                self.log.error("log not reopened", error=str(error))

    async def _serve(self) -> None:
        stop = asyncio.ensure_future(self._stop.wait())
        while not stop.done():
            reload = asyncio.ensure_future(self._reload.wait())
            await asyncio.wait({stop, reload}, return_when=asyncio.FIRST_COMPLETED)
            if self._reload.is_set():
                self._reload.clear()
                await self.reload()
            else:
                reload.cancel()

    async def _drain(self) -> None:
        worker = self.worker
        listeners = self.listeners
        worker.draining = True
        deadline_ns = monotonic_ns() + self.conf.node.drain
        listeners.drain()
        self.log.info("draining", connections=listeners.connection_count)
        # Three conditions, of which one is time: looked at, not waited for.
        while (  # noqa: ASYNC110
            listeners.connection_count and monotonic_ns() < deadline_ns and self._stops < 2
        ):
            await asyncio.sleep(DRAIN_LOOK_SECONDS)
        cut = listeners.abort()
        await asyncio.sleep(0)
        self.log.info("stopped", connections_cut=cut)
        if self._handles_signals:
            # What is still to be done is bounded. A signal that comes now must not kill the process
            # when the loop, as it closes, brings the default actions back.
            for number in SIGNALS:
                asyncio.get_running_loop().remove_signal_handler(number)
                signal.signal(number, signal.SIG_IGN)

    def connection_count(self) -> int:
        """Client connections that are open now."""
        return self.listeners.connection_count

    def _log_change(self, upstream: str, change: Change) -> None:
        """A breaker opened or closed, here or at a peer that told us."""
        scope = "credential" if change.scope else "upstream"
        if change.scope == LOCAL:
            scope = "node"  # not yet a majority of the mesh
        if change.state is BreakerState.CLOSED:
            self.log.info("breaker closed", upstream=upstream, scope=scope, epoch=change.epoch)
            return
        pause_ms = max(0, change.until_ns - monotonic_ns()) // MS
        self.log.warning(
            "upstream paused" if change.cause is Cause.THROTTLE else "breaker open",
            upstream=upstream,
            scope=scope,
            epoch=change.epoch,
            pause_ms=pause_ms,
        )

    def _tick(self) -> None:
        """What moves with time and has no event of its own: ramps, old breakers of credentials, the
        windows that the shared limits are watched in, the distance between the two clocks."""
        self._ticking = asyncio.get_running_loop().call_later(TICK_SECONDS, self._tick)
        now_ns = monotonic_ns()
        self.mesh.tick(now_ns)
        for upstream in self.worker.runtime.upstreams.values():
            if upstream.breakers.ramp.climbing:
                pauses.climb(upstream, now_ns)
            upstream.breakers.expire(now_ns)
        self.assembly.registry.look_at_clock(wall_ns() - now_ns, now_ns)

    def _log_mesh(self, event: str, **facts: object) -> None:
        self.log.info(event, **facts)

    # Reload.

    async def reload(self) -> bool:
        """Reads the file again: with a fault nothing changes. Returns whether it was taken over."""
        begun_ns = monotonic_ns()
        try:
            new = await asyncio.to_thread(load, self.path, self.overrides)
            findings = cannot_change(self.conf, new)
            if findings:
                raise ConfError(placed(findings, self.path, self.overrides))
            await self._apply(new)
        except ConfError as error:
            self.reload_success = False
            for fault in error.faults:
                self.log.error("reload refused", fault=str(fault))
            return False
        except (OSError, ImportError) as error:
            # A certificate that cannot be read, an address that is taken, a codec not installed.
            self.reload_success = False
            self.log.error("reload refused", fault=_reason(error))
            return False
        self.reload_success = True
        self.reloads += 1
        self.log.info("reloaded", took_ms=(monotonic_ns() - begun_ns) // MS)
        return True

    async def _apply(self, new: Conf) -> None:
        """Makes all that can fail, then swaps. Raises OSError or ImportError with nothing done."""
        old = self.conf
        plan = self.assembly.prepare(new)
        codec = load_codec(new.node.codec)
        for listen in new.listen:
            server_context(listen)
        logs_anew = (new.log.access, new.log.format) != (old.log.access, old.log.format)
        access_log = self._make_access_log(new) if logs_anew else self.access_log
        try:
            await self.listeners.open_new(new.listen)
        except OSError:
            if logs_anew and access_log is not None:
                await access_log.discard()
            raise
        # From here on nothing fails.
        changes = diff(old, new)
        self.worker.runtime = self.assembly.commit(plan)
        self.worker.codec = codec
        self.listeners.settle(new.listen)
        self.conf = new
        if new.log.level != old.log.level:
            configure_log(new.log.level)
        if self.driver is not None:
            self.driver.node.set_keys(sealing_keys(new))
            if join_addresses(new) != join_addresses(old):
                self.driver.set_join(join_addresses(new))
        self.log.info("configuration changed", changes=changes or ["nothing"])
        self.assembly.rejoin_held()
        if logs_anew:
            old_log, self.access_log = self.access_log, access_log
            if old_log is not None:
                await old_log.stop()

    def _make_access_log(self, conf: Conf) -> AccessLog | None:
        """An open log that drains, or None where it is off. Raises OSError."""
        if conf.log.access == "off":
            return None
        access_log = AccessLog(self.worker, conf.log.access, conf.log.format)
        access_log.open()
        access_log.start()
        return access_log

    async def _stop_access_log(self) -> None:
        if self.access_log is not None:
            await self.access_log.stop()
