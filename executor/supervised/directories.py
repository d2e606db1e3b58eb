"""Directories of /proc as a step lists them: real directories of its own root, with the names that are there now."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from executor.supervised.proc_files import ProcDirectory

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_KEPT: Final = frozenset({b"mounts", b"mountinfo", b"self", b"fd", b"sys"})
"""What was there from the beginning."""


class DirectoryLists:
    """The directories below ``top``, a descriptor of the /proc in a step's root.

    The step may change them, which is its own loss; links in them are not followed.
    """

    def __init__(self, top: int) -> None:
        self._top = top

    def opened(self, path: bytes, directory: ProcDirectory) -> int:
        """Return a descriptor of the directory at ``path`` below the top, with the names of ``directory``."""
        here = self._made(path)
        try:
            self._fill(here, directory)
            return os.open(".", _DIRECTORY, dir_fd=here)
        finally:
            os.close(here)

    def add(self, path: bytes, directory: ProcDirectory) -> None:
        """Let the directory at ``path`` have the names of ``directory``, beside others."""
        here = self._made(path)
        try:
            _add(here, directory, set(map(os.fsencode, os.listdir(here))))
        finally:
            os.close(here)

    def _made(self, path: bytes) -> int:
        """Return a descriptor of the directory at ``path``, which is made if it is missing."""
        here = os.dup(self._top)
        for name in filter(None, path.split(b"/")):
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o755, dir_fd=here)
            below = os.open(name, _DIRECTORY, dir_fd=here)
            os.close(here)
            here = below
        return here

    def _fill(self, here: int, directory: ProcDirectory) -> None:
        there = set(map(os.fsencode, os.listdir(here)))
        wanted = {*directory.files, *directory.directories}
        for name in there - wanted - _KEPT:
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=here)
            with contextlib.suppress(OSError):
                os.rmdir(name, dir_fd=here)  # unless something was listed in it; then it stays
        _add(here, directory, there)


def _add(here: int, directory: ProcDirectory, there: set[bytes]) -> None:
    for name in directory.files:
        if name not in there:
            os.close(os.open(name, os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o444, dir_fd=here))
    for name in directory.directories:
        if name not in there:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o555, dir_fd=here)
