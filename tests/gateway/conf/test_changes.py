"""What a reload may not change, what it says it changed, and that secrets stay hidden."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.conf.changes import RESTART_KEYS, cannot_change, diff
from gateway.conf.faults import Finding, key_text
from gateway.conf.load import load, placed
from gateway.conf.schema import Conf

Loaded = Callable[..., Conf]

BASE = """[node]
name = "gw-1"
[admin]
bind = "127.0.0.1:9901"
token = { env = "ADMIN" }
[mesh]
bind = "127.0.0.1:7946"
[upstream.stripe]
origin = "https://api.stripe.com"
headers.set.Authorization = { env = "AUTH" }
[[upstream.stripe.limit]]
name = "account"
rate = "100/s"
"""
ROUTE_1 = '[[route]]\npath = "/stripe"\nupstream = "stripe"\n'
ROUTE_2 = '[[route]]\nhost = "a"\nupstream = "stripe"\n'
BASE += ROUTE_1 + ROUTE_2
SECRETS = {"ADMIN": "admin-secret", "AUTH": "auth-secret"}


def test_nothing_changed(loaded: Loaded) -> None:
    one, two = loaded(BASE, **SECRETS), loaded(BASE, **SECRETS)
    assert diff(one, two) == []
    assert cannot_change(one, two) == []


@pytest.mark.parametrize(
    ("old", "new", "lines"),
    [
        ('"100/s"', '"50/s"\nburst = 10', ["upstream.stripe.limit.account.rate: 100/s -> 50/s"]),
        ("[admin]", "[log]\nlevel='debug'\n[admin]", ["log.level: info -> debug"]),
        (
            '"account"',
            '"account"\nkey = ["client", "host"]',
            [
                "upstream.stripe.limit.account.key: [] -> [client, host]",
            ],
        ),
        ("[mesh]", "[access]\nanonymous = true\n[mesh]", []),
        (
            '"https://api.stripe.com"',
            '"https://api.stripe.com:444"\nwait.max = "1.5s"',
            [
                "upstream.stripe.origin: https://api.stripe.com -> https://api.stripe.com:444",
                "upstream.stripe.wait.max: 2s -> 1500ms",
            ],
        ),
        (
            '"https://api.stripe.com"',
            '"https://api.stripe.com"\nretry.body = "1MiB"',
            [
                "upstream.stripe.retry.body: 64KiB -> 1MiB",
            ],
        ),
        (
            '{ env = "AUTH" }',
            '{ env = "ADMIN" }',
            [
                "upstream.stripe.headers.set.Authorization: <secret from env AUTH> -> "
                "<secret from env ADMIN>",
            ],
        ),
        (
            "[mesh]",
            '[[client]]\nname = "c"\nsource = ["::1"]\nweight = 2\n[mesh]',
            [
                "client.c: added (source [::1/128], weight 2)",
            ],
        ),
        (
            'path = "/stripe"',
            'path = "/s"\nmethods = ["GET"]\nstrip = "/s"',
            [
                "route: - any */stripe to stripe",
                "route: + GET */s to stripe, strip /s",
            ],
        ),
        (ROUTE_1 + ROUTE_2, ROUTE_2 + ROUTE_1, ["route: the order changed"]),
    ],
)
def test_a_change_is_one_readable_line(
    old: str, new: str, lines: list[str], loaded: Loaded
) -> None:
    assert old in BASE
    found = diff(loaded(BASE, **SECRETS), loaded(BASE.replace(old, new), **SECRETS))
    assert found == lines


def test_a_table_that_comes_or_goes_is_one_line(loaded: Loaded) -> None:
    more = """[upstream.new]
origin = "https://new.test"
wait.max = "1s"
[[upstream.new.limit]]
name = "inner"
rate = "1/s"
[[upstream.stripe.limit]]
name = "second"
rate = "5/s"
key = ["client"]
"""
    base, longer = loaded(BASE, **SECRETS), loaded(BASE + more, **SECRETS)
    second = "upstream.stripe.limit.second: {} (rate 5/s, key [client])"
    new = "upstream.new: {} (origin https://new.test, limit.inner.rate 1/s, wait.max 1s)"
    assert sorted(diff(base, longer)) == sorted([new.format("added"), second.format("added")])
    assert sorted(diff(longer, base)) == sorted([new.format("removed"), second.format("removed")])
    without = loaded(BASE.replace("[mesh]", "[forward]").replace('bind = "127.0.0.1:7946"', ""),
                     **SECRETS)  # fmt: skip
    assert diff(base, without) == ["mesh: removed (bind 127.0.0.1:7946)"]


def test_a_new_value_of_a_secret_is_said_and_not_shown(loaded: Loaded) -> None:
    found = diff(loaded(BASE, **SECRETS), loaded(BASE, ADMIN="other", AUTH="auth-secret"))
    assert found == ["admin.token: <secret from env ADMIN> has a new value"]


def test_no_line_shows_a_secret(loaded: Loaded) -> None:
    text = BASE + '[[client]]\nname = "c"\ntoken = { env = "AUTH" }\n'
    for lines in (
        diff(loaded(""), loaded(text, **SECRETS)),
        diff(loaded(text, **SECRETS), loaded("")),
    ):
        assert "<secret from env AUTH>" in "\n".join(lines)
        assert not any(secret in line for secret in SECRETS.values() for line in lines)


def test_many_changes_are_summed_up(loaded: Loaded) -> None:
    routes = "".join(f'[[route]]\npath = "/{n}"\nupstream = "stripe"\n' for n in range(300))
    found = diff(loaded(BASE, **SECRETS), loaded(BASE + routes, **SECRETS))
    assert len(found) == 201
    assert found[-1] == "and 100 more changes"


@pytest.mark.parametrize(
    ("key", "override"),
    [
        ("node.name", "node.name=gw-2"),
        ("mesh.bind", "mesh.bind=127.0.0.1:7947"),
        ("mesh.cluster", "mesh.cluster=another"),
        ("mesh.advertise", "mesh.advertise=127.0.0.1:7999"),
        ("admin.bind", "admin.bind=127.0.0.1:9902"),
    ],
)
def test_what_names_a_member_cannot_change(key: str, override: str, loaded: Loaded) -> None:
    old, new = loaded(BASE, **SECRETS), loaded(BASE, override, **SECRETS)
    (finding,) = cannot_change(old, new)
    assert key_text(finding.path) == key
    assert finding.message.startswith("cannot change while running (")
    assert "restart" in finding.message


def test_findings_get_their_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "n.toml"
    file.write_text('[[listen]]\nbind = "127.0.0.1:1"\n[node]\nname = "a"\n')
    old = load(file)
    file.write_text(file.read_text().replace('"a"', '"b"'))
    (fault,) = placed(cannot_change(old, load(file)), file)
    assert str(fault).startswith(f"{file}:4: node.name: cannot change")


def test_a_section_that_comes_or_goes_counts_as_well(loaded: Loaded) -> None:
    base, without = loaded(BASE, **SECRETS), loaded('[node]\nname = "gw-1"')
    sections = ["mesh.cluster", "mesh.bind", "mesh.advertise", "admin.bind"]
    assert _keys(cannot_change(base, without)) == sections
    assert _keys(cannot_change(without, base)) == sections
    workers = base.model_copy(update={"node": base.node.model_copy(update={"workers": 2})})
    assert _keys(cannot_change(base, workers)) == ["node.workers"]
    assert {"node.name", "node.workers", "mesh.bind", "admin.bind"} <= set(RESTART_KEYS)


TLS = ', tls = { cert = "pem", key = "pem" }'
MUTUAL = ', tls = { cert = "pem", key = "pem", client_ca = "pem" }'
PROXIED = ', proxy_protocol = ["10.0.0.0/8"]'


@pytest.mark.parametrize(
    ("old", "new", "keys"),
    [
        ("", TLS, ["listen.0.tls"]),
        (MUTUAL + PROXIED, "", ["listen.0.tls"]),
        (TLS, MUTUAL, ["listen.0.tls.client_ca"]),
        (MUTUAL, TLS, ["listen.0.tls.client_ca"]),
        (TLS, TLS + PROXIED, []),
        (TLS + PROXIED, TLS, []),
        (TLS + PROXIED, TLS + PROXIED.replace("10.0", "10.1").replace("/8", "/16"), []),
        (TLS, TLS.replace('cert = "pem"', 'cert = "other"'), []),
        ("", PROXIED, []),
        (PROXIED, "", []),
        (TLS, TLS, []),
    ],
)
def test_an_open_listener_keeps_the_kind_of_its_tls(
    old: str, new: str, keys: list[str], loaded: Loaded, tmp_path: Path, pem: bytes
) -> None:
    for name in ("pem", "other"):
        (tmp_path / name).write_bytes(pem)
    before = loaded(f'listen = [{{ bind = "127.0.0.1:1"{old} }}]')
    assert _keys(cannot_change(before, loaded(f'listen = [{{ bind = "127.0.0.1:1"{new} }}]'))) == (
        keys
    )
    assert _keys(cannot_change(before, loaded(f'listen = [{{ bind = "127.0.0.1:2"{new} }}]'))) == []


def _keys(findings: list[Finding]) -> list[str]:
    return [key_text(finding.path) for finding in findings]
