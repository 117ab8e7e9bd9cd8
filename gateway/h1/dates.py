"""The Date field's value, made once a second (RFC 9110 section 6.6.1)."""

from __future__ import annotations

from email.utils import formatdate

__all__ = ["HttpDate"]

_SECOND_NS = 1_000_000_000


class HttpDate:
    """Keeps the value of the second that was last asked about: making one takes 2 us."""

    __slots__ = ("_second", "_value")

    def __init__(self) -> None:
        self._second = -1
        self._value = b""

    def of(self, wall_ns: int) -> bytes:
        """IMF-fixdate (RFC 9110 section 5.6.7) of a time since the epoch."""
        second = wall_ns // _SECOND_NS
        if second != self._second:
            self._second = second
            self._value = formatdate(second, usegmt=True).encode("ascii")
        return self._value
