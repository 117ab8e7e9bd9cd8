"""The adapter between the data path and the mesh, with a node that only notes what it is told."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.breaker.states import GO, TRIAL, BreakerPolicy, BreakerState, Cause, Change
from gateway.breaker.table import BreakerTable
from gateway.clock import SECOND
from gateway.conf.schema_upstream import LimitConf
from gateway.limits.settled import Settled
from gateway.mesh import SCOPE_BYTES, WARNINGS, MeshAdapter, NoMesh
from gateway.proxy import pauses
from gateway.proxy.counts import UpstreamCounts
from peers.core.counters import MeshLimit
from peers.core.events import (
    BreakerClosed,
    BreakerOpened,
    MemberHeard,
    MemberJoined,
    MemberLeft,
    MemberRefused,
    MemberSuspected,
    MemberUnheard,
    MemberUnreached,
    MeshFull,
    NameConflict,
    RowChanged,
    TrialClaimed,
    TripMajority,
    Unreached,
)
from peers.core.exact import ExactLimit

NOW_NS = 1000 * SECOND
CREDENTIAL = b"c" * 16
ADDRESS = ("10.0.0.2", 7946)


class Node:
    """Stands for peers.core.node.Node."""

    def __init__(self) -> None:
        self.config = SimpleNamespace(name="gw-2")
        self.told: list[tuple[Any, ...]] = []
        self.names: list[tuple[str, bool]] = []

    def scope_key(self, *parts: bytes) -> bytes:
        return hashlib.blake2b(b"\0".join(parts), digest_size=SCOPE_BYTES).digest()

    def members(self) -> list[Any]:
        return [SimpleNamespace(name=name, live=live) for name, live in self.names]

    def open_breaker(self, *what: Any) -> None:
        self.told.append(("open", *what))

    def close_breaker(self, *what: Any) -> None:
        self.told.append(("close", *what))

    def claim_trial(self, *what: Any) -> None:
        self.told.append(("claim", *what))

    def release_trial(self, *what: Any) -> None:
        self.told.append(("release", *what))

    def trip(self, *what: Any) -> None:
        self.told.append(("trip", *what))

    def note_demand(self, *what: Any) -> None:
        self.told.append(("demand", *what))

    def limits(self) -> list[Any]:
        return []

    def trial_at_ns(self, scope: bytes, epoch: int, until_ns: int, now_ns: int) -> int:
        return until_ns + 7

    def forget_limit(self, identity: str) -> None:
        self.told.append(("forget", identity))

    def limit(self, identity: str, **facts: Any) -> Any:
        return "mesh", identity, facts

    def exact_limit(self, identity: str, **facts: Any) -> Any:
        return "exact", identity, facts


class Harness:
    """An adapter, two upstreams, and what the waitroom and the log hear."""

    def __init__(self) -> None:
        self.node = Node()
        self.poked: list[Any] = []
        self.logged: list[tuple[str, dict[str, Any]]] = []
        self.upstreams = {name: self._upstream(name) for name in ("api", "other")}
        self.worker: Any = SimpleNamespace(
            now_ns=lambda: NOW_NS,
            waitroom=SimpleNamespace(poke=self.poked.append),
            runtime=SimpleNamespace(upstreams=self.upstreams),
            note_change=lambda upstream, change: None,
        )
        self.mesh = MeshAdapter(
            self.node,  # type: ignore[arg-type]
            self.worker,
            lambda event, **facts: self.logged.append((event, facts)),
        )
        self.worker.mesh = self.mesh
        self.member_changes = 0
        self.mesh.on_members = self._members_changed

    def _upstream(self, name: str) -> Any:
        return SimpleNamespace(
            name=name,
            breakers=BreakerTable(BreakerPolicy(), NOW_NS, 100.0, by_majority=True),
            limit_uses=(),
            counts=UpstreamCounts(),
        )

    def _members_changed(self) -> None:
        self.member_changes += 1

    def scope(self, name: str, credential: bytes = b"") -> bytes:
        return self.node.scope_key(b"upstream", name.encode()) + credential

    def breakers(self, name: str = "api") -> BreakerTable:
        table: BreakerTable = self.upstreams[name].breakers
        return table


@pytest.fixture
def it() -> Harness:
    return Harness()


def opened(scope: bytes, epoch: int = 1, cause: int = 0, reff: float = 0.0) -> BreakerOpened:
    return BreakerOpened(scope, epoch, NOW_NS + 5 * SECOND, cause, "gw-1", reff)


def test_a_peers_pause_holds_here(it: Harness) -> None:
    it.mesh.events([opened(it.scope("api"))])
    breaker = it.breakers().own
    assert breaker.state is BreakerState.OPEN
    assert breaker.cause is Cause.THROTTLE
    assert it.breakers().ask(None, NOW_NS) > 0
    assert it.poked == [breaker]
    assert it.breakers("other").ask(None, NOW_NS) == 0
    it.mesh.events([BreakerClosed(it.scope("api"), 2, 0.0)])
    assert breaker.state is BreakerState.CLOSED
    assert it.poked == [breaker, breaker]


def test_a_pause_for_a_credential_that_was_never_met(it: Harness) -> None:
    it.mesh.events([opened(it.scope("api", CREDENTIAL))])
    assert it.breakers().ask(CREDENTIAL, NOW_NS) > 0
    assert it.breakers().ask(b"d" * 16, NOW_NS) == 0
    assert it.breakers().ask(None, NOW_NS) == 0


def test_causes_have_numbers_and_an_unknown_one_is_a_throttle(it: Harness) -> None:
    it.mesh.events([opened(it.scope("api"), cause=1), opened(it.scope("other"), cause=99)])
    assert it.breakers().own.cause is Cause.FAILURE
    assert it.breakers("other").own.cause is Cause.THROTTLE


def test_news_of_upstreams_that_this_node_has_not_are_no_fault(it: Harness) -> None:
    unknown = b"?" * SCOPE_BYTES
    it.mesh.events(
        [opened(unknown), BreakerClosed(b"", 1, 0.0), TrialClaimed(unknown, 1, NOW_NS), opened(b"")]
    )
    assert it.poked == []


def test_a_claimed_trial_keeps_ours_back(it: Harness) -> None:
    it.mesh.events([opened(it.scope("api"))])
    breaker = it.breakers().own
    later_ns = breaker.until_ns + SECOND
    it.mesh.events([TrialClaimed(it.scope("api"), 1, later_ns + 3 * SECOND)])
    assert it.breakers().ask(None, later_ns) > 0


def test_a_row_with_news_is_looked_at(it: Harness) -> None:
    row: Any = object()
    it.mesh.events([RowChanged(row)])
    assert it.poked == [row]


def test_members_come_and_go(it: Harness) -> None:
    it.mesh.events(
        [
            MemberJoined("gw-1", ADDRESS),
            MemberSuspected("gw-1", ADDRESS),
            MemberUnheard("gw-1", ADDRESS),
            MemberHeard("gw-1", ADDRESS),
            MemberLeft("gw-1", ADDRESS, crashed=True),
            MemberLeft("gw-3", ADDRESS, crashed=False),
            NameConflict("gw-2", ADDRESS, refused=True),
        ]
    )
    assert [event for event, _ in it.logged] == [
        "member joined", "member suspected", "member not heard here though others hear it",
        "member heard again", "member gone", "member left", "name taken",
    ]  # fmt: skip
    assert it.logged[0][1] == {"member": "gw-1", "address": "10.0.0.2:7946"}
    assert it.member_changes == 7


def test_a_share_goes_by_the_names_of_live_members(it: Harness) -> None:
    assert it.mesh.share() == (1, 0)  # not even we are in the list yet
    it.node.names = [("gw-3", True), ("gw-2", True), ("gw-1", True), ("gw-0", False)]
    assert it.mesh.share() == (3, 1)
    it.node.names = [("gw-1", True)]
    assert it.mesh.share() == (2, 0)


def test_our_changes_are_told_under_the_scope(it: Harness) -> None:
    until_ns = NOW_NS + SECOND
    api = it.upstreams["api"]
    change = Change(b"", 3, BreakerState.OPEN, Cause.FAILURE, until_ns)
    it.mesh.breaker_changed(api, change, NOW_NS)
    closed = Change(CREDENTIAL, 4, BreakerState.CLOSED, Cause.THROTTLE, 0, 12.5)
    it.mesh.breaker_changed(api, closed, NOW_NS)
    it.mesh.trial_begun(api, CREDENTIAL, 4, until_ns, NOW_NS)
    it.mesh.forget("id")
    assert it.node.told == [
        ("open", it.scope("api"), 3, until_ns, 1, NOW_NS, 0.0),
        ("close", it.scope("api", CREDENTIAL), 4, NOW_NS, 12.5),
        ("claim", it.scope("api", CREDENTIAL), 4, until_ns, NOW_NS),
        ("forget", "id"),
    ]
    assert it.mesh.trial_at_ns(api, change, NOW_NS) == until_ns + 7


def test_scopes_and_the_hash_key_tell_nothing_and_differ(it: Harness) -> None:
    assert it.scope("api") != it.scope("other")
    assert len(it.mesh.hash_key) == 32
    assert it.mesh.hash_key != it.node.scope_key(b"credentials")


def failing(it: Harness) -> BreakerTable:
    """The upstream fails for this node until its breaker trips."""
    table = it.breakers()
    for _ in range(20):
        changes = table.failed((0, 0), NOW_NS, 0.0)
    pauses.report(it.worker, it.upstreams["api"], changes, NOW_NS)
    return table


def test_a_failure_is_this_nodes_until_a_majority_has_found_it(it: Harness) -> None:
    table = failing(it)
    assert it.node.told == [("trip", it.scope("api"), True, NOW_NS)]
    assert table.own.state is BreakerState.CLOSED
    assert table.ask(None, NOW_NS) > 0  # this node sends nothing all the same
    assert table.shown is table.local
    it.node.told.clear()
    it.mesh.events([TripMajority(it.scope("api"), 2, 3)])
    until_ns = NOW_NS + 5 * SECOND
    assert it.node.told == [
        ("open", it.scope("api"), 0, until_ns, 1, NOW_NS, 0.0),
        ("trip", it.scope("api"), False, NOW_NS),
    ]
    assert table.own.state is BreakerState.OPEN
    assert table.own.cause is Cause.FAILURE
    assert table.shown is table.own
    it.node.told.clear()
    it.mesh.events([TripMajority(it.scope("api"), 2, 3), TripMajority(b"?" * 8, 1, 1)])
    assert it.node.told == []  # said again, and known


def test_held_closed_by_the_operator_is_closed_whoever_found_what(it: Harness) -> None:
    table = failing(it)
    table.force(b"", BreakerState.CLOSED, NOW_NS)
    assert table.ask(None, NOW_NS) == GO
    table.force(b"", None, NOW_NS)
    assert table.ask(None, NOW_NS) > 0


def test_a_failure_of_the_others_takes_this_nodes_own_in(it: Harness) -> None:
    table = failing(it)
    it.node.told.clear()
    it.mesh.events([opened(it.scope("api"), epoch=0, cause=1)])
    assert it.node.told == [("trip", it.scope("api"), False, NOW_NS)]
    assert table.own.state is BreakerState.OPEN
    it.mesh.events([BreakerClosed(it.scope("api"), 1, 0.0)])
    assert table.ask(None, NOW_NS) == 0
    it.mesh.events([TripMajority(it.scope("api"), 2, 3)])  # late: there is nothing to spread
    assert table.own.state is BreakerState.CLOSED


def test_this_nodes_own_failure_ends_with_its_own_trial(it: Harness) -> None:
    table = failing(it)
    it.node.told.clear()
    later_ns = NOW_NS + 6 * SECOND
    assert table.ask(None, later_ns) == TRIAL
    trials = pauses.begin_trials(it.worker, it.upstreams["api"], None, SECOND, later_ns)
    assert it.node.told == []  # nobody else waits for it
    changes = table.succeeded((0, 0), later_ns, trials)
    pauses.report(it.worker, it.upstreams["api"], changes, later_ns)
    assert it.node.told == [("trip", it.scope("api"), False, later_ns)]
    assert table.ask(None, later_ns) == 0
    assert table.own.epoch == 0


def test_a_trial_without_an_outcome_is_given_back_to_all(it: Harness) -> None:
    it.mesh.events([opened(it.scope("api"))])
    table = it.breakers()
    later_ns = table.own.trial_at_ns
    api = it.upstreams["api"]
    trials = pauses.begin_trials(it.worker, api, None, SECOND, later_ns)
    assert it.node.told == [("claim", it.scope("api"), 1, later_ns + SECOND, later_ns)]
    it.node.told.clear()
    table.abandon_trials(trials, later_ns)
    pauses.return_trials(it.worker, api, trials, later_ns)
    assert it.node.told == [("release", it.scope("api"), 1, later_ns)]
    assert it.poked[-1] is table.own
    assert table.ask(None, later_ns) == TRIAL


def test_a_claim_that_comes_back_lets_this_node_go(it: Harness) -> None:
    it.mesh.events([opened(it.scope("api"))])
    breaker = it.breakers().own
    later_ns = breaker.until_ns + SECOND
    it.mesh.events([TrialClaimed(it.scope("api"), 1, later_ns + 60 * SECOND)])
    assert it.breakers().ask(None, later_ns) > 59 * SECOND
    it.mesh.events([TrialClaimed(it.scope("api"), 1, later_ns)])
    assert it.breakers().ask(None, later_ns) == 7  # behind the others, as the node says
    assert it.poked[-1] is breaker


def test_demand_is_told_where_requests_came_and_turns_are_found_anew(it: Harness) -> None:
    it.mesh.tick(NOW_NS)
    assert it.node.told == []
    it.upstreams["api"].counts.requests += 3
    it.mesh.tick(NOW_NS)
    it.mesh.tick(NOW_NS)
    assert it.node.told == [("demand", it.scope("api"), NOW_NS)]
    it.mesh.events([opened(it.scope("api"))])
    breaker = it.breakers().own
    breaker.trial_at_ns = 0
    it.mesh.tick(NOW_NS)
    assert breaker.trial_at_ns == 0  # the end is far
    it.mesh.tick(breaker.until_ns - SECOND // 2)
    assert breaker.trial_at_ns == breaker.until_ns + 7
    assert it.poked[-1] is breaker


def test_a_full_mesh_says_whom_it_refused(it: Harness) -> None:
    it.node.config.members_max = 32
    it.mesh.events([MemberRefused("gw-33", ADDRESS)])
    assert it.logged == [
        (
            "member refused: the mesh is full",
            {"member": "gw-33", "address": "10.0.0.2:7946", "members_max": 32},
        )
    ]


def test_a_node_that_a_full_mesh_refuses_says_why_it_ends(it: Harness) -> None:
    it.node.config.members_max = 32
    reasons: list[str] = []
    it.mesh.on_refused = reasons.append
    it.mesh.events([MeshFull(ADDRESS)])
    (reason,) = reasons
    assert "10.0.0.2:7946" in reason
    assert "32 members" in reason


def test_a_wrong_address_is_told_on_both_sides(it: Harness) -> None:
    it.node.config.advertise = ("10.0.0.9", 7946)
    it.mesh.events([MemberUnreached("gw-3", ("10.0.0.3", 7946), ADDRESS)])
    it.mesh.events([Unreached(2, ADDRESS), Unreached(0, ADDRESS)])
    (other, mine, again) = it.logged
    assert {other[0], mine[0]} == WARNINGS
    assert other[1].pop("why")
    assert other[1] == {
        "member": "gw-3",
        "heard_from": "10.0.0.2:7946",
        "advertises": "10.0.0.3:7946",
    }
    assert mine[1]["members"] == 2
    assert (mine[1]["advertise"], mine[1]["heard_from"]) == ("10.0.0.9:7946", "10.0.0.2:7946")
    assert again[0] == "reached again"


def test_a_burst_too_small_for_the_members_is_in_the_log(it: Harness) -> None:
    limit = SimpleNamespace(identity="id", name="l", tight=False, members=2, drains=False)
    it.node.limits = lambda: [limit]  # type: ignore[attr-defined]
    it.mesh.tick(NOW_NS)
    assert it.logged == []
    limit.tight, limit.members = True, 8
    it.mesh.tick(NOW_NS)
    it.mesh.tick(NOW_NS)
    limit.tight, limit.members = False, 2
    it.mesh.tick(NOW_NS)
    assert it.logged == [
        ("limit tight", {"limit": "l", "members": 8}),
        ("limit no longer tight", {"limit": "l", "members": 2}),
    ]


def mesh_limit(*rates: float) -> MeshLimit:
    """A limit whose only row knows peers that admit so many tokens a second."""
    limit = MeshLimit.__new__(MeshLimit)
    limit._rows = {b"": SimpleNamespace(peers_rate=sum(rates) / SECOND)}  # type: ignore[assignment]
    return limit


def test_the_others_rate_is_that_of_the_fullest_limit(it: Harness) -> None:
    api = it.upstreams["api"]
    assert it.mesh.others_per_s(api) == 0.0
    few, many = mesh_limit(1.0, 2.0), mesh_limit(10.0, 20.0)
    wrapped = Settled(many, 5, 5, 100)
    api.limit_uses = (SimpleNamespace(limit=few), SimpleNamespace(limit=wrapped))
    assert it.mesh.others_per_s(api) == pytest.approx(30.0)


@pytest.mark.parametrize("sync", ["mesh", "exact"])
def test_a_limit_is_made_of_the_kind_that_the_conf_names(it: Harness, sync: str) -> None:
    facts = {"name": "l", "rate": "100/10s", "burst": 7, "keys_max": 9, "sync": sync}
    made: Any = it.mesh.limit("id", LimitConf.model_validate(facts))
    assert made[:2] == (sync, "id")
    assert made[2].pop("now_ns", NOW_NS) == NOW_NS
    assert made[2] == {
        "name": "l", "rate_count": 100, "rate_period_ns": 10 * SECOND, "burst": 7,
        "on_partition": "share", "keys_max": 9, "dry_run": False,
    }  # fmt: skip


def test_the_others_rate_under_an_exact_limit_is_what_its_owner_tells(it: Harness) -> None:
    api = it.upstreams["api"]
    limit = ExactLimit.__new__(ExactLimit)
    row = SimpleNamespace(others_rate=lambda now_ns: 20.0 / SECOND)
    limit._rows = {b"": row, b"k": row}  # type: ignore[assignment]
    api.limit_uses = (SimpleNamespace(limit=limit),)
    assert it.mesh.others_per_s(api) == pytest.approx(40.0)


def test_alone_nobody_is_told() -> None:
    alone = NoMesh(b"k" * 32)
    change = Change(b"", 1, BreakerState.OPEN, Cause.THROTTLE, 77)
    upstream: Any = None
    alone.breaker_changed(upstream, change, 0)
    alone.trial_begun(upstream, b"", 1, 0, 0)
    alone.forget("id")
    alone.tripped(upstream, True, 0)
    alone.trial_returned(upstream, b"", 1, 0)
    assert alone.share() == (1, 0)
    assert alone.others_per_s(upstream) == 0.0
    assert alone.trial_at_ns(upstream, change, 0) == 77
    with pytest.raises(ValueError, match="local limits only"):
        alone.limit("id", upstream)
