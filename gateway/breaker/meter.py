"""Successes and failures of the last `window`: what trips a breaker and what a rate learns from."""

from __future__ import annotations

__all__ = ["Meter"]

# The window moves in tenths: counting costs an addition, and the window's length is wrong by at
# most a tenth.
_BUCKETS = 10
_SECOND_NS = 1_000_000_000

# Below this span a count is a burst and not yet a rate.
_SPAN_MIN_NS = _SECOND_NS // 4


class Meter:
    """Two counts over a moving window, in a ring of ten buckets. `bad` and `ok` are its sums."""

    __slots__ = ("_at", "_bads", "_bucket_ns", "_end_ns", "_oks", "_since_ns", "bad", "ok")

    def __init__(self, window_ns: int, now_ns: int) -> None:
        self._bucket_ns = max(1, window_ns // _BUCKETS)
        self.clear(now_ns)

    def clear(self, now_ns: int) -> None:
        """Forgets everything."""
        self._oks = [0] * _BUCKETS
        self._bads = [0] * _BUCKETS
        self._at = 0
        self._since_ns = now_ns
        self._end_ns = now_ns + self._bucket_ns
        self.ok = 0
        self.bad = 0

    def count_ok(self, now_ns: int) -> None:
        if now_ns >= self._end_ns:
            self._turn_slow(now_ns)
        self._oks[self._at] += 1
        self.ok += 1

    def count_bad(self, now_ns: int) -> None:
        if now_ns >= self._end_ns:
            self._turn_slow(now_ns)
        self._bads[self._at] += 1
        self.bad += 1

    def ok_per_s(self, now_ns: int) -> float | None:
        """Successes a second over what the window covers; None where that is too little to say."""
        if now_ns >= self._end_ns:
            self._turn_slow(now_ns)
        first_ns = self._end_ns - _BUCKETS * self._bucket_ns
        span_ns = now_ns - max(self._since_ns, first_ns)
        if span_ns < _SPAN_MIN_NS or not self.ok:
            return None
        return self.ok * _SECOND_NS / span_ns

    def _turn_slow(self, now_ns: int) -> None:
        steps = (now_ns - self._end_ns) // self._bucket_ns + 1
        for _ in range(min(steps, _BUCKETS)):
            self._at = (self._at + 1) % _BUCKETS
            self.ok -= self._oks[self._at]
            self.bad -= self._bads[self._at]
            self._oks[self._at] = 0
            self._bads[self._at] = 0
        self._end_ns += steps * self._bucket_ns
