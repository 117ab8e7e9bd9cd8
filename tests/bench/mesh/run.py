"""`make bench-mesh`: the promises of the mesh, measured on real processes beside other ways.

Rounds are interleaved, contender by contender; what is printed are medians beside their targets.
`--quick` is a smoke run: two nodes, a few rows, a few seconds. Whoever breaks is named with the
reason, and the rest goes on; ^C ends everything that was started and prints what was measured.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from http.client import HTTPException
from pathlib import Path
from typing import Any

from bench.mesh.contenders import Contender, Recorder, Stage
from bench.mesh.figure import plot
from bench.mesh.judge import medians, sliding_sum
from bench.mesh.lineup import CONTENDERS, takes_part
from bench.mesh.machine import Machine, end_family, end_in_order, machine
from bench.mesh.report import four_ways, four_ways_lines, lines, simulated
from bench.mesh.rows import ROWS, SETTLE_SECONDS, Measured, Row, measure
from bench.mesh.wires import enter_namespace, in_namespace
from bench.packages import install
from bench.process import BenchError

FIGURE = Path(__file__).resolve().parents[1] / "figures" / "mesh.png"
PLOTTED = ("uniform-100", "moving", "partition")
QUICK_ROWS = ("uniform-100", "cold-100", "pause")
QUICK_SECONDS = 3.0
INTERRUPTED = 130  # as a shell says it of SIGINT
SIMULATED_NODES = (16, 32)  # more than this machine can run
# As seen on two cores, one of them used by others: what a row takes beyond its load, a start with
# its end, and each node of it; and all rows of SIMULATED_NODES.
ROW_SECONDS = 0.5
START_SECONDS = 1.2
NODE_SECONDS = 0.4
SIMULATION_SECONDS = 45.0


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
        self.expected = self.expected_s()
        self.begun_s = time.monotonic()

    def plan(self) -> list[tuple[type[Contender], int, list[Row]]]:
        """What one round is: who, with how many nodes, in which rows."""
        found = []
        for place, nodes in enumerate(self.options.nodes):
            for kind in CONTENDERS:
                if self.options.only and kind.name not in self.options.only:
                    continue
                rows = [r for r in self.options.rows if takes_part(kind, r, first=not place)]
                reason = kind.missing() if rows else ""
                if reason:
                    self.note(f"{kind.title}: left out, {reason}")
                elif rows:
                    found.append((kind, nodes, rows))
        return found

    def expected_s(self) -> float:
        """How long all rounds take, about, and what is simulated after them."""
        rounds: int = self.options.rounds
        a_round_s = sum(
            expected_s(kind, nodes, rows, relayed=sum(map(self.needs_relay, rows)))
            for kind, nodes, rows in self.plan()
        )
        return rounds * a_round_s + (SIMULATION_SECONDS if self.options.simulate else 0.0)

    def run(self) -> int:
        """All rounds. Returns the program's status."""
        print(f"about {self.expected / 60:.0f} minutes", file=sys.stderr, flush=True)
        number = 0
        try:
            for number in range(1, self.options.rounds + 1):
                self.round(number)
        except KeyboardInterrupt:
            self.note(f"interrupted in round {number}")
            return INTERRUPTED
        return 0

    def round(self, number: int) -> None:
        for kind, nodes, rows in self.plan():
            for relayed in (False, True):
                chosen = [row for row in rows if self.needs_relay(row) == relayed]
                while chosen:
                    chosen = self.contend(kind, nodes, number, relayed, chosen)

    def contend(
        self, kind: type[Contender], nodes: int, number: int, relayed: bool, rows: Sequence[Row]
    ) -> list[Row]:
        """Puts these nodes through rows; a relay is between them only for some. Returns the rows
        that others, newly started, must be put through: those after one that broke."""
        left = list(rows)
        what = "the start"
        contender: Contender | None = None
        try:
            contender = kind(self.stage, nodes, relayed)
            contender.start()
            while left:
                row = left[0]
                what = row.name
                if row.disturbs and not contender.wires.can(delay=bool(row.delay_ms)):
                    self.note(f"{kind.title}: {row.name} left out, {NO_STREAM_LOSS}")
                else:
                    self._measure(contender, row, number)
                left.pop(0)
                if kind.fresh:
                    break
        except FAULTS as error:
            self._broken(kind, nodes, number, what, error)
            # Who does not even start will not for the next row; who breaks in one is started anew.
            left = left[1:] if what != "the start" else []
        finally:
            if contender is not None:
                try:
                    contender.stop()
                except FAULTS as error:
                    self._broken(kind, nodes, number, "the end", error)
        return left

    def needs_relay(self, row: Row) -> bool:
        return row.disturbs and (bool(row.delay_ms) or not self.stage.nft)

    def _broken(
        self, kind: type[Contender], nodes: int, number: int, what: str, error: BaseException
    ) -> None:
        self.note(f"{kind.title}, {nodes} nodes, round {number}, {what}: {error!r:.2000}")

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)
            print(f"note: {text}", file=sys.stderr, flush=True)

    def _measure(self, contender: Contender, row: Row, number: int) -> None:
        self._number += 1
        self.machine.others()
        # Of the round and the row alone, so that all contenders meet the same arrivals.
        seed = 1000 * number + [one.name for one in ROWS].index(row.name)
        found: Measured = measure(contender, self.origin, row, f"c{self._number}", seed)
        figures = {**found.figures, "others": self.machine.others()}
        key = (contender.nodes, row.name, contender.name)
        self.cells.setdefault(key, []).append(figures)
        curve = (row.name, contender.name)
        first = contender.nodes == self.options.nodes[0]
        if first and row.name in PLOTTED and curve not in self.curves:
            self.curves[curve] = sliding_sum(found.arrived, found.begin_ns, row.seconds)
        shown = " ".join(f"{name}={value:.4g}" for name, value in figures.items())
        spent_s = time.monotonic() - self.begun_s
        of_s = max(spent_s, self.expected)
        print(
            f"{spent_s / 60:.1f} of about {of_s / 60:.0f} min, round {number}: "
            f"{contender.nodes} x {contender.name} {row.name}: {shown}",
            file=sys.stderr,
            flush=True,
        )


def expected_s(kind: type[Contender], nodes: int, rows: Sequence[Row], relayed: int) -> float:
    """How long these rows take, about; `relayed` of them are run behind a relay."""
    starts = len(rows) if kind.fresh else (relayed > 0) + (relayed < len(rows))
    settling = sum(SETTLE_SECONDS for row in rows if row.settles(kind))
    loads = sum(row.seconds + ROW_SECONDS for row in rows)
    return loads + settling + starts * (START_SECONDS + nodes * NODE_SECONDS)


NO_STREAM_LOSS = "loss or cut of a byte stream needs nftables"
# What may go wrong with somebody who takes part; anything else is a fault of the bench.
FAULTS = (
    BenchError,
    AssertionError,
    OSError,
    HTTPException,
    subprocess.SubprocessError,
    ValueError,
)


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.mesh.run", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    several: dict[str, Any] = {"action": "extend", "nargs": "+"}
    parser.add_argument("--nodes", type=int, help="default: 3 8", **several)
    parser.add_argument("--rows", "--row", choices=[row.name for row in ROWS], **several)
    parser.add_argument("--only", choices=[kind.name for kind in CONTENDERS], **several)
    parser.add_argument("--quick", action="store_true", help="two nodes, few rows, few seconds")
    parser.add_argument("--json", type=Path, help="everything that was measured")
    parser.add_argument("--plot", type=Path, help=f"the sums over time as PNG, e.g. {FIGURE}")
    parser.add_argument("--no-namespace", action="store_true", help="the relay instead of nftables")
    options = parser.parse_args(argv)
    options.nodes = options.nodes or ([2] if options.quick else [3, 8])
    if min(options.nodes) < 2 or max(options.nodes) > 32 or not 1 <= options.rounds <= 99:
        parser.error("2 to 32 nodes, 1 to 99 rounds")
    is_chosen = bool(options.rows)
    options.rows = [row for row in ROWS if not options.rows or row.name in options.rows]
    if options.quick:
        options.rounds = 1
        options.rows = [
            row if row.event or row.shape == "cold" else row._replace(seconds=QUICK_SECONDS)
            for row in options.rows
            if is_chosen or row.name in QUICK_ROWS
        ]
    options.simulate = not (options.quick or options.only)
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
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end_in_order)
    try:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-mesh-")))
            bench = Bench(Stage(folder, 0, in_namespace()), options)
            stack.callback(bench.origin.stop)
            if why_not:
                bench.note(why_not)
            status = bench.run()
        shown(bench, options, simulate=options.simulate and not status)
    finally:
        end_family()
    return status


def shown(bench: Bench, options: argparse.Namespace, *, simulate: bool) -> None:
    """Prints the tables, and writes what was asked for into files."""
    results = {key: medians(rounds) for key, rounds in bench.cells.items()}
    for line in lines(results, options.rows, options.nodes):
        print(line)
    ways = four_ways(results, options.nodes[0])
    for line in four_ways_lines(ways, options.nodes[0]):
        print(line)
    if simulate:
        # One process a core, and new ones: this one may have threads, which a fork would not have.
        with multiprocessing.get_context("spawn").Pool() as pool:
            for line in simulated(SIMULATED_NODES, options.rows, pool.imap):
                print(line, flush=True)
    minutes = (time.monotonic() - bench.begun_s) / 60
    print(f"{options.rounds} rounds in {minutes:.1f} minutes; {machine()}")
    for note in bench.notes:
        print(f"note: {note}")
    if options.json is not None:
        cells = [
            {"nodes": nodes, "row": row, "contender": name, "rounds": rounds}
            for (nodes, row, name), rounds in bench.cells.items()
        ]
        document = {"cells": cells, "four_ways": ways, "notes": bench.notes}
        options.json.write_text(json.dumps(document, indent=1))
    if options.plot is not None:
        plot(options.plot, options.nodes[0], bench.curves, options.rows)


if __name__ == "__main__":
    raise SystemExit(main())
