"""Walks over the directories of a tree by descriptors, for unpacking archives.

Every component of a path is opened on its own, relative to the directory before it, and never through a symbolic link:
the kernel resolves nothing. Links are read and resolved by the rule of ``platforms.pathwalk``. So no path can lead out
of the tree, and no other process that changes it meanwhile can make one do so (the race in CVE-2025-47290, which a
check before use loses).
"""

from __future__ import annotations

import errno
import os
from typing import Final, Protocol

from executor.rootfs.tarreader import PATH_LIMIT
from platforms.descriptors import change_mode
from platforms.errors import ArchiveError
from platforms.pathwalk import PathWalk, TooManyLinks

DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_KEPT: Final = 48
"""Number of directories on the present path whose descriptors are kept open; deeper ones are opened again when
needed."""


class Obstacles(Protocol):
    """What a ``Walker`` does where a component is not a directory.

    ``fd`` is the directory that was reached, ``name`` the next component, and ``real`` their path from the root without
    links.
    """

    def missing(self, fd: int, name: bytes, real: bytes) -> int:
        """``name`` does not exist: create a directory and return its descriptor, or raise."""
        ...

    def blocked(self, fd: int, name: bytes, real: bytes) -> bytes | None:
        """``name`` is not a directory: return the text of the link to follow, or None if there is a directory now."""
        ...

    def entered(self, fd: int, real: bytes) -> None:
        """The walk enters the directory ``fd``, whose path is ``real``."""
        ...


class Walker:
    """A position in the tree whose root is the descriptor ``root``, moved by ``enter``.

    Owns its descriptors, except for the root's. A move to a nearby directory is cheap: the common part of the two paths
    stays open.
    """

    def __init__(self, root: int, obstacles: Obstacles) -> None:
        self._root = root
        self._obstacles = obstacles
        self._text: bytes | None = b""
        self._names: list[bytes] = []
        self._steps: list[tuple[int, bytes]] = []
        """For each of ``_names``: its descriptor, or -1 if it was closed, and its path without links."""
        self.fd = root
        """The present directory; valid until the next move."""
        self.real = b""
        """The path of the present directory, without links, relative to the root."""

    def close(self) -> None:
        """Close all descriptors, and return to the root."""
        self._back(0)
        self._text = b""

    def enter(self, path: bytes) -> int:
        """Move to the directory ``path`` (relative to the root, without dots); return its descriptor.

        Raises ``ArchiveError`` for a path through too many links, and what ``obstacles`` raises.
        """
        if path == self._text:
            return self.fd
        self._text = None
        names = path.split(b"/") if path else []
        same = 0
        for ours, theirs in zip(self._names, names, strict=False):
            if ours != theirs:
                break
            same += 1
        self._back(same)
        for name in names[same:]:
            self._down(name)
        self._text = path
        return self.fd

    def _back(self, count: int) -> None:
        """Return to the directory of the first ``count`` names."""
        if count == len(self._names):
            return
        for fd, _ in self._steps[count:]:
            if fd >= 0:
                os.close(fd)
        del self._names[count:], self._steps[count:]
        self.fd, self.real = self._steps[-1] if count else (self._root, b"")
        if self.fd < 0:
            self.fd = self._reopen(self.real)
            self._steps[-1] = self.fd, self.real

    def _down(self, name: bytes) -> None:
        real = self.real + b"/" + name if self.real else name
        found = self._open(self.fd, name, real)
        if isinstance(found, int):
            fd = found
        else:
            fd, real = self._through(found)
        self._obstacles.entered(fd, real)
        if len(self._steps) > _KEPT:
            os.close(self.fd)
            self._steps[-1] = -1, self.real
        self._names.append(name)
        self._steps.append((fd, real))
        self.fd, self.real = fd, real

    def _open(self, fd: int, name: bytes, real: bytes) -> int | bytes:
        """Return a descriptor of the directory ``name`` in ``fd``, or the text of the link to follow instead."""
        try:
            return os.open(name, DIRECTORY, dir_fd=fd)
        except FileNotFoundError:
            return self._obstacles.missing(fd, name, real)
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
        link = self._obstacles.blocked(fd, name, real)
        return os.open(name, DIRECTORY, dir_fd=fd) if link is None else link

    def _through(self, text: bytes) -> tuple[int, bytes]:
        """Return the directory to which a link with ``text`` in the present directory leads, and its path without
        links."""
        walk = PathWalk(b"", self.real.split(b"/") if self.real else ())
        walk.follow(text)
        fd, depth = -1, -1
        try:
            while True:
                name = walk.next()
                if depth != len(walk.names):  # it led up, or back to the root
                    if fd >= 0:
                        os.close(fd)
                    fd = -1
                    fd, depth = self._reopen(b"/".join(walk.names)), len(walk.names)
                if name is None:
                    return fd, b"/".join(walk.names)
                real = walk.below(name)
                if len(real) > PATH_LIMIT:
                    raise ArchiveError("archive refused", why=f"a path of {len(real)} bytes")
                found = self._open(fd, name, real)
                if not isinstance(found, int):
                    walk.follow(found)
                    continue
                os.close(fd)
                fd, depth = found, depth + 1
                walk.enter(name)
                if not walk.last:
                    self._obstacles.entered(fd, real)
        except BaseException as error:
            if fd >= 0:
                os.close(fd)
            if isinstance(error, TooManyLinks):
                why = f"too many symbolic links behind {os.fsdecode(text)}"
                raise ArchiveError("archive refused", why=why) from error
            raise

    def _reopen(self, real: bytes) -> int:
        """Return a descriptor of the directory ``real``, which was reached before."""
        fd = os.open(b".", DIRECTORY, dir_fd=self._root)
        for name in real.split(b"/") if real else ():
            try:
                deeper = os.open(name, DIRECTORY, dir_fd=fd)
            finally:
                os.close(fd)
            fd = deeper
        return fd


def remove(parent: int, name: bytes) -> None:
    """Delete ``name`` in the directory ``parent`` with everything below it, if it exists.

    Follows no link, and needs neither recursion nor a descriptor per level, however deep the tree is. Nothing is
    renamed, unlike by ``executor.store.removal``: a union of layers refuses that for some directories (EXDEV).
    """
    if not _delete(parent, name):
        _empty(_opened(parent, name))
        os.rmdir(name, dir_fd=parent)


def _delete(parent: int, name: bytes) -> bool:
    """Delete a file or an empty directory; return False for a directory that is not empty."""
    try:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        pass
    except IsADirectoryError:
        try:
            os.rmdir(name, dir_fd=parent)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return False
            raise
    return True


def _opened(parent: int, name: bytes) -> int:
    """Open the directory ``name``, after making it accessible if its owner is not root and it is not."""
    try:
        return os.open(name, DIRECTORY, dir_fd=parent)
    except PermissionError:
        change_mode(name, 0o700, parent)
        return os.open(name, DIRECTORY, dir_fd=parent)


def _sweep(fd: int) -> list[bytes]:
    """Delete all files and empty directories in the directory ``fd``; return the other directories."""
    full = []
    for each in os.listdir(fd):
        name = os.fsencode(each)
        try:
            deleted = _delete(fd, name)
        except PermissionError:
            os.fchmod(fd, 0o700)
            deleted = _delete(fd, name)
        if not deleted:
            full.append(name)
    return full


def _empty(here: int) -> None:
    """Delete the content of the directory ``here``, depth first, and close it.

    The way up is ``..``, which is checked to be the directory that the walk came from.
    """
    path: list[tuple[bytes, tuple[int, int], list[bytes]]] = []
    try:
        full = _sweep(here)
        while True:
            if full:
                name = full.pop()
                below = _opened(here, name)
                status = os.fstat(here)
                path.append((name, (status.st_dev, status.st_ino), full))
                os.close(here)
                here = below
                full = _sweep(here)
            elif path:
                name, place, full = path.pop()
                above = os.open(b"..", DIRECTORY, dir_fd=here)
                os.close(here)
                here = above
                status = os.fstat(here)
                if (status.st_dev, status.st_ino) != place:
                    raise OSError(errno.EBUSY, "a directory was moved while it was being deleted", os.fsdecode(name))
                os.rmdir(name, dir_fd=here)
            else:
                return
    finally:
        os.close(here)
