"""Asking members whether they are there: SWIM's probes with Lifeguard's care for our own health.

One member at a time in shuffled rounds (SWIM section 4.3): a ping, after the timeout a ping by way
of three others, after another timeout it is a suspect. An intermediary that gets no answer says so
(NACK); where even the intermediaries are silent the fault is probably here, and our timeouts grow
(Lifeguard section IV-A, local health multiplier). Direct answers also measure the round trip.
"""

from __future__ import annotations

from peers.core.chance import Chance, sample, shuffled
from peers.core.config import Config
from peers.core.delay import DelayMeter
from peers.core.events import Address
from peers.core.members import Member, Members
from peers.core.outbox import Outbox
from peers.core.wire import U32, Kind, pack

__all__ = ["Prober"]

# Asked of us at once on behalf of others: 31 members, each with one probe per interval under way
# for at most three, so 93; a peer that asks for more is not served.
_RELAYS_MAX = 128
# Probes of one member that its loss is averaged over: 13 s of them among 3 members, 45 s among 8.
_LOSS_OVER = 32


class _Probe:
    __slots__ = ("asked", "indirect", "nacks", "started_ns", "target")

    def __init__(self, target: bytes, now_ns: int) -> None:
        self.target = target
        self.started_ns = now_ns
        self.indirect = False  # the direct ping timed out
        self.asked = 0  # intermediaries; none where there are only two members
        self.nacks = 0


class _Relay:
    __slots__ = ("address", "deadline_ns", "probe")

    def __init__(self, address: Address, probe: int, deadline_ns: int) -> None:
        self.address = address
        self.probe = probe
        self.deadline_ns = deadline_ns


class Prober:
    """Probes under way, those run for others, and the round of targets."""

    def __init__(
        self,
        config: Config,
        members: Members,
        delay: DelayMeter,
        outbox: Outbox,
        chance: Chance,
        now_ns: int,
    ) -> None:
        self._config = config
        self._members = members
        self._delay = delay
        self._outbox = outbox
        self._chance = chance
        self._probes: dict[int, _Probe] = {}
        self._relays: dict[int, _Relay] = {}
        self._round: list[bytes] = []
        self._looks: dict[bytes, int] = {}  # of members that are dead: the number last sent
        self._number = 0
        self._next_ns = now_ns
        self.awareness = 0

    @property
    def timeout_ns(self) -> int:
        return self._config.probe_timeout_ns * (1 + self.awareness)

    def tick(self, now_ns: int) -> None:
        for number in list(self._probes):
            self._check(number, now_ns)
        for number, relay in list(self._relays.items()):
            if now_ns >= relay.deadline_ns:
                del self._relays[number]
                self._outbox.send(relay.address, pack((Kind.NACK, relay.probe)))
        if now_ns >= self._next_ns:
            self._next_ns = now_ns + self._config.probe_interval_ns
            self._start(now_ns)

    def next_wake_ns(self) -> int:
        timeout_ns = self.timeout_ns
        wake_ns = self._next_ns
        for probe in self._probes.values():
            wake_ns = min(wake_ns, probe.started_ns + timeout_ns * (2 if probe.indirect else 1))
        for relay in self._relays.values():
            wake_ns = min(wake_ns, relay.deadline_ns)
        return wake_ns

    def ping_received(self, probe: int, target: bytes, source: Address) -> None:
        """Answers, if it is this node that is meant and not one that had the address before."""
        if target == self._members.me.node:
            self._outbox.send(source, pack((Kind.ACK, probe)))

    def ping_request_received(
        self, probe: int, target: bytes, source: Address, now_ns: int
    ) -> None:
        member = self._members.get(target)
        if member is None or len(self._relays) >= _RELAYS_MAX:
            return
        number = self._count()
        # Four fifths of the timeout, so that a NACK comes before the asker gives up.
        deadline_ns = now_ns + self._config.probe_timeout_ns * 4 // 5
        self._relays[number] = _Relay(source, probe, deadline_ns)
        self._outbox.send(member.address, pack((Kind.PING, number, target)))

    def look(self, member: Member) -> None:
        """Asks a member that is held for dead at its address; nothing follows if it is silent."""
        number = self._looks[member.node] = self._count()
        self._outbox.send(member.address, pack((Kind.PING, number, member.node)))

    def forget(self, node: bytes) -> None:
        self._looks.pop(node, None)

    def ack_received(self, number: int, sender: bytes, now_ns: int) -> None:
        relay = self._relays.pop(number, None)
        if relay is not None:
            self._outbox.send(relay.address, pack((Kind.ACK, relay.probe)))
            return
        probe = self._probes.pop(number, None)
        if probe is None:
            looked_at = self._members.get(sender)
            if looked_at is not None and self._looks.get(sender) == number:
                looked_at.answered()
            return
        self.awareness = max(0, self.awareness - 1)
        member = self._members.get(probe.target)
        if member is not None:
            member.answered()
        if sender == probe.target:
            rtt_ns = now_ns - probe.started_ns
            self._delay.add_round_trip(rtt_ns)
            if member is not None:
                member.rtt_ns = rtt_ns
                if not probe.indirect:
                    member.unanswered -= member.unanswered / _LOSS_OVER

    def nack_received(self, number: int) -> None:
        probe = self._probes.get(number)
        if probe is not None and probe.nacks < probe.asked:
            probe.nacks += 1

    def _start(self, now_ns: int) -> None:
        members = self._members
        while self._round:
            member = members.get(self._round.pop())
            if member is not None and member.live:
                break
        else:
            self._round = [member.node for member in shuffled(self._chance, members.live)]
            if not self._round:
                return
            member = members.get(self._round.pop())
            if member is None:
                return
        number = self._count()
        self._probes[number] = _Probe(member.node, now_ns)
        self._outbox.send(member.address, pack((Kind.PING, number, member.node)))

    def _check(self, number: int, now_ns: int) -> None:
        probe = self._probes[number]
        waited_ns = now_ns - probe.started_ns
        timeout_ns = self.timeout_ns
        if waited_ns >= 2 * timeout_ns:
            del self._probes[number]
            missing = probe.asked - probe.nacks if probe.asked else 1
            self.awareness = min(self._config.awareness_max, self.awareness + missing)
            self._members.suspect(probe.target, now_ns)
        elif waited_ns >= timeout_ns and not probe.indirect:
            probe.indirect = True
            member = self._members.get(probe.target)
            if member is not None:
                member.unanswered += (1.0 - member.unanswered) / _LOSS_OVER
            others = [m for m in self._members.live if m.node != probe.target]
            helpers = sample(self._chance, others, self._config.indirect_probes)
            probe.asked = len(helpers)
            for helper in helpers:
                frame = pack((Kind.PING_REQUEST, number, probe.target))
                self._outbox.send(helper.address, frame)

    def _count(self) -> int:
        self._number = (self._number + 1) & U32
        return self._number
