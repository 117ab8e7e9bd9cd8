"""`egressd check` as a hostile user: whatever the path is or holds, it says so and ends with 1."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gateway.cli import main
from gateway.conf.sources import FILE_BYTES_MAX

GOOD = 'listen = [{ bind = "127.0.0.1:8080" }]\n'


def check(*arguments: str) -> Result:
    result = CliRunner().invoke(main, ["check", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def _loop(path: Path) -> None:
    path.symlink_to(path)


def _unreadable(path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    path.write_text(GOOD)
    path.chmod(0)


def _octets(octets: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(octets)

    return write


MADE: list[tuple[str, Callable[[Path], object], str]] = [
    ("missing", lambda path: None, "does not exist or is not a plain file"),
    ("directory", Path.mkdir, "does not exist or is not a plain file"),
    ("loop", _loop, "does not exist or is not a plain file"),
    ("pipe", os.mkfifo, "does not exist or is not a plain file"),
    ("unreadable", _unreadable, "Permission denied"),
    ("huge", _octets(b"#" * (FILE_BYTES_MAX + 1)), "is longer than 1MiB"),
    ("binary", _octets(bytes(range(256))), "is not UTF-8 text"),
    ("utf-16", _octets(GOOD.encode("utf-16")), "is not UTF-8 text"),
    ("bom", _octets(b"\xef\xbb\xbf" + GOOD.encode()), "begins with a byte order mark"),
    ("nul", _octets(b"a = 1\n\0b = 2\n"), "Invalid statement"),
    ("deep", _octets(b"a = " + b"[" * 9000 + b"]" * 9000), "is nested too deeply"),
    ("deep-key", _octets(b".".join([b"a"] * 3000) + b" = 1"), "is nested too deeply"),
    ("deep-table", _octets(b"[" + b".".join([b"a"] * 3000) + b"]"), "is nested too deeply"),
]
CASES = pytest.mark.parametrize(
    ("make", "words"), [case[1:] for case in MADE], ids=[c[0] for c in MADE]
)


@CASES
def test_a_path_that_is_no_configuration(
    make: Callable[[Path], object], words: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.toml"
    make(path)
    result = check(str(path))
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith(f"{path}:")
    assert words in result.stderr
    told = check("--json", str(path))
    assert (told.exit_code, told.stderr) == (1, "")
    (fault,) = json.loads(told.stdout)
    assert fault.keys() == {"file", "line", "key", "message"}
    assert words in fault["message"]


@CASES
def test_an_included_file_that_is_no_configuration(
    make: Callable[[Path], object], words: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.toml"
    make(path)
    whole = tmp_path / "egressd.toml"
    whole.write_text(f'include = ["x.toml"]\n{GOOD}')
    result = check(str(whole))
    assert result.exit_code == 1
    assert words in result.stderr
    assert "x.toml" in result.stderr


def test_names_that_are_no_text_do_not_stop_it(tmp_path: Path) -> None:
    for name, text in ((b"good\xfe.toml", GOOD), (b"bad\xfe.toml", GOOD + "nonsense = 1\n")):
        path = os.path.join(os.fsencode(tmp_path), name)
        with open(path, "w") as file:
            file.write(text)
        shown = os.fsdecode(path)
        result = check(shown)
        assert result.exit_code == (0 if text == GOOD else 1)
        assert check("--json", shown).exit_code == result.exit_code


def test_what_is_set_on_the_command_line_too_late_is_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "egressd.toml"
    path.write_text(GOOD)
    for key in ("include", "include.0", '"include"'):
        result = check(str(path), "--set", f'{key}=["more.toml"]')
        assert result.exit_code == 1
        assert result.stderr.startswith("--set: ")
        assert "can stand in a file only" in result.stderr
