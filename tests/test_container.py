"""The Containerfile is built nowhere here; what it copies, calls and asks is there all the same."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner
from fakes.gateway import Gateway
from fakes.nodes import free_port

from gateway.cli import main

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "conf" / "container" / "Containerfile").read_text()
CONF = """
[[listen]]
bind = "127.0.0.1:0"
[admin]
bind = "unix:{path}"
[upstream.a]
origin = "https://a.example"
[[route]]
upstream = "a"
"""


def instructions() -> list[tuple[str, str]]:
    """(instruction, its text), with continued lines joined."""
    joined = TEXT.replace("\\\n", " ")
    rows = [row.strip() for row in joined.splitlines() if row.strip() and row[0] != "#"]
    return [(word, rest.strip()) for word, _, rest in (row.partition(" ") for row in rows)]


STEPS = instructions()


def copied() -> Iterator[tuple[str, str]]:
    """(source, target) of what comes out of the tree."""
    for word, rest in STEPS:
        if word == "COPY" and not rest.startswith("--from"):
            *sources, target = rest.split()
            for source in sources:
                yield source, target


def of(word: str) -> str:
    (found,) = [rest for name, rest in STEPS if name == word]
    return found


def test_what_it_copies_is_there() -> None:
    sources = [source for source, _ in copied()]
    assert {"gateway", "peers", "requirements.lock", "pyproject.toml"} <= set(sources)
    assert [source for source in sources if not (ROOT / source).exists()] == []


def test_it_runs_as_nobody_and_is_stopped_by_what_drains() -> None:
    user, _, group = of("USER").partition(":")
    assert int(user) >= 1000
    assert int(group) >= 1000
    assert of("STOPSIGNAL") == "SIGTERM"
    last = [number for number, step in enumerate(STEPS) if step[0] == "FROM"][-1]
    words = [word for word, _ in STEPS]
    assert last < words.index("USER") < words.index("ENTRYPOINT")


def test_what_it_calls_is_a_command(tmp_path: Path) -> None:
    (entry,) = json.loads(of("ENTRYPOINT"))
    assert Path(entry).name == "egressd"
    command, *arguments = json.loads(of("CMD"))
    assert arguments[-1].startswith("/etc/egressd/")
    # Judged as far as the file, which is not here: the options are known.
    absent = str(tmp_path / "none.toml")
    result = CliRunner().invoke(main, [command, *arguments[:-1], absent])
    assert result.exit_code == 1
    assert "none.toml: does not exist" in result.stderr


def test_pip_knows_the_options() -> None:
    for command in ("wheel", "install"):
        help_text = subprocess.run(
            [sys.executable, "-m", "pip", command, "--help"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for call in re.findall(rf"pip {command} ([^&\n]*)", TEXT.replace("\\\n", " ")):
            for option in re.findall(r"(?<!\S)--[a-z-]+", call):
                assert option in help_text, (command, option)


def test_the_health_check_asks_a_live_node(tmp_path: Path) -> None:
    """Its program is run as it stands, but for the address, and fails where nobody answers."""
    program, flag, code = json.loads(of("HEALTHCHECK").partition("CMD ")[2])
    assert Path(program).name == "python"
    (url,) = re.findall(r"'(http://[^']+)'", code)
    shipped = (ROOT / "conf" / "egressd.toml").read_text()
    assert f'bind = "{urlsplit(url).netloc}"' in shipped
    assert urlsplit(url).path == "/live"

    def ask(port: int) -> int:
        moved = code.replace(":9901", f":{port}")
        return subprocess.run(
            [sys.executable, flag, moved], stderr=subprocess.DEVNULL, check=False
        ).returncode

    with Gateway(CONF.format(path=tmp_path / "admin"), tmp_path) as gateway:
        _, port = gateway.address
        assert ask(port) == 1  # a listener has no /live
    conf = CONF.replace('"unix:{path}"', '"127.0.0.1:{port}"')
    port = free_port()
    with Gateway(conf.format(port=port), tmp_path):
        assert ask(port) == 0
    assert ask(port) == 1


@pytest.mark.slow
def test_a_wheel_can_be_built_from_what_it_copies(tmp_path: Path) -> None:
    folder = tmp_path / "src"
    folder.mkdir()
    for source, target in copied():
        whole = ROOT / source
        if whole.is_dir():
            shutil.copytree(whole, folder / target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(whole, folder)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "-w", str(tmp_path), "."], cwd=folder, check=True)
    (wheel,) = tmp_path.glob("egressd-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "gateway/cli.py" in names
    assert "gateway/admin/tallies.py" in names
    assert not [name for name in names if name.startswith("tests")]
