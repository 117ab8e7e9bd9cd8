"""From files to a Conf, and from mistakes to faults with their lines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from gateway.clock import MS, SECOND
from gateway.conf.faults import ConfError, Fault
from gateway.conf.load import load
from gateway.conf.schema import Conf
from gateway.conf.units import Rate
from gateway.conf.values import Bind

Judged = Callable[..., list[str]]
Loaded = Callable[..., Conf]


def test_defaults_are_those_of_the_manual(loaded: Loaded) -> None:
    conf = loaded('[upstream.a]\norigin = "https://a"\n')
    assert conf.mesh is None
    assert conf.admin is None
    assert conf.node.drain == 30 * SECOND
    assert conf.listen[0].bind == Bind("tcp", "127.0.0.1", 8080)
    assert conf.listen[0].limits.head == 32 * 1024
    upstream = conf.upstream["a"]
    assert upstream.timeout.connect == 3 * SECOND
    assert upstream.wait.max == 2 * SECOND
    assert upstream.breaker.failure == (500, 502, 503, 504, "connect", "timeout", "reset")
    assert upstream.retry.body == 64 * 1024
    assert upstream.provider.name == "auto"
    assert conf.forward.connect_ports == (443,)
    assert conf.log.access == "stdout"


def test_a_limit_fills_in_what_follows_from_other_keys(loaded: Loaded) -> None:
    conf = loaded(
        """[upstream.a]
origin = "https://a"
limit = [
    { name = "a", rate = "100/s" },
    { name = "b", rate = "5/min" },
    { name = "c", in_flight = 5 },
    { name = "d", rate = "100/s", burst = 7, sync = "local" },
]
"""
    )
    limits = conf.upstream["a"].limit
    assert [limit.burst for limit in limits] == [10, 1, 0, 7]
    assert [limit.sync for limit in limits] == ["mesh", "mesh", "local", "local"]
    assert limits[0].rate == Rate(100, SECOND)


def test_a_conf_is_frozen(loaded: Loaded) -> None:
    conf = loaded("")
    with pytest.raises(ValidationError):
        conf.node.name = "other"


def test_a_fault_is_one_line() -> None:
    assert str(Fault("a.toml", 3, "node.name", "is wrong")) == "a.toml:3: node.name: is wrong"
    assert str(Fault("--set", 0, "node.name", "is wrong")) == "--set: node.name: is wrong"
    assert (
        str(ConfError([Fault("a", 1, "b", "c"), Fault("a", 2, "d", "e")])) == "a:1: b: c\na:2: d: e"
    )


def test_all_faults_come_at_once_and_none_is_a_consequence(judged: Judged) -> None:
    text = """[[listen]]
bind = "127.0.0.1:80800"
[[listen]]
bind = "127.0.0.1:8080"
[node]
workers = 0
nme = "x"
[upstream.stripe]
origin = "https://api.stripe.com/v1"
wait.max = 10
[[upstream.stripe.limit]]
nam = "x"
rate = "100/fortnight"
[[upstream.stripe.limit]]
name = "y"
in_flight = 5
burst = 3
[upstream.B]
origin = "http://x"
[upstream.c]
origin = "http://c"
tls.verify = false
[[route]]
upstream = "strpe"
[[route]]
path = "/b"
upstream = "B"
[[route]]
path = "/s"
upstream = "stripe"
"""
    found = judged(text)
    assert [" ".join(fault.split(": ")[:2]) for fault in found] == [
        "2 listen.0.bind",
        "6 node.workers",
        "7 node.nme",
        "9 upstream.stripe.origin",
        "10 upstream.stripe.wait.max",
        "11 upstream.stripe.limit.0.name",
        "12 upstream.stripe.limit.0.nam",
        "13 upstream.stripe.limit.0.rate",
        "17 upstream.stripe.limit.1.burst",
        "18 upstream.B",
        "22 upstream.c.tls",
        "24 route.0.upstream",
        "27 route.1.upstream",
    ]
    assert "did you mean 'name'?" in found[2]
    assert "did you mean 'stripe'?" in found[11]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nod = 1", "unknown key; did you mean 'node'?; allowed: include, node, listen"),
        ('"[key]" = 1', "unknown key; allowed: include"),  # pydantic's own mark for a key
        ('upstream."[key]" = 1', "is not a name"),
        ("node = 1", "must be a table"),
        ("[node]\nname = 1", "is not a node's name"),
        ("[node]\nworkers = true", 'use 1 to 32 or "auto"'),
        ('[node]\ncodec = "httptool"', 'use "auto", "httptools" or "h11"; did you mean'),
        ("[node]\ncodec = []", "a list is not allowed"),
        ("[node]\ndrain = 30", "the bare number 30 lacks its unit"),
        ("[access]\nanonymous = 1", "must be true or false"),
        ('[access]\nanonymous = "yes"', "must be true or false"),
        ("[upstream.a]", "is missing; it must be set"),
        ("[upstream]\na = 1", "must be a table"),
        ("upstream = []", "must be a table"),
        ("listen = 1", "must be a list"),
        ("listen = [1]", "must be a table"),
        ("route = {}", "must be a list"),
        ('[upstream.a]\norigin="http://a"\nconnections = "5"', "must be a whole number"),
        ('[upstream.a]\norigin="http://a"\nconnections = 5.0', "must be a whole number"),
        ('[upstream.a]\norigin="http://a"\nconnections = true', "must be a whole number"),
        ('[upstream.a]\norigin="http://a"\nconnections = 0', "out of range; must be at least 1"),
        (
            f'[upstream.a]\norigin="http://a"\nconnections = {10**400}',
            "a number of many digits is out of range",
        ),
        ('[upstream.a]\norigin="http://a"\nbreaker.failure_ratio = nan', "out of range"),
        ('[upstream.a]\norigin="http://a"\nbreaker.failure_ratio = 0', "must be more than 0"),
        ('[upstream.a]\norigin="http://a"\nbreaker.failure_ratio = "1"', "must be a number"),
        ('[upstream.a]\norigin="http://a"\nbreaker.failure = [200]', "use a status (400 to 599)"),
        ('[upstream.a]\norigin="http://a"\nbreaker.failure = ["x"]', '"timeout", "reset"'),
        ('[upstream.a]\norigin="http://a"\nbreaker.throttle = [429, 429]', "stands twice"),
        ('[upstream.a]\norigin="http://a"\nprovider = "hubspt"', "did you mean 'hubspot'?"),
        ('[upstream.a]\norigin="http://a"\nprovider.time_zone = "Mars/X"', "is no time zone"),
        ('[upstream.a]\norigin="http://a"\nprovider.time_zone = "../../x"', "is no time zone"),
        ('[upstream.a]\norigin="http://a"\nheaders.set = { "a b" = "" }', "not name a header"),
        ('[upstream.a]\norigin="http://a"\nheaders.set.a = "b\\nc"', "no control characters"),
        ('[upstream.a]\norigin="http://a"\nheaders.set.a = "\u20ac"', "none beyond U+00FF"),
        ('[upstream.a]\norigin="http://a"\nheaders.set.a = " b"', "no space around it"),
        ('[upstream.a]\norigin="http://a"\nheaders.set.a.env = "EURO"', "none beyond U+00FF"),
        ('[upstream.a]\norigin="http://a"\nheaders.set.a = 5', "must name one source"),
        ('[upstream.a]\norigin="http://a"\nhost = "a b"', "is not a host"),
        ('[[route]]\nupstream = "a"\npath = "a"', "is not a path"),
        ('[[route]]\nupstream = "a"\npath = "/a?b"', "is not a path"),
        ('[[route]]\nupstream = "a"\npath = "/a/../b"', "dot segment"),
        ('[[route]]\nupstream = "a"\npath = "//a"', "dot segment"),
        ('[[route]]\nupstream = "a"\nmethods = ["get"]', "they are case-sensitive"),
        ("[admin]\ntoken = 'x'", "a secret is never a literal"),
        ("[mesh]\nkeys = [{ env = 'SHORT' }]", "must be 32 octets as hex or base64"),
        ("[log]\naccess = ''", "must be a file's path"),
        ("[node]\nname = 2026-01-01", "a date is not"),
    ],
)
def test_a_wrong_key_is_explained(text: str, words: str, judged: Judged) -> None:
    found = judged(text, SHORT="abcd", EURO="\u20ac")
    assert any(words in fault for fault in found), found


@pytest.mark.parametrize(
    ("octets", "line", "words"),
    [
        (b"a = 1\nb = \n", 2, "Invalid value"),
        (b"a = 1\n\nb = [1,\n", 3, "Invalid value"),
        (b'a = "x\n', 1, "Illegal character"),
        (b"a = 1\na = 2\n", 2, "Cannot overwrite a value"),
        (b"a = 1\nb = '\xff'\n", 2, "is not UTF-8 text"),
        (b"a = " + b"[" * 5000, 1, "nested too deeply"),
        (b"\na" + b".a" * 40 + b" = 1", 2, "nested too deeply"),
        (b"\na = " + b"[" * 40 + b"]" * 40, 2, "nested too deeply"),
        (b"a = " + b"9" * 5000, 1, "Exceeds the limit"),
        (b"#" * (1 << 20) + b"\n", 0, "is longer than 1MiB"),
    ],
)
def test_what_is_no_toml_stands_alone(octets: bytes, line: int, words: str, tmp_path: Path) -> None:
    path = tmp_path / "egressd.toml"
    path.write_bytes(octets)
    with pytest.raises(ConfError) as caught:
        load(path, ["node.foo=1"])
    (fault,) = caught.value.faults
    assert (fault.file, fault.line) == (str(path), line)
    assert words in fault.message


@pytest.mark.parametrize("name", ["missing.toml", ".", "\0"])
def test_a_file_that_cannot_be_read_is_a_fault(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfError, match="does not exist or is not a plain file"):
        load(f"{tmp_path}/{name}")


def test_very_many_faults_are_cut_and_counted(judged: Judged) -> None:
    found = judged("".join(f"key{number} = 1\n" for number in range(5000)))
    assert len(found) == 1001
    assert found[0].startswith("1: key0: unknown key")
    assert found[-1].endswith("4000 more faults are not shown")


def test_paths_count_from_the_folder_of_the_file(loaded: Loaded, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("x")
    conf = loaded(
        'listen = [{ bind = "unix:run/e.sock" }]\nlog.access = "log/a"\nadmin.token.file = "token"'
    )
    assert conf.listen[0].bind.path == f"{tmp_path}/run/e.sock"
    assert conf.log.access == f"{tmp_path}/log/a"
    assert conf.admin is not None
    assert conf.admin.token is not None
    assert conf.admin.token.reveal() == "x"


class TestInclude:
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path
        (tmp_path / "conf.d").mkdir()

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def load(self) -> Conf:
        return load(self.folder / "main.toml", environ={})

    def faults(self) -> list[str]:
        with pytest.raises(ConfError) as caught:
            self.load()
        return [str(fault).replace(f"{self.folder}/", "") for fault in caught.value.faults]

    def test_files_are_merged_in_name_order(self) -> None:
        main = 'include = ["conf.d/*.toml"]\n[[listen]]\nbind = ":80"\n[[route]]\nupstream = "a"\n'
        self.write("main.toml", main.replace('":80"', '"a:80"'))
        self.write(
            "conf.d/2.toml",
            '[[route]]\npath = "/2"\nupstream = "b"\n'
            '[[upstream.a.limit]]\nname = "n"\nrate = "1/s"',
        )
        self.write(
            "conf.d/1.toml",
            '[upstream.a]\norigin = "http://a"\n[upstream.b]\norigin = "http://b"\n'
            '[[route]]\npath = "/1"\nupstream = "b"',
        )
        conf = self.load()
        assert [route.path for route in conf.route] == ["/", "/1", "/2"]
        assert sorted(conf.upstream) == ["a", "b"]
        assert conf.upstream["a"].limit[0].name == "n"
        assert conf.include == ("conf.d/*.toml",)

    def test_a_fault_names_the_file_and_line_that_it_came_from(self) -> None:
        self.write("main.toml", 'include = ["conf.d/*.toml"]\n[[listen]]\nbind = "a:80"\n')
        self.write(
            "conf.d/1.toml", '[[route]]\nupstream = "a"\n\n[upstream.a]\norigin = "http://a"'
        )
        self.write("conf.d/2.toml", '\n[[route]]\npath = "/x"\nupstream = "b"\nfoo = 1\n')
        places = [fault.split(": ")[0] for fault in self.faults()]
        assert places == ["conf.d/2.toml:4", "conf.d/2.toml:5"]
        self.write("conf.d/2.toml", '\n[[route]]\npath = "/x"\nupstream = "b"\n')
        (fault,) = self.faults()
        assert fault == "conf.d/2.toml:4: route.1.upstream: there is no [upstream.b]"

    def test_a_key_set_twice_names_both_places(self) -> None:
        self.write(
            "main.toml",
            'include = ["conf.d/*.toml"]\n[[listen]]\nbind = "a:80"\n[node]\ndrain = "1s"',
        )
        self.write("conf.d/1.toml", '[node]\n\ndrain = "2s"\n')
        assert self.faults() == ["conf.d/1.toml:3: node.drain: is set twice; also at main.toml:5"]

    def test_a_cycle_is_a_fault(self) -> None:
        self.write("main.toml", 'include = ["a.toml"]\n[[listen]]\nbind = "a:80"\n')
        self.write("a.toml", '\ninclude = ["b.toml"]\n')
        self.write("b.toml", 'include = [\n"*.toml"]\n')
        found = self.faults()
        assert found[0].startswith("b.toml:2: include.0: '*.toml' includes ")
        assert all("which includes this file" in fault for fault in found)

    def test_a_pattern_may_match_nothing_but_a_file_must_be_there(self) -> None:
        self.write(
            "main.toml", 'include = ["x/*.toml",\n"y.toml"]\n[[listen]]\nbind = "a:80"\nfoo = 1'
        )
        found = self.faults()
        assert found == [
            "main.toml:2: include.1: y.toml: does not exist or is not a plain file",
            "main.toml:5: listen.0.foo: unknown key; allowed: bind, tls, proxy_protocol, limits",
        ]

    def test_syntax_errors_of_all_files_stand_alone(self) -> None:
        self.write("main.toml", 'include = ["conf.d/*.toml"]\nfoo = 1')
        self.write("conf.d/1.toml", "a =")
        self.write("conf.d/2.toml", "\nb =")
        assert [fault.split(": ")[0] for fault in self.faults()] == [
            "conf.d/1.toml:1",
            "conf.d/2.toml:2",
        ]

    def test_there_is_a_bound_of_files(self) -> None:
        self.write("main.toml", 'include = ["conf.d/*"]\n[[listen]]\nbind = "a:80"\n')
        for number in range(100):
            self.write(f"conf.d/{number:03}", "")
        assert self.faults() == [
            "main.toml:1: include.0: conf.d/099: more than 100 files are included"
        ]

    @pytest.mark.parametrize("value", ["1", '["a\\u0000"]', "[1]", '[""]', '{ a = "b" }'])
    def test_garbage_is_a_fault(self, value: str) -> None:
        text = f'include = {value}\n[[listen]]\nbind = "a:80"\n'
        self.write("main.toml", text)
        assert self.faults()[0].startswith("main.toml:1: include")
        self.write("main.toml", 'include = ["a.toml"]\n[[listen]]\nbind = "a:80"\n')
        self.write("a.toml", f"include = {value}")
        assert self.faults()[0].startswith("a.toml:1: include")

    def test_a_file_that_two_patterns_match_is_read_once(self) -> None:
        self.write("main.toml", 'include = ["a.toml", "[a]*.toml"]\n[[listen]]\nbind = "a:80"\n')
        self.write("a.toml", '[node]\nname = "x"')
        assert self.load().node.name == "x"


class TestOverrides:
    def test_values_are_toml_or_else_texts(self, loaded: Loaded) -> None:
        conf = loaded(
            '[upstream.a]\norigin = "http://a"\nlimit = [{ name = "l", rate = "1/s" }]\n',
            "node.name=gw-2",
            "mesh.bind=127.0.0.1:7947",
            'mesh.join=["a:1", "b:2"]',
            "listen.0.bind=[::1]:9002",
            "listen.1.bind=127.0.0.1:9003",
            "upstream.a.limit.0.rate=50/s",
            "upstream.a.connections = 7",
            'upstream.a.headers.set."X.Y"=a=b',
            "access.anonymous=true",
            "route.0.upstream=a",
        )
        assert conf.node.name == "gw-2"
        assert conf.mesh is not None
        assert [str(address) for address in conf.mesh.join] == ["a:1", "b:2"]
        assert [str(listen.bind) for listen in conf.listen] == ["[::1]:9002", "127.0.0.1:9003"]
        assert conf.upstream["a"].limit[0].rate == Rate(50, SECOND)
        assert conf.upstream["a"].connections == 7
        assert conf.upstream["a"].headers.set == {"X.Y": "a=b"}
        assert conf.route[0].upstream == "a"

    def test_a_later_one_wins(self, loaded: Loaded) -> None:
        assert loaded("", "node.drain=1s", "node.drain=250ms").node.drain == 250 * MS

    @pytest.mark.parametrize(
        ("override", "key", "words"),
        [
            ("node.nme=x", "node.nme", "did you mean 'name'?"),
            ("node.drain=5", "node.drain", "lacks its unit"),
            ("node.name", "node.name", "use KEY=VALUE"),
            ("=x", "", "is not a dotted key"),
            ("a..b=x", "a..b", "is not a dotted key"),
            ("a b=x", "a b", "is not a dotted key"),
            ("a\nb=x", "a\nb", "is not a dotted key"),
            ("listen.5.bind=a:1", "listen.5.bind", "is not a position in a list of 1"),
            ("listen.x.bind=a:1", "listen.x.bind", "is not a position in a list of 1"),
            ("listen.\u0661.bind=a:1", "listen.\u0661.bind", "is not a dotted key"),
            ("listen.0.bind.x=1", "listen.0.bind.x", "there is no table at 'listen.0.bind'"),
            ("a" + ".a" * 50 + "=1", "a" + ".a" * 50, "is not a dotted key"),
            ("node.name=" + "a" * 70_000, "node.name", "use KEY=VALUE"),
            ("node.name=" + "[" * 3000, "node.name", "is not a node's name"),
            ("node.name=1\nx = 2", "node.name", "is not a node's name"),
        ],
    )
    def test_a_fault_is_that_of_the_command_line(
        self, override: str, key: str, words: str, judged: Judged
    ) -> None:
        (fault,) = judged("", override)
        assert fault.startswith(f"--set: {key}: ")
        assert words in fault

    def test_the_file_s_faults_keep_their_lines(self, judged: Judged) -> None:
        found = judged("[node]\nfoo = 1\n", "node.bar=1")
        assert [fault.split(": ")[:2] for fault in found] == [
            ["2", "node.foo"],
            ["--set", "node.bar"],
        ]


@pytest.mark.parametrize(
    ("override", "places"),
    [
        ("nodee.name=x", ["--set: nodee"]),
        ("node.nmae=x", ["--set: node.nmae"]),
        ("listen.0.foo=1", ["--set: listen.0.foo"]),
        ("upstream.new.wait.max=1s", ["--set: upstream.new.origin"]),
        ("route.0.upstream=none", ["--set: route.0.upstream"]),
    ],
)
def test_what_the_command_line_made_is_blamed_on_it(
    override: str, places: list[str], judged: Callable[..., list[str]]
) -> None:
    """Not on the file's first line, where a table that no file has would be looked for."""
    found = judged("", override)
    assert [": ".join(fault.split(": ")[:2]) for fault in found] == places
