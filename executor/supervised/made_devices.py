"""The devices that a step in a chroot makes: empty files, which are recorded as devices.

Without mounts there is no ``nodev``: what may be opened of a device would be up to the container's control group.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from executor.snapshotter import inplace, records
from executor.snapshotter.records import DeviceNumber, Record
from platforms import syscalls


class MadeDevices:
    """A list in memory that the supervisor writes and the reaper reads."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("devices")

    def add(self, file: int, device: DeviceNumber) -> None:
        """Note that the new empty ``file`` stands for ``device``."""
        line = f"{os.fstat(file).st_ino} {syscalls.birth(file)} {device.letter} {device.major} {device.minor}\n"
        os.write(self.fd, line.encode())

    def left(self, root: str) -> Iterator[Record]:
        """Yield the records of those that are in the directory ``root``, which nothing writes to any more."""
        lines = [line.split() for line in os.pread(self.fd, os.fstat(self.fd).st_size, 0).splitlines()]
        made = {
            (int(inode), int(birth)): DeviceNumber(letter.decode(), int(major), int(minor))
            for inode, birth, letter, major, minor in lines
        }
        for path, here, name in records.walked(root) if made else ():
            found = os.stat(name, dir_fd=here, follow_symlinks=False)
            if stat.S_ISREG(found.st_mode) and not found.st_size:
                device = made.get((found.st_ino, inplace.birth(here, name)))
                if device is not None:
                    yield Record(path, found.st_uid, found.st_gid, device)
