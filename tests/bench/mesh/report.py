"""Tables and figure of what was measured: each cell beside its target."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.mesh.contenders import CONTENDERS
from bench.mesh.judge import passes
from bench.mesh.rows import Row, Target

from peers.sim import simulate

__all__ = ["lines", "plot", "simulated", "verdict"]

Results = Mapping[tuple[int, str, str], Mapping[str, float]]
COLOURS = {"egressd": "#1f4e79", "haproxy": "#c0392b", "static": "#7f8c8d", "redis": "#2e8b57"}
QUIET = 0.05  # above, others had so much of the machine that timers were late for their sake
SHARE_MAX = 1.02  # arrivals that were under way at the end, and half a percent of chance
# What is shown of a figure: its name, and how to print it.
FORMATS = {
    "peak_1s": ("peak 1 s", "{:.3f}"),
    "peak_10s": ("peak 10 s", "{:.3f}"),
    "share": ("share of ideal", "{:.3f}"),
    "excess": ("tokens over R·w+B", "{:.1f}"),
    "p50_ms": ("ms for an admitted request, median", "{:.1f}"),
    "p99_ms": ("the same, p99", "{:.1f}"),
    "paused_ms": ("ms until the last is paused, median", "{:.1f}"),
    "paused_ms_p99": ("the same, p99", "{:.1f}"),
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


def simulated(nodes: Sequence[int], rows: Sequence[Row]) -> Iterator[str]:
    """The rows that `egressd sim` can do, in virtual time, for meshes that are too large here."""
    yield ""
    yield "in virtual time (egressd sim, seed 1)"
    yield ""
    yield "| row | nodes | peak 1 s | peak 10 s | share of ideal | tokens over (the bound) |"
    yield "|---|---:|---:|---:|---:|---:|"
    for row in rows:
        if row.event or row.shape == "cold":
            continue
        for count in nodes:
            found = simulate(
                count, row.group.rate, row.group.burst, row.loss, row.delay_ms or 1.0,
                row.overload, row.seconds, shape=row.shape,
            )  # fmt: skip
            yield (
                f"| {row.title} | {count} | {found.peak_1s:.3f} | {found.peak_10s:.3f} | "
                f"{found.share_of_ideal:.3f} | {found.excess:.1f} ({found.excess_bound:.1f}) |"
            )


def plot(
    path: Path, nodes: int, curves: Mapping[tuple[str, str], list[Any]], rows: Sequence[Row]
) -> None:
    """The sum of all nodes in the sliding second over time, a panel for each row."""
    from matplotlib.figure import Figure

    shown = [row for row in rows if any(key[0] == row.name for key in curves)]
    if not shown:
        return
    figure = Figure(figsize=(9, 2.6 * len(shown)), layout="constrained")
    for axes, row in zip(figure.subplots(len(shown), squeeze=False)[:, 0], shown, strict=True):
        for kind in CONTENDERS:
            curve = curves.get((row.name, kind.name))
            if curve:
                times, sums = zip(*curve, strict=True)
                axes.plot(times, sums, label=kind.title, color=COLOURS[kind.name], linewidth=1.1)
        allowed = row.group.rate + row.group.burst
        axes.axhline(allowed, color="black", linestyle="--", linewidth=0.8, label="rate + burst")
        axes.axhline(row.group.rate, color="black", linestyle=":", linewidth=0.8, label="rate")
        axes.set_title(f"{nodes} nodes, {row.title}", fontsize=9)
        axes.set_ylabel("arrivals in 1 s")
        axes.set_ylim(bottom=0)
    axes.set_xlabel("seconds")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=6)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=110)
