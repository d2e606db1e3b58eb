"""The snapshotter of plain directories: the steps of a stage write to one directory, one after another.

The directory is made of copies (reflinks, if the file system has them) of the files of the layers when the first step
needs it, and compared before and after each step (``changes``). The changes become a snapshot in the usual format, so
that a store serves both snapshotters and the bytes of a layer do not depend on the snapshotter. Nothing is mounted: a
view is a ``layers.Union``.

Unused roots are kept with the stack of snapshots that they are equal to. A later request for a stack that begins with
these gets the root, after the missing snapshots were applied. An earlier state that is needed again is made anew.

In an overlay, a change to a file through one of its names does not affect the others. To give the same result, a file
with several names in a layer becomes one file for each name in a root.
"""

from __future__ import annotations

import contextlib
import functools
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import msgspec

from executor.rootfs.entry import Entry, Kind
from executor.snapshotter import changes, diff, records, tree_copy
from executor.snapshotter.apply import Merged
from executor.snapshotter.changes import Comparison, SharedFiles, Table
from executor.snapshotter.inplace import Before, wait_for_clock_tick
from executor.snapshotter.layers import Union
from executor.snapshotter.materialise import fill, finish
from executor.snapshotter.records import Read, Stack
from executor.snapshotter.rootfs import Directory
from executor.snapshotter.snapshotter import ActiveRoot, Mounted, Parents, make_mount_points, stacked
from executor.snapshotter.unpack import Meaning, Unpacked, UnpackLimits, unpack_onto
from executor.store import faults, removal, snapshots
from executor.store.snapshots import Snapshot
from executor.store.store import spread
from platforms import syscalls
from platforms.errors import BuildError, KanifoldError
from platforms.paths import below

if TYPE_CHECKING:
    from executor.rootfs.streams import Readable
    from executor.store.store import Store

_KEPT: Final = 8
"""Maximum number of unused roots."""

_REMOVING: Final = 2
"""Number of threads that remove a root: the kernel's part of that is largest, and parts of it wait for the disk."""

_ATTRIBUTES: Final = ("user.", "system.posix_acl_")
"""Prefixes of the extended attributes of directories that a step can set (xattr(7))."""


class _Root(msgspec.Struct):
    """A root directory ``fs``. It is in ``directory``, with its records."""

    directory: str
    fs: str
    state: tuple[int, ...] = ()
    """The numbers of the snapshots that it is equal to, bottom first."""
    table: Table = {}
    settled: int = 0
    """When the table was complete, and nothing in the root was changed any more; nanoseconds since the epoch."""


class Plain:
    """``Snapshotter``."""

    def __init__(self, store: Store, directory: str, *, mounts: bool = True) -> None:
        self._store = store
        self._directory = directory
        self._mounts = mounts
        """Whether this process can mount anything, so that no device in a root can be opened."""
        spread(directory)
        self._empty = self._new().fs
        self._lock = threading.Lock()
        self._views: dict[tuple[str, ...], Union] = {}
        self._free: list[_Root] = []
        self._used: dict[str, _Root] = {}
        self._copying = threading.Lock()
        self._copies: dict[tuple[tuple[str, ...], bytes], str] = {}
        self.recorded: Read = functools.cache(records.read)
        """Cached reading of a snapshot's records, which do not change while the job leases it."""

    def view(self, parents: Parents) -> Union:
        directories = stacked(parents)
        with self._lock:
            view = self._views.get(directories)
            if view is None:
                view = self._views[directories] = Union(directories or (self._empty,), self.recorded)
            return view

    # -- roots

    def prepare(self, parents: Parents) -> ActiveRoot:
        with faults.translated(self._store.root, "cannot prepare the files of a step"):
            root = self._taken(parents)
            try:
                _reset(root.fs)
                wait_for_clock_tick(root.settled)
                active = ActiveRoot(Directory(root.fs), parents, snapshots.prepare(self._store))
            except BaseException:
                _remove(root)
                raise
        with self._lock:
            self._used[root.fs] = root
        return active

    def add_mount_points(self, active: ActiveRoot, made_ns: int) -> None:
        make_mount_points(self.view(active.parents), written(active), made_ns)

    def apply(self, active: ActiveRoot, stream: Readable, limits: UnpackLimits, meant: Meaning) -> Unpacked:
        directory = written(active)
        before = Before(directory, wait_for_clock_tick())
        unpacked = unpack_onto(stream, directory, limits=limits, meant=meant, devices=self._mounts)
        records.rewrite(directory, unpacked.recorded_onto(before.carried(), records.read(directory).get))
        return unpacked

    def commit(self, active: ActiveRoot, *, keys: tuple[str, ...], description: str = "") -> Snapshot:
        root = self._used[written(active)]
        before = changes.Baseline(
            root.table, self.view(active.parents), Stack(stacked(active.parents), self.recorded), self._by_ctime
        )
        comparison = Comparison(root.fs, before, records.read(root.fs))
        made = finish(self._store, active.snapshot, comparison.entries(), keys=keys, description=description)
        del self._used[root.fs]
        try:
            root.table = comparison.table
            self._separate(root, comparison.shared)
            root.settled = time.time_ns()
        except (OSError, KanifoldError):  # the snapshot is there, and its root can be made anew
            _remove(root)
            return made
        root.state = (*root.state, made.number)
        self._keep(root)
        return made

    def remove(self, active: ActiveRoot) -> None:
        root = self._used.pop(written(active), None)
        if root is not None:
            _remove(root)
        snapshots.discard(self._store, active.snapshot)
        self._give_room()  # what the step lacked may have been that

    @functools.cached_property
    def _by_ctime(self) -> bool:
        root = self._new()
        try:
            return changes.sees_mapped_writes(root.directory)
        finally:
            _remove(root)

    def _taken(self, parents: Parents) -> _Root:
        """Return a root that is equal to ``parents``: an unused one, or a new one."""
        wanted = tuple(each.number for each in parents)
        with self._lock:
            fitting = [each for each in self._free if each.state == wanted[: len(each.state)]]
            root = max(fitting, key=lambda each: len(each.state), default=None)
            if root is not None:
                self._free.remove(root)
        while True:
            try:
                root = root or self._made(parents)
                self._advance(root, parents)
            except BaseException as error:
                if root is not None:
                    _remove(root)
                if not isinstance(error, Exception) or not faults.is_full(error) or not self._give_room():
                    raise
                root = None
            else:
                return root

    def _made(self, parents: Parents) -> _Root:
        """Return a new root that is equal to ``parents``."""
        root = self._new()
        try:
            self._fill(root, self.view(parents))
        except BaseException:
            _remove(root)
            raise
        root.state = tuple(each.number for each in parents)
        root.settled = time.time_ns()
        return root

    def _fill(self, root: _Root, view: Union, path: bytes = b"") -> None:
        """Copy what ``view`` has at and below ``path``, and the directories above, to ``root``, which is empty."""
        with Merged(root.fs, devices=self._mounts) as merged:
            above = path.split(b"/") if path else []
            entries = [_entry(view, b"/".join(above[:count])) for count in range(1, len(above) + 1)]
            fill(merged, entries)
            if not entries or entries[-1].kind is Kind.DIRECTORY:
                copied = tree_copy.copy(view, root.fs, path)
                fill(merged, (_entry(view, each) for each in copied.left))
                root.table = copied.table
                changes.renew(root.table, root.fs, copied.left)
            records.rewrite(root.fs, merged.records)

    def _advance(self, root: _Root, parents: Parents) -> None:
        """Apply those of ``parents`` to ``root`` that it lacks."""
        if len(root.state) == len(parents):
            return
        for count in range(len(root.state), len(parents)):
            _apply(root.fs, self.diff(parents[count], parents[:count]), devices=self._mounts)
        root.state = tuple(each.number for each in parents)
        root.table, shared = changes.scan(root.fs)
        self._separate(root, shared)
        root.settled = time.time_ns()

    def _separate(self, root: _Root, shared: SharedFiles) -> None:
        """Replace the names of ``shared`` files in ``root`` by copies, except for one of each that is only there."""
        if others := shared.others():
            _apply(root.fs, _copies(root, others), devices=self._mounts)
            changes.renew(root.table, root.fs, others)

    def _keep(self, root: _Root) -> None:
        """Keep ``root`` as unused. If there are too many, remove the oldest."""
        with self._lock:
            self._free.append(root)
            gone = self._free.pop(0) if len(self._free) > _KEPT else None
        if gone is not None:
            _remove(gone)

    def _give_room(self) -> bool:
        """Remove all unused roots; return whether there were any."""
        with self._lock:
            roots, self._free = self._free, []
        for each in roots:
            _remove(each)
        return bool(roots)

    def _new(self) -> _Root:
        directory = tempfile.mkdtemp(prefix="plain-", dir=self._directory)
        root = _Root(directory, below(directory, "fs"))
        os.mkdir(root.fs)
        os.chmod(root.fs, 0o755)
        return root

    # -- what is read and shown

    def diff(self, snapshot: Snapshot, parents: Parents) -> Iterator[Entry]:
        return diff.scan(snapshot.fs, stacked(parents), self.recorded)

    @contextmanager
    def mounted(self, parents: Parents, inside: str, *, readonly: bool) -> Iterator[Mounted]:
        view = self.view(parents)
        path = view.resolve(os.fsencode(inside))
        if view.lstat(path) is None:
            raise BuildError(f"mount source {inside} does not exist", why=os.strerror(2))
        if readonly and self._mounts:
            with self._copying:
                key = (stacked(parents), path)
                directory = self._copies.get(key) or self._copies.setdefault(key, self._copied(view, path).fs)
            with _clone(directory, path) as fd:
                yield Mounted(fd, (directory,))
            return
        copy = self._copied(view, path)
        try:
            with _clone(copy.fs, path) if self._mounts else _opened(copy.fs, path) as fd:
                yield Mounted(fd, (copy.fs,))
        finally:
            _remove(copy)

    def _copied(self, view: Union, path: bytes) -> _Root:
        """Return a directory with a copy of what ``view`` has at ``path``, under the same path."""
        with faults.translated(self._store.root, "cannot copy the files of a mount"):
            root = self._new()
            try:
                self._fill(root, view, path)
            except BaseException:
                _remove(root)
                raise
        return root

    def close(self) -> None:
        self._give_room()


def written(active: ActiveRoot) -> str:
    """Return the directory that is written."""
    assert isinstance(active.rootfs, Directory)
    return active.rootfs.path


def _entry(view: Union, path: bytes) -> Entry:
    """Return the entry of ``path``, which exists."""
    found = view.entry(path)
    assert found is not None
    return found


class _Replacing:
    """Passes ``entries`` on and notes their paths, whose records are no longer valid."""

    def __init__(self, directory: str, entries: Iterator[Entry]) -> None:
        self._directory = os.fsencode(directory)
        self._entries = entries
        self.replaced: set[bytes] = set()
        self.removed: set[bytes] = set()
        """Those below which nothing is left."""

    def __iter__(self) -> Iterator[Entry]:
        for entry in self._entries:
            self.replaced.add(entry.path)
            if entry.kind is Kind.DIRECTORY:
                _strip(self._directory + b"/" + entry.path)
            else:
                self.removed.add(entry.path)
            yield entry

    def holds(self, path: bytes) -> bool:
        """Whether a record of ``path`` is still valid."""
        parts = path.split(b"/")
        above = (b"/".join(parts[:count]) for count in range(1, len(parts)))
        return path not in self.replaced and not any(each in self.removed for each in above)


def _apply(directory: str, entries: Iterator[Entry], *, devices: bool) -> None:
    """Apply the changes ``entries`` to the root ``directory``; ``devices`` as for ``Merged``."""
    replacing = _Replacing(directory, entries)
    with Merged(directory, devices=devices) as merged:
        fill(merged, replacing)
        kept = [each for path, each in records.read(directory).items() if replacing.holds(path)]
        records.rewrite(directory, (*kept, *merged.records))


def _copies(root: _Root, others: dict[bytes, bytes]) -> Iterator[Entry]:
    """Yield the entries that replace ``others`` (``SharedFiles.others``) by copies."""
    recorded = records.read(root.fs)
    kept = os.fsencode(below(root.directory, "copied"))
    for path, first in others.items():
        host = os.fsencode(root.fs) + b"/" + first
        if path == first:  # the name is gone when its entry is applied
            os.link(host, kept, follow_symlinks=False)
            host = kept
        try:
            status = os.lstat(host)
            entry = diff.read(path, host, status, diff.xattrs_of(host, status))
            if entry is not None:  # a socket has the names that it has
                yield records.applied_as_seen(entry, recorded.get(path))
        finally:
            if path == first:
                os.unlink(kept)


def _strip(host: bytes) -> None:
    """Remove what a step can set on a directory beside owner, mode and times: ``user.*`` and access control lists."""
    with contextlib.suppress(OSError):
        for name in os.listxattr(host, follow_symlinks=False):
            if name.startswith(_ATTRIBUTES):
                os.removexattr(host, name, follow_symlinks=False)


def _reset(directory: str) -> None:
    """Set the metadata of a root directory, which are not part of any layer, to their defaults."""
    _strip(os.fsencode(directory))
    os.chown(directory, os.geteuid(), os.getegid())  # which stand for root's, where they are not
    os.chmod(directory, 0o755)


@contextmanager
def _clone(directory: str, path: bytes) -> Iterator[int]:
    """Yield a detached mount of what is at ``path`` in ``directory``; no component may be a link."""
    with _opened(directory, path) as place:
        clone = syscalls.OPEN_TREE_CLONE | syscalls.OPEN_TREE_CLOEXEC | syscalls.AT_EMPTY_PATH
        fd = syscalls.open_tree(place, "", clone)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _opened(directory: str, path: bytes) -> Iterator[int]:
    """Yield an O_PATH descriptor of what is at ``path`` in ``directory``; no component may be a link."""
    top = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fd = syscalls.openat2(top, os.fsdecode(path) or ".", os.O_PATH | os.O_CLOEXEC, resolve=syscalls.CONFINED)
    finally:
        os.close(top)
    try:
        yield fd
    finally:
        os.close(fd)


def _remove(root: _Root) -> None:
    """Delete ``root`` as far as possible. The rest is deleted with the job's directory."""
    with contextlib.suppress(OSError):
        removal.remove_tree(root.directory, threads=_REMOVING)
