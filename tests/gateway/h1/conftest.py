"""What the suites of gateway/h1 share: a sink that writes down, and each codec in turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gateway.h1.codec import BadMessage, Codec, HeadLimits, load_codec
from gateway.h1.message import Fields, RequestHead, ResponseHead


class Recorder:
    """A MessageSink that keeps what it is told."""

    def __init__(self) -> None:
        self.heads: list[Any] = []
        self.pieces: list[bytes] = []
        self.events: list[tuple[str, Any]] = []
        self.ends: list[Fields] = []

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    def head_received(self, head: RequestHead | ResponseHead) -> None:
        self.heads.append(head)
        self.events.append(("head", head))

    def body_received(self, data: bytes) -> None:
        assert data, "an empty piece of body"
        self.pieces.append(data)
        self.events.append(("body", data))

    def message_complete(self, trailers: Fields) -> None:
        self.ends.append(trailers)
        self.events.append(("end", trailers))


@pytest.fixture(params=["httptools", "h11"])
def codec(request: pytest.FixtureRequest) -> Codec:
    return load_codec(request.param)


@pytest.fixture
def sink() -> Recorder:
    return Recorder()


@pytest.fixture
def requests(codec: Codec, sink: Recorder) -> Any:
    return codec.request_decoder(sink, HeadLimits())


@pytest.fixture
def responses(codec: Codec, sink: Recorder) -> Any:
    return codec.response_decoder(sink, HeadLimits())


@pytest.fixture
def refused() -> Callable[..., BadMessage]:
    """Calls a function that has to raise BadMessage, and returns it."""

    def call(function: Callable[..., Any], *arguments: Any) -> BadMessage:
        with pytest.raises(BadMessage) as caught:
            function(*arguments)
        return caught.value

    return call
