"""Encoding the status of a file as the kernel does, in the structure of the system call and architecture.

Sources: ``struct stat`` and ``struct stat64`` of arch/*/include/uapi/asm/stat.h and include/uapi/asm-generic/stat.h;
``struct statx`` of include/uapi/linux/stat.h.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from typing import Final

import msgspec

from executor.snapshotter.records import DeviceNumber

_KINDS: Final = {"c": stat.S_IFCHR, "b": stat.S_IFBLK}
_SECOND: Final = 1_000_000_000
_WORD: Final = (1 << 32) - 1
_SHORT: Final = (1 << 16) - 1
_NO_SHORT_ID: Final = 65534
"""What an id that does not fit 16 bits becomes (/proc/sys/kernel/overflowuid)."""


class FileStatus(msgspec.Struct, frozen=True):
    """The status of a file from stat(2), with the recorded owner and device."""

    found: os.stat_result
    uid: int
    gid: int
    device: DeviceNumber | None
    permissions: int | None = None
    """The recorded ones; None for those of ``found``."""

    @property
    def mode(self) -> int:
        """``st_mode``."""
        mode = self.found.st_mode
        if self.permissions is not None:
            mode = stat.S_IFMT(mode) | self.permissions
        return mode if self.device is None else stat.S_IMODE(mode) | _KINDS[self.device.letter]

    @property
    def number(self) -> int:
        """``st_rdev``."""
        return self.found.st_rdev if self.device is None else os.makedev(self.device.major, self.device.minor)

    @property
    def times(self) -> tuple[int, ...]:
        """Return access, modification and change time, each in seconds and nanoseconds."""
        found = self.found
        return (
            *divmod(found.st_atime_ns, _SECOND),
            *divmod(found.st_mtime_ns, _SECOND),
            *divmod(found.st_ctime_ns, _SECOND),
        )


def pack(status: FileStatus, architecture: str, *, wide: bool) -> bytes:
    """Return ``status`` as a structure of ``architecture`` (as named in ``seccomp``).

    ``wide``: for the calls of 32-bit interfaces whose names end in 64. Raises OSError (EOVERFLOW) where a value does
    not fit.
    """
    try:
        if architecture in ("i386", "arm"):
            return (_i386_64 if architecture == "i386" else _arm_64)(status) if wide else _short(status)
        return _LAYOUTS[architecture](status)
    except struct.error:
        raise OSError(errno.EOVERFLOW, os.strerror(errno.EOVERFLOW)) from None


def patch_statx(data: bytes, status: FileStatus) -> bytes:
    """Return ``data``, a ``struct statx``, with the fields of ``status``."""
    changed = bytearray(data)
    struct.pack_into("=IIH", changed, 20, status.uid, status.gid, status.mode)
    if status.device is not None:
        struct.pack_into("=II", changed, 128, status.device.major, status.device.minor)
    return bytes(changed)


def _x86_64(status: FileStatus) -> bytes:
    found = status.found
    return struct.pack(
        "=QQQIIIxxxxQqqqqQqQqQ24x",
        found.st_dev, found.st_ino, found.st_nlink, status.mode, status.uid, status.gid, status.number,
        found.st_size, found.st_blksize, found.st_blocks, *status.times,
    )  # fmt: skip


def _generic(status: FileStatus) -> bytes:
    found = status.found
    return struct.pack(
        "=QQIIIIQ8xqi4xqqQqQqQ8x",
        found.st_dev, found.st_ino, status.mode, found.st_nlink, status.uid, status.gid, status.number,
        found.st_size, found.st_blksize, found.st_blocks, *status.times,
    )  # fmt: skip


def _s390x(status: FileStatus) -> bytes:
    found = status.found
    return struct.pack(
        "=QQQIIIxxxxQQqQqQqQqq24x",
        found.st_dev, found.st_ino, found.st_nlink, status.mode, status.uid, status.gid, status.number,
        found.st_size, *status.times, found.st_blksize, found.st_blocks,
    )  # fmt: skip


def _i386_64(status: FileStatus) -> bytes:
    found = status.found
    return struct.pack(
        "=Q4xIIIIIQ4xqIQIIIIIIQ",
        found.st_dev, found.st_ino & _WORD, status.mode, found.st_nlink, status.uid, status.gid, status.number,
        found.st_size, found.st_blksize, found.st_blocks, *(each & _WORD for each in status.times), found.st_ino,
    )  # fmt: skip


def _arm_64(status: FileStatus) -> bytes:
    found = status.found
    return struct.pack(
        "=Q4xIIIIIQ8xqI4xQIIIIIIQ",
        found.st_dev, found.st_ino & _WORD, status.mode, found.st_nlink, status.uid, status.gid, status.number,
        found.st_size, found.st_blksize, found.st_blocks, *(each & _WORD for each in status.times), found.st_ino,
    )  # fmt: skip


def _short(status: FileStatus) -> bytes:
    """Pack the first ``struct stat`` of i386 and arm."""
    found = status.found
    ids = (each if each <= _SHORT else _NO_SHORT_ID for each in (status.uid, status.gid))
    return struct.pack(
        "=IIHHHHIIIIIIIIII8x",
        found.st_dev, found.st_ino, status.mode, found.st_nlink, *ids, status.number,
        found.st_size, found.st_blksize, found.st_blocks, *(each & _WORD for each in status.times),
    )  # fmt: skip


_LAYOUTS: Final = {
    "x86_64": _x86_64, "ppc64le": _x86_64, "s390x": _s390x,
    "aarch64": _generic, "riscv64": _generic, "loongarch64": _generic,
}  # fmt: skip
