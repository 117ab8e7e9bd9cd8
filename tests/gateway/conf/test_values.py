"""Addresses, origins and patterns: canonical forms, and garbage at each parser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.conf.values import (
    Bind,
    Cost,
    HostPort,
    JoinAddress,
    KeyPart,
    Origin,
    TargetPattern,
    parse_address,
    parse_advertise,
    parse_bind,
    parse_cost,
    parse_host,
    parse_host_pattern,
    parse_join,
    parse_key_part,
    parse_network,
    parse_origin,
    parse_target,
    parse_via,
)

PARSERS = [
    parse_address,
    parse_advertise,
    parse_bind,
    parse_cost,
    parse_host_pattern,
    parse_join,
    parse_key_part,
    parse_network,
    parse_origin,
    parse_target,
    parse_via,
]


@pytest.mark.parametrize(
    ("text", "bind", "loopback", "wildcard"),
    [
        ("0.0.0.0:8080", Bind("tcp", "0.0.0.0", 8080), False, True),
        ("[::]:8080", Bind("tcp", "::", 8080), False, True),
        ("127.0.0.2:0", Bind("tcp", "127.0.0.2", 0), True, False),
        ("[::1]:80", Bind("tcp", "::1", 80), True, False),
        ("LocalHost:80", Bind("tcp", "localhost", 80), True, False),
        ("gw-1.internal:80", Bind("tcp", "gw-1.internal", 80), False, False),
        ("unix:/run/e.sock", Bind("unix", path="/run/e.sock"), True, False),
        ("systemd:http", Bind("systemd", name="http"), False, False),
    ],
)
def test_binds(text: str, bind: Bind, loopback: bool, wildcard: bool) -> None:
    assert parse_bind(text) == bind
    assert parse_bind(str(bind)) == bind
    assert (bind.is_loopback, bind.is_wildcard) == (loopback, wildcard)


@pytest.mark.parametrize(
    ("text", "origin", "canonical"),
    [
        ("https://api.stripe.com", Origin("https", "api.stripe.com", 443), None),
        ("HTTPS://API.Stripe.com:443", Origin("https", "api.stripe.com", 443), "https://api.stripe.com"),
        ("http://10.0.0.1:8080", Origin("http", "10.0.0.1", 8080), None),
        ("http://[2001:DB8::1]", Origin("http", "2001:db8::1", 80), "http://[2001:db8::1]"),
        ("https://[::1]:8443", Origin("https", "::1", 8443), None),
    ],
)  # fmt: skip
def test_origins(text: str, origin: Origin, canonical: str | None) -> None:
    assert parse_origin(text) == origin
    assert str(origin) == (canonical or text)
    assert parse_origin(str(origin)) == origin


@pytest.mark.parametrize(
    "text",
    [
        "https://api.stripe.com/", "https://api.stripe.com/v1", "https://a?b", "https://a#b", "https://",
        "https:/a", "//a", "a", "ftp://a", "https://a:", "https://a:0", "https://a:65536", "https://a:x",
        "https://[::1", "https://::1", "https://[::1]x", "https://[::1%eth0]", "https://a b",
        "https://-a", "https://a..b", "https://1.2.3", "https://1.2.3.400", "https://\u00e4.de",
        "https://a\n", "https://" + "a" * 64, "https://" + "a." * 200 + "a", "https://a:\u0661",
    ],
)  # fmt: skip
def test_what_is_no_origin_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_origin(text)


@pytest.mark.parametrize("parse", [parse_origin, parse_via])
def test_a_password_in_an_origin_is_refused_and_not_shown(parse: Callable[[Any], Any]) -> None:
    with pytest.raises(ValueError) as caught:
        parse("http://user:hunter2@proxy:80")
    assert "hunter2" not in str(caught.value)
    assert "do not belong here" in str(caught.value)


def test_a_chained_proxy_has_its_port() -> None:
    assert parse_via("socks5://proxy:1080") == Origin("socks5", "proxy", 1080)
    assert str(parse_via("http://proxy:80")) == "http://proxy"
    for text in ("socks5://proxy", "https://proxy:443"):
        with pytest.raises(ValueError):
            parse_via(text)


def test_other_addresses() -> None:
    assert parse_address("[::1]:443") == HostPort("::1", 443)
    assert str(parse_address("[::1]:443")) == "[::1]:443"
    assert parse_advertise("[2001:db8::1]:7946") == HostPort("2001:db8::1", 7946)
    with pytest.raises(ValueError, match="is a name"):
        parse_advertise("gw-1:7946")
    assert parse_join("dns:gateways.internal:7946") == JoinAddress(True, "gateways.internal", 7946)
    assert str(parse_join("dns:gateways.internal:7946")) == "dns:gateways.internal:7946"
    assert parse_join("10.0.0.1:7946") == JoinAddress(False, "10.0.0.1", 7946)
    assert str(parse_network("10.0.0.0/8")) == "10.0.0.0/8"
    assert str(parse_network("::1")) == "::1/128"


@pytest.mark.parametrize(
    ("parse", "text", "words"),
    [
        (parse_address, "api.internal:443", "is a name"),
        (parse_advertise, "0.0.0.0:7946", "cannot be reached"),
        (parse_advertise, "[::]:7946", "cannot be reached"),
        (parse_join, "dns:10.0.0.1:7946", "before a name"),
        (parse_join, "gw-1", "lacks host or port"),
        (parse_network, "10.0.0.1/8", "host bits set; use '10.0.0.0/8'"),
        (parse_network, "10.0.0.0/33", "is not a network"),
        (parse_bind, "::1:80", "stands in brackets"),
        (parse_bind, "unix:" + "a" * 108, "1 to 107 bytes"),
        (parse_bind, "unix:", "1 to 107 bytes"),
        (parse_bind, "systemd:a/b", "FileDescriptorName"),
        (parse_host_pattern, "a.internal:80", "a route's host has none"),
        (parse_host_pattern, "a.*.internal", "in front only"),
        (parse_host_pattern, "*.10.0.0.1", "nothing is below an address"),
        (parse_target, "*.example.com", "lacks host or port"),
        (parse_target, "a.*.com:443", "is not a target"),
        (parse_target, "https://a:443", "is not a target"),
        (parse_target, "*.10.0.0.1:443", "nothing is below an address"),
        (parse_target, "*:0", "a port is 1 to 65535"),
        (parse_key_part, "path:0", "1 to 16"),
        (parse_key_part, "path:17", "1 to 16"),
        (parse_key_part, "path:x", "1 to 16"),
        (parse_key_part, "header:", "does not name a header"),
        (parse_key_part, "header:a b", "does not name a header"),
        (parse_key_part, "Client", "is not a part of a key"),
        (parse_cost, 0, "1 to 1000000"),
        (parse_cost, True, "is not a cost"),
        (parse_cost, {"header": "a:"}, "does not name a header"),
        (parse_cost, {"header": "a", "response_header": "b"}, "is not a cost"),
    ],
)
def test_a_refusal_says_what_is_wrong(parse: Callable[[Any], Any], text: Any, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse(text)
    assert words in str(caught.value)


def test_patterns_keys_and_costs() -> None:
    assert parse_host_pattern("*.Internal") == "*.internal"
    assert parse_host_pattern("[::1]") == "[::1]"
    assert parse_target("*.example.com:443") == TargetPattern(True, "example.com", 443)
    assert parse_target("*:80") == TargetPattern(True, "", 80)
    assert parse_target("10.0.0.1:80") == TargetPattern(False, "10.0.0.1", 80)
    for text in ("*.example.com:443", "*:80", "[::1]:80", "a:80"):
        assert str(parse_target(text)) == text
    assert parse_key_part("header:X-Tenant") == KeyPart("header", header="x-tenant")
    assert parse_key_part("path:2") == KeyPart("path", segments=2)
    for text in ("client", "source", "credential", "host", "method", "path", "path:3", "header:a"):
        assert str(parse_key_part(text)) == text
    assert parse_cost(3) == Cost("fixed", 3)
    assert parse_cost({"header": "X-Cost"}) == Cost("header", header="x-cost")
    assert str(parse_cost({"response_header": "X-T"})) == "response_header:x-t"


def test_hosts_have_one_spelling() -> None:
    assert parse_host("API.Example.COM") == "api.example.com"
    assert parse_host("a_b._c") == "a_b._c"  # underscores are in use in private names
    assert parse_host("[2001:db8:0:0::1]") == "2001:db8::1"


GARBAGE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.text(alphabet="[]:./*-_@%a1\0\n\u0661", max_size=40),
    st.lists(st.text(), max_size=3),
    st.dictionaries(st.text(), st.one_of(st.text(), st.integers()), max_size=3),
    st.from_regex(r"(https?|socks5|unix|dns|systemd|path|header)(://|:).*", fullmatch=True),
)


@pytest.mark.parametrize("parse", PARSERS)
@given(value=GARBAGE)
def test_garbage_is_read_or_refused_with_a_sentence(
    parse: Callable[[Any], Any], value: Any
) -> None:
    try:
        result = parse(value)
    except ValueError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 600  # forty characters, each as \\U0001d586, and the sentence
    else:
        assert str(result).isascii() or parse is parse_bind  # a socket's path may be any text
