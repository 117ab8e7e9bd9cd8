"""The rows of the table: what is done to the nodes, and what it must come to.

Targets are those of the design (peers/PROTOCOL.md section 6 has the bound they come from).
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from bench.mesh.contenders import (
    GROUPS,
    PAUSE_GROUP,
    Contender,
    Group,
    Recorder,
    launched,
)
from bench.mesh.judge import SECOND, judged, percentile
from bench.mesh.ours import Egressd
from bench.process import BenchError
from fakes.nodes import until

from peers.shapes import steps_of

__all__ = ["PARTITION", "ROWS", "SETTLE_SECONDS", "Measured", "Row", "measure"]

HUNDRED, THOUSAND = GROUPS
# A cold start costs some 20 tokens, 2 % of 11 s at 100/s: a steady load must be longer to be one.
STEADY_SECONDS = 15.0
# A cut begins when all are under way, lasts so long, and has some time to heal. It need not wait
# until peers' rates, averages over 3 s, are known to 2 %: `peers.core` corrects short averages.
PARTITION = (4.0, 20.0, 2.0)
SETTLE_SECONDS = 2.0  # round trips are measured anew, by those who do
LOAD_ENDS_SECONDS = (
    60.0  # what a load may take beyond its time, connections and last answers included
)
# Asking all nodes whether they are paused costs each a request: not while they are about to be.
SETTLED_SECONDS = 0.1
PAUSES = 5  # of one round
PAUSE_SECONDS = 2.2  # a pause lasts one; its trial, closing and the questions took 0.1 more

MESH = ("egressd",)
WAYS = (*MESH, "exact", "redis", "spool")
STORES = ("haproxy", "gcra")  # rivals whose nodes tell each other something


class Target(NamedTuple):
    """Of a figure; `at_least` or, otherwise, at most. Without a value it is only shown."""

    figure: str
    value: float | None
    at_least: bool = False


class Row(NamedTuple):
    """`loss`, `delay_ms` and `event` are what befalls the nodes. `who` takes part: the others would
    tell nothing new, or have no such thing. `once`: with the first number of nodes only."""

    name: str
    title: str
    group: Group = HUNDRED
    shape: str = "uniform"
    overload: float = 2.0
    seconds: float = 11.0
    loss: float = 0.0
    delay_ms: float = 0.0
    event: str = ""
    who: tuple[str, ...] = MESH
    once: bool = False

    @property
    def disturbs(self) -> bool:
        """Whether something befalls the words between the nodes."""
        return bool(self.loss or self.delay_ms or self.event == "partition")

    def settles(self, kind: type[Contender]) -> bool:
        """Whether the load has to wait until round trips are measured."""
        return bool(self.loss or self.delay_ms) and issubclass(kind, Egressd)

    def targets(self, nodes: int) -> list[Target]:
        group = self.group
        if self.event == "pause":
            return [Target("paused_ms", 3.0), Target("paused_ms_p99", 30.0),
                    Target("first_ms", None), Target("after", 1.0),
                    Target("trials", 1.0)]  # fmt: skip
        if self.event == "partition":
            return [Target("excess", 0.6 * group.rate), Target("cut_rate", None),
                    Target("p99_ms", None)]  # fmt: skip
        if self.overload < 1.0 and self.shape != "cold":
            return [Target("p50_ms", None), Target("p99_ms", None),
                    Target("queued_p50_ms", None), Target("queued_p99_ms", None)]  # fmt: skip
        if self.shape == "cold" or self.event == "kill":
            return [Target("excess", nodes + 0.1 * group.burst)]
        if self.shape == "moving":
            return [Target("share", 0.97, at_least=True)]
        hard = bool(self.loss or self.delay_ms)
        return [
            Target("peak_1s", 1.02 if hard else 1.01),
            Target("peak_10s", 1.02 if hard else 1.005),
            Target("share", 0.97 if hard else 0.98, at_least=True),
            Target("p50_ms", None),
            Target("p99_ms", None),
            Target("queued_p50_ms", None),
            Target("queued_p99_ms", None),
        ]


ROWS = (
    Row("uniform-100", "R=B=100, uniform", seconds=STEADY_SECONDS, who=(*WAYS, *STORES)),
    Row("skew-100", "R=B=100, 70/20/10", shape="skew", seconds=STEADY_SECONDS,
        who=(*MESH, "static")),
    Row("half-1000", "R=B=1000, half of it offered", group=THOUSAND, overload=0.5, seconds=6.0,
        who=(*WAYS, "direct"), once=True),
    Row("uniform-1000", "R=B=1000, uniform", group=THOUSAND),
    Row("skew-1000", "R=B=1000, 70/20/10", group=THOUSAND, shape="skew"),
    Row("cold-100", "cold start: B+1 at each node in 5 ms", shape="cold", overload=0.0, seconds=2,
        who=(*WAYS, *STORES, "static")),
    Row("loss-5", "5 % loss, uniform", loss=0.05),
    Row("loss-20", "20 % loss, uniform", loss=0.2, who=(*MESH, *STORES)),
    Row("delay-40", "40 ms one way, uniform", delay_ms=40.0, who=(*MESH, *STORES)),
    Row("moving", "load moves every 5 s", shape="moving", seconds=15.0,
        who=(*MESH, "haproxy", "static")),
    Row("partition", "20 s partition in halves", event="partition", seconds=sum(PARTITION),
        who=WAYS),
    Row("kill", "kill -9 and restart of a node", event="kill", seconds=9.0),
    Row("pause", "first 429, 100/s over all nodes", group=PAUSE_GROUP, event="pause",
        overload=100 / PAUSE_GROUP.rate, seconds=PAUSES * PAUSE_SECONDS),
)  # fmt: skip


class Event(NamedTuple):
    """What was measured while it happened, when the origin said 429, and when a cut was."""

    figures: dict[str, float]
    paused: tuple[int, ...] = ()
    cut: tuple[int, int] | None = None


class Measured(NamedTuple):
    """Figures of one run, when its load began, and the origin's stamps."""

    figures: dict[str, float]
    begin_ns: int
    arrived: list[int]


def measure(contender: Contender, origin: Recorder, row: Row, cell: str, seed: int) -> Measured:
    """One cell of the table. Raises BenchError."""
    steps = steps_of("uniform" if row.shape == "cold" else row.shape, contender.nodes, row.seconds)
    cold = row.shape == "cold"
    spec = {
        "fields": contender.fields,
        "targets": contender.addresses,
        "host": "bench.internal",
        "path": f"{row.group.path}{cell}",
        "rate": row.group.rate * row.overload,
        "seconds": row.seconds,
        "steps": [
            (at_s, (0.0,) * contender.nodes if cold else parts, cold) for at_s, parts, _ in steps
        ],
        "burst": row.group.burst + 1,
        "seed": seed,
        "warm": row.group.burst + 1 if cold else 16,
    }
    line, event = _under_load(contender, origin, row, cell, spec)
    if not line:
        raise BenchError("the load ended without a report")
    report = json.loads(line)
    requests = report["requests"]
    stamps = origin.ask("take", cell)
    if not requests or not isinstance(stamps, list) or not stamps:
        raise BenchError("nothing was measured")
    figures = judged(
        requests, stamps, row.group.rate, row.group.burst, row.seconds, held=contender.holds
    )
    figures["late_ms"] = report["late_ms"]
    figures["skipped"] = report["skipped"]
    figures |= event.figures
    arrived = [stamp[0] for stamp in stamps]
    if event.paused:
        figures["after"] = sent_after(stamps, event.paused)
    if event.cut is not None:
        begin_ns, end_ns = event.cut
        let_through = sum(begin_ns <= at < end_ns for at in arrived)
        figures["cut_rate"] = let_through * SECOND / (end_ns - begin_ns) / row.group.rate
    return Measured(figures, min(r[0] for r in requests), arrived)


def _under_load(
    contender: Contender, origin: Recorder, row: Row, cell: str, spec: dict[str, Any]
) -> tuple[str, Event]:
    """The load's report, and what happened meanwhile. A load that hangs is ended by a timer."""
    load = launched(spec)
    assert load.stdin is not None
    assert load.stdout is not None
    watchdog = threading.Timer(SETTLE_SECONDS + row.seconds + LOAD_ENDS_SECONDS, load.kill)
    watchdog.daemon = True
    watchdog.start()
    try:
        contender.wires.set(loss=row.loss, delay_ms=row.delay_ms)
        if row.settles(type(contender)):
            time.sleep(SETTLE_SECONDS)
        load.stdin.write("go\n")
        load.stdin.flush()
        event = EVENTS[row.event](contender, origin, cell) if row.event else Event({})
        return load.stdout.readline(), event
    finally:
        watchdog.cancel()
        load.kill()
        load.communicate()
        contender.wires.calm()


def _partition(contender: Contender, origin: Recorder, cell: str) -> Event:
    before, cut, _ = PARTITION
    time.sleep(before)
    half = contender.nodes // 2
    numbers = list(range(contender.nodes))
    contender.wires.set(groups=(numbers[:half], numbers[half:]))
    begin_ns = time.monotonic_ns()
    time.sleep(cut)
    end_ns = time.monotonic_ns()
    contender.wires.calm()
    return Event({}, cut=(begin_ns, end_ns))


def _kill(contender: Contender, origin: Recorder, cell: str) -> Event:
    assert isinstance(contender, Egressd)
    time.sleep(3.0)
    node = contender.processes[0]
    node.kill()
    time.sleep(0.5)
    begun = time.monotonic()
    node.start()
    node.wait_ready()
    ready_s = time.monotonic() - begun
    contender.wait_joined()
    return Event({"restart_s": ready_s})


def _pause(contender: Contender, origin: Recorder, cell: str) -> Event:
    """The origin says 429 once, several times over; what the nodes then did, by their own words."""
    assert isinstance(contender, Egressd)
    name = f"r{PAUSE_GROUP.rate}-{PAUSE_GROUP.burst}"

    def breakers() -> list[dict[str, Any]]:
        return [node.upstream(name)["breaker"] for node in contender.processes]

    def trials() -> int:
        return sum(node.upstream(name)["trials"] for node in contender.processes)

    until(lambda: all(b["state"] == "closed" for b in breakers()), 10.0, "breakers are closed")
    before = trials()
    took_ms: list[float] = []
    first_ms: list[float] = []
    paused: list[int] = []
    for _ in range(PAUSES):
        origin.ask("refuse", cell)
        until(lambda: origin.ask("refused", cell), 5.0, "the origin has said 429")
        refused_ns = origin.ask("refused", cell)
        assert isinstance(refused_ns, int)
        paused.append(refused_ns)
        time.sleep(SETTLED_SECONDS)
        until(
            lambda said=refused_ns: all(b["opened_ns"] > said for b in breakers()),
            5.0, "all nodes are paused",
        )  # fmt: skip
        opened = [(b["opened_ns"] - refused_ns) / 1e6 for b in breakers()]
        took_ms.append(max(opened))
        first_ms.append(min(opened))
        until(lambda: all(b["state"] == "closed" for b in breakers()), 10.0, "it is over")
    figures = {
        "paused_ms": percentile(took_ms, 50),
        "paused_ms_p99": percentile(took_ms, 99),
        "first_ms": percentile(first_ms, 50),
        "trials": (trials() - before) / PAUSES,
    }
    return Event(figures, tuple(paused))


def sent_after(stamps: Sequence[Sequence[int]], paused: Sequence[int]) -> float:
    """Requests a pause that their clients sent after the 429 was written and that still arrived
    before its second was over: those were not in flight."""
    late = sum(
        said_ns < sent_ns and arrived_ns < said_ns + SECOND
        for said_ns in paused
        for arrived_ns, sent_ns in stamps
    )
    return late / len(paused)


EVENTS: dict[str, Callable[[Contender, Recorder, str], Event]] = {
    "partition": _partition,
    "kill": _kill,
    "pause": _pause,
}
