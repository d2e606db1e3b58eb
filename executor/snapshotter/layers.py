"""The union of the directories of layers, computed without a mount: what an overlay of them would show.

The directory of a layer is a lower directory of overlayfs with the mount option ``userxattr``: a character device 0/0
(or, in a directory with ``user.overlay.opaque=x``, an empty file with ``user.overlay.whiteout``) is a deletion,
``user.overlay.opaque=y`` a directory that hides those below it (Linux, Documentation/filesystems/overlayfs.rst).
Directories of layers are never changed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from executor.rootfs.entry import Entry
from executor.rootfs.tree import Tree, TreeOptions
from executor.snapshotter.records import Applied, Read, Stack

OPAQUE: Final = b"user.overlay.opaque"
WHITEOUT: Final = b"user.overlay.whiteout"
_MOST: Final = 20_000
"""Maximum number of cached directories of a union."""

Directories = tuple[bytes, ...]
"""The directories of layers that together are one directory of their union, top first."""


class UnionEntry(msgspec.Struct):
    """An entry of a union: its status, its path on this host, and the directories that it is the union of."""

    status: os.stat_result | None = None
    host: bytes = b""
    directories: Directories = ()


def look(parents: Directories, name: bytes) -> UnionEntry:
    """Return the entry ``name`` of the union of ``parents``; its status is None if there is none."""
    found = UnionEntry()
    for parent in parents:
        host = parent + b"/" + name
        try:
            status = os.lstat(host)
        except (FileNotFoundError, NotADirectoryError):
            continue
        if stat.S_ISDIR(status.st_mode):
            if found.status is None:
                found.status, found.host = status, host
            found.directories += (host,)
            if mark(host, OPAQUE) == b"y":
                break
            continue
        if found.status is None and not is_deletion(status, host, by_attribute=_has_marks(parent, status)):
            found.status, found.host = status, host
        break
    return found


def _has_marks(directory: bytes, status: os.stat_result) -> bool:
    """Whether an empty file in ``directory`` may be a deletion, if ``status`` is that of one."""
    return not status.st_size and mark(directory, OPAQUE) == b"x"


def names(directories: Directories) -> set[bytes]:
    """Return the names in the union of ``directories``, including deleted ones."""
    return {name for each in directories for name in os.listdir(each)}


def mark(host: bytes, attribute: bytes) -> bytes | None:
    """Return the value of an extended attribute; None if there is none."""
    try:
        return os.getxattr(host, attribute, follow_symlinks=False)
    except OSError:
        return None


def is_deletion(status: os.stat_result, host: bytes, *, by_attribute: bool) -> bool:
    """Whether what is at ``host`` marks a deletion; ``by_attribute`` where an empty file may do so (Linux 6.8)."""
    if stat.S_ISCHR(status.st_mode):
        return status.st_rdev == 0
    if not by_attribute or not stat.S_ISREG(status.st_mode) or status.st_size:
        return False
    return mark(host, WHITEOUT) is not None


class Union(Tree):
    """The file system of a stack of one or more ``directories`` of layers, top first."""

    def __init__(self, directories: Sequence[str], recorded: Read) -> None:
        stack = Stack(directories, recorded)
        super().__init__(-1, b"", TreeOptions(meaning=Applied(stack.of)))
        self.has_record = stack.may_have
        """Whether the entry of a path may differ from what the kernel says of its file."""
        top = tuple(map(os.fsencode, directories))
        self._root = UnionEntry(os.lstat(top[0]), top[0], top)
        self._known: dict[bytes, Directories] = {b"": top}
        self._last = (b"", self._root)

    def find(self, path: bytes) -> UnionEntry:
        """Return the entry at ``path``, whose parents must not be links."""
        last, found = self._last
        if path == last:
            return found
        parent, _, name = path.rpartition(b"/")
        found = look(self.directories(parent), name)
        self._last = path, found
        return found

    def directories(self, path: bytes) -> Directories:
        """Return the directories that ``path`` is the union of; none if it is no directory."""
        known = self._known.get(path)
        if known is not None:
            return known
        if len(self._known) > _MOST:
            self._known = {b"": self._root.directories}
        parts = path.split(b"/")
        above, at = self._root.directories, 0
        for count in range(len(parts) - 1, 0, -1):
            if (known := self._known.get(b"/".join(parts[:count]))) is not None:
                above, at = known, count
                break
        for count in range(at, len(parts)):
            above = look(above, parts[count]).directories
            self._known[b"/".join(parts[: count + 1])] = above
        return above

    def host_path(self, path: bytes) -> bytes:
        return self.find(path).host if path else self._root.host

    def _lstat(self, path: bytes) -> os.stat_result | None:
        return self.find(path).status if path else self._root.status

    def readlink(self, path: bytes) -> bytes:
        return os.readlink(self.host_path(path))

    def open(self, path: bytes, flags: int = os.O_RDONLY) -> int:
        """Return a descriptor of the file at ``path``; for a directory, of the topmost layer's."""
        host = self.host_path(path)
        if not host:
            raise FileNotFoundError(path)
        return os.open(host, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)

    def names(self, path: bytes) -> list[bytes]:
        above = path + b"/" if path else b""
        found = sorted(names(self.directories(path)))
        return [name for name in found if self.find(above + name).status is not None]

    def entries(self, path: bytes) -> Iterator[Entry]:
        above = path + b"/" if path else b""
        for name in sorted(names(self.directories(path))):
            status = self.find(above + name).status
            if status is not None:
                yield self._entry(above + name, status)
