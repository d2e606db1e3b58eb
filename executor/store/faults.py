"""Translating errors of the operating system and of SQLite to ``StoreError``."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from platforms.errors import StoreError

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator

_ELSEWHERE = "choose another place with --root or KANIFOLD_ROOT"
_MORE_ROOM = f"free some space there (`kanifold prune --all` empties the store), or {_ELSEWHERE}"

_SQLITE_FULL = 13
_CANNOT_OPEN = 14
_SQLITE_FILES = 4

TOO_LONG = "a path in the image has more than 4,095 bytes, or a name more than 255"
LESS_DEEP = "let the step make fewer directories in each other, or remove them in the same step"

_FULL_BYTES = 1 << 16
"""A disk with less free space than this is full, in bytes."""


@contextmanager
def translated(root: str, what: str) -> Iterator[None]:
    """Raise an ``OSError`` of the block as a ``StoreError`` that says ``what`` failed in the store at ``root``."""
    try:
        yield
    except OSError as error:
        raise os_fault(root, what, error) from error


def full_disk_remedy(root: str) -> str:
    """Return the remedy for a full disk of the store at ``root``; "" while it has space."""
    found = os.statvfs(root)
    full = found.f_bavail * found.f_frsize < _FULL_BYTES or (found.f_files > 0 and found.f_favail == 0)
    return f"the disk of {root} is full: {_MORE_ROOM}" if full else ""


def is_full(error: BaseException) -> bool:
    """Whether ``error`` was caused by a full disk or an exceeded quota."""
    import sqlite3

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if isinstance(cause, sqlite3.Error) and primary_code(cause) == _SQLITE_FULL:
            return True
        cause = cause.__cause__
    return False


def os_fault(root: str, what: str, error: OSError) -> StoreError:
    """Return the ``StoreError`` for a failed system call."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    match error.errno:
        case errno.ENOSPC:
            return StoreError(what, why=f"no space left on the disk of {root}", remedy=_MORE_ROOM)
        case errno.EDQUOT:
            return StoreError(what, why=f"the disk quota for {root} is used up", remedy=_MORE_ROOM)
        case errno.EFBIG:
            return StoreError(
                what, why="the file would exceed the size limit for files", remedy=f"raise `ulimit -f`, or {_ELSEWHERE}"
            )
        case errno.EROFS | errno.EACCES | errno.EPERM:
            why = f"{error.filename or root}: {reason}"
            return StoreError(what, why=why, remedy=f"make {root} writable for this user, or {_ELSEWHERE}")
        case errno.EIO:
            why = f"the disk of {root} reported an input/output error"
            return StoreError(what, why=why, remedy=f"check the disk (see `dmesg`), or {_ELSEWHERE}")
        case errno.ENAMETOOLONG:
            return StoreError(what, why=TOO_LONG, remedy=LESS_DEEP)
        case errno.EMFILE | errno.ENFILE:
            return StoreError(what, why=reason, remedy="raise the limit of open files (`ulimit -n`)")
        case _:
            where = f"{error.filename}: " if error.filename else ""
            return StoreError(what, why=where + reason, remedy=f"check {root}, or {_ELSEWHERE}")


def _descriptors_left() -> bool:
    """Whether this process may open as many files as SQLite does: a database, its log, its index and the directory."""
    found: list[int] = []
    try:
        for _ in range(_SQLITE_FILES):
            found.append(os.dup(2))
    except OSError:
        return False
    finally:
        for fd in found:
            os.close(fd)
    return True


def sqlite_fault(root: str, error: sqlite3.Error) -> StoreError:
    """Return the ``StoreError`` for a failed SQLite call; result codes: https://sqlite.org/rescode.html."""
    what = f"cannot use the index of the store {root}"
    code = primary_code(error)
    numbers = {13: errno.ENOSPC, 8: errno.EROFS, 3: errno.EACCES, 10: errno.EIO}  # FULL, READONLY, PERM, IOERR
    if code == _CANNOT_OPEN and not _descriptors_left():
        numbers[code] = errno.EMFILE
    if code in numbers:
        return os_fault(root, what, OSError(numbers[code], os.strerror(numbers[code])))
    if code in (5, 6):  # BUSY, LOCKED
        remedy = f"find out which process keeps it (`fuser {root}/index.db`) and try again"
        return StoreError(what, why="another process has kept it locked for too long", remedy=remedy)
    return StoreError(what, why=str(error), remedy=f"check {root}, or {_ELSEWHERE}")


def primary_code(error: sqlite3.Error) -> int:
    """Return SQLite's primary result code; -1 when the error does not come from SQLite."""
    code = getattr(error, "sqlite_errorcode", None)
    return code & 0xFF if isinstance(code, int) else -1
