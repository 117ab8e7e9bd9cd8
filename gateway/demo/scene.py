"""`egressd demo`: three nodes, a strict origin and too much load, played in three acts.

    steady   100/s are asked of three nodes, which together may send 45/s with a burst of 5
    pause    the origin answers one request 429 with `Retry-After: 3`: all nodes stop, and go on
    reload   the limit in the file is edited, SIGHUP: the sum follows

Everything is real: five processes besides this one, sockets, signals, one file. This process only
reads what the others counted, and writes down in `Findings` what it saw.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from gateway.clock import MS, SECOND, monotonic_ns
from gateway.demo.client import Client, ClientError
from gateway.demo.display import Display, make_display
from gateway.demo.findings import Findings, RateSpan, faults
from gateway.demo.processes import (
    START_SECONDS,
    Child,
    NodeChild,
    SceneError,
    free_ports,
    node_command,
)
from gateway.demo.reading import NodeReading, Rates, Reading

__all__ = ["main"]

NAMES = ("gw-1", "gw-2", "gw-3")
SHARES = "70,20,10"
OFFERED_RATE = 100  # requests/s
# Nodes that meet their load all at once may together let through up to a token each over the burst,
# once, before they know of each other's demand; this origin would not forgive that one.
RAMP_SECONDS = 1.5
RATE, BURST = 45, 5  # as in mesh.toml; the origin allows 45 * 1 s + 5
RELOAD_RATE, RELOAD_BURST = 20, 2
RETRY_AFTER = 3  # seconds

STEADY_SECONDS = 10.0
# From the 429: the pause, up to 0.3 s of jitter, the trial, and some seconds of going again.
PAUSE_SECONDS = RETRY_AFTER + 4.5
RELOAD_SECONDS = 8.0
# After a change the level of the bucket is that of before; judged is what comes a while later.
SETTLE_SECONDS = 2.0

POLL_SECONDS = 0.1
POLL_FAILURES_MAX = 20  # 2 s without an answer, though the process lives
INTERRUPTED = 130  # as shells have it for SIGINT


class Scene:
    """The processes, what was read of them last, and what was found."""

    def __init__(self, folder: Path, display: Display) -> None:
        self._display = display
        self._path = folder / "mesh.toml"
        self._path.write_text((files("gateway.demo") / "mesh.toml").read_text())
        self._folder = folder
        self.origin = Child(
            "origin", [sys.executable, "-m", "gateway.demo.origin"], self._log("origin")
        )
        self.load: Child | None = None
        self.nodes: list[NodeChild] = []
        self.control: Client | None = None
        self.findings = Findings(RATE + BURST, NAMES)
        self.rates = Rates()
        self.reading: Reading | None = None
        self.limit = f"{RATE}/s burst {BURST}"

    # Start and end.

    async def start(self) -> None:
        """Starts origin and nodes, waits until they have found each other, then the load."""
        await self.origin.start(reports=True)
        origin_port = (await self.origin.first_report())["port"]
        self.control = Client("127.0.0.1", origin_port, timeout_s=2.0)
        ports = free_ports(len(NAMES))
        mesh_ports = [one.mesh for one in ports]
        for name, one in zip(NAMES, ports, strict=True):
            command = node_command(self._path, name, one, mesh_ports, origin_port)
            self.nodes.append(NodeChild(name, command, self._log(name), one))
        for node in self.nodes:
            await node.start(reports=False)
        await self._until_joined()
        targets = [f"127.0.0.1:{one.listen}" for one in ports]
        options = [f"--rate={OFFERED_RATE}", f"--ramp={RAMP_SECONDS}", f"--shares={SHARES}"]
        command = [sys.executable, "-m", "gateway.demo.load", *options, *targets]
        self.load = Child("load", command, self._log("load"))
        await self.load.start(reports=True)
        await self.load.first_report()

    async def stop(self) -> None:
        """Ends every process that was started: the load first, so that the nodes drain at once."""
        children = [*([self.load] if self.load is not None else []), *self.nodes, self.origin]
        for child in children:
            child.ask_to_end()
        await asyncio.gather(*(child.ended() for child in children))
        for client in (self.control, *(node.admin for node in self.nodes)):
            if client is not None:
                client.close()

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    async def _until_joined(self) -> None:
        deadline_ns = monotonic_ns() + int(START_SECONDS * SECOND)
        for node in self.nodes:
            while (seen := await _members_seen(node)) != set(NAMES):
                for one in self.nodes:
                    one.check()
                if monotonic_ns() > deadline_ns:
                    known = ", ".join(sorted(seen)) or "nobody"
                    raise SceneError(f"{node.name} sees {known} after {START_SECONDS:.0f} s")
                await asyncio.sleep(POLL_SECONDS / 2)

    # Reading.

    async def read(self, act: str) -> Reading:
        """Reads everything once and shows it. Raises ClientError, SceneError."""
        assert self.load is not None
        assert self.control is not None
        for child in (self.origin, self.load, *self.nodes):
            child.check()
        documents = await asyncio.gather(
            *(node.admin.json(b"GET", b"/api/v1/node") for node in self.nodes)
        )
        origin = await self.control.json(b"GET", b"/_demo/state")
        nodes = tuple(NodeReading.of(document) for document in documents)
        self.reading = reading = Reading(nodes, origin, self.load.latest)
        self.findings.refused_unasked = origin["refused_unasked"]
        self.rates.add(reading)
        self._display.show(act, reading, self.rates, self.limit)
        return reading

    async def watch(self, act: str, seconds: float) -> Reading:
        """Reads on for so long; returns the last reading."""
        until_ns = monotonic_ns() + int(seconds * SECOND)
        failures = 0
        while True:
            next_ns = monotonic_ns() + int(POLL_SECONDS * SECOND)
            try:
                reading = await self.read(act)
                failures = 0
                if monotonic_ns() >= until_ns:
                    return reading
            except ClientError as error:
                failures += 1
                if failures > POLL_FAILURES_MAX:
                    raise SceneError(str(error)) from error
            await asyncio.sleep(max(0.0, (next_ns - monotonic_ns()) / SECOND))

    async def _control(self, target: bytes) -> None:
        assert self.control is not None
        try:
            await self.control.json(b"POST", target)
        except ClientError as error:
            raise SceneError(str(error)) from error

    # The acts.

    async def steady(self) -> None:
        """Too much load: the sum keeps to the limit."""
        self._display.note(
            f"{OFFERED_RATE}/s come in, {SHARES} % over {', '.join(NAMES)}, after a rise of "
            f"{RAMP_SECONDS} s; together they may send {RATE}/s with a burst of {BURST}"
        )
        begun = await self.watch("steady", RAMP_SECONDS)
        ended = await self.watch("steady", STEADY_SECONDS)
        self.findings.steady = _span(begun, ended, RATE, BURST)

    async def pause(self) -> None:
        """One 429: all stop, one asks, all go on."""
        before = self.reading
        assert before is not None
        await self._control(b"/_demo/refuse-once?retry_after=%d" % RETRY_AFTER)
        self._display.note(f"the origin answers one request 429 with Retry-After: {RETRY_AFTER}")
        told = await self.watch("pause", 1.0)
        findings = self.findings
        asked_ns = told.origin["asked_ns"]
        findings.asked = bool(asked_ns)
        for node in told.nodes:
            opened = asked_ns and node.opened_ns >= asked_ns
            findings.stopped_ms[node.name] = (node.opened_ns - asked_ns) / MS if opened else None
        stopped = [value for value in findings.stopped_ms.values() if value is not None]
        if stopped:
            self._display.note(
                f"{len(stopped)} of {len(NAMES)} nodes stopped, "
                f"the last one {max(stopped):.1f} ms after the 429"
            )
        ended = await self.watch("pause", PAUSE_SECONDS - 1.0)
        findings.after_asked = ended.origin["after_asked"]
        findings.steady_peak = ended.origin["peak"]
        findings.trials = sum(node.trials for node in ended.nodes) - sum(
            node.trials for node in before.nodes
        )
        closed = [node.closed_ns for node in ended.nodes if node.closed_ns > asked_ns]
        if asked_ns and len(closed) == len(NAMES):
            findings.resumed_ms = (max(closed) - asked_ns) / MS
        self._display.note(
            f"{findings.after_asked} requests still arrived in the {RETRY_AFTER} s that it asked "
            f"for; the nodes sent {findings.trials} trial and go on at a lower rate that climbs"
        )

    async def reload(self) -> None:
        """Another limit in the file, SIGHUP: the sum follows."""
        before = self.reading
        assert before is not None
        self._edit()
        hup_ns = monotonic_ns()
        for node in self.nodes:
            node.signal(signal.SIGHUP)
        self.limit = f"{RELOAD_RATE}/s burst {RELOAD_BURST}"
        self._display.note(f"the limit in the file is now {self.limit}; SIGHUP to all nodes")
        self.findings.reloaded_ms = await self._until_reloaded(before, hup_ns)
        await self.watch("reload", SETTLE_SECONDS)
        await self._control(b"/_demo/mark")
        begun = await self.watch("reload", 0.0)
        ended = await self.watch("reload", RELOAD_SECONDS - SETTLE_SECONDS)
        self.findings.reload = _span(begun, ended, RELOAD_RATE, RELOAD_BURST)
        self.findings.reload_peak = ended.origin["peak"]

    def _edit(self) -> None:
        text = self._path.read_text()
        for old, new in (
            (f'rate = "{RATE}/s"', f'rate = "{RELOAD_RATE}/s"'),
            (f"burst = {BURST}", f"burst = {RELOAD_BURST}"),
        ):
            if text.count(old) != 1:
                raise SceneError(f"mesh.toml no longer says {old!r}")
            text = text.replace(old, new)
        self._path.write_text(text)

    async def _until_reloaded(self, before: Reading, hup_ns: int) -> dict[str, float | None]:
        """How long each node took, to within a poll; None where it did not in SETTLE_SECONDS."""
        took: dict[str, float | None] = dict.fromkeys(NAMES)
        while None in took.values() and monotonic_ns() < hup_ns + int(SETTLE_SECONDS * SECOND):
            reading = await self.watch("reload", 0.0)
            for now, then in zip(reading.nodes, before.nodes, strict=True):
                if now.reloads > then.reloads and took[now.name] is None:
                    took[now.name] = (now.now_ns - hup_ns) / MS
            await asyncio.sleep(POLL_SECONDS / 5)
        return took

    async def hold(self) -> None:
        """Keeps everything running until it is interrupted."""
        for node in self.nodes:
            self._display.note(
                f"{node.name}: curl http://127.0.0.1:{node.ports.listen}/  and  "
                f"curl http://127.0.0.1:{node.ports.admin}/api/v1/node"
            )
        self._display.note(f"edit {self._path} and send SIGHUP to {self._pids()}; Ctrl-C ends it")
        while True:
            await self.watch("hold", 60.0)

    def _pids(self) -> str:
        return ", ".join(str(node.pid) for node in self.nodes)


def _span(begun: Reading, ended: Reading, rate: int, burst: int) -> RateSpan:
    """What was admitted between two readings; each node's own stamps give the time."""
    seconds = max(
        (last.now_ns - first.now_ns) / SECOND
        for first, last in zip(begun.nodes, ended.nodes, strict=True)
    )
    return RateSpan(ended.admitted - begun.admitted, seconds, rate, burst)


async def _members_seen(node: NodeChild) -> set[str]:
    """The live members that a node knows, itself among them; none while it is not ready."""
    try:
        if (await node.admin.request(b"GET", b"/ready")).status != 200:
            return set()
        document = await node.admin.json(b"GET", b"/api/v1/node")
    except ClientError:
        return set()
    return {
        member["name"]
        for member in document["members"]
        if member["state"] in ("alive", "unheard", "suspect")
    }


async def _play(folder: Path, display: Display, hold: bool) -> Findings:
    """All acts; ends what it started, whatever happens."""
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, task.cancel)
    scene = Scene(folder, display)
    played = False
    try:
        display.note("starting an origin and three nodes from one file")
        await scene.start()
        await scene.steady()
        await scene.pause()
        await scene.reload()
        played = True
        display.summary(scene.findings)
        if hold:
            await scene.hold()
    except SceneError as error:
        scene.findings.crashed.append(str(error))
        display.summary(scene.findings)
    except asyncio.CancelledError:
        if not played:
            raise
    finally:
        # A second Ctrl-C must not leave half of them running; this takes STOP_SECONDS at most.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, _nothing)
        await scene.stop()
    return scene.findings


def _nothing() -> None:
    """The end is under way already."""


def main(*, hold: bool, plain: bool | None = None) -> int:
    """Plays the demo; returns the exit status: 0 if every promise was kept, 1 if not.

    `plain`: lines instead of a live table; None: as standard output is a terminal or not.
    """
    display = make_display(plain)
    try:
        with tempfile.TemporaryDirectory(prefix="egressd-demo-") as folder:
            findings = asyncio.run(_play(Path(folder), display, hold))
    except asyncio.CancelledError:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    finally:
        display.close()
    return 1 if faults(findings) else 0
