"""`egressd sim`: the same arguments give the same figures, and nonsense a sentence."""

from __future__ import annotations

import builtins
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from gateway.cli import main
from gateway.plan import ARRIVALS_MAX, NODES_MAX
from peers.core.config import Config

QUICK = ("--seconds", "3", "--rate", "50")


def sim(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["sim", *arguments])


def figures(*arguments: str) -> dict[str, Any]:
    done = sim(*arguments, "--json")
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_same_seed_gives_the_same_figures() -> None:
    one = figures(*QUICK, "--loss", "10%", "--seed", "7")
    assert one == figures(*QUICK, "--loss", "0.1", "--seed", "7")
    assert one != figures(*QUICK, "--loss", "10%", "--seed", "8")


def test_the_figures_say_what_was_asked_and_what_came_of_it() -> None:
    found = figures("--nodes", "4", "--rate", "6000/min", "--load", "skew", "--seconds", "12")
    assert found["plan"]["rate_per_s"] == 100.0
    assert found["plan"]["burst"] == 600  # a tenth of the rate's count, as in the configuration
    assert (found["plan"]["shape"], found["plan"]["overload"]) == ("skew", 2.0)
    assert 0.9 < found["share_of_ideal"] <= 1.0
    assert found["admitted"] == sum(node["admitted"] for node in found["nodes"])
    assert found["asked"] == sum(node["asked"] for node in found["nodes"])
    first, second, *rest = (node["asked"] for node in found["nodes"])
    assert first > second > max(rest)
    assert found["excess_tokens"] <= found["excess_bound_tokens"]
    assert 0.2 < found["peak_1s"] <= 1.01
    assert 0.5 < found["peak_10s"] <= 1.01
    assert 0.5 < found["fairness"] <= 1.0
    assert found["gossip_per_node"]["bytes_per_s"] > found["gossip_per_node"]["datagrams_per_s"]


def test_a_window_longer_than_the_run_has_no_peak() -> None:
    assert figures(*QUICK)["peak_10s"] is None
    assert "fullest 10 s" not in sim(*QUICK).stdout


def test_words_and_figures_agree() -> None:
    found = figures(*QUICK, "--wait", "200")
    text = sim(*QUICK, "--wait", "200").stdout
    assert f"{found['admitted']:,} of the {found['ideal']:,}" in text
    assert f"the bound is {found['excess_bound_tokens']:.1f}" in text
    assert "3 nodes, 50/s with a burst of 5" in text


@pytest.mark.parametrize("shape", ["uniform", "skew", "moving", "cold", "idle-burst"])
def test_every_shape_runs_on_one_node_and_on_several(shape: str) -> None:
    for nodes in ("1", "2", "5"):
        found = figures(*QUICK, "--load", shape, "--nodes", nodes, "--seconds", "6")
        assert found["asked"] > 0
        assert found["excess_tokens"] <= found["excess_bound_tokens"] + 1e-6


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--nodes", "0"), "1<=x<=32"),
        (("--nodes", "33"), "1<=x<=32"),
        (("--nodes", "three"), "not a valid integer"),
        (("--rate", "fast"), "is not a rate"),
        (("--rate", "0"), "more than zero"),
        (("--rate", "5/fortnight"), "unknown unit"),
        (("--rate", "9999999999/d"), "4,294,967,295"),
        (("--rate", "1000000"), "100,000/s"),
        (("--burst", "0"), "1<=x<=1000000"),
        (("--loss", "nan"), "0 to 0.9"),
        (("--loss", "100%"), "0 to 0.9"),
        (("--loss", "5%%"), "0 to 0.9"),
        (("--loss", "x" * 500), "0 to 0.9"),
        (("--delay", "inf"), "0.01 to 250"),
        (("--delay", "-1"), "0.01 to 250"),
        (("--load", "sideways"), "uniform"),
        (("--overload", "0"), "0.01 to 100"),
        (("--seconds", "0.5"), "1 to 3600"),
        (("--wait", "1e9"), "0 to 60000"),
        (("--seed", "-1"), "0<=x<="),
    ],
)
def test_garbage_is_wrong_usage_and_says_what_is_allowed(
    arguments: tuple[str, ...], words: str
) -> None:
    done = sim(*arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert words in done.stderr
    assert arguments[0] in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--rate", "90000", "--seconds", "3600"), f"at most {ARRIVALS_MAX:,}"),
        (("--burst", "1000000", "--nodes", "32", "--load", "cold"), f"at most {ARRIVALS_MAX:,}"),
        (("--plot", "figure.txt"), "must end in .png"),
        (("--plot", "/nowhere/at/all.png"), "there is no folder"),
        (("--nodes", "2", "--loss", "0.9", "--seed", "1"), "did not find each other"),
    ],
)
def test_what_cannot_be_simulated_is_said_before_it_begins(
    arguments: tuple[str, ...], words: str
) -> None:
    done = sim(*arguments)
    assert (done.exit_code, done.stdout) == (1, "")
    assert words in done.stderr


def test_a_plot_without_matplotlib_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    done = sim(*QUICK, "--plot", str(tmp_path / "sum.png"))
    assert (done.exit_code, done.stdout) == (1, "")
    assert "egressd[plot]" in done.stderr


def test_a_plot_is_a_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "sum.png"
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "sim", *QUICK, "--plot", str(path)],
        env={**os.environ, "MPLCONFIGDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    # No bar: standard error is no terminal here.
    assert (done.returncode, done.stderr) == (0, "")
    assert path.read_bytes().startswith(b"\x89PNG\r\n")
    assert path.stat().st_size > 5000


def test_a_terminal_gets_a_bar_on_standard_error() -> None:
    near, far = os.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "gateway", "sim", *QUICK, "--json"],
            stdout=subprocess.PIPE,
            stderr=far,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "80"},
            check=False,
            timeout=120,
        )
        shown = os.read(near, 1 << 16)
    finally:
        os.close(near)
        os.close(far)
    assert done.returncode == 0, shown
    assert b"simulating" in shown
    assert json.loads(done.stdout)["asked"] > 0


def test_as_many_nodes_as_a_mesh_may_have() -> None:
    assert Config.__dataclass_fields__["members_max"].default == NODES_MAX


def test_the_readme_shows_what_it_prints() -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text()
    block = text[text.index("$ egressd sim ") + 2 :].partition("```")[0]
    command, _, printed = block.partition("\n")
    done = CliRunner().invoke(main, command.split()[1:])
    assert done.stdout == printed
