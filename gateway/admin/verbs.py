"""What an operator may do: each verb checks what it is given, does it, and says how far it reaches.

"node": only the node that was asked. "mesh": all nodes, because a pause travels the way that a
throttle's does, and because the smallest rule that any member announces is the one in force.

What has the wrong shape was refused with 400 before; what this node's file or state forbids is 409.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway.admin.problems import Problem
from gateway.admin.shapes import Shape, integer, listed, record, text
from gateway.admin.tables import clear_row, clear_steps, table_of
from gateway.breaker.states import BreakerState
from gateway.clock import MS, monotonic_ns
from gateway.conf.units import duration_text, parse_rate
from gateway.proxy import pauses

if TYPE_CHECKING:
    from gateway.admin.views import Served, Steps
    from gateway.breaker.table import BreakerTable
    from gateway.proxy.graph import Upstream

__all__ = [
    "DONE",
    "clear",
    "cleared",
    "drain",
    "forget",
    "pause",
    "reload",
    "resume",
    "set_breaker",
]
__all__ += ["set_breaker", "set_rate"]

DONE: Shape = record(
    {
        "node": text("The node that did it."),
        "done": text("What was done, in a sentence."),
        "reach": text(
            "Whom it concerns: this node, or all nodes of the mesh.", enum=["node", "mesh"]
        ),
        "count": integer("How many rows, where rows were cleared."),
        "workers": listed(
            record({"node": text("A worker."), "said": text("What it did, or why not.")}),
            "Of a node with several workers: what each said.",
        ),
    },
    optional=("count", "workers"),
)

Body = dict[str, Any]
FORCED = {"open": BreakerState.OPEN, "closed": BreakerState.CLOSED, "auto": None}


def set_rate(served: Served, upstream: str, limit: str, body: Body) -> Body:
    """Gives a limit another rate until the next reload, or the file's one back (null)."""
    _running(served)
    _upstream(served, upstream)
    try:
        if body["rate"] is None:
            if "burst" in body:
                raise Problem(409, "burst goes with a rate; null brings both of the file back")
            now = served.operator.reset_rate(upstream, limit)
            return _done(served, f"limit {upstream}/{limit} is {now.rate} as in the file")
        rate = parse_rate(body["rate"])
        was = next((one for one in served.conf.upstream[upstream].limit if one.name == limit), None)
        now = served.operator.set_rate(upstream, limit, rate, body.get("burst"))
    except LookupError:
        raise _no_limit(upstream, limit) from None
    except ValueError as error:
        raise Problem(409, f"limit {upstream}/{limit}: {error}") from None
    done = f"limit {upstream}/{limit} is {rate}, burst {now.burst}, until the next reload"
    shared = now.sync == "mesh" and served.conf.mesh is not None
    if shared and was is not None and was.rate is not None:
        if rate.per_second < was.rate.per_second:
            return _done(served, f"{done}; the smallest rule of all members is in force", "mesh")
        done += "; more than before only when every member has been told"
    return _done(served, done)


def clear(served: Served, upstream: str, limit: str, body: Body) -> Steps[Body]:
    """Forgives one row, or all."""
    _running(served)
    _upstream(served, upstream)
    try:
        table = table_of(served, upstream, limit)
    except LookupError:
        raise _no_limit(upstream, limit) from None
    if table.conf.rate is None:
        raise Problem(409, "slots in flight come back when their requests end; nothing to clear")
    key = body.get("key")
    if key is not None and set(key) != {str(part) for part in table.conf.key}:
        parts = ", ".join(str(part) for part in table.conf.key) or "none"
        raise Problem(409, f"key must name each of the limit's key parts: {parts}")
    if key is None:
        count = yield from clear_steps(served, table)
    else:
        try:
            count = int(clear_row(served, table, key, monotonic_ns()))
        except PermissionError:
            raise Problem(
                409, "another node keeps what this key of an exact limit counts; ask that one"
            ) from None
        if not count:
            raise Problem(404, f"limit {upstream}/{limit} has no row of this key")
    done = cleared(upstream, limit, count)
    if served.conf.mesh is not None:
        if table.conf.sync == "mesh":
            done += "; what other members hold comes back unless they are cleared too"
        elif table.conf.sync == "exact":
            done += ", those that this node keeps for all; ask the other members too"
    return {**_done(served, done), "count": count}


def cleared(upstream: str, limit: str, count: int) -> str:
    """Says that so many rows were forgiven."""
    return f"cleared {count} {'row' if count == 1 else 'rows'} of {upstream}/{limit}"


def set_breaker(served: Served, upstream: str, body: Body) -> Body:
    """Holds a breaker open or closed on this node, or lets it decide again."""
    _running(served)
    found = _upstream(served, upstream)
    scope = _scope(found.breakers, body.get("credential"))
    now_ns = served.worker.now_ns()
    breaker = found.breakers.force(scope, FORCED[body["state"]], now_ns)
    served.worker.waitroom.poke(breaker)
    said = "decides by itself" if body["state"] == "auto" else f"is held {body['state']}"
    whose = f"credential {scope.hex()[:8]} at {upstream}" if scope else upstream
    served.operator.note(f"breaker {said}", upstream=upstream, credential=scope.hex()[:8])
    return _done(served, f"the breaker of {whose} {said}")


def pause(served: Served, upstream: str, body: Body) -> Body:
    """Pauses an upstream on all nodes, as its own throttle would."""
    _running(served)
    found = _upstream(served, upstream)
    pause_ns = body["for_ms"] * MS
    longest_ns = found.breakers.policy.pause_max_ns
    if pause_ns > longest_ns:
        longest = duration_text(longest_ns)
        raise Problem(409, f"for_ms: breaker.pause_max of {upstream} is {longest}")
    now_ns = served.worker.now_ns()
    changes = found.breakers.pause(pause_ns, now_ns)
    pauses.report(served.worker, found, changes, now_ns)
    left_ms = max(0, found.breakers.own.until_ns - now_ns) // MS
    word = "is paused" if changes else "was paused for longer already"
    return _done(served, f"{upstream} {word}: {duration_text(left_ms * MS)} left", "mesh")


def resume(served: Served, upstream: str, body: Body) -> Body:
    """Ends a pause or an opening before its time, on all nodes."""
    _running(served)
    found = _upstream(served, upstream)
    scope = _scope(found.breakers, body.get("credential"))
    now_ns = served.worker.now_ns()
    changes = found.breakers.resume(scope, now_ns)
    pauses.report(served.worker, found, changes, now_ns)
    return _done(served, f"{upstream} {'goes on' if changes else 'was not paused'}", "mesh")


def drain(served: Served, body: Body) -> Body:
    """Takes this node out of its virtual address, or puts it back."""
    _running(served)
    served.operator.drain(body["draining"])
    return _done(
        served, "draining: /ready says no" if body["draining"] else "serving: /ready says yes"
    )


async def reload(served: Served, body: Body) -> Body:
    """Reads the file again, as SIGHUP does."""
    _running(served)
    if not await served.reload():
        faults = served.reload_faults
        raise Problem(422, f"nothing was changed: {faults[0]}", faults)
    return _done(served, f"reloaded: generation {served.worker.runtime.generation}")


def forget(served: Served, member: str, body: Body) -> Body:
    """Strikes out a member that will not come back, so that no majority waits for it."""
    _running(served)
    names = {known["name"]: known["state"] for known in served.operator.members()}
    if member not in names:
        raise Problem(404, f"no member {member} is known")
    if not served.operator.forget_member(member):
        raise Problem(409, f"{member} is {names[member]}; only a dead member is forgotten")
    return _done(served, f"{member} counts as one that left", "mesh")


def _done(served: Served, done: str, reach: str = "node") -> Body:
    if served.conf.mesh is None:
        reach = "node"
    return {"node": served.name, "done": done, "reach": reach}


def _running(served: Served) -> None:
    if not served.ready:
        raise Problem(409, "the node is starting or stopping")


def _upstream(served: Served, name: str) -> Upstream:
    found = served.worker.runtime.upstreams.get(name)
    if found is None:
        raise Problem(404, f"no upstream {name}")
    return found


def _no_limit(upstream: str, limit: str) -> Problem:
    return Problem(404, f"upstream {upstream} has no limit {limit}")


def _scope(breakers: BreakerTable, told: str | None) -> bytes:
    """The credential that a hash, or the beginning of one, names; b"" for the upstream itself."""
    if told is None:
        return b""
    if len(told) == FULL_HASH_DIGITS:
        return bytes.fromhex(told)
    fitting = [key for key, _ in breakers.credentials() if key.hex().startswith(told)]
    if not fitting:
        raise Problem(
            404, f"no credential with a breaker begins with {told}; its whole hash will do"
        )
    if len(fitting) > 1:
        raise Problem(409, f"{len(fitting)} credentials begin with {told}; tell more digits")
    return fitting[0]


FULL_HASH_DIGITS = 32  # 16 octets: gateway.proxy.keys
