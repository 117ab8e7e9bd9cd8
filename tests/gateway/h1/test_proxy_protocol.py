"""The PROXY header, both versions: octets of the specification, however cut, and garbage."""

from __future__ import annotations

import contextlib
import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import ErrorKind
from gateway.h1.codec import BadMessage
from gateway.h1.proxy_protocol import ProxyHeader

SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")
HEADER_BYTES_MAX = 16 + 216 + 4096
TCP4 = bytes.fromhex("cb007107 c0000201 c822 01bb")
TCP6 = bytes.fromhex("20010db8000000000000000000000001 20010db8000000000000000000000002 c822 01bb")
UNIX = b"/run/a".ljust(108, b"\0") + b"/run/b".ljust(108, b"\0")
TLVS = bytes.fromhex("03 0004 deadbeef 01 0008") + b"http/1.1"


def v2(command: int, kind: int, block: bytes = b"", length: int | None = None) -> bytes:
    size = len(block) if length is None else length
    return SIGNATURE + bytes([command, kind]) + size.to_bytes(2, "big") + block


GOOD = [
    (b"PROXY TCP4 203.0.113.7 192.0.2.1 51234 443\r\n", "203.0.113.7", 51234),
    (b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", "255.255.255.255", 65535),
    (b"PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n", "0.0.0.0", 0),
    (b"PROXY TCP6 2001:DB8::1 2001:db8::2 51234 443\r\n", "2001:db8::1", 51234),
    (b"PROXY TCP6 :: ::1 0 1\r\n", "::", 0),
    (
        b"PROXY TCP6 %s %s 65535 65535\r\n" % (b":".join([b"ffff"] * 8), b":".join([b"ffff"] * 8)),
        ":".join(["ffff"] * 8),
        65535,
    ),
    (b"PROXY UNKNOWN\r\n", None, 0),
    (b"PROXY UNKNOWN 203.0.113.7 whatever \xff\r\n", None, 0),
    (b"PROXY UNKNOWN " + b"f" * 91 + b"\r\n", None, 0),
    (v2(0x21, 0x11, TCP4), "203.0.113.7", 51234),
    (v2(0x21, 0x21, TCP6), "2001:db8::1", 51234),
    (v2(0x21, 0x11, TCP4 + TLVS), "203.0.113.7", 51234),
    (v2(0x21, 0x11, TCP4 + bytes(4096)), "203.0.113.7", 51234),
    (v2(0x21, 0x21, TCP6 + TLVS), "2001:db8::1", 51234),
    (v2(0x21, 0x31, UNIX), None, 0),
    (v2(0x21, 0x31, UNIX + bytes(4096)), None, 0),
    (v2(0x21, 0x00), None, 0),
    (v2(0x21, 0x00, TCP4), None, 0),
    (v2(0x21, 0x01, TCP4), None, 0),
    (v2(0x21, 0x10, TCP4), None, 0),
    (v2(0x20, 0x00), None, 0),
    (v2(0x20, 0x11, TCP4), None, 0),
    (v2(0x20, 0xFF, TLVS), None, 0),
]

BAD = {
    "request": b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "tls hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "zeros": bytes(100),
    "lower case": b"proxy TCP4 203.0.113.7 192.0.2.1 1 2\r\n",
    "two spaces": b"PROXY  TCP4 203.0.113.7 192.0.2.1 1 2\r\n",
    "space at the end": b"PROXY TCP4 203.0.113.7 192.0.2.1 1 2 \r\n",
    "tab": b"PROXY TCP4\t203.0.113.7 192.0.2.1 1 2\r\n",
    "bare LF": b"PROXY TCP4 203.0.113.7 192.0.2.1 1 2\n",
    "bare CR inside": b"PROXY TCP4 203.0.113.7 192.0.2.1 1 2\r \r\n",
    "two CR": b"PROXY TCP4 203.0.113.7 192.0.2.1 1 2\r\r\n",
    "UDP": b"PROXY UDP4 203.0.113.7 192.0.2.1 1 2\r\n",
    "nothing": b"PROXY \r\n",
    "no protocol": b"PROXY\r\n",
    "UNKNOWN and no space": b"PROXY UNKNOWN4\r\n",
    "no target": b"PROXY TCP4 203.0.113.7 1 2\r\n",
    "one port": b"PROXY TCP4 203.0.113.7 192.0.2.1 1\r\n",
    "three ports": b"PROXY TCP4 203.0.113.7 192.0.2.1 1 2 3\r\n",
    "leading zero": b"PROXY TCP4 203.0.113.07 192.0.2.1 1 2\r\n",
    "leading zero in the target": b"PROXY TCP4 203.0.113.7 192.0.02.1 1 2\r\n",
    "octet of 256": b"PROXY TCP4 203.0.113.256 192.0.2.1 1 2\r\n",
    "three octets": b"PROXY TCP4 203.0.113 192.0.2.1 1 2\r\n",
    "port 65536": b"PROXY TCP4 203.0.113.7 192.0.2.1 65536 2\r\n",
    "target port 99999": b"PROXY TCP4 203.0.113.7 192.0.2.1 1 99999\r\n",
    "port with a zero": b"PROXY TCP4 203.0.113.7 192.0.2.1 01 2\r\n",
    "port with a sign": b"PROXY TCP4 203.0.113.7 192.0.2.1 +1 2\r\n",
    "TCP4 with IPv6": b"PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n",
    "TCP6 with IPv4": b"PROXY TCP6 203.0.113.7 192.0.2.1 1 2\r\n",
    "two double colons": b"PROXY TCP6 2001::db8::1 ::1 1 2\r\n",
    "a scope": b"PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n",
    "five digits": b"PROXY TCP6 2001:0db80::1 ::1 1 2\r\n",
    "line of 108": b"PROXY UNKNOWN " + b"f" * 92 + b"\r\n",
    "endless": b"PROXY UNKNOWN " + b"f" * 10_000,
    "signature broken": SIGNATURE[:11] + b"X" + bytes(4),
    "only CRLFs": b"\r\n" * 8,
    "version 1": v2(0x11, 0x11, TCP4),
    "version 3": v2(0x31, 0x11, TCP4),
    "command 2": v2(0x22, 0x11, TCP4),
    "family 4": v2(0x21, 0x41, TCP4),
    "transport 3": v2(0x21, 0x13, TCP4),
    "UDP over IPv4": v2(0x21, 0x12, TCP4),
    "UDP over IPv6": v2(0x21, 0x22, TCP6),
    "unix datagrams": v2(0x21, 0x32, UNIX),
    "IPv4 too short": v2(0x21, 0x11, TCP4[:-1]),
    "IPv6 too short": v2(0x21, 0x21, TCP6[:-1]),
    "unix too short": v2(0x21, 0x31, UNIX[:-1]),
    "too long": v2(0x21, 0x11, TCP4, 216 + 4097),
    "LOCAL and too long": v2(0x20, 0x00, b"", 0xFFFF),
}


@pytest.mark.parametrize(("octets", "address", "port"), GOOD)
def test_a_header_is_read_however_it_is_cut(octets: bytes, address: str, port: int) -> None:
    # The long ones are cut where something is decided, and at every 97th place behind.
    for cut in [*range(min(len(octets), 240)), *range(240, len(octets), 97)]:
        header = ProxyHeader()
        if cut:
            assert header.feed(octets[:cut]) is None
        assert header.begun == bool(cut)
        assert header.wanted > 0
        assert header.feed(octets[cut:] + b"GET /") == len(octets) - cut
        assert (header.address, header.port) == (address, port)
        assert header.wanted == 0


@pytest.mark.parametrize(("octets", "address", "port"), GOOD)
def test_a_header_is_read_octet_by_octet(octets: bytes, address: str, port: int) -> None:
    header = ProxyHeader()
    ends = [header.feed(octets[n : n + 1]) for n in range(len(octets))]
    assert ends == [None] * (len(octets) - 1) + [1]
    assert (header.address, header.port) == (address, port)


@pytest.mark.parametrize(("octets", "address", "port"), GOOD)
def test_who_reads_what_is_wanted_reads_nothing_behind(
    octets: bytes, address: str, port: int
) -> None:
    header = ProxyHeader()
    stream = octets + b"\x16\x03\x01" * 3
    reads = 0
    while wanted := header.wanted:
        piece, stream = stream[:wanted], stream[wanted:]
        assert header.feed(piece) in (None, wanted)
        reads += 1
    assert stream == b"\x16\x03\x01" * 3
    assert (header.address, header.port) == (address, port)
    assert reads <= 1 + 1 + (107 - 15 + 1) // 2


@pytest.mark.parametrize("name", BAD)
def test_what_is_malformed_is_refused(name: str) -> None:
    octets = BAD[name]
    with pytest.raises(BadMessage) as caught:
        ProxyHeader().feed(octets)
    assert caught.value.kind is ErrorKind.BAD_REQUEST
    assert caught.value.clause.startswith("PROXY protocol section 2")
    header = ProxyHeader()
    with pytest.raises(BadMessage):
        for n in range(len(octets)):
            assert header.feed(octets[n : n + 1]) is None


def test_what_cannot_become_a_header_is_refused_at_its_first_octet() -> None:
    for octet in set(range(256)) - {SIGNATURE[0], ord("P")}:
        with pytest.raises(BadMessage):
            ProxyHeader().feed(bytes([octet]))


def test_a_length_is_judged_before_its_octets_come() -> None:
    with pytest.raises(BadMessage, match="too long"):
        ProxyHeader().feed(v2(0x21, 0x11, length=216 + 4097))
    with pytest.raises(BadMessage, match="too short"):
        ProxyHeader().feed(v2(0x21, 0x11, length=11))


# Parts that are nearly right, in any order, and a change of one octet of a good header.
PIECES = st.lists(
    st.one_of(
        st.sampled_from([b"PROXY ", b"TCP4 ", b"TCP6 ", b"UNKNOWN", b" ", b"\r", b"\n", b"\r\n"]),
        st.sampled_from(
            [b"1.2.3.4 ", b"::1 ", b"0", b"65536", SIGNATURE, b"\x21\x11", b"\x00\x0c"]
        ),
        st.binary(max_size=40),
    ),
    max_size=12,
).map(b"".join)
CHANGED = st.builds(
    lambda good, at, octet: good[: at % len(good)] + octet + good[at % len(good) + 1 :],
    st.sampled_from([octets for octets, _, _ in GOOD]),
    st.integers(0, 5000),
    st.binary(max_size=2),
)


def outcome(stream: bytes, sizes: list[int]) -> tuple[object, ...]:
    """What a stream comes to when it is read in pieces of these sizes, in turn."""
    header = ProxyHeader()
    at = turn = 0
    while at < len(stream):
        size = sizes[turn % len(sizes)]
        try:
            used = header.feed(stream[at : at + size])
        except BadMessage:
            return ("bad",)
        if used is not None:
            assert 0 < used <= size
            assert at + used <= HEADER_BYTES_MAX
            return (header.address, header.port, at + used)
        at += size
        turn += 1
    assert len(stream) < HEADER_BYTES_MAX
    return ("more",)


@settings(max_examples=400, deadline=None)
@given(st.one_of(PIECES, CHANGED), st.lists(st.integers(1, 30), min_size=1, max_size=5))
def test_any_octets_have_one_outcome_however_cut(stream: bytes, sizes: list[int]) -> None:
    whole = outcome(stream, [max(1, len(stream))])
    assert outcome(stream, sizes) == whole
    assert outcome(stream, [1]) == whole
    if len(whole) == 3 and whole[0] is not None:
        ipaddress.ip_address(str(whole[0]))


@settings(max_examples=200, deadline=None)
@given(st.one_of(PIECES, CHANGED))
def test_reading_what_is_wanted_never_stalls_nor_overruns(stream: bytes) -> None:
    whole = outcome(stream, [max(1, len(stream))])
    header = ProxyHeader()
    at = 0
    with contextlib.suppress(BadMessage):
        while at < len(stream):
            wanted = header.wanted
            assert wanted > 0
            used = header.feed(stream[at : at + wanted])
            at += wanted
            if used is not None:
                assert used == wanted
                assert (header.address, header.port, at) == whole
                return
    assert len(whole) == 1
