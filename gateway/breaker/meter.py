"""Successes and failures of the last `window`: what trips a breaker and what a rate learns from."""

from __future__ import annotations

__all__ = ["Meter"]

# The window moves in tenths: counting costs an addition, and the window's length is wrong by at
# most a tenth.
_BUCKETS = 10
_SECOND_NS = 1_000_000_000

# Below this span a count is a burst and not yet a rate.
_SPAN_MIN_NS = _SECOND_NS // 4

# And until there is a whole second of traffic, it counts as one: 100 successes in the first 0.3 s
# are the burst of a limit of 100/s more often than they are a rate of 333/s.
_SPAN_FLOOR_NS = _SECOND_NS

# What came before the traffic did, such as a health check every few seconds, is idle time: tenths
# of the window with less than this share of the busiest one.
_IDLE_SHARE = 0.1


class Meter:
    """Two counts over a moving window, in a ring of ten buckets. `bad` and `ok` are its sums."""

    __slots__ = ("_at", "_bads", "_bucket_ns", "_end_ns", "_firsts_ns", "_oks", "bad", "ok")

    def __init__(self, window_ns: int, now_ns: int) -> None:
        self._bucket_ns = max(1, window_ns // _BUCKETS)
        self.clear(now_ns)

    def clear(self, now_ns: int) -> None:
        """Forgets everything."""
        self._oks = [0] * _BUCKETS
        self._bads = [0] * _BUCKETS
        self._at = 0
        self._firsts_ns = [0] * _BUCKETS  # when each bucket's first success came
        self._end_ns = now_ns + self._bucket_ns
        self.ok = 0
        self.bad = 0

    def count_ok(self, now_ns: int) -> None:
        if now_ns >= self._end_ns:
            self._turn_slow(now_ns)
        at = self._at
        if not self._oks[at]:
            self._firsts_ns[at] = now_ns
        self._oks[at] += 1
        self.ok += 1

    def count_bad(self, now_ns: int) -> None:
        if now_ns >= self._end_ns:
            self._turn_slow(now_ns)
        self._bads[self._at] += 1
        self.bad += 1

    def ok_per_s(self, now_ns: int) -> float | None:
        """Successes a second since traffic began within the window; None: too little to say.

        Time without traffic is not divided by: it says nothing about what the upstream can bear.
        """
        if now_ns >= self._end_ns:
            self._turn_slow(now_ns)
        busy = max(1.0, _IDLE_SHARE * max(self._oks))
        ok = self.ok
        for step in range(1, _BUCKETS + 1):  # from the oldest bucket to the one of now
            i = (self._at + step) % _BUCKETS
            if self._oks[i] >= busy:
                span_ns = now_ns - self._firsts_ns[i]
                if span_ns < _SPAN_MIN_NS:
                    return None
                return ok * _SECOND_NS / max(_SPAN_FLOOR_NS, span_ns)
            ok -= self._oks[i]
        return None

    def _turn_slow(self, now_ns: int) -> None:
        steps = (now_ns - self._end_ns) // self._bucket_ns + 1
        for _ in range(min(steps, _BUCKETS)):
            self._at = (self._at + 1) % _BUCKETS
            self.ok -= self._oks[self._at]
            self.bad -= self._bads[self._at]
            self._oks[self._at] = 0
            self._bads[self._at] = 0
        self._end_ns += steps * self._bucket_ns
