"""What an operator may change in a worker that runs, besides its file: the admin interface's hands.

Each of these lasts until the next reload or until it is taken back, and each is logged, because a
node that behaves unlike its file must say why.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway.conf.check_upstream import upstream_faults
from gateway.conf.schema_upstream import LimitConf, default_burst
from gateway.conf.units import Rate

if TYPE_CHECKING:
    from gateway.server import Server

__all__ = ["Operator"]


class Operator:
    """The verbs that need more than the data path: figures, draining, reload, membership."""

    def __init__(self, server: Server) -> None:
        self._server = server
        # Limits whose figures are not the file's, with those of the file, by (upstream, limit).
        self.overridden: dict[tuple[str, str], LimitConf] = {}

    def set_rate(self, upstream: str, limit: str, rate: Rate, burst: int | None) -> LimitConf:
        """Gives a limit another rate until the next reload; returns what is in force now.

        Without `burst` the file's one stays, or follows the rate where the file has none. Raises
        LookupError for an unknown limit and ValueError for figures that it cannot have.
        """
        was = self._limit(upstream, limit)
        if was.rate is None:
            raise ValueError("it counts requests in flight and has no rate")
        if was.algorithm == "window" and was.rate.period_ns != rate.period_ns:
            raise ValueError(f"a window keeps its length: N/{str(was.rate).partition('/')[2]}")
        derived = burst is None and "burst" not in was.model_fields_set
        if burst is None:
            burst = default_burst({"rate": rate}) if derived else was.burst
        changed = was.model_copy(update={"rate": rate, "burst": burst})
        if derived:
            changed.model_fields_set.discard("burst")  # nobody has named it yet
        self._put(upstream, changed)
        self.overridden.setdefault((upstream, limit), was)
        self._server.log.warning(
            "rate set by the operator", upstream=upstream, limit=limit, rate=str(rate), burst=burst
        )
        return changed

    def reset_rate(self, upstream: str, limit: str) -> LimitConf:
        """Gives a limit the file's figures back. Raises LookupError for an unknown limit."""
        filed = self.overridden.pop((upstream, limit), None)
        if filed is None:
            return self._limit(upstream, limit)
        self._put(upstream, filed)
        self._server.log.warning(
            "rate as in the file again", upstream=upstream, limit=limit, rate=str(filed.rate)
        )
        return filed

    def drain(self, on: bool) -> None:
        """Takes the node out of its virtual address, or puts it back; the process goes on.

        While it drains `/ready` says so and each connection closes after its answer; whoever comes
        all the same is served.
        """
        worker = self._server.worker
        if worker.draining != on:
            worker.draining = on
            self._server.log.warning("drained by the operator" if on else "serving again")

    def forget_member(self, name: str) -> bool:
        """Takes a dead member for one that left, so that no majority waits for it."""
        driver = self._server.driver
        forgotten = driver is not None and driver.node.forget_member(name)
        if forgotten:
            self._server.log.warning("member forgotten by the operator", member=name)
        return forgotten

    def members(self) -> list[dict[str, Any]]:
        """Names and states of the members known, this node first; none without a mesh."""
        driver = self._server.driver
        known = driver.node.members() if driver is not None else []
        return [{"name": member.name, "state": member.state.name.lower()} for member in known]

    def note(self, event: str, **facts: object) -> None:
        """Logs what the operator did by other hands."""
        self._server.log.warning(event, by="operator", **facts)

    def _limit(self, upstream: str, limit: str) -> LimitConf:
        for conf in self._server.conf.upstream[upstream].limit:
            if conf.name == limit:
                return conf
        raise LookupError(limit)

    def _put(self, name: str, changed: LimitConf) -> None:
        server = self._server
        upstream = server.conf.upstream[name]
        limits = tuple(changed if one.name == changed.name else one for one in upstream.limit)
        upstream = upstream.model_copy(update={"limit": limits})
        faults = list(upstream_faults(name, upstream, server.conf))
        if faults:
            raise ValueError(f"{faults[0].path[-1]} {faults[0].message}")
        conf = server.conf.model_copy(update={"upstream": {**server.conf.upstream, name: upstream}})
        server.assembly.retune(conf, name)
        server.conf = conf
