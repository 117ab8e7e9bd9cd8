"""What goes wrong with the file: everybody is answered, it is said once, and a start goes on."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes.origin import Origin
from fakes.spooled import Spooled
from fakes.stores import done, held_by_another, request, run

from gateway.spool import store as store_module
from gateway.spool import tables
from gateway.spool.store import Store, StoreEndedError, StoreFullError

Make = Callable[..., tuple[Spooled, Origin]]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    if os.geteuid():
        pytest.skip("only root mounts")
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["/bin/mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["/bin/umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """A file that has all the room there is."""
    path = folder / "ballast"
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return path


@pytest.mark.parametrize("reserve", [True, False])
def test_it_starts_on_a_full_disk(small_disk: Path, reserve: bool) -> None:
    path = small_disk / "s"

    async def keep(store: Store) -> None:
        await done(store, lambda db: tables.insert(db, request(owner=3)))
        await done(store, lambda db: tables.insert(db, request(owner=0)))
        await done(store, lambda db: tables.begin(db, 2, 5))
        if not reserve:  # it was given back before, and others took the room
            (small_disk / "s.reserve").unlink()
            fill(small_disk)

    run(path, keep, owner=0, workers=4)
    ballast = fill(small_disk)

    async def again(store: Store) -> tuple[list[int], list[Any]]:
        outcomes = []
        for _ in range(100):  # what the reserve gave, if it did, is used up by these
            new = request(body=bytes(60_000))
            outcomes.append(await done(store, lambda db, new=new: tables.insert(db, new)))
            if isinstance(outcomes[-1], StoreFullError):
                break
        found = await done(store, lambda db: tables.unfinished(db, 0, 2))
        ballast.unlink()
        outcomes.append(await done(store, lambda db: tables.insert(db, request())))
        return [entry.number for entry in found], outcomes

    numbers, outcomes = run(path, again, workers=2)
    assert numbers[:2] == [1, 2]
    assert isinstance(outcomes[-2], StoreFullError)
    assert outcomes[-1].is_new


def test_an_op_that_raises_anything_is_answered(tmp_path: Path) -> None:
    def wrong(_: sqlite3.Connection) -> None:
        raise KeyError("anything")

    async def three(store: Store) -> list[Any]:
        return await asyncio.gather(
            done(store, lambda db: tables.insert(db, request())),
            done(store, wrong),
            done(store, lambda db: tables.insert(db, request())),
            done(store, wrong, must=True),
        )

    first, bad, last, must = run(tmp_path / "s", three)
    assert isinstance(bad, KeyError)
    assert isinstance(must, KeyError)
    assert {first.number, last.number} == {1, 2}


def test_a_thread_that_ends_leaves_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted: list[tuple[str, dict[str, object]]] = []

    async def end(store: Store) -> list[Any]:
        def dies(jobs: object) -> None:
            raise MemoryError("no more")

        monkeypatch.setattr(store, "_do", dies)
        outcomes = await asyncio.gather(
            *[done(store, lambda db: tables.insert(db, request())) for _ in range(3)]
        )
        assert store.is_ended
        outcomes.append(await done(store, lambda db: tables.insert(db, request()), must=True))
        return outcomes

    outcomes = run(tmp_path / "s", end, note=lambda event, **facts: noted.append((event, facts)))
    assert [type(outcome) for outcome in outcomes] == [StoreEndedError] * 4
    assert [event for event, _ in noted] == ["spool failed"]
    assert noted[0][1]["reason"] == "no more"


def test_one_outcome_that_is_not_taken_keeps_no_other_waiting(tmp_path: Path) -> None:
    async def work(store: Store) -> list[str]:
        said: list[str] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: said.append(context["message"]))

        def raises(_: object) -> None:
            raise AttributeError

        store.submit(lambda db: None, raises)
        await done(store, lambda db: None)
        return said

    assert run(tmp_path / "s", work) == ["an outcome of the spool was not taken"]


def test_a_failure_is_said_once_and_its_end_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "QUIET_NS", 0)
    noted: list[tuple[str, dict[str, object]]] = []

    async def work(store: Store) -> None:
        store.set_bytes_max(4096)
        for _ in range(5):
            large = request(body=bytes(50_000))
            outcome = await done(store, lambda db, new=large: tables.insert(db, new))
            assert isinstance(outcome, StoreFullError)
            await done(store, lambda db: tables.dead_count(db))  # writes nothing, proves nothing
        store.set_bytes_max(0)
        await done(store, lambda db: tables.insert(db, request()))

    run(tmp_path / "s", work, note=lambda event, **facts: noted.append((event, facts)))
    assert [event for event, _ in noted] == ["spool failed", "spool is well again"]
    assert "full" in str(noted[0][1]["reason"])
    assert noted[1][1]["refused"] == 5


def test_a_file_that_was_removed_takes_nothing(make: Make, tmp_path: Path) -> None:
    gateway, _ = make()
    gateway.until_state(gateway.post().value(b"location"), "done")
    (tmp_path / "spool.db").rename(tmp_path / "elsewhere")
    refused = gateway.post()
    assert refused.status == 503
    assert gateway.post(asks=False).status == 200
    lines = [line for line in gateway.server.recent if line["event"] == "spool failed"]
    assert len(lines) == 1
    assert lines[0]["level"] == "warning"
    assert "removed" in lines[0]["facts"]["reason"]
    (tmp_path / "elsewhere").rename(tmp_path / "spool.db")
    assert gateway.post().status == 202


def test_who_waits_for_another_process_says_so_at_once(tmp_path: Path) -> None:
    noted: list[str] = []
    path = tmp_path / "s"
    with held_by_another(path), pytest.raises(OSError, match="another process uses it"):
        Store(str(path), lock_wait_ns=10**8, note=lambda event, **_: noted.append(event)).open()
    assert noted == ["spool is used by another process"]
