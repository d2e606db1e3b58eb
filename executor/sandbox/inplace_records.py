"""``InodeRecords`` for a root directory that is written to in place (``executor.snapshotter.inplace``)."""

from __future__ import annotations

import os

from executor.sandbox.inode_records import InodeRecords
from executor.snapshotter.inplace import birth
from platforms import syscalls


class InodeRecordsInPlace(InodeRecords):
    """``InodeRecords`` of a step that writes to ``directory``, which it sees as ``device``."""

    def __init__(self, directory: str, device: int, begun: int) -> None:
        super().__init__(directory, (), device)
        self._begun = begun

    def _born(self, directory: int, name: bytes) -> int:
        return birth(directory, name)

    def _is_new(self, directory: int, name: bytes) -> bool:
        return birth(directory, name) >= self._begun

    def _made(self, file: int) -> os.stat_result | None:
        made = super()._made(file) if syscalls.birth(file) >= self._begun else None
        return made if made is not None and made.st_ino == os.fstat(file).st_ino else None  # not what a mount covers
