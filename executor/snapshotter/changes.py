"""The changes to a root directory that is written in place, found by lstat(2) before and after.

Every change to a file, its attributes or the names in a directory changes the ctime, which cannot be set. So a file is
unchanged if it has the same inode, ctime, size, mode and owner as before. Anything else is compared with the layers
below by the rule for upper directories (``diff.same``); content is read only if everything else is equal.

Times of files have the resolution of a kernel tick, some milliseconds (before Linux 6.13): see
``inplace.wait_for_clock_tick``.

On tmpfs a write through a shared mapping does not change the ctime once the page was read (``sees_mapped_writes``).
There the content of every file is compared.
"""

from __future__ import annotations

import marshal
import mmap
import os
import stat
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

import msgspec

from executor.rootfs.entry import Entry, Kind
from executor.snapshotter import diff, records
from executor.snapshotter.diff import HardLinks, Place
from executor.snapshotter.inplace import wait_for_clock_tick
from executor.snapshotter.layers import Union
from executor.snapshotter.records import Records, Stack
from platforms import syscalls
from platforms.paths import below

_SIGNATURE: Final = struct.Struct("=QqQIII")

Table = dict[bytes, bytes]
"""By the path of a directory below the root: the names in it with their signatures, packed by marshal."""


def sees_mapped_writes(directory: str) -> bool:
    """Return whether a write through a shared mapping of a file in the empty ``directory`` changes its ctime."""
    path = below(directory, "mapped")
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(file, b"1")
        with mmap.mmap(file, 1) as mapped:
            read = mapped[0]  # so that the page is there when it is written to
            before = os.fstat(file).st_ctime_ns
            wait_for_clock_tick()
            mapped[0] = read + 1
        return os.fstat(file).st_ctime_ns != before
    finally:
        os.close(file)
        os.unlink(path)


class Baseline(msgspec.Struct, frozen=True):
    """A root directory before it was written to."""

    table: Table
    below: Union
    """The layers that it was equal to."""
    recorded: Stack
    """The records of these layers."""
    by_ctime: bool
    """Whether every change to a file changes its ctime (``sees_mapped_writes``)."""


class SharedFiles:
    """Files with several names, by inode, as a walk through a root finds them.

    Some of the names may be in no root: a step of a supervised mode can link a file of the root to a cache directory.
    """

    def __init__(self) -> None:
        self._names: dict[tuple[int, int], list[bytes]] = {}
        self._links: dict[tuple[int, int], int] = {}

    def add(self, path: bytes, status: os.stat_result) -> None:
        """Note a file, if it has several names."""
        if status.st_nlink > 1:
            inode = status.st_dev, status.st_ino
            self._names.setdefault(inode, []).append(path)
            self._links[inode] = status.st_nlink

    def others(self) -> dict[bytes, bytes]:
        """Return the names that are to be those of copies, so that each file of the root has one name and no other.

        Each with the name of what is to be copied: that which the file keeps, or itself.
        """
        found: dict[bytes, bytes] = {}
        for inode, names in self._names.items():
            if self._links[inode] > len(names):
                found.update(zip(names, names, strict=True))
            else:
                found.update(dict.fromkeys(names[1:], names[0]))
        return found


class _Row(Place):
    """A directory on the current path of the comparison. ``names``: only those to be looked at."""

    status: os.stat_result | None = None
    """Its own; None for the root."""
    found: dict[bytes, os.stat_result] = msgspec.field(default_factory=dict)
    same: frozenset[bytes] = frozenset()
    """Those of ``found`` that are as they were before."""


class Comparison:
    """Compares the directory ``root``, whose records are ``recorded``, with what it was ``before``."""

    def __init__(self, root: str, before: Baseline, recorded: Records) -> None:
        self._root = os.fsencode(root)
        self._top = -1
        self._before = before.table
        self._below = before.below
        self._by_ctime = before.by_ctime
        self._records = recorded
        self._records_below = before.recorded
        self._links = HardLinks()
        self.table: Table = {}
        """The table of the present state; complete after ``entries``."""
        self.shared = SharedFiles()
        """Complete after ``entries``."""

    def entries(self) -> Iterator[Entry]:
        """Yield the changes as ``diff.scan`` does for an upper directory. To be called once."""
        with _opened(self._root) as self._top:
            yield from diff.changes(self, self._row(b"", None, changed=False))

    def entry(self, here: _Row) -> Entry:
        assert here.status is not None
        return self._entry(here.path, here.status)

    def _row(self, path: bytes, status: os.stat_result | None, *, changed: bool) -> _Row:
        packed = self._before.get(path)
        before: dict[bytes, bytes] = marshal.loads(packed) if packed is not None else {}
        found = _listed(self._top, path)
        now = {name: signature_of(status) for name, status in found.items()}
        self.table[path] = marshal.dumps(now)
        above = path + b"/" if path else b""
        names = [*(before.keys() - now.keys())]
        same: list[bytes] = []
        for name in sorted(found):
            is_directory = stat.S_ISDIR(found[name].st_mode)
            if not is_directory:
                self.shared.add(above + name, found[name])
            if before.get(name) != now[name] or (not self._by_ctime and stat.S_ISREG(found[name].st_mode)):
                names.append(name)
            elif is_directory:
                names.append(name)
                same.append(name)
        names.sort(reverse=True)
        return _Row(path, names, changed, status, found, frozenset(same))

    def look(self, here: _Row, name: bytes) -> _Row | Entry | None:
        path = here.path + b"/" + name if here.path else name
        status = here.found.pop(name, None)
        if status is None:
            there = self._below.find(path).status is not None
            return Entry(path, Kind.WHITEOUT, mode=0) if there else None
        if name in here.same:
            return self._row(path, status, changed=False)
        entry = self._entry(path, status)
        if entry.kind is Kind.DIRECTORY:
            return self._row(path, status, changed=self._is_changed(entry))
        if stat.S_ISSOCK(status.st_mode):
            return None
        # A file that was only given another name is in the snapshot under both, as in an upper directory: then a COPY
        # of both is of one file. Comparing the snapshot with the layers below leaves it out again.
        if status.st_nlink < 2 and not self._is_changed(entry):
            return None
        return self._links.linked(entry, status)

    def _entry(self, path: bytes, status: os.stat_result) -> Entry:
        host = self._root + b"/" + path
        entry = diff.read(path, host, status, diff.xattrs_of(host, status))
        if entry is None:  # a socket
            return Entry(path, Kind.FILE)
        return records.applied_as_seen(entry, self._records.get(path))

    def _is_changed(self, entry: Entry) -> bool:
        """Whether the layers below have something else.

        The time of a directory is not part of a layer, but a COPY from this stage takes it over.
        """
        old = diff.entry_below(entry.path, self._below.find(entry.path), self._records_below)
        if old is None or not diff.same(entry, old):
            return True
        return entry.kind is Kind.DIRECTORY and entry.mtime_ns != old.mtime_ns


def scan(root: str) -> tuple[Table, SharedFiles]:
    """Return the table of the directory ``root``, and its files with several names."""
    table: Table = {}
    shared = SharedFiles()
    waiting = [b""]
    with _opened(root) as top:
        while waiting:
            path = waiting.pop()
            above = path + b"/" if path else b""
            row: dict[bytes, bytes] = {}
            for name, status in sorted(_listed(top, path).items()):
                row[name] = signature_of(status)
                if stat.S_ISDIR(status.st_mode):
                    waiting.append(above + name)
                else:
                    shared.add(above + name, status)
            table[path] = marshal.dumps(row)
    return table, shared


def renew(table: Table, root: str, paths: Iterable[bytes]) -> None:
    """Update ``table`` for ``paths`` below ``root``, which were replaced, and the directories above, whose times were
    set."""
    directories: set[bytes] = set()
    for path in paths:
        above = path
        while above:
            above = above.rpartition(b"/")[0]
            if above in directories:
                break
            directories.add(above)
    with _opened(root) as top:
        for directory in directories:
            found = _listed(top, directory)
            table[directory] = marshal.dumps({name: signature_of(status) for name, status in found.items()})


@contextmanager
def _opened(root: str | bytes) -> Iterator[int]:
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _listed(top: int, path: bytes) -> dict[bytes, os.stat_result]:
    """Return what is in the directory ``path`` below ``top``, no component of which may be a link."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    here = syscalls.openat2(top, os.fsdecode(path) or ".", flags, resolve=syscalls.CONFINED)
    try:
        return {os.fsencode(name): os.stat(name, dir_fd=here, follow_symlinks=False) for name in os.listdir(here)}
    finally:
        os.close(here)


def signature_of(status: os.stat_result) -> bytes:
    """Return what is equal for unchanged files and directories."""
    return _SIGNATURE.pack(
        status.st_ino, status.st_ctime_ns, status.st_size, status.st_mode, status.st_uid, status.st_gid
    )
