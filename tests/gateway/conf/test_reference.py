"""The manual cannot go stale: the reference file is held against the schema, both ways.

Lines that begin with "#" and no space are keys that are left out because this version has not got
them or because they exclude others; a test holds that too.
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from gateway.conf.explain import keys_at
from gateway.conf.faults import ConfError
from gateway.conf.fields import Section
from gateway.conf.load import load
from gateway.conf.positions import key_lines
from gateway.conf.schema import Conf, json_schema

CONF = Path(__file__).parents[3] / "conf"
REFERENCE = CONF / "egressd.reference.toml"
ENVIRON = {
    "EGRESSD_ADMIN_TOKEN": "admin",
    "STRIPE_AUTH": "Bearer 1",
    "BILLING_TOKEN": "billing",
}
DERIVED = {
    "node.name": "made from the host",
    "upstream.*.limit.*.burst": "made from the rate",
    "upstream.*.limit.*.sync": '"mesh", with `in_flight` "local"',
}

TEXT = REFERENCE.read_text()
LEFT_OUT = re.compile(r"^#(?=[a-z\[])", re.MULTILINE)
WHOLE = LEFT_OUT.sub("", TEXT)


@pytest.fixture
def folder(tmp_path: Path, pem: bytes) -> Path:
    (tmp_path / "tls").mkdir()
    for name in ("server.pem", "server.key", "clients.pem", "ca.pem", "client.pem", "client.key"):
        (tmp_path / "tls" / name).write_bytes(pem)
    (tmp_path / "mesh.key").write_text("00" * 31 + "01\n")
    return tmp_path


def _section(annotation: Any) -> type[Section] | None:
    """The model inside Optional, tuple, dict or Annotated."""
    if isinstance(annotation, type):
        return annotation if issubclass(annotation, Section) else None
    for argument in getattr(annotation, "__args__", ()):
        found = _section(argument)
        if found is not None:
            return found
    return None


def _schema_keys(model: type[Section], prefix: str) -> dict[str, Any]:
    """Every leaf key with its field; `*` stands for a name or a position."""
    keys: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        section = _section(field.annotation)
        if section is None:
            keys[prefix + name] = field
        else:
            several = "*." if str(field.annotation).startswith(("tuple", "dict")) else ""
            keys |= _schema_keys(section, f"{prefix}{name}.{several}")
    return keys


SCHEMA_KEYS = _schema_keys(Conf, "")


def _pattern(path: tuple[str | int, ...]) -> str:
    parts = ["*" if isinstance(part, int) else part for part in path]
    if parts[0] == "upstream" and len(parts) > 1:
        parts[1] = "*"
    return ".".join(parts)


def _documented() -> dict[str, tuple[int, Any]]:
    """Every leaf key of the whole file: the line of its first place, and its value there."""
    lines = key_lines(WHOLE)
    data = tomllib.loads(WHOLE)
    found: dict[str, tuple[int, Any]] = {}
    for path, line in sorted(lines.items(), key=lambda item: item[1]):
        pattern = _pattern(path)
        if pattern in SCHEMA_KEYS:
            node: Any = data
            for part in path:
                node = node[part]
            if pattern not in found or not _comment(found[pattern][0]):
                found[pattern] = (line, node)
    return found


def _comment(line: int) -> list[str]:
    """The comment lines directly above a line, without their marks."""
    rows = TEXT.splitlines()
    above = []
    for row in reversed(rows[: line - 1]):
        if not row.startswith("# "):
            break
        above.append(row[2:])
    return above[::-1]


DOCUMENTED = _documented()


def test_every_key_of_the_schema_is_in_the_reference() -> None:
    assert set(SCHEMA_KEYS) - set(DOCUMENTED) == set()


def test_every_key_of_the_reference_is_in_the_schema() -> None:
    for path in key_lines(WHOLE):
        known = keys_at(path[:-1])
        if known and isinstance(path[-1], str):
            assert path[-1] in known, path


@pytest.mark.parametrize("pattern", SCHEMA_KEYS)
def test_a_key_has_its_sentence_and_its_default(pattern: str) -> None:
    field = SCHEMA_KEYS[pattern]
    line, value = DOCUMENTED[pattern]
    comment = _comment(line)
    assert field.description in comment
    last = comment[-1]
    if field.is_required():
        assert last == "Required."
    elif pattern in DERIVED:
        assert last == f"Default: {DERIVED[pattern]}"
    elif field.default is None:
        assert last == "Default: none"
    else:
        stated = tomllib.loads("value = " + last.removeprefix("Default: "))["value"]
        default = json.loads(json.dumps(field.default))
        assert stated == default
        # What is shown is the default itself, save where an example says more.
        assert value == default or default in ([], {}) or pattern in EXAMPLES, pattern


EXAMPLES = {"route.*.path", "client.*.weight", "client.*.priority"}


def test_the_reference_loads_as_it_stands(folder: Path) -> None:
    path = folder / "egressd.toml"
    path.write_text(TEXT)
    conf = load(path, environ=ENVIRON)
    assert conf.upstream["stripe"].limit[0].name == "account"
    assert conf.mesh is not None
    assert conf.mesh.keys[0].reveal_bytes() == bytes(31) + b"\x01"


def _blocks() -> list[dict[int, str]]:
    """Runs of left-out lines with their numbers; a left-out table is a run of its own."""
    blocks: list[dict[int, str]] = []
    apart = True  # whether the next left-out line begins a run
    for number, row in enumerate(TEXT.splitlines(), start=1):
        if LEFT_OUT.match(row):
            if apart or row.startswith("#["):
                blocks.append({})
            blocks[-1][number] = row
            apart = False
        elif row and not row.startswith("#"):
            apart = True
    return blocks


def test_what_is_left_out_is_exactly_what_excludes_something_shown(folder: Path) -> None:
    path = folder / "egressd.toml"
    path.write_text(WHOLE)
    with pytest.raises(ConfError) as caught:
        load(path, environ=ENVIRON)
    faults = caught.value.faults
    for fault in faults:
        assert "instead of" in fault.message
    rows = TEXT.splitlines()
    shown = [str(fault) for fault in faults if not LEFT_OUT.match(rows[fault.line - 1])]
    assert not shown, f"put # before these lines of {REFERENCE.name}"
    lines = {fault.line for fault in faults}
    available = [block for block in _blocks() if not lines & block.keys()]
    assert not available, f"these can be had: take the # from these lines of {REFERENCE.name}"


def test_the_starting_file_is_right_and_small() -> None:
    path = CONF / "egressd.toml"
    conf = load(path, environ={})
    assert [limit.name for limit in conf.upstream["stripe"].limit] == ["account"]
    settings = [row for row in path.read_text().splitlines() if row and not row.startswith("#")]
    assert len(settings) <= 20


def test_the_json_schema_is_fresh() -> None:
    stored = json.loads((CONF / "egressd.schema.json").read_text())
    assert stored == json.loads(json.dumps(json_schema())), "write conf/egressd.schema.json anew"


@pytest.mark.parametrize(
    "text",
    [
        WHOLE,
        (CONF / "egressd.toml").read_text(),
        '[upstream.a]\norigin = "http://a"\nprovider = "hubspot"',
        '[upstream.a]\norigin = "http://a"\nprovider.name = "hubspot"',
        '[redis]\nurl = { env = "REDIS" }',
    ],
)
def test_the_json_schema_accepts_what_the_program_accepts(text: str) -> None:
    schema = json_schema()
    assert list(_complaints(schema, schema, tomllib.loads(text))) == []


@pytest.mark.parametrize(
    "text",
    [
        "nod = {}",
        "[node]\nname = 3",
        "[node]\ndrain = 30",
        '[node]\ndrain = "30"',
        '[upstream.A]\norigin = "http://a"',
        "[upstream.a]",
        '[upstream.a]\norigin = "http://a"\nlimit = [{ name = "a", rate = "100" }]',
        '[upstream.a]\norigin = "http://a"\nlimit = [{ name = "a", sync = "x" }]',
        '[admin]\ntoken = "literal"',
        "[upstream.a]\norigin = 'http://a'\nbreaker.failure = ['never']",
    ],
)
def test_the_json_schema_refuses_what_an_editor_should_mark(text: str) -> None:
    schema = json_schema()
    assert list(_complaints(schema, schema, tomllib.loads(text)))


def _complaints(root: Any, schema: Any, value: Any) -> list[str]:
    """A validator of the part of draft 2020-12 that the schema uses; other words are an error."""
    found: list[str] = []
    for word, rule in schema.items():
        if word == "$ref":
            found += _complaints(root, root["$defs"][rule.rpartition("/")[2]], value)
        elif word in ("anyOf", "oneOf"):
            fits = sum(not _complaints(root, item, value) for item in rule)
            if fits == 0 or (word == "oneOf" and fits > 1):
                found.append(f"{word}: {value}")
        elif word == "properties" and isinstance(value, dict):
            for name in rule.keys() & value.keys():
                found += _complaints(root, rule[name], value[name])
        elif word == "patternProperties" and isinstance(value, dict):
            for pattern, inner in rule.items():
                for name in value:
                    if re.search(pattern, name):
                        found += _complaints(root, inner, value[name])
        elif word == "additionalProperties" and isinstance(value, dict):
            known = schema.get("properties", {}).keys()
            patterns = schema.get("patternProperties", {})
            for name in value.keys() - known:
                if any(re.search(pattern, name) for pattern in patterns):
                    continue
                if rule is False:
                    found.append(f"unknown {name}")
                elif isinstance(rule, dict):
                    found += _complaints(root, rule, value[name])
        elif word == "items" and isinstance(value, list):
            for item in value:
                found += _complaints(root, rule, item)
        else:
            fits_word = _WORDS.get(word)
            if fits_word is None:
                assert word in _OTHER_WORDS, f"this test does not know {word}"
            elif not fits_word(rule, value):
                found.append(f"{word} {rule}: {value}")
    return found


_TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
}


def _has_type(name: str, value: Any) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    return isinstance(value, _TYPES[name])


def _number(value: Any) -> bool:
    return isinstance(value, int | float)


_OTHER_WORDS = {
    *("$schema", "$defs", "title", "description", "default", "examples"),
    *("properties", "patternProperties", "additionalProperties", "items"),
}

_WORDS: dict[str, Any] = {
    "type": _has_type,
    "enum": lambda rule, value: value in rule,
    "const": lambda rule, value: value == rule,
    "pattern": lambda rule, value: not isinstance(value, str) or re.search(rule, value),
    "required": lambda rule, value: not isinstance(value, dict) or set(rule) <= set(value),
    "minimum": lambda rule, value: not _number(value) or value >= rule,
    "maximum": lambda rule, value: not _number(value) or value <= rule,
    "exclusiveMinimum": lambda rule, value: not _number(value) or value > rule,
    "maxItems": lambda rule, value: not isinstance(value, list) or len(value) <= rule,
    "minItems": lambda rule, value: not isinstance(value, list) or len(value) >= rule,
    "maxProperties": lambda rule, value: not isinstance(value, dict) or len(value) <= rule,
    "propertyNames": lambda rule, value: (
        not isinstance(value, dict)
        or all(re.search(rule.get("pattern", ""), name) for name in value)
    ),
}
