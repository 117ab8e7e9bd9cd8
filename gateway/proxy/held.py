"""A response whose meaning stands in its body: kept until enough of it has come, then let through.

GitHub's secondary limit is a 403 like any other but for a sentence, Shopify's throttle is a 200. So
where the provider's table says so (`body_statuses`) the head is not passed on before the beginning
of the body was read. Nothing is lost by it but time, and that is bounded: what is long, slow, or
in a coding that cannot be read is judged by what there is, and counted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.breaker.signals import BODY_BYTES_MAX
from gateway.clock import MS
from gateway.h1.message import Framing

if TYPE_CHECKING:
    from gateway.h1.message import ResponseHead

__all__ = ["BODY_WAIT_NS", "HeldResponse", "unreadable"]

# A server sends the first 14 KiB (ten segments, RFC 6928) behind the head at once and the rest of
# 16 KiB a round trip later, which is 300 ms between continents.
BODY_WAIT_NS = 500 * MS

_READABLE = frozenset((b"", b"identity", b"gzip", b"x-gzip", b"deflate"))


class HeldResponse:
    """The head and what came of the body. At most BODY_BYTES_MAX and one read are kept."""

    __slots__ = ("head", "head_time_ns", "pieces", "size")

    def __init__(self, head: ResponseHead, head_time_ns: int) -> None:
        self.head = head
        self.head_time_ns = head_time_ns
        self.pieces: list[bytes] = []
        self.size = 0

    def add(self, data: bytes) -> bool:
        """Keeps a piece of the body; says whether enough is there to judge."""
        self.pieces.append(data)
        self.size += len(data)
        return self.size >= BODY_BYTES_MAX

    def beginning(self) -> bytes:
        """What the response is judged by."""
        return b"".join(self.pieces)[:BODY_BYTES_MAX]


def unreadable(head: ResponseHead) -> str | None:
    """Why waiting for this body would say nothing, as it is counted; "" where there is none.

    None: it is worth waiting for. A success that is longer than what is looked at has done what
    was asked: the throttles that come as a success have no data.
    """
    if head.framing is Framing.NONE:
        return ""
    for name, value in head.fields:
        if name.lower() == b"content-encoding" and value.strip().lower() not in _READABLE:
            return "signal_bodies_coded"
    if head.status < 300 and head.content_length > BODY_BYTES_MAX:
        return "signal_bodies_long"
    return None
