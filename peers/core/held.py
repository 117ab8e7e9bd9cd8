"""Requests under way, over all nodes: slots that go where they are asked for.

A gauge, never a counter: what counts of a member is its latest word, for as long as it is fresh,
and nothing is ever summed up over time. Each member tells what it holds and what it wants, and
every member splits the slots by the same words in the same way. Two rules keep the sum: a smaller
share counts at once, a greater one two horizons later (one for our word to reach whoever has to
give slots up, one for what it still holds to come back), and slots that a member holds beyond its
share are not there for others until it gives them back.

Where the upstream finds too many under way, a member announces a slot fewer, and the smallest word
of all members rules, as it does while configurations differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, expm1
from typing import Any, NamedTuple

from peers.core.config import MS, SECOND, Config
from peers.core.handshake import node_id
from peers.core.rows import NEVER, ROOM
from peers.core.share import Due, Row
from peers.core.table import Host, Rule, SharedTable, Surroundings
from peers.core.wire import U32, Kind

__all__ = ["HeldLimit", "HeldRow", "Want", "split"]

# A word is repeated every refresh (250 ms) while it matters: at 20 % loss twelve in a row are lost
# once in 2e8 times. A member that was killed is held dead after about as long.
_FRESH_NS = 3 * SECOND
# Nobody knows when a slot comes back; who waits is woken by what is given back or heard.
_AGAIN_NS = 1 * SECOND
# Demand rises at once and falls slowly, or each request that ends would move shares.
_WANTED_TAU_NS = 0.5 * SECOND
# The slots that a member had on average lately: whoever had least is next for an odd slot.
_SERVED_TAU_NS = 2.0 * SECOND
# Refused arrivals of so long are demand.
_BLOCKED_TAU_NS = 0.3 * SECOND
_IDLE_TELLINGS = 3
# A node that stood still takes no slot for so long: it may be dead to the others, who have its
# slots then. It takes them two round trips to know better, and 250 ms to repeat their words.
_SLEPT_NS = 1 * SECOND
# Eased slots come back one by one, as a node's own do (gateway.limits.inflight): additive increase.
_SLOT_BACK_NS = 10 * SECOND


class Want(NamedTuple):
    """One member's word: slots wanted, and the average held lately in sixteenths."""

    wanted: int
    served_16: int
    node: bytes


def split(slots: int, wants: Sequence[Want], members: int) -> list[int]:
    """Each one's share of the slots; the same words give the same shares everywhere.

    Where there is enough, everybody has what it wants and an equal part of the rest, also members
    that said nothing yet. Where there is not, shares are in proportion, and the odd slots go to
    whoever had least of its proportion lately, among those whose proportion is no whole number of
    slots: so with fewer slots than members all take turns.
    """
    total = sum(want.wanted for want in wants)
    if total <= slots:
        rest = (slots - total) // max(members, len(wants))
        return [want.wanted + rest for want in wants]
    shares = [slots * want.wanted // total for want in wants]
    odd = slots - sum(shares)
    order = sorted(
        (want.served_16 - 16 * slots * want.wanted / total, want.node, i)
        for i, want in enumerate(wants)
        if slots * want.wanted % total
    )
    for _, _, i in order[:odd]:
        shares[i] += 1
    return shares


class HeldShare:
    """What one peer told about one key."""

    __slots__ = ("boot", "gen", "heard_ns", "held", "seq", "want")

    def __init__(self, boot: int, gen: int, want: Want) -> None:
        self.boot = boot
        self.gen = gen
        self.seq = -1
        self.heard_ns = 0
        self.held = 0
        self.want = want


class HeldRow(Row):
    """The slots of one key. Satisfies `gateway.limits.verdict.Entry`.

    `used` slots are held here now, `own` were ever taken. An entry is [key64, gen, held, wanted,
    served_16].
    """

    __slots__ = (
        "_blocked",
        "_cap",
        "_caps",
        "_idle_told",
        "_mature_ns",
        "_others_held",
        "_refused",
        "_served",
        "_shut_until_ns",
        "_tick_ns",
        "_told",
        "_told_held",
        "_told_ns",
        "_wanted",
        "limit",
        "peers",
        "used",
    )

    kind = Kind.HELD

    def __init__(self, limit: HeldLimit, key: bytes, key64: int, gen: int, now_ns: int) -> None:
        super().__init__(key, key64, gen, now_ns)
        self.limit = limit
        self.used = 0
        self.peers: dict[bytes, HeldShare] = {}
        self._wanted = 0.0
        self._served = 0.0
        self._blocked = 0.0  # arrivals without room, lately
        self._refused = 0  # arrivals less takings since the last tick
        self._tick_ns = now_ns
        self._told = Want(0, 0, limit.node)
        self._told_held = 0
        self._told_ns = -SECOND
        self._idle_told = _IDLE_TELLINGS
        # Shares and since when; the least that was in force within two horizons counts.
        self._caps: list[tuple[int, int]] = []
        self._cap = 0
        self._others_held = 0
        self._mature_ns = now_ns  # the cap holds until then, unless news comes
        self._shut_until_ns = now_ns  # what others hold is not known before

    # -- the caller's side

    def ask(self, cost: int, now_ns: int) -> int:
        """ROOM, or nanoseconds until asking again can help, or NEVER for a cost over all."""
        used = self.used + cost
        slots = self.limit.slots
        if now_ns >= self._mature_ns:
            self.limit.alive(now_ns)
            self._reckon(now_ns)
        if used <= self._cap and used + self._others_held <= slots:
            return ROOM
        return self._busy_slow(cost, now_ns)

    def foresees(self, cost: int, now_ns: int) -> bool:
        """Never: a slot comes back, here or at a peer, when its request ends."""
        return False

    def take(self, cost: int, now_ns: int) -> None:
        """Takes what `ask` just granted."""
        self.used += cost
        self.own += cost
        self._refused -= cost
        self.used_ns = now_ns
        if not self.active:
            self.limit.activate(self, now_ns)

    def arrive(self, cost: int, now_ns: int) -> None:
        """Counts a request's demand, once a request."""
        self._refused += cost
        self.used_ns = now_ns
        if not self.active:
            self.limit.activate(self, now_ns)

    def hold(self, cost: int) -> None:
        """A request of this cost waits for this row; -cost undoes it."""
        self.queued += cost
        if cost > 0:
            if not self.active:
                self.limit.activate(self, self._tick_ns)
            if self.queued + self.used > self._told.wanted:
                self.limit.urge(self)

    def learn(self, remaining: int, sent_ns: int, now_ns: int) -> bool:
        """Nothing: what is left of a rate says nothing about slots."""
        return False

    def ease(self, now_ns: int) -> None:
        """The upstream found what is under way over all members too many."""
        self.limit.ease(self.used + self._others_held, now_ns)

    def give_back(self, cost: int, now_ns: int) -> None:
        """Frees slots. More than are held is the caller's fault: counted, and none are invented."""
        if self.used > self._cap and self.limit.members > 1:
            self.limit.urge(self)  # somebody waits for what was beyond our share
        self.used -= cost
        if self.used < 0:
            self.used = 0
            self.limit.underflows += 1
        if not self.active:
            self.limit.activate(self, now_ns)

    def level(self, now_ns: int) -> float:
        """Slots held here."""
        return float(self.used)

    def fill(self, now_ns: int) -> None:
        """No slot is known to be free until the mesh has told."""
        self._shut_until_ns = max(self._shut_until_ns, now_ns + _FRESH_NS)
        self._mature_ns = now_ns

    def slept(self, now_ns: int) -> None:
        """Takes no slot until the others' words of now are known."""
        self._shut_until_ns = max(self._shut_until_ns, now_ns + _SLEPT_NS)
        self._mature_ns = now_ns

    @property
    def pinned(self) -> bool:
        """Whether requests hold slots of it, or wait for them."""
        return self.used > 0 or self.waiting is not None

    def room(self) -> int:
        """Slots that this node may still take, as reckoned last."""
        free = self.limit.slots - self._others_held
        return max(0, min(self._cap, free) - self.used)

    def reckon_again(self) -> None:
        """The limit's figures changed."""
        self._mature_ns = 0

    # -- the mesh's side

    def wake(self, now_ns: int) -> None:
        """Has the limit tick this row from now on."""
        self.limit.activate(self, now_ns)

    def tick(self, now_ns: int) -> int:
        """Brings demand up to date; returns what is Due."""
        elapsed_ns = now_ns - self._tick_ns
        if elapsed_ns > 0:
            self._tick_ns = now_ns
            refused = max(0, self._refused - self.queued)
            self._refused = self.queued
            self._blocked += refused - self._blocked * -expm1(-elapsed_ns / _BLOCKED_TAU_NS)
            wanted = self.used + self.queued + self._blocked
            fallen = (wanted - self._wanted) * -expm1(-elapsed_ns / _WANTED_TAU_NS)
            self._wanted = max(wanted, self._wanted + fallen)
            if self._wanted < 0.05:
                self._wanted = 0.0
            part = -expm1(-elapsed_ns / _SERVED_TAU_NS)
            self._served += (self.used - self._served) * part
        self._reckon(now_ns)
        limit = self.limit
        if limit.members == 1:
            self._idle_told = _IDLE_TELLINGS
            return Due.NOTHING
        told = self._told.wanted
        contended = self._contended()
        due = abs(self._want().wanted - told) * 8 > told
        if contended:
            due = due or self.used != self._told_held
        if not due and now_ns - self._told_ns >= limit.refresh_ns:
            due = self._idle_told < _IDLE_TELLINGS if self._idle else True
        if not due:
            return Due.NOTHING
        return Due.CONTENDED if contended else Due.CALM

    def tell(self, now_ns: int) -> tuple[int, ...]:
        """The entry for the wire as of now, and the note that it leaves now."""
        self._told = self._want()
        self._told_held = self.used
        self._told_ns = now_ns
        self._idle_told = self._idle_told + 1 if self._idle else 0
        self._reckon(now_ns)
        return self.picture(now_ns)

    def picture(self, now_ns: int) -> tuple[int, ...]:
        """The entry as told last, for a joiner: everybody splits by the same words."""
        told = self._told
        return (self.key64, self.gen, min(U32, self.used), told.wanted, told.served_16)

    def hear(self, node: bytes, boot: int, seq: int, entry: Any, now_ns: int) -> bool:
        """Takes a peer's entry in; False if it is not newer than what is held."""
        _, gen, held, wanted, served_16 = entry
        peer = self.peers.get(node)
        if peer is None:
            peer = self.peers[node] = HeldShare(boot, gen, Want(0, 0, node))
        elif (boot, gen, seq) <= (peer.boot, peer.gen, peer.seq):
            return False
        peer.boot, peer.gen, peer.seq = boot, gen, seq
        peer.heard_ns = now_ns
        peer.held = held
        peer.want = Want(wanted, served_16, node)
        self._reckon(now_ns)
        if self.used > self._cap and self.used != self._told_held:
            self.limit.urge(self)  # what we hold beyond our share, others must not use
        return True

    def forget_peer(self, node: bytes) -> None:
        """The peer said good-bye: it holds nothing any more."""
        if self.peers.pop(node, None) is not None:
            self.reckon_again()

    def presume(self, entry: Any, now_ns: int) -> None:
        """Nothing: the entry was heard just now."""

    def joined(self, alone: bool, told: bool, now_ns: int) -> None:
        """A snapshot has one member's word: the others' are known when all have repeated theirs."""
        known_ns = now_ns if alone else now_ns + 2 * self.limit.refresh_ns
        self._shut_until_ns = min(self._shut_until_ns, known_ns)
        self._mature_ns = now_ns

    @property
    def told_ns(self) -> int:
        return self._told_ns

    @property
    def fresh(self) -> int:
        """Slots held and not told yet."""
        return abs(self.used - self._told_held)

    @property
    def news(self) -> bool:
        """Whether an entry now would say something that the last one did not."""
        return self.used != self._told_held or self._want().wanted > self._told.wanted

    @property
    def at_rest(self) -> bool:
        """Nothing to tell and nobody to watch."""
        return (
            self._idle
            and self._idle_told >= _IDLE_TELLINGS
            and not any(peer.held or peer.want.wanted for peer in self.peers.values())
        )

    @property
    def peers_rate(self) -> float:
        """A gauge has no rate."""
        return 0.0

    @property
    def cap(self) -> int:
        """The slots that this node may hold now."""
        return self._cap

    @property
    def reckoned(self) -> bool:
        """Whether `cap` was ever worked out."""
        return bool(self._caps)

    @property
    def mesh_count(self) -> int:
        """Slots ever taken here: what others took is not told."""
        return self.own

    @property
    def _idle(self) -> bool:
        return self.used == 0 and self.queued <= 0 and self._wanted == 0.0

    def _want(self) -> Want:
        wanted = max(ceil(self._wanted), self.used + self.queued)
        return Want(min(U32, max(0, wanted)), int(self._served * 4) * 4, self.limit.node)

    def _contended(self) -> bool:
        wanted = sum(peer.want.wanted for peer in self.peers.values())
        return wanted + self._want().wanted > self.limit.slots

    def _reckon(self, now_ns: int) -> None:
        """The cap as of now, and until when it holds without news."""
        limit = self.limit
        if limit.joining or now_ns < self._shut_until_ns:
            self._cap, self._mature_ns = 0, now_ns + MS
            self._caps = [(now_ns, 0)]
            return
        if limit.members == 1:
            self._cap, self._others_held, self._mature_ns = limit.slots, 0, now_ns + _AGAIN_NS
            self._caps = [(now_ns, 0)]  # whoever comes may hold some
            return
        mature_ns = now_ns + _AGAIN_NS
        for node, peer in list(self.peers.items()):
            stale_ns = peer.heard_ns + _FRESH_NS
            if now_ns >= stale_ns:
                if node not in limit.unheard:
                    del self.peers[node]
                # Otherwise it is live and takes its part; how much it holds is not known.
                peer.held = 0
            elif stale_ns < mature_ns:
                mature_ns = stale_ns
        others = list(self.peers.values())
        shares = split(limit.slots, [self._told, *[peer.want for peer in others]], limit.members)
        self._others_held = sum(peer.held for peer in others)
        beyond = room = 0
        for peer, theirs in zip(others, shares[1:], strict=True):
            if peer.held > theirs:
                beyond += peer.held - theirs
            else:
                room += theirs
        share, ripe_ns = self._ripened(min(shares[0], limit.part), now_ns)
        # Slots that are held beyond a share are missing to all who may gain, in proportion.
        self._cap = max(0, share - ceil(beyond * share / max(1, share + room)))
        self._mature_ns = min(mature_ns, ripe_ns)

    def _ripened(self, share: int, now_ns: int) -> tuple[int, int]:
        """(the least share of the last two horizons, when that changes without news)."""
        caps = self._caps
        if not caps:  # a row made just now had this share as long as others were told
            caps.append((0, share))
        elif caps[-1][1] != share:
            caps.append((now_ns, share))
        since_ns = now_ns - self.limit.ripe_ns
        keep = 1
        while keep < len(caps) and caps[keep][0] <= since_ns:
            keep += 1
        del caps[: keep - 1]
        least = min(cap for _, cap in caps)
        if len(caps) == 1:
            return least, now_ns + _AGAIN_NS
        return least, caps[1][0] + self.limit.ripe_ns

    def _busy_slow(self, cost: int, now_ns: int) -> int:
        limit = self.limit
        if cost > limit.rule.burst:
            return NEVER
        return max(MS, min(_AGAIN_NS, self._mature_ns - now_ns))


class HeldLimit(SharedTable[HeldRow]):
    """So many requests at a time over the whole mesh, for each key. `rule.burst` are the slots;
    `slots` those in force on this side of a partition."""

    kind = Kind.HELD

    def __init__(
        self,
        host: Host,
        config: Config,
        identity: str,
        rule: Rule,
        surroundings: Surroundings,
        **facts: Any,
    ) -> None:
        self.node = node_id(config.cluster, config.name)
        self.refresh_ns = config.refresh_ns
        self.underflows = 0
        self.unheard: frozenset[bytes] = frozenset()
        self.part = rule.burst  # of the slots that this node may have at most
        self.eased = 0  # slots that this member announces fewer for now
        self._eased_ns = 0  # when the last of them was taken away or came back
        super().__init__(host, config, identity, rule, surroundings, **facts)

    @property
    def joining(self) -> bool:
        """Whether the mesh has not told yet what is held."""
        return self._host.joining

    def retune(self, surroundings: Surroundings) -> None:
        """Recomputes what rows read: membership, the delay or the configuration changed."""
        self._surroundings = surroundings
        members, known, delay_ns, _, self.unheard, _ = surroundings
        self.effective = self._smallest_rule()
        whole = self.effective.burst
        minority = members * 2 <= known
        self.closed = self.on_partition == "closed" and minority
        self.slots = whole
        if self.closed:
            self.slots = 0
        elif minority and self.on_partition == "share":
            self.slots = whole * members // known
        self.members = members
        # Who hears not all of them cannot know who gives what up: an n-th is everybody's.
        apart = self.unheard and self.on_partition != "open"
        self.part = max(1, self.slots // members) if apart else self.slots
        # Slots move within two horizons, so words go as often as any.
        self.cadence_ns = self._config.cadence_min_ns
        self.horizon_ns = self.cadence_ns * 11 // 10 + delay_ns
        self.ripe_ns = 2 * self.horizon_ns
        for row in self._rows.values():
            row.reckon_again()

    @property
    def announced(self) -> Rule:
        """The slots as configured, less those that the upstream would not bear."""
        slots = max(1, self.rule.burst - self.eased)
        return Rule(slots, SECOND, slots)

    def ease(self, used: int, now_ns: int) -> None:
        """The upstream found `used` at a time, over all members, too many: one less from now on, at
        least one, for all of them. A slot comes back every ten seconds."""
        slots = max(1, min(self.effective.burst, used - 1))
        if slots < self.announced.burst:
            self.eased = self.rule.burst - slots
            self._eased_ns = now_ns
            self._announce()

    def expire(self, now_ns: int) -> None:
        """Also gives back the slots whose time has come, whether or not they are wanted here."""
        self.eased = min(self.eased, self.rule.burst - 1)  # a reload lowered them
        due = min(self.eased, (now_ns - self._eased_ns) // _SLOT_BACK_NS)
        if due > 0:
            self.eased -= due
            self._eased_ns += due * _SLOT_BACK_NS
            self._announce()
        super().expire(now_ns)

    def _announce(self) -> None:
        self.retune(self._surroundings)
        self._host.announce(self)

    def alive(self, now_ns: int) -> None:
        """The node does something; after a while without, `slept` comes before it is done."""
        self._host.alive(now_ns)

    def slept(self, now_ns: int) -> None:
        """The process stood still, and its slots may be others' by now. One that is alone in the
        mesh has them all."""
        if self.members > 1:
            for row in self._rows.values():
                row.slept(now_ns)

    def excess_bound(self) -> float:
        """Nobody takes what another may use: none, while words come within a horizon. Who is not
        heard here may hold up to its part."""
        return float(len(self.unheard) * self.part)

    def new_row(self, key: bytes, name: int, gen: int, now_ns: int) -> HeldRow:
        return HeldRow(self, key, name, gen, now_ns)

    def slots_here(self) -> int:
        """This node's share of the slots, of the key that was used last; an equal part where there
        is none yet."""
        for row in self.recent_rows(1):
            if row.reckoned:
                return row.cap
        return self.slots // self.members

    def remaining(self, row: HeldRow, now_ns: int) -> tuple[int, int]:
        """(slots free for this node now, one second where some are held: nobody knows when)."""
        return row.room() if row.ask(1, now_ns) == ROOM else 0, _AGAIN_NS if row.used else 0

    def stats(self) -> dict[str, Any]:
        """Figures for metrics; a gauge has no rate."""
        return super().stats() | {
            "slots": self.slots,
            "eased": self.eased,
            "closed": self.closed,
            "tight": False,
        }
