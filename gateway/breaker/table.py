"""The breakers of one upstream behind one question: may this request go, and how long if not.

A failure is the upstream's: nobody gets through. A throttle belongs to the credential that was
told to wait, or to the upstream where the policy says so or no credential was sent: one customer's
exhausted quota must not stop the others. Breakers of credentials are made when the first throttle
comes and dropped when they have been closed for a while.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence

from gateway.breaker.breaker import Breaker
from gateway.breaker.outcome import Outcome
from gateway.breaker.ramp import Ramp
from gateway.breaker.states import GO, LOCAL, TRIAL, BreakerPolicy, BreakerState, Cause, Change

__all__ = ["BreakerTable", "Trial"]

Trial = tuple[Breaker, int]  # a breaker whose trial a request is, and the trial's epoch

# How long a closed credential's breaker is kept: its epoch has to outlive the requests that were
# under way when it closed, and the peers' copies of it.
_KEEP_NS = 60_000_000_000

# How many of the oldest breakers a full table looks at to make room for one.
_LOOKS_MAX = 8

_NOTHING: tuple[Change, ...] = ()


def _nobody_else() -> float:
    """The rate of the others where a node stands alone."""
    return 0.0


class BreakerTable:
    """All the breakers of one upstream: its `own` one and those of credentials.

    With `by_majority` there is `local` too, which trips on this node's failures: they may be its
    own network's, so the upstream's breaker opens, for all nodes, only when `spread` is called.

    `active` counts those that are not closed, or forced open. `before_per_s` is the rate that
    succeeded before the first of them opened, None: not measured.

    The methods that end a request return what the mesh is to hear. `trials` is what
    `begin_trials` returned for that request, `epochs` the stamp that it got when it was sent.
    `ramp` gives the factor for the upstream's smooth limits; on a Change to CLOSED the caller
    also takes their burst away (`fill`).
    """

    __slots__ = (
        "_by_credential",
        "_epoch_floor",
        "_open",
        "_plain_epochs",
        "active",
        "before_per_s",
        "credentials_max",
        "local",
        "own",
        "policy",
        "ramp",
    )

    def __init__(
        self,
        policy: BreakerPolicy,
        now_ns: int,
        full_per_s: float = 0.0,
        credentials_max: int = 10_000,
        *,
        by_majority: bool = False,
    ) -> None:
        """`full_per_s`: see Ramp. Above `credentials_max` breakers the oldest one goes."""
        self.policy = policy
        self.credentials_max = credentials_max
        self.own = Breaker(policy, now_ns)
        self.local = Breaker(policy, now_ns, LOCAL) if by_majority else None
        self.ramp = Ramp(full_per_s, policy.ramp_ns)
        self.active = 0
        self.before_per_s: float | None = None
        self._open: set[Breaker] = set()
        self._by_credential: OrderedDict[bytes, Breaker] = OrderedDict()
        # A credential's breaker that is made anew continues at the highest epoch that was
        # forgotten, or its news would lose against what the peers still remember.
        self._epoch_floor = 0
        self._plain_epochs = (0, 0)

    def configure(self, policy: BreakerPolicy, full_per_s: float, now_ns: int) -> None:
        """New figures after a reload; what is open stays open until its time."""
        self.policy = policy
        self.ramp.configure(full_per_s, policy.ramp_ns)
        for breaker in self:
            breaker.configure(policy, now_ns)

    def __iter__(self) -> Iterator[Breaker]:
        """The upstream's own breaker, this node's, then the credentials', the oldest first."""
        yield self.own
        if self.local is not None:
            yield self.local
        yield from self._by_credential.values()

    def credentials(self) -> Iterator[tuple[bytes, Breaker]]:
        """The breakers of credentials, the oldest first. The table may not change meanwhile."""
        return iter(self._by_credential.items())

    @property
    def knows_credentials(self) -> bool:
        """Whether any credential has a breaker of its own: hashing one can matter."""
        return bool(self._by_credential)

    def get(self, scope: bytes) -> Breaker | None:
        """The breaker of a credential, or of the upstream for b""; None where none was needed."""
        if scope == LOCAL:
            return self.local
        return self._by_credential.get(scope) if scope else self.own

    @property
    def shown(self) -> Breaker:
        """The one that says how the upstream is doing: its own, or this node's where only that
        one is not closed."""
        local = self.local
        if local is None or local.state is BreakerState.CLOSED:
            return self.own
        return local if self.own.state is BreakerState.CLOSED else self.own

    def open_ones(self) -> list[Breaker]:
        """Those that are not closed, or forced open."""
        return list(self._open)

    # Before a request.

    def ask(self, credential: bytes | None, now_ns: int) -> int:
        """GO, TRIAL (go after `begin_trials`), or the nanoseconds until asking again can help."""
        if not self.active:
            return GO
        waits = [breaker.ask(now_ns) for breaker in self._of(credential)]
        longest_ns = max(waits)
        return longest_ns if longest_ns > GO else min(waits)

    def blocking(self, credential: bytes | None, now_ns: int) -> Breaker | None:
        """The breaker that holds such a request up longest: where to wait, whose cause to tell."""
        longest_ns = GO
        longest: Breaker | None = None
        for breaker in self._of(credential):
            wait_ns = breaker.ask(now_ns)
            if wait_ns > longest_ns:
                longest, longest_ns = breaker, wait_ns
        return longest

    def epochs(self, credential: bytes | None) -> tuple[int, int]:
        """The stamp that a request takes along when it is sent."""
        breaker = self._by_credential.get(credential) if credential else None
        if breaker is None:
            return self._plain_epochs
        return self.own.epoch, breaker.epoch

    def begin_trials(
        self, credential: bytes | None, now_ns: int, lease_ns: int
    ) -> tuple[Trial, ...]:
        """The request goes although `ask` said TRIAL: it is the trial of each breaker that did.

        `lease_ns` is for how long no other may go: max(1 s, 2 x the p99 time to a response head).
        """
        all_of_it = self._of(credential)
        return tuple(
            [(b, b.begin_trial(now_ns, lease_ns)) for b in all_of_it if b.ask(now_ns) == TRIAL]
        )

    def abandon_trials(self, trials: Sequence[Trial], now_ns: int) -> None:
        """The trial will have no answer (its client left, no token came): another may go."""
        for breaker, epoch in trials:
            breaker.abandon_trial(epoch, now_ns)

    # After a request.

    def succeeded(
        self, epochs: tuple[int, int], now_ns: int, trials: Sequence[Trial] = ()
    ) -> Sequence[Change]:
        """The upstream did its work."""
        if trials:
            return self._end_trials(trials, Outcome.SUCCESS, now_ns, 0.0)
        self.own.succeeded(epochs[0], now_ns)
        if self.local is not None:
            self.local.succeeded(self.local.epoch, now_ns)
        return _NOTHING

    def failed(
        self,
        epochs: tuple[int, int],
        now_ns: int,
        chance: float,
        trials: Sequence[Trial] = (),
    ) -> Sequence[Change]:
        """The upstream did not do its work. `chance` in [0, 1) spreads the end of a pause."""
        if trials:
            return self._end_trials(trials, Outcome.FAILURE, now_ns, chance)
        local = self.local
        if local is None:
            change = self.own.failed(epochs[0], now_ns, chance)
            return (self._noted(self.own, change, now_ns),) if change else _NOTHING
        if self.own.state is not BreakerState.CLOSED or epochs[0] < self.own.closed_epoch:
            return _NOTHING  # known already, or from before that was over
        # No stamp of its own: what was sent before it closed counts anew, from a cleared meter.
        change = local.failed(local.epoch, now_ns, chance)
        return (self._noted(local, change, now_ns),) if change else _NOTHING

    def spread(self, now_ns: int) -> Sequence[Change]:
        """Most members that use the upstream find it failing: what this node has found is now
        everybody's."""
        local = self.local
        if local is None or local.state is BreakerState.CLOSED:
            return _NOTHING
        change = self.own.spread(max(local.until_ns, now_ns), now_ns)
        if change is None:
            return _NOTHING
        return [self._noted(self.own, change, now_ns), *self.absorb(now_ns)]

    def throttled(
        self,
        credential: bytes | None,
        epochs: tuple[int, int],
        pause_ns: int | None,
        now_ns: int,
        chance: float,
        trials: Sequence[Trial] = (),
        learn: bool = True,
        others_per_s: Callable[[], float] = _nobody_else,
    ) -> Sequence[Change]:
        """The upstream said to wait `pause_ns`, or told no time.

        `learn` is false where it is short of capacity and its quota is not in question.
        `others_per_s` gives what the other nodes send: the rate that the upstream found too high
        is that of all together, and so is the one that is learned. Where a
        breaker other than the throttled one was on trial, its slot comes back: the answer says
        nothing about what opened it.
        """
        if credential and self.policy.by_credential:
            breaker = self._made(credential, self._epoch_floor, now_ns)
            sent_epoch = epochs[1]
        else:
            breaker, sent_epoch = self.own, epochs[0]
        if learn and breaker.state is BreakerState.CLOSED and sent_epoch >= breaker.closed_epoch:
            measured_per_s = self.own.meter.ok_per_s(now_ns)
            if measured_per_s is not None:
                measured_per_s += others_per_s()
            self.ramp.throttled(measured_per_s, now_ns)
        trial_epoch = None
        for other, epoch in trials:
            if other is breaker:
                trial_epoch = epoch
            else:
                other.abandon_trial(epoch, now_ns)
        if trial_epoch is None:
            change = breaker.throttled(sent_epoch, pause_ns, now_ns, chance)
        else:
            change = breaker.end_trial(trial_epoch, Outcome.THROTTLE, now_ns, pause_ns, chance)
        return (self._noted(breaker, change, now_ns),) if change else _NOTHING

    # From the operator.

    def force(self, scope: bytes, state: BreakerState | None, now_ns: int) -> Breaker:
        """Holds the breaker of a credential (b"": the upstream's) OPEN or CLOSED on this node.

        None lets the machine decide again. Returns the breaker, so that its queue can be looked at.
        """
        breaker = self._made(scope, self._epoch_floor, now_ns) if scope else self.own
        breaker.forced = state
        if state is BreakerState.OPEN and breaker.state is BreakerState.CLOSED:
            breaker.cause = Cause.FAILURE  # refused with 503: it is no throttle's 429
        self._book(breaker)
        if breaker is self.own and self.local is not None:
            # "Closed" means that requests go, whoever found the upstream failing.
            self.local.forced = state if state is BreakerState.CLOSED else None
        return breaker

    def pause(self, pause_ns: int, now_ns: int) -> Sequence[Change]:
        """Pauses the upstream as its own throttle would, without its rate being in question."""
        epochs = (self.own.epoch, 0)
        return self.throttled(None, epochs, pause_ns, now_ns, 0.0, learn=False)

    def resume(self, scope: bytes, now_ns: int) -> Sequence[Change]:
        """Ends the pause of a credential (b"": of the upstream) before its time."""
        breaker = self.get(scope)
        change = breaker.resume(now_ns) if breaker is not None else None
        changes = [self._noted(breaker, change, now_ns)] if breaker and change else []
        return tuple(changes) if scope else (*changes, *self.absorb(now_ns))

    # From the mesh and the clock.

    def merge(self, change: Change, now_ns: int) -> Change | None:
        """What a peer says of one scope; returns the new state if it changed anything here."""
        breaker = self.get(change.scope)
        if breaker is None:
            if change.state is BreakerState.CLOSED:
                return None
            breaker = self._made(change.scope, 0, now_ns)
        merged = breaker.merge(change.epoch, change.state, change.cause, change.until_ns, now_ns)
        if merged is None:
            return None
        if change.reff_per_s is not None:
            self.ramp.adopt(change.reff_per_s, now_ns)
        return self._noted(breaker, merged, now_ns)

    def absorb(self, now_ns: int) -> Sequence[Change]:
        """The upstream's own breaker has opened on failures: what only this node found is in that.
        Otherwise its vote would open it again when a peer's trial has closed it."""
        local = self.local
        change = local.resume(now_ns) if local is not None else None
        if local is None or change is None:
            return _NOTHING
        self._book(local)
        return (change,)

    def claimed(self, scope: bytes, epoch: int, until_ns: int) -> None:
        """Another node sends the trial of that scope and epoch; its claim holds until then."""
        breaker = self.get(scope)
        if breaker is not None:
            breaker.claimed(epoch, until_ns)

    def expire(self, now_ns: int) -> None:
        """Drops the breakers of credentials that have long been closed; to be called now and then.

        They stand in the order in which they were made, so one that is open, or was made lately,
        may keep later ones a while longer.
        """
        while self._by_credential:
            breaker = next(iter(self._by_credential.values()))
            if not self._idle(breaker) or now_ns < breaker.closed_ns + _KEEP_NS:
                return
            self._drop(breaker)

    def _of(self, credential: bytes | None) -> tuple[Breaker, ...]:
        """The breakers that such a request has to pass."""
        breaker = self._by_credential.get(credential) if credential else None
        if self.local is None:
            return (self.own,) if breaker is None else (self.own, breaker)
        if breaker is None:
            return (self.own, self.local)
        return (self.own, self.local, breaker)

    def _end_trials(
        self, trials: Sequence[Trial], outcome: Outcome, now_ns: int, chance: float
    ) -> Sequence[Change]:
        ended = [(b, b.end_trial(epoch, outcome, now_ns, None, chance)) for b, epoch in trials]
        return [self._noted(b, change, now_ns) for b, change in ended if change is not None]

    def _noted(self, breaker: Breaker, change: Change, now_ns: int) -> Change:
        """Keeps the table's books after a change, and adds the learned rate to it."""
        if change.state is BreakerState.CLOSED and breaker in self._open:
            self.ramp.closed(now_ns)
        elif change.state is BreakerState.OPEN and not self._open:
            self.before_per_s = self.own.meter.ok_per_s(now_ns)
        self._book(breaker)
        self._plain_epochs = (self.own.epoch, self._epoch_floor)
        if change.cause is Cause.FAILURE:
            return change
        return change._replace(reff_per_s=self.ramp.learned_per_s)

    def _book(self, breaker: Breaker) -> None:
        """Notes whether `ask` has to look at this breaker."""
        if breaker.state is BreakerState.CLOSED and breaker.forced is not BreakerState.OPEN:
            self._open.discard(breaker)
        else:
            self._open.add(breaker)
        self.active = len(self._open)

    def _made(self, credential: bytes, epoch: int, now_ns: int) -> Breaker:
        breaker = self._by_credential.get(credential)
        if breaker is not None:
            return breaker
        if len(self._by_credential) >= self.credentials_max:
            self._make_room()
        breaker = Breaker(self.policy, now_ns, credential, epoch)
        self._by_credential[credential] = breaker
        return breaker

    def _make_room(self) -> None:
        """Drops one of the oldest: a closed one, or else the one whose pause ends first.

        A breaker with requests waiting at it, or forced, is never dropped; the table is then too
        large by at most as many as wait, and as the operator has named.
        """
        oldest = [
            breaker
            for breaker, _ in zip(self._by_credential.values(), range(_LOOKS_MAX), strict=False)
            if breaker.waiting is None and breaker.forced is None
        ]
        if oldest:
            self._drop(min(oldest, key=lambda breaker: breaker.until_ns))

    def _idle(self, breaker: Breaker) -> bool:
        closed = breaker.state is BreakerState.CLOSED and breaker.forced is None
        return closed and breaker.waiting is None

    def _drop(self, breaker: Breaker) -> None:
        del self._by_credential[breaker.scope]
        self._open.discard(breaker)
        self.active = len(self._open)
        self._epoch_floor = max(self._epoch_floor, breaker.epoch)
        self._plain_epochs = (self.own.epoch, self._epoch_floor)
