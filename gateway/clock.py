"""The only reader of time.

Everything below the drivers takes `now_ns` as an argument; the drivers get it here. Monotonic time
orders events and measures waits. Wall time is read only where another host's date is compared with
ours (Retry-After as a date) and where a log line is stamped.
"""

from time import monotonic_ns, time_ns
from typing import Final

__all__ = ["MS", "SECOND", "US", "monotonic_ns", "wall_ns"]

US: Final = 1_000
MS: Final = 1_000_000
SECOND: Final = 1_000_000_000

wall_ns = time_ns
