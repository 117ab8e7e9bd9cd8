"""An origin that does nothing but answer and count, for loads that a trio origin does not bear.

Run as a process of its own (`QuickOrigin`): it prints its port, answers GETs without a body with
`hello`, and at its end prints how many there were.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys

__all__ = ["BODY_BYTES", "QuickOrigin"]

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
BODY_BYTES = 5


class _Answers(asyncio.Protocol):
    answered = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        *heads, self._rest = (self._rest + data).split(b"\r\n\r\n")
        _Answers.answered += len(heads)
        self._transport.write(ANSWER * len(heads))


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    end = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, end.set)
    server = await loop.create_server(_Answers, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await end.wait()
    print(_Answers.answered, flush=True)


class QuickOrigin:
    """The process. Use as a context manager; `answered` is known behind it."""

    def __init__(self) -> None:
        self.answered = -1

    def __enter__(self) -> QuickOrigin:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdout=subprocess.PIPE, text=True, process_group=0
        )
        assert self._process.stdout is not None
        self.url = f"http://127.0.0.1:{int(self._process.stdout.readline())}"
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.terminate()
        out, _ = self._process.communicate(timeout=10)
        self.answered = int(out)


if __name__ == "__main__":
    asyncio.run(_serve())
