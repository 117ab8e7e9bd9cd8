"""`egressd` as an operator calls it: what it prints, where, and with which exit status."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes.nodes import NodeProcess, free_ports
from fakes.origin import Origin

pytestmark = pytest.mark.e2e

MakeNode = Callable[..., NodeProcess]
ROOT = Path(__file__).resolve().parents[2]

GOOD = """
[[listen]]
bind = "127.0.0.1:8080"
[mesh]
cluster = "prod"
bind = "127.0.0.1:7946"
join = ["127.0.0.1:7946", "127.0.0.1:7947", "127.0.0.1:7948"]
[upstream.api]
origin = "https://api.example.com"
[[upstream.api.limit]]
name = "account"
rate = "100/s"
burst = 20
[[route]]
upstream = "api"
"""
BAD = """[node]
nmae = "x"
[[listen]]
bind = "127.0.0.1:99999"
[upstream.api]
origin = "http://api.example.com/path"
[[upstream.api.limit]]
name = "account"
rate = 100
[[route]]
upstream = "apy"
"""
# What is wrong at which line, and a word that must be in the sentence.
FAULTS = [
    (2, "node.nmae", "name"),
    (4, "listen.0.bind", "port"),
    (6, "upstream.api.origin", "path"),
    (9, "upstream.api.limit.0.rate", "100/s"),
    (11, "route.0.upstream", "apy"),
]


def egressd(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gateway", *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=15,
        stdin=subprocess.DEVNULL,
    )


def written(folder: Path, text: str) -> Path:
    path = folder / "egressd.toml"
    path.write_text(text)
    return path


def test_check_gives_an_account_of_a_good_file(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    done = egressd("check", str(path))
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 listeners, 1 upstreams, 1 routes" in done.stdout or "1 listener, " in done.stdout
    assert "3 members" in done.stdout
    # rate * w + burst for a second, as long as the burst is not raised by the mesh's horizon.
    assert "at most 120 in 1 s" in done.stdout
    as_json = egressd("check", str(path), "--json")
    assert (as_json.returncode, json.loads(as_json.stdout)) == (0, [])


@pytest.mark.parametrize("name", ["egressd.toml", "mesh.toml"])
def test_check_likes_the_files_that_come_with_it(name: str) -> None:
    done = egressd("check", str(ROOT / "conf" / name))
    assert (done.returncode, done.stderr) == (0, "")


def test_check_tells_all_faults_at_once(tmp_path: Path) -> None:
    path = written(tmp_path, BAD)
    done = egressd("check", str(path))
    assert (done.returncode, done.stdout) == (1, "")
    lines = done.stderr.splitlines()
    assert len(lines) == len(FAULTS), done.stderr
    for line, (number, key, word) in zip(lines, FAULTS, strict=True):
        assert line.startswith(f"{path}:{number}: {key}: "), line
        assert word in line.removeprefix(f"{path}:{number}: {key}: "), line
    as_json = egressd("check", str(path), "--json")
    assert as_json.returncode == 1
    assert [fault["line"] for fault in json.loads(as_json.stdout)] == [f[0] for f in FAULTS]
    # `run` judges by the same rules and does not start.
    run = egressd("run", "-c", str(path))
    assert (run.returncode, run.stderr) == (1, done.stderr)


def test_check_of_a_file_that_is_no_toml_or_is_not_there(tmp_path: Path) -> None:
    path = written(tmp_path, "[node]\nname = \n")
    done = egressd("check", str(path))
    assert done.returncode == 1
    assert done.stderr.startswith(f"{path}:2: ")
    assert len(done.stderr.splitlines()) == 1
    missing = egressd("check", str(tmp_path / "none.toml"))
    assert missing.returncode == 1
    assert "none.toml" in missing.stderr
    path.write_bytes(b"\xff\xfe\x00garbage")
    garbage = egressd("check", str(path))
    assert garbage.returncode == 1
    assert garbage.stderr.startswith(f"{path}:")
    for result in (done, missing, garbage):
        assert "Traceback" not in result.stderr


def test_check_judges_overrides_too(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    good = egressd("check", str(path), "--set", "upstream.api.limit.0.rate=10/s")
    assert good.returncode == 0
    assert "at most 30 in 1 s" in good.stdout
    bad = egressd("check", str(path), "--set", "upstream.api.limit.0.rate=fast")
    assert bad.returncode == 1
    assert "upstream.api.limit.0.rate" in bad.stderr
    assert "fast" in bad.stderr


def test_schema_prints_the_schema_that_is_in_the_tree() -> None:
    done = egressd("schema")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == json.loads((ROOT / "conf/egressd.schema.json").read_text())


@pytest.mark.parametrize(
    "arguments",
    [("run", "--bogus"), ("run",), ("check",), ("nothing",), ("check", "a.toml", "b.toml")],
)
def test_wrong_usage_is_status_2(arguments: tuple[str, ...]) -> None:
    done = egressd(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Usage: " in done.stderr
    assert "Traceback" not in done.stderr


def test_version_and_help() -> None:
    version = egressd("--version")
    assert version.returncode == 0
    assert version.stdout.startswith("egressd")
    for arguments in (("--help",), ("run", "-h"), ("check", "-h")):
        done = egressd(*arguments)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("taken", ["listen", "admin", "mesh"])
def test_an_address_in_use_is_one_clear_line(
    node: MakeNode, origin: Origin, tmp_path: Path, taken: str
) -> None:
    ports = free_ports(1)[0]
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", getattr(ports, taken)))
        holder.listen()
        table = f'[mesh]\nbind = "127.0.0.1:{ports.mesh}"\n'
        process = node(origin, mesh=table, ports=ports, wait=False)
        assert process.wait() == 1
        process.killed = True  # its status has been judged
    text = process.log_text()
    assert "Traceback" not in text
    lines = text.splitlines()
    assert len(lines) == 1, text
    assert f"127.0.0.1:{getattr(ports, taken)}" in lines[0]
    assert "in use" in lines[0]
