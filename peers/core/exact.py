"""An exact limit and its table of rows: what all rows of it share, and which keys exist.

The counterpart of `counters.MeshLimit` for `sync = "exact"`: the same figures in force (the
smallest rule that members announce, the learned factor, this side's part in a partition), but rows
that lease (`leases`) and, for the keys that this node owns, their ledgers.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Protocol

from peers.core.config import MS, SECOND
from peers.core.leases import LEASE_NS, ExactRow, Owner
from peers.core.ledger import Ledger
from peers.core.table import RowTable, Rule, Surroundings
from peers.core.wire import Kind

__all__ = ["Desk", "ExactLimit"]

_TICK_NS = 25 * MS
_TICKS_PER_TURN = 250  # rows at work per turn, some 2 us each
_ASK_SPACING_NS = 2 * MS  # as flushes of mesh rows: 500/s of one key at the worst
_EVICTION_TRIES = 64
# Who waits for an answer looks again so soon at the latest: the answer wakes it anyway, and what is
# said here must not be longer than a caller that holds a request for 100 ms can wait (the 99th
# percentile of the delay is, on a machine that has just started under load).
_LOOK_NS = 10 * MS
# Without an answer a member asks again after three one-way delays and 10 ms for the owner's loop,
# but not so often that the members of a dead owner flood it when it is back.
_RETRY_MIN_NS = 20 * MS
_RETRY_MAX_NS = 250 * MS
_GRACE_NS = 10 * MS
# Claims are served in turns of an eighth of the bucket: tokens that lie there so long are no loss,
# as long as the bucket does not run empty, and each turn is a datagram to everybody who waits.
_SERVE_MIN_NS = 1 * MS
_SERVE_MAX_NS = 25 * MS
# Where tokens are scarce the bucket does run empty, and a token waits for the turn: an eighth of
# that. A claim takes some 4 us to look at, so many of them are looked at less often.
_SERVE_EACH_NS = 20_000
_CLOSED_FULL_NS = 60 * SECOND  # what `remaining` says of a closed limit


class Desk(Protocol):
    """What limits ask of the node's lease desk (`peers.core.desk`)."""

    agreed_ns: int | None
    version: int

    def may_grant(self, now_ns: int) -> bool: ...

    def isolated(self, now_ns: int) -> bool: ...

    def owner(self, key64: int) -> Owner | None:
        """The owner of a key; None: this node itself."""
        ...

    def bucket(self, limit: ExactLimit, key: bytes) -> int: ...

    def make_row(self, limit: ExactLimit, key: bytes, now_ns: int) -> ExactRow: ...

    def make_ledger(self, limit: ExactLimit, key64: int, now_ns: int) -> Ledger: ...

    def next_gen(self) -> int: ...

    def next_term(self) -> int: ...

    def row_of(self, key64: int) -> ExactRow | None: ...

    def row_gone(self, row: ExactRow) -> None: ...

    def changed(self, row: ExactRow) -> None: ...

    def advertise(self, row: ExactRow, left: float) -> None: ...

    def wake(self) -> None: ...


class ExactLimit(RowTable[ExactRow]):
    """A rate that the mesh never exceeds. Satisfies `gateway.limits.verdict.Limit`.

    `rate` (tokens per nanosecond) and `burst` are what is in force now; `claims` are this node's
    ledgers whose tokens are asked for and not there, `former` those of keys that others own now.
    """

    drains = True  # tokens come back at a rate, which can be scaled
    ask_kind = Kind.LEASE_ASK
    grant_kind = Kind.LEASE_GRANT

    def __init__(
        self,
        desk: Desk,
        identity: str,
        rule: Rule,
        surroundings: Surroundings,
        *,
        name: str,
        on_partition: str,
        keys_max: int,
        dry_run: bool,
    ) -> None:
        self.desk = desk
        super().__init__(
            identity,
            rule,
            surroundings,
            name=name,
            on_partition=on_partition,
            keys_max=keys_max,
            dry_run=dry_run,
        )
        self.claims: dict[Ledger, None] = {}
        self.ledgers: OrderedDict[int, Ledger] = OrderedDict()
        self.former: OrderedDict[int, Ledger] = OrderedDict()
        self.rate = rule.rate
        self.version = desk.version  # of the membership that ownership goes by
        self._next_tick_ns = 0
        self._next_serve_ns = 0
        self._factor = 1.0
        self.retune(surroundings, None)

    # -- the caller's side: gateway.limits.verdict.Limit

    def remaining(self, row: ExactRow, now_ns: int) -> tuple[int, int]:
        """(whole tokens free now, nanoseconds until full again), for RateLimit fields."""
        level = row.level(now_ns)
        free = max(row.purse, int(self.burst - level), 0)
        return free, int(level / self.rate) if not self.closed else _CLOSED_FULL_NS

    def bucket(self, key: bytes) -> int | None:
        """The name of a key's bucket if this node keeps it, or would."""
        name = self.desk.bucket(self, key)
        return name if self.desk.owner(name) is None else None

    def buckets(self) -> list[int]:
        """A copy of the names of the buckets that this node keeps."""
        return list(self.ledgers)

    def clear_bucket(self, name: int, now_ns: int) -> bool:
        """The operator forgives: the bucket is empty. False where it is empty and not kept."""
        ledger = self.ledgers.get(name)
        if ledger is None:
            return False
        ledger.clear(now_ns)
        return True

    def row_of(self, name: int) -> ExactRow | None:
        """This node's own row of a bucket."""
        return self.desk.row_of(name)

    def set_rate_factor(self, factor: float, now_ns: int) -> None:
        """Scales the rate by what was learned of the upstream (above 0, at most 1)."""
        self._factor = min(1.0, max(1e-6, factor))
        self.retune(self._surroundings, now_ns)

    def fill(self, now_ns: int) -> None:
        """No burst for any key, whoever its owner is: every node does this after a pause."""
        for row in self._rows.values():
            row.fill(now_ns)
        for ledger in self.ledgers.values():
            ledger.fill(now_ns)

    # -- what is in force

    @property
    def agreed_ns(self) -> int | None:
        return self.desk.agreed_ns

    def may_grant(self, now_ns: int) -> bool:
        return self.desk.may_grant(now_ns)

    def isolated(self, now_ns: int) -> bool:
        return self.desk.isolated(now_ns)

    def changed(self, row: ExactRow) -> None:
        self.desk.changed(row)

    def may_work_alone(self, now_ns: int) -> bool:
        """Whether a member whose owner is silent here is on its own: not where it hears most of
        the others, as they may hear that owner, which goes on granting all there is (unless more
        than that is wanted: "open")."""
        return self.on_partition == "open" or self.isolated(now_ns)

    def retune(self, surroundings: Surroundings, now_ns: int | None) -> None:
        """Recomputes what rows and ledgers read; ledgers drain at the old rate until `now_ns`."""
        self._surroundings = surroundings
        members, known, delay_ns, *_ = surroundings
        effective = self.effective = self._smallest_rule()
        minority = members * 2 <= known
        self.closed = self.on_partition == "closed" and minority
        share = members / known if self.on_partition == "share" and minority else 1.0
        rate = effective.rate * self._factor * share
        if now_ns is not None and rate != self.rate:
            for ledger in self.ledgers.values():
                ledger.drain(now_ns)
        self.rate = rate
        self.burst = 0.0 if self.closed else float(effective.burst)
        self.members = members
        # A bucket that nobody used for so long is empty.
        self.memory_ns = int(effective.burst / rate)
        self.alone_burst = max(1.0, self.burst / members)
        # A purse of 40 ms of demand, but nobody gets more than its part of the bucket.
        self.fair_share = max(1, effective.burst // members)
        self.scarce = members > 1 and effective.burst < 2 * members
        self.round_trip_ns = min(_LOOK_NS, 2 * delay_ns + 2 * _ASK_SPACING_NS)
        self.retry_ns = max(_RETRY_MIN_NS, min(_RETRY_MAX_NS, 3 * delay_ns + _GRACE_NS))
        eighth_ns = int(effective.burst / (8 * rate))
        self.serve_ns = max(_SERVE_MIN_NS, min(_SERVE_MAX_NS, eighth_ns))
        if self.scarce:
            self.serve_ns = max(_SERVE_MIN_NS, self.serve_ns // 8)

    def stats(self) -> dict[str, Any]:
        """Figures for metrics; the rate in tokens a second, durations in nanoseconds."""
        return {
            "name": self.name,
            "exact": True,
            "rate": self.rate * SECOND,
            "burst": self.effective.burst,
            "effective_burst": self.burst,
            # What this node spent beside an owner that it does not hear; the next one hears of it.
            "excess_bound": float(max((row.ungranted for row in self._active), default=0)),
            "closed": self.closed,
            "differs": self.differs,
            "rows": len(self._rows),
            "active_rows": len(self._active),
            "owned": len(self.ledgers),
            "alone": sum(row.alone for row in self._active),
            "unheard": sum(row.unheard for row in self._active),
            "evicted": self.evicted,
            "started_full": self.started_full,
        }

    def reconfigure(
        self,
        rule: Rule,
        *,
        name: str,
        on_partition: str,
        keys_max: int,
        dry_run: bool,
        now_ns: int,
    ) -> None:
        """New numbers in place; rows and ledgers stay."""
        self._configure(rule, name, on_partition, keys_max, dry_run)
        self.retune(self._surroundings, now_ns)

    def set_peer_rule(self, node: bytes, rule: Rule | None, now_ns: int) -> None:
        """What a member announces for this limit; None when it is gone."""
        if self._note_peer_rule(node, rule):
            self.retune(self._surroundings, now_ns)

    # -- rows at work

    def activate(self, row: ExactRow, now_ns: int) -> None:
        """The row holds or wants tokens: it ticks with the others from now on."""
        row.active = True
        if not self._active:
            self._next_tick_ns = now_ns + _TICK_NS
            self.desk.wake()
        self._active[row] = None

    def urge(self, row: ExactRow) -> None:
        """The row's owner should hear from it before its next tick."""
        if not row.urgent:
            row.urgent = True
            self.urgent.append(row)
            self.desk.wake()

    def tick(self, now_ns: int, due: list[ExactRow]) -> None:
        """Looks at the active rows, some at a time; appends those whose owner should hear."""
        if not self._active:
            return
        if not self._turn:
            if now_ns < self._next_tick_ns:
                return
            self._turn = list(self._active)
            self._next_tick_ns = now_ns + _TICK_NS
        turn = self._turn[-_TICKS_PER_TURN:]
        del self._turn[-_TICKS_PER_TURN:]
        for row in turn:
            if row.due(now_ns):
                due.append(row)
            elif row.at_rest:
                self._active.pop(row, None)
                row.active = False

    def due_urgent(self, now_ns: int, due: list[ExactRow]) -> None:
        """Moves urgent rows over that asked long enough ago."""
        early: list[ExactRow] = []
        for row in self.urgent:
            if now_ns - row.asked_ns < _ASK_SPACING_NS:
                early.append(row)
                continue
            row.urgent = False
            if row.ledger is not None:
                row.settle_own(now_ns)
            elif row.news:
                due.append(row)
        self.urgent = early

    # -- ledgers: the keys that this node owns

    def ledger(self, key64: int, now_ns: int) -> Ledger:
        """The ledger of a key that this node owns, made if there is none."""
        ledger = self.ledgers.get(key64)
        if ledger is None:
            if len(self.ledgers) >= self.keys_max:
                self._evict_ledger(now_ns)
            ledger = self.ledgers[key64] = self.desk.make_ledger(self, key64, now_ns)
            if now_ns < self._crowded_until_ns:
                ledger.fill(now_ns)
        else:
            self.ledgers.move_to_end(key64)
        return ledger

    def new_row(self, key: bytes, name: int, gen: int, now_ns: int) -> ExactRow:
        return ExactRow(self, key, name, gen, now_ns)

    def new_ledger(self, key64: int, now_ns: int) -> Ledger:
        return Ledger(self, key64, self.desk.next_term(), now_ns)

    def drop_ledger(self, key64: int) -> None:
        """The ledger says nothing that a new one would not say."""
        ledger = self.ledgers.pop(key64, None)
        if ledger is not None:
            self.claims.pop(ledger, None)

    def retire_ledger(self, key64: int, now_ns: int) -> None:
        """Another member owns the key from now on, and may ask what it should know."""
        ledger = self.ledgers[key64]
        self.drop_ledger(key64)
        ledger.retire(now_ns)
        self.remember(ledger)

    def remember(self, ledger: Ledger) -> None:
        """Keeps what this node knows of a key that it does not own, or does not own yet."""
        self.former[ledger.key64] = ledger
        self.former.move_to_end(ledger.key64)
        if len(self.former) > self.keys_max:
            self.former.popitem(last=False)

    def claimed(self, ledger: Ledger, now_ns: int) -> None:
        """Tokens of this ledger are asked for: they go out at the next turn of serving."""
        if not self.claims:
            self._next_serve_ns = max(self._next_serve_ns, now_ns)
            self.desk.wake()
        self.claims[ledger] = None

    def serve_due(self, now_ns: int) -> list[Ledger]:
        """Ledgers whose claims are to be served now."""
        if not self.claims or now_ns < self._next_serve_ns:
            return []
        self._next_serve_ns = now_ns + max(self.serve_ns, len(self.claims) * _SERVE_EACH_NS)
        return list(self.claims)

    def next_wake_ns(self, now_ns: int) -> int | None:
        """When a tick, a flush or a turn of serving is due; None while nothing is at work."""
        times = [row.asked_ns + _ASK_SPACING_NS for row in self.urgent]
        if self._turn:
            times.append(now_ns)
        elif self._active:
            times.append(self._next_tick_ns)
        if self.claims:
            times.append(self._next_serve_ns)
        return min(times, default=None)

    def expire(self, now_ns: int) -> None:
        """Forgets rows at rest and empty ledgers, both long unused."""
        for row in list(self._rows.values()):
            if now_ns - row.used_ns < 60 * LEASE_NS:
                break
            if row.active or row.waiting is not None:
                row.used_ns = now_ns
                self._rows.move_to_end(row.key)
                continue
            self._forget_row(row)
        for ledger in list(self.ledgers.values()):
            ledger.lapse(now_ns)
            if ledger.idle and ledger.committed(now_ns) <= 0.0 and not ledger.holding:
                row_here = self.desk.row_of(ledger.key64)
                if row_here is None or row_here.ledger is not ledger:
                    self.drop_ledger(ledger.key64)
        for ledger in list(self.former.values()):
            if ledger.committed(now_ns) <= 0.0:
                del self.former[ledger.key64]

    def drop_all(self) -> None:
        for row in list(self._rows.values()):
            self._forget_row(row)
        self.ledgers.clear()
        self.former.clear()
        self.claims.clear()
        self._turn.clear()
        self.urgent.clear()

    def _forget_row(self, row: ExactRow) -> None:
        del self._rows[row.key]
        self._active.pop(row, None)
        row.active = False
        self.desk.row_gone(row)

    def _make_row_slow(self, key: bytes, now_ns: int) -> ExactRow:
        if len(self._rows) >= self.keys_max:
            for _ in range(_EVICTION_TRIES):
                row = next(iter(self._rows.values()))
                if row.waiting is None:
                    # What it holds is settled by its owner, when a new row of the key asks or
                    # when nothing was heard of it for three seconds.
                    self._forget_row(row)
                    self.evicted += 1
                    break
                self._rows.move_to_end(row.key)
        row = self._rows[key] = self.desk.make_row(self, key, now_ns)
        return row

    def _evict_ledger(self, now_ns: int) -> None:
        """Room for one: where the oldest one's bucket is not empty, new ones start full."""
        key64, ledger = next(iter(self.ledgers.items()))
        if ledger.committed(now_ns) > 0.0:
            self._crowded_until_ns = now_ns + LEASE_NS + int(self.burst / self.rate)
            self.started_full += 1
        self.drop_ledger(key64)
        row = self.desk.row_of(key64)
        if row is not None:
            row.version = -1  # it looks its ledger up again
