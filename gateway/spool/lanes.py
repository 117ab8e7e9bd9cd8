"""Which stored request is sent next: lanes that do not hold each other back. Pure.

Requests that share all rows and the credential share a lane: where one of them has to wait, the
others would have to as well. With `order_by` a lane is one value of that key, and has one request
in hand at a time. Lanes take turns; one that sleeps costs nothing until the time it was told.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from heapq import heapify, heappop, heappush

from gateway.spool.record import Entry

__all__ = ["EXPIRED_AT_ONCE", "LOOKS_AT_ONCE", "WINDOW", "Lanes"]

# Requests of one lane that are in hand before they are sent: a round trip to the file takes some
# ms, and in 5 ms a lane of 1,000 requests a second wants five.
WINDOW = 8
# So much is done in one turn of the loop, which others wait for: 200 expiries, with what is written
# down of each, take 5 ms; waking a lane, or looking at one that has nothing, some microseconds.
EXPIRED_AT_ONCE = 200
LOOKS_AT_ONCE = 1000
# What was forgotten stays in the heaps until its time; above so many more than what is left they
# are cleaned out.
_GONE_SLACK = 256


class _Lane:
    __slots__ = ("delayed", "in_hand", "key", "out", "queued", "ready", "sleep_until_ns", "told_in")

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.ready: list[tuple[int, int, Entry]] = []  # a heap by number: the order of acceptance
        self.delayed = 0  # entries that wait for their own time
        self.in_hand = 0  # taken, not yet sent
        self.out = 0  # sent, without an outcome
        self.queued = False  # whether it stands in the line of those that may have a turn
        self.sleep_until_ns = 0
        self.told_in = 0  # the round in which it was told so

    @property
    def is_empty(self) -> bool:
        return not (self.ready or self.delayed or self.in_hand or self.out)


class Lanes:
    """The requests of one upstream that are still to be sent."""

    def __init__(self, *, ordered: bool = False) -> None:
        self.ordered = ordered
        self._lanes: dict[bytes, _Lane] = {}
        self._turns: deque[_Lane] = deque()
        self._asleep: dict[_Lane, None] = {}
        self._round = 0  # what lanes were told in an earlier one is over
        self._waking: deque[Iterator[_Lane]] = deque()  # were asleep when all were to be looked at
        self._wakes: list[tuple[int, int, _Lane, Entry | None]] = []
        self._expiries: list[tuple[int, int]] = []
        self._entries: dict[int, Entry] = {}
        self._sequence = 0
        self.in_hand = 0  # of all lanes, those that were sent included
        self.out = 0  # those that were sent

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def __contains__(self, number: int) -> bool:
        return number in self._entries

    def add(self, entry: Entry) -> None:
        """A request that is to be sent."""
        self._entries[entry.number] = entry
        heappush(self._expiries, (entry.expires_ms, entry.number))
        lane = self._lane(entry.lane)
        self._push(lane, entry)
        self._line_up(lane)

    def take(self) -> Entry | None:
        """The next one, which is in hand from now on; None: nobody may have a turn now, or so far:
        `has_turns`."""
        turns = self._turns
        for _ in range(LOOKS_AT_ONCE):
            if not turns:
                break
            lane = turns.popleft()
            lane.queued = False
            if not self._may_go(lane):
                continue
            entry = heappop(lane.ready)[2]
            if self._entries.get(entry.number) is not entry:
                self._line_up(lane)  # it was dropped or has expired
                self._drop_if_empty(lane)
                continue
            entry.in_hand = True
            lane.in_hand += 1
            self.in_hand += 1
            self._line_up(lane)
            return entry
        return None

    @property
    def has_turns(self) -> bool:
        """Whether lanes stand in line that `take` has not looked at."""
        return bool(self._turns)

    def put_back(self, entry: Entry, until_ns: int, *, all_of_them: bool) -> None:
        """It was in hand and is to be sent later, not before `until_ns` (0: at once).

        `all_of_them`: what it waits for keeps its whole lane waiting.
        """
        lane = self._let_go(entry)
        if self._entries.get(entry.number) is not entry:
            return
        if until_ns and not (all_of_them or self.ordered):
            lane.delayed += 1
            self._wake_at(until_ns, lane, entry)
        else:
            self._push(lane, entry)
            if lane.told_in != self._round:
                lane.sleep_until_ns = 0
            if until_ns > lane.sleep_until_ns:
                lane.sleep_until_ns = until_ns
                lane.told_in = self._round
                self._asleep[lane] = None
                self._wake_at(until_ns, lane, None)
        self._line_up(lane)

    def sent(self, entry: Entry) -> None:
        """It went out: without an order the next of its lane may follow before its outcome."""
        lane = self._lane(entry.lane)
        entry.in_hand = False
        entry.is_out = True
        lane.in_hand -= 1
        lane.out += 1
        self.out += 1
        self._line_up(lane)

    def forget(self, entry: Entry) -> None:
        """It has come to an end."""
        self._entries.pop(entry.number, None)
        if entry.in_hand or entry.is_out:
            lane = self._let_go(entry)
            self._line_up(lane)
            self._drop_if_empty(lane)
        if len(self._expiries) > 2 * len(self._entries) + _GONE_SLACK:
            self._expiries = [(e.expires_ms, e.number) for e in self._entries.values()]
            heapify(self._expiries)

    def find(self, number: int) -> Entry | None:
        """The request of that number, in hand or not."""
        return self._entries.get(number)

    def wake(self, now_ns: int) -> None:
        """Lets those have turns again whose time has come, some of them at once: the rest when
        `next_wake_ns`, which has then passed, is heeded."""
        for _ in range(LOOKS_AT_ONCE):
            wakes = self._wakes
            entry: Entry | None = None
            if self._waking:
                woken = next(self._waking[0], None)
                if woken is None:
                    self._waking.popleft()
                    continue
                if woken.told_in == self._round:
                    continue  # it was told something else meanwhile
                lane = woken
                lane.sleep_until_ns = 0
            elif wakes and wakes[0][0] <= now_ns:
                _, _, lane, entry = heappop(wakes)
                if entry is not None:
                    lane.delayed -= 1
                    if self._entries.get(entry.number) is entry:
                        self._push(lane, entry)
                elif lane.sleep_until_ns <= now_ns:
                    lane.sleep_until_ns = 0
                    self._asleep.pop(lane, None)
            else:
                return
            self._line_up(lane)
            self._drop_if_empty(lane)

    def wake_all(self) -> None:
        """What they waited for may be over: `wake` looks at all lanes that sleep."""
        self._round += 1
        if self._asleep:
            self._waking.append(iter(self._asleep))
            self._asleep = {}

    def set_ordered(self, *, ordered: bool) -> None:
        """A reload's word. Those that were accepted before keep the lanes that they have."""
        self.ordered = ordered

    def expire(self, now_ms: int) -> list[Entry]:
        """Those that are too old, and not in hand: they are forgotten. There may be more, and
        `next_expiry_ms` has then passed."""
        gone: list[Entry] = []
        expiries = self._expiries
        for _ in range(LOOKS_AT_ONCE):
            if not expiries or expiries[0][0] > now_ms or len(gone) == EXPIRED_AT_ONCE:
                break
            _, number = heappop(expiries)
            entry = self._entries.get(number)
            if entry is None or entry.in_hand or entry.is_out:
                continue  # who is in hand is looked at when it is put back
            if entry.expires_ms <= now_ms:
                del self._entries[number]
                gone.append(entry)
        return gone

    def next_wake_ns(self) -> int | None:
        """When `wake` has something to do, of the monotonic clock; 0: now."""
        if self._waking:
            return 0
        return self._wakes[0][0] if self._wakes else None

    def next_expiry_ms(self) -> int | None:
        """When `expire` has something to do, of the wall clock."""
        return self._expiries[0][0] if self._expiries else None

    def oldest_ms(self) -> int | None:
        """When the first of them was accepted; one that was queued again counts from then on."""
        first = next(iter(self._entries.values()), None)
        return first.accepted_ms if first is not None else None

    # Inside.

    def _lane(self, key: bytes) -> _Lane:
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lane(key)
        return lane

    def _push(self, lane: _Lane, entry: Entry) -> None:
        self._sequence += 1
        heappush(lane.ready, (entry.number, self._sequence, entry))

    def _may_go(self, lane: _Lane) -> bool:
        if not lane.ready or lane.sleep_until_ns:
            return False
        if self.ordered:
            return not (lane.in_hand or lane.out)
        return lane.in_hand < WINDOW

    def _line_up(self, lane: _Lane) -> None:
        if not lane.queued and self._may_go(lane):
            lane.queued = True
            self._turns.append(lane)

    def _let_go(self, entry: Entry) -> _Lane:
        lane = self._lane(entry.lane)
        if entry.in_hand or entry.is_out:
            if entry.is_out:
                lane.out -= 1
                self.out -= 1
            else:
                lane.in_hand -= 1
            entry.in_hand = entry.is_out = False
            self.in_hand -= 1
            if entry.expires_ms and entry.number in self._entries:
                heappush(self._expiries, (entry.expires_ms, entry.number))
        return lane

    def _wake_at(self, when_ns: int, lane: _Lane, entry: Entry | None) -> None:
        self._sequence += 1
        heappush(self._wakes, (when_ns, self._sequence, lane, entry))

    def _drop_if_empty(self, lane: _Lane) -> None:
        """A credential can be anything: lanes without requests are not kept."""
        if lane.is_empty and self._lanes.get(lane.key) is lane:
            del self._lanes[lane.key]
