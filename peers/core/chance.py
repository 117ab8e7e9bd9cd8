"""Chance as an argument: what the core needs of a generator, and two draws made of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

__all__ = ["Chance", "sample", "shuffled"]

T = TypeVar("T")


class Chance(Protocol):
    """The generator, as `random.Random`; a driver passes one that the operating system seeded."""

    def random(self) -> float: ...

    def getrandbits(self, k: int, /) -> int: ...


def sample(chance: Chance, items: Sequence[T], count: int) -> list[T]:
    """`count` different items, or all of them if there are fewer (Fisher-Yates, cut short)."""
    pool = list(items)
    size = len(pool)
    count = min(count, size)
    for index in range(count):
        other = index + int(chance.random() * (size - index))
        pool[index], pool[other] = pool[other], pool[index]
    return pool[:count]


def shuffled(chance: Chance, items: Sequence[T]) -> list[T]:
    return sample(chance, items, len(items))
