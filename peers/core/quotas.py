"""Exact windows: a quota that comes back whole and is leased (`sync = "exact"` with windows).

The owner counts; its clock alone decides when a window ends, so members' clocks need not agree.
What an upstream sees must fit as well, and its window begins with the first request that reaches
it, which the owner learns of afterwards. So a window has two ends. It began after its first grant:
that time and a period is when its *leases* end, and nobody spends a token of it later. It began
before its first use was told: that time and a period is its *end*, before which nothing of the next
one is granted. Between the two nothing is spent at all, and so the upstream's windows are the
owner's, and none sees more than the quota. With members that tell a window's first use at once the
gap is a round trip. Windows by the wall clock have one end: the owner's clock says when.

A lease's end is told as what is left of it since the member's own request, which says when that was
by the member's clock and is repeated in the answer: however long the answer was under way, the
member ends its lease too early rather than too late.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peers.core.config import MS, SECOND
from peers.core.exact import ExactLimit
from peers.core.leases import ROOM, ExactRow
from peers.core.ledger import Account, Ledger, State
from peers.core.table import Surroundings, aligned_end
from peers.core.wire import Kind

__all__ = ["ExactWindow", "QuotaLedger", "QuotaRow"]

# Nothing becomes free by and by; what is served in turns is a new window, and what came back.
_SERVE_MIN_NS = 1 * MS
_SERVE_MAX_NS = 25 * MS
_SERVES_PER_PERIOD = 200  # so a turn costs half a percent of what a window has at most


class QuotaLedger(Ledger):
    """The quota of one key. `level` is what was used in the present window, over the quota is debt
    to the next ones; 0 for `lease_end_ns`: nothing was granted, for `end_ns`: no use is known."""

    __slots__ = ("_told_end_ns", "end_ns", "lease_end_ns")

    limit: ExactWindow

    def __init__(self, limit: ExactWindow, key64: int, term: int, now_ns: int) -> None:
        super().__init__(limit, key64, term, now_ns)
        self.lease_end_ns = 0
        self.end_ns = 0
        row = limit.desk.row_of(key64)
        # What the owner before told of the window that it had.
        self._told_end_ns = row.end_ns if isinstance(row, QuotaRow) else 0
        if limit.aligned:
            self.lease_end_ns = self.end_ns = limit.aligned_end(now_ns, now_ns)

    def free(self, now_ns: int) -> float:
        """Tokens that could be granted now; 0 or less while nothing may be."""
        free = super().free(now_ns)
        return free if not self.lease_end_ns or now_ns < self.lease_end_ns else min(free, 0.0)

    def drain(self, now_ns: int) -> None:
        """Ends the window whose time is over."""
        limit = self.limit
        agreed_ns = limit.agreed_ns
        if self.holding:
            if agreed_ns is None:
                return
            self.holding = False
            if self.presumed:
                self._presume(agreed_ns)
        if self.lease_end_ns and not self.end_ns:
            if not self.reserved and self._level <= 0.0:
                self.lease_end_ns = 0  # all came back: it did not begin
            elif now_ns >= self.lease_end_ns:
                self.end_ns = self.lease_end_ns + limit.period_ns  # what was used, was by then
        if self.end_ns and now_ns >= self.end_ns:
            self._roll(now_ns)

    def presume(self, now_ns: int) -> None:
        """The owner before may have used the quota up."""
        agreed_ns = self.limit.agreed_ns
        self.presumed = True
        self.holding = agreed_ns is None
        self._level = float(self.limit.effective.burst)
        self._open(now_ns)
        if agreed_ns is not None:
            self._presume(agreed_ns)
            self.drain(now_ns)

    def fill(self, now_ns: int) -> None:
        """The quota counts as used up until the window's end."""
        super().fill(now_ns)
        self._open(now_ns)

    def lower(self, left: float, now_ns: int) -> bool:
        """Leaves at most `left` of the present window's quota; news of use opens one where none
        is."""
        lowered = super().lower(left, now_ns)
        if lowered:
            self._open(now_ns)
        return lowered

    def state(self, now_ns: int) -> State:
        """What a new owner should know."""
        used = max(0.0, self.committed(now_ns))
        if used > 0.0:
            self._open(now_ns)
        return State(used, self.lease_end_ns, self.end_ns)

    def restore(self, state: State) -> None:
        """Its window was kept elsewhere until now."""
        super().restore(state)
        self.lease_end_ns, self.end_ns = state.lease_end_ns, state.end_ns

    def recall(self, states: Sequence[State], now_ns: int) -> None:
        """Takes over the window of the owner before, from what all who may have been it told."""
        if not self.presumed:
            return
        states = [state for state in states if now_ns < state.end_ns]
        super().recall(states, now_ns)
        if not self.limit.aligned:
            self.lease_end_ns = min((state.lease_end_ns for state in states), default=0)
            self.end_ns = max((state.end_ns for state in states), default=0)
            if self._since_made:
                self._open(now_ns)

    def retire(self, now_ns: int) -> None:
        """Another member owns the key: what is held counts as used."""
        super().retire(now_ns)
        self.holding = False  # windows end by themselves, whoever sees whom

    def hear(
        self, node: bytes, boot: int, seq: int, ask: tuple[int, ...], now_ns: int
    ) -> Account | None:
        """Takes a member's request in; None if it is old."""
        self.drain(now_ns)
        account = super().hear(node, boot, seq, ask, now_ns)
        if account is not None:
            account.stamp = ask[8]
        return account

    def answer(self, account: Account, now_ns: int) -> tuple[int, ...]:
        """What the account is told: also when its lease ends, counted from its last request, and
        what is left of the window, 0 while its first use is not known."""
        told = super().answer(account, now_ns)
        lease_ms = max(0, self.lease_end_ns - account.heard_ns) // MS
        left_ms = -(min(0, now_ns - self.end_ns) // MS) if self.end_ns else 0
        return (*told, account.stamp, lease_ms, left_ms)

    def _spend(self, count: int, now_ns: int) -> None:
        super()._spend(count, now_ns)
        self._open(now_ns)

    def _grant(self, account: Account, count: int, now_ns: int) -> None:
        super()._grant(account, count, now_ns)
        if not self.lease_end_ns:
            self.lease_end_ns = now_ns + self.limit.period_ns

    def _open(self, now_ns: int) -> None:
        """Something was used by now."""
        end_ns = now_ns + self.limit.period_ns
        self.lease_end_ns = self.lease_end_ns or end_ns
        self.end_ns = self.end_ns or end_ns

    def _presume(self, agreed_ns: int) -> None:
        """The owner before may have begun a window up to `agreed_ns`, but none beside one that is
        known to have gone on until then."""
        limit = self.limit
        end_ns = self._told_end_ns
        if limit.aligned:
            end_ns = limit.aligned_end(agreed_ns, agreed_ns)
        elif end_ns <= agreed_ns:
            end_ns = agreed_ns + limit.period_ns
        self.lease_end_ns = self.end_ns = end_ns

    def _roll(self, now_ns: int) -> None:
        """The window is over, and what members hold of it with it. A new term tells them; debt is
        paid by the windows that passed and then by the next, which begins at once."""
        limit = self.limit
        passed = (now_ns - self.end_ns) // limit.period_ns + 1
        next_end_ns = self.end_ns + passed * limit.period_ns
        self._level = max(0.0, self._level - limit.burst * passed)
        self.presumed = False
        self.reserved = 0
        self.term = limit.desk.next_term()
        for account in self.accounts.values():
            account.granted = account.spent = account.returned = 0
        if limit.aligned:
            next_end_ns = limit.aligned_end(next_end_ns, now_ns)
        elif self._level <= 0.0:
            next_end_ns = 0
        self.lease_end_ns = self.end_ns = next_end_ns


class QuotaRow(ExactRow):
    """One member's view of one key. `end_ns` is the window's end as the owner told it, 0 while its
    first use is not known there."""

    __slots__ = ("_alone_end_ns", "end_ns")

    limit: ExactWindow

    def __init__(self, limit: ExactWindow, key: bytes, key64: int, gen: int, now_ns: int) -> None:
        super().__init__(limit, key, key64, gen, now_ns)
        self.end_ns = 0
        self._alone_end_ns = 0

    def take(self, cost: int, now_ns: int) -> None:
        """Takes what `ask` just granted. A window's first use is told at once."""
        super().take(cost, now_ns)
        if self.ledger is None and not self.end_ns:
            self.limit.urge(self)

    def level(self, now_ns: int) -> float:
        """Tokens committed in the present window, as far as this node knows."""
        if self.ledger is not None:
            return max(0.0, self.ledger.committed(now_ns))
        return 0.0 if self.end_ns and now_ns >= self.end_ns else max(0.0, self._level)

    def learn(self, remaining: int, sent_ns: int, now_ns: int) -> bool:
        """Takes over what the upstream says is left, if it is less than the quota's count says.
        What was sent before the present window says nothing about it."""
        if self.version != self.limit.version:
            self._look_up_slow(now_ns)
        left = float(max(0, remaining))
        limit = self.limit
        end_ns = self.window_end_ns(now_ns)
        if end_ns and sent_ns < end_ns - limit.period_ns:
            return False
        if self.ledger is not None:
            return self.ledger.lower(left, now_ns)
        if self._level < 0.0 or limit.burst - left < self.level(now_ns) + 1.0:
            return False
        self._level = limit.burst - left
        limit.desk.advertise(self, left)
        return True

    def window_end_ns(self, now_ns: int) -> int:
        """When the present window ends; 0 where none is open, or it is not known."""
        ledger = self.ledger
        if isinstance(ledger, QuotaLedger):
            ledger.drain(now_ns)
            return ledger.end_ns
        return self.end_ns if now_ns < self.end_ns else 0

    def heard(self, grant: tuple[int, ...], now_ns: int) -> None:
        """The owner's answer."""
        *_, stamp, lease_ms, left_ms = grant
        if grant[1] != self.gen or grant[2] < self.term:
            return
        super().heard(grant, now_ns)
        self.lapse_ns = min(self.lapse_ns, (stamp + lease_ms) * MS)
        self.end_ns = now_ns + left_ms * MS if left_ms else 0

    def served(self, now_ns: int) -> None:
        """This node's own account got something of its ledger."""
        super().served(now_ns)
        if isinstance(self.ledger, QuotaLedger):
            self.lapse_ns = min(self.lapse_ns, self.ledger.lease_end_ns)

    def tell(self, limit_name: int, now_ns: int) -> tuple[int, ...]:
        """The request as of now, and the note that it leaves now."""
        return (*super().tell(limit_name, now_ns), now_ns // MS)

    def _begin_term(self, term: int) -> None:
        """What was spent without a grant is owed to the owner's next window."""
        debt = max(0, -self.purse) if term else 0
        super()._begin_term(term)
        self.purse = -debt
        self.spent = debt

    def _free_in_ns(self, cost: int, now_ns: int) -> int:
        if self.level(now_ns) + cost <= self.limit.burst:
            return 0
        return max(0, self.window_end_ns(now_ns) - now_ns)

    def _go_alone(self, now_ns: int) -> None:
        """From a quota that is used up until the window's end."""
        super()._go_alone(now_ns)
        limit = self.limit
        self._alone_end_ns = self.window_end_ns(now_ns) or now_ns + limit.period_ns
        if limit.aligned:
            self._alone_end_ns = limit.aligned_end(now_ns, now_ns)

    def _ask_alone(self, cost: int, now_ns: int) -> int:
        """The owner is silent: an n-th of the quota, in windows of its own."""
        limit = self.limit
        self.wanting = True
        if now_ns >= self._alone_end_ns:
            self._alone_level = 0.0
            self._alone_end_ns = now_ns + limit.period_ns
            if limit.aligned:
                self._alone_end_ns = limit.aligned_end(now_ns, now_ns)
        if self._alone_level + cost <= max(limit.alone_burst, float(cost)):
            return ROOM
        return self._alone_end_ns - now_ns


class ExactWindow(ExactLimit):
    """A quota of `rule.rate_count` tokens in each window of its period that the mesh never exceeds.

    Windows begin with a key's first use anywhere, or after `align` at multiples of the period in
    wall time, by the clock of the key's owner.
    """

    drains = False
    ask_kind = Kind.QUOTA_ASK
    grant_kind = Kind.QUOTA_GRANT

    aligned = False
    wall_offset_ns = 0

    def align(self, wall_offset_ns: int | None) -> None:
        """Windows follow the wall clock, which is so far ahead of `now_ns`; None: they do not. What
        is under way ends as it would have."""
        self.aligned = wall_offset_ns is not None
        self.wall_offset_ns = wall_offset_ns or 0

    def aligned_end(self, near_ns: int, now_ns: int) -> int:
        """The end, by the wall clock, that is nearest to the one expected, and to come."""
        return aligned_end(near_ns, now_ns, self.period_ns, self.wall_offset_ns)

    def retune(self, surroundings: Surroundings, now_ns: int | None) -> None:
        """Recomputes what rows and ledgers read."""
        super().retune(surroundings, now_ns)
        members, known, *_ = surroundings
        self.period_ns = self.rule.rate_period_ns  # part of the limit's identity
        self.memory_ns = self.period_ns
        part_ns = self.period_ns // _SERVES_PER_PERIOD
        self.serve_ns = max(_SERVE_MIN_NS, min(_SERVE_MAX_NS, part_ns))
        quota = self.effective.burst
        if self.on_partition == "share" and members * 2 <= known:
            quota = quota * members // known
        self.burst = 0.0 if self.closed else float(quota)
        self.alone_burst = max(1.0, self.burst / members)
        self.fair_share = max(1, quota // members)
        self.scarce = members > 1 and quota < 2 * members

    def new_row(self, key: bytes, name: int, gen: int, now_ns: int) -> ExactRow:
        return QuotaRow(self, key, name, gen, now_ns)

    def new_ledger(self, key64: int, now_ns: int) -> Ledger:
        return QuotaLedger(self, key64, self.desk.next_term(), now_ns)

    def remaining(self, row: ExactRow, now_ns: int) -> tuple[int, int]:
        """(whole tokens free now, nanoseconds until the window's end; 0 for an unused one)."""
        assert isinstance(row, QuotaRow)
        level = row.level(now_ns)
        free = max(row.purse, int(self.burst - level), 0)
        if level <= 0.0:
            return free, 0
        return free, max(1, row.window_end_ns(now_ns) - now_ns)

    def stats(self) -> dict[str, Any]:
        """As of a smooth limit; its rate is the quota over the period."""
        return super().stats() | {"rate": self.burst * SECOND / self.period_ns}
