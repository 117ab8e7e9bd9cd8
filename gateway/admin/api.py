"""`/api/v1/` as one table of operations: paths, what they take, what they give, who does it.

The routes, the judgement of what comes in, and the OpenAPI document are all made from it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl

from gateway.admin import spooled, verbs
from gateway.admin.items import KEY, ROW_ITEM
from gateway.admin.pace import LEVELS, paced
from gateway.admin.problems import Problem
from gateway.admin.resources import RESOURCES, Resource
from gateway.admin.shapes import Shape, faults, integer, listed, maybe, record, text, truth
from gateway.admin.tables import PLACE_BYTES_MAX, ROWS_A_PAGE_MAX, Sought, page_steps, table_of
from gateway.admin.views import node_steps
from gateway.conf.units import RATE_PATTERN

if TYPE_CHECKING:
    from gateway.admin.views import Served

__all__ = [
    "BODY_BYTES_MAX",
    "EVENTS_QUERY",
    "OPERATIONS",
    "Ask",
    "Operation",
    "body_of",
    "query_of",
]

PREFIX = "/api/v1"
BODY_BYTES_MAX = 16 * 1024  # a row's key may be long; figures are not
QUERY_PARAMETERS_MAX = 16
NAME_PATTERN = "^[a-z0-9][a-z0-9-]{0,62}$"
HASH_PATTERN = "^[0-9a-f]{8,32}$"
FOR_MS_MAX = 366 * 24 * 3600 * 1000  # the longest duration of a file; pause_max is the real bound

CURSOR_BYTES_MAX = 1 + PLACE_BYTES_MAX  # of several workers, after the number of one of them
CONF_LEVELS = 5  # conf, the node's, `conf`, `upstream`, and each of them

Body = dict[str, Any]


class Ask(NamedTuple):
    """One request, judged: what the path, the query and the body say."""

    path: dict[str, str]
    query: dict[str, Any]
    body: Body


class Operation(NamedTuple):
    """One method on one path. `takes` is the body's shape, None where there is none.

    `levels`: below so many levels what it gives is small (see `pace`).
    """

    name: str
    method: str
    path: str
    about: str
    call: Callable[[Served, Ask], Awaitable[Any]]
    gives: Shape
    query: dict[str, Shape] = {}  # noqa: RUF012 never changed
    takes: Shape | None = None
    levels: int = LEVELS


async def _resource(resource: Resource, name: str, served: Served, ask: Ask) -> Body:
    names = list(served.worker.runtime.upstreams)
    wanted = ask.query.get("upstream")
    if wanted is not None:
        if wanted not in names:
            raise Problem(404, f"no upstream {wanted}")
        names = [wanted]
    return {name: await paced(resource.read(served, names))}


async def _node(served: Served, ask: Ask) -> Body:
    return await paced(node_steps(served))


async def _page(served: Served, ask: Ask) -> Body:
    upstream, limit = ask.path["upstream"], ask.path["limit"]
    try:
        table = table_of(served, upstream, limit)
    except LookupError:
        raise Problem(404, f"no limit {upstream}/{limit}") from None
    parts = [str(part) for part in table.conf.key]
    sought = Sought(ask.query.get("part", ""), ask.query.get("prefix", ""))
    if sought.part and sought.part not in parts:
        raise Problem(
            409, f"part must be one of the limit's key parts: {', '.join(parts) or 'none'}"
        )
    after = bytes.fromhex(ask.query["after"]) if "after" in ask.query else None
    count = ask.query.get("count", 100)
    return await paced(page_steps(served, table, sought, after, count))


async def _set_rate(served: Served, ask: Ask) -> Body:
    return verbs.set_rate(served, ask.path["upstream"], ask.path["limit"], ask.body)


async def _clear(served: Served, ask: Ask) -> Body:
    return await paced(verbs.clear(served, ask.path["upstream"], ask.path["limit"], ask.body))


async def _breaker(served: Served, ask: Ask) -> Body:
    return verbs.set_breaker(served, ask.path["upstream"], ask.body)


async def _pause(served: Served, ask: Ask) -> Body:
    return verbs.pause(served, ask.path["upstream"], ask.body)


async def _resume(served: Served, ask: Ask) -> Body:
    return verbs.resume(served, ask.path["upstream"], ask.body)


async def _drain(served: Served, ask: Ask) -> Body:
    return verbs.drain(served, ask.body)


async def _reload(served: Served, ask: Ask) -> Body:
    return await verbs.reload(served, ask.body)


async def _spool_page(served: Served, ask: Ask) -> Body:
    return await spooled.listed(served, ask.query)


async def _spool_record(served: Served, ask: Ask) -> Body:
    return await spooled.shown(served, ask.path["record"])


async def _spool_requeue(served: Served, ask: Ask) -> Body:
    return await spooled.requeue(served, ask.path["record"])


async def _spool_drop(served: Served, ask: Ask) -> Body:
    return await spooled.drop(served, ask.path["record"])


async def _spool_hold(served: Served, ask: Ask) -> Body:
    return await spooled.hold(served, ask.path["upstream"], held=ask.body["held"])


async def _forget(served: Served, ask: Ask) -> Body:
    return verbs.forget(served, ask.path["member"], ask.body)


EVENTS_QUERY = {
    "snapshots": integer("End after so many; default: never.", minimum=1, maximum=1_000_000)
}
_UPSTREAM_QUERY = {"upstream": text("Only this upstream's.", pattern=NAME_PATTERN)}
_CREDENTIAL = text("A credential's hash, or its beginning.", pattern=HASH_PATTERN)


def _reader(name: str, resource: Resource) -> Operation:
    return Operation(
        f"list_{name}",
        "GET",
        f"/{name}",
        resource.about,
        partial(_resource, resource, name),
        record({name: listed(resource.item)}),
        _UPSTREAM_QUERY if resource.by_upstream else {},
        levels=CONF_LEVELS if name == "conf" else LEVELS,
    )


OPERATIONS: tuple[Operation, ...] = (
    *(_reader(name, resource) for name, resource in RESOURCES.items()),
    Operation(
        "show_node",
        "GET",
        "/node",
        "Everything about this node at once, for a monitor.",
        _node,
        {"type": "object", "description": "node, upstreams, members, mesh, counts."},
    ),
    Operation(
        "show_table",
        "GET",
        "/tables/{upstream}/{limit}",
        "A limit's rows by pages, in the order of their keys.",
        _page,
        record(
            {
                "rows": listed(ROW_ITEM),
                "total": integer("Rows kept, whatever was sought."),
                "next": maybe(text("`after` of the next page; null: this is the last.")),
            }
        ),
        {
            "part": text("Only look at this key part.", maxLength=256),
            "prefix": text("Only rows with a value that begins so.", maxLength=1024),
            "after": text(
                "`next` of the page before.",
                pattern=f"^([0-9a-f]{{2}}){{0,{CURSOR_BYTES_MAX}}}$",
            ),
            "count": integer("Rows a page.", minimum=1, maximum=ROWS_A_PAGE_MAX, default=100),
        },
    ),
    Operation(
        "set_rate",
        "PUT",
        "/limits/{upstream}/{limit}/rate",
        "Gives a limit another rate until the next reload; null: the file's again.",
        _set_rate,
        verbs.DONE,
        takes=record(
            {
                "rate": maybe(text('As in the file: "50/s".', pattern=RATE_PATTERN)),
                "burst": integer("Tokens at once.", minimum=1, maximum=0xFFFF_FFFF),
            },
            optional=("burst",),
        ),
    ),
    Operation(
        "clear_table",
        "POST",
        "/tables/{upstream}/{limit}/clear",
        "Forgives a limit's rows: all, or the one with this key.",
        _clear,
        verbs.DONE,
        takes=record({"key": KEY}, optional=("key",)),
    ),
    Operation(
        "set_breaker",
        "PUT",
        "/breakers/{upstream}",
        "Holds a breaker open or closed on this node, or lets it decide again.",
        _breaker,
        verbs.DONE,
        takes=record(
            {"state": text(enum=list(verbs.FORCED)), "credential": _CREDENTIAL},
            optional=("credential",),
        ),
    ),
    Operation(
        "pause_upstream",
        "POST",
        "/upstreams/{upstream}/pause",
        "Pauses an upstream on all nodes, as its own throttle would.",
        _pause,
        verbs.DONE,
        takes=record({"for_ms": integer("How long.", minimum=1, maximum=FOR_MS_MAX)}),
    ),
    Operation(
        "resume_upstream",
        "POST",
        "/upstreams/{upstream}/resume",
        "Ends a pause, of the upstream or of a credential, on all nodes.",
        _resume,
        verbs.DONE,
        takes=record({"credential": _CREDENTIAL}, optional=("credential",)),
    ),
    Operation(
        "drain",
        "PUT",
        "/drain",
        "Takes this node out of its virtual address (/ready says no), or puts it back.",
        _drain,
        verbs.DONE,
        takes=record({"draining": truth()}),
    ),
    Operation(
        "reload",
        "POST",
        "/reload",
        "Reads the configuration file again, as SIGHUP does.",
        _reload,
        verbs.DONE,
        takes=record({}),
    ),
    Operation(
        "list_spool",
        "GET",
        "/spool",
        "Durably accepted requests, a page in the order of acceptance.",
        _spool_page,
        record(
            {
                "records": listed(spooled.RECORD_ITEM),
                "next": maybe(integer("`after` of the next page; null: this is the last.")),
            }
        ),
        {
            "upstream": text("Only this upstream's.", pattern=NAME_PATTERN),
            "state": text("Only these.", enum=list(spooled.STATES)),
            "after": integer("`next` of the page before.", minimum=0, maximum=999_999_999),
            "count": integer("Records a page.", minimum=1, maximum=ROWS_A_PAGE_MAX, default=100),
        },
    ),
    Operation(
        "show_spool_record",
        "GET",
        "/spool/records/{record}",
        "One durably accepted request, without its body and fields.",
        _spool_record,
        spooled.RECORD_ITEM,
    ),
    Operation(
        "requeue_spool_record",
        "POST",
        "/spool/records/{record}/requeue",
        "Sends a dead letter again, with all its attempts and a new time.",
        _spool_requeue,
        verbs.DONE,
        takes=record({}),
    ),
    Operation(
        "drop_spool_record",
        "POST",
        "/spool/records/{record}/drop",
        "Takes a record out, unless it is being sent.",
        _spool_drop,
        verbs.DONE,
        takes=record({}),
    ),
    Operation(
        "hold_spool",
        "PUT",
        "/spool/upstreams/{upstream}",
        "Holds back what is stored for an upstream, over restarts, or lets it go on.",
        _spool_hold,
        verbs.DONE,
        takes=record({"held": truth()}),
    ),
    Operation(
        "forget_member",
        "POST",
        "/members/{member}/forget",
        "Strikes out a member that will not come back.",
        _forget,
        verbs.DONE,
        takes=record({}),
    ),
)


def query_of(parameters: dict[str, Shape], octets: bytes) -> dict[str, Any]:
    """The query's parameters, judged. Raises Problem."""
    try:
        pairs = parse_qsl(
            octets.decode("ascii"),
            keep_blank_values=True,
            strict_parsing=bool(octets),
            errors="strict",
            max_num_fields=QUERY_PARAMETERS_MAX,
        )
    except ValueError:
        raise Problem(400, "the query is no list of NAME=VALUE") from None
    values: dict[str, Any] = {}
    wrong = []
    for name, value in pairs:
        shape = parameters.get(name)
        if shape is None:
            allowed = ", ".join(parameters) or "none"
            wrong.append(f"no parameter {name[:40]!a}; there are: {allowed}")
        elif name in values:
            wrong.append(f"{name} is there twice")
        else:
            whole = shape["type"] == "integer" and re.fullmatch("[0-9]{1,9}", value)
            values[name] = int(value) if whole else value
            wrong += faults(values[name], shape, name)
    if wrong:
        raise Problem(400, wrong[0], wrong)
    return values


def body_of(operation: Operation, octets: bytes) -> Body:
    """The body, judged. Raises Problem."""
    assert operation.takes is not None
    try:
        value = json.loads(
            octets, object_pairs_hook=_unique, parse_constant=_no_number, parse_float=_number
        )
    except (ValueError, RecursionError) as error:
        why = f": {error}" if isinstance(error, _TwiceError) else ""
        raise Problem(400, f"the body is no JSON value{why}") from None
    wrong = faults(value, operation.takes)
    if wrong:
        raise Problem(400, wrong[0], wrong)
    body: Body = value
    return body


class _TwiceError(ValueError):
    """A key that is there twice: two readers would take different values."""


def _unique(pairs: list[tuple[str, Any]]) -> Body:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise _TwiceError("a key is there twice")
    return value


def _number(digits: str) -> float:
    """A number with a fraction or an exponent; 5.0 and 5e0 are the whole number 5, as for JSON
    Schema."""
    value = float(digits)
    return int(value) if value.is_integer() else value


def _no_number(name: str) -> None:
    raise ValueError(name)  # NaN and Infinity, which JSON does not have
