"""A network between processes that loses, delays and cuts: for hosts whose kernel may not do it.

Every node has a front, an address that it advertises and that others send to, and a back, the one
that it has bound. A datagram that arrives at the front of i from the back of j goes on to the back
of i from the front of j, so that answers come the same way. TCP connections to a front are piped to
its back with the same delay; what a byte stream does with loss is the kernel's business, so loss is
for datagrams only, and a cut refuses all connections, since nobody can see who connects.

It is a process of its own: `Relay` starts it and tells it what to do, one JSON object a line.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = ["Relay"]

Address = tuple[str, int]
CHUNK_BYTES = 64 * 1024


class Relay:
    """The relay's process. `pairs` are (front, back) of each node. Use as a context manager."""

    def __init__(self, pairs: Sequence[tuple[Address, Address]], seed: int = 1) -> None:
        self._spec = json.dumps({"pairs": list(pairs), "seed": seed})
        self._process: subprocess.Popen[str] | None = None
        self._state: dict[str, Any] = {"loss": 0.0, "delay_ms": 0.0, "groups": []}

    def __enter__(self) -> Relay:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,
        )
        self._say(self._spec)
        return self

    def __exit__(self, *exc: object) -> None:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()  # its end
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
        if exc[0] is None:
            assert process.returncode == 0, f"the relay ended with {process.returncode}"

    def set(
        self,
        *,
        loss: float | None = None,
        delay_ms: float | None = None,
        groups: Sequence[Sequence[int]] | None = None,
    ) -> dict[str, int]:
        """Changes what befalls datagrams from now on; returns counts so far. `groups` are numbers
        of nodes that reach each other; none: all do."""
        news = {"loss": loss, "delay_ms": delay_ms, "groups": groups}
        self._state.update({key: value for key, value in news.items() if value is not None})
        return self._say(json.dumps(self._state))

    def _say(self, line: str) -> dict[str, int]:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(line + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        assert answer, "the relay has ended"
        found: dict[str, int] = json.loads(answer)
        return found


class Switch:
    """The relay itself, in its process."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.fronts: list[Address] = [(host, port) for (host, port), _ in spec["pairs"]]
        self.backs: list[Address] = [(host, port) for _, (host, port) in spec["pairs"]]
        self.numbers = {back: number for number, back in enumerate(self.backs)}
        self.chance = random.Random(spec["seed"])
        self.transports: list[asyncio.DatagramTransport] = []
        self.servers: list[asyncio.Server] = []
        self.loss = 0.0
        self.delay_s = 0.0
        self.group: dict[int, int] = {}
        self.counts = {"passed": 0, "lost": 0, "cut": 0, "strangers": 0}
        self.tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        for number, front in enumerate(self.fronts):
            transport, _ = await loop.create_datagram_endpoint(
                lambda number=number: Front(self, number),  # type: ignore[misc]
                local_addr=front,
            )
            self.transports.append(transport)
            server = await asyncio.start_server(
                lambda reader, writer, number=number: self.pipe(reader, writer, number), *front
            )
            self.servers.append(server)

    def change(self, state: dict[str, Any]) -> None:
        self.loss = state["loss"]
        self.delay_s = state["delay_ms"] / 1000
        self.group = {n: g for g, numbers in enumerate(state["groups"]) for n in numbers}

    def datagram(self, data: bytes, target: int, source: Address) -> None:
        sender = self.numbers.get(source)
        if sender is None:
            self.counts["strangers"] += 1
        elif self.group and self.group.get(sender) != self.group.get(target):
            self.counts["cut"] += 1
        elif self.loss and self.chance.random() < self.loss:
            self.counts["lost"] += 1
        else:
            self.counts["passed"] += 1
            send = self.transports[sender].sendto
            if self.delay_s:
                loop = asyncio.get_running_loop()
                loop.call_later(self.delay_s, send, data, self.backs[target])
            else:
                send(data, self.backs[target])

    async def pipe(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int
    ) -> None:
        if self.group:
            writer.close()
            return
        try:
            back_reader, back_writer = await asyncio.open_connection(*self.backs[number])
        except OSError:
            writer.close()
            return
        for one, other in ((reader, back_writer), (back_reader, writer)):
            task = asyncio.get_running_loop().create_task(self.carry(one, other))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Octets one way. A timer for each piece, so that a delay is no bound on the rate."""
        loop = asyncio.get_running_loop()
        with suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                if self.delay_s:
                    loop.call_later(self.delay_s, writer.write, data)
                else:
                    writer.write(data)
        loop.call_later(self.delay_s, writer.close)


class Front(asyncio.DatagramProtocol):
    def __init__(self, switch: Switch, number: int) -> None:
        self._switch = switch
        self._number = number

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._switch.datagram(data, self._number, (addr[0], addr[1]))


async def serve() -> None:
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    switch = Switch(json.loads(await lines.readline()))
    await switch.open()
    print(json.dumps(switch.counts), flush=True)
    while line := await lines.readline():
        switch.change(json.loads(line))
        print(json.dumps(switch.counts), flush=True)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(serve())
