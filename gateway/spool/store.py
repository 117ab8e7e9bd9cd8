"""The spool's file and the one thread that touches it: many acceptances, one fsync.

Whoever wants something of the store submits a function of `tables`; while a commit is on its way to
the disk others gather, and the next transaction takes them all. Each is told its outcome in the
loop, after the commit. So an acceptance that was told is on disk (WAL, `synchronous = FULL`), and
2,000 of them a second need some hundred fsyncs.

A full disk refuses what is new. What must not be lost (an outcome) is tried again until it fits.
Whatever goes wrong, whoever submitted is told; that the store fails, and is well again, is noted.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import queue
import sqlite3
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from gateway.clock import SECOND, monotonic_ns
from gateway.spool import tables
from gateway.spool.place import Place, take_place
from gateway.spool.reader import BUSY_SECONDS, Done, Op, Reader, tell
from gateway.spool.record import Entry

__all__ = ["Store", "StoreEndedError", "StoreFullError", "StoreStats"]

# An acceptance takes some 20 us of the thread, so this many hold the first one up for 10 ms.
BATCH_MAX: Final = 512
AGAIN_SECONDS: Final = 0.5
# Reading all of a file at a GB/s before the first request is served: a quarter of a second.
CHECKED_BYTES_MAX: Final = 256 * 1024 * 1024
# A worker whose supervisor was killed drains before it lets go of the file.
LOCK_WAIT_NS: Final = 5 * SECOND
LOCK_LOOK_SECONDS: Final = 0.05
SET_UP_OCTET: Final = 1 << 20  # of the lock file, beyond any worker's number
# The journal goes into the file when it has so many pages. On a full disk that takes room for what
# is new in it, or the journal would keep the disk full for ever: that much is held in reserve.
JOURNAL_PAGES: Final = 256
RESERVE_BYTES: Final = 2 * JOURNAL_PAGES * 4096
# Without the index of a journal (-shm) nothing can be read. The end of a process gives its room
# back, so that this much can be held for the next start, however full the disk is.
INDEX_BYTES: Final = 32 * 1024
RELIEF_NS: Final = SECOND  # a checkpoint that finds no room is not tried for each request
PAGE_BYTES: Final = 4096
# Between a refusal and a commit that tells of health: a full file takes small records in between.
QUIET_NS: Final = 10 * SECOND
_FULL: Final = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)


class StoreFullError(Exception):
    """The disk, or what the file may take of it, is used up. Nothing was changed."""


class StoreEndedError(Exception):
    """The thread has ended, though nobody asked it to."""


class _GoneError(sqlite3.OperationalError):
    """The path does not name the file any more: what is written would be on no disk soon."""


def _unnoted(event: str, **facts: object) -> None:
    """The default of `note`."""


def _nothing() -> None:
    """The default of `on_room`."""


class _Job(NamedTuple):
    op: Op
    done: Done | None
    must: bool


class StoreStats:
    """Plain figures, written by the thread and read by anybody."""

    __slots__ = ("again", "commit_max_ns", "commit_ns", "commits", "failed", "full", "jobs")

    def __init__(self) -> None:
        self.commits = 0
        self.commit_ns = 0
        self.commit_max_ns = 0
        self.jobs = 0
        self.full = 0
        self.failed = 0
        self.again = 0  # outcomes that wait for room now


class Store:
    """The file of a node's spool, as one of its workers uses it."""

    def __init__(
        self,
        path: str,
        owner: int = 0,
        workers: int = 1,
        bytes_max: int = 0,
        lock_wait_ns: int = LOCK_WAIT_NS,
        note: Callable[..., None] = _unnoted,
    ) -> None:
        """`bytes_max` is what the file may grow to (0: no limit but the disk's). `note` is told
        with an event and facts when the store begins to fail and when it is well again."""
        self.path = path
        self.owner = owner
        self.workers = workers
        self.bytes_max = bytes_max
        self._lock_wait_ns = lock_wait_ns
        self._note = note
        self.has_records = False  # of any worker, when it was opened
        self.is_ended = False  # the thread is, by itself: nothing can be kept
        self.stats = StoreStats()
        self.paused: set[str] = set()
        self.on_room: Callable[[], None] = _nothing  # outcomes waited for room, and found it
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._again: list[_Job] = []
        self._batch: list[_Job] = []  # taken, and not told yet
        self._failed_ns = 0  # when it last did; 0: it is well
        self._refused = 0  # since it fails
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._db: sqlite3.Connection
        self._reader: Reader
        self._place: Place
        self._lock_fd = -1
        self._reserve_path = f"{path}.reserve{owner or ''}"
        self._relieved_ns = 0

    # In the loop, or before there is one.

    def open(self) -> list[Entry]:
        """Opens the file, makes it where there is none; returns what is still to be sent.

        Blocks. Raises OSError naming the file where it cannot be used: it is then left as it is.
        """
        try:
            self._open_files()
            # Siblings that start together make the file once, and change its mode one by one.
            fcntl.lockf(self._lock_fd, fcntl.LOCK_EX, 1, SET_UP_OCTET)
            entries = self._set_up_on_any_disk()
            fcntl.lockf(self._lock_fd, fcntl.LOCK_UN, 1, SET_UP_OCTET)
            self._reserve()
            self._reader = Reader(self.path)
        except sqlite3.Error as error:
            self._close_files()
            raise OSError(f"spool.path {self.path}: {error}; the file is left as it is") from error
        except OSError:
            self._close_files()
            raise
        return entries

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begins to take jobs; outcomes are told in that loop."""
        self._loop = loop
        self._thread = threading.Thread(target=self._run, name="spool", daemon=True)
        self._thread.start()
        self._reader.start(loop)

    def read(self, op: Op, done: Done) -> None:
        """Has `op` read what is committed and `done` told, in the loop, what it returned, or the
        exception. It waits for no commit, and no commit for it."""
        self._reader.ask(op, done)

    def submit(self, op: Op, done: Done | None = None, *, must: bool = False) -> None:
        """Has `op` done in the next transaction and `done` told, in the loop, what it returned, or
        the exception. With `must` a full disk is waited for."""
        self._jobs.put(_Job(op, done, must))
        if self.is_ended:
            self._refuse_all()

    def set_bytes_max(self, bytes_max: int) -> None:
        """A reload's figure; a file that is larger already takes nothing new."""
        self.bytes_max = bytes_max
        self.submit(self._limit)

    async def close(self) -> None:
        """Does what was submitted, closes the file; what still waits for room is lost."""
        thread = self._thread
        if thread is not None:
            self._jobs.put(None)
            await asyncio.to_thread(thread.join)
            self._thread = None
        if hasattr(self, "_reader"):
            await asyncio.to_thread(self._reader.stop)
            self._db.close()
            self._reserve()
        self._close_files()

    # Files.

    def _open_files(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            # SQLite gives -wal and -shm the mode of the file itself.
            self._place = take_place(self.path)
            self._lock_fd = os.open(self.path + ".lock", flags, 0o600)
            self._lock(monotonic_ns() + self._lock_wait_ns)
        except BlockingIOError as error:
            raise OSError(f"spool.path {self.path}: another process uses it") from error
        except OSError as error:
            raise OSError(error.errno, f"spool.path {self.path}: {error.strerror}") from error
        self._open_db()

    def _open_db(self) -> None:
        self._db = sqlite3.connect(
            self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )

    def _lock(self, until_ns: int) -> None:
        """Raises BlockingIOError where another process has this worker's part of the file."""
        waits = False
        while True:
            try:
                # One octet for each worker: two processes must never send the same requests.
                fcntl.lockf(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, self.owner)
                return
            except BlockingIOError:
                if monotonic_ns() >= until_ns:
                    raise
            if not waits:
                waits = True
                wait_s = self._lock_wait_ns / SECOND
                self._note("spool is used by another process", path=self.path, waits_s=wait_s)
            threading.Event().wait(LOCK_LOOK_SECONDS)  # a sleep of the thread that opens it

    def _set_up_on_any_disk(self) -> list[Entry]:
        """What is there can be sent although the disk is full: then nothing is tidied up."""
        try:
            self._set_up()
            return self._take_over()
        except sqlite3.Error as error:
            if _code(error) not in _FULL:
                raise
        self._relieve()
        self._set_up()
        try:
            return self._take_over()
        except sqlite3.Error as error:
            if _code(error) not in _FULL:
                raise
        return self._take_over(tidies=False)

    def _take_over(self, *, tidies: bool = True) -> list[Entry]:
        db = self._db
        try:
            db.execute("BEGIN IMMEDIATE" if tidies else "BEGIN")
            if tidies:
                tables.adopt(db, self.owner, self.workers)
            entries = tables.unfinished(db, self.owner, self.workers)
            self.paused = tables.pauses(db)
            self.has_records = tables.has_records(db)
            db.execute("COMMIT")
        except sqlite3.Error:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        return entries

    def _set_up(self) -> None:
        db = self._db
        application = db.execute("PRAGMA application_id").fetchone()[0]
        version = db.execute("PRAGMA user_version").fetchone()[0]
        size = Path(self.path).stat().st_size
        if not size:
            tables.create(db)
        elif application != tables.APPLICATION_ID or version != tables.VERSION:
            raise sqlite3.DatabaseError("it is no spool of this version")
        elif size <= CHECKED_BYTES_MAX:
            verdict = db.execute("PRAGMA quick_check(1)").fetchone()[0]
            if verdict != "ok":
                raise sqlite3.DatabaseError(f"it is damaged ({verdict})")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute(f"PRAGMA wal_autocheckpoint = {JOURNAL_PAGES}")
        db.execute("PRAGMA secure_delete = FAST")  # what was sent is not left in free pages
        self._limit(db)

    def _reserve(self) -> None:
        """Takes the room that `_relieve` gives back; without it where there is none."""
        path = self._reserve_path
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError:
            return
        try:
            os.posix_fallocate(fd, 0, RESERVE_BYTES)
        except OSError:
            try:
                os.ftruncate(fd, INDEX_BYTES)
                os.posix_fallocate(fd, 0, INDEX_BYTES)
            except OSError:
                Path(path).unlink(missing_ok=True)
        finally:
            os.close(fd)

    def _relieve(self) -> None:
        """The disk is full: empties the journal into the file, with the reserve's room."""
        now_ns = monotonic_ns()
        if now_ns < self._relieved_ns + RELIEF_NS:
            return
        self._relieved_ns = now_ns
        with contextlib.suppress(OSError):
            Path(self._reserve_path).unlink(missing_ok=True)
        with contextlib.suppress(sqlite3.Error):
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        self._reserve()

    def _limit(self, db: sqlite3.Connection) -> None:
        pages = self.bytes_max // PAGE_BYTES or 0xFFFF_FFFE
        db.execute(f"PRAGMA max_page_count = {pages}")

    def _close_files(self) -> None:
        if hasattr(self, "_db"):
            self._db.close()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    # The thread.

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            # Nobody may wait for a thread that is no more.
            self.is_ended = True
            self._told_ill(error)
            self._refuse_all()

    def _refuse_all(self) -> None:
        """The thread has ended: tells all that wait for it."""
        jobs, self._batch = self._batch, []
        with contextlib.suppress(queue.Empty):
            while True:
                job = self._jobs.get_nowait()
                if job is not None:
                    jobs.append(job)
        self.stats.failed += len(jobs)
        error = StoreEndedError("the spool's thread has ended")
        self._tell_soon(tell, [(job.done, error) for job in jobs if job.done is not None])

    def _tell_soon(self, function: Callable[..., object], *values: object) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits
                self._loop.call_soon_threadsafe(function, *values)

    def _work(self) -> None:
        open_ = True
        while open_:
            jobs: list[_Job] = []
            try:
                job = self._jobs.get(timeout=AGAIN_SECONDS if self._again else None)
                while job is not None and len(jobs) < BATCH_MAX:
                    jobs.append(job)
                    job = self._jobs.get_nowait()
                if job is not None:
                    jobs.append(job)
                open_ = job is not None
            except queue.Empty:
                pass
            again, self._again = self._again, []
            self._batch = [*again, *jobs]
            self._do(self._batch)
            self._batch = []
            self.stats.again = len(self._again)
            if again and not self._again:
                self._tell_soon(self.on_room)

    def _do(self, jobs: list[_Job]) -> None:
        told: list[tuple[Done, Any]] = []
        error = self._commit(jobs, told) if jobs else None
        if error is not None and _code(error) in _FULL:
            self._relieve()
        if error is not None and (len(jobs) == 1 or _code(error) == sqlite3.SQLITE_BUSY):
            for job in jobs:
                self._failed(job, error, told)
        elif error is not None:
            # One of them may be too large, or wrong: each for itself.
            for job in jobs:
                if job.must and self._again:
                    self._again.append(job)  # outcomes keep their order
                    continue
                error = self._commit([job], told)
                if error is not None:
                    self._failed(job, error, told)
        if told:
            self._tell_soon(tell, told)

    def _commit(self, jobs: list[_Job], told: list[tuple[Done, Any]]) -> Exception | None:
        """None: they are on disk, all of them. Otherwise nothing of them is."""
        begun_ns = monotonic_ns()
        stats = self.stats
        before = self._db.total_changes
        try:
            if not self._place.still_at(self.path):
                raise _GoneError("the file was removed, or another one is in its place")
            self._db.execute("BEGIN IMMEDIATE")
            outcomes = [job.op(self._db) for job in jobs]
            self._db.execute("COMMIT")
        except Exception as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            return error
        took_ns = monotonic_ns() - begun_ns
        stats.commits += 1
        stats.commit_ns += took_ns
        stats.commit_max_ns = max(stats.commit_max_ns, took_ns)
        stats.jobs += len(jobs)
        if self._failed_ns and self._db.total_changes != before:
            self._told_well()
        told += [
            (job.done, outcome)
            for job, outcome in zip(jobs, outcomes, strict=True)
            if job.done is not None
        ]
        return None

    def _told_ill(self, error: BaseException) -> None:
        if not self._failed_ns:
            self._refused = 0
            reason = str(error) or type(error).__name__
            self._tell_soon(partial(self._note, "spool failed", path=self.path, reason=reason))
        self._failed_ns = monotonic_ns()
        self._refused += 1

    def _told_well(self) -> None:
        """Something was written; said when nothing was refused for a while."""
        if monotonic_ns() - self._failed_ns >= QUIET_NS:
            self._failed_ns = 0
            facts = {"path": self.path, "refused": self._refused}
            self._tell_soon(partial(self._note, "spool is well again", **facts))

    def _failed(self, job: _Job, error: Exception, told: list[tuple[Done, Any]]) -> None:
        self._told_ill(error)
        full = _code(error) in _FULL
        if full:
            self.stats.full += 1
        else:
            self.stats.failed += 1
        if job.must and isinstance(error, sqlite3.OperationalError):
            self._again.append(job)
        elif job.done is not None:
            told.append((job.done, StoreFullError(str(error)) if full else error))


def _code(error: Exception) -> int:
    """SQLite's primary result code; 0: it has none."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF
