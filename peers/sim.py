"""One limit under load on a simulated mesh, judged by what its upstream would have seen.

`simulate` is the experiment behind `egressd sim`: the promise of the mesh in numbers for a rate, a
burst and a network of one's own, before any of it is deployed. It runs the real core over
`simnet`, so the same seed gives the same report.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from peers.core.config import MS, SECOND
from peers.core.counters import MeshLimit
from peers.core.events import Event, RowChanged
from peers.core.node import Node
from peers.core.rows import NEVER, ROOM, MeshRow
from peers.shapes import Step, steps_of
from peers.simnet import Network, SimNode, Simulation

__all__ = [
    "Client",
    "Report",
    "Run",
    "excess",
    "fairness",
    "ideal",
    "network",
    "peak",
    "run",
    "simulate",
]

_BURST_NS = 5 * MS  # a simultaneous start is one within so long
_TURN_S = 0.25  # how often progress is told, in virtual time


@dataclass(frozen=True)
class Report:
    """What an upstream saw. `excess` is the most tokens over rate x w + burst in any window;
    `ideal` what one central bucket would have admitted of the same arrivals; `peak_*` the fullest
    window as a share of rate x w + burst. Gossip is per node."""

    nodes: int
    seed: int
    seconds: float
    arrived: int
    admitted: int
    ideal: int
    excess: float
    excess_bound: float
    peak_1s: float
    peak_10s: float
    per_node: tuple[int, ...]
    asked_per_node: tuple[int, ...]
    datagrams_per_second: float
    bytes_per_second: float

    @property
    def share_of_ideal(self) -> float:
        return self.admitted / self.ideal if self.ideal else 1.0

    @property
    def fairness(self) -> float:
        return fairness(self.per_node, self.asked_per_node)


class Client:
    """Requests at one node: evenly random arrivals; what finds no room waits, if `wait_ns`."""

    def __init__(
        self, bench: Simulation, sim: SimNode, rate: float, wait_ns: int, stamps: list[int]
    ) -> None:
        self.bench = bench
        self.sim = sim
        self.rate = rate  # requests a second; may be changed while it runs
        self.admitted = 0
        self.arrivals: list[int] = []
        self.limit: MeshLimit | None = None
        self.row: MeshRow | None = None
        self._wait_ns = wait_ns
        self._stamps = stamps
        self._queue: deque[int] = deque()
        self._retry_ns = -1
        sim.on_event = self._event

    def begin(self, rate: int, burst: int, period_ns: int = SECOND) -> None:
        """Makes the limit (`rate` in `period_ns`) on the node's present life and starts to send."""
        node = self.sim.up
        self.limit = self.make_limit(node, rate, burst, period_ns)
        self.row = self.limit.entry(b"", self.bench.now_ns)
        self._queue.clear()
        self._next(node)

    def make_limit(self, node: Node, rate: int, burst: int, period_ns: int) -> MeshLimit:
        """The limit under test; other kinds of limits override this."""
        return node.limit(
            "sim:limit", name="limit", rate_count=rate, rate_period_ns=period_ns, burst=burst
        )

    def flood(self, requests: int) -> None:
        """So many requests beside the others, at random times within 5 ms."""
        for _ in range(requests):
            self.bench.at(self.bench.chance.randint(0, _BURST_NS), self._ask, self.sim.node)

    def _next(self, node: Node) -> None:
        if self.rate <= 0.0:
            self.bench.at(10 * MS, self._next, node)
            return
        gap_ns = int(self.bench.chance.expovariate(self.rate) * SECOND)
        self.bench.at(gap_ns, self._arrive, node)

    def _arrive(self, node: Node) -> None:
        if self.sim.node is node:
            self._next(node)
            self._ask(node)

    def _ask(self, node: Node) -> None:
        if self.sim.misses(self._ask, node):
            return
        if self.sim.node is not node or self.row is None:
            return
        now_ns = self.bench.now_ns
        self.arrivals.append(now_ns)
        self.row.arrive(1, now_ns)
        if not self._queue and self._try():
            pass
        elif self._wait_ns:
            self._queue.append(now_ns + self._wait_ns)
            self.row.waiting = self._queue
            self.row.hold(1)
            self._try_queue()
        self.bench.after_step(self.sim)

    def _event(self, event: Event) -> None:
        if isinstance(event, RowChanged):
            self._try_queue()

    def _try(self) -> bool:
        assert self.row is not None
        now_ns = self.bench.now_ns
        if self.row.ask(1, now_ns) != ROOM:
            return False
        self.row.take(1, now_ns)
        self.admitted += 1
        self._stamps.append(now_ns)
        return True

    def _try_queue(self) -> None:
        row = self.row
        queue = self._queue
        now_ns = self.bench.now_ns
        if row is None:
            return
        while queue:
            if queue[0] < now_ns:
                queue.popleft()
                row.hold(-1)
                continue
            if not self._try():
                break
            queue.popleft()
            row.hold(-1)
        if not queue:
            row.waiting = None
            return
        wait_ns = row.ask(1, now_ns)
        if wait_ns not in (NEVER, ROOM) and not now_ns < self._retry_ns <= now_ns + wait_ns:
            self._retry_ns = now_ns + wait_ns
            self.bench.at(wait_ns, self._retry, self.sim.node, self._retry_ns)

    def _retry(self, node: Node, retry_ns: int) -> None:
        if self.sim.misses(self._retry, node, retry_ns):
            return
        if self.sim.node is node and retry_ns == self._retry_ns:
            self._try_queue()
            self.bench.after_step(self.sim)


def excess(stamps: list[int], rate: float, burst: float) -> float:
    """The most admissions over rate x w + burst in any window w: the peak of one bucket that
    refuses nothing, less its size. `rate` in tokens a second."""
    level = 0.0
    peak = 0.0
    last_ns = 0
    for stamp_ns in sorted(stamps):
        level = max(0.0, level - (stamp_ns - last_ns) * rate / SECOND) + 1.0
        last_ns = stamp_ns
        peak = max(peak, level)
    return max(0.0, peak - burst)


def ideal(arrivals: list[int], rate: float, burst: float, wait_ns: int, end_ns: int) -> int:
    """What one central bucket would admit of these arrivals by `end_ns`, each waiting up to
    `wait_ns`."""
    free_ns = 0.0  # when the bucket's tokens so far are used up, as GCRA's arrival time
    gap_ns = SECOND / rate
    burst_ns = (burst - 1) * gap_ns
    admitted = 0
    for arrival_ns in sorted(arrivals):
        start_ns = max(free_ns, arrival_ns)
        late_ns = max(0.0, start_ns - burst_ns - arrival_ns)
        if late_ns <= wait_ns and arrival_ns + late_ns <= end_ns:
            free_ns = start_ns + gap_ns
            admitted += 1
    return admitted


def peak(stamps: Sequence[int], window_ns: int) -> int:
    """The most stamps in any half-open window of that length."""
    ordered = sorted(stamps)
    return max(
        (bisect_left(ordered, at_ns + window_ns) - i for i, at_ns in enumerate(ordered)), default=0
    )


def fairness(admitted: Sequence[int], asked: Sequence[int]) -> float:
    """Jain's index of the parts that nodes got of what they asked for: 1 where all got the same
    part, 1/n where one got all (Jain, Chiu, Hawe 1984)."""
    parts = [got / wanted for got, wanted in zip(admitted, asked, strict=True) if wanted]
    squares = sum(part * part for part in parts)
    return sum(parts) ** 2 / (len(parts) * squares) if squares else 1.0


class Run:
    """One experiment under way: a mesh that has met, a limit on it, and clients that follow a
    shape. `stamps` are all admissions, `start_ns` is when the load began."""

    def __init__(
        self,
        bench: Simulation,
        steps: Sequence[Step],
        rate: int,
        burst: int,
        load: float,
        *,
        period_ns: int = SECOND,
        wait_ms: float = 0.0,
    ) -> None:
        bench.start()
        bench.run_until(bench.meshed, 60 * SECOND)
        bench.run_for(10 * SECOND)  # enough probes to measure the delay
        self.bench = bench
        self.start_ns = bench.now_ns
        self.stamps: list[int] = []
        self._per_s = rate * SECOND / period_ns
        self._offered = self._per_s * load
        self._burst = burst
        self._wait_ns = int(wait_ms * MS)
        self._datagrams, self._bytes = bench.datagrams, bench.bytes
        self.clients = [Client(bench, sim, 0.0, self._wait_ns, self.stamps) for sim in bench.nodes]
        for number, client in enumerate(self.clients):
            # The first step is in force before the first gap is drawn.
            client.rate = self._offered * steps[0].parts[number] if steps[0].at_s <= 0.0 else 0.0
            client.begin(rate, burst, period_ns)
        for step in steps:
            bench.at(int(step.at_s * SECOND), self._enter, step)

    def _enter(self, step: Step) -> None:
        for client, part in zip(self.clients, step.parts, strict=True):
            client.rate = self._offered * part
            if step.burst:
                client.flood(self._burst + 1)

    def report(self, seed: int) -> Report:
        """What came of it until now."""
        bench = self.bench
        seconds = (bench.now_ns - self.start_ns) / SECOND
        nodes = len(self.clients)
        arrivals = [stamp for client in self.clients for stamp in client.arrivals]
        limit = self.clients[0].limit
        assert limit is not None
        per_s, burst = self._per_s, self._burst
        return Report(
            nodes=nodes,
            seed=seed,
            seconds=seconds,
            arrived=len(arrivals),
            admitted=len(self.stamps),
            ideal=ideal(arrivals, per_s, burst, self._wait_ns, bench.now_ns),
            excess=excess(self.stamps, per_s, burst),
            excess_bound=limit.excess_bound(),
            peak_1s=peak(self.stamps, SECOND) / (per_s + burst),
            peak_10s=peak(self.stamps, 10 * SECOND) / (10 * per_s + burst),
            per_node=tuple(client.admitted for client in self.clients),
            asked_per_node=tuple(len(client.arrivals) for client in self.clients),
            datagrams_per_second=(bench.datagrams - self._datagrams) / seconds / nodes,
            bytes_per_second=(bench.bytes - self._bytes) / seconds / nodes,
        )


def run(experiment: Run, seconds: float, progress: Callable[[float], None] | None = None) -> None:
    """Runs for so long in virtual time; `progress` is told which part is done."""
    turns = max(1, int(seconds / _TURN_S))
    for turn in range(turns):
        experiment.bench.run_until_ns(
            experiment.start_ns + int(seconds * SECOND) * (turn + 1) // turns
        )
        if progress is not None:
            progress((turn + 1) / turns)


def network(delay_ms: float, loss: float = 0.0, duplicate: float = 0.0) -> Network:
    """One-way delays drawn evenly between 0.3 and 1.8 times `delay_ms`."""
    return Network(int(delay_ms * 0.3 * MS), int(delay_ms * 1.8 * MS), loss, duplicate)


def simulate(
    nodes: int,
    rate: int,
    burst: int,
    loss: float = 0.0,
    delay_ms: float = 1.0,
    load: float = 2.0,
    seconds: float = 20.0,
    seed: int = 1,
    *,
    shares: tuple[float, ...] | None = None,
    shape: str = "uniform",
    wait_ms: float = 0.0,
    duplicate: float = 0.0,
) -> Report:
    """One limit of `rate` a second under `load` times the rate, over `nodes` members.

    The load has a `shape` of SHAPES, or `shares` weighs the nodes' parts of it; requests without
    room wait up to `wait_ms`.
    """
    bench = Simulation(nodes, seed, network(delay_ms, loss, duplicate))
    if shares is None:
        steps = steps_of(shape, nodes, seconds)
    else:
        steps = [Step(0.0, tuple(share / sum(shares) for share in shares))]
    experiment = Run(bench, steps, rate, burst, load, wait_ms=wait_ms)
    run(experiment, seconds)
    return experiment.report(seed)
