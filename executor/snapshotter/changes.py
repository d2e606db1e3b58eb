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


class _Row(Place):
    """A directory on the current path of the comparison."""

    found: dict[bytes, os.stat_result] = msgspec.field(default_factory=dict)
    before: dict[bytes, bytes] = msgspec.field(default_factory=dict)


class Comparison:
    """Compares the directory ``root``, whose records are ``recorded``, with what it was ``before``."""

    def __init__(self, root: str, before: Baseline, recorded: Records) -> None:
        self._root = os.fsencode(root)
        self._before = before.table
        self._below = before.below
        self._by_ctime = before.by_ctime
        self._records = recorded
        self._records_below = before.recorded
        self._links = HardLinks()
        self._names: dict[tuple[int, int], bytes] = {}
        self.table: Table = {}
        """The table of the present state; complete after ``entries``."""
        self.other_names: dict[bytes, bytes] = {}
        """The names of files with several, except the first; each with the first."""

    def entries(self) -> Iterator[Entry]:
        """Yield the changes as ``diff.scan`` does for an upper directory. To be called once."""
        return diff.changes(self, self._row(b"", Entry(b"", Kind.DIRECTORY), changed=False))

    def _row(self, path: bytes, entry: Entry, *, changed: bool) -> _Row:
        packed = self._before.get(path)
        before: dict[bytes, bytes] = marshal.loads(packed) if packed is not None else {}
        found = listed(self._root, path)
        self.table[path] = packed_row(found)
        return _Row(path, sorted({*before, *found}, reverse=True), entry, changed, found, before)

    def look(self, here: _Row, name: bytes) -> _Row | Entry | None:
        path = here.path + b"/" + name if here.path else name
        status = here.found.pop(name, None)
        if status is None:
            there = self._below.find(path).status is not None
            return Entry(path, Kind.WHITEOUT, mode=0) if there else None
        signature = signature_of(status)
        is_directory = stat.S_ISDIR(status.st_mode)
        if not is_directory and status.st_nlink > 1:
            first = self._names.setdefault((status.st_dev, status.st_ino), path)
            if first != path:
                self.other_names[path] = first
        if here.before.get(name) == signature and (self._by_ctime or not stat.S_ISREG(status.st_mode)):
            return self._row(path, self._entry(path, status), changed=False) if is_directory else None
        entry = self._entry(path, status)
        if entry.kind is Kind.DIRECTORY:
            return self._row(path, entry, changed=self._is_changed(entry))
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


def scan(root: str) -> tuple[Table, dict[bytes, bytes]]:
    """Return the table of the directory ``root``, and its ``Comparison.other_names``."""
    table: Table = {}
    firsts: dict[tuple[int, int], bytes] = {}
    other_names: dict[bytes, bytes] = {}
    top = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    waiting = [b""]
    try:
        while waiting:
            path = waiting.pop()
            above = path + b"/" if path else b""
            here = _open(top, path)
            row: dict[bytes, bytes] = {}
            try:
                for each in sorted(os.listdir(here)):
                    status = os.stat(each, dir_fd=here, follow_symlinks=False)
                    name = os.fsencode(each)
                    row[name] = signature_of(status)
                    if stat.S_ISDIR(status.st_mode):
                        waiting.append(above + name)
                    elif status.st_nlink > 1:
                        first = firsts.setdefault((status.st_dev, status.st_ino), above + name)
                        if first != above + name:
                            other_names[above + name] = first
            finally:
                os.close(here)
            table[path] = marshal.dumps(row)
    finally:
        os.close(top)
    return table, other_names


def renew(table: Table, root: str, paths: Iterable[bytes]) -> None:
    """Update ``table`` for ``paths`` below ``root``, which were replaced, and the directories above, whose times were
    set."""
    top = os.fsencode(root)
    directories: set[bytes] = set()
    for path in paths:
        above = path
        while above:
            above = above.rpartition(b"/")[0]
            if above in directories:
                break
            directories.add(above)
    for directory in directories:
        table[directory] = packed_row(listed(top, directory))


def listed(root: bytes, path: bytes) -> dict[bytes, os.stat_result]:
    """Return what is in the directory ``path`` below ``root``, no component of which may be a link."""
    top = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        here = _open(top, path)
    finally:
        os.close(top)
    try:
        return {os.fsencode(name): os.stat(name, dir_fd=here, follow_symlinks=False) for name in os.listdir(here)}
    finally:
        os.close(here)


def _open(top: int, path: bytes) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    return syscalls.openat2(top, os.fsdecode(path) or ".", flags, resolve=syscalls.CONFINED)


def packed_row(found: dict[bytes, os.stat_result]) -> bytes:
    """Return the row of a table for a directory with the contents ``found``."""
    return marshal.dumps({name: signature_of(status) for name, status in found.items()})


def signature_of(status: os.stat_result) -> bytes:
    """Return what is equal for unchanged files and directories."""
    return _SIGNATURE.pack(
        status.st_ino, status.st_ctime_ns, status.st_size, status.st_mode, status.st_uid, status.st_gid
    )
