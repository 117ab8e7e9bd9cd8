"""Whether requests may go: throttles (pauses) and failures (outages) in one state machine.

A breaker belongs to one scope of an upstream, itself or one credential, and every node of the mesh
has its copy. The machine is the table in `states`; the methods here decide which input an event is
and do what the table says. `table` holds all the breakers of an upstream behind one question.
"""

from __future__ import annotations

from typing import Any

from gateway.breaker.meter import Meter
from gateway.breaker.outcome import Outcome
from gateway.breaker.states import (
    GO,
    TRANSITIONS,
    TRIAL,
    Action,
    BreakerPolicy,
    BreakerState,
    Cause,
    Change,
    Input,
)

__all__ = ["GO", "TRIAL", "Breaker", "BreakerPolicy", "BreakerState", "Cause", "Change"]

_MS_NS = 1_000_000
_SECOND_NS = 1_000_000_000

# A pause that grows by less is lengthened here but not told to the peers: a burst of 429s would
# otherwise be a burst of messages. It is the spacing of the peers' trial ranks.
_TELL_NS = 10 * _MS_NS

_C, _O = BreakerState.CLOSED, BreakerState.OPEN

_TRIAL_INPUTS = {
    Outcome.SUCCESS: Input.TRIAL_OK,
    Outcome.FAILURE: Input.TRIAL_FAILED,
    Outcome.THROTTLE: Input.TRIAL_THROTTLED,
}


class Breaker:
    """One scope's breaker on this node.

    `epoch` goes up by one at each close and each re-opening. `trial_at_ns` is when this node may
    send the trial: the end of the pause, unless the mesh sets another turn. `waiting` belongs to
    the caller (its queue of requests that this breaker holds up, or None). `forced` is the
    operator's word on this node: OPEN or CLOSED whatever the machine says, which goes on beneath.
    """

    __slots__ = (
        "_claim_ns",
        "_failed_trials",
        "_lease_ns",
        "_told_ns",
        "cause",
        "closed_epoch",
        "closed_ns",
        "epoch",
        "forced",
        "meter",
        "opened_ns",
        "policy",
        "scope",
        "state",
        "trial_at_ns",
        "until_ns",
        "waiting",
    )

    def __init__(
        self, policy: BreakerPolicy, now_ns: int, scope: bytes = b"", epoch: int = 0
    ) -> None:
        self.policy = policy
        self.scope = scope
        self.epoch = epoch
        self.closed_epoch = 0  # the epoch that the last close began; none here: nothing is late
        self.state = BreakerState.CLOSED
        self.cause = Cause.THROTTLE
        self.until_ns = 0
        self.trial_at_ns = 0
        self._lease_ns = self._claim_ns = 0
        self.opened_ns = 0  # when the last episode began here, and
        self.closed_ns = 0  # when one last ended; 0: never
        self.waiting: Any = None
        self.forced: BreakerState | None = None
        self.meter = Meter(policy.window_ns, now_ns)
        self._failed_trials = 0
        self._lease_ns = 0  # until when no other trial may go than the one of this node
        self._claim_ns = 0  # the same for that of another node
        self._told_ns = 0  # the until that peers were last told

    def configure(self, policy: BreakerPolicy, now_ns: int) -> None:
        """New figures after a reload. What is open stays so; a new window starts counting anew."""
        if policy.window_ns != self.policy.window_ns:
            self.meter = Meter(policy.window_ns, now_ns)
        self.policy = policy

    def ask(self, now_ns: int) -> int:
        """GO, TRIAL (go after `begin_trial`), or the nanoseconds until asking again can help."""
        if self.forced is not None:
            # Nobody knows when it ends: the pause where no time is told.
            return GO if self.forced is _C else self.policy.open_ns
        if self.state is _C:
            return GO
        at_ns = self.trial_at_ns if self.state is _O else max(self._lease_ns, self._claim_ns)
        return at_ns - now_ns if now_ns < at_ns else TRIAL

    @property
    def foresees(self) -> bool:
        """Whether nothing goes before the time that `ask` says: a trial under way may end at any
        moment. An operator's order may too, but is there to stop requests, not to gather them."""
        return self.forced is not None or self.state is not BreakerState.HALF_OPEN

    def begin_trial(self, now_ns: int, lease_ns: int) -> int:
        """The caller's request goes as the trial; returns the epoch for `end_trial`.

        `lease_ns` is for how long no other may go: max(1 s, 2 x the p99 time to a response head).
        """
        if self._enter(Input.TRIAL) is Action.LEASE:
            self._lease_ns = now_ns + lease_ns
        return self.epoch

    def claimed(self, epoch: int, until_ns: int) -> None:
        """Another node sends this episode's trial, and it is this node's turn then; a time that
        has passed: the other one gave it back."""
        if epoch == self.epoch and self._enter(Input.CLAIM) is Action.LEASE:
            self._claim_ns = min(until_ns, self.until_ns + self.policy.pause_max_ns)

    def end_trial(
        self,
        epoch: int,
        outcome: Outcome,
        now_ns: int,
        pause_ns: int | None = None,
        chance: float = 0.0,
    ) -> Change | None:
        """The trial that `begin_trial` gave this epoch to has ended; late results are ignored.

        `pause_ns` is what a throttle told (None: nothing), `chance` in [0, 1) spreads the pause.
        """
        if epoch != self.epoch:
            return None
        if self.state is _O and outcome is Outcome.THROTTLE:
            return self.throttled(epoch, pause_ns, now_ns, chance)
        action = self._enter(_TRIAL_INPUTS[outcome])
        if action is Action.CLOSE:
            self.epoch += 1
            self._close(now_ns)
            return self._change()
        if action is Action.REOPEN:
            self.epoch += 1
            self.cause = Cause.THROTTLE if outcome is Outcome.THROTTLE else Cause.FAILURE
            self._failed_trials += 1
            self.until_ns = self.trial_at_ns = now_ns + self._length(pause_ns, chance)
            return self._change()
        return None

    def abandon_trial(self, epoch: int, now_ns: int) -> None:
        """The trial's client is gone, or its answer says nothing: another may go at once."""
        if epoch == self.epoch and self._enter(Input.TRIAL_ABANDONED) is Action.RETURN:
            self.trial_at_ns = now_ns

    def throttled(
        self, sent_epoch: int, pause_ns: int | None, now_ns: int, chance: float
    ) -> Change | None:
        """A response told to wait `pause_ns`, or None: it told no time.

        Returns what to broadcast. `sent_epoch` is the epoch in which the request was sent: from
        before the last close it is old news. A pause is never shortened, and a signal without a
        time changes nothing while one is known.
        """
        if sent_epoch < self.closed_epoch or (pause_ns is None and self.state is not _C):
            return None
        length_ns = self._length(pause_ns, chance)
        if self.state is not _C and now_ns + length_ns <= self.until_ns:
            return None
        if self._enter(Input.THROTTLE) is Action.PAUSE:
            return self._open(Cause.THROTTLE, length_ns, now_ns)
        self.until_ns = self.trial_at_ns = now_ns + length_ns
        return self._change() if self.until_ns - self._told_ns >= _TELL_NS else None

    def failed(self, sent_epoch: int, now_ns: int, chance: float = 0.0) -> Change | None:
        """A request failed; trips when enough of the last `window` did."""
        if self.state is not _C or sent_epoch < self.closed_epoch:
            return None
        meter = self.meter
        meter.count_bad(now_ns)
        policy = self.policy
        seen = meter.ok + meter.bad
        if seen < policy.failure_min or meter.bad < policy.failure_ratio * seen:
            return None
        self._enter(Input.TRIP)
        return self._open(Cause.FAILURE, self._length(None, chance), now_ns)

    def succeeded(self, sent_epoch: int, now_ns: int) -> None:
        """A request other than a trial succeeded."""
        if self.state is _C and sent_epoch >= self.closed_epoch:
            self.meter.count_ok(now_ns)

    def merge(
        self, epoch: int, state: BreakerState, cause: Cause, until_ns: int, now_ns: int
    ) -> Change | None:
        """A peer's state; the larger (epoch, OPEN over CLOSED, until) wins.

        Returns the new state if it changed anything. An `until_ns` beyond what this node could
        have set itself is cut to that.
        """
        until_ns = min(until_ns, now_ns + self._longest_ns())
        opened = state is not _C
        if (epoch, opened, until_ns if opened else 0) <= (
            self.epoch,
            self.state is not _C,
            self.until_ns if self.state is not _C else 0,
        ):
            return None
        if opened and self.state is not _C and epoch > self.epoch:
            self._failed_trials += 1
        if opened and self.state is _C:
            self.opened_ns = now_ns
        self._enter(Input.PEER_OPEN if opened else Input.PEER_CLOSED)
        self.epoch = epoch
        self.cause = cause
        if opened:
            self.until_ns = self.trial_at_ns = until_ns
        else:
            self._close(now_ns)
        return self._change()

    def spread(self, until_ns: int, now_ns: int) -> Change | None:
        """Most members find the upstream failing: open for all, until then."""
        if self._enter(Input.TRIP) is not Action.PAUSE:
            return None
        return self._open(Cause.FAILURE, max(0, until_ns - now_ns), now_ns)

    def resume(self, now_ns: int) -> Change | None:
        """The operator ends the pause; returns what to broadcast, None where there was none."""
        if self._enter(Input.RESUME) is not Action.CLOSE:
            return None
        self.epoch += 1
        self._close(now_ns)
        return self._change()

    def _enter(self, happened: Input) -> Action:
        self.state, action = TRANSITIONS[self.state, happened]
        return action

    def _close(self, now_ns: int) -> None:
        self.closed_epoch = self.epoch
        self.until_ns = 0
        self.trial_at_ns = 0
        self.closed_ns = now_ns
        self._failed_trials = 0
        self.meter.clear(now_ns)

    def _open(self, cause: Cause, length_ns: int, now_ns: int) -> Change:
        self.cause = cause
        self.opened_ns = now_ns
        self.until_ns = self.trial_at_ns = now_ns + length_ns
        return self._change()

    def _length(self, pause_ns: int | None, chance: float) -> int:
        """The pause with its jitter: a tenth, at most 1 s, and only ever later than told."""
        policy = self.policy
        if pause_ns is None:
            # 2 ** 40 x 1 ns is 18 minutes: enough for any `open`, and no huge integer.
            doubled_ns = policy.open_ns << min(self._failed_trials, 40)
            pause_ns = min(doubled_ns, policy.open_max_ns)
        pause_ns = max(0, min(pause_ns, policy.pause_max_ns))
        return pause_ns + int(chance * min(pause_ns // 10, _SECOND_NS))

    def _longest_ns(self) -> int:
        policy = self.policy
        return max(policy.pause_max_ns, policy.open_max_ns) + _SECOND_NS

    def _change(self) -> Change:
        self._told_ns = self.until_ns
        state = _C if self.state is _C else _O
        return Change(self.scope, self.epoch, state, self.cause, self.until_ns)
