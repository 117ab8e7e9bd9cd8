"""What the bench reads and prints, without load: parsers, ratios, tables, configurations."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench import admission, memory, metrics, openloop, ops, pacing, packages, report, run
from bench.contenders import (
    CONTENDERS,
    Contender,
    Egressd,
    Haproxy,
    Nginx,
    Origin,
    Squid,
    Stage,
)
from bench.measure import BODY_BYTES, Cell, Latency, Run, parse_wrk
from bench.process import BenchError, Process, busy_ns, parse_stat
from fakes.nodes import free_port

from gateway.conf.load import load

WRK = """Running 5s test @ http://127.0.0.1:18182/small
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     4.15ms    3.93ms  29.79ms   86.15%
    Req/Sec     9.36k     4.41k   20.15k    66.67%
  Latency Distribution
     50%  214.00us
     75%    5.86ms
     90%    9.73ms
     99%    1.02s
  28012 requests in 3.02s, 3.98MB read
Requests/sec:   9288.99
Transfer/sec:      1.32MB
"""

SMALL = Cell("http", "small", 32)
LARGE = Cell("http", "64KiB", 32)
TLS = Cell("https", "small", 32)


def made_run(name: str, number: int, cpu_us: float, rate: float, cell: Cell = SMALL) -> Run:
    return Run(name, cell, number, rate, cpu_us, 1000.0, 2000.0, 0, 2**20 * number, 0.01)


def made_latency(name: str, p99_us: float, direct_p99_us: float) -> Latency:
    return Latency(name, 1, 5000.0, False, 100.0, p99_us, 50.0, direct_p99_us, 10.0, 0)


class TestWrk:
    def test_its_account_is_read_in_microseconds(self) -> None:
        found = parse_wrk(WRK)
        assert found == (28012, 9288.99, 214.0, 1_020_000.0, 0)

    def test_other_statuses_and_socket_faults_are_errors(self) -> None:
        text = WRK.replace(
            "Requests/sec",
            "  Socket errors: connect 1, read 2, write 3, timeout 4\n"
            "  Non-2xx or 3xx responses: 90\nRequests/sec",
        )
        assert parse_wrk(text).errors == 100

    @pytest.mark.parametrize("text", ["", "unable to connect to 127.0.0.1:1", WRK[:200], WRK[300:]])
    def test_anything_else_is_no_account(self, text: str) -> None:
        with pytest.raises(BenchError, match="something else"):
            parse_wrk(text)


class TestProcess:
    def test_a_name_with_spaces_and_brackets_does_not_move_the_fields(self) -> None:
        fields = ["S", "41", *["0"] * 9, "100", "20", "3", "4", *["0"] * 4, "777"]
        text = f"42 (a) b) (c) {' '.join(fields)}\n"
        stat = parse_stat(text, tick_ns=10)
        assert stat.parent == 41
        assert stat.cpu_ns == 1270
        assert stat.start == 777

    def test_cpu_and_memory_of_a_family_are_counted_and_it_ends(self, tmp_path: Path) -> None:
        # The child burns 0.2 s by its own clock and then both wait to be ended.
        child = (
            "import time\nwhile time.process_time() < 0.2: pass\n"
            "print('burnt', flush=True)\ntime.sleep(600)"
        )
        parent = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {child!r}])"
        core = min(os.sched_getaffinity(0))
        process = Process([sys.executable, "-c", parent], core, tmp_path / "output")
        try:
            while b"burnt" not in process.output.read_bytes():
                assert process.alive, process.tail()
            pids = process.pids()
            assert len(pids) == 2
            # Counted in ticks of 10 ms, for user and kernel and both processes apart.
            assert process.cpu_ns() >= 160_000_000
            assert process.memory_peak_bytes() > 2**20
            assert busy_ns(core) > 0
        finally:
            process.stop()
        assert not process.alive
        # A killed process is gone as soon as the kernel has let it run to its end.
        deadline = time.monotonic() + 10
        while any(_runs(pid) for pid in pids):
            assert time.monotonic() < deadline

    def test_an_unknown_core_is_said(self) -> None:
        with pytest.raises(BenchError, match="core 9999"):
            busy_ns(9999)


def _runs(pid: int) -> bool:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] != "Z"


class TestPackages:
    def test_what_is_there_needs_nothing(self) -> None:
        assert packages.install(["sh"]) == ""

    def test_without_apt_it_is_said_what_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("shutil.which", lambda program, path=None: None)
        assert "no-such-proxy" in packages.install(["no-such-proxy"])

    def test_a_finished_environment_is_taken_as_it_is(self, tmp_path: Path) -> None:
        (tmp_path / "complete").write_text("a\nb")
        assert packages.virtual_environment(tmp_path, ["a", "b"]) == ""


class TestContenders:
    @pytest.fixture
    def stage(self, tmp_path: Path) -> Stage:
        return Stage(tmp_path, 0, 1)

    def test_each_says_where_its_log_goes(self) -> None:
        names = [cls.name for cls in CONTENDERS]
        assert len(set(names)) == len(names) == 6
        assert all(cls.sink and cls.remarks for cls in CONTENDERS)

    def test_egressd_accepts_its_configuration(self, stage: Stage) -> None:
        contender = Egressd(stage, Origin(stage), "http")
        contender.folder.mkdir()
        contender.conf_path.write_text(contender.conf())
        conf = load(str(contender.conf_path), ())
        upstream = conf.upstream["origin"]
        assert len(upstream.limit) == 1
        assert conf.log.access.endswith("/access.log")
        assert conf.admin is None

    @pytest.mark.parametrize("cls", CONTENDERS)
    def test_over_https_each_verifies_the_origin(self, stage: Stage, cls: type[Contender]) -> None:
        origin = Origin(stage)
        text = cls(stage, origin, "https").conf()
        assert str(origin.tls_port) in text + cls(stage, origin, "https").target("small")
        assert str(origin.ca) in text
        assert str(origin.port) not in text

    @pytest.mark.parametrize(
        ("cls", "words"),
        [
            (Haproxy, ("stick-table", "http_req_rate", "option httplog", "nbthread 1")),
            (Nginx, ("limit_req ", "access_log ", "worker_processes 1")),
            (Squid, ("access_log stdio:", "cache deny all")),
        ],
    )
    def test_limits_and_logs_are_on(
        self, stage: Stage, cls: type[Contender], words: tuple[str, ...]
    ) -> None:
        text = cls(stage, Origin(stage), "http").conf()
        for word in words:
            assert word in text


class TestReport:
    def test_a_ratio_is_the_median_of_the_rounds_own_ratios(self) -> None:
        runs = [
            *[made_run("egressd", i, cpu, 1.0) for i, cpu in ((1, 20.0), (2, 90.0), (3, 60.0))],
            *[made_run("haproxy", i, cpu, 1.0) for i, cpu in ((1, 10.0), (2, 30.0), (3, 15.0))],
        ]
        found = report.ratio(runs, "egressd", "haproxy", SMALL, lambda run: run.cpu_us)
        assert found == pytest.approx(3.0)  # of 2, 3 and 4; the medians' own ratio is 4

    def test_who_never_met_has_no_ratio(self) -> None:
        runs = [made_run("egressd", 1, 20.0, 1.0), made_run("haproxy", 2, 10.0, 1.0)]
        assert report.ratio(runs, "egressd", "haproxy", SMALL, lambda run: run.cpu_us) is None

    def test_a_table_has_a_row_for_each_and_lines_up(self) -> None:
        runs = [
            made_run("egressd", 1, 30.0, 20_000.0),
            made_run("haproxy", 1, 15.0, 50_000.0),
            made_run("squid", 1, 60.0, 9_000.0, LARGE),
        ]
        lines = report.table(runs, SMALL).splitlines()
        assert len(lines) == 4
        assert len({len(line) for line in lines}) == 1
        cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
        assert cells == ["egressd", "20,000", "30.0", "1.00", "2.00", "1", "2.00 x", "0.40 x", "0"]

    def test_the_worst_cell_decides(self) -> None:
        runs = [
            made_run("egressd", 1, 19.0, 30_000.0),
            made_run("haproxy", 1, 10.0, 50_000.0),
            made_run("squid", 1, 50.0, 10_000.0),
            made_run("egressd", 1, 25.0, 30_000.0, LARGE),
            made_run("haproxy", 1, 10.0, 50_000.0, LARGE),
            made_run("egressd", 1, 29.0, 30_000.0, TLS),
            made_run("haproxy", 1, 10.0, 50_000.0, TLS),
        ]
        latencies = [made_latency("egressd", 1400.0, 500.0), made_latency("squid", 9000.0, 1.0)]
        cpu, https, squid, mitmproxy, added = report.verdicts(runs, latencies)
        assert (cpu.reached, https.reached, squid.reached) == (False, True, True)
        assert "2.50" in cpu.found and "64KiB" in cpu.found
        assert mitmproxy.reached is None
        assert added.reached is True and added.found == "0.90 ms"

    def test_nothing_measured_reaches_nothing(self) -> None:
        found = report.verdicts([], [])
        assert [verdict.reached for verdict in found] == [None] * 5
        assert all("not measured" in line for line in report.verdict_lines(found))

    def test_a_busy_machine_is_said(self) -> None:
        runs = [made_run("egressd", 1, 1.0, 1.0)]
        assert "not a quiet machine" not in report.foreign_line(runs)
        assert "not a quiet machine" in report.foreign_line([runs[0]._replace(foreign=0.3)])

    def test_open_loop_shows_what_is_added(self) -> None:
        text = report.latency_table([made_latency("egressd", 1400.0, 500.0)._replace(capped=True)])
        assert "+900" in text and "5,000 (cap)" in text

    def test_programs_get_everything(self) -> None:
        runs = [made_run("egressd", 1, 30.0, 20_000.0)]
        text = report.as_json({"date": "2026-01-01"}, runs, [made_latency("egressd", 2.0, 1.0)])
        found = json.loads(text)
        assert found["runs"][0]["cell"] == {"scheme": "http", "body": "small", "connections": 32}
        assert found["latencies"][0]["p99_us"] == 2.0
        assert len(found["targets"]) == 5


class TestArguments:
    def test_quick_is_one_second_whatever_else_is_said(self) -> None:
        options = run.arguments(["--rounds", "9", "--seconds", "9", "--quick"])
        assert (options.rounds, options.seconds) == (1, 1)

    @pytest.mark.parametrize(
        "argv", [["--rounds", "0"], ["--seconds", "-1"], ["--only", "varnish"], ["--rounds", "x"]]
    )
    def test_nonsense_is_refused(self, argv: list[str]) -> None:
        with pytest.raises(SystemExit) as stopped:
            run.arguments(argv)
        assert stopped.value.code == 2


@pytest.fixture
def answering() -> Iterator[tuple[tuple[str, int], list[bytes]]]:
    """A server that gives each connection's requests the next answers of a list, or hangs up."""
    answers: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            with sock:
                while answers and sock.recv(65_536):
                    answer = answers.pop(0)
                    if not answer:
                        break
                    for part in answer.split(b"^"):
                        sock.sendall(part)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield listener.getsockname(), answers
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)


class TestOpenLoop:
    def test_arrivals_are_the_same_for_everybody(self) -> None:
        times = openloop.due_times(1000.0, 2.0)
        assert times == openloop.due_times(1000.0, 2.0)
        assert times == sorted(times) and times[-1] < 2_000_000_000
        assert 1800 < len(times) < 2200

    @pytest.mark.parametrize(
        ("share", "value"), [(0.0, 1), (0.01, 1), (0.5, 50), (0.99, 99), (0.991, 100), (1.0, 100)]
    )
    def test_percentiles_are_values_that_occurred(self, share: float, value: int) -> None:
        assert openloop.percentile(range(1, 101), share) == value

    def test_of_nothing_the_percentile_is_zero(self) -> None:
        assert openloop.percentile([], 0.99) == 0

    def test_answers_refusals_and_lost_connections_are_told_apart(
        self, answering: tuple[tuple[str, int], list[bytes]]
    ) -> None:
        address, answers = answering
        good = b"HTTP/1.1 200 OK\r\nContent-^Length: 3\r\n\r\nab^c"
        answers += [good, good.replace(b"200", b"503"), b"", good]
        client = openloop.Client(address, b"GET / HTTP/1.1\r\n\r\n", 3)
        client.open(1)
        client.run([0, 1, 2, 3])
        client.close()
        assert len(client.latencies_ns) == 2
        assert client.errors == 2
        assert len(client.lags_ns) == 4
        assert all(lag >= 0 for lag in client.lags_ns)


class TestAdmission:
    @pytest.mark.parametrize("limits", [1, 3])
    @pytest.mark.parametrize("count", [1, 50])
    def test_what_is_timed_is_admitted(self, limits: int, count: int) -> None:
        keys = [b"%d" % i for i in range(count)]
        for subject in (
            admission.local_set(limits),
            admission.mesh_set(limits, keys, 1_000 * 1_000_000_000),
        ):
            figure = admission.measure("it", subject, limits, keys, batches=2)
            assert (figure.limits, figure.keys) == (limits, count)
            assert 0 < figure.best_ns <= figure.median_ns
            # Every key once to make its row, then two batches: nothing was skipped.
            assert subject.limit_set.admitted == count + 2 * admission.BATCH

    def test_a_refusal_is_no_figure(self) -> None:
        subject = admission.local_set(1)
        row = subject.limit_set.rows([b""], 0)[0]
        row.take(10 * admission.BURST * 1_000, 1_000 * 1_000_000_000)
        with pytest.raises(BenchError, match="refused"):
            admission.measure("it", subject, 1, [b""], batches=1)

    def test_the_table_lines_up(self) -> None:
        lines = admission.lines_of([admission.Figure("local rows", 3, 100_000, 1234.5, 2345.6)])
        assert len({len(line) for line in lines}) == 1
        assert "100,000" in lines[2]


@pytest.mark.slow
@pytest.mark.skipif(
    any(packages.which(name) is None for name in ("nginx", "wrk", "taskset")),
    reason="needs nginx, wrk and taskset",
)
def test_the_whole_runs(tmp_path: Path) -> None:
    report_path = tmp_path / "report.json"
    argv = ["-m", "bench.run", "--quick", "--https", "--only", "egressd", "--json", report_path]
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, *map(str, argv)], env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "| egressd " in done.stdout
    found = json.loads(report_path.read_text())
    assert [made["cell"]["scheme"] for made in found["runs"]] == ["http", "https"]
    assert all(made["errors"] == 0 and made["cpu_us"] > 0 for made in found["runs"])
    assert found["latencies"][0]["errors"] == 0


def test_bodies_are_what_the_origin_serves() -> None:
    assert BODY_BYTES == {"small": 128, "64KiB": 65_536}
    assert free_port() > 1023


class TestMemory:
    def test_a_value_of_the_status_file(self) -> None:
        status = "Name:\tx\nVmHWM:\t  2048 kB\nVmRSS:\t    12 kB\n"
        assert memory.resident_bytes(status) == 12 * 1024
        assert memory.resident_bytes(status, "VmHWM") == 2 * 2**20
        with pytest.raises(BenchError, match="VmSwap"):
            memory.resident_bytes(status, "VmSwap")

    def test_each_figure_stands_beside_its_target(self) -> None:
        plain, row = memory.FIGURES["plain"], memory.FIGURES["local"]
        lines = memory.lines_of(
            [memory.Measured(plain, 81 * 2**20, "a"), memory.Measured(row, 400, "b")]
        )
        assert lines[2] == "| 10,000 idle connections, plain | 81 MiB | 80 MiB | a OVER |"
        assert lines[3] == "| a local row | 400 B | 400 B | b |"

    @pytest.mark.slow
    @pytest.mark.skipif(packages.which("taskset") is None, reason="needs taskset")
    @pytest.mark.parametrize("name", [part[0] for part in memory.PARTS])
    def test_the_whole_runs(self, name: str) -> None:
        argv = [sys.executable, "-m", "bench.memory", "--quick", "--only", name]
        tests = Path(__file__).parent.parent
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tests), str(tests.parent)))}
        done = subprocess.run(
            argv, capture_output=True, text=True, check=False, env=environ, timeout=120
        )
        assert done.returncode == 0, done.stderr
        wanted = 3 if name == "rows" else 1
        assert len(done.stdout.splitlines()) == 2 + wanted


class TestPacing:
    """What the figures of a minute's load mean."""

    def perfect(self, seconds: int) -> list[int]:
        burst = [0] * pacing.BURST
        return burst + [i * 10_000_000 for i in range(1, seconds * pacing.RATE + 1)]

    def test_a_perfect_pacer_reaches_everything(self) -> None:
        seen = pacing.Pacing(self.perfect(10), self.perfect(10), [125] * 8, 0, 0)
        rows = pacing.judge(seen, 10.0)
        assert [row.met for row in rows] == [True] * 7
        assert rows[1].found == 110 - 1  # the token of the very end of the second is the next one's

    def test_what_is_off_is_said(self) -> None:
        stamps = [stamp for stamp in self.perfect(10) if stamp // 1_000_000_000 != 5]
        stamps += [7_000_000_001] * 30
        seen = pacing.Pacing(sorted(stamps), sorted(stamps), [100] * 7 + [120], 0, 0)
        assert [row.met for row in pacing.judge(seen, 10.0)] == [False] * 7

    def test_nothing_arrived(self) -> None:
        rows = pacing.judge(pacing.Pacing([], [], [], 0, 0), 10.0)
        assert [row.met for row in rows] == [False, True, True, False, False, False, False]

    def test_when_they_went_is_in_the_log(self) -> None:
        line = '{"time":"2026-11-24T06:00:0%s.500Z","status":%d,"waited_ms":%.3f,"total_ms":%.3f}'
        log = [line % (2, 200, 400, 500), line % (1, 429, 0, 0), line % (1, 200, 0, 0.25)]
        # At 1.49975 s and at 2.4 s.
        assert pacing.sent_times("\n".join(log)) == pytest.approx([0, 900_250_000], abs=1000)

    def test_the_fullest_window_is_half_open(self) -> None:
        assert pacing.fullest_window([0, 500, 999, 1000, 1500], 1000) == 3
        assert pacing.fullest_window([], 1000) == 0

    def test_the_table(self) -> None:
        lines = pacing.lines_of([pacing.Row("gap, mean, ms", 10.04, "10", True)])
        cells = [cell.strip() for cell in lines[-1].split("|")[1:-1]]
        assert cells == ["gap, mean, ms", "10.040", "10", "ok"]
        assert len({len(line) for line in lines}) == 1

    def test_the_gateways_configuration_is_one(self, tmp_path: Path) -> None:
        path = tmp_path / "egressd.toml"
        log = tmp_path / "access.log"
        facts = {"rate": pacing.RATE, "burst": pacing.BURST, "wait": pacing.WAIT, "log": log}
        path.write_text(pacing.CONF.format(port=8080, origin=8081, **facts))
        assert load(str(path)).upstream["api"].limit[0].burst == pacing.BURST


def test_the_operations_bench_has_a_good_file(tmp_path: Path) -> None:
    path = tmp_path / "egressd.toml"
    path.write_text(ops.conf_text(8080, 9901, "http://127.0.0.1:1", 120, 7, 2))
    conf = load(path)
    assert (len(conf.route), len(conf.upstream), conf.node.workers) == (121, 51, 2)


def test_what_metrics_cost_can_be_measured() -> None:
    assert 0 < metrics.count_ns(2_000, 3) < 1e6
    assert 0 < metrics.line_ns(metrics.json_line, 50, 2) < 1e7
    assert 0 < metrics.scrape_ns(3) < 1e9
