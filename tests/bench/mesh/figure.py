"""The sum of all nodes in the sliding second over time, in small panels, one for each contender."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.mesh.lineup import CONTENDERS
from bench.mesh.rows import PARTITION, Row

__all__ = ["COLOURS", "plot"]

COLUMNS = 4  # of panels: at the width of a README each is still 200 pixels wide
COLOURS = {
    "egressd": "#1f4e79",
    "exact": "#2471a3",
    "redis": "#1e8449",
    "spool": "#7d3c98",
    "haproxy": "#c0392b",
    "static": "#616a6b",
    "gcra": "#b9770e",
}

Curves = Mapping[tuple[str, str], Sequence[tuple[float, int]]]


def plot(path: Path, nodes: int, curves: Curves, rows: Sequence[Row]) -> None:
    """Writes a PNG; nothing where nothing was measured."""
    from matplotlib.figure import Figure

    bands = _bands(curves, rows)
    if not bands:
        return
    figure = Figure(figsize=(9.5, 1.75 * len(bands) + 0.4), layout="constrained")
    grid = figure.subplots(len(bands), COLUMNS, squeeze=False)
    for (row, names), line in zip(bands, grid, strict=True):
        highest = max(count for name in names for _, count in curves[row.name, name])
        allowed = row.group.rate + row.group.burst
        for axes, name in zip(line, [*names, *[""] * (COLUMNS - len(names))], strict=True):
            if not name:
                axes.set_axis_off()
                continue
            _panel(axes, row, curves[row.name, name], COLOURS[name])
            axes.set_ylim(0, 1.1 * max(highest, allowed))
            axes.set_title(_title(name), fontsize=9, color=COLOURS[name])
        line[0].set_ylabel(f"{row.title}\n", fontsize=8)
    figure.supxlabel(
        f"seconds; arrivals at the origin in the second before, {nodes} nodes. "
        "Dashed: rate + burst, dotted: rate, grey: cut in halves",
        fontsize=8,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=100)


def _bands(curves: Curves, rows: Sequence[Row]) -> list[tuple[Row, list[str]]]:
    """What stands in a line of panels: a row, and up to so many contenders."""
    found = []
    for row in rows:
        names = [kind.name for kind in CONTENDERS if curves.get((row.name, kind.name))]
        found += [(row, names[at : at + COLUMNS]) for at in range(0, len(names), COLUMNS)]
    return found


def _panel(axes: Any, row: Row, curve: Sequence[tuple[float, int]], colour: str) -> None:
    times, sums = zip(*curve, strict=True)
    axes.fill_between(times, sums, color=colour, alpha=0.25, linewidth=0)
    axes.plot(times, sums, color=colour, linewidth=1.0)
    axes.axhline(row.group.rate + row.group.burst, color="black", linestyle="--", linewidth=0.7)
    axes.axhline(row.group.rate, color="black", linestyle=":", linewidth=0.7)
    if row.event == "partition":
        before, cut, _ = PARTITION
        axes.axvspan(before, before + cut, color="0.9", zorder=0)
    axes.set_xlim(0, times[-1])
    axes.tick_params(labelsize=7)


def _title(name: str) -> str:
    return next(kind.title for kind in CONTENDERS if kind.name == name)
