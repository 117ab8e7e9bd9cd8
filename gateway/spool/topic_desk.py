"""What an operator sees of the records that a worker has in hand, and does with them.

What is done or given up stands in the cluster's topics, where its own tools read it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway.spool.record import wall_time

if TYPE_CHECKING:
    from gateway.spool.intake import TopicEntry
    from gateway.spool.kafka import KafkaSpool

__all__ = ["TopicDesk"]


class TopicDesk:
    """One worker's. Satisfies `admin.views.SpoolDesk`."""

    def __init__(self, spool: KafkaSpool) -> None:
        self._spool = spool

    def figures(self) -> dict[str, Any]:
        """How many, how old, how far; for metrics and monitors."""
        spool = self._spool
        upstreams, oldest_s = spool.depths()
        for name, upstream in upstreams.items():
            upstream["held"] = name in spool.held
        held = len(spool.paused)
        return {
            "sent": spool.counts["sent"],
            "accepted": spool.counts["accepted"],
            "known": spool.counts["known"],
            "done": spool.counts["done"],
            "dead": dict(spool.dead),
            "oldest_s": oldest_s,
            "upstreams": upstreams,
            "outcomes_waiting": spool.link.unacknowledged,
            "kafka": {
                "up": int(spool.link.up),
                "idempotent": int(spool.link.idempotent),
                "records": spool.counts["records"],
                "results": spool.counts["results"],
                "dead_letters": spool.counts["dead_letters"],
                "commits": spool.counts["commits"],
                "uncommitted": len(spool.uncommitted()),
                "rebalances": spool.counts["rebalances"],
                "lag": spool.lag(),
                "in_hand": spool.partitions.records,
                "in_hand_bytes": spool.partitions.octets,
                "partitions": {"read": len(spool.partitions) - held, "paused": held},
            },
        }

    async def listed(
        self, states: list[str], upstream: str, after: int, count: int
    ) -> list[dict[str, Any]]:
        """At most `count` records in hand of those states, in the order in which they came."""
        found = [
            entry
            for entry in self._spool.entries.values()
            if entry.number > after
            and self._spool.is_waiting(entry)
            and upstream in ("", entry.upstream)
            and _state(entry) in states
        ]
        found.sort(key=lambda entry: entry.number)
        return [self._item(entry) for entry in found[:count]]

    async def shown(self, name: str) -> dict[str, Any] | None:
        """The record in hand of that id; None: there is none."""
        entry = self._find(name)
        return self._item(entry) if entry is not None else None

    async def requeue(self, name: str) -> bool:
        """Raises ValueError: a dead letter has left this store."""
        raise ValueError(
            f"dead letters stand in the topic {self._spool.conf.dead}; "
            f"produce the original to {self._spool.conf.requests} once more"
        )

    async def drop(self, name: str) -> bool:
        """Gives up a record in hand, unless it is being sent; False: it is, or there is none."""
        entry = self._find(name)
        if entry is None or entry.in_hand or entry.is_out:
            return False
        self._spool.give_up(entry, "dropped", "an operator dropped it")
        return True

    async def hold(self, upstream: str, *, held: bool) -> None:
        """Stops or goes on with this worker's sending to an upstream, until it ends."""
        (self._spool.held.add if held else self._spool.held.discard)(upstream)
        self._spool.look_again()

    def _find(self, name: str) -> TopicEntry | None:
        topic, _, place = name.partition(":")
        partition, _, offset = place.partition(":")
        if topic != self._spool.conf.requests or not (_is_number(partition) and _is_number(offset)):
            return None
        entry = self._spool.entries.get((int(partition), int(offset)))
        return entry if entry is not None and self._spool.is_waiting(entry) else None

    def _item(self, entry: TopicEntry) -> dict[str, Any]:
        partition, offset = entry.place
        envelope, stored = entry.envelope, entry.stored
        assert envelope is not None
        assert stored is not None
        path = stored.target.partition(b"?")[0]  # some APIs take keys in the query
        found: dict[str, Any] = {
            "number": entry.number,
            "id": f"{entry.origin.topic}:{partition}:{offset}",
            "state": _state(entry),
            "upstream": entry.upstream,
            "client": stored.client,
            "method": stored.method.decode("latin-1"),
            "target": entry.secrets.mask(path).decode("latin-1"),
            "bytes": stored.body_bytes,
            "accepted": wall_time(entry.accepted_ms),
            "expires": wall_time(entry.expires_ms),
            "attempts": entry.attempts,
        }
        if entry.first_ms:
            found["first_sent"] = wall_time(entry.first_ms)
            found["last_sent"] = wall_time(entry.last_ms)
        return found


def _state(entry: TopicEntry) -> str:
    return "sending" if entry.is_out else "queued"


def _is_number(digits: str) -> bool:
    return digits.isascii() and digits.isdigit() and len(digits) <= 19
