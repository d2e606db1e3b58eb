"""What the files of a running step are recorded to be, by inode.

Where a step has a single id, the kernel does not know whose its files are. What is recorded beside the layers that it
stands on (``executor.rootfs.records``), and what its supervisor has seen it do, is kept here under the device and inode
number that the step's own stat(2) gives a file. That number outlives renames and hard links, and overlayfs keeps it
when it copies a file up.

An inode's number is given again when the file is gone. Files of layers stay as long as the step; of others the time of
birth is kept, and what is recorded of an inode that was born at another time is about a file that is no more.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from executor.rootfs.records import Device, Record, Stack, copied_up, read
from platforms import syscalls

_OF_A_LAYER: Final = -1


class Known(msgspec.Struct):
    """What is recorded of one inode."""

    uid: int
    gid: int
    device: Device | None = None
    capability: bytes = b""
    born: int = _OF_A_LAYER
    """In nanoseconds since the epoch; 0 where the file system does not know."""


class Table:
    """One step's. ``layers``, top first, are what it stands on."""

    def __init__(self, layers: Sequence[str]) -> None:
        self._layers = layers
        self._known: dict[tuple[int, int], Known] = {}

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
                    inode = os.stat(name, dir_fd=here, follow_symlinks=False).st_ino
                except OSError:
                    continue
                self._known[device, inode] = Known(record.uid, record.gid, record.device, record.capability)
        finally:
            os.close(here)

    def of(self, file: int, status: os.stat_result) -> Known | None:
        """What is recorded of ``file``, an O_PATH descriptor, whose status is ``status``."""
        key = status.st_dev, status.st_ino
        known = self._known.get(key)
        if known is not None and known.born != _OF_A_LAYER and known.born != syscalls.birth(file):
            del self._known[key]
            return None
        return known

    def may_know(self, status: os.stat_result) -> bool:
        """False when nothing is recorded of what has ``status``."""
        return (status.st_dev, status.st_ino) in self._known

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
            self._known[status.st_dev, status.st_ino] = known
        if uid >= 0:
            known.uid = uid
        if gid >= 0:
            known.gid = gid
        known.capability = b""  # as chown(2) does

    def left(self, upper: str, view: int) -> Iterator[Record]:
        """The records of the directory ``upper``, which the step has left.

        ``view`` is its root directory, with nothing mounted in it: there its files have the numbers that they had.
        """
        below = Stack(self._layers)
        top = os.fsencode(upper)
        for directory, directories, files, here in os.fwalk(top):
            above = directory[len(top) + 1 :]
            for name in (*directories, *files):
                path = above + b"/" + name if above else name
                record = self._left(path, view, here, below)
                if record is not None and record != Record(path):
                    yield record

    def _left(self, path: bytes, view: int, here: int, below: Stack) -> Record | None:
        try:
            file = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=view)
        except FileNotFoundError:  # what marks a deletion
            return None
        try:
            known = self.of(file, os.fstat(file))
        finally:
            os.close(file)
        if known is not None:
            return Record(path, known.uid, known.gid, known.device, known.capability)
        # Of a file with several names, the copy that overlayfs makes is another inode.
        return below.of(path) if copied_up(here, path.rpartition(b"/")[2]) else None


_BENEATH: Final = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS


def claimed(upper: str, layers: Sequence[str], uid: int, gid: int) -> Iterator[Record]:
    """The records of what a step has left in ``upper`` that ran as ``uid`` and ``gid``: what it made is that user's.

    What was copied up from a layer below, because the step changed it, keeps its owner. Not looked at is whether the
    step's user would have been allowed to make it.
    """
    below = Stack(layers)
    top = os.fsencode(upper)
    for directory, directories, files, here in os.fwalk(top):
        above = directory[len(top) + 1 :]
        for name in (*directories, *files):
            path = above + b"/" + name if above else name
            status = os.stat(name, dir_fd=here, follow_symlinks=False)
            if stat.S_ISCHR(status.st_mode):  # it marks a deletion
                continue
            if not copied_up(here, name):
                yield Record(path, uid, gid)
            elif (record := below.of(path)) is not None:
                yield record
