"""Whole nodes in virtual time, and a network that misbehaves on purpose.

A discrete-event simulation: the nodes' real datagrams with delay, loss, duplication, reordering,
partitions and restarts. Hours pass in seconds, and a run is a function of its seed.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from peers.core.config import MS, SECOND, Config
from peers.core.events import Address, Event
from peers.core.node import Node
from peers.core.wire import DATAGRAM_BYTES_MAX

__all__ = ["Network", "SimNode", "Simulation"]

# Virtual time does not start at 0, so that "long ago" is not negative.
_START_NS = 1_000 * SECOND
_BOOT_MS = 1_700_000_000_000


@dataclass
class Network:
    """What befalls a datagram. Delays are drawn evenly between the two bounds, so that datagrams
    overtake each other; `duplicate` and `loss` are probabilities."""

    delay_min_ns: int = 300_000
    delay_max_ns: int = 1_800_000
    loss: float = 0.0
    duplicate: float = 0.0
    groups: dict[Address, int] = field(default_factory=dict)
    cuts: set[tuple[Address, Address]] = field(default_factory=set)

    def partition(self, *groups: list[Address]) -> None:
        """Only members of one group reach each other until `heal`."""
        self.groups = {address: number for number, group in enumerate(groups) for address in group}

    def cut(self, one: Address, other: Address, *, one_way: bool = False) -> None:
        """These two do not reach each other until `heal` (`one_way`: the first not the other);
        others reach both."""
        self.cuts.add((one, other))
        if not one_way:
            self.cuts.add((other, one))

    def heal(self) -> None:
        self.groups = {}
        self.cuts.clear()

    def reaches(self, source: Address, target: Address) -> bool:
        if (source, target) in self.cuts:
            return False
        return self.groups.get(source) == self.groups.get(target)

    def deliveries(self, chance: random.Random) -> Iterator[int]:
        """The delays after which copies of one datagram arrive; none if it is lost."""
        copies = 1 if chance.random() >= self.loss else 0
        if self.duplicate and chance.random() < self.duplicate:
            copies += 1
        for _ in range(copies):
            yield chance.randint(self.delay_min_ns, self.delay_max_ns)


class SimNode:
    """One simulated process: its node while it lives, and the events it was given."""

    def __init__(self, number: int, address: Address) -> None:
        self.number = number
        self.address = address
        self.node: Node | None = None
        self.lives = 0
        self.stopped = False
        self.armed_ns = -1
        self.events: list[tuple[int, Event]] = []
        self.on_event: Callable[[Event], None] | None = None
        self._missed: list[tuple[Callable[..., None], tuple[Any, ...]]] = []

    def misses(self, action: Callable[..., None], *args: Any) -> bool:
        """Whether the process is stopped; if so the action is done as soon as it goes on."""
        if self.stopped and self.node is not None:
            self._missed.append((action, args))
            return True
        return False

    def missed(self) -> list[tuple[Callable[..., None], tuple[Any, ...]]]:
        missed, self._missed = self._missed, []
        return missed

    @property
    def up(self) -> Node:
        """The node; only while it lives."""
        assert self.node is not None
        return self.node


class Simulation:
    """Nodes, the network between them, and a heap of what happens next.

    `checkers` are called after every step of a node with (simulation, sim node) and raise
    AssertionError where a promise is broken.
    """

    def __init__(
        self,
        nodes: int,
        seed: int,
        network: Network | None = None,
        keys: tuple[bytes, ...] = (),
        **knobs: Any,
    ) -> None:
        self.seed = seed
        self.chance = random.Random(seed)  # noqa: S311 - chance for a simulation
        self.network = network or Network()
        self.now_ns = _START_NS
        self.nodes = [SimNode(i, ("127.0.0.1", 7000 + i)) for i in range(nodes)]
        self.checkers: list[Callable[[Simulation, SimNode], None]] = []
        self.datagrams = 0
        self.bytes = 0
        self._keys = keys
        self._knobs = knobs
        self._by_address = {sim.address: sim for sim in self.nodes}
        self._heap: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0

    # -- what tests do

    def start(self, *numbers: int) -> None:
        """Starts these nodes (all, if none is named), or starts them again."""
        for number in numbers or range(len(self.nodes)):
            sim = self.nodes[number]
            sim.lives += 1
            values: dict[str, Any] = {
                "name": f"node-{number}",
                "cluster": "simulated",
                "bind": sim.address,
                "advertise": sim.address,
                "join": tuple(other.address for other in self.nodes if other is not sim),
                "keys": self._keys,
            }
            config = Config(**(values | self._knobs))
            chance = random.Random(self.chance.getrandbits(64))  # noqa: S311
            boot_ms = _BOOT_MS + self.now_ns // MS
            sim.node = Node(config, chance, self.now_ns, boot_ms)
            self.after_step(sim)

    def kill(self, number: int) -> None:
        """As `kill -9`: no word to anybody."""
        sim = self.nodes[number]
        sim.node = None
        sim.stopped = False
        sim.missed()

    def stop(self, number: int) -> None:
        """As SIGSTOP: the process does nothing, and what arrives for it is kept."""
        self.nodes[number].stopped = True

    def resume(self, number: int) -> None:
        """As SIGCONT: what was kept comes in any order, as from many sockets and timers."""
        sim = self.nodes[number]
        sim.stopped = False
        missed = sim.missed()
        self.chance.shuffle(missed)
        for action, args in missed:
            action(*args)

    def at(self, delay_ns: int, action: Callable[..., None], *args: Any) -> None:
        """Does something after a delay."""
        self._count += 1
        heapq.heappush(self._heap, (self.now_ns + delay_ns, self._count, action, args))

    def run_for(self, duration_ns: int) -> None:
        self.run_until_ns(self.now_ns + duration_ns)

    def run_until_ns(self, until_ns: int) -> None:
        """Runs up to a moment, what is due at it included."""
        heap = self._heap
        while heap and heap[0][0] <= until_ns:
            self.now_ns, _, action, args = heapq.heappop(heap)
            action(*args)
        self.now_ns = until_ns

    def run_until(self, condition: Callable[[], bool], within_ns: int) -> int:
        """Runs until the condition holds; returns how long it took. Raises AssertionError."""
        start_ns = self.now_ns
        while not condition():
            if not self._heap or self._heap[0][0] - start_ns > within_ns:
                raise AssertionError(f"seed {self.seed}: not within {within_ns / SECOND} s")
            self.now_ns, _, action, args = heapq.heappop(self._heap)
            action(*args)
        return self.now_ns - start_ns

    def meshed(self) -> bool:
        """Whether every node that is up sees as many live members as there are nodes up."""
        up = [sim.node for sim in self.nodes if sim.node is not None]
        return all(node.live_count() == len(up) for node in up)

    def after_step(self, sim: SimNode) -> None:
        """What a driver does after any call into a node: send, hand on events, arm the timer."""
        node = sim.node
        if node is None:
            return
        for data, address in node.datagrams_to_send(self.now_ns):
            self._send(data, sim.address, address)
        for event in node.events_received():
            sim.events.append((self.now_ns, event))
            if sim.on_event is not None:
                sim.on_event(event)
        target = node.snapshot_target()
        if target is not None:
            self._fetch_snapshot(sim, node, target)
        wake_ns = max(self.now_ns, node.next_wake_ns())
        if wake_ns != sim.armed_ns:
            sim.armed_ns = wake_ns
            self.at(wake_ns - self.now_ns, self._wake, sim, node, wake_ns)
        for checker in self.checkers:
            checker(self, sim)

    # -- the network

    def _send(self, data: bytes, source: Address, target: Address) -> None:
        assert len(data) <= DATAGRAM_BYTES_MAX, f"seed {self.seed}: {len(data)} bytes"
        self.datagrams += 1
        self.bytes += len(data)
        if not self.network.reaches(source, target):
            return
        for delay_ns in self.network.deliveries(self.chance):
            self.at(delay_ns, self._deliver, data, source, target)

    def _deliver(self, data: bytes, source: Address, target: Address) -> None:
        sim = self._by_address.get(target)
        if sim is None or sim.misses(self._deliver, data, source, target):
            return
        if sim.node is not None:
            sim.node.receive_datagram(data, source, self.now_ns)
            self.after_step(sim)

    def _wake(self, sim: SimNode, node: Node, wake_ns: int) -> None:
        if sim.misses(self._wake, sim, node, wake_ns):
            return
        if sim.node is node and sim.armed_ns == wake_ns:
            sim.armed_ns = -1
            node.tick(self.now_ns)
            self.after_step(sim)

    def _fetch_snapshot(self, sim: SimNode, node: Node, target: Address) -> None:
        other = self._by_address.get(target)
        if other is None or not self.network.reaches(sim.address, target):
            node.snapshot_failed()
            return
        request = node.snapshot_request()
        # TCP: one round trip to connect, one for the answer.
        self.at(3 * self.network.delay_max_ns, self._answer, sim, node, other, request)

    def _answer(self, sim: SimNode, node: Node, other: SimNode, request: bytes) -> None:
        if (
            other.node is None
            or other.stopped
            or not self.network.reaches(sim.address, other.address)
        ):
            node.snapshot_failed()
            return
        for record in other.node.snapshot_answer(request, sim.address, self.now_ns):
            delay_ns = self.network.delay_max_ns
            self.at(delay_ns, self._part, sim, node, other.address, record)

    def _part(self, sim: SimNode, node: Node, source: Address, record: bytes) -> None:
        if sim.misses(self._part, sim, node, source, record):
            return
        if sim.node is node:
            node.snapshot_received(record, source, self.now_ns)
            self.after_step(sim)
