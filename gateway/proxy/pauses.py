"""What follows from a breaker's change: the mesh hears it, limits lose their burst, queues move.

Changes come from this node's own exchanges (`report`) and from peers (`adopt`); after both the same
must be true here. Cold: runs per change, not per request.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from gateway.breaker.states import LOCAL, BreakerState, Cause, Change

if TYPE_CHECKING:
    from gateway.breaker.breaker import Breaker
    from gateway.breaker.table import Trial
    from gateway.proxy.graph import Upstream, Worker

__all__ = ["adopt", "begin_trials", "climb", "report", "return_trials", "scope_name"]


def report(worker: Worker, upstream: Upstream, changes: Iterable[Change], now_ns: int) -> None:
    """This node's exchanges changed breakers: the mesh is told before anything else is done."""
    for change in changes:
        if change.scope == LOCAL:
            worker.mesh.tripped(upstream, change.state is not BreakerState.CLOSED, now_ns)
        else:
            worker.mesh.breaker_changed(upstream, change, now_ns)
        _settle(worker, upstream, change, now_ns)


def adopt(worker: Worker, upstream: Upstream, change: Change, now_ns: int) -> None:
    """A peer told of a change; nothing happens where ours is newer."""
    merged = upstream.breakers.merge(change, now_ns)
    if merged is not None:
        if merged.state is BreakerState.OPEN and merged.cause is Cause.THROTTLE:
            upstream.counts.throttles["peer"] += 1
        _settle(worker, upstream, merged, now_ns)
        if merged.state is BreakerState.OPEN and merged.cause is Cause.FAILURE:
            report(worker, upstream, upstream.breakers.absorb(now_ns), now_ns)


def begin_trials(
    worker: Worker, upstream: Upstream, credential: bytes | None, lease_ns: int, now_ns: int
) -> tuple[Trial, ...]:
    """The request that goes now is the trial of whatever breaker asks for one."""
    trials = upstream.breakers.begin_trials(credential, now_ns, lease_ns)
    for breaker, epoch in trials:
        upstream.counts.trials += 1
        if breaker.scope != LOCAL:
            worker.mesh.trial_begun(upstream, breaker.scope, epoch, now_ns + lease_ns, now_ns)
    return trials


def return_trials(worker: Worker, upstream: Upstream, trials: Iterable[Trial], now_ns: int) -> None:
    """Trials ended without an outcome for some of their breakers: those let another one go, here
    or at another node, and who waits at them is looked at."""
    for breaker, epoch in trials:
        if breaker.epoch != epoch or breaker.state is not BreakerState.OPEN:
            continue
        if breaker.trial_at_ns <= now_ns:
            if breaker.scope != LOCAL:
                worker.mesh.trial_returned(upstream, breaker.scope, epoch, now_ns)
            worker.waitroom.poke(breaker)


def climb(upstream: Upstream, now_ns: int) -> None:
    """Moves the smooth limits to where the ramp is now (called on a timer while it climbs)."""
    factor = upstream.breakers.ramp.climb(now_ns)
    for use in upstream.limit_uses:
        if use.scale is not None:
            use.scale(factor, now_ns)


def _fill(upstream: Upstream, credential: bytes, now_ns: int) -> None:
    """Takes the burst away: of the credential's own rows where a limit has such, or of all."""
    own = [use.limit for use in upstream.limit_uses if use.by_credential] if credential else []
    for limit in own:
        row = limit.entry(b"=" + credential, now_ns)
        row.fill(now_ns)  # type: ignore[attr-defined]  # a rate's rows have it; by_credential says so
    if not own:
        for use in upstream.limit_uses:
            if use.fill is not None:
                use.fill(now_ns)


def _pace(upstream: Upstream, change: Change, now_ns: int) -> None:
    """No rate limit holds back what the pause has held back: the pacer does, for a while."""
    scope = b"" if change.scope == LOCAL else change.scope
    if change.state is BreakerState.OPEN:
        upstream.pacer.stop(scope, now_ns)
        return
    breakers = upstream.breakers
    if change.scope == LOCAL and breakers.active:
        return  # what this node found has become everybody's, and that is not over
    throttled = change.cause is Cause.THROTTLE
    upstream.pacer.begin(scope, breakers.before_per_s, throttled, breakers.policy.ramp_ns, now_ns)


def _settle(worker: Worker, upstream: Upstream, change: Change, now_ns: int) -> None:
    breaker = upstream.breakers.get(change.scope)
    if breaker is None:
        return
    _count(upstream, breaker, change, now_ns)
    if not upstream.breakers.ramp.scales:
        _pace(upstream, change, now_ns)
    if change.scope == LOCAL:
        if change.state is BreakerState.CLOSED and not upstream.breakers.active:
            _fill(upstream, b"", now_ns)
            climb(upstream, now_ns)
    elif change.state is BreakerState.CLOSED:
        # What was held back must not come as one burst (MESH.md section 4).
        _fill(upstream, change.scope, now_ns)
        climb(upstream, now_ns)
    else:
        upstream.counts.pauses += 1
        breaker.trial_at_ns = worker.mesh.trial_at_ns(upstream, change, now_ns)
    worker.note_change(upstream.name, change)
    worker.waitroom.poke(breaker)


def scope_name(scope: bytes) -> str:
    """Whom a breaker concerns, as metrics and logs call it."""
    if scope == LOCAL:
        return "node"
    return "credential" if scope else "upstream"


def _count(upstream: Upstream, breaker: Breaker, change: Change, now_ns: int) -> None:
    counts = upstream.counts
    scope = scope_name(change.scope)
    if change.state is BreakerState.CLOSED:
        happened = "closed"
        counts.paused_ns[scope] += breaker.closed_ns - breaker.opened_ns
    elif breaker.opened_ns != now_ns:
        happened = "prolonged"  # by a later word, or by a trial that failed
    else:
        happened = "paused" if change.cause is Cause.THROTTLE else "opened"
    counts.transitions[scope, happened] += 1
