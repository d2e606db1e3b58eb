"""Archives that ADD takes apart: told by their content, never by their name.

What counts as one is BuildKit's rule (solver/llbsolver/file/unpack.go): a regular file that is, or decompresses to
(gzip, bzip2, xz, zstd), something that begins with a tar header. An empty archive has no header, so it is a file like
any other. What an archive means is Docker's: ``.wh.`` names are names, the root's own entry says nothing.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress

import msgspec

from executor.rootfs import tarreader
from executor.rootfs.compress import Decompressed
from executor.snapshotter.records import Record
from executor.snapshotter.unpack import Limits
from executor.snapshotter.unpack import extract as unpack_archive
from platforms.errors import ArchiveError, ContextError


class Extracted(msgspec.Struct, frozen=True):
    """What an archive left in its directory, apart from what can be seen there."""

    implicit: tuple[bytes, ...]
    """Directories that the archive does not describe: where one exists at the destination, it keeps its metadata."""
    records: tuple[Record, ...]
    """What the kernel has refused to set."""


def is_archive(path: str | bytes) -> bool:
    """Whether ADD would take the file ``path`` apart. False for anything that is no regular file, links included.

    Raises ``ContextError`` when the file cannot be read.
    """
    fd = _open(path)
    if fd is None:
        return False
    with os.fdopen(fd, "rb", buffering=0) as file, suppress(ArchiveError):
        return tarreader.is_header(_first_block(Decompressed(file, limit=Limits().size)))
    return False


def extract(path: str | bytes, directory: str) -> Extracted | None:
    """Take the archive ``path`` apart into ``directory``, which is empty; None when it is no archive.

    Raises ``ArchiveError`` for an archive that is broken or hostile, in which case the directory holds what came before
    the fault and is to be thrown away: a file that begins as an archive is never taken for something else.
    """
    if not is_archive(path):
        return None
    fd = _open(path)
    if fd is None:
        raise ContextError(f"cannot read {os.fsdecode(path)}", why="it changed while it was being read")
    limits = Limits()
    with os.fdopen(fd, "rb", buffering=0) as file:
        # Twice the content: names, padding and headers take room as well, and an archive may be made of them alone.
        unpacked = unpack_archive(Decompressed(file, limit=2 * limits.size), directory, limits=limits)
    return Extracted(unpacked.implicit, unpacked.records)


def _open(path: str | bytes) -> int | None:
    """A descriptor of the regular file ``path``; None when it is something else."""
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
