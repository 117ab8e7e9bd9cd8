"""What kind of place an IP address is, so that a client cannot reach inside through the gateway.

A name says nothing about where it leads: its owner may point it at 127.0.0.1 or at a cloud's
metadata service (server-side request forgery). So addresses are judged after resolution, as
numbers, and the connection goes to the very `Endpoint` that was judged. Spellings such as
`0x7f.1`, `2130706433` or `017700000001` are not literals here: they are left to the resolver, and
what it makes of them is judged like any other answer.

The ranges are those of the IANA special-purpose address registries (RFC 6890). What they list as
globally reachable but is a network's own machinery (AS112, AMT, PCP anycast) counts as its parent
range: nobody's API is there. A NAT64 prefix that a network chose for itself (RFC 6052 section 2.2)
cannot be told from other public addresses by looking at it.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import NamedTuple

from gateway.errors import ErrorKind, GatewayError, Phase

__all__ = [
    "NOT_PUBLIC",
    "SELF_CONNECTION",
    "AddressClass",
    "AddressDenied",
    "Endpoint",
    "IPAddress",
    "classify",
    "parse_ip",
    "unmapped",
]

IPAddress = IPv4Address | IPv6Address


class AddressClass(enum.Enum):
    """What an address is for; the value is its name in counters, log and answers.

    The order is the rank: where an IPv6 address carries an IPv4 address, the later class counts.
    It rises with what a request to such an address could do.
    """

    PUBLIC = "public"
    DOCUMENTATION = "documentation"  # RFC 5737, RFC 3849, RFC 9637
    BENCHMARKING = "benchmarking"  # RFC 2544, RFC 5180
    RESERVED = "reserved"  # RFC 1112 section 4, RFC 6890, and whatever is not assigned
    MULTICAST = "multicast"  # RFC 5771, RFC 4291 section 2.7
    UNSPECIFIED = "unspecified"  # RFC 1122 section 3.2.1.3; Linux connects to itself
    CGNAT = "cgnat"  # RFC 6598
    UNIQUE_LOCAL = "unique_local"  # RFC 4193
    PRIVATE = "private"  # RFC 1918, RFC 3879 (site-local), RFC 8215 (local NAT64)
    LINK_LOCAL = "link_local"  # RFC 3927, RFC 4291 section 2.5.6
    LOOPBACK = "loopback"  # RFC 1122 section 3.2.1.3, RFC 4291 section 2.5.3
    METADATA = "metadata"  # where clouds hand credentials to whoever asks


# What [forward] `deny_private` refuses.
NOT_PUBLIC = frozenset(AddressClass) - {AddressClass.PUBLIC}
# The reason of a refusal that no class gives: the target is one of our own listeners.
SELF_CONNECTION = "self_connection"

_RANK = {kind: rank for rank, kind in enumerate(AddressClass)}

# Specific ranges stand before those that contain them: the first that fits decides.
_RANGES_V4 = [
    (IPv4Network("0.0.0.0/8"), AddressClass.UNSPECIFIED),
    (IPv4Network("10.0.0.0/8"), AddressClass.PRIVATE),
    (IPv4Network("100.64.0.0/10"), AddressClass.CGNAT),
    (IPv4Network("127.0.0.0/8"), AddressClass.LOOPBACK),
    (IPv4Network("169.254.0.0/16"), AddressClass.LINK_LOCAL),
    (IPv4Network("172.16.0.0/12"), AddressClass.PRIVATE),
    (IPv4Network("192.0.0.0/24"), AddressClass.RESERVED),  # RFC 6890 section 2.1
    (IPv4Network("192.0.2.0/24"), AddressClass.DOCUMENTATION),
    (IPv4Network("192.88.99.0/24"), AddressClass.RESERVED),  # 6to4 relays, RFC 7526
    (IPv4Network("192.168.0.0/16"), AddressClass.PRIVATE),
    (IPv4Network("198.18.0.0/15"), AddressClass.BENCHMARKING),
    (IPv4Network("198.51.100.0/24"), AddressClass.DOCUMENTATION),
    (IPv4Network("203.0.113.0/24"), AddressClass.DOCUMENTATION),
    (IPv4Network("224.0.0.0/4"), AddressClass.MULTICAST),
    (IPv4Network("240.0.0.0/4"), AddressClass.RESERVED),  # with 255.255.255.255, RFC 919
    (IPv4Network("0.0.0.0/0"), AddressClass.PUBLIC),
]
# PUBLIC beside a transition prefix means: the IPv4 address inside decides alone.
_RANGES_V6 = [
    (IPv6Network("::/128"), AddressClass.UNSPECIFIED),
    (IPv6Network("::1/128"), AddressClass.LOOPBACK),
    (IPv6Network("::ffff:0:0/96"), AddressClass.PUBLIC),  # mapped: the kernel speaks IPv4
    (IPv6Network("64:ff9b::/96"), AddressClass.PUBLIC),  # NAT64, RFC 6052 section 2.1
    (IPv6Network("64:ff9b:1::/48"), AddressClass.PRIVATE),  # never global, RFC 8215 section 3
    (IPv6Network("2001::/32"), AddressClass.PUBLIC),  # Teredo, RFC 4380
    (IPv6Network("2001:2::/48"), AddressClass.BENCHMARKING),
    (IPv6Network("2001:db8::/32"), AddressClass.DOCUMENTATION),
    (IPv6Network("2001::/23"), AddressClass.RESERVED),  # IETF protocols, RFC 2928
    (IPv6Network("3fff::/20"), AddressClass.DOCUMENTATION),
    (IPv6Network("2000::/3"), AddressClass.PUBLIC),  # all that is assigned, RFC 4291 section 2.4
    (IPv6Network("fc00::/7"), AddressClass.UNIQUE_LOCAL),
    (IPv6Network("fe80::/10"), AddressClass.LINK_LOCAL),
    (IPv6Network("fec0::/10"), AddressClass.PRIVATE),
    (IPv6Network("ff00::/8"), AddressClass.MULTICAST),
    (IPv6Network("::/0"), AddressClass.RESERVED),
]
# The clouds' documented addresses; some of them are in ranges that are otherwise public.
_METADATA_V4 = frozenset(
    int(IPv4Address(text))
    for text in (
        "169.254.169.254",  # AWS, Azure, Google, Oracle, OpenStack, DigitalOcean
        "169.254.170.2",  # AWS ECS: credentials of a task
        "169.254.170.23",  # AWS EKS: credentials of a pod
        "169.254.0.23",  # Tencent
        "169.254.42.42",  # Scaleway
        "100.100.100.200",  # Alibaba
        "168.63.129.16",  # Azure's wire server
        "192.0.0.192",  # Oracle, the older one
    )
)
_METADATA_V6 = frozenset(
    int(IPv6Address(text))
    for text in (
        "fd00:ec2::254",  # AWS
        "fd00:ec2::23",  # AWS EKS: credentials of a pod
        "fd20:ce::254",  # Google
        "fd00:c1::a9fe:a9fe",  # Oracle
        "fd00:a9fe:a9fe::1",  # Akamai
        "fe80::a9fe:a9fe",  # OpenStack, Akamai
        "fd00:42::42",  # Scaleway
        "fd00:100::100:200",  # Alibaba
    )
)

_BITS_32 = 0xFFFF_FFFF
# The upper 96 bits of the prefixes after which an IPv4 address stands last.
_BEFORE_V4 = frozenset(
    int(IPv6Address(prefix)) >> 32
    for prefix in (
        "::",  # compatible, RFC 4291 section 2.5.5.1
        "::ffff:0:0",  # mapped, RFC 4291 section 2.5.5.2
        "::ffff:0:0:0",  # translated, RFC 2765 section 2.1
        "64:ff9b::",  # NAT64, RFC 6052 section 2.1
    )
)


class AddressDenied(GatewayError):
    """A target's address is not allowed: `reason` is the class's name, or SELF_CONNECTION."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(ErrorKind.ADDRESS_DENIED, detail, phase=Phase.CONNECT)
        self.reason = reason


class Endpoint(NamedTuple):
    """Where a connection goes: what is judged and what is connected to are this one object.

    `ip` carries no scope; `scope_id` is the interface's index, 0 where the address needs none.
    """

    ip: IPAddress
    port: int
    scope_id: int = 0

    @property
    def is_v6(self) -> bool:
        return self.ip.version == 6

    @property
    def sockaddr(self) -> tuple[str, int] | tuple[str, int, int, int]:
        """What `socket.connect` takes; a number, so nothing is looked up again."""
        if self.is_v6:
            return (str(self.ip), self.port, 0, self.scope_id)
        return (str(self.ip), self.port)

    def __str__(self) -> str:
        return f"[{self.ip}]:{self.port}" if self.is_v6 else f"{self.ip}:{self.port}"


def parse_ip(text: str) -> tuple[IPAddress, str] | None:
    """(the address, its scope or "") of a standard spelling, or None; any text may be asked."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        return IPv6Address(int(address)), address.scope_id
    return address, ""


def unmapped(address: IPAddress) -> IPAddress:
    """The IPv4 address that a mapped IPv6 address is (RFC 4291 section 2.5.5.2), or the address."""
    if isinstance(address, IPv6Address):
        return address.ipv4_mapped or address
    return address


def classify(address: IPAddress) -> AddressClass:
    """What an address is, or the worse of that and what the IPv4 addresses inside it are.

    A scope (`%eth0`) changes nothing. Defined for every address.
    """
    value = int(address)
    if isinstance(address, IPv4Address):
        return _class_v4(value)
    kinds = [_class_v6(value), *map(_class_v4, _embedded(value))]
    return max(kinds, key=_RANK.__getitem__)


def _class_v4(value: int) -> AddressClass:
    if value in _METADATA_V4:
        return AddressClass.METADATA
    return next(kind for first, last, kind in _SPANS_V4 if first <= value <= last)


def _class_v6(value: int) -> AddressClass:
    if value in _METADATA_V6:
        return AddressClass.METADATA
    return next(kind for first, last, kind in _SPANS_V6 if first <= value <= last)


def _embedded(value: int) -> Iterator[int]:
    """Every IPv4 address that a router or the kernel might take out of an IPv6 address."""
    last = value & _BITS_32
    if value >> 32 in _BEFORE_V4:
        yield last
    elif value >> 80 == 0x0064_FF9B_0001:
        # Local NAT64 (RFC 8215): its prefix may have any length from 48 to 96 bits, and the
        # translator alone knows which, so each reading of RFC 6052 section 2.2 counts.
        yield last
        yield (value >> 64 & 0xFFFF) << 16 | value >> 40 & 0xFFFF  # /48: 16 bits, u, 16 bits
        yield (value >> 64 & 0xFF) << 24 | value >> 32 & 0xFF_FFFF  # /56: 8 bits, u, 24 bits
        yield value >> 24 & _BITS_32  # /64: u, 32 bits
    elif value >> 112 == 0x2002:  # 6to4, RFC 3056 section 2
        yield value >> 80 & _BITS_32
    elif value >> 96 == 0x2001_0000:  # Teredo, RFC 4380 section 4: server, and client inverted
        yield value >> 64 & _BITS_32
        yield last ^ _BITS_32
    # ISATAP, RFC 5214 section 6.1: under any prefix; the bits u and g may be set or not.
    if value >> 32 & 0xFCFF_FFFF == 0x0000_5EFE:
        yield last


def _spans(
    ranges: list[tuple[IPv4Network, AddressClass]] | list[tuple[IPv6Network, AddressClass]],
) -> tuple[tuple[int, int, AddressClass], ...]:
    return tuple(
        (int(network.network_address), int(network.broadcast_address), kind)
        for network, kind in ranges
    )


_SPANS_V4 = _spans(_RANGES_V4)
_SPANS_V6 = _spans(_RANGES_V6)
