"""The children of a process, as /proc has them."""

from __future__ import annotations

import contextlib
import os


def children() -> set[int]:
    """Return the children of this process, also adopted ones (proc_pid_stat(5))."""
    own = b"%d" % os.getpid()
    found = set()
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                if file.read().rpartition(b")")[2].split()[1] == own:
                    found.add(int(name))
    return found
