"""`egressd ctl spool` on a node with two workers: one spool, whichever of them stored a request."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from fakes.nodes import NodeProcess, until
from fakes.origin import Connection, Origin, Received

from gateway.cli import main

pytestmark = pytest.mark.e2e

MakeNode = Callable[..., NodeProcess]
MakeOrigin = Callable[..., Origin]

# An answer that is no success kills a stored request at its first attempt.
SPOOL = "[upstream.api.spool]\nattempts = 1\n"
COUNT = 24
SENT_SECONDS = 10.0


def run(node: NodeProcess, line: str) -> tuple[int, str, str]:
    """(status, output, errors) of `egressd ctl spool ...`, in this process: there are many."""
    command = ["ctl", "-c", str(node.path), "--json", "spool", *line.split()]
    done = CliRunner().invoke(main, command)
    return done.exit_code, done.stdout, done.stderr


def ctl(node: NodeProcess, line: str) -> Any:
    status, out, err = run(node, line)
    assert status == 0, err
    return json.loads(out)


def records(node: NodeProcess, line: str = "list") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ctl(node, line)["records"]
    return found


def states(node: NodeProcess) -> dict[str, int]:
    told = [record["state"] for record in records(node)]
    return {state: told.count(state) for state in set(told)}


def store(node: NodeProcess, path: str) -> int:
    """The status of a request that may wait, on a connection of its own: any worker's."""
    with socket.create_connection(node.address, timeout=10) as sock:
        head = f"POST {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
        sock.sendall(f"{head}Prefer: respond-async\r\nContent-Length: 2\r\n\r\nhi".encode())
        return int(sock.makefile("rb").read().split(b" ", 2)[1])


def test_the_spool_of_two_workers_is_one(
    node: MakeNode, make_origin: MakeOrigin, tmp_path: Path
) -> None:
    failing = {b"/3", b"/4"}

    async def script(connection: Connection, request: Received) -> bool:
        status = b"500 No" if request.target in failing else b"200 OK"
        await connection.send(b"HTTP/1.1 %b\r\nContent-Length: 0\r\n\r\n" % status)
        return True

    origin = make_origin(script)
    settings = ("node.workers=2", f'spool.path="{tmp_path}/spool.db"')
    process = node(origin, SPOOL, settings=settings)

    told = ctl(process, "pause api")
    assert {worker["node"] for worker in told["workers"]} == {"solo/0", "solo/1"}
    assert [store(process, f"/{number}") for number in range(COUNT)] == [202] * COUNT
    # The kernel gave each connection to either worker: all to one of them once in 10^7 runs.
    assert f"egressd_spool_accepted_total {COUNT}.0" in process.ask("/metrics")[1].decode()
    queued = records(process)
    assert sorted(record["target"] for record in queued) == sorted(
        f"/{number}" for number in range(COUNT)
    )
    assert {record["state"] for record in queued} == {"queued"}
    assert not origin.requests
    # A page ends in the middle of what both have stored, and says so.
    few = ctl(process, "list api --rows 7")
    assert [record["id"] for record in few["records"]] == [r["id"] for r in queued[:7]]
    assert few["next"] is not None

    # Each is known by whichever worker is asked, and taken out by the one that has it.
    for record in queued[:6]:
        assert ctl(process, f"show {record['id']}")["target"] == record["target"]
    gone = {record["target"] for record in queued if record["target"] in ("/0", "/1", "/2", "/5")}
    for record in queued:
        if record["target"] in gone:
            ctl(process, f"drop {record['id']}")
    assert len(records(process)) == COUNT - len(gone)
    unknown = queued[0]["id"][:-32] + "0" * 32
    for verb in ("show", "drop", "requeue"):
        status, out, err = run(process, f"{verb} {unknown}")
        assert (status, out) == (1, ""), verb
        assert err.count(unknown) == 1

    ctl(process, "resume api")
    done = {"done": COUNT - len(gone) - len(failing), "dead": len(failing)}
    until(lambda: states(process) == done, SENT_SECONDS, "all are sent, once")
    sent = sorted(request.target.decode() for request in origin.requests)
    assert sent == sorted({f"/{number}" for number in range(COUNT)} - gone)

    dead = records(process, "list --state dead")
    failing.clear()
    for record in dead:
        ctl(process, f"requeue {record['id']}")
    everything = {"done": COUNT - len(gone)}
    until(lambda: states(process) == everything, SENT_SECONDS, "dead letters are sent again")
    assert len(origin.requests) == COUNT - len(gone) + len(dead)
    status, _, err = run(process, f"requeue {dead[0]['id']}")
    assert (status, "no dead letter" in err) == (1, True)
