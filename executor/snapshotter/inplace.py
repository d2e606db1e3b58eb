"""What is recorded of the files of a root directory that is written to in place (``rootfs.Directory``).

Nothing tells such a directory's old files from new ones but their inodes: a file that has the number and the time of
birth that it had before is the one that was there; one that was born since is new.
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
_PATH: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class Before:
    """What was recorded of ``directory`` before somebody wrote to it who does not record owners."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._begun = time.time_ns() - TICK
        self._records: dict[bytes, tuple[Record, os.stat_result, int]] = {}
        recorded = records.read(directory)
        if not recorded:
            return
        for path, here, name in walked(directory):
            if (record := recorded.get(path)) is not None:
                status = os.stat(name, dir_fd=here, follow_symlinks=False)
                self._records[path] = record, status, birth(here, name)

    def carried(self) -> Iterator[Record]:
        """The records of what is still there, where the kernel knows the owners of what is made."""
        for path, here, name in walked(self._directory) if self._records else ():
            if (found := self._still(path, here, name)) is None:
                continue
            record, was = found
            status = os.stat(name, dir_fd=here, follow_symlinks=False)
            if (status.st_uid, status.st_gid) != (was.st_uid, was.st_gid):
                record = replace(record, uid=status.st_uid, gid=status.st_gid, capability=b"")
            yield record

    def claimed(self, uid: int, gid: int) -> Iterator[Record]:
        """The same where there is one id: what a step has made that ran as ``uid`` and ``gid`` is that user's."""
        for path, here, name in walked(self._directory):
            if (found := self._still(path, here, name)) is not None:
                yield found[0]
            elif birth(here, name) >= self._begun:
                yield Record(path, uid, gid)

    def _still(self, path: bytes, directory: int, name: bytes) -> tuple[Record, os.stat_result] | None:
        """The record of ``path`` and the status that it had, if it is the file that it was."""
        if path not in self._records:
            return None
        record, was, born = self._records[path]
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        same = status.st_ino == was.st_ino and birth(directory, name) == born
        return (record, was) if same else None


def birth(directory: int, name: bytes) -> int:
    """When ``name`` in ``directory`` was made, in nanoseconds since the epoch; 0 where nobody knows."""
    file = os.open(name, _PATH, dir_fd=directory)
    try:
        return syscalls.birth(file)
    finally:
        os.close(file)
