"""The file and its thread: what was told is on disk, whatever happens afterwards."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fakes.stores import done, held_by_another, request, run

from gateway.spool import tables
from gateway.spool.record import Kept, Result, State
from gateway.spool.store import Store, StoreFullError


def test_a_request_is_kept_as_it_came_over_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    new = request()

    async def keep(store: Store) -> Kept:
        kept: Kept = await done(store, lambda db: tables.insert(db, new))
        return kept

    kept = run(path, keep)
    assert kept == Kept(1, new.token, True, True)
    store = Store(str(path))
    (entry,) = store.open()
    assert (entry.number, entry.upstream, entry.expires_ms) == (1, "api", 10_000)
    (stored,) = tables.load(store._db, [1, 2])
    assert (stored.method, stored.target, stored.body) == (b"POST", b"/a", b"hello")
    assert stored.fields == new.fields
    asyncio.run(store.close())


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm", ".lock", ".reserve"])
def test_only_its_owner_can_read_it(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "spool.db"
    path.touch(0o644)

    async def mode(store: Store) -> int:
        await done(store, lambda db: tables.insert(db, request()))
        return stat.S_IMODE(Path(str(path) + suffix).stat().st_mode)

    assert run(path, mode) == 0o600


def test_the_second_use_of_a_key_is_the_first_ones_record(tmp_path: Path) -> None:
    first = request(b"k")

    async def twice(store: Store) -> list[Kept]:
        others = [
            request(b"k"),
            request(b"k", fingerprint=b"g"),
            request(b"k", client="d"),
            request(b"k", upstream="other"),
        ]
        return [await done(store, lambda db, n=n: tables.insert(db, n)) for n in (first, *others)]

    kept = run(tmp_path / "s", twice)
    assert [(k.is_new, k.is_same) for k in kept] == [
        (True, True), (False, True), (False, False), (True, True), (True, True),
    ]  # fmt: skip
    assert kept[1].token == first.token


def test_many_at_once_are_few_commits(tmp_path: Path) -> None:
    async def many(store: Store) -> tuple[int, int]:
        ops = [done(store, lambda db: tables.insert(db, request())) for _ in range(500)]
        await asyncio.gather(*ops)
        return store.stats.jobs, store.stats.commits

    jobs, commits = run(tmp_path / "s", many)
    assert jobs == 500
    assert commits < 250


def test_a_full_file_refuses_and_keeps_what_it_has(tmp_path: Path) -> None:
    async def fill(store: Store) -> tuple[int, Any, list[Any]]:
        kept = 0
        while True:
            new = request(body=bytes(10_000))
            outcome = await done(store, lambda db, new=new: tables.insert(db, new))
            if isinstance(outcome, StoreFullError):
                break
            kept += 1
        result = Result(200, [], b"", 0, 0, is_cut=False)
        freed = await done(store, lambda db: tables.succeed(db, 1, b"", result, 5, 6), must=True)
        rows = await done(store, lambda db: tables.listed(db, list(State), "", 0, 1000))
        return kept, freed, rows

    kept, freed, rows = run(tmp_path / "s", fill, bytes_max=512 * 1024)
    assert kept > 10
    assert freed is None
    assert len(rows) == kept
    assert rows[0].state is State.DONE


def test_an_outcome_waits_for_room(tmp_path: Path) -> None:
    async def wait(store: Store) -> int:
        await done(store, lambda db: tables.insert(db, request()))
        store.set_bytes_max(4096)
        result = Result(200, [], bytes(300_000), 0, 0, is_cut=False)
        loop = asyncio.get_running_loop()
        outcome = loop.create_future()
        store.submit(
            lambda db: tables.succeed(db, 1, b"", result, 5, 6), outcome.set_result, must=True
        )
        async with asyncio.timeout(10):
            while not store.stats.again:
                await asyncio.sleep(0.005)
        assert not outcome.done()
        store.set_bytes_max(0)
        await asyncio.wait_for(outcome, 10)
        return store.stats.full

    assert run(tmp_path / "s", wait) >= 1


def test_one_bad_op_spoils_no_other(tmp_path: Path) -> None:
    def wrong(db: sqlite3.Connection) -> None:
        db.execute("SELECT nothing FROM nowhere")

    async def both(store: Store) -> list[Any]:
        return await asyncio.gather(
            done(store, lambda db: tables.insert(db, request())),
            done(store, wrong),
            done(store, lambda db: tables.insert(db, request())),
        )

    first, bad, last = run(tmp_path / "s", both)
    assert isinstance(bad, sqlite3.OperationalError)
    assert (first.number, last.number) == (1, 2)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"this is no database at all" * 100, "not a database"),
        (b"SQLite format 3\0" + bytes(4080), ""),
    ],
)
def test_a_file_that_is_no_spool_is_left_as_it_is(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "spool.db"
    path.write_bytes(content)
    with pytest.raises(OSError, match="the file is left as it is") as caught:
        Store(str(path)).open()
    assert str(path) in str(caught.value)
    assert why in str(caught.value)
    assert path.read_bytes() == content


def test_another_programs_database_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE t (a)")
    db.close()
    with pytest.raises(OSError, match="no spool of this version"):
        Store(str(path)).open()


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"

    async def fill(store: Store) -> None:
        for _ in range(50):
            await done(store, lambda db: tables.insert(db, request(body=bytes(2000))))

    run(path, fill)
    content = bytearray(path.read_bytes())
    content[4096 : 3 * 4096] = os.urandom(2 * 4096)
    path.write_bytes(content)
    with pytest.raises(OSError, match=str(path)):
        Store(str(path)).open()


def test_two_processes_do_not_share_a_workers_part(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    with held_by_another(path):
        with pytest.raises(OSError, match="another process uses it"):
            Store(str(path), lock_wait_ns=0).open()
        sibling = Store(str(path), owner=1, workers=2)
        assert sibling.open() == []
        asyncio.run(sibling.close())


def test_siblings_that_start_together_make_one_file(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    code = (
        "import sys; from gateway.spool.store import Store\nsys.stdin.read(1)\n"
        f"Store({str(path)!r}, int(sys.argv[1]), 4).open(); print('open', flush=True)"
    )
    crew = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(number)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for number in range(4)
    ]  # fmt: skip
    for process in crew:
        assert process.stdin is not None
        process.stdin.write("x")
        process.stdin.flush()
    assert [process.communicate()[0] for process in crew] == ["open\n"] * 4


def test_the_first_worker_takes_what_a_larger_crew_left(tmp_path: Path) -> None:
    path = tmp_path / "s"
    new = request(owner=3)

    async def keep(store: Store) -> None:
        await done(store, lambda db: tables.insert(db, new))

    run(path, keep, owner=3, workers=4)
    second = Store(str(path), owner=1, workers=2)
    assert second.open() == []
    first = Store(str(path), owner=0, workers=2)
    assert [entry.number for entry in first.open()] == [1]
    asyncio.run(first.close())
    asyncio.run(second.close())


def test_a_broken_off_body_is_taken_out_at_the_next_start(tmp_path: Path) -> None:
    async def part(store: Store) -> None:
        await done(store, lambda db: tables.put_part(db, b"t", tables.REQUEST, 0, 0, b"data"))

    async def parts(store: Store) -> int:
        rows = await done(store, lambda db: db.execute("SELECT count(*) FROM part").fetchone())
        return int(rows[0])

    run(tmp_path / "s", part)
    assert run(tmp_path / "s", parts) == 0


def test_a_done_request_keeps_no_credential(tmp_path: Path) -> None:
    path = tmp_path / "s"
    new = request(fields=[(b"Authorization", b"Bearer of-great-value")], body=b"private-body")

    async def finish(store: Store) -> None:
        kept = await done(store, lambda db: tables.insert(db, new))
        result = Result(200, [(b"X", b"y")], b"ok", 0, 2, is_cut=False)
        await done(store, lambda db: tables.succeed(db, kept.number, new.token, result, 5, 9))

    run(path, finish)
    content = path.read_bytes()
    assert b"of-great-value" not in content
    assert b"private-body" not in content


def test_dead_letters_come_back_and_results_go(tmp_path: Path) -> None:
    async def live(store: Store) -> list[Any]:
        await done(store, lambda db: tables.insert(db, request()))
        await done(store, lambda db: tables.bury(db, 1, "attempts", 8, 503, 50, 100))
        first = await done(store, lambda db: tables.requeue(db, 1, 99))
        again = await done(store, lambda db: tables.requeue(db, 1, 99))
        await done(store, lambda db: tables.bury(db, 1, "expired", 0, 0, 50, 100))
        early = await done(store, lambda db: tables.purge(db, 99))
        (row,) = await done(store, lambda db: tables.listed(db, [State.DEAD], "api", 0, 9))
        late = await done(store, lambda db: tables.purge(db, 100))
        return [first.expires_ms, again, early, row.reason, row.last_status, late]

    assert run(tmp_path / "s", live) == [99, None, 0, "expired", 503, 1]


KILLED = """
import asyncio, secrets, sys
sys.path.insert(0, {folder!r})
from gateway.spool import tables
from gateway.spool.store import Store
from fakes.stores import request

async def main():
    store = Store({path!r})
    store.open()
    store.start(asyncio.get_running_loop())
    def keep():
        new = request()
        store.submit(lambda db: tables.insert(db, new), lambda kept: (told(new), keep()))
    def told(new):
        sys.stdout.write(new.token.hex() + "\\n")
        sys.stdout.flush()
    for _ in range(20):
        keep()
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.parametrize("lines", [1, 40, 400])
def test_what_was_told_outlives_a_kill(tmp_path: Path, lines: int) -> None:
    path = tmp_path / "s"
    code = KILLED.format(folder=str(Path(__file__).parents[2]), path=str(path))
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        told = [process.stdout.readline() for _ in range(lines)]
        process.send_signal(signal.SIGKILL)
        told += process.stdout.readlines()
    tokens = {bytes.fromhex(line) for line in told if line.endswith("\n")}
    assert len(tokens) >= lines
    store = Store(str(path))
    entries = store.open()
    kept = {stored.token for stored in tables.load(store._db, [e.number for e in entries])}
    assert tokens <= kept
    asyncio.run(store.close())
