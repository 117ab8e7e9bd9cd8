"""Every range by its edges, every way to hide an IPv4 address in an IPv6 one, and garbage."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.connectors.address import (
    NOT_PUBLIC,
    AddressClass,
    AddressDenied,
    Endpoint,
    classify,
    parse_ip,
    unmapped,
)
from gateway.errors import ErrorKind, Phase, Source

PUBLIC = AddressClass.PUBLIC
RANK = list(AddressClass).index

# (first, last, class): the addresses just outside are held by the neighbours' lines.
EDGES = [
    ("0.0.0.0", "0.255.255.255", AddressClass.UNSPECIFIED),
    ("1.0.0.0", "9.255.255.255", PUBLIC),
    ("10.0.0.0", "10.255.255.255", AddressClass.PRIVATE),
    ("11.0.0.0", "100.63.255.255", PUBLIC),
    ("100.64.0.0", "100.127.255.255", AddressClass.CGNAT),
    ("100.128.0.0", "126.255.255.255", PUBLIC),
    ("127.0.0.0", "127.255.255.255", AddressClass.LOOPBACK),
    ("128.0.0.0", "169.253.255.255", PUBLIC),
    ("169.254.0.0", "169.254.255.255", AddressClass.LINK_LOCAL),
    ("169.255.0.0", "172.15.255.255", PUBLIC),
    ("172.16.0.0", "172.31.255.255", AddressClass.PRIVATE),
    ("172.32.0.0", "191.255.255.255", PUBLIC),
    ("192.0.0.0", "192.0.0.255", AddressClass.RESERVED),
    ("192.0.1.0", "192.0.1.255", PUBLIC),
    ("192.0.2.0", "192.0.2.255", AddressClass.DOCUMENTATION),
    ("192.0.3.0", "192.88.98.255", PUBLIC),
    ("192.88.99.0", "192.88.99.255", AddressClass.RESERVED),
    ("192.88.100.0", "192.167.255.255", PUBLIC),
    ("192.168.0.0", "192.168.255.255", AddressClass.PRIVATE),
    ("192.169.0.0", "198.17.255.255", PUBLIC),
    ("198.18.0.0", "198.19.255.255", AddressClass.BENCHMARKING),
    ("198.20.0.0", "198.51.99.255", PUBLIC),
    ("198.51.100.0", "198.51.100.255", AddressClass.DOCUMENTATION),
    ("198.51.101.0", "203.0.112.255", PUBLIC),
    ("203.0.113.0", "203.0.113.255", AddressClass.DOCUMENTATION),
    ("203.0.114.0", "223.255.255.255", PUBLIC),
    ("224.0.0.0", "239.255.255.255", AddressClass.MULTICAST),
    ("240.0.0.0", "255.255.255.255", AddressClass.RESERVED),
    ("::", "::", AddressClass.UNSPECIFIED),
    ("::1", "::1", AddressClass.LOOPBACK),
    ("100::", "100::ffff:ffff:ffff:ffff", AddressClass.RESERVED),
    ("1fff:ffff::", "1fff:ffff::1", AddressClass.RESERVED),
    ("2001:1::", "2001:1:ffff::", AddressClass.RESERVED),
    ("2001:2::", "2001:2:0:ffff::", AddressClass.BENCHMARKING),
    ("2001:2:1::", "2001:1ff:ffff::", AddressClass.RESERVED),
    ("2001:200::", "2001:db7:ffff::", PUBLIC),
    ("2001:db8::", "2001:db8:ffff::", AddressClass.DOCUMENTATION),
    ("2001:db9::", "2001:ffff::", PUBLIC),
    ("2003::", "3ffe:ffff::", PUBLIC),
    ("3fff::", "3fff:fff:ffff::", AddressClass.DOCUMENTATION),
    ("3fff:1000::", "3fff:ffff::", PUBLIC),
    ("4000::", "5f00::1", AddressClass.RESERVED),
    ("fbff:ffff::", "fbff:ffff::1", AddressClass.RESERVED),
    ("fc00::", "fdff:ffff::", AddressClass.UNIQUE_LOCAL),
    ("fe00::", "fe7f:ffff::", AddressClass.RESERVED),
    ("fe80::", "febf:ffff::", AddressClass.LINK_LOCAL),
    ("fec0::", "feff:ffff::", AddressClass.PRIVATE),
    ("ff00::", "ffff:ffff::", AddressClass.MULTICAST),
]

# Ways to write an IPv4 address into an IPv6 one; the last word says what a public one becomes.
CARRIERS = {
    "mapped": (lambda v4: 0xFFFF << 32 | v4, PUBLIC),
    "compatible": (lambda v4: v4, AddressClass.RESERVED),
    "translated": (lambda v4: 0xFFFF << 48 | v4, AddressClass.RESERVED),
    "nat64": (lambda v4: 0x0064_FF9B << 96 | v4, PUBLIC),
    "local nat64 /96": (lambda v4: 0x0064_FF9B_0001 << 80 | v4, AddressClass.PRIVATE),
    "local nat64 /96, subnet": (
        lambda v4: 0x0064_FF9B_0001_FFFE << 64 | v4,
        AddressClass.PRIVATE,
    ),
    "local nat64 /48": (
        lambda v4: 0x0064_FF9B_0001 << 80 | (v4 >> 16) << 64 | (v4 & 0xFFFF) << 40,
        AddressClass.PRIVATE,
    ),
    "local nat64 /56": (
        lambda v4: 0x0064_FF9B_0001_02 << 72 | (v4 >> 24) << 64 | (v4 & 0xFF_FFFF) << 32,
        AddressClass.PRIVATE,
    ),
    "local nat64 /64": (lambda v4: 0x0064_FF9B_0001_0203 << 64 | v4 << 24, AddressClass.PRIVATE),
    "6to4": (lambda v4: 0x2002 << 112 | v4 << 80 | 1, PUBLIC),
    "teredo client": (
        lambda v4: 0x2001 << 112 | 0x4136_E378 << 64 | 0x8000_63BF << 32 | v4 ^ 0xFFFF_FFFF,
        PUBLIC,
    ),
    "teredo server": (
        lambda v4: 0x2001 << 112 | v4 << 64 | 0x8000_63BF << 32 | 0xF7F7_F7F7,
        PUBLIC,
    ),
    "isatap, private": (lambda v4: 0x2600_1234 << 96 | 0x5EFE << 32 | v4, PUBLIC),
    "isatap, unique": (lambda v4: 0x2600_1234 << 96 | 0x0200_5EFE << 32 | v4, PUBLIC),
    "isatap, group bit": (lambda v4: 0x2600_1234 << 96 | 0x0100_5EFE << 32 | v4, PUBLIC),
    "isatap in a unique local net": (
        lambda v4: 0xFD12 << 112 | 0x5EFE << 32 | v4,
        AddressClass.UNIQUE_LOCAL,
    ),
    "isatap, link-local": (
        lambda v4: 0xFE80 << 112 | 0x5EFE << 32 | v4,
        AddressClass.LINK_LOCAL,
    ),
    "isatap in 6to4": (
        lambda v4: 0x2002_0808_0808 << 80 | 0x5EFE << 32 | v4,
        PUBLIC,
    ),
}


@pytest.mark.parametrize(("first", "last", "kind"), EDGES)
def test_both_edges_of_every_range(first: str, last: str, kind: AddressClass) -> None:
    assert classify(ip_address(first)) is kind
    assert classify(ip_address(last)) is kind


def test_the_ipv4_edges_leave_no_gap() -> None:
    lines = [line for line in EDGES if ":" not in line[0]]
    following = 0
    for first, last, _ in lines:
        assert int(IPv4Address(first)) == following
        following = int(IPv4Address(last)) + 1
    assert following == 1 << 32


@pytest.mark.parametrize(
    "text",
    [
        "169.254.169.254", "169.254.170.2", "169.254.170.23", "169.254.0.23", "169.254.42.42",
        "100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254", "fd00:ec2::23",
        "fd20:ce::254", "fd00:c1::a9fe:a9fe", "fd00:a9fe:a9fe::1", "fe80::a9fe:a9fe",
        "fe80::a9fe:a9fe%eth0", "fd00:42::42", "fd00:100::100:200",
    ],
)  # fmt: skip
def test_metadata_services(text: str) -> None:
    assert classify(ip_address(text)) is AddressClass.METADATA


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize(
    "inner", ["127.0.0.1", "10.1.2.3", "169.254.169.254", "0.0.0.0", "100.64.0.1", "8.8.8.8"]
)
def test_an_ipv4_address_inside_counts_if_it_is_worse(carrier: str, inner: str) -> None:
    build, own = CARRIERS[carrier]
    inside = classify(IPv4Address(inner))
    outer = classify(IPv6Address(build(int(IPv4Address(inner)))))
    if carrier.startswith("local nat64"):
        # Its other readings may be worse still, but never less than the prefix or the address.
        assert RANK(outer) >= max(RANK(own), RANK(inside))
    else:
        assert RANK(outer) == max(RANK(own), RANK(inside))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("::ffff:169.254.169.254", AddressClass.METADATA),
        ("::ffff:8.8.8.8", PUBLIC),
        ("64:ff9b::7f00:1", AddressClass.LOOPBACK),
        # The examples of RFC 6052 section 2.2 (192.0.2.33), with RFC 8215's prefix.
        ("64:ff9b:1:c000:2:2100::", AddressClass.PRIVATE),
        ("2002:7f00:1::", AddressClass.LOOPBACK),
        ("2002:c000:204::1", AddressClass.DOCUMENTATION),
        # RFC 4380 section 4's layout: server 65.54.227.120, client 192.0.2.45.
        ("2001:0:4136:e378:8000:63bf:3fff:fdd2", AddressClass.DOCUMENTATION),
        ("fe80::5efe:127.0.0.1", AddressClass.LOOPBACK),
        ("fe80::1%lo", AddressClass.LINK_LOCAL),
        ("::1%1", AddressClass.LOOPBACK),
        ("2606:4700::6810:84e5", PUBLIC),
    ],
)
def test_known_spellings(text: str, kind: AddressClass) -> None:
    assert classify(ip_address(text)) is kind


@given(st.ip_addresses())
def test_every_address_has_a_class(address: IPv4Address | IPv6Address) -> None:
    kind = classify(address)
    assert isinstance(kind, AddressClass)
    # Python's own list is coarser, but nothing it calls private or worse may pass as public,
    # save where the address inside decides: mapped, Teredo and 6to4.
    if kind is PUBLIC and unmapped(address) == address:
        prefix = int(address) >> 96 if isinstance(address, IPv6Address) else 0
        assert address.is_global or prefix == 0x2001_0000 or prefix >> 16 == 0x2002
        assert not (address.is_loopback or address.is_link_local or address.is_multicast)


@given(st.ip_addresses(v=4))
def test_no_carrier_makes_an_ipv4_address_more_harmless(inner: IPv4Address) -> None:
    for build, own in CARRIERS.values():
        outer = RANK(classify(IPv6Address(build(int(inner)))))
        assert outer >= RANK(classify(inner))
        assert outer >= RANK(own)


@given(st.text() | st.from_regex(r"[0-9a-fA-Fx:.%\[\]/]{0,60}", fullmatch=True))
def test_any_text_may_be_parsed(text: str) -> None:
    parsed = parse_ip(text)
    if parsed is not None:
        assert classify(parsed[0]) in AddressClass
        assert "%" not in str(parsed[0])


@given(st.ip_addresses())
def test_a_standard_spelling_is_parsed(address: IPv4Address | IPv6Address) -> None:
    assert parse_ip(str(address)) == (address, "")


@pytest.mark.parametrize(
    "text",
    [
        "0x7f.1", "2130706433", "017700000001", "127.1", "0177.0.0.1", "0x7f000001", "127.0.0.1.",
        "[::1]", "::1%", "1.2.3.4/8", " 127.0.0.1", "127.0.0.1\0.example", "", "localhost",
        "١٢٧.0.0.1", "127.0.0.1%eth0",
    ],
)  # fmt: skip
def test_other_spellings_are_names_for_the_resolver(text: str) -> None:
    assert parse_ip(text) is None


def test_a_scope_is_parted_from_its_address() -> None:
    assert parse_ip("fe80::1%eth0") == (IPv6Address("fe80::1"), "eth0")


def test_endpoints_as_the_kernel_and_a_reader_take_them() -> None:
    four = Endpoint(IPv4Address("192.0.2.1"), 443)
    six = Endpoint(IPv6Address("fe80::1"), 443, 7)
    assert (four.sockaddr, str(four)) == (("192.0.2.1", 443), "192.0.2.1:443")
    assert (six.sockaddr, str(six)) == (("fe80::1", 443, 0, 7), "[fe80::1]:443")


def test_what_deny_private_denies() -> None:
    assert AddressClass.PUBLIC not in NOT_PUBLIC
    assert len(NOT_PUBLIC) == len(AddressClass) - 1


def test_a_denial_is_policy_and_names_its_reason() -> None:
    error = AddressDenied("loopback", "x: 127.0.0.1:80 is not allowed: loopback")
    assert error.kind is ErrorKind.ADDRESS_DENIED
    assert error.kind.proxy_error == "destination_ip_prohibited"
    assert (error.reason, error.phase) == ("loopback", Phase.CONNECT)
    assert error.termination.source is Source.POLICY
