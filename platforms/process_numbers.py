"""The numbers that processes have in a /proc of another pid namespace, as a container's has for processes in it.

``proc`` is a descriptor of such a /proc that shows this process, or None for the working directory.
"""

from __future__ import annotations

import errno
import os
from typing import Final

_PIDFD_THREAD: Final = os.O_EXCL


def differ_in(proc: int | None) -> bool:
    """Whether processes have other numbers in ``proc`` than in this process's pid namespace."""
    return os.readlink("self", dir_fd=proc) != str(os.getpid())


def number_in(proc: int | None, pid: int) -> int:
    """Return the number that thread ``pid`` of our pid namespace has in ``proc``.

    For threads that are not the first of their process Linux 6.9 is needed. Raises OSError.
    """
    try:
        pidfd = os.pidfd_open(pid, _PIDFD_THREAD)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        pidfd = os.pidfd_open(pid)
    try:
        with open(os.open(f"self/fdinfo/{pidfd}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc), "rb") as file:
            return next(int(line.split()[1]) for line in file if line.startswith(b"Pid:"))
    finally:
        os.close(pidfd)
