"""Checking that a process has a single thread."""

from __future__ import annotations

import os

from platforms.errors import EnvironmentUnfit


def check_single(what: str) -> None:
    """Raise ``EnvironmentUnfit``, which says that one cannot ``what``, if this process has several threads.

    A forked process has only the forking thread: a lock held by another one is never released (fork(2)). And a process
    with several threads cannot enter a user namespace (unshare(2)). Threads of libraries count too.
    """
    count = os.stat("/proc/self/task").st_nlink - 2  # Linux, fs/proc/base.c, proc_task_getattr
    if count == 1:
        return
    import threading

    names = ", ".join(sorted(each.name for each in threading.enumerate()))
    raise EnvironmentUnfit(
        f"cannot {what}",
        why=f"that takes a process with a single thread, and this one has {count} ({names})",
        remedy="run kanifold without what adds threads to Python programs: a debugger, a profiler or a tracer",
    )
