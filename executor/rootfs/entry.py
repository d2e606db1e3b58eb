"""An object of a layer's file system, as data.

A layer (image-spec layer.md) is a set of entries. ``tarwriter`` writes them to a tar archive and ``tarreader`` reads
them from one; ``executor.snapshotter`` keeps them as directories.
"""

from __future__ import annotations

import enum
import stat
from typing import Final

import msgspec
from msgspec.structs import replace


class Kind(enum.Enum):
    """The kind of an entry."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    HARDLINK = "hard link"
    CHARACTER = "character device"
    BLOCK = "block device"
    FIFO = "fifo"
    WHITEOUT = "whiteout"
    """The path is deleted from the lower layers; ``.wh.NAME`` in a tar archive."""
    OPAQUE = "opaque"
    """The content that the lower layers have in the directory ``path`` is hidden; ``.wh..wh..opq`` in a tar archive.
    The directory has an entry of its own."""

    # Members are singletons, so identity is all the hash they need; Enum's own hashes the name, in Python.
    __hash__ = object.__hash__


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """A path of a layer.

    ``path`` is relative to the root, without a leading slash and dot components; ``b""`` is the root itself. Names are
    bytes, as in file systems.
    """

    path: bytes
    kind: Kind
    mode: int = 0o644
    """Permission bits including setuid, setgid and sticky (``0o7777``)."""
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    """Nanoseconds since the epoch; an archive keeps whole seconds, rounded down."""
    size: int = 0
    """Size in bytes of a FILE."""
    link: bytes = b""
    """The text of a symbolic link, or the target of a hard link: a path relative to the root."""
    device: tuple[int, int] = (0, 0)
    """Major and minor number of a CHARACTER or BLOCK device."""
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    """Extended attributes by full name (``security.capability``), sorted."""
    source: bytes = b""
    """The path on this host of the content of a FILE. It is opened without following a link."""
    inode: tuple[int, int] = (0, 0)
    """Device and inode number of a file with several names; not of directories."""
    digest: str = ""
    """SHA-256 of the content of a FILE in hexadecimal digits, once it has been read."""
    stamp: bytes = b""
    """The stat signature of ``source`` before it was read (``executor.store.stat_cache``), if that may change."""


def hard_link(entry: Entry, path: bytes, target: bytes) -> Entry:
    """Return ``path`` as a hard link to ``target``, where ``entry`` is that file, or another link to it.

    A link has the file's owner, mode and times. Content and extended attributes are in the target's own entry, which
    comes before it.
    """
    return replace(
        entry,
        path=path,
        kind=Kind.HARDLINK,
        link=target,
        size=0,
        source=b"",
        xattrs=(),
        digest="",
        stamp=b"",
    )


WHITEOUT_PREFIX: Final = b".wh."
OPAQUE_NAME: Final = b".wh..wh..opq"

KIND_OF_MODE: Final = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFCHR: Kind.CHARACTER,
    stat.S_IFBLK: Kind.BLOCK,
    stat.S_IFIFO: Kind.FIFO,
}
"""The kind by ``S_IFMT(st_mode)``; there is none for sockets."""
