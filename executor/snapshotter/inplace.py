"""The records of a root directory that is written in place (``rootfs.Directory``).

In such a directory, a file is the same as before if it has the same inode number and creation time, and new if it was
created since. On a file system without creation times (NFS, FUSE, ext4 with small inodes) it is new if no file had its
inode number.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Final

from msgspec.structs import replace

from executor.snapshotter import records
from executor.snapshotter.records import Record, walked
from platforms import syscalls

TICK: Final = 20_000_000
"""Nanoseconds by which the times of files may lag behind the clock."""
_CLOCK_REALTIME_COARSE: Final = 5
"""linux/time.h. Its time is that of the last tick."""
_LONGEST_TICK: Final = 1.0
"""Maximum wait for a tick, in seconds; a clock that stands still for longer was set back."""
_PATH: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def wait_for_clock_tick(since: int = 0) -> int:
    """Wait until later changes get times that no earlier change has. Return the first such time, in nanoseconds.

    ``since``: when the last of the earlier changes was, on the exact clock in nanoseconds; 0 for just now.
    Times of files are between the coarse clock, which lags, and the exact one (multigrain timestamps of Linux 6.13).
    """
    changed, until = since or time.time_ns(), time.monotonic() + _LONGEST_TICK
    while (later := time.clock_gettime_ns(_CLOCK_REALTIME_COARSE)) <= changed and time.monotonic() < until:
        time.sleep(0.0005)
    return later


class Before:
    """The records of ``directory`` before it is written by something that does not update them.

    ``begun`` is what ``wait_for_clock_tick`` has returned: later files are new.
    """

    def __init__(self, directory: str, begun: int) -> None:
        self._directory = directory
        self._begun = begun
        self._records: dict[int, tuple[Record, os.stat_result, int]] = {}
        """With the status and the creation time, by inode number: a step may rename files, and link them."""
        self._inodes: set[int] = set()
        """All inode numbers where there are no creation times, else none."""
        recorded, dated = records.read(directory), _has_creation_times(directory)
        if not dated:
            self._inodes.add(os.stat(directory).st_ino)
        elif not recorded:
            return
        for path, here, name in walked(directory):
            record = recorded.get(path)
            if dated and record is None:
                continue
            status = os.stat(name, dir_fd=here, follow_symlinks=False)
            if not dated:
                self._inodes.add(status.st_ino)
            if record is not None:
                self._records[status.st_ino] = record, status, birth(here, name)

    def carried(self) -> Iterator[Record]:
        """Yield the records of files that still exist under their paths, and of devices under any, for steps whose
        owners the kernel can set."""
        for path, here, name in walked(self._directory) if self._records else ():
            if (found := self._former(here, name)) is None:
                continue
            record, was = found
            if record.path != path:
                if record.device is None:
                    continue
                record = replace(record, path=path)
            status = os.stat(name, dir_fd=here, follow_symlinks=False)
            if (status.st_uid, status.st_gid) != (was.st_uid, was.st_gid):
                record = replace(record, uid=status.st_uid, gid=status.st_gid, capability=b"")
            yield record

    def claimed(self, uid: int, gid: int) -> Iterator[Record]:
        """Yield those of all former files, renamed or not, and of new files, which are owned by ``uid`` and ``gid``.

        For a step with a single id.
        """
        for path, here, name in walked(self._directory):
            if (found := self._former(here, name)) is not None:
                yield replace(found[0], path=path)
            elif self._is_new(here, name):
                yield Record(path, uid, gid)

    def _is_new(self, directory: int, name: bytes) -> bool:
        if self._inodes:
            return os.stat(name, dir_fd=directory, follow_symlinks=False).st_ino not in self._inodes
        return birth(directory, name) >= self._begun

    def _former(self, directory: int, name: bytes) -> tuple[Record, os.stat_result] | None:
        """Return the record and the status that the file ``name`` had before; None if it is new or had no record."""
        found = self._records.get(os.stat(name, dir_fd=directory, follow_symlinks=False).st_ino)
        if found is None or birth(directory, name) != found[2]:
            return None
        return found[:2]


def _has_creation_times(directory: str) -> bool:
    file = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return bool(syscalls.birth(file))
    finally:
        os.close(file)


def birth(directory: int, name: bytes) -> int:
    """Return the creation time of ``name`` in nanoseconds since the epoch; 0 if the file system has none."""
    file = os.open(name, _PATH, dir_fd=directory)
    try:
        return syscalls.birth(file)
    finally:
        os.close(file)
