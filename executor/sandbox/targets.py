"""Locating mount targets in a step's root without leaving it, making missing ones, and removing those afterwards.

Images are untrusted: ``/etc`` may be a symbolic link to ``/../../etc`` of the host, and a step may replace a mount
point by a link (CVE-2024-23652, CVE-2026-41579). So paths are walked one component at a time on descriptors, with
symbolic links read as text and resolved relative to the root, which ``..`` never leaves.
"""

from __future__ import annotations

import errno
import os
import stat

from platforms import syscalls
from platforms.pathwalk import PathWalk, TooManyLinks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

State = tuple[int, int, int, tuple[str, ...]]
"""The attributes of a directory that a step can change: mode, uid, gid, names of extended attributes."""

Made = tuple[str, int]
"""A file or directory made for a mount: its path relative to the root, without links; its inode in the upper
directory."""

Touched = tuple[str, State, int, int, bool]
"""A directory in which one was made: its path; its state; its mtime in ns before and after; whether it is in the upper
directory only because of that."""


class Root:
    """The root file system of a step during set-up.

    ``fd`` is its root directory, ``upper`` the directory in which what is written to it can be found (an overlay's
    upper directory, or the root itself without the mounts in it), ``proc`` the device number of its /proc. What had to
    be made is recorded in ``made`` and ``touched``, for ``unmake`` to take back when the step is over.
    """

    def __init__(self, fd: int, upper: int, proc: int) -> None:
        self.fd = fd
        self.upper = upper
        self.proc = proc
        self.mount = syscalls.mount_id(fd)
        self.made: list[Made] = []
        self.touched: dict[str, Touched] = {}

    def locate(self, target: str, *, directory: bool, record: bool = True, mode: int = 0o755) -> int:
        """Return an O_PATH descriptor of ``target``; if it is missing, make it: a directory, or an empty file.

        With ``record``, what is made will be removed. Raises OSError: NotADirectoryError and IsADirectoryError for the
        wrong kind, ELOOP, EROFS …
        """
        walk = PathWalk(os.fsencode(target))
        stack = [os.dup(self.fd)]  # of the root, and of each of ``walk.names``
        try:
            while True:
                name = walk.next()
                while len(stack) > len(walk.names) + 1:
                    os.close(stack.pop())
                if name is None:
                    return stack.pop()
                wants_directory = directory or not walk.last
                try:
                    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=stack[-1])
                except FileNotFoundError:
                    names = [os.fsdecode(each) for each in (*walk.names, name)]
                    fd = self._make(stack[-1], names, directory=wants_directory, record=record, mode=mode)
                stack.append(fd)
                status = os.fstat(fd)
                kind = status.st_mode
                if stat.S_ISLNK(kind):
                    if status.st_dev == self.proc:  # the text of a magic link is not where it leads
                        raise TooManyLinks(walk.path)
                    walk.follow(os.readlink(b"", dir_fd=fd))
                    os.close(stack.pop())
                    continue
                walk.enter(name)
                if wants_directory and not stat.S_ISDIR(kind):
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), target)
                if not wants_directory and stat.S_ISDIR(kind):
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), target)
        finally:
            for each in stack:
                os.close(each)

    def has_directory(self, path: str) -> bool:
        """Whether there is a directory at ``path``, as seen in the step."""
        resolve = syscalls.IN_ROOT
        try:
            os.close(syscalls.openat2(self.fd, path, os.O_PATH | os.O_DIRECTORY, resolve=resolve))
        except OSError:
            return False
        return True

    def mode_of(self, path: str) -> int | None:
        """Return the permissions of ``path``, as seen in the step; None if it does not exist."""
        resolve = syscalls.IN_ROOT
        try:
            fd = syscalls.openat2(self.fd, path, os.O_PATH, resolve=resolve)
        except OSError:
            return None
        mode = stat.S_IMODE(os.fstat(fd).st_mode)
        os.close(fd)
        return mode

    def _make(self, parent: int, path: list[str], *, directory: bool, record: bool, mode: int) -> int:
        """Make what ``path`` names, in the directory ``parent``; an O_PATH descriptor of it."""
        *names, name = path
        before = os.fstat(parent).st_mtime_ns
        ours = record and syscalls.mount_id(parent) == self.mount
        new = self._missing(names) if ours else []
        if directory:
            os.mkdir(name, mode, dir_fd=parent)
        else:
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644, dir_fd=parent))
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        if ours:
            where, made = "/".join(names), "/".join(path)
            self.made.append((made, _status(self.upper, made).st_ino))
            for each in new:  # directories that were copied up for the new one
                state, mtime = _state(self.upper, each)
                self.touched[each] = (each, state, mtime, mtime, True)
            state, after = _state(self.upper, where)
            known = self.touched.get(where)
            self.touched[where] = (where, state, known[2] if known else before, after, bool(known and known[4]))
        return fd

    def _missing(self, names: list[str]) -> list[str]:
        """Return the directories on the way down ``names`` that the upper directory does not have yet, topmost
        first."""
        paths = ["/".join(names[: depth + 1]) for depth in range(len(names))]
        for index, path in enumerate(paths):
            try:
                _status(self.upper, path)
            except FileNotFoundError:
                return paths[index:]
        return []


def unmake(upper: int, made: Sequence[Made], touched: Sequence[Touched]) -> None:
    """Remove what ``Root.locate`` has made, if the step left it unchanged: the same inode, still empty.

    Works on the upper directory, after all processes of the step have ended, and follows no link: what the step has put
    in its place is kept.
    """
    restore = []
    for path, state, before, after, copied in touched:
        try:
            now, mtime = _state(upper, path)
        except OSError:
            continue
        restore.append((path, before if mtime == after else mtime, copied and mtime == after and now == state))
    for path, inode in reversed(made):
        _remove(upper, path, inode)
    # Deepest first, so that directories are empty when they are removed.
    for path, before, removable in sorted(restore, key=lambda each: -len(each[0].split("/")) * bool(each[0])):
        if removable and _remove(upper, path, 0):
            continue
        try:
            fd = syscalls.openat2(upper, path or ".", os.O_RDONLY | os.O_DIRECTORY, resolve=_BENEATH)
        except OSError:
            continue
        try:
            os.utime(fd, ns=(before, before))
        finally:
            os.close(fd)


_BENEATH: Final = syscalls.CONFINED | syscalls.RESOLVE_NO_XDEV


def _status(upper: int, path: str) -> os.stat_result:
    if not path:
        return os.fstat(upper)
    fd = syscalls.openat2(upper, path, os.O_PATH | os.O_NOFOLLOW, resolve=_BENEATH)
    try:
        return os.fstat(fd)
    finally:
        os.close(fd)


def _state(upper: int, path: str) -> tuple[State, int]:
    """Return the state and the mtime of the directory ``path``."""
    fd = syscalls.openat2(upper, path or ".", os.O_RDONLY | os.O_DIRECTORY, resolve=_BENEATH)
    try:
        status = os.fstat(fd)
        names = sorted(name for name in os.listxattr(fd) if not name.startswith("user.overlay."))
    finally:
        os.close(fd)
    return (status.st_mode, status.st_uid, status.st_gid, tuple(names)), status.st_mtime_ns


def _remove(upper: int, path: str, inode: int) -> bool:
    """Remove ``path`` if it is an empty directory or file and, unless ``inode`` is 0, has that inode number."""
    head, _, name = path.rpartition("/")
    try:
        parent = syscalls.openat2(upper, head or ".", os.O_PATH | os.O_DIRECTORY, resolve=_BENEATH)
    except OSError:
        return False
    try:
        found = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if inode not in (0, found.st_ino):
            return False
        if stat.S_ISDIR(found.st_mode):
            os.rmdir(name, dir_fd=parent)
        elif stat.S_ISREG(found.st_mode) and found.st_size == 0 and inode:
            os.unlink(name, dir_fd=parent)
        else:
            return False
    except OSError:  # not empty: the step has added something
        return False
    finally:
        os.close(parent)
    return True
