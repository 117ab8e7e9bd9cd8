"""What `spool.path` may name: anything else is refused, and stays as it is."""

from __future__ import annotations

import os
import sqlite3
import stat
from pathlib import Path

import pytest

from gateway.spool.place import is_spool, take_place
from gateway.spool.store import Store


def fifo(path: Path) -> None:
    os.mkfifo(path, 0o644)


def folder(path: Path) -> None:
    path.mkdir(0o755)


def link(path: Path) -> None:
    target = path.with_name("target")
    target.touch(0o644)
    path.symlink_to(target)


def database(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE t (a)")
    db.close()
    path.chmod(0o644)


def text(path: Path) -> None:
    path.write_text("a precious file\n")
    path.chmod(0o644)


def short(path: Path) -> None:
    path.write_bytes(b"SQLite format 3\0")
    path.chmod(0o644)


@pytest.mark.parametrize("make", [fifo, folder, link, database, text, short])
def test_what_is_no_spool_keeps_its_mode_and_gets_no_companions(
    tmp_path: Path, make: object
) -> None:
    path = tmp_path / "x"
    make(path)  # type: ignore[operator]
    before = {each.name: each.lstat() for each in tmp_path.iterdir()}
    with pytest.raises(OSError, match=f"spool.path {path}: it is"):
        Store(str(path)).open()
    after = {each.name: each.lstat() for each in tmp_path.iterdir()}
    assert sorted(after) == sorted(before)
    for name, was in before.items():
        assert stat.S_IMODE(after[name].st_mode) == stat.S_IMODE(was.st_mode)
        assert after[name].st_mtime_ns == was.st_mtime_ns
    assert not is_spool(str(path))


def test_an_empty_file_becomes_its_owners(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.touch(0o644)
    place = take_place(str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert place.still_at(str(path))
    path.rename(tmp_path / "y")
    assert not place.still_at(str(path))
    path.touch()
    assert not place.still_at(str(path))
