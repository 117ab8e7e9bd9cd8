"""Both codecs give one verdict on any input, however it is cut, and it is the right one.

The inputs are messages built from parts that are nearly right, and mutated. Three things are asked
of each: httptools and h11 tell the same events and end in the same kind of error; the pieces in
which octets come make no difference; nothing but BadMessage is ever raised. What is accepted is
then read by h11 on its own, as another implementation behind us would: it must see the same
messages, or a request could be smuggled past it.
"""

from __future__ import annotations

import re
from typing import Any

import h11
import httptools
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.h1.codec import BadMessage, Codec, HeadLimits, load_codec
from gateway.h1.encode import request as encode_request
from gateway.h1.forward import forward_request, forward_response
from gateway.h1.message import Fields, Framing, RequestHead, ResponseHead

FAST = load_codec("httptools")
REFERENCE = load_codec("h11")
# Small, so that the limits themselves are part of what is compared.
LIMITS = HeadLimits(head_bytes_max=400, fields_max=8, target_bytes_max=60)

fuzzed = settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])

# --- What is told


class Events:
    """A sink that keeps everything that a codec says, bodies joined."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.head: Any = None
        self.body = b""
        self.complete = False

    def head_received(self, head: RequestHead | ResponseHead) -> None:
        self.head = head
        self.body = b""
        names = [name for name in dir(head) if not name.startswith("_")]
        self.told.append(("head", *((name, getattr(head, name)) for name in names)))

    def body_received(self, data: bytes) -> None:
        assert data
        self.body += data

    def message_complete(self, trailers: Fields) -> None:
        self.told.append(("end", self.body, trailers))
        self.complete = True


def told_of_requests(codec: Codec, pieces: list[bytes]) -> list[Any]:
    sink = Events()
    decoder = codec.request_decoder(sink, LIMITS)
    over = False
    try:
        for piece in pieces:
            decoder.feed(piece)
            while sink.complete and not over:
                over = not sink.head.keep_alive or sink.head.method == b"CONNECT"
                if not over:
                    sink.complete = False
                    decoder.next_message()
        decoder.eof()
    except BadMessage as error:
        sink.told.append(error.kind)
        assert_dead(decoder)
    else:
        sink.told.append(decoder.take_rest())
    return sink.told


def told_of_responses(codec: Codec, method: bytes, pieces: list[bytes]) -> list[Any]:
    sink = Events()
    decoder = codec.response_decoder(sink, LIMITS)
    decoder.expect(method)
    try:
        for piece in pieces:
            decoder.feed(piece)
        sink.told.append(decoder.reusable)
        decoder.eof()
    except BadMessage as error:
        # Whether EOF or an octet was the error, the connection is over.
        sink.told = [event for event in sink.told if not isinstance(event, bool)]
        sink.told.append(error.kind)
        assert not decoder.reusable
        assert_dead(decoder)
    else:
        sink.told.append(decoder.take_rest())
    return sink.told


def assert_dead(decoder: Any) -> None:
    try:
        decoder.feed(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    except BadMessage:
        return
    raise AssertionError("a decoder went on after a malformed message")


def single(octets: bytes) -> list[bytes]:
    return [octets[i : i + 1] for i in range(len(octets))]


# --- What is fed: a message that is right, with none, one or two of these defects in it

DEFECTS = ["method", "target", "version", "space", "host", "length", "coding", "both", "field",
           "chunk", "line end", "octet", "start", "status", "reason", "tail"]  # fmt: skip
defects = st.sampled_from([0, 0, 1, 1, 1, 2]).flatmap(
    lambda count: st.sets(st.sampled_from(DEFECTS), min_size=count, max_size=count)
)

methods = [b"GET", b"POST", b"PUT", b"HEAD", b"OPTIONS", b"BREW", b"M-SEARCH", b"QUERY", b"SOURCE"]
bad_methods = [
    b"get",
    b"PRI",
    b"DESCRIBE",
    b"",
    b"G\x00T",
    b"GE T",
    b"M" * 70,
    b"CONNECT",
    b"G\xe9T",
]
targets = [b"/", b"/a?b=c", b"//", b"http://y/", b"https://y", b"/%00", b'/"<>|^`{}', b"/;a=b,c"]
bad_targets = [b"*", b"http://u@y/", b"y:443", b"y", b"/#", b"/\x80", b"", b"/a b", b"http://",
               b"?a", b"[::1]:443", b"/" + b"a" * 70, b"file:///a", b"/\x7f"]  # fmt: skip
versions = [b"HTTP/1.1"] * 5 + [b"HTTP/1.0"]
bad_versions = [b"HTTP/0.9", b"HTTP/2.0", b"HTTP/1.2", b"http/1.1", b"HTTP/1.1 ", b"RTSP/1.0",
                b"ICE/1.0", b"HTTP/1.10", b""]  # fmt: skip
hosts = [b"Host: x", b"host:y:80", b"Host: [::1]"]
bad_hosts = [b"A: b", b"Host: x\r\nHost: x", b"Host:", b"Host: a b", b"Host: a/b", b"Host : x"]
spaces = [b" ", b" ", b"", b"\t", b" \t "]
lengths = [b"Content-Length: 5", b"content-length:005", b"CONTENT-LENGTH: \t5 "]
bad_lengths = [b"Content-Length: " + value for value in (
    b"+5", b"-5", b"0x5", b"5_0", b"5, 5", b"5,6", b"", b"5 5", b"\xb2", b"9223372036854775808",
    b"99999999999999999999999", b"5;a", b"4", b"6", b"5\r\nContent-Length: 5",
    b"5\r\nContent-Length: 6")] + [b"Content-Length : 5", b" Content-Length: 5",
    b"Content_Length: 5", b"~Content-Length: 5", b"Content-Length\r\n: 5",
    b"Content-Length:\r\n 5"]  # fmt: skip
codings = [b"Transfer-Encoding: chunked", b"transfer-encoding:Chunked\t"]
bad_codings = [b"Transfer-Encoding: " + value for value in (
    b"gzip, chunked", b"chunked, gzip", b"identity", b"chunked, chunked", b"xchunked",
    b"chunked;a=b", b"", b",chunked", b'"chunked"', b"chunked\x0b", b"identity, chunked",
    b"chunked,", b"chunked\r\nTransfer-Encoding: chunked", b"gzip\r\nTransfer-Encoding: chunked",
    b"\r\n chunked")] + [b"Transfer-Encoding\t: chunked", b"Transfer_Encoding: chunked",
    b"~~Transfer-Encoding: chunked", b" Transfer-Encoding: chunked"]  # fmt: skip
fields = [b"Connection: keep-alive", b"Connection: A, close", b"Upgrade: websocket", b"A: \xff",
          b"A:", b"Expect: 100-continue", b"TE: trailers", b"A: a\tb", b"A:  b ",
          b"~Transfer-Encoding: gzip", b"Connection: upgrade", b"X-Long: " + b"x" * 90,
          b"Trailer: A"]  # fmt: skip
bad_fields = [b"A", b": b", b"a b: c", b"A\xe9: b", b"A: \x00", b"A: \x7f", b"A: \x01", b"\x00: b",
              b"A: b\r\n c", b" A: b", b"A : b", b"Expect: tea", b"X-Longer: " + b"x" * 400,
              b"A: b\r\n" * 8 + b"A: b", b"A: b\r", b"A: b\nC: d"]  # fmt: skip
sizes = [b"5", b"05", b"5;a=b", b'5;a="b c"', b"5;a\tb", b"00000005"]
bad_sizes = [b"5 ", b"5;\x00", b"+5", b"0x5", b"4", b"6", b"", b"g", b"00000000000000005", b"5 ;a",
             b"ffffffffffffffff", b"5;a\rb", b"5;a\nb", b" 5", b"5,"]  # fmt: skip
line_ends = [b"\n", b"\r", b"\r\r\n", b"\n\r\n", b"\r\n ", b"\r\n\t", b"\n\n", b"\r\n\r\n", b""]
octets_put_in = [b"\r", b"\n", b"\x00", b" ", b"\t", b":", b"\xff", b"0", b";", b"~", b",", b""]
statuses = [b"200"] * 6 + [b"204", b"304", b"205", b"103", b"999", b"404"]
bad_statuses = [b"099", b"20", b"2000", b"-20", b"2e2", b"\xb2\xb2\xb2", b"101", b"", b" 200"]


class Draft:
    """Draws the parts of one message: right ones, save where it has a defect."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.defects = draw(defects)

    def pick(self, defect: str, right: list[bytes], wrong: list[bytes]) -> bytes:
        return self.draw(st.sampled_from(wrong if defect in self.defects else right))

    def fields(self) -> list[bytes]:
        lines = self.draw(st.lists(st.sampled_from(fields), max_size=3))
        if "field" in self.defects:
            at = self.draw(st.integers(0, len(lines)))
            lines.insert(at, self.draw(st.sampled_from(bad_fields)))
        return lines

    def framing(self) -> tuple[list[bytes], bytes]:
        """(the fields that frame a body, the body)"""
        kind = self.draw(st.sampled_from(["none", "length", "chunks"]))
        length = self.pick("length", lengths, bad_lengths)
        coding = self.pick("coding", codings, bad_codings)
        if "both" in self.defects:
            both = [length, coding]
            return (both if self.draw(st.booleans()) else both[::-1]), self.chunks()
        if kind == "length" or "length" in self.defects:
            return [length], b"hello"
        if kind == "chunks" or "coding" in self.defects or "chunk" in self.defects:
            return [coding], self.chunks()
        return [], b""

    def chunks(self) -> bytes:
        chunks = self.draw(st.lists(st.sampled_from(sizes), max_size=3))
        if "chunk" in self.defects:
            chunks.append(self.draw(st.sampled_from(bad_sizes)))
        body = b"".join(size + b"\r\nhello\r\n" for size in chunks)
        trailers = self.draw(st.sampled_from([b"", b"", b"A: b\r\n", b"A: b\r\nHost:\r\n"]))
        return (
            body + self.draw(st.sampled_from([b"0", b"000", b"0;a"])) + b"\r\n" + trailers + b"\r\n"
        )

    def finish(self, octets: bytes) -> bytes:
        """Puts in the defects that can be anywhere."""
        draw = self.draw
        if "start" in self.defects:
            octets = draw(st.sampled_from([b"\r\n", b"\r\n\r\n", b"\n", b" ", b"\x16"])) + octets
        if "line end" in self.defects:
            parts = octets.split(b"\r\n")
            at = draw(st.integers(1, len(parts) - 1))
            end = draw(st.sampled_from(line_ends))
            octets = b"\r\n".join(parts[:at]) + end + b"\r\n".join(parts[at:])
        if "octet" in self.defects:
            at = draw(st.integers(0, len(octets)))
            taken = draw(st.sampled_from([0, 1]))
            octets = octets[:at] + draw(st.sampled_from(octets_put_in)) + octets[at + taken :]
        if "tail" in self.defects:
            octets = octets[: draw(st.integers(0, len(octets)))]
        return octets


@st.composite
def request_octets(draw: st.DrawFn) -> bytes:
    draft = Draft(draw)
    space = draft.pick("space", [b" "], [b"  ", b"\t", b"", b"\r\n"])
    start = draft.pick("method", methods, bad_methods) + space
    start += draft.pick("target", targets, bad_targets) + b" "
    start += draft.pick("version", versions, bad_versions)
    framing, body = draft.framing()
    lines = [start, draft.pick("host", hosts, bad_hosts), *draft.fields(), *framing]
    return draft.finish(b"\r\n".join(lines) + b"\r\n\r\n" + body)


@st.composite
def response_octets(draw: st.DrawFn) -> bytes:
    draft = Draft(draw)
    space = draft.pick("space", [b" "], [b"  ", b"\t", b"", b"\r\n"])
    start = draft.pick("version", versions, bad_versions) + space
    start += draft.pick("status", statuses, bad_statuses)
    start += draft.pick(
        "reason", [b" OK", b" ", b"", b" a b", b" \xe9"], [b"OK", b"\tOK", b" \x00"]
    )
    framing, body = draft.framing()
    interim = draw(st.sampled_from([b"", b"", b"HTTP/1.1 100 Continue\r\n\r\n"]))
    lines = [start, *draft.fields(), *framing]
    return draft.finish(interim + b"\r\n".join(lines) + b"\r\n\r\n" + body)


@st.composite
def messages(draw: st.DrawFn, source: st.SearchStrategy[bytes]) -> bytes:
    """One to three messages, one behind the other."""
    return b"".join(draw(st.lists(source, min_size=1, max_size=3)))


# --- What is asked


@fuzzed
@given(messages(request_octets()))
def test_requests_have_one_verdict(octets: bytes) -> None:
    fast = told_of_requests(FAST, [octets])
    assert fast == told_of_requests(REFERENCE, [octets])
    assert fast == told_of_requests(FAST, single(octets))
    assert fast == told_of_requests(REFERENCE, single(octets))


@fuzzed
@given(st.sampled_from([b"GET", b"GET", b"HEAD", b"CONNECT"]), messages(response_octets()))
def test_responses_have_one_verdict(asked: bytes, octets: bytes) -> None:
    fast = told_of_responses(FAST, asked, [octets])
    assert fast == told_of_responses(REFERENCE, asked, [octets])
    assert fast == told_of_responses(FAST, asked, single(octets))
    assert fast == told_of_responses(REFERENCE, asked, single(octets))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=600), st.lists(st.integers(1, 40), max_size=40))
def test_garbage_is_refused_or_waited_for(octets: bytes, sizes: list[int]) -> None:
    pieces = []
    for size in sizes:
        pieces.append(octets[:size])
        octets = octets[size:]
    pieces.append(octets)
    whole = [b"".join(pieces)]
    assert told_of_requests(FAST, pieces) == told_of_requests(REFERENCE, whole)
    assert told_of_responses(FAST, b"GET", pieces) == told_of_responses(REFERENCE, b"GET", whole)


class Kept:
    """Keeps complete requests, to be sent on."""

    def __init__(self) -> None:
        self.heads: list[Any] = []
        self.bodies: list[bytes] = []
        self.ended = 0

    def head_received(self, head: Any) -> None:
        self.heads.append(head)
        self.bodies.append(b"")

    def body_received(self, data: bytes) -> None:
        self.bodies[-1] += data

    def message_complete(self, trailers: Fields) -> None:
        self.ended += 1


@fuzzed
@given(messages(request_octets()))
def test_the_next_server_sees_the_message_that_we_saw(octets: bytes) -> None:
    kept = Kept()
    decoder = FAST.request_decoder(kept, LIMITS)
    try:
        decoder.feed(octets)
    except BadMessage:
        return
    if not kept.ended or kept.heads[0].method == b"CONNECT":
        return
    head, sent_body = kept.heads[0], kept.bodies[0]
    forwarded = forward_request(head, b"api.example", b"1.1 egressd")
    on_the_wire = encode_request(head.method, b"/", forwarded, head.framing)
    if head.framing is Framing.CHUNKED:
        on_the_wire += (
            b"%x\r\n%b\r\n0\r\n\r\n" % (len(sent_body), sent_body) if sent_body else b"0\r\n\r\n"
        )
    else:
        on_the_wire += sent_body
    framing_lines = on_the_wire.partition(b"\r\n\r\n")[0].lower()
    assert framing_lines.count(b"\ncontent-length") + framing_lines.count(b"\ntransfer-enc") <= 1
    server = h11.Connection(h11.SERVER)
    server.receive_data(on_the_wire)
    event = server.next_event()
    assert isinstance(event, h11.Request)
    assert event.method == head.method
    assert [value for name, value in event.headers if name == b"host"] == [b"api.example"]
    seen = b""
    while not isinstance(event, h11.EndOfMessage):
        event = server.next_event()
        if isinstance(event, h11.Data):
            seen += event.data
        else:
            assert isinstance(event, h11.EndOfMessage)
    assert seen == sent_body
    assert server.trailing_data[0] == b""


SPACES_BEFORE_EXTENSION = re.compile(rb"\n[0-9A-Fa-f]+[ \t]+;").search


@fuzzed
@given(request_octets(), st.sampled_from([b"", b"GET / HTTP/1.1\r\n", b"\x00"]))
def test_other_readers_of_the_same_octets_agree(octets: bytes, behind: bytes) -> None:
    kept = Kept()
    decoder = FAST.request_decoder(kept, LIMITS)
    try:
        decoder.feed(octets)
    except BadMessage:
        return
    if not kept.ended or kept.heads[0].method == b"CONNECT" or kept.heads[0].upgrade:
        return
    ours = octets[: len(octets) - decoder.buffered]
    server = h11.Connection(h11.SERVER)
    server.receive_data(ours.removeprefix(b"\r\n") + behind)
    seen = b""
    event = server.next_event()
    while not isinstance(event, h11.EndOfMessage):
        assert isinstance(event, (h11.Request, h11.Data)), event
        if isinstance(event, h11.Data):
            seen += event.data
        try:
            event = server.next_event()
        except h11.RemoteProtocolError:
            # The one thing that is ours to accept: spaces before an extension (section 7.1.1).
            assert SPACES_BEFORE_EXTENSION(ours), ours
            return
    assert seen == kept.bodies[0]
    assert server.trailing_data[0] == behind
    llhttp = LlhttpBody()
    try:
        httptools.HttpRequestParser(llhttp).feed_data(ours)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade):
        return  # it knows fewer methods and extensions, and upgrades for HTTP/1.0 as well
    assert (llhttp.ended, llhttp.body) == (1, seen)


class LlhttpBody:
    """What llhttp says of a message when it is left to read all of it."""

    def __init__(self) -> None:
        self.body = b""
        self.ended = 0

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.ended += 1


@fuzzed
@given(messages(response_octets()))
def test_forwarded_responses_have_no_second_framing(octets: bytes) -> None:
    kept = Kept()
    decoder = FAST.response_decoder(kept, LIMITS)
    decoder.expect(b"GET")
    try:
        decoder.feed(octets)
    except BadMessage:
        return
    for head in kept.heads:
        names = [name.lower() for name, _ in forward_response(head, b"1.1 egressd", True)]
        assert b"transfer-encoding" not in names
        assert b"connection" not in names
        assert names.count(b"content-length") <= 1
        if head.framing is Framing.LENGTH:
            assert b"content-length" in names
