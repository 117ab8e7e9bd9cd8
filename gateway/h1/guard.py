"""One policy for every codec: what is an acceptable HTTP/1.1 message, and where its body ends.

llhttp and h11 are strict about different things, and neither contains the other. A gateway that
believed either of them would frame some message otherwise than the server behind it does, which is
request smuggling (RFC 9112 section 11.2). So every check that matters stands here, under the clause
that it enforces, and both codecs run it before anyone sees a head. Where the RFC lets a recipient
choose between repair and refusal, requests are refused; responses are repaired where servers in
use need it, and their connection is then not used again.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from gateway.errors import ErrorKind
from gateway.h1 import names
from gateway.h1.codec import BadMessage
from gateway.h1.message import Fields, Framing, RequestHead, ResponseHead
from gateway.h1.target import AbsoluteTarget, split_absolute, split_authority

__all__ = [
    "AbsoluteTarget",
    "judge_octets",
    "judge_request",
    "judge_response",
    "judge_trailers",
    "split_absolute",
    "split_authority",
]

_BAD_REQUEST: Final = ErrorKind.BAD_REQUEST
_BAD_RESPONSE: Final = ErrorKind.BAD_RESPONSE

# RFC 9110 section 5.5: a value has VCHAR, obs-text, SP and HTAB. What is left of a head when these
# are deleted are line ends, and whatever has no business there.
_TEXT: Final = bytes(b for b in range(256) if (b >= 0x20 and b != 0x7F) or b == 0x09)

# RFC 3986 appendix A knows fewer characters, but clients send `|`, `{`, `"` and the like raw, and
# section 7.7 of RFC 9110 forbids to repair them. `#` would start a fragment, which is never sent.
_TARGET_OCTETS: Final = bytes(b for b in range(0x21, 0x7F) if b != ord("#"))

# The registry's longest method has 17 octets (UPDATEREDIRECTREF); RFC 9112 section 3 asks for 501
# above what a server supports.
_METHOD_BYTES_MAX: Final = 64

# RFC 9110 section 8.6 warns of overflow; int64 is what servers count with.
_LENGTH_MAX: Final = 2**63 - 1
_LENGTH_DIGITS_MAX: Final = 19  # as many as _LENGTH_MAX has: longer ones are not worth converting
_ZERO: Final = ord("0")

# A Connection value longer than this is no ordinary one, and not worth a place in the cache.
_OPTIONS_CACHED_BYTES_MAX: Final = 128


def judge_octets(block: bytes, kind: ErrorKind) -> int:
    """How many lines a head or trailer section has, its empty last one included.

    Raises BadMessage of that kind for a bare CR or LF (RFC 9112 section 2.2), for NUL and for any
    other control character (RFC 9110 section 5.5) anywhere in it.
    """
    lines = block.count(b"\r\n")
    # Each line end has two octets that are not text: more than that, and one stands alone.
    if len(block.translate(None, _TEXT)) != 2 * lines:
        raise BadMessage(kind, "control character in the head", "RFC 9110 section 5.5")
    return lines


def judge_request(head: RequestHead) -> None:
    """Completes a tokenized request head: framing, host, persistence and what is expected.

    Raises BadMessage with BAD_REQUEST, NOT_IMPLEMENTED, EXPECTATION_FAILED or BODY_TOO_LARGE.
    Sources: RFC 9112 sections 3, 5, 6, 9; RFC 9110 sections 7.2, 7.6.1, 7.8, 8.6, 10.1.
    """
    kind_of = names.KIND
    host = length = coding = connection = expect = te = upgrade = None
    for name, value in head.fields:
        kind = kind_of[name]
        if kind == names.PLAIN:
            continue
        if kind == names.HOST:
            if host is not None:
                raise BadMessage(_BAD_REQUEST, "more than one Host", "RFC 9112 section 3.2")
            host = value
        elif kind == names.CONNECTION:
            connection = value if connection is None else connection + b"," + value
        elif kind == names.CONTENT_LENGTH:
            # Equal ones may be collapsed (RFC 9110 section 8.6); we do not guess about requests.
            if length is not None:
                raise BadMessage(
                    _BAD_REQUEST, "more than one Content-Length", "RFC 9110 section 8.6"
                )
            length = value
        elif kind == names.TRANSFER_ENCODING:
            coding = value if coding is None else coding + b"," + value
        elif kind == names.EXPECT:
            expect = value if expect is None else expect + b"," + value
        elif kind == names.TE:
            te = value if te is None else te + b"," + value
        elif kind == names.UPGRADE:
            upgrade = value if upgrade is None else upgrade + b", " + value
        elif kind == names.TRACEPARENT:
            head.traceparent = value if not head.traceparent else head.traceparent + b"," + value
        elif kind == names.REQUEST_ID:
            head.request_id = value if not head.request_id else head.request_id + b"," + value
        elif kind == names.INVALID:
            raise BadMessage(_BAD_REQUEST, "field name is not a token", "RFC 9110 section 5.1")
    _judge_target(head)
    _judge_host(head, host)
    if connection is not None:
        head.connection = _options(connection)
    if length is not None or coding is not None:
        _judge_request_framing(head, length, coding)
    if head.minor:
        # A proxy must not keep a connection alive with an HTTP/1.0 client (RFC 9112 section 9.3).
        head.keep_alive = b"close" not in head.connection
    if expect is not None or te is not None or upgrade is not None:
        _judge_offers(head, expect, te, upgrade)


def _judge_target(head: RequestHead) -> None:
    """The target has the form that its method allows (RFC 9112 section 3.2)."""
    target = head.target
    method = head.method
    if target.translate(None, _TARGET_OCTETS):
        raise BadMessage(_BAD_REQUEST, "target has an octet that none may have", "RFC 9112 3.2")
    if method == b"CONNECT":
        # authority-form and nothing else; the port is mandatory (RFC 9112 section 3.2.3).
        split_authority(target)
    elif target.startswith(b"/"):
        pass
    elif target == b"*":
        if method != b"OPTIONS":
            raise BadMessage(_BAD_REQUEST, "`*` is for OPTIONS only", "RFC 9112 section 3.2.4")
    else:
        split_absolute(target)
    if len(method) > _METHOD_BYTES_MAX:
        raise BadMessage(ErrorKind.NOT_IMPLEMENTED, "method is too long", "RFC 9112 section 3")


def _judge_host(head: RequestHead, host: bytes | None) -> None:
    """An HTTP/1.1 request has one valid Host (RFC 9112 section 3.2); 1.0 knows none."""
    if not host:
        if host is None and head.minor:
            raise BadMessage(_BAD_REQUEST, "no Host", "RFC 9112 section 3.2")
        if host is None or not head.target.startswith(b"/"):
            # An empty one is what a client sends whose target has no authority (`*`), and beside a
            # target that has one it is not looked at. Only a path needs it to be a URI.
            return
    split_authority(host, 80)
    head.host = host


def _judge_request_framing(head: RequestHead, length: bytes | None, coding: bytes | None) -> None:
    """Where the body ends (RFC 9112 section 6.3), for a request that says something about it."""
    if coding is None:
        assert length is not None
        head.content_length = _content_length(length, _BAD_REQUEST)
        if len(length) > 1 and length[0] == _ZERO:
            head.fields = _with_one_length_slow(head.fields, head.content_length)
        if head.method != b"CONNECT":
            head.framing = Framing.LENGTH
        elif head.content_length:
            # What follows a CONNECT belongs to the tunnel, or, refused, is the next request: a
            # length that says otherwise is a way to smuggle one.
            raise BadMessage(_BAD_REQUEST, "CONNECT has no content", "RFC 9110 section 9.3.6")
        return
    if length is not None:
        raise BadMessage(
            _BAD_REQUEST, "Content-Length beside Transfer-Encoding", "RFC 9112 section 6.1"
        )
    if not head.minor:
        raise BadMessage(_BAD_REQUEST, "Transfer-Encoding in HTTP/1.0", "RFC 9112 section 6.1")
    codings = [part.strip(b" \t").lower() for part in coding.split(b",")]
    if codings[-1] != b"chunked":
        raise BadMessage(_BAD_REQUEST, "last coding is not chunked", "RFC 9112 section 6.3")
    if codings.count(b"chunked") > 1 or b"" in codings:
        raise BadMessage(_BAD_REQUEST, "list of codings is not valid", "RFC 9112 section 6.1")
    if head.method == b"CONNECT":
        raise BadMessage(_BAD_REQUEST, "CONNECT has no content", "RFC 9110 section 9.3.6")
    if len(codings) > 1:
        raise BadMessage(
            ErrorKind.NOT_IMPLEMENTED, "unknown transfer coding", "RFC 9112 section 6.1"
        )
    head.framing = Framing.CHUNKED


def _judge_offers(
    head: RequestHead, expect: bytes | None, te: bytes | None, upgrade: bytes | None
) -> None:
    """Expect (RFC 9110 section 10.1.1), TE (10.1.4) and Upgrade (7.8), all new in HTTP/1.1."""
    if not head.minor:
        return
    if expect is not None:
        # Not `_options`: what has a parameter is another expectation.
        expected = {part.strip(b" \t") for part in expect.lower().split(b",")} - {b""}
        if expected - {b"100-continue"}:
            raise BadMessage(
                ErrorKind.EXPECTATION_FAILED, "unknown expectation", "RFC 9110 section 10.1.1"
            )
        head.expect_continue = bool(expected)
    if te is not None:
        head.te_trailers = b"trailers" in _options(te)
    if upgrade is not None and b"upgrade" in head.connection:
        head.upgrade = upgrade


def judge_response(head: ResponseHead, request_method: bytes) -> None:
    """Completes a tokenized response head: framing and whether the connection can go on.

    `keep_alive` is false where the framing had to be repaired. Raises BadMessage with
    BAD_RESPONSE. Sources: RFC 9112 sections 6 and 9.3; RFC 9110 sections 7.8, 8.6, 15.
    """
    kind_of = names.KIND
    length = coding = connection = upgrade = None
    repaired = False
    for name, value in head.fields:
        kind = kind_of[name]
        if kind == names.PLAIN:
            continue
        if kind == names.DATE:
            head.dated = True
        elif kind == names.CONTENT_LENGTH:
            if length is None:
                length = value
            else:
                length += b"," + value
                repaired = True
        elif kind == names.CONNECTION:
            connection = value if connection is None else connection + b"," + value
        elif kind == names.TRANSFER_ENCODING:
            coding = value if coding is None else coding + b"," + value
        elif kind == names.UPGRADE:
            upgrade = value if upgrade is None else upgrade + b", " + value
        elif kind == names.HOP:
            if names.LOWER[name] == b"keep-alive":
                head.idle_s = _idle_seconds(value)
        elif kind == names.INVALID:
            raise BadMessage(_BAD_RESPONSE, "field name is not a token", "RFC 9110 section 5.1")
    if connection is not None:
        head.connection = options = _options(connection)
        if head.minor:
            head.keep_alive = b"close" not in options
        else:
            head.keep_alive = b"keep-alive" in options and b"close" not in options
        if upgrade is not None and b"upgrade" in options:
            head.upgrade = upgrade
    else:
        head.keep_alive = head.minor == 1
    if length is not None and (repaired or b"," in length):
        length = _collapse_lengths_slow(head, length)
    _judge_response_framing(head, request_method, length, coding)


def _idle_seconds(value: bytes) -> int:
    """N of `Keep-Alive: timeout=N` (RFC 2068 section 19.7.1.1); -1 where it does not say."""
    for parameter in value.lower().split(b","):
        name, _, seconds = parameter.partition(b"=")
        seconds = seconds.strip(b' \t"')
        if name.strip(b" \t") == b"timeout" and seconds.isdigit() and len(seconds) < 10:
            return int(seconds)
    return -1


def _judge_response_framing(
    head: ResponseHead, request_method: bytes, length: bytes | None, coding: bytes | None
) -> None:
    """Where the body ends: the rules of RFC 9112 section 6.3 in their order."""
    if coding is not None:
        _judge_response_coding(head, length, coding)
    elif length is not None:
        head.content_length = _content_length(length, _BAD_RESPONSE)
        if len(length) > 1 and length[0] == _ZERO:
            head.fields = _with_one_length_slow(head.fields, head.content_length)
    status = head.status
    if status < 200:
        # RFC 9110 section 15.2.2: a 101 names the protocol that follows.
        if status == 101 and not head.upgrade:
            raise BadMessage(_BAD_RESPONSE, "101 without Upgrade", "RFC 9110 section 15.2.2")
        return
    if status in (204, 304) or request_method == b"HEAD":
        return
    if request_method == b"CONNECT" and status < 300:
        return
    if status == 205:
        # RFC 9110 section 15.3.6: no content. Only an explicit length of 0 says so on the wire; to
        # the client it is always said (`forward_response`).
        if length is None or head.content_length:
            head.keep_alive = False
        return
    if coding is not None:
        head.framing = Framing.CHUNKED
    elif length is not None:
        head.framing = Framing.LENGTH
    else:
        head.framing = Framing.CLOSE
        head.keep_alive = False


def _judge_response_coding(head: ResponseHead, length: bytes | None, coding: bytes) -> None:
    """A response is coded as `chunked` or not at all: no one asked for another coding."""
    if not head.minor:
        raise BadMessage(_BAD_RESPONSE, "Transfer-Encoding in HTTP/1.0", "RFC 9112 section 6.1")
    if length is not None:
        raise BadMessage(
            _BAD_RESPONSE, "Content-Length beside Transfer-Encoding", "RFC 9112 section 6.3"
        )
    if coding.lower() != b"chunked":
        raise BadMessage(_BAD_RESPONSE, "unknown transfer coding", "RFC 9112 section 6.1")


def _collapse_lengths_slow(head: ResponseHead, lengths: bytes) -> bytes:
    """The one length that several equal ones mean (RFC 9110 section 8.6), also put in their place.

    Raises BadMessage if they differ, or are none.
    """
    distinct = {part.strip(b" \t") for part in lengths.split(b",")}
    if len(distinct) != 1:
        raise BadMessage(_BAD_RESPONSE, "Content-Lengths differ", "RFC 9112 section 6.3")
    length = distinct.pop()
    head.keep_alive = False
    head.fields = _with_one_length_slow(head.fields, _content_length(length, _BAD_RESPONSE))
    return length


def _with_one_length_slow(fields: Fields, length: int) -> Fields:
    """The fields with one Content-Length, where the first one stood, as a plain number.

    `010` is ten (RFC 9110 section 8.6), but eight to a reader that believes in C: no one behind us
    is to be asked.
    """
    plain: Fields = []
    seen = False
    for name, value in fields:
        if names.KIND[name] != names.CONTENT_LENGTH:
            plain.append((name, value))
        elif not seen:
            seen = True
            plain.append((name, b"%d" % length))
    return plain


def _content_length(value: bytes, kind: ErrorKind) -> int:
    """The octets that a Content-Length names: 1*DIGIT (RFC 9110 section 8.6), no sign, no space."""
    if not value.isdigit():
        raise BadMessage(kind, "Content-Length is not a number", "RFC 9110 section 8.6")
    if len(value) > _LENGTH_DIGITS_MAX:
        value = value.lstrip(b"0") or b"0"
    length = int(value) if len(value) <= _LENGTH_DIGITS_MAX else _LENGTH_MAX + 1
    if length > _LENGTH_MAX:
        if kind is _BAD_REQUEST:
            kind = ErrorKind.BODY_TOO_LARGE
        raise BadMessage(kind, "Content-Length is too large", "RFC 9110 section 8.6")
    return length


def judge_trailers(section: bytes, kind: ErrorKind) -> Fields:
    """The fields of a trailer section that ends in an empty line (RFC 9112 section 7.1.2).

    Raises BadMessage of that kind. A folded line is refused in both directions: trailers are too
    rare for an old sender to need it.
    """
    judge_octets(section, kind)
    trailers: Fields = []
    for line in section.split(b"\r\n")[:-2]:
        name, colon, value = line.partition(b":")
        if not colon or names.KIND[name] == names.INVALID:
            raise BadMessage(kind, "trailer is not a field", "RFC 9112 section 5")
        trailers.append((name, value.strip(b" \t")))
    return trailers


def _options(value: bytes) -> frozenset[bytes]:
    """The members of a comma-separated list in lower case, without parameters."""
    if len(value) <= _OPTIONS_CACHED_BYTES_MAX:
        return _options_cached(value)
    return _options_slow(value)


def _options_slow(value: bytes) -> frozenset[bytes]:
    parts = value.lower().split(b",")
    return frozenset(part.partition(b";")[0].strip(b" \t") for part in parts) - {b""}


_options_cached: Final = lru_cache(maxsize=256)(_options_slow)
