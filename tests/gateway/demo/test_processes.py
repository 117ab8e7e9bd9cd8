"""The demo's processes: free ports, command lines, and ends that always come."""

import asyncio
import itertools
import signal
import socket
import sys
from pathlib import Path

import pytest

from gateway.conf.load import load
from gateway.demo import processes
from gateway.demo.processes import Child, Ports, SceneError, free_ports, node_command

PACKAGED = Path(processes.__file__).parent / "mesh.toml"


def test_ports_differ_and_can_be_bound() -> None:
    ports = free_ports(3)
    numbers = [number for one in ports for number in (one.listen, one.mesh, one.admin)]
    assert len(set(numbers)) == 9
    for one in ports:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
            socket.socket(socket.AF_INET, socket.SOCK_STREAM) as stream,
        ):
            datagrams.bind(("127.0.0.1", one.mesh))
            stream.bind(("127.0.0.1", one.mesh))


def test_the_command_lines_settings_are_taken_by_the_file() -> None:
    command = node_command(PACKAGED, "gw-2", Ports(1001, 1002, 1003), [1002, 1005], 2000)
    settings = [value for flag, value in itertools.pairwise(command) if flag == "--set"]
    conf = load(str(PACKAGED), settings)
    assert conf.node.name == "gw-2"
    assert conf.listen[0].bind.port == 1001
    assert conf.mesh is not None
    assert conf.mesh.bind.port == 1002
    assert [address.port for address in conf.mesh.join] == [1002, 1005]
    assert conf.admin is not None
    assert conf.admin.bind.port == 1003
    assert conf.upstream["api"].origin.port == 2000
    assert command[:4] == [sys.executable, "-m", "gateway", "run"]


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_a_child_reports_and_is_ended(tmp_path: Path) -> None:
    async def run() -> None:
        code = "import json, sys; print(json.dumps({'port': 7}), flush=True); sys.stdin.read()"
        child = Child("teller", python(code), tmp_path / "log")
        await child.start(reports=True)
        assert await child.first_report() == {"port": 7}
        child.check()
        child.ask_to_end()
        await child.ended()
        child.check()  # it was asked to

    asyncio.run(run())


def test_a_child_that_dies_is_quoted(tmp_path: Path) -> None:
    async def run() -> None:
        child = Child("loser", python("raise SystemExit('no such luck')"), tmp_path / "log")
        await child.start(reports=True)
        with pytest.raises(SceneError, match=r"loser ended with status 1:\n  no such luck"):
            await child.first_report()
        child.ask_to_end()
        await child.ended()

    asyncio.run(run())


def test_a_child_that_does_not_listen_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "STOP_SECONDS", 0.05)

    async def run() -> None:
        code = (
            "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
            "print('{}', flush=True)\n"
            "while True: signal.pause()"
        )
        child = Child("deaf", python(code), tmp_path / "log")
        await child.start(reports=True)
        await child.first_report()
        child.ask_to_end()
        await child.ended()
        assert child._process is not None
        assert child._process.returncode == -signal.SIGKILL

    asyncio.run(run())


def test_a_child_that_says_nothing_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "START_SECONDS", 0.05)

    async def run() -> None:
        child = Child("mute", python("import sys; sys.stdin.read()"), tmp_path / "log")
        await child.start(reports=True)
        with pytest.raises(SceneError, match="mute said nothing"):
            await child.first_report()
        child.ask_to_end()
        await child.ended()

    asyncio.run(run())


def test_a_child_that_was_never_started_is_ended_without_ado(tmp_path: Path) -> None:
    async def run() -> None:
        child = Child("unborn", python("pass"), tmp_path / "log")
        child.check()
        child.signal(signal.SIGHUP)
        child.ask_to_end()
        await child.ended()

    asyncio.run(run())


@pytest.mark.parametrize("module", ["gateway.demo.origin", "gateway.demo.load"])
def test_origin_and_load_end_when_their_parent_is_gone(tmp_path: Path, module: str) -> None:
    async def run() -> None:
        command = [sys.executable, "-m", module]
        if module.endswith("load"):
            command += ["--rate=1", "--shares=1", "127.0.0.1:9"]
        child = Child("child", command, tmp_path / "log")
        await child.start(reports=True)
        await child.first_report()
        process = child._process
        assert process is not None
        assert process.stdin is not None
        process.stdin.close()  # what the kernel does when the parent dies
        assert await asyncio.wait_for(process.wait(), 10.0) == 0
        await child.ended()

    asyncio.run(run())
