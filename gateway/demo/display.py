"""How the demo is shown: a live table on a terminal, one line a second anywhere else."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from gateway.clock import SECOND
from gateway.demo.findings import Findings, faults
from gateway.demo.reading import Rates, Reading

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Display", "LiveDisplay", "PlainDisplay", "make_display", "summary_rows"]

LINE_NS = 1 * SECOND
NOTES_SHOWN = 12


class Display(Protocol):
    """What the scene tells."""

    def note(self, text: str) -> None:
        """One sentence about what happens now; it stays."""
        ...

    def show(self, act: str, reading: Reading, rates: Rates, limit: str) -> None: ...

    def close(self) -> None: ...

    def summary(self, findings: Findings) -> None: ...


def make_display(plain: bool | None) -> Display:
    """Live where standard output is a terminal, unless `plain` says otherwise."""
    if plain is None:
        plain = not sys.stdout.isatty()
    return PlainDisplay() if plain else LiveDisplay()


class PlainDisplay:
    """Lines for a log, a pipe or a screen reader."""

    def __init__(self) -> None:
        self._start_ns: int | None = None
        self._next_ns = 0

    def note(self, text: str) -> None:
        print(f"-- {text}", flush=True)

    def show(self, act: str, reading: Reading, rates: Rates, limit: str) -> None:
        now_ns = reading.now_ns
        if self._start_ns is None:
            self._start_ns = now_ns
        if now_ns < self._next_ns:
            return
        self._next_ns = now_ns + LINE_NS
        admitted = rates.per_second("admitted")
        nodes = "  ".join(
            f"{node.name} {rate:5.1f}/s {node.breaker:9}"
            for node, rate in zip(reading.nodes, admitted, strict=True)
        )
        origin = reading.origin
        print(
            f"{(now_ns - self._start_ns) / SECOND:5.1f} s {act:7} {nodes} "
            f"sum {sum(admitted):5.1f}/s of {limit}  origin: {origin['last_second']:3} in the "
            f"last second, peak {origin['peak']}/{origin['limit']}, "
            f"refused {origin['refused_unasked']}",
            flush=True,
        )

    def close(self) -> None:
        """Nothing is held."""

    def summary(self, findings: Findings) -> None:
        print("-- summary", flush=True)
        for what, found, promised in summary_rows(findings):
            print(f"   {what:44} {found:>30}   {promised}", flush=True)
        broken = faults(findings)
        for text in broken:
            print(f"-- FAILED: {text}", flush=True)
        if not broken:
            print("-- ok: every promise was kept", flush=True)


class LiveDisplay:
    """A table that is drawn over itself; drawn only when there is something new, so no flicker."""

    def __init__(self) -> None:
        self._console = Console()
        self._notes: list[str] = []
        self._table: Table | None = None
        self._live = Live(console=self._console, auto_refresh=False)

    def note(self, text: str) -> None:
        self._notes = [*self._notes, text][-NOTES_SHOWN:]
        self._draw()

    def show(self, act: str, reading: Reading, rates: Rates, limit: str) -> None:
        table = Table(title=f"{act}: 100/s asked for, {limit} allowed", title_justify="left")
        table.add_column("node")
        for title in ("asked", "admitted", "refused", "waiting"):
            table.add_column(title, justify="right", min_width=9)
        table.add_column("breaker", min_width=14)
        columns = [rates.per_second(name) for name in ("requests", "admitted", "refused")]
        for index, node in enumerate(reading.nodes):
            breaker = node.breaker
            if node.remaining_ms:
                breaker += f" {node.remaining_ms / 1000:.1f} s"
            style = "green" if node.breaker == "closed" else "red"
            cells = [f"{column[index]:.0f}/s" for column in columns]
            table.add_row(node.name, *cells, str(node.waiting), Text(breaker, style))
        table.add_section()
        sums = [f"{sum(column):.0f}/s" for column in columns]
        waiting = sum(node.waiting for node in reading.nodes)
        table.add_row("sum", *sums, str(waiting), "", style="bold")
        origin = reading.origin
        table.add_row(
            "origin",
            "",
            f"{origin['last_second']}/s",
            f"{origin['refused_unasked']} ever",
            "",
            f"peak {origin['peak']} of {origin['limit']}",
        )
        self._table = table
        self._draw()

    def close(self) -> None:
        self._live.stop()

    def summary(self, findings: Findings) -> None:
        self._live.stop()  # what it shows stays above
        self._notes = []
        table = Table(title="summary", title_justify="left")
        table.add_column("what")
        table.add_column("found", justify="right")
        table.add_column("promised")
        for row in summary_rows(findings):
            table.add_row(*row)
        self._console.print(table)
        broken = faults(findings)
        for text in broken:
            self._console.print(Text(f"FAILED: {text}", "bold red"))
        if not broken:
            self._console.print(Text("every promise was kept", "bold green"))

    def _draw(self) -> None:
        notes = [Text(f"• {note}") for note in self._notes]
        if not self._live.is_started:
            self._live.start()
        table = [self._table] if self._table is not None else []
        self._live.update(Group(*table, *notes), refresh=True)


def summary_rows(findings: Findings) -> Sequence[tuple[str, str, str]]:
    """(what, found, promised) for each thing that the acts showed; those not played show none."""
    rows = []
    steady, reload = findings.steady, findings.reload
    if steady is not None:
        promised = f"at most {steady.rate}/s, burst {steady.burst}"
        rows.append(("admitted by all nodes together", f"{steady.per_second:.1f}/s", promised))
    if findings.stopped_ms:
        rows += _pause_rows(findings)
    rows.append(("refused by the origin, unasked", str(findings.refused_unasked), "0"))
    for node, after_ms in findings.reloaded_ms.items():
        what = f"from SIGHUP to {node} obeying the edited file"
        rows.append((what, _milliseconds(after_ms), "no restart"))
    if reload is not None:
        promised = f"at most {reload.rate}/s, burst {reload.burst}"
        rows.append(("admitted after the reload", f"{reload.per_second:.1f}/s", promised))
        most = f"at most {reload.rate + reload.burst}, and what was in flight"
        rows.append(("most arrivals in any second then", str(findings.reload_peak), most))
    return rows


def _pause_rows(findings: Findings) -> list[tuple[str, str, str]]:
    peak = f"at most {findings.origin_limit}"
    rows = [("most arrivals in any sliding second", str(findings.steady_peak), peak)]
    for node, after_ms in findings.stopped_ms.items():
        rows.append((f"from the 429 to {node} stopped", _milliseconds(after_ms), "a round trip"))
    rows += [
        ("arrived at the origin after its 429", str(findings.after_asked), "what was in flight"),
        ("trials sent by all nodes together", str(findings.trials), "1"),
        ("from the 429 to all going again", _milliseconds(findings.resumed_ms), "over 3000 ms"),
    ]
    return rows


def _milliseconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.1f} ms"
