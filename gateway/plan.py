"""`egressd sim`: what a mesh of so many nodes would do with a limit, before there is one.

The very same `peers.core` runs in virtual time over a network with the given delay and loss, and a
recording upstream judges it. The same arguments give the same figures on any machine.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from peers.shapes import SHAPES, steps_of

if TYPE_CHECKING:
    from peers.sim import Report

__all__ = ["Plan", "Refusal", "document", "lines", "measured", "plot", "sim"]

NODES_MAX = 32  # a full mesh (peers/PROTOCOL.md section 3)
# An arrival costs some 40 us: five million are four minutes.
ARRIVALS_MAX = 5_000_000
RATE_COUNT_MAX = 2**32 - 1  # what members can tell each other
SECOND = 1_000_000_000
_PLOT_STEP_NS = SECOND // 20
_COLOURS = ("#1f4e79", "#c0392b", "#7f8c8d")


class Refusal(Exception):
    """The plan cannot be simulated, or its figures not be written; the text says why."""


class Plan(NamedTuple):
    """What is asked. `rate` tokens in `period_ns`; `overload` times that rate is offered."""

    nodes: int
    rate: int
    period_ns: int
    burst: int
    loss: float
    delay_ms: float
    shape: str
    overload: float
    seconds: float
    wait_ms: float
    seed: int

    @property
    def rate_per_s(self) -> float:
        return self.rate * SECOND / self.period_ns

    def check(self) -> None:
        """Raises Refusal where single values are fine and their product is not."""
        arrivals = self.rate_per_s * self.overload * self.seconds
        starts = sum(step.burst for step in steps_of(self.shape, self.nodes, self.seconds))
        arrivals += starts * self.nodes * (self.burst + 1)
        if arrivals > ARRIVALS_MAX:
            raise Refusal(
                f"{arrivals:,.0f} requests would be simulated, at most {ARRIVALS_MAX:,} are: "
                "fewer --seconds, or a smaller --rate or --burst in proportion"
            )


class Outcome(NamedTuple):
    """The report, and all admissions as nanoseconds since the load began."""

    report: Report
    stamps: list[int]


def measured(plan: Plan, progress: Callable[[float], None] | None = None) -> Outcome:
    """Runs the plan. Raises Refusal."""
    from peers.sim import Run, network, run
    from peers.simnet import Simulation

    plan.check()
    bench = Simulation(plan.nodes, plan.seed, network(plan.delay_ms, plan.loss))
    steps = steps_of(plan.shape, plan.nodes, plan.seconds)
    try:
        experiment = Run(
            bench, steps, plan.rate, plan.burst, plan.overload,
            period_ns=plan.period_ns, wait_ms=plan.wait_ms,
        )  # fmt: skip
    except AssertionError as error:
        raise Refusal(
            f"over this network the nodes did not find each other within a minute ({error})"
        ) from error
    run(experiment, plan.seconds, progress)
    start_ns = experiment.start_ns
    stamps = [stamp_ns - start_ns for stamp_ns in experiment.stamps]
    return Outcome(experiment.report(plan.seed), stamps)


def document(plan: Plan, report: Report) -> dict[str, Any]:
    """The outcome as plain values; a window longer than the run has no peak."""
    allowed = plan.rate_per_s
    return {
        "plan": {**plan._asdict(), "rate_per_s": allowed},
        "asked": report.arrived,
        "admitted": report.admitted,
        "ideal": report.ideal,
        "share_of_ideal": round(report.share_of_ideal, 5),
        "peak_1s": round(report.peak_1s, 5) if plan.seconds >= 1 else None,
        "peak_10s": round(report.peak_10s, 5) if plan.seconds >= 10 else None,
        "excess_tokens": round(report.excess, 3),
        "excess_bound_tokens": round(report.excess_bound, 3),
        "fairness": round(report.fairness, 5),
        "nodes": [
            {"asked": asked, "admitted": admitted}
            for asked, admitted in zip(report.asked_per_node, report.per_node, strict=True)
        ],
        "gossip_per_node": {
            "datagrams_per_s": round(report.datagrams_per_second, 1),
            "bytes_per_s": round(report.bytes_per_second, 1),
        },
    }


def lines(plan: Plan, report: Report) -> Iterator[str]:
    """The outcome in words."""
    rate, burst = plan.rate_per_s, plan.burst
    yield (
        f"{plan.nodes} nodes, {rate:g}/s with a burst of {burst}, {plan.overload:g} times that "
        f"offered for {plan.seconds:g} s:"
    )
    yield f"{SHAPES[plan.shape][0]}; one-way delay {plan.delay_ms:g} ms, loss {plan.loss:.1%}"
    for seconds, share in ((1, report.peak_1s), (10, report.peak_10s)):
        if plan.seconds >= seconds:
            allowed = rate * seconds + burst
            name = f"fullest {seconds} s"
            yield f"  {name:<15} {share * allowed:,.0f} of {allowed:,.0f} allowed: {share:.3f}"
    yield (
        f"  over the limit  {report.excess:.1f} tokens in the worst window of any length; "
        f"the bound is {report.excess_bound:.1f}"
    )
    yield (
        f"  admitted        {report.admitted:,} of the {report.ideal:,} that one central bucket "
        f"would: {report.share_of_ideal:.1%}"
    )
    yield f"  fairness        {report.fairness:.3f} (1: every node got the same part of its demand)"
    yield (
        f"  gossip          {report.datagrams_per_second:,.0f} datagrams/s, "
        f"{report.bytes_per_second / 1000:,.1f} kB/s from each node"
    )


def plot(path: Path, plan: Plan, stamps: Sequence[int]) -> None:
    """Draws the sum in the sliding second over time as PNG. Raises Refusal."""
    figure_class = _figure_class()
    ordered = sorted(stamps)
    times: list[float] = []
    sums: list[int] = []
    begin = end = 0
    for at_ns in range(0, int(plan.seconds * SECOND) + 1, _PLOT_STEP_NS):
        while end < len(ordered) and ordered[end] <= at_ns:
            end += 1
        while begin < end and ordered[begin] <= at_ns - SECOND:
            begin += 1
        times.append(at_ns / SECOND)
        sums.append(end - begin)
    figure = figure_class(figsize=(9, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(times, sums, color=_COLOURS[0], linewidth=1.2, label="admitted by all nodes")
    rate = plan.rate_per_s
    axes.axhline(rate + plan.burst, color=_COLOURS[1], linestyle="--", label="rate + burst")
    axes.axhline(rate, color=_COLOURS[2], linestyle=":", label="rate")
    axes.set_xlabel("seconds")
    axes.set_ylabel("in the last second")
    axes.set_ylim(bottom=0)
    axes.set_title(f"{plan.nodes} nodes, {plan.shape}, loss {plan.loss:.0%}, {plan.delay_ms:g} ms")
    axes.legend(loc="lower right")
    try:
        figure.savefig(path, format="png", dpi=120)
    except OSError as error:
        raise Refusal(f"{path}: {error.strerror}") from error


def _figure_class() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise Refusal("--plot needs matplotlib: pip install 'egressd[plot]'") from error
    return Figure


class _Number(click.ParamType[Any]):
    """A finite number between two bounds; `percent` also takes it as 5%."""

    def __init__(self, name: str, low: float, high: float, *, percent: bool = False) -> None:
        self.name = name
        self._low = low
        self._high = high
        self._percent = percent

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        text = str(value)
        try:
            scale = 100 if self._percent and text.endswith("%") else 1
            number = float(text.removesuffix("%") if scale > 1 else text) / scale
        except ValueError:
            number = math.nan
        if not self._low <= number <= self._high:
            self.fail(f"{text[:40]!r} is not a number from {self._low:g} to {self._high:g}.")
        return number


class _Rate(click.ParamType[Any]):
    """A rate as the configuration writes it; a bare number is one a second."""

    name = "rate"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, int]:
        from gateway.conf.units import parse_rate

        text = str(value)
        try:
            count, period_ns = parse_rate(
                f"{text}/s" if text.isascii() and text.isdigit() else text
            )
        except ValueError as error:
            self.fail(f"{error}.")
        if count > 100_000 * period_ns / SECOND or count > RATE_COUNT_MAX:
            self.fail("at most 100,000/s are simulated, and 4,294,967,295 in a period.")
        return count, period_ns


def _check_target(path: str | None) -> None:
    """Raises Refusal before minutes are spent on a figure that could not be drawn."""
    if path is None:
        return
    if Path(path).suffix.lower() != ".png":
        raise Refusal(f"{path}: the figure is a PNG, so its name must end in .png")
    _figure_class()
    folder = Path(path).absolute().parent
    if not folder.is_dir():
        raise Refusal(f"{path}: there is no folder {folder}")


@contextmanager
def _progress() -> Iterator[Callable[[float], None] | None]:
    """A bar on standard error, where that is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TimeRemainingColumn

    columns = ("simulating", BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda part: bar.update(task, completed=part)


@click.command()
@click.option("--nodes", type=click.IntRange(1, NODES_MAX), default=3, show_default=True)
@click.option(
    "--rate",
    type=_Rate(),
    default="100/s",
    show_default=True,
    metavar="RATE",
    help="As in the configuration: 100/s, 6000/min; a bare number is a second's.",
)
@click.option(
    "--burst",
    type=click.IntRange(1, 1_000_000),
    metavar="TOKENS",
    help="Default: a tenth of the rate's count, at least 1.",
)
@click.option(
    "--loss",
    type=_Number("share", 0, 0.9, percent=True),
    default="0",
    show_default=True,
    help="Of datagrams lost: 0.05 or 5%.",
)
@click.option(
    "--delay",
    "delay_ms",
    type=_Number("ms", 0.01, 250),
    default="1",
    show_default=True,
    help="One way; drawn evenly from 0.3 to 1.8 times this.",
)
@click.option(
    "--load",
    "shape",
    type=click.Choice(list(SHAPES)),
    default="uniform",
    show_default=True,
    help="; ".join(f"{k}: {v[0]}" for k, v in SHAPES.items()) + ".",
)
@click.option(
    "--overload",
    type=_Number("factor", 0.01, 100),
    default="2",
    show_default=True,
    help="What is offered, in times the rate.",
)
@click.option("--seconds", type=_Number("s", 1, 3600), default="30", show_default=True)
@click.option(
    "--wait",
    "wait_ms",
    type=_Number("ms", 0, 60_000),
    default="0",
    show_default=True,
    help="How long a request without room waits, in ms.",
)
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=1, show_default=True)
@click.option(
    "--plot", "path", type=click.Path(dir_okay=False), help="Draw the sum over time: PNG."
)
@click.option("--json", "as_json", is_flag=True, help="The figures as a JSON object.")
def sim(
    rate: tuple[int, int], burst: int | None, path: str | None, as_json: bool, **rest: Any
) -> None:
    """Simulate a mesh under load, in virtual time: peaks, share admitted, fairness, gossip."""
    count, period_ns = rate
    plan = Plan(
        rate=count,
        period_ns=period_ns,
        burst=max(1, min(count // 10, 1_000_000)) if burst is None else burst,
        **rest,
    )
    try:
        _check_target(path)
        with _progress() as progress:
            report, stamps = measured(plan, progress)
        if path is not None:
            plot(Path(path), plan, stamps)
    except Refusal as refusal:
        raise click.ClickException(str(refusal)) from refusal
    if as_json:
        click.echo(json.dumps(document(plan, report), indent=2))
    else:
        for line in lines(plan, report):
            click.echo(line)
