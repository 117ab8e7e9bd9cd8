"""Shapes of load: every step adds up, and what fairness and peaks are."""

from __future__ import annotations

import pytest

from peers.shapes import SHAPES, steps_of
from peers.sim import fairness, peak

SECOND = 1_000_000_000


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("nodes", [1, 2, 3, 8, 32])
def test_parts_are_whole_or_nothing(shape: str, nodes: int) -> None:
    steps = steps_of(shape, nodes, 23.0)
    assert steps[0].at_s == 0.0
    assert [step.at_s for step in steps] == sorted({step.at_s for step in steps})
    assert steps[-1].at_s < 23.0
    for step in steps:
        assert len(step.parts) == nodes
        assert min(step.parts) >= 0.0
        assert sum(step.parts) == pytest.approx(1.0) or not any(step.parts)
    assert any(any(step.parts) for step in steps)


def test_skew_is_70_20_10() -> None:
    assert steps_of("skew", 3, 1.0)[0].parts == pytest.approx((0.7, 0.2, 0.1))
    assert sum(steps_of("skew", 8, 1.0)[0].parts[2:]) == pytest.approx(0.1)


def test_the_moving_load_is_at_one_node_at_a_time() -> None:
    where = [step.parts.index(1.0) for step in steps_of("moving", 3, 20.0)]
    assert where == [0, 1, 2, 0]


def test_fairness_is_about_parts_of_what_was_asked() -> None:
    assert fairness([70, 20, 10], [140, 40, 20]) == pytest.approx(1.0)
    assert fairness([100, 0, 0, 0], [100, 100, 100, 100]) == pytest.approx(0.25)
    assert fairness([5, 0], [10, 0]) == pytest.approx(1.0)  # who asks for nothing gets no less
    assert fairness([0, 0], [10, 10]) == 1.0


def test_a_peak_is_of_half_open_windows() -> None:
    assert peak([0, SECOND // 2, SECOND], SECOND) == 2
    assert peak([SECOND, 0, SECOND - 1], SECOND) == 2
    assert peak([], SECOND) == 0
