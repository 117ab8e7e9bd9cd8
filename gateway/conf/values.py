"""Addresses, origins and patterns as an operator writes them, in parsed form.

Each type is a tuple of plain values with a `__str__` that gives the canonical text, so that the
rest of the gateway never parses a configuration text again and a log line can still show it. The
parsers raise ValueError with a full sentence: what is wrong, what is allowed.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Literal, NamedTuple

from gateway.conf.units import shown

__all__ = [
    "HTTP_TOKEN",
    "Bind",
    "Cost",
    "HostPort",
    "JoinAddress",
    "KeyPart",
    "Network",
    "Origin",
    "TargetPattern",
    "parse_address",
    "parse_advertise",
    "parse_bind",
    "parse_cost",
    "parse_host",
    "parse_host_pattern",
    "parse_join",
    "parse_key_part",
    "parse_network",
    "parse_origin",
    "parse_target",
    "parse_via",
]

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

HTTP_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 section 5.6.2
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_DIGITS = re.compile(r"[0-9]{1,5}")
_NAMED_SOCKET = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_UNIX_PATH_BYTES_MAX = 107  # sun_path has 108 octets, one of them the final NUL (unix(7))
_HOST_CHARACTERS_MAX = 253  # RFC 1035 section 2.3.4: 255 octets on the wire
_PATH_SEGMENTS_MAX = 16  # of `path:N`; deeper paths make keys that name single objects
_COST_MAX = 1_000_000  # a cost is compared with a burst; none of that size is known
_DEFAULT_PORTS = {"http": 80, "https": 443}


class HostPort(NamedTuple):
    """A host (a lower-case name or an IP address without brackets) and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{_bracketed(self.host)}:{self.port}"


class Bind(NamedTuple):
    """Where a socket listens: "tcp" has host and port, "unix" a path, "systemd" a name."""

    kind: Literal["tcp", "unix", "systemd"]
    host: str = ""
    port: int = 0  # 0: the kernel chooses
    path: str = ""
    name: str = ""

    @property
    def is_loopback(self) -> bool:
        """True where only this host can connect: a loopback address or a unix socket."""
        if self.kind == "unix":
            return True
        if self.kind == "systemd":
            return False  # what the unit file says is not known here
        address = _ip(self.host)
        return address.is_loopback if address is not None else self.host == "localhost"

    @property
    def is_wildcard(self) -> bool:
        """True for 0.0.0.0 and [::]."""
        address = _ip(self.host) if self.kind == "tcp" else None
        return address is not None and address.is_unspecified

    def __str__(self) -> str:
        if self.kind == "unix":
            return f"unix:{self.path}"
        if self.kind == "systemd":
            return f"systemd:{self.name}"
        return f"{_bracketed(self.host)}:{self.port}"


class Origin(NamedTuple):
    """Scheme, host (a lower-case name or an IP address without brackets) and port."""

    scheme: str
    host: str
    port: int

    @property
    def authority(self) -> str:
        """What a Host field says for it: the port is left out where it is the scheme's own."""
        host = _bracketed(self.host)
        return host if self.port == _DEFAULT_PORTS.get(self.scheme) else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}"


class JoinAddress(NamedTuple):
    """Where a member may be found; with `dns`, every address of the name, resolved again."""

    dns: bool
    host: str
    port: int

    def __str__(self) -> str:
        return ("dns:" if self.dns else "") + f"{_bracketed(self.host)}:{self.port}"


class KeyPart(NamedTuple):
    """One part of a counter's key: `segments` belongs to "path", `header` to "header".

    `header` is lower-case; `segments` is 0 for the whole path.
    """

    kind: Literal["client", "source", "credential", "host", "method", "path", "header"]
    segments: int = 0
    header: str = ""

    def __str__(self) -> str:
        if self.header:
            return f"header:{self.header}"
        return f"{self.kind}:{self.segments}" if self.segments else self.kind


class Cost(NamedTuple):
    """What a request takes: `tokens`, or what a request or response field says (lower-case)."""

    kind: Literal["fixed", "header", "response_header"]
    tokens: int = 1
    header: str = ""

    def __str__(self) -> str:
        return str(self.tokens) if self.kind == "fixed" else f"{self.kind}:{self.header}"


class TargetPattern(NamedTuple):
    """A target of the proxy form; with `wildcard`, every name below `host` ("" is any host)."""

    wildcard: bool
    host: str
    port: int

    def __str__(self) -> str:
        if not self.wildcard:
            return f"{_bracketed(self.host)}:{self.port}"
        return f"*.{self.host}:{self.port}" if self.host else f"*:{self.port}"


def parse_host(text: str) -> str:
    """A name (made lower-case) or an IP address in canonical form. Raises ValueError.

    IPv6 addresses stand in brackets (RFC 3986 section 3.2.2), which the result has no more.
    """
    if text.startswith("["):
        address = _ip(text[1:-1]) if text.endswith("]") else None
        if address is None or address.version != 6 or "%" in text:
            raise ValueError(f"{shown(text)} is not an IPv6 address in brackets")
        return str(address)
    host = text.lower()
    if not host.isascii():
        raise ValueError(f"{shown(text)} is not ASCII; write an international name as xn--...")
    labels = host.split(".")
    if labels[-1].isdigit():
        # A name's last label is never all digits (RFC 3696 section 2), so this is an address.
        address = _ip(host)
        if address is None:
            raise ValueError(f"{shown(text)} is not an IPv4 address")
        return str(address)
    if len(host) > _HOST_CHARACTERS_MAX or not all(map(_LABEL.fullmatch, labels)):
        raise ValueError(f"{shown(text)} is not a host; use a name, an IPv4 address or [IPv6]")
    return host


def parse_host_pattern(value: object) -> str:
    """A route's host: an exact one, or "*.name" for every name below it. Raises ValueError."""
    text = _text(value, 'a host such as "api.internal" or "*.internal"')
    if text.startswith("*."):
        rest = parse_host(text[2:])
        if _ip(rest) is not None:
            raise ValueError(f"{shown(text)}: nothing is below an address; write the address")
        return "*." + rest
    if ":" in text and not text.startswith("["):
        raise ValueError(f"{shown(text)} has a port; a route's host has none")
    if "*" in text:
        raise ValueError(f'{shown(text)}: the star stands in front only, as in "*.internal"')
    host = parse_host(text)
    return _bracketed(host)


def parse_address(value: object) -> HostPort:
    """ "IP:PORT" or "[IPv6]:PORT", where nothing is resolved. Raises ValueError."""
    text = _text(value, 'an address such as "10.9.0.1:443"')
    pair = _host_port(text)
    if _ip(pair.host) is None:
        raise ValueError(f'{shown(text)} is a name; use an address such as "10.9.0.1:443"')
    return pair


def parse_advertise(value: object) -> HostPort:
    """ "HOST:PORT" that others can reach: no wildcard. Raises ValueError."""
    text = _text(value, 'an address such as "10.0.0.1:7946"')
    pair = _host_port(text)
    address = _ip(pair.host)
    if address is None:
        raise ValueError(f"{shown(text)} is a name; peers need the node's IP address")
    if address.is_unspecified or address.is_multicast:
        raise ValueError(f"{shown(text)} cannot be reached by others; use the node's own address")
    return pair


def parse_bind(value: object) -> Bind:
    """ "HOST:PORT", "[::]:PORT", "unix:PATH" or "systemd:NAME". Raises ValueError."""
    text = _text(value, '"HOST:PORT", "[::]:PORT", "unix:PATH" or "systemd:NAME"')
    if text.startswith("unix:"):
        path = text[5:]
        if not path or "\0" in path or len(path.encode()) > _UNIX_PATH_BYTES_MAX:
            raise ValueError(
                f"{shown(text)}: a socket's path has 1 to {_UNIX_PATH_BYTES_MAX} bytes"
            )
        return Bind("unix", path=path)
    if text.startswith("systemd:"):
        if not _NAMED_SOCKET.fullmatch(text, 8):
            raise ValueError(f"{shown(text)}: the name is the unit's FileDescriptorName=")
        return Bind("systemd", name=text[8:])
    host, port = _host_port(text, zero_ok=True)
    return Bind("tcp", host, port)


def parse_origin(value: object) -> Origin:
    """ "http://HOST[:PORT]" or "https://HOST[:PORT]". Raises ValueError."""
    return _origin(value, ("https", "http"), _DEFAULT_PORTS)


def parse_via(value: object) -> Origin:
    """ "http://HOST:PORT" or "socks5://HOST:PORT" of a chained proxy. Raises ValueError."""
    return _origin(value, ("http", "socks5"), {})


def parse_join(value: object) -> JoinAddress:
    """ "HOST:PORT" or "dns:NAME:PORT". Raises ValueError."""
    text = _text(value, '"HOST:PORT" or "dns:NAME:PORT"')
    dns = text.startswith("dns:")
    host, port = _host_port(text.removeprefix("dns:"))
    if dns and _ip(host) is not None:
        raise ValueError(f"{shown(text)}: dns: stands before a name, not before an address")
    return JoinAddress(dns, host, port)


def parse_network(value: object) -> Network:
    """A CIDR block or one address; host bits must be zero. Raises ValueError."""
    text = _text(value, 'a network such as "10.0.0.0/8" or "fd00::/8"')
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        if "host bits" in str(error):
            network = ipaddress.ip_network(text, strict=False)
            raise ValueError(f"{shown(text)} has host bits set; use {str(network)!r}") from None
        raise ValueError(
            f'{shown(text)} is not a network; use one such as "10.0.0.0/8" or "fd00::/8"'
        ) from None


def parse_target(value: object) -> TargetPattern:
    """ "HOST:PORT", "*.HOST:PORT" or "*:PORT". Raises ValueError."""
    allowed = '"HOST:PORT", "*.HOST:PORT" or "*:PORT"'
    text = _text(value, allowed)
    if text.startswith("*:"):
        return TargetPattern(True, "", _port(text[2:], text))
    wildcard = text.startswith("*.")
    rest = text[2:] if wildcard else text
    if "*" in rest or "/" in rest:
        raise ValueError(f"{shown(text)} is not a target; use {allowed}")
    host, port = _host_port(rest)
    if wildcard and _ip(host) is not None:
        raise ValueError(f"{shown(text)}: nothing is below an address; write the address")
    return TargetPattern(wildcard, host, port)


def parse_key_part(value: object) -> KeyPart:
    """One of the words of CONF.md, "path:N" or "header:NAME". Raises ValueError."""
    allowed = '"client", "source", "credential", "host", "method", "path", "path:N", "header:NAME"'
    text = _text(value, allowed)
    match text:
        case "client" | "source" | "credential" | "host" | "method" | "path":
            return KeyPart(text)
    word, colon, argument = text.partition(":")
    if colon and word == "path":
        if not _DIGITS.fullmatch(argument) or not 1 <= int(argument) <= _PATH_SEGMENTS_MAX:
            raise ValueError(f"{shown(text)}: N of path:N is 1 to {_PATH_SEGMENTS_MAX}")
        return KeyPart("path", segments=int(argument))
    if colon and word == "header":
        return KeyPart("header", header=_token(argument, text))
    raise ValueError(f"{shown(text)} is not a part of a key; use {allowed}")


def parse_cost(value: object) -> Cost:
    """A whole number, { header = NAME } or { response_header = NAME }. Raises ValueError."""
    allowed = '1, { header = "NAME" } or { response_header = "NAME" }'
    if isinstance(value, int) and not isinstance(value, bool):
        if not 1 <= value <= _COST_MAX:
            raise ValueError(f"{shown(value)} is not a cost; use 1 to {_COST_MAX}")
        return Cost("fixed", tokens=value)
    if isinstance(value, dict) and len(value) == 1:
        kind, name = next(iter(value.items()))
        if kind == "header" or kind == "response_header":
            text = _text(name, "the name of a header field")
            return Cost(kind, header=_token(text, text))
    raise ValueError(f"{shown(value)} is not a cost; use {allowed}")


def _origin(value: object, schemes: tuple[str, str], default_ports: dict[str, int]) -> Origin:
    port_text = "[:PORT]" if default_ports else ":PORT"
    allowed = " or ".join(f'"{scheme}://HOST{port_text}"' for scheme in schemes)
    text = _text(value, allowed)
    scheme, mark, rest = text.partition("://")
    scheme = scheme.lower()
    if not mark or scheme not in schemes:
        raise ValueError(f"{shown(text)} is not an origin; use {allowed}")
    authority, slash, _ = rest.partition("/")
    if "@" in authority:
        # The text is not shown: what stands before the @ is a secret.
        raise ValueError(f"user and password do not belong here; use {allowed}")
    if slash or "?" in authority or "#" in authority:
        raise ValueError(f"{shown(text)} has a path; scheme, host and port only: {allowed}")
    if scheme in default_ports and (authority.endswith("]") or ":" not in authority):
        return Origin(scheme, parse_host(authority), default_ports[scheme])
    host, port = _host_port(authority)
    return Origin(scheme, host, port)


def _host_port(text: str, *, zero_ok: bool = False) -> HostPort:
    host, colon, port = text.rpartition(":")
    if not colon or not host:
        raise ValueError(f'{shown(text)} lacks host or port; use "HOST:PORT" or "[IPv6]:PORT"')
    if ":" in host and not host.startswith("["):
        raise ValueError(f"{shown(text)}: an IPv6 address stands in brackets: [::1]:PORT")
    return HostPort(parse_host(host), _port(port, text, zero_ok=zero_ok))


def _port(digits: str, text: str, *, zero_ok: bool = False) -> int:
    if not _DIGITS.fullmatch(digits) or int(digits) > 65535 or (int(digits) == 0 and not zero_ok):
        raise ValueError(f"{shown(text)}: a port is {0 if zero_ok else 1} to 65535")
    return int(digits)


def _token(name: str, text: str) -> str:
    if not HTTP_TOKEN.fullmatch(name) or len(name) > 128:
        raise ValueError(f"{shown(text)} does not name a header field (RFC 9110 section 5.1)")
    return name.lower()


def _text(value: object, allowed: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{shown(value)} is not a text; use {allowed}")
    # Longer than any name, path or address with its decoration; bounds all that follows.
    if not value or len(value) > 4096:
        raise ValueError(f"a text of 1 to 4096 characters is needed: {allowed}")
    return value


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
