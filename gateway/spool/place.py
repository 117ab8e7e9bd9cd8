"""The file that `spool.path` names: whether it can be a spool, judged before anything is changed.

A path that is wrong may name anything: a device, another program's database. What is neither empty
nor a spool keeps its mode and gets no companions.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final, NamedTuple

from gateway.spool import tables

__all__ = ["Place", "is_spool", "take_place"]

_MAGIC: Final = b"SQLite format 3\0"
# https://www.sqlite.org/fileformat2.html#the_database_header: "user version" and "application ID"
_HEADER_BYTES: Final = 100
_VERSION_AT: Final = 60
_APPLICATION_AT: Final = 68
_FLAGS: Final = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class Place(NamedTuple):
    """Which file stood at a path."""

    device: int
    inode: int

    def still_at(self, path: str) -> bool:
        """Whether the path names this file now. It is not opened: closing it would end the locks
        that SQLite holds on it (fcntl(2), POSIX locks are the process's)."""
        try:
            found = Path(path).stat()
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == self


def take_place(path: str) -> Place:
    """Makes the file where there is none; where it is empty or a spool, only its owner can read it
    from now on. Raises OSError, with nothing changed."""
    _judge_kind(path)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | _FLAGS, 0o600)
    try:
        found = os.fstat(fd)
        _judge(found)  # it may be another one than was looked at
        header = os.read(fd, _HEADER_BYTES)
        if header and not _is_ours(header):
            # A crash while the tables were made: SQLite takes back what is there.
            if not Path(path + "-journal").exists():
                _refuse(header)
        else:
            os.fchmod(fd, 0o600)
        return Place(found.st_dev, found.st_ino)
    finally:
        os.close(fd)


def is_spool(path: str) -> bool:
    """Whether there is a spool that can be read; nothing is changed."""
    try:
        _judge_kind(path)
        fd = os.open(path, os.O_RDONLY | _FLAGS)
    except OSError:
        return False
    try:
        return _is_ours(os.read(fd, _HEADER_BYTES))
    except OSError:
        return False
    finally:
        os.close(fd)


def _judge_kind(path: str) -> None:
    """Before it is opened: opening a device or a FIFO is an act already. Raises OSError."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    _judge(found)


def _judge(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise OSError(0, "it is no regular file; it is left as it is")


def _is_ours(header: bytes) -> bool:
    return (
        len(header) == _HEADER_BYTES
        and header.startswith(_MAGIC)
        and _number(header, _APPLICATION_AT) == tables.APPLICATION_ID
        and _number(header, _VERSION_AT) == tables.VERSION
    )


def _refuse(header: bytes) -> None:
    what = "no spool of this version" if header.startswith(_MAGIC) else "not a database"
    raise OSError(0, f"it is {what}; the file is left as it is")


def _number(header: bytes, at: int) -> int:
    return int.from_bytes(header[at : at + 4])
