"""Pauses and breakers that the mesh shares: a register per scope, and its spreading.

What is known of a scope is a point (epoch, state), ordered with OPEN over CLOSED; the greater one
wins, so any order and any number of copies do. Within an epoch each opening event has an id and
keeps the earliest end ever heard for it (each hop recomputes the remaining time and cannot deduct
the transit, so echoes would inflate it otherwise); the end in force is the latest over the ids.

An event goes at once to all, each first receiver forwards it at once to two members and repeats it
to two for a few rounds; a digest in the heartbeats finds what was lost all the same. There are no
acknowledgements: in simulation they were slower under loss than this repair.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence

from peers.core.chance import Chance, sample
from peers.core.config import MS, SECOND, Config
from peers.core.demand import Demands
from peers.core.events import BreakerClosed, BreakerOpened, Event, TrialClaimed
from peers.core.members import Member, Members
from peers.core.outbox import Outbox
from peers.core.wire import (
    FRAMES_BYTES_MAX,
    REFF_1000_MAX,
    SCOPE_BYTES_MAX,
    U16,
    U32,
    U63,
    Kind,
    join_items,
    pack,
)

__all__ = ["Breakers", "scope_key"]

CLOSED = 0
OPEN = 1
_FANOUT = 2
# Opening events of one epoch: one from each member, as all may see their own 429 at once.
_IDS_MAX = 64
# An unanswered difference of digests is asked about less and less, from each heartbeat to this.
_PULL_MAX_NS = 5 * SECOND
# One datagram of events answers a pull, 40 of about 28 bytes: the newest, and the next of all that
# the digest covers, so that who asks often enough has heard every one.
_PULL_NEWEST = 10
_PULL_NEXT = 30
# A rank's turn to send the trial: a claim's way there and back, and 10 ms to act.
_TRIAL_GRACE_NS = 10 * MS
# A claim that has ended still orders those behind it, and a late copy of it must not revive it.
_CLAIM_MEMORY_NS = 10 * SECOND
_MS_MAX = U32
# An array of up to 65,535 items, of which the first is the kind.
_FRAME_HEAD_BYTES = 4


class _Register:
    __slots__ = ("cause", "changed_ns", "epoch", "ids", "reff", "state")

    def __init__(self, epoch: int, state: int) -> None:
        self.epoch = epoch
        self.state = state
        self.ids: dict[tuple[bytes, int], int] = {}  # (origin, number): until_ns
        self.cause = 0
        self.reff = 0.0
        self.changed_ns = 0

    @property
    def until_ns(self) -> int:
        return max(self.ids.values(), default=0)

    @property
    def latest(self) -> tuple[bytes, int]:
        """The id of the event that decides `until_ns`."""
        return max(self.ids, key=lambda event_id: (self.ids[event_id], event_id))


class _Claim:
    __slots__ = ("epoch", "number", "origin", "until_ns")

    def __init__(self, epoch: int, until_ns: int, origin: bytes, number: int) -> None:
        self.epoch = epoch
        self.until_ns = until_ns
        self.origin = origin
        self.number = number


class _Repeat:
    __slots__ = ("claim", "left", "next_ns", "scope")

    def __init__(self, scope: bytes, claim: bool, left: int, next_ns: int) -> None:
        self.scope = scope
        self.claim = claim
        self.left = left
        self.next_ns = next_ns


class Breakers:
    """All registers of a node. `events` is the node's list."""

    def __init__(
        self,
        config: Config,
        members: Members,
        outbox: Outbox,
        demands: Demands,
        chance: Chance,
        events: list[Event],
        boot_ms: int,
        now_ns: int,
    ) -> None:
        self._config = config
        self._members = members
        self._outbox = outbox
        self._demands = demands
        self._chance = chance
        self._events = events
        self._registers: dict[bytes, _Register] = {}
        self._claims: dict[bytes, _Claim] = {}
        self._repeats: dict[tuple[bytes, bool], _Repeat] = {}
        self._pulls: dict[bytes, tuple[int, int]] = {}  # node: (next_ns, pause_ns)
        self._answered: dict[bytes, bytes] = {}  # node: the scope up to which its pulls have come
        # An event's number must not come again after a restart: 65,536 a millisecond.
        self._number = (boot_ms << 16) & U63
        self._expire_ns = now_ns + SECOND
        self._digest: int | None = None

    def __len__(self) -> int:
        return len(self._registers)

    # -- local events

    def open(
        self, scope: bytes, epoch: int, until_ns: int, cause: int, reff: float, now_ns: int
    ) -> None:
        self._number += 1
        event_id = (self._members.me.node, self._number)
        if self._merge(scope, epoch, OPEN, cause, until_ns, event_id, reff, now_ns):
            self._tell_all(scope, False, now_ns)

    def close(self, scope: bytes, epoch: int, reff: float, now_ns: int) -> None:
        self._number += 1
        event_id = (self._members.me.node, self._number)
        if self._merge(scope, epoch, CLOSED, 0, now_ns, event_id, reff, now_ns):
            self._tell_all(scope, False, now_ns)

    def claim(self, scope: bytes, epoch: int, until_ns: int, now_ns: int) -> None:
        _check_event(scope, epoch, 0)
        self._number += 1
        self._claims[scope] = _Claim(epoch, until_ns, self._members.me.node, self._number)
        self._tell_all(scope, True, now_ns)

    def release(self, scope: bytes, epoch: int, now_ns: int) -> None:
        """The trial that this node claimed says nothing (its client left): others may try."""
        held = self._claims.get(scope)
        if held is not None and held.epoch == epoch and held.origin == self._members.me.node:
            self.claim(scope, epoch, now_ns, now_ns)

    def trial_at_ns(
        self, scope: bytes, group: bytes, epoch: int, until_ns: int, delay_ns: int, now_ns: int
    ) -> int:
        """Rendezvous order: each member ranks those that have demand for `group` by one hash, so
        they agree without a word. Those who have none come after them. Behind a claim of another
        the order holds anew when it ends, and the claimer itself comes first."""
        mine = self._members.me.node
        wanting = self._demands.wanting(group, now_ns)
        own = (mine in wanting, _weight(scope, epoch, mine))
        rank = sum(
            (member.node in wanting, _weight(scope, epoch, member.node)) > own
            for member in self._members.live
        )
        step_ns = 2 * delay_ns + _TRIAL_GRACE_NS
        claim = self._claims.get(scope)
        if claim is not None and claim.epoch == epoch and claim.origin != mine:
            return max(until_ns, claim.until_ns) + (rank + 1) * step_ns
        return until_ns + rank * step_ns

    def member_gone(self, node: bytes, now_ns: int) -> None:
        """Who is gone sends no trial: its claims end."""
        for scope, claim in self._claims.items():
            if claim.origin == node and claim.until_ns > now_ns:
                claim.until_ns = now_ns
                self._events.append(TrialClaimed(scope, claim.epoch, now_ns))

    def state(self, scope: bytes) -> tuple[int, bool, int, float] | None:
        """(epoch, open, until_ns, reff) as the mesh knows it, or None."""
        register = self._registers.get(scope)
        if register is None:
            return None
        return register.epoch, register.state == OPEN, register.until_ns, register.reff

    # -- from peers

    def events_heard(
        self,
        events: Sequence[tuple[bytes, int, int, int, int, bytes, int, int]],
        now_ns: int,
        *,
        forward: bool = True,
    ) -> None:
        """Joins events in. Those of a snapshot are not forwarded: all but the joiner know them."""
        for scope, epoch, state, cause, remaining_ms, origin, number, reff_1000 in events:
            until_ns = now_ns + remaining_ms * MS
            reff = reff_1000 / 1000
            event_id = (origin, number)
            if not self._merge(scope, epoch, state, cause, until_ns, event_id, reff, now_ns):
                continue
            register = self._registers[scope]
            if state == OPEN:
                name = self._members.name_of(origin)
                self._events.append(
                    BreakerOpened(scope, epoch, register.until_ns, cause, name, register.reff)
                )
            else:
                self._events.append(BreakerClosed(scope, epoch, reff))
            if forward:
                self._tell_some(scope, False, now_ns)
            self._pulls.clear()  # asking brings something: no reason to ask less often

    def claim_heard(self, claim: tuple[bytes, int, int, bytes, int], now_ns: int) -> None:
        scope, epoch, remaining_ms, origin, number = claim
        held = self._claims.get(scope)
        if held is not None and (held.epoch, held.number) >= (epoch, number):
            return
        if remaining_ms == 0 and (held is None or held.origin != origin):
            return  # given back, but another one has claimed it since
        if held is None and len(self._claims) >= self._config.breakers_max:
            return
        until_ns = now_ns + remaining_ms * MS
        self._claims[scope] = _Claim(epoch, until_ns, origin, number)
        self._events.append(TrialClaimed(scope, epoch, until_ns))
        self._tell_some(scope, True, now_ns)

    def digest_heard(self, node: bytes, digest: int, now_ns: int) -> None:
        """A heartbeat's digest: if it differs from ours, the peer may know what we do not."""
        if digest == self.digest(now_ns):
            self._pulls.pop(node, None)
            return
        next_ns, pause_ns = self._pulls.get(node, (now_ns, self._config.heartbeat_interval_ns))
        member = self._members.get(node)
        if now_ns >= next_ns and member is not None:
            self._pulls[node] = (now_ns + pause_ns, min(_PULL_MAX_NS, 2 * pause_ns))
            self._outbox.send(member.address, pack((Kind.BREAKER_PULL,)))

    def pull_heard(self, member: Member, now_ns: int) -> None:
        """Answers with the newest, and goes on where this member's last answer ended."""
        known = self._current(now_ns)
        newest = sorted(known, key=self._changed_ns, reverse=True)[:_PULL_NEWEST]
        at = bisect_right(known, self._answered.get(member.node, b""))
        following = known[at : at + _PULL_NEXT]
        self._answered[member.node] = following[-1] if at + _PULL_NEXT < len(known) else b""
        scopes = dict.fromkeys((*newest, *following))
        for frame in self._frames(list(scopes), FRAMES_BYTES_MAX, now_ns):
            self._outbox.send(member.address, frame)

    def snapshot(self, now_ns: int, bytes_max: int) -> Iterator[bytes]:
        """All that the digest covers in frames of at most `bytes_max`, for a joiner: it must know
        of a pause before its first request, however long ago the pause began."""
        yield from self._frames(self._current(now_ns), bytes_max, now_ns)

    def _frames(self, scopes: Sequence[bytes], bytes_max: int, now_ns: int) -> Iterator[bytes]:
        items: list[bytes] = []
        size = _FRAME_HEAD_BYTES
        for scope in scopes:
            item = self._pack(scope, now_ns)
            if size + len(item) > bytes_max:
                yield join_items(Kind.BREAKERS, items)
                items, size = [], _FRAME_HEAD_BYTES
            items.append(item)
            size += len(item)
        if items:
            yield join_items(Kind.BREAKERS, items)

    def _current(self, now_ns: int) -> list[bytes]:
        """The scopes that members should agree on, in order: pauses in force, and what ended or
        was closed within half of the memory. By the end and not by the change: all nodes know a
        pause's end alike, and each heard of it at a time of its own."""
        young_ns = now_ns - self._config.breaker_memory_ns // 2
        registers = self._registers
        return sorted(scope for scope in registers if registers[scope].until_ns > young_ns)

    def _changed_ns(self, scope: bytes) -> int:
        return self._registers[scope].changed_ns

    # -- time

    def digest(self, now_ns: int) -> int:
        """A hash over what is in force or ended lately; equal where two nodes know the same."""
        if self._digest is None:
            known = hashlib.blake2b(digest_size=8)
            for scope in self._current(now_ns):
                register = self._registers[scope]
                rate = _reff_1000(register.reff)
                known.update(pack((scope, register.epoch, register.state, rate)))
            self._digest = int.from_bytes(known.digest(), "big")
        return self._digest

    def tick(self, now_ns: int) -> None:
        for key, repeat in list(self._repeats.items()):
            if now_ns >= repeat.next_ns:
                self._send(sample(self._chance, self._members.live, _FANOUT), *key, now_ns)
                repeat.left -= 1
                repeat.next_ns = now_ns + self._config.breaker_repeat_ns
                if repeat.left <= 0:
                    del self._repeats[key]
        if now_ns >= self._expire_ns:
            self._expire_ns = now_ns + SECOND
            self._digest = None
            self._expire(now_ns)

    def next_wake_ns(self) -> int:
        return min([self._expire_ns, *(repeat.next_ns for repeat in self._repeats.values())])

    def _expire(self, now_ns: int) -> None:
        old_ns = now_ns - self._config.breaker_memory_ns
        for scope, register in list(self._registers.items()):
            if register.changed_ns <= old_ns and register.until_ns <= old_ns:
                del self._registers[scope]
        for scope, claim in list(self._claims.items()):
            known = self._registers.get(scope)
            over = known is not None and known.epoch != claim.epoch
            if over or claim.until_ns <= now_ns - _CLAIM_MEMORY_NS:
                del self._claims[scope]
        self._pulls = {
            node: pull for node, pull in self._pulls.items() if self._members.get(node) is not None
        }
        self._answered = {
            node: scope
            for node, scope in self._answered.items()
            if self._members.get(node) is not None
        }

    def _merge(
        self,
        scope: bytes,
        epoch: int,
        state: int,
        cause: int,
        until_ns: int,
        event_id: tuple[bytes, int],
        reff: float,
        now_ns: int,
    ) -> bool:
        """Joins one event in; True if it is a new one that changed what is in force."""
        _check_event(scope, epoch, cause)
        register = self._registers.get(scope)
        if register is None:
            if len(self._registers) >= self._config.breakers_max:
                self._make_room()
            register = self._registers[scope] = _Register(epoch, state)
        elif (epoch, state) < (register.epoch, register.state):
            return False
        elif (epoch, state) > (register.epoch, register.state):
            register.epoch, register.state = epoch, state
            register.ids = {}
            register.reff = 0.0
        elif event_id in register.ids:
            register.ids[event_id] = min(until_ns, register.ids[event_id])
            return self._slower(register, reff)
        elif len(register.ids) >= _IDS_MAX or state == CLOSED:
            return False
        longer = until_ns > register.until_ns or not register.ids
        register.ids[event_id] = until_ns
        longer = self._slower(register, reff) or longer
        if longer:
            register.cause = cause
            register.changed_ns = now_ns
            self._digest = None
        return longer

    def _slower(self, register: _Register, reff: float) -> bool:
        """Takes the smallest rate that anybody learned in this epoch; True if that is news."""
        if not reff or (register.reff and reff >= register.reff):
            return False
        register.reff = reff
        self._digest = None
        return True

    def _make_room(self) -> None:
        """What ended first goes, so that a long pause outlives many short ones."""
        oldest = min(self._registers.items(), key=_by_end)[0]
        del self._registers[oldest]

    def _tell_all(self, scope: bytes, claim: bool, now_ns: int) -> None:
        self._outbox.send_all(self._frame(scope, claim, now_ns))
        self._repeat(scope, claim, now_ns)

    def _tell_some(self, scope: bytes, claim: bool, now_ns: int) -> None:
        self._send(sample(self._chance, self._members.live, _FANOUT), scope, claim, now_ns)
        self._repeat(scope, claim, now_ns)

    def _repeat(self, scope: bytes, claim: bool, now_ns: int) -> None:
        rounds = math.ceil(math.log2(self._members.live_count + 1)) + 2
        next_ns = now_ns + self._config.breaker_repeat_ns
        self._repeats[scope, claim] = _Repeat(scope, claim, rounds, next_ns)

    def _send(self, targets: Sequence[Member], scope: bytes, claim: bool, now_ns: int) -> None:
        known = self._claims if claim else self._registers
        if scope in known:
            frame = self._frame(scope, claim, now_ns)
            for member in targets:
                self._outbox.send(member.address, frame)

    def _frame(self, scope: bytes, claim: bool, now_ns: int) -> bytes:
        if not claim:
            return join_items(Kind.BREAKERS, [self._pack(scope, now_ns)])
        held = self._claims[scope]
        remaining_ms = _remaining_ms(held.until_ns, now_ns)
        return pack((Kind.CLAIM, scope, held.epoch, remaining_ms, held.origin, held.number))

    def _pack(self, scope: bytes, now_ns: int) -> bytes:
        register = self._registers[scope]
        origin, number = register.latest
        remaining_ms = _remaining_ms(register.until_ns, now_ns)
        if register.state == CLOSED:
            remaining_ms = 0
        return pack(
            (
                scope,
                register.epoch,
                register.state,
                register.cause,
                remaining_ms,
                origin,
                number,
                _reff_1000(register.reff),
            )
        )


def scope_key(cluster: str, parts: Sequence[bytes]) -> bytes:
    """What a scope is called on all nodes of a cluster."""
    digest = hashlib.blake2b(digest_size=8, key=cluster.encode(), person=b"egressd scope")
    for part in parts:
        digest.update(len(part).to_bytes(4, "big") + part)
    return digest.digest()


def _check_event(scope: bytes, epoch: int, cause: int) -> None:
    if not 1 <= len(scope) <= SCOPE_BYTES_MAX:
        raise ValueError(f"scope: 1 to {SCOPE_BYTES_MAX} bytes, not {len(scope)}")
    if not 0 <= epoch <= U32 or not 0 <= cause <= U16:
        raise ValueError(f"epoch {epoch} or cause {cause} is out of range")


def _reff_1000(reff: float) -> int:
    return min(REFF_1000_MAX, int(reff * 1000 + 0.5))


def _remaining_ms(until_ns: int, now_ns: int) -> int:
    # Rounded up: a pause may end a millisecond late, never early.
    return min(_MS_MAX, max(0, -((now_ns - until_ns) // MS)))


def _weight(scope: bytes, epoch: int, node: bytes) -> bytes:
    text = scope + epoch.to_bytes(4, "big") + node
    return hashlib.blake2b(text, digest_size=8, person=b"egressd trial").digest()


def _by_end(item: tuple[bytes, _Register]) -> int:
    return item[1].until_ns
