"""A configuration shown: in the file's words, without secrets; the same file, the same hash."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gateway.conf.load import load
from gateway.conf.schema import Conf
from gateway.conf.show import Steps, digest_steps, shown_steps

TEXT = """
[node]
name = "{name}"
drain = "90s"
[[listen]]
bind = "127.0.0.1:{port}"
[admin]
token = {{ env = "TOKEN" }}
[upstream.api]
origin = "https://api.example"
[[upstream.api.limit]]
name = "account"
rate = "{rate}"
key = ["credential", "path:2"]
[[client]]
name = "billing"
source = ["10.0.0.0/8"]
token = {{ env = "TOKEN" }}
"""


def made(folder: Path, name: str = "gw-1", port: int = 8080, rate: str = "600/min") -> Conf:
    path = folder / "egressd.toml"
    path.write_text(TEXT.format(name=name, port=port, rate=rate))
    return load(str(path), (), {"TOKEN": "tell-nobody"})


def result(steps: Steps) -> Any:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def test_it_is_shown_in_the_files_words_without_secrets(tmp_path: Path) -> None:
    shown = result(shown_steps(made(tmp_path)))
    assert "tell-nobody" not in json.dumps(shown)
    assert shown["node"] == {
        "name": "gw-1",
        "workers": 1,
        "codec": "auto",
        "drain": "90s",
        "grace": "0s",
    }
    assert shown["admin"]["token"] == "<secret from env TOKEN>"
    limit = shown["upstream"]["api"]["limit"][0]
    assert (limit["rate"], limit["burst"], limit["key"]) == (
        "600/min", 60, ["credential", "path:2"],
    )  # fmt: skip
    assert shown["client"][0]["source"] == ["10.0.0.0/8"]
    assert "mesh" not in shown


def test_nodes_of_one_file_have_one_hash(tmp_path: Path) -> None:
    first = result(digest_steps(made(tmp_path)))
    assert len(first) == 16
    assert first == result(digest_steps(made(tmp_path, name="gw-2", port=9090)))
    assert first != result(digest_steps(made(tmp_path, rate="601/min")))


def test_a_large_file_is_shown_in_steps(tmp_path: Path) -> None:
    conf = made(tmp_path)
    conf = conf.model_copy(
        update={"upstream": {f"u{number}": conf.upstream["api"] for number in range(200)}}
    )
    assert sum(1 for _ in shown_steps(conf)) >= 200 // 20
