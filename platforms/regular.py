"""Opening regular files only: without blocking on a FIFO, opening a device, or leaving a directory through a link.

Whoever can write to a directory can put a link there to another file, whose lines an error message would quote, or a
FIFO, which would block forever.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from typing import BinaryIO, Final

from platforms import syscalls

_KINDS: Final = {
    stat.S_IFDIR: "a directory", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFLNK: "a symbolic link",
    stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
}  # fmt: skip
_HANDED_OVER: Final = ("/dev/fd/", "/dev/stdin", "/proc/self/fd/")
"""Paths of descriptors that the shell opened for the command: ``<(…)``."""


def open_file(path: str, *, follow: bool = True) -> BinaryIO:
    """Open the regular file ``path`` for reading. Raises ``OSError`` for anything else; with ``follow=False``, for
    links.

    A descriptor that was passed by the shell (``/dev/fd/63``) may be a pipe.
    """
    if sys.platform != "linux" or path.startswith(_HANDED_OVER):
        return _checked(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), path)
    return _reopened(os.open(path, os.O_PATH | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)), path)


def open_below(directory: str, path: str) -> BinaryIO:
    """Open the regular file ``path`` in ``directory``; links may not lead out of it. Raises ``OSError``."""
    whole = os.path.normpath(f"{directory}/{path}")
    if sys.platform != "linux":
        real, top = os.path.realpath(whole), os.path.realpath(directory)
        if os.path.commonpath((real, top)) != top:
            raise _leads_out(directory, whole)
        return open_file(real)
    top_fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fd = _place_below(top_fd, path)
    except OSError as error:
        if error.errno == errno.EXDEV:
            raise _leads_out(directory, whole) from error
        raise OSError(error.errno, os.strerror(error.errno or 0), whole) from error
    finally:
        os.close(top_fd)
    return _reopened(fd, whole)


def _place_below(top: int, path: str) -> int:
    if "/" not in path and path not in ("", os.curdir, os.pardir):  # usual: without openat2, which needs ctypes
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
        if not stat.S_ISLNK(os.fstat(fd).st_mode):
            return fd
        os.close(fd)
    resolve = syscalls.BENEATH
    return syscalls.openat2(top, path, os.O_PATH | os.O_CLOEXEC, resolve=resolve)


def _leads_out(directory: str, path: str) -> OSError:
    return OSError(errno.EXDEV, f"it is a link that leads out of {directory}", path)


def _reopened(place: int, path: str) -> BinaryIO:
    """Return the file of the O_PATH descriptor ``place``, which is closed. Checked first: opening a device may have
    effects."""
    try:
        _require_file(os.fstat(place), path)
        return os.fdopen(os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    finally:
        os.close(place)


def _checked(fd: int, path: str) -> BinaryIO:
    try:
        status = os.fstat(fd)
        if not (stat.S_ISFIFO(status.st_mode) and path.startswith(_HANDED_OVER)):
            _require_file(status, path)
        os.set_blocking(fd, True)
        return os.fdopen(fd, "rb")
    except BaseException:
        os.close(fd)
        raise


def _require_file(status: os.stat_result, path: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise OSError(errno.EINVAL, f"it is not a regular file but {kind}", path)
