"""The access log: lines to the octet, and what becomes of them when nobody takes them."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import gc
import json
import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import accesslog
from gateway.accesslog import AccessLog, json_line, text_line
from gateway.clock import MS, SECOND
from gateway.errors import ErrorKind, GatewayError, Phase, Source, Termination
from gateway.proxy.graph import AccessRecord

NORMAL = AccessRecord(
    wall_ns=1_700_000_000 * SECOND + 45 * MS,
    source="192.0.2.7",
    client="billing",
    listener="0.0.0.0:8080",
    upstream="stripe",
    method=b"GET",
    host=b"stripe.internal",
    target=b"/v1/charges?key=secret",
    status=200,
    bytes_in=0,
    bytes_out=1234,
    request_ns=4_000_000,
    waited_ns=1_500_000,
    connect_ns=250_000,
    response_ns=20_000_000,
    total_ns=25_750_999,
    attempts=1,
    limit="",
    number=0x1A,
    request_id=b"",
    traceparent=b"",
    termination=Termination(Source.NONE, Phase.NONE),
    error=None,
)
ERROR = GatewayError(
    ErrorKind.LIMITED, 'limit "l" has no room\n', phase=Phase.QUEUE, retry_after_ns=1, limit="l"
)
HOSTILE = NORMAL._replace(
    source='x"y',
    client="",
    upstream="",
    method=b"",
    host=b'a"\xff\x1b',
    target=b'/"\n{"status":200}\x00\xe9?secret',
    status=429,
    termination=ERROR.termination,
    error=ERROR,
)


def test_a_json_line() -> None:
    assert json_line(NORMAL, "p0") == (
        '{"time":"2023-11-14T22:13:20.045Z","source":"192.0.2.7","client":"billing",'
        '"listener":"0.0.0.0:8080","upstream":"stripe","method":"GET","host":"stripe.internal",'
        '"path":"/v1/charges","status":200,"bytes_in":0,"bytes_out":1234,"request_ms":4.000,'
        '"waited_ms":1.500,"connect_ms":0.250,"response_ms":20.000,"total_ms":25.751,"attempts":1,'
        '"termination":"--","request_id":"p0-1a"}'
    )


def test_a_json_line_tells_what_it_did_not_come_to_and_where_it_waited() -> None:
    record = NORMAL._replace(request_ns=0, waited_ns=0, connect_ns=-1, response_ns=-1, limit="l")
    line = json.loads(json_line(record, "p0"))
    assert (line["request_ms"], line["waited_ms"]) == (0, 0)
    assert (line["connect_ms"], line["response_ms"], line["limit"]) == (None, None, "l")
    assert text_line(record, "p0").split()[5:11] == ["0/0/-1/-1/25", "200", "1234", "--", "1", "l"]


def test_the_names_that_a_request_brings_are_written_down() -> None:
    trace = b"4bf92f3577b34da6a3ce929d0e0e4736"
    record = NORMAL._replace(request_id=b'a"b', traceparent=b"00-%s-00f067aa0ba902b7-01" % trace)
    line = json.loads(json_line(record, "p0"))
    assert (line["request_id"], line["trace_id"]) == ('a"b', trace.decode())
    assert text_line(record, "p0").split()[11:13] == ["a\\x22b", trace.decode()]
    hostile = NORMAL._replace(request_id=b"x" * 129, traceparent=b'00-"-x')
    line = json.loads(json_line(hostile, "p0"))
    assert line["request_id"] == "p0-1a"
    assert "trace_id" not in line
    assert text_line(hostile, "p0").split()[11:13] == ["p0-1a", "-"]


def test_a_json_line_of_hostile_octets_is_one_object() -> None:
    line = json_line(HOSTILE, "p0")
    assert line.isascii()
    assert "\n" not in line
    read = json.loads(line)
    assert read["path"] == '/"\n{"status":200}\x00\xe9'
    assert read["host"] == 'a"\xff\x1b'
    assert read["source"] == 'x"y'
    assert read["status"] == 429
    assert read["termination"] == "PQ"
    assert read["error"] == "http_request_denied"
    assert read["detail"] == 'limit "l" has no room\n'
    assert read["limit"] == "l"
    assert "secret" not in line


def test_a_text_line() -> None:
    assert text_line(NORMAL, "p0") == (
        "2023-11-14T22:13:20.045Z 192.0.2.7 billing 0.0.0.0:8080 stripe 4/1/0/20/25 200 1234 -- 1 "
        '- p0-1a - "GET stripe.internal/v1/charges"'
    )


def test_a_text_line_of_hostile_octets_stays_one_line() -> None:
    assert text_line(HOSTILE, "p0") == (
        '2023-11-14T22:13:20.045Z x"y - 0.0.0.0:8080 - 4/1/0/20/25 429 1234 PQ 1 l p0-1a - '
        '"- a\\x22\\xff\\x1b/\\x22\\n{\\x22status\\x22:200}\\x00\\xe9" http_request_denied'
    )


@given(st.binary(max_size=40), st.binary(max_size=40), st.binary(max_size=40), st.text(max_size=20))
def test_any_octets_make_one_line(host: bytes, target: bytes, name: bytes, detail: str) -> None:
    error = GatewayError(ErrorKind.INTERNAL, detail)
    record = NORMAL._replace(
        host=host, target=target, request_id=name, traceparent=name, error=error
    )
    line = json_line(record, "p0")
    assert line.isascii()
    assert "\n" not in line
    assert json.loads(line)["host"].encode("latin-1") == host
    text = text_line(record, "p0")
    assert text.isascii()
    assert text.isprintable()
    assert text.count('"') == 2


def worker(records: int = 0) -> Any:
    return SimpleNamespace(ring=[NORMAL] * records, ring_dropped=0, id_prefix=b"p0")


def paths(text: str) -> list[str]:
    return [json.loads(line)["path"] for line in text.splitlines()]


def test_lines_go_to_the_file_and_after_a_rotation_to_the_new_one(tmp_path: Path) -> None:
    async def run() -> None:
        path = tmp_path / "access.log"
        busy = worker(2)
        log = AccessLog(busy, str(path), "json")
        log.open()
        log.start()
        await log.drain()
        path.rename(tmp_path / "old.log")
        busy.ring.append(NORMAL._replace(target=b"/late"))
        await log.drain()  # still open under its new name
        log.reopen()
        busy.ring.append(NORMAL._replace(target=b"/new"))
        await log.stop()
        assert paths((tmp_path / "old.log").read_text()) == ["/v1/charges"] * 2 + ["/late"]
        assert paths(path.read_text()) == ["/new"]
        assert busy.ring_dropped == 0

    asyncio.run(run())


def test_a_path_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    log = AccessLog(worker(), str(tmp_path / "none" / "x.log"), "json")
    with pytest.raises(OSError, match=r"log\.access: .*none/x\.log: No such file"):
        log.open()


def test_lines_that_the_disk_refuses_are_counted() -> None:
    async def run() -> None:
        full = worker(250)
        log = AccessLog(full, "/dev/full", "text")
        log.open()
        log.start()
        await log.drain()
        assert full.ring_dropped == 250
        assert full.ring == []
        await log.stop()

    asyncio.run(run())


def test_a_disk_that_fills_up_in_a_line_costs_that_line_only(tmp_path, monkeypatch) -> None:
    """The rest of its batch is counted as lost, and what fits later begins on a line of its own."""
    really_write = os.write
    room = [0]

    def write(fd: int, data: memoryview) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        count = really_write(fd, data[: room[0]])
        room[0] -= count
        return count

    async def run() -> None:
        path = tmp_path / "access.log"
        full = worker()
        log = AccessLog(full, str(path), "json")
        log.open()
        log.start()
        monkeypatch.setattr(accesslog.os, "write", write)
        size = len(json_line(NORMAL, "p0")) + 1
        for lines, octets, lost in ((3, size + 10, 2), (2, 0, 2), (2, 10 * size, 0)):
            room[0] = octets
            full.ring = [NORMAL] * lines
            before = full.ring_dropped
            await log.drain()
            assert full.ring_dropped - before == lost
        await log.stop()
        whole = json_line(NORMAL, "p0")
        assert path.read_text().split("\n") == [whole, whole[:10], whole, whole, ""]

    asyncio.run(run())


def test_a_pipe_that_nobody_reads_is_an_error_and_no_wait(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    log = AccessLog(worker(), str(path), "json")
    with pytest.raises(OSError, match=r"log\.access: .*pipe: nobody reads this pipe"):
        log.open()


@pytest.fixture
def stalled(tmp_path: Path) -> Iterator[tuple[str, int]]:
    """(path of a pipe that nobody reads from, its reading end)."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096)
    yield str(path), reader
    os.close(reader)


def test_a_reader_that_stands_still_costs_a_bounded_time(stalled, monkeypatch) -> None:
    monkeypatch.setattr(accesslog, "STOP_SECONDS", 0.05)
    path, _ = stalled

    async def run() -> None:
        busy = worker(accesslog.BATCH * 3)
        log = AccessLog(busy, path, "json")
        log.open()
        log.start()
        await log.stop()
        # What the thread could not write is lost and counted; the others are whoever's comes next.
        assert busy.ring_dropped == accesslog.BATCH
        assert len(busy.ring) == 2 * accesslog.BATCH

    asyncio.run(run())


@pytest.mark.parametrize("batches", [1, 3])
def test_a_stop_in_the_middle_of_a_drain_loses_nothing(batches, stalled, monkeypatch) -> None:
    """All is written when `stop` returns: the process may end in that moment."""
    monkeypatch.setattr(accesslog, "DRAIN_SECONDS", 0.0)
    path, reader = stalled
    count = accesslog.BATCH * batches
    text = bytearray()

    async def run() -> None:
        busy = worker(0)
        busy.ring = [NORMAL._replace(target=b"/%d" % number) for number in range(count)]
        log = AccessLog(busy, path, "json")
        log.open()
        log.start()
        while busy.ring:
            await asyncio.sleep(0)  # the first batch fills the pipe, and the drain stands there
        stopping = asyncio.ensure_future(log.stop())
        for _ in range(10):
            await asyncio.sleep(0)
        assert not stopping.done()  # the pipe has no room for what the thread has been given
        while not stopping.done():
            await asyncio.sleep(0.001)
            with_data = _read(reader)
            text.extend(with_data)
        text.extend(_read(reader))
        assert busy.ring_dropped == 0
        assert busy.ring == []
        assert text.count(b"\n") == count

    asyncio.run(run())
    assert paths(text.decode()) == [f"/{number}" for number in range(count)]


def test_a_log_that_has_stopped_is_freed_without_the_collector(tmp_path: Path) -> None:
    """A reload may replace it each time; the collector comes after 50,000 objects."""

    async def run() -> weakref.ref[AccessLog]:
        log = AccessLog(worker(1), str(tmp_path / "log"), "json")
        log.open()
        log.start()
        await asyncio.sleep(0)  # its task has begun, and is cancelled where it stands
        await log.stop()
        return weakref.ref(log)

    gc.disable()
    try:
        assert asyncio.run(run())() is None
    finally:
        gc.enable()


def _read(fd: int) -> bytes:
    found = b""
    try:
        while data := os.read(fd, 65536):
            found += data
    except BlockingIOError:
        pass
    return found


def test_what_several_processes_write_to_a_pipe_is_not_torn() -> None:
    """Pieces of whole lines that a pipe takes as one; to a file, and alone, all goes at once."""
    long = NORMAL._replace(target=b"/" + b"x" * 5000)
    log = AccessLog(worker(), "stdout", "json", shared=True)
    read, log._fd = os.pipe()
    lines = [json_line(NORMAL, "p0")] * 30 + [json_line(long, "p0")] + [json_line(NORMAL, "p0")] * 2
    data = ("\n".join(lines) + "\n").encode()
    assert log._piece_bytes_max() == 4096
    pieces = [bytes(piece) for piece in accesslog._pieces(data, 4096)]
    assert b"".join(pieces) == data
    assert all(piece.endswith(b"\n") for piece in pieces)
    assert [len(piece) <= 4096 or piece.count(b"\n") == 1 for piece in pieces] == [True] * len(
        pieces
    )
    assert len(pieces) == 5
    assert [bytes(piece) for piece in accesslog._pieces(data, 0)] == [data]
    alone = AccessLog(worker(), "stdout", "json")
    assert alone._piece_bytes_max() == 0
    for fd in (read, log._fd):
        os.close(fd)
