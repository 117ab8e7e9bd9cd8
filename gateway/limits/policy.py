"""All the limits of an upstream as one decision: a request takes from all of them or from none.

Two rules look odd until their reason is known. Demand is counted only at a limit whose siblings all
have room, because the mesh reserves tokens for demand, and demand that another limit blocks would
reserve them for nothing. And a newcomer is not even tried where others wait: it would overtake
them, since they are tried again only when the row's queue is looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

from gateway.limits.verdict import NEVER, ROOM, Entry, Limit, Reject, SlotEntry

__all__ = ["COST_OVER_BURST", "FULL", "OTHERS_WAIT", "LimitSet", "Refusal", "Rule"]

# Why a request was refused, as problem bodies, logs and metrics call it.
FULL = "full"
OTHERS_WAIT = "others-wait"
COST_OVER_BURST = "cost-over-burst"

_SECOND_NS = 1_000_000_000


class Rule(NamedTuple):
    """A limit's place in the set, and what it may say of itself in RateLimit-Policy.

    `quota` tokens are good in any window of `window_ns` (the configured rate as it was written, or
    an in-flight limit's slots with window 0); the burst is not promised to anybody.
    """

    limit: Limit
    quota: int
    window_ns: int
    in_flight: bool = False


class Refusal:
    """Where a request was refused, and all that a request remembers of its limits while it waits.

    `entry` is the row to wait at, `index` its limit's place in the set, `retry_after_ns` the
    longest wait that any limit named (None where waiting cannot help; the row's queue comes on
    top, and is the caller's), `sole` whether all other limits have room, `arrived` the limits (a
    bit each) that have counted the request, `in_line` whether it waits at `entry`: who waited
    elsewhere meanwhile (at a breaker, over a reload) comes to the row as a newcomer.
    """

    __slots__ = (
        "arrived",
        "entry",
        "holding",
        "in_line",
        "index",
        "reason",
        "retry_after_ns",
        "sole",
    )

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.index = 0
        self.reason = FULL
        self.retry_after_ns: int | None = None
        self.sole = False
        self.arrived = 0
        self.in_line = False
        self.holding = 0  # tokens counted as waiting at `entry`

    @property
    def never(self) -> bool:
        """The cost is over what the limit can ever give: do not wait, do not try again."""
        return self.retry_after_ns is None

    def reject(self) -> Reject:
        """The refusal as it is told to others."""
        return Reject(self.entry.limit.name, self.reason, self.retry_after_ns)


class LimitSet:
    """The limits of one upstream, in the order of its configuration.

    `refused` and `would_refuse` (of a dry-run limit) count, for each limit, the requests that it
    held up at their first try; `admitted` counts requests let through.
    """

    __slots__ = (
        "_in_flight",
        "_policies",
        "_told_before",
        "admitted",
        "limits",
        "refused",
        "rules",
        "would_refuse",
    )

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = tuple(rules)
        self.limits = tuple(rule.limit for rule in rules)
        self.admitted = 0
        self.refused = [0] * len(rules)
        self.would_refuse = [0] * len(rules)
        self._told_before = [0] * len(rules)  # of `admitted`, by the sets that this one follows
        self._in_flight = tuple(i for i, rule in enumerate(rules) if rule.in_flight)
        self._policies = tuple(_policy_item(rule) for rule in rules)

    def follow(self, index: int, old: LimitSet, old_index: int) -> None:
        """Goes on counting where another set that had the same limit ended (a reload)."""
        self.refused[index] = old.refused[old_index]
        self.would_refuse[index] = old.would_refuse[old_index]
        self._told_before[index] = old.admitted_by(old_index)

    def admitted_by(self, index: int) -> int:
        """Requests let through since this limit is there."""
        return self._told_before[index] + self.admitted

    def rows(self, keys: Sequence[bytes], now_ns: int) -> tuple[Entry, ...]:
        """The rows of a request, a key for each limit.

        To be called for every try and not kept across a wait: only the row that a request waits
        at is safe from being thrown out of its table.
        """
        return tuple([limit.entry(keys[i], now_ns) for i, limit in enumerate(self.limits)])

    def admit(
        self,
        entries: Sequence[Entry],
        costs: Sequence[int],
        now_ns: int,
        waited: Refusal | None = None,
    ) -> Refusal | None:
        """None: admitted, everything is taken. Otherwise the refusal, and nothing is taken.

        `waited` is the refusal that a request got at its last try, None for a newcomer; it is
        changed and returned when the request is refused again. Whoever goes on waiting calls
        `wait_at` with it, whoever gives up calls `leave`.
        """
        # The loop of the common case: nobody waits, every limit has room. What it has asked is
        # handed on, because asking twice would give a row of the mesh two chances at one token.
        asked = 0
        wait_ns = ROOM
        if waited is None:
            # Counted by hand: zip(strict=True) costs 350 ns a call, as much as a limit.
            for entry in entries:
                if entry.waiting is not None:
                    break
                wait_ns = entry.ask(costs[asked], now_ns)
                if wait_ns != ROOM:
                    break
                asked += 1
            else:
                for i, entry in enumerate(entries):
                    cost = costs[i]
                    entry.arrive(cost, now_ns)
                    entry.take(cost, now_ns)
                self.admitted += 1
                return None
        return self._admit_slow(entries, costs, now_ns, waited, asked, wait_ns)

    def is_clear(
        self, entries: Sequence[Entry], costs: Sequence[int], now_ns: int, in_line: bool
    ) -> bool:
        """Whether no limit holds the request up, as far as is known here. Takes and counts nothing.

        For limits of a central store, which is asked only then (`gateway.proxy.central`).
        """
        for i, entry in enumerate(entries):
            if entry.limit.dry_run:
                continue
            if (entry.waiting is not None and not in_line) or entry.ask(costs[i], now_ns) != ROOM:
                return False
        return True

    def wait_at(self, refusal: Refusal, cost: int) -> None:
        """Counts the refused request as waiting, where this is real demand (see above)."""
        if refusal.sole and not refusal.holding:
            refusal.entry.hold(cost)
            refusal.holding = cost

    def leave(self, refusal: Refusal) -> None:
        """The request no longer waits at its row: it gave up, was admitted, or moved."""
        refusal.in_line = False
        if refusal.holding:
            refusal.entry.hold(-refusal.holding)
            refusal.holding = 0

    def carry(self, refusal: Refusal, before: LimitSet) -> None:
        """A request that `before` refused goes on here: the limits that stay have counted it."""
        counted = [limit for i, limit in enumerate(before.limits) if refusal.arrived >> i & 1]
        refusal.arrived = sum(1 << i for i, limit in enumerate(self.limits) if limit in counted)

    @property
    def in_flight(self) -> bool:
        """Whether any limit has slots that `release` would give back."""
        return bool(self._in_flight)

    def release(self, entries: Sequence[Entry], costs: Sequence[int], now_ns: int) -> None:
        """An admitted request is over: its in-flight slots are free. Look at their queues then."""
        for i in self._in_flight:
            entries[i].give_back(costs[i], now_ns)

    def ease(self, entries: Sequence[Entry], now_ns: int) -> None:
        """The upstream found too many requests under way at a time: its slots become fewer.

        To be called while the request that was told so still holds its own.
        """
        for i in self._in_flight:
            cast(SlotEntry, entries[i]).ease(now_ns)

    def fields(self, entries: Sequence[Entry], now_ns: int) -> list[tuple[bytes, bytes]]:
        """RateLimit-Policy and RateLimit of these rows (draft-ietf-httpapi-ratelimit-headers-10).

        `r` is what is free now; `t` is after how many seconds, rounded up, all of it is. Limits
        that only count (dry run) are not named: they bind nobody.
        """
        policies = []
        states = []
        for policy, entry in zip(self._policies, entries, strict=True):
            limit = entry.limit
            if limit.dry_run:
                continue
            free, full_ns = limit.remaining(entry, now_ns)
            policies.append(policy)
            states.append(f'"{limit.name}";r={free};t={-(-full_ns // _SECOND_NS)}')
        if not policies:
            return []
        return [
            (b"RateLimit-Policy", ", ".join(policies).encode("ascii")),
            (b"RateLimit", ", ".join(states).encode("ascii")),
        ]

    def _admit_slow(
        self,
        entries: Sequence[Entry],
        costs: Sequence[int],
        now_ns: int,
        waited: Refusal | None,
        asked: int,
        asked_wait_ns: int,
    ) -> Refusal | None:
        at = -1  # the limit with the longest wait, or the first that says NEVER
        longest_ns = 0
        blocking = 0
        full_dry = 0  # dry-run limits without room, a bit each
        in_line = waited is not None and waited.in_line
        for i in range(asked, len(entries)):
            entry = entries[i]
            wait_ns = asked_wait_ns
            if wait_ns == ROOM or i != asked:
                wait_ns = entry.ask(costs[i], now_ns)
            if wait_ns == ROOM:
                if in_line or entry.waiting is None or entry.limit.dry_run:
                    continue
                wait_ns = 1
            if entry.limit.dry_run:
                full_dry |= 1 << i
                continue
            blocking += 1
            if at < 0 or (longest_ns != NEVER and (wait_ns == NEVER or wait_ns > longest_ns)):
                at = i
                longest_ns = wait_ns
        if full_dry and waited is None:
            self._count_dry(full_dry)
        if at >= 0:
            return self._refuse(waited, entries, costs, now_ns, at, longest_ns, blocking == 1)
        self._take_all(entries, costs, now_ns, waited, full_dry)
        return None

    def _take_all(
        self,
        entries: Sequence[Entry],
        costs: Sequence[int],
        now_ns: int,
        waited: Refusal | None,
        full_dry: int,
    ) -> None:
        arrived = 0
        if waited is not None:
            arrived = waited.arrived
            self.leave(waited)
        for i, entry in enumerate(entries):
            cost = costs[i]
            if not arrived >> i & 1:
                entry.arrive(cost, now_ns)
            # A dry-run limit must go on as if it refused, or its debt would grow for ever; a slot
            # is taken all the same, because it will be given back.
            if not full_dry >> i & 1 or i in self._in_flight:
                entry.take(cost, now_ns)
        self.admitted += 1

    def _refuse(
        self,
        waited: Refusal | None,
        entries: Sequence[Entry],
        costs: Sequence[int],
        now_ns: int,
        at: int,
        longest_ns: int,
        sole: bool,
    ) -> Refusal:
        entry = entries[at]
        refusal = waited
        in_line = waited is not None and waited.in_line
        if refusal is None:
            refusal = Refusal(entry)
            self.refused[at] += 1
        elif not sole or refusal.entry is not entry:
            self.leave(refusal)
        refusal.entry = entry
        refusal.index = at
        refusal.sole = sole
        refusal.in_line = longest_ns != NEVER
        if longest_ns == NEVER:
            refusal.reason = COST_OVER_BURST
            refusal.retry_after_ns = None
            return refusal
        refusal.reason = FULL if in_line or entry.waiting is None else OTHERS_WAIT
        refusal.retry_after_ns = longest_ns
        if sole and not refusal.arrived >> at & 1:
            entry.arrive(costs[at], now_ns)
            refusal.arrived |= 1 << at
        return refusal

    def _count_dry(self, full_dry: int) -> None:
        for i in range(len(self.would_refuse)):
            self.would_refuse[i] += full_dry >> i & 1


def _policy_item(rule: Rule) -> str:
    """The limit's item of RateLimit-Policy: a quota and its window in whole seconds.

    A window below a second is stretched to one with as many tokens more, and one that is no
    whole number of seconds is rounded up with the same quota: neither promises more than is true.
    """
    name = rule.limit.name
    if rule.in_flight:
        return f'"{name}";q={rule.quota};qu="concurrent-requests"'
    if rule.window_ns < _SECOND_NS:
        return f'"{name}";q={rule.quota * _SECOND_NS // rule.window_ns};w=1'
    return f'"{name}";q={rule.quota};w={-(-rule.window_ns // _SECOND_NS)}'
