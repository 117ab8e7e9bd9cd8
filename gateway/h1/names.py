"""What a field's name means to an intermediary, in one dictionary look-up.

A field's name comes in any case and is asked about several times per message: is it a token, does
the guard have to read the value, may it be forwarded? Names repeat from message to message, so the
answer is remembered per spelling. Both tables are bounded, because clients choose the spellings.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = [
    "CONNECTION",
    "CONTENT_LENGTH",
    "DATE",
    "EXPECT",
    "FORWARDED",
    "HOP",
    "HOST",
    "INVALID",
    "KIND",
    "LOWER",
    "PLAIN",
    "PROXY_AUTHENTICATE",
    "PROXY_AUTHORIZATION",
    "REQUEST_ID",
    "TE",
    "TRACEPARENT",
    "TRAILER",
    "TRANSFER_ENCODING",
    "UPGRADE",
    "is_token",
]

# PLAIN is 0, so that the common answer is the false one; the others index tuples in forward.py.
PLAIN: Final = 0
HOST: Final = 1
CONTENT_LENGTH: Final = 2
TRANSFER_ENCODING: Final = 3
CONNECTION: Final = 4
EXPECT: Final = 5
TE: Final = 6
UPGRADE: Final = 7
HOP: Final = 8  # meant for the next hop only and of no interest to the guard
FORWARDED: Final = 9  # says where a request came from (RFC 7239 and its forerunners)
PROXY_AUTHORIZATION: Final = 10
PROXY_AUTHENTICATE: Final = 11
DATE: Final = 12  # a response that has none gets one
REQUEST_ID: Final = 13  # this and the next are read and go on as they are
TRACEPARENT: Final = 14
TRAILER: Final = 15
INVALID: Final = 16

# RFC 9110 section 5.6.2: token = 1*tchar.
is_token = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch

# An ordinary mix of clients and APIs uses some 200 spellings. A table that is full starts afresh:
# a client that invents names then costs one classification (0.6 us) per name, never memory.
_SPELLINGS_MAX = 1024
# A longer name is not worth remembering; with it the tables hold at most 1024 * 64 octets each.
_SPELLING_BYTES_MAX = 64

_KINDS = {
    b"host": HOST,
    b"content-length": CONTENT_LENGTH,
    b"transfer-encoding": TRANSFER_ENCODING,
    b"connection": CONNECTION,
    b"date": DATE,
    b"expect": EXPECT,
    b"te": TE,
    b"upgrade": UPGRADE,
    b"keep-alive": HOP,
    b"proxy-connection": HOP,
    b"forwarded": FORWARDED,
    b"proxy-authorization": PROXY_AUTHORIZATION,
    b"proxy-authenticate": PROXY_AUTHENTICATE,
    b"proxy-authentication-info": PROXY_AUTHENTICATE,
    b"x-request-id": REQUEST_ID,
    b"traceparent": TRACEPARENT,
    b"trailer": TRAILER,
}


class _KindTable(dict[bytes, int]):
    """Spelling -> kind; a spelling seen for the first time is classified and remembered."""

    def __missing__(self, name: bytes) -> int:
        if is_token(name) is None:
            return INVALID
        lower = name.lower()
        kind = _KINDS.get(lower, PLAIN)
        if kind == PLAIN and lower.startswith(b"x-forwarded-"):
            kind = FORWARDED
        if len(name) <= _SPELLING_BYTES_MAX:
            if len(self) >= _SPELLINGS_MAX:
                self.clear()
            self[name] = kind
        return kind


class _LowerTable(dict[bytes, bytes]):
    """Spelling -> the name in lower case."""

    def __missing__(self, name: bytes) -> bytes:
        lower = name.lower()
        if len(name) <= _SPELLING_BYTES_MAX:
            if len(self) >= _SPELLINGS_MAX:
                self.clear()
            self[name] = lower
        return lower


KIND: Final = _KindTable()
LOWER: Final = _LowerTable()
