"""Records of ownership of the files of a running step, by inode.

Where a step has a single id, the kernel has no owners of its files. What is recorded beside its layers
(``executor.snapshotter.records``), and what its supervisor has seen it do, is kept here by the device and inode number
that stat(2) reports in the step. That number survives renames and hard links, and overlayfs keeps it when it copies a
file up.

An inode number is reused when the file is gone. Files of layers stay as long as the step. For others the creation time
is kept: a record with another one is of a file that is gone.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec
from msgspec.structs import replace

from executor.snapshotter.inplace import TICK
from executor.snapshotter.records import DeviceNumber, Record, Stack, copied_up, had_several_names, read, walked
from platforms import syscalls

_OF_A_LAYER: Final = -1
_MOST: Final = 4_000_000
"""Maximum number of records, of some 300 bytes each: more than any real image has."""


class InodeRecord(msgspec.Struct):
    """What is recorded of an inode. Several inode numbers may share it, so it changes in place."""

    record: Record
    """Its path is one that the inode has, or had, or b""."""
    born: int = _OF_A_LAYER
    """Creation time in nanoseconds since the epoch; 0 where the file system has none."""


class InodeRecords:
    """The records of one step with the upper directory ``upper`` on ``layers``, top first, mounted as ``device``."""

    def __init__(self, upper: str, layers: Sequence[str], device: int) -> None:
        self._layers = layers
        self._device = device
        self._upper = os.open(upper, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._known: dict[tuple[int, int], InodeRecord] = {}
        self._begun = time.time_ns() - TICK
        self._copied = False
        self.hands_down = False
        """Whether a set-group-id directory with a recorded group may exist."""

    def add_layers(self, device: int, layers: Sequence[str]) -> None:
        """Load the records of ``layers``, whose overlay is mounted as ``device``."""
        for layer in layers:
            by_directory: dict[bytes, list[Record]] = {}
            for record in read(layer).values():
                by_directory.setdefault(record.path.rpartition(b"/")[0], []).append(record)
            top = os.open(layer, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                for directory, found in by_directory.items():
                    self._add(device, top, directory, found)
            finally:
                os.close(top)

    def _add(self, device: int, top: int, directory: bytes, found: list[Record]) -> None:
        try:
            here = syscalls.openat2(
                top, os.fsdecode(directory) or ".", os.O_PATH | os.O_CLOEXEC, resolve=syscalls.CONFINED
            )
        except OSError:
            return
        try:
            for record in found:
                name = record.path.rpartition(b"/")[2]
                try:
                    status = os.stat(name, dir_fd=here, follow_symlinks=False)
                except OSError:
                    continue
                self._known[device, status.st_ino] = InodeRecord(record, self._born(here, name))
                self.hands_down = self.hands_down or bool(record.gid and _is_setgid(status))
        finally:
            os.close(here)

    def _born(self, directory: int, name: bytes) -> int:
        """The creation time to store of a recorded file that existed before the step."""
        return _OF_A_LAYER

    def of(self, file: int, status: os.stat_result) -> Record | None:
        """Return the record of ``file``, an O_PATH descriptor with the status ``status``; None if there is none."""
        known = self._of(file, status)
        return None if known is None else known.record

    def _of(self, file: int, status: os.stat_result) -> InodeRecord | None:
        known = self._find(file, status.st_dev, status.st_ino)
        if known is None and self._linked(status) and (made := self._made(file)) is not None:
            known = self._find(file, status.st_dev, made.st_ino)
        return known

    def _find(self, file: int, device: int, number: int) -> InodeRecord | None:
        known = self._known.get((device, number))
        if known is not None and known.born != _OF_A_LAYER and known.born != syscalls.birth(file):
            del self._known[device, number]
            return None
        return known

    def _linked(self, status: os.stat_result) -> bool:
        """Whether a file with ``status`` may be recorded under another inode number."""
        return self._copied and status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode)

    def concerns(self, status: os.stat_result) -> bool:
        """Whether there may be a record for ``status``. Cheap."""
        if (status.st_dev, status.st_ino) in self._known or self._linked(status):
            return True
        return self.hands_down and status.st_ctime_ns >= self._begun

    def seen(self, file: int, status: os.stat_result) -> Record | None:
        """As ``of``; for a new file without a record, the group inherited from its directory."""
        record = self.of(file, status)
        if record is None and self.hands_down and status.st_ctime_ns >= self._begun:
            gid = self._handed(file, status)
            return Record(b"", gid=gid) if gid else None
        return record

    def give(self, file: int, was: os.stat_result, uid: int, gid: int) -> None:
        """Record the owner of ``file``, an O_PATH descriptor; -1 leaves an id unchanged.

        ``was``: the status of the file before overlayfs copied it up, which may have changed the inode of a file with
        several names.
        """
        status = os.fstat(file)
        known = self._of(file, status)
        if known is None:
            old = self._known.get((was.st_dev, was.st_ino)) if was.st_ino != status.st_ino else None
            known = InodeRecord(old.record if old is not None else Record(b""), syscalls.birth(file))
            self._add_known(status, known)
            # By a name that was made after the copy-up, a file has the inode number that it has in ``upper``.
            if (made := self._made(file)) is not None and made.st_ino != status.st_ino:
                self._known[status.st_dev, made.st_ino] = known
                self._copied = True
        uid, gid = uid if uid >= 0 else known.record.uid, gid if gid >= 0 else known.record.gid
        known.record = replace(known.record, uid=uid, gid=gid, capability=b"")  # as chown(2) does
        self.hands_down = self.hands_down or bool(gid and stat.S_ISDIR(status.st_mode))

    def _add_known(self, status: os.stat_result, known: InodeRecord) -> None:
        if len(self._known) >= _MOST:
            raise OSError(errno.ENOMEM, "")
        self._known[status.st_dev, status.st_ino] = known

    def own(self, file: int, uid: int, gid: int) -> None:
        """Record the owner of ``file``, an O_PATH descriptor, as it was before the step."""
        self._add_known(os.fstat(file), InodeRecord(Record(b"", uid, gid), syscalls.birth(file)))

    def make(self, file: int, device: DeviceNumber) -> None:
        """Record that ``file``, an O_PATH descriptor of a new empty file, stands for ``device``."""
        status = os.fstat(file)
        born = syscalls.birth(file)
        self._add_known(status, InodeRecord(Record(b"", 0, self._handed(file, status), device), born))

    def keep(self, file: int, directory: int) -> None:
        """Record the group that ``file`` inherited from its directory, before it is moved to ``directory``."""
        status = os.fstat(file)
        if self.of(file, status) is not None:
            return
        gid = self._handed(file, status)
        above = os.fstat(directory)
        record = self.seen(directory, above) if _is_setgid(above) else None
        if gid != (record.gid if record is not None else 0):
            self.give(file, status, 0, gid)

    def _handed(self, file: int, status: os.stat_result) -> int:
        """Return the group that a new file inherits from its directory; 0 for a file that is not new."""
        made = self._made(file) if self.hands_down else None
        if made is None or made.st_ino != status.st_ino:  # copied up, or on another file system
            return 0
        try:
            above = os.path.dirname(os.readlink(f"self/fd/{file}"))
            directory = os.open(above, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return 0
        try:
            found = os.fstat(directory)
            record = self.seen(directory, found) if _is_setgid(found) and found.st_dev == status.st_dev else None
            return record.gid if record is not None else 0
        finally:
            os.close(directory)

    def _made(self, file: int) -> os.stat_result | None:
        """Return the status of ``file`` in the upper directory; None when it is not there, or the path is another
        file's."""
        if os.fstat(file).st_dev != self._device:
            return None
        path = os.readlink(f"self/fd/{file}")
        try:
            return os.stat(path.strip("/"), dir_fd=self._upper, follow_symlinks=False) if path[:1] == "/" else None
        except OSError:
            return None

    def _is_new(self, directory: int, name: bytes) -> bool:
        """Whether the step has made ``name``, which has no record, in the upper directory's ``directory``."""
        return not copied_up(directory, name) and not had_several_names(directory, name)

    def left(self, upper: str, view: int) -> Iterator[Record]:
        """Yield the records for the directory ``upper`` after the step has ended.

        ``view``: a descriptor of the step's root directory without other mounts, where files have their inode numbers.
        """
        below = Stack(self._layers)
        groups: dict[bytes, int] = {}  # of set-group-id directories
        linked: dict[int, Record] = {}  # by the inode number in ``upper``
        other_names: list[tuple[bytes, int]] = []
        for path, here, name in walked(upper):
            try:
                file = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=view)
            except FileNotFoundError:  # a whiteout
                continue
            try:
                status = os.fstat(file)
                known = self._find(file, status.st_dev, status.st_ino)
            finally:
                os.close(file)
            if known is not None:
                record: Record | None = replace(known.record, path=path)
            elif self._is_new(here, name):
                record = Record(path, 0, groups.get(path.rpartition(b"/")[0], 0))
            else:
                record = below.of(path)  # the copy-up of a file with several names has a new inode
            if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
                number = os.stat(name, dir_fd=here, follow_symlinks=False).st_ino
                if known is not None or record is not None:
                    linked.setdefault(number, record or Record(path))
                else:
                    other_names.append((path, number))
            if record is None or record == Record(path):
                continue
            if record.gid and _is_setgid(status):
                groups[path] = record.gid
            yield record
        for path, number in other_names:
            if number in linked and linked[number] != Record(linked[number].path):
                yield replace(linked[number], path=path)


def _is_setgid(status: os.stat_result) -> bool:
    return stat.S_ISDIR(status.st_mode) and bool(status.st_mode & stat.S_ISGID)


def records_for_user(upper: str, layers: Sequence[str], uid: int, gid: int) -> Iterator[Record]:
    """Yield the records for ``upper`` after a step that ran as ``uid`` and ``gid``: new files belong to that user.

    Files that were copied up from a lower layer keep their owner. Whether the user would have had permission to make a
    file is not checked.
    """
    below = Stack(layers)
    for path, here, name in walked(upper):
        status = os.stat(name, dir_fd=here, follow_symlinks=False)
        if stat.S_ISCHR(status.st_mode):  # a whiteout
            continue
        if not copied_up(here, name):
            yield Record(path, uid, gid)
        elif (record := below.of(path)) is not None:
            yield record
