"""Deleting trees that a hostile step may have made: any depth, any modes, symbolic links never followed."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_tree(path: str) -> None:
    """Delete ``path``, a directory, and all below it. Does what it can, then raises the first ``OSError`` it met.

    Directories below are moved up next to each other instead of being descended into, so that neither the depth of
    the tree nor the length of its paths matters, and three descriptors are enough.
    """
    try:
        top = os.open(path, _DIRECTORY)
    except FileNotFoundError:
        return
    try:
        _Removal(top).run()
    finally:
        os.close(top)
    os.rmdir(path)


class _Removal:
    def __init__(self, top: int) -> None:
        self._top = top
        self._moved = 0
        self._stuck: set[str] = set()
        self._error: OSError | None = None

    def run(self) -> None:
        while directories := self._sweep(self._top):
            for name in directories:
                self._empty(name)
        if self._error is not None:
            raise self._error

    def _sweep(self, fd: int) -> list[str]:
        """Unlink all in the directory ``fd`` that is not a directory; the names of those that are."""
        directories: list[str] = []
        # Opened anew: btrfs shows a descriptor what was there when it was opened, and nothing that was moved in since.
        again = os.open(".", _DIRECTORY, dir_fd=fd)
        try:
            with os.scandir(again) as entries:
                for entry in entries:
                    if fd == self._top and entry.name in self._stuck:
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        directories.append(entry.name)
                    else:
                        self._try(entry.name if fd == self._top else None, os.unlink, entry.name, fd)
        finally:
            os.close(again)
        return directories

    def _empty(self, name: str) -> None:
        """Take everything out of the directory ``name`` at the top, and remove it."""
        before = self._error
        try:
            fd = self._enter(name)
        except OSError as error:
            self._note(name, error)
            return
        try:
            for inner in self._sweep(fd):
                self._try(None, self._move_up, inner, fd)
        finally:
            os.close(fd)
        if self._error is before:
            self._try(name, os.rmdir, name, self._top)
        else:
            self._stuck.add(name)

    def _enter(self, name: str) -> int:
        try:
            fd = os.open(name, _DIRECTORY, dir_fd=self._top)
        except PermissionError:
            os.chmod(name, stat.S_IRWXU, dir_fd=self._top)
            return os.open(name, _DIRECTORY, dir_fd=self._top)
        if os.fstat(fd).st_mode & stat.S_IRWXU != stat.S_IRWXU and os.geteuid() != 0:
            try:
                os.fchmod(fd, stat.S_IRWXU)
            except OSError:
                os.close(fd)
                raise
        return fd

    def _move_up(self, name: str, *, dir_fd: int) -> None:
        while True:
            self._moved += 1
            try:
                os.rename(name, f".{self._moved}", src_dir_fd=dir_fd, dst_dir_fd=self._top)
            except (FileExistsError, NotADirectoryError, IsADirectoryError):
                continue  # the tree had something of this name itself
            except PermissionError:
                # Moving a directory rewrites its "..", which takes the right to write to it.
                if os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode & stat.S_IWUSR:
                    raise
                os.chmod(name, stat.S_IRWXU, dir_fd=dir_fd)
                continue
            except OSError as error:
                if error.errno == errno.ENOTEMPTY:  # likewise
                    continue
                raise
            return

    def _try(self, stuck: str | None, call: Callable[..., None], name: str, dir_fd: int) -> None:
        try:
            call(name, dir_fd=dir_fd)
        except FileNotFoundError:
            pass
        except OSError as error:
            self._note(stuck, error)

    def _note(self, stuck: str | None, error: OSError) -> None:
        if stuck is not None:
            self._stuck.add(stuck)
        self._error = self._error or error


def disk_usage(path: str) -> int:
    """Bytes that ``path`` and all below it occupy on disk (``st_blocks``), hard links counted once.

    A step may be at work in the tree: no link is followed, also one that takes a directory's place meanwhile.
    """
    from platforms import syscalls  # not before somebody asks

    resolve = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS
    seen: set[tuple[int, int]] = set()
    try:
        top = _Base(os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC))
    except OSError:
        return 0
    total = os.fstat(top.fd).st_blocks * 512
    waiting = [(top, "")]
    while waiting:
        base, place = waiting.pop()
        try:
            fd = syscalls.openat2(base.fd, place or ".", _DIRECTORY, resolve=resolve)
        except OSError:  # gone meanwhile, not ours to look into, or a file was asked about
            base.done()
            continue
        if place:
            total += os.fstat(fd).st_blocks * 512
        if len(place) > _FAR:
            base.done()
            base, place = _Base(os.dup(fd)), "."
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        base.waiting += 1
                        waiting.append((base, f"{place}/{entry.name}" if place else entry.name))
                        continue
                    found = entry.stat(follow_symlinks=False)
                    if found.st_nlink > 1:
                        if (found.st_dev, found.st_ino) in seen:
                            continue
                        seen.add((found.st_dev, found.st_ino))
                    total += found.st_blocks * 512
        except OSError:
            pass  # likewise
        finally:
            os.close(fd)
            base.done()
    return total


_FAR: Final = 900
"""Characters of a path after which another directory to begin at is kept open: the kernel takes 4095 bytes."""


class _Base:
    """An open directory that others are looked up from."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.waiting = 1
        """How many are still to be looked at, itself among them."""

    def done(self) -> None:
        """One of them has been."""
        self.waiting -= 1
        if not self.waiting:
            os.close(self.fd)
