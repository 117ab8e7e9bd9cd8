"""The spool's tables, and what is done in them: each function is a part of a transaction.

A record is one row. Long bodies stand in `part`, in pieces that may be committed before their
record is: what a crash leaves of those is taken out at the next start. The rows of a node's workers
are in one file, each row with the number of the worker that sends it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import Any

from gateway.spool.record import (
    Answer,
    Entry,
    Kept,
    NewRequest,
    Result,
    State,
    Stored,
    Told,
    pack_fields,
    unpack_fields,
)

__all__ = [
    "APPLICATION_ID",
    "REQUEST",
    "RESPONSE",
    "VERSION",
    "adopt",
    "answer",
    "begin",
    "body",
    "bury",
    "create",
    "dead_count",
    "drop",
    "fail",
    "forget_parts",
    "has_records",
    "insert",
    "listed",
    "load",
    "part",
    "pauses",
    "purge",
    "put_part",
    "requeue",
    "set_pause",
    "succeed",
    "told",
    "unfinished",
]

APPLICATION_ID = 0x45475350  # "EGSP": the file is a spool and no other program's database
VERSION = 1
REQUEST, RESPONSE = 0, 1  # kinds of parts
_PURGED_AT_ONCE = 500  # rows, so that acceptances wait some ms at most

_SCHEMA = """
CREATE TABLE request (
  number INTEGER PRIMARY KEY AUTOINCREMENT, token BLOB NOT NULL UNIQUE, owner INTEGER NOT NULL,
  upstream TEXT NOT NULL, client TEXT NOT NULL, source TEXT NOT NULL,
  idempotency_key BLOB NOT NULL, fingerprint BLOB NOT NULL, lane BLOB NOT NULL,
  state INTEGER NOT NULL,
  method BLOB NOT NULL, host BLOB NOT NULL, target BLOB NOT NULL, fields BLOB NOT NULL,
  body BLOB NOT NULL, parts INTEGER NOT NULL, body_bytes INTEGER NOT NULL,
  accepted_ms INTEGER NOT NULL, expires_ms INTEGER NOT NULL,
  attempts INTEGER NOT NULL DEFAULT 0, first_ms INTEGER NOT NULL DEFAULT 0,
  last_ms INTEGER NOT NULL DEFAULT 0, last_status INTEGER NOT NULL DEFAULT 0,
  reason TEXT NOT NULL DEFAULT '', finished_ms INTEGER NOT NULL DEFAULT 0, purge_ms INTEGER,
  result_fields BLOB NOT NULL DEFAULT x'', result_body BLOB NOT NULL DEFAULT x'',
  result_parts INTEGER NOT NULL DEFAULT 0, result_bytes INTEGER NOT NULL DEFAULT 0,
  result_is_cut INTEGER NOT NULL DEFAULT 0);
CREATE UNIQUE INDEX request_key ON request (upstream, client, idempotency_key);
CREATE INDEX request_state ON request (state, number);
CREATE INDEX request_purge ON request (purge_ms) WHERE purge_ms IS NOT NULL;
CREATE TABLE part (
  token BLOB NOT NULL, kind INTEGER NOT NULL, number INTEGER NOT NULL, owner INTEGER NOT NULL,
  data BLOB NOT NULL, PRIMARY KEY (token, kind, number));
CREATE TRIGGER request_gone AFTER DELETE ON request BEGIN
  DELETE FROM part WHERE token = OLD.token;
END;
CREATE TABLE pause (upstream TEXT PRIMARY KEY);
"""

_TOLD = (
    "number, token, upstream, client, state, method, target, body_bytes, accepted_ms, expires_ms, "
    "attempts, first_ms, last_ms, last_status, reason, finished_ms, result_bytes, result_is_cut, "
    "owner"
)

Db = sqlite3.Connection


def create(db: Db) -> None:
    """Makes the tables in an empty file."""
    db.executescript(
        f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA application_id = {APPLICATION_ID}; "
        f"PRAGMA user_version = {VERSION}; COMMIT;"
    )


def adopt(db: Db, owner: int, workers: int) -> None:
    """What another number of workers has left is the first worker's; broken-off bodies go."""
    if not owner:
        db.execute("UPDATE request SET owner = 0 WHERE owner >= ?", (workers,))
        db.execute("UPDATE part SET owner = 0 WHERE owner >= ?", (workers,))
    db.execute(
        "DELETE FROM part WHERE owner = ? AND token NOT IN (SELECT token FROM request)", (owner,)
    )
    # Of a response that was being stored there is no record.
    db.execute(
        "DELETE FROM part WHERE kind = ? AND token IN"
        " (SELECT token FROM request WHERE state IN (0, 1) AND owner = ?)",
        (RESPONSE, owner),
    )
    db.execute("UPDATE request SET state = 0 WHERE state = 1 AND owner = ?", (owner,))


def unfinished(db: Db, owner: int, workers: int) -> list[Entry]:
    """All that is still to be sent by that worker, in the order of acceptance; by the first one
    what a larger crew has left, too: `adopt` may have found no room to write that down."""
    found = []
    rows = db.execute(
        "SELECT number, upstream, lane, accepted_ms, expires_ms, body_bytes, attempts, first_ms"
        " FROM request WHERE state IN (0, 1) AND (owner = ?1 OR (?1 = 0 AND owner >= ?2))"
        " ORDER BY number",
        (owner, workers),
    )
    for *facts, attempts, first_ms in rows:
        entry = Entry(*facts)
        entry.attempts = attempts
        entry.first_ms = first_ms
        found.append(entry)
    return found


def has_records(db: Db) -> bool:
    """Whether anything is kept, of whatever state and worker."""
    return db.execute("SELECT 1 FROM request LIMIT 1").fetchone() is not None


def insert(db: Db, new: NewRequest) -> Kept:
    """Keeps a request, unless one of the same client and Idempotency-Key is kept already."""
    cursor = db.execute(
        "INSERT INTO request (token, owner, upstream, client, source, idempotency_key, fingerprint,"
        " lane, state, method, host, target, fields, body, parts, body_bytes, accepted_ms,"
        " expires_ms)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (upstream, client, idempotency_key) DO NOTHING",
        (*new[:11], pack_fields(new.fields), *new[12:]),
    )
    if cursor.rowcount:
        return Kept(cursor.lastrowid or 0, new.token, is_new=True, is_same=True)
    number, token, fingerprint = db.execute(
        "SELECT number, token, fingerprint FROM request"
        " WHERE upstream = ? AND client = ? AND idempotency_key = ?",
        (new.upstream, new.client, new.idempotency_key),
    ).fetchone()
    if new.parts:
        forget_parts(db, new.token, REQUEST)
    return Kept(number, token, is_new=False, is_same=fingerprint == new.fingerprint)


def put_part(db: Db, token: bytes, kind: int, number: int, owner: int, data: bytes) -> None:
    """One piece of a long body."""
    db.execute("INSERT INTO part VALUES (?, ?, ?, ?, ?)", (token, kind, number, owner, data))


def forget_parts(db: Db, token: bytes, kind: int) -> None:
    """The body was broken off."""
    db.execute("DELETE FROM part WHERE token = ? AND kind = ?", (token, kind))


def load(db: Db, numbers: Iterable[int]) -> list[Stored]:
    """What is needed to send these; those that are gone are not among them."""
    found = []
    for number in numbers:
        row = db.execute(
            "SELECT number, token, client, source, idempotency_key, method, host, target, fields,"
            " body, parts, body_bytes FROM request WHERE number = ? AND state IN (0, 1)",
            (number,),
        ).fetchone()
        if row is not None:
            found.append(Stored._make((*row[:8], unpack_fields(row[8]), *row[9:])))
    return found


def body(db: Db, token: bytes, kind: int) -> list[bytes]:
    """All pieces of a long body."""
    rows = db.execute(
        "SELECT data FROM part WHERE token = ? AND kind = ? ORDER BY number", (token, kind)
    )
    return [data for (data,) in rows]


def part(db: Db, token: bytes, kind: int, number: int) -> bytes | None:
    """One piece of a long body; None: it is gone."""
    row = db.execute(
        "SELECT data FROM part WHERE token = ? AND kind = ? AND number = ?", (token, kind, number)
    ).fetchone()
    return row[0] if row is not None else None


def begin(db: Db, number: int, now_ms: int) -> None:
    """It is being sent."""
    db.execute(
        "UPDATE request SET state = 1, last_ms = ?1,"
        " first_ms = CASE first_ms WHEN 0 THEN ?1 ELSE first_ms END WHERE number = ?2",
        (now_ms, number),
    )


def fail(db: Db, number: int, attempts: int, status: int) -> None:
    """A send did not succeed and will be repeated; `status` 0 keeps the last one."""
    db.execute(
        "UPDATE request SET state = 0, attempts = ?1,"
        " last_status = CASE ?2 WHEN 0 THEN last_status ELSE ?2 END WHERE number = ?3",
        (attempts, status, number),
    )


def succeed(db: Db, number: int, token: bytes, result: Result, now_ms: int, purge_ms: int) -> None:
    """The upstream has done its work: what was sent, and its credential, is kept no longer."""
    db.execute(
        "UPDATE request SET state = 2, fields = x'', body = x'', parts = 0, last_status = ?,"
        " result_fields = ?, result_body = ?, result_parts = ?, result_bytes = ?,"
        " result_is_cut = ?, finished_ms = ?, purge_ms = ? WHERE number = ?",
        (
            result.status,
            pack_fields(result.fields),
            result.body,
            result.parts,
            result.body_bytes,
            result.is_cut,
            now_ms,
            purge_ms,
            number,
        ),
    )
    forget_parts(db, token, REQUEST)


def bury(
    db: Db, number: int, reason: str, attempts: int, status: int, now_ms: int, purge_ms: int
) -> None:
    """It is given up: a dead letter, complete, so that it can be queued again."""
    db.execute(
        "UPDATE request SET state = 3, reason = ?1, attempts = ?2, finished_ms = ?4,"
        " last_status = CASE ?3 WHEN 0 THEN last_status ELSE ?3 END, purge_ms = ?5"
        " WHERE number = ?6 AND state IN (0, 1)",
        (reason, attempts, status, now_ms, purge_ms, number),
    )


def requeue(db: Db, number: int, expires_ms: int) -> Entry | None:
    """A dead letter is to be sent again, with all its attempts; None: there is no such."""
    row = db.execute(
        "UPDATE request SET state = 0, reason = '', attempts = 0, finished_ms = 0, purge_ms = NULL,"
        " expires_ms = ? WHERE number = ? AND state = 3"
        " RETURNING upstream, lane, accepted_ms, body_bytes, first_ms",
        (expires_ms, number),
    ).fetchone()
    if row is None:
        return None
    upstream, lane, accepted_ms, body_bytes, first_ms = row
    entry = Entry(number, upstream, lane, accepted_ms, expires_ms, body_bytes)
    entry.first_ms = first_ms
    return entry


def drop(db: Db, number: int) -> bool:
    """Takes a record out; False: there is none."""
    return bool(db.execute("DELETE FROM request WHERE number = ?", (number,)).rowcount)


def purge(db: Db, now_ms: int) -> int:
    """Takes out what was kept long enough; says how many, at most 500 at a time."""
    return db.execute(
        "DELETE FROM request WHERE number IN"
        " (SELECT number FROM request WHERE purge_ms <= ? LIMIT ?)",
        (now_ms, _PURGED_AT_ONCE),
    ).rowcount


def told(db: Db, token: bytes) -> Told | None:
    """What is told of a record."""
    row = db.execute(f"SELECT {_TOLD} FROM request WHERE token = ?", (token,)).fetchone()  # noqa: S608 (our own words)
    return _told(row) if row is not None else None


def listed(db: Db, states: Iterable[State], upstream: str, after: int, count: int) -> list[Told]:
    """At most `count` records of those states with numbers above `after`; "" is any upstream."""
    wanted = ", ".join(str(int(state)) for state in states)
    rows = db.execute(
        f"SELECT {_TOLD} FROM request WHERE state IN ({wanted}) AND number > ?1"  # noqa: S608 (integers)
        " AND (?2 = '' OR upstream = ?2) ORDER BY number LIMIT ?3",
        (after, upstream, count),
    )
    return [_told(row) for row in rows]


def _told(row: tuple[Any, ...]) -> Told:
    return Told._make((*row[:4], State(row[4]), *row[5:17], bool(row[17]), row[18]))


def answer(db: Db, token: bytes) -> Answer | None:
    """The stored response of a record; what has parts is read with `part`."""
    row = db.execute(
        "SELECT client, state, last_status, result_fields, result_body, result_parts, result_bytes,"
        " finished_ms FROM request WHERE token = ?",
        (token,),
    ).fetchone()
    if row is None:
        return None
    return Answer(row[0], State(row[1]), row[2], unpack_fields(row[3]), *row[4:])


def dead_count(db: Db) -> int:
    """How many dead letters there are, of all workers."""
    return int(db.execute("SELECT count(*) FROM request WHERE state = 3").fetchone()[0])


def set_pause(db: Db, upstream: str, paused: bool) -> None:
    """Whether an operator has stopped the sending to an upstream."""
    if paused:
        db.execute("INSERT OR IGNORE INTO pause VALUES (?)", (upstream,))
    else:
        db.execute("DELETE FROM pause WHERE upstream = ?", (upstream,))


def pauses(db: Db) -> set[str]:
    """The upstreams that an operator has stopped."""
    return {upstream for (upstream,) in db.execute("SELECT upstream FROM pause")}
