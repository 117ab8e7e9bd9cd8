"""One shared counter: a leaky bucket that every member keeps whole, with reservations.

Everybody counts everybody. News from peers is up to one horizon old, so a node treats what it
admitted itself and peers cannot have seen yet ("unseen") as in flight, and keeps that inside its
share, by announced demand, of the free tokens: together the nodes cannot spend a token twice.
Demand counts only once peers have had time to reserve for it; until then a node may use an equal
part of what nobody asked for. PROTOCOL.md has the derivation of the bound.

Tokens are floats in here (a level drains continuously), counts of admissions are integers. Rates
are tokens per nanosecond.
"""

from __future__ import annotations

from math import ceil, expm1
from typing import TYPE_CHECKING, Any, Final

from peers.core.config import MS, SECOND
from peers.core.share import Due, PeerShare, Row
from peers.core.wire import Kind

if TYPE_CHECKING:
    from peers.core.counters import MeshLimit

__all__ = ["CLOSED_RETRY_NS", "NEVER", "ROOM", "MeshRow"]

ROOM: Final = 0
NEVER: Final = -1

# Asking more often than each millisecond buys nothing: retries at 1 ms kept the peak within
# 1.005 of the bound in simulation, and fewer tokens than one come free meanwhile below 1,000/s.
_RETRY_MIN_NS: Final = 1 * MS
# A closed limit (on_partition) is asked again when membership may have changed.
CLOSED_RETRY_NS = 1 * SECOND
# What an upstream says is left is rounded down: a part of a token is no difference. (Levels are
# sums of floats: a difference of one token may come out as a little less.)
_WHOLE_TOKEN = 1.0 - 1e-6
# How often "I am idle" is told, 250 ms apart; with 20 % loss all are lost once in 125 times, and
# then the digest tells it.
_IDLE_TELLINGS = 3


class MeshRow(Row):
    """The state of one limit for one key. Satisfies `gateway.limits.verdict.Entry`.

    `heard` are the admissions that peers told of, monotone; `peers_sum` is what peers announce to
    want within a horizon.
    """

    __slots__ = (
        "_arrived",
        "_excused",
        "_idle_told",
        "_lam",
        "_level",
        "_level_ns",
        "_quota",
        "_sent",
        "_silence_ns",
        "_spare",
        "_tick_ns",
        "_told_more",
        "_told_ns",
        "_x",
        "_x_until_ns",
        "heard",
        "limit",
        "peers",
        "peers_sum",
    )

    kind = Kind.COUNTERS

    def __init__(
        self, limit: MeshLimit, key: bytes, key64: int, gen: int, level: float, now_ns: int
    ) -> None:
        super().__init__(key, key64, gen, now_ns)
        self.limit = limit
        self.heard = 0
        self.peers: dict[bytes, PeerShare] = {}
        self.peers_sum = 0.0
        self._level = level
        self._level_ns = now_ns
        self._lam = 0.0  # arrivals, tokens per second
        self._arrived = 0
        self._excused = 0.0  # what peers beyond a partition may have spent of their own share
        self._tick_ns = now_ns
        self._silence_ns = now_ns  # no peer is silent before
        self._sent: list[tuple[int, int, float]] = []  # when, own, demand: as told to peers
        self._told_more = 0.0  # tokens that the upstream had counted and we had not
        self._told_ns = 0  # and when it last said so
        self._quota = 0.0
        self._spare = False
        self._x = 0.5
        self._x_until_ns = now_ns
        self._idle_told = _IDLE_TELLINGS  # nothing was ever told that peers would have to unlearn

    # -- the caller's side: gateway.limits.verdict.Entry

    def ask(self, cost: int, now_ns: int) -> int:
        """ROOM, or nanoseconds (>= 1) until asking again can help, or NEVER. Counts nothing.

        For one request it may be called several times: the chance that decides about a fraction
        of a token is kept for about a horizon, and drawn anew only where the share is under one
        request.
        """
        limit = self.limit
        level = self._level - (now_ns - self._level_ns) * limit.rate
        if level < 0.0:
            level = 0.0
        if now_ns > self._level_ns:
            self._level = level
            self._level_ns = now_ns
        burst = limit.effective_burst
        if level + cost > burst:
            return self._full_slow(cost, level)
        if limit.members == 1:
            return ROOM
        sent = self._sent
        unripe_ns = now_ns - limit.ripe_ns
        unseen_ns = now_ns - limit.delay_ns
        if len(sent) > 1 and sent[1][0] <= unripe_ns and sent[1][0] <= unseen_ns:
            self._forget_sent_slow(unripe_ns, unseen_ns)
        seen = 0
        announced = 0.0
        for told_ns, own, demand in sent:
            if told_ns <= unseen_ns:
                seen = own
            if told_ns <= unripe_ns or demand < announced:
                announced = demand  # peers stop reserving as soon as they hear of less
        unseen = self.own - seen
        free = burst - level + unseen
        peers_sum = self.peers_sum
        wanted = announced + peers_sum
        if wanted >= free:
            quota = free * announced / wanted
            self._spare = False
        else:
            quota = announced + (free - wanted) / limit.members
            self._spare = True
        if quota < cost:
            # The first request in flight needs only a chance, in proportion to what waits.
            weight = max(cost, announced, self.queued)
            quota = max(quota, min(float(cost), free * weight / (weight + peers_sum)))
            if now_ns >= self._x_until_ns:
                # One chance until news of who took the token can be here: with one at each try,
                # nodes with a small share, which try longer, had more than their share.
                self._x = limit.draw()
                self._x_until_ns = now_ns + limit.flush_ns
        elif now_ns >= self._x_until_ns:
            self._x = limit.draw()
            self._x_until_ns = now_ns + int(limit.horizon_ns * (0.5 + limit.draw()))
        x = self._x
        self._quota = quota
        if unseen + cost <= quota + x * cost:
            return ROOM
        return self._busy_slow(unseen + cost - quota - x * cost, free, now_ns)

    def take(self, cost: int, now_ns: int) -> None:
        """Takes what `ask` just granted."""
        self._level += cost
        self.own += cost
        self.used_ns = now_ns
        limit = self.limit
        if self._quota < 1.0:
            self._x_until_ns = now_ns  # the next token is another chance
        if not self.active:
            limit.activate(self, now_ns)
        if limit.tight and self._quota < 2.0 and limit.members > 1:
            told = self._sent[-1][1] if self._sent else 0
            if self.own - told >= limit.flush_tokens:
                limit.urge(self)

    def arrive(self, cost: int, now_ns: int) -> None:
        """Counts a request's demand, once a request."""
        self._arrived += cost
        self.used_ns = now_ns
        if not self.active:
            self.limit.activate(self, now_ns)

    def hold(self, cost: int) -> None:
        """A request of this cost waits for this row; -cost undoes it."""
        self.queued += cost
        if cost > 0:
            if not self.active:
                self.limit.activate(self, self._level_ns)
            if self._spare and self.limit.tight:
                self.limit.urge(self)

    def give_back(self, cost: int, now_ns: int) -> None:
        """Tokens of a rate are never given back."""

    def level(self, now_ns: int) -> float:
        """Tokens in the bucket now; changes nothing."""
        elapsed_ns = max(0, now_ns - self._level_ns)
        return max(0.0, self._level - elapsed_ns * self.limit.rate)

    def fill(self, now_ns: int) -> None:
        """No burst: the bucket is full from now on and drains at the rate (after a pause)."""
        self._drain(now_ns)
        self._level = max(self._level, self.limit.effective_burst)

    def clear(self, now_ns: int) -> None:
        """The operator forgives: the bucket is empty on this member. What peers still hold comes
        back within seconds, as their level is compared with ours, unless they clear theirs."""
        self._drain(now_ns)
        self._level = 0.0

    def learn(self, remaining: int, sent_ns: int, now_ns: int) -> bool:
        """Takes over what the upstream says is left, if it is less than ours; says whether.

        What it says is as of `sent_ns` and has drained since. Peers are told what is left, never
        what is missing: all of them may have heard the same from the upstream.
        """
        left = max(0, remaining) + max(0, now_ns - sent_ns) * self.limit.rate
        if not self.lower(left, now_ns):
            return False
        self.limit.advertise(self, left, now_ns)
        return True

    # -- the mesh's side

    def left_by_now(self, left: float, elapsed_ns: int) -> float:
        """What is left of `left` and what drained since."""
        return left + elapsed_ns * self.limit.rate

    def hear_left(self, left: float, now_ns: int) -> None:
        """A peer was told by the upstream that `left` tokens are left."""
        if self.lower(left, now_ns):
            self.limit.lowered += 1

    def lower(self, left: float, now_ns: int) -> bool:
        """Leaves at most `left` of the burst, if that is a token less than now; says whether.

        The greater of two levels counts and not their sum, so hearing the same from the upstream,
        from two peers and from a copied datagram is hearing it once.
        """
        self._drain(now_ns)
        level = self.limit.effective.burst - left
        more = level - self._level
        if more < _WHOLE_TOKEN:
            return False
        if now_ns - self._told_ns > self.limit.horizon_ns:
            self._told_more = 0.0
        self._told_more += more
        self._told_ns = now_ns
        self._level = level
        return True

    def wake(self, now_ns: int) -> None:
        """Has the limit tick this row from now on."""
        self.limit.activate(self, now_ns)

    def tick(self, now_ns: int) -> int:
        """Brings demand and silent peers up to date; returns what is Due.

        Calm keys, where demand is under half of what is free, speak less: without that a thousand
        keys cost 321 entries a second each instead of 89.
        """
        limit = self.limit
        elapsed_ns = now_ns - self._tick_ns
        if elapsed_ns > 0:
            arrived = self._arrived * SECOND / elapsed_ns
            self._lam += (arrived - self._lam) * -expm1(-elapsed_ns / limit.demand_tau_ns)
            if self._lam < limit.demand_min:
                self._lam = 0.0
            self._arrived = 0
            self._tick_ns = now_ns
        self._drain(now_ns)
        if now_ns >= self._silence_ns:
            self._charge_silent_slow(elapsed_ns, now_ns)
        lam_100 = int(self._lam * 100 + 0.5)
        demand = lam_100 * limit.demand_per_lam  # from the rounded rate, as peers compute it
        if self.queued > demand:
            demand = float(self.queued)
        told_ns, told_own, told_demand = self._sent[-1] if self._sent else (0, 0, 0.0)
        fresh = self.own - told_own
        if limit.members == 1:
            self._sent = [(now_ns, self.own, demand)]
            self._idle_told = _IDLE_TELLINGS if lam_100 == 0 and self.queued == 0 else 0
            return Due.NOTHING
        free = limit.effective_burst - self._level + fresh
        calm = demand + self.peers_sum < free / 2
        if calm:
            due = demand >= 2 * told_demand + 1 or (
                fresh > 0 and fresh >= free / (4 * limit.members)
            )
        else:
            due = fresh > 0 or abs(demand - told_demand) >= told_demand / 4 + 0.1
        if not due and now_ns - told_ns >= limit.refresh_ns:
            if fresh > 0:
                due = True
            elif lam_100 == 0 and self.queued == 0:
                due = self._idle_told < _IDLE_TELLINGS
            else:  # often enough not to seem silent
                due = now_ns - told_ns >= limit.sign_of_life_ns
        if not due:
            return Due.NOTHING
        return Due.CALM if calm else Due.CONTENDED

    def tell(self, now_ns: int) -> tuple[int, ...]:
        """The entry for the wire as of now, and the note that it leaves now."""
        lam_100 = int(self._lam * 100 + 0.5)
        told_own = self._sent[-1][1] if self._sent else 0
        limit = self.limit
        self._forget_sent_slow(now_ns - limit.ripe_ns, now_ns - limit.delay_ns)
        self._sent.append((now_ns, self.own, self._demand(lam_100)))
        idle = lam_100 == 0 and self.queued == 0
        self._idle_told = self._idle_told + 1 if idle else 0
        level_16 = int(self.level(now_ns) * 16)
        delta = self.own - told_own
        return (self.key64, self.gen, self.own, delta, lam_100, max(0, self.queued), level_16)

    @property
    def news(self) -> bool:
        """Whether an entry now would say something that the last one did not."""
        if not self._sent:
            return True
        _, own, demand = self._sent[-1]
        return own != self.own or self._demand(int(self._lam * 100 + 0.5)) > demand

    @property
    def told_ns(self) -> int:
        return self._sent[-1][0] if self._sent else -SECOND

    @property
    def fresh(self) -> int:
        """Own admissions not told yet."""
        return self.own - (self._sent[-1][1] if self._sent else 0)

    @property
    def mesh_count(self) -> int:
        """Tokens taken by all, as this node knows."""
        return self.own + sum(peer.count for peer in self.peers.values())

    @property
    def peers_rate(self) -> float:
        """What peers admit, in tokens per nanosecond."""
        return sum(peer.rate for peer in self.peers.values())

    @property
    def at_rest(self) -> bool:
        """Nothing to tell and nobody to watch: needs no ticks until it is used or heard of."""
        return (
            self._idle_told >= _IDLE_TELLINGS
            and self.fresh == 0
            and self.queued <= 0
            and self._arrived == 0
            and self.peers_sum == 0.0
            and not any(peer.rate for peer in self.peers.values())
        )

    def hear(self, node: bytes, boot: int, seq: int, entry: Any, now_ns: int) -> bool:
        """Takes a peer's entry in; False if it is not newer than what is held. `boot` and `seq`
        are its datagram's.

        Counts are absolute, so copies and reordering do no harm and a lost entry is made good by
        the next one. Late news is debt, and debt is capped.
        """
        _, gen, total, delta, lam_100, waiting, level_16 = entry
        limit = self.limit
        peer = self.peers.get(node)
        gain = 0.5
        counted = 0.0
        if peer is None:
            peer = self.peers[node] = PeerShare(boot, gen, now_ns)
            grown = delta
        else:
            if boot != peer.boot or gen != peer.gen:
                if (boot, gen) < (peer.boot, peer.gen):
                    return False
                peer.boot = boot
                peer.gen = gen
                peer.count = 0
            elif seq <= peer.seq:
                return False
            grown = total - peer.count
            if self._told_more > 0.0 and peer.heard_ns < self._told_ns:
                counted = self._counted(grown, peer.heard_ns, now_ns)
            gain = (now_ns - peer.heard_ns) * limit.gain_per_ns
            if gain > 0.5:
                gain = 0.5
            peer.note_rate(grown, now_ns)
        peer.seq = seq
        peer.count = total
        peer.heard_ns = now_ns
        self._note_demand(peer, lam_100, waiting)
        self._drain(now_ns)
        level = self._level
        if grown > 0:
            self.heard += grown
        level += grown - counted
        if peer.phantom or peer.excused:
            level -= self._known_slow(peer, grown)
        # Levels that differ by more than news can explain creep towards each other.
        sent = self._sent
        unseen = self.own - (sent[0][1] if sent else 0)
        difference = level_16 / 16 - (level - unseen)
        if difference > limit.band:
            level += gain * (difference - limit.band)
        elif difference < -limit.band:
            level += gain * (difference + limit.band)
        if level < 0.0:
            level = 0.0
        elif level > limit.level_max:
            level = limit.level_max
        self._level = level
        return True

    def _counted(self, grown: int, heard_ns: int, now_ns: int) -> float:
        """How much of a peer's news is in what the upstream has told already: the part from before
        it was told, of what the peer admitted evenly since it was heard last."""
        before = (self._told_ns - heard_ns) / (now_ns - heard_ns) if now_ns > heard_ns else 0.0
        counted = min(grown * min(1.0, before), self._told_more)
        self._told_more -= counted
        return counted

    def _note_demand(self, peer: PeerShare, lam_100: int, waiting: int) -> None:
        demand = lam_100 * self.limit.demand_per_lam
        if waiting > demand:
            demand = float(waiting)
        elif lam_100 == 0:
            peer.rest()
        if demand != peer.demand:
            self.peers_sum = max(0.0, self.peers_sum + demand - peer.demand)
            peer.demand = demand

    def _known_slow(self, peer: PeerShare, grown: int) -> float:
        """What of a peer's news is in the level already, charged for its silence, or excused."""
        known = peer.phantom
        peer.phantom = 0.0
        if peer.excused:
            peer.excused = False
            forgiven = min(float(grown), self._excused)
            self._excused -= forgiven
            known += forgiven
        return known

    def forget_peer(self, node: bytes) -> None:
        """The peer said good-bye: it wants nothing and spends nothing any more."""
        peer = self.peers.pop(node, None)
        if peer is not None:
            self.peers_sum = sum(other.demand for other in self.peers.values())

    def inherit(self, told: dict[bytes, tuple[int, int, Any, int]], now_ns: int) -> None:
        """What peers told before the row was made: the highest level is the latest news."""
        super().inherit(told, now_ns)
        level = 0.0
        for _, _, entry, heard_ns in told.values():
            level = max(level, entry[6] / 16 - (now_ns - heard_ns) * self.limit.rate)
        self._level = min(level, self.limit.level_max)
        self._level_ns = now_ns

    def picture(self, now_ns: int) -> tuple[int, ...]:
        """The entry for a joiner, which notes nothing as told."""
        lam_100 = int(self._lam * 100 + 0.5)
        level_16 = int(self.level(now_ns) * 16)
        return (self.key64, self.gen, self.own, 0, lam_100, max(0, self.queued), level_16)

    def presume(self, entry: Any, now_ns: int) -> None:
        """The level that news gave, which is without our own."""
        self._presume(entry[6] / 16, now_ns)

    def joined(self, alone: bool, told: bool, now_ns: int) -> None:
        """Where nobody answered there is nobody to have spent; otherwise a full bucket drains."""
        if alone:
            self._presume(0.0, now_ns)

    def _presume(self, level: float, now_ns: int) -> None:
        self._drain(now_ns)
        self._level = min(self._level, level + self.own)

    def _demand(self, lam_100: int) -> float:
        # From the rounded rate, as peers compute it.
        return max(lam_100 * self.limit.demand_per_lam, float(self.queued))

    def _drain(self, now_ns: int) -> None:
        elapsed_ns = now_ns - self._level_ns
        if elapsed_ns > 0:
            level = self._level - elapsed_ns * self.limit.rate
            self._level = level if level > 0.0 else 0.0
            self._level_ns = now_ns

    def _charge_silent_slow(self, elapsed_ns: int, now_ns: int) -> None:
        """Silence means: goes on as before. Without it a 20 s partition costs 1,939 tokens over
        instead of 55. After silence_max a peer is forgotten, unless it is a live member of which
        nothing at all is heard: that goes on. Where this side of a partition works
        at its share of the rate, the far side's spending is in the rest: it is not charged too,
        nor debt afterwards.

        Until the peer that was heard longest ago is silent there is nothing to charge."""
        limit = self.limit
        first_ns = now_ns
        gone: list[bytes] | None = None
        excused = False
        peers_sum = 0.0
        for node, peer in self.peers.items():
            if peer.rate == 0.0 and peer.demand == 0.0:
                continue
            heard_ns = peer.heard_ns
            if heard_ns < first_ns:
                first_ns = heard_ns
            silent_ns = now_ns - heard_ns
            if silent_ns > limit.silence_min_ns:
                if silent_ns >= limit.silence_max_ns and node not in limit.unheard:
                    gone = [*(gone or ()), node]
                    continue
                if node in limit.excused:
                    peer.excused = True
                    excused = True
                    continue
                # The silence that was waited for is charged as well, when it has been one.
                waited = silent_ns - elapsed_ns <= limit.silence_min_ns
                charge = peer.rate * (silent_ns if waited else elapsed_ns)
                self._level += charge
                peer.phantom += charge
            peers_sum += peer.demand
        self.peers_sum = peers_sum
        self._silence_ns = first_ns + limit.silence_min_ns
        if excused:
            self._excused += limit.excused_rate * elapsed_ns
        for node in gone or ():
            del self.peers[node]

    def _forget_sent_slow(self, unripe_ns: int, unseen_ns: int) -> None:
        """Keeps one note that is old enough for both uses, and all newer ones."""
        sent = self._sent
        old_ns = min(unripe_ns, unseen_ns)
        keep = 1
        while keep < len(sent) and sent[keep][0] <= old_ns:
            keep += 1
        del sent[: keep - 1]

    def foresees(self, cost: int, now_ns: int) -> bool:
        """Whether no room comes before the time that `ask` has just said: where the sum of all
        members is full. A peer may give up the tokens that it holds, and a partition heal, at any
        moment."""
        limit = self.limit
        return not limit.closed and self._level + cost > limit.effective_burst

    def _full_slow(self, cost: int, level: float) -> int:
        limit = self.limit
        if limit.closed:
            return CLOSED_RETRY_NS
        if cost > limit.effective_burst:
            return NEVER
        return max(1, ceil((level + cost - limit.effective_burst) / limit.rate))

    def _busy_slow(self, missing: float, free: float, now_ns: int) -> int:
        """Peers may hold the tokens: when can that change without news from them?"""
        limit = self.limit
        wait_ns = limit.next_tick_ns - now_ns
        if wait_ns <= 0:
            wait_ns = limit.cadence_ns
        for told_ns, _, _ in self._sent:  # own news grows old enough
            for ripe_ns in (told_ns + limit.delay_ns, told_ns + limit.ripe_ns):
                if now_ns < ripe_ns < now_ns + wait_ns:
                    wait_ns = ripe_ns - now_ns
        if self._quota >= 1.0 and limit.rate > 0.0:  # the bucket drains: a share of that is ours
            share = 1.0 / limit.members if self._spare else self._quota / free
            wait_ns = min(wait_ns, int(missing / (limit.rate * share)) + 1)
        if limit.tight and self._spare:
            limit.urge(self)
            wait_ns = min(wait_ns, limit.ripe_ns)
        return max(_RETRY_MIN_NS, wait_ns)
