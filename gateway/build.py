"""What is running: the version, and whether the modules that run per request are compiled.

The same source does both; `hatch_build.py` compiles it. Who reads a figure of this node's, or a
traceback, has to know which of the two it was.
"""

from __future__ import annotations

import importlib.util
from functools import cache

__all__ = ["build_kind", "egressd_version"]


@cache
def egressd_version() -> str:
    """The installed version; "unknown" in a tree that is not installed. Read from disk once."""
    # Imported where it is used: with the mail parser that it needs, a tenth of a start.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("egressd")
    except PackageNotFoundError:
        return "unknown"


@cache
def build_kind() -> str:
    """Either "compiled" or "interpreted"; found without importing the data path."""
    # All modules of the list in pyproject.toml are compiled as one, so one of them tells.
    spec = importlib.util.find_spec("gateway.routes")
    return "interpreted" if spec is None or (spec.origin or "").endswith(".py") else "compiled"
