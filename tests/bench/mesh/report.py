"""Tables of what was measured: each cell beside its target, and the ways to choose from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from bench.mesh.judge import passes
from bench.mesh.lineup import CONTENDERS, WAYS
from bench.mesh.rows import Row, Target

from peers.sim import simulate

__all__ = ["four_ways", "four_ways_lines", "lines", "simulated", "verdict"]

Results = Mapping[tuple[int, str, str], Mapping[str, float]]
QUIET = 0.05  # above, others had so much of the machine that timers were late for their sake
SHARE_MAX = 1.02  # arrivals that were under way at the end, and half a percent of chance
# What is shown of a figure: its name, and how to print it.
FORMATS = {
    "peak_1s": ("peak 1 s", "{:.3f}"),
    "peak_10s": ("peak 10 s", "{:.3f}"),
    "share": ("share of ideal", "{:.3f}"),
    "excess": ("tokens over R·w+B", "{:.1f}"),
    "p50_ms": ("ms for an admitted request, median", "{:.1f}"),
    "p99_ms": ("ms for an admitted request, p99", "{:.1f}"),
    "queued_p50_ms": ("ms from acceptance to sending, median", "{:.1f}"),
    "queued_p99_ms": ("ms from acceptance to sending, p99", "{:.1f}"),
    "cut_rate": ("let through while cut, by R", "{:.3f}"),
    "first_ms": ("ms until the first is paused, median", "{:.1f}"),
    "paused_ms": ("ms until the last is paused, median", "{:.1f}"),
    "paused_ms_p99": ("ms until the last is paused, p99", "{:.1f}"),
    "after": ("sent after the 429, per pause", "{:.2f}"),
    "trials": ("trials per pause", "{:.2f}"),
}


def verdict(figures: Mapping[str, float], target: Target) -> str:
    """The figure by arrival and, after a slash, by sending; and whether it passes.

    A peak or an excess that holds by one of the stamps only may be the machine's and not the
    subject's: that is said ("half"), and is no pass; neither is more than the ideal ("OVER").
    """
    value = figures.get(target.figure)
    if value is None:
        return "-"
    text = FORMATS[target.figure][1].format(value)
    if target.value is None:
        return text
    if target.figure == "share" and value > SHARE_MAX:
        return f"{text} OVER"
    good = [passes(round(value, 4), target.value, target.at_least)]
    sent = figures.get(f"{target.figure}_sent")
    if sent is not None:
        text += " / " + FORMATS[target.figure][1].format(sent)
        good.append(passes(round(sent, 4), target.value, target.at_least))
    word = "pass" if all(good) else "half" if any(good) else "FAIL"
    return f"{text} {word}"


def lines(results: Results, rows: Sequence[Row], nodes: Sequence[int]) -> Iterator[str]:
    """A table for each number of nodes."""
    for count in nodes:
        kinds = [
            kind for kind in CONTENDERS if any(key[0::2] == (count, kind.name) for key in results)
        ]
        if not kinds:
            continue
        yield ""
        yield f"{count} nodes (peaks and excess: by arrival at the origin / by sending)"
        yield ""
        yield "| row | figure | target | " + " | ".join(kind.title for kind in kinds) + " |"
        yield "|---|---|---:|" + "---:|" * len(kinds)
        for row in rows:
            found = {k.name: results.get((count, row.name, k.name), {}) for k in kinds}
            if not any(found.values()):
                continue
            for target in row.targets(count):
                sign = "≥" if target.at_least else "≤"
                wanted = f"{sign} {target.value:g}" if target.value is not None else ""
                cells = [verdict(found[kind.name], target) for kind in kinds]
                if set(cells) == {"-"}:
                    continue
                yield (
                    f"| {row.title} | {FORMATS[target.figure][0]} | {wanted} | "
                    + " | ".join(cells) + " |"
                )  # fmt: skip
    yield ""
    others = [figures["others"] for figures in results.values()]
    late = [figures["late_ms"] for figures in results.values()]
    if others:
        quiet = "quiet" if max(others) <= QUIET else "NOT quiet"
        yield (
            f"others used {min(others):.1%} to {max(others):.1%} of the machine ({quiet}); "
            f"the load was up to {max(late):.0f} ms late"
        )
    lost = sum(int(figures["lost"]) for figures in results.values())
    if lost:
        yield f"{lost} requests got no answer (those at a killed node among them)"


# The rows of the table of ways: what it says, the row and the figure it is from, and how it is
# printed. "above direct" is the difference to the same figure without a node.
CHOICES = (
    ("ms to the answer above direct, median", "half-1000", "p50_ms", "{:.2f}", True),
    ("the same, p99", "half-1000", "p99_ms", "{:.2f}", True),
    ("ms from acceptance to sending, median", "half-1000", "queued_p50_ms", "{:.1f}", False),
    ("the same, p99", "half-1000", "queued_p99_ms", "{:.1f}", False),
    ("twice the rate: peak 1 s by R·w+B", "uniform-100", "peak_1s", "{:.3f}", False),
    ("peak 10 s", "uniform-100", "peak_10s", "{:.3f}", False),
    ("share of ideal", "uniform-100", "share", "{:.3f}", False),
    ("ms to the answer, p99", "uniform-100", "p99_ms", "{:.1f}", False),
    ("ms from acceptance to sending, p99", "uniform-100", "queued_p99_ms", "{:.0f}", False),
    ("cold start: tokens over R·w+B", "cold-100", "excess", "{:.1f}", False),
    ("20 s partition: let through, by R", "partition", "cut_rate", "{:.3f}", False),
    ("tokens over R·w+B", "partition", "excess", "{:.1f}", False),
    ("ms to the answer, p99", "partition", "p99_ms", "{:.1f}", False),
    ("requests without an answer", "partition", "lost", "{:.0f}", False),
)


def four_ways(results: Results, nodes: int) -> list[dict[str, Any]]:
    """Each line of the table, with the figures by way; a way that has none is left out.
    Milliseconds "above direct" need the direct row of the same run."""
    found: list[dict[str, Any]] = []
    for title, row, figure, form, above in CHOICES:
        direct = results.get((nodes, row, "direct"), {}).get(figure) if above else 0.0
        values: dict[str, float] = {}
        for kind in WAYS:
            value = results.get((nodes, row, kind.name), {}).get(figure)
            if value is not None and direct is not None:
                values[kind.name] = value - direct
        if values:
            found.append({"title": title, "row": row, "figure": figure, "format": form,
                          "ways": values})  # fmt: skip
    return found


def four_ways_lines(ways: Sequence[Mapping[str, Any]], nodes: int) -> Iterator[str]:
    """The block "The four ways", ready for the README."""
    if not ways:
        return
    yield ""
    yield f"The four ways ({nodes} nodes; latency at half of R=B=1000, the rest at twice R=B=100)"
    yield ""
    yield "| | " + " | ".join(kind.title.removeprefix("egressd ") for kind in WAYS) + " |"
    yield "|---|" + "---:|" * len(WAYS)
    for line in ways:
        cells = [
            line["format"].format(line["ways"][kind.name]) if kind.name in line["ways"] else "-"
            for kind in WAYS
        ]
        yield f"| {line['title']} | " + " | ".join(cells) + " |"


def simulated(
    nodes: Sequence[int], rows: Sequence[Row], mapped: Callable[..., Iterable[str]] = map
) -> Iterator[str]:
    """The rows that `egressd sim` can do, in virtual time, for meshes that are too large here.
    `mapped` runs them, in order: several at once where it can."""
    yield ""
    yield "in virtual time (egressd sim, seed 1)"
    yield ""
    yield "| row | nodes | peak 1 s | peak 10 s | share of ideal | tokens over (the bound) |"
    yield "|---|---:|---:|---:|---:|---:|"
    cases = [
        (row, count) for row in rows for count in nodes if not row.event and row.overload > 1.0
    ]
    yield from mapped(_simulated_line, cases)


def _simulated_line(case: tuple[Row, int]) -> str:
    row, count = case
    found = simulate(
        count, row.group.rate, row.group.burst, row.loss, row.delay_ms or 1.0,
        row.overload, row.seconds, shape=row.shape,
    )  # fmt: skip
    return (
        f"| {row.title} | {count} | {found.peak_1s:.3f} | {found.peak_10s:.3f} | "
        f"{found.share_of_ideal:.3f} | {found.excess:.1f} ({found.excess_bound:.1f}) |"
    )
