"""Who is asking: the first `[[client]]` that matches the source address or the token.

The token comes in Proxy-Authorization (RFC 9110 section 11.7.2), which ends here; Authorization
belongs to the upstream. Every token is compared in full and in constant time, so neither its length
nor its place in the file can be timed.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
from collections.abc import Sequence
from typing import NamedTuple

from gateway.h1.message import RequestHead

__all__ = ["ANONYMOUS", "Client", "ClientRule", "ClientTable"]

REMEMBERED_MAX = 16_384  # sources; about 150 B each

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Client(NamedTuple):
    """A client as limits, queues and logs see it; `upstreams` empty: all."""

    name: str
    weight: int
    priority: int
    upstreams: frozenset[str]


ANONYMOUS = Client("anonymous", 1, 0, frozenset())


class ClientRule(NamedTuple):
    """What makes a request this client's: any of the networks, or the token."""

    client: Client
    networks: tuple[Network, ...]
    token: bytes  # b"": none


class ClientTable:
    """All clients, in file order."""

    __slots__ = ("_anonymous", "_by_source", "_rules", "_tokens")

    def __init__(self, rules: Sequence[ClientRule], *, anonymous: bool) -> None:
        self._rules = tuple(rules)
        self._anonymous = ANONYMOUS if anonymous else None
        self._tokens = any(rule.token for rule in rules)
        self._by_source: dict[str, Client | None] = {}

    def identify(self, source: str, head: RequestHead) -> Client | None:
        """The client, or None where it is unknown and unknown ones may not pass."""
        if not self._rules:
            return self._anonymous
        if self._tokens:
            for name, value in head.fields:
                if len(name) == 19 and name.lower() == b"proxy-authorization":
                    return self._with_token_slow(source, value)
        if source in self._by_source:
            return self._by_source[source]
        return self._by_source_slow(source)

    def _by_source_slow(self, source: str) -> Client | None:
        address = _address(source)
        found = self._anonymous
        for rule in self._rules:
            if address is not None and _within(address, rule.networks):
                found = rule.client
                break
        if len(self._by_source) >= REMEMBERED_MAX:
            self._by_source.clear()
        self._by_source[source] = found
        return found

    def _with_token_slow(self, source: str, value: bytes) -> Client | None:
        user, token = _credentials(value)
        address = _address(source)
        found: Client | None = None
        for rule in self._rules:
            matches = bool(rule.token) and hmac.compare_digest(rule.token, token)
            if matches and user and user != rule.client.name.encode():
                matches = False
            if not matches and address is not None:
                matches = _within(address, rule.networks)
            if matches and found is None:
                found = rule.client
        return found or self._anonymous


def _within(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, networks: Sequence[Network]
) -> bool:
    return any(address.version == network.version and address in network for network in networks)


def _address(source: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
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
