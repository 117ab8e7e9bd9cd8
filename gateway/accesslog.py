"""Drains the ring that the hot path fills, and writes one line per exchange.

The hot path only appends a tuple; text is made here, in batches, off the request's way. A full ring
drops records and counts them (`access_log_dropped`): the proxy never waits for its log.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import json
import os
import queue
import select
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from gateway.clock import MS, SECOND
from gateway.h1.trace import is_request_id, trace_id

if TYPE_CHECKING:
    from gateway.errors import Termination
    from gateway.proxy.graph import AccessRecord, Worker

__all__ = ["AccessLog", "json_line", "text_line"]

DRAIN_SECONDS = 0.2  # at 10,000 requests/s 2,000 lines: some 8 ms of formatting per drain
BATCH = 100  # lines between two turns of the loop: about 0.4 ms at 4 us a line
STOP_SECONDS = 1.0  # what a reader that stands still may cost at the end

# One template and the standard library's own quoting: json.dumps of a dict took three times as long
# (14 against 4 us), which was a quarter of all that a request costs.
_quoted = json.encoder.encode_basestring_ascii
_JSON = (
    '{"time":"%s.%03dZ",%s,"path":%s,"status":%d,"bytes_in":%d,"bytes_out":%d,"request_ms":%s,'
    '"waited_ms":%s,"connect_ms":%s,"response_ms":%s,"total_ms":%.3f,"attempts":%d,'
    '"termination":"%s","request_id":%s'
)
# Who asks whom repeats from line to line: 1,024 of these, at most 400 KiB, are made once. A longer
# host is a client's invention and not kept.
_HOST_KEPT_BYTES_MAX = 64
_NEWLINE = 0x0A


@functools.lru_cache(maxsize=4)
def _second(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}"


def _stamp(wall_ns: int) -> str:
    return f"{_second(wall_ns // SECOND)}.{wall_ns % SECOND // MS:03d}Z"


def _text(raw: bytes) -> str:
    return raw.decode("latin-1")


def _escaped(raw: bytes) -> str:
    """ASCII without the quotation mark, which ends the request in a text line."""
    return _text(raw).encode("unicode_escape").decode().replace('"', "\\x22")


def _parties_slow(
    source: str, client: str, listener: str, upstream: str, method: bytes, host: bytes
) -> str:
    return (
        f'"source":{_quoted(source)},"client":{_quoted(client)},"listener":{_quoted(listener)},'
        f'"upstream":{_quoted(upstream)},"method":{_quoted(_text(method))},'
        f'"host":{_quoted(_text(host))}'
    )


_parties = functools.lru_cache(maxsize=1024)(_parties_slow)


@functools.lru_cache(maxsize=64)
def _letters(termination: Termination) -> str:
    return str(termination)


def _request_id(prefix: str, number: int, told: bytes) -> str:
    """As in our own answers: what the client called it, or else its number in this process."""
    return told.decode("ascii") if told and is_request_id(told) else f"{prefix}-{number:x}"


def json_line(record: AccessRecord, prefix: str) -> str:
    """One JSON object. The query is left out: it is where APIs let keys be sent.

    `prefix` begins the ids of requests that brought none (`Worker.id_prefix`).
    """
    # Taken apart at once: two dozen attributes of a NamedTuple cost as much as the formatting.
    (
        wall_ns, source, client, listener, upstream, method, host, target, status,
        bytes_in, bytes_out, request_ns, waited_ns, connect_ns, response_ns, total_ns, attempts,
        limit, number, request_id, traceparent, termination, error,
    ) = record  # fmt: skip
    parties = _parties if len(host) <= _HOST_KEPT_BYTES_MAX else _parties_slow
    line = _JSON % (
        _second(wall_ns // SECOND),
        wall_ns % SECOND // MS,
        parties(source, client, listener, upstream, method, host),
        _quoted(_text(target.partition(b"?")[0])),
        status,
        bytes_in,
        bytes_out,
        "%.3f" % (request_ns / MS) if request_ns else "0.000",
        "%.3f" % (waited_ns / MS) if waited_ns else "0.000",
        "%.3f" % (connect_ns / MS) if connect_ns > 0 else "null" if connect_ns else "0.000",
        "%.3f" % (response_ns / MS) if response_ns >= 0 else "null",
        total_ns / MS,
        attempts,
        _letters(termination),
        f'"{prefix}-{number:x}"'
        if not request_id
        else _quoted(_request_id(prefix, number, request_id)),
    )
    trace = trace_id(traceparent) if traceparent else ""
    if trace:
        line += f',"trace_id":"{trace}"'
    if error is not None:
        line += f',"error":"{error.kind.proxy_error}","detail":{_quoted(str(error))}'
        limit = error.limit
    return line + (f',"limit":{_quoted(limit)}}}' if limit else "}")


def text_line(record: AccessRecord, prefix: str) -> str:
    """One line in the manner of HAProxy's HTTP log (configuration manual 8.2.3).

    The timers are HAProxy's TR/Tw/Tc/Tr/Ta in milliseconds, -1 for what it did not come to.
    """
    timers = "/".join(
        str(value // MS)  # of -1 it is -1
        for value in (
            record.request_ns,
            record.waited_ns,
            record.connect_ns,
            record.response_ns,
            record.total_ns,
        )
    )
    path = _escaped(record.target.partition(b"?")[0])
    host = _escaped(record.host)
    error = record.error
    reason = f" {error.kind.proxy_error}" if error is not None else ""
    limit = error.limit if error is not None else record.limit
    request_id = _request_id(prefix, record.number, record.request_id).replace('"', "\\x22")
    return (
        f"{_stamp(record.wall_ns)} {record.source} {record.client or '-'} {record.listener} "
        f"{record.upstream or '-'} {timers} {record.status} {record.bytes_out} "
        f"{record.termination} {record.attempts} {limit or '-'} {request_id} "
        f"{trace_id(record.traceparent) or '-'} "
        f'"{_text(record.method) or "-"} {host}{path}"{reason}'
    )


class AccessLog:
    """Writes to standard output or a file; `reopen` after the file was moved away.

    With `shared` other processes write there too. A write to a file opened with O_APPEND lands
    whole; in a pipe only one of up to PIPE_BUF octets does (pipe(7)), so that lines go there in
    pieces of that size: only a line that is longer by itself may be torn.

    Raises OSError from `open` where the path cannot be written. Lines that could not be written
    are counted in the worker's `ring_dropped`, as those that found the ring full.
    """

    def __init__(self, worker: Worker, target: str, form: str, *, shared: bool = False) -> None:
        self.target = target
        self.format = form
        self._worker = worker
        self._line: Callable[[AccessRecord, str], str] = json_line if form == "json" else text_line
        self._shared = shared
        self._prefix = worker.id_prefix.decode()
        self._fd = -1
        self._task: asyncio.Task[None] | None = None
        self._handed: asyncio.Future[int] | None = None  # what the thread was given last
        self._writing = 0  # its lines
        # A pipe whose reader stands still, or a slow disk, must stop neither the loop nor the
        # process's end: a thread waits, one that the interpreter does not join.
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=_write_for_ever, args=(self._jobs,), daemon=True)

    def open(self) -> None:
        """Opens the target (or opens it again)."""
        old = self._fd
        if self.target == "stdout":
            self._fd = os.dup(sys.stdout.fileno())
        else:
            self._fd = _open(self.target)
        if old >= 0:
            self._jobs.put(_Job(old, b""))  # closed behind the lines that are for it

    reopen = open

    def start(self) -> None:
        """Begins to drain in the background."""
        self._thread.start()
        self._task = asyncio.get_running_loop().create_task(self._drain_forever())

    async def stop(self) -> None:
        """Writes what is left, for a second at most, and closes.

        What a drain had just handed to the thread is waited for as well: nobody joins the thread,
        and where the process ends before it has had its turn, those lines are lost.
        """
        await self._stop_draining()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                if self._handed is not None:
                    await asyncio.shield(self._handed)
                await self.drain()
        except TimeoutError:
            self._worker.ring_dropped += self._writing
            if self._handed is not None:
                self._handed.cancel()  # not counted once more when the reader goes on
        self._close()

    async def discard(self) -> None:
        """Ends a log that is not to be used after all: what is in the ring is for another."""
        await self._stop_draining()
        self._close()

    async def drain(self) -> None:
        """Writes all records that are in the ring now; cancelled, it puts back those that it has
        not handed to the thread."""
        records, self._worker.ring = self._worker.ring, []
        for start in range(0, len(records), BATCH):
            batch = records[start : start + BATCH]
            lines = [self._line(record, self._prefix) for record in batch]
            self._writing = len(lines)
            try:
                await asyncio.shield(self._hand_over(("\n".join(lines) + "\n").encode()))
            except asyncio.CancelledError:
                self._worker.ring[:0] = records[start + BATCH :]
                raise

    async def _stop_draining(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            # Its exception's traceback leads back here: a ring that only the collector would find.
            self._task = None

    def _close(self) -> None:
        self._jobs.put(_Job(self._fd, b""))
        self._jobs.put(None)

    def _hand_over(self, data: bytes) -> asyncio.Future[int]:
        """How many of the lines could not be written whole, once the thread is through."""
        loop = asyncio.get_running_loop()
        done = self._handed = loop.create_future()
        done.add_done_callback(self._count_lost)
        self._jobs.put(_Job(self._fd, data, loop, done, self._piece_bytes_max()))
        return done

    def _count_lost(self, done: asyncio.Future[int]) -> None:
        if not done.cancelled():
            self._worker.ring_dropped += done.result()

    def _piece_bytes_max(self) -> int:
        """0: all at once."""
        whole = not self._shared or stat.S_ISREG(os.fstat(self._fd).st_mode)
        return 0 if whole else select.PIPE_BUF

    async def _drain_forever(self) -> None:
        while True:
            await asyncio.sleep(DRAIN_SECONDS)
            await self.drain()


class _Job(NamedTuple):
    """Lines for a file, or, without a future, its close."""

    fd: int
    data: bytes
    loop: asyncio.AbstractEventLoop | None = None
    done: asyncio.Future[int] | None = None
    piece_bytes_max: int = 0


def _pieces(data: bytes, bytes_max: int) -> Iterator[memoryview]:
    """Whole lines, as many as fit into `bytes_max` but at least one; 0: all of them."""
    begin = 0
    while begin < len(data):
        end = data.rfind(b"\n", begin, begin + bytes_max) if bytes_max else len(data) - 1
        if end < 0:
            end = data.index(b"\n", begin)
        yield memoryview(data)[begin : end + 1]
        begin = end + 1


def _open(path: str) -> int:
    """A descriptor for a log's path. Raises OSError with a text that names it."""
    # A pipe that nobody reads would otherwise hold up the loop in open(2) until somebody does.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        fd = os.open(path, flags, 0o640)
    except OSError as error:
        reason = "nobody reads this pipe" if error.errno == errno.ENXIO else error.strerror
        raise OSError(error.errno, f"log.access: {path}: {reason}") from None
    os.set_blocking(fd, True)  # the thread may wait
    return fd


def _write_for_ever(jobs: queue.SimpleQueue[_Job | None]) -> None:
    torn: set[int] = set()  # descriptors whose last line has no end
    while (job := jobs.get()) is not None:
        if job.loop is None or job.done is None:
            torn.discard(job.fd)
            os.close(job.fd)
            continue
        lost = _write_lines(job, torn)
        with contextlib.suppress(RuntimeError):  # the loop has closed meanwhile
            job.loop.call_soon_threadsafe(_settle, job.done, lost)


def _write_lines(job: _Job, torn: set[int]) -> int:
    """Writes a job's lines; returns how many of them did not get out whole.

    Where a disk is full in the middle of a line, the next one that fits begins on a line of its
    own, so that a reader loses one line and not two.
    """
    data = b"\n" + job.data if job.fd in torn else job.data
    written = 0
    try:
        for piece in _pieces(data, job.piece_bytes_max):
            view = piece
            while view:
                count = os.write(job.fd, view)
                view = view[count:]
                written += count
    except OSError:
        pass  # counted, and tried again with the next lines
    if written:
        (torn.discard if data[written - 1] == _NEWLINE else torn.add)(job.fd)
    return job.data.count(b"\n", max(0, written - len(data) + len(job.data)))


def _settle(done: asyncio.Future[int], lost: int) -> None:
    if not done.done():
        done.set_result(lost)
