"""The lease desk of a node: who owns which key, and the traffic between owners and members.

The owner of a key is the live member with the greatest hash of key and member (rendezvous hashing:
a member that comes or goes moves only its own keys). What makes this exact while the membership
changes is the *view*, a hash of all live members and their boots. A node states its view in every
heartbeat and at every change; once it has a new view it spends no token of an owner that is none
in it. A new owner grants nothing before every live member has stated the view in which it is the
owner, or two seconds have passed, in which leases of its predecessor have lapsed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from peers.core.config import SECOND, Config
from peers.core.counters import Rule, Surroundings
from peers.core.exact import ExactLimit
from peers.core.gossip import frames_of, key64, rule_name
from peers.core.leases import LEASE_NS, ExactRow, Owner
from peers.core.ledger import Ledger
from peers.core.members import Members
from peers.core.outbox import Outbox
from peers.core.wire import FRAMES_BYTES_MAX, U32, U63, Kind, pack
from peers.core.witness import Witnesses, best_of

__all__ = ["LeaseDesk"]

_L = TypeVar("_L", bound=ExactLimit)

# How long a new owner waits at most for all to state its view: a lease that was renewed just
# before the change, and as long again for a member that had not heard of the change yet.
_HOLD_NS = 2 * LEASE_NS
# A joiner that hears nobody takes itself for the first after so long: greetings go after 0, 0.1,
# 0.3, 0.7 and 1.5 s, and of five to one member all fail once in 40 times at 20 % loss (three
# datagrams each), to two members once in 1,400 times.
_ALONE_NS = 2 * SECOND
_EXPIRE_NS = 1 * SECOND
_RULES_NS = 2 * SECOND  # as `gossip`: how often members tell their configuration


class LeaseDesk:
    """All exact limits of a node. `joining`: see `Node`; until it is over nothing is granted."""

    def __init__(
        self,
        config: Config,
        members: Members,
        outbox: Outbox,
        surroundings: Surroundings,
        now_ns: int,
    ) -> None:
        self.version = 0
        self.agreed_ns: int | None = None
        self.joining = bool(config.join)
        self.rows_changed: dict[ExactRow, None] = {}
        self.on_wake: Callable[[], None] | None = None
        self.asks_sent = 0
        self.grants_sent = 0
        self._config = config
        self._members = members
        self._outbox = outbox
        self._surroundings = surroundings
        self._limits: dict[str, ExactLimit] = {}
        self._by_name: dict[int, ExactLimit] = {}
        self._rows: dict[int, ExactRow] = {}
        self._due: list[ExactRow] = []
        self._answers: dict[tuple[bytes, int], tuple[Kind, tuple[int, ...]]] = {}
        self._live: dict[bytes, int] = {members.me.node: members.me.boot}
        self._view = self._hash_view()
        self._stated: dict[bytes, tuple[int, int, int]] = {}  # node: (boot, view, when)
        self._hold_until_ns = now_ns + _HOLD_NS
        self._heard_until_ns = now_ns + LEASE_NS
        self._alone_ns = now_ns + _ALONE_NS
        self._met_others = False
        self._witnesses = Witnesses(config, members, outbox, self._by_name, self._live, now_ns)
        self._alive_ns = now_ns
        self._gen = 0
        # A term must not come again in a later life: a member may still speak of the one before.
        self._term = (members.me.boot << 16) & U63
        self._lost_ns = now_ns - _HOLD_NS  # when a ledger went to another owner last
        self._expire_ns = now_ns + _EXPIRE_NS
        self._rules_ns = now_ns + _RULES_NS
        self._count_heard(now_ns)
        self._agree(now_ns)

    # -- limits

    def limit(
        self,
        kind: type[_L],
        identity: str,
        rule: Rule,
        *,
        name: str,
        on_partition: str,
        keys_max: int,
        dry_run: bool,
        now_ns: int,
    ) -> _L:
        limit = self._limits.get(identity)
        if isinstance(limit, kind):
            if limit.rule != rule:
                self._rules_ns = now_ns  # members hear it before their turn
                self.wake()
            limit.reconfigure(
                rule,
                name=name,
                on_partition=on_partition,
                keys_max=keys_max,
                dry_run=dry_run,
                now_ns=now_ns,
            )
            return limit
        made = self._limits[identity] = kind(
            self,
            identity,
            rule,
            self._surroundings,
            name=name,
            on_partition=on_partition,
            keys_max=keys_max,
            dry_run=dry_run,
        )
        self._by_name[rule_name(self._config.cluster, identity)] = made
        return made

    def forget_limit(self, identity: str) -> None:
        limit = self._limits.pop(identity, None)
        if limit is not None:
            del self._by_name[rule_name(self._config.cluster, identity)]
            limit.drop_all()

    def limits(self) -> list[ExactLimit]:
        return list(self._limits.values())

    def rules_heard(
        self, node: bytes, rules: Sequence[tuple[int, int, int, int]], now_ns: int
    ) -> None:
        for name, count, period_ns, burst in rules:
            limit = self._by_name.get(name)
            if limit is not None:
                limit.set_peer_rule(node, Rule(count, period_ns, burst), now_ns)

    def member_gone(self, node: bytes, now_ns: int) -> None:
        """A member's rules end with it."""
        for limit in self._limits.values():
            if node in limit.peer_rules:
                limit.set_peer_rule(node, None, now_ns)

    def retune(self, surroundings: Surroundings, now_ns: int) -> None:
        if surroundings != self._surroundings:
            self._surroundings = surroundings
            for limit in self._limits.values():
                limit.retune(surroundings, now_ns)

    # -- who owns what

    def owner(self, key64: int) -> Owner | None:
        """The owner of a key in the present view; None: this node."""
        best = best_of(key64, self._live)
        return None if best == self._members.me.node else Owner(best, self._live[best])

    def members_changed(self, now_ns: int) -> None:
        """The table of members is another one than before; is the view?"""
        me = self._members.me
        live = {member.node: member.boot for member in self._members.live}
        live[me.node] = me.boot
        if live == self._live:
            return
        came = [node for node in live if node not in self._live]
        gone = [
            node for node, boot in self._live.items() if node != me.node and live.get(node) != boot
        ]
        self._live = live
        self._met_others = self._met_others or len(live) > 1
        self.version += 1
        for limit in self._limits.values():
            limit.version = self.version
        self._view = self._hash_view()
        self.agreed_ns = None
        self._hold_until_ns = now_ns + _HOLD_NS
        self._witnesses.members_changed(live, now_ns)
        for node in gone:
            self._stated.pop(node, None)
        for limit in self._limits.values():
            for name, ledger in list(limit.ledgers.items()):
                for node in gone:
                    ledger.drop(node, now_ns)
                if best_of(name, (me.node, *came)) != me.node:
                    limit.retire_ledger(name, now_ns)
                    self._lost_ns = now_ns
        if self._limits:
            self._outbox.send_all(self.view_frame())
        self._count_heard(now_ns)
        self._agree(now_ns)
        for row in self._rows.values():
            if row.waiting is not None:
                self.changed(row)

    def alive(self, now_ns: int) -> None:
        """The node does something. Where it has not for a lease, it was stopped or its loop held
        up: others may have taken it for dead and owned its keys meanwhile, unseen by it. It asks
        them, as one that was just named."""
        alive_ns, self._alive_ns = self._alive_ns, now_ns
        if now_ns - alive_ns <= LEASE_NS or len(self._live) == 1:
            return
        self.version += 1
        self.agreed_ns = None
        self._hold_until_ns = now_ns + _HOLD_NS
        self._stated.clear()
        self._witnesses.slept(now_ns)
        for limit in self._limits.values():
            limit.version = self.version
            for name in list(limit.ledgers):
                ledger = limit.ledgers[name]
                limit.retire_ledger(name, now_ns)
                ledger.retired_ns = alive_ns
        self._count_heard(now_ns)

    def view_frame(self) -> bytes:
        """What a node states in each heartbeat."""
        return pack((Kind.LEASE_VIEW, self._view))

    def view_heard(self, node: bytes, boot: int, view: int, now_ns: int) -> None:
        self._stated[node] = (boot, view, now_ns)
        self._count_heard(now_ns)
        self._agree(now_ns)

    def may_grant(self, now_ns: int) -> bool:
        """Whether this node hears enough of the others to be sure that it is still the owner: one
        that was stopped for a while must listen first, for others may have replaced it."""
        return now_ns < self._heard_until_ns and not self.joining and self._members.me.live

    def isolated(self, now_ns: int) -> bool:
        """Whether most of the others have been silent for a lease, so that they do not hear this
        node either, and each works alone until the membership says so."""
        changed_ns = self._hold_until_ns - _HOLD_NS
        return now_ns >= max(self._heard_until_ns, changed_ns + LEASE_NS) and not self.joining

    def _hash_view(self) -> int:
        digest = hashlib.blake2b(digest_size=8, person=b"egressd view")
        for node in sorted(self._live):
            digest.update(node + self._live[node].to_bytes(8, "big"))
        return int.from_bytes(digest.digest(), "big")

    def _agree(self, now_ns: int) -> None:
        """Ends the hold when all live members state this node's view, or its time is over."""
        if self.agreed_ns is not None or self.joining:
            return
        # A key that went away and came back at once: members may not have seen that it did, and
        # still hold what the ledger before granted.
        flapped = now_ns - self._lost_ns < _HOLD_NS
        if (not flapped and self._unanimous()) or now_ns >= self._hold_until_ns:
            self.agreed_ns = now_ns

    def _unanimous(self) -> bool:
        """Whether all live members state this node's view."""
        me = self._members.me.node
        return all(
            node == me or self._stated.get(node, (0, 0, 0))[:2] == (boot, self._view)
            for node, boot in self._live.items()
        )

    def _count_heard(self, now_ns: int) -> None:
        """Until when more than half of the live members have been heard within a lease."""
        others = len(self._live) - 1
        if others == 0:
            self._heard_until_ns = 1 << 63
            return
        heard = sorted(
            (stated[2] for node, stated in self._stated.items() if node in self._live),
            reverse=True,
        )
        # This node and so many others are more than half of all.
        needed = (others + 1) // 2
        if len(heard) >= needed:
            self._heard_until_ns = heard[needed - 1] + LEASE_NS
        else:
            self._heard_until_ns = now_ns

    # -- what limits ask of their desk

    def bucket(self, limit: ExactLimit, key: bytes) -> int:
        """What all members call a key's bucket."""
        return key64(self._config.cluster, limit.identity, key)

    def make_row(self, limit: ExactLimit, key: bytes, now_ns: int) -> ExactRow:
        name = self.bucket(limit, key)
        row = self._rows[name] = limit.new_row(key, name, self.next_gen(), now_ns)
        return row

    def make_ledger(self, limit: ExactLimit, key64: int, now_ns: int) -> Ledger:
        """A key's bucket as of now. What it was before the view began is presumed to be full, and
        asked for; since then it drains whether or not anybody keeps a ledger of it."""
        ledger = limit.new_ledger(key64, now_ns)
        agreed_ns = self.agreed_ns
        remembered = agreed_ns is None or now_ns - agreed_ns < limit.memory_ns
        if remembered and (self._met_others or self.joining):
            ledger.presume(now_ns)
            self._witnesses.inquire(limit, ledger)
            self.wake()
        return ledger

    def next_gen(self) -> int:
        """What tells a row, or its totals, from all earlier ones of this node."""
        self._gen = (self._gen + 1) & U32
        return self._gen

    def next_term(self) -> int:
        self._term += 1
        return self._term

    def row_of(self, key64: int) -> ExactRow | None:
        return self._rows.get(key64)

    def row_gone(self, row: ExactRow) -> None:
        if self._rows.get(row.key64) is row:
            del self._rows[row.key64]

    def changed(self, row: ExactRow) -> None:
        self.rows_changed[row] = None

    def advertise(self, row: ExactRow, left: float) -> None:
        """The upstream told this node what is left: the key's owner hears it."""
        if row.owner is not None:
            item = pack((row.key64, min(U63, int(left * 16))))
            self._send(row.owner.node, [item], Kind.ADVERTISED)
            self.wake()

    def wake(self) -> None:
        if self.on_wake is not None:
            self.on_wake()

    # -- time

    def joined(self, now_ns: int) -> None:
        """The time of joining is over; for one that has met nobody yet, a while later. Where
        nobody answered there is nobody to have spent."""
        if not self._met_others and now_ns < self._alone_ns:
            return
        self.joining = False
        self._agree(now_ns)
        if not self._met_others:
            for limit in self._limits.values():
                for ledger in limit.ledgers.values():
                    ledger.recall((), now_ns)  # nobody was there to spend

    def tick(self, now_ns: int) -> None:
        if self.joining and now_ns >= self._alone_ns:
            self.joined(now_ns)
        if self.agreed_ns is None:
            self._agree(now_ns)
        for limit in self._limits.values():
            limit.tick(now_ns, self._due)
            limit.due_urgent(now_ns, self._due)
            for ledger in limit.serve_due(now_ns):
                self._serve(limit, ledger, now_ns)
        if not self.joining:
            self._witnesses.tick(self._unanimous(), now_ns)
        if now_ns >= self._rules_ns:
            self._rules_ns = now_ns + _RULES_NS
            self._announce_rules()
        if now_ns >= self._expire_ns:
            self._expire_ns = now_ns + _EXPIRE_NS
            for limit in self._limits.values():
                limit.expire(now_ns)

    def next_wake_ns(self, now_ns: int) -> int:
        wake_ns = min(self._expire_ns, self._rules_ns)
        if self.joining:
            wake_ns = min(wake_ns, self._alone_ns)
        else:
            wake_ns = min(wake_ns, self._witnesses.next_wake_ns())
            if self.agreed_ns is None:
                wake_ns = min(wake_ns, self._hold_until_ns)
        for limit in self._limits.values():
            due_ns = limit.next_wake_ns(now_ns)
            if due_ns is not None and due_ns < wake_ns:
                wake_ns = due_ns
        return wake_ns

    def _serve(self, limit: ExactLimit, ledger: Ledger, now_ns: int) -> None:
        for account in ledger.serve(now_ns):
            if account.node:
                answer = limit.grant_kind, ledger.answer(account, now_ns)
                self._answers[account.node, ledger.key64] = answer
            else:
                row = self._rows.get(ledger.key64)
                if row is not None and row.ledger is ledger:
                    row.served(now_ns)
        if not any(account.unmet(now_ns) for account in ledger.accounts.values()):
            limit.claims.pop(ledger, None)

    # -- out

    def _announce_rules(self) -> None:
        items = [
            pack((rule_name(self._config.cluster, limit.identity), *limit.rule))
            for limit in self._limits.values()
        ]
        for frame in frames_of(items, FRAMES_BYTES_MAX, Kind.LIMITS):
            self._outbox.send_all(frame)

    def flush(self, now_ns: int) -> None:
        """Puts what is due into the outbox: requests to owners, answers to members."""
        if self._due:
            due, self._due = self._due, []
            asks: dict[tuple[bytes, Kind], list[bytes]] = {}
            for row in due:
                if row.owner is not None and row.ledger is None:
                    name = rule_name(self._config.cluster, row.limit.identity)
                    to = row.owner.node, row.limit.ask_kind
                    asks.setdefault(to, []).append(pack(row.tell(name, now_ns)))
                    self.asks_sent += 1
            for (node, kind), items in asks.items():
                self._send(node, items, kind)
        if self._answers:
            answers, self._answers = self._answers, {}
            grants: dict[tuple[bytes, Kind], list[bytes]] = {}
            for (node, _), (kind, grant) in answers.items():
                grants.setdefault((node, kind), []).append(pack(grant))
                self.grants_sent += 1
            for (node, kind), items in grants.items():
                self._send(node, items, kind)

    def leave(self, now_ns: int) -> None:
        """Leaves the books to those who own the keys when this node is gone."""
        if not self.joining:
            self._witnesses.bequeath(now_ns)

    def _send(self, node: bytes, items: Sequence[bytes], kind: Kind) -> None:
        member = self._members.get(node)
        if member is not None and member.live:
            for frame in frames_of(items, FRAMES_BYTES_MAX, kind):
                self._outbox.send(member.address, frame)

    # -- in

    def asks_heard(
        self, kind: Kind, node: bytes, boot: int, seq: int, asks: Iterable[Any], now_ns: int
    ) -> None:
        """A member asks: what this node owns is granted now if it is there."""
        if self._live.get(node) != boot:
            return
        for ask in asks:
            limit = self._by_name.get(ask[1])
            if limit is None or limit.ask_kind != kind or self.owner(ask[0]) is not None:
                continue
            ledger = limit.ledger(ask[0], now_ns)
            account = ledger.hear(node, boot, seq, ask, now_ns)
            if account is None:
                continue
            if ledger in limit.claims and self._alone_claims(ledger, now_ns):
                self._serve(limit, ledger, now_ns)
            answer = limit.grant_kind, ledger.answer(account, now_ns)
            self._answers[node, ledger.key64] = answer

    def grants_heard(
        self, kind: Kind, node: bytes, boot: int, grants: Iterable[Any], now_ns: int
    ) -> None:
        for grant in grants:
            row = self._rows.get(grant[0])
            if row is None or row.limit.grant_kind != kind:
                continue
            if row.version == self.version and row.owner == (node, boot):
                row.heard(grant, now_ns)

    def ledgers_asked(self, node: bytes, asks: Iterable[Any], now_ns: int) -> None:
        """A new owner asks what this node knows of its keys."""
        self._witnesses.asked(node, asks, now_ns)

    def ledgers_told(self, node: bytes, states: Iterable[Any], now_ns: int) -> None:
        """Somebody knows of a key that this node owns now."""
        self._witnesses.told(node, states, now_ns)

    def legacy_heard(self, node: bytes, boot: int, items: Iterable[Any], now_ns: int) -> None:
        """A member that leaves tells what this node will own."""
        self._witnesses.inherited(node, boot, items, now_ns)

    def advertised_heard(self, items: Iterable[tuple[int, int]], now_ns: int) -> None:
        """What an upstream told a member."""
        for key, left_16 in items:
            for limit in self._limits.values():
                ledger = limit.ledgers.get(key)
                if ledger is not None:
                    ledger.lower(left_16 / 16, now_ns)

    def _alone_claims(self, ledger: Ledger, now_ns: int) -> bool:
        """Whether nothing is to be shared out: one member claims, or there is enough for all."""
        unmet = [account.unmet(now_ns) for account in ledger.accounts.values()]
        return sum(count > 0 for count in unmet) <= 1 or sum(unmet) <= ledger.free(now_ns)
