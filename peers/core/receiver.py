"""From a datagram to the part that it is for: seal, cluster, session, then frame by frame.

Nothing of a datagram has an effect before its seal held, its shape was checked and its sender's
life was found known; the one exception is the handshake of strangers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from peers.core.breakers import Breakers
from peers.core.config import is_loopback
from peers.core.demand import Demands
from peers.core.desk import LeaseDesk
from peers.core.errors import Drop, DropError
from peers.core.events import Address
from peers.core.gossip import Counters
from peers.core.handshake import Handshake, members_frames
from peers.core.keyring import SALT_AT, SEQ_AT, Keyring, Opened
from peers.core.members import Member, Members, MemberState, Update
from peers.core.outbox import Outbox
from peers.core.probe import Prober
from peers.core.relays import Relays
from peers.core.sessions import ReplayWindow, Sessions
from peers.core.wire import ENTRY_KINDS, Frame, Kind, Payload, unpack

__all__ = ["Receiver"]

# Hosts whose address class is remembered; sources are members and strangers with our keys.
_LOOPBACK_CACHE = 256
# Twice 32 members in their present and previous lives, as the keyring's ciphers.
_WINDOWS_MAX = 128


class _Origin(NamedTuple):
    """Where a frame came from."""

    member: Member | None
    node: bytes
    boot: int
    seq: int
    source: Address


_Handler = Callable[[Frame, _Origin, int], None]


class Receiver:
    """Dispatches frames; `label` is the cluster's on the wire."""

    def __init__(
        self,
        label: int,
        keyring: Keyring,
        members: Members,
        sessions: Sessions,
        handshake: Handshake,
        prober: Prober,
        counters: Counters,
        breakers: Breakers,
        desk: LeaseDesk,
        demands: Demands,
        relays: Relays,
        outbox: Outbox,
    ) -> None:
        self._label = label
        self._keyring = keyring
        self._members = members
        self._sessions = sessions
        self._handshake = handshake
        self._prober = prober
        self._counters = counters
        self._breakers = breakers
        self._desk = desk
        self._demands = demands
        self._relays = relays
        self._outbox = outbox
        self._loopback: dict[str, bool] = {}
        self._windows: OrderedDict[bytes, ReplayWindow] = OrderedDict()  # by the sender's salt
        self._handlers: dict[int, _Handler] = {
            Kind.CHALLENGE: self._on_challenge,
            Kind.PING: self._on_ping,
            Kind.ACK: self._on_ack,
            Kind.PING_REQUEST: self._on_ping_request,
            Kind.NACK: self._on_nack,
            Kind.MEMBERS: self._on_members,
            Kind.HEARTBEAT: self._on_heartbeat,
            Kind.COUNTERS: self._on_entries,
            Kind.WINDOWS: self._on_entries,
            Kind.HELD: self._on_entries,
            Kind.LIMITS: self._on_limits,
            Kind.ADVERTISED: self._on_advertised,
            Kind.BREAKERS: self._on_breakers,
            Kind.BREAKER_PULL: self._on_breaker_pull,
            Kind.CLAIM: self._on_claim,
            Kind.LEASE_ASK: self._on_lease_ask,
            Kind.LEASE_GRANT: self._on_lease_grant,
            Kind.QUOTA_ASK: self._on_lease_ask,
            Kind.QUOTA_GRANT: self._on_lease_grant,
            Kind.LEDGER_ASK: self._on_ledger_ask,
            Kind.LEDGER_STATE: self._on_ledger_state,
            Kind.LEDGER_LEGACY: self._on_ledger_legacy,
            Kind.LEASE_VIEW: self._on_lease_view,
            Kind.DEMANDS: self._on_demands,
            Kind.UNREACHED: self._on_unreached,
            Kind.FULL: self._on_full,
            Kind.RELAY_ASK: self._on_relay_ask,
            Kind.RELAYED: self._on_relayed,
        }

    def open(self, data: bytes, source: Address, bytes_max: int) -> tuple[Opened, Payload]:
        """What is in a datagram or record of this cluster. Raises DropError."""
        fault = self.fault(data, source, bytes_max)
        if fault is not None:
            raise DropError(fault)
        return self._unseal(data)

    def fault(self, data: bytes, source: Address, bytes_max: int) -> Drop | None:
        """What is wrong as far as can be told before the seal is tried."""
        if len(data) > bytes_max:
            return Drop.OVERSIZED
        keyring = self._keyring
        return keyring.fault(data, not keyring.sealed and self._is_loopback(source[0]))

    def _unseal(self, data: bytes) -> tuple[Opened, Payload]:
        opened = self._keyring.unseal(data)
        payload = unpack(opened.payload)
        head = payload.head
        if head.cluster != self._label:
            raise DropError(Drop.ALIEN_CLUSTER)
        me = self._members.me
        if head.node == me.node and head.boot == me.boot:
            raise DropError(Drop.OWN)
        return opened, payload

    def receive(self, data: bytes, source: Address, now_ns: int) -> bool:
        """Takes in a datagram in which `fault` found none; says whether it had entries of counters
        only, and so no news of members, breakers or leases. Raises DropError."""
        salt = data[SALT_AT]
        window = self._windows.get(salt)
        if window is not None and window.has(int.from_bytes(data[SEQ_AT], "big")):
            # A recorded datagram costs a look instead of a seal (8 us, 30 with counters in it).
            raise DropError(Drop.REPLAYED)
        opened, (head, frames) = self._unseal(data)
        try:
            session = self._sessions.admit(head.node, head.boot, opened.seq, now_ns)
        except DropError as error:
            if error.reason == Drop.REPLAYED:
                raise
            session = self._handshake.stranger(head, opened.seq, frames, source, now_ns)
        if window is not session.window:
            self._keep_window(salt, session.window)
        session.received += 1
        session.received_bytes += len(data)
        member = self._members.get(head.node)
        if member is not None and not member.live:
            self._handshake.tell_dead(head.node, source, now_ns)
        origin = _Origin(member, head.node, head.boot, opened.seq, source)
        handlers = self._handlers
        quiet = True
        for frame in frames:
            kind = frame[0]
            # A HELLO of a known life has no handler: `tell_dead` has answered what it asks.
            handler = handlers.get(kind)
            if handler is not None:
                handler(frame, origin, now_ns)
            if kind not in ENTRY_KINDS:
                quiet = False
        return quiet

    def _keep_window(self, salt: bytes, window: ReplayWindow) -> None:
        """Only of senders whose seal held: nobody else pushes one out."""
        self._windows[salt] = window
        if len(self._windows) > _WINDOWS_MAX:
            self._windows.popitem(last=False)

    def _is_loopback(self, host: str) -> bool:
        known = self._loopback.get(host)
        if known is None:
            if len(self._loopback) >= _LOOPBACK_CACHE:
                self._loopback.clear()
            known = self._loopback[host] = is_loopback(host)
        return known

    def _on_challenge(self, frame: Frame, origin: _Origin, now_ns: int) -> None:
        self._handshake.challenge_received(frame, origin.source)

    def _on_unreached(self, frame: Frame, origin: _Origin, now_ns: int) -> None:
        self._members.unreached(origin.node, (frame[1], frame[2]), now_ns)

    def _on_full(self, frame: Frame, origin: _Origin, now_ns: int) -> None:
        self._handshake.full_received(frame, origin.source)

    def _on_ping(self, frame: Frame, origin: _Origin, now_ns: int) -> None:
        self._prober.ping_received(frame[1], frame[2], origin.source)

    def _on_ack(self, frame: Frame, origin: _Origin, now_ns: int) -> None:
        self._prober.ack_received(frame[1], origin.node, now_ns)

    def _on_ping_request(self, frame: Frame, origin: _Origin, now_ns: int) -> None:
        self._prober.ping_request_received(frame[1], frame[2], origin.source, now_ns)

    def _on_nack(self, frame: Frame, origin: _Origin, now_ns: int) -> None:
        self._prober.nack_received(frame[1])

    def _on_members(self, frame: Frame, origin: _Origin, now_ns: int) -> None:
        for item in frame[2:]:
            update = Update(*item)
            if update.state == MemberState.DEAD and self._relays.lately_heard(
                update.node, update.boot, now_ns
            ):
                # What it said just now is newer than the rumour. As a suspect it hears of it,
                # and says so itself with a greater incarnation.
                update = update._replace(state=int(MemberState.SUSPECT))
            self._members.merge(update, origin.node, now_ns)
        if frame[1] and origin.member is not None:
            for reply in members_frames(self._members, want=False):
                self._outbox.send(origin.member.address, reply)

    def _on_heartbeat(self, frame: Frame, origin: _Origin, now_ns: int) -> None:
        self._breakers.digest_heard(origin.node, frame[1], now_ns)
        if origin.node in self._relays.wanted:
            self._relays.forward(*origin[1:4], Kind.HEARTBEAT, (), now_ns)

    def _on_entries(self, frame: Frame, origin: _Origin, now_ns: int) -> None:
        _, node, boot, seq, _ = origin
        self._counters.entries_heard(frame[0], node, boot, seq, frame[1:], now_ns)
        if node in self._relays.wanted:
            self._relays.forward(node, boot, seq, frame[0], frame[1:], now_ns)

    def _on_relay_ask(self, frame: Frame, origin: _Origin, now_ns: int) -> None:
        if origin.member is not None:
            self._relays.asked(origin.node, frame[1:], now_ns)

    def _on_relayed(self, frame: Frame, origin: _Origin, now_ns: int) -> None:
        _, node, boot, seq, kind, *entries = frame
        self._relays.relayed_heard(node, boot, seq, kind, entries, now_ns)

    def _on_limits(self, frame: Frame, origin: _Origin, now_ns: int) -> None:
        self._counters.rules_heard(origin.node, frame[1:])
        self._desk.rules_heard(origin.node, frame[1:], now_ns)

    def _on_advertised(self, frame: Frame, origin: _Origin, now_ns: int) -> None:
        self._counters.advertised_heard(frame[1:], now_ns)
        self._desk.advertised_heard(frame[1:], now_ns)

    def _on_breakers(self, frame: Frame, origin: _Origin, now_ns: int) -> None:
        self._breakers.events_heard(frame[1:], now_ns)

    def _on_breaker_pull(self, frame: Frame, origin: _Origin, now_ns: int) -> None:
        if origin.member is not None:
            self._breakers.pull_heard(origin.member, now_ns)

    def _on_claim(self, frame: Frame, origin: _Origin, now_ns: int) -> None:
        self._breakers.claim_heard((frame[1], frame[2], frame[3], frame[4], frame[5]), now_ns)

    def _on_lease_ask(self, frame: Frame, origin: _Origin, now_ns: int) -> None:
        kind, *asks = frame
        self._desk.asks_heard(kind, origin.node, origin.boot, origin.seq, asks, now_ns)

    def _on_lease_grant(self, frame: Frame, origin: _Origin, now_ns: int) -> None:
        kind, *grants = frame
        self._desk.grants_heard(kind, origin.node, origin.boot, grants, now_ns)

    def _on_ledger_ask(self, frame: Frame, origin: _Origin, now_ns: int) -> None:
        self._desk.ledgers_asked(origin.node, frame[1:], now_ns)

    def _on_ledger_state(self, frame: Frame, origin: _Origin, now_ns: int) -> None:
        self._desk.ledgers_told(origin.node, frame[1:], now_ns)

    def _on_ledger_legacy(self, frame: Frame, origin: _Origin, now_ns: int) -> None:
        self._desk.legacy_heard(origin.node, origin.boot, frame[1:], now_ns)

    def _on_lease_view(self, frame: Frame, origin: _Origin, now_ns: int) -> None:
        self._desk.view_heard(origin.node, origin.boot, frame[1], now_ns)

    def _on_demands(self, frame: Frame, origin: _Origin, now_ns: int) -> None:
        self._demands.heard(origin.node, origin.boot, origin.seq, frame[1:], now_ns)
