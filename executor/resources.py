"""What this machine has to spare, for the greeting of an executor that is started by a command."""

from __future__ import annotations

import contextlib
import os
import time

from executor.protocol import Resources
from executor.store import policy
from executor.store.store import default_root


def measure() -> Resources:
    """Return the load, the free memory, the free space for the default store, which may not exist yet, and the time."""
    return Resources(os.getloadavg()[0], _memory(), policy.disk(default_root()).free, time.time())


def _memory() -> int:
    """Return MemAvailable of /proc/meminfo in bytes; 0 if it is not there."""
    with contextlib.suppress(OSError, ValueError), open("/proc/meminfo", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return 0
