"""Windows of a shared limit: what is over is seen, what is not makes no alarm, all is bounded."""

from __future__ import annotations

from gateway.limits.peaks import ROWS_MAX, WINDOWS, LimitPeaks, RowPeaks, Worst

SECOND = 1_000_000_000
STEP_NS = SECOND // 4
RATE = 100 / SECOND  # tokens a nanosecond
BURST = 20.0


class Row:
    def __init__(self) -> None:
        self.own = 0
        self.heard = 0


def watched(peaks: LimitPeaks, index: int = 0) -> Worst:
    return peaks.worst()[index]


def test_a_steady_rate_with_its_burst_is_not_over() -> None:
    peaks, row = LimitPeaks(), Row()
    for step in range(100):
        row.own = 10 + step * 15  # 20 of burst and 25 a step, in two lumps of the mesh
        row.heard = 10 + step * 10
        peaks.sample([row], RATE, BURST, step * STEP_NS)
    one, ten = peaks.worst()
    assert (one.over, ten.over) == (0.0, 0.0)
    assert (one.tokens, ten.tokens) == (100, 1000)
    assert 0.8 < one.ratio < 0.9
    assert 0.95 < ten.ratio < 1.0


def test_what_is_over_is_counted_in_tokens_and_stays() -> None:
    peaks, row = LimitPeaks(), Row()
    for step in range(60):
        row.heard = step * 25 + (50 if step >= 8 else 0)
        peaks.sample([row], RATE, BURST, step * STEP_NS)
    one, ten = peaks.worst()
    assert (one.over, one.ratio) == (30.0, 150 / 120)
    assert ten.over == 30.0
    assert one.tokens == 100  # the present one is not


def test_a_late_sample_makes_no_false_alarm() -> None:
    peaks = RowPeaks()
    for now_ns, total in ((0, 0), (STEP_NS, 25), (5 * SECOND, 500), (5 * SECOND + STEP_NS, 525)):
        peaks.sample(total, now_ns, RATE, BURST)
    assert [window.over for window in peaks.windows] == [0.0, 0.0]


def test_other_figures_begin_another_account() -> None:
    peaks, row = LimitPeaks(), Row()
    peaks.sample([row], RATE, BURST, 0)
    row.own = 500
    peaks.sample([row], RATE, BURST, STEP_NS)
    assert watched(peaks).over > 400
    peaks.sample([row], RATE / 2, BURST, 2 * STEP_NS)
    assert watched(peaks) == (0.0, 0.0, 0)


def test_rows_are_bounded_and_the_worst_outlives_its_row() -> None:
    peaks = LimitPeaks()
    rows = [Row() for _ in range(ROWS_MAX + 10)]
    for now_ns in (0, STEP_NS):
        for row in rows:
            row.own += 100
        peaks.sample(rows, RATE, BURST, now_ns)
    assert len(peaks._rows) == ROWS_MAX
    over = watched(peaks).over
    assert over == 100 - RATE * STEP_NS - BURST
    # Nobody uses them any more: forgotten, and others find a place.
    other = Row()
    for step in range(2, 100):
        peaks.sample([other], RATE, BURST, step * STEP_NS)
    assert list(peaks._rows) == [other]
    assert watched(peaks) == (watched(peaks).ratio, over, 0)
    samples = [len(window._samples) for window in peaks._rows[other].windows]
    assert samples == [length_ns // STEP_NS + 1 for _, length_ns in WINDOWS]
