"""The descriptors that a forked process keeps."""

from __future__ import annotations

import os

from platforms import syscalls


def close_others(*fds: int) -> None:
    """Close all descriptors but ``fds`` and the standard streams."""
    first = 3
    for fd in sorted(fds):
        if fd > first:
            syscalls.close_range(first, fd - 1)
        first = max(first, fd + 1)
    syscalls.close_range(first)


def keep_only(*fds: int) -> None:
    """``close_others``, and put /dev/null in the place of the standard streams but for stderr."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.dup2(null, 1)
    close_others(*fds)
