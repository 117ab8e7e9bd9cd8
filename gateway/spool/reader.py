"""Reading what is committed: a thread and a connection of its own, beside the one that writes.

In WAL mode a reader holds no writer up, so whoever asks for states and stored responses does not
stand in the way of an acceptance. A response is read in pieces, each when its client has taken the
one before: a reader that takes nothing costs one piece.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import sqlite3
import threading
from collections.abc import Callable
from typing import Any, Final

__all__ = ["BUSY_SECONDS", "Done", "Op", "Reader", "tell"]

BUSY_SECONDS: Final = 5.0  # other workers' commits take some ms each

Op = Callable[[sqlite3.Connection], Any]
Done = Callable[[Any], None]


def tell(told: list[tuple[Done, Any]]) -> None:
    """Tells outcomes, in the loop: what one of them raises is logged, and the others hear."""
    for done, outcome in told:
        try:
            done(outcome)
        except Exception as error:  # whatever it is, others wait for their answers
            message = "an outcome of the spool was not taken"
            context = {"message": message, "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)


class Reader:
    """Answers questions to the file, in the order in which they come."""

    def __init__(self, path: str) -> None:
        """Raises sqlite3.Error where the file cannot be read."""
        self._db = sqlite3.connect(
            path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            self._db.execute("PRAGMA query_only = ON")
            self._db.execute("SELECT 1 FROM request LIMIT 1").fetchone()
        except sqlite3.Error:
            self._db.close()
            raise
        self._asked: queue.SimpleQueue[tuple[Op, Done] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begins to answer, in that loop."""
        run = threading.Thread(target=self._run, args=(loop,), name="spool-read", daemon=True)
        self._thread = run
        run.start()

    def ask(self, op: Op, done: Done) -> None:
        """Has `op` done and `done` told, in the loop, what it returned, or the exception."""
        self._asked.put((op, done))

    def stop(self) -> None:
        """Answers what was asked, and closes. Blocks."""
        if self._thread is not None:
            self._asked.put(None)
            self._thread.join()
            self._thread = None
        self._db.close()

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        while True:
            asked = self._asked.get()
            if asked is None:
                return
            op, done = asked
            outcome: Any
            try:
                outcome = op(self._db)
            except Exception as error:  # the asker is told, whatever it is
                outcome = error
            with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits
                loop.call_soon_threadsafe(tell, [(done, outcome)])
            del asked, op, done, outcome  # a thread that waits holds nothing
