"""Checking that a process has a single thread."""

from __future__ import annotations

import os
import time
from typing import Final

from platforms.errors import EnvironmentUnfit

_ENDING_SECONDS: Final = 0.25
"""How long a thread may take to end. For the kernel it is there for a moment after it was joined."""


def check_single(what: str) -> None:
    """Raise ``EnvironmentUnfit``, which says that one cannot ``what``, if this process has several threads.

    A forked process has only the forking thread: a lock held by another one is never released (fork(2)). And a process
    with several threads cannot enter a user namespace (unshare(2)). Threads of libraries count too.
    """
    deadline = time.monotonic() + _ENDING_SECONDS
    while (count := _count()) > 1:
        if time.monotonic() > deadline:
            raise _several(what, count)
        time.sleep(0.001)  # nothing announces the end of a thread


def _count() -> int:
    return os.stat("/proc/self/task").st_nlink - 2  # Linux, fs/proc/base.c, proc_task_getattr


def _several(what: str, count: int) -> EnvironmentUnfit:
    import threading

    names = ", ".join(sorted(each.name for each in threading.enumerate()))
    return EnvironmentUnfit(
        f"cannot {what}",
        why=f"that takes a process with a single thread, and this one has {count} ({names})",
        remedy="run kanifold without what adds threads to Python programs: a debugger, a profiler or a tracer",
    )
