"""[redis]: where the server is, what is no address, and that a password is no literal."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gateway.conf.redis_url import RedisUrl, parse_redis_url

Judged = Callable[..., list[str]]

LIMIT = (
    '[upstream.a]\norigin = "https://a"\n[[upstream.a.limit]]\nname = "l"\nrate = "1/s"\n'
    'sync = "redis"\n'
)
MESH = '[mesh]\nbind = "127.0.0.1:7946"\n'


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("redis://h", RedisUrl("h", 6379, "", "", 0, False)),
        ("redis://10.0.0.9:6380/3", RedisUrl("10.0.0.9", 6380, "", "", 3, False)),
        ("rediss://u:p%40ss@[::1]:1/0", RedisUrl("::1", 1, "u", "p@ss", 0, True)),
        ("redis://:p@h/", RedisUrl("h", 6379, "", "p", 0, False)),
    ],
)
def test_urls(text: str, url: RedisUrl) -> None:
    assert parse_redis_url(text) == url
    assert "p@ss" not in url.shown


@pytest.mark.parametrize(
    "text",
    ["", "h", "http://h", "redis://", "redis://:secret@", "redis://h:x", "redis://h:99999",
     "redis://h:0", "redis://h/one", "redis://h/1/2", "redis://h/-1", "redis://h/65536",
     "redis://h/123456", "redis://h?db=1", "redis://h#secret", "redis://secret@h", "redis://[::1"],
)  # fmt: skip
def test_what_is_no_url_is_not_repeated(text: str) -> None:
    with pytest.raises(ValueError, match=r"^[a-z]") as caught:
        parse_redis_url(text)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("lines", "faults"),
    [
        ('url = "redis://r"', []),
        ('url = { env = "STORE" }', []),
        ('url = "redis://:p@r"', ['2: redis.url: holds a password, which is never a literal; '
                                  'use { env = "NAME" } for it all']),
        ('url = "r"', ["2: redis.url: must begin with redis:// or rediss:// (TLS)"]),
        ('url = "redis://r"\ntimeout = "2s"',
         ["3: redis.timeout: is no time to wait for a store on each request's way; use 1ms to 1s"]),
    ],
)  # fmt: skip
def test_the_section(lines: str, faults: list[str], judged: Judged) -> None:
    assert judged(f"[redis]\n{lines}\n" + MESH + LIMIT, STORE="redis://:p@r") == faults


def test_the_mesh_decides_while_it_is_gone(judged: Judged) -> None:
    assert judged('[redis]\nurl = "redis://r"\n' + LIMIT) == [
        '8: upstream.a.limit.0.sync: "redis" needs a [mesh]: it decides while the store is gone'
    ]
