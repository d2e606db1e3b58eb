"""Access control lists of files (acl(5)), in the form that the kernel has them in extended attributes.

A list is a header of 4 bytes with the version, 2, and entries of 8 bytes: tag, permissions (16 bits each) and id (32
bits), little-endian (linux/posix_acl_xattr.h). A directory with a default list hands it down to what is made in it,
and then the umask does not apply (acl(5), "OBJECT CREATION AND DEFAULT ACLs").
"""

from __future__ import annotations

import os
import struct
from typing import Final

ACCESS: Final = b"system.posix_acl_access"
DEFAULT: Final = b"system.posix_acl_default"

_HEADER: Final = 4
_ENTRY: Final = struct.Struct("<HHI")
_OWNER: Final = 0x01
_GROUP: Final = 0x04
_MASK: Final = 0x10
_OTHER: Final = 0x20


def default_of(directory: bytes | int) -> bytes:
    """Return the default list of ``directory``, a path or a descriptor that is open for reading; b"" if it has none."""
    try:
        return os.getxattr(directory, DEFAULT)
    except OSError:
        return b""


def permitted(mode: int, umask: int, default: bytes) -> int:
    """Return what a new file that is asked for with ``mode`` has in a directory with the ``default`` list."""
    if not default:
        return mode & ~umask
    found: dict[int, int] = {tag: permissions for tag, permissions, _ in _ENTRY.iter_unpack(default[_HEADER:])}
    group = found.get(_MASK, found.get(_GROUP, 0))
    return mode & (~0o777 | found.get(_OWNER, 0) << 6 | group << 3 | found.get(_OTHER, 0))


def with_owner(access: bytes, mode: int) -> bytes:
    """Return the list ``access`` with the permissions that ``mode`` has for the owner."""
    entries = (
        (tag, mode >> 6 & 7 if tag == _OWNER else permissions, id_)
        for tag, permissions, id_ in _ENTRY.iter_unpack(access[_HEADER:])
    )
    return access[:_HEADER] + b"".join(_ENTRY.pack(*each) for each in entries)
