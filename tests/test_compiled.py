"""The compiled build is the same program: the data path's own tests, run against its wheel.

The wheel is made and unpacked in a temporary folder, so that no extension ever lies beside the
sources, which it would hide.
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_tidy import HOT, SOURCES

ROOT = Path(__file__).resolve().parent.parent
SUITES = (
    "gateway/h1",
    "gateway/limits",
    "gateway/breaker",
    "gateway/waiting",
    "gateway/proxy",
    "gateway/connectors",
    "gateway/spool",
    "gateway/test_routes.py",
    "gateway/test_accesslog.py",
    "conformance",
    "fuzz",
)
# What these give in place of an exchange or a connection is none; compiled code checks that.
FAKES = ("proxy/test_keys.py", "proxy/test_pool.py", "proxy/test_waitroom.py")
OTHERWISE = (
    # It puts None into sys.modules, which an import in compiled code does not heed.
    "gateway/h1/test_codec.py::test_auto_without_httptools_is_h11",
    # A compiled attribute holds a tuple's items and makes the tuple anew: equal, not identical.
    "gateway/breaker/test_table.py::test_ask_costs_nothing_while_all_is_well",
)

BUILD_SECONDS_MAX = 900  # one core alone needs 60
TESTS_SECONDS_MAX = 900


def compiled_modules() -> list[str]:
    conf = tomllib.loads((ROOT / "pyproject.toml").read_text())
    hooks = conf["tool"]["hatch"]["build"]["targets"]["wheel"]["hooks"]
    modules: list[str] = hooks["custom"]["modules"]
    return modules


def test_all_hot_modules_are_compiled() -> None:
    modules = compiled_modules()
    assert modules == sorted(set(modules))
    # The mesh's counters are left out: pyproject.toml says why.
    assert {name for name in HOT if name.startswith("gateway/")} <= set(modules)
    assert [name for name in modules if not (ROOT / name).is_file()] == []


def bases_of(path: Path) -> Iterator[tuple[str, str]]:
    """Each class of a file with the source file of each base that it imports."""
    tree = ast.parse(path.read_text())
    home = {
        alias.asname or alias.name: (node.module or "").replace(".", "/") + ".py"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for base in node.bases:
                yield node.name, home.get(ast.unparse(base).partition("[")[0], "")


def test_a_class_and_its_base_are_both_compiled_or_neither() -> None:
    compiled = set(compiled_modules())
    ours = {str(path.relative_to(ROOT)): path for path in SOURCES}
    torn = [
        f"{name}: {derived} inherits from {base}"
        for name, path in ours.items()
        for derived, base in bases_of(path)
        if base in ours and (name in compiled) != (base in compiled)
    ]
    assert torn == []


def test_mypyc_accepts_the_modules(tmp_path: Path) -> None:
    """Its own rules are stricter than mypy's. This writes the C and compiles none of it."""
    program = (
        "import sys; from pathlib import Path; from hatch_build import write_c;"
        "write_c(Path.cwd(), Path(sys.argv[1]), sys.argv[2:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path, *compiled_modules()],
        cwd=ROOT, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    # Such a default is silently no attribute of the compiled class.
    assert "Unsupported default attribute value" not in done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_the_compiled_build_passes_the_same_tests(tmp_path: Path) -> None:
    environ = {**os.environ, "HATCH_BUILD_HOOK_ENABLE_CUSTOM": "true"}
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "."]
    subprocess.run(
        [*build, "--wheel-dir", tmp_path], cwd=ROOT, env=environ, check=True,
        timeout=BUILD_SECONDS_MAX,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("egressd-*.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    for name in compiled_modules():
        assert list((installed / name).parent.glob(Path(name).stem + ".*.so")), name
    assert not list(ROOT.glob("gateway/**/*.so"))

    environ = {**os.environ, "PYTHONPATH": str(installed)}
    version = subprocess.run(
        [sys.executable, "-m", "gateway", "--version"],
        cwd=installed, env=environ, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert version.stdout.strip().endswith("(compiled)")
    suites = [ROOT / "tests" / name for name in SUITES]
    left_out = [f"--ignore={ROOT / 'tests/gateway' / name}" for name in FAKES]
    left_out += [f"--deselect=tests/{name}" for name in OTHERWISE]
    tests = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", ROOT / "pyproject.toml", "--rootdir", ROOT,
         "-q", "-p", "no:cacheprovider", "-m", "not slow", *suites, *left_out],
        cwd=installed, env=environ, check=False, capture_output=True, text=True,
        timeout=TESTS_SECONDS_MAX,
    )  # fmt: skip
    assert tests.returncode == 0, tests.stdout[-8000:]
