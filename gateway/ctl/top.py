"""`egressd top`: one screen of a node, a new one each second.

Rates are differences of two snapshots divided by the node's own clock between them, so neither the
network's delay nor a missed snapshot falsifies them. A thread reads the node's events; the screen's
own thread waits for a key, and draws when there is something new.
"""

from __future__ import annotations

import contextlib
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from gateway.clock import SECOND
from gateway.ctl.client import Admin, AdminError, NotAnswered
from gateway.ctl.text import COLUMNS, Column, ms_text, rich_table, shown

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

__all__ = ["Sums", "frame", "play", "print_once"]

LOOK_SECONDS = 0.25  # how soon a key is obeyed and a new snapshot drawn
AGAIN_SECONDS = (1, 2, 5)  # between attempts to reach a node that is gone
BAR_CELLS = 20
QUIT_KEYS = frozenset("qQ\x1b")


class Sums(NamedTuple):
    """What `frame` needs of an earlier snapshot."""

    now_ns: int
    limits: dict[tuple[str, str, str], tuple[int, int]]  # (own, mesh) tokens
    requests: dict[tuple[str, str], int]

    @classmethod
    def of(cls, snapshot: dict[str, Any]) -> Sums:
        return cls(
            snapshot["now_ns"],
            {
                (one["node"], one["upstream"], one["name"]): (
                    one["admitted_own"],
                    one["admitted_mesh"],
                )
                for one in snapshot["limits"]
            },
            {(one["node"], one["name"]): one["requests"] for one in snapshot["upstreams"]},
        )


_LIMITS = (
    Column("limit", "limit"),
    Column("rate", "rate"),
    Column("in force/s", "in_force", None, True),
    Column("all/s", "mesh_per_s", None, True),
    Column("here/s", "own_per_s", None, True),
    Column("", "bar"),
    Column("refused", "refused", None, True),
    Column("set by", "by"),
)
_UPSTREAMS = (
    Column("upstream", "name"),
    Column("requests/s", "per_s", None, True),
    *COLUMNS["upstreams"][-3:-1],
    Column("waiting", "waiting", None, True),
    Column("breaker", "breaker"),
)


def frame(snapshot: dict[str, Any], before: Sums | None, trouble: str = "") -> RenderableType:
    """One screen; without an earlier snapshot there are no rates yet."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [Text(line, style="bold") for line in _head(snapshot)]
    if trouble:
        parts.append(Text(shown(trouble), style="bold red"))
    if snapshot["truncated"]:
        parts.append(Text("only the first upstreams are shown", style="yellow"))
    breakers = [
        one for one in snapshot["breakers"] if one["state"] != "closed" or one["forced"] is not None
    ]
    tables = (
        ("limits", _LIMITS, [_limit(one, before, snapshot) for one in snapshot["limits"]]),
        ("upstreams", _UPSTREAMS, [_up(one, before, snapshot) for one in snapshot["upstreams"]]),
        ("breakers that are not closed", COLUMNS["breakers"], breakers),
        ("waits", COLUMNS["waits"], snapshot["waits"]),
        ("members", COLUMNS["members"][1:], snapshot["members"]),
    )
    parts += [rich_table(columns, items, title) for title, columns, items in tables if items]
    return Group(*parts)


def _head(snapshot: dict[str, Any]) -> Iterator[str]:
    for node in snapshot["nodes"]:
        state = "ready" if node["ready"] else "draining" if node["draining"] else "not ready"
        members = f"{node['members_live']}/{node['members_known']} members"
        yield shown(
            f"egressd {node['version']}  {node['node']}  {state}  "
            f"up {ms_text(node['uptime_s'] * 1000)}  {members}  "
            f"{node['connections']} connections  {node['waiting']} waiting"
        )


def _limit(one: dict[str, Any], before: Sums | None, snapshot: dict[str, Any]) -> dict[str, Any]:
    key = (one["node"], one["upstream"], one["name"])
    earlier = before.limits.get(key) if before is not None else None
    own = mesh = None
    if earlier is not None and before is not None:
        # Rows that were thrown out take their part of the sum with them: no rate is below 0.
        own = _per_s(one["admitted_own"] - earlier[0], before, snapshot)
        mesh = _per_s(one["admitted_mesh"] - earlier[1], before, snapshot)
    return {
        "node": one["node"],
        "limit": f"{one['upstream']}/{one['name']}",
        "rate": one["rate"] or f"{one['quota']} at a time",
        "in_force": one["rate_in_force"],
        "mesh_per_s": mesh,
        "own_per_s": own,
        "bar": _bar(mesh, one["rate_in_force"]),
        "refused": one["refused"],
        "by": "operator" if one["overridden"] else "file",
    }


def _up(one: dict[str, Any], before: Sums | None, snapshot: dict[str, Any]) -> dict[str, Any]:
    earlier = before.requests.get((one["node"], one["name"])) if before is not None else None
    per_s = None
    if earlier is not None and before is not None:
        per_s = _per_s(one["requests"] - earlier, before, snapshot)
    return {**one, "per_s": per_s}


def _per_s(more: int, before: Sums, snapshot: dict[str, Any]) -> float | None:
    elapsed_ns = snapshot["now_ns"] - before.now_ns
    return round(max(0, more) * SECOND / elapsed_ns, 1) if elapsed_ns > 0 else None


def _bar(per_s: float | None, rate: float | None) -> str:
    """How much of the rate is used; with several keys more than all of one row's."""
    if per_s is None or not rate:
        return ""
    cells = min(BAR_CELLS, round(BAR_CELLS * per_s / rate))
    return "#" * cells + "." * (BAR_CELLS - cells)


def print_once(admin: Admin, console: Console) -> None:
    """One frame with rates: two snapshots, a second apart. Raises AdminError."""
    before: Sums | None = None
    last: dict[str, Any] | None = None
    for snapshot in admin.snapshots(2):
        if last is not None:
            before = Sums.of(last)
        last = snapshot
    if last is None:
        raise NotAnswered(f"{admin.where}: no snapshot came")
    console.print(frame(last, before))


class _Reader(threading.Thread):
    """Keeps the newest snapshot at hand, and tries again where the node is gone."""

    def __init__(self, admin: Admin) -> None:
        super().__init__(daemon=True)
        self._admin = admin
        self._stop = threading.Event()
        self.newest: dict[str, Any] | None = None
        self.trouble: AdminError | None = None

    def run(self) -> None:
        attempt = 0
        while not self._stop.is_set():
            try:
                for snapshot in self._admin.snapshots():
                    self.newest, self.trouble = snapshot, None
                    attempt = 0
                    if self._stop.is_set():
                        return
            except AdminError as error:
                self.trouble = error
            self._stop.wait(AGAIN_SECONDS[min(attempt, len(AGAIN_SECONDS) - 1)])
            attempt += 1

    def stop(self) -> None:
        self._stop.set()


def play(admin: Admin, console: Console) -> None:
    """Draws until q, Escape or Ctrl-C. Raises AdminError where the first snapshot does not come."""
    from rich.live import Live

    reader = _Reader(admin)
    reader.start()
    before: Sums | None = None
    last: dict[str, Any] | None = None
    with _interrupts() as interrupted, _keys() as key:

        def pressed() -> bool:
            return key() or interrupted()

        while reader.newest is None:
            if reader.trouble is not None:
                raise reader.trouble
            if pressed():
                return
        with Live(console=console, screen=True, auto_refresh=False) as live:
            told = ""
            while not pressed():
                newest, trouble = reader.newest, reader.trouble
                text = f"{trouble}; trying again, the figures are old" if trouble else ""
                if newest is last and text == told:
                    continue
                if newest is not last and last is not None:
                    before = Sums.of(last)
                last, told = newest, text
                live.update(frame(newest, before, text), refresh=True)
    reader.stop()


@contextlib.contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether there was a Ctrl-C.

    As an exception it would be lost where Python can only print one: in a finalizer or a weak
    reference's callback, which drawing has plenty of.
    """
    came = False

    def note(*_: object) -> None:
        nonlocal came
        came = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: came
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[], bool]]:
    """Gives a function that waits LOOK_SECONDS and says whether a key to quit was pressed."""
    if not sys.stdin.isatty():
        pause = threading.Event()
        yield lambda: pause.wait(LOOK_SECONDS)
        return
    import termios
    import tty

    terminal = sys.stdin.fileno()
    kept = termios.tcgetattr(terminal)

    def pressed() -> bool:
        ready, _, _ = select.select([terminal], [], [], LOOK_SECONDS)
        return bool(ready) and sys.stdin.read(1) in QUIT_KEYS

    try:
        tty.setcbreak(terminal)
        yield pressed
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, kept)
