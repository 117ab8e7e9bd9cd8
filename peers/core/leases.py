"""Limits that the mesh never exceeds (`sync = "exact"`), as the members see them.

Each key has an owner, the live member that rendezvous hashing names. It runs the one bucket
(`ledger`) and grants tokens; a member keeps what it was granted in the row's purse and spends it
without asking anybody. The purse is sized by 40 ms of demand, at most a fair share of the burst.

A lease lapses one second after the last word of its owner: a member that hears nothing stops
spending, so a new owner knows when tokens of the old one cannot be spent any more. A member whose
owner has been silent for that long, and was asked three times at least, works alone at its part of
the rate until an owner answers: only where most of the others are silent too. One that others hear
goes on granting the whole rate; if it is dead they say so, and name the next one, a second later.
"""

from __future__ import annotations

from math import ceil, expm1
from typing import TYPE_CHECKING, Any, NamedTuple

from peers.core.config import MS, SECOND
from peers.core.ledger import SELF, Account, Ledger
from peers.core.wire import U32

if TYPE_CHECKING:
    from peers.core.exact import ExactLimit

__all__ = ["LEASE_NS", "NEVER", "ROOM", "ExactRow", "Owner"]

ROOM = 0
NEVER = -1

# Demand that a purse is made for: some ten round trips on a LAN, and a fraction of what a client
# notices if it has to go back.
_BATCH_NS = 40 * MS
LEASE_NS = 1 * SECOND  # how long tokens may be spent after the owner's last word
_RENEW_NS = 250 * MS  # a purse in use is renewed four times before it would lapse
_RENEW_SCARCE_NS = 50 * MS  # where each token that a lost answer leaves lying counts
_REPORT_NS = 25 * MS  # what was spent is told so late, if nothing is asked for meanwhile
_ASKS_MIN = 3  # that an owner must leave unanswered before it counts as silent
_DEMAND_TAU_NS = 0.3 * SECOND
_DEMAND_STEP_NS = 5 * MS
_CLOSED_RETRY_NS = 1 * SECOND  # a closed limit (on_partition) is asked again so soon


class Owner(NamedTuple):
    """Who has the bucket of a key: one life of a member."""

    node: bytes
    boot: int


class ExactRow:
    """One member's view of one key. Satisfies `gateway.limits.verdict.Entry`.

    `purse` are tokens that may be spent until `lapse_ns`; `spent` and `returned` are those of this
    term, in all; `own` this node's admissions since the row was made.

    Where tokens are scarce (less than two a member) one that lies in a purse is one that nobody
    else can have. There a token is asked for a request that waits, its use is told at once, and so
    is that nobody waits any more: the claim is over, and what comes all the same goes back.
    """

    __slots__ = (
        "_alone_level",
        "_alone_ns",
        "_arrived",
        "_asked_ns",
        "_asks",
        "_cost",
        "_demand",
        "_demand_ns",
        "_left",
        "_level",
        "_level_ns",
        "_moved_ns",
        "_rate",
        "_silent_ns",
        "_told",
        "_waits",
        "account",
        "active",
        "alone",
        "gen",
        "granted",
        "key",
        "key64",
        "lapse_ns",
        "ledger",
        "limit",
        "own",
        "owner",
        "purse",
        "queued",
        "returned",
        "spent",
        "term",
        "ungranted",
        "urgent",
        "used_ns",
        "version",
        "waiting",
        "wanting",
    )

    def __init__(self, limit: ExactLimit, key: bytes, key64: int, gen: int, now_ns: int) -> None:
        self.limit = limit
        self.key = key
        self.key64 = key64
        self.gen = gen
        self.waiting: Any = None
        self.own = 0
        self.purse = 0
        self.lapse_ns = 0
        self.term = 0
        self.granted = 0
        self.spent = 0
        self.returned = 0
        self.queued = 0
        self.wanting = False  # asked in vain: the owner is to be asked
        self.ungranted = 0  # spent alone since an owner was heard last
        self.alone = False  # the owner is silent: this node's part of the rate is its own
        self.active = False
        self.urgent = False
        self.used_ns = now_ns
        self.version = -1  # of the membership that `owner` is of; none yet
        self.owner: Owner | None = None
        self.ledger: Ledger | None = None  # this node is the owner
        self.account: Account | None = None  # and this is its own part of it
        self._alone_level = 0.0
        self._alone_ns = now_ns
        self._cost = 1  # of what was asked for in vain last
        self._arrived = 0
        self._demand = 0.0  # tokens per nanosecond
        self._demand_ns = now_ns
        self._moved_ns = now_ns  # when the purse was last filled or used
        self._asked_ns = -SECOND
        self._silent_ns = 0  # when the owner was first asked since its last word; 0: it spoke since
        self._asks = 0  # how often since
        self._waits = False  # requests of it wait, as their caller says with `hold`
        self._left = False  # the last one that waited is gone: the owner should know
        self._told = (0, 0, 0, 0)  # spent, returned, want, least
        self._level = -1.0  # committed at the owner, as it said; below 0: nothing is known
        self._level_ns = now_ns
        self._rate = 0.0

    # -- the caller's side: gateway.limits.verdict.Entry

    def ask(self, cost: int, now_ns: int) -> int:
        """ROOM, or nanoseconds (>= 1) until asking again can help, or NEVER.

        Without room the owner is asked; RowChanged tells where the row's `waiting` is set that
        it has answered.
        """
        if self.version != self.limit.version:
            self._look_up_slow(now_ns)
        if self.purse >= cost and now_ns < self.lapse_ns:
            return ROOM
        ledger = self.ledger
        if ledger is None:
            return self._fetch_slow(cost, now_ns)
        if ledger not in self.limit.claims and ledger.free(now_ns) >= cost:
            self.alone = False
            self.ungranted = 0
            return ROOM
        return self._claim_slow(ledger, cost, now_ns)

    def foresees(self, cost: int, now_ns: int) -> bool:
        """Whether no room comes before the time that `ask` has just said: not while an owner's
        answer, or the end of a partition, may come at any moment."""
        if self.limit.closed:
            return False
        if self.ledger is None and not self.alone:
            return not self._silent_ns and self._level >= 0.0
        return True

    def take(self, cost: int, now_ns: int) -> None:
        """Takes what `ask` just granted."""
        self.own += cost
        self.used_ns = self._moved_ns = now_ns
        if self.purse >= cost and now_ns < self.lapse_ns:
            self.purse -= cost
            ledger = self.ledger
            if ledger is None:
                self.spent += cost
                if not self.active:
                    self.limit.activate(self, now_ns)
                if self.limit.scarce or self.purse < self._batch(now_ns) // 2:
                    self.limit.urge(self)
            elif self.account is not None:
                ledger.spend(self.account, cost, now_ns)
                if self.limit.scarce:
                    self.limit.urge(self)
        elif self.ledger is not None:
            self.ledger.take(cost, now_ns)
            self._alone_level += cost
            if self.alone:
                self.ungranted += cost
        else:
            self._overdraw_slow(cost)
            if not self.active:
                self.limit.activate(self, now_ns)

    def arrive(self, cost: int, now_ns: int) -> None:
        """Counts a request's demand, once a request."""
        self._arrived += cost
        self.used_ns = now_ns

    def hold(self, cost: int) -> None:
        """A request of this cost waits for this row; -cost undoes it."""
        self.queued += cost
        self._waits = True
        if self.queued <= 0 and self.limit.scarce and (self.purse > 0 or self.wanting):
            self._left = True
            self.limit.urge(self)

    def give_back(self, cost: int, now_ns: int) -> None:
        """Tokens of a rate are never given back."""

    def fill(self, now_ns: int) -> None:
        """No burst: nothing is free now, and tokens come at the rate (after a pause)."""
        if self.version != self.limit.version:
            self._look_up_slow(now_ns)
        self._return_purse(now_ns)
        if self.ledger is not None:
            self.ledger.fill(now_ns)
        self._alone_level = max(self._alone_level, self.limit.alone_burst)

    def clear(self, now_ns: int) -> None:
        """The operator forgives: the bucket is empty. Where another node owns the key it has to be
        said there."""
        if self.version != self.limit.version:
            self._look_up_slow(now_ns)
        if self.ledger is not None:
            self.ledger.clear(now_ns)

    def learn(self, remaining: int, sent_ns: int, now_ns: int) -> bool:
        """Takes over what the upstream says is left, if it is less than the bucket says; says
        whether. What it says is as of `sent_ns` and has drained since. Another owner is told what
        is left, never what is missing: it may hear the same from all members."""
        if self.version != self.limit.version:
            self._look_up_slow(now_ns)
        limit = self.limit
        left = max(0, remaining) + max(0, now_ns - sent_ns) * limit.rate
        if self.ledger is not None:
            return self.ledger.lower(left, now_ns)
        if self._level < 0.0 or limit.burst - left < self.level(now_ns) + 1.0:
            return False
        self._level = limit.burst - left
        self._level_ns = now_ns
        limit.desk.advertise(self, left)
        return True

    def level(self, now_ns: int) -> float:
        """Tokens committed in the whole mesh, as far as this node knows."""
        limit = self.limit
        if self.ledger is not None:
            return max(0.0, self.ledger.committed(now_ns))
        return max(0.0, self._level - (now_ns - self._level_ns) * limit.rate)

    @property
    def taken(self) -> int:
        """As `own`, by the name that the node's local rows have for it."""
        return self.own

    def others_rate(self, now_ns: int) -> float:
        """Tokens per nanosecond that the other members spend, as the owner knows it."""
        rate = self.ledger.rate(now_ns) if self.ledger is not None else self._rate
        return max(0.0, rate - self._demand)

    @property
    def unheard(self) -> bool:
        """Whether the owner does not answer, and yet is not gone: there are no tokens here."""
        return bool(self._silent_ns) and not self.alone and self._asks > 2 * _ASKS_MIN

    @property
    def fetching(self) -> bool:
        """Whether an answer of the owner is on its way: a request that finds no token now is not
        refused for that, see `gateway.proxy.admission`."""
        return self.wanting and not self.alone and (self.urgent or self._silent_ns != 0)

    # -- the owner's answers

    def heard(self, grant: tuple[int, ...], now_ns: int) -> None:
        """The owner's answer. Totals: an old one, or a copy, adds nothing."""
        _, gen, term, granted, level_16, rate_100 = grant[:6]
        if gen != self.gen or term < self.term:
            return
        if term > self.term:
            self._begin_term(term)
        self.alone = False
        self.ungranted = 0
        self.lapse_ns = now_ns + LEASE_NS
        self._silent_ns = 0
        self._asks = 0
        self._level = level_16 / 16
        self._level_ns = now_ns
        self._rate = rate_100 / (100 * SECOND)
        if granted > self.granted:
            self.purse += granted - self.granted
            self.granted = granted
            self._moved_ns = now_ns
        if self.purse >= self._cost:
            self.wanting = False
        if self.waiting is not None:
            self.limit.changed(self)
        self._regret()

    def served(self, now_ns: int) -> None:
        """This node's own account got something of its ledger."""
        account = self.account
        if account is not None:
            self.purse = account.held
            self.lapse_ns = now_ns + LEASE_NS
            self._moved_ns = now_ns
            if self.purse >= self._cost:
                self.wanting = False
            if not self.active:
                self.limit.activate(self, now_ns)
            if self.waiting is not None:
                self.limit.changed(self)
            self._regret()

    def settle_own(self, now_ns: int) -> None:
        """This node is the owner, and nobody waits here any more."""
        self._give_up(now_ns)
        if not self.wanting and self.account is not None:
            self.account.claim_until_ns = now_ns

    # -- asking the owner

    def due(self, now_ns: int) -> bool:
        """Whether the owner should hear something now (looked at on every tick)."""
        if self.version != self.limit.version:
            self._look_up_slow(now_ns)
        self._age(now_ns)
        if self.ledger is not None:
            return False
        since_ns = now_ns - self._asked_ns
        if self._silent_ns:
            return since_ns >= self.limit.retry_ns
        if self._told[:2] != (self.spent, self.returned):
            return since_ns >= _REPORT_NS
        renew_ns = _RENEW_SCARCE_NS if self.limit.scarce else _RENEW_NS
        return (self.wanting or self.purse != 0) and since_ns >= renew_ns

    @property
    def news(self) -> bool:
        """Whether asking now would say something that the last time did not."""
        spent, returned, want, least = self._told
        if self._left or spent != self.spent or returned != self.returned or not self._silent_ns:
            return True
        return self._wanted() > want + want // 4 or self._least() > least

    @property
    def asked_ns(self) -> int:
        return self._asked_ns

    def tell(self, limit_name: int, now_ns: int) -> tuple[int, ...]:
        """The request as of now, and the note that it leaves now."""
        self._batch(now_ns)
        self._give_up(now_ns)
        self._asked_ns = now_ns
        self._asks += 1
        if not self._silent_ns:
            self._silent_ns = now_ns
        wanted, least = min(U32, self._wanted()), min(U32, self._least())
        told = self._told = (self.spent, self.returned, wanted, least)
        return (self.key64, limit_name, self.gen, self.term, *told)

    @property
    def at_rest(self) -> bool:
        """Nothing to ask, to tell or to give back."""
        if self.purse > 0 or self.queued > 0 or self.wanting or self.alone:
            return False
        if self.ledger is not None:
            return True
        return not self._silent_ns and self._told[:2] == (self.spent, self.returned)

    # -- within

    def _regret(self) -> None:
        """A token came where nobody waits any more."""
        if self.purse > 0 and self._waits and self.queued <= 0 and self.limit.scarce:
            self._left = True
            self.limit.urge(self)

    def _give_up(self, now_ns: int) -> None:
        """Nobody waits any more: what tokens there are go back, and none are asked for."""
        if self._left:
            self._left = False
            if self.queued <= 0:
                self.wanting = False
                self._return_purse(now_ns)

    def _wanted(self) -> int:
        if self.limit.scarce and not self.wanting and self.queued <= 0:
            return 0
        if not self.wanting and self.queued <= 0 and not self._demand:
            return 0
        batch = int(self._demand * _BATCH_NS)
        return max(batch, self.queued, self._least())

    def _least(self) -> int:
        return self._cost if self.wanting else 0

    def _batch(self, now_ns: int) -> int:
        """Tokens of 40 ms of demand."""
        elapsed_ns = now_ns - self._demand_ns
        if elapsed_ns >= _DEMAND_STEP_NS:
            part = -expm1(-elapsed_ns / _DEMAND_TAU_NS)
            self._demand += (self._arrived / elapsed_ns - self._demand) * part
            self._arrived = 0
            self._demand_ns = now_ns
        return int(self._demand * _BATCH_NS)

    def _fetch_slow(self, cost: int, now_ns: int) -> int:
        limit = self.limit
        if limit.closed:
            return _CLOSED_RETRY_NS
        if cost > limit.burst:
            return NEVER
        self._age(now_ns)
        if self.alone:
            return self._ask_alone(cost, now_ns)
        # Too few for this request: they are of more use elsewhere, or two members that collect
        # for a large cost would hold each other up.
        self._return_purse(now_ns)
        self._want(cost, now_ns)
        if self.news:
            limit.urge(self)
        if self._silent_ns or self._level < 0.0:
            return limit.round_trip_ns
        return max(limit.round_trip_ns, self._free_in_ns(cost, now_ns))

    def _claim_slow(self, ledger: Ledger, cost: int, now_ns: int) -> int:
        """Others claim too, or nothing is free: this node stands in line at its own ledger."""
        limit = self.limit
        if limit.closed:
            return _CLOSED_RETRY_NS
        if cost > limit.burst:
            return NEVER
        if limit.isolated(now_ns):
            # Most others are silent: they do not hear us either, and work alone.
            if not self.alone:
                self._go_alone(now_ns)
            return self._ask_alone(cost, now_ns)
        self.alone = False
        self._return_purse(now_ns)
        if self.account is None:
            self.account = ledger.account(SELF, 0, self.gen, now_ns)
        self._want(cost, now_ns)
        if self.account is not None:
            ledger.claim(self.account, self._wanted(), self._cost, now_ns)
        return max(MS, limit.serve_ns, self._free_in_ns(cost, now_ns))

    def _free_in_ns(self, cost: int, now_ns: int) -> int:
        """When so many tokens are free if nobody takes any, as far as this node knows."""
        limit = self.limit
        return ceil((self.level(now_ns) + cost - limit.burst) / limit.rate)

    def _want(self, cost: int, now_ns: int) -> None:
        # The largest until it was granted: smaller ones in between would ask it away for ever.
        self._cost = max(cost, self._cost) if self.wanting else cost
        self.wanting = True
        self._left = False
        self._batch(now_ns)
        if not self.active:
            self.limit.activate(self, now_ns)

    def _ask_alone(self, cost: int, now_ns: int) -> int:
        """The owner is silent: an n-th of the rate, in a bucket that began full."""
        limit = self.limit
        self.wanting = True
        rate = limit.rate / limit.members
        level = self._alone_level - (now_ns - self._alone_ns) * rate
        self._alone_level = level = max(0.0, level)
        self._alone_ns = now_ns
        # A cost above this part of the burst waits for an empty bucket instead of for ever.
        missing = level + cost - max(limit.alone_burst, float(cost))
        return ROOM if missing <= 0.0 else max(MS, ceil(missing / rate))

    def _age(self, now_ns: int) -> None:
        """What time brings: a purse lapses or goes back unused, a claim is given up, an owner is
        found silent."""
        if self.purse > 0:
            if self.ledger is None and now_ns >= self.lapse_ns:
                # The owner may have been replaced by one that knows nothing of these.
                self._return_purse(now_ns)
            elif now_ns - self._moved_ns >= LEASE_NS:
                self._return_purse(now_ns)
        if self.wanting and self.waiting is None and now_ns - self.used_ns >= LEASE_NS:
            self.wanting = False
        if self.ledger is not None or not self._silent_ns:
            return
        if self.alone:
            self.alone = self.limit.may_work_alone(now_ns)
        elif (
            self._asks >= _ASKS_MIN
            and now_ns - self._silent_ns >= LEASE_NS
            and now_ns >= self.lapse_ns
            and self.limit.may_work_alone(now_ns)
        ):
            self._go_alone(now_ns)

    def _go_alone(self, now_ns: int) -> None:
        self.alone = True
        self._alone_level = self.limit.alone_burst
        self._alone_ns = now_ns

    def _return_purse(self, now_ns: int) -> None:
        purse = self.purse
        if purse <= 0:
            return
        self.purse = 0
        if self.ledger is not None:
            if self.account is not None:
                self.ledger.give_back(self.account, purse)
            return
        self.returned += purse
        if not self.active:
            self.limit.activate(self, now_ns)

    def _begin_term(self, term: int) -> None:
        self.term = term
        self.purse = self.granted = self.spent = self.returned = 0
        self._told = (0, 0, 0, 0)

    def _look_up_slow(self, now_ns: int) -> None:
        """The membership changed: whose key is this now? What an earlier owner granted is void;
        after two changes at once the owner may have been another one in between."""
        limit = self.limit
        before = self.owner, self.ledger
        skipped = limit.version - self.version != 1
        self.version = limit.version
        self.owner = limit.desk.owner(self.key64)
        self.ledger = None
        if self.owner is None:
            self.ledger = limit.ledger(self.key64, now_ns)
        if skipped or before != (self.owner, self.ledger):
            # An owner that comes back may still have this row's account, with all that it ever
            # granted: under another name the row's totals begin anew on both sides.
            self.gen = limit.desk.next_gen()
            self._begin_term(0)
            self.account = None
            self.alone = False
            self.ungranted = 0
            self.lapse_ns = 0
            self._silent_ns = self._asks = 0
            self._level = -1.0
            if self.ledger is not None:
                # Without it `account` would be found again with what an earlier purse held.
                self.ledger.drop(SELF, now_ns)
        if self.wanting and not self.active:
            limit.activate(self, now_ns)

    def _overdraw_slow(self, cost: int) -> None:
        """Spent without a grant: because the owner is silent, or because a response told more
        than was reserved for it. The owner hears of it as debt, and grants it afterwards."""
        if self.alone:
            self._alone_level += cost
            self.ungranted += cost
        self.purse -= cost
        self.spent += cost
