"""What spans keys: each text has one thing wrong, and the fault stands at its line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import trustme

from gateway.conf.faults import ConfError
from gateway.conf.load import load
from gateway.conf.schema import Conf

Judged = Callable[..., list[str]]
Loaded = Callable[..., Conf]

A = '[upstream.a]\norigin = "https://a"\n'
LIMIT = A + '[[upstream.a.limit]]\nname = "l"\n'

CASES = [
    ("listen = []", "1: listen: is missing; at least one"),
    (
        'listen = [{ bind = "a:1" },\n{ bind = "a:1" }]',
        "2: listen.1.bind: 'a:1' is taken by listen.0",
    ),
    ('listen = [{ bind = "0.0.0.0:1" },\n{ bind = "127.0.0.1:1" }]', "2: listen.1.bind:"),
    ('listen = [{ bind = "unix:/a" },\n{ bind = "unix:/a" }]', "2: listen.1.bind:"),
    (
        '[admin]\nbind = "127.0.0.1:8080"',
        "2: admin.bind: '127.0.0.1:8080' is taken by listen.0.bind",
    ),
    ('[mesh]\nbind = "127.0.0.1:8080"', "2: mesh.bind: '127.0.0.1:8080' is taken by listen.0.bind"),
    (
        'listen = [{ bind = "a:1", limits.head = "1B" }]',
        "1: listen.0.limits.head: 1B is not between",
    ),
    ('listen = [{ bind = "a:1", limits.head = "2MiB" }]', "1: listen.0.limits.head: 2MiB is not"),
    (
        'listen = [{ bind = "a:1", tls = { cert = "x",  key = "egressd.toml" } }]',
        "1: listen.0.tls.cert: the file",
    ),
    ("[mesh]\nkeys = [{ env = 'KEY' }]", "1: mesh.advertise: is missing"),
    (
        '[node]\nworkers = 3\n[mesh]\nbind = "127.0.0.1:8078"',
        "4: mesh.bind: '127.0.0.1:8080' is taken by listen.0.bind",
    ),
    (
        '[node]\nworkers = 2\n[mesh]\nbind = "127.0.0.1:65535"',
        "4: mesh.bind: port + workers - 1 is more than 65535",
    ),
    (
        '[node]\nworkers = 2\n[mesh]\nbind = "127.0.0.1:1"\nadvertise = "127.0.0.1:65535"',
        "5: mesh.advertise: port + workers - 1 is more than 65535",
    ),
    (
        '[mesh]\nbind = "127.0.0.1:7946"\nadvertise = "10.0.0.1:7946"',
        "3: mesh.advertise: is not reached: bind (127.0.0.1)",
    ),
    (
        "[mesh]\nkeys = [{ env = 'KEY' }]\nbind = '[::]:7946'\nadvertise = '10.0.0.1:7946'",
        "4: mesh.advertise: and bind (::) must both be IPv4",
    ),
    (
        f'[node]\nworkers = "auto"\nname = "{"n" * 62}"',
        "3: node.name: has more than 61 characters; workers add their number to it",
    ),
    ('[mesh]\nbind = "unix:/a"', '2: mesh.bind: must be "HOST:PORT"'),
    ('[mesh]\nbind = "127.0.0.1:0"', '2: mesh.bind: must be "HOST:PORT"'),
    ('[mesh]\nbind = "10.0.0.1:7946"', "1: mesh.keys: is missing; without keys only a loopback"),
    (
        '[mesh]\nbind = "10.0.0.1:7946"\nkeys = [{ env = "KEY" },\n{ env = "KEY" }]',
        "4: mesh.keys.1: is the same key",
    ),
    ('[admin]\nbind = "0.0.0.0:9901"', "1: admin.token: is missing; it is demanded"),
    ('[admin]\nbind = "systemd:admin"', "1: admin.token: is missing; it is demanded"),
    (
        '[upstream.a]\norigin = "http://a"\ntls.verify = true',
        "3: upstream.a.tls: has no meaning for an http:// origin",
    ),
    ('[upstream.a]\norigin = "http://a"\nprotocol = "h2"', '3: upstream.a.protocol: "h2" needs'),
    (A + 'tls.cert = "egressd.toml"', "3: upstream.a.tls: key is missing"),
    (A + 'tls.ca = "missing.pem"', "3: upstream.a.tls.ca: the file"),
    (A + 'tls.ca = "."', "3: upstream.a.tls.ca: the file"),
    (
        A + 'addresses = ["10.0.0.1:1"]\nvia = "http://p:1"',
        "3: upstream.a.addresses: a chained proxy",
    ),
    (
        A + 'headers.set.Authorization = "x"',
        "3: upstream.a.headers.set.Authorization: a secret is nev",
    ),
    (
        A + 'headers.add.COOKIE = "x"',
        "3: upstream.a.headers.add.COOKIE: a secret is never a literal",
    ),
    (
        A + 'headers.set.Content-Length = "1"',
        "3: upstream.a.headers.set.Content-Length: belongs to",
    ),
    (
        A + 'headers.add.transfer-encoding = "chunked"',
        "3: upstream.a.headers.add.transfer-encoding:",
    ),
    (A + 'headers.set.host = "x"', "3: upstream.a.headers.set.host: belongs to the gateway"),
    (
        A + 'headers.remove = ["x",\n"Connection"]',
        "4: upstream.a.headers.remove.1: 'Connection' is",
    ),
    (A + 'headers.set = { X = "a" }', None),
    (A + 'headers.set.X = "a"\nheaders.set.x = "b"', "4: upstream.a.headers.set.x: is there twice"),
    (
        A + 'headers.set.X = "a"\nheaders.remove = ["x"]',
        "3: upstream.a.headers.set.X: is in `remove`",
    ),
    (A + 'breaker.open = "10m"', "3: upstream.a.breaker.open: is longer than `open_max`"),
    (A + "breaker.failure = [429]", "3: upstream.a.breaker.failure: 429 is in `throttle` as well"),
    (A + "retry = { on = [429], attempts = 1 }", "3: upstream.a.retry.attempts: 1 is no retry"),
    (A + 'retry.body = "17MiB"', "3: upstream.a.retry.body: is more than 16MiB"),
    (LIMIT, "3: upstream.a.limit.0: needs exactly one of `rate` and `in_flight`"),
    (LIMIT + 'rate = "1/s"\nin_flight = 1', "3: upstream.a.limit.0: needs exactly one"),
    (
        LIMIT + "in_flight = 1\nburst = 5",
        "6: upstream.a.limit.0.burst: has no meaning with `in_flight`",
    ),
    (
        LIMIT + 'in_flight = 1\nalgorithm = "window"',
        "6: upstream.a.limit.0.algorithm: has no meaning",
    ),
    (LIMIT + "in_flight = 1\ncost = 2", "6: upstream.a.limit.0.cost: has no meaning"),
    (LIMIT + 'in_flight = 1\nsync = "exact"', "6: upstream.a.limit.0.sync: `in_flight` is kept by"),
    (
        LIMIT + 'rate = "1/s"\nalign = "clock"',
        '6: upstream.a.limit.0.align: needs algorithm = "window"',
    ),
    (
        LIMIT + 'rate = "9/s"\nalgorithm = "window"\nburst = 1',
        "7: upstream.a.limit.0.burst: has no",
    ),
    (LIMIT + 'rate = "1/s"\nburst = 0', "6: upstream.a.limit.0.burst: 0 would let nothing pass"),
    (
        LIMIT + 'rate = "10/s"\ncost = 2',
        "6: upstream.a.limit.0.cost: 2 tokens are never there at once",
    ),
    (
        LIMIT + 'rate = "10/s"\nalgorithm = "window"\ncost = 11',
        "7: upstream.a.limit.0.cost: 11 tokens",
    ),
    (LIMIT + 'rate = "10/s"\nalgorithm = "window"\ncost = 10', None),
    (LIMIT + 'rate = "1/s"\nsync = "redis"', '6: upstream.a.limit.0.sync: "redis" needs a [redis]'),
    (
        LIMIT + 'rate = "1/s"\nsync = "local"\non_partition = "open"',
        "7: upstream.a.limit.0.on_partition: has no meaning",
    ),
    (
        LIMIT + 'rate = "1/s"\n[[upstream.a.limit]]\nname = "l"\nrate = "2/s"',
        "7: upstream.a.limit.1.name: 'l' names two limits",
    ),
    (
        A + '[[route]]\nupstream = "ab"',
        "4: route.0.upstream: there is no [upstream.ab]; did you mean 'a'?",
    ),
    (
        A + '[[route]]\nupstream = "a"\npath = "/x/"\nstrip = "/xy"',
        "6: route.0.strip: '/xy' is not a",
    ),
    (
        A + '[[route]]\nupstream = "a"\npath = "/xy"\nstrip = "/x"',
        "6: route.0.strip: '/x' is not a",
    ),
    (A + '[[route]]\nupstream = "a"\nstrip = "/x"', "5: route.0.strip: '/x' is not a prefix"),
    (A + '[[route]]\nupstream = "a"\npath = "/x/y/"\nstrip = "/x"', None),
    (
        A + '[[route]]\nupstream = "a"\nmethods = ["CONNECT"]',
        "5: route.0.methods: CONNECT is never",
    ),
    (
        A + '[[route]]\nupstream = "a"\nhost = "x"\n[[route]]\nhost = "X"\nupstream = "a"',
        "6: route.1: matches the same requests as route.0",
    ),
    (
        A + '[[route]]\nupstream = "a"\nmethods = ["GET", "PUT"]\n'
        '[[route]]\nupstream = "a"\nmethods = ["PUT", "GET"]\npath = "/"',
        "6: route.1: matches the same requests as route.0",
    ),
    ("[forward]\nconnect_ports = [443,\n0]", "3: forward.connect_ports.1: 0 is no port"),
    (
        '[[client]]\nname = "anonymous"\nsource = ["10.0.0.0/8"]',
        '2: client.0.name: "anonymous" is who',
    ),
    ('[[client]]\nname = "a"', "1: client.0: needs one of `source`, `token`, `certificate`"),
    ('[[client]]\nname = "a"\ncertificate = "x"', "3: client.0.certificate: can never be seen"),
    (
        '[[client]]\nname = "a"\nsource = ["10.0.0.0/8"]\nupstreams = ["b"]',
        "4: client.0.upstreams.0: there is no [upstream.b]",
    ),
    (
        '[[client]]\nname = "a"\nsource = ["10.0.0.0/8"]\nupstreams = []',
        "4: client.0.upstreams: is empty; leave it out to allow all",
    ),
    (
        '[[client]]\nname = "a"\ntoken.env = "KEY"\n[[client]]\nname = "b"\ntoken.env = "KEY"',
        "6: client.1.token: is another client's token as well",
    ),
    (
        '[[client]]\nname = "a"\nsource = ["::1"]\n[[client]]\nname = "a"\nsource = ["::1"]',
        "5: client.1.name: 'a' names two clients",
    ),
    (
        '[[listen]]\nbind = "unix:/s"\nproxy_protocol = ["::1"]',
        "3: listen.0.proxy_protocol: can never be believed",
    ),
    ("[access]\nanonymous = false", "2: access.anonymous: false, and no [[client]]"),
    (
        '[spool]\npath = "a"\nkafka = { bootstrap = ["k:1"] }',
        "3: spool.kafka: stands instead of `path`",
    ),
    (
        '[spool]\nrecords_max = 5\nkafka = { bootstrap = ["k:1"] }',
        "3: spool.kafka: stands instead of `records_max`",
    ),
    ('[spool.kafka]\nbootstrap = ["k:1", "[::1]:9092"]', None),
    ('[spool.kafka]\nbootstrap = ["k:1", "k"]', "2: spool.kafka.bootstrap.1: 'k' is not HOST:PORT"),
    ('[spool.kafka]\nbootstrap = ["k:0"]', "2: spool.kafka.bootstrap.0: 'k:0' is not HOST:PORT"),
    (
        '[spool.kafka]\nbootstrap = ["k:1"]\nrequests = "a b"',
        "3: spool.kafka.requests: 'a b' is no topic's name",
    ),
    (
        '[spool.kafka]\nbootstrap = ["k:1"]\ndead = ".."',
        "3: spool.kafka.dead: '..' is no topic's name",
    ),
    (
        '[spool.kafka]\nbootstrap = ["k:1"]\nresults = "egress"',
        "3: spool.kafka.results: 'egress' is the name of two",
    ),
]


@pytest.mark.parametrize(("text", "expected"), CASES)
def test_a_fault_stands_at_its_line(text: str, expected: str | None, judged: Judged) -> None:
    found = judged(text, KEY="ab" * 32)
    if expected is None:
        assert found == []
    else:
        assert len(found) == 1, found
        assert found[0].startswith(expected)


def test_files_that_are_there_are_no_fault(judged: Judged, tmp_path: Path, pem: bytes) -> None:
    for name in ("cert.pem", "key.pem", "ca.pem"):
        (tmp_path / name).write_bytes(pem)
    tls = 'tls = { cert = "cert.pem", key = "key.pem", client_ca = "ca.pem" }'
    text = f'listen = [{{ bind = "a:1", {tls} }}]\n[[client]]\nname = "a"\ncertificate = "x"\n'
    assert judged(text) == []


def test_many_wrong_routes_are_judged_in_time(judged: Judged) -> None:
    # Each hint is a search among 2,000 names, about a millisecond: unbounded this would take long.
    upstreams = "".join(f'[upstream.name-{n}]\norigin = "http://a"\n' for n in range(2000))
    routes = "".join(f'[[route]]\npath = "/{n}"\nupstream = "nme-{n}"\n' for n in range(3000))
    found = judged(upstreams + routes)
    assert len(found) == 1001
    assert sum("did you mean" in fault for fault in found) == 20


def test_a_reference_in_a_table_with_another_fault_is_told_too(tmp_path: Path) -> None:
    file = tmp_path / "n.toml"
    file.write_text(
        '[[listen]]\nbind = "127.0.0.1:1"\n[upstream.api]\norigin = "http://x"\n'
        '[[route]]\npath = "s"\nupstream = "nope"\n'
        '[[client]]\nname = "c"\nsource = ["banana"]\nupstreams = ["nada"]\n'
    )
    with pytest.raises(ConfError) as caught:
        load(file)
    told = [(fault.line, fault.key) for fault in caught.value.faults]
    assert told == [
        (6, "route.0.path"),
        (7, "route.0.upstream"),
        (10, "client.0.source.0"),
        (11, "client.0.upstreams.0"),
    ]


def test_certificates_are_read_not_only_found(tmp_path: Path) -> None:
    one, other = trustme.CA().issue_cert("a.test"), trustme.CA().issue_cert("b.test")
    one.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    other.private_key_pem.write_to_path(tmp_path / "key.pem")
    (tmp_path / "ca.pem").write_text("not a certificate")
    file = tmp_path / "n.toml"
    file.write_text(
        '[[listen]]\nbind = "127.0.0.1:1"\ntls = { cert = "cert.pem", key = "key.pem" }\n'
        '[upstream.api]\norigin = "https://x"\ntls = { ca = "ca.pem" }\n'
    )
    with pytest.raises(ConfError) as caught:
        load(file)
    told = {fault.key: fault.message for fault in caught.value.faults}
    assert "key values mismatch" in told["listen.0.tls.cert"]
    assert "cannot be used" in told["upstream.api.tls.ca"]
