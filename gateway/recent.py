"""The last things that a worker logged, kept for the admin interface beside the log itself.

An operator who looks at a dashboard wants to see why a line moved; the log is elsewhere.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from gateway.clock import MS, wall_ns

__all__ = ["Recent"]

LINES_MAX = 100  # what a page shows; the log has all
TEXT_CHARACTERS_MAX = 500  # of one fact: a reload's list of changes may be long


class Recent:
    """A logger that remembers what it passes on."""

    def __init__(self, log: Any) -> None:
        self._log = log
        self._lines: deque[dict[str, Any]] = deque(maxlen=LINES_MAX)

    def debug(self, event: str, **facts: object) -> None:
        """Passed on and not remembered: it would push out what an operator has to see."""
        self._log.debug(event, **facts)

    def info(self, event: str, **facts: object) -> None:
        self._remember("info", event, facts)
        self._log.info(event, **facts)

    def warning(self, event: str, **facts: object) -> None:
        self._remember("warning", event, facts)
        self._log.warning(event, **facts)

    def error(self, event: str, **facts: object) -> None:
        self._remember("error", event, facts)
        self._log.error(event, **facts)

    def lines(self) -> list[dict[str, Any]]:
        """The last LINES_MAX, the newest last: when (Unix ms), how grave, what, and the facts."""
        return list(self._lines)

    def _remember(self, level: str, event: str, facts: dict[str, object]) -> None:
        kept = {name: _plain(value) for name, value in facts.items()}
        self._lines.append(
            {"wall_ms": wall_ns() // MS, "level": level, "event": event, "facts": kept}
        )


def _plain(value: object) -> bool | int | float | str:
    """A value that JSON has, and not a long one."""
    if isinstance(value, bool | int | float):
        return value
    shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return shown[:TEXT_CHARACTERS_MAX]
