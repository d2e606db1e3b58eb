"""Archives that ADD extracts, recognised by their content and not by their name.

What is an archive is BuildKit's rule (solver/llbsolver/file/unpack.go): a regular file that is, or decompresses to
(gzip, bzip2, xz, zstd), data that begins with a tar header. An empty archive has no header and is an ordinary file. How
it is extracted is Docker's rule: ``.wh.`` names are ordinary names, and an entry of the root is ignored.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress

import msgspec

from executor.rootfs import tarreader
from executor.rootfs.compress import Decompressed
from executor.snapshotter.records import Record
from executor.snapshotter.unpack import UnpackLimits
from executor.snapshotter.unpack import extract as unpack_archive
from platforms.errors import ArchiveError, ContextError


class Extracted(msgspec.Struct, frozen=True):
    """What cannot be seen in the directory to which an archive was extracted."""

    implicit: tuple[bytes, ...]
    """Directories without an entry in the archive: if they exist at the destination, they keep their metadata."""
    records: tuple[Record, ...]
    """Metadata that the kernel refused to set."""


def is_archive(path: str | bytes) -> bool:
    """Whether ADD extracts the file ``path``. False for anything but a regular file, links included.

    Raises ``ContextError`` if the file cannot be read.
    """
    fd = _open(path)
    if fd is None:
        return False
    with os.fdopen(fd, "rb", buffering=0) as file, suppress(ArchiveError):
        return tarreader.is_header(_first_block(Decompressed(file, limit=UnpackLimits().size)))
    return False


def extract(path: str | bytes, directory: str) -> Extracted | None:
    """Extract the archive ``path`` into ``directory``, which is empty; None if it is not an archive.

    Raises ``ArchiveError`` for an archive that is damaged or hostile. The directory then holds the entries before the
    fault and has to be removed: a file that begins as an archive is never treated as an ordinary file.
    """
    if not is_archive(path):
        return None
    fd = _open(path)
    if fd is None:
        raise ContextError(f"cannot read {os.fsdecode(path)}", why="it changed while it was being read")
    limits = UnpackLimits()
    with os.fdopen(fd, "rb", buffering=0) as file:
        # Twice the content: names, padding and headers take room as well, and an archive may be made of them alone.
        unpacked = unpack_archive(Decompressed(file, limit=2 * limits.size), directory, limits=limits)
    return Extracted(unpacked.implicit, unpacked.records)


def _open(path: str | bytes) -> int | None:
    """Return a descriptor of the regular file ``path``; None if it is something else."""
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            return None
        # Non-blocking, for a fifo that takes the file's place now would hang the build.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ContextError(f"cannot read {os.fsdecode(path)}", why=error.strerror or str(error)) from error
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    return None


def _first_block(stream: Decompressed) -> bytes:
    block = b""
    while len(block) < 512 and (piece := stream.read(512 - len(block))):
        block += piece
    return block
