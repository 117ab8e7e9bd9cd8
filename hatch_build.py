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
        for package in PACKAGES:
            shutil.copytree(Path(self.root) / package, self._folder / package)
        outputs = compile_modules(self._folder, self.config["modules"])
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        build_data["force_include"] |= outputs

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if version != "editable":
            shutil.rmtree(self._folder)


def compile_modules(folder: Path, modules: list[str]) -> dict[str, str]:
    """Compiles files of a copy of the sources; from each extension to its place in the wheel."""
    from mypyc.build import mypycify
    from setuptools import Distribution
    from setuptools.command.build_ext import build_ext

    with contextlib.chdir(folder):
        extensions = mypycify(
            ["--strict", "--ignore-missing-imports", *modules], opt_level="2", debug_level="0"
        )
        command = build_ext(Distribution({"name": "egressd", "ext_modules": extensions}))
        command.parallel = len(os.sched_getaffinity(0))
        command.build_lib = "compiled"
        command.ensure_finalized()
        command.run()
    compiled = folder / "compiled"
    return {str(path): str(path.relative_to(compiled)) for path in compiled.rglob("*.so")}
