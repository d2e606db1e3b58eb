"""What the files of a running step are recorded to be, by inode.

Where a step has a single id, the kernel does not know whose its files are. What is recorded beside the layers that it
stands on (``executor.snapshotter.records``), and what its supervisor has seen it do, is kept here under the device and
inode number that the step's own stat(2) gives a file. That number outlives renames and hard links, and overlayfs keeps
it when it copies a file up.

An inode's number is given again when the file is gone. Files of layers stay as long as the step; of others the time of
birth is kept, and what is recorded of an inode that was born at another time is about a file that is no more.
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

from executor.snapshotter.records import Device, Record, Stack, copied_up, had_several_names, read, walked
from platforms import syscalls

_OF_A_LAYER: Final = -1
_MOST: Final = 4_000_000
"""Files of which something is recorded, some 300 bytes each: what is more than any image has is an attack."""
_TICK: Final = 20_000_000
"""Nanoseconds by which the times of files may lag behind the clock."""


class Known(msgspec.Struct):
    """What is recorded of one inode."""

    uid: int
    gid: int
    device: Device | None = None
    capability: bytes = b""
    born: int = _OF_A_LAYER
    """In nanoseconds since the epoch; 0 where the file system does not know."""


class Table:
    """One step's: of what it does in ``upper``, on top of ``layers``, top first, whose union it sees as ``device``."""

    def __init__(self, upper: str, layers: Sequence[str], device: int) -> None:
        self._layers = layers
        self._device = device
        self._upper = os.open(upper, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._known: dict[tuple[int, int], Known] = {}
        self._begun = time.time_ns() - _TICK
        self._copied = False
        self.hands_down = False
        """Whether there may be a directory that hands a group down to what is made in it."""

    def add_layers(self, device: int, layers: Sequence[str]) -> None:
        """Take over what is recorded of ``layers``, whose union is mounted as ``device``."""
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
            here = syscalls.openat2(top, os.fsdecode(directory) or ".", os.O_PATH | os.O_CLOEXEC, resolve=_BENEATH)
        except OSError:
            return
        try:
            for record in found:
                name = record.path.rpartition(b"/")[2]
                try:
                    status = os.stat(name, dir_fd=here, follow_symlinks=False)
                except OSError:
                    continue
                known = Known(record.uid, record.gid, record.device, record.capability)
                self._known[device, status.st_ino] = known
                self.hands_down = self.hands_down or bool(record.gid and _hands_down(status))
        finally:
            os.close(here)

    def of(self, file: int, status: os.stat_result) -> Known | None:
        """What is recorded of ``file``, an O_PATH descriptor, whose status is ``status``."""
        known = self._find(file, status.st_dev, status.st_ino)
        if known is None and self._linked(status) and (made := self._made(file)) is not None:
            known = self._find(file, status.st_dev, made.st_ino)
        return known

    def _find(self, file: int, device: int, number: int) -> Known | None:
        known = self._known.get((device, number))
        if known is not None and known.born != _OF_A_LAYER and known.born != syscalls.birth(file):
            del self._known[device, number]
            return None
        return known

    def _linked(self, status: os.stat_result) -> bool:
        """Whether what has ``status`` may be known under another number."""
        return self._copied and status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode)

    def concerns(self, status: os.stat_result) -> bool:
        """False when nothing is recorded of what has ``status``. Costs next to nothing."""
        if (status.st_dev, status.st_ino) in self._known or self._linked(status):
            return True
        return self.hands_down and status.st_ctime_ns >= self._begun

    def seen(self, file: int, status: os.stat_result) -> Known | None:
        """``of``, or else the group that the directory of a new file has handed down to it."""
        known = self.of(file, status)
        if known is None and self.hands_down and status.st_ctime_ns >= self._begun:
            gid = self._handed(file, status)
            return Known(0, gid) if gid else None
        return known

    def give(self, file: int, was: os.stat_result, uid: int, gid: int) -> None:
        """Record the owner of ``file``, an O_PATH descriptor; -1 leaves an id as it is.

        ``was`` is the status of the file before overlayfs has copied it up, if it had to: a file with several names may
        have got another inode then.
        """
        status = os.fstat(file)
        known = self.of(file, status)
        if known is None:
            known = self._known.get((was.st_dev, was.st_ino)) if was.st_ino != status.st_ino else None
            old = known or Known(0, 0)
            known = Known(old.uid, old.gid, old.device, old.capability, syscalls.birth(file))
            self._add_known(status, known)
            # Through a name that was made since it was copied up, a file has the number that it has in ``upper``.
            if (made := self._made(file)) is not None and made.st_ino != status.st_ino:
                self._known[status.st_dev, made.st_ino] = known
                self._copied = True
        if uid >= 0:
            known.uid = uid
        if gid >= 0:
            known.gid = gid
        known.capability = b""  # as chown(2) does
        self.hands_down = self.hands_down or bool(known.gid and stat.S_ISDIR(status.st_mode))

    def _add_known(self, status: os.stat_result, known: Known) -> None:
        if len(self._known) >= _MOST:
            raise OSError(errno.ENOMEM, "")
        self._known[status.st_dev, status.st_ino] = known

    def own(self, file: int, uid: int, gid: int) -> None:
        """Record the owner of ``file``, an O_PATH descriptor, as if it had been so before the step."""
        self._add_known(os.fstat(file), Known(uid, gid, born=syscalls.birth(file)))

    def make(self, file: int, device: Device) -> None:
        """Record that ``file``, an O_PATH descriptor of a new empty file, stands for ``device``."""
        status = os.fstat(file)
        born = syscalls.birth(file)
        self._add_known(status, Known(0, self._handed(file, status), device, born=born))

    def keep(self, file: int, directory: int) -> None:
        """Before ``file`` is moved into ``directory``: record the group that its own directory has handed down."""
        status = os.fstat(file)
        if self.of(file, status) is not None:
            return
        gid = self._handed(file, status)
        above = os.fstat(directory)
        known = self.seen(directory, above) if _hands_down(above) else None
        if gid != (known.gid if known is not None else 0):
            self.give(file, status, 0, gid)

    def _handed(self, file: int, status: os.stat_result) -> int:
        """The group that a new file has from its directory; 0 for a file that is not new."""
        made = self._made(file) if self.hands_down else None
        if made is None or made.st_ino != status.st_ino:  # copied up, or of another file system
            return 0
        try:
            above = os.path.dirname(os.readlink(f"self/fd/{file}"))
            directory = os.open(above, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return 0
        try:
            found = os.fstat(directory)
            known = self.seen(directory, found) if _hands_down(found) and found.st_dev == status.st_dev else None
            return known.gid if known is not None else 0
        finally:
            os.close(directory)

    def _made(self, file: int) -> os.stat_result | None:
        """What stands for ``file`` in the upper directory; None when there is nothing, or the path is another's."""
        if os.fstat(file).st_dev != self._device:
            return None
        path = os.readlink(f"self/fd/{file}")
        try:
            return os.stat(path.strip("/"), dir_fd=self._upper, follow_symlinks=False) if path[:1] == "/" else None
        except OSError:
            return None

    def left(self, upper: str, view: int) -> Iterator[Record]:
        """The records of the directory ``upper``, which the step has left.

        ``view`` is its root directory, with nothing mounted in it: there its files have the numbers that they had.
        """
        below = Stack(self._layers)
        groups: dict[bytes, int] = {}  # that directories hand down
        linked: dict[int, Record] = {}  # by the number in ``upper``
        other_names: list[tuple[bytes, int]] = []
        for path, here, name in walked(upper):
            try:
                file = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=view)
            except FileNotFoundError:  # what marks a deletion
                continue
            try:
                status = os.fstat(file)
                known = self._find(file, status.st_dev, status.st_ino)
            finally:
                os.close(file)
            if known is not None:
                record: Record | None = Record(path, known.uid, known.gid, known.device, known.capability)
            elif copied_up(here, name) or had_several_names(here, name):
                record = below.of(path)  # a file that had several names below is another inode now
            else:
                record = Record(path, 0, groups.get(path.rpartition(b"/")[0], 0))
            if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
                number = os.stat(name, dir_fd=here, follow_symlinks=False).st_ino
                if known is not None or record is not None:
                    linked.setdefault(number, record or Record(path))
                else:
                    other_names.append((path, number))
            if record is None or record == Record(path):
                continue
            if record.gid and _hands_down(status):
                groups[path] = record.gid
            yield record
        for path, number in other_names:
            if number in linked and linked[number] != Record(linked[number].path):
                yield replace(linked[number], path=path)


def _hands_down(status: os.stat_result) -> bool:
    return stat.S_ISDIR(status.st_mode) and bool(status.st_mode & stat.S_ISGID)


_BENEATH: Final = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS


def claimed(upper: str, layers: Sequence[str], uid: int, gid: int) -> Iterator[Record]:
    """The records of what a step has left in ``upper`` that ran as ``uid`` and ``gid``: what it made is that user's.

    What was copied up from a layer below, because the step changed it, keeps its owner. Not looked at is whether the
    step's user would have been allowed to make it.
    """
    below = Stack(layers)
    for path, here, name in walked(upper):
        status = os.stat(name, dir_fd=here, follow_symlinks=False)
        if stat.S_ISCHR(status.st_mode):  # it marks a deletion
            continue
        if not copied_up(here, name):
            yield Record(path, uid, gid)
        elif (record := below.of(path)) is not None:
            yield record
