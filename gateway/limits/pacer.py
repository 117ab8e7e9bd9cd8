"""The pace at which requests return after a pause to an upstream that has no rate limit.

Where a smooth limit stands, the ramp after a pause scales it. A window, slots or no limit at all
have nothing to scale, and what was held through the pause would arrive within milliseconds of the
trial: the burst that brings the next throttle, or the next outage. So for this time, and only then,
there is a smooth limit of the gateway's own. It is no limit of the configuration: it has no name,
no RateLimit fields and no key but the credential that was paused.
"""

from __future__ import annotations

import math
from typing import Final

from gateway.limits.gcra import Gcra, GcraRow

__all__ = ["Pacer"]

_SECOND_NS: Final = 1_000_000_000

# After a throttle as a learned rate climbs (see breaker.ramp): 0.7 of the rate that succeeded, and
# 2 % a second more. An outage says nothing about the rate: from a twentieth up to it over the ramp.
_BACK: Final = 0.7
_GROWTH_PER_S: Final = 1.02
_AFTER_FAILURE: Final = 0.05

# The slowest that requests ever return: a client that asked for little measures little.
_START_MIN_PER_S: Final = 1.0

# What is begun with where nothing was measured: then the pace doubles with every tenth of the ramp,
# to 1,024 times as much. From 10/s the 150 requests that a pause may well have held are through in
# log2(150 ln 2 / 10 + 1) = 3.5 s; from 1/s most would not go within `wait.max`, which is 2 s.
_START_PER_S: Final = 10.0
_UNMEASURED_GROWTH: Final = 1_024.0

# The shortest climb: what waited at the breaker comes over at once, but who comes a moment later
# must find the pacer still there.
_CLIMB_MIN_NS: Final = _SECOND_NS

# A worker does some 10,000 requests/s; the bound keeps a doubling pace from growing for ever.
_RATE_MAX_PER_S: Final = 1_000_000.0

# How often the pace is set anew: it moves by 0.2 % between two settings, while it doubles by 7 %.
_MOVE_NS: Final = _SECOND_NS // 10

# What may go at a time: 10 ms' worth, so that a loop that wakes up some milliseconds late loses
# nothing of the rate.
_BURST_S: Final = 0.01

_ROWS_MAX: Final = 20_000  # as a limit's `keys_max`; there is a row for each paused credential


class Pacer:
    """`active` while requests of some scope are paced: a credential that was paused, or b"" for
    all. The rate climbs to what the upstream bore before the pause, doubles with each second after
    that, and is given up when nobody waits for it any more.

    `throttled` says what the last pause was about.
    """

    __slots__ = (
        "_climb_s",
        "_growth",
        "_left_per_s",
        "_moved_ns",
        "_scopes",
        "_since_ns",
        "_start_per_s",
        "_table",
        "active",
        "by_credential",
        "throttled",
    )

    def __init__(self) -> None:
        self.active = False
        self.throttled = False
        self.by_credential = False  # whether it matters which credential a request has
        self._scopes: set[bytes] = set()
        self._start_per_s = _START_PER_S
        self._growth = 0.0  # of the rate's logarithm, a second, while it climbs
        self._climb_s = 0.0
        self._since_ns = 0
        self._moved_ns = 0
        self._left_per_s: float | None = None  # the pace when another pause ended the climb
        self._table = Gcra("", 1, _SECOND_NS, 1, keys_max=_ROWS_MAX)

    def begin(
        self, scope: bytes, before_per_s: float | None, throttled: bool, ramp_ns: int, now_ns: int
    ) -> None:
        """A pause of that scope is over; `before_per_s` succeeded before it, None: not measured.

        With a ramp of 0 nothing is paced for which no rate was learned from a throttle.
        """
        if before_per_s is None:
            before_per_s = self._left_per_s
        self._left_per_s = None
        learned = throttled and before_per_s is not None
        if not learned and ramp_ns <= 0:
            return
        start = _START_PER_S
        peak = start * _UNMEASURED_GROWTH
        if before_per_s is not None:
            start = max(_START_MIN_PER_S, before_per_s * (_BACK if throttled else _AFTER_FAILURE))
            peak = max(start, before_per_s)
        rise = math.log(peak / start)
        least_s = _CLIMB_MIN_NS / _SECOND_NS
        if learned:
            self._climb_s = max(least_s, rise / math.log(_GROWTH_PER_S))
        else:
            self._climb_s = max(least_s, ramp_ns / _SECOND_NS)
        self._growth = rise / self._climb_s
        self._start_per_s = start
        self._since_ns = now_ns
        self.throttled = throttled
        if not self._scopes:
            self._table = Gcra("", 1, _SECOND_NS, 1, keys_max=_ROWS_MAX, now_ns=now_ns)
        self._scopes.add(scope)
        self._note_scopes()
        self._move(now_ns)

    def stop(self, scope: bytes, now_ns: int) -> None:
        """That scope is paused again: its breaker holds its requests now."""
        if scope in self._scopes:
            self._left_per_s = self.rate_per_s(now_ns)
            self._scopes.discard(scope)
            self._note_scopes()

    def row(self, credential: bytes | None, now_ns: int) -> GcraRow | None:
        """The row that such a request has to pass, a token each; None: it is not paced."""
        if now_ns - self._moved_ns >= _MOVE_NS:
            if self._is_over(now_ns):
                self._end()
                return None
            self._move(now_ns)
        if b"" in self._scopes:
            return self._table.entry(b"", now_ns)
        if credential and credential in self._scopes:
            return self._table.entry(credential, now_ns)
        return None

    def rate_per_s(self, now_ns: int) -> float:
        """How many requests a second may go now, of each scope."""
        elapsed_s = max(0.0, (now_ns - self._since_ns) / _SECOND_NS)
        rate = self._start_per_s * math.exp(self._growth * min(elapsed_s, self._climb_s))
        # exp2(20) times 1/s is the bound already.
        doublings = min(20.0, max(0.0, elapsed_s - self._climb_s))
        return min(_RATE_MAX_PER_S, rate * math.exp2(doublings))

    def drain_ns(self, count: int, now_ns: int) -> int:
        """How long so many requests take to go: the integral of the rate, solved for the time."""
        rate = self.rate_per_s(now_ns)
        left_s = max(0.0, self._climb_s - (now_ns - self._since_ns) / _SECOND_NS)
        taken_s = _time_to(count, rate, self._growth)
        if taken_s > left_s:
            peak = rate * math.exp(self._growth * left_s)
            climbed = rate * left_s if self._growth == 0.0 else (peak - rate) / self._growth
            taken_s = left_s + _time_to(count - climbed, peak, math.log(2.0))
        return int(taken_s * _SECOND_NS)

    def _move(self, now_ns: int) -> None:
        rate = self.rate_per_s(now_ns)
        burst = max(1, int(rate * _BURST_S))
        self._table.configure(1, max(1, int(_SECOND_NS / rate)), burst, now_ns)
        self._moved_ns = now_ns

    def _is_over(self, now_ns: int) -> bool:
        if now_ns - self._since_ns < self._climb_s * _SECOND_NS:
            return False
        return all(row.waiting is None for row in self._table)

    def _end(self) -> None:
        self._scopes.clear()
        self._note_scopes()

    def _note_scopes(self) -> None:
        self.active = bool(self._scopes)
        self.by_credential = self.active and b"" not in self._scopes


def _time_to(count: float, rate_per_s: float, growth: float) -> float:
    """The seconds in which `count` go at a rate that grows as exp(growth * t)."""
    if growth == 0.0:
        return count / rate_per_s
    return math.log1p(max(0.0, count) * growth / rate_per_s) / growth
