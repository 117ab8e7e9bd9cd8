"""One member of the mesh, sans-IO: the composition of its parts, and the door of the package.

Bytes and times go in, bytes, times and events come out. A driver calls `receive_datagram` for each
datagram, `tick` at `next_wake_ns`, and after either sends `datagrams_to_send` and hands on
`events_received`. Nothing here raises for what came over the network: it is counted by reason.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from peers.core.breakers import Breakers, scope_key
from peers.core.chance import Chance, sample
from peers.core.config import SECOND, Config, is_numeric
from peers.core.counters import MeshLimit, Rule, Surroundings
from peers.core.delay import DelayMeter
from peers.core.demand import Demands
from peers.core.desk import LeaseDesk
from peers.core.errors import Drop, DropError
from peers.core.events import Address, Event, RowChanged
from peers.core.exact import ExactLimit
from peers.core.figures import members_figures
from peers.core.gossip import Counters
from peers.core.handshake import Handshake, cluster_label, members_frames, node_id
from peers.core.held import HeldLimit
from peers.core.keyring import SALT_BYTES, Keyring
from peers.core.members import Member, Members
from peers.core.outbox import Outbox
from peers.core.probe import Prober
from peers.core.quotas import ExactWindow
from peers.core.reach import Reach
from peers.core.receiver import Receiver
from peers.core.relays import Relays
from peers.core.sessions import Sessions
from peers.core.snapshot import Snapshots
from peers.core.table import SharedTable, checked_quota, checked_rule, limit_facts
from peers.core.windows import WindowLimit
from peers.core.wire import (
    DATAGRAM_BYTES_MAX,
    FRAMES_BYTES_MAX,
    RECORD_BYTES_MAX,
    U32,
    U63,
    Head,
    Kind,
    join,
    join_items,
    pack,
    pack_head,
)

__all__ = ["Node"]

_L = TypeVar("_L", bound=ExactLimit)

_RETUNE_NS = 1 * SECOND
GROUP_BYTES = 8  # of a scope: what `scope_key` gives; what follows tells credentials apart


class Node:
    """A member. `now_ns` is monotonic and never goes back; `boot_ms` is Unix time in ms at start,
    and orders this node's lives; `chance` should be seeded by the operating system.

    `drops` counts what was not taken, by reason ("unread" is the driver's to count). `on_wake` is
    called when local work made `next_wake_ns` earlier (a limit is used, a breaker opened).
    """

    def __init__(self, config: Config, chance: Chance, now_ns: int, boot_ms: int) -> None:
        if not 0 < boot_ms <= U63:
            raise ValueError("boot_ms: a positive time")
        self.config = config
        self.drops: dict[str, int] = {reason.value: 0 for reason in Drop}
        self.on_wake: Callable[[], None] | None = None
        self.datagrams_received = 0
        self.bytes_received = 0
        node = node_id(config.cluster, config.name)
        self._cluster = cluster_label(config.cluster)
        self._chance = chance
        events = self._events = list[Event]()
        self._seq = 0
        self._now_ns = now_ns
        salt = boot_ms.to_bytes(8, "big")[-6:] + chance.getrandbits(48).to_bytes(6, "big")
        assert len(salt) == SALT_BYTES
        self._keyring = Keyring(config.keys, salt)
        self._sessions = Sessions(chance.getrandbits(256).to_bytes(32, "big"))
        self._outbox = Outbox()
        self._members = Members(config, node, boot_ms, self._events, now_ns)
        self._reach = Reach(config, self._members, events)
        self._delay = DelayMeter(config)
        self._surroundings = Surroundings(1, 1, self._delay.p99_ns())
        self._counters = Counters(config, chance, self._outbox, self._surroundings, now_ns)
        self._counters.on_wake = self._poke
        self._desk = LeaseDesk(config, self._members, self._outbox, self._surroundings, now_ns)
        self._desk.on_wake = self._poke
        self._prober = Prober(config, self._members, self._delay, self._outbox, chance, now_ns)
        self._handshake = Handshake(
            config, self._members, self._sessions, self._outbox, self._prober, events
        )
        self._demands = Demands(self._members, self._outbox, self._events, now_ns)
        self._breakers = Breakers(
            config, self._members, self._outbox, self._demands, chance, events, boot_ms, now_ns
        )
        self._snapshots = Snapshots(
            self._members, self._counters, self._breakers, self._seal, chance
        )
        self._relays = Relays(
            config, self._members, self._sessions, self._counters, self._outbox, chance, events
        )
        self._version = 0
        self._heartbeat_ns = now_ns
        self._sync_ns = now_ns + config.members_sync_interval_ns
        self._retune_ns = now_ns + _RETUNE_NS
        self._timer_ns = now_ns
        self._slow_wake_ns: int | None = None  # None: to be reckoned anew
        self._joining_until_ns = now_ns + config.joining_ns
        self._counters.joining = bool(config.join)
        self._receiver = Receiver(
            self._cluster,
            self._keyring,
            self._members,
            self._sessions,
            self._handshake,
            self._prober,
            self._counters,
            self._breakers,
            self._desk,
            self._demands,
            self._relays,
            self._outbox,
        )
        numeric = [address for address in config.join if is_numeric(address[0])]
        self.set_join_addresses(numeric, now_ns, len(config.join) - len(numeric))

    # -- datagrams and time

    def receive_datagram(self, data: bytes, source: Address, now_ns: int) -> bool:
        """Takes a datagram in. Never raises; what is wrong with it is counted in `drops`.

        False: nothing is to be sent, handed on or timed. It was dropped without an answer, or
        told of counters that nobody waits for (five of six datagrams under load).
        """
        self._now_ns = now_ns
        self._counters.alive(now_ns)
        self._desk.alive(now_ns)
        self.datagrams_received += 1
        self.bytes_received += len(data)
        fault = self._receiver.fault(data, source, DATAGRAM_BYTES_MAX)
        if fault is not None:
            self.drops[fault.value] += 1
            return False
        try:
            quiet = self._receiver.receive(data, source, now_ns)
        except DropError as error:
            self.drops[error.reason.value] += 1
            return self._outbox.waiting
        if quiet:
            return bool(self._counters.changed) or self._outbox.waiting
        self._slow_wake_ns = None
        self._after_work()
        return True

    def tick(self, now_ns: int) -> None:
        """Does what is due. A call at or after `next_wake_ns` also measures the driver's lag."""
        self._now_ns = now_ns
        self._counters.alive(now_ns)
        self._desk.alive(now_ns)
        if now_ns >= self._timer_ns:
            self._delay.lag_ns = now_ns - self._timer_ns
        config = self.config
        self._prober.tick(now_ns)
        for node in self._members.tick(now_ns):
            self._gone(node)
        self._handshake.tick(now_ns)
        if now_ns >= self._heartbeat_ns:
            self._heartbeat_ns = now_ns + config.heartbeat_interval_ns
            self._heartbeat(now_ns)
            self._relays.tick(now_ns)
        if now_ns >= self._sync_ns:
            self._sync_ns = now_ns + config.members_sync_interval_ns
            for member in sample(self._chance, self._members.live, 1):
                for frame in members_frames(self._members, want=True):
                    self._outbox.send(member.address, frame)
        if self._counters.joining and now_ns >= self._joining_until_ns:
            self._joined(not self._members.live, told=False, now_ns=now_ns)
        if now_ns >= self._retune_ns:
            self._retune_ns = now_ns + _RETUNE_NS
            self._retune()
        self._demands.tick(now_ns)
        self._breakers.tick(now_ns)
        self._counters.tick(now_ns)
        self._desk.tick(now_ns)
        self._slow_wake_ns = None
        self._after_work()
        self._timer_ns = self.next_wake_ns()

    def next_wake_ns(self) -> int:
        """When `tick` has something to do next. To be asked after every call, as a timer that is
        armed for later than before (an answer came that it would have asked for again) is not
        late before then."""
        if self._slow_wake_ns is None:
            self._slow_wake_ns = self._reckon_slow_wake()
        wake_ns = min(
            self._slow_wake_ns,
            self._counters.next_wake_ns(self._now_ns),
            self._desk.next_wake_ns(self._now_ns),
        )
        if wake_ns > self._timer_ns:
            self._timer_ns = wake_ns
        return wake_ns

    def _reckon_slow_wake(self) -> int:
        """When anything but counters and leases is due: what no entry of a counter can change."""
        wake_ns = min(
            self._heartbeat_ns,
            self._sync_ns,
            self._retune_ns,
            self._prober.next_wake_ns(),
            self._demands.next_wake_ns(),
            self._breakers.next_wake_ns(),
        )
        for timer_ns in (self._members.next_deadline_ns(), self._handshake.next_wake_ns()):
            if timer_ns is not None:
                wake_ns = min(wake_ns, timer_ns)
        if self._counters.joining:
            wake_ns = min(wake_ns, self._joining_until_ns)
        return wake_ns

    def datagrams_to_send(self, now_ns: int) -> list[tuple[bytes, Address]]:
        """What leaves now; counters are noted as told at `now_ns`, so send at once."""
        live = self._members.live
        self._counters.flush(now_ns, len(live))
        self._desk.flush(now_ns)
        if not self._outbox.waiting:
            return []
        return self._outbox.drain(self._seal, [member.address for member in live])

    def events_received(self) -> list[Event]:
        """What happened since the last call."""
        events = self._events[:]
        self._events.clear()
        changed = self._counters.changed
        if changed:
            events.extend(RowChanged(row) for row in changed)
            changed.clear()
        leased = self._desk.rows_changed
        if leased:
            events.extend(RowChanged(row) for row in leased)
            leased.clear()
        return events

    def set_join_addresses(
        self, addresses: Sequence[Address], now_ns: int, unresolved: int = 0
    ) -> None:
        """Numeric addresses to join: the driver resolves names and passes all results, and how
        many names have none."""
        self._handshake.set_join(addresses, now_ns)
        self._reach.set_join(addresses, unresolved)
        self._retune()
        self._wake()

    def set_keys(self, keys: Sequence[bytes]) -> None:
        """Other sealing keys, 32 bytes each (see `Keyring.replace`). Raises ConfigError as Config
        does."""
        self.config = dataclasses.replace(self.config, keys=tuple(keys))
        self._keyring.replace(keys)

    @property
    def cut_off(self) -> bool:
        """Whether at least half of the other live members do not reach this node where it
        advertises to be: it keeps its limits without their news."""
        return self._reach.cut_off

    @property
    def joining(self) -> bool:
        """True until members have told what they know, or nobody did in `joining_ns`."""
        return self._counters.joining

    def leave(self, now_ns: int) -> None:
        """Says good-bye in the datagrams that leave next; peers stop reserving for this node."""
        self._desk.leave(now_ns)
        frame = join_items(Kind.MEMBERS, [b"\x00", pack(self._members.leave())])
        self._outbox.send_all(frame)

    # -- members

    def members(self) -> list[Member]:
        """All members known, this one first."""
        return [self._members.me, *self._members.others()]

    def live_count(self) -> int:
        return self._members.live_count

    def forget_member(self, name: str) -> bool:
        """Takes a dead member for one that left, on all nodes: it no longer counts for majorities.

        False where no member of that name is dead.
        """
        node = self._members.forget(name, self._now_ns)
        if node is None:
            return False
        self._gone(node)
        self._slow_wake_ns = None
        self._after_work()
        return True

    # -- counters

    def limit(
        self,
        identity: str,
        *,
        rate_count: int,
        rate_period_ns: int,
        burst: int,
        **facts: Any,
    ) -> MeshLimit:
        """The limit of this identity: made, or reconfigured in place (rows and counts stay).

        `rate_count` tokens per `rate_period_ns`, at most `burst` at once. Raises ValueError.
        """
        self._desk.forget_limit(identity)  # it may have been of the other kind until now
        return self._counters.limit(
            identity,
            checked_rule(rate_count, rate_period_ns, burst),
            **limit_facts(facts),
        )

    def window_limit(
        self,
        identity: str,
        *,
        count: int,
        period_ns: int,
        wall_offset_ns: int | None = None,
        **facts: Any,
    ) -> WindowLimit:
        """As `limit`, of `count` tokens in each window of `period_ns`. Windows begin with a key's
        first use, or where `wall_offset_ns` (wall less monotonic time) is given, at multiples of
        the period in wall time. Raises ValueError."""
        rule = checked_quota(count, period_ns)
        self._desk.forget_limit(identity)  # it may have been an exact one until now
        limit = self._counters.table(
            WindowLimit,
            identity,
            rule,
            **limit_facts(facts),
        )
        limit.align(wall_offset_ns)
        return limit

    def held_limit(
        self,
        identity: str,
        *,
        slots: int,
        **facts: Any,
    ) -> HeldLimit:
        """At most `slots` requests at a time over all members. Raises ValueError."""
        if not 1 <= slots <= U32:
            raise ValueError("slots: at least 1")
        return self._counters.table(
            HeldLimit,
            identity,
            # A gauge has no rate; the figure in its place orders rules as the slots do.
            Rule(slots, SECOND, slots),
            **limit_facts(facts),
        )

    def limits(self) -> list[SharedTable[Any]]:
        return self._counters.limits()

    def exact_limit(
        self,
        identity: str,
        *,
        rate_count: int,
        rate_period_ns: int,
        burst: int,
        now_ns: int,
        **facts: Any,
    ) -> ExactLimit:
        """As `limit`, but never exceeded: tokens are leased from the key's owner."""
        rule = checked_rule(rate_count, rate_period_ns, burst)
        return self._leased(ExactLimit, identity, rule, facts, now_ns)

    def exact_window_limit(
        self,
        identity: str,
        *,
        count: int,
        period_ns: int,
        wall_offset_ns: int | None = None,
        now_ns: int,
        **facts: Any,
    ) -> ExactWindow:
        """As `window_limit`, but never exceeded: the quota is leased from the key's owner."""
        rule = checked_quota(count, period_ns)
        limit = self._leased(ExactWindow, identity, rule, facts, now_ns)
        limit.align(wall_offset_ns)
        return limit

    def _leased(
        self, kind: type[_L], identity: str, rule: Rule, facts: dict[str, Any], now_ns: int
    ) -> _L:
        self._counters.forget_limit(identity)
        return self._desk.limit(kind, identity, rule, **limit_facts(facts), now_ns=now_ns)

    def forget_limit(self, identity: str) -> None:
        """The limit of this identity, of either kind, is no longer used."""
        self._counters.forget_limit(identity)
        self._desk.forget_limit(identity)

    # -- breakers

    def scope_key(self, *parts: bytes) -> bytes:
        """Eight bytes that name a breaker on all nodes of this cluster and tell nothing else."""
        return scope_key(self.config.cluster, parts)

    def open_breaker(
        self,
        scope: bytes,
        epoch: int,
        until_ns: int,
        cause: int,
        now_ns: int,
        reff: float = 0.0,
    ) -> None:
        """Tells all members at once. `scope`: 1 to 32 bytes, see `scope_key`; `cause`: 16 bits
        that travel as they are; `reff`: the rate learned, tokens a second. Raises ValueError."""
        self._breakers.open(scope, epoch, until_ns, cause, reff, now_ns)
        self._wake()

    def close_breaker(self, scope: bytes, epoch: int, now_ns: int, reff: float = 0.0) -> None:
        """`epoch` is the new one, above that of the opening. Raises ValueError."""
        self._breakers.close(scope, epoch, reff, now_ns)
        self._wake()

    def claim_trial(self, scope: bytes, epoch: int, until_ns: int, now_ns: int) -> None:
        """This node sends the trial of this epoch; the claim dies at `until_ns`."""
        self._breakers.claim(scope, epoch, until_ns, now_ns)
        self._wake()

    def trial_at_ns(self, scope: bytes, epoch: int, until_ns: int, now_ns: int) -> int:
        """When this node may send the trial, unless it hears of a claim before: after the pause,
        in rendezvous order of the members that noted demand for the scope (its first 8 bytes)
        lately. A claim that is known postpones it. To be asked again when the time is near."""
        delay_ns = self._surroundings.delay_ns
        group = scope[:GROUP_BYTES]
        return self._breakers.trial_at_ns(scope, group, epoch, until_ns, delay_ns, now_ns)

    def release_trial(self, scope: bytes, epoch: int, now_ns: int) -> None:
        """The trial that this node claimed will have no outcome: another member may send one."""
        self._breakers.release(scope, epoch, now_ns)
        self._wake()

    def note_demand(self, scope: bytes, now_ns: int) -> None:
        """Requests for this scope (8 bytes) came since the last call, a second ago or so."""
        self._demands.note(scope, now_ns)

    def trip(self, scope: bytes, tripped: bool, now_ns: int) -> None:
        """This node finds what is behind the scope (8 bytes) failing, or well again. TripMajority
        tells when it is one of a majority of those with demand."""
        self._demands.trip(scope, tripped, now_ns)
        self._wake()

    def breaker_state(self, scope: bytes) -> tuple[int, bool, int, float] | None:
        """(epoch, open, until_ns, reff) as the mesh knows it, or None."""
        return self._breakers.state(scope)

    # -- snapshots: the driver moves these bytes over TCP

    def snapshot_target(self) -> Address | None:
        """While joining: a member to ask for a snapshot, one at a time and each once."""
        return self._snapshots.target() if self._counters.joining else None

    def snapshot_failed(self) -> None:
        """The target did not answer to the end."""
        self._snapshots.failed()

    def snapshot_request(self) -> bytes:
        return self._snapshots.request()

    def snapshot_answer(self, data: bytes, source: Address, now_ns: int) -> Iterator[bytes]:
        """Records that answer a request; none if it is not good (counted in `drops`)."""
        try:
            opened, payload = self._receiver.open(data, source, DATAGRAM_BYTES_MAX)
            head = payload.head
            self._sessions.admit(head.node, head.boot, opened.seq, now_ns)
            return self._snapshots.answer(payload, now_ns)
        except DropError as error:
            self.drops[error.reason.value] += 1
            return iter(())

    def snapshot_received(self, data: bytes, source: Address, now_ns: int) -> bool:
        """One record of an answer; True if no more are wanted (it was the last, or it is bad)."""
        try:
            opened, payload = self._receiver.open(data, source, RECORD_BYTES_MAX)
            last = self._snapshots.receive(payload.head, opened, payload, now_ns)
        except DropError as error:
            self.drops[error.reason.value] += 1
            self._snapshots.failed()
            return True
        if last and self._counters.joining:
            self._joined(False, told=True, now_ns=now_ns)
        return last

    # -- within

    def _seal(self, frames: Sequence[bytes]) -> bytes:
        self._seq += 1
        me = self._members.me
        head = pack_head(Head(self._cluster, me.node, me.boot))
        return self._keyring.seal(join(head, frames), self._seq)

    def _heartbeat(self, now_ns: int) -> None:
        if not self._members.live:
            return
        self._outbox.send_all(pack((Kind.HEARTBEAT, self._breakers.digest(now_ns))))
        self._outbox.send_all(self._desk.view_frame())
        times = self._members.retransmits
        updates = self._members.broadcasts.take(FRAMES_BYTES_MAX // 2, times)
        if updates:
            self._outbox.send_all(join_items(Kind.MEMBERS, [b"\x00", *updates]))

    def _gone(self, node: bytes) -> None:
        self._sessions.drop(node)
        self._handshake.forget(node)
        self._counters.member_gone(node, left=True)
        self._desk.member_gone(node, self._now_ns)

    def _joined(self, alone: bool, *, told: bool, now_ns: int) -> None:
        """The time of presuming is over; `told`: by a whole snapshot."""
        self._slow_wake_ns = None
        self._counters.joined(alone=alone, told=told, now_ns=now_ns)
        self._desk.joined(now_ns)

    def _after_work(self) -> None:
        """Takes up a change of membership."""
        if self._version == self._members.version:
            return
        self._version = self._members.version
        for member in self._members.take_departed():
            self._counters.member_gone(member.node, member.left)
            self._desk.member_gone(member.node, self._now_ns)
            self._demands.member_gone(member.node, self._now_ns)
            self._breakers.member_gone(member.node, self._now_ns)
        self._retune()
        self._desk.members_changed(self._now_ns)

    def _retune(self) -> None:
        members = self._members
        surroundings = self._surroundings = self._relays.counted(
            members.live_count, members.known_count, self._delay.p99_ns(), members.dead()
        )
        self._reach.look(self._now_ns)
        self._counters.retune(self._reach.counted(surroundings))
        self._desk.retune(surroundings, self._now_ns)

    def _wake(self) -> None:
        """Local work may have set a timer."""
        self._slow_wake_ns = None
        self._poke()

    def _poke(self) -> None:
        if self.on_wake is not None:
            self.on_wake()

    # -- for the operator

    def stats(self, now_ns: int) -> dict[str, Any]:
        """Figures for metrics and the admin interface; times in nanoseconds."""
        return {
            "members": members_figures(self._members, self._sessions, self._outbox, now_ns),
            "live": self._members.live_count,
            "known": self._members.known_count,
            "refused": self._handshake.refused,
            "unreached_by": len(self._reach.unreached_by),
            "joining": self.joining,
            "datagrams_received": self.datagrams_received,
            "bytes_received": self.bytes_received,
            "datagrams_sent": self._outbox.datagrams_sent,
            "bytes_sent": self._outbox.bytes_sent,
            "drops": {reason: count for reason, count in self.drops.items() if count},
            **self._counters.figures(),
            "frames_relayed": self._relays.forwarded,
            "breakers": len(self._breakers),
            "awareness": self._prober.awareness,
            "delay_ns": self._surroundings.delay_ns,
            "lag_ns": self._delay.lag_ns,
            "leases_held_back": self._desk.agreed_ns is None,  # new owners wait for all to agree
            "asks_sent": self._desk.asks_sent,
            "grants_sent": self._desk.grants_sent,
            "limits": {
                **{limit.identity: limit.stats() for limit in self._counters.limits()},
                **{limit.identity: limit.stats() for limit in self._desk.limits()},
            },
        }
