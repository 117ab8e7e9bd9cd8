"""What the mesh's bench computes and prints, and one smoke run of it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
from bench.mesh import judge, machine, report, rows, run
from bench.mesh.contenders import GROUPS, Contender, Stage
from bench.mesh.figure import COLOURS
from bench.mesh.lineup import CONTENDERS, WAYS, takes_part
from bench.mesh.load import CONNECTIONS_MAX, Load, Spec, content_length, due
from bench.mesh.origin import Record, sent_ns
from bench.mesh.others import Direct, Haproxy
from bench.mesh.ours import Egressd, Exact, Redis, Spooled, StaticSplit
from bench.mesh.rows import ROWS, Row
from bench.mesh.wires import Link, Wires, rules
from bench.packages import which
from bench.process import BenchError, Stat
from fakes.nodes import free_port, until
from fakes.relay import Relay

from gateway.conf.load import load as load_conf

SECOND = 1_000_000_000
ROOT = Path(__file__).resolve().parents[2]


class TestSchedule:
    SPEC = Spec([("a", 1), ("b", 2)], "h", "/", 100.0, 10.0, [(0.0, [0.7, 0.3], False)], 51, 7)

    def test_it_is_poisson_in_the_given_parts_and_decided_by_its_seed(self) -> None:
        plan = due(self.SPEC)
        assert plan == due(self.SPEC) == sorted(plan)
        assert 900 <= len(plan) <= 1100
        assert 0.65 <= sum(target == 0 for _, target in plan) / len(plan) <= 0.75
        assert plan[-1][0] < 10 * SECOND
        assert plan != due(self.SPEC._replace(seed=8))

    def test_a_burst_is_within_5_ms_at_every_target(self) -> None:
        plan = due(self.SPEC._replace(steps=[(1.0, [0.0, 0.0], True)]))
        assert len(plan) == 2 * 51
        assert SECOND <= plan[0][0] <= plan[-1][0] < SECOND + 5_000_000

    def test_a_step_ends_where_the_next_begins(self) -> None:
        steps = [(0.0, [1.0, 0.0], False), (5.0, [0.0, 1.0], False)]
        for at_ns, target in due(self.SPEC._replace(steps=steps)):
            assert (at_ns >= 5 * SECOND) == bool(target)

    def test_what_finds_no_connection_was_due_all_the_same(self) -> None:
        """Without its time it would be judged as sent at the boot of the machine."""
        load = Load(self.SPEC)
        load.open = [CONNECTIONS_MAX, CONNECTIONS_MAX]
        before_ns = time.monotonic_ns()
        load.send(1)
        assert (load.skipped, load.waiting) == (1, 0)
        ((sent_ns, target, status, _),) = load.report()["requests"]
        assert before_ns <= sent_ns <= time.monotonic_ns()
        assert (target, status) == (1, 0)


class TestWire:
    def test_lengths_and_stamps_are_read_in_any_case(self) -> None:
        assert content_length(b"HTTP/1.1 200 OK\r\ncontent-LENGTH: 12\r\nX: y") == 12
        assert content_length(b"HTTP/1.1 200 OK\r\nX: y\r\nContent-Length: 3") == 3
        assert content_length(b"HTTP/1.1 204 No Content") == 0
        assert sent_ns(b"GET / HTTP/1.1\r\nHost: h\r\nx-sent: 123\r\n") == 123
        assert sent_ns(b"GET / HTTP/1.1\r\nHost: h\r\nX-Sent: nonsense\r\n") == 0
        assert sent_ns(b"GET / HTTP/1.1\r\nHost: h\r\n") == 0

    def test_the_origin_keeps_stamps_by_cell_and_says_429_when_told(self) -> None:
        record = Record()
        head = b"GET /r1-1/%s HTTP/1.1\r\nX-Sent: 7\r\n"
        assert record.answer(b"GET /_bench/refuse/a HTTP/1.1\r\n").endswith(b"true")
        assert record.answer(head % b"b").startswith(b"HTTP/1.1 200 ")
        assert record.answer(head % b"a").startswith(b"HTTP/1.1 429 ")
        assert record.answer(head % b"a").startswith(b"HTTP/1.1 200 ")
        said = record.answer(b"GET /_bench/refused/a HTTP/1.1\r\n")
        assert 0 < int(said.rpartition(b"\n")[2]) <= time.monotonic_ns()
        taken = json.loads(record.answer(b"GET /_bench/take/a HTTP/1.1\r\n").rpartition(b"\n")[2])
        assert [stamp[1] for stamp in taken] == [7, 7]
        assert record.answer(b"GET /_bench/take/a HTTP/1.1\r\n").endswith(b"[]")


class TestJudge:
    def test_a_limit_that_is_kept(self) -> None:
        """100/s with a burst of 10, twice of it asked for 11 s."""
        requests = [(i * SECOND // 200, 0, 200 if i % 2 else 429, 0) for i in range(2200)]
        stamps = [(at + 1_000_000, at) for at, _, status, _ in requests if status == 200]
        found = judge.judged(requests, stamps, 100.0, 10.0, 11.0)
        assert found["lost"] == 0
        assert found["admitted"] == 1100
        assert found["peak_1s"] == found["peak_1s_sent"] == 100 / 110
        assert found["peak_10s"] == 1000 / 1010
        assert found["excess"] == 0.0
        assert found["share"] == pytest.approx(1100 / 1110, abs=0.001)

    def test_one_that_is_not(self) -> None:
        requests = [(i * SECOND // 200, 0, 200, 0) for i in range(400)]
        stamps = [(at, at) for at, *_ in requests]
        found = judge.judged(requests, stamps, 100.0, 10.0, 2.0)
        assert found["peak_1s"] == 200 / 110
        assert "peak_10s" not in found
        assert found["excess"] == pytest.approx(400 - 200 - 10, abs=1.5)

    def test_what_is_accepted_is_judged_by_arrival_within_the_run(self) -> None:
        """Half of it is sent at once, the rest when the run is over; one is known by its 500."""
        requests = [(i * SECOND // 100, 0, 202, i * SECOND // 100 + 1_000_000) for i in range(100)]
        requests.append((SECOND - 1, 0, 500, SECOND))
        stamps = [(sent + 3_000_000, sent) for sent, *_ in requests[:50]]
        stamps += [(2 * SECOND, sent) for sent, *_ in requests[50:100]]
        stamps[0] = (500_000, 0)  # before its client had read the 202
        found = judge.judged(requests, stamps, 100.0, 10.0, 1.0)
        assert (found["asked"], found["admitted"], found["lost"]) == (101, 50, 1)
        assert (found["p50_ms"], found["queued_p50_ms"]) == (1.0, 2.0)
        assert "peak_1s_sent" not in found
        assert "excess_sent" not in found

    def test_medians_are_of_the_rounds_that_have_the_figure(self) -> None:
        assert judge.medians([{"a": 1.0}, {"a": 3.0, "b": 5.0}, {"a": 2.0}]) == {"a": 2.0, "b": 5.0}

    def test_a_percentile_is_a_value_that_occurred(self) -> None:
        assert judge.percentile([3.0, 1.0, 2.0], 50) == 2.0
        assert judge.percentile([3.0, 1.0, 2.0], 99) == 3.0

    def test_the_sliding_sum_is_of_the_second_before(self) -> None:
        points = dict(judge.sliding_sum([0, SECOND // 2, SECOND * 3 // 2], 0, 2.0))
        assert (points[0.0], points[0.5], points[0.95], points[1.0], points[1.5]) == (1, 2, 2, 1, 1)

    def test_requests_sent_after_the_429_are_told_from_those_in_flight(self) -> None:
        said = 10 * SECOND
        stamps = [
            [said + 1000, said - 1000],  # in flight
            [said + 2000, said + 1000],  # sent after it
            [said + 2 * SECOND, said + SECOND // 2],  # held until the pause was over
        ]
        assert rows.sent_after(stamps, [said]) == 1.0


class TestReport:
    RESULTS: ClassVar = {
        (3, "uniform-100", "egressd"): {
            "peak_1s": 1.02, "peak_1s_sent": 0.99, "peak_10s": 1.0, "peak_10s_sent": 1.0,
            "share": 0.99, "others": 0.01, "late_ms": 3.0, "lost": 0,
        },
        (3, "uniform-100", "redis"): {
            "peak_1s": 1.2, "peak_1s_sent": 1.3, "share": 1.5, "p99_ms": 7.0, "others": 0.2,
            "late_ms": 9.0, "lost": 4,
        },
    }  # fmt: skip

    def test_each_cell_stands_beside_its_target(self) -> None:
        text = "\n".join(report.lines(self.RESULTS, ROWS, [3, 8]))
        assert "| peak 1 s | ≤ 1.01 | 1.020 / 0.990 half | 1.200 / 1.300 FAIL |" in text
        assert "| peak 10 s | ≤ 1.005 | 1.000 / 1.000 pass | - |" in text
        assert "| share of ideal | ≥ 0.98 | 0.990 pass | 1.500 OVER |" in text
        assert "| ms for an admitted request, p99 |  | - | 7.0 |" in text
        assert "NOT quiet" in text
        assert "4 requests got no answer" in text
        assert "8 nodes" not in text

    def test_the_four_ways_stand_side_by_side(self) -> None:
        def half(p50: float, **more: float) -> dict[str, float]:
            return {"p50_ms": p50, "p99_ms": 9.0, **more}

        results = {
            (3, "half-1000", "direct"): half(0.125, p99_ms=4.0),
            (3, "half-1000", "egressd"): half(0.5),
            (3, "half-1000", "spool"): half(1.625, queued_p50_ms=0.75),
            (3, "partition", "exact"): {"excess": 798.0, "cut_rate": 1.318, "lost": 2},
        }
        ways = report.four_ways(results, 3)
        assert ways[0]["ways"] == {"egressd": 0.375, "spool": 1.5}
        text = "\n".join(report.four_ways_lines(ways, 3))
        assert "| | mesh | exact | redis | spool |" in text
        assert "| ms to the answer above direct, median | 0.38 | - | - | 1.50 |" in text
        assert "| the same, p99 | 5.00 | - | - | 5.00 |" in text
        assert "| ms from acceptance to sending, median | - | - | - | 0.8 |" in text
        assert "| 20 s partition: let through, by R | - | 1.318 | - | - |" in text
        assert "| requests without an answer | - | 2 | - | - |" in text

    def test_nothing_is_above_direct_where_direct_is_not_known(self) -> None:
        ways = report.four_ways({(3, "half-1000", "egressd"): {"p50_ms": 0.5}}, 3)
        assert ways == []
        assert list(report.four_ways_lines(ways, 3)) == []

    def test_what_the_ways_are_compared_by_is_measured_of_all_of_them(self) -> None:
        by_name = {row.name: row for row in ROWS}
        for title, row, _, form, above in report.CHOICES:
            assert all(takes_part(kind, by_name[row], first=True) for kind in WAYS), title
            assert form.format(1.0)
            assert not above or takes_part(Direct, by_name[row], first=True)

    def test_what_is_too_large_here_is_simulated(self) -> None:
        chosen = [row for row in ROWS if row.name in ("uniform-100", "cold-100", "kill")]
        *_, line = report.simulated([2], [row._replace(seconds=2.0) for row in chosen])
        assert line.startswith("| R=B=100, uniform | 2 | ")
        assert float(line.split("|")[3]) <= 1.01

    def test_every_row_has_targets_and_every_target_a_format(self) -> None:
        assert len({row.name for row in ROWS}) == len(ROWS)
        for row in ROWS:
            assert row.targets(8), row.name
            assert all(target.figure in report.FORMATS for target in row.targets(8))
        cold = next(row for row in ROWS if row.shape == "cold")
        assert cold.targets(8)[0].value == 8 + 10

    def test_the_figure_is_a_png_where_something_was_measured(self, tmp_path: Path) -> None:
        program = (
            "import sys; from pathlib import Path; from bench.mesh.figure import plot;"
            "from bench.mesh.lineup import CONTENDERS; from bench.mesh.rows import ROWS;"
            "points = [(i / 20, 100 + i * 37 % 41) for i in range(520)];"
            "curve = {(row.name, kind.name): points for row in ROWS for kind in CONTENDERS"
            " if row.name in ('uniform-100', 'moving', 'partition') and kind.name in row.who};"
            "[plot(Path(path), 3, c, ROWS) for path, c in zip(sys.argv[1:], (curve, {}))]"
        )
        pytest.importorskip("matplotlib")
        paths = [tmp_path / "one.png", tmp_path / "none.png"]
        environ = {
            **os.environ,
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
            "MPLCONFIGDIR": str(tmp_path),
        }
        subprocess.run([sys.executable, "-c", program, *map(str, paths)], env=environ, check=True)
        assert paths[0].read_bytes().startswith(b"\x89PNG")
        assert paths[0].stat().st_size <= 200 * 1024  # for a README
        assert not paths[1].exists()


class TestContenders:
    def conf(self, kind: type[Egressd], tmp_path: Path) -> str:
        contender = kind(Stage(tmp_path, 9, False), 3, False)
        try:
            return contender.conf(1, contender.ports[1])
        finally:
            contender.stop()

    @pytest.mark.parametrize("kind", [*WAYS, StaticSplit])
    def test_our_files_are_good(self, kind: type[Egressd], tmp_path: Path) -> None:
        path = tmp_path / "egressd.toml"
        path.write_text(self.conf(kind, tmp_path))
        conf = load_conf(str(path))
        limits = [upstream.limit[0] for upstream in conf.upstream.values()]
        parts = 3 if kind is StaticSplit else 1
        rates = [round(limit.rate.per_second * parts) for limit in limits if limit.rate]
        assert rates[:2] == [group.rate for group in GROUPS]
        assert {limit.sync for limit in limits} == {kind.sync}
        assert (conf.mesh is None) == (kind is StaticSplit)
        assert (conf.redis is not None) == (kind is Redis)
        spools = [upstream.spool is not None for upstream in conf.upstream.values()]
        assert set(spools) == {kind is Spooled}
        if conf.spool is not None:
            assert Path(conf.spool.path).is_relative_to(tmp_path)

    @pytest.mark.skipif(which("haproxy") is None, reason="haproxy is not installed")
    def test_haproxys_file_is_good(self, tmp_path: Path) -> None:
        contender = Haproxy(Stage(tmp_path, 9, False), 3, False)
        path = tmp_path / "haproxy.cfg"
        path.write_text(contender._conf(1, contender.ports[1]))
        contender.stop()
        argv = [which("haproxy") or "", "-c", "-L", "gw1", "-f", str(path)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def test_names_are_one_each(self) -> None:
        names = [kind.name for kind in CONTENDERS]
        assert len(set(names)) == len(names) == 8
        assert set(COLOURS) == set(names) - {"direct"}
        assert len({kind.title for kind in CONTENDERS}) == 8

    def test_every_row_names_contenders_that_there_are(self) -> None:
        names = {kind.name for kind in CONTENDERS}
        for row in ROWS:
            assert "egressd" in row.who
            assert set(row.who) <= names
        steady = next(row for row in ROWS if row.name == "uniform-100")
        assert takes_part(Exact, steady, first=True)
        assert not takes_part(Exact, steady, first=False)
        assert takes_part(Egressd, steady, first=False)
        assert not takes_part(Egressd, steady._replace(once=True), first=False)

    def test_each_node_reaches_the_store_on_an_address_of_its_own(self, tmp_path: Path) -> None:
        contender = Redis(Stage(tmp_path, 9, False), 3, False)
        contender.stop()
        stores = [link for link in contender.wires.links if link.store]
        assert [link.host for link in stores] == ["127.0.0.2", "127.0.0.3", "127.0.0.4"]
        confs = [contender.conf(number, contender.ports[number]) for number in range(3)]
        for link, conf in zip(stores, confs, strict=True):
            assert f'url = "redis://{link.host}:{link.port}/0"' in conf


class TestWires:
    LINKS = (Link("udp", 11, 0), Link("udp", 12, 1), Link("udp", 13, 2))

    def test_datagrams_are_cut_both_ways_between_groups_only(self) -> None:
        text = rules(self.LINKS, 0.0, ((0, 1), (2,)))
        for one, other in ((11, 13), (13, 11), (12, 13), (13, 12)):
            assert f"udp sport {one} udp dport {other} drop" in text
        assert "sport 11 udp dport 12" not in text

    def test_streams_lose_their_answers_too(self) -> None:
        text = rules((Link("tcp", 11, 0), Link("tcp", 12, 1)), 0.2, ())
        assert "tcp dport { 11, 12 } numgen random mod 10000 < 2000 drop" in text
        assert "tcp sport { 11, 12 } numgen random mod 10000 < 2000 drop" in text
        assert "sport" not in rules(self.LINKS, 0.05, ())

    def test_a_store_is_with_the_last_group_and_gone_for_the_others(self) -> None:
        stores = [Link("tcp", 6379, n, f"127.0.0.{2 + n}", store=True) for n in range(3)]
        text = rules((*self.LINKS, *stores), 0.0, ((0,), (1, 2)))
        assert "ip daddr 127.0.0.2 tcp dport 6379 drop" in text
        assert "ip saddr 127.0.0.2 tcp sport 6379 drop" in text
        assert "127.0.0.3" not in text
        assert "127.0.0.4" not in text
        assert "udp sport 11 udp dport 12 drop" in text
        assert "6379" not in rules((*self.LINKS, *stores), 0.0, ())
        lossy = rules((*self.LINKS, *stores), 0.05, ())
        assert "udp dport { 11, 12, 13 } numgen" in lossy
        assert "tcp dport { 6379 } numgen" in lossy

    def test_what_is_not_relayed_cannot_be_delayed(self) -> None:
        with Wires(self.LINKS, nft=False, relayed=False) as wires:
            assert not wires.can()
            assert not wires.can(delay=True)
            assert wires.front(1) == 12
        with Wires((), nft=False, relayed=False) as wires:
            assert wires.can(delay=True)  # who tells nobody anything loses nothing

    @pytest.mark.skipif(os.geteuid() != 0 or not which("nft"), reason="needs root and nft")
    def test_nft_takes_the_rules(self) -> None:
        store = Link("tcp", 14, 0, "127.0.0.2", store=True)
        text = rules((*self.LINKS, store), 0.05, ((0, 1), (2,)))
        argv = [which("nft") or "nft", "--check", "-f", "-"]
        done = subprocess.run(argv, input=text, text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr


class TestRelay:
    """Two sockets behind fronts: who sends to a front is answered from one."""

    @staticmethod
    def sockets() -> list[socket.socket]:
        made = []
        for _ in range(2):
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.bind(("127.0.0.1", 0))
            sock.settimeout(5.0)
            made.append(sock)
        return made

    def test_datagrams_pass_are_cut_lost_and_delayed(self) -> None:
        one, two = self.sockets()
        fronts = [("127.0.0.1", free_port()) for _ in range(2)]
        pairs = list(zip(fronts, (one.getsockname(), two.getsockname()), strict=True))
        with one, two, Relay(pairs) as relay:
            one.sendto(b"hello", fronts[1])
            assert two.recvfrom(100) == (b"hello", fronts[0])
            two.sendto(b"back", fronts[0])
            assert one.recvfrom(100) == (b"back", fronts[1])
            relay.set(groups=((0,), (1,)))
            one.sendto(b"cut", fronts[1])
            relay.set(groups=(), delay_ms=50.0)
            begun = time.monotonic()
            one.sendto(b"late", fronts[1])
            assert two.recv(100) == b"late"
            assert time.monotonic() - begun >= 0.045
            relay.set(delay_ms=0.0, loss=1.0)
            one.sendto(b"lost", fronts[1])
            relay.set(loss=0.0)
            one.sendto(b"end", fronts[1])
            assert two.recv(100) == b"end"
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
                stranger.sendto(b"who", fronts[1])
                one.sendto(b"last", fronts[1])
                assert two.recv(100) == b"last"
            assert relay.set() == {"passed": 5, "lost": 1, "cut": 1, "strangers": 1}

    def test_streams_are_piped_delayed_and_refused_while_cut(self) -> None:
        front = ("127.0.0.1", free_port())
        with socket.create_server(("127.0.0.1", 0)) as back:
            back.settimeout(5.0)
            with Relay([(front, back.getsockname())]) as relay:
                relay.set(delay_ms=30.0)
                begun = time.monotonic()
                with socket.create_connection(front, timeout=5) as near:
                    far, _ = back.accept()
                    with far:
                        near.sendall(b"ping")
                        assert far.recv(10) == b"ping"
                        far.sendall(b"pong")
                        assert near.recv(10) == b"pong"
                        assert time.monotonic() - begun >= 0.055
                        near.shutdown(socket.SHUT_WR)
                        assert far.recv(10) == b""
                relay.set(groups=((0,),))
                with socket.create_connection(front, timeout=5) as near:
                    assert near.recv(10) == b""


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
