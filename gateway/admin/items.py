"""The shapes of what `/api/v1/` shows: every key of every item, with what it means."""

from __future__ import annotations

from gateway.admin.shapes import Shape, integer, listed, maybe, number, record, text, truth
from gateway.clock import MS
from gateway.proxy.histogram import BOUNDS_NS

__all__ = [
    "BREAKER_ITEM",
    "CLIENT_ITEM",
    "CONF_ITEM",
    "COUNTS",
    "KEY",
    "LIMIT_ITEM",
    "MEMBER_ITEM",
    "NODE_ITEM",
    "POOL_ITEM",
    "RECENT_ITEM",
    "ROW_ITEM",
    "UPSTREAM_ITEM",
    "WAIT_ITEM",
]

_NODE = text("The node that tells; NAME/NUMBER is one of its several workers.")
_NAME = text("Its name in the file.")
_UPSTREAM = text("The upstream's name.")
KEY: Shape = {
    "type": "object",
    "additionalProperties": {"type": ["string", "null"]},
    "description": "The row's key by part; null where the request had none, a credential as hash.",
}
COUNTS = {
    "requests": "Requests routed to it.",
    "admitted": "Requests that all limits let through.",
    "waited": "Requests that were held before they were decided.",
    "refused": "Requests that a limit refused.",
    "paused": "Requests refused because of a pause or an open breaker.",
    "pauses": "Pauses and openings.",
    "failed": "Requests that failed at or on the way to it.",
    "aborted": "Requests whose client left.",
    "retried": "Requests sent again.",
    "throttled": "Answers by which it asked for less.",
    "trials": "Requests that went as a trial.",
    "preempted": "Pauses that a success announced.",
}
_STATES = ["closed", "open", "half_open"]
_POOL = {
    "idle": integer("Connections without a request."),
    "open": integer("Connections, idle and busy."),
    "dialling": integer("Connections being made."),
    "in_use": integer("Exchanges that hold a place."),
}

NODE_ITEM = record(
    {
        "node": _NODE,
        "name": text("The name in the file."),
        "version": text("The version."),
        "build": text("Whether what runs per request is compiled."),
        "uptime_s": number("Since the process was made."),
        "now_ns": integer("CLOCK_MONOTONIC."),
        "generation": integer("Which configuration is in force."),
        "reloads": integer("Reloads that were taken over."),
        "reload_failures": integer("Reloads that were refused."),
        "reload_success": truth("Whether the last one was."),
        "codec": text("Who tokenizes HTTP/1.1."),
        "connections": integer("Client connections."),
        "tasks": integer("Tasks of the event loop; none is a request's."),
        "draining": truth("Whether new requests should go elsewhere."),
        "ready": truth("What /ready says."),
        "config_hash": text("Equal on nodes with the same file; names and addresses apart."),
        "cluster": maybe(text("The mesh's name; null without one.")),
        "members_live": integer("Members that answer, this one included."),
        "members_known": integer("Members that count for a majority."),
        "upstreams": integer("Upstreams in the file."),
        "waiting": integer("Requests held now."),
    }
)
MEMBER_ITEM = record(
    {
        "node": _NODE,
        "name": text("The member's name."),
        "self": truth("Whether it is the node that tells."),
        "state": text("alive, unheard (alive as others say), suspect, dead or left."),
        "address": text("Where it is."),
        "heard_from": maybe(text("Where it speaks from, if it does not answer at its address.")),
        "rtt_ms": maybe(number("The last round trip; null: none measured.")),
        "heard_ms": maybe(number("Since it was last heard; null: never.")),
        "loss": maybe(number("Share of datagrams lost one way; null: none measured.")),
        "datagrams_received": integer("From it, since it started."),
        "bytes_received": integer("From it, since it started."),
        "datagrams_sent": integer("To it, since this node started."),
        "bytes_sent": integer("To it, since this node started."),
    }
)
UPSTREAM_ITEM = record(
    {
        "node": _NODE,
        "name": _NAME,
        "origin": text("Scheme, host and port."),
        "addresses": listed(text(), "Where to connect instead of resolving."),
        "provider": text("Whose dialect of rate-limit fields is read."),
        "protocol": text("The HTTP version spoken to it."),
        **{key: integer(about) for key, about in COUNTS.items()},
        "wait_s": number("Time that requests were held."),
        "responses": record({f"{digit}xx": integer() for digit in range(1, 6)}),
        "throttle_scopes": {
            "type": "object",
            "additionalProperties": integer(),
            "description": "Throttles by what they were of, where the API tells.",
        },
        "latency_ms": record(
            {f"p{share}": maybe(number()) for share in (50, 90, 99)},
            "Time to a response's head since the start.",
        ),
        "heads": listed(
            integer(),
            "Responses by the time to their head, in classes up to "
            + ", ".join(f"{bound_ns / MS:g}" for bound_ns in BOUNDS_NS)
            + " ms and above.",
        ),
        "waiting": integer("Requests held now."),
        "breaker": text("The state of its own breaker.", enum=_STATES),
        "breakers_active": integer("Breakers of it and its credentials that are looked at."),
        "rate_factor": number("Share of the rates in force after a throttle."),
    }
)
LIMIT_ITEM = record(
    {
        "node": _NODE,
        "upstream": _UPSTREAM,
        "name": _NAME,
        "sync": text("How nodes share it."),
        "algorithm": text("smooth, window or in_flight."),
        "rate": maybe(text("In force; null for slots.")),
        "burst": integer("Tokens at once."),
        "quota": integer("Tokens a period, or slots."),
        "dry_run": truth("Whether it only counts."),
        "refused": integer("Requests it had no room for at their first try."),
        "would_refuse": integer("The same in a dry run."),
        "rows": integer("Rows kept."),
        "rows_read": integer("Rows that the sums below are of."),
        "admitted_own": integer("Tokens taken here."),
        "admitted_mesh": integer("Tokens taken by all, as known here."),
        "admitted_peers": {
            "type": "object",
            "additionalProperties": integer(),
            "description": "Of a mesh-wide rate: tokens taken by each peer, as known here.",
        },
        "level": number("Of the fullest row."),
        "evicted": integer("Rows thrown out."),
        "started_full": integer("Rows that began without a burst."),
        "tight": truth("Whether the burst is small for the members."),
        "differs": truth("Whether members were told different figures; the smaller rule."),
        "excess_bound": number("How far all nodes may go over rate * w + burst."),
        "rate_in_force": maybe(number("Tokens a second now, here.")),
        "slots_in_force": maybe(number("Slots of this node now; null for a rate.")),
        "windows": {
            "type": "object",
            "description": "Of a mesh-wide limit: tokens, peak and excess of its fullest windows.",
            "additionalProperties": record(
                {"tokens": number(), "peak": number(), "over": number()}
            ),
        },
        "advertised": maybe(
            record(
                {
                    "limit": maybe(integer("Its quota.")),
                    "remaining": integer("What it said is left."),
                    "reset_s": maybe(number("Until it is whole again.")),
                    "age_s": number("Since it was told."),
                    "free": integer("What this node's own count had left then."),
                    "rows": integer("Rows of which something was told."),
                    "told": integer("How often."),
                    "adopted": integer("How often it was taken over."),
                },
                "What the API said last of any row; null: nothing, or not listened to.",
            )
        ),
        "overridden": truth("Whether the operator set it until the next reload."),
        "rate_in_file": maybe(text("What the file says.")),
    }
)
BREAKER_ITEM = record(
    {
        "node": _NODE,
        "upstream": _UPSTREAM,
        "credential": maybe(text("A credential's hash; null for the upstream's own.")),
        "state": text("What the machine says.", enum=_STATES),
        "cause": text("Why it last opened.", enum=["throttle", "failure"]),
        "forced": maybe(text("What the operator says: open, closed, or null.")),
        "epoch": integer("Closings and re-openings."),
        "remaining_ms": integer("Until the pause ends."),
        "opened_ns": integer("CLOCK_MONOTONIC; 0: never."),
        "closed_ns": integer("CLOCK_MONOTONIC; 0: never."),
    }
)
WAIT_ITEM = record(
    {
        "node": _NODE,
        "upstream": _UPSTREAM,
        "at": text("What holds them up.", enum=["limit", "breaker", "connections"]),
        "limit": maybe(text("The limit's name.")),
        "key": KEY,
        "waiting": integer("Requests in this queue."),
        "tokens": integer("What they want together."),
        "first_client": text("Whose turn it is."),
        "first_waited_ms": integer("Since it came."),
        "first_until_ms": integer("Until it is refused."),
    }
)
POOL_ITEM = record(
    {
        "node": _NODE,
        "upstream": _UPSTREAM,
        "shared_with": listed(text(), "Other upstreams with the same way out; figures are of all."),
        **_POOL,
        "max": integer("As configured."),
        "dials": integer("Connections ever dialled."),
        "reuses": integer("Requests that found an idle one."),
        "tunnels": integer("CONNECT tunnels open."),
    }
)
CLIENT_ITEM = record(
    {
        "node": _NODE,
        "name": _NAME,
        "weight": integer("Share in a fair queue."),
        "priority": {"type": "integer", "description": "Higher goes first."},
        "source": listed(text(), "Networks."),
        "known_by": listed(text(), "token, certificate."),
        "upstreams": listed(text(), "What it may reach; empty: all."),
        "allowed": truth("False for unknown clients where anonymous = false."),
        "under_way": integer("Requests now."),
        "waiting": integer("Of them held."),
    }
)
RECENT_ITEM = record(
    {
        "node": _NODE,
        "wall_ms": integer("Unix time."),
        "level": text("How grave.", enum=["info", "warning", "error"]),
        "event": text("What happened, in the log's words."),
        "facts": {"type": "object", "description": "What it happened to."},
    }
)
CONF_ITEM = record(
    {
        "node": _NODE,
        "hash": text("As `config_hash`."),
        "conf": {"type": "object", "description": "Every key in force; secrets by their source."},
    }
)
ROW_ITEM = record(
    {
        "node": _NODE,
        "key": KEY,
        "level": number("Tokens taken and not drained, used in the window, or slots held."),
        "free": integer("Whole tokens or slots free now."),
        "full_ms": integer("Until all of them are."),
        "admitted_own": integer("Tokens taken here since the row was made."),
        "admitted_mesh": integer("Tokens taken by all, as known here."),
        "waiting": integer("Requests held at this row."),
    }
)
