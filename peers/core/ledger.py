"""The owner's side of an exact limit: one bucket for a key, and who holds tokens of it.

A token is in one of three places: in the bucket's level (spent, and draining at the rate), reserved
(granted to a member that has not said that it spent it), or free. The owner grants only what is
free, and what is reserved does not drain, because its holder may spend it at any later moment:

    level + reserved <= burst            at every moment, where the level is never below the truth

so an upstream never sees more than rate x w + burst in any window w, whatever the network loses or
delays. Totals travel, not differences: a lost grant is told again by the next answer, and a copy
of one changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import expm1
from typing import TYPE_CHECKING, NamedTuple

from peers.core.config import MS, SECOND
from peers.core.wire import U32, U63

if TYPE_CHECKING:
    from peers.core.exact import ExactLimit

__all__ = ["SELF", "Account", "Ledger", "State"]

# An item of LEASE_ASK: [key64, limit, gen, term, spent, returned, want, least]. `spent` and
# `returned` are tokens of this term in all; `want` is what its holder would like to hold, `least`
# what is of any use to it. Subclasses may have more behind that.
# An item of LEASE_GRANT: [key64, gen, term, granted, level_16, rate_100]. `granted` are the tokens
# of this term, in all; level_16 what is spent and reserved, in sixteenths; rate_100 what all
# members together spend, in hundredths of a token a second.

SELF = b""  # the owner's own account, which needs no datagrams

# A claim that is not renewed (every 250 ms) is void: its holder may be gone.
_CLAIM_NS = 600 * MS
# A member that says nothing for so long has spent what it held: its lease lapsed two seconds ago.
_SILENT_NS = 3 * SECOND
# Its totals are kept as long as a dead member is: it may be back in the same term.
_FORGET_NS = 600 * SECOND
_RATE_TAU_NS = 3.0 * SECOND
# What adding and draining of floats may be off by; without it a token that is due to the
# nanosecond would be late by one.
_ROUNDING = 1e-6


class State(NamedTuple):
    """What somebody knows of a bucket: tokens committed, and of a window when it ends: its leases
    at the earliest, it for all at the latest (0: none is open, or it is no window)."""

    level: float
    lease_end_ns: int = 0
    end_ns: int = 0


class Account:
    """What one member holds of one key. `granted`, `spent` and `returned` only grow within
    (boot, gen)."""

    __slots__ = (
        "boot",
        "claim_until_ns",
        "credit",
        "gen",
        "granted",
        "heard_ns",
        "least",
        "node",
        "returned",
        "seq",
        "spent",
        "stamp",
        "want",
    )

    def __init__(self, node: bytes, boot: int, gen: int, now_ns: int) -> None:
        self.node = node
        self.boot = boot
        self.gen = gen
        self.seq = -1
        self.granted = 0
        self.spent = 0
        self.returned = 0
        self.want = 0
        self.least = 0
        self.claim_until_ns = 0
        self.credit = 0.0  # towards the next token, where there are too few
        self.heard_ns = now_ns
        self.stamp = 0  # what its last request was dated by its own clock

    @property
    def held(self) -> int:
        """Tokens that it may still spend, as far as the owner knows."""
        return self.granted - self.spent - self.returned

    def unmet(self, now_ns: int) -> int:
        """Tokens that it claims beyond what it holds."""
        return max(0, self.want - self.held) if now_ns < self.claim_until_ns else 0


class Ledger:
    """The bucket of one key. `term` tells this ledger from earlier ones of the same key.

    `holding`: the owner is new, and members may still hold tokens of its predecessor; nothing is
    granted and nothing drains until all members have said that they see the same owner. `presumed`:
    it does not know what was spent before it was made, and takes the bucket for full.
    """

    __slots__ = (
        "_lapse_ns",
        "_level",
        "_level_ns",
        "_rate",
        "_rate_ns",
        "_since_made",
        "_spent",
        "accounts",
        "holding",
        "key64",
        "limit",
        "presumed",
        "reserved",
        "retired_ns",
        "term",
        "used_ns",
    )

    def __init__(self, limit: ExactLimit, key64: int, term: int, now_ns: int) -> None:
        self.limit = limit
        self.key64 = key64
        self.term = term
        self.accounts: dict[bytes, Account] = {}
        self.reserved = 0
        self.holding = False
        self.presumed = False
        self.used_ns = now_ns
        self.retired_ns = 0  # when another member became the owner
        self._level = 0.0
        self._level_ns = now_ns
        self._lapse_ns = now_ns + _SILENT_NS
        self._spent = 0
        self._since_made = 0
        self._rate = 0.0  # spent by all, tokens per nanosecond
        self._rate_ns = now_ns

    # -- the bucket

    def free(self, now_ns: int) -> float:
        """Tokens that could be granted now; 0 or less while nothing may be."""
        limit = self.limit
        if not limit.may_grant(now_ns):
            return 0.0
        self.drain(now_ns)
        if self.holding:
            return 0.0
        return limit.burst - self._level - self.reserved + _ROUNDING

    def drain(self, now_ns: int) -> None:
        """Brings the level up to now."""
        if self.holding:
            since_ns = self.limit.agreed_ns
            if since_ns is None:
                return
            self.holding = False
            self._level_ns = max(self._level_ns, since_ns)
        if now_ns > self._level_ns:
            drained = (now_ns - self._level_ns) * self.limit.rate
            self._level = max(0.0, self._level - drained)
            self._level_ns = now_ns

    def committed(self, now_ns: int) -> float:
        """What is spent and not drained, and what is reserved."""
        self.drain(now_ns)
        return self._level + self.reserved

    def fill(self, now_ns: int) -> None:
        """No burst: nothing is free now, and tokens come at the rate."""
        self.drain(now_ns)
        self._level = max(self._level, self.limit.burst - self.reserved)

    def clear(self, now_ns: int) -> None:
        """The operator forgives: nothing is spent. What members hold stays reserved."""
        self.drain(now_ns)
        self._level = 0.0

    def lower(self, left: float, now_ns: int) -> bool:
        """Leaves at most `left` of the burst, if that is a token less than now; says whether. The
        greater of two levels counts, so hearing the same from several members is hearing it once.
        """
        level = self.limit.burst - self.reserved - left
        self.drain(now_ns)
        if level < self._level + 1.0 - _ROUNDING:
            return False
        self._level = level
        return True

    def state(self, now_ns: int) -> State:
        """What a new owner should know."""
        return State(max(0.0, self.committed(now_ns)))

    def presume(self, now_ns: int) -> None:
        """What was spent before is not known: the bucket was full when the view began, and has
        drained since all agreed on it."""
        limit = self.limit
        agreed_ns = limit.agreed_ns
        self.presumed = True
        self.holding = agreed_ns is None
        self._level = float(limit.effective.burst)
        if agreed_ns is not None:
            self._level = max(0.0, self._level - (now_ns - agreed_ns) * limit.rate)

    def restore(self, state: State) -> None:
        """It was kept elsewhere until now."""
        self._level = state.level

    def recall(self, states: Sequence[State], now_ns: int) -> None:
        """It was presumed full; now all who may have kept the bucket before have said what they
        know of it as of now. What was spent since counts as not drained."""
        if self.presumed:
            self.presumed = False
            self.drain(now_ns)
            told = max((state.level for state in states), default=0.0)
            self._level = min(self._level, told + self._since_made)

    def retire(self, now_ns: int) -> None:
        """Another member owns the key: what is held counts as spent, and does not drain before all
        have said that they see that owner."""
        for account in self.accounts.values():
            self.settle(account, now_ns)
        self.accounts.clear()
        self.holding = True
        self.retired_ns = now_ns

    def rate(self, now_ns: int) -> float:
        """What all members together spent of late, tokens per nanosecond."""
        elapsed_ns = now_ns - self._rate_ns
        if elapsed_ns >= 100 * MS:
            part = -expm1(-elapsed_ns / _RATE_TAU_NS)
            self._rate += (self._spent / elapsed_ns - self._rate) * part
            self._spent = 0
            self._rate_ns = now_ns
        return self._rate

    # -- members

    def account(self, node: bytes, boot: int, gen: int, now_ns: int) -> Account | None:
        """The account of this life of a member's row; None where it is an earlier one's. What an
        earlier one held counts as spent."""
        known = self.accounts.get(node)
        if known is not None:
            if (boot, gen) < (known.boot, known.gen):
                return None
            if (boot, gen) == (known.boot, known.gen):
                return known
            self.settle(known, now_ns)
        made = self.accounts[node] = Account(node, boot, gen, now_ns)
        return made

    def hear(
        self, node: bytes, boot: int, seq: int, ask: tuple[int, ...], now_ns: int
    ) -> Account | None:
        """Takes a member's request in, which is answered whatever it says; None if it is old."""
        _, _, gen, term, spent, returned, want, least = ask[:8]
        account = self.account(node, boot, gen, now_ns)
        if account is None or seq <= account.seq:
            return None
        account.seq = seq
        account.heard_ns = self.used_ns = now_ns
        if term == self.term:
            overdrawn = spent - account.spent - account.held
            if overdrawn > 0:
                # Debt: a cost that was told afterwards, or spent while we were silent.
                self._grant(account, overdrawn, now_ns)
            self.spend(account, spent - account.spent, now_ns)
            self.give_back(account, returned - account.returned)
        self.claim(account, want, least, now_ns)
        return account

    def claim(self, account: Account, want: int, least: int, now_ns: int) -> None:
        """What the account would like to hold, at most a fair share, or what it needs at least."""
        account.least = least if least <= self.limit.burst else 0
        account.want = max(account.least, min(want, self.limit.fair_share))
        account.claim_until_ns = now_ns + _CLAIM_NS
        if account.unmet(now_ns):
            self.limit.claimed(self, now_ns)

    def spend(self, account: Account, count: int, now_ns: int) -> None:
        """Reserved tokens of this account are spent."""
        if count > 0:
            self.drain(now_ns)
            account.spent += count
            self.reserved -= count
            self._spend(count, now_ns)

    def give_back(self, account: Account, count: int) -> None:
        """Reserved tokens of this account are free again: it will not spend them any more."""
        count = min(count, account.held)
        if count > 0:
            account.returned += count
            self.reserved -= count

    def take(self, count: int, now_ns: int) -> None:
        """Free tokens are spent at once, by the owner itself."""
        self.drain(now_ns)
        self._spend(count, now_ns)
        self.used_ns = now_ns

    def settle(self, account: Account, now_ns: int) -> None:
        """Nothing more will be heard of this account: what it held counts as spent now."""
        self.spend(account, account.held, now_ns)

    def lapse(self, now_ns: int) -> None:
        """Settles members that have been silent for long, and forgets them after longer."""
        if now_ns < self._lapse_ns:
            return
        self._lapse_ns = now_ns + _SILENT_NS
        for node, account in list(self.accounts.items()):
            if node != SELF and now_ns - account.heard_ns >= _SILENT_NS:
                self.settle(account, now_ns)
                if now_ns - account.heard_ns >= _FORGET_NS:
                    del self.accounts[node]

    def drop(self, node: bytes, now_ns: int) -> None:
        """The member is gone, or seems to be: its totals are kept, or all that it ever spent in
        this term would be debt when it comes back."""
        account = self.accounts.get(node)
        if account is not None:
            account.claim_until_ns = now_ns
            self.settle(account, now_ns)

    @property
    def idle(self) -> bool:
        """Nobody holds anything."""
        return self.reserved == 0

    # -- grants

    def serve(self, now_ns: int) -> list[Account]:
        """Grants what is free to those who claim; returns the accounts that got something.

        Where it is too little they take turns, weighed by what they claim, and each gets its part
        by that. One whose request needs more than is free when its turn comes is waited for, or
        smaller ones would starve it.
        """
        claims = [account for account in self.accounts.values() if account.unmet(now_ns)]
        spare = int(self.free(now_ns)) if claims else 0
        granted: dict[bytes, Account] = {}
        while spare > 0 and claims:
            total = sum(account.unmet(now_ns) for account in claims)
            account = max(claims, key=_by_turn)
            needed = max(1, account.least - account.held)
            if needed > spare:
                break
            unmet = account.unmet(now_ns)
            count = unmet if total <= spare else max(needed, spare * unmet // total)
            for other in claims:
                other.credit += count * other.unmet(now_ns) / total
            account.credit -= count
            self._grant(account, count, now_ns)
            granted[account.node] = account
            spare -= count
            claims = [account for account in claims if account.unmet(now_ns)]
        return list(granted.values())

    def _spend(self, count: int, now_ns: int) -> None:
        self._level += count
        self._spent += count
        self._since_made += count

    def _grant(self, account: Account, count: int, now_ns: int) -> None:
        account.granted += count
        self.reserved += count

    def answer(self, account: Account, now_ns: int) -> tuple[int, ...]:
        """What the account is told."""
        level_16 = min(U63, int(max(0.0, self.committed(now_ns)) * 16))
        rate_100 = min(U32, int(self.rate(now_ns) * 100 * SECOND))
        return (self.key64, account.gen, self.term, account.granted, level_16, rate_100)


def _by_turn(account: Account) -> tuple[float, bytes]:
    return (account.credit, account.node)
