"""Sends records when they may go: what all stores of them have in common.

Nothing here polls. A record that may not go now stands in a row's queue for a moment, or its lane
sleeps until the time that it was told; one timer serves all lanes. What a record is and what came
of it are kept by the store (`worker` has SQLite's, `kafka` a cluster's); `Lanes` has of it what
choosing the next one needs.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Final

from gateway.breaker.signals import Decision, Signal
from gateway.clock import MS, SECOND
from gateway.errors import GatewayError, Retry
from gateway.h1.codec import HeadLimits
from gateway.proxy.graph import Listener
from gateway.proxy.stage import Stage
from gateway.spool.lanes import Lanes
from gateway.spool.record import BODY_BYTES_MAX, PART_BYTES, Entry, Result, Stored
from gateway.spool.sending import Sending

if TYPE_CHECKING:
    from gateway.breaker.states import Change
    from gateway.proxy.graph import Upstream, Worker
    from gateway.proxy.spooling import SpoolRule

__all__ = ["Sender"]

# Loaded or waiting in a row's queue, for one upstream: at 64 KiB and a head each 24 MiB.
IN_QUEUES_MAX: Final = 256
LOADED_AT_ONCE: Final = 64
# Bodies that are being sent, of all upstreams; one longer one may come on top.
BODY_BYTES_OUT_MAX: Final = 64 * 1024 * 1024
BACKOFF_NS: Final = SECOND
BACKOFF_MAX_NS: Final = 5 * 60 * SECOND  # as long as a breaker's longest pause of its own making


class Sender(ABC):
    """Satisfies `sending.Owner` for sends."""

    part_bytes: ClassVar[int] = PART_BYTES  # of a response's pieces, for `put_part`

    def __init__(self, worker: Worker, name: str) -> None:
        """`name` is the listener's in access logs."""
        self.worker = worker
        self.lanes: dict[str, Lanes] = {}
        self.out: set[Sending] = set()
        self.waiting: set[Sending] = set()
        self.counts: dict[str, int] = {"sent": 0, "done": 0}
        self.dead: dict[str, int] = {}
        self._listener = Listener(name, HeadLimits(64 * 1024, 200), 1)
        self._body_bytes_out = 0
        self._is_stopped = False
        self._is_closed = False
        self._pump_due = False
        self._timer: asyncio.TimerHandle | None = None

    # The store's side.

    @abstractmethod
    def _load(self, taken: list[Entry]) -> None:
        """Gets what is needed to send these, and calls `_loaded`."""

    @abstractmethod
    def _keep_begun(self, entry: Entry, now_ms: int) -> None:
        """It goes out."""

    @abstractmethod
    def _keep_failed(self, entry: Entry, status: int) -> None:
        """A send failed, and there will be another."""

    @abstractmethod
    def _keep_done(self, sending: Sending, result: Result, now_ms: int) -> None:
        """It has its response."""

    @abstractmethod
    def _keep_dead(self, entry: Entry, reason: str, status: int, now_ms: int) -> None:
        """It is given up."""

    @abstractmethod
    def _may_take(self, name: str) -> bool:
        """Whether more may be sent to that upstream now."""

    @abstractmethod
    def load_body(self, sending: Sending) -> None:
        """Gets a body that has parts, for `Sending.body_loaded`."""

    @abstractmethod
    def put_part(self, sending: Sending, number: int, data: bytes) -> None:
        """Keeps a piece of a response, and calls `Sending.part_kept`."""

    @abstractmethod
    def forget_parts(self, sending: Sending) -> None:
        """A response broke off: its pieces are no result."""

    def result_bytes_max(self, entry: Entry) -> int:
        """Of how long a response its beginning is kept."""
        return BODY_BYTES_MAX

    # What others ask.

    def stop_sending(self) -> None:
        """Nothing new is sent; what waits in a queue goes back into its lane."""
        self._is_stopped = True
        self._leave_queues()

    def changed(self, upstream: str, change: Change) -> None:
        """A breaker opened or closed: what sleeps until its end is looked at."""
        lanes = self.lanes.get(upstream)
        if lanes is not None:
            lanes.wake_all()
            self._pump_soon()

    def add(self, entry: Entry) -> None:
        """A record that is to be sent."""
        self._lanes_of(entry.upstream).add(entry)
        self._pump_soon()

    def is_in_hand(self, upstream: str, number: int) -> bool:
        """Whether it is about to be sent, or is."""
        entry = self.lanes[upstream].find(number) if upstream in self.lanes else None
        return entry is not None and (entry.in_hand or entry.is_out)

    def drop(self, upstream: str, number: int) -> None:
        """It will not be sent; there may be none."""
        entry = self.lanes[upstream].find(number) if upstream in self.lanes else None
        if entry is not None:
            self._forget(entry)

    def look_again(self) -> None:
        """What held requests back may be over."""
        self._pump_soon()

    def rule(self, upstream: str) -> SpoolRule | None:
        """How an upstream's are sent now; None: they are not."""
        found = self.worker.runtime.upstreams.get(upstream)
        return found.spool if found is not None else None

    @property
    def waiting_count(self) -> int:
        """Records without an outcome."""
        return sum(map(len, self.lanes.values()))

    def depths(self) -> tuple[dict[str, Any], float]:
        """What waits for each upstream and what is sent; and how old the oldest is, in seconds."""
        now_ms = self.worker.wall_ns() // MS
        upstreams: dict[str, Any] = {}
        oldest_ms = now_ms
        for name, lanes in self.lanes.items():
            oldest_ms = min(oldest_ms, lanes.oldest_ms() or now_ms)
            upstreams[name] = {"queued": len(lanes) - lanes.out, "sending": lanes.out}
        return upstreams, round((now_ms - oldest_ms) / 1000, 3)

    def orphans(self) -> dict[str, int]:
        """How many records wait for which upstream that sends none any more: until they expire."""
        return {name: len(lanes) for name, lanes in self.lanes.items() if self.rule(name) is None}

    def _rules_changed(self) -> None:
        """A reload: upstreams, orders and figures may be others."""
        for name, lanes in list(self.lanes.items()):
            rule = self.rule(name)
            if rule is not None and (rule.order_by is not None) != lanes.ordered:
                lanes.set_ordered(ordered=rule.order_by is not None)
            lanes.wake_all()
        self._pump_soon()

    def _leave_queues(self) -> None:
        for sending in list(self.waiting):
            if sending.stage is Stage.HELD:
                self.worker.waitroom.leave(sending)
                sending.rejoin(0)

    def _close(self) -> None:
        self._is_stopped = self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()

    # What a send tells.

    def went_out(self, sending: Sending) -> None:
        """It has its tokens."""
        self.waiting.discard(sending)
        self.out.add(sending)
        entry = sending.entry
        self._body_bytes_out += entry.body_bytes
        self.counts["sent"] += 1
        now_ms = self.worker.wall_ns() // MS
        entry.first_ms = entry.first_ms or now_ms
        self._keep_begun(entry, now_ms)
        self._lanes_of(entry.upstream).sent(entry)
        self._pump_soon()

    def must_wait(self, sending: Sending, wait_ns: int) -> None:
        """Not now; no attempt was made."""
        self._came_back(sending)
        until_ns = self.worker.now_ns() + wait_ns if wait_ns else 0
        self._put_back(sending.entry, until_ns, all_of_them=True)

    def answered(self, sending: Sending, result: Result) -> None:
        """The upstream did its work."""
        self._came_back(sending)
        if self._is_closed:
            return
        self._forget(sending.entry)
        self._keep_done(sending, result, self.worker.wall_ns() // MS)

    def refused(self, sending: Sending, status: int, signal: Signal) -> None:
        """The upstream answered, and it was a failure or a throttle: an attempt."""
        self._came_back(sending)
        if signal.may_retry is False or signal.decision is Decision.NO_RETRY:
            self._bury(sending.entry, "upstream_forbids_retry", status)
            return
        # A pause is waited for where all wait for it; without one the record waits by itself.
        throttled = signal.decision in (Decision.THROTTLE, Decision.OVERLOAD) and signal.pauses
        self._attempted(sending.entry, status, backs_off=not throttled)

    def failed(self, sending: Sending, error: GatewayError) -> None:
        """There was no answer, or it may not go at all."""
        self._came_back(sending)
        entry = sending.entry
        kind = error.kind
        if self.worker.wall_ns() >= entry.expires_ms * MS and not sending.is_out:
            self._bury(entry, "expired", 0)
        elif kind.retry is Retry.NEVER:  # no repetition makes it better
            self._bury(entry, kind.name.lower(), 0)
        elif not sending.is_out:
            self._put_back(
                entry,
                self.worker.now_ns() + max(error.retry_after_ns or 0, 100 * MS),
                all_of_them=True,
            )
        elif kind.retry is Retry.SAFE:
            # It never reached the upstream, which is no attempt; the breaker counts it as well.
            entry.failures += 1
            self._sent_again(entry, 0)
        else:
            self._attempted(entry, 0, backs_off=True)

    # Outcomes.

    def _attempted(self, entry: Entry, status: int, *, backs_off: bool) -> None:
        entry.attempts += 1
        rule = self.rule(entry.upstream)
        if rule is not None and entry.attempts >= rule.attempts:
            self._bury(entry, "attempts", status)
            return
        if backs_off:
            entry.failures += 1
        self._sent_again(entry, status, backs_off=backs_off)

    def _sent_again(self, entry: Entry, status: int, *, backs_off: bool = True) -> None:
        if self._is_closed:
            return
        self._keep_failed(entry, status)
        until_ns = 0
        if backs_off:
            longest_ns = min(BACKOFF_MAX_NS, BACKOFF_NS << min(entry.failures - 1, 20))
            # Between a half and the whole, so that what failed together does not come together.
            wait_ns = int(longest_ns * (0.5 + self.worker.chance() / 2))
            until_ns = self.worker.now_ns() + wait_ns
        self._put_back(entry, until_ns, all_of_them=False)

    def _bury(self, entry: Entry, reason: str, status: int) -> None:
        if self._is_closed:
            return
        self._forget(entry)
        self.dead[reason] = self.dead.get(reason, 0) + 1
        self._keep_dead(entry, reason, status, self.worker.wall_ns() // MS)

    def _put_back(self, entry: Entry, until_ns: int, *, all_of_them: bool) -> None:
        lanes = self._lanes_of(entry.upstream)
        lanes.put_back(entry, until_ns, all_of_them=all_of_them)
        self._pump_soon()

    def _forget(self, entry: Entry) -> None:
        lanes = self._lanes_of(entry.upstream)
        lanes.forget(entry)
        if not lanes:
            del self.lanes[entry.upstream]
        self._pump_soon()

    def _came_back(self, sending: Sending) -> None:
        self.waiting.discard(sending)
        if sending in self.out:
            self.out.discard(sending)
            self._body_bytes_out -= sending.entry.body_bytes

    # Taking from the lanes.

    def _lanes_of(self, upstream: str) -> Lanes:
        lanes = self.lanes.get(upstream)
        if lanes is None:
            rule = self.rule(upstream)
            ordered = rule is not None and rule.order_by is not None
            lanes = self.lanes[upstream] = Lanes(ordered=ordered)
        return lanes

    def _pump_soon(self) -> None:
        if not self._pump_due and not self._is_closed:
            self._pump_due = True
            self.worker.loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pump_due = False
        if self._is_closed:
            return
        now_ns = self.worker.now_ns()
        self._expire()
        for name, lanes in list(self.lanes.items()):
            lanes.wake(now_ns)
            upstream = self.worker.runtime.upstreams.get(name)
            if (
                upstream is not None
                and upstream.spool is not None
                and not self._is_stopped
                and self._may_take(name)
            ):
                self._take(upstream, lanes)
        self._arm(now_ns)

    def _take(self, upstream: Upstream, lanes: Lanes) -> None:
        out_max = max(1, upstream.slots.limit.slots // 2)  # the other half is for live traffic
        queued_max = max(1, min(IN_QUEUES_MAX, upstream.queue_budget.waiters_max // 2))
        taken: list[Entry] = []
        while (
            len(taken) < LOADED_AT_ONCE
            and lanes.in_hand < queued_max + lanes.out
            and lanes.out < out_max
            and self._body_bytes_out < BODY_BYTES_OUT_MAX
        ):
            entry = lanes.take()
            if entry is None:
                if lanes.has_turns:
                    self._pump_soon()
                break
            taken.append(entry)
        if taken:
            self._load(taken)

    def _loaded(self, taken: list[Entry], stored: list[Stored] | Exception) -> None:
        if self._is_closed:
            return
        if isinstance(stored, Exception):
            self.worker.count("spool_loads_failed")
            until_ns = self.worker.now_ns() + BACKOFF_NS
            for entry in taken:
                self._put_back(entry, until_ns, all_of_them=True)
            return
        by_number = {each.number: each for each in stored}
        for entry in taken:
            found = by_number.get(entry.number)
            if found is None:
                self._forget(entry)  # it was dropped
            else:
                self._begin(entry, found)

    def _begin(self, entry: Entry, stored: Stored) -> None:
        upstream = self.worker.runtime.upstreams.get(entry.upstream)
        if upstream is None or upstream.spool is None or self._is_stopped:
            self._put_back(entry, 0, all_of_them=True)
            return
        sending = Sending(self, self.worker, self._listener, entry, stored)
        self.waiting.add(sending)
        sending.begin(upstream, upstream.spool, self.worker.now_ns())

    def _expire(self) -> None:
        now_ms = self.worker.wall_ns() // MS
        for name, lanes in list(self.lanes.items()):
            reason = "expired" if self.rule(name) is not None else "upstream_gone"
            for entry in lanes.expire(now_ms):
                self._bury(entry, reason, 0)
            if not lanes:
                self.lanes.pop(name, None)

    def _arm(self, now_ns: int) -> None:
        """One timer for what comes first: the end of a lane's sleep, or an expiry."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waits = self._waits_ns(now_ns)
        if waits:
            delay = max(0, min(waits)) / SECOND
            self._timer = self.worker.loop.call_later(delay, self._ring)

    def _waits_ns(self, now_ns: int) -> list[int]:
        """How long until something is to be done, for each thing that has a time."""
        wall_ns = self.worker.wall_ns()
        waits = []
        for lanes in self.lanes.values():
            wake_ns = lanes.next_wake_ns()
            if wake_ns is not None:
                waits.append(wake_ns - now_ns)
            expiry_ms = lanes.next_expiry_ms()
            if expiry_ms is not None:
                waits.append(expiry_ms * MS - wall_ns)
        return waits

    def _ring(self) -> None:
        self._timer = None
        self._pump()
