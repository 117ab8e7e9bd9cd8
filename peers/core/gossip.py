"""All counters of a node: whose news goes out when, and where news from peers goes.

Entries leave in order of urgency (flushes of tight limits, contended keys by what they have not
told, calm keys by age) within a budget of bytes; one encoding serves all peers. An entry is noted
as told when it leaves, and one that the budget cuts off is simply still due at the next tick.
News about keys that this node has not met is kept aside ("strays"), so that a row made later
starts where the mesh is.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any, TypeVar

from peers.core.chance import Chance
from peers.core.config import MS, SECOND, Config
from peers.core.counters import MeshLimit, Rule, Surroundings
from peers.core.outbox import Outbox
from peers.core.share import Entry, Row
from peers.core.table import R, SharedTable
from peers.core.wire import ENTRY_KINDS, FRAMES_BYTES_MAX, U32, Kind, join_items, pack

__all__ = ["Counters", "Entry", "frames_of", "key64", "rule_name"]

T = TypeVar("T", bound=SharedTable[Any])

# An entry's length on average (PROTOCOL.md), for the budget.
_ENTRY_BYTES = 27
# The longest is that of a window: key, gen, count, used, lam_100, waiting, total, age.
_ENTRY_BYTES_MAX = 1 + 9 + 5 + 9 + 9 + 5 + 5 + 9 + 9
_FRAME_HEAD_BYTES = 4
_DIGEST_NS = 2 * SECOND
# One datagram: the slice moves over 1,000 keys in 50 s, 31 x 1.2 kB a slice at 32 members.
_DIGEST_ROWS = 40
# Announced limits in one round of two seconds; a configuration has tens.
_RULES_PER_ROUND = 120
_EXPIRE_NS = 5 * SECOND
# What upstreams say is told at most so often, the newest for each key: as often as a key's own
# counts at the fastest cadence. An entry is a key and a small number.
_ADVERTISE_NS = 25 * MS
_ADVERTISED_BYTES = 14


class _Stray:
    """The newest entry of each peer for a key that has no row here."""

    __slots__ = ("entries", "kind")

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.entries: dict[bytes, tuple[int, int, Any, int]] = {}  # boot, seq, entry, when


def key64(cluster: str, identity: str, key: bytes) -> int:
    """A counter's name on the wire: no credential, path or address can be read from it."""
    digest = hashlib.blake2b(digest_size=8, key=cluster.encode(), person=b"egressd counter")
    name = identity.encode()
    digest.update(len(name).to_bytes(4, "big") + name + key)
    return int.from_bytes(digest.digest(), "big")


def rule_name(cluster: str, identity: str) -> int:
    """A limit's name on the wire."""
    return key64(cluster, identity, b"\x00rule")


class Counters:
    """Limits by identity, rows by key64, strays, and the schedule of both."""

    def __init__(
        self,
        config: Config,
        chance: Chance,
        outbox: Outbox,
        surroundings: Surroundings,
        now_ns: int,
    ) -> None:
        self.chance = chance
        self.joining = False
        self._alive_ns = 0  # when the node last did anything; 0: not yet
        self.changed: dict[Row, None] = {}
        self.on_wake: Callable[[], None] | None = None
        self.entries_sent = 0
        self.entries_received = 0
        self.deferred = 0  # entries that a byte budget put off
        self._config = config
        self._outbox = outbox
        self._surroundings = surroundings
        self._limits: dict[str, SharedTable[Any]] = {}
        self._rows: dict[Kind, dict[int, Row]] = {kind: {} for kind in ENTRY_KINDS}
        self._strays: OrderedDict[int, _Stray] = OrderedDict()
        self._gen = 0
        self._urgent: list[Row] = []
        self._contended: list[Row] = []
        self._calm: list[Row] = []
        self._budget = 0.0
        self._budget_ns = now_ns
        self._digest_ns = now_ns + _DIGEST_NS
        self._digest_round: list[Row] = []
        self._rules_round: list[SharedTable[Any]] = []
        self._expire_ns = now_ns + _EXPIRE_NS
        self._advertised: dict[Row, tuple[float, int]] = {}  # tokens left, and when
        self._advertise_ns = now_ns

    # -- limits

    def limit(self, identity: str, rule: Rule, **facts: Any) -> MeshLimit:
        """As `table`, of a smooth rate."""
        return self.table(MeshLimit, identity, rule, **facts)

    def table(self, made: type[T], identity: str, rule: Rule, **facts: Any) -> T:
        """The limit of this identity: made, or reconfigured in place."""
        limit = self._limits.get(identity)
        if type(limit) is made:
            before = limit.announced
            limit.reconfigure(rule, **facts)
            if limit.announced != before:
                self.announce(limit)
            return limit
        self.forget_limit(identity)
        limit = made(self, self._config, identity, rule, self._surroundings, **facts)
        self._limits[identity] = limit
        return limit

    def forget_limit(self, identity: str) -> None:
        limit = self._limits.pop(identity, None)
        if limit is not None:
            limit.drop_all()

    def limits(self) -> list[SharedTable[Any]]:
        return list(self._limits.values())

    def retune(self, surroundings: Surroundings) -> None:
        if surroundings != self._surroundings:
            self._surroundings = surroundings
            for limit in self._limits.values():
                limit.retune(surroundings)

    @property
    def rows_count(self) -> int:
        return sum(map(len, self._rows.values()))

    @property
    def strays_count(self) -> int:
        return len(self._strays)

    def figures(self) -> dict[str, int]:
        """Counts for metrics, since the start, and what is kept now."""
        return {
            "entries_received": self.entries_received,
            "entries_sent": self.entries_sent,
            "entries_deferred": self.deferred,
            "rows": self.rows_count,
            "strays": self.strays_count,
        }

    # -- what limits ask of their host

    def alive(self, now_ns: int) -> None:
        """The node does something. Where it has not for five heartbeats, in which it would have
        ticked each time, the process was stopped or the loop held up, and limits are told."""
        alive_ns, self._alive_ns = self._alive_ns, now_ns
        if alive_ns and now_ns - alive_ns > 5 * self._config.heartbeat_interval_ns:
            for limit in self._limits.values():
                limit.slept(now_ns)

    def make_row(self, limit: SharedTable[R], key: bytes, now_ns: int) -> R:
        """A new row, with what peers told about its key before it was met here."""
        name = key64(self._config.cluster, limit.identity, key)
        self._gen = (self._gen + 1) & U32
        row = limit.new_row(key, name, self._gen, now_ns)
        self._rows[limit.kind][name] = row
        stray = self._strays.pop(name, None)
        if stray is not None and stray.kind == limit.kind:
            row.inherit(stray.entries, now_ns)
            if not row.at_rest:
                limit.activate(row, now_ns)
        return row

    def row_gone(self, row: Row) -> None:
        rows = self._rows[row.kind]
        if rows.get(row.key64) is row:
            del rows[row.key64]
        self._advertised.pop(row, None)

    def advertise(self, row: Row, left: float, now_ns: int) -> None:
        """The upstream told this node what is left: the others hear it before it tells them."""
        if self._surroundings.members > 1:
            self._advertised[row] = (left, now_ns)
            self.wake()

    def announce(self, limit: SharedTable[Any]) -> None:
        """A limit's figures have changed: members hear it before their turn."""
        self._send_rules([limit])
        self.wake()

    def wake(self) -> None:
        if self.on_wake is not None:
            self.on_wake()

    # -- time

    def tick(self, now_ns: int) -> None:
        for limit in self._limits.values():
            limit.tick(now_ns, self._calm, self._contended)
            limit.due_urgent(now_ns, self._urgent)
        if now_ns >= self._digest_ns:
            self._digest_ns = now_ns + _DIGEST_NS
            self._digest(now_ns)
            self._announce_rules()
        if now_ns >= self._expire_ns:
            self._expire_ns = now_ns + _EXPIRE_NS
            for limit in self._limits.values():
                limit.expire(now_ns)

    def next_wake_ns(self, now_ns: int) -> int:
        wake_ns = min(self._digest_ns, self._expire_ns)
        if self._advertised:
            wake_ns = min(wake_ns, max(now_ns, self._advertise_ns))
        for limit in self._limits.values():
            due_ns = limit.next_wake_ns(now_ns)
            if due_ns is not None and due_ns < wake_ns:
                wake_ns = due_ns
        return wake_ns

    # -- out

    def flush(self, now_ns: int, peers: int) -> None:
        """Puts what is due into the outbox, stamped as told now.

        A joiner says nothing of its rows: peers would take their presumed levels for news.
        """
        if self._advertised and now_ns >= self._advertise_ns:
            self._tell_advertised(now_ns, peers)
        urgent, contended, calm = self._urgent, self._contended, self._calm
        if not (urgent or contended or calm):
            return
        self._urgent, self._contended, self._calm = [], [], []
        if peers == 0 or self.joining:
            return
        due = urgent + contended + calm
        allowed = self._allowance(now_ns, peers)
        if len(due) > allowed:
            contended.sort(key=_by_fresh, reverse=True)
            calm.sort(key=_by_age)
            due = (urgent + contended + calm)[:allowed]
            self.deferred += len(urgent) + len(contended) + len(calm) - allowed
        self._budget -= len(due) * _ENTRY_BYTES * peers
        self._send(due, now_ns)

    def snapshot(self, now_ns: int, bytes_max: int) -> Iterator[bytes]:
        """Frames of entries of at most `bytes_max` for a joiner: every row that is not at rest.

        They note nothing as told: what is in them is known to all. Made as they are wanted, some
        1,100 rows at a time.
        """
        step = bytes_max // _ENTRY_BYTES_MAX
        for kind, table in self._rows.items():
            rows = list(table.values())
            for start in range(0, len(rows), step):
                items = [
                    pack(row.picture(now_ns))
                    for row in rows[start : start + step]
                    if not (row.at_rest and row.level(now_ns) <= 0.0)
                ]
                yield from frames_of(items, bytes_max, kind)

    def _send(self, rows: Sequence[Row], now_ns: int) -> None:
        items: dict[Kind, list[bytes]] = {}
        for row in rows:
            items.setdefault(row.kind, []).append(pack(row.tell(now_ns)))
        self.entries_sent += len(rows)
        for kind, packed in items.items():
            for frame in frames_of(packed, FRAMES_BYTES_MAX, kind):
                self._outbox.send_all(frame)

    def _tell_advertised(self, now_ns: int, peers: int) -> None:
        """What the upstream said, with what has drained since. Told once: where it is lost, peers
        that use the key hear it from the upstream, and levels creep towards each other."""
        advertised, self._advertised = self._advertised, {}
        self._advertise_ns = now_ns + _ADVERTISE_NS
        if peers == 0 or self.joining:
            return
        items = [
            pack((row.key64, int(row.left_by_now(left, now_ns - told_ns) * 16)))
            for row, (left, told_ns) in advertised.items()
        ]
        self._budget -= len(items) * _ADVERTISED_BYTES * peers
        for frame in frames_of(items, FRAMES_BYTES_MAX, Kind.ADVERTISED):
            self._outbox.send_all(frame)

    def _allowance(self, now_ns: int, peers: int) -> int:
        """Entries that the byte budget lets go now: a tenth of a second's worth at most."""
        per_second = self._config.counter_bytes_per_second
        elapsed_ns = now_ns - self._budget_ns
        self._budget_ns = now_ns
        earned = self._budget + per_second * elapsed_ns / SECOND
        self._budget = min(per_second / 10, earned)
        return max(0, int(self._budget / (_ENTRY_BYTES * peers)))

    def _digest(self, now_ns: int) -> None:
        """The next slice of keys, changed or not: what repeats have lost comes right here."""
        if not self._digest_round:
            self._digest_round = [row for row in self._all_rows() if row.own]
        rows = self._digest_round[-_DIGEST_ROWS:]
        del self._digest_round[-_DIGEST_ROWS:]
        if self._surroundings.members > 1:
            self._send([row for row in rows if self._rows[row.kind].get(row.key64) is row], now_ns)

    def _announce_rules(self) -> None:
        if not self._rules_round:
            self._rules_round = list(self._limits.values())
        limits = self._rules_round[-_RULES_PER_ROUND:]
        del self._rules_round[-_RULES_PER_ROUND:]
        self._send_rules(limits)

    def _send_rules(self, limits: Sequence[SharedTable[Any]]) -> None:
        items = [pack((self._rule_name(limit.identity), *limit.announced)) for limit in limits]
        for frame in frames_of(items, FRAMES_BYTES_MAX, Kind.LIMITS):
            self._outbox.send_all(frame)

    # -- in

    def entries_heard(
        self, kind: Kind, node: bytes, boot: int, seq: int, entries: Sequence[Any], now_ns: int
    ) -> None:
        self.entries_received += len(entries)
        rows = self._rows[kind]
        for entry in entries:
            row = rows.get(entry[0])
            if row is None:
                self._keep_stray(kind, node, boot, seq, entry, now_ns)
            elif row.hear(node, boot, seq, entry, now_ns):
                if not row.active:
                    row.wake(now_ns)
                if row.waiting is not None:
                    self.changed[row] = None

    def advertised_heard(self, items: Sequence[tuple[int, int]], now_ns: int) -> None:
        """What an upstream told a peer. A row that is made later starts at the peers' level."""
        for kind in (Kind.COUNTERS, Kind.WINDOWS):
            rows = self._rows[kind]
            for key, left_16 in items:
                row = rows.get(key)
                if row is not None:
                    row.hear_left(left_16 / 16, now_ns)

    def snapshot_heard(
        self, kind: Kind, node: bytes, boot: int, seq: int, entries: Sequence[Any], now_ns: int
    ) -> None:
        """Entries of a snapshot: as news, but a row that was presumed full learns its level."""
        self.entries_heard(kind, node, boot, seq, entries, now_ns)
        rows = self._rows[kind]
        for entry in entries:
            row = rows.get(entry[0])
            if row is not None:
                row.presume(entry, now_ns)

    def joined(self, *, alone: bool, told: bool, now_ns: int) -> None:
        """The time of presuming is over: nobody was there (`alone`), a snapshot told all (`told`),
        or nothing came."""
        self.joining = False
        for row in self._all_rows():
            row.joined(alone, told, now_ns)

    def rules_heard(self, node: bytes, rules: Sequence[tuple[int, int, int, int]]) -> None:
        by_name = {self._rule_name(limit.identity): limit for limit in self._limits.values()}
        for name, count, period_ns, burst in rules:
            limit = by_name.get(name)
            if limit is not None:
                limit.set_peer_rule(node, Rule(count, period_ns, burst))

    def member_gone(self, node: bytes, left: bool) -> None:
        """A member's rules end with it; its share ends at once only where it said good-bye."""
        for limit in self._limits.values():
            if node in limit.peer_rules:
                limit.set_peer_rule(node, None)
        if left:
            for row in self._all_rows():
                row.forget_peer(node)

    def _all_rows(self) -> Iterator[Row]:
        return chain.from_iterable([table.values() for table in self._rows.values()])

    def _keep_stray(
        self, kind: Kind, node: bytes, boot: int, seq: int, entry: Any, now_ns: int
    ) -> None:
        name = entry[0]
        stray = self._strays.get(name)
        if stray is None or stray.kind != kind:
            stray = self._strays[name] = _Stray(kind)
            if len(self._strays) > self._config.strays_max:
                self._strays.popitem(last=False)
        else:
            self._strays.move_to_end(name)
        held = stray.entries.get(node)
        if held is None or (boot, entry[1], seq) > (held[0], held[2][1], held[1]):
            stray.entries[node] = (boot, seq, entry, now_ns)

    def _rule_name(self, identity: str) -> int:
        return rule_name(self._config.cluster, identity)


def frames_of(items: Sequence[bytes], bytes_max: int, kind: Kind = Kind.COUNTERS) -> list[bytes]:
    """Items in frames of at most `bytes_max` each."""
    frames: list[bytes] = []
    batch: list[bytes] = []
    size = _FRAME_HEAD_BYTES
    for item in items:
        if size + len(item) > bytes_max:
            frames.append(join_items(kind, batch))
            batch = []
            size = _FRAME_HEAD_BYTES
        batch.append(item)
        size += len(item)
    if batch:
        frames.append(join_items(kind, batch))
    return frames


def _by_fresh(row: Row) -> int:
    return row.fresh


def _by_age(row: Row) -> int:
    return row.told_ns
