"""Writes entries to a directory that overlayfs can use as a lower directory, such as those of a COPY for a later RUN.

File contents are shared with their sources where the file system can (reflinks), else copied inside the kernel; holes
stay holes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from executor.rootfs.entry import Entry, Kind
from executor.rootfs.tarwriter import changed, open_source
from executor.snapshotter import records
from executor.snapshotter.apply import Applier, Lower, without_attributes
from executor.store import faults, removal, snapshots
from executor.store.snapshots import ActiveSnapshot, Snapshot
from platforms.descriptors import write_all
from platforms.errors import BuildError, KanifoldError, StoreError, printable

if TYPE_CHECKING:
    from executor.store.store import Store

_SMALL: Final = 64 << 10
"""Bytes up to which reading and writing is cheaper than asking for more."""
_BLOCK: Final = 1 << 20
_SHOWN: Final = 200
"""Characters that are shown of a path that is too long."""
_FICLONE: Final = 0x40049409
"""linux/fs.h: _IOW(0x94, 9, int)"""
_CANNOT: Final = frozenset(
    {errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS, errno.EPERM, errno.EBADF, errno.ETXTBSY}
)


def materialise(entries: Iterable[Entry], directory: str) -> None:
    """Write ``entries`` into ``directory``, which is empty, in the order given: hard links after what they lead to.

    A file is written before the next entry is asked for. Parents that have no entry are root's, mode 0755. Raises
    ``BuildError`` when a source is not what its entry says or a hard link leads to nothing, ``StoreError`` when the
    disk is full or fails. Nothing is synced.
    """
    with Lower(directory) as lower:
        fill(lower, entries)
        if lower.incomplete:
            raise BuildError("cannot write a layer's files", why="a hard link leads to a file that is not among them")
        records.write(directory, lower.records)


def fill(applier: Applier, entries: Iterable[Entry]) -> None:
    """Apply ``entries``, whose files are copied from their sources. Raises as ``materialise`` does."""
    copier = TreeCopier()
    try:
        for entry in entries:
            copier.entry = entry
            applier.apply(entry, copier.fill)
        applier.finish()
    except OSError as error:
        raise failure(error, copier.entry.path) from error


def write(store: Store, entries: Iterable[Entry], *, keys: tuple[str, ...], diff_id: str | None = None) -> Snapshot:
    """The snapshot of a layer with ``entries``, to be found by ``keys``. Raises as ``materialise`` does."""
    active = snapshots.prepare(store)
    try:
        return finish(store, active, entries, keys=keys, diff_id=diff_id)
    except BaseException:
        snapshots.discard(store, active)
        raise


def finish(
    store: Store,
    active: ActiveSnapshot,
    entries: Iterable[Entry],
    *,
    keys: tuple[str, ...],
    diff_id: str | None = None,
    description: str = "",
) -> Snapshot:
    """``write`` to an ``active`` snapshot that is there already, and empty; it stays the caller's when that fails."""
    materialise(entries, active.fs)
    size = removal.disk_usage(active.fs)
    return snapshots.commit(store, active, diff_id=diff_id, size=size, keys=keys, description=description)


class TreeCopier:
    """Fills files from their sources; remembers which ways of copying the file systems do not support."""

    entry = Entry(b"", Kind.DIRECTORY)
    """The present one."""

    def __init__(self) -> None:
        self._clones = True
        self._ranges = True

    def fill(self, fd: int) -> None:
        """Write the content of ``entry`` to the new file ``fd``."""
        source = open_source(self.entry)
        try:
            self.copy(source, fd)
        finally:
            os.close(source)

    def copy(self, source: int, fd: int) -> None:
        """As ``fill``, from the descriptor ``source``."""
        if self.entry.size <= _SMALL:
            self._copy_small(source, fd)
        else:
            self._copy_large(source, fd)

    def _copy_small(self, source: int, fd: int) -> None:
        size = self.entry.size
        data = os.read(source, size + 1)
        while len(data) <= size and (more := os.read(source, size + 1 - len(data))):
            data += more
        if len(data) != size:
            raise changed(self.entry)
        write_all(fd, data)

    def _copy_large(self, source: int, fd: int) -> None:
        status = os.fstat(source)
        if not stat.S_ISREG(status.st_mode) or status.st_size != self.entry.size:
            raise changed(self.entry)
        if not self._clone(source, fd):
            if status.st_blocks * 512 < status.st_size:
                self._copy_data(source, fd, status.st_size)
            else:
                self._copy_range(source, fd, 0, status.st_size)
        if os.fstat(fd).st_size != status.st_size or os.fstat(source).st_size != status.st_size:
            raise changed(self.entry)

    def _clone(self, source: int, fd: int) -> bool:
        if self._clones:
            try:
                fcntl.ioctl(fd, _FICLONE, source)
            except OSError as error:
                if error.errno not in _CANNOT:
                    raise
                self._clones = False
        return self._clones

    def _copy_data(self, source: int, fd: int, size: int) -> None:
        """Copy what lies between the holes."""
        at = 0
        while at < size:
            try:
                start = os.lseek(source, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:  # nothing but a hole from here
                    raise
                break
            at = min(os.lseek(source, start, os.SEEK_HOLE), size)
            self._copy_range(source, fd, start, at)
        os.ftruncate(fd, size)

    def _copy_range(self, source: int, fd: int, start: int, end: int) -> None:
        while self._ranges and start < end:
            try:
                copied = os.copy_file_range(source, fd, end - start, start, start)
            except OSError as error:
                if error.errno not in _CANNOT:
                    raise
                self._ranges = False
                break
            if not copied:
                raise changed(self.entry)
            start += copied
        os.lseek(fd, start, os.SEEK_SET)
        while start < end:
            data = os.pread(source, min(_BLOCK, end - start), start)
            if not data:
                raise changed(self.entry)
            write_all(fd, data)
            start += len(data)


def failure(error: OSError, path: bytes) -> KanifoldError:
    """Return the error of a file of a layer, ``path``, that could not be written."""
    what = f"cannot write /{os.fsdecode(path)}"
    why = error.strerror or str(error)
    if error.errno == errno.ENAMETOOLONG:
        return BuildError(
            f"cannot write {printable(f'/{os.fsdecode(path)}', _SHOWN)}", why=faults.TOO_LONG, remedy=faults.LESS_DEEP
        )
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(what, why=why, remedy="make room, or put the store elsewhere")
    if error.errno == errno.ENOTSUP:
        return without_attributes(what)
    if error.errno == errno.EACCES:
        return StoreError(what, why=f"{why}: the store has files of other users", remedy="use another store (--root)")
    if error.errno in (errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE):
        return StoreError(what, why=why)
    return BuildError(what, why=why)
