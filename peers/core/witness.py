"""What became of a key's bucket before this node owned it: whom a new owner asks, and who answers.

A new owner knows nothing of what was spent, so it presumes the bucket full. That costs a burst, or
a whole window of a quota, whenever a member comes. Most of the time somebody knows better: an
owner that lost the key because another came keeps the figures, and one that leaves hands them on.
So a new owner asks whoever may have owned the key within the time in which spending is remembered
(burst / rate, or the window's length), and presumes no longer when all of them have answered.
Where one of them crashed the presumption stands: nobody else knows what it spent last.
"""

from __future__ import annotations

import enum
import hashlib
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping
from math import ceil
from typing import TYPE_CHECKING, Any

from peers.core.config import MS, SECOND, Config
from peers.core.gossip import frames_of, rule_name
from peers.core.ledger import State
from peers.core.members import Members, MemberState
from peers.core.outbox import Outbox
from peers.core.wire import FRAMES_BYTES_MAX, U63, Kind, pack

if TYPE_CHECKING:
    from peers.core.exact import ExactLimit
    from peers.core.ledger import Ledger

__all__ = ["Inquiry", "Past", "Witnesses", "best_of"]

# Who has not answered is asked again so soon; a member that sees another owner does not answer.
_AGAIN_NS = 50 * MS
# Tokens of an owner that is gone may be spent until all have agreed on the next one, two seconds at
# most, and only then does a bucket drain: so much further back is looked.
_HELD_NS = 3 * SECOND
# What a leaving member leaves to one heir: 100 datagrams, or 6 ms of a core to seal. Of the rest
# the heirs presume the worst.
_LEGACY_MAX = 2_000
# Views remembered. Members come and go a few times an hour; who looks further back asks everybody.
_VIEWS_MAX = 64


def best_of(key64: int, nodes: Iterable[bytes]) -> bytes:
    """Who of these nodes owns a key: rendezvous hashing, so that a member that comes or goes moves
    only its own keys."""
    return max(nodes, key=lambda node: weight(key64, node))


def weight(key64: int, node: bytes) -> bytes:
    text = key64.to_bytes(8, "big") + node
    return hashlib.blake2b(text, digest_size=8, person=b"egressd owner").digest()


class Sight(enum.IntEnum):
    """How well a node knows what became of a key. The numbers go over the wire."""

    WHOLE = 0  # it was there, or those whom it names were
    BLIND = 1  # this node followed an owner that is gone and left nothing
    SHORT = 2  # it was not there long enough to tell
    GAP = 3  # so, and a member has crashed that may have been


class Inquiry:
    """A ledger whose past is asked for, and what was answered by whom."""

    __slots__ = ("asked_ns", "ledger", "limit", "sights", "states")

    def __init__(self, limit: ExactLimit, ledger: Ledger) -> None:
        self.limit = limit
        self.ledger = ledger
        self.states: list[State] = []
        self.sights: dict[bytes, int] = {}
        self.asked_ns = -SECOND


class Past:
    """The views that this node has had, and how their members went.

    `live` maps nodes to boots, as in the desk. A member went well if it said so and left its books
    to whoever owns its keys now; every other way counts as a crash.
    """

    def __init__(self, live: Mapping[bytes, int], now_ns: int) -> None:
        self._since_ns = now_ns
        self._views: deque[tuple[int, dict[bytes, int]]] = deque([(now_ns, dict(live))])
        self._crashes: deque[int] = deque(maxlen=_VIEWS_MAX)
        self._left: OrderedDict[tuple[bytes, int], None] = OrderedDict()
        self._legacies: OrderedDict[tuple[bytes, int], tuple[int, set[int]]] = OrderedDict()

    def changed(self, live: Mapping[bytes, int], left: Iterable[bytes], now_ns: int) -> None:
        """A new view; `left` are those who said good-bye."""
        for node, boot in self._views[-1][1].items():
            if live.get(node) == boot:
                continue
            if node in left:
                _keep(self._left, (node, boot), None)
            else:
                self._crashes.append(now_ns)
        self._views.append((now_ns, dict(live)))
        if len(self._views) > _VIEWS_MAX:
            self._views.popleft()
            self._since_ns = self._views[0][0]

    def inherited(self, node: bytes, boot: int, total: int, keys: Iterable[int]) -> None:
        """Part of the books that a leaving member leaves to this one: `total` in all."""
        _, known = self._legacies.get((node, boot), (0, set()))
        known.update(keys)
        _keep(self._legacies, (node, boot), (total, known))

    def owners(
        self, key64: int, me: bytes, since_ns: int, memory_ns: int
    ) -> tuple[set[bytes], Sight]:
        """(live members that may have owned the key since then, how well this node knows). All
        live members where this node does not look so far back.

        Who followed a gone owner answers for it, so only what this node followed is judged here.
        """
        live = self._views[-1][1]
        ask: set[bytes] = set()
        sight = Sight.WHOLE
        if self._since_ns > since_ns:
            ask = live.keys() - {me}
            # Who crashed may have known what nobody here was there to see.
            lost = any(self._since_ns > crash_ns - memory_ns for crash_ns in self._crashes)
            sight = Sight.GAP if lost else Sight.SHORT
        heir, after = me, live
        for began_ns, view in reversed(self._views):
            owner = best_of(key64, view)
            if live.get(owner) == view[owner]:
                ask.add(owner)
            # One that came as the owner went saw nothing of it; whoever did says so.
            elif view.get(heir) != after[heir] or (
                heir == me and not self._went_well((owner, view[owner]))
            ):
                sight = Sight.BLIND
            heir, after = owner, view
            if began_ns <= since_ns:
                break
        ask.discard(me)
        return ask, sight

    def _went_well(self, life: tuple[bytes, int]) -> bool:
        total, known = self._legacies.get(life, (-1, set()))
        return life in self._left and total == len(known)


def _keep(book: OrderedDict[Any, Any], life: tuple[bytes, int], what: Any) -> None:
    book[life] = what
    book.move_to_end(life)
    if len(book) > _VIEWS_MAX:
        book.popitem(last=False)


class Witnesses:
    """The desk's part that asks and answers. `limits` and the first `live` are the desk's own."""

    def __init__(
        self,
        config: Config,
        members: Members,
        outbox: Outbox,
        limits: Mapping[int, ExactLimit],
        live: Mapping[bytes, int],
        now_ns: int,
    ) -> None:
        self._config = config
        self._members = members
        self._outbox = outbox
        self._limits = limits
        self._live = dict(live)
        self._past = Past(live, now_ns)
        self._inquiries: dict[int, Inquiry] = {}
        # What members that are about to leave told: by life, then by key.
        self._wills: OrderedDict[tuple[bytes, int], dict[int, tuple[ExactLimit, State]]] = (
            OrderedDict()
        )

    def members_changed(self, live: Mapping[bytes, int], now_ns: int) -> None:
        left = [
            member.node for member in self._members.others() if member.state == MemberState.LEFT
        ]
        self._live = dict(live)
        self._past.changed(live, left, now_ns)
        for life in [life for life in self._wills if live.get(life[0]) != life[1]]:
            self._execute(life, now_ns)
        for inquiry in self._inquiries.values():
            # Answers were given in another view; others may have to be asked in this one.
            inquiry.sights.clear()
            inquiry.states.clear()
            inquiry.asked_ns = now_ns - SECOND

    def slept(self, now_ns: int) -> None:
        """What this node saw before now may not be all that was."""
        self._past = Past(self._live, now_ns)

    # -- a new owner asks

    def inquire(self, limit: ExactLimit, ledger: Ledger) -> None:
        """A ledger was made, or may be known better: asks who may know."""
        self._inquiries[ledger.key64] = Inquiry(limit, ledger)

    def told(self, node: bytes, states: Iterable[Any], now_ns: int) -> None:
        """An answer. Its durations count from when this node asked, or from now, whichever is the
        safe side."""
        for key64, _, stamp, sight, level_16, lease_ms, left_ms in states:
            inquiry = self._inquiries.get(key64)
            if inquiry is None or node in inquiry.sights or stamp * MS > now_ns:
                continue
            inquiry.sights[node] = sight
            inquiry.states.append(_state(level_16, stamp, lease_ms, left_ms, now_ns))
            inquiry.asked_ns = now_ns - SECOND

    def tick(self, agreed: bool, now_ns: int) -> None:
        """Asks again who has not answered, and ends what is known, or not worth asking any more.
        `agreed`: all live members state this node's view, so that there is nobody else to ask."""
        asks: dict[bytes, list[bytes]] = {}
        for key64, inquiry in list(self._inquiries.items()):
            if now_ns - inquiry.asked_ns < _AGAIN_NS:
                continue
            limit, ledger = inquiry.limit, inquiry.ledger
            if not ledger.presumed or limit.ledgers.get(key64) is not ledger:
                del self._inquiries[key64]
                continue
            own = limit.former.get(key64)
            ask, sight = self._judge(limit, key64, own, now_ns)
            unheard = ask - inquiry.sights.keys()
            if not unheard and agreed:
                del self._inquiries[key64]
                if _known([sight, *inquiry.sights.values()]):
                    states = [own.state(now_ns)] if own is not None else []
                    ledger.recall([*states, *inquiry.states], now_ns)
                continue
            inquiry.asked_ns = now_ns
            item = pack((key64, rule_name(self._config.cluster, limit.identity), now_ns // MS))
            for node in sorted(unheard):
                asks.setdefault(node, []).append(item)
        for node, items in asks.items():
            self._send(node, items, Kind.LEDGER_ASK)

    def next_wake_ns(self) -> int:
        """When somebody is to be asked again."""
        asked_ns = min((inquiry.asked_ns for inquiry in self._inquiries.values()), default=U63)
        return asked_ns + _AGAIN_NS

    # -- the others answer

    def asked(self, node: bytes, asks: Iterable[Any], now_ns: int) -> None:
        """Answers with what this node knows, once it sees the asker as the owner: from then on it
        adds nothing to that."""
        items = []
        for key64, name, stamp in asks:
            limit = self._limits.get(name)
            if best_of(key64, self._live) != node:
                continue
            own = limit.former.get(key64) if limit is not None else None
            sight = Sight.WHOLE
            if limit is not None:
                _, sight = self._judge(limit, key64, own, now_ns)
            state = own.state(now_ns) if own is not None else State(0.0)
            told = _durations(state, now_ns, now_ns)
            items.append(pack((key64, name, stamp, int(sight), *told)))
        self._send(node, items, Kind.LEDGER_STATE)

    # -- one that leaves

    def bequeath(self, now_ns: int) -> None:
        """Tells each of those who will own this node's keys what it has of them."""
        others = [node for node in self._live if node != self._members.me.node]
        if not others:
            return
        books: dict[bytes, list[tuple[Any, ...]]] = {node: [] for node in others}
        for name, limit in self._limits.items():
            for ledger in limit.ledgers.values():
                state = ledger.state(now_ns)
                if state.level <= 0.0:
                    continue
                heir = best_of(ledger.key64, others)
                account = ledger.accounts.get(heir)
                since_ns = account.heard_ns if account is not None else U63
                stamp = account.stamp if account is not None else 0
                told = _durations(state, since_ns, now_ns)
                books[heir].append((ledger.key64, name, stamp, *told))
        for heir, book in books.items():
            total = len(book)
            items = [pack((total, *item)) for item in book[:_LEGACY_MAX]]
            self._send(heir, items or [pack((0,) * 7)], Kind.LEDGER_LEGACY)

    def inherited(self, node: bytes, boot: int, items: Iterable[Any], now_ns: int) -> None:
        """Part of what a leaving member leaves to this one, in force once it is gone."""
        will = self._wills.setdefault((node, boot), {})
        _keep(self._wills, (node, boot), will)
        for total, key64, name, stamp, level_16, lease_ms, left_ms in items:
            self._past.inherited(node, boot, total, [key64] if total else [])
            limit = self._limits.get(name)
            if limit is not None and total and len(will) < _LEGACY_MAX:
                will[key64] = limit, _state(level_16, stamp, lease_ms, left_ms, now_ns)
        if self._live.get(node) != boot:
            self._execute((node, boot), now_ns)

    def _execute(self, life: tuple[bytes, int], now_ns: int) -> None:
        for key64, (limit, state) in self._wills.pop(life, {}).items():
            book = limit.new_ledger(key64, now_ns)
            book.restore(state)
            book.retire(now_ns)
            limit.remember(book)
        for limit in self._limits.values():
            for ledger in limit.ledgers.values():
                if ledger.presumed:
                    self.inquire(limit, ledger)

    # -- within

    def _judge(
        self, limit: ExactLimit, key64: int, own: Ledger | None, now_ns: int
    ) -> tuple[set[bytes], Sight]:
        """As `Past.owners`: since this node knew last, or as long as spending is remembered."""
        memory_ns = limit.memory_ns + _HELD_NS
        since_ns = now_ns - memory_ns
        if own is not None:
            since_ns = max(since_ns, own.retired_ns)
        return self._past.owners(key64, self._members.me.node, since_ns, memory_ns)

    def _send(self, node: bytes, items: list[bytes], kind: Kind) -> None:
        member = self._members.get(node)
        if member is not None and member.live:
            for frame in frames_of(items, FRAMES_BYTES_MAX, kind):
                self._outbox.send(member.address, frame)


def _durations(state: State, since_ns: int, now_ns: int) -> tuple[int, int, int]:
    """(level in sixteenths, milliseconds that leases still go on, and the window), the level and
    the window rounded up and the leases down: the safe side."""
    lease_ms = max(0, state.lease_end_ns - since_ns) // MS
    left_ms = -(min(0, now_ns - state.end_ns) // MS) if state.end_ns else 0
    return min(U63, ceil(state.level * 16)), lease_ms, left_ms


def _state(level_16: int, stamp: int, lease_ms: int, left_ms: int, now_ns: int) -> State:
    """What was told, by this node's clock."""
    if not left_ms:
        return State(level_16 / 16)
    return State(level_16 / 16, max(1, (stamp + lease_ms) * MS), now_ns + left_ms * MS)


def _known(sights: list[int]) -> bool:
    """Whether all answers together tell what was spent: nobody is blind, and somebody was there
    all the time, or there is nobody who was and is gone."""
    return Sight.BLIND not in sights and (Sight.WHOLE in sights or Sight.GAP not in sights)
