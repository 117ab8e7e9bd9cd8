"""What a response means for those who come next: wait, wait because it is ill, or nothing at all.

Every API says "too fast" in its own way, and some say it about things that are no rate limit: a
used-up bill, a locked object, a page that moved. Three questions are answered here: is it a
throttle, may it be tried again, whom does it concern; how long is answered in `waits`, and what is
peculiar to one API stands in `providers`. Nothing here raises, whatever the upstream sends.
"""

from __future__ import annotations

import enum
import re
from typing import NamedTuple

from gateway.breaker.providers import Profile, profile, recognised
from gateway.breaker.reply import BODY_BYTES_MAX, Reply
from gateway.breaker.structured import quota_of
from gateway.breaker.times import SECOND_NS
from gateway.breaker.waits import (
    FAMILIES,
    Told,
    allowances,
    spent_zendesk,
    told_after_throttle,
    told_by_success,
)

__all__ = ["ADDRESS", "BODY_BYTES_MAX", "PASS", "Advertised", "Decision", "Profile", "Signal"]
__all__ += ["SPEAKING", "profile", "read_signal"]

_THROTTLES = frozenset((420, 429, 430, 477))
_OVERLOADS = frozenset((529,))
_ALWAYS = _THROTTLES | _OVERLOADS  # what needs no field to be a signal
SPEAKING = _ALWAYS | {503}  # what tells of too much in HTTP's own words, to whomever

# The statuses that a client retries by itself, where "should not" is worth saying.
_RETRIED = frozenset((408, 409, 420, 425, 429, 430, 477))

_SAYS_RATES = re.compile(rb"rate|retry|call-limit|x-amzn-errortype")
_AWS_CODE = re.compile(rb'(?:<Code>|"(?:__type|code|Code)"\s{0,8}:\s{0,8}")([^<"]{1,256})')
_REDUCED = re.compile(rb'"type"\s{0,8}:\s{0,8}"[^"]{0,256}temporary-reduced-capacity"')
_CLOUDFLARE_BAN = b"error code: 1015"
ADDRESS = "address"  # the scope of a ban that concerns all who send from here
_SHOULD_RETRY = (b"x-should-retry", b"stripe-should-retry")


class Decision(enum.Enum):
    """What to do about a response."""

    THROTTLE = "throttle"  # pause
    OVERLOAD = "overload"  # pause; the quota is not in question
    NO_RETRY = "no-retry"  # pause if a time is told, and never try again by ourselves
    RETRY_NOT_LIMIT = "retry-not-limit"  # may be tried again, and there is no reason to pause
    STATE = "state"  # a success that told what is left
    PREEMPT = "pre-empt"  # a success that left nothing
    PASS = "pass"  # noqa: S105 (no password: not our business)


class Advertised(NamedTuple):
    """What the upstream says is left of a budget; each figure None where it is not said."""

    limit: int | None
    remaining: int | None
    reset_ns: int | None


class Signal(NamedTuple):
    """A response's meaning. `wait_ns` is at most the profile's `pause_max_ns`, None: no time told.

    `scope` names what the pause concerns, where the response says so. `may_retry` is the
    upstream's own word (None: it has none). `pauses`: a breaker is to be told. `learns`: the rate
    before it was too high. `concurrency`: too many at once, not too many in a time.
    """

    decision: Decision
    wait_ns: int | None = None
    scope: str | None = None
    advertised: Advertised | None = None
    may_retry: bool | None = None
    pauses: bool = False
    learns: bool = False
    concurrency: bool = False


PASS = Signal(Decision.PASS)


def read_signal(
    status: int,
    fields: list[tuple[bytes, bytes]],
    of: Profile,
    now_wall_ns: int,
    body: bytes | None = None,
) -> Signal:
    """The meaning of a response.

    `body` is its beginning, as it came, where the status is one of the provider's `body_statuses`.
    """
    if status < 200 or 300 <= status < 400:
        return PASS  # on a redirect Retry-After is about the redirect (RFC 9110 section 10.2.3)
    if of.recognises and (name := recognised(fields)) is not None:
        of = of.spoken_by(name)
    if body is None and status not in _ALWAYS and status not in of.throttle_statuses:
        # One pass over the names: that a response says nothing about rates is the common case.
        names = b"\n".join([name for name, _ in fields]).lower()
        if _SAYS_RATES.search(names) is None:
            return PASS
    reply = Reply(status, fields, of, now_wall_ns, body)
    return _of_success(reply) if status < 300 else _of_error(reply)


def _of_success(reply: Reply) -> Signal:
    if reply.profile.name == "shopify" and b"THROTTLED" in reply.strings(b"code"):
        return _throttle(reply, told_after_throttle(reply, sure=True))
    advertised = _advertised(reply)
    told = told_by_success(reply)
    if told is not None and told.wait_ns > 0:
        return Signal(
            Decision.PREEMPT,
            min(told.wait_ns, reply.profile.pause_max_ns),
            told.scope,
            advertised,
            pauses=reply.profile.preempt,
        )
    # Atlassian's Beta fields announce what will be one day: seen, and not obeyed.
    if advertised is not None or any(name.startswith(b"beta-rate") for name in reply.values):
        return Signal(Decision.STATE, None, None, advertised)
    return PASS


def _of_error(reply: Reply) -> Signal:
    status = reply.status
    should_retry = _should_retry(reply)
    told = told_after_throttle(reply, sure=status == 503 and not _says_throttle(reply))
    if _is_used_up(reply):
        return _no_retry(reply, None)
    if _is_lock(reply):
        return Signal(Decision.RETRY_NOT_LIMIT, advertised=_advertised(reply), may_retry=True)
    throttled = _is_throttle(reply, told)
    overloaded = status in _OVERLOADS or (status == 503 and reply.search(_REDUCED) is not None)
    if should_retry is False and (throttled or status in _RETRIED or status >= 500):
        return _no_retry(reply, told if throttled or overloaded else None)
    if overloaded:
        wait_ns = None if told is None else min(told.wait_ns, reply.profile.pause_max_ns)
        return Signal(Decision.OVERLOAD, wait_ns, may_retry=should_retry, pauses=True)
    if throttled:
        return _throttle(reply, told)._replace(may_retry=should_retry)
    advertised = _advertised(reply)
    if should_retry:
        return Signal(Decision.RETRY_NOT_LIMIT, advertised=advertised, may_retry=True)
    if should_retry is None and advertised is None:
        return PASS
    return Signal(Decision.PASS, advertised=advertised, may_retry=should_retry)


def _throttle(reply: Reply, told: Told | None) -> Signal:
    provider = reply.profile.provider
    wait_ns = provider.pause_ns if told is None else told.wait_ns
    scope = _scope(reply) or (None if told is None else told.scope)
    return Signal(
        Decision.THROTTLE,
        None if wait_ns is None else min(wait_ns, reply.profile.pause_max_ns),
        scope,
        _advertised(reply),
        pauses=True,
        # A 503 that only asks for time, and another tenant's bucket, say nothing about our rate.
        learns=scope != "shared" and (reply.status != 503 or _says_throttle(reply)),
        concurrency=_is_concurrency(reply),
    )


def _no_retry(reply: Reply, told: Told | None) -> Signal:
    wait_ns = None if told is None else min(told.wait_ns, reply.profile.pause_max_ns)
    return Signal(
        Decision.NO_RETRY,
        wait_ns,
        None if told is None else _scope(reply) or told.scope,
        _advertised(reply),
        may_retry=False,
        pauses=wait_ns is not None,
    )


def _is_throttle(reply: Reply, told: Told | None) -> bool:
    """429 and its kin always are, 503 if it tells a time, others if the API is known for it."""
    status = reply.status
    if status in _THROTTLES or status in reply.profile.throttle_statuses:
        return True
    if status == 503:
        # RFC 9110 section 15.6.4: with Retry-After it is a pause; without any time, a failure.
        return told is not None or _says_throttle(reply)
    if status == 403 and reply.profile.name == "github":
        return (
            b"retry-after" in reply.values
            or reply.count(b"x-ratelimit-remaining") == 0
            or _says_throttle(reply)
        )
    return status in reply.profile.provider.body_statuses and _says_throttle(reply)


def _says_throttle(reply: Reply) -> bool:
    """Whether the response calls itself a throttle, beside its status."""
    provider = reply.profile.provider
    if reply.first(b"x-envoy-ratelimited") is not None or reply.says(_CLOUDFLARE_BAN):
        return True
    if any(reply.says(phrase) for phrase in provider.phrases):
        return True
    if reply.profile.name == "aws":
        return _aws_code(reply) in provider.words
    return not provider.words.isdisjoint(reply.strings(b"reason", b"code", b"type"))


def _aws_code(reply: Reply) -> bytes:
    """`SlowDown`, out of XML, JSON (`com.amazonaws...#Name`) or a field (`Name:http://...`)."""
    code = reply.first(b"x-amzn-errortype")
    if code is None:
        match = reply.search(_AWS_CODE)
        code = b"" if match is None else match[1]
    return code.partition(b":")[0].rpartition(b"#")[2].strip()


def _is_used_up(reply: Reply) -> bool:
    words = reply.profile.provider.quota_words
    return bool(words) and not words.isdisjoint(reply.strings(b"type", b"code", b"reason"))


def _is_lock(reply: Reply) -> bool:
    """Stripe: another request holds the object; nothing was too fast."""
    return (
        reply.profile.name == "stripe"
        and reply.first(b"stripe-rate-limited-reason") is None
        and b"lock_timeout" in reply.strings(b"code")
    )


def _is_concurrency(reply: Reply) -> bool:
    """Whether the number at a time was too high, and not the rate."""
    if reply.first(b"twilio-concurrent-requests") is not None or _is_okta_concurrency(reply):
        return True
    if b"concurrency" in (reply.first(b"stripe-rate-limited-reason") or b""):
        return True
    return reply.profile.name == "github" and reply.says(b"concurrent requests")


def _is_okta_concurrency(reply: Reply) -> bool:
    return (
        reply.profile.name == "okta"
        and reply.count(b"x-rate-limit-limit") == 0
        and reply.count(b"x-rate-limit-remaining") == 0
    )


def _should_retry(reply: Reply) -> bool | None:
    """The upstream's own word, which wins over everything that statuses suggest."""
    for name in _SHOULD_RETRY:
        value = (reply.first(name) or b"").lower()
        if value in (b"true", b"false"):
            return value == b"true"
    return None


def _scope(reply: Reply) -> str | None:
    """What the pause concerns, where a field or the API's nature says so."""
    provider = reply.profile.provider
    if provider.scope is not None:
        return provider.scope
    name = reply.profile.name
    if name == "discord":
        return _discord_scope(reply)
    if name == "okta" and _is_okta_concurrency(reply):
        return "concurrency"
    if name == "github":
        return reply.scope_of(b"x-ratelimit-resource")
    reason = reply.first(b"stripe-rate-limited-reason")
    if reason:
        part = reply.scope_of(b"stripe-rate-limited-reason")
        return None if part is None else part.partition("-")[0]
    if reply.first(b"ratelimit-reason") is not None:
        return _atlassian_scope(reply)
    if reply.says(_CLOUDFLARE_BAN):
        return ADDRESS
    return spent_zendesk(reply) or _azure_scope(reply) or reply.scope_of(b"ratelimit-name")


def _discord_scope(reply: Reply) -> str | None:
    if reply.has_body and reply.is_page:
        return ADDRESS  # Cloudflare in front of it has banned this gateway's address
    if (reply.first(b"x-ratelimit-global") or b"").lower() == b"true":
        return "global"
    scope = reply.scope_of(b"x-ratelimit-scope")
    if scope in ("global", "shared"):
        return scope
    return reply.scope_of(b"x-ratelimit-bucket") or scope


# Atlassian: what a RateLimit-Reason contains, and what it covers; the first that fits.
_ATLASSIAN = (
    (b"per-issue", "issue"),
    (b"burst", "endpoint"),
    (b"tenant", "tenant"),
    (b"global", "app"),
)


def _atlassian_scope(reply: Reply) -> str | None:
    reason = (reply.first(b"ratelimit-reason") or b"").lower()
    return next((scope for part, scope in _ATLASSIAN if part in reason), None)


_AZURE_PREFIX = b"x-ms-ratelimit-remaining-"


def _azure_scope(reply: Reply) -> str | None:
    for name in reply.values:
        if name.startswith(_AZURE_PREFIX) and reply.count(name) == 0:
            return name[len(_AZURE_PREFIX) :][:64].decode("latin-1")
    return None


def _advertised(reply: Reply) -> Advertised | None:
    """What is left of the budget of requests, for limits that look at it (`learn`)."""
    items = [item for item in allowances(reply) if item.remaining is not None]
    if items:
        least = min(items, key=lambda item: item.remaining or 0)
        quotas = quota_of(b", ".join(reply.values.get(b"ratelimit-policy", ())))
        limit = quotas.get(least.policy) if least.limit is None else least.limit
        reset_s = least.reset_s
        return Advertised(limit, least.remaining, None if reset_s is None else reset_s * SECOND_NS)
    values = reply.values
    for limit_name, remaining_name, reset_name in _BUDGETS:
        if remaining_name in values and (remaining := reply.count(remaining_name)) is not None:
            return Advertised(reply.count(limit_name), remaining, _reset_ns(reply, reset_name))
    return _shopify(reply)


# Where a budget of requests is told in plain fields: the families, then vendors' own names.
_BUDGETS = (
    *FAMILIES,
    (
        b"x-ratelimit-limit-requests",
        b"x-ratelimit-remaining-requests",
        b"x-ratelimit-reset-requests",
    ),
    (
        b"anthropic-ratelimit-requests-limit",
        b"anthropic-ratelimit-requests-remaining",
        b"anthropic-ratelimit-requests-reset",
    ),
    (b"x-hubspot-ratelimit-max", b"x-hubspot-ratelimit-remaining", b""),
    (b"", b"x-ms-ratelimit-remaining-subscription-reads", b""),
    (b"", b"x-ms-ratelimit-remaining-subscription-writes", b""),
)


def _reset_ns(reply: Reply, name: bytes) -> int | None:
    value = reply.first(name)
    if value is None:
        return None
    return reply.wait_ns(value, reply.profile.reset_unit_ns)


def _shopify(reply: Reply) -> Advertised | None:
    """`X-Shopify-Shop-Api-Call-Limit: 32/40`: used, and the bucket's size."""
    value = reply.first(b"x-shopify-shop-api-call-limit")
    if value is None:
        return None
    used, slash, size = value.partition(b"/")
    if not slash or not used.isdigit() or not size.isdigit() or len(value) > 40:
        return None
    return Advertised(int(size), max(0, int(size) - int(used)), None)
