"""What a configuration promises, in numbers: the short account that `egressd check` prints.

An operator who writes "100/s" wants to know how many requests the API may see in a second, in ten
and in a minute, with this many nodes. The formulas are those of the mesh's design: cadence
d = clamp(B/8R, 25 ms, 200 ms), horizon h = 1.1 d + D, effective burst B' = max(B, 1 + 2Rh), and no
more than R*w + B' in any window w.
"""

from __future__ import annotations

import math

from gateway.clock import MS, SECOND
from gateway.conf.schema import Conf
from gateway.conf.schema_upstream import LimitConf, Upstream
from gateway.conf.units import Rate, duration_text

__all__ = ["account", "effective_burst", "members_expected"]

_WINDOWS_S = (1, 10, 60)
_CADENCE_MIN_NS = 25 * MS
_CADENCE_MAX_NS = 200 * MS
_DELAY_NS = 5 * MS // 2  # 99th percentile one way on a LAN (0.3 to 1.8 ms) and the loop's own lag


def members_expected(conf: Conf, cores: int = 1) -> int:
    """How many members the mesh will have, as far as the file tells.

    Each `join` entry is a node, also a dns: name, with as many workers as this one, whose host has
    so many cores.
    """
    workers = conf.node.workers if isinstance(conf.node.workers, int) else cores
    if conf.mesh is None:
        return workers
    return max(1, len(conf.mesh.join)) * workers


def effective_burst(rate: Rate, burst: int, members: int) -> float:
    """B', the burst that the mesh needs to keep a rate without a round trip (tokens)."""
    if members < 2:
        return burst
    per_ns = rate.count / rate.period_ns
    cadence_ns = min(max(burst / (8 * per_ns), _CADENCE_MIN_NS), _CADENCE_MAX_NS)
    horizon_ns = 1.1 * cadence_ns + _DELAY_NS
    return max(burst, 1 + 2 * per_ns * horizon_ns)


def account(conf: Conf, members: int) -> list[str]:
    """Lines about routes, upstreams, and for each limit what a window may see.

    `members` is the number of nodes (with their workers) that share the limits.
    """
    names = "member" if members == 1 else "members"
    counted = ", ".join(
        f"{count} {name}" if count == 1 else f"{count} {name}s"
        for name, count in (
            ("listener", len(conf.listen)),
            ("upstream", len(conf.upstream)),
            ("route", len(conf.route)),
            ("client", len(conf.client)),
        )
    )
    lines = [f"{counted}; the mesh is taken as {members} {names}"]
    for name, upstream in sorted(conf.upstream.items()):
        lines.append(f"upstream {name}: {upstream.origin}, {_routes_text(conf, name)}")
        lines += (f"  {_limit_text(limit, members)}" for limit in upstream.limit)
        if not upstream.limit:
            lines.append("  no limit of its own; pauses that it asks for are kept")
        lines.append(f"  {_wait_text(upstream)}")
    return lines


def _routes_text(conf: Conf, name: str) -> str:
    count = sum(1 for route in conf.route if route.upstream == name) if conf.route else 0
    return "1 route" if count == 1 else f"{count} routes"


def _wait_text(upstream: Upstream) -> str:
    if upstream.wait.max == 0:
        return "without room a request is refused at once"
    longest = duration_text(upstream.wait.max)
    return f"without room a request waits up to {longest}, at most {upstream.wait.queue} of them"


def _limit_text(limit: LimitConf, members: int) -> str:
    counter = " for each " + " + ".join(map(str, limit.key)) if limit.key else ""
    suffix = " (dry run: only counted)" if limit.dry_run else ""
    if limit.rate is None:
        return f"limit {limit.name}{counter}: at most {limit.in_flight} in flight{suffix}"
    if limit.algorithm == "window":
        most = [_window_most(limit.rate, seconds) for seconds in _WINDOWS_S]
        how = f"window of {limit.rate}"
    else:
        burst: float = limit.burst
        if limit.sync == "mesh":
            burst = effective_burst(limit.rate, limit.burst, members)
        most = [math.floor(limit.rate.per_second * seconds + burst) for seconds in _WINDOWS_S]
        how = f"{limit.rate}, burst {limit.burst}"
        if burst > limit.burst:
            how += f" (in effect {burst:.1f})"
    seen = ", ".join(
        f"{tokens} in {seconds} s" for tokens, seconds in zip(most, _WINDOWS_S, strict=True)
    )
    if limit.sync == "mesh" and members > 1:
        # What is spent twice while news of it is under way (peers/PROTOCOL.md): N + 0.08 B.
        most_at_once = limit.rate.count if limit.algorithm == "window" else limit.burst
        seen += f", and {members + math.ceil(0.08 * most_at_once)} more while news is under way"
    return f"limit {limit.name}{counter}: {how}, sync {limit.sync}: at most {seen}{suffix}"


def _window_most(rate: Rate, seconds: int) -> int:
    """An interval touches one window more than it is long: the end of one, the start of another."""
    return rate.count * (math.ceil(seconds * SECOND / rate.period_ns) + 1)
