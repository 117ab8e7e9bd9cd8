"""The access log of a real node under load: moved away, and read by nobody."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes.gateway import Client
from fakes.nodes import NodeProcess, until
from fakes.origin import Origin

pytestmark = pytest.mark.e2e

MakeNode = Callable[..., NodeProcess]

CLIENTS = 4
ROTATIONS = 10


class Askers:
    """Clients that ask as fast as they are answered, each for paths of its own."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.asked: list[str] = []
        self._enough = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(address, number)) for number in range(CLIENTS)
        ]

    def __enter__(self) -> Askers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._enough.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, address: tuple[str, int], number: int) -> None:
        with Client(address) as client:
            count = 0
            while not self._enough.is_set():
                path = f"/{number}/{count}"
                assert client.get(path.encode()).status == 200
                self.asked.append(path)
                count += 1


def test_a_log_that_is_rotated_under_load_loses_and_tears_no_line(
    node: MakeNode, origin: Origin, tmp_path: Path
) -> None:
    log = tmp_path / "access.log"
    process = node(origin, settings=(f"log.access={log}",))
    with Askers(process.address) as askers:
        for number in range(ROTATIONS):
            count = len(askers.asked)
            until(lambda count=count: len(askers.asked) > count + 20, 10.0, "load")
            log.rename(tmp_path / f"access.log.{number}")
            process.signal(signal.SIGUSR1)
            until(log.exists, 5.0, "the path is opened again")
    assert process.terminate() == 0
    written: Counter[str] = Counter()
    ids: set[str] = set()
    files = sorted(tmp_path.glob("access.log*"))
    assert len(files) == ROTATIONS + 1
    for file in files:
        text = file.read_text()
        assert not text or text.endswith("\n")
        for line in text.splitlines():
            read = json.loads(line)
            written[read["path"]] += 1
            ids.add(read["request_id"])
    assert written == Counter(askers.asked)
    assert len(ids) == len(askers.asked)


def test_a_reader_that_stands_still_does_not_hold_up_a_request(
    node: MakeNode, origin: Origin, tmp_path: Path
) -> None:
    fifo = tmp_path / "access.fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096)
        process = node(origin, settings=(f"log.access={fifo}",))
        slowest = 0.0
        with Client(process.address) as client:
            for number in range(500):  # some 350 octets a line: 40 pipes full
                begun = time.monotonic()
                assert client.get(b"/%d" % number).status == 200
                slowest = max(slowest, time.monotonic() - begun)
        # The log's thread would wait for ever; a loop that waited with it would not answer at all.
        assert slowest < 5.0
        assert process.terminate() == 0
    finally:
        os.close(reader)
