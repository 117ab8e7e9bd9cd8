"""Who is asking: the first `[[client]]` that matches source address, token or certificate.

The token comes in Proxy-Authorization (RFC 9110 section 11.7.2), which ends here; Authorization
belongs to the upstream. Every token is compared in full and in constant time, so neither its length
nor its place in the file can be timed. A certificate was verified against `tls.client_ca` in the
handshake, so here only its names count.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from gateway.h1.message import RequestHead

__all__ = [
    "ANONYMOUS",
    "NO_NAMES",
    "Client",
    "ClientRule",
    "ClientTable",
    "address_of",
    "certificate_names",
    "within",
]

REMEMBERED_MAX = 16_384  # peers; about 150 B each
NO_NAMES: frozenset[str] = frozenset()

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Client(NamedTuple):
    """A client as limits, queues and logs see it; `upstreams` empty: all."""

    name: str
    weight: int
    priority: int
    upstreams: frozenset[str]


ANONYMOUS = Client("anonymous", 1, 0, frozenset())


class ClientRule(NamedTuple):
    """What makes a request this client's: any of the networks, the token, or the certificate."""

    client: Client
    networks: tuple[Network, ...]
    token: bytes  # b"": none
    certificate: str = ""  # a name in it; "": none


class ClientTable:
    """All clients, in file order."""

    __slots__ = ("_anonymous", "_by_peer", "_certificates", "_rules", "_tokens")

    def __init__(self, rules: Sequence[ClientRule], *, anonymous: bool) -> None:
        self._rules = tuple(rules)
        self._anonymous = ANONYMOUS if anonymous else None
        self._tokens = any(rule.token for rule in rules)
        self._certificates = any(rule.certificate for rule in rules)
        self._by_peer: dict[str | tuple[str, frozenset[str]], Client | None] = {}

    def identify(
        self, source: str, head: RequestHead, names: frozenset[str] = NO_NAMES
    ) -> Client | None:
        """The client, or None where it is unknown and unknown ones may not pass.

        `names` are those of `certificate_names`.
        """
        if not self._rules:
            return self._anonymous
        if self._tokens:
            for name, value in head.fields:
                if len(name) == 19 and name.lower() == b"proxy-authorization":
                    return self._with_token_slow(source, names, value)
        peer = (source, names) if names and self._certificates else source
        if peer in self._by_peer:
            return self._by_peer[peer]
        found = self._by_peer_slow(source, names)
        if len(self._by_peer) >= REMEMBERED_MAX:
            self._by_peer.clear()
        self._by_peer[peer] = found
        return found

    def named(self, name: str) -> Client | None:
        """The client of that name, for a request that was stored; None: there is none any more."""
        for rule in self._rules:
            if rule.client.name == name:
                return rule.client
        return None

    def _by_peer_slow(self, source: str, names: frozenset[str]) -> Client | None:
        address = address_of(source)
        for rule in self._rules:
            if _is_peer(rule, address, names):
                return rule.client
        return self._anonymous

    def _with_token_slow(self, source: str, names: frozenset[str], value: bytes) -> Client | None:
        user, token = _credentials(value)
        address = address_of(source)
        found: Client | None = None
        for rule in self._rules:
            matches = bool(rule.token) and hmac.compare_digest(rule.token, token)
            if matches and user and user != rule.client.name.encode():
                matches = False
            if found is None and (matches or _is_peer(rule, address, names)):
                found = rule.client
        return found or self._anonymous


def certificate_names(certificate: Mapping[str, Any] | None) -> frozenset[str]:
    """The names in a verified certificate, as `SSLSocket.getpeercert` gives it.

    Those of subjectAltName (DNS names in lower case, URIs, mail addresses); the subject's common
    name only where there is none of them (RFC 6125 section 6.4.4).
    """
    if not certificate:
        return NO_NAMES
    names = frozenset(
        value.lower() if kind == "DNS" else value
        for kind, value in certificate.get("subjectAltName", ())
        if kind in ("DNS", "URI", "email")
    )
    return names or frozenset(
        value
        for attributes in certificate.get("subject", ())
        for kind, value in attributes
        if kind == "commonName"
    )


def _is_peer(rule: ClientRule, address: Address | None, names: frozenset[str]) -> bool:
    """Whether a rule knows the connection, whatever the request says."""
    if rule.certificate and rule.certificate in names:
        return True
    return address is not None and within(address, rule.networks)


def within(address: Address, networks: Sequence[Network]) -> bool:
    """Whether an address is in one of the networks."""
    return any(address.version == network.version and address in network for network in networks)


def address_of(source: str) -> Address | None:
    """The address in a peer's name: no scope, and IPv4 where IPv6 only wraps it."""
    try:
        address = ipaddress.ip_address(source.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _credentials(value: bytes) -> tuple[bytes, bytes]:
    """(user, token) of `Basic user:token` (RFC 7617), or (b"", token) of `Bearer token`."""
    scheme, _, rest = value.partition(b" ")
    if scheme.lower() == b"bearer":
        return b"", rest.strip()
    if scheme.lower() == b"basic":
        try:
            user, _, token = base64.b64decode(rest.strip(), validate=True).partition(b":")
        except binascii.Error:
            return b"", b""
        return user, token
    return b"", b""
