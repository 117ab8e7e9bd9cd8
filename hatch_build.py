"""The build step that compiles the hot modules with mypyc; `pip install .` alone does without it.

    HATCH_BUILD_HOOK_ENABLE_CUSTOM=true pip install .

Source and meaning stay the same; a compiled module stands in the wheel beside its source and is
found first. Nothing is written into the source tree: a stale extension there would hide edits.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGES = ("gateway", "peers")


class CompileHook(BuildHookInterface[Any]):
    """Compiles `modules` of the hook's table in pyproject.toml into the wheel.

    All of them are one group: calls between them are C calls, without a look-up.
    """

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        self._folder = Path(tempfile.mkdtemp(prefix="egressd-compile-"))
        outputs = compile_modules(Path(self.root), self._folder, self.config["modules"])
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        build_data["force_include"] |= outputs

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if version != "editable":
            shutil.rmtree(self._folder)


def write_c(root: Path, folder: Path, modules: list[str]) -> list[Any]:
    """Copies the sources into a folder and writes the modules' C there: setuptools' extensions.

    Ends the program with mypyc's words on standard error where it cannot compile something.
    """
    from mypyc.build import mypycify

    for package in PACKAGES:
        shutil.copytree(root / package, folder / package)
    with contextlib.chdir(folder):
        options = ["--strict", "--ignore-missing-imports"]
        extensions: list[Any] = mypycify([*options, *modules], opt_level="2", debug_level="0")
    return extensions


def compile_modules(root: Path, folder: Path, modules: list[str]) -> dict[str, str]:
    """Compiles the modules in a folder; from each extension to its place in the wheel."""
    from setuptools import Distribution
    from setuptools.command.build_ext import build_ext

    extensions = write_c(root, folder, modules)
    with contextlib.chdir(folder):
        command = build_ext(Distribution({"name": "egressd", "ext_modules": extensions}))
        command.parallel = len(os.sched_getaffinity(0))
        command.build_lib = "compiled"
        command.ensure_finalized()
        command.run()
    compiled = folder / "compiled"
    return {str(path): str(path.relative_to(compiled)) for path in compiled.rglob("*.so")}
