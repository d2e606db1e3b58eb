"""What a step finds in its root in place of mounts: put there before it starts, and taken out when it has ended.

A file or directory that is in the way is moved aside, and back in the end. So the root has the step's changes then and
nothing else, as after mounts; directories keep their times unless the step has changed them.

A step may have moved or replaced anything meanwhile. So nothing is looked up by a path again: the directories that were
written to are kept open, and what is found in them is moved to a directory that no step can reach before it is deleted.
"""

from __future__ import annotations

import contextlib
import os
import stat
from typing import TYPE_CHECKING, Final

import msgspec

from executor.sandbox import targets
from executor.store import moved_directories, removal
from executor.supervised.tree_copies import separate
from platforms.paths import below

if TYPE_CHECKING:
    from executor.snapshotter.rootfs import Directory

_DIRECTORY: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_NO_PROC: Final = -1
"""There are no magic links in the root, for ``targets.Root``."""


class Placed(msgspec.Struct, frozen=True):
    """Something in the root in place of a mount."""

    parent: int
    """A descriptor of the directory that it is in."""
    name: str
    status: os.stat_result
    aside: str
    """Where what was there before is."""
    home: str
    """Where it was moved from and returns to; "" if it is deleted."""


class _Times(msgspec.Struct):
    """The modification times of a directory in nanoseconds, before and after something was put into it."""

    before: int
    after: int


class PlacedFiles:
    """Everything that is put into the root directory ``rootfs``."""

    def __init__(self, rootfs: Directory) -> None:
        self.fd = os.open(rootfs.path, _DIRECTORY)
        self.root = targets.Root(self.fd, self.fd, _NO_PROC)
        self._aside = below(os.path.dirname(rootfs.path), "aside")
        os.mkdir(self._aside, 0o700)
        self._placed: list[Placed] = []
        self._times: dict[int, tuple[int, _Times]] = {}
        """By the inode number of a directory: a descriptor of it, and its times."""

    def draft(self) -> str:
        """Return a new path for something that is to be put into the root, on the root's file system."""
        return below(self._aside, f"draft-{len(self._placed)}")

    def put(self, source: str, target: str, *, home: str = "") -> None:
        """Move ``source`` to ``target`` in the root, in place of what is there. Raises OSError.

        It is moved to ``home`` in the end, if that is given.
        """
        status = os.lstat(source)
        fd = self.root.locate(target, directory=stat.S_ISDIR(status.st_mode))
        parent = -1
        try:
            path, _, name = os.readlink(f"/proc/self/fd/{fd}").rpartition("/")
            parent = os.open(path, _DIRECTORY)
            self._dated(parent)
            if home and stat.S_ISDIR(status.st_mode):
                moved_directories.note(home, f"{path}/{name}")
            aside = below(self._aside, str(len(self._placed)))
            os.rename(name, aside, src_dir_fd=parent)
            os.rename(source, name, dst_dir_fd=parent)
        except OSError:
            if parent >= 0:
                os.close(parent)
            raise
        finally:
            os.close(fd)
        self._placed.append(Placed(parent, name, status, aside, home))
        self._times[os.fstat(parent).st_ino][1].after = os.fstat(parent).st_mtime_ns

    def _dated(self, parent: int) -> None:
        """Note the time of ``parent`` before something is put into it. If it differs from what it was after the last
        time, ``targets.Root`` has made something there, and restores the time that was before."""
        status = os.fstat(parent)
        known = self._times.get(status.st_ino)
        if known is None or known[1].after != status.st_mtime_ns:
            self._times[status.st_ino] = parent, _Times(status.st_mtime_ns, status.st_mtime_ns)

    def take_out(self) -> None:
        """Restore the root; all processes of the step have ended. What cannot be restored is not."""
        found = [
            (fd, times.before if os.fstat(fd).st_mtime_ns == times.after else os.fstat(fd).st_mtime_ns)
            for fd, times in self._times.values()
        ]
        for number, placed in reversed(list(enumerate(self._placed))):
            self._restore(placed, below(self._aside, f"gone-{number}"))
        for fd, modified in found:
            with contextlib.suppress(OSError):  # a directory that is gone
                os.utime(f"/proc/self/fd/{fd}", ns=(modified, modified))
        for placed in self._placed:
            os.close(placed.parent)
        homes = [each.home for each in self._placed if each.home and stat.S_ISDIR(each.status.st_mode)]
        for home in homes if len(homes) > 1 else ():  # files of one that are in the root, too, are separated there
            with contextlib.suppress(OSError):
                separate(home)
        with contextlib.suppress(OSError):  # deleted with the job
            removal.remove_tree(self._aside)

    def _restore(self, placed: Placed, gone: str) -> None:
        with contextlib.suppress(OSError):
            os.rename(placed.name, gone, src_dir_fd=placed.parent)
        if placed.home:
            with contextlib.suppress(OSError):
                if os.lstat(gone).st_ino == placed.status.st_ino:
                    os.rename(gone, placed.home)
            if not os.path.lexists(placed.home):  # the step has moved it elsewhere
                status = placed.status
                make_directory(placed.home, stat.S_IMODE(status.st_mode), (status.st_uid, status.st_gid))
            moved_directories.forget(placed.home)
        with contextlib.suppress(OSError):
            os.rename(placed.aside, placed.name, dst_dir_fd=placed.parent)


def make_directory(path: str, mode: int, owner: tuple[int, int]) -> None:
    """Make the directory ``path`` with a ``mode``, whatever the umask is, and an ``owner``."""
    os.mkdir(path)
    os.chown(path, *owner)
    os.chmod(path, mode)
