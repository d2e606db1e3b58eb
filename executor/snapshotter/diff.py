"""The changes in an overlay upper directory, as entries.

The result is what a comparison of the two trees would give, not what overlayfs happened to store, so that a step's
layer is the same however its file system was mounted, and the same as BuildKit's (util/overlay and containerd's change
writer): an opaque directory becomes deletions of what it hides; a file that was copied up or created again, but is
unchanged, is left out; a directory's own time is no change, but a directory that holds changes has an entry; sockets
are left out.

An entry is unchanged if kind, mode, owner, device numbers and extended attributes are the same; for anything but
directories, also the size, the time in whole seconds (all that an archive keeps), and the content.

Extended attributes are recorded when they mean something in another machine's container: ``security.capability`` and
``user.*``. Access control lists and labels belong to the host.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from typing import Final, Protocol, TypeVar

import msgspec

from executor.rootfs.entry import KIND_OF_MODE, Entry, Kind, hard_link
from executor.rootfs.tree import owner
from executor.snapshotter import layers, records
from executor.snapshotter.layers import OPAQUE, Directories, UnionEntry, is_deletion, look
from executor.snapshotter.records import Read, Records, Stack
from platforms.errors import EnvironmentUnfit

_BLOCK: Final = 256 << 10
_REDIRECTS: Final = (b"user.overlay.redirect", b"user.overlay.metacopy")
_RECORDED: Final = (b"user.", b"security.capability")
"""Attributes that are read: those to record, and those to look at."""

Xattrs = tuple[tuple[bytes, bytes], ...]


def scan(upper: str, lowers: Sequence[str], recorded: Read = records.read) -> Iterator[Entry]:
    """Yield the changes in the directory ``upper`` over ``lowers``, top first, in canonical order.

    Memory holds the names in the directories on the current path, and the hard links. ``source`` of a FILE is its path
    below ``upper``, which must not change. The records of these directories (see ``records``) are applied, those of
    ``lowers`` as ``recorded`` reads them. Raises ``EnvironmentUnfit`` when the overlay was mounted with
    ``redirect_dir`` or ``metacopy``, whose directories are only valid under that mount.
    """
    scan = _Scan(os.fsencode(os.path.abspath(upper)), records.read(upper), Stack(lowers, recorded))
    return scan.run(tuple(map(os.fsencode, lowers)))


class Place(msgspec.Struct):
    """A directory on the current path of a walk."""

    path: bytes
    names: list[bytes]
    """Names that were not visited yet, last first."""
    changed: bool = False


D = TypeVar("D", bound=Place)


class Walk(Protocol[D]):
    """Compares names in a directory with what they were before."""

    def look(self, here: D, name: bytes) -> D | Entry | None:
        """Return None if ``name`` in ``here`` is unchanged, an entry for a change, or a directory to descend into."""
        ...

    def entry(self, here: D) -> Entry:
        """Return the entry of the directory ``here``, which is not the root."""
        ...


def changes(walk: Walk[D], top: D) -> Iterator[Entry]:
    """Yield the changes that ``walk`` finds in and below the directory ``top``, in canonical order.

    A directory has an entry if it has changed or holds changes.
    """
    waiting = [top]
    unsaid: list[D] = []  # directories on the path without an entry so far, as no change was found in them
    while waiting:
        here = waiting[-1]
        if not here.names:
            waiting.pop()
            if unsaid and unsaid[-1] is here:
                unsaid.pop()
            continue
        found = walk.look(here, here.names.pop())
        if found is None:
            continue
        if isinstance(found, Place):
            waiting.append(found)
            unsaid.append(found)
            if not found.changed:
                continue
        yield from map(walk.entry, unsaid)
        unsaid.clear()
        if isinstance(found, Entry):
            yield found


class HardLinks:
    """Paths of files with several names, by inode."""

    def __init__(self) -> None:
        self._inodes: dict[tuple[int, int], Entry] = {}

    def linked(self, entry: Entry, status: os.stat_result) -> Entry:
        """Return ``entry``, or a hard link to the first path of its inode."""
        if status.st_nlink < 2:
            return entry
        first = self._inodes.setdefault((status.st_dev, status.st_ino), entry)
        return entry if first is entry else hard_link(first, entry.path, first.path)


class _Scan:
    def __init__(self, upper: bytes, recorded: Records, below: Stack) -> None:
        self._upper = upper
        self._records = recorded
        self._records_below = below
        self._links = HardLinks()

    def run(self, lowers: Directories) -> Iterator[Entry]:
        deletions = layers.mark(self._upper, OPAQUE) == b"x"
        return changes(self, _Directory(b"", self._names(b""), below=lowers, deletions=deletions))

    def _names(self, path: bytes) -> list[bytes]:
        """What is in the directory ``path``, last name first."""
        return sorted(os.listdir(self._upper + b"/" + path), reverse=True)

    def look(self, here: _Directory, name: bytes) -> _Directory | Entry | None:
        path = here.path + b"/" + name if here.path else name
        host = self._upper + b"/" + path
        try:
            status = os.lstat(host)
        except FileNotFoundError:
            status = None  # a name of the layers below, in a directory that hides them
        xattrs = xattrs_of(host, status) if status is not None else ()
        below = look(here.below, name)
        if status is None or is_deletion(status, host, by_attribute=here.deletions):
            return Entry(path, Kind.WHITEOUT, mode=0) if below.status is not None else None
        attributes = dict(xattrs)
        for key in _REDIRECTS if attributes else ():
            if key in attributes:
                raise EnvironmentUnfit(
                    f"cannot tell what changed in {os.fsdecode(path)}",
                    why=f"overlayfs keeps {os.fsdecode(key)} on it",
                    remedy="mount overlays with redirect_dir=off,metacopy=off",
                )
        entry = self._entry(path, host, status, xattrs)
        if entry is None:
            return None
        if entry.kind is not Kind.DIRECTORY:
            return self._links.linked(entry, status) if below.status is None or not self._same(entry, below) else None
        opaque = attributes.get(OPAQUE, b"")
        # Below a directory that is new in an opaque one, nothing of the layers below shows through either.
        hiding = here.hiding or opaque == b"y"
        names = self._names(path)
        if hiding and below.directories:
            names = sorted({*names, *layers.names(below.directories)}, reverse=True)
        changed = below.status is None or not self._same(entry, below)
        return _Directory(path, names, changed, entry, below.directories, hiding, deletions=opaque == b"x")

    def entry(self, here: _Directory) -> Entry:
        return here.entry

    def _entry(self, path: bytes, host: bytes, status: os.stat_result, xattrs: Xattrs) -> Entry | None:
        """What is at ``host``, as it is meant; None for a socket."""
        entry = read(path, host, status, xattrs)
        return None if entry is None else records.applied(entry, self._records.get(path))

    def _same(self, entry: Entry, below: UnionEntry) -> bool:
        """Whether ``entry`` is what the layers below have in its place."""
        old = entry_below(entry.path, below, self._records_below)
        return old is not None and same(entry, old)


def entry_below(path: bytes, found: UnionEntry, recorded: Stack) -> Entry | None:
    """What layers have at ``path``, where a union of them has ``found``; None for nothing, and for a socket."""
    if found.status is None:
        return None
    entry = read(path, found.host, found.status, xattrs_of(found.host, found.status))
    layer = found.host[: -len(path) - 1]
    return None if entry is None else records.applied(entry, recorded.in_layer(layer, path) if recorded else None)


def same(entry: Entry, old: Entry) -> bool:
    """Whether ``entry`` is no change to ``old``, which has its path."""
    if old.kind is not entry.kind:
        return False
    if (old.mode, old.uid, old.gid, old.device, old.xattrs) != (
        entry.mode,
        entry.uid,
        entry.gid,
        entry.device,
        entry.xattrs,
    ):
        return False
    if entry.kind is Kind.DIRECTORY:
        return True
    if (old.size, old.link) != (entry.size, entry.link):
        return False
    if old.mtime_ns // 1_000_000_000 != entry.mtime_ns // 1_000_000_000:
        return False
    return entry.kind is not Kind.FILE or not entry.size or _same_content(old.source, entry.source)


class _Directory(Place):
    """A directory on the current path of the scan."""

    entry: Entry = Entry(b"", Kind.DIRECTORY)
    below: Directories = ()
    hiding: bool = False
    """Nothing of the layers below shows through."""
    deletions: bool = False
    """Deletions in it may be files with an extended attribute (Linux 6.7)."""


def xattrs_of(host: bytes, status: os.stat_result) -> Xattrs:
    """The extended attributes of a file or directory that are worth a look; other things cannot have any."""
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        return ()
    try:
        names = os.listxattr(host, follow_symlinks=False)
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        names = []
    if not names:
        return ()
    found = []
    for each in names:
        name = os.fsencode(each)
        if name.startswith(_RECORDED):
            found.append((name, os.getxattr(host, name, follow_symlinks=False)))
    return tuple(sorted(found))


def read(path: bytes, host: bytes, status: os.stat_result, xattrs: Xattrs) -> Entry | None:
    """Return the file at ``host`` as an entry ``path``, without its record; None for a socket."""
    kind = KIND_OF_MODE.get(stat.S_IFMT(status.st_mode))
    if kind is None:
        return None
    is_file = kind is Kind.FILE
    device = (0, 0)
    if kind is Kind.CHARACTER or kind is Kind.BLOCK:
        device = os.major(status.st_rdev), os.minor(status.st_rdev)
    return Entry(
        path,
        kind,
        stat.S_IMODE(status.st_mode),
        *owner(status),
        status.st_mtime_ns,
        status.st_size if is_file else 0,
        os.readlink(host) if kind is Kind.SYMLINK else b"",
        device,
        xattrs,
        host if is_file else b"",
    )


def _same_content(one: bytes, other: bytes) -> bool:
    with open(one, "rb") as a, open(other, "rb") as b:
        while data := a.read(_BLOCK):
            if data != b.read(_BLOCK):
                return False
        return not b.read(1)
