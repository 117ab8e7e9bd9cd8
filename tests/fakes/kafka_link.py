"""A cluster that does what the test says, in the place of `connectors.kafka_link.KafkaLink`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from typing import Any

from gateway.connectors.kafka_link import Received

__all__ = ["FakeLink", "record"]


def record(
    url: str,
    partition: int = 0,
    offset: int = 0,
    *,
    credential: str = "",
    timestamp_ms: int = -1,
    headers: Iterable[tuple[str, bytes | None]] = (),
    **more: Any,
) -> Received:
    """A record whose value asks for a POST to that URL; `more` goes into the envelope."""
    fields = {"Authorization": credential} if credential else {}
    document = {"method": "POST", "url": url, "headers": fields, **more}
    value = json.dumps(document).encode()
    return Received(partition, offset, timestamp_ms, b"key", value, tuple(headers))


class FakeLink:
    """All of it is used in the gateway's loop."""

    up = True
    idempotent = True

    def __init__(self, *_: Any) -> None:
        self.taker: Any = None
        self.paused: set[int] = set()
        self.resumed: list[int] = []
        self.commits: list[dict[int, tuple[int, str]]] = []
        self.takes_commits = True
        self.acknowledges = True
        self.letter_bytes_max = 1 << 20
        self.is_slow = False
        self.letters: list[tuple[str, dict[str, Any]]] = []
        self.waiting: list[Callable[[bool], None]] = []
        self.ends: dict[int, int] = {}
        self.offered: list[dict[str, Any]] = []
        self.takes_offers = True
        self.came: Callable[[str, Received], None]

    @staticmethod
    def check() -> None:
        """It is there."""

    def start(self, taker: Any) -> None:
        self.taker = taker

    async def stop(self) -> None:
        """Nothing is connected."""

    def assign(self, committed: dict[int, tuple[int, str]]) -> dict[int, int]:
        """The group gives out its partitions: none is paused by that."""
        self.paused = set()
        found: dict[int, int] = self.taker.assigned(committed)
        return found

    def pause(self, partitions: Iterable[int]) -> None:
        self.paused |= set(partitions)

    def resume(self, partitions: Iterable[int]) -> None:
        self.resumed += partitions
        self.paused -= set(partitions)

    def end_of(self, partition: int) -> int | None:
        return self.ends.get(partition)

    def commit(self, marks: dict[int, tuple[int, str]], told: Callable[[bool], None]) -> None:
        if self.takes_commits:
            self.commits.append(marks)
        asyncio.get_running_loop().call_soon(told, self.takes_commits)

    async def committed(self, marks: dict[int, tuple[int, str]]) -> bool:
        if self.takes_commits and marks:
            self.commits.append(marks)
        return self.takes_commits

    def write(
        self,
        topic: str,
        key: bytes | None,
        value: bytes,
        headers: list[tuple[str, bytes]],
        told: Callable[[bool], None],
    ) -> None:
        self.waiting.append(told)
        loop = asyncio.get_running_loop()
        if len(value) > self.letter_bytes_max:
            loop.call_soon(self._settle, told, False)
            return
        self.letters.append((topic, json.loads(value)))
        if self.acknowledges:
            loop.call_soon(self._settle, told, True)

    def offer(
        self,
        topic: str,
        key: bytes | None,
        value: bytes,
        headers: list[tuple[str, bytes]],
        told: Callable[[bool], None],
        failed: Callable[[], None],
    ) -> Callable[[], None]:
        offer = {"topic": topic, "key": key, "value": value, "headers": headers, "withdrawn": False}
        self.offered.append(offer)
        if not self.takes_offers:
            asyncio.get_running_loop().call_soon(failed)
        else:
            self.waiting.append(told)
            if self.acknowledges:
                fits = len(value) <= self.letter_bytes_max
                asyncio.get_running_loop().call_soon(self._settle, told, fits)

        def withdraw() -> None:
            offer["withdrawn"] = True
            self.waiting.remove(told)

        return withdraw

    def follow(self, since_ms: int, came: Callable[[str, Received], None]) -> None:
        self.came = came

    def acknowledge(self) -> None:
        """All that was written so far, and what comes from now on."""
        self.acknowledges = True
        for told in list(self.waiting):
            self._settle(told, True)

    def _settle(self, told: Callable[[bool], None], is_written: bool) -> None:
        self.waiting.remove(told)
        told(is_written)

    @property
    def unacknowledged(self) -> int:
        return len(self.waiting)

    def is_behind(self, now_ns: int) -> bool:
        return self.is_slow

    def letters_in(self, topic: str) -> list[dict[str, Any]]:
        """What stands in a topic."""
        return [value for name, value in self.letters if name == topic]
