"""What a process sets for itself before it serves: its memory, its files, its log, its end."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import signal
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any

# To draw tracebacks for a terminal structlog takes rich wherever it is: an eighth of a start, for
# nothing that a daemon does. None says that there is no such module (language reference 5.3.1).
_without_rich = "rich" not in sys.modules
if _without_rich:
    sys.modules["rich"] = None  # type: ignore[assignment]
import structlog  # noqa: E402

if _without_rich:
    del sys.modules["rich"]

__all__ = [
    "ServeError",
    "configure_log",
    "end_of_signals",
    "favour_loop",
    "logger",
    "raise_file_limit",
    "reason_of",
    "tune_memory",
]

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

M_MMAP_THRESHOLD = -3  # mallopt(3)
MMAP_THRESHOLD_BYTES = 128 * 1024  # glibc's initial value, which setting it keeps
SWITCH_SECONDS = 0.00005  # what the kernel adds to a wait anyway (timer slack, prctl(2))


class ServeError(Exception):
    """The node cannot start: an address is taken, a file is not readable. The text says which."""


def reason_of(error: OSError | ImportError) -> str:
    """The text of an error, without the number that the operating system has for it."""
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)


def tune_memory() -> None:
    """Sets the allocator and the collector for a process that holds many connections for long.

    glibc raises its mmap threshold when a large block is freed; the 256 KiB that the loop takes per
    TLS connection then come from the heap and stay resident (47 KiB an idle connection; 24 with the
    threshold fixed). What is loaded by now never becomes garbage: the collector need not look at it
    again, nor look every 700 objects (3 us of 55 per request).
    """
    with contextlib.suppress(OSError, AttributeError):  # another libc has another allocator
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def favour_loop() -> None:
    """Has threads hand the interpreter back to the loop soon.

    The loop lets go of it at each wait and, with uvloop, between any two callbacks; a thread that
    computes then keeps it for the switch interval. With CPython's 5 ms the loop gets 200 callbacks
    a second while a file of 10,000 routes is judged beside it, for 0.3 s, and at 1,000 requests/s
    some were held up for 200 ms; with 0.05 ms for 18. What it costs, a switch of some microseconds
    each, is paid only while a thread has something to compute.
    """
    sys.setswitchinterval(SWITCH_SECONDS)


def logger(**facts: object) -> Any:
    """The process's log; each line has these facts too."""
    return structlog.get_logger(**facts)


def configure_log(level: str) -> None:
    """Process log: one JSON object a line on standard error."""
    import logging

    def in_order(_: object, __: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
        """When, how grave and what come first in a line; the facts follow."""
        first = {key: event.pop(key) for key in ("timestamp", "level", "event")}
        return {**first, **event}

    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            in_order,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        # Line and end in one write: the workers of a node share this descriptor.
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


def end_of_signals() -> None:
    """What is still to be done is bounded: a signal that comes now must not kill the process when
    the loop, as it closes, brings the default actions back."""
    loop = asyncio.get_running_loop()
    for number in SIGNALS:
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_IGN)


def raise_file_limit() -> int:
    """Raises the soft limit of open files to the hard one; returns it."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
