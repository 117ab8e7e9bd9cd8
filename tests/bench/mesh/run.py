"""`make bench-mesh`: the promises of the mesh, measured on real processes beside other ways.

Rounds are interleaved, contender by contender; what is printed are medians beside their targets.
`--quick` is a smoke run: two nodes, a few rows, a few seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.mesh.contenders import CONTENDERS, Contender, Egressd, Recorder, Stage, StaticSplit
from bench.mesh.judge import medians, sliding_sum
from bench.mesh.report import lines, plot, simulated
from bench.mesh.rows import ROWS, Measured, Row, measure
from bench.mesh.wires import enter_namespace, in_namespace
from bench.packages import install
from bench.process import BenchError, Stat, busy_ns, parse_stat

FIGURE = Path(__file__).resolve().parents[1] / "figures" / "mesh.png"
PLOTTED = ("uniform-100", "skew-100", "moving")
QUICK_ROWS = ("uniform-100", "cold-100", "pause")
QUICK_SECONDS = 3.0
SIMULATED_NODES = (16, 32)  # more than this machine can run
NS = 1_000_000_000


class Machine:
    """How much of the machine others used meanwhile: then late timers are not the subject's."""

    def __init__(self) -> None:
        self._cores = sorted(os.sched_getaffinity(0))
        self._begin = self._read()

    def others(self) -> float:
        """Share of all cores that neither this program nor its descendants used, since the start
        or the last call."""
        before, self._begin = self._begin, self._read()
        wall_ns, busy, ours = (now - then for now, then in zip(self._begin, before, strict=True))
        return max(0.0, busy - ours) / (wall_ns * len(self._cores))

    def _read(self) -> tuple[int, int, int]:
        busy = sum(busy_ns(core) for core in self._cores)
        return time.monotonic_ns(), busy, family_cpu_ns(os.getpid(), _stats())


def _stats() -> Iterator[tuple[int, Stat]]:
    for path in Path("/proc").glob("[0-9]*"):
        try:
            yield int(path.name), parse_stat((path / "stat").read_text())
        except OSError:  # it ended meanwhile
            continue


def family_cpu_ns(pid: int, stats: Iterator[tuple[int, Stat]]) -> int:
    """CPU time of a process and its descendants, those included that it has waited for."""
    known = dict(stats)
    family = [pid]
    for parent in family:  # grows while it is walked
        family += [child for child, stat in known.items() if stat.parent == parent]
    return sum(known[member].cpu_ns for member in family if member in known)


class Bench:
    """All that is measured in one run."""

    def __init__(self, stage: Stage, options: argparse.Namespace) -> None:
        self.stage = stage
        self.options = options
        self.origin = Recorder(stage.folder)
        self.stage = stage._replace(origin_port=self.origin.port)
        self.machine = Machine()
        self.cells: dict[tuple[int, str, str], list[dict[str, float]]] = {}
        self.curves: dict[tuple[str, str], list[Any]] = {}
        self.notes: list[str] = []
        self._number = 0

    def round(self, number: int) -> None:
        for nodes in self.options.nodes:
            for kind in CONTENDERS:
                if kind is not Egressd and (nodes != self.options.nodes[0]):
                    continue  # three nodes are enough to tell them apart
                if self.options.only and kind.name not in self.options.only:
                    continue
                reason = kind.missing()
                if reason:
                    self.note(f"{kind.title}: left out, {reason}")
                    continue
                rows = [row for row in self.options.rows if takes_part(kind, row)]
                for relayed in (False, True):
                    self.contend(kind, nodes, number, relayed, rows)

    def contend(
        self, kind: type[Contender], nodes: int, number: int, relayed: bool, rows: Sequence[Row]
    ) -> None:
        """The rows that these nodes can be put through; a relay is between them only for some."""
        chosen = [row for row in rows if self.needs_relay(row) == relayed]
        if not chosen:
            return
        contender = kind(self.stage, nodes, relayed)
        try:
            contender.start()
            for row in chosen:
                if disturbs(row) and not contender.wires.can(delay=bool(row.delay_ms)):
                    self.note(f"{kind.title}: {row.name} left out, {NO_STREAM_LOSS}")
                    continue
                self._measure(contender, row, number)
        except (BenchError, AssertionError) as error:
            self.note(f"{kind.title}, {nodes} nodes, round {number}: {error}")
        finally:
            try:
                contender.stop()
            except AssertionError as error:
                self.note(f"{kind.title}, {nodes} nodes, round {number}, at the end: {error}")

    def needs_relay(self, row: Row) -> bool:
        return disturbs(row) and (bool(row.delay_ms) or not self.stage.nft)

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)
            print(f"note: {text}", file=sys.stderr, flush=True)

    def _measure(self, contender: Contender, row: Row, number: int) -> None:
        self._number += 1
        self.machine.others()
        found: Measured = measure(
            contender, self.origin, row, f"c{self._number}", seed=1000 * number + self._number
        )
        figures = {**found.figures, "others": self.machine.others()}
        key = (contender.nodes, row.name, contender.name)
        self.cells.setdefault(key, []).append(figures)
        curve = (row.name, contender.name)
        first = contender.nodes == self.options.nodes[0]
        if first and row.name in PLOTTED and curve not in self.curves:
            self.curves[curve] = sliding_sum(found.arrived, found.begin_ns, row.seconds)
        shown = " ".join(f"{name}={value:.4g}" for name, value in figures.items())
        print(
            f"round {number}: {contender.nodes} x {contender.name} {row.name}: {shown}",
            file=sys.stderr,
            flush=True,
        )


def takes_part(kind: type[Contender], row: Row) -> bool:
    """Whether the row would tell anything of this contender: who says nothing loses nothing."""
    if kind is StaticSplit and disturbs(row):
        return False
    return kind is Egressd or not row.only_ours


def disturbs(row: Row) -> bool:
    """Whether something befalls the words between the nodes."""
    return bool(row.loss or row.delay_ms or row.event == "partition")


NO_STREAM_LOSS = "loss of a byte stream needs nftables"


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.mesh.run", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--nodes", type=int, action="append", help="repeatable; default 3 and 8")
    parser.add_argument("--row", action="append", choices=[row.name for row in ROWS])
    parser.add_argument("--only", action="append", choices=[kind.name for kind in CONTENDERS])
    parser.add_argument("--quick", action="store_true", help="two nodes, few rows, few seconds")
    parser.add_argument("--json", type=Path, help="everything that was measured")
    parser.add_argument("--plot", type=Path, help=f"the sums over time as PNG, e.g. {FIGURE}")
    parser.add_argument("--no-namespace", action="store_true", help="the relay instead of nftables")
    options = parser.parse_args(argv)
    options.nodes = options.nodes or ([2] if options.quick else [3, 8])
    if min(options.nodes) < 2 or max(options.nodes) > 32 or not 1 <= options.rounds <= 99:
        parser.error("2 to 32 nodes, 1 to 99 rounds")
    options.rows = [row for row in ROWS if not options.row or row.name in options.row]
    if options.quick:
        options.rounds = 1
        options.rows = [
            row if row.event or row.shape == "cold" else row._replace(seconds=QUICK_SECONDS)
            for row in options.rows
            if options.row or row.name in QUICK_ROWS
        ]
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Runs it; status 0 even where a target is missed: the table says so."""
    options = parsed(sys.argv[1:] if argv is None else argv)
    why_not = "not asked for" if options.no_namespace else ""
    if not options.quick and not in_namespace():
        reason = install(["haproxy", "redis-server", "nft"]) if os.geteuid() == 0 else ""
        if reason:
            print(f"note: {reason}", file=sys.stderr)
    if not in_namespace() and not options.no_namespace:
        why_not = enter_namespace()
    begun = time.monotonic()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-mesh-")))
        bench = Bench(Stage(folder, 0, in_namespace()), options)
        stack.callback(bench.origin.stop)
        if why_not:
            bench.note(why_not)
        for number in range(1, options.rounds + 1):
            bench.round(number)
    results = {key: medians(rounds) for key, rounds in bench.cells.items()}
    for line in lines(results, options.rows, options.nodes):
        print(line)
    if not options.quick and not options.only:
        for line in simulated(SIMULATED_NODES, options.rows):
            print(line)
    print(f"{options.rounds} rounds in {(time.monotonic() - begun) / 60:.1f} minutes; {machine()}")
    for note in bench.notes:
        print(f"note: {note}")
    if options.json is not None:
        document = [
            {"nodes": nodes, "row": row, "contender": name, "rounds": rounds}
            for (nodes, row, name), rounds in bench.cells.items()
        ]
        options.json.write_text(json.dumps({"cells": document, "notes": bench.notes}, indent=1))
    if options.plot is not None:
        plot(options.plot, options.nodes[0], bench.curves, options.rows)
    return 0


def machine() -> str:
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores, Linux {platform.release()}, Python {platform.python_version()}"


if __name__ == "__main__":
    raise SystemExit(main())
