"""`egressd ctl`: every verb against a real gateway, and what a script learns when it fails."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from fakes.gateway import Gateway

from gateway.cli import main

Ctl = Callable[..., Result]


@pytest.fixture
def ctl(where: str) -> Ctl:
    """Runs a command line behind `egressd ctl --admin WHERE`."""

    def run(line: str, *more: str) -> Result:
        return CliRunner().invoke(main, ["ctl", "--admin", where, *more, *line.split()])

    return run


def lines(result: Result) -> list[str]:
    assert result.exit_code == 0, result.output
    return result.output.splitlines()


def test_everything_that_help_names_is_there(ctl: Ctl) -> None:
    usage = CliRunner().invoke(main, ["ctl", "--help"]).output
    for word in ("show", "set", "clear", "open", "close", "auto", "pause", "resume", "drain",
                 "reload", "forget"):  # fmt: skip
        assert f"\n  {word} " in usage
        assert CliRunner().invoke(main, ["ctl", word, "--help"]).exit_code == 0


@pytest.mark.parametrize(
    ("line", "head", "row"),
    [
        ("show nodes", "# node", "gw-test"),
        ("show members", "# seen-by", ""),
        ("show upstreams", "# upstream", "api "),
        ("show limits", "# upstream", "api "),
        ("show limits api", "# upstream", "api "),
        ("show breakers", "# upstream", "api "),
        ("show waits", "# upstream", ""),
        ("show pools api", "# upstream", "api "),
        ("show clients", "# client", "anonymous"),
        ("show log", "# level", "info"),
        ("show table api/account", "# key", "- "),
    ],
)
def test_what_is_shown_off_a_terminal_is_plain(ctl: Ctl, line: str, head: str, row: str) -> None:
    shown = lines(ctl(line))
    assert shown[0].startswith(head)
    if row:
        assert shown[1].startswith(row)
    assert "\x1b" not in "".join(shown)


def test_info_and_conf(ctl: Ctl) -> None:
    assert "ready: yes" in lines(ctl("show info"))
    conf = json.loads(ctl("show conf").output)
    assert conf["upstream"]["api"]["limit"][0]["rate"] == "100/s"


@pytest.mark.parametrize(
    "what",
    [
        "nodes",
        "members",
        "upstreams",
        "limits",
        "breakers",
        "waits",
        "pools",
        "clients",
        "conf",
        "info",
        "table",
    ],
)
def test_json_is_what_the_node_says(ctl: Ctl, what: str) -> None:
    line = f"show {what}" + (" api/per-client" if what == "table" else "")
    document = json.loads(ctl(line, "--json").output)
    assert isinstance(document, dict)
    assert document


def test_a_table_is_read_to_its_end_and_sought(ctl: Ctl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.ctl.commands.ROWS_A_PAGE", 2)
    assert len(lines(ctl("show table api/per-client"))) == 4
    assert len(lines(ctl("show table api/per-client --key header:x-tenant=t"))) == 2
    assert len(lines(ctl("show table api/per-client --key o"))) == 2
    assert len(lines(ctl("show table api/per-client --key nobody"))) == 1
    few = lines(ctl("show table api/per-client --rows 1"))
    assert few[-1] == "3 rows in all; --rows shows more"


def test_what_came_from_outside_does_not_command_the_terminal(ctl: Ctl) -> None:
    shown = ctl("show table api/per-client").output
    assert "header:x-tenant=\\x9b31m[bold]" in shown
    assert "\x9b" not in shown


def test_verbs_say_what_was_done(ctl: Ctl) -> None:
    for line, said in (
        ("set rate api/account 50/s", "is 50/s, burst 5, until the next reload"),
        ("set rate api/account 50/s --burst 9", "is 50/s, burst 9"),
        ("set rate api/account file", "is 100/s as in the file"),
        ("clear table api/per-client", "cleared 3 rows of api/per-client"),
        ("clear table api/per-client --key client=anonymous --key header:x-tenant=one", "1 row"),
        ("open breaker api", "the breaker of api is held open"),
        ("close breaker api", "the breaker of api is held closed"),
        (f"open breaker api --credential {'ab' * 16}", "credential abababab at api is held open"),
        (f"auto breaker api --credential {'ab' * 16}", "abababab at api decides by itself"),
        ("auto breaker api", "decides by itself"),
        ("pause api --for 30s", "api is paused"),
        ("resume api", "api goes on"),
        ("drain", "/ready says no"),
        ("drain --undo", "/ready says yes"),
        ("reload", "reloaded: generation"),
    ):
        # The gateway's own log comes to the same standard output here.
        (told,) = [one for one in lines(ctl(line)) if one.startswith("gw-test: ")]
        assert said in told, line
    assert json.loads(ctl("resume api", "--json").output)["reach"] == "node"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("show limits nobody", "no upstream nobody"),
        ("show table api/nobody", "no limit api/nobody"),
        ("set rate api/nobody 5/s", "has no limit nobody"),
        ("clear table api/account --key client=x", "key parts: none"),
        ("clear table api/per-client --key client=x --key header:x-tenant=-", "no row of this key"),
        ("open breaker nobody", "no upstream nobody"),
        ("open breaker api --credential xyz", "must match"),
        ("pause api --for 2h", "pause_max of api is 1h"),
        ("forget gw-9", "no member gw-9 is known"),
    ],
)
def test_the_nodes_no_is_status_1(ctl: Ctl, line: str, words: str) -> None:
    result = ctl(line)
    assert (result.exit_code, words in result.output) == (1, True), result.output
    assert result.output.startswith("egressd: ")


@pytest.mark.parametrize(
    "line",
    [
        "nonsense", "show", "show nonsense", "show table", "show table api", "show table a/b/c",
        "show table /x", "set rate api/account", "set rate api/account 50",
        "set rate api/account x", "set rate api/account 5/s --burst 0",
        "clear table api/account --key x", "open api",
        "pause", "pause api --for 5", "pause api --for 0s", "drain --nonsense", "forget",
        "show nodes extra", "show table api/account --rows 0",
    ],
)  # fmt: skip
def test_wrong_usage_is_status_2(ctl: Ctl, line: str) -> None:
    result = ctl(line)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output


def test_a_faulty_file_is_told_fault_by_fault(ctl: Ctl, gateway: Gateway) -> None:
    text = gateway.path.read_text()
    gateway.path.write_text(text + '\n[log]\nlevel = "loud"\n[nonsense]\n')
    result = ctl("reload")
    gateway.path.write_text(text)
    assert result.exit_code == 1
    assert "log.level" in result.output
    assert "nonsense" in result.output


@pytest.mark.parametrize("where", ["unix:/nonexistent/admin.sock", "127.0.0.1:1", "http://[::1]:1"])
def test_nobody_there_is_status_3(where: str) -> None:
    result = CliRunner().invoke(main, ["ctl", "--admin", where, "show", "nodes"])
    assert result.exit_code == 3
    assert result.output.startswith(f"egressd: {where}: ")


@pytest.mark.parametrize(
    "where",
    [
        "unix:",
        "https://127.0.0.1:9901",
        "ftp://x",
        "",
        "http://",
        "http://h/path",
        "h:port",
        "u@h:1",
    ],
)
def test_an_address_that_is_none_is_status_2(where: str) -> None:
    result = CliRunner().invoke(main, ["ctl", "--admin", where or "http:///", "show", "nodes"])
    assert result.exit_code == 2, result.output


def answered_by(octets: bytes) -> Result:
    """What ctl says where something else than egressd listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            peer, _ = server.accept()
            with peer:
                peer.recv(65536)
                peer.sendall(octets)

        thread = threading.Thread(target=serve)
        thread.start()
        where = f"127.0.0.1:{server.getsockname()[1]}"
        result = CliRunner().invoke(main, ["ctl", "--admin", where, "show", "nodes"])
        thread.join(10)
    return result


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{",
        b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 5\r\n\r\n<html",
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n[]",
        b"HTTP/1.1 " + b"9" * 100_000 + b"\r\n\r\n",
    ],
)
def test_something_else_there_is_status_3(octets: bytes) -> None:
    result = answered_by(octets)
    assert result.exit_code == 3, result.output
    assert result.output.startswith("egressd: 127.0.0.1:")


def test_a_token_is_sent_and_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADMIN", "correct-horse")
    admin = tmp_path / "admin.sock"
    conf = f"""
[[listen]]
bind = "127.0.0.1:0"
[admin]
bind = "unix:{admin}"
token = {{ env = "ADMIN" }}
"""
    token = tmp_path / "token"
    token.write_text("correct-horse\n")
    with Gateway(conf, tmp_path) as gateway:

        def status(*words: str, env: dict[str, str] | None = None) -> int:
            line = ["ctl", *words, "show", "nodes"]
            return CliRunner().invoke(main, line, env=env).exit_code

        where = ("--admin", f"unix:{admin}")
        assert status(*where) == 4
        assert status(env={"EGRESSD_ADMIN": where[1]}) == 4
        assert status(*where, env={"EGRESSD_ADMIN_TOKEN": "wrong"}) == 4
        assert status(*where, env={"EGRESSD_ADMIN_TOKEN": "correct-horse"}) == 0
        assert status(*where, "--token-file", str(token)) == 0
        # The file tells both.
        assert status("-c", str(gateway.path)) == 0
        assert status("--token-file", str(tmp_path / "none"), *where) == 2
    for garbage in (b"", b"\n", b"\xff\xfe", b"a\x00b"):
        token.write_bytes(garbage)
        assert status(*where, "--token-file", str(token)) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[nonsense]", "nonsense"),
        ('[[listen]]\nbind = "127.0.0.1:1"', "has no [admin]"),
    ],
)
def test_a_file_that_does_not_help_is_status_2(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "egressd.toml"
    path.write_text(text)
    result = CliRunner().invoke(main, ["ctl", "-c", str(path), "show", "nodes"])
    assert (result.exit_code, words in result.output) == (2, True), result.output


def test_run_does_not_pay_for_ctl() -> None:
    command: Any = main
    context = click.Context(command)
    assert {"ctl", "top", "run", "check"} <= set(command.list_commands(context))
    assert command.get_command(context, "nonsense") is None
