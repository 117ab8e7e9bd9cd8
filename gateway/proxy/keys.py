"""What a limit counts by: the key parts of CONF.md, from an exchange to octets.

A compound key is injective (each part carries its length), so no two requests share a row by
accident. A credential is hashed with the cluster's key before anything keeps it: the row, the mesh
and the logs know only that two requests had the same one.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.h1.message import Fields
    from gateway.proxy.admission import Admittee
    from gateway.proxy.graph import KeyPart

__all__ = [
    "compile_cost",
    "compile_key",
    "credential_of",
    "key_of_parts",
    "parts_of_key",
    "source_network",
]

CREDENTIAL_FIELDS = frozenset((b"authorization", b"x-api-key", b"api-key"))
DIGEST_BYTES = 16  # 128 bits: no two credentials of a cluster meet by chance

_Part = Callable[["Admittee"], "bytes | None"]


def credential_of(fields: Fields, hash_key: bytes) -> bytes:
    """A keyed hash of the credential in fields as sent upstream; b"" where there is none."""
    for name, value in fields:
        if len(name) in (7, 9, 13) and name.lower() in CREDENTIAL_FIELDS:
            return hashlib.blake2b(value, key=hash_key, digest_size=DIGEST_BYTES).digest()
    return b""


def source_network(source: str) -> str:
    """A client's address; an IPv6 one counts by its /64, which is what one subscriber gets."""
    if ":" not in source:
        return source
    try:
        return str(ipaddress.IPv6Network((source.partition("%")[0], 64), strict=False))
    except ValueError:
        return source


def _path_segments(count: int) -> _Part:
    def part(exchange: Admittee) -> bytes:
        path = exchange.path.partition(b"?")[0]
        return b"/".join(path.split(b"/", count + 1)[: count + 1])

    return part


def _header(name: bytes) -> _Part:
    def part(exchange: Admittee) -> bytes | None:
        for field, value in exchange.fields:
            if field.lower() == name:
                return value
        return None

    return part


def _part(text: str) -> _Part:
    if text.startswith("header:"):
        return _header(text.removeprefix("header:").lower().encode())
    if text.startswith("path:"):
        return _path_segments(int(text.removeprefix("path:")))
    parts: dict[str, _Part] = {
        "client": lambda exchange: exchange.client.name.encode(),
        "source": lambda exchange: source_network(exchange.source).encode(),
        "credential": lambda exchange: exchange.credential() or None,
        "host": lambda exchange: exchange.head.host.lower(),
        "method": lambda exchange: exchange.head.method,
        "path": lambda exchange: exchange.path.partition(b"?")[0],
    }
    return parts[text]


def compile_key(parts: Sequence[str]) -> KeyPart | None:
    """One function for all parts of a key, or None where there are none.

    An absent part gives the same octets for every request that lacks it: one shared row. Raises
    KeyError or ValueError for a part that CONF.md does not name.
    """
    if not parts:
        return None
    functions = tuple(_part(text) for text in parts)
    if len(functions) == 1:
        only = functions[0]

        def single(exchange: Admittee) -> bytes:
            value = only(exchange)
            return b"" if value is None else b"=" + value

        return single

    def compound(exchange: Admittee) -> bytes:
        pieces = []
        for function in functions:
            value = function(exchange)
            if value is None:
                pieces.append(b"-")
            else:
                pieces.append(b"=%d:" % len(value))
                pieces.append(value)
        return b"".join(pieces)

    return compound


def parts_of_key(parts: Sequence[str], key: bytes) -> dict[str, str | None]:
    """What `compile_key` put into a key, for an operator to read: part and value, None if absent.

    A credential is its hash as hexadecimal; other octets are characters of the same number, so
    that different values never look alike.
    """
    if len(parts) == 1:
        return {parts[0]: _shown(parts[0], key[1:] if key else None)}
    shown: dict[str, str | None] = {}
    at = 0
    for part in parts:
        value = None
        if key[at : at + 1] == b"=":
            length, _, _ = key[at + 1 : at + 1 + LENGTH_DIGITS_MAX].partition(b":")
            begin = at + 2 + len(length)
            at = begin + int(length)
            value = key[begin:at]
        else:
            at += 1
        shown[part] = _shown(part, value)
    return shown


def key_of_parts(parts: Sequence[str], values: Mapping[str, str | None]) -> bytes:
    """The key of which `parts_of_key` shows these values. Raises ValueError where none has them."""
    told = [_octets(part, values[part]) for part in parts]
    if len(told) == 1:
        return b"" if told[0] is None else b"=" + told[0]
    return b"".join(b"-" if value is None else b"=%d:" % len(value) + value for value in told)


def _octets(part: str, value: str | None) -> bytes | None:
    if value is None:
        return None
    return bytes.fromhex(value) if part == "credential" else value.encode("latin-1")


def _shown(part: str, value: bytes | None) -> str | None:
    if value is None:
        return None
    return value.hex() if part == "credential" else value.decode("latin-1")


LENGTH_DIGITS_MAX = 8  # a part is never longer than a head, whose bound has seven digits
COST_DIGITS_MAX = 9  # more tokens than any burst has


def compile_cost(kind: str, tokens: int, header: str) -> Callable[[Admittee], int] | None:
    """What a request takes: fixed, or told by its own field (digits, otherwise 1).

    None stands for 1, which needs no call. A cost that the response tells is asked for as the
    row's mean (`Settled`), so it is none of this function's.
    """
    if kind == "response_header":
        return None
    if kind == "fixed":
        return None if tokens == 1 else lambda exchange: tokens
    name = header.lower().encode()

    def told(exchange: Admittee) -> int:
        for field, value in exchange.head.fields:
            if field.lower() == name:
                if value.isdigit() and len(value) <= COST_DIGITS_MAX:
                    return max(1, int(value))
                break
        return 1

    return told
