"""How hypothesis runs: the same examples every time, so that a red run is red for a change.

`HYPOTHESIS_PROFILE=explore make test` looks for new ones; what it finds becomes a test of its own.
No example has a deadline: on a busy machine one of 5 ms took 0.7 s once.
"""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("steady", derandomize=True, deadline=None)
settings.register_profile("explore", derandomize=False, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))
