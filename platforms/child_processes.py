"""The children of a process: finding them in /proc, killing and reaping them."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable


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


def kill(processes: set[int]) -> None:
    """Kill ``processes``, as far as they are there and may be killed."""
    for each in processes:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(each, signal.SIGKILL)


def kill_children() -> None:
    """Kill the children of this process."""
    kill(children())


def end_all(kill_some: Callable[[], object] = kill_children) -> None:
    """Call ``kill_some`` and reap, until no process is left below this one, which adopts orphans."""
    while True:
        kill_some()
        try:
            os.waitpid(-1, 0)
            while os.waitpid(-1, os.WNOHANG)[0]:  # all that have ended, or zombies would be made faster than reaped
                pass
        except ChildProcessError:
            return
