"""Whether an exchange may go now: who asks, the breaker, then all limits; and what follows from it.

An `Admittee` is the half of an exchange that waits; `gateway.proxy.exchange` has the half that
moves octets. Refusals are values (`Blocked`) while waiting can help, and GatewayErrors when not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from gateway.breaker.breaker import Breaker
from gateway.breaker.outcome import Outcome
from gateway.breaker.providers import recognised
from gateway.breaker.signals import ADDRESS, PASS, SPEAKING, Decision, Signal, read_signal
from gateway.breaker.states import GO, BreakerState, Cause
from gateway.clock import SECOND
from gateway.errors import ErrorKind, GatewayError
from gateway.proxy import central, pacing, pauses
from gateway.proxy.clients import ANONYMOUS, Client
from gateway.proxy.counts import RETRY_CREDIT_MAX
from gateway.proxy.keys import credential_of

if TYPE_CHECKING:
    from gateway.breaker.states import Change
    from gateway.breaker.table import Trial
    from gateway.h1.message import Fields, RequestHead, ResponseHead
    from gateway.limits.policy import Refusal
    from gateway.limits.verdict import Entry
    from gateway.proxy.central import Question
    from gateway.proxy.graph import Upstream, Worker

__all__ = [
    "Admittee",
    "Blocked",
    "answered",
    "arrive",
    "ask_anew",
    "ask_once_more",
    "check_access",
    "failed",
    "first_ask",
    "give_back",
    "granted",
    "identify",
    "recognise",
    "refusal_fields",
    "tunnelled",
]

# A request whose token is on its way from another node is held at least so long, whatever `wait`
# says: an answer takes a round trip, and one lost datagram is made good within 20 to 50 ms.
LEASE_WAIT_NS = SECOND // 10
# The head of a queue is looked at so often while its answer from the central store is on its way.
# The answer, or the store's timeout, calls by itself: this only has to be no busy loop.
ANSWER_LOOK_NS = SECOND // 10
LEASE_MIN_NS = SECOND  # a trial that is silent for less is only slow (MESH.md section 4)


class Blocked(NamedTuple):
    """Not now: at which row or breaker to wait, and when asking again can help."""

    blocker: Any
    wait_ns: int
    kind: ErrorKind
    limit: str
    ns_per_token: int  # at the configured rate; 0 where time brings nothing (slots, pauses)
    foreseen: bool = True  # False: `wait_ns` is no forecast, and ends no wait (Entry.foresees)


class Admittee:
    """What breakers, limits and queues know of an exchange."""

    __slots__ = (
        "_credential",
        "admitted",
        "arrival_ns",
        "asked_ns",
        "blocker",
        "certificate_names",
        "client",
        "connected_ns",
        "costs",
        "entries",
        "fields",
        "head",
        "keys",
        "last_blocked",
        "path",
        "question",
        "refusal",
        "sent_epochs",
        "source",
        "trials",
        "upstream",
        "upstream_name",
        "wait_until_ns",
        "waited_ns",
        "worker",
    )

    upstream: Upstream
    fields: Fields
    path: bytes
    keys: tuple[bytes, ...]
    costs: tuple[int, ...]
    entries: tuple[Entry, ...]

    def __init__(
        self, worker: Worker, head: RequestHead, source: str, certificate_names: frozenset[str]
    ) -> None:
        self.worker = worker
        self.head = head
        self.source = source
        self.certificate_names = certificate_names
        self.client: Client = ANONYMOUS
        self.upstream_name = ""
        self.path = b""
        self.arrival_ns = 0
        self.asked_ns = 0  # when its current send was first asked for
        self.wait_until_ns = 0
        self.waited_ns = 0
        self.connected_ns = 0  # when its current send went out
        self.blocker: Any = None  # where it stands; None while it does not wait
        self.question: Question | None = None  # to the central store, on its way
        self.refusal: Refusal | None = None
        self.last_blocked: Blocked | None = None
        self.admitted = False
        self.trials: Sequence[Trial] = ()
        self.sent_epochs = (0, 0)
        self._credential: bytes | None = None

    def credential(self) -> bytes:
        """The keyed hash of the credential as sent upstream; b"" where there is none."""
        known = self._credential
        if known is None:
            known = self._credential = credential_of(self.fields, self.worker.hash_key)
        return known

    # The waitroom's side.

    def fair_flow(self) -> str:
        """The value that turns are fair between."""
        return self.upstream.wait.fair_by(self).decode("latin-1")

    @property
    def cost_weight(self) -> int:
        """What a turn of this request costs its flow, in tokens."""
        return max(self.costs, default=1)

    def try_again(self, now_ns: int) -> Blocked | None:
        """Asks for everything once more; None: admitted and taken."""
        return _ask(self, now_ns)

    def asked_centrally(self, now_ns: int) -> None:
        """The central store has answered, or is gone: the half that moves octets goes on."""
        raise NotImplementedError


def first_ask(exchange: Admittee, now_ns: int) -> Blocked | None:
    """Names the client, finds the rows, and asks. Raises GatewayError where waiting cannot help."""
    identify(exchange)
    wait = exchange.upstream.wait
    max_ns = _preferred_slow(exchange.head.fields, wait.max_ns) if wait.prefer else wait.max_ns
    return arrive(exchange, now_ns + max_ns, now_ns)


def identify(exchange: Admittee) -> None:
    """Names the client. Raises GatewayError where it is unknown or may not use the upstream."""
    client = exchange.worker.runtime.clients.identify(
        exchange.source, exchange.head, exchange.certificate_names
    )
    if client is None:
        raise GatewayError(ErrorKind.CLIENT_UNKNOWN)
    exchange.client = client
    check_access(client, exchange.upstream)


def arrive(exchange: Admittee, wait_until_ns: int, now_ns: int) -> Blocked | None:
    """Counts the request of a client that is known, finds the rows, and asks.

    Raises GatewayError where waiting cannot help.
    """
    upstream = exchange.upstream
    counts = upstream.counts
    counts.requests += 1
    if counts.retry_credit < RETRY_CREDIT_MAX:
        counts.retry_credit += upstream.retry.budget
    _find_keys(exchange, now_ns)
    exchange.wait_until_ns = wait_until_ns
    exchange.asked_ns = now_ns
    return _ask(exchange, now_ns)


def check_access(client: Client, upstream: Upstream) -> None:
    """Whether that client may use that upstream. Raises GatewayError."""
    if client.upstreams and upstream.name not in client.upstreams:
        raise GatewayError(ErrorKind.CLIENT_DENIED, "this client may not use this upstream")


def ask_anew(exchange: Admittee, before: Upstream, now_ns: int) -> Blocked | None:
    """Asks under another Runtime than the one in which the exchange began to wait, at `before`.

    Raises GatewayError.
    """
    central.drop(exchange)
    if exchange.refusal is not None:
        exchange.upstream.limit_set.carry(exchange.refusal, before.limit_set)
    _find_keys(exchange, now_ns)
    return _ask(exchange, now_ns)


def ask_once_more(exchange: Admittee, now_ns: int) -> Blocked | None:
    """Asks for another send of the same request: what it waits from here on is a wait of its own.

    Raises GatewayError.
    """
    exchange.asked_ns = now_ns
    exchange.last_blocked = None
    exchange.refusal = None  # each send is an arrival: it wants tokens of its own
    _find_keys(exchange, now_ns)
    return _ask(exchange, now_ns)


def granted(exchange: Admittee, now_ns: int) -> None:
    """Everything was taken: the exchange goes."""
    upstream = exchange.upstream
    exchange.admitted = True
    counts = upstream.counts
    counts.admitted += 1
    blocked = exchange.last_blocked
    if blocked is not None:
        waited_ns = now_ns - exchange.asked_ns
        exchange.waited_ns += waited_ns
        counts.waited += 1
        counts.wait.observe(waited_ns)
        counts.waited_at[blocked.limit] += 1
    breakers = upstream.breakers
    credential = exchange.credential() if breakers.knows_credentials else None
    if breakers.active:
        lease_ns = max(LEASE_MIN_NS, 2 * counts.slow_head_ns)
        exchange.trials = pauses.begin_trials(
            exchange.worker, upstream, credential, lease_ns, now_ns
        )
    exchange.sent_epochs = breakers.epochs(credential)


def answered(
    exchange: Admittee,
    head: ResponseHead,
    head_time_ns: int,
    now_ns: int,
    body: bytes | None = None,
) -> Signal:
    """A response head came: is it a throttle, a failure, or did the upstream do its work?

    `body` is the beginning of the response's body where it was waited for (`held`).
    """
    upstream = exchange.upstream
    counts = upstream.counts
    status = head.status
    counts.responses[status // 100 if status < 600 else 5] += 1
    counts.head_time.observe(head_time_ns)
    # A decaying maximum stands for the 99th percentile: 1 % less with each response.
    counts.slow_head_ns = max(head_time_ns, counts.slow_head_ns - counts.slow_head_ns // 100)
    if upstream.settled:
        _settle(exchange, head, now_ns)
    trials, exchange.trials = exchange.trials, ()
    worker = exchange.worker
    breakers = upstream.breakers
    changes: Sequence[Change]
    signal = PASS
    lessons = upstream.lessons
    if status >= 400 or now_ns >= lessons.look_ns or body is not None:
        lessons.looked(now_ns)
        if upstream.profile.recognises:
            recognise(upstream, head.fields)
        signal = read_signal(status, head.fields, upstream.profile, worker.wall_ns(), body)
        if signal.advertised is not None:
            lessons.hear(exchange.keys, signal.advertised, exchange.connected_ns, now_ns)
        if signal.pauses:
            if signal.decision is not Decision.PREEMPT:
                told_by = _told_by_slow(upstream, head, worker.wall_ns())
                counts.throttles[told_by] += 1
            changes = _throttled_slow(exchange, signal, trials, now_ns)
            pauses.return_trials(worker, upstream, trials, now_ns)
        elif signal.decision is Decision.NO_RETRY and trials:
            # It says nothing about what opened the breaker: another trial may go.
            changes = ()
            _abandon(exchange, trials, now_ns)
        elif upstream.failure.of_status(status) is Outcome.FAILURE:
            changes = breakers.failed(exchange.sent_epochs, now_ns, worker.chance(), trials)
        else:
            changes = breakers.succeeded(exchange.sent_epochs, now_ns, trials)
    else:
        changes = breakers.succeeded(exchange.sent_epochs, now_ns, trials)
    if changes:
        pauses.report(worker, upstream, changes, now_ns)
    return signal


def tunnelled(exchange: Admittee, now_ns: int) -> None:
    """A CONNECT tunnel is open. That is all that will be seen of the upstream's work, and a trial
    must not last as long as the tunnel: to be reached is to have succeeded."""
    trials, exchange.trials = exchange.trials, ()
    upstream = exchange.upstream
    changes = upstream.breakers.succeeded(exchange.sent_epochs, now_ns, trials)
    if changes:
        pauses.report(exchange.worker, upstream, changes, now_ns)


def recognise(upstream: Upstream, fields: Fields) -> None:
    """Nobody has said whose API this is: where a response's fields do, its dialect is read from
    now on (until a reload)."""
    name = recognised(fields)
    if name is not None:
        upstream.profile = upstream.profile.spoken_by(name)
        upstream.body_statuses = upstream.profile.provider.body_statuses


def _told_by_slow(upstream: Upstream, head: ResponseHead, wall_ns: int) -> str:
    """What showed that a response is a throttle: its status, its fields or its body."""
    if head.status in SPEAKING or head.status in upstream.profile.throttle_statuses:
        return "status"
    by_fields = read_signal(head.status, head.fields, upstream.profile, wall_ns)
    return "provider" if by_fields.pauses else "body"


def _throttled_slow(
    exchange: Admittee, signal: Signal, trials: Sequence[Trial], now_ns: int
) -> Sequence[Change]:
    """The upstream asked for a pause: counts it, and tells whom it concerns."""
    upstream = exchange.upstream
    counts = upstream.counts
    worker = exchange.worker
    if signal.decision is Decision.PREEMPT:
        counts.preempted += 1
    else:
        counts.throttled += 1
    if signal.scope is not None:
        counts.count_scope(signal.scope)
    if signal.concurrency:
        upstream.limit_set.ease(exchange.entries, now_ns)
    changes = upstream.breakers.throttled(
        # A ban of this gateway's address concerns whoever sends from here.
        None if signal.scope == ADDRESS else exchange.credential(),
        exchange.sent_epochs,
        signal.wait_ns,
        now_ns,
        worker.chance(),
        trials,
        # Too many at a time is not too many in a time: the rate was right.
        signal.learns and not signal.concurrency,
        lambda: worker.mesh.others_per_s(upstream),
    )
    return [change._replace(told=signal.scope or "") for change in changes]


def failed(exchange: Admittee, error: GatewayError, now_ns: int) -> None:
    """The upstream could not be reached, or broke off: the breaker counts it."""
    upstream = exchange.upstream
    upstream.counts.failed += 1
    trials, exchange.trials = exchange.trials, ()
    worker = exchange.worker
    if upstream.failure.of_error(error.kind) is Outcome.FAILURE:
        changes = upstream.breakers.failed(exchange.sent_epochs, now_ns, worker.chance(), trials)
        pauses.report(worker, upstream, changes, now_ns)
    else:
        _abandon(exchange, trials, now_ns)


def give_back(exchange: Admittee, now_ns: int) -> None:
    """The exchange is over: slots are free again, a trial without an answer may be tried anew."""
    if not exchange.admitted:
        return
    exchange.admitted = False
    upstream = exchange.upstream
    slots = upstream.slots
    slots.give_back(1, now_ns)
    waitroom = exchange.worker.waitroom
    if slots.waiting is not None:
        waitroom.poke(slots)
    if upstream.limit_set.in_flight:
        upstream.limit_set.release(exchange.entries, exchange.costs, now_ns)
        for entry in exchange.entries:
            if entry.waiting is not None:
                waitroom.poke(entry)
    if exchange.trials:
        trials, exchange.trials = exchange.trials, ()
        _abandon(exchange, trials, now_ns)


def refusal_fields(exchange: Admittee, error: GatewayError) -> Fields:
    """What a refusal by limits says besides Retry-After: the limits' state, and not to retry."""
    if error.kind.status != 429 or not exchange.upstream_name:
        return []
    now_ns = exchange.worker.now_ns()
    limit_set = exchange.upstream.limit_set
    fields = limit_set.fields(limit_set.rows(exchange.keys, now_ns), now_ns)
    if exchange.waited_ns or error.retry_after_ns is None:
        fields.append((b"x-should-retry", b"false"))
    return fields


def _preferred_slow(fields: Fields, max_ns: int) -> int:
    """What `Prefer: wait=N` asks for (RFC 7240 section 4.3), at most `max_ns`."""
    for name, value in fields:
        if name.lower() == b"prefer":
            for preference in value.split(b","):
                token, _, seconds = preference.partition(b";")[0].partition(b"=")
                seconds = seconds.strip().strip(b'"')
                if token.strip().lower() == b"wait" and seconds.isdigit() and len(seconds) < 10:
                    return min(max_ns, int(seconds) * SECOND)
    return max_ns


def _settle(exchange: Admittee, head: ResponseHead, now_ns: int) -> None:
    """The response tells what the request really cost: the rows take the difference."""
    upstream = exchange.upstream
    for i in upstream.settled:
        use = upstream.limit_uses[i]
        for name, value in head.fields:
            if name.lower() == use.settled_by and value.isdigit() and len(value) < 10:
                row: Any = use.limit.entry(exchange.keys[i], now_ns)
                row.settle(exchange.costs[i], int(value), now_ns)
                break


def _find_keys(exchange: Admittee, now_ns: int) -> None:
    upstream = exchange.upstream
    if upstream.fixed_keys is not None:
        exchange.keys = upstream.fixed_keys
        exchange.costs = upstream.fixed_costs
        return
    uses = upstream.limit_uses
    exchange.keys = tuple([b"" if use.key is None else use.key(exchange) for use in uses])
    costs = [1 if use.cost is None else use.cost(exchange) for use in uses]
    for i in upstream.settled:
        row: Any = uses[i].limit.entry(exchange.keys[i], now_ns)
        costs[i] = row.reserve()
    exchange.costs = tuple(costs)


def _ask(exchange: Admittee, now_ns: int) -> Blocked | None:
    upstream = exchange.upstream
    breakers = upstream.breakers
    if breakers.active:
        blocked = _ask_breakers(exchange, now_ns)
        if blocked is not None:
            exchange.last_blocked = blocked
            _leave_row(exchange)
            return blocked
    if upstream.pacer.active:
        blocked = _paced_slow(exchange, now_ns)
        if blocked is not None:
            return blocked
    slots = upstream.slots
    if slots.used >= slots.limit.slots or (
        slots.waiting is not None and exchange.blocker is not slots
    ):
        return _no_connection_slow(exchange, now_ns)
    limit_set = upstream.limit_set
    if limit_set.limits:
        entries = limit_set.rows(exchange.keys, now_ns)
        if upstream.central and central.question(exchange, entries, now_ns) is not None:
            return _asked_slow(exchange, now_ns)
        refusal = limit_set.admit(entries, exchange.costs, now_ns, exchange.refusal)
        if refusal is not None:
            return _blocked_slow(exchange, refusal, now_ns)
        exchange.entries = entries
    slots.take(1, now_ns)
    if upstream.pacer.active:
        pacing.take(exchange, now_ns)
    return None


def _asked_slow(exchange: Admittee, now_ns: int) -> Blocked:
    """Its answer calls. Meanwhile the head of a row's queue stays where it is, and nobody behind it
    is tried; at its deadline it leaves like any other. Whom a breaker held until it closed leaves
    its queue: all of those may ask at once, but of a half-open one only the trial."""
    at = exchange.blocker
    last = exchange.last_blocked
    if (
        last is not None
        and last.kind in (ErrorKind.PAUSED, ErrorKind.BREAKER_OPEN)
        and isinstance(last.blocker, Breaker)
        and last.blocker.state is BreakerState.CLOSED
    ):
        at = None
    limit = exchange.upstream.limit_uses[exchange.upstream.central[0].position].limit
    left_ns = exchange.wait_until_ns - now_ns - 1
    look_ns = max(1, min(ANSWER_LOOK_NS, left_ns))
    return Blocked(at, look_ns, ErrorKind.LIMITED, limit.name, 0, False)


def _paced_slow(exchange: Admittee, now_ns: int) -> Blocked | None:
    """After a pause: whether the pace lets it go."""
    asked = pacing.ask(exchange, now_ns)
    if asked is None:
        return None
    row, wait_ns, each_ns = asked
    _leave_row(exchange)
    kind = ErrorKind.PAUSED if exchange.upstream.pacer.throttled else ErrorKind.BREAKER_OPEN
    blocked = exchange.last_blocked = Blocked(row, wait_ns, kind, "", each_ns)
    return blocked


def _no_connection_slow(exchange: Admittee, now_ns: int) -> Blocked:
    """All connections are in use, or others wait for one already: no limit is asked."""
    slots = exchange.upstream.slots
    _leave_row(exchange)
    wait_ns = slots.ask(1, now_ns) or 1
    blocked = Blocked(slots, wait_ns, ErrorKind.CONNECTIONS_USED_UP, slots.limit.name, 0, False)
    exchange.last_blocked = blocked
    return blocked


def _leave_row(exchange: Admittee) -> None:
    """It moves from a row's queue to another kind of queue: no demand is left at the row."""
    if exchange.refusal is not None:
        exchange.upstream.limit_set.leave(exchange.refusal)


def _blocked_slow(exchange: Admittee, refusal: Refusal, now_ns: int) -> Blocked:
    exchange.refusal = refusal
    use = exchange.upstream.limit_uses[refusal.index]
    name = use.limit.name
    if refusal.retry_after_ns is None:
        raise GatewayError(
            ErrorKind.COST_OVER_BURST,
            f"the cost {exchange.costs[refusal.index]} is over what limit {name} ever gives",
            limit=name,
        )
    blocked = Blocked(
        refusal.entry,
        refusal.retry_after_ns,
        ErrorKind.LIMITED,
        name,
        use.ns_per_token,
        refusal.entry.foresees(exchange.costs[refusal.index], now_ns),
    )
    if use.leased and exchange.blocker is None and refusal.entry.fetching:  # type: ignore[attr-defined]
        exchange.wait_until_ns = max(exchange.wait_until_ns, exchange.asked_ns + LEASE_WAIT_NS)
    exchange.last_blocked = blocked
    return blocked


def _ask_breakers(exchange: Admittee, now_ns: int) -> Blocked | None:
    breakers = exchange.upstream.breakers
    credential = exchange.credential() if breakers.knows_credentials else None
    wait_ns = breakers.ask(credential, now_ns)
    if wait_ns <= GO:
        return None
    breaker = breakers.blocking(credential, now_ns)
    if breaker is None:
        return None
    kind = ErrorKind.PAUSED if breaker.cause is Cause.THROTTLE else ErrorKind.BREAKER_OPEN
    return Blocked(breaker, wait_ns, kind, "", 0, breaker.foresees)


def _abandon(exchange: Admittee, trials: Sequence[Trial], now_ns: int) -> None:
    if trials:
        exchange.upstream.breakers.abandon_trials(trials, now_ns)
        pauses.return_trials(exchange.worker, exchange.upstream, trials, now_ns)
