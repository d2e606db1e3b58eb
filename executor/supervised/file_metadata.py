"""What a step believes about the files of its root directory: owners, permissions, devices, capabilities.

A process without privileges cannot give files other owners, make devices, or set file capabilities, and it needs files
that it may read and write. So the files on the disk belong to the user of the executor, with the permissions that it
needs, and what the step should see is kept here, by the device and inode number that stat(2) reports. All files are
made by the supervisor, so a number that is used again is known to be another file's (``forget``).

It is read from the records beside the root directory (``executor.snapshotter.records``), and written there when the
step has ended: a step cannot reach them.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

import msgspec
from msgspec.structs import replace

from executor.sandbox.status import FileStatus
from executor.snapshotter import records
from executor.snapshotter.records import DeviceNumber, Record
from platforms import syscalls

_MOST: Final = 4_000_000
"""Maximum number of files with metadata of their own: more than any real image has."""
_PERMISSIONS: Final = 0o7777


class FileMetadata(msgspec.Struct, frozen=True):
    """What the disk does not have of a file. ``permissions`` None: those on the disk."""

    uid: int = 0
    gid: int = 0
    permissions: int | None = None
    device: DeviceNumber | None = None
    capability: bytes = b""


NOTHING: Final = FileMetadata()


class MetadataTable:
    """The metadata of the files of ``directory``, and of other files while the step runs."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._own = os.geteuid(), os.getegid()
        self._known: dict[tuple[int, int], FileMetadata] = {}
        self.hands_down = False
        """Whether a set-group-id directory with a group other than root's may exist."""
        self.load(directory)

    def load(self, directory: str) -> None:
        """Take over the records of ``directory``."""
        top = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        flags = os.O_PATH | os.O_NOFOLLOW
        try:
            for path, record in records.read(directory).items():
                try:
                    file = syscalls.openat2(top, os.fsdecode(path) or ".", flags, resolve=syscalls.CONFINED)
                except OSError:
                    continue
                try:
                    self._take(os.fstat(file), record)
                finally:
                    os.close(file)
        finally:
            os.close(top)

    def _take(self, status: os.stat_result, record: Record) -> None:
        permissions = record.mode
        if permissions is not None:
            permissions &= _PERMISSIONS
            if (permissions ^ status.st_mode) & _PERMISSIONS & ~stat.S_IRWXU:  # changed since
                permissions = None
        device = record.device if stat.S_ISREG(status.st_mode) and not status.st_size else None
        self.set(status, FileMetadata(record.uid, record.gid, permissions, device, record.capability))

    def of(self, status: os.stat_result) -> FileMetadata:
        """Return what the file with ``status`` has."""
        known = self._known.get((status.st_dev, status.st_ino))
        if known is not None:
            return known
        if (status.st_uid, status.st_gid) == self._own:
            return NOTHING
        uid = 0 if status.st_uid == self._own[0] else status.st_uid
        return FileMetadata(uid, 0 if status.st_gid == self._own[1] else status.st_gid)

    def told(self, found: os.stat_result) -> FileStatus:
        """Return the status of a file that a step is told."""
        known = self._known.get((found.st_dev, found.st_ino)) or self.of(found)
        return FileStatus(found, known.uid, known.gid, known.device, known.permissions)

    def set(self, status: os.stat_result, metadata: FileMetadata) -> None:
        """Keep ``metadata`` for the file with ``status``."""
        if metadata == NOTHING:
            self._known.pop((status.st_dev, status.st_ino), None)
            return
        if len(self._known) >= _MOST:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        self._known[status.st_dev, status.st_ino] = metadata
        self.hands_down = self.hands_down or bool(metadata.gid and stat.S_ISDIR(status.st_mode))

    def forget(self, status: os.stat_result) -> None:
        """The file with ``status`` is new: nothing is known of it."""
        self._known.pop((status.st_dev, status.st_ino), None)

    def handed(self, directory: os.stat_result) -> int | None:
        """Return the group that new files get from ``directory``; None if it is the caller's."""
        if not self.hands_down or not directory.st_mode & stat.S_ISGID:
            return None
        return self.of(directory).gid

    def permit(self, file: int, status: os.stat_result, permissions: int) -> None:
        """Give ``file``, an O_PATH descriptor with ``status``, the permissions, as chmod(2) does."""
        permissions &= _PERMISSIONS
        real = permissions | (stat.S_IRWXU if stat.S_ISDIR(status.st_mode) else stat.S_IRUSR | stat.S_IWUSR)
        os.chmod(f"/proc/self/fd/{file}", real)
        self.set(status, replace(self.of(status), permissions=None if real == permissions else permissions))

    def own(self, file: int, status: os.stat_result, uid: int, gid: int) -> None:
        """Give ``file``, an O_PATH descriptor with ``status``, the owner, as chown(2) does; -1 leaves an id."""
        known = self.of(status)
        permissions = known.permissions
        if not stat.S_ISLNK(status.st_mode):
            if permissions is not None and not stat.S_ISDIR(status.st_mode):
                executable = stat.S_ISGID if permissions & stat.S_IXGRP else 0
                permissions &= ~(stat.S_ISUID | executable)
            os.chown(f"/proc/self/fd/{file}", -1, -1)  # clears set-user-id bits, changes the ctime
        else:
            os.utime(f"/proc/self/fd/{file}", ns=(status.st_atime_ns, status.st_mtime_ns))
        owner = uid if uid >= 0 else known.uid, gid if gid >= 0 else known.gid
        self.set(status, FileMetadata(*owner, permissions, known.device))

    def touch(self, file: int, status: os.stat_result) -> None:
        """Change the ctime of ``file``, with ``status``, so that the change to its metadata is noticed; nothing else,
        as chown(2) would."""
        os.chmod(f"/proc/self/fd/{file}", stat.S_IMODE(status.st_mode))

    def write(self) -> None:
        """Write the records of the directory."""
        found: list[Record] = []
        if self._known:
            for path, here, name in records.walked(self._directory):
                status = os.stat(name, dir_fd=here, follow_symlinks=False)
                known = self._known.get((status.st_dev, status.st_ino))
                if known is not None:
                    mode = known.permissions
                    found.append(Record(path, known.uid, known.gid, known.device, known.capability, mode))
        records.rewrite(self._directory, found)
