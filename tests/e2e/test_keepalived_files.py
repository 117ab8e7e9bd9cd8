"""The files of conf/keepalived, without a network: the figures in them, and the check script."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes.keepalived import SHIPPED, install
from fakes.nodes import NodeProcess, until
from fakes.origin import Origin

pytestmark = pytest.mark.e2e

MakeNode = Callable[..., NodeProcess]

NODES = (SHIPPED / "nodes.conf").read_text()
CHECK_SECONDS = 0.8
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


def priorities() -> dict[str, dict[str, int]]:
    """By node and address, as nodes.conf gives them."""
    found: dict[str, dict[str, int]] = {}
    for node, address, value in re.findall(r"(?m)^@(\S+) \$PRIORITY_(\d)=(\d+)", NODES):
        found.setdefault(node, {})[address] = int(value)
    return found


def test_each_address_has_one_owner_and_the_unready_come_last() -> None:
    table = priorities()
    weight = int(re.findall(r"weight (-\d+)", NODES)[0])
    owners = set()
    for address in "123":
        column = {node: table[node][address] for node in table}
        owners.add(max(column, key=lambda node: column[node]))
        values = sorted(column.values(), reverse=True)
        assert len(set(values)) == len(values) == 3
        assert values[0] + weight < values[-1]
        assert values[-1] + weight >= 1
        assert values[0] <= 254
    assert owners == set(table)
    # Whoever is second for one address is so for no other: a dead node's load goes to one other.
    seconds = [sorted(table, key=lambda n: -table[n][a])[1] for a in "123"]
    assert len(set(seconds)) == 3


def test_the_times_in_the_comments_follow_from_the_values() -> None:
    advert_s = {float(value) for value in re.findall(r"advert_int (\S+)", NODES)}
    assert advert_s == {0.5}
    second = sorted(priorities()["gw-2"].values())[-2]
    off_s = 3 * 0.5 + (256 - second) / 256 * 0.5
    assert f"{off_s:.1f} s" == "1.6 s"
    fall = int(re.findall(r"fall (\d)", NODES)[0])
    interval_s = int(re.findall(r"interval (\d)", NODES)[0])
    for what, seconds in (
        ("the node is off", off_s),
        ("egressd was killed", fall * interval_s + off_s),
        ("egressd stands still", fall * interval_s + off_s + CHECK_SECONDS),
    ):
        assert re.search(rf"#   {what}.* {seconds:.1f} s ", NODES), (what, seconds)
    script = (SHIPPED / "check-ready").read_text()
    assert f"--max-time {CHECK_SECONDS} " in script or f"--max-time {CHECK_SECONDS}\n" in script


@pytest.mark.parametrize(
    ("name", "host"), [("nodes.conf", f"gw-{n}") for n in (1, 2, 3)] + [("lvs.conf", "lb-2")]
)
def test_keepalived_has_no_objection(tmp_path: Path, name: str, host: str) -> None:
    if shutil.which("keepalived") is None:
        pytest.skip("keepalived is not installed (`make vip-tools` installs it on Debian)")
    if os.geteuid() != 0:
        pytest.skip("keepalived judges scripts as root only")
    # `keepalived -t` of 2.2.7 ends itself over scripts that another user than root runs; and it
    # takes none from pytest's folder as secure, which is its status 6 and a line of its own.
    path = install(tmp_path, {"CHECK_USER": "root"} if name == "nodes.conf" else {}, name)
    text = path.read_text().replace("script_user nobody", "script_user root")
    path.write_text(text.replace("    enable_script_security", "    #"))
    done = subprocess.run(
        ["keepalived", "-t", "-f", str(path), "-i", host],
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )
    objections = [line for line in done.stderr.splitlines() if "SECURITY" not in line]
    assert objections == []
    assert done.returncode in (0, 6)


def check(bind: str) -> bool:
    """What the script says; a proxy in the environment must not come between."""
    done = subprocess.run(
        [str(SHIPPED / "check-ready"), bind],
        env={"PATH": "/usr/bin:/bin", "http_proxy": "http://127.0.0.1:1", "HOME": "/nowhere"},
        check=False,
        timeout=10,
    )
    return done.returncode == 0


@needs_curl
def test_the_check_follows_readiness(node: MakeNode, origin: Origin, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("not for the check")
    token = f'admin.token={{ file = "{tmp_path}/token" }}'
    process = node(origin, settings=("node.grace=1m", token))
    bind = f"127.0.0.1:{process.ports.admin}"
    assert check(bind)
    process.signal(signal.SIGSTOP)
    try:
        began_ns = time.monotonic_ns()
        assert not check(bind)
        assert time.monotonic_ns() - began_ns >= CHECK_SECONDS * 900_000_000
    finally:
        process.signal(signal.SIGCONT)
    process.ask_to_end()
    until(lambda: process.log("withdrawing"), 5.0, "it withdraws")
    assert not check(bind)
    process.signal(signal.SIGTERM)
    assert process.wait() == 0
    assert not check(bind)


@needs_curl
def test_the_check_asks_a_unix_socket(node: MakeNode, origin: Origin, tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    bind = f"unix:{path}"
    assert not check(bind)
    process = node(origin, settings=(f"admin.bind={bind}",), wait=False)
    until(lambda: path.exists() and check(bind), 15.0, "the check finds it ready")
    assert process.terminate() == 0
    assert not check(bind)
