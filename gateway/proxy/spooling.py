"""What the data path knows of the spool: when a request is for it, and to whom it is then given.

`gateway.spool` is above this room; it puts itself into `Worker.spool`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from gateway.h1.message import Fields
    from gateway.proxy.admission import Admittee
    from gateway.proxy.exchange import Exchange

__all__ = ["STATUS_PATH", "SpoolDoor", "SpoolRule", "prefers_async", "without_async"]

# Where accepted requests are asked for, on every listener and before any route.
STATUS_PATH: Final = b"/.egressd/requests/"

_ASYNC: Final = b"respond-async"


class SpoolRule(NamedTuple):
    """How an upstream's stored requests are kept and sent."""

    ttl_ns: int
    attempts: int
    order_by: Callable[[Admittee], bytes] | None  # None: no order
    priority: int
    keep_ns: int


class SpoolDoor(Protocol):
    """What an exchange may ask of the spool. Both raise GatewayError."""

    def accept(self, exchange: Exchange, now_ns: int) -> None:
        """Takes the exchange on; it is answered when its request is on disk."""
        ...

    def show(self, exchange: Exchange, now_ns: int) -> bool:
        """Whether the exchange asks for an accepted request and is answered here.

        It may have been given an upstream meanwhile: the node that has the record.
        """
        ...


def prefers_async(fields: Fields) -> bool:
    """Whether the client would rather have a 202 than wait (RFC 7240 section 4.1)."""
    for name, value in fields:
        if len(name) == 6 and name.lower() == b"prefer" and _ASYNC in value.lower():
            return any(_is_async(preference) for preference in value.split(b","))
    return False


def without_async(value: bytes) -> bytes:
    """A Prefer field's value without the preference that was applied here; b"": nothing is left."""
    return b",".join([item for item in value.split(b",") if not _is_async(item)]).strip()


def _is_async(preference: bytes) -> bool:
    return preference.partition(b";")[0].strip().lower() == _ASYNC
