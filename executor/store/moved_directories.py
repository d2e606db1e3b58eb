"""Directories of the store that are elsewhere for a time: cache directories in the root of a step in a chroot.

A note beside the place of such a directory says where it is. So it is found again when the process that moves it back
has been killed: by the executor when its step has failed, by the next step that uses the directory, and before anything
is removed that killed processes have left. Whoever moves it holds a lock (flock(2)) of the directory that it is in.
"""

from __future__ import annotations

import contextlib
import os
import stat
from typing import Final

from executor.store.leases import flocked_if_free
from platforms import syscalls
from platforms.paths import below

_NOTE: Final = ".moved"
_FOUND: Final = ".found"


def note(home: str, place: str) -> None:
    """Note that the directory ``home`` will be at ``place``, a path without links. Raises OSError."""
    with open(home + _NOTE, "wb") as file:
        file.write(b"%d %b" % (os.lstat(home).st_ino, os.fsencode(place)))


def forget(home: str) -> None:
    """Remove the note of ``home``: it is back."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(home + _NOTE)


def bring_back(home: str) -> None:
    """Move the directory ``home`` back if there is a note of it, and it is still where that says. Raises OSError.

    A step may have changed everything there: no link is followed, and another directory is not taken for it.
    """
    try:
        number, place = _noted(home)
    except FileNotFoundError:
        return
    found = home + _FOUND
    if not os.path.lexists(home):
        with contextlib.suppress(OSError, ValueError):  # it is lost
            if not os.path.lexists(found):
                _fetch(place, int(number), found)
            os.rename(found, home)
    forget(home)


def _fetch(place: str, number: int, found: str) -> None:
    """Move the directory with an inode ``number`` from ``place`` to ``found``. Raises OSError.

    It is looked at again where no process of a step that is still there can have exchanged it.
    """
    above, _, name = place.rpartition("/")
    flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    parent = syscalls.openat2(syscalls.AT_FDCWD, above, flags, resolve=syscalls.RESOLVE_NO_SYMLINKS)
    try:
        if _is(os.stat(name, dir_fd=parent, follow_symlinks=False), number):
            os.rename(name, found, src_dir_fd=parent)
            if not _is(os.lstat(found), number):
                os.rename(found, name, dst_dir_fd=parent)
    finally:
        os.close(parent)


def bring_back_unused(home: str) -> bool:
    """As ``bring_back``, unless the directory is in use; return whether it is not. Raises OSError."""
    if not os.path.lexists(home + _NOTE):
        return True
    fd = os.open(os.path.dirname(home), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    with flocked_if_free(fd) as free:
        if free:
            bring_back(home)
        return free


def bring_back_all(root: str) -> frozenset[str]:
    """Bring back all cache directories of the store at ``root`` that are not in use. Return the names in its directory
    for temporary files in which others are."""
    used = set()
    cache, temporary = below(root, "cache"), os.path.realpath(below(root, "tmp"))
    for name in os.listdir(cache):
        home = below(cache, name, "fs")
        with contextlib.suppress(OSError):
            if os.path.lexists(home + _NOTE) and not bring_back_unused(home):
                place = _noted(home)[1]
                if place.startswith(temporary + "/"):
                    used.add(place.removeprefix(temporary + "/").partition("/")[0])
    return frozenset(used)


def _noted(home: str) -> tuple[bytes, str]:
    """Return the inode number, in digits, and the place of the note of ``home``. Raises OSError."""
    with open(home + _NOTE, "rb") as file:
        number, _, place = file.read().partition(b" ")
    return number, os.fsdecode(place)


def _is(status: os.stat_result, number: int) -> bool:
    """Whether ``status`` is that of the directory with an inode ``number``."""
    return stat.S_ISDIR(status.st_mode) and status.st_ino == number
