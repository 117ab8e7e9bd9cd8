"""The types of a Runtime: what a worker obeys, compiled from the conf and never the conf itself.

`gateway.runtime` builds these; a reload builds new ones and swaps one reference. What outlives a
reload (limits with their rows, breakers, pools whose way out did not change) is shared by the old
graph and the new one.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from gateway.breaker.outcome import FailureRule
from gateway.clock import monotonic_ns, wall_ns
from gateway.errors import GatewayError, Termination
from gateway.h1.codec import Codec, HeadLimits
from gateway.h1.dates import HttpDate
from gateway.h1.message import HTTP_2
from gateway.h1.trace import is_request_id
from gateway.limits.central import NoStore
from gateway.limits.verdict import Limit
from gateway.proxy.clients import ClientTable
from gateway.proxy.deadlines import Wheel
from gateway.proxy.flow import READ_BYTES
from gateway.proxy.targets import ForwardTable
from gateway.routes import RouteTable

if TYPE_CHECKING:
    import ssl

    from gateway.breaker.providers import Profile
    from gateway.breaker.states import Change
    from gateway.breaker.table import BreakerTable
    from gateway.h1.forward import FieldRules
    from gateway.limits.central import CentralRow
    from gateway.limits.inflight import InflightRow
    from gateway.limits.lessons import Lessons
    from gateway.limits.pacer import Pacer
    from gateway.limits.policy import LimitSet
    from gateway.proxy.admission import Admittee
    from gateway.proxy.central import Question
    from gateway.proxy.clients import Network
    from gateway.proxy.counts import UpstreamCounts
    from gateway.proxy.downstream import DownstreamProtocol
    from gateway.proxy.pool import Pool
    from gateway.proxy.preface import Preface
    from gateway.proxy.relay import Relay
    from gateway.proxy.spooling import SpoolDoor, SpoolRule
    from gateway.proxy.waitroom import WaitRoom
    from gateway.waiting.fair_queue import Budget

__all__ = [
    "AccessRecord",
    "CentralUse",
    "KeyPart",
    "LimitUse",
    "Listener",
    "Mesh",
    "RetryRule",
    "Runtime",
    "Store",
    "Timeouts",
    "Upstream",
    "Wait",
    "Worker",
]

KeyPart = Callable[["Admittee"], bytes]

# Access records between two drains; at 30,000 requests/s that is two seconds.
RING_MAX: Final = 65_536


class Timeouts(NamedTuple):
    """All in nanoseconds; 0 is none."""

    response_ns: int
    body_idle_ns: int
    total_ns: int
    tunnel_ns: int


class RetryRule(NamedTuple):
    """What is sent again: `on` has the statuses and errors, `budget` retries per request."""

    on: FailureRule
    attempts: int
    budget: float
    body_bytes_max: int
    all_methods: bool


class Wait(NamedTuple):
    """What happens to a request that no limit lets through now."""

    max_ns: int
    fair_by: KeyPart
    prefer: bool  # whether `Prefer: wait=N` may shorten it, or set it up to `max_ns`


class LimitUse(NamedTuple):
    """A limit as an upstream uses it."""

    limit: Limit
    key: KeyPart | None  # None: one counter serves all
    cost: Callable[[Admittee], int] | None  # None: always 1
    ns_per_token: int  # at the configured rate; 0 for slots
    by_credential: bool  # its rows are credentials, so a credential's pause concerns one of them
    fill: Callable[[int], None] | None  # takes every row's burst away, as a pause has ended
    scale: Callable[[float, int], None] | None  # lets it drain at a part of its rate
    leased: bool = False  # its tokens come from another node, see `admission.LEASE_WAIT_NS`
    settled_by: bytes = b""  # the response field that tells the true cost, lower case


class CentralUse(NamedTuple):
    """Which of an upstream's limits a central store keeps, and whether `Settled` is around it."""

    position: int
    settled: bool


class AccessRecord(NamedTuple):
    """What the access log gets of an exchange; durations are nanoseconds."""

    wall_ns: int
    source: str
    client: str
    listener: str
    upstream: str
    method: bytes
    host: bytes
    target: bytes
    status: int
    bytes_in: int
    bytes_out: int
    request_ns: int  # for the head to come
    waited_ns: int
    connect_ns: int  # -1, as the next: it did not come to that
    response_ns: int
    total_ns: int  # since the head's first octet
    attempts: int
    limit: str  # where it waited last, or was refused
    number: int
    request_id: bytes  # X-Request-Id and traceparent as they came
    traceparent: bytes
    termination: Termination
    error: GatewayError | None


class Upstream:
    """An external API, compiled. `host_header` is None where Host is sent on as received."""

    __slots__ = (
        "body_statuses",
        "breakers",
        "central",
        "counts",
        "failure",
        "fixed_costs",
        "fixed_keys",
        "host_header",
        "lessons",
        "limit_set",
        "limit_uses",
        "name",
        "pacer",
        "pool",
        "profile",
        "queue_budget",
        "retry",
        "rules",
        "settled",
        "slots",
        "spool",
        "timeouts",
        "tunnel_denied",
        "tunnels",
        "wait",
    )

    name: str
    host_header: bytes | None
    pool: Pool
    limit_set: LimitSet
    lessons: Lessons
    limit_uses: tuple[LimitUse, ...]
    central: tuple[CentralUse, ...]  # none, but with `sync = "redis"`
    slots: InflightRow  # its connections, each exchange that was admitted holds one
    fixed_keys: tuple[bytes, ...] | None  # None: keys or costs differ from request to request
    fixed_costs: tuple[int, ...]
    queue_budget: Budget
    wait: Wait
    breakers: BreakerTable
    pacer: Pacer  # active for a while after a pause, where no rate limit is
    failure: FailureRule
    profile: Profile
    body_statuses: frozenset[int]  # responses that are judged by their bodies too
    rules: FieldRules | None
    timeouts: Timeouts
    settled: tuple[int, ...]  # the limits whose costs responses tell
    retry: RetryRule
    spool: SpoolRule | None  # None: nothing is accepted for it that is not sent at once
    tunnels: Pool
    tunnel_denied: str  # why CONNECT is refused and what to use instead; "": it is allowed
    counts: UpstreamCounts


class Runtime(NamedTuple):
    """Everything that a request may ask the configuration. `generation` counts reloads."""

    generation: int
    routes: RouteTable[Upstream]
    by_origin: dict[tuple[bytes, bytes, int], Upstream]
    forward: ForwardTable
    upstreams: dict[str, Upstream]
    clients: ClientTable
    spool_nodes: dict[str, Callable[[], Upstream | None]]  # the way to the other nodes' records
    head_timeout_ns: int
    idle_timeout_ns: int
    access_log: bool
    access_sample: float  # the share of what went well that the log gets


class Mesh(Protocol):
    """What the data path tells the other nodes; `gateway.mesh` joins it to `peers`."""

    hash_key: bytes

    def breaker_changed(self, upstream: Upstream, change: Change, now_ns: int) -> None: ...

    def trial_begun(
        self, upstream: Upstream, scope: bytes, epoch: int, until_ns: int, now_ns: int
    ) -> None: ...

    def trial_returned(self, upstream: Upstream, scope: bytes, epoch: int, now_ns: int) -> None:
        """The trial that this node began has no outcome: another node may send one."""
        ...

    def tripped(self, upstream: Upstream, tripped: bool, now_ns: int) -> None:
        """This node finds the upstream failing, or well again: its vote."""
        ...

    def others_per_s(self, upstream: Upstream) -> float:
        """Tokens a second that the other nodes take from this upstream together."""
        ...

    def trial_at_ns(self, upstream: Upstream, change: Change, now_ns: int) -> int:
        """When this node may send the trial of an opened breaker."""
        ...


class Store(Protocol):
    """The central store as the data path sees it (`gateway.connectors.redis_store`)."""

    up: bool
    epoch: int

    def ask(self, question: Question, now_ns: int) -> bool:
        """Sends it; the answer is a call. False: the store is down, nothing was sent."""
        ...

    def charge(self, row: CentralRow, cost: int, now_ns: int) -> None: ...

    def document(self) -> dict[str, Any] | None:
        """What the admin interface shows; None where no store is configured."""
        ...


class Listener:
    """A bound address: its limits, and who is connected through it.

    With `proxied_by` a PROXY header comes first and is believed from these sources. With `context`
    TLS is begun, behind the header if there is one, by tasks that stand in `handshakes`.
    """

    __slots__ = (
        "connections",
        "connections_max",
        "context",
        "handshakes",
        "head_limits",
        "name",
        "proxied_by",
    )

    def __init__(
        self,
        name: str,
        head_limits: HeadLimits,
        connections_max: int,
        proxied_by: Sequence[Network] = (),
        context: ssl.SSLContext | None = None,
    ) -> None:
        self.name = name
        self.head_limits = head_limits
        self.connections_max = connections_max
        self.proxied_by = proxied_by
        self.context = context
        self.connections: set[DownstreamProtocol | Preface] = set()
        self.handshakes: set[asyncio.Task[None]] = set()

    def admit_preface(self, preface: Preface) -> bool:
        """As `admit`, for one that may have a handshake before it: those are bounded by this."""
        if len(self.connections) + len(self.handshakes) >= self.connections_max:
            return False
        return self.admit(preface)

    def admit(self, connection: DownstreamProtocol | Preface) -> bool:
        if len(self.connections) >= self.connections_max:
            return False
        self.connections.add(connection)
        return True

    def leave(self, connection: DownstreamProtocol | Preface) -> None:
        self.connections.discard(connection)

    def end_handshakes(self) -> None:
        """Drops those whose TLS has not begun to carry a request."""
        for task in self.handshakes:
            task.cancel()


class Worker:
    """What all connections of one process share."""

    __slots__ = (
        "_unwritten",
        "chance",
        "codec",
        "counts",
        "date",
        "draining",
        "id_prefix",
        "loop",
        "mesh",
        "note_bad_header",
        "note_change",
        "now_ns",
        "pseudonym",
        "read_buffer",
        "requests",
        "ring",
        "ring_dropped",
        "runtime",
        "spool",
        "store",
        "via",
        "waitroom",
        "wall_ns",
        "wheel",
    )

    runtime: Runtime
    mesh: Mesh
    waitroom: WaitRoom

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        codec: Codec,
        pseudonym: bytes,
        chance: Callable[[], float],
    ) -> None:
        self.loop = loop
        self.codec = codec
        self.pseudonym = pseudonym
        self.via = b"1.1 " + pseudonym
        self.chance = chance
        self.date = HttpDate()
        self.now_ns = monotonic_ns
        self.wall_ns = wall_ns
        self.wheel = Wheel(loop)
        self.read_buffer = memoryview(bytearray(READ_BYTES))
        self.draining = False
        self.spool: SpoolDoor | None = None
        self._unwritten: list[Relay] = []
        self.store: Store = NoStore()
        self.note_change: Callable[[str, Change], None] = _nothing
        self.note_bad_header: Callable[[str, str, str], None] = _nothing_bad
        self.counts: dict[str, int] = defaultdict(int)
        self.requests = 0  # numbered, so that each can be named; see `request_id_slow`
        # 2^48: for two processes of a year's 100,000 to begin alike, the odds are 1 to 56,000.
        self.id_prefix = b"%012x" % int(chance() * (1 << 48))
        self.ring: list[AccessRecord] = []
        self.ring_dropped = 0

    @property
    def hash_key(self) -> bytes:
        """What credentials are hashed with: the same on all nodes of a mesh."""
        return self.mesh.hash_key

    def via_slow(self, minor: int) -> bytes:
        """Our entry in Via for what did not come in HTTP/1.1 (RFC 9110 section 7.6.3)."""
        return (b"2.0 " if minor == HTTP_2 else b"1.0 ") + self.pseudonym

    def flush_later(self, relay: Relay) -> None:
        """Lets a connection write at the end of this turn, with all others that have to."""
        if not self._unwritten:
            self.loop.call_soon(self._flush_all)
        self._unwritten.append(relay)

    def _flush_all(self) -> None:
        unwritten, self._unwritten = self._unwritten, []
        for relay in unwritten:
            relay.flush_now()

    def count(self, name: str) -> None:
        """Counts something rare under its name."""
        self.counts[name] += 1

    def request_id_slow(self, number: int, told: bytes = b"") -> bytes:
        """How a request is called in the log and in our own answers: as its client `told`, or else
        by its number among all that this process saw."""
        return told if is_request_id(told) else b"%b-%x" % (self.id_prefix, number)

    def refused(self, error: GatewayError, source: str, listener: str, request_ns: int) -> bytes:
        """Counts and logs a request that never became an exchange; returns its id."""
        self.counts["bad_requests_" + error.kind.name.lower()] += 1
        self.requests = number = self.requests + 1
        if self.runtime.access_log:
            status = error.kind.status
            unknown = (self.wall_ns(), source, "", listener, "", b"", b"", b"", status, 0, 0)
            timers = (request_ns, 0, -1, -1, request_ns)
            names = ("", number, b"", b"")
            self.record(AccessRecord(*unknown, *timers, 0, *names, error.termination, error))
        return self.request_id_slow(number)

    def record(self, access: AccessRecord) -> None:
        """One access record for the log; dropped and counted where the ring is full."""
        if len(self.ring) < RING_MAX:
            self.ring.append(access)
        else:
            self.ring_dropped += 1


def _nothing(upstream: str, change: Change) -> None:
    """The default of `note_change`: nobody logs."""


def _nothing_bad(listener: str, peer: str, reason: str) -> None:
    """The default of `note_bad_header`, likewise."""
