"""Which route a request takes, held against a matcher that is slow and plain."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import routes
from gateway.routes import Route, RouteTable, strip_path


def route(
    target: str, host: bytes = b"", prefix: bytes = b"", methods: frozenset[bytes] = frozenset()
) -> Route[str]:
    return Route(host, prefix, methods, b"", target)


def found(table: RouteTable[str], host: bytes, path: bytes = b"/", method: bytes = b"GET") -> str:
    match = table.find(method, host, path)
    return "" if match is None else match.target


def test_the_first_route_in_file_order_wins() -> None:
    table = RouteTable(
        [route("any", prefix=b"/x"), route("exact", b"a.test"), route("below", b"*.test")]
    )
    assert found(table, b"a.test", b"/x") == "any"
    assert found(table, b"a.test") == "exact"
    assert found(table, b"b.test") == "below"
    assert found(table, b"elsewhere") == ""
    assert len(table) == 3


@pytest.mark.parametrize(
    ("host", "wanted"),
    [
        (b"a.test", "exact"),
        (b"A.TeSt", "exact"),
        (b"a.test:8080", "exact"),
        (b"a.test.", "exact"),
        (b"a.test.:80", "exact"),
        (b"a.test:x", ""),
        (b"[2001:db8::1]", "v6"),
        (b"[2001:DB8::1]:443", "v6"),
        (b"b.c.test", "below"),
        (b"c.test", ""),
        (b"xc.test", ""),
        (b"", ""),
    ],
)
def test_host_values_as_clients_write_them(host: bytes, wanted: str) -> None:
    table = RouteTable(
        [
            route("exact", b"a.test"),
            route("v6", b"[2001:db8::1]"),
            route("below", b"*.c.test"),
        ]
    )
    assert found(table, host) == wanted
    assert found(table, host) == wanted  # and once more from memory


@pytest.mark.parametrize(
    ("path", "matches"),
    [
        (b"/api", True),
        (b"/api/", True),
        (b"/api/v1", True),
        (b"/api?q", True),
        (b"/apiary", False),
        (b"/API", False),
        (b"/%61pi", False),  # compared undecoded
        (b"/", False),
        (b"*", False),
    ],
)
def test_a_prefix_is_whole_segments(path: bytes, matches: bool) -> None:
    assert bool(found(RouteTable([route("x", prefix=b"/api")]), b"h", path)) is matches


def test_methods() -> None:
    table = RouteTable([route("get", methods=frozenset((b"GET",))), route("rest")])
    assert found(table, b"h") == "get"
    assert found(table, b"h", method=b"POST") == "rest"
    assert found(table, b"h", method=b"get") == "rest"  # methods are case-sensitive


@pytest.mark.parametrize(
    ("path", "strip", "wanted"),
    [
        (b"/a/b", b"", b"/a/b"),
        (b"/a/b", b"/a", b"/b"),
        (b"/a", b"/a", b"/"),
        (b"/a?q=/a", b"/a", b"/?q=/a"),
        (b"/b", b"/a", b"/b"),
        (b"/a//b", b"/a", b"//b"),
    ],
)
def test_a_prefix_is_stripped(path: bytes, strip: bytes, wanted: bytes) -> None:
    assert strip_path(path, strip) == wanted


def test_invented_hosts_do_not_fill_the_memory(monkeypatch) -> None:
    monkeypatch.setattr(routes, "REMEMBERED_MAX", 50)
    table = RouteTable([route("below", b"*.test")])
    for number in range(500):
        assert found(table, b"%d.test" % number) == "below"
        assert len(table._remembered) <= 50
    found(table, b"a" * 10_000)
    assert max(map(len, table._remembered)) <= routes.REMEMBERED_BYTES_MAX


LABEL = st.sampled_from([b"a", b"b", b"test"])
NAME = st.lists(LABEL, min_size=1, max_size=3).map(b".".join)
HOST = st.one_of(st.just(b""), NAME, NAME.map(lambda name: b"*." + name))
PREFIX = st.sampled_from([b"", b"/a", b"/a/b", b"/ab"])
METHODS = st.sampled_from([frozenset[bytes](), frozenset((b"GET",)), frozenset((b"POST",))])
PATH = st.sampled_from([b"/", b"/a", b"/a/", b"/ab", b"/a/b", b"/a/b?x", b"/abc", b"/a?b"])


def naive(table: list[Route[str]], method: bytes, name: bytes, path: bytes) -> str:
    """What CONF.md says, word for word."""
    segments = path.partition(b"?")[0].split(b"/")[1:]
    for rule in table:
        if rule.host.startswith(b"*."):
            fits = name.split(b".")[1:] != [] and (b"." + name).endswith(rule.host[1:])
            fits = fits and name != rule.host[2:]
        else:
            fits = rule.host in (b"", name)
        wanted = rule.prefix.split(b"/")[1:]
        if (
            fits
            and segments[: len(wanted)] == wanted
            and (not rule.methods or method in rule.methods)
        ):
            return rule.target
    return ""


@given(
    st.lists(st.tuples(HOST, PREFIX, METHODS), max_size=6),
    st.lists(st.tuples(st.sampled_from([b"GET", b"PUT"]), NAME, PATH), min_size=1, max_size=6),
)
def test_it_finds_what_a_plain_matcher_finds(rules, requests) -> None:
    table = [
        Route(host, prefix, methods, b"", str(number))
        for number, (host, prefix, methods) in enumerate(rules)
    ]
    fast = RouteTable(table)
    for method, name, path in requests:
        assert found(fast, name + b":80", path, method) == naive(table, method, name, path)
