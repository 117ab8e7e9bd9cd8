"""How long a response says to wait: the places where it may say so, in order of precedence.

Retry-After comes before the RateLimit fields because their draft demands it; what is finer than
whole seconds comes before Retry-After because it is the same figure before rounding. A reset says
when a budget is whole again, not when to come back, so it counts only where nothing is left.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from gateway.breaker.reply import Reply
from gateway.breaker.structured import Allowance, read_rate_limit
from gateway.breaker.times import (
    MS_NS,
    SECOND_NS,
    go_duration_ns,
    number_ns,
)

__all__ = ["FAMILIES", "Told", "allowances", "told_after_throttle", "told_by_success"]

# The same three fields under three names: limit, remaining, reset.
FAMILIES = (
    (b"x-ratelimit-limit", b"x-ratelimit-remaining", b"x-ratelimit-reset"),
    (b"ratelimit-limit", b"ratelimit-remaining", b"ratelimit-reset"),
    (b"x-rate-limit-limit", b"x-rate-limit-remaining", b"x-rate-limit-reset"),
)

# One dimension each: x-ratelimit-remaining-tokens, anthropic-ratelimit-input-tokens-remaining.
_DIMENSION = re.compile(
    rb"x-ratelimit-(?P<a>remaining|reset)-(?P<da>[a-z0-9_-]{1,64})"
    rb"|anthropic-ratelimit-(?P<db>[a-z0-9_-]{1,64})-(?P<b>remaining|reset)"
)
_NOT_DIMENSIONS = (b"after",)  # Discord's X-RateLimit-Reset-After is no dimension

_ZENDESK = re.compile(
    rb"total=[0-9]{1,18}; ?remaining=(?P<remaining>[0-9]{1,18}); ?resets=(?P<resets>[0-9]{1,18})"
)
_ZENDESK_PREFIX = b"zendesk-ratelimit-"


class Told(NamedTuple):
    """A wait in nanoseconds from now, and what it covers if the place of telling says so."""

    wait_ns: int
    scope: str | None = None


def told_after_throttle(reply: Reply, *, sure: bool) -> Told | None:
    """What a throttled or overloaded response says, by the first place that parses.

    `sure` is true where the status alone does not make it a throttle: then a budget has to say
    that nothing is left of it.
    """
    for find in (_in_body, _in_milliseconds, _in_retry_after):
        told = find(reply)
        if told is not None:
            return told
    return _of_budgets(reply, sure=sure)


def told_by_success(reply: Reply) -> Told | None:
    """When a success that left nothing says there will be more."""
    if not reply.may_be_spent():
        return None
    return _of_budgets(reply, sure=True)


def allowances(reply: Reply) -> list[Allowance]:
    """The items of the RateLimit field, all its lines together."""
    lines = reply.values.get(b"ratelimit")
    return read_rate_limit(b", ".join(lines)) if lines else []


def _in_body(reply: Reply) -> Told | None:
    """The vendor's own figure, finer than the fields."""
    if not reply.has_body:
        return None
    profile = reply.profile
    wait_ns: int | None = None
    if profile.name == "discord":
        wait_ns = number_ns(reply.number(b"retry_after") or b"", profile.retry_after_unit_ns)
    elif profile.name == "google":
        delays = reply.strings(b"retryDelay")
        wait_ns = go_duration_ns(delays[0]) if delays else None
    elif profile.name == "shopify":
        wait_ns = _shopify_ns(reply)
    return None if wait_ns is None else Told(wait_ns)


def _shopify_ns(reply: Reply) -> int | None:
    """Until a GraphQL query's cost will have been restored."""
    cost, there, per_s = (
        number_ns(reply.number(name) or b"", SECOND_NS)
        for name in (b"requestedQueryCost", b"currentlyAvailable", b"restoreRate")
    )
    if cost is None or there is None or not per_s:
        return None
    return max(0, cost - there) * SECOND_NS // per_s


def _in_milliseconds(reply: Reply) -> Told | None:
    """Fields that say their unit in their name."""
    for name in (b"retry-after-ms", b"x-ms-retry-after-ms", b"x-amz-retry-after"):
        waits = [number_ns(value, MS_NS) for value in reply.numbers(name)]
        longest = max((wait for wait in waits if wait is not None), default=None)
        if longest is not None:
            return Told(longest)
    return None


def _in_retry_after(reply: Reply) -> Told | None:
    """RFC 9110 section 10.2.3, and the one vendor's spelling of it."""
    for name in (b"retry-after", b"x-ratelimit-retry-after"):
        longest = _longest(reply, name, reply.profile.retry_after_unit_ns)
        if longest is not None:
            return Told(longest)
    return None


def _of_budgets(reply: Reply, *, sure: bool) -> Told | None:
    """The fields that describe a budget, where nothing of it is left.

    `sure`: only what says so outright; after a throttle it is enough that nothing else is said.
    """
    for find in (_rate_limit, _zendesk, _dimensions, _reset_after, _resets, _hubspot):
        told = find(reply, sure)
        if told is not None:
            return told
    return None


def _rate_limit(reply: Reply, sure: bool) -> Told | None:
    items = [item for item in allowances(reply) if item.reset_s is not None]
    spent = [item for item in items if item.remaining == 0]
    if not spent and not sure:
        # Atlassian leaves r out at times: the throttle itself says that it was 0.
        spent = [item for item in items if item.remaining is None]
    if not spent:
        return None
    longest = max(spent, key=lambda item: item.reset_s or 0)
    return Told((longest.reset_s or 0) * SECOND_NS, longest.policy or None)


def _zendesk(reply: Reply, sure: bool) -> Told | None:
    """`zendesk-ratelimit-<endpoint>: total=100; remaining=0; resets=41`."""
    found: Told | None = None
    for name, values in reply.values.items():
        if not name.startswith(_ZENDESK_PREFIX):
            continue
        match = _ZENDESK.fullmatch(values[0])
        if match is None or int(match["remaining"]):
            continue
        wait_ns = int(match["resets"]) * SECOND_NS
        if found is None or wait_ns > found.wait_ns:
            found = Told(wait_ns, name[len(_ZENDESK_PREFIX) :].decode("latin-1"))
    return found


def spent_zendesk(reply: Reply) -> str | None:
    """The endpoint whose bucket is empty."""
    told = _zendesk(reply, True)
    return None if told is None else told.scope


def _dimensions(reply: Reply, sure: bool) -> Told | None:
    """Budgets by dimension (requests, tokens ...): the longest of those with nothing left."""
    remaining: dict[bytes, int | None] = {}
    for name in reply.values:
        match = _DIMENSION.fullmatch(name)
        if match is None:
            continue
        dimension = match["da"] or match["db"]
        if dimension in _NOT_DIMENSIONS:
            continue
        remaining.setdefault(dimension, None)
        if b"remaining" in (match["a"], match["b"]):
            remaining[dimension] = reply.count(name)
    spent = [dimension for dimension, left in remaining.items() if left == 0]
    if not spent and not sure and remaining.get(b"unified", 1) is None:
        # Anthropic's unified budget has a reset and no remaining.
        spent = [b"unified"]
    waits = [
        wait_ns
        for dimension in spent
        for name in (
            b"x-ratelimit-reset-" + dimension,
            b"anthropic-ratelimit-" + dimension + b"-reset",
        )
        if (wait_ns := _longest(reply, name, reply.profile.reset_unit_ns)) is not None
    ]
    if not waits:
        return None
    return Told(max(waits), spent[0].decode("ascii") if len(spent) == 1 else None)


def _reset_after(reply: Reply, sure: bool) -> Told | None:
    if not _nothing_left(reply, b"x-ratelimit-remaining", sure):
        return None
    wait_ns = _longest(reply, b"x-ratelimit-reset-after", SECOND_NS)
    return None if wait_ns is None else Told(wait_ns)


def _resets(reply: Reply, sure: bool) -> Told | None:
    waits = list(_each_reset(reply, sure))
    return Told(max(waits)) if waits else None


def _each_reset(reply: Reply, sure: bool) -> Iterator[int]:
    unit_ns = reply.profile.reset_unit_ns
    for _, remaining, reset in FAMILIES:
        if not _nothing_left(reply, remaining, sure):
            continue
        # GitLab says the same moment twice; its date has no second to be unsure of.
        spelled = b"ratelimit-resettime" if reset == b"ratelimit-reset" else b""
        for name in (reset, spelled):
            wait_ns = _longest(reply, name, unit_ns)
            if wait_ns is not None:
                yield wait_ns
                break


def _hubspot(reply: Reply, sure: bool) -> Told | None:
    """A daily quota ends at the account's midnight; the other window rolls, so that what is told
    is how long it takes at most.
    """
    daily = reply.count(b"x-hubspot-ratelimit-daily-remaining") == 0
    if daily or (not sure and b"DAILY" in reply.strings(b"policyName")):
        return Told(_until_midnight_ns(reply))
    if reply.count(b"x-hubspot-ratelimit-remaining") != 0:
        return None
    values = reply.numbers(b"x-hubspot-ratelimit-interval-milliseconds")
    waits = [number_ns(value, MS_NS) for value in values]
    longest = max((wait for wait in waits if wait is not None), default=None)
    return None if longest is None else Told(longest)


def _until_midnight_ns(reply: Reply) -> int:
    zone = reply.profile.time_zone or UTC
    now_s = min(max(0, reply.date_ns // SECOND_NS), 250_000_000_000)  # within datetime's years
    now = datetime.fromtimestamp(now_s, zone)
    midnight = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
    return max(0, int(midnight.timestamp()) - now_s) * SECOND_NS


def _nothing_left(reply: Reply, remaining: bytes, sure: bool) -> bool:
    if remaining not in reply.values:
        return not sure
    return reply.count(remaining) == 0


def _longest(reply: Reply, name: bytes, unit_ns: int) -> int | None:
    """The longest wait among a field's values (Okta: the shortest, each is another bucket's)."""
    waits = [
        wait_ns
        for value in reply.numbers(name)
        if (wait_ns := reply.wait_ns(value, unit_ns)) is not None
    ]
    if not waits:
        return None
    return min(waits) if reply.profile.provider.repeated_least else max(waits)
