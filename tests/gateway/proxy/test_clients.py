"""Who is asking: the first rule that knows the source, the token or the certificate."""

from __future__ import annotations

import ipaddress

import pytest

from gateway.h1.codec import HeadLimits, load_codec
from gateway.h1.message import Fields, RequestHead
from gateway.proxy.clients import (
    ANONYMOUS,
    NO_NAMES,
    REMEMBERED_MAX,
    Client,
    ClientRule,
    ClientTable,
    address_of,
    certificate_names,
)


class Heads:
    """A MessageSink that keeps the head."""

    head: RequestHead

    def head_received(self, head: RequestHead) -> None:
        self.head = head

    def body_received(self, data: bytes) -> None:
        """There is none."""

    def message_complete(self, trailers: Fields) -> None:
        """The head is all that is asked for."""


def head(fields: bytes = b"") -> RequestHead:
    sink = Heads()
    decoder = load_codec("h11").request_decoder(sink, HeadLimits())
    decoder.feed(b"GET / HTTP/1.1\r\nHost: a\r\n%s\r\n" % fields)
    return sink.head


def rule(name: str, source: str = "", token: bytes = b"", certificate: str = "") -> ClientRule:
    networks = (ipaddress.ip_network(source),) if source else ()
    return ClientRule(Client(name, 1, 0, frozenset()), networks, token, certificate)


RULES = [
    rule("by-name", certificate="a.internal"),
    rule("by-source", source="10.0.0.0/8"),
    rule("by-token", token=b"secret"),
    rule("any-of-them", source="192.0.2.0/24", token=b"word", certificate="b.internal"),
]
BEARER = b"Proxy-Authorization: Bearer secret\r\n"


@pytest.mark.parametrize(
    ("source", "names", "fields", "expected"),
    [
        ("203.0.113.1", [], b"", "anonymous"),
        ("10.1.2.3", [], b"", "by-source"),
        ("::ffff:10.1.2.3", [], b"", "by-source"),
        ("10.1.2.3", ["a.internal"], b"", "by-name"),  # file order decides
        ("10.1.2.3", ["b.internal"], b"", "by-source"),
        ("203.0.113.1", ["x", "b.internal"], b"", "any-of-them"),
        ("203.0.113.1", ["A.internal"], b"", "anonymous"),
        ("203.0.113.1", [""], b"", "anonymous"),  # a rule without certificate knows no empty name
        ("unix", ["a.internal"], b"", "by-name"),
        ("unix", [], b"", "anonymous"),
        ("203.0.113.1", [], BEARER, "by-token"),
        ("203.0.113.1", ["a.internal"], BEARER, "by-name"),
        ("203.0.113.1", ["b.internal"], BEARER, "by-token"),
        ("203.0.113.1", ["b.internal"], BEARER.replace(b"secret", b"guess"), "any-of-them"),
        ("10.1.2.3", [], BEARER, "by-source"),
    ],
)
def test_the_first_rule_that_knows_it_names_the_client(
    source: str, names: list[str], fields: bytes, expected: str
) -> None:
    table = ClientTable(RULES, anonymous=True)
    for _ in range(2):  # found, then remembered
        client = table.identify(source, head(fields), frozenset(names))
        assert client is not None
        assert client.name == expected
    # What was remembered of one connection is not taken for another's.
    assert table.identify("203.0.113.9", head()) is ANONYMOUS


def test_a_name_is_not_remembered_for_its_source() -> None:
    table = ClientTable(RULES, anonymous=False)
    names = frozenset({"a.internal"})
    assert table.identify("203.0.113.1", head(), names) is RULES[0].client
    assert table.identify("203.0.113.1", head()) is None
    assert table.identify("203.0.113.1", head(), frozenset({"c"})) is None
    assert table.identify("203.0.113.1", head(), names) is RULES[0].client


def test_what_is_remembered_is_bounded() -> None:
    table = ClientTable(RULES, anonymous=True)
    request = head()
    for number in range(REMEMBERED_MAX + 10):
        table.identify(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", request)
    assert len(table._by_peer) == 10


SUBJECT = ((("organizationName", "Corp"),), (("commonName", "old name"),))


@pytest.mark.parametrize(
    ("certificate", "expected"),
    [
        (None, []),
        ({}, []),
        ({"subject": SUBJECT}, ["old name"]),
        ({"subject": ((("organizationName", "Corp"),),)}, []),
        (
            {"subject": SUBJECT, "subjectAltName": (("DNS", "A.internal"), ("DNS", "b"))},
            ["a.internal", "b"],
        ),
        (
            {"subjectAltName": (("URI", "spiffe://Corp/Reports"), ("email", "Ops@corp.test"))},
            ["spiffe://Corp/Reports", "Ops@corp.test"],
        ),
        (
            {"subject": SUBJECT, "subjectAltName": (("IP Address", "10.0.0.1"),)},
            ["old name"],
        ),
    ],
)
def test_the_names_in_a_certificate(certificate: dict | None, expected: list[str]) -> None:
    assert certificate_names(certificate) == frozenset(expected)


def test_no_names_are_one_object() -> None:
    assert certificate_names(None) is NO_NAMES


@pytest.mark.parametrize(
    ("source", "expected"),
    [("10.0.0.1", "10.0.0.1"), ("fe80::1%eth0", "fe80::1"), ("::ffff:10.0.0.1", "10.0.0.1")],
)
def test_the_address_in_a_peers_name(source: str, expected: str) -> None:
    assert address_of(source) == ipaddress.ip_address(expected)


@pytest.mark.parametrize("source", ["unix", "", "10.0.0", "%eth0", "10.0.0.1:80"])
def test_what_is_no_address(source: str) -> None:
    assert address_of(source) is None
