"""How a node's part of a whole is cut when nodes do not talk about demand (`sync = "local"`)."""

from __future__ import annotations

__all__ = ["even_share"]


def even_share(whole: int, members: int, rank: int) -> int:
    """The part of `whole` that member number `rank` (from 0) of `members` has.

    The parts of all ranks sum to `whole`: the first `whole % members` ranks have one more.
    Raises ValueError for a rank that is not one of the members'.
    """
    if not 0 <= rank < members:
        raise ValueError(f"rank {rank} of {members} members")
    return whole // members + (1 if rank < whole % members else 0)
