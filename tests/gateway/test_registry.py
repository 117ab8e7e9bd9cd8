"""What outlives a reload, by identity; what does not, is let go."""

from __future__ import annotations

import gc
import random
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.clock import SECOND, monotonic_ns, wall_ns
from gateway.conf.schema_upstream import LimitConf
from gateway.limits.central import CentralLimit
from gateway.limits.gcra import Gcra
from gateway.limits.inflight import Inflight
from gateway.limits.settled import Settled, unwrapped
from gateway.limits.window import STEP_NS, Window
from gateway.mesh import MeshAdapter, NoMesh
from gateway.proxy.counts import UpstreamCounts
from gateway.registry import Registry, levers, limit_identity
from peers.core.config import Config
from peers.core.counters import MeshLimit
from peers.core.node import Node
from peers.core.quotas import ExactWindow
from peers.core.windows import WindowLimit


def conf(**facts: Any) -> LimitConf:
    return LimitConf.model_validate({"name": "l", "rate": "100/s", "burst": 10, **facts})


class Mesh:
    """Stands for the mesh: gives plain limits, notes what is forgotten, and tells the share."""

    alone = False
    hash_key = b"k" * 32

    def __init__(self) -> None:
        self.members = (1, 0)
        self.made: dict[str, Gcra] = {}
        self.forgotten: list[str] = []

    def limit(self, identity: str, conf: LimitConf) -> Gcra:
        assert conf.rate is not None
        known = self.made.get(identity)
        if known is None:
            known = self.made[identity] = Gcra(conf.name, *conf.rate, conf.burst)
        known.configure(*conf.rate, conf.burst, monotonic_ns())
        return known

    def forget(self, identity: str) -> None:
        self.forgotten.append(identity)
        self.made.pop(identity, None)

    def share(self) -> tuple[int, int]:
        return self.members


@pytest.mark.parametrize(
    ("facts", "same"),
    [
        ({"rate": "6000/min"}, True),
        ({"burst": 3}, True),
        ({"dry_run": True}, True),
        ({"cost": 2}, True),
        ({"name": "other"}, False),
        ({"key": ["credential"]}, False),
        ({"algorithm": "window"}, False),
    ],
)
def test_identity(facts: dict[str, Any], same: bool) -> None:
    assert (limit_identity("api", conf()) == limit_identity("api", conf(**facts))) is same


def test_identity_of_windows_and_slots() -> None:
    window = conf(algorithm="window")
    assert limit_identity("api", window) == limit_identity("api", window)
    assert limit_identity("api", window) != limit_identity("other", window)
    assert limit_identity("api", window) != limit_identity(
        "api", conf(algorithm="window", rate="100/min")
    )
    slots = LimitConf.model_validate({"name": "l", "in_flight": 5})
    assert limit_identity("api", slots) != limit_identity("api", conf())


def test_an_identity_keeps_its_counter_over_new_figures() -> None:
    registry = Registry(NoMesh(b"k" * 32))
    limit = registry.limit("api", conf())
    row = limit.entry(b"", monotonic_ns())
    row.take(10, monotonic_ns())
    assert row.ask(5, monotonic_ns()) > 0
    same = registry.limit("api", conf(rate="6000/min", burst=20, dry_run=True))
    assert same is limit
    assert same.entry(b"", monotonic_ns()) is row
    assert same.dry_run
    assert row.ask(5, monotonic_ns()) == 0  # the burst has grown under the same count


@pytest.mark.parametrize(
    ("facts", "kind"),
    [({}, Gcra), ({"algorithm": "window"}, Window), ({"rate": None, "in_flight": 7}, Inflight)],
)
def test_limits_are_split_evenly_and_anew(facts: dict[str, Any], kind: type) -> None:
    mesh = Mesh()
    mesh.members = (3, 1)
    registry = Registry(mesh)
    given = {"name": "l", "rate": "100/s", "sync": "local", **facts}
    given = {name: value for name, value in given.items() if value is not None}
    limit: Any = registry.limit("api", LimitConf.model_validate(given))
    assert type(limit) is kind
    part = {Gcra: "tokens_per_ns", Window: "quota", Inflight: "slots"}[kind]
    third = getattr(limit, part)
    mesh.members = (1, 0)
    registry.resplit()
    whole = getattr(limit, part)
    assert third in (pytest.approx(whole / 3), whole // 3, whole // 3 + 1)
    assert mesh.made == {}


def test_a_mesh_wide_limit_is_the_meshs() -> None:
    mesh = Mesh()
    registry = Registry(mesh)
    limit = registry.limit("api", conf(sync="mesh"))
    assert limit is mesh.made[limit_identity("api", conf())]
    mesh.members = (2, 0)
    registry.resplit()
    assert mesh.made["api\0l\0\0smooth"].tokens_per_ns == pytest.approx(100 / SECOND)


def test_an_exact_limit_is_the_meshs_and_alone_it_is_the_nodes_own() -> None:
    mesh = Mesh()
    limit = Registry(mesh).limit("api", conf(sync="exact"))
    assert limit is mesh.made[limit_identity("api", conf())]
    assert type(Registry(NoMesh(b"k" * 32)).limit("api", conf(sync="exact"))) is Gcra


def test_an_exact_window_is_leased_and_follows_the_clock() -> None:
    config = Config(name="a", cluster="c", bind=("127.0.0.1", 1), advertise=("127.0.0.1", 1))
    now_ns = monotonic_ns()
    node = Node(config, random.Random(7), now_ns, 1)
    worker: Any = SimpleNamespace(now_ns=monotonic_ns)
    registry = Registry(MeshAdapter(node, worker, print))
    facts = {"name": "l", "rate": "10/min", "algorithm": "window", "align": "clock"}
    conf = LimitConf.model_validate(facts | {"sync": "exact"})
    limit = registry.limit("api", conf)
    assert isinstance(limit, ExactWindow)
    assert levers(limit) == (None, None), "a quota is no rate that could climb"
    offset_ns = limit.wall_offset_ns + 20 * SECOND
    registry.look_at_clock(offset_ns, now_ns)
    row: Any = limit.entry(b"new", now_ns)
    for _ in range(10):
        assert row.ask(1, now_ns) == 0
        row.take(1, now_ns)
    assert (now_ns + row.ask(1, now_ns) + offset_ns) % (60 * SECOND) == 0
    assert limit.remaining(row, now_ns)[0] == 0
    # The same limit as "mesh" from now on: the leases are gone with the exact one.
    shared = registry.limit("api", LimitConf.model_validate(facts))
    assert isinstance(shared, WindowLimit)
    assert node.stats(now_ns)["limits"].keys() == {limit_identity("api", conf)}


def test_a_limit_that_leaves_the_mesh_is_forgotten_there() -> None:
    mesh = Mesh()
    registry = Registry(mesh)
    identity = limit_identity("api", conf())
    shared = registry.limit("api", conf(sync="mesh"))
    own = registry.limit("api", conf(sync="local"))
    assert own is not shared
    assert mesh.forgotten == [identity]
    assert registry.limit("api", conf(sync="local")) is own
    assert mesh.forgotten == [identity]
    assert registry.limit("api", conf(sync="mesh")) is mesh.made[identity]
    mesh.members = (2, 0)
    registry.resplit()  # the local one is no longer split
    assert own.tokens_per_ns == pytest.approx(100 / SECOND)  # type: ignore[attr-defined]


def test_what_no_conf_names_is_let_go() -> None:
    mesh = Mesh()
    registry = Registry(mesh)
    kept, gone = conf(sync="mesh"), conf(name="gone", sync="mesh")
    limit = registry.limit("api", kept)
    registry.limit("api", gone)
    registry.slots("api", 5)
    registry.slots("old", 5)
    registry.counts["old"] = UpstreamCounts()
    registry.breakers["old"] = object()
    registry.keep_only([limit_identity("api", kept)], ["api"])
    assert mesh.forgotten == [limit_identity("api", gone)]
    assert list(registry.connections) == ["api"]
    assert not registry.counts
    assert not registry.breakers
    assert registry.limit("api", kept) is limit


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"algorithm": "window"},
        {"in_flight": 5},
        {"cost": {"response_header": "X-Used"}},
    ],
    ids=["smooth", "window", "in-flight", "settled"],
)
def test_the_rows_of_a_limit_that_goes_are_freed_without_the_collector(
    facts: dict[str, Any],
) -> None:
    """A table may have 20,000 of them, and the collector comes after 50,000 new objects."""
    registry = Registry(NoMesh(b"k" * 32))
    rate = {} if "in_flight" in facts else {"rate": "100/s", "burst": 10}
    filed = LimitConf.model_validate({"name": "l", **rate, **facts})
    limit = registry.limit("api", filed)
    now_ns = monotonic_ns()
    held = limit.entry(b"held", now_ns)
    kinds = type(held), type(getattr(held, "inner", held))
    for number in range(100):
        limit.entry(b"%d" % number, now_ns)

    def rows() -> int:
        return sum(isinstance(thing, kinds) for thing in gc.get_objects())

    gc.collect()
    before = rows()
    gc.disable()
    try:
        registry.keep_only([], ["api"])
        del limit
        assert before - rows() >= 98 * len(set(kinds))  # one is the last that was used
        held.take(1, now_ns)  # an exchange that is under way ends with the row that it has
    finally:
        gc.enable()


def test_settled_costs_keep_their_means_over_a_reload() -> None:
    registry = Registry(NoMesh(b"k" * 32))
    told = {"cost": {"response_header": "X-Used"}}
    limit: Any = registry.limit("api", conf(**told))
    assert isinstance(limit, Settled)
    now_ns = monotonic_ns()
    limit.entry(b"", now_ns).settle(1, 6, now_ns)
    again: Any = registry.limit("api", conf(burst=4, **told))
    assert again is limit
    assert again.reserve_max == 4
    assert again.entry(b"", now_ns).reserve() == 4  # the mean of 6, at most the burst
    assert again.told_max == 100 * 3600
    plain = registry.limit("api", conf())
    assert plain is limit.inner  # the counter itself goes on


def test_levers() -> None:
    registry = Registry(NoMesh(b"k" * 32))
    told = {"cost": {"response_header": "X-Used"}, "key": ["credential"]}
    for limit in (registry.limit("api", conf()), registry.limit("api", conf(**told))):
        fill, scale = levers(limit)
        assert fill is not None
        assert scale is not None
        now_ns = monotonic_ns()
        row = limit.entry(b"=x", now_ns)
        assert row.ask(1, now_ns) == 0
        fill(now_ns)
        assert row.ask(1, now_ns) > 0
    window = registry.limit("api", conf(name="w", algorithm="window"))
    assert levers(window) == (None, None)
    assert levers(registry.slots("api", 3)) == (None, None)


class Pool:
    closed = False

    def close(self) -> None:
        self.closed = True


def test_pools_live_as_long_as_their_way_out() -> None:
    registry = Registry(NoMesh(b"k" * 32))
    first: Any = registry.pool(("a",), Pool)  # type: ignore[arg-type]
    assert registry.pool(("a",), Pool) is first  # type: ignore[arg-type]
    second: Any = registry.pool(("b",), Pool)  # type: ignore[arg-type]
    registry.close_pools_but({("a",)})
    assert (first.closed, second.closed) == (False, True)
    assert list(registry.pools) == [("a",)]


def test_a_reload_changes_the_alignment_and_keeps_what_was_used() -> None:
    registry = Registry(NoMesh(b"k" * 32))
    facts = {"name": "l", "rate": "100/h", "algorithm": "window"}
    limit = registry.limit("api", LimitConf.model_validate(facts))
    now_ns = monotonic_ns()
    row = limit.entry(b"", now_ns)
    row.take(100, now_ns)
    aligned = LimitConf.model_validate({"align": "clock", **facts})
    assert registry.limit("api", aligned) is limit
    now_ns = monotonic_ns()
    wait_ns = row.ask(1, now_ns)
    assert (wait_ns + wall_ns()) % (3600 * SECOND) < SECOND or wait_ns < SECOND
    # The clock is set to a minute before the hour.
    offset_ns = 59 * 60 * SECOND - now_ns
    registry.look_at_clock(offset_ns, now_ns)
    assert row.ask(1, now_ns) == 60 * SECOND


def test_a_lower_keys_max_is_obeyed_at_once() -> None:
    registry = Registry(NoMesh(b"k" * 32))
    settled = {"cost": {"response_header": "X-Used"}}
    plain, told = registry.limit("api", conf()), registry.limit("other", conf(**settled))
    now_ns = monotonic_ns()
    for limit in (plain, told):
        for i in range(50):
            limit.entry(b"%d" % i, now_ns).take(1, now_ns)
    registry.limit("api", conf(keys_max=20))
    registry.limit("other", conf(keys_max=20, **settled))
    assert len(plain) == 20
    assert (len(told), len(told.inner)) == (20, 20)
    assert plain.evicted_young == 30
    assert plain.entry(b"back", monotonic_ns()).ask(5, monotonic_ns()) > 0  # no fresh burst


def test_settled_costs_reach_a_mesh_wide_row_as_admissions() -> None:
    """Debt is this node's consumption, which peers must hear of; a surplus is its own credit."""
    config = Config(name="a", cluster="c", bind=("127.0.0.1", 1), advertise=("127.0.0.1", 1))
    now_ns = monotonic_ns()
    node = Node(config, random.Random(7), now_ns, 1)
    adapter = MeshAdapter(node, SimpleNamespace(), print)
    registry = Registry(adapter)
    limit = registry.limit("api", conf(burst=50, cost={"response_header": "X-Used"}))
    assert isinstance(unwrapped(limit), MeshLimit)
    row: Any = limit.entry(b"", now_ns)
    assert row.ask(row.reserve(), now_ns) == 0
    row.take(1, now_ns)
    row.settle(1, 30, now_ns)
    assert (row.inner.own, row.credit) == (30, 0)
    assert row.inner.level(now_ns) == pytest.approx(30)
    row.settle(30, 10, now_ns)
    assert (row.inner.own, row.credit) == (30, 20)
    assert row.ask(40, now_ns) == 0  # twenty in the bucket, twenty of credit
    assert row.ask(41, now_ns) > 0
    assert row.learn(5, now_ns, now_ns)
    assert limit.remaining(row, now_ns)[0] == 5


def test_a_clock_that_is_set_moves_the_next_windows_of_the_mesh() -> None:
    config = Config(name="a", cluster="c", bind=("127.0.0.1", 1), advertise=("127.0.0.1", 1))
    now_ns = monotonic_ns()
    node = Node(config, random.Random(7), now_ns, 1)
    registry = Registry(MeshAdapter(node, SimpleNamespace(), print))
    facts = {"name": "l", "rate": "10/min", "algorithm": "window", "align": "clock"}
    limit = registry.limit("api", LimitConf.model_validate(facts))
    assert isinstance(limit, WindowLimit)
    before_ns = limit.wall_offset_ns
    registry.look_at_clock(before_ns + STEP_NS // 2, now_ns)
    assert limit.wall_offset_ns == before_ns
    registry.look_at_clock(before_ns + 20 * SECOND, now_ns)
    assert limit.wall_offset_ns == before_ns + 20 * SECOND
    row: Any = limit.entry(b"new", now_ns)
    row.take(10, now_ns)
    assert (now_ns + row.ask(1, now_ns) + limit.wall_offset_ns) % (60 * SECOND) == 0


def test_a_limit_of_the_store_has_the_meshs_behind_it() -> None:
    mesh = Mesh()
    registry = Registry(mesh)
    of_mesh = registry.limit("u", conf())
    in_store = registry.limit("u", conf(sync="redis", rate="200/s"))
    assert isinstance(in_store, CentralLimit)
    assert in_store.inner is of_mesh, "the counter goes on"
    assert (in_store.most, in_store.window) == (10, False)
    assert in_store.tokens_per_ns == pytest.approx(200 / SECOND)
    row = in_store.entry(b"k", 0)
    assert registry.limit("u", conf(sync="redis", burst=20)) is in_store
    assert in_store.entry(b"k", 0) is row and in_store.most == 20
    window = registry.limit("u", conf(sync="redis", algorithm="window", align="clock"))
    assert isinstance(window, CentralLimit) and window.window and window.aligned
    assert window.most == 100
    assert not isinstance(registry.limit("u", conf()), CentralLimit)
    registry.keep_only([], [])
    assert registry.limit("u", conf(sync="redis")) is not in_store


def test_a_cost_that_is_told_afterwards_in_front_of_the_store() -> None:
    limit = Registry(Mesh()).limit("u", conf(sync="redis", cost={"response_header": "X-Cost"}))
    assert isinstance(limit, Settled) and isinstance(limit.inner, CentralLimit)


def test_a_pauses_end_reaches_the_limit_behind_and_the_store() -> None:
    limit = Registry(Mesh()).limit("u", conf(sync="redis"))
    assert isinstance(limit, CentralLimit)
    fill, scale = levers(limit)
    assert fill is not None and scale is not None
    now_ns = monotonic_ns()
    row = limit.entry(b"", now_ns)
    row.granted(3, now_ns)
    row.told_epoch = 0
    fill(now_ns)
    assert row.purse == 0 and row.told_epoch != 0
    assert row.level(now_ns) == pytest.approx(10.0, abs=0.1)
    scale(0.5, now_ns)
    assert limit.factor == 0.5
    assert isinstance(limit.inner, Gcra)
    assert limit.inner.tokens_per_ns == pytest.approx(50 / SECOND)
