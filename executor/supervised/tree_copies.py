"""Copies of what is put into a step's root in place of mounts.

A root process of a step can write to all files of its root. So it gets a copy of what it may only read
(``copy_tree``), which is discarded: files share their blocks with the original where the file system can
(ioctl_ficlonerange(2)). And it can give a file of one cache directory a name in another, which different mounts would
not allow (link(2), EXDEV): such files become two (``separate``).
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections import Counter
from collections.abc import Iterator
from typing import Final

import msgspec

from executor.snapshotter.apply import HARMLESS
from platforms import syscalls

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_BLOCK: Final = 1 << 20


class _Level(msgspec.Struct):
    """A directory that is being copied: descriptors of it and of its copy, and the names that are left."""

    source: int
    target: int
    names: list[str]


def copy_tree(source: str, target: str) -> None:
    """Copy the directory or regular file ``source`` to ``target``, which must not exist. Raises OSError.

    Owners, permissions, times and extended attributes are kept; sockets, and devices that containers do not have, are
    left out. A file with several names becomes several files. Symbolic links are not followed.
    """
    status = os.lstat(source)
    if stat.S_ISREG(status.st_mode):
        _copy_file(os.open(source, _FILE), os.open(target, _NEW, 0o600))
        return
    os.mkdir(target, 0o700)
    levels = [_level(os.open(source, _DIRECTORY), os.open(target, _DIRECTORY))]
    try:
        while levels:
            here = levels[-1]
            if not here.names:
                _dress(here.source, here.target)
                _leave(levels.pop())
            elif (below := _copied(here, here.names.pop())) is not None:
                levels.append(below)
    finally:
        for each in levels:
            _leave(each)


def separate(directory: str) -> None:
    """Replace the regular files in ``directory`` that have a name elsewhere, too, by copies. Raises OSError."""
    names: Counter[int] = Counter()
    links: dict[int, int] = {}
    for _, _, status in _files(directory):
        names[status.st_ino] += 1
        links[status.st_ino] = status.st_nlink
    copies: dict[int, int] = {}
    shared = {inode for inode, count in names.items() if links[inode] > count}
    try:
        for parent, name, status in _files(directory) if shared else ():
            if status.st_ino in shared:
                _replace(parent, name, status.st_ino, copies)
    finally:
        for fd in copies.values():
            os.close(fd)


def _files(directory: str) -> Iterator[tuple[int, str, os.stat_result]]:
    """Yield the regular files with several names: a descriptor of the directory, the name there, and the status."""
    fds = [os.open(directory, _DIRECTORY)]
    waiting = [os.listdir(fds[0])]
    try:
        while waiting:
            if not waiting[-1]:
                waiting.pop()
                os.close(fds.pop())
                continue
            name = waiting[-1].pop()
            status = os.stat(name, dir_fd=fds[-1], follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                fds.append(os.open(name, _DIRECTORY, dir_fd=fds[-1]))
                waiting.append(os.listdir(fds[-1]))
            elif stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
                yield fds[-1], name, status
    finally:
        for fd in fds:
            os.close(fd)


def _replace(parent: int, name: str, inode: int, copies: dict[int, int]) -> None:
    """Let ``name`` be one of the copy of ``inode``, which is made for the first one and is then in ``copies``."""
    if inode in copies:
        os.unlink(name, dir_fd=parent)
        os.link(f"/proc/self/fd/{copies[inode]}", name, dst_dir_fd=parent, follow_symlinks=True)
        return
    source = os.open(name, _FILE, dir_fd=parent)
    os.unlink(name, dir_fd=parent)
    copy = os.open(name, _NEW, 0o600, dir_fd=parent)
    copies[inode] = os.dup(copy)
    _copy_file(source, copy)


def _level(source: int, target: int) -> _Level:
    return _Level(source, target, os.listdir(source))


def _leave(level: _Level) -> None:
    os.close(level.source)
    os.close(level.target)


def _copied(here: _Level, name: str) -> _Level | None:
    """Copy what is called ``name``, a directory without its content; return that directory."""
    status = os.stat(name, dir_fd=here.source, follow_symlinks=False)
    match stat.S_IFMT(status.st_mode):
        case stat.S_IFDIR:
            os.mkdir(name, 0o700, dir_fd=here.target)
            source = os.open(name, _DIRECTORY, dir_fd=here.source)
            return _level(source, os.open(name, _DIRECTORY, dir_fd=here.target))
        case stat.S_IFREG:
            source = os.open(name, _FILE, dir_fd=here.source)
            _copy_file(source, os.open(name, _NEW, 0o600, dir_fd=here.target))
            return None
        case stat.S_IFLNK:
            os.symlink(os.readlink(name, dir_fd=here.source), name, dir_fd=here.target)
        case stat.S_IFCHR if (os.major(status.st_rdev), os.minor(status.st_rdev)) in HARMLESS:
            os.mknod(name, status.st_mode, status.st_rdev, dir_fd=here.target)
        case stat.S_IFIFO:
            os.mkfifo(name, dir_fd=here.target)
        case _:
            return None
    os.chown(name, status.st_uid, status.st_gid, dir_fd=here.target, follow_symlinks=False)
    if not stat.S_ISLNK(status.st_mode):
        os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=here.target)
    os.utime(name, ns=(status.st_atime_ns, status.st_mtime_ns), dir_fd=here.target, follow_symlinks=False)
    return None


def _copy_file(source: int, target: int) -> None:
    """Copy the regular file ``source`` to the empty one ``target``, and close both."""
    with open(source, "rb") as original, open(target, "wb") as copy:
        if not syscalls.share_content(source, target):
            while data := original.read(_BLOCK):
                copy.write(data)
            copy.flush()
        _dress(source, target)


def _dress(source: int, target: int) -> None:
    """Give the file or directory ``target`` the metadata of ``source``."""
    status = os.fstat(source)
    os.fchown(target, status.st_uid, status.st_gid)
    os.fchmod(target, stat.S_IMODE(status.st_mode))
    with contextlib.suppress(OSError):  # where there are no extended attributes, or this one may not be set
        for name in os.listxattr(source):
            os.setxattr(target, name, os.getxattr(source, name))
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
