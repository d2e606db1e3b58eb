"""Layer archives, uncompressed (see ``compress.Decompressed``), unpacked to directories.

``unpack`` fills a directory that overlayfs can use as a lower directory; ``unpack_onto`` applies a layer to a tree of
the layers below; ``extract`` unpacks an archive that is not a layer (ADD's), in which ``.wh.`` has no meaning.
``apply``, ``walker`` and ``tarreader`` say what no archive can do.

One thread reads the archive, and so decompresses it; a second one hashes it; the caller's thread writes.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Callable, Iterable
from typing import Final

import msgspec
from msgspec.structs import replace

from executor.rootfs import tarreader
from executor.rootfs.entry import OPAQUE_NAME, WHITEOUT_PREFIX, Entry, Kind
from executor.rootfs.streams import Ahead, Digest, Readable
from executor.snapshotter import records
from executor.snapshotter.apply import Applier, HandedOver, Lower, Merged, without_attributes
from executor.snapshotter.records import CAPABILITY, Record
from platforms.descriptors import write_all
from platforms.errors import ArchiveError, KanifoldError, StoreError

_AUFS: Final = b".wh..wh."
"""The prefix of AUFS's own files, which Docker ignores."""
_DISK_BLOCK: Final = 4096
_HOST_FAULTS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ENFILE, errno.EMFILE})


Meaning = Callable[[Entry], Entry | None]
"""Returns the entry of the file system for one of the archive; None for one that is not part of it."""


def layer_entry(entry: Entry) -> Entry | None:
    """Return the meaning of ``entry`` in a layer (image-spec layer.md, Whiteouts); None for AUFS's own files."""
    path = entry.path
    at = path.rfind(WHITEOUT_PREFIX)
    if at < 0:
        return entry
    parent, _, name = path.rpartition(b"/")
    if name == OPAQUE_NAME:
        return Entry(parent, Kind.OPAQUE)
    if path.startswith(_AUFS) or b"/" + _AUFS in path:
        return None
    if not name.startswith(WHITEOUT_PREFIX):
        return entry
    name = name[len(WHITEOUT_PREFIX) :]
    if name in (b"", b".", b".."):
        raise ArchiveError(f"archive refused at {os.fsdecode(path)}", why="it deletes a directory from inside")
    return replace(entry, path=parent + b"/" + name if parent else name, kind=Kind.WHITEOUT, size=0)


class UnpackLimits(msgspec.Struct, frozen=True):
    """Maximum size of a layer."""

    size: int = 64 << 30
    """Maximum number of bytes of file content, holes of sparse files included."""
    entries: int = 5_000_000


class Unpacked(msgspec.Struct, frozen=True):
    """The result of unpacking an archive."""

    diff_id: str
    """The digest of the whole stream, ``sha256:`` and hexadecimal digits. The caller compares it."""
    size: int
    """Number of bytes of file content."""
    occupied: int
    """Number of bytes on disk: content of files, and directories, in blocks of 4 KiB."""
    entries: int
    implicit: tuple[bytes, ...] = ()
    """Directories without an entry in the archive, which were created (root's, mode 0755, time 0)."""
    needs_parents: bool = False
    """Whether the result is only right on top of the layers below: it has implicit directories, whose metadata is
    theirs; hard links to their files, which were left out; or a mark that hides all of them."""
    records: tuple[Record, ...] = ()
    """Metadata that the kernel refused to set."""
    given: frozenset[bytes] = frozenset()
    """Directories with an entry in the archive: earlier records of their metadata are no longer valid."""
    links: tuple[tuple[bytes, bytes], ...] = ()
    """Hard links to files of the layers below, each with the path of the file."""

    def recorded_onto(self, carried: Iterable[Record], of: Callable[[bytes], Record | None]) -> tuple[Record, ...]:
        """Return the records of the tree after the archive was applied: those of ``carried`` still valid, and new ones.

        ``of`` returns what was recorded of a path before.
        """
        found = {each.path: each for each in carried if each.path not in self.given}
        for path, target in self.links:
            if (record := of(target)) is not None:
                found[path] = replace(record, path=path)
        return tuple((found | {each.path: each for each in self.records}).values())


def unpack(stream: Readable, directory: str, *, limits: UnpackLimits, meant: Meaning = layer_entry) -> Unpacked:
    """Unpack the layer archive ``stream`` to ``directory``, which is empty. ``meant`` is that of the layer's form.

    The directory can become a lower directory of an overlay mount with ``userxattr``. What the kernel refused is
    recorded beside it (see ``records``). Nothing is synced; after an error the directory holds what was unpacked so
    far. Raises ``ArchiveError`` for an archive that is damaged, hostile or larger than ``limits``, ``StoreError`` if
    the disk is full or fails.
    """
    with Lower(directory) as lower:
        counts = _apply_all(stream, lower, limits, meant)
        implicit = lower.implicit
        needs_parents = bool(implicit) or lower.incomplete
        records.write(directory, lower.records)
        return Unpacked(*counts, implicit, needs_parents, lower.records)


def unpack_onto(
    stream: Readable, directory: str, *, limits: UnpackLimits, meant: Meaning = layer_entry, devices: bool = True
) -> Unpacked:
    """Apply the layer archive that ``stream`` gives to the tree in ``directory``; otherwise as ``unpack``.

    The tree is an overlay mount of the layers below (see ``stack``), or a plain directory that they were applied to.
    What the kernel has refused is only in the result.
    """
    with Merged(directory, devices=devices) as merged:
        counts = _apply_all(stream, merged, limits, meant)
        return Unpacked(
            *counts, merged.implicit, records=merged.records, given=merged.given, links=tuple(merged.links.items())
        )


def extract(stream: Readable, directory: str, *, limits: UnpackLimits) -> Unpacked:
    """Unpack an archive that is not a layer to ``directory``, which is empty; otherwise as ``unpack``.

    What the kernel refused is only in the result.
    """
    with Lower(directory) as lower:
        counts = _apply_all(stream, lower, limits, _of_here)
        if lower.incomplete:
            raise ArchiveError("archive refused", why="it has a hard link to a file that is not in it before the link")
        return Unpacked(*counts, lower.implicit, records=lower.records)


def hand_over(stream: Readable, directory: str, *, limits: UnpackLimits) -> None:
    """Unpack the archive of a whole file system into ``directory``, as files of this process's user.

    Existing files stay, unless an entry replaces them. Owners are dropped, and with them whatever grants the owner's
    rights: set-user-id and set-group-id bits, file capabilities, and devices. They would be those of this user, perhaps
    root, on this machine, where anyone may execute or open them. Raises as ``unpack`` does.
    """
    uid, gid = os.geteuid(), os.getegid()
    devices: set[bytes] = set()

    def meant(entry: Entry) -> Entry | None:
        if entry.kind in (Kind.CHARACTER, Kind.BLOCK) or (entry.kind is Kind.HARDLINK and entry.link in devices):
            devices.add(entry.path)
            return None
        xattrs = tuple(each for each in _of_here(entry).xattrs if each[0] != CAPABILITY)
        mode = entry.mode & ~(stat.S_ISUID | stat.S_ISGID)
        return replace(entry, uid=uid, gid=gid, mode=mode, xattrs=xattrs)

    with HandedOver(directory) as applier:
        _apply_all(stream, applier, limits, meant)


def _apply_all(stream: Readable, applier: Applier, limits: UnpackLimits, meant: Meaning) -> tuple[str, int, int, int]:
    """Apply all entries, as ``meant`` translates them; return the first four fields of ``Unpacked``."""
    digest = Digest()
    content = _Content()
    size = blocks = count = 0
    try:
        with Ahead(stream) as ahead:
            for member in tarreader.read(_Tapped(ahead, digest)):
                count += 1
                size += member.entry.size
                if size > limits.size or count > limits.entries:
                    raise ArchiveError(
                        "archive too large",
                        why=f"it holds more than {limits.size} bytes, or more than {limits.entries} entries",
                        remedy="raise the limit if this is not an attack",
                    )
                blocks += -(-member.stored // _DISK_BLOCK) + (member.entry.kind is Kind.DIRECTORY)
                entry = meant(member.entry)
                if entry is not None:
                    content.member = member
                    try:
                        applier.apply(entry, content.write)
                    except OSError as error:
                        raise _failure(error, entry.path) from error
            applier.finish()
    except OSError as error:
        raise _failure(error, b"") from error
    finally:
        diff_id = digest.finish()
    return diff_id, size, blocks * _DISK_BLOCK, count


def _of_here(entry: Entry) -> Entry:
    """Return ``entry`` as a file of this machine can be: extended attributes in archives are Linux's."""
    return entry if sys.platform == "linux" or not entry.xattrs else replace(entry, xattrs=())


class _Tapped:
    """A stream whose bytes are also hashed."""

    def __init__(self, stream: Readable, digest: Digest) -> None:
        self._read = stream.read
        self._update = digest.update

    def read(self, size: int, /) -> bytes:
        data = self._read(size)
        if data:
            self._update(data)
        return data


class _Content:
    """The content of the present member, for a file."""

    member: tarreader.Member

    def __init__(self) -> None:
        self._fd = -1

    def write(self, fd: int) -> None:
        """Write the content to the new file ``fd``, leaving holes of a sparse file."""
        self._fd = fd
        member = self.member
        if member.regions is None:
            member.copy_stored(member.stored, self._take)
            return
        for offset, length in member.regions:
            os.lseek(fd, offset, os.SEEK_SET)
            member.copy_stored(length, self._take)
        os.ftruncate(fd, member.entry.size)

    def _take(self, view: memoryview) -> None:
        write_all(self._fd, view)


def _failure(error: OSError, path: bytes) -> KanifoldError:
    at = f" at {os.fsdecode(path)}" if path else ""
    if error.errno == errno.ENOTSUP:
        return without_attributes(f"cannot unpack{at}")
    if error.errno in _HOST_FAULTS:
        remedy = "make room, or use another directory" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        return StoreError(f"cannot unpack{at}", why=error.strerror or str(error), remedy=remedy)
    return ArchiveError(f"archive refused{at}", why=error.strerror or str(error))
