"""The breaker's machine as a table, and the words in which breakers speak to each other.

What nodes tell each other merges by a rule that is a join, the larger (epoch, state, until) wins,
so that messages may come in any order and any number of times. HALF_OPEN is a node's own
knowledge: on the wire it is OPEN.
"""

from __future__ import annotations

import enum
from typing import Final, NamedTuple

__all__ = ["GO", "LOCAL", "TRANSITIONS", "TRIAL", "Action", "BreakerPolicy", "BreakerState"]
__all__ += ["Cause", "Change", "Input"]

GO: Final = 0
TRIAL: Final = -2

# The scope of what only this node has found: an upstream that fails for it, while the mesh has not
# been asked. No credential's hash is of this length.
LOCAL = b"node"

_SECOND_NS = 1_000_000_000


class BreakerState(enum.Enum):
    """CLOSED lets requests through, OPEN none, HALF_OPEN none while one trial is under way."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Cause(enum.Enum):
    """Why a breaker opened; it decides the answer (429 or 503) and what follows the close."""

    THROTTLE = "throttle"
    FAILURE = "failure"


class Input(enum.Enum):
    """What can happen to a breaker."""

    THROTTLE = "throttle"  # a request other than the trial was told to wait
    TRIP = "trip"  # the failure ratio was reached
    TRIAL = "trial"  # a request goes as the trial, here
    CLAIM = "claim"  # ... or at another node
    TRIAL_OK = "trial-ok"
    TRIAL_FAILED = "trial-failed"
    TRIAL_THROTTLED = "trial-throttled"
    TRIAL_ABANDONED = "trial-abandoned"
    PEER_OPEN = "peer-open"  # a peer's state that wins over ours
    PEER_CLOSED = "peer-closed"
    RESUME = "resume"  # the operator ends the pause


class Action(enum.Enum):
    """What a breaker does about it."""

    NONE = "none"
    PAUSE = "pause"  # until = now + pause
    EXTEND = "extend"  # until = the later one
    LEASE = "lease"  # no other trial until the lease ends
    RETURN = "return"  # another trial may go at once
    CLOSE = "close"  # epoch + 1, counts forgotten
    REOPEN = "reopen"  # epoch + 1, a longer pause
    ADOPT = "adopt"  # the peer's epoch, until and cause


_C, _O, _H = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN

TRANSITIONS: dict[tuple[BreakerState, Input], tuple[BreakerState, Action]] = {
    (_C, Input.THROTTLE): (_O, Action.PAUSE),
    (_C, Input.TRIP): (_O, Action.PAUSE),
    (_C, Input.TRIAL): (_C, Action.NONE),
    (_C, Input.CLAIM): (_C, Action.NONE),
    (_C, Input.TRIAL_OK): (_C, Action.NONE),
    (_C, Input.TRIAL_FAILED): (_C, Action.NONE),
    (_C, Input.TRIAL_THROTTLED): (_C, Action.NONE),
    (_C, Input.TRIAL_ABANDONED): (_C, Action.NONE),
    (_C, Input.PEER_OPEN): (_O, Action.ADOPT),
    (_C, Input.PEER_CLOSED): (_C, Action.ADOPT),
    (_C, Input.RESUME): (_C, Action.NONE),
    (_O, Input.THROTTLE): (_O, Action.EXTEND),
    (_O, Input.TRIP): (_O, Action.NONE),
    (_O, Input.TRIAL): (_H, Action.LEASE),
    (_O, Input.CLAIM): (_H, Action.LEASE),
    # A trial's result is for the state it was sent in; since then something newer was heard.
    (_O, Input.TRIAL_OK): (_O, Action.NONE),
    (_O, Input.TRIAL_FAILED): (_O, Action.NONE),
    (_O, Input.TRIAL_THROTTLED): (_O, Action.EXTEND),
    (_O, Input.TRIAL_ABANDONED): (_O, Action.NONE),
    (_O, Input.PEER_OPEN): (_O, Action.ADOPT),
    (_O, Input.PEER_CLOSED): (_C, Action.ADOPT),
    (_O, Input.RESUME): (_C, Action.CLOSE),
    (_H, Input.THROTTLE): (_O, Action.EXTEND),
    (_H, Input.TRIP): (_H, Action.NONE),
    (_H, Input.TRIAL): (_H, Action.LEASE),
    (_H, Input.CLAIM): (_H, Action.LEASE),
    (_H, Input.TRIAL_OK): (_C, Action.CLOSE),
    (_H, Input.TRIAL_FAILED): (_O, Action.REOPEN),
    (_H, Input.TRIAL_THROTTLED): (_O, Action.REOPEN),
    (_H, Input.TRIAL_ABANDONED): (_O, Action.RETURN),
    (_H, Input.PEER_OPEN): (_O, Action.ADOPT),
    (_H, Input.PEER_CLOSED): (_C, Action.ADOPT),
    (_H, Input.RESUME): (_C, Action.CLOSE),
}


class BreakerPolicy(NamedTuple):
    """The operator's figures, `[upstream.NAME.breaker]`; the defaults are those of the manual."""

    open_ns: int = 5 * _SECOND_NS
    open_max_ns: int = 300 * _SECOND_NS
    pause_max_ns: int = 3600 * _SECOND_NS
    failure_ratio: float = 0.5
    failure_min: int = 20
    window_ns: int = 10 * _SECOND_NS
    ramp_ns: int = 10 * _SECOND_NS
    by_credential: bool = True


class Change(NamedTuple):
    """What the mesh is to hear: the state of one scope (b"": the upstream) after an event.

    `until_ns` is on this node's clock, 0 where closed; `reff_per_s` is the learned rate, if any;
    `told` what the upstream said that its throttle covers, for the log of the node that heard it.
    """

    scope: bytes
    epoch: int
    state: BreakerState
    cause: Cause
    until_ns: int
    reff_per_s: float | None = None
    told: str = ""
