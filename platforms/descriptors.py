"""File descriptors: closing inherited ones, receiving some from another process, and writing all of some data."""

from __future__ import annotations

import array
import os
import socket
import sys

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


def receive_fds(packets: socket.socket, size: int, most: int) -> tuple[bytes, list[int]]:
    """Receive a packet of at most ``size`` bytes with at most ``most`` descriptors, which are the caller's to close.

    Programs that this process executes do not inherit them. ``socket.recv_fds`` of Python 3.11 takes the flag for that
    and ignores it. No bytes: the other end is closed. Raises ``OSError``.
    """
    space = socket.CMSG_SPACE(most * array.array("i").itemsize) if most else 0
    data, control, *_ = packets.recvmsg(size, space, socket.MSG_CMSG_CLOEXEC)
    found = array.array("i")
    for level, kind, part in control:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found.frombytes(part[: len(part) - len(part) % found.itemsize])
    return data, found.tolist()


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


def change_mode(name: bytes | str, mode: int, parent: int) -> None:
    """Set the permissions of ``name`` in the directory ``parent``, which must not be a link."""
    if sys.platform != "linux":
        os.chmod(name, mode, dir_fd=parent, follow_symlinks=False)
        return
    found = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        os.chmod(f"/proc/self/fd/{found}", mode)  # chmod(2) follows links
    finally:
        os.close(found)
