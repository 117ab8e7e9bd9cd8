"""The tables that the bench prints, the targets held against them, and the same as JSON.

A figure is the median over the rounds. A ratio is the median of the rounds' own ratios: both sides
of each were measured within a minute, so that a machine that slows down does not enter it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from bench.measure import Cell, Latency, Run

__all__ = ["Verdict", "as_json", "latency_table", "ratio", "table", "verdicts"]

SUBJECT = "egressd"
YARDSTICK = "haproxy"
CPU_RATIO_MAX = 2.0
CPU_RATIO_HTTPS_MAX = 3.0
SQUID_RATIO_MIN = 3.0
MITMPROXY_RATIO_MIN = 40.0
ADDED_P99_US_MAX = 1000.0
FOREIGN_MAX = 0.05  # of the core: what a quiet machine's own services stay under


class Verdict(NamedTuple):
    """A target, what was found, and whether that reaches it (None: not measured)."""

    target: str
    found: str
    reached: bool | None


Figure = Callable[[Run], float]


def cells_of(runs: Iterable[Run]) -> list[Cell]:
    """The cells in which something was measured, in the order of measuring."""
    return list(dict.fromkeys(run.cell for run in runs))


def ratio(runs: Sequence[Run], one: str, other: str, cell: Cell, figure: Figure) -> float | None:
    """The median over rounds of one's figure by the other's; None where they never met."""
    by_round: dict[int, dict[str, float]] = {}
    for run in runs:
        if run.cell == cell:
            by_round.setdefault(run.round, {})[run.contender] = figure(run)
    ratios = [
        figures[one] / figures[other]
        for figures in by_round.values()
        if one in figures and figures.get(other)
    ]
    return median(ratios) if ratios else None


def _cpu(run: Run) -> float:
    return run.cpu_us


def _rate(run: Run) -> float:
    return run.requests_per_s


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table whose columns also line up in a terminal; all but the first to the right."""
    grid = [list(head), *[list(row) for row in rows]]
    widths = [max(len(row[i]) for row in grid) for i in range(len(head))]
    lines = [
        "| "
        + " | ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        + " |"
        for row in grid
    ]
    rule = [
        "-" * (width + 2) if i == 0 else "-" * (width + 1) + ":" for i, width in enumerate(widths)
    ]
    return "\n".join([lines[0], "|" + "|".join(rule) + "|", *lines[1:]])


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} x"


def table(runs: Sequence[Run], cell: Cell) -> str:
    """One cell: a row for each contender."""
    names = list(dict.fromkeys(run.contender for run in runs))
    rows = []
    for name in names:
        own = [run for run in runs if run.contender == name and run.cell == cell]
        if not own:
            continue
        rows.append(
            [
                name,
                f"{median(run.requests_per_s for run in own):,.0f}",
                f"{median(run.cpu_us for run in own):.1f}",
                f"{median(run.p50_us for run in own) / 1000:.2f}",
                f"{median(run.p99_us for run in own) / 1000:.2f}",
                f"{max(run.memory_peak_bytes for run in own) / 2**20:.0f}",
                _times(ratio(runs, name, YARDSTICK, cell, _cpu)),
                _times(ratio(runs, name, YARDSTICK, cell, _rate)),
                str(sum(run.errors for run in own)),
            ]
        )
    head = ["contender", "requests/s", "CPU µs/request", "p50 ms", "p99 ms", "peak MiB"]
    return _markdown([*head, "CPU by HAProxy", "requests/s by HAProxy", "errors"], rows)


def latency_table(latencies: Sequence[Latency]) -> str:
    """Open loop at half load: a row for each contender."""
    rows = []
    for name in dict.fromkeys(latency.contender for latency in latencies):
        own = [latency for latency in latencies if latency.contender == name]
        rate = f"{median(latency.rate for latency in own):,.0f}"
        rows.append(
            [
                name,
                rate + (" (cap)" if any(latency.capped for latency in own) else ""),
                f"{median(latency.p50_us for latency in own):,.0f}",
                f"{median(latency.p99_us for latency in own):,.0f}",
                f"{median(latency.direct_p99_us for latency in own):,.0f}",
                f"{_added_p99_us(own):+,.0f}",
                f"{median(latency.lag_p99_us for latency in own):,.0f}",
                str(sum(latency.errors for latency in own)),
            ]
        )
    head = ["contender", "requests/s", "p50 µs", "p99 µs", "direct p99 µs", "p99 above direct"]
    return _markdown([*head, "client's own lag p99", "errors"], rows)


def _added_p99_us(latencies: Iterable[Latency]) -> float:
    return median(latency.p99_us - latency.direct_p99_us for latency in latencies)


def _worst(
    runs: Sequence[Run], other: str, figure: Figure, scheme: str, *, largest: bool
) -> tuple[float, Cell] | None:
    """The ratio to another contender in the cell where it is largest (or smallest)."""
    found = [
        (value, cell)
        for cell in cells_of(runs)
        if cell.scheme == scheme
        and (value := ratio(runs, SUBJECT, other, cell, figure)) is not None
    ]
    found.sort()
    if not found:
        return None
    return found[-1 if largest else 0]


def verdicts(runs: Sequence[Run], latencies: Sequence[Latency]) -> list[Verdict]:
    """Each target against its worst cell."""
    found = []
    for target, other, figure, scheme, bound in (
        ("CPU per request by HAProxy, at most 2.0", YARDSTICK, _cpu, "http", CPU_RATIO_MAX),
        ("the same over https, at most 3", YARDSTICK, _cpu, "https", CPU_RATIO_HTTPS_MAX),
    ):
        worst = _worst(runs, other, figure, scheme, largest=True)
        reached = None if worst is None else worst[0] <= bound
        found.append(Verdict(target, _said(worst), reached))
    for target, other, bound in (
        ("requests/s by Squid, at least 3", "squid", SQUID_RATIO_MIN),
        ("requests/s by mitmproxy, at least 40", "mitmproxy", MITMPROXY_RATIO_MIN),
    ):
        worst = _worst(runs, other, _rate, "http", largest=False)
        reached = None if worst is None else worst[0] >= bound
        found.append(Verdict(target, _said(worst), reached))
    own = [latency for latency in latencies if latency.contender == SUBJECT]
    target = "p99 at half load above direct, at most 1 ms"
    if own:
        added = _added_p99_us(own)
        found.append(Verdict(target, f"{added / 1000:.2f} ms", added <= ADDED_P99_US_MAX))
    else:
        found.append(Verdict(target, "not measured", None))
    return found


def _said(worst: tuple[float, Cell] | None) -> str:
    return "not measured" if worst is None else f"{worst[0]:.2f} (worst cell: {worst[1]})"


def verdict_lines(found: Iterable[Verdict]) -> list[str]:
    """The targets as lines of text."""
    words = {True: "reached", False: "MISSED", None: "-"}
    return [f"{words[item.reached]:>8}  {item.target}: {item.found}" for item in found]


def foreign_line(runs: Sequence[Run]) -> str:
    """How quiet the machine was."""
    shares = sorted(run.foreign for run in runs)
    if not shares:
        return ""
    worst = shares[-1]
    line = f"Others used {median(shares):.1%} of the contenders' core (median), {worst:.1%} at most"
    if worst > FOREIGN_MAX:
        return line + ": not a quiet machine; trust the ratios, not the figures."
    return line + "."


def as_json(facts: Mapping[str, Any], runs: Sequence[Run], latencies: Sequence[Latency]) -> str:
    """Everything that was measured, for programs."""
    return json.dumps(
        {
            **facts,
            "runs": [{**run._asdict(), "cell": run.cell._asdict()} for run in runs],
            "latencies": [latency._asdict() for latency in latencies],
            "targets": [verdict._asdict() for verdict in verdicts(runs, latencies)],
        },
        indent=2,
    )
