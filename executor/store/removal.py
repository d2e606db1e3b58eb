"""Deleting and measuring untrusted trees: any depth, any modes, symbolic links never followed."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_EACH_THREAD: Final = 16
"""Number of directories on a level from which a thread more is worthwhile."""


def remove_tree(path: str, *, threads: int = 1) -> None:
    """Delete the directory ``path`` with its content. Continues after an error and raises the first ``OSError`` in the
    end.

    Subdirectories are moved up to the top instead of being descended into, so that the depth of the tree and the length
    of its paths do not matter, and three descriptors for each of the ``threads`` suffice. More than one thread only if
    the names in ``path`` itself are not from outside: they could be those of directories that are moved up.
    """
    try:
        top = os.open(path, _DIRECTORY)
    except FileNotFoundError:
        return
    try:
        _Removal(top).run(threads)
    finally:
        os.close(top)
    os.rmdir(path)


class _Removal:
    def __init__(self, top: int) -> None:
        self._top = top
        self._moved = itertools.count(1)
        self._stuck: set[str] = set()
        self._error: OSError | None = None

    def run(self, threads: int) -> None:
        while directories := self._sweep(self._top)[0]:
            # With few directories, as on most levels, a thread costs more than it saves.
            others: list[threading.Thread] = []
            with contextlib.suppress(RuntimeError):  # there may be a limit of threads
                for _ in range(1, min(threads, len(directories) // _EACH_THREAD)):
                    other = threading.Thread(target=self._empty_all, args=(directories,), name="remove", daemon=True)
                    other.start()
                    others.append(other)
            self._empty_all(directories)
            for each in others:
                each.join()
        if self._error is not None:
            raise self._error

    def _empty_all(self, directories: list[str]) -> None:
        """Remove ``directories`` at the top, which other threads do, too: each takes the last one."""
        while True:
            try:
                name = directories.pop()
            except IndexError:
                return
            try:
                self._empty(name)
            except OSError as error:
                self._note(name, error)

    def _sweep(self, fd: int) -> tuple[list[str], bool]:
        """Unlink everything in the directory ``fd`` that is not a directory; return the names of the directories, and
        whether all could be unlinked."""
        directories: list[str] = []
        done = True
        # Opened again: on btrfs a descriptor lists the entries from when it was opened, without those moved in since.
        again = os.open(".", _DIRECTORY, dir_fd=fd)
        try:
            with os.scandir(again) as entries:
                for entry in entries:
                    if fd == self._top and entry.name in self._stuck:
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        directories.append(entry.name)
                    elif not self._try(entry.name if fd == self._top else None, os.unlink, entry.name, fd):
                        done = False
        finally:
            os.close(again)
        return directories, done

    def _empty(self, name: str) -> None:
        """Remove everything from the directory ``name`` at the top, then the directory."""
        fd = self._enter(name)
        try:
            directories, done = self._sweep(fd)
            for inner in directories:
                done = self._try(None, self._move_up, inner, fd) and done
        finally:
            os.close(fd)
        if done:
            self._try(name, os.rmdir, name, self._top)
        else:
            self._stuck.add(name)

    def _enter(self, name: str) -> int:
        try:
            fd = os.open(name, _DIRECTORY, dir_fd=self._top)
        except PermissionError:
            os.chmod(name, stat.S_IRWXU, dir_fd=self._top)
            return os.open(name, _DIRECTORY, dir_fd=self._top)
        if os.fstat(fd).st_mode & stat.S_IRWXU != stat.S_IRWXU:
            try:
                os.fchmod(fd, stat.S_IRWXU)
            except OSError:
                os.close(fd)
                raise
        return fd

    def _move_up(self, name: str, *, dir_fd: int) -> None:
        while True:
            try:
                os.rename(name, f".{next(self._moved)}", src_dir_fd=dir_fd, dst_dir_fd=self._top)
            except (FileExistsError, NotADirectoryError, IsADirectoryError):
                continue  # the tree has an entry of this name
            except PermissionError:
                # Moving a directory rewrites its "..", which requires write permission.
                if os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode & stat.S_IWUSR:
                    raise
                os.chmod(name, stat.S_IRWXU, dir_fd=dir_fd)
                continue
            except OSError as error:
                if error.errno == errno.ENOTEMPTY:  # likewise
                    continue
                raise
            return

    def _try(self, stuck: str | None, call: Callable[..., None], name: str, dir_fd: int) -> bool:
        """Return whether ``name`` is gone."""
        try:
            call(name, dir_fd=dir_fd)
        except FileNotFoundError:
            pass
        except OSError as error:
            self._note(stuck, error)
            return False
        return True

    def _note(self, stuck: str | None, error: OSError) -> None:
        if stuck is not None:
            self._stuck.add(stuck)
        self._error = self._error or error


def disk_usage(path: str) -> int:
    """Return the bytes that ``path`` and all below it occupy on disk (``st_blocks``), hard links counted once.

    A step may be modifying the tree: no link is followed, also one that replaces a directory meanwhile.
    """
    from platforms import syscalls  # late: rarely needed

    resolve = syscalls.CONFINED
    seen: set[tuple[int, int]] = set()
    try:
        top = _OpenDirectory(os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC))
    except OSError:
        return 0
    total = os.fstat(top.fd).st_blocks * 512
    waiting = [(top, "")]
    while waiting:
        base, place = waiting.pop()
        try:
            fd = syscalls.openat2(base.fd, place or ".", _DIRECTORY, resolve=resolve)
        except OSError:  # gone meanwhile, no permission, or not a directory
            base.done()
            continue
        if place:
            total += os.fstat(fd).st_blocks * 512
        if len(place) > _LONG_PATH:
            base.done()
            base, place = _OpenDirectory(os.dup(fd)), "."
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
            pass  # gone meanwhile, or no permission
        finally:
            os.close(fd)
            base.done()
    return total


_LONG_PATH: Final = 900
"""Length of a path, in characters, after which lookups start at another open directory: the kernel accepts 4095
bytes."""


class _OpenDirectory:
    """An open directory from which others are looked up; closed when all were."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.waiting = 1
        """Number of directories that are still to be looked up from it."""

    def done(self) -> None:
        """Count one as looked up."""
        self.waiting -= 1
        if not self.waiting:
            os.close(self.fd)
