"""Closing inherited file descriptors in a forked process."""

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
    """Close all descriptors but ``fds`` and stderr; stdin and stdout become /dev/null."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.dup2(null, 1)
    close_others(*fds)


def write_all(fd: int, data: bytes | bytearray | memoryview) -> None:
    """Write all of ``data`` to ``fd``. One write(2) may take a part only: of a pipe, a socket, or on a full disk.

    Waits where the descriptor is non-blocking and its reader is slow. Raises OSError as write(2) does; some of the data
    may have been written then.
    """
    done, size = 0, len(data)
    while done < size:
        try:
            done += os.write(fd, memoryview(data)[done:] if done else data)
        except BlockingIOError:
            _wait(fd)


def _wait(fd: int) -> None:
    """Wait until ``fd`` takes something. By poll(2), not select(2): a descriptor may be above FD_SETSIZE."""
    import select

    waiter = select.poll()
    waiter.register(fd, select.POLLOUT)
    waiter.poll()
