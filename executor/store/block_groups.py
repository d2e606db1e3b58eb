"""Block groups: the parts of a disk in which ext4 puts the files of a directory beside each other."""

from __future__ import annotations

import fcntl
import os
import struct
import sys
from typing import Final

_GET_FLAGS: Final = 0x80086601
"""linux/fs.h: FS_IOC_GETFLAGS, _IOR('f', 1, long); what is passed is an int."""
_SET_FLAGS: Final = 0x40086602
"""linux/fs.h: FS_IOC_SETFLAGS, _IOW('f', 2, long)"""
_TOP_OF_HIERARCHIES: Final = 0x00020000
"""linux/fs.h: FS_TOPDIR_FL, attribute T of chattr(1)"""


def spread(directory: str) -> None:
    """Have ext4 put each new directory in ``directory`` into a block group of its own, chosen by its name.

    Its files are put beside it. Without a journal ext4 passes over the inodes that were freed in the last minutes, one
    by one, whenever it looks for one (fs/ext4/ialloc.c, recently_deleted): where a large tree was just removed, a new
    file takes a millisecond. Other file systems do not have the attribute; nothing is done then.
    """
    if sys.platform != "linux":
        return
    here = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        flags = bytearray(4)
        fcntl.ioctl(here, _GET_FLAGS, flags)
        fcntl.ioctl(here, _SET_FLAGS, struct.pack("=I", struct.unpack("=I", flags)[0] | _TOP_OF_HIERARCHIES))
    except OSError:
        pass
    finally:
        os.close(here)
