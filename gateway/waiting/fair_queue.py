"""Who goes next among the requests that wait at one row: weighted fair turns between clients.

Start-time fair queuing (Goyal, Vin, Cheng: "Start-time Fair Queuing", SIGCOMM 1996): a flow's next
request has a start tag, the larger of the queue's virtual time and the flow's last finish tag; the
smallest start tag goes first; going adds cost/weight to the flow's finish tag, and the virtual time
is the start tag of who went last. Deficit round robin would be O(1), but its head depends on
deficits handed out during a round: here the head is looked at many times before it may go (the row
has no token yet), or leaves because its client hangs up, and looking must change nothing.

Tags belong to flows, not to requests, so a request that leaves costs its client nothing. Within a
flow the order is that of arrival at the gateway, not at this queue: a request that another row
refused takes its old place. A higher priority goes before any lower one, with turns of its own.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

__all__ = ["Budget", "FairQueue"]

W = TypeVar("W", bound=Hashable)

# Requests that left stay in their heap until they come to its top, and flows without requests
# stay for their tags. Above so many more than what waits both are cleaned out, so that the cost of
# cleaning is a constant for each that left. A client name can be made up (`fair_by = "source"`).
_GONE_SLACK = 64

# So many flows are walked to find a request's place, which takes 0.1 ms: as long as a refusal may
# take in overload. Where more of them go before it, all of its priority is taken to.
_WALK_MAX = 128

# Tags are sums of fractions, and a tie must not be missed: a millionth of a token is more than
# rounding adds up to while a queue is busy (a double has 53 bits, so up to 4e9 tokens of them).
_ROUNDING = 1e-6


class Budget:
    """How many may wait at all the rows of an upstream together (`wait.queue`)."""

    __slots__ = ("refused", "used", "waiters_max")

    def __init__(self, waiters_max: int) -> None:
        self.waiters_max = waiters_max
        self.used = 0
        self.refused = 0


class _Item(Generic[W]):
    __slots__ = ("arrival_ns", "cost", "flow", "number", "waiter")

    def __init__(self, waiter: W, flow: _Flow[W], cost: int, arrival_ns: int, number: int) -> None:
        self.waiter: W | None = waiter  # None: gone
        self.flow = flow
        self.cost = cost
        self.arrival_ns = arrival_ns
        self.number = number

    def __lt__(self, other: _Item[W]) -> bool:
        if self.arrival_ns != other.arrival_ns:
            return self.arrival_ns < other.arrival_ns
        return self.number < other.number


class _Flow(Generic[W]):
    """One client's requests at one priority: a heap by arrival, and the client's tags."""

    __slots__ = (
        "cost",
        "cost_max",
        "finish",
        "items",
        "level",
        "live",
        "name",
        "number",
        "queued",
        "start",
        "weight",
    )

    def __init__(self, name: str, level: _Level[W], number: int) -> None:
        self.name = name
        self.level = level
        self.number = number
        self.items: list[_Item[W]] = []
        self.live = 0
        self.cost = 0  # the sum of those that are there
        self.cost_max = 0  # the largest since the flow last had none
        self.queued = False  # whether the level's heap holds it
        self.start = 0.0
        self.finish = 0.0
        self.weight = 1

    def __lt__(self, other: _Flow[W]) -> bool:
        if self.start != other.start:
            return self.start < other.start
        return self.number < other.number

    def first(self) -> _Item[W] | None:
        """The earliest request that is still there."""
        items = self.items
        while items and items[0].waiter is None:
            heappop(items)
        return items[0] if items else None


class _Level(Generic[W]):
    """The flows of one priority, and their virtual time."""

    __slots__ = ("cost", "flows", "heap", "live", "priority", "time")

    def __init__(self, priority: int) -> None:
        self.priority = priority
        self.flows: dict[str, _Flow[W]] = {}
        self.heap: list[_Flow[W]] = []
        self.live = 0
        self.cost = 0
        self.time = 0.0

    def first(self) -> _Item[W] | None:
        """The request whose turn it is."""
        heap = self.heap
        while heap:
            item = heap[0].first()
            if item is not None:
                return item
            heappop(heap).queued = False
        return None

    def ahead(self, name: str, weight: int, arrival_ns: int) -> int:
        """At most how much goes before a newcomer of that flow: see FairQueue.ahead.

        A request goes before the newcomer if its start tag is smaller. Those of a flow begin at
        the flow's `start` and are cost/weight apart, so that what they cost before the newcomer's
        tag, and the one that straddles it, is known without looking at each. Only the part of the
        heap is walked that begins before that tag.
        """
        own = self.flows.get(name)
        ahead = 0
        tag = self.time
        if own is not None:
            tag = own.start if own.queued else max(tag, own.finish)
            first = own.first()
            if first is not None and first.arrival_ns <= arrival_ns:
                ahead = own.cost
                tag += own.cost / weight
        heap = self.heap
        walk = [0] if heap else []
        walked = 0
        while walk:
            i = walk.pop()
            flow = heap[i]
            before = (tag - flow.start) * flow.weight
            if before < -_ROUNDING:
                continue  # and all below it in the heap begin later still
            walked += 1
            if walked > _WALK_MAX:
                return self.cost
            if flow is not own:
                ahead += min(flow.cost, int(before + _ROUNDING) + flow.cost_max)
            for child in (2 * i + 1, 2 * i + 2):
                if child < len(heap):
                    walk.append(child)
        return ahead

    def forget_idle(self) -> None:
        """Drops the flows without requests. Each owed at most one turn, its last one."""
        self.flows = {name: flow for name, flow in self.flows.items() if flow.live}
        self.heap = [flow for flow in self.heap if flow.live]
        heapify(self.heap)


class FairQueue(Generic[W]):
    """The requests that wait at one row. `cost` is the sum of the tokens that they want.

    `push` and `pop` are O(log n), `remove` O(1), `head` O(1) but for requests that left meanwhile.
    """

    __slots__ = ("_budget", "_gone", "_items", "_levels", "_number", "cost")

    def __init__(self, budget: Budget) -> None:
        self.cost = 0
        self._budget = budget
        self._items: dict[W, _Item[W]] = {}
        self._levels: list[_Level[W]] = []  # the highest priority first
        self._number = 0
        self._gone = 0

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, waiter: W) -> bool:
        return waiter in self._items

    def __iter__(self) -> Iterator[W]:
        """All who wait, in no promised order; for the admin interface and for a reload."""
        return iter(list(self._items))

    def push(
        self, waiter: W, flow: str, weight: int, priority: int, cost: int, arrival_ns: int
    ) -> bool:
        """Lets a request stand in line; False: the budget is used up.

        `flow` is the value that turns are fair between, `weight` (from 1) its share, `arrival_ns`
        when the request first came to the gateway. Raises ValueError if it waits here already.
        """
        budget = self._budget
        if budget.used >= budget.waiters_max:
            budget.refused += 1
            return False
        if waiter in self._items:
            raise ValueError("it waits here already")
        budget.used += 1
        self._number += 1
        level = self._level(priority)
        line = level.flows.get(flow)
        if line is None:
            if len(level.flows) > 2 * level.live + _GONE_SLACK:
                level.forget_idle()
            line = level.flows[flow] = _Flow(flow, level, self._number)
        line.weight = max(1, weight)
        item = _Item(waiter, line, max(1, cost), arrival_ns, self._number)
        self._items[waiter] = item
        heappush(line.items, item)
        line.cost_max = max(item.cost, line.cost_max) if line.live else item.cost
        line.live += 1
        line.cost += item.cost
        level.live += 1
        level.cost += item.cost
        self.cost += item.cost
        if not line.queued:
            line.queued = True
            line.start = max(level.time, line.finish)
            heappush(level.heap, line)
        return True

    def ahead(self, flow: str, weight: int, priority: int, arrival_ns: int) -> int:
        """The tokens that go before such a request if it joined now and nobody came after it.

        Never less than what will be served before it, and more by at most the largest cost of each
        other flow of its priority, unless very many of them go before it (`_WALK_MAX`). All of a
        higher priority counts, nothing of a lower. The work grows with the flows that go before it,
        not with their requests.
        """
        ahead = 0
        for level in self._levels:
            if level.priority > priority:
                ahead += level.cost
            elif level.priority == priority:
                ahead += level.ahead(flow, max(1, weight), arrival_ns)
        return ahead

    def head(self) -> W | None:
        """Whose turn it is, or None if nobody waits."""
        for level in self._levels:
            if level.live:
                item = level.first()
                if item is not None:
                    return item.waiter
        return None

    def pop(self) -> W | None:
        """Takes out whose turn it is: it goes, and its flow has had its turn."""
        waiter = self.head()
        if waiter is None:
            return None
        item = self._items[waiter]
        flow = item.flow
        level = flow.level
        level.time = flow.start
        flow.finish = flow.start + item.cost / flow.weight
        heappop(flow.items)
        item.waiter = None
        self._forget(waiter, item)
        heappop(level.heap)
        if flow.first() is None:
            flow.queued = False
        else:
            flow.start = flow.finish
            heappush(level.heap, flow)
        if not level.live:
            # A busy period is over; who comes now owes nothing to those who went before.
            self._levels.remove(level)
        return waiter

    def remove(self, waiter: W) -> bool:
        """Takes out a request that gives up or goes to another row; False if it was not here."""
        item = self._items.get(waiter)
        if item is None:
            return False
        item.waiter = None
        self._forget(waiter, item)
        self._gone += 1
        if self._gone > len(self._items) + _GONE_SLACK:
            self._clean_slow()
        return True

    def _forget(self, waiter: W, item: _Item[W]) -> None:
        del self._items[waiter]
        flow = item.flow
        flow.live -= 1
        flow.cost -= item.cost
        flow.level.live -= 1
        flow.level.cost -= item.cost
        self.cost -= item.cost
        self._budget.used -= 1

    def _level(self, priority: int) -> _Level[W]:
        levels = self._levels
        for i, level in enumerate(levels):
            if level.priority == priority:
                return level
            if level.priority < priority:
                new: _Level[W] = _Level(priority)
                levels.insert(i, new)
                return new
        new = _Level(priority)
        levels.append(new)
        return new

    def _clean_slow(self) -> None:
        for level in self._levels:
            for flow in level.flows.values():
                if len(flow.items) > flow.live:
                    flow.items = [item for item in flow.items if item.waiter is not None]
                    heapify(flow.items)
        self._levels = [level for level in self._levels if level.live]
        self._gone = 0
