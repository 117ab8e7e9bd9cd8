"""How an exchange ended, as the breaker sees it: three words for all that can happen.

What counts as a failure is the operator's choice (`breaker.failure`); this turns that list into two
look-ups, by status and by the gateway's own error.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable

from gateway.errors import ErrorKind

__all__ = ["FailureRule", "Outcome"]


class Outcome(enum.Enum):
    """SUCCESS: the upstream did its work, whatever the status. FAILURE: it did not. THROTTLE: it
    is well, and wants less. An exchange whose client left has no outcome.
    """

    SUCCESS = "success"
    FAILURE = "failure"
    THROTTLE = "throttle"


# A connect that ran out of time is both: whoever lists either of the words means it.
_WORDS: dict[ErrorKind, tuple[str, ...]] = {
    ErrorKind.DNS_ERROR: ("connect",),
    ErrorKind.DNS_TIMEOUT: ("connect", "timeout"),
    ErrorKind.CONNECTION_REFUSED: ("connect",),
    ErrorKind.UNREACHABLE: ("connect",),
    ErrorKind.CONNECT_TIMEOUT: ("connect", "timeout"),
    ErrorKind.TLS_ERROR: ("connect",),
    ErrorKind.TLS_TIMEOUT: ("connect", "timeout"),
    ErrorKind.TLS_CERTIFICATE: ("connect",),
    ErrorKind.UPSTREAM_CLOSED: ("reset",),
    ErrorKind.RESPONSE_INCOMPLETE: ("reset",),
    ErrorKind.RESPONSE_TIMEOUT: ("timeout",),
    # Garbage instead of HTTP is what a reset is: the answer cannot be had.
    ErrorKind.BAD_RESPONSE: ("reset",),
    ErrorKind.RESPONSE_HEAD_TOO_LARGE: ("reset",),
}
_KNOWN = frozenset(word for words in _WORDS.values() for word in words)


class FailureRule:
    """Which ends are failures: statuses, and "connect", "timeout", "reset"."""

    __slots__ = ("kinds", "statuses")

    def __init__(self, failure: Iterable[int | str]) -> None:
        """Raises ValueError for a word that is none of the three."""
        listed = list(failure)
        words = {item for item in listed if isinstance(item, str)}
        if not words <= _KNOWN:
            raise ValueError(f"no kind of failure: {', '.join(sorted(words - _KNOWN))}")
        self.statuses = frozenset(item for item in listed if isinstance(item, int))
        self.kinds = frozenset(kind for kind, names in _WORDS.items() if words & set(names))

    def of_status(self, status: int) -> Outcome:
        """FAILURE or SUCCESS; whether a status is a throttle its Signal has said before."""
        return Outcome.FAILURE if status in self.statuses else Outcome.SUCCESS

    def of_error(self, kind: ErrorKind) -> Outcome | None:
        """FAILURE, or None for an error that is not the upstream's or is not listed."""
        return Outcome.FAILURE if kind in self.kinds else None
