"""What systemd sees and gives: notifications, the watchdog, sockets that outlive the process."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from fakes.load import Load
from fakes.manager import Manager
from fakes.nodes import NodeProcess, free_ports, until
from fakes.origin import Origin

pytestmark = pytest.mark.e2e

MakeNode = Callable[..., NodeProcess]
MakeConf = Callable[..., str]
ROOT = Path(__file__).resolve().parents[2]
UNITS = ("egressd.service", "egressd@.service", "egressd.socket")
EXPOSURE_MAX = 2.0

ACTIVATED = """
[node]
name = "solo"
drain = "3s"
[[listen]]
bind = "systemd:web"
[admin]
bind = "127.0.0.1:{admin}"
[log]
access = "off"
[upstream.api]
origin = "{origin}"
[[route]]
upstream = "api"
"""


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with Manager(tmp_path) as manager:
        yield manager


def test_a_service_tells_its_states(
    node: MakeNode, make_conf: MakeConf, origin: Origin, manager: Manager
) -> None:
    process = node(origin, environ={"NOTIFY_SOCKET": str(manager.path)}, wait=False)
    ready = manager.wait_for("READY")
    assert ready["STATUS"] == "serving 1 upstreams, 1 routes, configuration 1"
    assert process.ask("/ready")[0] == 200

    before_usec = time.monotonic_ns() // 1000
    process.reload()
    reloading = manager.wait_for("RELOADING")
    assert before_usec <= int(reloading["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
    assert manager.wait_for("READY")["STATUS"].endswith("configuration 2")

    process.reload(make_conf("another", process.ports, origin.url, ""), accepted=False)
    manager.wait_for("RELOADING")
    status = manager.wait_for("READY")["STATUS"]
    assert "configuration 2; reload refused: " in status
    assert "node.name" in status

    process.ask_to_end()
    assert manager.wait_for("STOPPING")["STATUS"] == "draining"
    assert process.wait() == 0
    assert not any("WATCHDOG" in told for told in manager.told)


@pytest.mark.slow
def test_the_watchdog_hears_from_a_loop_that_turns(
    node: MakeNode, origin: Origin, manager: Manager
) -> None:
    environ = {"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "900000"}
    process = node(origin, environ=environ)
    for _ in range(3):
        manager.wait_for("WATCHDOG", 5.0)
    process.signal(signal.SIGSTOP)
    with pytest.raises(AssertionError, match="no WATCHDOG"):
        manager.wait_for("WATCHDOG", 0.9)
    process.signal(signal.SIGCONT)
    manager.wait_for("WATCHDOG", 5.0)


def test_a_watchdog_of_another_process_is_not_served(
    node: MakeNode, origin: Origin, manager: Manager
) -> None:
    environ = {"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "900000", "WATCHDOG_PID": "1"}
    process = node(origin, environ=environ)
    assert process.terminate() == 0
    manager.wait_for("STOPPING")
    assert not any("WATCHDOG" in told for told in manager.told)


def test_a_restart_behind_an_inherited_socket_refuses_nobody(
    node: MakeNode, origin: Origin
) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as web:
        address = web.getsockname()[:2]
        process = _activated(node, origin, web)
        with Load([address], 200) as load:
            load.go_on(0.4)
            for _ in range(2):
                assert process.terminate() == 0
                process.start()
                process.wait_ready()
                load.go_on(0.3)
    assert not load.failures
    assert set(load.statuses()) == {200}
    assert len(origin.requests) == len(load.sent)


def test_several_sockets_of_one_name_are_one_listener(
    node: MakeNode, origin: Origin, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        first, second = (
            stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)
        )
        process = _activated(node, origin, first, second)
        for sock in (first, second):
            with Load([sock.getsockname()[:2]], 100) as load:
                load.go_on(0.1)
            assert set(load.statuses()) == {200}
        # A reload may leave the listener out; another takes it in again with the same sockets.
        text = process.path.read_text()
        process.reload(text.replace('bind = "systemd:web"', f'bind = "unix:{tmp_path}/sock"'))
        process.reload(text)
        with Load([second.getsockname()[:2]], 100) as load:
            load.go_on(0.1)
        assert set(load.statuses()) == {200}
        process.reload(text.replace("systemd:web", "systemd:wbe"), accepted=False)
        fault = process.log("reload refused")[-1]["fault"]
        assert fault == "listen systemd:wbe: no socket of that name was passed (there is: web)"


def test_the_admin_interface_on_an_inherited_socket(
    node: MakeNode, origin: Origin, make_conf: MakeConf
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as admin:
        port = admin.getsockname()[1]
        process = node(
            origin,
            settings=("admin.bind=systemd:admin", 'admin.token={ env = "TOKEN" }'),
            environ={"TOKEN": "t"},
            sockets=[("admin", admin)],
            wait=False,
        )
        process.ports.admin = port
        process.wait_ready()
        assert process.ask("/api/v1/node")[0] == 401
        assert process.terminate() == 0


def test_a_node_is_ready_when_its_peers_have_told_it_what_they_know(
    node: MakeNode, mesh: Callable[..., list[NodeProcess]], origin: Origin
) -> None:
    old, new = mesh(2, origin)
    with Load([old.address], 20) as load:
        load.go_on(0.3)
    assert set(load.statuses()) == {200}

    def known() -> int:
        """Rows that it keeps, or has heard of without a request of its own."""
        figures = new.document()["mesh"]
        return int(figures["rows"] + figures["strays"])

    until(lambda: known() == 1, 3.0, "news has come")
    new.kill()
    new.start()
    new.wait_ready()
    assert known() == 1
    assert new.document()["mesh"]["joining"] is False
    events = [line["event"] for line in new.log()]
    last = len(events) - 1 - events[::-1].index("serving")
    assert events[last - 1] == "member joined"


def _activated(node: MakeNode, origin: Origin, *web: socket.socket) -> NodeProcess:
    ports = free_ports(1)[0]
    ports.listen = web[0].getsockname()[1]
    text = ACTIVATED.format(admin=ports.admin, origin=origin.url)
    return node(origin, text=text, ports=ports, sockets=[("web", sock) for sock in web])


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"LISTEN_FDS": "-1"}, "LISTEN_FDS is '-1'"),
        ({"LISTEN_FDS": "513"}, "LISTEN_FDS is '513'; 0 to 512"),
        ({"LISTEN_FDS": "2", "LISTEN_FDNAMES": "web"}, "LISTEN_FDNAMES names 1 sockets"),
        ({"LISTEN_FDS": "40", "LISTEN_FDNAMES": ":".join(["web"] * 40)}, "inherited socket 'web'"),
        ({"NOTIFY_SOCKET": "vsock:2:1234"}, "NOTIFY_SOCKET is 'vsock:2:1234'"),
        ({"NOTIFY_SOCKET": "/nowhere/notify"}, "NOTIFY_SOCKET /nowhere/notify: No such file"),
    ],
)
def test_what_systemd_never_says_is_one_clear_line(
    variables: dict[str, str], words: str, tmp_path: Path
) -> None:
    conf = tmp_path / "egressd.toml"
    conf.write_text(ACTIVATED.format(admin=0, origin="http://127.0.0.1:1"))
    program = (
        "import os, sys; os.environ['LISTEN_PID'] = str(os.getpid());"
        "os.environ.update(v.split('=', 1) for v in sys.argv[2:]);"
        "os.execv(sys.executable, [sys.executable, '-m', 'gateway', 'run', '-c', sys.argv[1]])"
    )
    told = [f"{name}={value}" for name, value in variables.items()]
    done = subprocess.run(
        [sys.executable, "-c", program, str(conf), *told],
        capture_output=True,
        text=True,
        timeout=15,
        check=False,
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("egressd: ")
    assert words in done.stderr


def test_a_file_that_is_no_listening_socket_is_not_taken(tmp_path: Path) -> None:
    from gateway.sockets import inherited_sockets

    program = (
        "import os, socket; from gateway.sockets import inherited_sockets\n"
        "one, two = socket.socketpair()\n"
        "os.dup2(one.fileno(), 3)\n"
        "found = {'LISTEN_PID': str(os.getpid()), 'LISTEN_FDS': '1'}\n"
        "try: inherited_sockets(found)\n"
        "except OSError as error: print(error, found)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "inherited socket 'unknown' is not a stream socket that listens {}\n"
    environ = {"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "web"}
    assert (inherited_sockets(environ), environ) == ({}, {})


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here")
def test_the_units_are_what_systemd_understands(tmp_path: Path) -> None:
    for name in UNITS:
        text = (ROOT / "systemd" / name).read_text()
        (tmp_path / name).write_text(text.replace("/usr/bin/egressd", "/bin/true"))
    units = [tmp_path / UNITS[0], tmp_path / "egressd@one.service", tmp_path / UNITS[2]]
    done = subprocess.run(
        ["systemd-analyze", "verify", *map(str, units)], capture_output=True, text=True, check=False
    )
    # Other units of the host may be found wanting in the same breath.
    own = [line for line in (done.stdout + done.stderr).splitlines() if "egressd" in line]
    assert own == []


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here")
@pytest.mark.parametrize("name", ["egressd.service", "egressd@.service"])
def test_a_unit_is_hardened(name: str, tmp_path: Path) -> None:
    unit = tmp_path / name.replace("@", "@one")
    shutil.copy(ROOT / "systemd" / name, unit)
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    line = next(line for line in done.stdout.splitlines() if "Overall exposure level" in line)
    assert float(line.split(": ")[1].split(" ")[0]) <= EXPOSURE_MAX, done.stdout
