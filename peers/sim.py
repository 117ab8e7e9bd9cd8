"""One limit under load on a simulated mesh, judged by what its upstream would have seen.

`simulate` is the experiment behind `egressd sim`: the promise of the mesh in numbers for a rate, a
burst and a network of one's own, before any of it is deployed. It runs the real core over
`simnet`, so the same seed gives the same report.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from peers.core.config import MS, SECOND
from peers.core.counters import MeshLimit
from peers.core.events import Event, RowChanged
from peers.core.node import Node
from peers.core.rows import NEVER, ROOM, MeshRow
from peers.simnet import Network, SimNode, Simulation

__all__ = ["Client", "Report", "excess", "ideal", "simulate"]


@dataclass(frozen=True)
class Report:
    """What an upstream saw. `excess` is the most tokens over rate x w + burst in any window;
    `ideal` what one central bucket would have admitted of the same arrivals."""

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
    datagrams_per_second: float
    bytes_per_second: float

    @property
    def share_of_ideal(self) -> float:
        return self.admitted / self.ideal if self.ideal else 1.0


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

    def begin(self, rate: int, burst: int) -> None:
        """Makes the limit on the node's present life and starts to send."""
        node = self.sim.up
        self.limit = node.limit(
            "sim:limit", name="limit", rate_count=rate, rate_period_ns=SECOND, burst=burst
        )
        self.row = self.limit.entry(b"", self.bench.now_ns)
        self._queue.clear()
        self._next(node)

    def _next(self, node: Node) -> None:
        if self.rate <= 0.0:
            self.bench.at(10 * MS, self._next, node)
            return
        gap_ns = int(self.bench.chance.expovariate(self.rate) * SECOND)
        self.bench.at(gap_ns, self._arrive, node)

    def _arrive(self, node: Node) -> None:
        if self.sim.node is not node or self.row is None:
            return
        self._next(node)
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


def _peak(stamps: list[int], window_ns: int, allowed: float) -> float:
    """The fullest window of this length, as a share of what is allowed in it."""
    ordered = sorted(stamps)
    most = 0
    start = 0
    for end, stamp_ns in enumerate(ordered):
        while stamp_ns - ordered[start] >= window_ns:
            start += 1
        most = max(most, end - start + 1)
    return most / allowed


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
    wait_ms: float = 0.0,
    duplicate: float = 0.0,
) -> Report:
    """One limit of `rate` a second under `load` times the rate, over `nodes` members.

    One-way delays are drawn between 0.3 and 1.8 times `delay_ms`; `shares` weighs the nodes' parts
    of the load (even, if not given); requests without room wait up to `wait_ms`.
    """
    low_ns, high_ns = int(delay_ms * 0.3 * MS), int(delay_ms * 1.8 * MS)
    bench = Simulation(nodes, seed, Network(low_ns, high_ns, loss, duplicate))
    bench.start()
    bench.run_until(bench.meshed, 60 * SECOND)
    bench.run_for(10 * SECOND)  # enough probes to measure the delay
    weights = shares or (1.0,) * nodes
    total = sum(weights)
    stamps: list[int] = []
    clients = [
        Client(bench, sim, rate * load * weight / total, int(wait_ms * MS), stamps)
        for sim, weight in zip(bench.nodes, weights, strict=True)
    ]
    for client in clients:
        client.begin(rate, burst)
    datagrams, size = bench.datagrams, bench.bytes
    bench.run_for(int(seconds * SECOND))
    arrivals = [stamp for client in clients for stamp in client.arrivals]
    limit = clients[0].limit
    assert limit is not None
    return Report(
        nodes=nodes,
        seed=seed,
        seconds=seconds,
        arrived=len(arrivals),
        admitted=len(stamps),
        ideal=ideal(arrivals, rate, burst, int(wait_ms * MS), bench.now_ns),
        excess=excess(stamps, rate, burst),
        excess_bound=limit.excess_bound(),
        peak_1s=_peak(stamps, SECOND, rate + burst),
        peak_10s=_peak(stamps, 10 * SECOND, 10 * rate + burst),
        per_node=tuple(client.admitted for client in clients),
        datagrams_per_second=(bench.datagrams - datagrams) / seconds / nodes,
        bytes_per_second=(bench.bytes - size) / seconds / nodes,
    )
