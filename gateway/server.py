"""The composition root of a worker: sockets, signals, reload, drain.

Everything that has a life of its own is started here and stopped here, in the reverse order. A
signal only sets an event; what it asks for happens in `run`, between two events of the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from gateway.accesslog import AccessLog
from gateway.breaker.states import BreakerState, Cause, Change
from gateway.build import build_kind
from gateway.clock import MS, monotonic_ns, wall_ns
from gateway.conf.changes import cannot_change, diff
from gateway.conf.faults import ConfError
from gateway.conf.load import load, placed
from gateway.conf.schema import Conf
from gateway.connectors.redis_store import RedisStore
from gateway.durable import Durable, check_spool
from gateway.h1.codec import Codec, load_codec
from gateway.listening import Listeners, Opening
from gateway.mesh import (
    WARNINGS,
    MeshAdapter,
    NoMesh,
    Place,
    join_addresses,
    node_config,
    sealing_keys,
    worker_name,
)
from gateway.operator import Operator
from gateway.process import ServeError, configure_log, end_of_signals, logger, reason_of
from gateway.proxy import pauses
from gateway.proxy.downstream import DownstreamProtocol
from gateway.proxy.graph import Worker
from gateway.proxy.waitroom import WaitRoom
from gateway.recent import Recent
from gateway.runtime import Assembly, Plan
from gateway.sockets import OwnSockets, Sockets
from gateway.systemd import Notifier
from peers.core.node import Node
from peers.driver import MeshDriver

if TYPE_CHECKING:
    from gateway.spool.desk import Desk
    from gateway.spool.kafka import KafkaSpool
    from gateway.spool.topic_desk import TopicDesk
    from gateway.spool.worker import Spool

__all__ = ["Prepared", "Server"]

DRAIN_LOOK_SECONDS = 0.02
JOINING_LOOK_SECONDS = 0.005
JOIN_SECONDS = 10.0  # members on a LAN are found within one
TICK_SECONDS = 0.25  # a ramp that grows 2 % a second moves by half a percent
PSEUDONYM_PREFIX = "egressd-"


def _nothing() -> None:
    """The default of `on_ready`."""


class Prepared(NamedTuple):
    """A new configuration with everything made that could have failed."""

    conf: Conf
    plan: Plan
    codec: Codec
    openings: list[Opening]
    logs_anew: bool
    access_log: AccessLog | None
    spool: Spool | KafkaSpool | None
    changes: list[str]


class Server:
    """One worker from start to stop."""

    def __init__(
        self,
        conf: Conf,
        path: str,
        overrides: Sequence[str] = (),
        *,
        sockets: Sockets | None = None,
        notifier: Notifier | None = None,
        place: Place | None = None,
    ) -> None:
        """`place`: which one of a node's several workers this is; its supervisor tells it when to
        reload and to stop. Raises OSError or ImportError."""
        self.conf = conf
        self.path = path
        self.overrides = tuple(overrides)
        self.place = place
        self.sockets = sockets or OwnSockets()
        self.notifier = notifier or Notifier()
        names = {} if place is None else {"worker": place.number}
        self.log = Recent(logger(**names))
        self.reloads = 0
        self.reload_failures = 0
        self.reload_success = True
        self.reload_faults: list[str] = []  # of the last reload
        self.ready = False
        self.on_ready: Callable[[], None] = _nothing
        self.started_ns = monotonic_ns()
        self._ticking: asyncio.TimerHandle
        self._stop = asyncio.Event()
        self._reload = asyncio.Event()
        self._reloading = asyncio.Lock()
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
        self.listeners = Listeners(self.worker, self.sockets)
        self.worker.waitroom = WaitRoom(self.worker)
        self.worker.note_change = self._log_change
        self.worker.note_bad_header = self._log_bad_header
        self.store = self.worker.store = RedisStore(self.worker, self._log_store)
        self.driver: MeshDriver | None = None
        self.mesh: MeshAdapter | NoMesh
        if conf.mesh is None and place is None:
            self.mesh = NoMesh(random.SystemRandom().randbytes(32))
        else:
            node = Node(node_config(conf, place), chance, monotonic_ns(), wall_ns() // MS)
            self.mesh = MeshAdapter(node, self.worker, self._log_mesh)
            self.mesh.on_refused = self._refused_by_mesh
            self.driver = MeshDriver(node, self.mesh.events)
        self.worker.mesh = self.mesh
        self.assembly = Assembly(self.worker, self.mesh, self.listeners.addresses)
        self.mesh.on_members = self.assembly.registry.resplit
        self.access_log: AccessLog | None = None
        self.operator = Operator(self)
        self.durable = Durable(self.worker, place, self._log_store)

    # Start and stop.

    async def run(self, *, signals: bool = True) -> None:
        """Serves until SIGTERM or SIGINT. Raises ServeError where it cannot start.

        Without `signals` (a loop that is not the main thread's) `stop` and `reload` are called.
        """
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self.notifier.close)
            try:
                await self._start(stack)
            except (OSError, ImportError) as error:
                raise ServeError(reason_of(error)) from error
            if signals:
                self._on_signals()
            if self.reload_noted:
                self._reload.set()
            if not self._refused:
                self._ready()
                await self._serve()
                self.ready = False
            self.notifier.stopping("draining")
            await self._give_notice()
            await self._drain()
        if self._refused:
            raise ServeError(f"mesh: {self._refused}")

    def _ready(self) -> None:
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
        self.notifier.ready(self._status())
        self.on_ready()

    async def _start(self, stack: contextlib.AsyncExitStack) -> None:
        conf = self.conf
        self.store.check(conf.redis)
        check_spool(conf.spool)
        self.worker.runtime = self.assembly.build(conf)
        stack.push_async_callback(self.assembly.abort)
        self.worker.wheel.start()
        stack.callback(self.worker.wheel.stop)
        self._tick()
        stack.callback(lambda: self._ticking.cancel())
        stack.push_async_callback(self.store.stop)
        self.store.configure(conf.redis)
        await self.store.first_try()
        self.access_log = self._make_access_log(conf)
        stack.push_async_callback(self._stop_access_log)
        joins = False
        if self.driver is not None:
            await self._start_mesh(self.driver)
            stack.push_async_callback(self.driver.stop)
            joins = self._joins_others(self.driver)
            if joins:
                loop = asyncio.get_running_loop()
                looking = loop.call_later(JOIN_SECONDS, self._look_for_members)
                stack.callback(looking.cancel)
        admin_socket = self.sockets.admin(conf.admin.bind if conf.admin is not None else None)
        if admin_socket is not None:
            from gateway.admin.app import worker_interface

            interface = worker_interface(self, admin_socket)
            if conf.admin is not None:
                stack.callback(self.sockets.forget, conf.admin.bind)
            await interface.start()
            stack.push_async_callback(interface.stop)
        stack.callback(self.listeners.abort)
        openings = self.listeners.prepare(conf.listen)
        stack.callback(self.listeners.undo, openings)
        if joins:
            await self._joined()
        self.durable.commit(conf, await self.durable.prepare(conf))
        stack.push_async_callback(self.durable.close)
        if not self._refused:
            await self.listeners.open(openings)

    async def _joined(self) -> None:
        """Until peers have told what they know (levels of limits, pauses in force), or none of
        them has answered in 0.5 s (`Config.joining_ns`)."""
        # The core has no event for it, and this is once in a process's life.
        while (  # noqa: ASYNC110
            self.driver is not None and self.driver.node.joining and not self._refused
        ):
            await asyncio.sleep(JOINING_LOOK_SECONDS)

    def _joins_others(self, driver: MeshDriver) -> bool:
        """Whether `join` names anybody but this node itself."""
        config = driver.node.config
        return any(address != config.advertise for address in config.join)

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
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise OSError(error.errno, f"mesh.bind {bind[0]}:{bind[1]}: {reason}") from error

    def _on_signals(self) -> None:
        self._handles_signals = True
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGHUP, self._reload.set)
        loop.add_signal_handler(signal.SIGUSR1, self.reopen_logs)

    def stop(self, *, at_once: bool | None = None) -> None:
        """Begins to drain; said twice, or with `at_once`, ends at once. False: drains, however
        often it is said."""
        if at_once is None:
            self._stops += 1
        else:
            self._stops = max(self._stops, 2 if at_once else 1)
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

    def _status(self) -> str:
        """What `systemctl status` shows."""
        runtime, conf = self.worker.runtime, self.conf
        figures = f"{len(runtime.upstreams)} upstreams, {len(conf.route)} routes"
        return f"serving {figures}, configuration {runtime.generation}"

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

    def withdraw(self) -> None:
        """`/ready` says no and answers close their connections; whoever comes is still served."""
        self.worker.draining = True
        self.log.info("withdrawing", connections=self.listeners.connection_count)

    async def _give_notice(self) -> None:
        """Withdraws for `node.grace`, so that a virtual address moves before anybody is refused.

        For the workers of a node their supervisor does so. A node that the mesh has refused must
        not serve.
        """
        grace_ns = self.conf.node.grace
        if not grace_ns or self.place is not None or self._refused:
            return
        deadline_ns = monotonic_ns() + grace_ns
        self.withdraw()
        # Two conditions, of which one is time: looked at, not waited for.
        while monotonic_ns() < deadline_ns and self._stops < 2:  # noqa: ASYNC110
            await asyncio.sleep(DRAIN_LOOK_SECONDS)

    async def _drain(self) -> None:
        worker = self.worker
        listeners = self.listeners
        worker.draining = True
        deadline_ns = monotonic_ns() + self.conf.node.drain
        listeners.drain()
        self.durable.stop_sending()
        self.log.info(
            "draining",
            connections=listeners.connection_count,
            stored_sends=self.durable.out_count,
        )
        # Three conditions, of which one is time: looked at, not waited for.
        while (  # noqa: ASYNC110
            (listeners.connection_count or self.durable.out_count)
            and monotonic_ns() < deadline_ns
            and self._stops < 2
        ):
            await asyncio.sleep(DRAIN_LOOK_SECONDS)
        cut = listeners.abort()
        await asyncio.sleep(0)
        self.log.info("stopped", connections_cut=cut)
        if self._handles_signals:
            end_of_signals()

    @property
    def name(self) -> str:
        """The node's name, with the worker's number where there are several: a mesh member's."""
        return self.conf.node.name if self.place is None else worker_name(self.conf, self.place)

    def connection_count(self) -> int:
        """Client connections that are open now."""
        return self.listeners.connection_count

    def task_count(self) -> int:
        """Tasks of the loop: a few of the server's own, none per request."""
        return len(asyncio.all_tasks(self.worker.loop))

    @property
    def spool(self) -> Desk | TopicDesk | None:
        """What an operator asks of the spool; None: no upstream has had one."""
        return self.durable.spool.desk if self.durable.spool is not None else None

    @property
    def recent(self) -> list[dict[str, Any]]:
        """What was logged last, the newest last."""
        return self.log.lines()

    def connections(self) -> Iterator[DownstreamProtocol]:
        """Those of them that speak HTTP by now. To be read without awaiting in between."""
        for listener in self.listeners:
            for connection in listener.connections:
                if isinstance(connection, DownstreamProtocol):
                    yield connection

    def _log_change(self, upstream: str, change: Change) -> None:
        """A breaker opened or closed, here or at a peer that told us."""
        self.durable.changed(upstream, change)
        scope = pauses.scope_name(change.scope)  # "node": not yet a majority of the mesh
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
            **({"told": change.told} if change.told else {}),
        )

    def _log_bad_header(self, listener: str, peer: str, reason: str) -> None:
        """Only for who asks: a balancer that is set up wrongly sends one with each connection."""
        self.log.debug("PROXY header refused", listener=listener, peer=peer, reason=reason)

    def _tick(self) -> None:
        """What moves with time and has no event of its own: ramps, old breakers of credentials, the
        windows that the shared limits are watched in, the distance between the two clocks."""
        self._ticking = asyncio.get_running_loop().call_later(TICK_SECONDS, self._tick)
        now_ns = monotonic_ns()
        self.mesh.tick(now_ns)
        self.notifier.alive(now_ns)
        for upstream in self.worker.runtime.upstreams.values():
            if upstream.breakers.ramp.climbing:
                pauses.climb(upstream, now_ns)
            upstream.breakers.expire(now_ns)
        self.assembly.registry.look_at_clock(wall_ns() - now_ns, now_ns)

    def _log_store(self, event: str, **facts: object) -> None:
        is_bad = event.endswith((" down", " failed", " orphans"))
        (self.log.warning if is_bad else self.log.info)(event, **facts)

    def _log_mesh(self, event: str, **facts: object) -> None:
        (self.log.warning if event in WARNINGS else self.log.info)(event, **facts)

    # Reload.

    async def reload(self) -> bool:
        """Reads the file again: with a fault nothing changes. Returns whether it was taken over.

        `reload_faults` says why it was not. One at a time: a signal and the admin interface may
        ask for it at once.
        """
        async with self._reloading:
            self.notifier.reloading(monotonic_ns())
            faults = self.reload_faults = await self._reload_now()
            for fault in faults:
                self.log.error("reload refused", fault=fault)
            refused = f"; reload refused: {faults[0]}" if faults else ""
            self.notifier.ready(self._status() + refused)
            return not faults

    async def _reload_now(self) -> list[str]:
        """What is wrong with the file, where it was not taken over."""
        begun_ns = monotonic_ns()
        try:
            new = await asyncio.to_thread(load, self.path, self.overrides)
            findings = cannot_change(self.conf, new)
            if findings:
                raise ConfError(placed(findings, self.path, self.overrides))
            prepared = await self.prepare(new)
            await self.commit(prepared)
        except ConfError as error:
            self.reload_failures += 1
            self.reload_success = False
            return [str(fault) for fault in error.faults]
        except (OSError, ImportError) as error:
            # A certificate that cannot be read, an address that is taken, a codec not installed.
            self.reload_failures += 1
            self.reload_success = False
            return [reason_of(error)]
        self.log.info("configuration changed", changes=prepared.changes or ["nothing"])
        self.log.info("reloaded", took_ms=(monotonic_ns() - begun_ns) // MS)
        return []

    async def prepare(self, new: Conf) -> Prepared:
        """Makes all that can fail. Raises OSError or ImportError with nothing done."""
        old = self.conf
        await self.listeners.wait_retired(new.listen)
        # Certificates and authorities are read in a thread: some ms each, and there may be many.
        plan, openings, changes = await asyncio.to_thread(self._prepare_blocking, old, new)
        access_log: AccessLog | None = None
        spool: Spool | KafkaSpool | None = None
        logs_anew = (new.log.access, new.log.format) != (old.log.access, old.log.format)
        try:
            codec = load_codec(new.node.codec)
            spool = await self.durable.prepare(new)
            if logs_anew:
                access_log = self._make_access_log(new)
        except (OSError, ImportError):
            self.listeners.undo(openings)
            await self.durable.discard(spool)
            raise
        return Prepared(new, plan, codec, openings, logs_anew, access_log, spool, changes)

    def _prepare_blocking(self, old: Conf, new: Conf) -> tuple[Plan, list[Opening], list[str]]:
        self.store.check(new.redis)
        check_spool(new.spool)
        plan = self.assembly.prepare(new)
        return plan, self.listeners.prepare(new.listen), diff(old, new)

    async def discard(self, prepared: Prepared) -> None:
        """Takes `prepare` back."""
        self.listeners.undo(prepared.openings)
        await self.durable.discard(prepared.spool)
        if prepared.access_log is not None:
            await prepared.access_log.discard()

    async def commit(self, prepared: Prepared) -> None:
        """Swaps. Raises OSError with nothing done where the loop does not take a socket."""
        old, new = self.conf, prepared.conf
        try:
            await self.listeners.open(prepared.openings)
        except OSError:
            await self.discard(prepared)
            raise
        # From here on nothing fails.
        self.worker.runtime = self.assembly.commit(prepared.plan)
        self.worker.codec = prepared.codec
        self.listeners.settle(new.listen)
        self.conf = new
        self.operator.overridden.clear()
        if new.log.level != old.log.level:
            configure_log(new.log.level)
        if self.driver is not None:
            if new.mesh is not None:
                self.driver.node.set_keys(sealing_keys(new))
            if join_addresses(new) != join_addresses(old):
                self.driver.set_join(node_config(new, self.place).join)
        self.store.configure(new.redis)
        self.assembly.rejoin_held()
        self.durable.commit(new, prepared.spool)
        self.reload_success = True
        self.reloads += 1
        if prepared.logs_anew:
            old_log, self.access_log = self.access_log, prepared.access_log
            if old_log is not None:
                await old_log.stop()

    def _make_access_log(self, conf: Conf) -> AccessLog | None:
        """An open log that drains, or None where it is off. Raises OSError."""
        if conf.log.access == "off":
            return None
        shared = self.place is not None
        access_log = AccessLog(self.worker, conf.log.access, conf.log.format, shared=shared)
        access_log.open()
        access_log.start()
        return access_log

    async def _stop_access_log(self) -> None:
        if self.access_log is not None:
            await self.access_log.stop()
