"""How the mesh's bench runs: its options, its rounds, what breaks, and that nothing is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
from bench.mesh import machine, rows, run
from bench.mesh.contenders import Contender, Stage
from bench.mesh.ours import Egressd
from bench.mesh.rows import ROWS, Row
from bench.process import BenchError, Stat
from fakes.nodes import until

ROOT = Path(__file__).resolve().parents[2]


class TestOptions:
    def test_quick_is_small(self) -> None:
        options = run.parsed(["--quick"])
        assert (options.nodes, options.rounds) == ([2], 1)
        assert [row.name for row in options.rows] == list(run.QUICK_ROWS)

    def test_several_words_may_follow_an_option(self) -> None:
        argv = ["--nodes", "3", "5", "--rows", "kill", "pause", "--row", "moving"]
        options = run.parsed([*argv, "--only", "egressd", "redis"])
        assert options.nodes == [3, 5]
        assert [row.name for row in options.rows] == ["moving", "kill", "pause"]
        assert options.only == ["egressd", "redis"]
        assert not options.simulate

    @pytest.mark.parametrize("argv", [["--nodes", "1"], ["--rounds", "0"], ["--row", "none"]])
    def test_nonsense_is_refused(self, argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            run.parsed(argv)
        assert "usage:" in capsys.readouterr().err

    def test_a_row_needs_the_relay_for_delay_and_without_nftables_for_loss(self) -> None:
        with_nft, without = (Stage(Path(), 0, nft) for nft in (True, False))
        bench = run.Bench.__new__(run.Bench)
        for stage, expected in ((with_nft, [True, False, False]), (without, [True, True, False])):
            bench.stage = stage
            made = [Row("a", "a", delay_ms=1.0), Row("b", "b", loss=0.1), Row("c", "c")]
            assert [bench.needs_relay(row) for row in made] == expected


class Broken(Contender):
    """Starts as often as it is told to, and breaks in the rows that are named."""

    name = "broken"
    title = "broken"
    starts: ClassVar[list[bool]] = []
    stopped = 0

    def start(self) -> None:
        if not self.starts.pop(0):
            raise BenchError("it does not start")

    def stop(self) -> None:
        super().stop()
        type(self).stopped += 1


class TestRounds:
    ROWS = (Row("a", "a"), Row("b", "b"), Row("c", "c"))

    def bench(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[run.Bench, list[str]]:
        bench = run.Bench.__new__(run.Bench)
        bench.stage = Stage(tmp_path, 9, False)
        bench.notes = []
        measured: list[str] = []

        def measure(contender: Contender, row: Row, number: int) -> None:
            if row.name == "b":
                raise OSError("it broke")
            measured.append(row.name)

        monkeypatch.setattr(bench, "_measure", measure)
        Broken.stopped = 0
        return bench, measured

    def rounds(self, bench: run.Bench) -> None:
        left = list(self.ROWS)
        while left:
            left = bench.contend(Broken, 3, 1, False, left)

    def test_who_breaks_in_a_row_is_named_and_goes_on_with_the_next(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bench, measured = self.bench(tmp_path, monkeypatch)
        Broken.starts = [True, True]
        self.rounds(bench)
        assert measured == ["a", "c"]
        assert bench.notes == ["broken, 3 nodes, round 1, b: OSError('it broke')"]
        assert Broken.stopped == 2

    def test_who_does_not_start_is_named_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bench, measured = self.bench(tmp_path, monkeypatch)
        Broken.starts = [False]
        self.rounds(bench)
        assert measured == []
        why = "BenchError('it does not start')"
        assert bench.notes == [f"broken, 3 nodes, round 1, the start: {why}"]
        assert Broken.stopped == 1

    def test_who_queues_is_started_anew_for_each_row(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bench, measured = self.bench(tmp_path, monkeypatch)
        monkeypatch.setattr(Broken, "fresh", True)
        Broken.starts = [True, True, True]
        self.rounds(bench)
        assert measured == ["a", "c"]
        assert (Broken.starts, Broken.stopped) == ([], 3)

    def test_all_contenders_meet_the_same_arrivals_in_a_round_and_progress_is_told(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        bench = run.Bench.__new__(run.Bench)
        bench.options = run.parsed(["--nodes", "3"])
        bench.machine = SimpleNamespace(others=lambda: 0.0)
        bench.origin = None
        bench.cells, bench.curves, bench._number = {}, {}, 0
        bench.expected, bench.begun_s = 600.0, time.monotonic() - 120.0
        told: list[tuple[str, int]] = []

        def measure(_: object, __: object, row: Row, cell: str, seed: int) -> rows.Measured:
            told.append((cell, seed))
            return rows.Measured({"share": 1.0}, 0, [1])

        monkeypatch.setattr(run, "measure", measure)
        for number, row in ((1, ROWS[0]), (1, ROWS[0]), (1, ROWS[1]), (2, ROWS[0])):
            bench._measure(SimpleNamespace(nodes=3, name="exact"), row, number)
        cells, seeds = zip(*told, strict=True)
        assert len(set(cells)) == 4
        assert seeds[0] == seeds[1]
        assert len(set(seeds)) == 3
        assert len(bench.cells[3, ROWS[0].name, "exact"]) == 3
        assert "2.0 of about 10 min, round 1: 3 x exact uniform-100: " in capsys.readouterr().err

    def test_three_rounds_are_expected_within_35_minutes(self, tmp_path: Path) -> None:
        bench = run.Bench.__new__(run.Bench)
        bench.stage = Stage(tmp_path, 9, True)
        bench.options = run.parsed([])
        bench.notes = []
        assert 15 * 60 <= bench.expected_s() <= 35 * 60
        for kind, nodes, chosen in bench.plan():
            assert nodes == 3 or kind is Egressd
            assert chosen

    def test_descendants_are_found(self) -> None:
        known = {pid: Stat(parent, 0, 0) for pid, parent in ((2, 1), (3, 2), (4, 9), (5, 3))}
        assert machine.family_of(2, known) == [2, 3, 5]


def running(folder: Path) -> list[int]:
    """The processes that have that folder in their command line or environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            told = (path / "cmdline").read_bytes() + (path / "environ").read_bytes()
        except OSError:  # it ended meanwhile
            continue
        if str(folder).encode() in told and int(path.name) != os.getpid():
            found.append(int(path.name))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    """Under load, with a relay: origin, load and nodes end, and what was measured is printed."""
    argv = [sys.executable, "-m", "bench.mesh.run", "--no-namespace", "--nodes", "2",
            "--only", "egressd", "--rows", "half-1000", "loss-5", "kill"]  # fmt: skip
    environ = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "TMPDIR": str(tmp_path)}
    with (tmp_path / "err").open("wb") as err:
        process = subprocess.Popen(
            argv, cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=err, process_group=0
        )
    try:
        until(lambda: b"half-1000" in (tmp_path / "err").read_bytes(), 90.0, "a row is measured")
        os.killpg(process.pid, number)  # as a terminal does it
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == run.INTERRUPTED, (tmp_path / "err").read_text()
    assert b"| R=B=1000, half of it offered |" in out
    assert b"note: interrupted in round 1" in out
    until(lambda: not running(tmp_path), 5.0, "nothing is left")


@pytest.mark.slow
def test_a_smoke_run_measures_and_prints(tmp_path: Path) -> None:
    """Two nodes of ours with the relay as the network: rows, a table, JSON."""
    path = tmp_path / "cells.json"
    argv = [sys.executable, "-m", "bench.mesh.run", "--quick", "--no-namespace",
            "--only", "egressd", "--row", "uniform-100", "--row", "loss-20", "--row", "cold-100",
            "--json", str(path)]  # fmt: skip
    environ = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    done = subprocess.run(
        argv, cwd=ROOT, env=environ, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr
    cells = {cell["row"]: cell["rounds"][0] for cell in json.loads(path.read_text())["cells"]}
    assert set(cells) == {"uniform-100", "loss-20", "cold-100"}, done.stderr
    for figures in cells.values():
        assert figures["lost"] == 0
        assert 0 < figures["admitted"] < figures["asked"]
        assert 0.5 <= figures["share"] <= 1.1
    assert "| R=B=100, uniform | peak 1 s | ≤ 1.01 |" in done.stdout
