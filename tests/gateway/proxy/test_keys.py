"""What a limit counts by: each part, and that no two requests share a row by accident."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.h1.message import RequestHead
from gateway.proxy.clients import ANONYMOUS
from gateway.proxy.keys import compile_cost, compile_key, credential_of, source_network

HASH_KEY = b"h" * 32


def request(
    path: bytes = b"/v1/x?q=/y", method: bytes = b"GET", source: str = "10.0.0.1", **fields: bytes
) -> Any:
    sent = [(name.replace("_", "-").encode(), value) for name, value in fields.items()]
    head = RequestHead(method, path, 1, sent)
    head.host = b"API.test:80"
    return SimpleNamespace(
        client=ANONYMOUS,
        source=source,
        path=path,
        head=head,
        fields=sent,
        credential=lambda: credential_of(sent, HASH_KEY),
    )


def key(parts: list[str], exchange: Any) -> bytes:
    function = compile_key(parts)
    assert function is not None
    return function(exchange)


@pytest.mark.parametrize(
    ("part", "wanted"),
    [
        ("client", b"=anonymous"),
        ("source", b"=10.0.0.1"),
        ("host", b"=api.test:80"),
        ("method", b"=GET"),
        ("path", b"=/v1/x"),
        ("path:1", b"=/v1"),
        ("path:2", b"=/v1/x"),
        ("path:9", b"=/v1/x"),
        ("header:X-Team", b"=red"),
        ("header:x-none", b""),
        ("credential", b""),
    ],
)
def test_parts(part: str, wanted: bytes) -> None:
    assert key([part], request(x_team=b"red")) == wanted


def test_no_parts_are_no_key_and_unknown_ones_are_faults() -> None:
    assert compile_key([]) is None
    for unknown in ("colour", "path:x"):
        with pytest.raises((KeyError, ValueError)):
            compile_key([unknown])


def test_an_absent_part_is_not_an_empty_one() -> None:
    assert key(["header:a"], request()) != key(["header:a"], request(a=b""))
    assert key(["header:a", "method"], request()) != key(["header:a", "method"], request(a=b""))


def test_a_credential_is_hashed_and_never_kept() -> None:
    with_it = request(authorization=b"Bearer secret")
    one = key(["credential"], with_it)
    assert b"secret" not in one
    assert len(one) == 1 + 16
    assert one == key(["credential"], request(Authorization=b"Bearer secret"))
    assert one != key(["credential"], request(authorization=b"Bearer other"))
    other_cluster = credential_of(with_it.fields, b"i" * 32)
    assert other_cluster != credential_of(with_it.fields, HASH_KEY)
    for name in ("x_api_key", "api_key"):
        assert key(["credential"], request(**{name: b"k"})) != b""
    assert key(["credential"], request(cookie=b"k", proxy_authorization=b"k")) == b""


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unix", "unix"),
        ("::no::", "::no::"),
    ],
)
def test_a_source_is_an_address_or_a_64(source: str, wanted: str) -> None:
    assert source_network(source) == wanted


VALUE = st.one_of(st.none(), st.binary(max_size=6), st.sampled_from([b"=1:a", b"-", b"=0:", b""]))
VALUES = st.tuples(VALUE, VALUE, VALUE)


@given(VALUES, VALUES)
def test_a_compound_key_is_injective(one, other) -> None:
    function = compile_key(["header:a", "header:b", "header:c"])
    assert function is not None

    def keyed(values: tuple[bytes | None, ...]) -> bytes:
        given_fields = {
            name: value for name, value in zip("abc", values, strict=True) if value is not None
        }
        return function(request(**given_fields))

    assert (keyed(one) == keyed(other)) is (one == other)


@given(VALUE, VALUE)
def test_a_single_key_is_injective(one, other) -> None:
    def keyed(value: bytes | None) -> bytes:
        return key(["header:a"], request() if value is None else request(a=value))

    assert (keyed(one) == keyed(other)) is (one == other)


@pytest.mark.parametrize(
    ("value", "cost"),
    [
        (b"7", 7),
        (b"0", 1),
        (b"", 1),
        (b"-3", 1),
        (b"1_0", 1),
        (b" 5", 1),
        (b"\xd9\xa3", 1),  # a digit of another script
        (b"999999999", 999_999_999),
        (b"1" * 10, 1),
        (b"9" * 5000, 1),
    ],
)
def test_a_cost_is_digits_or_1(value: bytes, cost: int) -> None:
    told = compile_cost("header", 1, "X-Cost")
    assert told is not None
    assert told(request(x_cost=value)) == cost
    assert told(request()) == 1


def test_fixed_costs() -> None:
    assert compile_cost("fixed", 1, "") is None
    assert compile_cost("response_header", 1, "X-Used") is None
    three = compile_cost("fixed", 3, "")
    assert three is not None
    assert three(request()) == 3
