"""How hypothesis runs: the same examples every time, so that a red run is red for a change.

`HYPOTHESIS_PROFILE=explore make test` looks for new ones; what it finds becomes a test of its own.
"""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("steady", derandomize=True)
settings.register_profile("explore", derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))
