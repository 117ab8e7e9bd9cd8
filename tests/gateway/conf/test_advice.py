"""Warnings, and the account in numbers."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gateway.clock import SECOND
from gateway.conf.account import account, effective_burst, members_expected
from gateway.conf.advice import warnings
from gateway.conf.check_routes import shadowed_routes
from gateway.conf.schema import Conf, Route
from gateway.conf.units import Rate

Loaded = Callable[..., Conf]

A = '[upstream.a]\norigin = "https://a"\n'
LIMIT = A + '[[upstream.a.limit]]\nname = "l"\n'
ENOUGH = 'rate = "100/s"\nburst = 100\n'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (LIMIT + ENOUGH, None),
        ("", "upstream: there is none, and forward.allow is empty"),
        (
            A + '[forward]\nallow = ["b:443"]\ndeny_private = false',
            "forward.deny_private: false lets",
        ),
        (
            'listen = [{ bind = "0.0.0.0:1" }]\n' + A + '[forward]\nallow = ["*:443"]',
            "forward.allow: any",
        ),
        (A + '[forward]\nallow = ["*:443"]', None),
        (A + '[spool.kafka]\nbootstrap = ["k:1"]', "spool.kafka: no upstream has a spool"),
        (
            LIMIT + ENOUGH + '[upstream.a.spool]\n[spool.kafka]\nbootstrap = ["k:1"]',
            None,
        ),
        (
            A + 'host = "client"\n[upstream.a.spool]\n[spool.kafka]\nbootstrap = ["k:1"]',
            "upstream.a.host: a record has the origin's Host",
        ),
        (A + '[upstream.a.spool]\n[spool]\npath = "/no/such/s.db"', "spool.path: there is no dir"),
        (A + '[upstream.a.spool]\n[spool]\npath = "/tmp/s.db"', None),
        (A + '[spool]\npath = "/no/such/s.db"', None),
        (A + '[mesh]\nbind = "127.0.0.1:7946"', "mesh.join: is empty"),
        (
            A + '[mesh]\nbind = "127.0.0.1:7946"\njoin = ["127.0.0.1:1", "gw-2:7946"]',
            "mesh.join.1: gw-2:7946 cannot be reached from a loopback bind",
        ),
        (A + '[upstream.b]\norigin = "https://a:443"', "upstream.b.origin: is also a's"),
        (
            A + "tls.verify = false",
            "upstream.a.tls.verify: false: whoever answers for a is believed",
        ),
        (
            '[upstream.a]\norigin = "http://a"\nheaders.set.Authorization.env = "KEY"',
            "upstream.a.headers: a secret is sent in clear to http://a",
        ),
        (
            A + 'timeout.response = "11m"',
            "upstream.a.timeout.response: is longer than timeout.total",
        ),
        (
            A + 'timeout.head = "4s"\n[upstream.b]\norigin = "https://b"',
            "upstream.a.timeout.head: 4s without effect: a head is read before its upstream is "
            "known, so the longest is in effect for all (10s, b's)",
        ),
        (
            A + '[upstream.b]\norigin = "https://b"\ntimeout.head = "30s"\n'
            '[upstream.c]\norigin = "https://c"',
            "upstream.a.timeout.head: 10s and 1 more without effect",
        ),
        (
            A + 'timeout.head = "4s"\n[upstream.b]\norigin = "https://b"\ntimeout.head = "4s"',
            None,
        ),
        (
            A + '[forward]\nallow = ["b:443", "[::ffff:127.0.0.1]:19000", "[2001:db8::1]:443"]',
            "forward.allow.1: [::ffff:7f00:1]:19000 is an IPv4-mapped address, and clients do not "
            'name it so; use "127.0.0.1:19000"',
        ),
        (A + 'wait.max = "10m"', "upstream.a.wait.max: is not shorter than timeout.total"),
        (
            A + 'tunnel = true\nlimit = [{ name = "l", rate = "100/s", burst = 100 }]',
            "upstream.a.tunnel: requests inside a tunnel are seen by no limit",
        ),
        (
            LIMIT + ENOUGH + "keys_max = 5",
            "upstream.a.limit.l.keys_max: has no effect without `key`",
        ),
        (LIMIT + "in_flight = 2", "upstream.a.limit.l.in_flight: 2 cannot be split evenly over 3"),
        (LIMIT + 'rate = "1/s"\nburst = 2', "upstream.a.limit.l.burst: 2 is less than 3 members"),
        (LIMIT + 'rate = "1000/s"\nburst = 4', "upstream.a.limit.l.burst: 4 is too little to keep"),
        (LIMIT + 'rate = "1000/s"\nburst = 4\nsync = "local"', None),
        (LIMIT + 'rate = "5/s"\nalgorithm = "window"', None),
    ],
)
def test_warnings(text: str, expected: str | None, loaded: Loaded) -> None:
    found = warnings(loaded(text, KEY="x"), members=3)
    if expected is None:
        assert found == []
    else:
        assert len(found) == 1, found
        assert found[0].startswith(expected)


def _route(host: str | None, path: str, *methods: str) -> Route:
    return Route.model_validate(
        {"path": path, "upstream": "a", "methods": list(methods)} | ({"host": host} if host else {})
    )


@pytest.mark.parametrize(
    ("earlier", "later", "shadowed"),
    [
        (_route(None, "/"), _route("a.b", "/x"), True),
        (_route("*.b", "/"), _route("a.b", "/x"), True),
        (_route("*.b", "/"), _route("*.a.b", "/"), True),
        (_route("*.a.b", "/"), _route("*.b", "/"), False),
        (_route("*.b", "/"), _route("b", "/x"), False),
        (_route("a.b", "/x"), _route("a.b", "/x/y/"), True),
        (_route("a.b", "/x"), _route("a.b", "/xy"), False),
        (_route("a.b", "/x/y"), _route("a.b", "/x"), False),
        (_route("a.b", "/"), _route(None, "/"), False),
        (_route("a.b", "/", "GET", "PUT"), _route("a.b", "/x", "PUT"), True),
        (_route("a.b", "/", "GET"), _route("a.b", "/", "PUT"), False),
        (_route("a.b", "/", "GET"), _route("a.b", "/"), False),
        (_route("a.b", "/"), _route("a.b", "/", "GET"), True),
        (_route("[::1]", "/"), _route("[::1]", "/x"), True),
    ],
)
def test_a_route_that_an_earlier_one_covers(earlier: Route, later: Route, shadowed: bool) -> None:
    assert list(shadowed_routes((earlier, later))) == ([(1, 0)] if shadowed else [])


def test_shadowed_routes_are_summed_up(loaded: Loaded) -> None:
    routes = "".join(f'[[route]]\npath = "/{n}"\nupstream = "a"\n' for n in range(50))
    found = warnings(loaded(A + '[[route]]\nupstream = "a"\n' + routes), 1)
    assert found[0] == "route.1: can never match; route.0 comes first and takes all of it"
    assert found[-1] == "route: 30 more routes can never match"
    assert len(found) == 21


def test_members_are_counted_from_join(loaded: Loaded) -> None:
    assert members_expected(loaded("")) == 1
    mesh = '[mesh]\nbind = "127.0.0.1:1"\n'
    assert members_expected(loaded(mesh)) == 1
    assert members_expected(loaded(mesh + 'join = ["a:1", "b:1", "dns:c:1"]')) == 3


def test_the_effective_burst_is_the_mesh_s() -> None:
    # R = 1000/s, B = 32: cadence clamp(4 ms) = 25 ms, horizon 27.5 + 2.5 = 30 ms, 1 + 2 * 30 = 61.
    assert effective_burst(Rate(1000, SECOND), 32, 8) == pytest.approx(61)
    # R = 100/s, B = 10: cadence 25 ms (12.5 clamped), 1 + 2 * 100 * 0.03 = 7, so B itself.
    assert effective_burst(Rate(100, SECOND), 10, 8) == 10
    # R = 1/s, B = 1: cadence 125 ms, horizon 140 ms, 1 + 0.28.
    assert effective_burst(Rate(1, SECOND), 1, 2) == pytest.approx(1.28)
    assert effective_burst(Rate(1000, SECOND), 32, 1) == 32


def test_the_account_says_what_a_window_may_see(loaded: Loaded) -> None:
    conf = loaded(
        A
        + """limit = [
  { name = "account", rate = "100/s", burst = 10 },
  { name = "tight", rate = "1000/s", burst = 32, key = ["credential", "path:1"], dry_run = true },
  { name = "daily", rate = "1000/d", algorithm = "window" },
  { name = "ten", rate = "5/10s", algorithm = "window", sync = "local" },
  { name = "open", in_flight = 50 },
]
[upstream.b]
origin = "http://b"
wait.max = "0s"
[[route]]
upstream = "a"
"""
    )
    assert account(conf, 3) == [
        "1 listener, 2 upstreams, 1 route, 0 clients; the mesh is taken as 3 members",
        "upstream a: https://a, 1 route",
        "  limit account: 100/s, burst 10, sync mesh: at most 110 in 1 s, 1010 in 10 s, "
        "6010 in 60 s, and 4 more while news is under way",
        "  limit tight for each credential + path:1: 1000/s, burst 32 (in effect 61.0), sync mesh: "
        "at most 1061 in 1 s, 10061 in 10 s, 60061 in 60 s, and 6 more while news is under way "
        "(dry run: only counted)",
        "  limit daily: window of 1000/d, sync mesh: at most 2000 in 1 s, 2000 in 10 s, "
        "2000 in 60 s, and 83 more while news is under way",
        "  limit ten: window of 5/10s, sync local: at most 10 in 1 s, 10 in 10 s, 35 in 60 s",
        "  limit open: at most 50 in flight",
        "  without room a request waits up to 2s, at most 1000 of them",
        "upstream b: http://b, 0 routes",
        "  no limit of its own; pauses that it asks for are kept",
        "  without room a request is refused at once",
    ]


def test_records_find_one_upstream_of_an_origin(loaded: Loaded) -> None:
    text = '[upstream.b]\norigin = "https://a"\n' + A + "[upstream.a.spool]\n"
    found = warnings(loaded(text + '[spool.kafka]\nbootstrap = ["k:1"]'), members=1)
    assert any("upstream.a.spool: records for https://a go to" in each for each in found), found
