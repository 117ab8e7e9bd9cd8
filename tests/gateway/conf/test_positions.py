"""The scanner knows a line for every key that tomllib finds, and it is the right one.

In the texts made here every leaf's value is the number of its own line.
"""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from gateway.conf.positions import key_lines

CORPUS = [
    "a = 1\nb = 2\n",
    "# c\n\na = 3\r\n\r\nb = 5",
    'a.b.c = 1\na."b.x".c = 2\na.\'q # "\'.c = 3\n"" = 4',
    "[a]\nb = 2\n[a.c] # [x]\nd = 4\n[ e . f ]\ng = 6",
    "[[a]]\nb = 2\n[[a]]\nb = 4\n[a.c]\nd = 6\n[[a.e]]\nf = 8\n[[a.e]]\nf = 10\n[[a]]\n[[a.e]]",
    "a = { b = 1, c.d = 1, e = [1, { f = 1 }] }\ng = 2",
    "a = [\n 2, # ] \n 3,\n [4,\n 5], { b = 5 },\n]\nb = 7",
    'a = ["x]\\"", \'y}#\', """\n=\n""", "z"]\nb = 4',
    'a = """\n[b]\nc = 1 \\""" x\n"""\nd = 5',
    'a = """x""""\nb = 2\nc = """"""\nd = 4\ne = \'\'\'a\'\'\'\'\'\nf = 6',
    "a = '''\n'x'\n'''\nb = 4",
    "d = 1979-05-27 07:32:00\nf = 2\ng = 1e5\nh = 4\ni = inf\nj = 6\nk = true",
    '"\\u0061" = 1\n"\\"]=" = 2\n\'[x]\' = 3',
    'a = ""\nb = \'\'\nc = 3\n[x."y]".z]\nd = 5',
    "[a]\n[a.b.c]\nd = 3\n[a.b]\ne = 5",
    "x = [[], [[]], {}]\ny = 2",
    "key = 1 # \"\"\" not a string\nz = 2",
]  # fmt: skip


def _leaves(node: Any, path: tuple[str | int, ...]) -> list[tuple[tuple[str | int, ...], Any]]:
    """Every key, table and item of parsed TOML."""
    found = [(path, node)] if path else []
    if isinstance(node, dict):
        for key, value in node.items():
            found += _leaves(value, (*path, key))
    elif isinstance(node, list):
        for index, item in enumerate(node):
            found += _leaves(item, (*path, index))
    return found


def _check(text: str) -> None:
    lines = key_lines(text)
    data = tomllib.loads(text)
    for path, value in _leaves(data, ()):
        assert path in lines, path
        if isinstance(value, int) and not isinstance(value, bool):
            assert lines[path] == value, path
    assert {path for path, _ in _leaves(data, ())} == set(lines)


@pytest.mark.parametrize("text", CORPUS)
def test_every_key_has_its_line(text: str) -> None:
    _check(text)


@st.composite
def documents(draw: st.DrawFn) -> str:
    """A TOML text of tables, arrays of tables and values in all their spellings."""
    rows: list[str] = []
    names = st.one_of(
        st.sampled_from(["a", "b-c", "d_e", "1"]),
        st.text(alphabet="ab.#]}\"'\\= \t", min_size=0, max_size=4),
    )

    def quoted(name: str) -> str:
        if name and all(letter.isalnum() or letter in "-_" for letter in name):
            return name
        if "'" not in name and draw(st.booleans()):
            return f"'{name}'"
        escaped = name.replace("\\", "\\\\").replace('"', '\\"').replace("\t", "\\t")
        return f'"{escaped}"'

    def value(depth: int) -> None:
        """Appends a value to the last row; further rows may begin inside it."""
        kind = draw(st.sampled_from(["line", "line", "text", "lines", "list", "table"]))
        if kind == "text":
            rows[-1] += draw(
                st.sampled_from(['"x]#"', "'}'", '"\\""', "1979-05-27", "true", "1.5"])
            )
        elif kind == "lines":
            rows[-1] += draw(st.sampled_from(['"""', "'''"]))
            closing = rows[-1][-3:]
            rows.extend(["[x]", "a = 1 # ' \""])
            rows[-1] += closing
        elif kind == "list" and depth < 3:
            rows[-1] += "["
            for _ in range(draw(st.integers(0, 3))):
                if draw(st.booleans()):
                    rows.append(draw(st.sampled_from(["", '# ] } "', "  "])))
                    rows.append("")
                value(depth + 1)
                rows[-1] += ","
            rows[-1] += "]"
        elif kind == "table" and depth < 3:
            rows[-1] += "{ "
            keys = draw(st.lists(names, max_size=3, unique=True))
            for position, name in enumerate(keys):
                rows[-1] += (", " if position else "") + quoted(name) + " = "
                value(depth + 1)
            rows[-1] += " }"
        else:
            rows[-1] += str(len(rows))

    def pairs() -> None:
        for name in draw(st.lists(names, max_size=3, unique=True)):
            rows.extend(draw(st.lists(st.sampled_from(["", '# [a] = "', "  "]), max_size=2)))
            rows.append(quoted(name) + draw(st.sampled_from(["=", " = ", "\t= "])))
            value(0)

    pairs()
    for number in range(draw(st.integers(0, 3))):
        name = f"t{number}"
        for _ in range(draw(st.integers(1, 3))):
            several = draw(st.booleans())
            if several:
                rows.append(f"[[{name}.items]]")
                pairs()
                rows.append(f"[[ {name} . items . inner ]]")
                pairs()
            else:
                rows.append(f"[{name}.{quoted(draw(names) + str(len(rows)))}]")
                pairs()
    return "\n".join(rows)


@given(documents())
def test_made_documents(text: str) -> None:
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        reject()  # a table defined twice by chance; too many of them fail the health check
    _check(text)


@given(st.one_of(st.text(), st.text(alphabet="[]{}=,.\"'#\\\n ab1", max_size=200)))
def test_garbage_neither_raises_nor_hangs(text: str) -> None:
    lines = key_lines(text)
    assert all(1 <= line <= text.count("\n") + 1 for line in lines.values())


@pytest.mark.parametrize(
    "piece", ["[", "{", "[[", '"', '"""', "'''", "a=", "a.", "a={", "#", "\\", "a=[[", ","]
)
def test_long_garbage_takes_linear_time(piece: str) -> None:
    # 200,000 characters: anything quadratic would take minutes.
    key_lines(piece * (200_000 // len(piece)))
