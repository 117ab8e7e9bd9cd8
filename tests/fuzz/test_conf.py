"""No input makes the loader raise anything but ConfError, and every fault has a place."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.cli import main
from gateway.conf.account import account, members_expected
from gateway.conf.advice import warnings
from gateway.conf.changes import diff
from gateway.conf.faults import ConfError
from gateway.conf.load import load
from gateway.conf.schema import Conf, json_schema

CONF = Path(__file__).parents[2] / "conf"
SECRET = "s3cret-value"  # in no message
ENVIRON = dict.fromkeys(("EGRESSD_ADMIN_TOKEN", "STRIPE_AUTH", "BILLING_TOKEN"), SECRET)
REFERENCE = re.sub(r"^#(?=[a-z\[])", "", (CONF / "egressd.reference.toml").read_text(), flags=re.M)
ROWS = [row for row in REFERENCE.splitlines() if row and not row.startswith("# ")]
# The folder of a test's function lives as long as all of its examples.
ONE_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "egressd.toml"


def _load(path: Path, text: str | bytes, overrides: list[str] | None = None) -> None:
    path.write_bytes(text if isinstance(text, bytes) else text.encode(errors="surrogatepass"))
    try:
        conf = load(path, overrides or [], ENVIRON)
    except ConfError as error:
        rows = path.read_bytes().count(b"\n") + 1
        assert error.faults
        for fault in error.faults:
            assert fault.line <= rows
            assert fault.message
            assert SECRET not in str(fault)
    else:
        assert isinstance(conf, Conf)
        members = members_expected(conf)
        for lines in (account(conf, members), warnings(conf, members), diff(Conf(), conf)):
            assert SECRET not in "\n".join(lines)


@ONE_FOLDER
@given(text=st.one_of(st.binary(), st.text(), st.text(alphabet="[]{}=.,\"'#\\\n ab1", max_size=80)))
def test_any_octets(path: Path, text: str | bytes) -> None:
    _load(path, text)


@st.composite
def mutations(draw: st.DrawFn) -> str:
    """The whole reference file with rows dropped, doubled, moved, and characters changed."""
    rows = list(ROWS)
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(rows) - 1))  # at least one row stays
        match draw(st.sampled_from(["drop", "double", "move", "value", "character", "cut"])):
            case "drop":
                rows = [*rows[:at], *rows[at + 1 :]] or rows
            case "double":
                rows.insert(at, rows[draw(st.integers(0, len(rows) - 1))])
            case "move":
                rows.append(rows.pop(at))
            case "value":
                key = rows[at].partition("=")[0]
                rows[at] = f"{key}= {draw(st.sampled_from(VALUES))}"
            case "character":
                place = draw(st.integers(0, len(rows[at])))
                inserted = draw(st.text(max_size=2))
                rows[at] = rows[at][:place] + inserted + rows[at][place + 1 :]
            case "cut":
                rows = rows[:at] or rows
    return "\n".join(rows)


VALUES = [
    *("1", "-1", "0", "1e400", "nan", "true", "[]", "{}", "[[]]", "[{}]", '""', '"\\u0000"'),
    *('"a"', '["a", "a"]', "{ a = 1 }", '{ env = "STRIPE_AUTH" }', '{ file = "/" }', '"0s"'),
    *("9223372036854775808", "1979-05-27", "07:32:00", '"10s"', '"100/s"', '"http://[::1]:1"'),
    *('"unix:\\u0001"', '"*"', '["*:1"]', '"*.a"', '"../../x"', "[1, [2, [3]]]"),
]


@ONE_FOLDER
@given(text=mutations())
def test_a_mutated_reference_file(path: Path, text: str) -> None:
    _load(path, text)


def _words(schema: Any) -> set[str]:
    """Every key that the schema knows."""
    found: set[str] = set()
    if isinstance(schema, dict):
        if isinstance(schema.get("properties"), dict):
            found |= schema["properties"].keys()
        for value in schema.values():
            found |= _words(value)
    elif isinstance(schema, list):
        for value in schema:
            found |= _words(value)
    return found


KEYS = st.one_of(st.sampled_from(sorted(_words(json_schema()))), st.text(max_size=5))
TREES = st.recursive(
    st.one_of(
        st.booleans(),
        st.integers(-(2**63), 2**63),
        st.floats(),
        st.text(max_size=20),
        st.sampled_from(
            ["1s", "1/s", "1KiB", "a:1", "http://a", "unix:a", "a", "auto", "10.0.0.0/8"]
        ),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(KEYS, inner, max_size=4)),
    max_leaves=25,
)


def _toml(value: Any) -> str:
    """A value as TOML writes it inline; JSON's texts are TOML's but for DEL and astral escapes."""
    if isinstance(value, dict):
        pairs = (f"{_toml(str(key))} = {_toml(item)}" for key, item in value.items())
        return "{ " + ", ".join(pairs) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value).replace("NaN", "nan").replace("Infinity", "inf")


@ONE_FOLDER
@given(
    tree=st.dictionaries(
        st.one_of(st.sampled_from(sorted(Conf.model_fields)), KEYS), TREES, max_size=5
    )
)
def test_any_data_under_known_keys(path: Path, tree: dict[str, Any]) -> None:
    _load(path, "\n".join(f"{_toml(key)} = {_toml(value)}" for key, value in tree.items()))


OVERRIDES = st.lists(
    st.one_of(
        st.text(),
        st.builds(
            "{}={}".format,
            st.lists(st.one_of(KEYS, st.integers(0, 3).map(str)), min_size=1, max_size=5).map(
                ".".join
            ),
            st.one_of(st.text(), st.sampled_from(VALUES)),
        ),
    ),
    max_size=5,
)


@ONE_FOLDER
@given(overrides=OVERRIDES)
def test_any_overrides(path: Path, overrides: list[str]) -> None:
    _load(path, (CONF / "egressd.toml").read_bytes(), overrides)


@ONE_FOLDER
@given(text=mutations(), cuts=st.lists(st.integers(0, 400), max_size=3), overrides=OVERRIDES)
def test_any_files_and_overrides(
    path: Path, text: str, cuts: list[int], overrides: list[str]
) -> None:
    """A mutated reference file, cut into pieces that are included in one another."""
    rows = text.split("\n")
    places = [0, *sorted(min(cut, len(rows)) for cut in cuts), len(rows)]
    pieces = [rows[begin:end] for begin, end in itertools.pairwise(places)]
    files = {path: ['include = ["part-*.toml", "gone.toml"]', *pieces[0]]}
    for number, piece in enumerate(pieces[1:]):
        include = f'include = ["part-{number + 1}.toml"]'
        files[path.with_name(f"part-{number}.toml")] = [include, *piece]
    for old in path.parent.glob("part-*.toml"):
        old.unlink()
    for file, lines in files.items():
        file.write_text("\n".join(lines), errors="surrogatepass")
    try:
        load(path, overrides, ENVIRON)
    except ConfError as error:
        sizes = {str(file): len(lines) + text.count("\r") for file, lines in files.items()}
        assert error.faults
        for fault in error.faults:
            assert fault.message
            assert SECRET not in str(fault)
            assert fault.file in sizes or fault.line == 0
            assert fault.line <= sizes.get(fault.file, 0)


@ONE_FOLDER
@given(text=st.one_of(st.binary(max_size=200), mutations()), as_json=st.booleans())
def test_check_itself(path: Path, text: str | bytes, as_json: bool) -> None:
    """The command ends with 0 or 1 and says something, without a traceback."""
    path.write_bytes(text if isinstance(text, bytes) else text.encode(errors="surrogatepass"))
    result = CliRunner().invoke(main, ["check", str(path), *["--json"] * as_json], env=ENVIRON)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert result.exit_code in (0, 1)
    assert SECRET not in result.output
    if as_json:
        assert bool(json.loads(result.stdout)) == bool(result.exit_code)
    else:
        assert bool(result.stderr) >= bool(result.exit_code)
