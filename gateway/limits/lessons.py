"""What an upstream says is left of its limits, beside what we believe: looked at, or taken over.

Someone else may spend an API's quota too: a cron job, a colleague with curl. Only the API sees all,
and many tell in each response what is left. Whoever asks for it (`learn = "adopt"`) has a lower
figure than ours taken over at once; a higher one never, because it is older than what we have sent
since. Two figures must not be mixed up. Ours has every request that we let go, the API's only those
that it had met when it answered. So the larger consumption of the two counts and never their sum,
and the API's is dated back to when its request was sent: what came after that is in ours.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from gateway.limits.verdict import Limit

__all__ = ["Advert", "Lesson", "Lessons"]

_MS_NS = 1_000_000
_NEVER_NS = 1 << 63

# Reading a success's fields costs 10 to 20 us. To show them, ten a second are enough: a
# five-thousandth of a core. To take them over, every response is read.
OBSERVE_NS = 100 * _MS_NS

# Rows whose last advertisement is kept, at some 250 B each; the ones not heard of for longest go.
ROWS_MAX = 1000


class Advert(NamedTuple):
    """What was told about a row. `free` is what we believed to be left when it came.

    `quota` and `reset_ns` (from then) are None where they were not told.
    """

    quota: int | None
    remaining: int
    reset_ns: int | None
    heard_ns: int
    free: int


class Lesson:
    """What was told about the rows of one limit. `adopted` counts the figures taken over."""

    __slots__ = ("_rows", "adopted", "adopts", "limit", "told")

    def __init__(self, limit: Limit, *, adopts: bool) -> None:
        self.limit = limit
        self.adopts = adopts
        self.told = 0
        self.adopted = 0
        self._rows: OrderedDict[bytes, Advert] = OrderedDict()

    def hear(
        self,
        key: bytes,
        quota: int | None,
        remaining: int,
        reset_ns: int | None,
        sent_ns: int,
        now_ns: int,
    ) -> None:
        """A response to a request sent at `sent_ns` told this about its row."""
        row = self.limit.entry(key, now_ns)
        free, _ = self.limit.remaining(row, now_ns)
        self.told += 1
        rows = self._rows
        rows[key] = Advert(quota, remaining, reset_ns, now_ns, free)
        rows.move_to_end(key)
        if len(rows) > ROWS_MAX:
            rows.popitem(last=False)
        if self.adopts and row.learn(remaining, sent_ns, now_ns):
            self.adopted += 1

    @property
    def newest(self) -> Advert | None:
        """What was told last."""
        rows = self._rows
        return rows[next(reversed(rows))] if rows else None

    def of(self, key: bytes) -> Advert | None:
        """What was told last about one row."""
        return self._rows.get(key)

    def __len__(self) -> int:
        return len(self._rows)


class Lessons:
    """An upstream's lessons by the position of their limits. `look_ns`: when to read a success."""

    __slots__ = ("_every_ns", "by_limit", "look_ns")

    def __init__(
        self, by_limit: dict[int, Lesson], *, each: bool = False, glances: bool = False
    ) -> None:
        """`each`: every success is read, also where no limit takes anything over; `glances`: now
        and then one is, also where no limit is to learn."""
        self.by_limit = by_limit
        every = each or any(lesson.adopts for lesson in by_limit.values())
        self._every_ns = 0 if every else OBSERVE_NS
        self.look_ns = 0 if every or by_limit or glances else _NEVER_NS

    def looked(self, now_ns: int) -> None:
        """A response's fields are read now."""
        if self._every_ns and self.look_ns < _NEVER_NS:
            self.look_ns = now_ns + self._every_ns

    def hear(
        self,
        keys: Sequence[bytes],
        told: tuple[int | None, int | None, int | None],
        sent_ns: int,
        now_ns: int,
    ) -> None:
        """`told` is (limit, remaining, reset in ns); it concerns the rows of these keys."""
        quota, remaining, reset_ns = told
        if remaining is not None:
            for index, lesson in self.by_limit.items():
                lesson.hear(keys[index], quota, remaining, reset_ns, sent_ns, now_ns)
