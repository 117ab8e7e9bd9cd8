"""What the mesh's bench computes, prints and draws, and what it starts its contenders with."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

import pytest
from bench.mesh import judge, report, rows
from bench.mesh.contenders import GROUPS, Stage
from bench.mesh.figure import COLOURS
from bench.mesh.lineup import CONTENDERS, WAYS, takes_part
from bench.mesh.load import CONNECTIONS_MAX, Load, Spec, content_length, due
from bench.mesh.origin import Record, sent_ns
from bench.mesh.others import Direct, Haproxy
from bench.mesh.ours import Egressd, Exact, Redis, Spooled, StaticSplit
from bench.mesh.rows import ROWS
from bench.mesh.wires import Link, Wires, rules
from bench.packages import which
from fakes.nodes import free_port
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
        found = judge.judged(requests, stamps, 100.0, 10.0, 1.0, held=True)
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
        assert kind.holds == (kind in (Exact, Spooled))
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
