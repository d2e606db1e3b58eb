"""The terminals of a step (pts(4)): it can open both ends of its own, and those of others in its container not at all.

The mark of its own is the sticky bit of the file in the container's /dev/pts: when a number is used again, the kernel
makes a new file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
from typing import TYPE_CHECKING, Final

from executor.snapshotter.records import DeviceNumber
from executor.supervised.file_metadata import FileMetadata

if TYPE_CHECKING:
    from executor.supervised.file_metadata import MetadataTable

_TIOCGPTN: Final = 0x80045430
_MAJOR: Final = 136
_GROUP: Final = 5
"""The group of terminals in most distributions (tty)."""


class Terminals:
    """The terminals of a step, which sees their ends as files in the directory ``place``."""

    def __init__(self, place: str, table: MetadataTable, devices: set[tuple[int, int]]) -> None:
        self._place = place
        self._table = table
        self._devices = devices

    def opened(self, flags: int) -> int:
        """Return a descriptor of a new terminal, opened with the ``flags`` of open(2). Raises OSError."""
        fd = os.open("/dev/ptmx", flags)
        try:
            (number,) = struct.unpack("=I", fcntl.ioctl(fd, _TIOCGPTN, bytes(4)))
            end = f"/dev/pts/{number}"
            os.chmod(end, stat.S_IMODE(os.stat(end).st_mode) | stat.S_ISVTX)
            with contextlib.suppress(FileExistsError), open(f"{self._place}/{number}", "xb") as file:
                device = DeviceNumber("c", _MAJOR, number)
                status = os.fstat(file.fileno())
                self._devices.add((status.st_dev, status.st_ino))
                self._table.set(status, FileMetadata(0, _GROUP, 0o620, device))
        except OSError:
            os.close(fd)
            raise
        return fd

    def other_end(self, number: int, flags: int) -> int:
        """Return a descriptor of the other end of the terminal ``number``. Raises OSError: ENXIO if it is not the
        step's."""
        end = f"/dev/pts/{number}"
        fd = os.open(end, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if not os.fstat(fd).st_mode & stat.S_ISVTX:
                raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
            return os.open(f"/proc/self/fd/{fd}", flags)
        finally:
            os.close(fd)
