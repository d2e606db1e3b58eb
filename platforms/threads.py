"""What a process may do only as long as it has a single thread."""

from __future__ import annotations

import os

from platforms.errors import EnvironmentUnfit


def check_single(what: str) -> None:
    """Raise ``EnvironmentUnfit``, which says that one cannot ``what``, unless this process has a single thread.

    A forked process has the forking thread alone: what another one has locked stays locked for good (fork(2)). And a
    process of several threads cannot enter a user namespace (unshare(2)). All threads count, those of libraries too.
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
