"""Window limits of the mesh: a quota that comes back whole, shared as a bucket's tokens are.

A row is the reservation algorithm of `rows` on a bucket that does not drain but is emptied at the
window's end: what is left of the quota is split by announced demand, and own admissions that peers
cannot have seen stay inside the own share. What is new is agreement about the window itself.
Entries carry its age, and the earlier start wins; since an age is rounded down and grows by its
way, a start can only be heard too late, so echoes do not move it. Use is told as of the present
window, absolute, so lost and repeated entries do no harm here either.
"""

from __future__ import annotations

from typing import Any

from peers.core.config import MS, SECOND
from peers.core.counters import MeshLimit
from peers.core.rows import CLOSED_RETRY_NS, NEVER, MeshRow
from peers.core.share import PeerShare, Row
from peers.core.table import Surroundings, aligned_end
from peers.core.wire import U63, Kind

__all__ = ["WindowLimit", "WindowRow"]

# Later than any time: no window is open, the next use opens one.
_UNOPENED = U63
# How long a joiner that got no snapshot presumes a quota used up: two rounds of digests.
_PRESUMED_NS = 5 * SECOND

# What a peer used of a window whose level came from another's total: in the level already.
_UNKNOWN = -1


class WindowShare(PeerShare):
    """What one peer told about one key, and its use of the present window."""

    __slots__ = ("used",)

    def __init__(self, boot: int, gen: int, used: int, now_ns: int) -> None:
        super().__init__(boot, gen, now_ns)
        self.used = used


class WindowRow(MeshRow):
    """The state of one window limit for one key. `end_ns` is the present window's end; the level
    is what all have used in it, and over the quota is debt to the next ones.

    An entry is [key64, gen, count, used, lam_100, waiting, total, age_1]. `count` as for a bucket;
    `used` what of it belongs to the present window, `total` what all used in it as the sender
    knows; `age_1` is the window's age in milliseconds and 1, or 0 where none is open.
    """

    __slots__ = ("_base", "_debt_until_ns", "_inherited", "_presumed", "end_ns")

    kind = Kind.WINDOWS
    limit: WindowLimit
    peers: dict[bytes, WindowShare]  # type: ignore[assignment]

    def __init__(
        self, limit: WindowLimit, key: bytes, key64: int, gen: int, end_ns: int, now_ns: int
    ) -> None:
        super().__init__(limit, key, key64, gen, 0.0, now_ns)
        self.end_ns = end_ns
        self._base = 0  # own admissions before this window
        self._inherited = False  # the level came from a total, so uses of peers are in it
        self._debt_until_ns = now_ns  # of a key without a window
        self._presumed = False  # the use is not known and taken for the whole quota

    # -- the caller's side

    def ask(self, cost: int, now_ns: int) -> int:
        """ROOM, or nanoseconds (>= 1) until asking again can help, or NEVER."""
        if now_ns >= self.end_ns:
            self._close_slow(now_ns)
        return super().ask(cost, now_ns)

    def take(self, cost: int, now_ns: int) -> None:
        """Takes tokens, also such as nobody asked for (a cost that was settled afterwards); the
        first use of a key opens its window."""
        if now_ns >= self.end_ns:
            self._close_slow(now_ns)
        if self.end_ns == _UNOPENED:
            self._open(now_ns + self.limit.period_ns, now_ns)
        super().take(cost, now_ns)
        if self.limit.members > 1 and self.fresh >= self.limit.flush_tokens:
            self.limit.urge(self)

    def clear(self, now_ns: int) -> None:
        """The operator forgives: nothing was used on this member, and the window goes on."""
        if now_ns >= self.end_ns:
            self._close_slow(now_ns)
        self._level = 0.0
        self._presumed = False

    def learn(self, remaining: int, sent_ns: int, now_ns: int) -> bool:
        """Takes over what the upstream says is left, if it is less than ours; says whether. What
        was sent before the present window says nothing about it."""
        if now_ns >= self.end_ns:
            self._close_slow(now_ns)
        if self.end_ns != _UNOPENED and sent_ns < self.end_ns - self.limit.period_ns:
            return False
        return super().learn(remaining, sent_ns, now_ns)

    def lower(self, left: float, now_ns: int) -> bool:
        """Leaves at most `left` of the present window's quota. News of use opens one where
        none is."""
        if now_ns >= self.end_ns:
            self._close_slow(now_ns)
        if self.end_ns == _UNOPENED and left + 1.0 <= self.limit.effective.burst:
            self._open(now_ns + self.limit.period_ns, now_ns)
        return super().lower(left, now_ns)

    def level(self, now_ns: int) -> float:
        """Tokens used in the window of `now_ns`; changes nothing."""
        if now_ns >= self.end_ns:
            return self._debt(now_ns)
        if self.end_ns == _UNOPENED and now_ns >= self._debt_until_ns:
            return 0.0
        return self._level

    def fill(self, now_ns: int) -> None:
        """The quota counts as used up until news says otherwise, or the window ends."""
        if self.end_ns == _UNOPENED:
            self._open(now_ns + self.limit.period_ns, now_ns)
        self._level = max(self._level, self.limit.effective_burst)
        self._presumed = True

    # -- the mesh's side

    def tick(self, now_ns: int) -> int:
        """Brings window, demand and silent peers up to date; returns what is Due."""
        if now_ns >= self.end_ns:
            self._close_slow(now_ns)
        return super().tick(now_ns)

    def tell(self, now_ns: int) -> tuple[int, ...]:
        """The entry for the wire as of now, and the note that it leaves now."""
        super().tell(now_ns)
        return self.picture(now_ns)

    def picture(self, now_ns: int) -> tuple[int, ...]:
        """The entry as of now; notes nothing as told."""
        if now_ns >= self.end_ns:
            self._close_slow(now_ns)
        age_1 = 0
        if self.end_ns != _UNOPENED:
            age_1 = max(0, now_ns - self.end_ns + self.limit.period_ns) // MS + 1
        return (
            self.key64,
            self.gen,
            self.own,
            self.own - self._base,
            int(self._lam * 100 + 0.5),
            max(0, self.queued),
            # What was charged on suspicion is no knowledge: a joiner could not unlearn it.
            max(0, round(self._level - sum(peer.phantom for peer in self.peers.values()))),
            age_1,
        )

    def hear(self, node: bytes, boot: int, seq: int, entry: Any, now_ns: int) -> bool:
        """Takes a peer's entry in; False if it is not newer than what is held."""
        _, gen, count, used, lam_100, waiting, total, age_1 = entry
        counted = 0.0
        peer = self.peers.get(node)
        if peer is None:
            peer = self.peers[node] = WindowShare(
                boot, gen, _UNKNOWN if self._inherited else 0, now_ns
            )
            if self._told_more > 0.0 and age_1 and not self._inherited:
                counted = self._counted(used, now_ns - age_1 * MS, now_ns)
        elif (boot, gen) != (peer.boot, peer.gen):
            if (boot, gen) < (peer.boot, peer.gen):
                return False
            # What its last life used stays in the level.
            peer.boot, peer.gen, peer.count, peer.used = boot, gen, 0, 0
        elif seq <= peer.seq:
            return False
        else:
            peer.note_rate(count - peer.count, now_ns)
            if self._told_more > 0.0 and peer.heard_ns < self._told_ns and used >= peer.used >= 0:
                counted = self._counted(used - peer.used, peer.heard_ns, now_ns)
        self.heard += max(0, count - peer.count)
        peer.seq = seq
        peer.count = count
        peer.heard_ns = now_ns
        self._note_demand(peer, lam_100, waiting)
        if age_1 and self._place(now_ns - (age_1 - 1) * MS, now_ns):
            if self._presumed:
                self._presumed = False
                self._inherit(float(total + self.own - self._base))
            elif peer.used == _UNKNOWN:
                self._level = min(max(self._level, float(total)), self.limit.level_max)
            else:
                grown = used - peer.used
                level = self._level + grown - counted - self._known_slow(peer, grown)
                self._level = max(0.0, min(level, self.limit.level_max))
            peer.used = used
        return True

    def inherit(self, told: dict[bytes, tuple[int, int, Any, int]], now_ns: int) -> None:
        """What peers told before the row was made: the largest total is the latest news."""
        self._inherited = True
        Row.inherit(self, told, now_ns)
        self._level_ns = now_ns

    def presume(self, entry: Any, now_ns: int) -> None:
        """Nothing: the entry was heard just now, and corrected what was presumed."""

    def joined(self, alone: bool, told: bool, now_ns: int) -> None:
        """A quota is not presumed used up for a whole window, which may be an hour: not where all
        was told and nothing of this key, and otherwise until digests have gone round twice."""
        if not self._presumed:
            return
        if alone or told:
            self._presumed = False
            self._level = float(self.own - self._base)
        else:
            self.end_ns = min(self.end_ns, now_ns + _PRESUMED_NS)

    # -- the window

    def _place(self, start_ns: int, now_ns: int) -> bool:
        """Whether a window that began then is this row's present one, which news may open, end
        or begin earlier."""
        limit = self.limit
        period_ns = limit.period_ns
        end_ns = start_ns + period_ns
        if end_ns <= now_ns:
            return False
        if now_ns >= self.end_ns:
            self._close_slow(now_ns)
        if self.end_ns == _UNOPENED or self._presumed:
            self._open(end_ns, now_ns)
            return True
        later_ns = end_ns - self.end_ns
        if later_ns > period_ns - limit.slack_ns:
            # For the sender ours is over, and its clock is as good as ours.
            self._close_slow(self.end_ns)
            self.end_ns = end_ns
            return True
        if later_ns < limit.slack_ns - period_ns:
            return False  # told in the window before
        if later_ns < 0:
            self.end_ns = end_ns
        return True

    def _open(self, end_ns: int, now_ns: int) -> None:
        self._level = self.level(now_ns)
        self.end_ns = end_ns

    def _close_slow(self, now_ns: int) -> None:
        """The window is over and its uses are forgotten, but debt is paid by the windows that
        passed and then by the next, if it comes within a period. A debt that leaves no room for a
        first use begins that one at once."""
        limit = self.limit
        period_ns = limit.period_ns
        self._level = self._debt(now_ns)
        self._level_ns = max(now_ns, self._level_ns)
        next_end_ns = self.end_ns + ((now_ns - self.end_ns) // period_ns + 1) * period_ns
        if limit.aligned:
            self.end_ns = limit.aligned_end(next_end_ns, now_ns)
        elif self._level + 1.0 > limit.effective_burst:
            self.end_ns = next_end_ns
        else:
            self.end_ns = _UNOPENED
            self._debt_until_ns = now_ns + period_ns
        self._presumed = False
        self._inherited = False
        self._told_more = 0.0
        self._excused = 0.0
        self._base = self.own
        # Nothing of the new window is under way to peers.
        self._sent = [(told_ns, self.own, demand) for told_ns, _, demand in self._sent]
        if not self._sent:
            self._sent.append((0, self.own, 0.0))
        for peer in self.peers.values():
            peer.used = 0
            peer.phantom = 0.0
            peer.excused = False

    def _inherit(self, level: float) -> None:
        """The level as another knows it: what peers used of the window is in there."""
        self._inherited = True
        self._level = min(level, self.limit.level_max)
        for peer in self.peers.values():
            peer.used = _UNKNOWN
            peer.phantom = 0.0

    def _debt(self, now_ns: int) -> float:
        """What of the level the windows that ended by `now_ns` have not paid."""
        limit = self.limit
        passed = (now_ns - self.end_ns) // limit.period_ns + 1
        return max(0.0, self._level - limit.effective.burst * passed)

    def _full_slow(self, cost: int, level: float) -> int:
        limit = self.limit
        if limit.closed:
            return CLOSED_RETRY_NS
        if cost > limit.effective.burst:
            return NEVER
        left_ns = limit.period_ns
        if self.end_ns != _UNOPENED:
            left_ns = self.end_ns - self._level_ns
        debt = level + cost - 2 * limit.effective_burst
        if debt > 0.0:
            left_ns += limit.period_ns * -int(-debt // limit.effective.burst)
        return max(1, left_ns)

    def _busy_slow(self, missing: float, free: float, now_ns: int) -> int:
        return min(super()._busy_slow(missing, free, now_ns), self.end_ns - now_ns)


class WindowLimit(MeshLimit):
    """A quota of `rule.rate_count` tokens in each window of its period, over the whole mesh.

    Windows begin with a key's first use anywhere, or after `align` at multiples of the period in
    wall time; then the first clock to get there begins it for all.
    """

    kind = Kind.WINDOWS
    drains = False

    aligned = False
    wall_offset_ns = 0

    def align(self, wall_offset_ns: int | None) -> None:
        """Windows follow the wall clock, which is so far ahead of `now_ns`; None: they do not."""
        self.aligned = wall_offset_ns is not None
        self.wall_offset_ns = wall_offset_ns or 0
        self.retune(self._surroundings)

    def retune(self, surroundings: Surroundings) -> None:
        """Recomputes what rows read."""
        super().retune(surroundings)
        quota = float(self.effective.burst)
        self.period_ns = self.rule.rate_period_ns  # part of the limit's identity
        self.rate = 0.0  # nothing drains
        self.effective_burst = 0.0 if self.closed else quota * self.share
        self.level_max = 2 * quota
        # A quota that comes back whole is spent at once where requests wait for it, and is split
        # anew after each part: so no more than an eighth of it may be under way to peers. Told at
        # each tick only, 249 of a quota of 200 went out.
        self.flush_tokens = max(1.0, quota / (8 * self.members))
        # Ends that are so close are of one window, told over ways of different length: there and
        # back, and an age in whole milliseconds. Wall clocks differ by more.
        most_ns = self.period_ns // 2
        self.slack_ns = most_ns if self.aligned else min(most_ns, 3 * self.delay_ns + 2 * MS)

    def aligned_end(self, near_ns: int, now_ns: int) -> int:
        """The end, by the wall clock, that is nearest to the one expected, and to come."""
        return aligned_end(near_ns, now_ns, self.period_ns, self.wall_offset_ns)

    def new_row(self, key: bytes, name: int, gen: int, now_ns: int) -> WindowRow:
        end_ns = _UNOPENED
        if self.aligned:
            end_ns = now_ns + self.period_ns - (now_ns + self.wall_offset_ns) % self.period_ns
        return WindowRow(self, key, name, gen, end_ns, now_ns)

    def remaining(self, row: MeshRow, now_ns: int) -> tuple[int, int]:
        """(whole tokens free now, nanoseconds until the window's end; 0 for an unused one)."""
        assert isinstance(row, WindowRow)
        level = row.level(now_ns)
        free = max(0, int(self.effective_burst - level))
        if level <= 0.0:
            return free, 0
        return free, max(1, row.end_ns - now_ns) if row.end_ns != _UNOPENED else self.period_ns

    def stats(self) -> dict[str, Any]:
        """As of a smooth limit; its rate is the quota over the period."""
        return super().stats() | {"rate": self.effective.rate * SECOND * self.share}
