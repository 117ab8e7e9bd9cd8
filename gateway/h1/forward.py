"""What an intermediary changes in a message that it passes on (RFC 9110 section 7.6), and no more.

Fields that concern one connection are dropped, Via is added, and the operator's rules are applied.
Everything else goes on in its order and as the octets that came. Fields that tell where a request
came from (Forwarded, X-Forwarded-*) are dropped as well: an egress gateway would otherwise publish
its clients' addresses and names to every API.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from gateway.h1 import names
from gateway.h1.message import Fields, RequestHead, ResponseHead

__all__ = [
    "FieldRules",
    "came_through",
    "forward_request",
    "forward_response",
    "forward_trailers",
    "max_forwards",
    "upgrade_fields",
]

_KINDS = range(names.INVALID + 1)
_REQUEST_DROPS = {
    names.HOST,  # re-created: RFC 9112 section 3.2.2
    names.TRANSFER_ENCODING,
    names.CONNECTION,
    names.TE,
    names.UPGRADE,
    names.HOP,
    names.FORWARDED,
    names.PROXY_AUTHORIZATION,  # meant for us: RFC 9110 section 11.7.2
}
_RESPONSE_DROPS = {
    names.TRANSFER_ENCODING,
    names.CONNECTION,
    names.TE,
    names.UPGRADE,
    names.HOP,
    names.PROXY_AUTHENTICATE,  # between neighbours only: RFC 9110 section 11.7.1
}
# Indexed by kind: a tuple's element is found faster than a set's member.
_KEEP_IN_REQUEST: Final = tuple(kind not in _REQUEST_DROPS for kind in _KINDS)
_KEEP_IN_RESPONSE: Final = tuple(kind not in _RESPONSE_DROPS for kind in _KINDS)
# Where the trailers go no further, what announces them does not either (RFC 9110 section 6.6.2).
_KEEP_WITHOUT_TRAILERS: Final = tuple(
    kind not in _RESPONSE_DROPS and kind != names.TRAILER for kind in _KINDS
)
_KEPT_TRAILERS = frozenset((names.PLAIN, names.REQUEST_ID, names.TRACEPARENT))

# Connection options that name no field, or one that is dropped in any case.
_PLAIN_OPTIONS: Final = frozenset((b"close", b"keep-alive", b"te", b"upgrade"))

# RFC 9110 section 7.6.1: Connection must not name a field meant for all recipients. Whoever does it
# all the same wants a message to arrive without its credential, cache rule or length.
_NEVER_REMOVED = frozenset(
    b"""accept age allow api-key authorization cache-control content-encoding content-length
    content-location content-range content-type cookie date etag expect expires host
    idempotency-key if-match if-modified-since if-none-match if-range if-unmodified-since
    last-modified location max-forwards origin pragma prefer proxy-status range ratelimit
    ratelimit-policy retry-after set-cookie trailer vary via www-authenticate
    x-api-key""".split()
)

# RFC 9110 section 6.5.1: framing, routing, authentication, request modifiers, response control and
# content format cannot come after the content that they are about.
_NEVER_TRAILERS = frozenset(
    b"""age api-key authorization cache-control connection content-encoding content-length
    content-range content-type cookie date expect expires forwarded host if-match
    if-modified-since if-none-match if-range if-unmodified-since keep-alive location max-forwards
    pragma proxy-authenticate proxy-authentication-info proxy-authorization proxy-connection range
    retry-after set-cookie te trailer transfer-encoding upgrade vary via www-authenticate
    x-api-key""".split()
)

# What rules may not touch, because the gateway itself keeps them right.
_NEVER_RULED = frozenset(
    b"""connection content-length host keep-alive proxy-connection te trailer transfer-encoding
    upgrade via""".split()
)


_EXPECT: Final = frozenset((b"expect",))
# RFC 9110 section 10.1.4: TE is for the next hop, so Connection has to name it.
_TE_TRAILERS: Final = ((b"TE", b"trailers"), (b"Connection", b"TE"))
# RFC 9110 section 7.6.2: the methods for which Max-Forwards means something.
_COUNTED_METHODS: Final = frozenset((b"OPTIONS", b"TRACE"))


class FieldRules:
    """What an upstream's configuration does to request fields.

    `set` replaces a field, `add` adds a line, `remove` drops lines. Raises
    ValueError for a name that is no token or that the gateway keeps itself, and for a value with
    control characters.
    """

    __slots__ = ("add", "appended", "dropped", "remove", "set")

    def __init__(
        self,
        set: Iterable[tuple[bytes, bytes]] = (),
        add: Iterable[tuple[bytes, bytes]] = (),
        remove: Iterable[bytes] = (),
    ) -> None:
        self.set = tuple(set)
        self.add = tuple(add)
        self.remove = frozenset(name.lower() for name in remove)
        self.appended = self.set + self.add
        self.dropped = self.remove | {name.lower() for name, _ in self.set}
        for name in (*self.remove, *(name for name, _ in self.appended)):
            if names.is_token(name) is None or name.lower() in _NEVER_RULED:
                raise ValueError("no rule can be about the field " + repr(name))
        for name, value in self.appended:
            if any((octet < 0x20 and octet != 0x09) or octet == 0x7F for octet in value):
                raise ValueError("control character in a value for " + repr(name))


def forward_request(
    head: RequestHead, host: bytes, via: bytes, rules: FieldRules | None = None
) -> Fields:
    """The fields that go upstream: Host first, Via and the operator's last.

    `via` is our entry, e.g. `1.1 egressd`. Upgrade is not among them: see `upgrade_fields`.
    """
    kind_of = names.KIND
    keep = _KEEP_IN_REQUEST
    fields = [(b"Host", host)]
    fields += [field for field in head.fields if keep[kind_of[field[0]]]]
    if not head.connection <= _PLAIN_OPTIONS:
        fields[1:] = _without(fields[1:], head.connection - _PLAIN_OPTIONS - _NEVER_REMOVED)
    if not head.minor:
        # RFC 9110 section 10.1.1: an expectation in HTTP/1.0 is ignored, and what we send is 1.1.
        fields[1:] = _without(fields[1:], _EXPECT)
    if head.method in _COUNTED_METHODS:
        _count_forward_slow(fields)
    fields.append((b"Via", via))
    if head.te_trailers:
        fields += _TE_TRAILERS
    if rules is not None:
        dropped = rules.dropped
        if dropped:
            lower_of = names.LOWER
            fields = [field for field in fields if lower_of[field[0]] not in dropped]
        fields += rules.appended
    return fields


def forward_response(head: ResponseHead, via: bytes, trailers: bool) -> Fields:
    """The fields that go downstream, Via last; `trailers` says whether those will follow."""
    kind_of = names.KIND
    keep = _KEEP_IN_RESPONSE if trailers else _KEEP_WITHOUT_TRAILERS
    fields = [field for field in head.fields if keep[kind_of[field[0]]]]
    if not head.connection <= _PLAIN_OPTIONS:
        fields = _without(fields, head.connection - _PLAIN_OPTIONS - _NEVER_REMOVED)
    status = head.status
    if status < 200 or status == 204:
        # RFC 9110 section 8.6: no Content-Length in 1xx and 204.
        fields = [field for field in fields if kind_of[field[0]] != names.CONTENT_LENGTH]
    elif status == 205 and (b"Content-Length", b"0") not in fields:
        # It has no content (RFC 9110 section 15.3.6), but of all statuses without any it is the one
        # that a client does not know it of (RFC 9112 section 6.3): only a length says so.
        fields = [field for field in fields if kind_of[field[0]] != names.CONTENT_LENGTH]
        fields.append((b"Content-Length", b"0"))
    fields.append((b"Via", via))
    return fields


def _without(fields: Fields, dropped: frozenset[bytes]) -> Fields:
    lower_of = names.LOWER
    return [field for field in fields if lower_of[field[0]] not in dropped]


def forward_trailers(trailers: Fields, connection: frozenset[bytes] = frozenset()) -> Fields:
    """The trailers that may go on: none that Connection names, none that cannot be a trailer.

    `connection` is the head's. Trailers are forwarded only to a client that said `TE: trailers`.
    """
    dropped = _NEVER_TRAILERS | connection
    kind_of = names.KIND
    return [field for field in _without(trailers, dropped) if kind_of[field[0]] in _KEPT_TRAILERS]


def max_forwards(head: RequestHead) -> int | None:
    """How many more times an OPTIONS or TRACE may be passed on; None if it does not say.

    With 0 the gateway is the one that answers (RFC 9110 section 7.6.2).
    """
    if head.method in _COUNTED_METHODS:
        for name, value in head.fields:
            if names.LOWER[name] == b"max-forwards" and value.isdigit() and len(value) < 10:
                return int(value)
    return None


def _count_forward_slow(fields: Fields) -> None:
    """Takes one off Max-Forwards, in place."""
    for index, (name, value) in enumerate(fields):
        if names.LOWER[name] == b"max-forwards" and value.isdigit() and len(value) < 10:
            fields[index] = (name, b"%d" % max(0, int(value) - 1))


def upgrade_fields(upgrade: bytes) -> Fields:
    """The fields that offer, or accept, an Upgrade on the next hop (RFC 9110 section 7.8).

    `upgrade` is the head's. WebSocket (RFC 6455) is passed on; anything else gives no fields: h2c
    is for one hop only, and what we do not know we cannot tunnel in good faith.
    """
    for protocol in upgrade.split(b","):
        if protocol.strip(b" \t").lower() == b"websocket":
            return [(b"Connection", b"upgrade"), (b"Upgrade", b"websocket")]
    return []


def came_through(fields: Fields, pseudonym: bytes) -> bool:
    """Whether a message has been here before, by our pseudonym in Via (RFC 9110 section 7.6.3)."""
    lower_of = names.LOWER
    for name, value in fields:
        if lower_of[name] == b"via" and pseudonym in value:
            for entry in value.split(b","):
                # received-protocol RWS received-by [ RWS comment ]
                words = entry.split()
                if len(words) > 1 and words[1] == pseudonym:
                    return True
    return False
