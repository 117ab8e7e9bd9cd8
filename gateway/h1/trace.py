"""Names by which a request is found again: X-Request-Id, and W3C Trace Context's trace-id.

Both fields go on as they came. Read here is only what is written down of them, so that nothing a
client invents gets into a log or an answer unseen.
"""

from __future__ import annotations

import re

__all__ = ["is_request_id", "trace_id"]

# Visible ASCII; the longest ids in use are twice a UUID with a prefix.
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")
# W3C Trace Context (Recommendation of 2021) section 3.2.2: version ff and ids of zeros are invalid,
# and a version yet to come may say more behind a hyphen.
_TRACEPARENT = re.compile(
    rb"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?",
    re.DOTALL,
)


def is_request_id(value: bytes) -> bool:
    """Whether a client's X-Request-Id is one that can be written down and said back."""
    return _REQUEST_ID.fullmatch(value) is not None


def trace_id(traceparent: bytes) -> str:
    """The trace-id of a traceparent, 32 hexadecimal digits; "" where there is no valid one."""
    match = _TRACEPARENT.fullmatch(traceparent)
    if match is None or (match[1] == b"00" and match[3] is not None):
        return ""
    return match[2].decode("ascii")
