"""Choosing a snapshotter: by name, by the file system of the store, and by what is recorded of the layers.

A store can be used in several isolation modes. What one mode could only record of a layer's files (``records``),
another may be able to set. In an overlay mount of such a layer, steps of that other mode would see files of root's, so
they get a copy of the stack, in which owners and permissions are set.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Final

from executor.snapshotter.overlay import Overlays
from executor.snapshotter.rootfs import Overlay
from executor.snapshotter.snapshotter import ActiveRoot, Mounted, Parents, stacked
from platforms import syscalls
from platforms.errors import EnvironmentUnfit
from platforms.paths import below

if TYPE_CHECKING:
    from executor.protocol import SnapshotterKind
    from executor.rootfs.entry import Entry
    from executor.rootfs.streams import Readable
    from executor.rootfs.tree import Tree
    from executor.snapshotter.plain import Plain
    from executor.snapshotter.records import Record
    from executor.snapshotter.snapshotter import Snapshotter
    from executor.snapshotter.unpack import Meaning, Unpacked, UnpackLimits
    from executor.store.snapshots import Snapshot
    from executor.store.store import Store

_WITH_OVERLAYS: Final = frozenset({0xEF53, 0x58465342, 0x9123683E, 0xF2F52010, 0xCA451A4E})
"""File systems that take overlays, by their magic numbers (linux/magic.h): ext4, XFS, btrfs, F2FS, bcachefs."""
_TMPFS: Final = 0x01021994
_OVERLAY: Final = 0x794C7630


def snapshotter(kind: SnapshotterKind, store: Store, directory: str, ids: int) -> Snapshotter:
    """Return the snapshotter of one job. ``directory``: for temporary files, on the store's file system.

    The ids from 0 up to ``ids``, exclusive, can own files; 0 where this process can mount nothing, without which there
    are no overlays.
    """
    if kind == "plain" or not ids or (kind == "auto" and fitting(directory) == "plain"):
        from executor.snapshotter.plain import Plain

        return Plain(store, directory, mounts=bool(ids))
    return OverlaysOrPlain(store, directory, ids)


def fitting(directory: str) -> SnapshotterKind:
    """Return the kind for the file system of ``directory``. Whether one that is not known takes overlays is tried."""
    kind = syscalls.file_system_type(directory)
    if kind in _WITH_OVERLAYS:
        return "overlay"
    if kind == _OVERLAY or not _has_user_attributes(directory):
        return "plain"
    if kind == _TMPFS:
        return "overlay"
    from executor.snapshotter.overlayfs import mount_stack

    upper, work, empty = (below(directory, name) for name in ("upper", "work", "empty"))
    for each in (upper, work, empty):
        os.mkdir(each)
    try:
        os.close(mount_stack((), empty, upper=upper, work=work))
    except EnvironmentUnfit:
        return "plain"
    return "overlay"


def _has_user_attributes(directory: str) -> bool:
    """Whether overlayfs can keep its records there, without which removing a directory of a lower layer fails.

    tmpfs has attributes of users since Linux 6.6.
    """
    try:
        os.setxattr(directory, "user.overlay.trial", b"")
        os.removexattr(directory, "user.overlay.trial")
    except OSError:
        return False
    return True


class OverlaysOrPlain:
    """``Snapshotter``. ``ids``: the ids from 0 up to this one, exclusive, exist in this process's user namespace."""

    def __init__(self, store: Store, directory: str, ids: int) -> None:
        self._store = store
        self._directory = directory
        self._ids = ids
        self._overlays = Overlays(store, directory)
        self._has_settable = functools.cache(self._read_for_settable)

    @functools.cached_property
    def _plain(self) -> Plain:
        from executor.snapshotter.plain import Plain

        return Plain(self._store, self._directory)

    def _read_for_settable(self, directory: str) -> bool:
        """Whether a record of ``directory`` says what this process can set."""
        return any(map(self._is_settable, self._overlays.recorded(directory).values()))

    def _is_settable(self, record: Record) -> bool:
        return record.mode is not None or 0 < max(record.uid, record.gid) < self._ids

    def _fitting(self, parents: Parents) -> Overlays | Plain:
        return self._plain if any(map(self._has_settable, stacked(parents))) else self._overlays

    def _maker(self, active: ActiveRoot) -> Overlays | Plain:
        return self._overlays if isinstance(active.rootfs, Overlay) else self._plain

    def view(self, parents: Parents) -> Tree:
        return self._overlays.view(parents)

    def prepare(self, parents: Parents) -> ActiveRoot:
        return self._fitting(parents).prepare(parents)

    def add_mount_points(self, active: ActiveRoot, made_ns: int) -> None:
        self._maker(active).add_mount_points(active, made_ns)

    def apply(self, active: ActiveRoot, stream: Readable, limits: UnpackLimits, meant: Meaning) -> Unpacked:
        return self._maker(active).apply(active, stream, limits, meant)

    def commit(self, active: ActiveRoot, *, keys: tuple[str, ...], description: str = "") -> Snapshot:
        return self._maker(active).commit(active, keys=keys, description=description)

    def remove(self, active: ActiveRoot) -> None:
        self._maker(active).remove(active)

    def diff(self, snapshot: Snapshot, parents: Parents) -> Iterator[Entry]:
        return self._overlays.diff(snapshot, parents)

    def mounted(self, parents: Parents, inside: str, *, readonly: bool) -> AbstractContextManager[Mounted]:
        return self._fitting(parents).mounted(parents, inside, readonly=readonly)

    def close(self) -> None:
        self._overlays.close()
        if "_plain" in self.__dict__:
            self._plain.close()
