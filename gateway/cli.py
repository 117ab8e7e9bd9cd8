"""The command line: run, check, schema, ctl, top, sim, demo.

Exit status: 0 done, 1 the file has faults or the node cannot start, 2 wrong usage (click's own).
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from typing import TYPE_CHECKING

import click

from gateway.build import build_kind, egressd_version
from gateway.plan import sim

if TYPE_CHECKING:
    from gateway.server import Server
    from gateway.supervisor import Supervisor

__all__ = ["main"]

# What a path may be is the loader's to say, as a fault with exit status 1, and not click's.
_FILE = click.Path(readable=False)


def _load(path: str, overrides: tuple[str, ...]):  # type: ignore[no-untyped-def]
    """The conf, or exit status 1 with every fault on standard error."""
    from gateway.conf.faults import ConfError
    from gateway.conf.load import load

    try:
        return load(path, overrides)
    except ConfError as error:
        for fault in error.faults:
            click.echo(str(fault), err=True)
        sys.exit(1)


class _Commands(click.Group):
    """Commands that ask a running node are imported when they are named: `run` needs none."""

    LATE = ("ctl", "top")

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *self.LATE])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self.LATE:
            from gateway.ctl import commands, spool

            commands.ctl.add_command(spool.spool)

            return commands.ctl if cmd_name == "ctl" else commands.top
        return super().get_command(ctx, cmd_name)


def _say_version(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    """Looked up only when it is asked for: that reads the disk."""
    if wanted and not ctx.resilient_parsing:
        click.echo(f"egressd, version {egressd_version()} ({build_kind()})")
        ctx.exit()


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_say_version,
    help="Show the version and exit.",
)
def main() -> None:
    """An egress gateway whose nodes keep an external API's rate limit together, without a store."""


main.add_command(sim)


@main.command()
@click.option("-c", "--conf", "path", required=True, type=_FILE, help="The configuration file.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Overrides one key of the file, e.g. --set node.name=gw-2.",
)
def run(path: str, overrides: tuple[str, ...]) -> None:
    """Serve. SIGHUP reloads, SIGTERM drains, SIGUSR1 reopens the log.

    With several workers SIGUSR2 replaces them, one after the other.
    """
    # Signals that come while the node starts: a reload is remembered, the log is not open yet.
    noted: list[int] = []
    signal.signal(signal.SIGHUP, lambda number, _: noted.append(number))
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    import uvloop

    from gateway.process import (
        ServeError,
        configure_log,
        favour_loop,
        raise_file_limit,
        tune_memory,
    )
    from gateway.sockets import OwnSockets, inherited_sockets
    from gateway.supervisor import Supervisor, worker_count
    from gateway.systemd import Notifier

    conf = _load(path, overrides)
    kind: type[Supervisor] | type[Server] = Supervisor
    if worker_count(conf) == 1:
        # A supervisor serves nobody and starts its workers sooner without the data path.
        from gateway.server import Server

        kind = Server
    configure_log(conf.log.level)
    raise_file_limit()
    tune_memory()
    favour_loop()

    async def serve() -> None:
        try:
            notifier = Notifier.from_environ(os.environ)
            sockets = OwnSockets(inherited_sockets(os.environ))
        except OSError as error:
            raise ServeError(str(error)) from error
        server = kind(conf, path, overrides, sockets=sockets, notifier=notifier)
        server.reload_noted = bool(noted)
        await server.run()

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve())
    except ServeError as error:
        click.echo(f"egressd: {error}", err=True)
        sys.exit(1)


@main.command()
@click.argument("path", metavar="FILE", type=_FILE)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="As for run.")
@click.option("--json", "as_json", is_flag=True, help="Faults as a JSON array.")
def check(path: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Judge a configuration file: every fault at once, or a short account of it."""
    from gateway.conf.account import account, members_expected
    from gateway.conf.advice import warnings
    from gateway.conf.faults import ConfError
    from gateway.conf.load import load

    try:
        conf = load(path, overrides)
    except ConfError as error:
        if as_json:
            click.echo(json.dumps([fault._asdict() for fault in error.faults], indent=2))
        else:
            for fault in error.faults:
                click.echo(str(fault), err=True)
        sys.exit(1)
    if as_json:
        click.echo("[]")
        return
    members = members_expected(conf, len(os.sched_getaffinity(0)))
    for line in account(conf, members):
        click.echo(line)
    for line in warnings(conf, members):
        click.echo(f"warning: {line}")


@main.command()
def schema() -> None:
    """Print the JSON Schema of the configuration file, for editors."""
    from gateway.conf.schema import json_schema

    click.echo(json.dumps(json_schema(), indent=2))


@main.command()
@click.option("--hold", is_flag=True, help="Keep the mesh running until interrupted.")
@click.option("--plain", is_flag=True, help="Plain lines even on a terminal.")
def demo(hold: bool, plain: bool) -> None:
    """Show three nodes keep one limit, and all stop on one 429 (about 30 s)."""
    from gateway.demo.scene import main as play

    sys.exit(play(hold=hold, plain=True if plain else None))
