"""Every knob of a node, with its formula and its cost beside it.

Durations are integer nanoseconds. The defaults suit one data centre; all were chosen for up to 32
members, each of which talks to every other.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from peers.core.errors import ConfigError
from peers.core.events import Address

__all__ = ["MS", "SECOND", "Config", "is_loopback", "is_numeric"]

MS = 1_000_000
SECOND = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Config:
    """What one node is told; immutable, checked at once. Raises ConfigError.

    `name` is unique in the cluster (1 to 64 bytes of UTF-8). `cluster` keys the names of counters
    on the wire and is no secret. `advertise` is the address that others send to, never a virtual
    one. `keys` are 32 bytes each: the first seals, all open, so that rotation needs no pause; none
    only where `bind` is a loopback address. `kin` are the addresses of processes that start and end
    with this one (workers of one host): they do not show that it reaches anybody.
    """

    name: str
    cluster: str
    bind: Address
    advertise: Address
    join: tuple[Address, ...] = ()
    keys: tuple[bytes, ...] = ()
    kin: tuple[Address, ...] = ()

    # Full mesh: a contended key costs each member N-1 datagrams per cadence, 31 x 40/s at 32.
    members_max: int = 32

    # A heartbeat is one datagram of about 90 bytes to each member: 5/s x 31 x 90 B = 14 KB/s. Five
    # are missed in a second, so a lost pause is pulled within 200 ms of the next one that arrives.
    heartbeat_interval_ns: int = 200 * MS

    # One member is probed per interval, in shuffled rounds: everybody is probed by somebody every
    # interval, and by each within (N-1) intervals. The timeout is three times an 80 ms round trip;
    # indirect probes get as long again. A member that was killed is suspected after about
    # interval + 2 x timeout = 0.7 s.
    probe_interval_ns: int = 200 * MS
    probe_timeout_ns: int = 250 * MS
    indirect_probes: int = 3
    # Lifeguard (Dadgar, Phillips, Currey 2017): own trouble lengthens our timeouts up to ninefold.
    awareness_max: int = 8
    # dead after suspicion_mult x max(1, log10 N) x probe_interval, at first suspicion_max_mult
    # times as long and shortened by each confirmation: 1.0 s up to 10 members, 1.5 s at 32. From
    # kill to dead: about 2 s. A node that stalls longer is thought dead, refutes it, and is back.
    suspicion_mult: int = 5
    suspicion_max_mult: int = 6
    # An update rides on retransmit_mult x ceil(log10(N+1)) datagrams: 4 up to 9 members, 8 at 32.
    retransmit_mult: int = 4
    # Anti-entropy: the list of members to one random member, 2 KB at 32, repairs lost updates.
    members_sync_interval_ns: int = 2 * SECOND
    # Dead members are remembered so long: they count as "known" (a partition must show), they are
    # tried again, and old datagrams of theirs stay refused.
    forget_dead_ns: int = 600 * SECOND
    # Join addresses that do not answer are tried for ever: 31 datagrams of 100 bytes at most,
    # the second one after join_interval, down to once in join_backoff_max. Dead members too: a
    # partition that ends is noticed within that time.
    join_interval_ns: int = 100 * MS
    join_backoff_max_ns: int = 2 * SECOND
    # A joiner opens no fresh burst before it has news, or this long has passed without any.
    joining_ns: int = 500 * MS

    # The 99th percentile of one-way delay, until about 20 round trips are measured; then measured,
    # within these bounds. Half a millisecond is what one busy turn of an event loop costs.
    delay_initial_ns: int = 2_500_000
    delay_min_ns: int = 500_000
    delay_max_ns: int = 500 * MS

    # Counters. Cadence of a key = clamp(burst / 8 rate, min, max): a quarter of the bucket goes by
    # in two cadences. Horizon h = 1.1 cadence + delay.
    cadence_min_ns: int = 25 * MS
    cadence_max_ns: int = 200 * MS
    # A changed or active row is told again after this long: half of the silence that peers allow.
    refresh_ns: int = 250 * MS
    # A peer silent on a row it was active on is charged at its old rate between these two.
    silence_min_ns: int = 500 * MS
    silence_max_ns: int = 30 * SECOND
    # Rows at rest are forgotten after max(this, 2 burst/rate).
    row_idle_ns: int = 60 * SECOND
    # Two urgent entries of one row are so far apart: 500/s x 31 x 100 B = 1.6 MB/s at the worst.
    flush_spacing_ns: int = 2 * MS
    # Keys that peers use and this node has not met: about 600 bytes each, 12 MB when full.
    strays_max: int = 20_000
    # Bytes of counters per second over all members; what does not fit goes at the next tick.
    counter_bytes_per_second: int = 4_000_000

    # Breakers: repeats to two random members each interval, ceil(log2(N+1)) + 2 times; then the
    # digest in heartbeats. After its end remembered for breaker_memory, in the digest for half of
    # it, so that two nodes that forget at slightly different times do not teach each other again.
    breaker_repeat_ns: int = 25 * MS
    breaker_memory_ns: int = 600 * SECOND
    breakers_max: int = 10_000

    def __post_init__(self) -> None:
        if not 1 <= len(self.name.encode()) <= 64:
            raise ConfigError("name: 1 to 64 bytes of UTF-8")
        if not 1 <= len(self.cluster.encode()) <= 64:
            raise ConfigError("cluster: 1 to 64 bytes of UTF-8")
        if any(len(key) != 32 for key in self.keys):
            raise ConfigError("keys: 32 bytes each")
        if len(set(self.keys)) != len(self.keys):
            raise ConfigError("keys: the same key twice")
        if not self.keys and not is_loopback(self.bind[0]):
            raise ConfigError("keys: none only where bind is a loopback address")
        if not is_numeric(self.advertise[0]):
            raise ConfigError("advertise: a numeric address, since every member sends to it")
        if not 1 <= self.advertise[1] <= 65535:
            raise ConfigError("advertise: a port from 1 to 65535")
        if not 2 <= self.members_max <= 32:
            raise ConfigError("members_max: 2 to 32")


def is_numeric(host: str) -> bool:
    """Whether `host` is an IP address in text form: sending to it needs no resolver."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether `host`, an address in text form, is a loopback address; names are not."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)
