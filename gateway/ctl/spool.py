"""`egressd ctl spool`: what is stored on a node, and what is done with dead letters."""

from __future__ import annotations

import click

from gateway.ctl.commands import Reach, run_or_exit, tell, write
from gateway.ctl.text import json_text, shown

__all__ = ["spool"]

RECORDS_A_PAGE = 1000
STATES = ("queued", "sending", "done", "dead")


@click.group()
def spool() -> None:
    """Durably accepted requests: what waits, what was given up."""


@spool.command("list")
@click.argument("upstream", required=False)
@click.option("--state", type=click.Choice(STATES), help="Only these.")
@click.option("--rows", default=RECORDS_A_PAGE, type=click.IntRange(1), help="At most so many.")
@click.pass_obj
def list_(reach: Reach, upstream: str | None, state: str | None, rows: int) -> None:
    """Stored requests in the order of acceptance."""

    def work() -> None:
        document = reach.admin.get_paged(
            "spool", upstream=upstream, state=state,
            items="records", most=rows, a_page=RECORDS_A_PAGE,
        )  # fmt: skip
        write(reach, "spool", document, document["records"])
        if not reach.as_json and document["next"] is not None:
            click.echo("there are more; --rows shows them", err=True)

    run_or_exit(work)


@spool.command("show")
@click.argument("record", metavar="ID")
@click.pass_obj
def show(reach: Reach, record: str) -> None:
    """One stored request, a line for each figure."""

    def work() -> None:
        document = reach.admin.get("spool", "records", record)
        if reach.as_json:
            click.echo(json_text(document))
            return
        for name, value in document.items():
            click.echo(f"{name}: {shown(value)}")

    run_or_exit(work)


@spool.command("requeue")
@click.argument("record", metavar="ID")
@click.pass_obj
def requeue(reach: Reach, record: str) -> None:
    """Send a dead letter again, with all its attempts and a new time."""
    tell(reach, "POST", "spool", "records", record, "requeue")


@spool.command("drop")
@click.argument("record", metavar="ID")
@click.pass_obj
def drop(reach: Reach, record: str) -> None:
    """Take a stored request out, unless it is being sent."""
    tell(reach, "POST", "spool", "records", record, "drop")


@spool.command("pause")
@click.argument("upstream")
@click.pass_obj
def pause(reach: Reach, upstream: str) -> None:
    """Hold back what is stored for an upstream, over restarts; live requests go on.

    With Kafka it is held back on this node, until it ends.
    """
    tell(reach, "PUT", "spool", "upstreams", upstream, held=True)


@spool.command("resume")
@click.argument("upstream")
@click.pass_obj
def resume(reach: Reach, upstream: str) -> None:
    """Send again what is stored for an upstream."""
    tell(reach, "PUT", "spool", "upstreams", upstream, held=False)
