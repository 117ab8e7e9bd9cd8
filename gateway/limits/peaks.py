"""How full the fullest windows of a shared limit were, as this node knows it. Pure and cold.

The promise is that no window w sees more than rate * w + burst. It is looked at where an operator
can see it: a few times a second the sum of a row's admissions, own and told by peers, goes into two
sliding windows, and the worst is kept. Peers' news is up to a horizon late and comes in lumps, so a
window may show up to rate * horizon too much, or at the moment too little; the figure is a witness
and not the judge (tests/bench/mesh has a recording origin for that).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple, Protocol

__all__ = ["ROWS_MAX", "WINDOWS", "LimitPeaks", "RowPeaks", "Worst"]

SECOND = 1_000_000_000
WINDOWS = (("1s", 1 * SECOND), ("10s", 10 * SECOND))
# Rows watched of one limit, the most recently used: 32 at 2 us four times a second are 0.03 % of a
# core, and the row that is over is one that is used.
ROWS_MAX = 32
# A row that was not among them for so long has nothing left in its windows.
_FORGET_NS = 10 * SECOND


class Worst(NamedTuple):
    """Of one window length: the fullest as a share of rate * w + burst, the tokens that the worst
    was over (0: none was), and the tokens in the present one."""

    ratio: float
    over: float
    tokens: int


class Row(Protocol):
    """What is read of a row: admissions here, and those that peers told of."""

    @property
    def own(self) -> int: ...
    @property
    def heard(self) -> int: ...


class _Window:
    """One sliding window. Its true length is from the newest sample that is old enough, since
    rate * w + burst holds for any w; so a late sample makes no false alarm."""

    __slots__ = ("_samples", "length_ns", "over", "ratio", "tokens")

    def __init__(self, length_ns: int) -> None:
        self.length_ns = length_ns
        self.ratio = 0.0
        self.over = 0.0
        self.tokens = 0
        self._samples: deque[tuple[int, int]] = deque()

    def sample(self, total: int, now_ns: int, rate_per_ns: float, burst: float) -> None:
        samples = self._samples
        samples.append((now_ns, total))
        while len(samples) > 1 and samples[1][0] <= now_ns - self.length_ns:
            samples.popleft()
        begun_ns, base = samples[0]
        self.tokens = total - base
        allowed = rate_per_ns * (now_ns - begun_ns) + burst
        self.ratio = max(self.ratio, self.tokens / allowed)
        self.over = max(self.over, self.tokens - allowed)


class RowPeaks:
    """The windows of one row."""

    __slots__ = ("seen_ns", "windows")

    def __init__(self) -> None:
        self.seen_ns = 0
        self.windows = tuple(_Window(length_ns) for _, length_ns in WINDOWS)

    def sample(self, total: int, now_ns: int, rate_per_ns: float, burst: float) -> None:
        """`total` tokens were admitted so far; `rate_per_ns` and `burst` are the limit's."""
        for window in self.windows:
            window.sample(total, now_ns, rate_per_ns, burst)


class LimitPeaks:
    """The windows of one limit's rows, and the worst of those that are no longer watched.

    Other figures of the limit begin another account: old windows were judged by old figures.
    """

    __slots__ = ("_rows", "_rule", "_worst")

    def __init__(self) -> None:
        self._rule = (0.0, 0.0)
        self._rows: dict[Row, RowPeaks] = {}
        self._worst = [(0.0, 0.0)] * len(WINDOWS)

    def sample(self, recent: Iterable[Row], rate_per_ns: float, burst: float, now_ns: int) -> None:
        """Looks at the limit: `recent` are at most ROWS_MAX rows, the last used ones."""
        if self._rule != (rate_per_ns, burst):
            self._rule = (rate_per_ns, burst)
            self._rows.clear()
            self._worst = [(0.0, 0.0)] * len(WINDOWS)
        rows = self._rows
        for row in recent:
            peaks = rows.get(row)
            if peaks is None:
                if len(rows) >= ROWS_MAX:
                    continue
                peaks = rows[row] = RowPeaks()
            peaks.seen_ns = now_ns
        gone = []
        for row, peaks in rows.items():
            peaks.sample(row.own + row.heard, now_ns, rate_per_ns, burst)
            if now_ns - peaks.seen_ns > _FORGET_NS:
                gone.append(row)
        for row in gone:
            self._keep(rows.pop(row))

    def worst(self) -> tuple[Worst, ...]:
        """In the order of WINDOWS."""
        found = []
        for index, (ratio, over) in enumerate(self._worst):
            tokens = 0
            for peaks in self._rows.values():
                window = peaks.windows[index]
                ratio = max(ratio, window.ratio)
                over = max(over, window.over)
                tokens = max(tokens, window.tokens)
            found.append(Worst(ratio, over, tokens))
        return tuple(found)

    def _keep(self, peaks: RowPeaks) -> None:
        for index, window in enumerate(peaks.windows):
            ratio, over = self._worst[index]
            self._worst[index] = (max(ratio, window.ratio), max(over, window.over))
