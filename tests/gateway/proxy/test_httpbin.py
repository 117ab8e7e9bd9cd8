"""httpbin as an origin: what it answers through the gateway is what it answers directly.

The same octets go both ways. Compared are status and reason, the fields in their order and as they
are spelled, and the body. The URL map of httpbin is walked, so that no route is forgotten.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest
from fakes.gateway import Client, Gateway, Response
from fakes.httpbin import HttpBin, app

# Breakers would pause what httpbin is asked to refuse; here it is the origin that is looked at.
CONF = """
[[listen]]
bind = "127.0.0.1:0"
[upstream.httpbin]
origin = "http://localhost:{port}"
addresses = ["127.0.0.1:{port}"]
breaker = {{ throttle = [], failure = [] }}
[[route]]
upstream = "httpbin"
"""

# What a proxy must not pass on (RFC 9110 sections 7.6.1 and 11.7.1), and what it adds.
HOP_BY_HOP = {b"connection", b"keep-alive", b"transfer-encoding", b"proxy-authenticate", b"via"}
# Two answers differ in these by themselves.
CLOCKS = {b"date", b"last-modified"}
RANDOM = re.compile(
    rb"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{64}|[0-9a-f]{32}"  # uuid, nonces
)


class Case(NamedTuple):
    """A request to a route; the method is the rule's unless `only` names some."""

    path: bytes
    fields: bytes = b""
    body: bytes = b""
    only: frozenset[str] = frozenset()


def get(path: bytes, fields: bytes = b"") -> Case:
    return Case(path, fields, only=frozenset(("GET",)))


BASIC = b"Authorization: Basic " + base64.b64encode(b"joe:secret") + b"\r\n"

# What waits for time, or is long, is run on the reference drivers by `make test-slow` only.
FAST_FIRST = pytest.mark.parametrize(
    "drivers",
    [("httptools", "uvloop"), pytest.param(("h11", "asyncio"), marks=pytest.mark.slow)],
    ids=["fast", "reference"],
    indirect=True,
)
FORM = b"Content-Type: application/x-www-form-urlencoded\r\n"
JSON = b"Content-Type: application/json\r\n"
BOUNDARY = (
    b'--x\r\nContent-Disposition: form-data; name="f"; filename="a.bin"\r\n'
    b"Content-Type: application/octet-stream\r\n\r\n\x00\xff\r\n--x--\r\n"
)
SENT = (
    Case(b"?a=%2F&a=2&b=+c", FORM, b"x=1&x=2&y=%C3%A9"),
    Case(b"", JSON, b'{"a": [1, null]}'),
    Case(b"", b"Content-Type: multipart/form-data; boundary=x\r\n", BOUNDARY),
    Case(b"", b'Accept: a/b, c/d;q=0.5\r\nX-Many: 1\r\nCookie: a=b; c="d e"\r\n'),
    Case(b"", b"", bytes(range(256)) * 300),
)
STATUSES = (
    *(200, 201, 202, 203, 204, 205, 206, 226, 300, 301, 302, 303, 304, 305, 307, 308),
    *(400, 401, 402, 403, 404, 405, 406, 407, 408, 409, 410, 411, 412, 413, 414, 415, 416, 417),
    *(418, 421, 422, 424, 425, 426, 428, 431, 451, 500, 501, 502, 503, 504, 505, 507, 511, 599),
)


def sent(path: bytes) -> tuple[Case, ...]:
    """A route that tells what it got, with all kinds of bodies."""
    return tuple(case._replace(path=path + case.path) for case in SENT)


def ranged(path: bytes) -> tuple[Case, ...]:
    ranges = (b"0-9", b"10-", b"-7", b"90-200", b"200-", b"x", b"0-1,5-6")
    return (Case(path), *(get(path, b"Range: bytes=%b\r\n" % one) for one in ranges))


# Every rule of the map, as what is asked of it.
CASES: dict[str, tuple[Case, ...]] = {
    "/static/<path:filename>": (Case(b"/static/favicon.ico"), Case(b"/static/none")),
    "/": (Case(b"/"), Case(b"/?q")),
    "/html": (Case(b"/html"),),
    "/robots.txt": (Case(b"/robots.txt"),),
    "/deny": (Case(b"/deny"),),
    "/ip": (Case(b"/ip"),),
    "/uuid": (Case(b"/uuid"),),
    "/headers": (Case(b"/headers", b"X-Obs: \xe9\xff\r\nX-Empty:\r\nAccept-Encoding: br\r\n"),),
    "/user-agent": (Case(b"/user-agent", b"User-Agent: a (b; c) d/1\r\n"),),
    "/get": (Case(b"/get?a=1&b=%20&c=%C3%A9&d"),),
    "/anything": sent(b"/anything"),
    "/anything/<path:anything>": sent(b"/anything/a//b/%2e%2e/%7Ec;d=e/"),
    "/post": sent(b"/post"),
    "/put": sent(b"/put"),
    "/patch": sent(b"/patch"),
    "/delete": sent(b"/delete"),
    "/gzip": (Case(b"/gzip", b"Accept-Encoding: gzip\r\n"),),
    "/deflate": (Case(b"/deflate"),),
    "/brotli": (Case(b"/brotli"),),
    "/redirect/<int:n>": (Case(b"/redirect/1"), Case(b"/redirect/3?absolute=true")),
    "/redirect-to": (
        Case(b"/redirect-to?url=http%3A%2F%2Fa.test%2F%3Fb%3Dc"),
        Case(b"/redirect-to?url=/x&status_code=308"),
    ),
    "/relative-redirect/<int:n>": (Case(b"/relative-redirect/2"),),
    "/absolute-redirect/<int:n>": (Case(b"/absolute-redirect/2"),),
    "/stream/<int:n>": (Case(b"/stream/5"), Case(b"/stream/0")),
    "/status/<codes>": (
        *(Case(b"/status/%d" % status) for status in STATUSES),
        # A throttle is the credential's alone, so it does not pause what follows.
        Case(b"/status/429", b"Authorization: Bearer throttled\r\n", only=frozenset(("GET",))),
        get(b"/status/none"),
    ),
    "/response-headers": (
        Case(b"/response-headers?X-One=1&X-One=2&Content-Type=text/plain&Set-Cookie=a=b"),
    ),
    "/cookies": (Case(b"/cookies", b"Cookie: a=b; c=d\r\n"),),
    "/forms/post": (Case(b"/forms/post"),),
    "/cookies/set/<name>/<value>": (Case(b"/cookies/set/a/b"),),
    "/cookies/set": (Case(b"/cookies/set?a=b&c=d&e=f"),),
    "/cookies/delete": (Case(b"/cookies/delete?a&c"),),
    "/basic-auth/<user>/<passwd>": (
        Case(b"/basic-auth/joe/secret"),
        Case(b"/basic-auth/joe/secret", BASIC),
        get(b"/basic-auth/joe/other", BASIC),
    ),
    "/hidden-basic-auth/<user>/<passwd>": (
        Case(b"/hidden-basic-auth/joe/secret"),
        Case(b"/hidden-basic-auth/joe/secret", BASIC),
    ),
    "/bearer": (Case(b"/bearer"), Case(b"/bearer", b"Authorization: Bearer t\r\n")),
    "/digest-auth/<qop>/<user>/<passwd>": (Case(b"/digest-auth/auth/joe/secret"),),
    "/digest-auth/<qop>/<user>/<passwd>/<algorithm>": (
        Case(b"/digest-auth/auth/joe/secret/SHA-256"),
    ),
    "/digest-auth/<qop>/<user>/<passwd>/<algorithm>/<stale_after>": (
        Case(b"/digest-auth/auth/joe/secret/MD5/1"),
    ),
    "/delay/<delay>": (Case(b"/delay/0.01"),),
    "/drip": (
        Case(b"/drip?numbytes=5&duration=0.05&delay=0"),
        get(b"/drip?numbytes=3&duration=0.01&code=503"),
    ),
    "/base64/<value>": (Case(b"/base64/SFRUUEJJTg=="), get(b"/base64/!")),
    "/cache": (Case(b"/cache"), get(b"/cache", b"If-None-Match: x\r\n")),
    "/etag/<etag>": (
        Case(b"/etag/a"),
        get(b"/etag/a", b'If-None-Match: "b", W/"a"\r\n'),
        get(b"/etag/a", b'If-Match: "b"\r\n'),
    ),
    "/cache/<int:value>": (Case(b"/cache/60"),),
    "/encoding/utf8": (Case(b"/encoding/utf8"),),
    "/bytes/<int:n>": (Case(b"/bytes/1000?seed=1"), get(b"/bytes/0"), get(b"/bytes/99999?seed=2")),
    "/stream-bytes/<int:n>": (Case(b"/stream-bytes/5000?seed=1&chunk_size=700"),),
    "/range/<int:numbytes>": ranged(b"/range/100?chunk_size=30"),
    "/links/<int:n>/<int:offset>": (Case(b"/links/3/1"),),
    "/links/<int:n>": (Case(b"/links/3"),),
    "/image": (
        get(b"/image", b"Accept: image/webp\r\n"),
        get(b"/image", b"Accept: text/plain\r\n"),
        Case(b"/image", b"Accept: image/*\r\n"),
    ),
    "/image/png": (Case(b"/image/png"),),
    "/image/jpeg": (Case(b"/image/jpeg"),),
    "/image/webp": (Case(b"/image/webp"),),
    "/image/svg": (Case(b"/image/svg"),),
    "/xml": (Case(b"/xml"),),
    "/json": (Case(b"/json"),),
}


class Way:
    """A way to httpbin, by one connection for as long as it is kept."""

    def __init__(self, address: tuple[str, int], host: bytes) -> None:
        self._address = address
        self._host = host
        self._client: Client | None = None
        self.connections = 0

    def ask(self, method: str, case: Case) -> Response:
        head = b"%b %b HTTP/1.1\r\nHost: %b\r\n" % (method.encode(), case.path, self._host)
        if case.body:
            head += b"Content-Length: %d\r\n" % len(case.body)
        if self._client is None:
            self.connections += 1
            self._client = Client(self._address)
        self._client.send(head + case.fields + b"\r\n" + case.body)
        response = self._client.response(method.encode())
        if b"close" in response.values(b"connection"):
            self.close()
        return response

    def close(self) -> None:
        if self._client is not None:
            self._client.sock.close()
            self._client = None


class Served(NamedTuple):
    """The two ways to httpbin; both say the same Host."""

    direct: Way
    through: Way


@pytest.fixture(scope="module")
def httpbin() -> Iterator[HttpBin]:
    with HttpBin() as origin:
        yield origin


@pytest.fixture
def served(httpbin: HttpBin, drivers: tuple[str, str], tmp_path: Path) -> Iterator[Served]:
    codec, loop = drivers
    host = b"localhost:%d" % httpbin.port
    text = CONF.format(port=httpbin.port)
    with Gateway(text, tmp_path, loop=loop, codec=codec) as gateway, ExitStack() as stack:
        ways = Served(Way(("127.0.0.1", httpbin.port), host), Way(gateway.address, host))
        for way in ways:
            stack.callback(way.close)
        yield ways
        assert gateway.upstream("httpbin").counts.failed == 0


def seen(response: Response) -> tuple[object, ...]:
    """What must be the same: status line, fields, body."""
    fields = []
    for line in response.lines[1:]:
        name, _, value = line.partition(b":")
        if name.lower() in CLOCKS:
            value = b"some time"
        if name.lower() not in HOP_BY_HOP:
            fields.append((name, RANDOM.sub(b"some number", value.strip())))
    return response.lines[0], fields, without_via(RANDOM.sub(b"some number", response.body))


def without_via(body: bytes) -> bytes:
    """A body without the Via that httpbin was sent, where it tells the fields of the request."""
    return re.sub(rb'\s*"Via": "1\.1 egressd-gw-test",?', b"", body)


@FAST_FIRST
def test_every_route_is_the_same_as_direct(served: Served) -> None:
    faults = []
    rules = {rule.rule: rule for rule in app.url_map.iter_rules()}
    assert rules.keys() == CASES.keys(), "httpbin has other routes than are asked for here"
    for name, cases in CASES.items():
        assert cases
        for case in cases:
            for method in sorted(case.only or rules[name].methods or ()):
                direct = seen(served.direct.ask(method, case))
                through = seen(served.through.ask(method, case))
                if direct != through:
                    faults.append(f"{method} {case.path!r}:\n  {direct}\n  {through}")
    assert not faults, "\n".join(faults)
    assert served.through.connections == 1  # whatever the origin did with its own


def test_the_gateway_shows_in_via_and_nowhere_else(served: Served) -> None:
    """What `seen` leaves out is looked at here, so that it hides nothing else."""
    told = b"X-Forwarded-For: 10.0.0.1\r\nForwarded: for=10.0.0.1\r\nX-One: 1\r\n"
    case = Case(b"/headers?show_env=1", told)
    direct = json.loads(served.direct.ask("GET", case).body)["headers"]
    through = json.loads(served.through.ask("GET", case).body)["headers"]
    assert through.pop("Via") == "1.1 egressd-gw-test"
    assert direct.pop("Forwarded") == "for=10.0.0.1"
    assert direct.pop("X-Forwarded-For") == "10.0.0.1"
    assert through == direct
    assert direct["X-One"] == "1"


@pytest.mark.parametrize("algorithm", ["MD5", "SHA-256"])
def test_digest_authentication_goes_through(served: Served, algorithm: str) -> None:
    """The credentials are made for this path: a path that was touched would not fit them."""
    path = b"/digest-auth/auth/joe/secret/" + algorithm.encode()
    challenge = served.through.ask("GET", Case(path))
    assert challenge.status == 401
    told = dict(re.findall(rb'(\w+)="([^"]*)"', challenge.value(b"www-authenticate")))
    cookies = b"; ".join(one.partition(b";")[0] for one in challenge.values(b"set-cookie"))
    make = hashlib.md5 if algorithm == "MD5" else hashlib.sha256

    def digest(*parts: bytes) -> bytes:
        return make(b":".join(parts)).hexdigest().encode()

    first = digest(b"joe", told[b"realm"], b"secret")
    second = digest(b"GET", path)
    answer = digest(first, told[b"nonce"], b"00000001", b"cnonce", b"auth", second)
    fields = (
        b'Authorization: Digest username="joe", realm="%b", nonce="%b", uri="%b", algorithm=%b, '
        b'qop=auth, nc=00000001, cnonce="cnonce", response="%b", opaque="%b"\r\nCookie: %b\r\n'
    ) % (told[b"realm"], told[b"nonce"], path, algorithm.encode(), answer, told[b"opaque"], cookies)
    assert served.through.ask("GET", Case(path, fields)).status == 200
    wrong = Case(path, fields.replace(answer, b"0" * len(answer)))
    assert served.through.ask("GET", wrong).status == 401
