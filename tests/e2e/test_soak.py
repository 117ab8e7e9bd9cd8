"""Real nodes for a long time: killed, restarted, cut off, reloaded at random, and always healed.

`EGRESSD_SOAK_S` says how long (60 s; an hour does no harm), `EGRESSD_SOAK_SEED` which faults. After
every heal the mesh must converge; in the end the limit was kept, nothing grew, nobody complained.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from fakes.load import Load
from fakes.nodes import NodeProcess, free_ports, until
from fakes.origin import Origin
from fakes.relay import Relay

from peers.sim import peak

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SECOND = 1_000_000_000
SOAK_S = float(os.environ.get("EGRESSD_SOAK_S", "60"))
SEED = int(os.environ.get("EGRESSD_SOAK_SEED", "1"))
NODES = 4
RATE = 60
BURST = 60
OFFERED = 90.0
CONVERGED_S = 12.0  # join addresses and dead members are tried every 2 s; the machine may be busy
# What a window may see beside rate * w + burst (PROTOCOL.md section 6): the mesh's own, and for
# each fault what peers' old rates let through for half a second and what nobody was told in time.
OVER = NODES + 0.08 * BURST
OVER_PER_FAULT = 0.6 * RATE
FAULTS_IN_10S = 3  # a fault and its heal take four seconds or so
RSS_GROWTH_MAX = 8 << 20
FDS_GROWTH_MAX = 20

UPSTREAM = """
[[upstream.api.limit]]
name = "account"
rate = "{rate}/s"
burst = {burst}
[upstream.api.wait]
max = "{wait}"
"""
WAITS = ("0s", "200ms")

MakeConf = Callable[..., str]


class Soak:
    """The nodes, the network between them, and what was done to them."""

    def __init__(self, folder: Path, origin: Origin, make_conf: MakeConf, stack: ExitStack) -> None:
        self.chance = random.Random(SEED)
        self.wait = 0
        self.kills: list[int] = []
        self.done: list[str] = []
        self._origin = origin
        self._make_conf = make_conf
        ports, fronts = free_ports(NODES), free_ports(NODES)
        pairs = [
            (("127.0.0.1", front.mesh), ("127.0.0.1", port.mesh))
            for front, port in zip(fronts, ports, strict=True)
        ]
        self.relay = stack.enter_context(Relay(pairs, SEED))
        self.nodes: list[NodeProcess] = []
        self._fronts = [front.mesh for front in fronts]
        for number, port in enumerate(ports):
            node = NodeProcess(f"gw-{number}", folder, port, "")
            node.path.write_text(self.conf(number, node))
            stack.callback(node.close)
            node.start()
            self.nodes.append(node)
        stack.callback(lambda: [node.ask_to_end() for node in self.nodes])
        for node in self.nodes:
            node.wait_ready()
        self.converge()

    def conf(self, number: int, node: NodeProcess) -> str:
        front = self._fronts[number]
        join = [f"127.0.0.1:{other}" for other in self._fronts if other != front]
        mesh = (
            f'[mesh]\ncluster = "soak"\nbind = "127.0.0.1:{node.ports.mesh}"\n'
            f'advertise = "127.0.0.1:{front}"\njoin = {json.dumps(join)}\n'
        )
        upstream = UPSTREAM.format(rate=RATE, burst=BURST, wait=WAITS[self.wait])
        return self._make_conf(node.name, node.ports, self._origin.url, upstream, mesh)

    def converge(self) -> None:
        """Until all know all as alive and think much the same of the bucket."""
        names = sorted(node.name for node in self.nodes)
        why = f"seed {SEED}: converged after {self.done[-1:] or 'the start'}"
        until(lambda: all(node.live_members() == names for node in self.nodes), CONVERGED_S, why)

        def agreed() -> bool:
            levels = [node.upstream()["limits"][0]["level"] for node in self.nodes]
            # They are asked one after the other, some 50 ms on a busy machine.
            return max(levels) - min(levels) <= 0.3 * RATE

        until(agreed, CONVERGED_S, why)

    def fault(self) -> None:
        """One thing goes wrong, for a while, and is put right again."""
        kinds = (self.kill, self.restart, self.partition, self.lose, self.reload)
        kind = self.chance.choice(kinds)
        self.done.append(kind.__name__)
        kind()
        self.converge()

    def kill(self) -> None:
        node = self.victim()
        node.kill()
        self.kills.append(time.monotonic_ns())
        self.stay(0.2, 3.0)
        node.start()
        node.wait_ready()

    def restart(self) -> None:
        node = self.victim()
        assert node.terminate() == 0
        self.stay(0.0, 1.0)
        node.start()
        node.wait_ready()

    def partition(self) -> None:
        numbers = list(range(NODES))
        self.chance.shuffle(numbers)
        cut = self.chance.randrange(1, NODES)
        self.relay.set(groups=(numbers[:cut], numbers[cut:]))
        self.stay(1.0, 5.0)
        self.relay.set(groups=())

    def lose(self) -> None:
        self.relay.set(loss=0.3)
        self.stay(1.0, 3.0)
        self.relay.set(loss=0.0)

    def reload(self) -> None:
        """A rolling one, so that for a moment the files differ."""
        self.wait = 1 - self.wait
        for number, node in enumerate(self.nodes):
            node.reload(self.conf(number, node))
        self.stay(0.5, 1.0)

    def victim(self) -> NodeProcess:
        """Never the first: its memory is watched from the beginning to the end."""
        return self.chance.choice(self.nodes[1:])

    def stay(self, low_s: float, high_s: float) -> None:
        """Lets it be as it is: how long is part of the fault, nothing is waited for."""
        time.sleep(self.chance.uniform(low_s, high_s))


@pytest.fixture
def soak(tmp_path: Path, origin: Origin, make_conf: MakeConf) -> Iterator[Soak]:
    with ExitStack() as stack:
        yield Soak(tmp_path, origin, make_conf, stack)


def resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def grown(values: list[int]) -> float:
    """From the first third of the samples to the last, each by its median."""
    third = max(1, len(values) // 3)
    return statistics.median(values[-third:]) - statistics.median(values[:third])


def test_faults_at_random(soak: Soak, origin: Origin) -> None:
    print(f"EGRESSD_SOAK_SEED={SEED} EGRESSD_SOAK_S={SOAK_S:g}")
    pid = soak.nodes[0].pid
    memory: list[int] = []
    files: list[int] = []
    addresses = [node.address for node in soak.nodes]
    with Load(addresses, OFFERED) as load:
        load.go_on(3.0)
        end_s = time.monotonic() + SOAK_S
        while time.monotonic() < end_s:
            soak.fault()
            memory.append(resident_bytes(pid))
            files.append(open_files(pid))
        soak.relay.set(loss=0.0, groups=())
        load.go_on(3.0)
    where = f"seed {SEED}, faults {soak.done}"
    stamps = [request.at_ns for request in list(origin.requests)]
    sent = [request.at_ns for request in load.sent if request.status == 200]
    judge_bound(stamps, sent, where)
    # Most of the rate was used, whatever happened: a cut-off side works at its part.
    used_s = (max(stamps) - min(stamps)) / SECOND
    assert len(stamps) >= 0.7 * RATE * used_s, where
    lost = [s.at_ns for s in load.failures if not near(s.at_ns, soak.kills)]
    assert not lost, f"{where}: {len(lost)} requests were lost that no kill explains"
    assert grown(memory) <= RSS_GROWTH_MAX, f"{where}: {memory}"
    assert grown(files) <= FDS_GROWTH_MAX, f"{where}: {files}"
    for node in soak.nodes:
        errors = [line for line in node.log() if line.get("level") in ("error", "critical")]
        assert not errors, f"{where}: {errors}"
        figures = node.document()
        assert figures["members"][0]["state"] == "alive"
        assert figures["counts"].get("access_log_dropped", 0) == 0


def judge_bound(stamps: list[int], sent: list[int], where: str) -> None:
    """By arrival or by sending: on a busy machine either alone may bunch what was not."""
    for window_s, faults in ((1, 1), (10, FAULTS_IN_10S)):
        allowed = RATE * window_s + BURST + OVER + faults * OVER_PER_FAULT
        fullest = min(peak(times, window_s * SECOND) for times in (stamps, sent))
        assert fullest <= allowed, f"{where}: {fullest} in {window_s} s, {allowed:.0f} are allowed"


def near(at_ns: int, kills: list[int]) -> bool:
    """Whether a request was under way at, or sent to, a node that was being killed."""
    return any(-SECOND // 2 <= at_ns - kill_ns <= 3 * SECOND // 2 for kill_ns in kills)
