"""What is peculiar to each API's way of saying "too fast", as one table.

Most of the dialects differ in names only, and names are read for all providers alike (`signals`).
Here stands what depends on whom one talks to: which statuses are a throttle, where the body has to
be looked at, what the scope of a pause is, and how long to wait where no time is told.
"""

from __future__ import annotations

from datetime import tzinfo
from typing import NamedTuple

__all__ = ["MAYBE_BODY_STATUSES", "PROVIDERS", "Profile", "Provider", "profile", "recognised"]

_MS_NS = 1_000_000
_SECOND_NS = 1_000_000_000


class Provider(NamedTuple):
    """One row of the table. An empty one is an API of which nothing but its names is peculiar.

    `hosts` are where it is (with a dot in front: and below), `signs` the beginnings of names of
    fields that nobody else sends: what it is known by at a host of one's own.
    `body_statuses`: responses whose beginning of a body must be read to judge them. `words` (JSON
    strings) and `phrases` (parts of a message, lower-case) in it make a throttle of a status that
    is none by itself. `quota_words` mean a used-up bill or day, which no wait of ours ends.
    `scope`: what a throttle's pause covers, where that is always the same. `pause_ns`: the pause
    where no time is told, if the API documents one. `repeated_least`: repeated fields stand for
    several buckets, and the least is meant.
    """

    hosts: tuple[str, ...] = ()
    signs: tuple[bytes, ...] = ()
    body_statuses: frozenset[int] = frozenset()
    words: frozenset[bytes] = frozenset()
    phrases: tuple[bytes, ...] = ()
    quota_words: frozenset[bytes] = frozenset()
    scope: str | None = None
    pause_ns: int | None = None
    repeated_least: bool = False


# botocore, retries/standard.py: the codes that it treats as throttling.
_AWS_CODES = frozenset(
    (
        b"Throttling",
        b"ThrottlingException",
        b"ThrottledException",
        b"RequestThrottled",
        b"RequestThrottledException",
        b"TooManyRequestsException",
        b"ProvisionedThroughputExceededException",
        b"RequestLimitExceeded",
        b"BandwidthLimitExceeded",
        b"LimitExceededException",
        b"SlowDown",
        b"TransactionInProgressException",
        b"PriorRequestNotComplete",
        b"EC2ThrottledException",
    )
)

PROVIDERS: dict[str, Provider] = {
    # A 503 may be a gateway's limiter: it says so in a problem type or Cloudflare's error code.
    "generic": Provider(body_statuses=frozenset((503,))),
    "openai": Provider(
        signs=(b"openai-",),
        hosts=("api.openai.com",),
        body_statuses=frozenset((429,)),
        quota_words=frozenset((b"insufficient_quota", b"billing_hard_limit_reached")),
    ),
    "anthropic": Provider(signs=(b"anthropic-",), hosts=("api.anthropic.com",)),
    # Secondary limits come without a time; GitHub asks for at least a minute.
    "github": Provider(
        signs=(b"x-github-",),
        hosts=("api.github.com", "uploads.github.com"),
        body_statuses=frozenset((403, 429)),
        phrases=(b"secondary rate limit", b"rate limit exceeded", b"abuse detection"),
        pause_ns=60 * _SECOND_NS,
    ),
    "stripe": Provider(
        signs=(b"stripe-",), hosts=("api.stripe.com",), body_statuses=frozenset((429,))
    ),
    "shopify": Provider(
        signs=(b"x-shopify-", b"x-shopid"),
        hosts=(".myshopify.com",),
        body_statuses=frozenset((200,)),
        words=frozenset((b"THROTTLED",)),
    ),
    "slack": Provider(signs=(b"x-slack-",), hosts=("slack.com",), scope="method"),
    "twilio": Provider(signs=(b"twilio-",), hosts=(".twilio.com",), scope="concurrency"),
    "hubspot": Provider(
        signs=(b"x-hubspot-",), hosts=("api.hubapi.com",), body_statuses=frozenset((429,))
    ),
    "atlassian": Provider(
        signs=(b"atl-traceid", b"x-arequestid", b"x-ratelimit-nearlimit"),
        hosts=(".atlassian.net", "api.atlassian.com"),
    ),
    "x": Provider(signs=(b"x-twitter-",), hosts=("api.x.com", "api.twitter.com")),
    "discord": Provider(
        signs=(b"x-ratelimit-bucket", b"x-ratelimit-scope"),
        hosts=("discord.com", ".discord.com"),
        body_statuses=frozenset((429,)),
    ),
    "reddit": Provider(hosts=("oauth.reddit.com", "www.reddit.com")),
    "gitlab": Provider(signs=(b"x-gitlab-", b"ratelimit-observed"), hosts=("gitlab.com",)),
    "azure": Provider(
        signs=(b"x-ms-",),
        hosts=("management.azure.com", ".azconfig.io", ".documents.azure.com", ".openai.azure.com"),
    ),
    "aws": Provider(
        signs=(b"x-amzn-", b"x-amz-"),
        hosts=(".amazonaws.com", ".amazonaws.com.cn"),
        body_statuses=frozenset((400, 503)),
        words=_AWS_CODES,
    ),
    "google": Provider(
        signs=(b"x-goog-",),
        hosts=(".googleapis.com",),
        body_statuses=frozenset((403, 429, 503)),
        words=frozenset((b"rateLimitExceeded", b"userRateLimitExceeded")),
        quota_words=frozenset((b"dailyLimitExceeded", b"quotaExceeded")),
    ),
    "notion": Provider(signs=(b"x-notion-",), hosts=("api.notion.com",)),
    "zendesk": Provider(signs=(b"x-zendesk-", b"zendesk-"), hosts=(".zendesk.com",)),
    "okta": Provider(
        signs=(b"x-okta-",),
        hosts=(".okta.com", ".oktapreview.com", ".okta-emea.com"),
        repeated_least=True,
    ),
    "cloudflare": Provider(hosts=("api.cloudflare.com",), body_statuses=frozenset((429, 503))),
    # Not APIs but limiters that stand in front of many.
    "envoy": Provider(),
    "apisix": Provider(body_statuses=frozenset((503,))),
    "gravitee": Provider(),
}

# Errors whose bodies one of those that can be recognised is judged by: until it is known who
# speaks, the head of such a response decides whether its body is waited for.
MAYBE_BODY_STATUSES = frozenset(
    status for provider in PROVIDERS.values() for status in provider.body_statuses if status >= 400
)

_SIGNS = {sign: name for name, provider in PROVIDERS.items() for sign in provider.signs}
_SIGNS_ALL = tuple(_SIGNS)


class Profile(NamedTuple):
    """A provider as an upstream is configured to talk to it.

    `retry_after_unit_ns` and `reset_unit_ns` are the units of plain numbers (a delta in
    milliseconds cannot be told from one in seconds). `preempt`: a success that says "none left" is
    obeyed. `time_zone` is the account's, for quotas that end at its midnight; None is UTC.
    `throttle_statuses` are the operator's, beside those that always are throttles. `recognises`:
    nobody has said who it is, and its responses may.
    """

    name: str
    provider: Provider
    retry_after_unit_ns: int = _SECOND_NS
    reset_unit_ns: int = _SECOND_NS
    preempt: bool = False
    time_zone: tzinfo | None = None
    pause_max_ns: int = 3600 * _SECOND_NS
    throttle_statuses: frozenset[int] = frozenset()
    recognises: bool = False

    def spoken_by(self, name: str) -> Profile:
        """The same settings for a provider that was recognised."""
        return self._replace(name=name, provider=PROVIDERS[name], recognises=False)


def recognised(fields: list[tuple[bytes, bytes]]) -> str | None:
    """The provider that these response fields are a sign of, by their names."""
    for field, _ in fields:
        lower = field.lower()
        if lower.startswith(_SIGNS_ALL):
            return next(name for sign, name in _SIGNS.items() if lower.startswith(sign))
    return None


def profile(
    name: str,
    host: str = "",
    *,
    retry_after_unit: str = "s",
    reset_unit: str = "s",
    preempt: bool = False,
    time_zone: tzinfo | None = None,
    pause_max_ns: int = 3600 * _SECOND_NS,
    throttle_statuses: frozenset[int] = frozenset(),
) -> Profile:
    """The profile for a provider's name; "auto" goes by the upstream's host, or where that is not
    known by what the responses' fields are called (`recognised`).

    Raises ValueError for a name that is not in the table or a unit other than "s" and "ms".
    """
    auto = name == "auto"
    if auto:
        name = _named_by(host.lower().rstrip("."))
    provider = PROVIDERS.get(name)
    if provider is None:
        raise ValueError(f"no provider {name!r}; there are auto, {', '.join(PROVIDERS)}")
    units = {"s": _SECOND_NS, "ms": _MS_NS}
    if retry_after_unit not in units or reset_unit not in units:
        raise ValueError('a unit is "s" or "ms"')
    return Profile(
        name,
        provider,
        units[retry_after_unit],
        units[reset_unit],
        preempt,
        time_zone,
        pause_max_ns,
        throttle_statuses,
        auto and name == "generic",
    )


def _named_by(host: str) -> str:
    for name, provider in PROVIDERS.items():
        for known in provider.hosts:
            if host.endswith(known) if known.startswith(".") else host == known:
                return name
    return "generic"
