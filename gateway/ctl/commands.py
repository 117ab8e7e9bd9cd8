"""`egressd ctl`: HAProxy's verbs for a node's admin interface."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from gateway.clock import MS
from gateway.conf.units import parse_duration, parse_rate
from gateway.ctl.client import Admin, AdminError
from gateway.ctl.text import COLUMNS, json_text, plain_table, rich_table

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Reach", "ctl", "run_or_exit", "tell", "top", "write"]

DEFAULT_ADMIN = "127.0.0.1:9901"
TOKEN_ENV = "EGRESSD_ADMIN_TOKEN"  # noqa: S105 a name, no token
TOKEN_BYTES_MAX = 64 * 1024
ROWS_A_PAGE = 1000
PLAIN_COLUMNS = 160
_FILE = click.Path(dir_okay=False)


class Reach(NamedTuple):
    """How to come to the node, and how to write what it says."""

    admin: Admin
    as_json: bool


def _reach_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of every command that asks a node."""
    for option in (
        click.option(
            "--admin",
            "where",
            metavar="WHERE",
            envvar="EGRESSD_ADMIN",
            help="HOST:PORT, http://… or unix:PATH; or EGRESSD_ADMIN.",
        ),
        click.option("-c", "--conf", "path", type=_FILE, help="Takes WHERE and token from a file."),
        click.option("--token-file", type=_FILE, help=f"Holds the token; or {TOKEN_ENV}."),
    ):
        command = option(command)
    return command


def _admin_of(where: str | None, path: str | None, token_file: str | None) -> Admin:
    """The interface that the options name. Raises click.UsageError or AdminError."""
    import os

    token = os.environ.get(TOKEN_ENV, "")
    if token_file is not None:
        token = _read_token(token_file)
    if path is not None:
        bind, filed = _from_conf(path, where is None)
        where = where or bind
        token = token or filed
    try:
        return Admin(where or DEFAULT_ADMIN, token)
    except ValueError as error:
        raise click.UsageError(f"--admin {error}") from None


def _read_token(path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            token = file.read(TOKEN_BYTES_MAX).decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is not UTF-8 text"
        raise click.UsageError(f"--token-file {path}: {reason}") from None
    if not token or not token.isprintable():
        raise click.UsageError(f"--token-file {path}: holds no token")
    return token


def _from_conf(path: str, bind_wanted: bool) -> tuple[str, str]:
    """(where, token) of a configuration file's [admin]. Raises click.UsageError."""
    from gateway.conf.faults import ConfError
    from gateway.conf.load import load

    try:
        conf = load(path)
    except ConfError as error:
        raise click.UsageError(f"{error.faults[0]}; --admin tells the address") from None
    if conf.admin is None:
        raise click.UsageError(f"{path} has no [admin]")
    bind = conf.admin.bind
    if bind.kind == "systemd" and bind_wanted:
        raise click.UsageError(f"{path}: admin.bind is {bind}; --admin tells the address")
    if bind.is_wildcard:
        bind = bind._replace(host="::1" if ":" in bind.host else "127.0.0.1")
    return str(bind), conf.admin.token.reveal() if conf.admin.token is not None else ""


def run_or_exit(work: Callable[[], None]) -> None:
    """Does it; an AdminError becomes a line on standard error and its exit status."""
    try:
        work()
    except AdminError as error:
        click.echo(f"egressd: {error}", err=True)
        sys.exit(error.exit_status)


@click.group()
@_reach_options
@click.option("--json", "as_json", is_flag=True, help="Write what the node says as JSON.")
@click.pass_context
def ctl(
    context: click.Context,
    where: str | None,
    path: str | None,
    token_file: str | None,
    as_json: bool,
) -> None:
    """Ask a running node, or tell it what to do, through its admin interface.

    \b
      show nodes | members | upstreams | limits | breakers | waits | pools
           | clients | conf | log | info | table UPSTREAM/LIMIT
      set rate UPSTREAM/LIMIT 50/s      until the next reload; "file" takes it back
      clear table UPSTREAM/LIMIT        forgives all rows, or one by --key
      open | close | auto breaker UP    holds a breaker on this node, or lets it go
      pause UPSTREAM --for 30s          on all nodes
      resume UPSTREAM                   on all nodes
      drain [--undo]                    /ready says no, the process goes on
      reload                            as SIGHUP; says every fault of the file
      forget MEMBER                     a dead member, so that no majority waits for it
      spool list | show | requeue | drop | pause | resume    durably accepted requests

    Without --admin or -c it asks 127.0.0.1:9901. Exit status: 0 done, 1 the node said no, 2 wrong
    usage, 3 no answer, 4 the token is missing or wrong.
    """
    context.obj = Reach(_admin_of(where, path, token_file), as_json)


@ctl.group()
def show() -> None:
    """What the node knows."""


def write(reach: Reach, kind: str, document: dict[str, Any], items: Sequence[Any]) -> None:
    """A resource as JSON, as a table for a terminal, or as plain columns."""
    if reach.as_json:
        click.echo(json_text(document))
    elif sys.stdout.isatty():
        from rich.console import Console

        Console().print(rich_table(COLUMNS[kind], items))
    else:
        click.echo(plain_table(COLUMNS[kind], items), nl=False)


def _show(name: str, resource: str, about: str, by_upstream: bool) -> None:
    def show_one(reach: Reach, upstream: str | None = None) -> None:
        def work() -> None:
            document = reach.admin.get(resource, upstream=upstream)
            write(reach, resource, document, document[resource])

        run_or_exit(work)

    command: Any = click.pass_obj(show_one)
    if by_upstream:
        command = click.argument("upstream", required=False)(command)
    show.command(name, help=about)(command)


for _name, _resource, _about, _by_upstream in (
    ("nodes", "nodes", "Nodes: version, uptime, configuration, readiness.", False),
    ("members", "members", "The mesh as this node knows it.", False),
    ("upstreams", "upstreams", "Upstreams: counts and latencies.", True),
    ("limits", "limits", "Limits: figures in force, sums over their rows.", True),
    ("breakers", "breakers", "Breakers of upstreams and credentials.", True),
    ("waits", "waits", "Queues of held requests.", True),
    ("pools", "pools", "Connections to upstreams.", True),
    ("clients", "clients", "Who may ask, and what they have under way.", False),
    ("log", "recent", "What the node logged last.", False),
):
    _show(_name, _resource, _about, _by_upstream)


@show.command("conf")
@click.pass_obj
def show_conf(reach: Reach) -> None:
    """The configuration in force, as JSON; secrets by where they come from."""

    def work() -> None:
        document = reach.admin.get("conf")
        confs = [item["conf"] for item in document["conf"]]
        shown = confs[0] if len(confs) == 1 and not reach.as_json else document
        click.echo(json_text(shown))

    run_or_exit(work)


@show.command("info")
@click.pass_obj
def show_info(reach: Reach) -> None:
    """One node's own figures, a line each, as HAProxy's show info."""

    def work() -> None:
        document = reach.admin.get("nodes")
        if reach.as_json:
            click.echo(json_text(document))
            return
        from gateway.ctl.text import shown

        for item in document["nodes"]:
            for name, value in item.items():
                click.echo(f"{name}: {shown(value)}")

    run_or_exit(work)


@show.command("table")
@click.argument("table", metavar="UPSTREAM/LIMIT")
@click.option("--key", metavar="[PART=]PREFIX", help="Rows with a key part that begins so.")
@click.option("--rows", default=ROWS_A_PAGE, type=click.IntRange(1), help="At most so many.")
@click.pass_obj
def show_table(reach: Reach, table: str, key: str | None, rows: int) -> None:
    """The rows of a limit, in the order of their keys."""
    upstream, limit = _table_name(table)
    part, equals, prefix = (key or "").partition("=")
    if not equals:
        part, prefix = "", part

    def work() -> None:
        document = reach.admin.get_paged(
            *("tables", upstream, limit), part=part or None, prefix=prefix or None,
            items="rows", most=rows, a_page=ROWS_A_PAGE,
        )  # fmt: skip
        write(reach, "rows", document, document["rows"])
        if not reach.as_json and document["next"] is not None:
            click.echo(f"{document['total']} rows in all; --rows shows more", err=True)

    run_or_exit(work)


def _table_name(text: str) -> tuple[str, str]:
    upstream, slash, limit = text.partition("/")
    if not slash or not upstream or not limit or "/" in limit:
        raise click.UsageError(f"{text!r} is not UPSTREAM/LIMIT")
    return upstream, limit


def tell(reach: Reach, method: str, *path: str, **body: object) -> None:
    """Has the node do something and writes what it says, or ends with its refusal."""

    def work() -> None:
        document = reach.admin.tell(method, *path, **body)
        if reach.as_json:
            click.echo(json_text(document))
            return
        from gateway.ctl.text import shown

        everywhere = " (on all nodes)" if document["reach"] == "mesh" else ""
        click.echo(shown(f"{document['node']}: {document['done']}{everywhere}"))

    run_or_exit(work)


@ctl.group("set")
def set_() -> None:
    """Change a figure until the next reload."""


@set_.command("rate")
@click.argument("table", metavar="UPSTREAM/LIMIT")
@click.argument("rate")
@click.option("--burst", type=click.IntRange(1), help="Default: the file's, or a tenth of RATE.")
@click.pass_obj
def set_rate(reach: Reach, table: str, rate: str, burst: int | None) -> None:
    """Give a limit another RATE ("50/s"), or "file": the one of the file again."""
    upstream, limit = _table_name(table)
    body: dict[str, object] = {"rate": None}
    if rate != "file":
        try:
            body["rate"] = str(parse_rate(rate))
        except ValueError as error:
            raise click.UsageError(f"RATE: {error}") from None
    if burst is not None:
        body["burst"] = burst
    tell(reach, "PUT", "limits", upstream, limit, "rate", **body)


@ctl.group()
def clear() -> None:
    """Forgive what was used."""


@clear.command("table")
@click.argument("table", metavar="UPSTREAM/LIMIT")
@click.option("--key", "keys", multiple=True, metavar="PART=VALUE", help="One row; all its parts.")
@click.pass_obj
def clear_table(reach: Reach, table: str, keys: tuple[str, ...]) -> None:
    """Forgive all rows of a limit, or the one whose key has these parts ("PART=-": absent)."""
    upstream, limit = _table_name(table)
    body = {}
    if keys:
        pairs = [key.partition("=") for key in keys]
        if not all(equals for _, equals, _ in pairs):
            raise click.UsageError("--key is PART=VALUE, as `ctl show table` writes it")
        body["key"] = {part: None if value == "-" else value for part, _, value in pairs}
    tell(reach, "POST", "tables", upstream, limit, "clear", **body)


def _breaker_verb(verb: str, state: str, about: str) -> None:
    group = click.Group(verb, help=about)

    def force(reach: Reach, upstream: str, credential: str | None) -> None:
        body = {"credential": credential} if credential else {}
        tell(reach, "PUT", "breakers", upstream, state=state, **body)

    command: Any = click.pass_obj(force)
    command = click.option("--credential", metavar="HASH", help="That credential's.")(command)
    command = click.argument("upstream")(command)
    group.command("breaker", help=about)(command)
    ctl.add_command(group)


_breaker_verb("open", "open", "Hold a breaker open on this node: nothing goes.")
_breaker_verb("close", "closed", "Hold a breaker closed on this node: all goes.")
_breaker_verb("auto", "auto", "Let a breaker decide by itself again.")


@ctl.command()
@click.argument("upstream")
@click.option("--for", "length", default="1m", show_default=True, help='As in the file: "30s".')
@click.pass_obj
def pause(reach: Reach, upstream: str, length: str) -> None:
    """Pause an upstream on all nodes, as its own 429 would."""
    try:
        for_ms = max(1, parse_duration(length) // MS)
    except ValueError as error:
        raise click.UsageError(f"--for: {error}") from None
    tell(reach, "POST", "upstreams", upstream, "pause", for_ms=for_ms)


@ctl.command()
@click.argument("upstream")
@click.option("--credential", metavar="HASH", help="Only that credential's pause.")
@click.pass_obj
def resume(reach: Reach, upstream: str, credential: str | None) -> None:
    """End a pause on all nodes before its time."""
    body = {"credential": credential} if credential else {}
    tell(reach, "POST", "upstreams", upstream, "resume", **body)


@ctl.command()
@click.option("--undo", is_flag=True, help="Serve again.")
@click.pass_obj
def drain(reach: Reach, undo: bool) -> None:
    """Take the node out of its virtual address: /ready says no, the process goes on."""
    tell(reach, "PUT", "drain", draining=not undo)


@ctl.command()
@click.pass_obj
def reload(reach: Reach) -> None:
    """Read the configuration file again; says every fault if there are any."""
    tell(reach, "POST", "reload")


@ctl.command()
@click.argument("member")
@click.pass_obj
def forget(reach: Reach, member: str) -> None:
    """Strike out a dead member, so that no majority waits for it."""
    tell(reach, "POST", "members", member, "forget")


@click.command()
@_reach_options
@click.option("--once", is_flag=True, help="Print one frame and end.")
def top(where: str | None, path: str | None, token_file: str | None, once: bool) -> None:
    """Watch a running node: limits, upstreams, breakers, waits, members. q ends it."""
    from rich.console import Console

    from gateway.ctl.top import play, print_once

    admin = _admin_of(where, path, token_file)
    terminal = sys.stdout.isatty()
    if not once and not terminal:
        raise click.UsageError("a live view needs a terminal; --once prints one frame")
    # Off a terminal a frame is as wide as it has to be: nobody wants half a name in a log.
    console = Console(width=None if terminal else PLAIN_COLUMNS)
    run_or_exit(lambda: (print_once if once else play)(admin, console))
