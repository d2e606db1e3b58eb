"""A directory filled with what a stack of layers has, in as few system calls as that takes.

Directories, files and symbolic links are copied by their names in open directories, so that no path is resolved; owner
and permissions are set only where the new file does not have them. (Threads would only wait for the interpreter: a call
for a small file takes a few microseconds.) What needs more than that is left to ``apply.Merged``: devices and pipes,
whatever has a record or extended attributes that layers hold, and owners that the kernel refuses.

Each file becomes a file of its own, also if it has several names. The state of the directory is noted on the way
(``changes.Table``), so that no second walk is needed for it.
"""

from __future__ import annotations

import errno
import marshal
import os
import stat
from collections.abc import Iterator
from typing import Final

import msgspec

from executor.rootfs.entry import Entry, Kind
from executor.rootfs.tree import owner
from executor.rootfs.walker import DIRECTORY
from executor.snapshotter import changes
from executor.snapshotter.apply import CREATE, REFUSED
from executor.snapshotter.changes import Table
from executor.snapshotter.layers import OPAQUE, Directories, Union, is_deletion, mark
from executor.snapshotter.materialise import TreeCopier, failure
from platforms import syscalls

_SOURCE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_PERMISSIONS: Final = 0o777


class Copied(msgspec.Struct, frozen=True):
    """A directory that was filled."""

    table: Table
    """Its state. Rows of directories that lack something of ``left`` are incomplete."""
    left: tuple[bytes, ...]
    """The paths of what is still to be made, or of directories whose metadata is still to be set; parents first."""


class _Place(msgspec.Struct):
    """A directory on the way."""

    path: bytes
    directories: Directories
    """Those of layers that it is the union of, top first."""
    above: _Place | None = None
    row: dict[bytes, bytes] = msgspec.field(default_factory=dict)
    open: int = 1
    """Number of those that can still add to ``row``: the directory itself, and those in it."""


def copy(view: Union, directory: str, top: bytes = b"") -> Copied:
    """Copy what is in the directory ``top`` of ``view`` to ``top`` below ``directory``, which exists and is empty.

    The metadata of ``top`` is set, too, but not that of the directories above. Raises ``BuildError`` and ``StoreError``
    as ``materialise.fill`` does; then the directory holds what was copied so far.
    """
    made = _TreeCopy(view, directory)
    try:
        return made.run(top)
    finally:
        made.close()


class _TreeCopy:
    def __init__(self, view: Union, directory: str) -> None:
        self._view = view
        self._top = os.open(directory, DIRECTORY)
        self._own = os.geteuid(), os.getegid()
        self._lockable = not syscalls.opens_all()
        """Whether permissions can keep this process from its own files."""
        self._copier = TreeCopier()
        self._table: Table = {}
        self._left: list[bytes] = []

    def close(self) -> None:
        os.close(self._top)

    def run(self, top: bytes) -> Copied:
        waiting = [_Place(top, self._view.directories(top))]
        try:
            while waiting:
                waiting += reversed(self._copy(waiting.pop()))
        except OSError as error:
            raise failure(error, self._copier.entry.path) from error
        return Copied(self._table, tuple(sorted(self._left)))

    def _pack(self, place: _Place) -> None:
        """Put the rows of ``place`` and the directories above into the table, of which everything is known now."""
        done: _Place | None = place
        while done is not None:
            done.open -= 1
            if done.open:
                break
            self._table[done.path] = marshal.dumps(done.row)
            done = done.above

    # -- directories

    def _copy(self, place: _Place) -> list[_Place]:
        """Copy what is in ``place``, but only make the directories in it; return these. Set its metadata."""
        at = place.path
        self._copier.entry = Entry(at, Kind.DIRECTORY)
        sources: list[int] = []
        target = -1
        try:
            for each in place.directories:
                sources.append(os.open(each, DIRECTORY))
            target = syscalls.openat2(self._top, os.fsdecode(at) or ".", DIRECTORY, resolve=syscalls.CONFINED)
            below = self._copy_names(place, sources, target)
            place.open += len(below)
            if at and (signature := self._set_directory(at, sources[0], target)) and place.above is not None:
                place.above.row[at.rpartition(b"/")[2]] = signature
            self._pack(place)
        finally:
            for fd in (*sources, target):
                if fd >= 0:
                    os.close(fd)
        return below

    def _copy_names(self, place: _Place, sources: list[int], target: int) -> list[_Place]:
        above = place.path + b"/" if place.path else b""
        below: list[_Place] = []
        for name, source, kind in _found(place.directories, sources):
            path = above + name
            self._copier.entry = Entry(path, Kind.FILE)
            if isinstance(kind, tuple):
                os.mkdir(name, 0o700, dir_fd=target)
                below.append(_Place(path, kind, place))
                continue
            signature = b""
            if self._view.has_record(path):
                pass
            elif kind is Kind.FILE:
                signature = self._file(name, source, target)
            elif kind is Kind.SYMLINK:
                signature = self._link(name, source, target)
            if signature:
                place.row[name] = signature
            else:
                self._left.append(path)
        return below

    def _set_directory(self, path: bytes, source: int, target: int) -> bytes:
        """Set the metadata of the directory ``target``; return its signature, b"" if it is left."""
        status = os.fstat(source)
        if not self._view.has_record(path) and not _has_attributes(source) and self._may(status, stat.S_IRWXU):
            made = self._with_metadata(target, status)
            if made is not None:
                return changes.signature_of(made)
        self._left.append(path)
        return b""

    # -- what is in them

    def _file(self, name: bytes, directory: int, target: int) -> bytes:
        """Copy a file; return its signature, or b"" if it is left."""
        source = os.open(name, _SOURCE, dir_fd=directory)
        try:
            status = os.fstat(source)
            if not stat.S_ISREG(status.st_mode) or _has_attributes(source) or not self._may(status, stat.S_IRUSR):
                return b""
            self._copier.entry = Entry(self._copier.entry.path, Kind.FILE, size=status.st_size, source=name)
            fd = os.open(name, CREATE, status.st_mode & _PERMISSIONS, dir_fd=target)
            try:
                if status.st_size:
                    self._copier.copy(source, fd)
                made = self._with_metadata(fd, status)
            finally:
                os.close(fd)
            return b"" if made is None else changes.signature_of(made)
        finally:
            os.close(source)

    def _link(self, name: bytes, directory: int, target: int) -> bytes:
        """Copy a symbolic link; return its signature, or b"" if it is left."""
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        ids = self._ids(status)
        os.symlink(os.readlink(name, dir_fd=directory), name, dir_fd=target)
        os.utime(name, ns=(status.st_mtime_ns, status.st_mtime_ns), dir_fd=target, follow_symlinks=False)
        made = os.stat(name, dir_fd=target, follow_symlinks=False)
        if (made.st_uid, made.st_gid) != ids:
            try:
                os.chown(name, *ids, dir_fd=target, follow_symlinks=False)
            except OSError as error:
                if error.errno not in REFUSED:
                    raise
                return b""
            made = os.stat(name, dir_fd=target, follow_symlinks=False)
        return changes.signature_of(made)

    # -- metadata

    def _may(self, status: os.stat_result, needed: int) -> bool:
        """Whether this process can do with the file what it has to, which may take permissions."""
        return not self._lockable or status.st_mode & needed == needed

    def _ids(self, status: os.stat_result) -> tuple[int, int]:
        ids = owner(status)
        return self._own if self._own[0] else ids  # where it is not root, its own ids stand for root's

    def _with_metadata(self, fd: int, status: os.stat_result) -> os.stat_result | None:
        """Set those metadata of ``status`` on ``fd`` that it lacks; return its status, or None if that was refused."""
        ids = self._ids(status)
        os.utime(fd, ns=(status.st_mtime_ns, status.st_mtime_ns))
        made = os.fstat(fd)
        if (made.st_uid, made.st_gid) == ids and made.st_mode == status.st_mode:
            return made
        if (made.st_uid, made.st_gid) != ids:
            try:
                os.chown(fd, *ids)
            except OSError as error:
                if error.errno not in REFUSED:
                    raise
                return None
        os.fchmod(fd, stat.S_IMODE(status.st_mode))  # after the owner, whose change clears set-user-id bits
        return os.fstat(fd)


def _found(directories: Directories, sources: list[int]) -> Iterator[tuple[bytes, int, Kind | Directories | None]]:
    """Yield the names in the union of ``directories``, which are open as ``sources``, sorted.

    Each with the source that the topmost thing of that name is in, and what that is: a file, a link, something else
    (None), or the directories that it is the union of.
    """
    listings: list[dict[str, os.DirEntry[str]]] = []
    for source in sources:
        with os.scandir(source) as entries:
            listings.append({each.name: each for each in entries})
    marked = [mark(each, OPAQUE) == b"x" for each in directories]
    for text in sorted(set().union(*listings)):
        name = os.fsencode(text)
        found: Directories = ()
        for index, listing in enumerate(listings):
            entry = listing.get(text)
            if entry is None:
                continue
            host = directories[index] + b"/" + name
            if entry.is_dir(follow_symlinks=False):
                found += (host,)
                if len(listings) > 1 and mark(host, OPAQUE) == b"y":
                    break
                continue
            if not found and (kind := _kind(entry, host, by_attribute=marked[index])) is not Kind.WHITEOUT:
                yield name, sources[index], kind
            break
        if found:
            yield name, -1, found


def _kind(entry: os.DirEntry[str], host: bytes, *, by_attribute: bool) -> Kind | None:
    """Return what is at ``host``, but no directory: a file, a link, a deletion, or None for anything else."""
    if entry.is_symlink():
        return Kind.SYMLINK
    if entry.is_file(follow_symlinks=False) and not by_attribute:
        return Kind.FILE
    status = entry.stat(follow_symlinks=False)
    if is_deletion(status, host, by_attribute=by_attribute):
        return Kind.WHITEOUT
    return Kind.FILE if stat.S_ISREG(status.st_mode) else None


def _has_attributes(fd: int) -> bool:
    """Whether ``fd`` has extended attributes that may be part of a layer, or mean something to an overlay."""
    try:
        names = os.listxattr(fd)
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        return False
    return any(each.startswith("user.") or each == "security.capability" for each in names)
