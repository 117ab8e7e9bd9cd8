"""Request targets and authorities, taken apart without changing an octet that is sent on.

RFC 9110 section 7.7 forbids a proxy to rewrite path and query, so only scheme and host, which are
compared, are put into lower case; the rest is passed on as received.
"""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from typing import Final, NamedTuple

from gateway.errors import ErrorKind
from gateway.h1.codec import BadMessage

__all__ = ["AbsoluteTarget", "split_absolute", "split_authority"]

_DEFAULT_PORTS: Final = {b"http": 80, b"https": 443}

# A DNS name has at most 253 octets (RFC 1035 section 2.3.4, without the root's), a port 5 digits.
_AUTHORITY_BYTES_MAX = 253 + 1 + 5

# RFC 3986 section 3.2.2 also allows sub-delims and percent-encoding in a reg-name. No host that can
# be resolved has them, and each is a way to write one host in two ways past an allow-list.
_AUTHORITY: Final = re.compile(rb"([0-9A-Za-z._~\-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]*))?")
_PORT_MAX = 65535


class AbsoluteTarget(NamedTuple):
    """An absolute-form target: scheme and host in lower case, the port, and what goes upstream."""

    scheme: bytes
    host: bytes
    port: int
    path: bytes


@lru_cache(maxsize=1024)
def split_authority(value: bytes, default_port: int | None = None) -> tuple[bytes, int]:
    """(host in lower case, port) of a Host value or an authority-form target.

    An IPv6 address keeps its brackets, as in a URI, and has one spelling whatever it came in (RFC
    5952): what is compared with an allow-list or an upstream's origin has no second name. With
    `default_port` None a port is demanded (CONNECT). Raises BadMessage: RFC 9110 sections 4.2.1
    and 7.2, RFC 9112 sections 3.2 and 3.2.3.
    """
    if len(value) > _AUTHORITY_BYTES_MAX:
        raise BadMessage(ErrorKind.BAD_REQUEST, "host is too long", "RFC 9110 section 7.2")
    match = _AUTHORITY.fullmatch(value)
    if match is None:
        raise BadMessage(ErrorKind.BAD_REQUEST, "host is not valid", "RFC 9112 section 3.2")
    host = match[1].lower()
    if host.startswith(b"["):
        try:
            address = ipaddress.IPv6Address(host[1:-1].decode("ascii"))
        except ValueError:
            raise BadMessage(
                ErrorKind.BAD_REQUEST, "host is not an IPv6 address", "RFC 3986 section 3.2.2"
            ) from None
        host = b"[%b]" % str(address).encode("ascii")
    if match[2]:
        port = int(match[2])
        if not 0 < port <= _PORT_MAX:
            raise BadMessage(ErrorKind.BAD_REQUEST, "port is not valid", "RFC 9110 section 4.2.1")
        return host, port
    if default_port is None:
        raise BadMessage(ErrorKind.BAD_REQUEST, "target has no port", "RFC 9112 section 3.2.3")
    return host, default_port


def split_absolute(target: bytes, method: bytes = b"GET") -> AbsoluteTarget:
    """Takes an absolute-form target apart (RFC 9112 section 3.2.2).

    An empty path becomes `/`; with OPTIONS an empty path and query becomes `*`, which is what the
    origin is to be asked (RFC 9112 section 3.2.4). Raises BadMessage for another scheme than http
    or https, userinfo, an empty or invalid host, and an invalid port.
    """
    scheme, separator, rest = target.partition(b"://")
    scheme = scheme.lower()
    default_port = _DEFAULT_PORTS.get(scheme)
    if not separator or default_port is None:
        raise BadMessage(ErrorKind.BAD_REQUEST, "target is not valid", "RFC 9112 section 3.2")
    end = len(rest)
    for delimiter in (b"/", b"?"):
        found = rest.find(delimiter, 0, end)
        if found >= 0:
            end = found
    authority, path = rest[:end], rest[end:]
    if b"@" in authority:
        raise BadMessage(ErrorKind.BAD_REQUEST, "target has userinfo", "RFC 9110 section 4.2.4")
    host, port = split_authority(authority, default_port)
    if not path:
        path = b"*" if method == b"OPTIONS" else b"/"
    elif path.startswith(b"?"):
        path = b"/" + path
    return AbsoluteTarget(scheme, host, port, path)
