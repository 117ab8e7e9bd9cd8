"""Several workers of one node: binds for all, starts and restarts them, reloads and drains them.

The supervisor serves no request. It holds every listening socket, so that no worker's end refuses
a connection, and the configuration in force, so that a restarted worker obeys the same one as its
siblings. A reload is judged here, then prepared by every worker, and only when all can take it over
does any of them. The workers are members of the mesh, where a rate stays the sum.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
import secrets
import shutil
import signal
import socket
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.clock import MS, SECOND, monotonic_ns
from gateway.conf.changes import cannot_change, diff
from gateway.conf.faults import ConfError
from gateway.conf.load import load, placed
from gateway.conf.schema import Conf
from gateway.conf.values import Bind
from gateway.control import conf_file
from gateway.crew import Member
from gateway.ports import free_mesh_ports
from gateway.process import ServeError, configure_log, end_of_signals, logger, reason_of
from gateway.recent import Recent
from gateway.sockets import EVERYBODY, RETIRE_SECONDS, OwnSockets, SharedSockets
from gateway.systemd import Notifier

if TYPE_CHECKING:
    from gateway.admin.asking import CrewMember

__all__ = ["Supervisor", "worker_count"]

START_SECONDS = 30.0  # half a second on an idle machine; one that swaps is slow, not broken
ANSWER_SECONDS = 30.0  # to prepare 10,000 routes takes a worker under one
MARGIN_SECONDS = 5.0  # what a worker may need to close after its exchanges have ended
TICK_SECONDS = 1.0
LOOK_SECONDS = 0.02
RELEASED_NS = 1 * SECOND  # RETIRE_SECONDS, and what a busy worker adds to it
# Ten signs of life missed; the worst pause of a loop measured is 50 ms.
STALLED_NS = 10 * SECOND


def worker_count(conf: Conf) -> int:
    """How many workers the conf asks for; "auto" is one for each core that may be used."""
    workers = conf.node.workers
    return workers if isinstance(workers, int) else min(len(os.sched_getaffinity(0)), 32)


def _nothing(member: CrewMember) -> None:
    """The default of `on_restarted`."""


def _runtime_folder() -> str | None:
    """systemd's RuntimeDirectory=, of which there may be several; None: the usual place."""
    return os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0] or None


class Supervisor:
    """The workers of one node from start to stop."""

    def __init__(
        self,
        conf: Conf,
        path: str,
        overrides: Sequence[str] = (),
        *,
        sockets: OwnSockets,
        notifier: Notifier,
    ) -> None:
        self.conf = conf
        self.path = path
        self.overrides = tuple(overrides)
        self.log = Recent(logger())
        self.notifier = notifier
        self.reloads = 0
        self.reload_failures = 0
        self.reload_success = True
        self.reload_faults: list[str] = []  # of the last reload
        self.reload_noted = False  # a SIGHUP came while the node was starting
        self.draining = False
        self.drained = False  # by the operator: served, but not to be chosen
        self.on_restarted: Callable[[CrewMember], None] = _nothing
        self.counts: dict[str, int] = defaultdict(int)  # what it refuses itself
        self.started_ns = monotonic_ns()
        self.members: list[Member] = []
        self._own_sockets = sockets
        self._sockets = SharedSockets(worker_count(conf), sockets)
        self._ports: tuple[int, ...] = ()
        # The mesh of workers that have no [mesh]: nobody else on this host can guess it.
        self._cluster = secrets.token_hex(8)
        self._key = secrets.token_hex(32)
        self._changing = asyncio.Lock()  # a reload, or a worker that starts
        self._wanted = asyncio.Event()
        self._starting: asyncio.Future[None] | None = None
        self._serving = False
        self._stops = 0
        self._reload_wanted = False
        self._replace_wanted = False
        self._ticked_ns = 0
        self._released_ns = -RELEASED_NS

    @property
    def ready(self) -> bool:
        """Whether all workers are, and signals are heeded."""
        return self._serving and all(member.ready for member in self.members)

    @property
    def serving(self) -> bool:
        """Whether it can be told something: it has started and does not end."""
        return self._serving and not self.draining

    @property
    def recent(self) -> list[dict[str, Any]]:
        """What was logged here last, the newest last; workers have their own."""
        return self.log.lines()

    async def run(self) -> None:
        """Serves until SIGTERM or SIGINT. Raises ServeError where a worker cannot start."""
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self.notifier.close)
            self._on_signals()
            stack.callback(end_of_signals)
            self._starting = asyncio.ensure_future(self._start(stack))
            try:
                await self._starting
            except OSError as error:
                raise ServeError(reason_of(error)) from error
            except asyncio.CancelledError:
                if self.draining:  # told to stop while workers were starting
                    return
                raise
            self._serving = True
            self._reload_wanted |= self.reload_noted
            keeping = [asyncio.ensure_future(self._keep(member)) for member in self.members]
            keeping.append(asyncio.ensure_future(self._tick()))
            stack.callback(lambda: [task.cancel() for task in keeping])
            self.log.info(
                "serving",
                node=self.conf.node.name,
                workers=len(self.members),
                listen=[str(listen.bind) for listen in self.conf.listen],
                upstreams=sorted(self.conf.upstream),
                start_ms=(monotonic_ns() - self.started_ns) // MS,
            )
            self.notifier.ready(self._status())
            if self._reload_wanted:
                self._wanted.set()
            await self._serve()
            self.notifier.stopping("draining")
            await self._give_notice()
            await self._drain(keeping[:-1])

    async def _start(self, stack: contextlib.AsyncExitStack) -> None:
        conf = self.conf
        folder = tempfile.mkdtemp(prefix="egressd-", dir=_runtime_folder())
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stack.callback(self._sockets.keep_only, ())
        self._sockets.bind_new(listen.bind for listen in conf.listen)
        count = worker_count(conf)
        if conf.mesh is not None:
            self._ports = tuple(range(conf.mesh.bind.port, conf.mesh.bind.port + count))
        else:
            self._ports = free_mesh_ports(count, random.SystemRandom().randrange)
        self.members = [
            Member(number, f"{conf.node.name}/{number}", str(Path(folder) / f"{number}"))
            for number in range(count)
        ]
        admin = self._own_sockets.admin(conf.admin.bind if conf.admin is not None else None)
        stack.push_async_callback(self._kill_all)
        await asyncio.gather(*map(self._launch, self.members))
        # While the workers load what they need, this process does likewise.
        if admin is not None and conf.admin is not None:
            await self._start_admin(stack, admin, conf.admin.bind)
        results = await asyncio.gather(*map(self._launched, self.members))
        for member, result in zip(self.members, results, strict=True):
            if result != "ready":
                raise ServeError(member.reason or f"worker {member.number} {result}")
            member.on_change = self._changed

    async def _start_admin(
        self, stack: contextlib.AsyncExitStack, sock: socket.socket, bind: Bind
    ) -> None:
        from gateway.admin.fleet import fleet_interface

        interface = fleet_interface(self, sock)
        stack.callback(self._own_sockets.forget, bind)
        await interface.start()
        stack.push_async_callback(interface.stop)

    async def _kill_all(self) -> None:
        """What has not ended in order by now."""
        for member in self.members:
            member.kill()
            if member.pid:
                await member.wait()

    def _on_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGHUP, self._want_reload)
        loop.add_signal_handler(signal.SIGUSR1, self.reopen_logs)
        loop.add_signal_handler(signal.SIGUSR2, self._want_replacement)

    def stop(self) -> None:
        """Begins to drain; said twice, ends at once."""
        self._stops += 1
        self.draining = True
        if not self._serving and self._starting is not None:
            self._starting.cancel()
        if self._stops > 1:
            self._tell_all("stop", at_once=True)
        self._wanted.set()

    def reopen_logs(self) -> None:
        """All workers open the access log again, after it was moved away."""
        self._tell_all("reopen")

    def _want_reload(self) -> None:
        self._reload_wanted = True
        self._wanted.set()

    def _want_replacement(self) -> None:
        self._replace_wanted = True
        self._wanted.set()

    def _tell_all(self, what: str, **facts: bool) -> None:
        for member in self.members:
            member.tell(what, (), **facts)

    async def _serve(self) -> None:
        while not self.draining:
            await self._wanted.wait()
            self._wanted.clear()
            if self._reload_wanted:
                self._reload_wanted = False
                await self.reload()
            if self._replace_wanted and not self.draining:
                self._replace_wanted = False
                await self.replace_all()

    def _status(self) -> str:
        conf = self.conf
        figures = f"{len(conf.upstream)} upstreams, {len(conf.route)} routes"
        ready = sum(member.ready for member in self.members)
        return (
            f"serving {figures}, configuration {self.reloads + 1}, "
            f"{ready} of {len(self.members)} workers"
        )

    # Workers.

    async def _start_one(self, member: Member) -> str:
        """Starts it; what became of it: "ready", "failed", "gone" ..."""
        await self._launch(member)
        return await self._launched(member)

    async def _launch(self, member: Member) -> None:
        """Starts it and tells it everything."""
        await member.start()
        fd = conf_file(self.conf)
        try:
            member.tell(
                "start",
                [fd],
                number=member.number,
                ports=self._ports,
                cluster=self._cluster,
                key=self._key,
                admin_path=member.admin_path,
            )
        finally:
            os.close(fd)
        member.give("sockets", self._sockets.of_slots({member.number, EVERYBODY}))
        member.tell("serve")

    async def _launched(self, member: Member) -> str:
        what, _ = await member.answer(START_SECONDS)
        if what == "silent":
            member.kill()
        return what

    async def _keep(self, member: Member) -> None:
        """Starts it again, and again, until the node is to end."""
        while True:
            if member.pid:
                status = await member.wait()
                self._left(member, status)
            if self.draining:
                return
            if not member.asked_to_end:
                pause_ns = member.backoff.next_ns(monotonic_ns() - member.started_ns)
                await asyncio.sleep(pause_ns / SECOND)
            if self.draining:
                return
            async with self._changing:
                try:
                    await self._start_one(member)
                except OSError as error:
                    self.log.error("worker not started", worker=member.number, error=str(error))

    def _left(self, member: Member, status: int) -> None:
        Path(member.admin_path).unlink(missing_ok=True)
        if self.draining:
            return
        member.restarts += 1
        if not member.asked_to_end:
            self.log.error(
                "worker ended", worker=member.number, status=status, reason=member.reason
            )
        self._lend()

    def _changed(self, member: Member) -> None:
        if self.draining:
            return
        if member.ready:
            for other in self.members:
                if member.number in other.borrowed:
                    other.borrowed.discard(member.number)
                    other.tell("return", slot=member.number)
            self.log.info("worker started", worker=member.number, restarts=member.restarts)
            self.on_restarted(member)
        self._lend()

    def _lend(self) -> None:
        """Slots whose workers do not accept are served by siblings, those with fewest first.

        Where there is no sibling their connections wait in the kernel's queue.
        """
        able = [member for member in self.members if member.ready and not member.asked_to_end]
        for member in self.members:
            if member not in able:
                member.borrowed.clear()
        served = {slot for member in able for slot in (member.number, *member.borrowed)}
        for slot in range(len(self.members)):
            if able and slot not in served:
                sibling = min(able, key=lambda member: len(member.borrowed))
                sibling.borrowed.add(slot)
                sibling.give("lend", self._sockets.of_slots({slot}))

    async def replace_all(self) -> None:
        """One worker after the other drains, ends, and is started anew: an upgrade of the code
        without a refused connection. Ends early where a replacement does not come up."""
        self.log.info("replacing workers")
        for member in self.members:
            if self.draining or not member.ready:
                break
            restarts = member.restarts
            member.asked_to_end = True
            self._lend()
            member.tell("stop", at_once=False)
            deadline_ns = monotonic_ns() + self.conf.node.drain + int(START_SECONDS) * SECOND
            # Its keeper starts it again; looked at, since a stop may come at any time.
            while not (member.ready and member.restarts > restarts):
                if self.draining or monotonic_ns() > deadline_ns:
                    break
                await asyncio.sleep(LOOK_SECONDS)
        self.log.info("workers replaced", ready=sum(member.ready for member in self.members))

    async def _tick(self) -> None:
        while True:
            now_ns = monotonic_ns()
            self.notifier.alive(now_ns)
            # Who was itself stopped for a while has not heard what lies ready to be read.
            late = now_ns - self._ticked_ns > 2 * TICK_SECONDS * SECOND
            self._ticked_ns = now_ns
            for member in self.members:
                if late:
                    member.heard_ns = now_ns
                elif member.ready and now_ns - member.heard_ns > STALLED_NS:
                    self.log.error("worker does not turn", worker=member.number)
                    member.stalls += 1
                    member.kill()
            await asyncio.sleep(TICK_SECONDS)

    async def _give_notice(self) -> None:
        """`/ready` says no already; for `node.grace` the workers still serve whoever comes."""
        if not self.conf.node.grace:
            return
        deadline_ns = monotonic_ns() + self.conf.node.grace
        self.log.info("withdrawing", workers=sum(member.ready for member in self.members))
        self._tell_all("withdraw")
        # Two conditions, of which one is time: looked at, not waited for.
        while monotonic_ns() < deadline_ns and self._stops < 2:  # noqa: ASYNC110
            await asyncio.sleep(LOOK_SECONDS)

    async def _drain(self, keeping: Sequence[asyncio.Future[None]]) -> None:
        self.log.info("draining", workers=sum(member.ready for member in self.members))
        # Closed here first: an address of our own then refuses, instead of queueing for nobody.
        self._sockets.keep_only(())
        self._tell_all("stop", at_once=self._stops > 1)
        limit = self.conf.node.drain / SECOND + MARGIN_SECONDS
        _, late = await asyncio.wait(keeping, timeout=limit)
        self.log.info("stopped", killed=len(late))

    # Reload.

    async def reload(self) -> bool:
        """Reads the file again: with a fault nothing changes in any worker."""
        begun_ns = monotonic_ns()
        async with self._changing:
            self.notifier.reloading(begun_ns)
            try:
                new = await asyncio.to_thread(load, self.path, self.overrides)
                findings = cannot_change(self.conf, new)
                if findings:
                    raise ConfError(placed(findings, self.path, self.overrides))
                faults = await self._reload_all(new)
            except ConfError as error:
                faults = [str(fault) for fault in error.faults]
            except OSError as error:
                faults = [reason_of(error)]
        self.reload_success = not faults
        self.reload_failures += bool(faults)
        self.reload_faults = faults
        for fault in faults:
            self.log.error("reload refused", fault=fault)
        refused = f"; reload refused: {faults[0]}" if faults else ""
        self.notifier.ready(self._status() + refused)
        if not faults:
            self.log.info("reloaded", took_ms=(monotonic_ns() - begun_ns) // MS)
        return not faults

    async def _bind_new(self, new: Conf) -> list[Bind]:
        """Addresses that the last reload took away are the workers' for some moments more: whoever
        wants them again waits for that. Raises OSError."""
        binds = [listen.bind for listen in new.listen]
        deadline_ns = self._released_ns + RELEASED_NS
        while True:
            try:
                return self._sockets.bind_new(binds)
            except OSError as error:
                if error.errno != errno.EADDRINUSE or monotonic_ns() >= deadline_ns:
                    raise
                await asyncio.sleep(RETIRE_SECONDS / 2)

    async def _reload_all(self, new: Conf) -> list[str]:
        """All workers take it over, or none does; says why not. Raises OSError likewise."""
        bound = await self._bind_new(new)
        members = [member for member in self.members if member.ready]
        fd = conf_file(new)
        try:
            for member in members:
                slots = {member.number, *member.borrowed, EVERYBODY}
                member.give("sockets", self._sockets.of_slots(slots, bound))
            answers = await asyncio.gather(
                *(member.ask("prepare", [fd], seconds=ANSWER_SECONDS) for member in members)
            )
        finally:
            os.close(fd)
        faults = [
            facts.get("fault", f"worker {member.number} is {what}")
            for member, (what, facts) in zip(members, answers, strict=True)
            if what != "prepared"
        ]
        if faults:
            for member in members:
                member.tell("abort")
            self._sockets.release(bound)
            return list(dict.fromkeys(faults))
        changes = diff(self.conf, new)
        if new.log.level != self.conf.log.level:
            configure_log(new.log.level)
        self.conf = new  # for whoever is started from now on
        self.reloads += 1
        self._sockets.keep_only(listen.bind for listen in new.listen)
        self._released_ns = monotonic_ns()
        await asyncio.gather(*(member.ask("commit", seconds=ANSWER_SECONDS) for member in members))
        self.log.info("configuration changed", changes=changes or ["nothing"])
        return []
