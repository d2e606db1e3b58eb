"""Arguments of system calls whose form depends on the interface that a program uses, 32 bits wide or 64."""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from executor.sandbox.listener import SystemCall

SHORT: Final = ("i386", "arm")
"""Architectures with words of 32 bits, and calls that take ids of 16."""


def owners(call: SystemCall, uid: int, gid: int) -> tuple[int, int]:
    """Return the ids that a call which changes owners is given; -1 for one that stays."""
    short = call.architecture in SHORT and call.name in ("chown", "lchown", "fchown")
    return _id(uid, 16 if short else 32), _id(gid, 16 if short else 32)


def _id(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return -1 if value == (1 << bits) - 1 else value


def times(call: SystemCall, buffer: int, read: Callable[[SystemCall, int, int], bytes]) -> bytes:
    """Return the struct timespec of access and modification that a call has at ``buffer``.

    ``read`` returns bytes of its caller's memory. Raises OSError.
    """
    short = call.architecture in SHORT and call.name != "utimensat_time64"
    kind = "2i" if short else "2q"
    if call.name == "utime":
        accessed, modified = struct.unpack(f"={kind}", read(call, buffer, struct.calcsize(f"={kind}")))
        return struct.pack("=4q", accessed, 0, modified, 0)
    pair = struct.Struct(f"={kind}")
    (one, part), (two, other) = (pair.unpack(read(call, buffer + index * pair.size, pair.size)) for index in range(2))
    if not call.name.startswith("utimensat"):
        if not (0 <= part < 1_000_000 and 0 <= other < 1_000_000):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        part, other = part * 1000, other * 1000
    return struct.pack("=4q", one, part, two, other)
