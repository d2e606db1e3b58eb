"""What a thread that is not root may do with a file (path_resolution(7), unlink(2), access(2)).

The permission to search the directories on the way to a file is not checked.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from executor.sandbox.status import FileStatus
    from executor.supervised.processes import Credentials

READ: Final = 4
WRITE: Final = 2
EXECUTE: Final = 1


def allowed(credentials: Credentials, file: FileStatus, wanted: int) -> bool:
    """Whether the permissions ``wanted`` (``READ``, ``WRITE``, ``EXECUTE``) are given."""
    mode = file.mode
    if credentials.overrides:
        return not wanted & EXECUTE or stat.S_ISDIR(mode) or bool(mode & 0o111)
    if credentials.uids[3] == file.uid:
        mode >>= 6
    elif credentials.belongs(file.gid):
        mode >>= 3
    return mode & wanted == wanted


def check(credentials: Credentials, file: FileStatus, wanted: int) -> None:
    """Raise OSError (EACCES) if the permissions are not given."""
    if not allowed(credentials, file, wanted):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def check_open(credentials: Credentials, file: FileStatus, flags: int) -> None:
    """Raise OSError (EACCES) if the file may not be opened with the ``flags`` of open(2)."""
    wanted = {os.O_RDONLY: READ, os.O_WRONLY: WRITE}.get(flags & os.O_ACCMODE, READ | WRITE)
    check(credentials, file, wanted | (WRITE if flags & os.O_TRUNC else 0))


def check_sticky(credentials: Credentials, directory: FileStatus, file: FileStatus) -> None:
    """Raise OSError (EPERM) if the file may not be removed from a directory with the sticky bit."""
    if directory.mode & stat.S_ISVTX and credentials.uids[3] not in (directory.uid, file.uid):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


def check_owner(credentials: Credentials, file: FileStatus) -> None:
    """Raise OSError (EPERM) if the file is another's."""
    if not credentials.overrides and credentials.uids[3] != file.uid:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
