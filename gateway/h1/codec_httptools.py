"""The fast codec: llhttp tokenizes each head, framer and guard do the rest.

llhttp sees one complete head and never a body, through a parser made for it (0.15 us, less than
bringing a used one back to its start). What it refuses (a folded line or equal Content-Lengths in a
response, a method that it does not know) gets a second opinion from h11: only the guard says no.
llhttp's lenient flags stay off. This module is the only door to httptools.
"""

from __future__ import annotations

from typing import Final

import httptools

from gateway.h1 import codec_h11
from gateway.h1.codec import Codec, HeadLimits
from gateway.h1.framer import RequestFramer, ResponseFramer, Tokenize
from gateway.h1.message import Fields, MessageSink

__all__ = ["CODEC", "request_fields", "response_fields"]

_RequestParser: Final = httptools.HttpRequestParser
_ResponseParser: Final = httptools.HttpResponseParser
_Upgrade: Final = httptools.HttpParserUpgrade
_Refused: Final = httptools.HttpParserError


class _Collector:
    """Collects what llhttp finds; a parser refers to it, and nothing refers back to the parser."""

    __slots__ = ("fields",)

    def __init__(self) -> None:
        self.fields: Fields = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name, value))


def request_fields(block: bytes) -> Fields:
    """The fields of a complete request head, unfolded. Raises BadMessage with BAD_REQUEST."""
    collector = _Collector()
    try:
        _RequestParser(collector).feed_data(block)
    except _Upgrade:
        pass  # CONNECT, or an Upgrade: the head is complete, which is all that is asked here
    except _Refused:
        return codec_h11.request_fields(block)
    fields = collector.fields
    if len(fields) != block.count(b"\r\n") - 2 or b" \r\n" in block or b"\t\r\n" in block:
        return _tidied_slow(block, fields, codec_h11.request_fields)
    return fields


def response_fields(block: bytes) -> Fields:
    """The fields of a complete response head, unfolded. Raises BadMessage with BAD_RESPONSE."""
    collector = _Collector()
    try:
        _ResponseParser(collector).feed_data(block)
    except _Upgrade:
        pass
    except _Refused:
        return codec_h11.response_fields(block)
    fields = collector.fields
    if len(fields) != block.count(b"\r\n") - 2 or b" \r\n" in block or b"\t\r\n" in block:
        return _tidied_slow(block, fields, codec_h11.response_fields)
    return fields


def _tidied_slow(block: bytes, fields: Fields, second_opinion: Tokenize) -> Fields:
    """Removes the spaces behind values, which llhttp leaves on (RFC 9112 section 5.1)."""
    if len(fields) != block.count(b"\r\n") - 2:
        return second_opinion(block)
    return [(name, value.rstrip(b" \t")) for name, value in fields]


def _request_decoder(sink: MessageSink, limits: HeadLimits) -> RequestFramer:
    return RequestFramer(sink, limits, request_fields)


def _response_decoder(sink: MessageSink, limits: HeadLimits) -> ResponseFramer:
    return ResponseFramer(sink, limits, response_fields)


CODEC = Codec("httptools", _request_decoder, _response_decoder)
