"""Who takes part, and in which rows: a run that would tell nothing takes time from the others."""

from __future__ import annotations

from bench.mesh.contenders import Contender
from bench.mesh.others import Direct, Haproxy, RedisGcra
from bench.mesh.ours import Egressd, Exact, Redis, Spooled, StaticSplit
from bench.mesh.rows import Row

__all__ = ["CONTENDERS", "WAYS", "takes_part"]

# The ways that an operator chooses from, for each route.
WAYS: tuple[type[Egressd], ...] = (Egressd, Exact, Redis, Spooled)
CONTENDERS: tuple[type[Contender], ...] = (*WAYS, Haproxy, StaticSplit, RedisGcra, Direct)


def takes_part(kind: type[Contender], row: Row, *, first: bool) -> bool:
    """Whether the row is run with this contender; `first`: with the first number of nodes. With
    more of them only the mesh is measured, three are enough to tell the others apart."""
    return kind.name in row.who and (first or (kind is Egressd and not row.once))
