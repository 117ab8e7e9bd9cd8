"""The PROXY protocol: the client's address, told by the balancer in front in the first octets.

A balancer that works on TCP hides who is asking; this header says it. Versions 1 (a line of text)
and 2 (binary) are those of HAProxy's specification, doc/proxy-protocol.txt. Whoever may send the
header may claim any address, so the caller decides whose header is read at all.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address

from gateway.errors import ErrorKind
from gateway.h1.codec import BadMessage

__all__ = ["ProxyHeader"]

V1_PREFIX = b"PROXY "
V1_BYTES_MIN = len(b"PROXY UNKNOWN\r\n")
V1_BYTES_MAX = 107  # section 2.1: the longest line, UNKNOWN with two IPv6 addresses
V2_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
V2_FIXED_BYTES = 16
# Section 2.2: two socket addresses of AF_UNIX are the longest block. Behind it may stand TLVs; the
# longest known set (names, ALPN, a client certificate's subject) stays far below 4 KiB.
V2_LENGTH_MAX = 216 + 4096

V2_LOCAL = 0x20
V2_PROXY = 0x21
UNSPEC, INET, INET6, UNIX = range(4)
STREAM, DGRAM = 1, 2
ADDRESS_BYTES = {UNSPEC: 0, INET: 12, INET6: 36, UNIX: 216}

_V4 = rb"([0-9.]{7,15})"
_V6 = rb"([0-9A-Fa-f:.]{2,45})"  # some senders write the IPv4 address in a mapped one with dots
_PORT = rb"(0|[1-9][0-9]{0,4})"
_V1_LINE = re.compile(
    rb"PROXY (?:TCP4 %b %b|TCP6 %b %b) %b %b\r\n" % (_V4, _V4, _V6, _V6, _PORT, _PORT)
)


class ProxyHeader:
    """Reads one header, however it is cut.

    When it is complete `address` and `port` are the client's, or None and 0 where the sender does
    not say (UNKNOWN, LOCAL, AF_UNSPEC, AF_UNIX): then the connection's own address counts.
    Destination and TLVs are not kept.
    """

    __slots__ = ("_head", "address", "port")

    def __init__(self) -> None:
        self._head = b""
        self.address: str | None = None
        self.port = 0

    @property
    def begun(self) -> bool:
        """Whether an octet has come."""
        return bool(self._head)

    @property
    def wanted(self) -> int:
        """So many octets surely belong to the header still (0: it is complete).

        Who reads no more at a time leaves what follows in the kernel, for the TLS layer to read.
        """
        head = self._head
        held = len(head)
        if not held:
            return V1_BYTES_MIN  # the shorter of the two versions' least
        if head[:1] == V2_SIGNATURE[:1]:
            return (_v2_bytes(head) or V2_FIXED_BYTES) - held
        if head.endswith(b"\r\n"):
            return 0
        return max(V1_BYTES_MIN - held, 1 if head.endswith(b"\r") else 2)

    def feed(self, data: bytes) -> int | None:
        """How many octets of `data` end the header, or None where more are needed.

        Not to be called again after a number. Raises BadMessage as soon as the octets cannot become
        a header: one that is malformed, too long, of another version, or for datagrams.
        """
        held = len(self._head)
        head = self._head + data[: V2_FIXED_BYTES + V2_LENGTH_MAX - held]
        is_v2 = head[:1] == V2_SIGNATURE[:1]
        size = _v2_bytes(head) if is_v2 else _v1_bytes(head)
        if not size or len(head) < size:
            self._head = head
            return None
        self._head = head[:size]
        self.address, self.port = (_v2_source if is_v2 else _v1_source)(self._head)
        return size - held


def _bad(detail: str, section: str) -> BadMessage:
    return BadMessage(ErrorKind.BAD_REQUEST, detail, f"PROXY protocol section {section}")


def _v1_bytes(head: bytes) -> int:
    """The line's length, or 0 where its end has not come."""
    if not head.startswith(V1_PREFIX[: len(head)]):
        raise _bad("no PROXY header", "2")
    end = head.find(b"\n", 0, V1_BYTES_MAX)
    if end < 0:
        if len(head) >= V1_BYTES_MAX:
            raise _bad("PROXY line too long", "2.1")
        return 0
    if head[end - 1] != 0x0D:
        raise _bad("PROXY line ends without CR", "2.1")
    return end + 1


def _v1_source(line: bytes) -> tuple[str | None, int]:
    if line == b"PROXY UNKNOWN\r\n" or line.startswith(b"PROXY UNKNOWN "):
        return None, 0  # what else the line has must be ignored
    match = _V1_LINE.fullmatch(line)
    if match is None:
        raise _bad("malformed PROXY line", "2.1")
    source4, target4, source6, target6, source_port, target_port = match.groups()
    if int(source_port) > 0xFFFF or int(target_port) > 0xFFFF:
        raise _bad("PROXY line with a port over 65535", "2.1")
    try:
        if source4 is not None:
            IPv4Address(target4.decode())
            return str(IPv4Address(source4.decode())), int(source_port)
        IPv6Address(target6.decode())
        return str(IPv6Address(source6.decode())), int(source_port)
    except ValueError:
        raise _bad("PROXY line with a malformed address", "2.1") from None


def _v2_bytes(head: bytes) -> int:
    """The header's length, or 0 where that has not come; judges what stands before it."""
    if not head.startswith(V2_SIGNATURE[: len(head)]):
        raise _bad("no PROXY header", "2.2")
    if len(head) < V2_FIXED_BYTES:
        return 0
    command, kind = head[12], head[13]
    length = int.from_bytes(head[14:16], "big")
    if length > V2_LENGTH_MAX:
        raise _bad("PROXY header too long", "2.2")
    if command == V2_LOCAL:
        return V2_FIXED_BYTES + length  # "discard the protocol block including the family"
    if command != V2_PROXY:
        raise _bad("unknown version or command in a PROXY header", "2.2")
    family, transport = kind >> 4, kind & 15
    if family > UNIX or transport > DGRAM:
        raise _bad("unknown family or transport in a PROXY header", "2.2")
    if transport == DGRAM:
        # The specification would have it taken for UNSPEC. But no datagram came in by a stream, so
        # whoever says this means another listener.
        raise _bad("PROXY header for datagrams", "2.2")
    if length < ADDRESS_BYTES[family]:
        raise _bad("PROXY header too short for its addresses", "2.2")
    return V2_FIXED_BYTES + length


def _v2_source(head: bytes) -> tuple[str | None, int]:
    if head[12] == V2_LOCAL or head[13] & 15 != STREAM:
        return None, 0
    family = head[13] >> 4
    if family == INET:
        return str(IPv4Address(head[16:20])), int.from_bytes(head[24:26], "big")
    if family == INET6:
        return str(IPv6Address(head[16:32])), int.from_bytes(head[48:50], "big")
    return None, 0
