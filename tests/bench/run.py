"""`make bench`: egressd beside HAProxy, nginx, Squid and mitmproxy on this machine, in one run.

Every contender has one core to itself and the other core has the load, the same nginx origin for
all. The order is round, cell, contender: what is compared was measured within a minute. With all
contenders running all the time the idle ones cost nothing that shows (egressd wakes nine times a
second), and each has the same past.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import platform
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench import report
from bench.contenders import CONTENDERS, Contender, Origin, Stage
from bench.measure import Cell, Latency, Run, measure, measure_latency
from bench.packages import install, which
from bench.process import BenchError

CONNECTIONS = (32, 256)
BODIES = ("small", "64KiB")
HALF_OF = Cell("http", "small", 32)  # whose requests/s "half load" halves


class Bench:
    """One run of the whole: what was asked for, what takes part, what was found."""

    def __init__(self, options: argparse.Namespace, stage: Stage) -> None:
        self.options = options
        self.stage = stage
        self.runs: list[Run] = []
        self.latencies: list[Latency] = []
        self.absent: dict[str, str] = {}
        self.classes: list[type[Contender]] = []
        self.facts: dict[str, Any] = {}

    def prepare(self) -> None:
        """Finds or installs the contenders. Raises BenchError where nothing can be measured."""
        wanted = [cls for cls in CONTENDERS if self._wanted(cls.name)]
        debian = {"nginx", "wrk"} | {cls.name for cls in wanted} & {"haproxy", "squid"}
        if not self.options.quick:
            why = install(sorted(debian))
            if why:
                say(why)
        for program in ("taskset", "nginx", "wrk"):
            if which(program) is None:
                raise BenchError(f"{program} is not there, and nothing can be measured without it")
        for cls in wanted:
            quick_skip = self.options.quick and cls.name == "mitmproxy"
            why = "takes an installation (--quick)" if quick_skip else cls.prepare(self.stage)
            if why:
                self.absent[cls.name] = why
            else:
                self.classes.append(cls)
        if not self.classes:
            raise BenchError("nobody takes part: " + "; ".join(self.absent.values()))
        self.facts = describe(self.classes, self.stage)
        self.facts["absent"] = self.absent

    def _wanted(self, name: str) -> bool:
        only = self.options.only
        return not only or name in only

    def run(self) -> None:
        """All rounds. A contender that fails is dropped, with its reason, and the rest goes on."""
        origin = Origin(self.stage)
        with contextlib.ExitStack() as stack:
            stack.callback(origin.stop)
            origin.start()
            for scheme in ["http", "https"] if self.options.https else ["http"]:
                for number in range(1, self.options.rounds + 1):
                    self._round(origin, scheme, number)

    def _round(self, origin: Origin, scheme: str, number: int) -> None:
        with contextlib.ExitStack() as stack:
            running = []
            for cls in self.classes:
                if f"{cls.name} ({scheme})" in self.absent:
                    continue
                contender = cls(self.stage, origin, scheme)
                with self._dropped_if_failing(contender):
                    contender.start()
                    stack.callback(contender.stop)
                    running.append(contender)
            for cell in self._cells(scheme):
                for contender in running:
                    with self._dropped_if_failing(contender):
                        run = measure(contender, cell, number, self.options.seconds)
                        self.runs.append(run)
                        say(
                            f"round {number}: {cell}: {run.contender}: "
                            f"{run.requests_per_s:,.0f}/s, {run.cpu_us:.1f} µs"
                        )
            if scheme == "http":
                for contender in running:
                    with self._dropped_if_failing(contender):
                        self._latency(contender, origin, number)

    def _latency(self, contender: Contender, origin: Origin, number: int) -> None:
        rates = [
            run.requests_per_s
            for run in self.runs
            if (run.contender, run.cell, run.round) == (contender.name, HALF_OF, number)
        ]
        for rate in rates:
            found = measure_latency(contender, origin, number, rate, self.options.seconds)
            self.latencies.append(found)
            say(f"round {number}: open loop: {found.contender}: p99 {found.p99_us:,.0f} µs")

    def _cells(self, scheme: str) -> list[Cell]:
        if self.options.quick:
            return [HALF_OF._replace(scheme=scheme)]
        return [Cell(scheme, body, connections) for body in BODIES for connections in CONNECTIONS]

    @contextlib.contextmanager
    def _dropped_if_failing(self, contender: Contender) -> Iterator[None]:
        try:
            yield
        except BenchError as error:
            key = f"{contender.name} ({contender.scheme})"
            self.absent[key] = str(error)
            say(f"{key}: {error}")

    def print_report(self) -> None:
        """The tables as Markdown, ready for the README."""
        facts = self.facts
        print(f"\n{facts['date']}, {facts['processor']}, {facts['system']}, "
              f"{self.options.rounds} rounds of {self.options.seconds} s\n")  # fmt: skip
        for name, about in facts["contenders"].items():
            print(f"- {name} {about['version']}: log: {about['sink']}; {about['remarks']}")
        for name, why in self.absent.items():
            print(f"- absent: {name}: {why}")
        for cell in report.cells_of(self.runs):
            print(f"\n{cell}\n\n{report.table(self.runs, cell)}")
        if self.latencies:
            print(f"\nopen loop at half load, {HALF_OF.body}, 64 connections\n")
            print(report.latency_table(self.latencies))
        print(f"\n{report.foreign_line(self.runs)}\n")
        for line in report.verdict_lines(report.verdicts(self.runs, self.latencies)):
            print(line)


def say(text: str) -> None:
    """Progress goes to standard error: standard output is the report."""
    print(text, file=sys.stderr, flush=True)


def describe(classes: Sequence[type[Contender]], stage: Stage) -> dict[str, Any]:
    """When, on what, and with which versions."""
    processor = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            processor = line.partition(":")[2].strip()
            break
    cores = "one core each" if stage.core != stage.load_core else "ONE CORE FOR BOTH SIDES"
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "processor": f"{processor} ({os.cpu_count()} cores; contender and load: {cores})",
        "system": f"Linux {platform.release()}, Python {platform.python_version()}",
        "contenders": {
            cls.name: {
                "version": cls.version(stage),
                "sink": cls.sink,
                "remarks": cls.remarks,
            }
            for cls in classes
        },
    }


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line. --quick is the smoke test: one second, nothing is installed."""
    parser = argparse.ArgumentParser(prog="bench.run", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds")
    parser.add_argument("--seconds", type=int, default=5, help="of load in each measurement")
    parser.add_argument("--quick", action="store_true", help="1 round of 1 s, with what is there")
    parser.add_argument("--only", action="append", metavar="NAME", help="take part; repeatable",
                        choices=[cls.name for cls in CONTENDERS])  # fmt: skip
    parser.add_argument("--https", action="store_true", help="also over an https upstream")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured here")
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep the work folder, for reuse")
    options = parser.parse_args(argv)
    if options.quick:
        options.rounds = options.seconds = 1
    if options.rounds < 1 or options.seconds < 1:
        parser.error("at least one round of one second")
    return options


def main() -> int:
    options = arguments()
    cores = sorted(os.sched_getaffinity(0))
    with contextlib.ExitStack() as stack:
        if options.work is not None:
            folder = options.work.resolve()
            folder.mkdir(parents=True, exist_ok=True)
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="egressd-bench-")))
        folder.chmod(0o755)  # Squid's unprivileged user goes through it
        bench = Bench(options, Stage(folder, cores[0], cores[-1]))
        try:
            bench.prepare()
            bench.run()
        except BenchError as error:
            say(f"bench: {error}")
            return 1
        bench.print_report()
        if options.json is not None:
            text = report.as_json(bench.facts, bench.runs, bench.latencies)
            options.json.write_text(text + "\n")
    return 0 if bench.runs else 1


if __name__ == "__main__":
    sys.exit(main())
